"""Where refinement stops: its budgets, local optima, texts without places."""

import json
from dataclasses import asdict

import pytest
import torch

from gradmm.solvers import refinement
from gradmm.solvers.refinement import RefinementState
from refinement_tools import DISTANCES, LABEL, TEXTS, followed, objective_slowly, read


@pytest.mark.parametrize("evaluations", [0, 1, 3, 7])
def test_the_budget_is_spent_and_never_exceeded(refining, evaluations):
    refiner = refining("gpt2", evaluations=evaluations, proposals=5)[2]
    states = list(map(read, followed(refiner)))
    assert states[-1].evaluations == evaluations * len(TEXTS)
    assert refiner.stop(states[-1]) == "budget"
    if evaluations == 0:
        assert states == [refiner.init(TEXTS)]


def test_seconds_are_a_budget_too(refining, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(refinement.time, "monotonic", lambda: float(next(clock)))
    refiner = refining("gpt2", evaluations=1000, seconds=3)[2]
    states = list(map(read, followed(refiner)))
    assert [state.seconds for state in states] == [0, 1, 2, 3]
    assert refiner.stop(states[-1]) == "budget"
    assert refiner.stop(states[-2]) is None
    assert len(followed(refiner, state=states[1])) == 3, "what was spent before counts"


@pytest.mark.parametrize("nll_weight", [0.0, 0.05])
@pytest.mark.parametrize("labels", [(1, 1, 1), (0, 1, 1, 0)], ids=str)
def test_a_sweep_that_brings_nothing_is_a_local_optimum(refining, tiny_lm, nll_weight, labels):
    lm = tiny_lm("gpt2")
    texts = ["The film is", "A bad end", "It was fine", "I feel it was a bad end"][: len(labels)]
    allowed_V = torch.zeros(lm.vocab_size, dtype=torch.bool)
    for text in [*texts, "great happy sad feel story"]:
        allowed_V[lm.tokenizer(text).input_ids] = True
    settings = {"evaluations": 10_000, "proposals": 120, "nll_weight": nll_weight, "places": 5}
    lm, task, refiner = refining("gpt2", allowed_V=allowed_V, labels=labels, **settings)
    state = read(followed(refiner, texts)[-1])
    assert refiner.stop(state) == "sweep" and state.accepted > 0
    assert state.evaluations < 10_000 * len(texts)
    tried = 0
    for i, text in enumerate(state.texts):
        ids = task.text_ids(text)
        for t in range(1, len(ids) - 1):
            for token in allowed_V.nonzero()[:, 0].tolist():
                other = task.decode([*ids[:t], token, *ids[t + 1 :]])
                again = task.text_ids(other)
                if other in state.texts or len(again) > len(ids) or not bool(allowed_V[again].all()):
                    continue
                changed = [*state.texts[:i], other, *state.texts[i + 1 :]]
                given = {"start": texts, "labels": labels}
                value = objective_slowly(lm, task, DISTANCES[0], changed, nll_weight, **given)
                assert value > state.objective - 1e-6, (text, other)
                tried += 1
    assert tried > 50


def test_texts_of_one_and_two_tokens_have_no_places(refining):
    _, task, refiner = refining("gpt2", labels=(1, 0, 1))
    texts = ["a", "b", "9"]
    assert [len(task.text_ids(text)) for text in texts] == [1, 2, 2]
    state = read(followed(refiner, texts)[-1])
    assert state.texts == texts and state.evaluations == 0
    assert refiner.stop(state) == "sweep"


def test_places_are_all_inner_ones_once_and_fit_the_context_after_the_prompt(refining):
    lm, task, refiner = refining("gpt2")
    state = refiner.init(TEXTS)
    refiner._begin_sweep(state)
    lengths = [len(task.text_ids(text)) for text in TEXTS]
    inner = [(i, t) for i, length in enumerate(lengths) for t in range(1, length - 1)]
    assert sorted(state.places) == inner != state.places
    assert read(json.dumps(asdict(state))) == state
    room = lm.max_length - len(task.instruction_ids[LABEL])
    assert task.room > room + 2, "the template is shorter than the prompt"
    long = task.tokenizer.decode(task.text_ids("a b " * 99)[: task.room])
    state, refiner = RefinementState([long]), refining("gpt2", labels=[LABEL])[2]
    refiner._begin_sweep(state)
    assert max(t for _, t in state.places) == room
    refiner._propose(state, [(0, room)])


def test_places_fit_the_context_after_the_prompt_of_their_own_class(refining):
    labels = (1, 0, 1)
    prompts = (
        "A dull film. It makes me feel sad.",
        "A great film. It makes me feel happy. I feel it was a fine end:",
    )
    lm, task, refiner = refining("gpt2", prompts=prompts, labels=labels)
    rooms = [lm.max_length - len(ids) for ids in task.instruction_ids]
    assert task.room > rooms[0] + 2 > rooms[1] + 5
    long = task.tokenizer.decode(task.text_ids("a b " * 99)[: task.room])
    state = RefinementState([long, long[2:], long[4:]])
    refiner._begin_sweep(state)
    for i, label in enumerate(labels):
        assert max(t for j, t in state.places if j == i) == rooms[label]
    refiner._propose(state, [(i, rooms[label]) for i, label in enumerate(labels)])
