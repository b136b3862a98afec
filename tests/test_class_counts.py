"""`gradmm.class_counts`: shares of a total; lists are tested where they are settings (`test_config`)."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradmm.class_counts import share_out


@pytest.mark.parametrize(
    ("total", "weights", "shares"),
    [
        (10, (1, 1), (5, 5)),
        (10, (3, 1), (8, 2)),
        (7, (1, 1, 1), (3, 2, 2)),
        (6, (1000, 1, 1), (4, 1, 1)),
        (3, (10**9, 1, 1), (1, 1, 1)),
        (100, (50, 30, 20), (50, 30, 20)),
    ],
)
def test_texts_are_shared_out_in_proportion(total: int, weights: tuple[int, ...], shares: tuple[int, ...]) -> None:
    assert share_out(total, weights) == shares


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=30), st.integers(1, 50))
def test_shares_are_whole_add_up_and_keep_the_order(weights: list[int], each: int) -> None:
    shares = share_out(each * len(weights), weights)
    assert sum(shares) == each * len(weights)
    assert min(shares) >= 1
    for a, b in itertools.pairwise(sorted(range(len(weights)), key=lambda c: (weights[c], shares[c]))):
        assert shares[a] <= shares[b]
