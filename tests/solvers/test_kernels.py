"""`gradmm.solvers.kernels`: inner products and similarities against dense matrices."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradmm.gradients.distances import FORMULAS
from gradmm.gradients.factors import inner
from gradmm.solvers import kernels
from gradmm.solvers.kernels import FactorKernel, SimilarityKernel
from gradmm.solvers.selection import (
    select,
)
from selection_oracles import (
    WORDS,
    Problem,
    every_distance,
    tasks,
)

# ---- kernels


@every_distance
@pytest.mark.parametrize("pairs", [1, 3])
@pytest.mark.parametrize("group", [1, 40, 10**9])
def test_kernel_of_blocks_is_the_dense_kernel(monkeypatch, name, bias, pairs, group):
    monkeypatch.setattr(kernels, "_GROUP_NUMBERS", group)
    problem = Problem(5, name, bias, 12, pairs)
    dense_QNN, scale = problem.gram(), float(problem.gram().abs().max())
    for cuts in ([0, 12], [0, 5, 6, 12], list(range(13))):
        blocks = (problem.factors.sets(slice(a, b)) for a, b in pairwise(cuts))
        kernel = FactorKernel(blocks, bias)
        found_QNN = torch.stack([kernel.row(j) for j in range(12)], dim=1).double()
        torch.testing.assert_close(found_QNN, dense_QNN, rtol=1e-5, atol=1e-6 * scale)
        diagonal_QN = dense_QNN.diagonal(dim1=1, dim2=2)
        torch.testing.assert_close(kernel.diagonal_QN, diagonal_QN, rtol=1e-5, atol=1e-6 * scale)
        expected_QN = problem.exact().alignment_QN
        torch.testing.assert_close(kernel.align(problem.target), expected_QN, rtol=1e-4, atol=1e-6 * scale)
        assert kernel.diagonal_QN.dtype == kernel.align(problem.target).dtype == torch.float64


def test_a_kernel_holds_one_copy_of_its_factors_in_few_pieces():
    """Blocks are taken one by one and put together: a generator's are never held twice."""
    problem, alive = Problem(6, size=40), []

    def blocks():
        for i in range(40):
            alive.append(i)
            yield problem.factors.sets(slice(i, i + 1))

    kernel = FactorKernel(blocks(), "joint")
    assert len(alive) == 40 and len(kernel._blocks) == 1
    assert torch.equal(kernel._blocks[0].r_KJV, problem.factors.r_KJV)


@settings(max_examples=60)
@given(tasks(30, most=9), st.sampled_from([0, 1000, 5000]), st.sampled_from([1, 99, 10**9]))
def test_a_kernel_whose_factors_are_in_a_file_is_the_same_to_the_bit(task, held_bytes, group):
    problem, counts = task
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_GROUP_NUMBERS", group)
        cuts = [*range(0, 30, 4), 30]
        held, filed = (
            FactorKernel((problem.factors.sets(slice(a, b)) for a, b in pairwise(cuts)), problem.bias, limit)
            for limit in (2**31, held_bytes)
        )
    assert torch.equal(held.diagonal_QN, filed.diagonal_QN)
    assert torch.equal(held.align(problem.target), filed.align(problem.target))
    assert all(torch.equal(held.row(j), filed.row(j)) for j in range(30))
    sums = problem.candidates()
    chosen = [
        select(replace(sums, kernel=own, alignment_QN=own.align(problem.target)), counts, FORMULAS[problem.name])
        for own in (held, filed)
    ]
    assert chosen[0] == chosen[1]


def test_blocks_of_unlike_numbers_of_pairs_stay_apart():
    one, two = Problem(7, pairs=1, size=4), Problem(8, pairs=3, size=3)
    kernel = FactorKernel([one.factors, two.factors], "joint")
    for j, own, at in ((1, one, 1), (5, two, 1)):
        row_N = kernel.row(j)[0]
        for i, other, place in ((0, one, 0), (3, one, 3), (4, two, 0), (6, two, 2)):
            a, b = (own.factors.sets(slice(at, at + 1)), other.factors.sets(slice(place, place + 1)))
            found = inner(a, b)
            assert float(row_N[i]) == pytest.approx(float(found.weight_K + found.bias_K), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("bias", ["joint", "separate", "ignore"])
def test_factors_may_come_in_another_order_than_the_candidates(bias):
    problem = Problem(9, size=9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3)).tolist()
    shuffled = problem.factors.sets(order)
    blocks = [shuffled.sets(slice(0, 4)), shuffled.sets(slice(4, 9))]
    plain, other = FactorKernel([problem.factors], bias), FactorKernel(blocks, bias, order=order)
    torch.testing.assert_close(other.diagonal_QN, plain.diagonal_QN)
    torch.testing.assert_close(other.align(problem.target), plain.align(problem.target))
    for j in range(9):
        torch.testing.assert_close(other.row(j), plain.row(j))


# ---- similarity


@given(
    st.lists(st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join), min_size=1, max_size=8),
    st.floats(0, 3, width=32, allow_subnormal=False),
)
def test_similarity_is_symmetric_and_between_0_and_the_weight(texts, weight):
    kernel = SimilarityKernel(texts, weight)
    rows_NN = torch.cat([kernel.row(j) for j in range(len(texts))]).double()
    assert bool((rows_NN >= 0).all()) and bool((rows_NN <= weight * (1 + 1e-6)).all())
    torch.testing.assert_close(rows_NN, rows_NN.T)
    assert torch.equal(kernel.diagonal_QN, torch.full((1, len(texts)), weight, dtype=torch.float64))
    for i, one in enumerate(texts):
        for j, other in enumerate(texts):
            if one.split() == other.split():
                assert float(rows_NN[i, j]) == pytest.approx(weight, rel=1e-5)


def test_similarity_is_the_cosine_of_word_pairs():
    problem = Problem(12)
    kernel = SimilarityKernel(problem.texts, 0.7, size=2**16)
    found_NN = torch.cat([kernel.row(j) for j in range(10)]).double()
    torch.testing.assert_close(found_NN, 0.7 * problem.similarities(), rtol=1e-5, atol=1e-6)
    apart = SimilarityKernel(["a good film", "some bad story"], 1.0).row(0)
    assert apart.tolist()[0] == pytest.approx([1, 0], abs=1e-6)
    case = SimilarityKernel(["A  Good film", "a good FILM"], 1.0).row(0)
    assert case.tolist()[0] == pytest.approx([1, 1])
