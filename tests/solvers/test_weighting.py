"""`gradmm.solvers.selection.fit_weights`: weights of a set against their conditions and gradient descent."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradmm.solvers.selection import (
    fit_weights,
)
from selection_oracles import (
    NAMES,
    Problem,
    problems,
)


@settings(max_examples=60)
@given(st.integers(1, 3).flatmap(lambda classes: problems(12, classes)), st.integers(1, 12), st.booleans())
def test_weights_are_a_stationary_point_no_farther_than_even_ones(problem, count, exact):
    """Karush, Kuhn and Tucker: no weight may gain by rising, nor one that is not 0 by falling."""
    members = list(range(12))[-count:]
    weights_n = fit_weights(problem.exact() if exact else problem.candidates(), members, problem.name)
    assert weights_n.shape == (count,) and weights_n.dtype == torch.float64
    assert bool((weights_n >= 0).all()) and float(weights_n.mean()) == pytest.approx(1)
    even = float(problem.distance(members))
    assert float(problem.distance(members, weights_n)) <= even + (1e-9 if exact else 1e-5)
    leaf_n = weights_n.clone().requires_grad_()
    (slope_n,) = torch.autograd.grad(problem.distance(members, leaf_n / leaf_n.mean()), leaf_n)
    tolerance = 1e-5 if exact else 1e-3
    assert float(slope_n.min()) > -tolerance
    assert float((slope_n * weights_n).abs().max()) < tolerance


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_those_of_projected_gradient_descent(name):
    for seed in range(2):
        problem, members = Problem(seed, name, size=8), [0, 2, 3, 5, 6, 7]
        found = float(problem.distance(members, fit_weights(problem.exact(), members, name)))
        slow = torch.ones(6, dtype=torch.float64)
        for _ in range(800):
            leaf_n = slow.clone().requires_grad_()
            (slope_n,) = torch.autograd.grad(problem.distance(members, leaf_n / leaf_n.mean()), leaf_n)
            slow = (slow - 1.0 * slope_n).clamp_min(0)
            slow = slow / slow.mean()
        assert found == pytest.approx(float(problem.distance(members, slow)), abs=2e-5)
        assert found < float(problem.distance(members)) - 1e-3


def test_weights_of_texts_that_are_all_on_the_other_side_are_even():
    problem = Problem(1, size=4)
    candidates = problem.exact()
    opposite = replace(candidates, alignment_QN=-candidates.alignment_QN)
    assert bool((candidates.alignment_QN > 0).all())
    weights_n = fit_weights(opposite, [0, 1, 2, 3])
    assert bool((weights_n >= 0).all()) and float(weights_n.mean()) == pytest.approx(1)


def test_of_two_texts_that_are_the_same_neither_is_lost():
    problem = Problem(2, size=5).moved([0, 0, 1, 2, 3])
    alone, together = (
        fit_weights(own.exact(), range(n)) for own, n in ((problem.moved([0, 2, 3, 4]), 4), (problem, 5))
    )
    share = together / together.sum()
    assert float(share[0] + share[1]) == pytest.approx(float(alone[0] / alone.sum()), abs=1e-4)
