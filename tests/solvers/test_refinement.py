"""Refinement: what every state of it is held to, in every space and for every head."""

from dataclasses import replace

import pytest
import torch

from gradmm.gradients.losses import VerbaliserLoss
from gradmm.gradients.spaces import LinearMap, Space
from gradmm.memory import BatchLimit
from refinement_tools import (
    DISTANCES,
    LABEL,
    ONE,
    TEXTS,
    TWO,
    UNEVEN,
    followed,
    nll_slowly,
    objective_slowly,
    read,
)


@pytest.mark.parametrize("nll_weight", [0.0, 0.05])
@pytest.mark.parametrize("distance", DISTANCES, ids=str)
@pytest.mark.parametrize("labels", [ONE, TWO, UNEVEN], ids=str)
def test_objective_of_every_state_is_that_of_its_texts_and_never_rises(refining, distance, nll_weight, labels):
    lm, task, refiner = refining("phi", distance, nll_weight=nll_weight, labels=labels)
    assert lm.head.bias_V is not None, "phi is here for the bias"
    states = list(map(read, followed(refiner)))
    for state in states:
        expected = objective_slowly(lm, task, distance, state.texts, nll_weight, labels=labels)
        assert state.objective == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert state.start == states[0].objective
    values = [state.objective for state in states]
    assert values == sorted(values, reverse=True)
    assert states[-1].accepted > 2, "it does something"
    assert values[-1] < 0.9 * values[0]


def test_it_spends_no_readability_that_selection_left_unspent(refining):
    start = read(followed(refining("phi", evaluations=30)[2])[-1]).texts
    odd = {"evaluations": 30, "temperature": 1000.0}  # tokens that the LM would not write
    lm, task, careless = refining("phi", **odd)
    before = nll_slowly(lm, task, start)
    assert nll_slowly(lm, task, read(followed(careless, start)[-1]).texts) > before + 0.1
    states = list(map(read, followed(refining("phi", nll_weight=100.0, free=99.0, **odd)[2], start)))
    for state in states:
        assert state.nll_free == pytest.approx(before, rel=1e-4)
        assert nll_slowly(lm, task, state.texts) < before + 0.02
        expected = objective_slowly(lm, task, DISTANCES[0], state.texts, 100.0, start=start, free=99.0)
        assert state.objective == pytest.approx(expected, rel=1e-4, abs=1e-3)
    assert states[-1].accepted > 0


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("labels", [ONE, TWO, UNEVEN], ids=str)
@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_other_heads_a_bos_token_and_verbalisers_of_several_tokens(refining, kind, labels, at_once):
    """However classes whose verbalisers differ in length meet in a batch."""
    more = {"words": (" bad", " very great"), "nll_weight": 0.05, "labels": labels, "limit": BatchLimit(at_once)}
    lm, task, refiner = refining(kind, **more)
    assert len(task.label_ids[LABEL]) > 1 == len(task.label_ids[0])
    for state in map(read, followed(refiner)):
        expected = objective_slowly(lm, task, DISTANCES[0], state.texts, 0.05, labels=labels)
        assert state.objective == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert state.accepted > 0


@pytest.mark.parametrize("distance", [DISTANCES[0], DISTANCES[4]], ids=str)
@pytest.mark.parametrize("words", [(" bad", " great"), (" bad", " very great"), (" very bad", " very great")])
def test_losses_that_differ_by_class(refining, tiny_lm, tiny_task, distance, words):
    """Calibration adds to a logit what depends on the class and on the place."""
    task = tiny_task(tiny_lm("phi"), words, "Review: {text} It was")
    loss = VerbaliserLoss.of(task)
    loss = replace(loss, bias_CLM=torch.randn(loss.bias_CLM.shape, generator=torch.Generator().manual_seed(0)))
    lm, task, refiner = refining("phi", distance, Space(loss=loss), words=words, labels=UNEVEN)
    states = list(map(read, followed(refiner)))
    for state in states:
        expected = objective_slowly(lm, task, distance, state.texts, 0.0, labels=UNEVEN, loss=loss)
        assert state.objective == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert states[-1].accepted > 0


