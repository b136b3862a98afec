"""`gradmm.gradients.shrinkage` against truth that is known."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from gradmm.config import parse_config
from gradmm.errors import ConfigError
from gradmm.gradients.factors import Factors
from gradmm.gradients.shrinkage import RowNoise, noise_of, shrunk
from gradmm.gradients.spread import SpreadCounter
from gradmm.gradients.target import ClassTarget, ReleasedTarget
from gradmm.gradients.unigrams import Unigrams

V, D = 3, 40
TOGETHER, APART = [((0, 1), (5, 5))], [((0,), (5,)), ((1,), (5,))]


def rows_of(mean_VD, count, generator, noise=1.0):
    """Rows whose gradients are outer products around a mean: r is a unit vector, h what is left."""
    r_VV = torch.eye(V)
    h_CVD = mean_VD + noise * torch.randn(count, V, D, generator=generator)
    return Factors(r_VV.expand(count, V, V).clone(), h_CVD, torch.ones(count, V))


def target_of(rows):
    """A class's target from rows that are sets of their own."""
    counter = SpreadCounter()
    counter.add(rows)
    weight_KVD, bias_KV = rows.dense()
    return ClassTarget(None, (weight_KVD.mean(0), bias_KV.mean(0)), spread=counter.mean())


def dense(mean_VD):
    return ClassTarget(None, (mean_VD, torch.zeros(V)))


@pytest.mark.parametrize(
    ("rows", "noise", "share"),
    [(1.0, 0.0, 0.0), (2.0, 0.5, 0.25), (1.0, 1.0, 1.0), (1.0, 3.0, 1.0), (0.0, 0.0, 0.0)],
)
def test_the_weight_follows_the_noises_share(rows, noise, share):
    found = RowNoise(rows, noise)
    assert found.share == share and found.weight == pytest.approx(0.7 * share)


@pytest.mark.parametrize("groups", [TOGETHER, APART])
def test_noise_is_that_of_means_over_many_draws(groups):
    generator = torch.Generator().manual_seed(0)
    means_CVD = torch.randn(2, V, D, generator=generator)
    found, true = [], []
    for _ in range(300):
        classes = [target_of(rows_of(means_CVD[c], (4, 9)[c], generator, (1.0, 2.0)[c])) for c in range(2)]
        found.append(noise_of(ReleasedTarget(tuple(classes)), groups, "ignore"))
        off = [own.dense[0] - mean for own, mean in zip(classes, means_CVD, strict=True)]
        true.append(sum(float((sum(off[c] for c in own) / len(own)).square().sum()) for own, _ in groups))
    noise = np.array([one.noise for one in found])
    signal = sum(float((means_CVD[list(own)].mean(0)).square().sum()) for own, _ in groups)
    assert noise.mean() == pytest.approx(np.mean(true), rel=0.05)
    assert np.mean([one.rows - one.noise for one in found]) == pytest.approx(signal, rel=0.05)


def test_a_shrunk_target_is_nearer_than_rows_and_prior():
    """On average, to what rows of that many classes expect; of many rows nothing is taken."""
    generator = torch.Generator().manual_seed(1)
    errors, weights, groups = [], [], [((0,), (1,))]
    for _ in range(60):
        g_VD = 0.4 * torch.randn(V, D, generator=generator)
        prior = ReleasedTarget((dense(g_VD + 0.5 * torch.randn(V, D, generator=generator)),))
        few = ReleasedTarget((target_of(rows_of(g_VD, 3, generator)),))
        weight = noise_of(few, groups, "ignore").weight
        aims = (few, prior, shrunk(few, prior, weight))
        errors.append([_angle(aim.classes[0].dense[0], g_VD) for aim in aims])
        many = ReleasedTarget((target_of(rows_of(g_VD, 1000, generator)),))
        weights.append(noise_of(many, groups, "ignore").weight)
    rows, alone, both = np.mean(errors, 0)
    assert both < 0.8 * min(rows, alone)
    assert max(weights) < 0.01


def _angle(a, b):
    return 1 - float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def test_classes_of_one_row_are_as_noisy_as_the_others():
    generator = torch.Generator().manual_seed(0)
    one, several = (rows_of(torch.zeros(V, D), count, generator) for count in (1, 6))
    both = noise_of(ReleasedTarget((target_of(one), target_of(several))), APART, "ignore")
    alone = noise_of(ReleasedTarget((target_of(several),)), [((0,), (5,))], "ignore")
    assert both.noise == pytest.approx(alone.noise * (6 + 1))
    single = target_of(one)
    assert noise_of(ReleasedTarget((single, single)), TOGETHER, "ignore") is None
    assert noise_of(ReleasedTarget((dense(torch.ones(V, D)),)), [((0,), (5,))], "ignore") is None


def test_words_and_what_is_in_common_stay_the_rows_own():
    unigrams = Unigrams(torch.ones(4), 0.1)
    own = ClassTarget(None, (torch.ones(V, D), torch.ones(V)), unigrams)
    target = ReleasedTarget((own, own)).centred()
    prior = ReleasedTarget((dense(3 * torch.ones(V, D)),) * 2, target.space)
    found = shrunk(target, prior, 0.25)
    assert found.whole is target.whole and found.space is target.space
    assert all(one.unigrams is unigrams for one in found.classes)
    expected = 0.75 * target.classes[0].materialised()[0] + 0.75
    torch.testing.assert_close(found.classes[0].materialised()[0], expected)


@pytest.mark.parametrize("weight", [-0.1, 1.5, True, "much", None, float("nan")])
def test_weights_that_are_none(weight):
    with pytest.raises(ConfigError, match=re.escape("shrinkage.weight: give a number from 0 to 1, or auto")):
        parse_config({"shrinkage": {"weight": weight}})
