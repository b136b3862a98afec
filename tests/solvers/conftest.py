"""A refiner on a random model, and a generator that is the same in every test."""

import pytest
import torch

from gradmm.data.task import BoundTask
from gradmm.data.vocabulary import allowed_tokens
from gradmm.gradients.exact_target import compute_target
from gradmm.gradients.spaces import IDENTITY
from gradmm.memory import BatchLimit
from gradmm.seeds import make_generator
from gradmm.solvers.refinement import RefinementConfig, Refiner
from refinement_tools import DISTANCES, FREE, ONE, ROWS


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def refining(tiny_lm, tiny_task):
    """Builds (lm, task, refiner) for a kind of model."""

    def build(
        kind="phi",
        distance=DISTANCES[0],
        space=IDENTITY,
        limit=None,
        allowed_V=None,
        seed=0,
        words=None,
        free=FREE,
        labels=ONE,
        prompts=(),
        max_repeats=None,
        **settings,
    ):
        lm = tiny_lm(kind)
        task = tiny_task(lm, words or (" bad", " great"), "Review: {text} It was")
        task = BoundTask(task.task.model_copy(update={"instructions": prompts}), lm.tokenizer, lm.max_length)
        released, classes = compute_target(lm, task, [[own] for own in ROWS], space=space), sorted(set(labels))
        target = released.together(classes, [labels.count(label) for label in classes])
        config = RefinementConfig(**{"evaluations": 12, "proposals": 4, "places": 3, "nll_weight": 0.0} | settings)
        if allowed_V is None:
            allowed_V = allowed_tokens(lm.tokenizer, lm.vocab_size)
            allowed_V[lm.tokenizer.convert_tokens_to_ids("Ġ")] = True  # this small tokenizer cannot do without
        refiner = Refiner(
            lm,
            task,
            labels,
            target,
            space,
            distance,
            allowed_V,
            config,
            limit or BatchLimit(),
            lambda *purpose: make_generator(seed, *purpose),
            free,
            max_repeats=max_repeats,
        )
        return lm, task, refiner

    return build
