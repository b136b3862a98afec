"""`gradmm.gradients.target_reader`: what a target says of a text's class, against counting and reading by hand."""

from __future__ import annotations

from dataclasses import replace
from math import log
from typing import Any

import pytest
import torch

from gradmm.data.task import BoundTask
from gradmm.data.vocabulary import bare_starts, token_strings
from gradmm.gradients.exact_target import compute_target
from gradmm.gradients.factors import label_factors
from gradmm.gradients.losses import VOCABULARY, VerbaliserLoss
from gradmm.gradients.spaces import IDENTITY, Space, SpaceConfig, fit_space
from gradmm.gradients.target import ClassTarget, ReleasedTarget
from gradmm.gradients.target_reader import TargetReader
from gradmm.gradients.unigrams import FLOOR, UnigramCounter, Unigrams
from gradmm.memory import BatchLimit
from gradmm.models import LanguageModel

MIXED = (" bad", " happy", " surprised")
"""Verbalisers of one and of several tokens."""
SINGLE = (" bad", " feel", " great")
SPLIT = [
    ["The film is bad, bad and dull", "A dull story", "It was a bad end"],
    ["It makes me happy", "A happy end, a fine film", "I feel happy"],
    ["The end is great", "A great film and a great story", "It was great"],
]
MAPS = [("whitened",), ("verbaliser", "whitened"), ("verbaliser", "contrasts", "whitened")]
BOTH = [("verbalisers", maps) for maps in MAPS] + [("vocabulary", maps) for maps in MAPS[:2]]


@pytest.fixture
def lm(tiny_lm: Any) -> LanguageModel:
    return tiny_lm("gpt2")


@pytest.fixture
def task(lm: LanguageModel, tiny_task: Any) -> BoundTask:
    return tiny_task(lm, MIXED)


def ids_of(task: BoundTask) -> list[list[int]]:
    return [ids for own in SPLIT for ids in task.texts_ids(own)]


def space_of(lm: LanguageModel, task: BoundTask, loss_name: str, maps: Any) -> Space:
    loss = VOCABULARY if loss_name == "vocabulary" else VerbaliserLoss.of(task)
    batch = task.collate(ids_of(task), [0, 1, 2] * 3)
    public = label_factors(lm, batch, batch.embed(lm.embeddings_VE), 1, loss=loss)
    labels = [token for ids in task.label_ids for token in ids]
    labels = labels if loss is VOCABULARY else list(range(loss.size(lm.head)))
    return fit_space(SpaceConfig(maps=maps, rank=20), public, labels, torch.Generator().manual_seed(0), loss)


def states_slowly(lm: LanguageModel, task: BoundTask, space: Space, text: str) -> torch.Tensor:
    """What the label's first token is read from, of one text, mapped as a factor is."""
    batch = task.collate([task.text_ids(text)], [0])
    factors = label_factors(lm, batch, batch.embed(lm.embeddings_VE), 1, loss=space.loss)
    return space(factors).h_KJD[0, 0].double()


def with_words(target: ReleasedTarget, words: list[Unigrams]) -> ReleasedTarget:
    return replace(
        target,
        classes=tuple(replace(own, unigrams=some) for own, some in zip(target.classes, words, strict=True)),
    )


def counted(lm: LanguageModel, task: BoundTask) -> list[Unigrams]:
    found = []
    for own in SPLIT:
        counter = UnigramCounter(task, len(lm.embeddings_VE))
        counter.add(task.texts_ids(own))
        found.append(counter.mean(fewest_rows=1))
    return found


def silent(task: BoundTask, size: int = 1) -> ReleasedTarget:
    """A target that says nothing by its gradients."""
    none = ClassTarget(None, (torch.zeros(size, size), torch.zeros(size)))
    return ReleasedTarget((none,) * len(task.label_ids))


# ---- hidden states


@pytest.mark.parametrize(("loss", "maps"), BOTH)
def test_a_class_of_one_row_has_its_hidden_state(lm: LanguageModel, tiny_task: Any, loss: str, maps: Any) -> None:
    """So every class is read by the squared distance from its row's state.

    Over the whole vocabulary later tokens of a verbaliser have a part in it; here they have one each.
    """
    task = tiny_task(lm, MIXED if loss == "verbalisers" else SINGLE)
    space, rows = space_of(lm, task, loss, maps), [own[0] for own in SPLIT]
    target = compute_target(lm, task, [[[row]] for row in rows], space=space)
    found_NC = TargetReader(lm, task, target, reads_states=True).evidence(ids_of(task))
    means = [states_slowly(lm, task, space, row) for row in rows]
    for text, own_C in zip([text for own in SPLIT for text in own], found_NC, strict=True):
        h_D = states_slowly(lm, task, space, text)
        expected_C = torch.stack([(h_D.square().sum() - (h_D - mean_D).square().sum()) / 2 for mean_D in means])
        torch.testing.assert_close(own_C, expected_C, rtol=2e-3, atol=2e-3)


