"""`gradmm.gradients.distances`: each is its definition on the matrices, however a gradient is held."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

import oracles
from gradmm.gradients.distances import DistanceConfig, distance, distance_between, matched_together
from gradmm.gradients.factors import Factors
from gradmm.gradients.target import ClassTarget

NAMES = ("cosine", "relative_l2", "tag")
BIASES = ("joint", "separate", "ignore")
seeds, names, biases = st.integers(0, 999), st.sampled_from(NAMES), st.sampled_from(BIASES)


def factors(seed: int, sets: int = 1, pairs: int = 3, scale: float = 1.0) -> Factors:
    draw = torch.Generator().manual_seed(seed)
    r_KJV, h_KJD = torch.randn(sets, pairs, 8, generator=draw), torch.randn(sets, pairs, 6, generator=draw)
    return Factors(r_KJV, h_KJD, scale * (0.2 + torch.rand(sets, pairs, generator=draw)))


def held(own: Factors, dense: bool) -> ClassTarget:
    weight_1VD, bias_1V = own.dense()
    return ClassTarget(None, (weight_1VD[0], bias_1V[0])) if dense else ClassTarget(own, None)


def one(sets: Factors, k: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    weight_KVD, bias_KV = sets.dense()
    return weight_KVD[k], bias_KV[k]


# ---- definitions


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("name", NAMES)
def test_distance_of_sets_is_its_definition(name, bias, dense, has_bias):
    sets, target = factors(0, sets=3), factors(1, pairs=4)
    config = DistanceConfig(name=name, bias=bias, tag_factor=0.3)
    found_K = distance(config, sets, held(target, dense), has_bias)
    assert found_K.dtype == torch.float32 and found_K.shape == (3,)
    theirs = one(target) if has_bias else (one(target)[0], None)
    for k in range(3):
        expected = oracles.distance(name, bias, one(sets, k), theirs, tag_factor=0.3)
        torch.testing.assert_close(found_K[k].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("mine_dense", "theirs_dense"), [(a, b) for a in (True, False) for b in (True, False)])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("name", NAMES)
def test_distance_between_targets_is_its_definition(name, bias, mine_dense, theirs_dense):
    mine, theirs = factors(2), factors(3, pairs=5)
    config = DistanceConfig(name=name, bias=bias)
    for has_bias in (True, False):
        found = distance_between(config, held(mine, mine_dense), held(theirs, theirs_dense), has_bias)
        expected = oracles.distance(name, bias, one(mine), one(theirs) if has_bias else (one(theirs)[0], None))
        assert isinstance(found, float) and found == pytest.approx(float(expected), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("name", NAMES)
def test_derivative_is_that_of_the_definition(name, bias):
    sets, target = factors(4, sets=2), factors(5)
    leaves = [leaf.clone().requires_grad_(True) for leaf in (sets.r_KJV, sets.h_KJD)]
    mine = Factors(*leaves, sets.weight_KJ)
    found_K = distance(DistanceConfig(name=name, bias=bias), mine, held(target, False), has_bias=True)
    found = torch.autograd.grad(found_K.sum(), leaves)
    dense = [oracles.distance(name, bias, one(mine, k), one(target)) for k in range(2)]
    expected = torch.autograd.grad(torch.stack(dense).sum(), leaves)
    for derivative, oracle in zip(found, expected, strict=True):
        assert oracles.relative_error(derivative, oracle) < 1e-4


def test_a_head_without_a_bias_leaves_nothing_to_choose():
    sets, target = factors(6, sets=2), held(factors(7), True)
    for name in NAMES:
        found = [distance(DistanceConfig(name=name, bias=bias), sets, target, has_bias=False) for bias in BIASES]
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
        with_bias = distance(DistanceConfig(name=name), sets, target, has_bias=True)
        assert not torch.allclose(found[0], with_bias)


# ---- properties


@given(seeds, seeds, biases, st.integers(1, 4), st.integers(1, 4))
def test_cosine_lies_between_0_and_2(seed, other, bias, pairs, other_pairs):
    found = distance(
        DistanceConfig(bias=bias), factors(seed, pairs=pairs), held(factors(other, pairs=other_pairs), False), True
    )
    assert -1e-5 <= float(found) <= 2 + 1e-5


@given(seeds, names, biases, st.booleans())
def test_a_gradient_is_at_distance_0_from_itself(seed, name, bias, dense):
    own = factors(seed)
    config = DistanceConfig(name=name, bias=bias)
    assert float(distance(config, own, held(own, dense), True)) == pytest.approx(0, abs=2e-5)
    assert distance_between(config, held(own, dense), held(own, not dense), True) == pytest.approx(0, abs=2e-5)


@given(seeds, biases)
def test_the_opposite_gradient_is_at_cosine_2_and_relative_l2_4(seed, bias):
    own, opposite = factors(seed), held(factors(seed, scale=-1.0), False)
    for name, expected in (("cosine", 2.0), ("relative_l2", 4.0)):
        assert float(distance(DistanceConfig(name=name, bias=bias), own, opposite, True)) == pytest.approx(
            expected
        )


@given(seeds, seeds, biases, st.floats(-6, 6), st.booleans())
@example(0, 1, "joint", -6.0, False)
def test_cosine_ignores_the_length_of_either(seed, other, bias, power, dense):
    config, scale = DistanceConfig(bias=bias), 10.0**power
    expected = float(distance(config, factors(seed), held(factors(other), dense), True))
    mine = distance(config, factors(seed, scale=scale), held(factors(other), dense), True)
    theirs = distance(config, factors(seed), held(factors(other, scale=scale), dense), True)
    assert float(mine) == pytest.approx(expected, abs=1e-4)
    assert float(theirs) == pytest.approx(expected, abs=1e-4)


@given(seeds, seeds, biases, st.floats(-3, 3))
def test_relative_l2_ignores_a_length_that_both_have(seed, other, bias, power):
    config, scale = DistanceConfig(name="relative_l2", bias=bias), 10.0**power
    expected = float(distance(config, factors(seed), held(factors(other), False), True))
    scaled = distance(config, factors(seed, scale=scale), held(factors(other, scale=scale), False), True)
    assert float(scaled) == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("bias", BIASES)
def test_a_vanished_gradient_has_finite_distances(bias):
    zero, target = factors(8, scale=0.0), held(factors(9), False)
    for name in ("cosine", "relative_l2"):
        assert float(distance(DistanceConfig(name=name, bias=bias), zero, target, True)) == pytest.approx(1.0)
    to_zero = distance(DistanceConfig(bias=bias), factors(9), held(zero, True), True)
    assert math.isfinite(float(to_zero)) and float(to_zero) == 1.0


def test_the_weight_of_the_magnitudes_is_the_tag_factor():
    sets, target = factors(10), factors(11)
    found = [
        float(distance(DistanceConfig(name="tag", tag_factor=factor), sets, held(target, True), False))
        for factor in (0.0, 1.0)
    ]
    difference_VD = one(sets)[0] - one(target)[0]
    assert found[0] == pytest.approx(float(difference_VD.square().sum()), rel=1e-5)
    assert found[1] - found[0] == pytest.approx(float(difference_VD.abs().sum()), rel=1e-4)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_classes_are_matched_together_or_each_on_its_own(classes):
    assert matched_together(DistanceConfig(), classes) == [list(range(classes))]
    assert matched_together(DistanceConfig(classes="apart"), classes) == [[label] for label in range(classes)]


@pytest.mark.parametrize("wrong", [{"name": "euclidean"}, {"bias": "both"}, {"classes": "some"}, {"factor": 1.0}])
def test_settings_that_nobody_reads_are_refused(wrong):
    with pytest.raises(ValidationError):
        DistanceConfig(**wrong)
