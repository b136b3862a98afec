"""`gradmm.gradients.private_sums`: clipped sums of sets of texts, and what is read of a release."""

from __future__ import annotations

import pytest
import torch

import oracles
from gradmm.gradients.factors import label_factors
from gradmm.gradients.geometry import geometry
from gradmm.gradients.private_sums import PrivateAccumulator, Release
from gradmm.gradients.spaces import IDENTITY
from gradmm.gradients.unigrams import TokenShares
from gradmm.privacy.config import PrivacyConfig
from gradmm.privacy.planning import make_plan, shares_of
from release_oracles import GIVEN, MIXED, NONE, SPLIT


def test_sets_of_texts_are_added_one_by_one(tiny_lm, tiny_task):
    """An accumulator takes any number of texts; each is clipped on its own."""
    lm = tiny_lm("phi")
    task = tiny_task(lm, MIXED)
    sizes = geometry(lm, IDENTITY, True)
    ids = [task.text_ids(text) for text in SPLIT[2]]
    batch = task.collate(ids, [2] * 3)
    texts = label_factors(lm, batch, batch.embed(lm.embeddings_VE), 1)
    config = PrivacyConfig(**GIVEN)
    found = []
    for parts in ([[0, 1, 2]], [[0], [1, 2]]):
        total = PrivateAccumulator(sizes, 3, 0.5)
        for part in parts:
            total.add(2, texts.sets(part), len(part))
        total.add(1, None, 4)
        found.append(total.release(make_plan(config), (1.0, 1.0, 2.0), NONE)[0])
    assert torch.equal(found[0], found[1]) and float(found[0][:2].abs().max()) == 0
    assert 0.5 / 2 < float(found[0][2].norm()) <= 3 * 0.5 / 2


def test_what_was_drawn_reads_as_what_was_summed(tiny_lm, tiny_task):
    """`target` makes gradients, shares and their noise of the means; `parts` says how many numbers there are."""
    lm = tiny_lm("phi")
    task = tiny_task(lm, MIXED)
    shares, config = TokenShares(task, len(lm.embeddings_VE)), PrivacyConfig(**GIVEN)
    what = Release(IDENTITY, geometry(lm, IDENTITY, True), 1e3, shares, words_clip=2.0)
    plan, sums = make_plan(config, shares_of(config, with_words=True)), what.sums(3)
    for label, own in enumerate(SPLIT):
        ids = [task.text_ids(text) for text in own]
        batch = task.collate(ids, [label] * len(ids))
        sums.add(label, label_factors(lm, batch, batch.embed(lm.embeddings_VE), 1), ids)
    drawn = sums.release(plan, [2.0, 1.0, 3.0], NONE)
    assert {name: (clip, 3 * numbers) for name, (clip, numbers) in what.parts.items()} == {
        "target": (1e3, drawn["means"].numel()),
        "words": (2.0, drawn["words"].numel()),
    }
    target = what.target(drawn, plan, lm.device)
    for label, (found, own) in enumerate(zip(target.classes, SPLIT, strict=True)):
        ids = [task.text_ids(text) for text in own]
        batch = task.collate(ids, [label] * len(ids))
        (whole,) = label_factors(lm, batch, batch.embed(lm.embeddings_VE), len(ids)).dense()[0]
        assert oracles.relative_error(found.materialised()[0], whole) < 1e-4
        count = float(drawn["counts"][label])
        assert count == len(own) and found.noise_std * count == plan.event("target").noise_multiplier * 1e3
        expected_W = torch.stack([shares.of_words(one) for one in ids]).mean(0)
        torch.testing.assert_close(found.unigrams.share_V[shares.words_V], expected_W)
        assert found.unigrams.noise_std * count == pytest.approx(plan.event("words").noise_multiplier * 2)


def test_without_words_none_are_summed(tiny_lm, tiny_task):
    lm = tiny_lm("phi")
    task, config = tiny_task(lm, MIXED), PrivacyConfig(**GIVEN)
    what = Release(IDENTITY, geometry(lm, IDENTITY, True), 0.5, TokenShares(task, len(lm.embeddings_VE)))
    sums, plan = what.sums(3), make_plan(config)
    sums.add(0, None, [[]])
    drawn = sums.release(plan, [1.0, 1.0, 1.0], NONE)
    assert list(what.parts) == ["target"] and set(drawn) == {"means", "counts"}
    assert all(own.unigrams is None for own in what.target(drawn, plan, lm.device).classes)