def means_slowly(lm: LanguageModel, task: BoundTask, space: Space) -> torch.Tensor:
    """Of every class's rows, the hidden state weighted by how wrong the model is about the row (C, D)."""
    means = []
    for label, own in enumerate(SPLIT):
        token, weights = space.loss.index(task.label_ids[label][0]), []
        for text in own:
            batch = task.collate([task.text_ids(text)], [label])
            factors = label_factors(lm, batch, batch.embed(lm.embeddings_VE), 1, loss=space.loss)
            weights.append(float(factors.r_KJV[0, 0, token]))
        states = [states_slowly(lm, task, space, text) for text in own]
        means.append(sum(w * h for w, h in zip(weights, states, strict=True)) / sum(weights))
    return torch.stack(means)


def discriminant_slowly(lm: LanguageModel, task: BoundTask, space: Space, mean_CD: torch.Tensor) -> torch.Tensor:
    h_ND = torch.stack([states_slowly(lm, task, space, text) for own in SPLIT for text in own])
    return torch.stack([h_ND @ mean_D - mean_D @ mean_D / 2 for mean_D in mean_CD], 1)


def test_a_class_of_several_rows_has_their_mean_weighted_by_how_wrong_the_model_is(
    lm: LanguageModel, task: BoundTask
) -> None:
    space = space_of(lm, task, "verbalisers", ("whitened",))
    target = compute_target(lm, task, [[own] for own in SPLIT], space=space)
    found_NC = TargetReader(lm, task, target, True).evidence(ids_of(task))
    expected_NC = discriminant_slowly(lm, task, space, means_slowly(lm, task, space))
    torch.testing.assert_close(found_NC, expected_NC, rtol=2e-3, atol=2e-3)


def test_what_all_classes_have_in_common_says_nothing(lm: LanguageModel, task: BoundTask) -> None:
    """A centred target is read as it was before."""
    space = space_of(lm, task, "verbalisers", ("whitened",))
    target = compute_target(lm, task, [[own] for own in SPLIT], space=space)
    found, centred = (
        TargetReader(lm, task, one, True).evidence(ids_of(task)) for one in (target, target.centred())
    )
    torch.testing.assert_close(found, centred)


@pytest.mark.parametrize("kind", ["gptj", "opt_projected", "mamba"])
def test_any_architecture_tells_rows_apart(tiny_lm: Any, tiny_task: Any, kind: str) -> None:
    lm = tiny_lm(kind)
    task = tiny_task(lm, MIXED)
    space = space_of(lm, task, "verbalisers", ("verbaliser", "contrasts", "whitened"))
    target = compute_target(lm, task, [[[own[0]]] for own in SPLIT], space=space)
    found_NC = TargetReader(lm, task, target, True).evidence(task.texts_ids([own[0] for own in SPLIT]))
    assert found_NC.argmax(1).tolist() == [0, 1, 2]


# ---- words


def test_words_are_read_as_naive_bayes_reads_them(lm: LanguageModel, task: BoundTask) -> None:
    shares = counted(lm, task)
    reader = TargetReader(lm, task, with_words(silent(task), shares), reads_states=False)
    found_NC = reader.evidence(ids_of(task))
    strings, opens_V = token_strings(task.tokenizer), bare_starts(task.tokenizer, len(lm.embeddings_VE))[1]
    are_words = [i for i, one in enumerate(strings) if one.startswith(" ") and one.strip().isalpha()]
    common = {v: sum(float(own.share_V[v]) for own in shares) / 3 for v in are_words}
    totals = [sum(float(own.share_V[v]) + FLOOR for v in are_words) for own in shares]
    whole = sum(common[v] + FLOOR for v in are_words)
    for ids, own_C in zip(ids_of(task), found_NC, strict=True):
        opened = [int(opens_V[ids[0]]) if task.starts_bare else ids[0], *ids[1:]]
        assert set(opened) & set(are_words)
        for label, own in enumerate(shares):
            expected = sum(
                log((float(own.share_V[v]) + FLOOR) / totals[label] / (common[v] + FLOOR) * whole)
                for v in opened
                if v in common
            )
            assert float(own_C[label]) == pytest.approx(expected, abs=1e-9)
    assert found_NC.argmax(1).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_words_and_states_add_up(lm: LanguageModel, task: BoundTask) -> None:
    space = space_of(lm, task, "verbalisers", ("whitened",))
    target = compute_target(lm, task, [[own] for own in SPLIT], space=space)
    both = with_words(target, counted(lm, task))
    found, states = (TargetReader(lm, task, one, True).evidence(ids_of(task)) for one in (both, target))
    words = TargetReader(lm, task, both, False).evidence(ids_of(task))
    torch.testing.assert_close(found, states + words)


# ---- company


def test_a_text_is_read_the_same_in_any_company(lm: LanguageModel, task: BoundTask) -> None:
    space = space_of(lm, task, "verbalisers", ("whitened",))
    target = with_words(compute_target(lm, task, [[own] for own in SPLIT], space=space), counted(lm, task))
    reader, ids = TargetReader(lm, task, target, True), ids_of(task)
    found_NC = reader.evidence(ids, BatchLimit(2))
    for text, own_C in zip(ids, found_NC, strict=True):
        torch.testing.assert_close(reader.evidence([text])[0], own_C, rtol=1e-4, atol=1e-4)
    assert reader.evidence([]).shape == (0, 3)


def test_a_target_that_says_nothing_is_not_read(lm: LanguageModel, task: BoundTask) -> None:
    with pytest.raises(AssertionError, match="says nothing of the classes"):
        TargetReader(lm, task, replace(silent(task), space=IDENTITY), reads_states=False)
