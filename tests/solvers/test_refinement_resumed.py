"""Refinement that is interrupted, seeded, short of memory."""

from collections import Counter

import numpy as np
import pytest
import torch

from gradmm.memory import BatchLimit
from gradmm.solvers.refinement import FRESH
from refinement_tools import TWO, UNEVEN, followed, read

MIXED = {"labels": UNEVEN, "words": (" bad", " very great")}


@pytest.mark.parametrize("nll_weight", [0.0, 0.05])
@pytest.mark.parametrize("more", [{}, MIXED], ids=["one class", "two classes"])
def test_resumed_from_any_state_it_goes_on_the_same(refining, nll_weight, more):
    settings = {"nll_weight": nll_weight, "evaluations": 20, **more}
    states = followed(refining("phi", **settings)[2])
    assert len(states) > 5
    for at, kept in enumerate(states):
        again = followed(refining("phi", **settings)[2], state=read(kept))
        assert len(again) == len(states) - at
        for mine, theirs in zip(map(read, again), map(read, states[at:]), strict=True):
            assert mine.objective == pytest.approx(theirs.objective, rel=1e-5)
            assert np.array(mine.trace) == pytest.approx(np.array(theirs.trace), rel=1e-5)
            mine.objective, mine.trace = theirs.objective, theirs.trace
            assert mine == theirs


@pytest.mark.parametrize("more", [{}, MIXED], ids=["one class", "two classes"])
def test_resumed_from_a_state_that_is_kept_it_goes_on_to_the_last_digit(refining, more):
    settings = {"nll_weight": 0.05, "evaluations": 60, **more}
    states = followed(refining("phi", **settings)[2])
    kept = [at for at in range(len(states)) if read(states[at]).step % FRESH == 0]
    assert len(kept) > 1 and read(states[kept[1]]).accepted
    for at in kept:
        again = followed(refining("phi", **settings)[2], state=read(states[at]))
        assert again == states[at:]


def test_every_draw_has_a_generator_of_its_own(refining):
    refiner, asked = refining("gpt2", labels=TWO, evaluations=40)[2], []
    plain = refiner.make_generator
    refiner.make_generator = lambda *purpose: asked.append(purpose) or plain(*purpose)
    states = list(map(read, followed(refiner)))
    last = states[-1]
    assert last.sweep > 1
    expected = [("sweep", at) for at in range(last.sweep)] + [("propose", at) for at in range(last.step)]
    assert Counter(asked) == Counter(expected)


def test_the_seed_decides(refining):
    first, same, other = (followed(refining("gpt2", seed=seed)[2]) for seed in (0, 0, 1))
    assert first == same
    assert read(first[-1]).texts != read(other[-1]).texts


@pytest.mark.parametrize("more", [{}, MIXED], ids=["one class", "two classes"])
def test_a_batch_too_many_is_halved_and_changes_nothing(refining, tiny_lm, more):
    plain = read(followed(refining("gpt2", nll_weight=0.05, **more)[2])[-1])
    limit, most, refused = BatchLimit(64), 2, []

    def check(_, args, kwargs):
        given = kwargs.get("inputs_embeds", kwargs.get("input_ids"))
        if len(given) > most:
            refused.append(len(given))
            raise torch.OutOfMemoryError("CUDA out of memory.")

    refiner = refining("gpt2", nll_weight=0.05, limit=limit, **more)[2]
    hook = tiny_lm("gpt2").body.register_forward_pre_hook(check, with_kwargs=True)
    try:
        small = read(followed(refiner)[-1])
    finally:
        hook.remove()
    assert refused and limit.size <= most
    assert small.objective == pytest.approx(plain.objective, rel=1e-5)
    assert small.texts == plain.texts