@pytest.mark.parametrize("labels", [ONE, TWO], ids=str)
@pytest.mark.parametrize("distance", [DISTANCES[0], DISTANCES[4]], ids=str)
def test_spaces_other_than_the_identity(refining, tiny_lm, distance, labels):
    lm, generator = tiny_lm("phi"), torch.Generator().manual_seed(0)
    maps = [
        LinearMap(r_MV=torch.randn(9, lm.vocab_size, generator=generator), h_PD=torch.eye(32)),
        LinearMap(r_MV=torch.eye(9), h_PD=torch.randn(7, 32, generator=generator)),
    ]
    lm, task, refiner = refining("phi", distance, Space(maps), labels=labels)
    states = list(map(read, followed(refiner)))
    for state in states:
        expected = objective_slowly(lm, task, distance, state.texts, 0.0, Space(maps), labels=labels)
        assert state.objective == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert states[-1].accepted > 0


@pytest.mark.parametrize("labels", [ONE, UNEVEN], ids=str)
def test_every_state_is_a_valid_set(refining, labels):
    settings = {"kind": "gpt2", "temperature": 3.0, "evaluations": 60, "proposals": 20, "labels": labels}
    _, task, refiner = refining(**settings)
    allowed_V = refiner._allowed_V.clone()
    used = {token for text in TEXTS for token in task.text_ids(text)}
    allowed_V[sorted(set(task.text_ids("great happy")) - used)] = False
    refiner = refining(**settings, allowed_V=allowed_V)[2]
    assert not allowed_V[task.text_ids("great")[-1]]
    lengths = [len(task.text_ids(text)) for text in TEXTS]
    for before, after in zip(states := list(map(read, followed(refiner))), states[1:], strict=False):
        assert len(after.texts) == len(TEXTS) == len(set(after.texts))
        for old, new, longest in zip(before.texts, after.texts, lengths, strict=True):
            ids = task.text_ids(new)
            assert 0 < len(ids) <= longest and bool(allowed_V[ids].all())
            assert new[-1] == old[-1], "the last token ends the text"
        changed = sum(old != new for old, new in zip(before.texts, after.texts, strict=True))
        assert (
            bool(changed) == bool(after.accepted - before.accepted) and changed <= after.accepted - before.accepted
        )
    assert states[-1].accepted > 5


def test_changed_texts_are_one_token_away_new_to_the_set_and_no_longer(refining):
    _, task, refiner = refining("gpt2", proposals=112, labels=(*UNEVEN, 0))
    ids = task.text_ids(TEXTS[1])
    neighbour = task.decode([*ids[:3], *task.text_ids("great")[-1:], *ids[4:]])
    texts = [*TEXTS, neighbour]
    places = [(0, 1), (1, 3), (1, 4), (2, 2), (3, 1), (4, 3)]
    changed = refiner._propose(refiner.init(texts), places)
    found, allowed = {text: i for i, _, text in changed}, refiner._allowed_V.nonzero()[:, 0].tolist()
    assert len(found) == len(changed), "each once"
    assert all(ids == task.text_ids(text) for _, ids, text in changed)
    expected, longer = set(), 0
    for i, t in places:
        ids = task.text_ids(texts[i])
        for token in allowed:
            text = task.decode([*ids[:t], token, *ids[t + 1 :]])
            again = task.text_ids(text)
            longer += len(again) > len(ids)
            if text not in texts and len(again) <= len(ids) and bool(refiner._allowed_V[again].all()):
                expected.add(text)
    assert longer > 0
    assert set(found) == expected
    assert refiner._propose(refiner.init(texts), [(0, len(task.text_ids(TEXTS[0])) - 1), (0, 99)]) == []
