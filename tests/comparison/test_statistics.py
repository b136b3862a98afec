"""`gradmm.comparison.statistics`: against tables, ranks by hand, a published example, and by coverage."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradmm.comparison.statistics import (
    Interval,
    by_data_seed,
    differences,
    interval,
    paired,
    paired_runs,
    rank_correlation,
    run_interval,
)
from gradmm.errors import ConfigError, NonFiniteError

# 97.5 % of Student's t, by number of values
STUDENT = {2: 12.7062047, 3: 4.3026527, 4: 3.1824463, 5: 2.7764451, 10: 2.2621572}
values = st.floats(-100, 100).map(lambda value: round(value, 3))
runs = st.dictionaries(st.tuples(st.integers(0, 3), st.integers(0, 3)), values, min_size=1)

# ---- one method


@pytest.mark.parametrize("count", STUDENT)
@given(st.data())
@settings(max_examples=20)
def test_interval_is_student_s(count, data):
    own = data.draw(st.lists(values, min_size=count, max_size=count))
    middle = sum(own) / count
    deviation = (sum((value - middle) ** 2 for value in own) / (count - 1)) ** 0.5
    found, reach = interval(own), STUDENT[count] * deviation / count**0.5
    assert (found.mean, found.count) == (pytest.approx(middle, abs=1e-9), count)
    assert [found.low, found.high] == pytest.approx([middle - reach, middle + reach], rel=1e-7, abs=1e-5)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_interval_covers_the_mean_19_times_in_20(count):
    draws = np.random.default_rng(count).normal(0.8, 0.05, (2000, count))
    covered = sum(found.low <= 0.8 <= found.high for found in map(interval, draws.tolist()))
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)


@settings(max_examples=40)
@given(st.lists(values, min_size=2, max_size=6), values)
def test_interval_moves_with_its_values_and_heeds_no_order(own, shift):
    found, back, moved = interval(own), interval(own[::-1]), interval([value + shift for value in own])
    assert back == found
    expected = [found.mean + shift, found.low + shift, found.high + shift]
    assert [moved.mean, moved.low, moved.high] == pytest.approx(expected, abs=1e-6)


def test_one_value_has_no_interval():
    found = interval([0.9])
    assert found == Interval(0.9, None, None, 1)
    assert not found.excludes_zero
    json.dumps(asdict(found), allow_nan=False)


@settings(max_examples=40)
@given(values, st.integers(2, 7))
def test_values_that_are_the_same_have_an_interval_without_width(value, count):
    """To the last bit: 0.1 added up three times is not 0.3, but no sign is made of that."""
    assert interval([value] * count) == Interval(value, value, value, count)
    assert interval([value] * count).excludes_zero == (value != 0)


@pytest.mark.parametrize(
    ("low", "high", "excludes"), [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False), (0.0, 0.1, False)]
)
def test_what_excludes_zero(low, high, excludes):
    assert Interval((low + high) / 2, low, high, 3).excludes_zero is excludes


def test_nothing_has_no_mean():
    with pytest.raises(ConfigError, match="at least one seed"):
        interval([])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("wrong", [interval, lambda own: run_interval({(0, i): v for i, v in enumerate(own)})])
def test_values_that_are_none_are_refused(wrong, bad):
    with pytest.raises(NonFiniteError, match=f"a value is {bad}"):
        wrong([0.5, bad])


# ---- runs of several data seeds


@settings(max_examples=40)
@given(runs)
def test_each_data_seed_counts_once(own):
    """However many training seeds it has."""
    found = by_data_seed(own)
    assert list(found) == sorted({data_seed for data_seed, _ in own})
    for seed, value in found.items():
        of_seed = [v for (data_seed, _), v in own.items() if data_seed == seed]
        assert value == pytest.approx(sum(of_seed) / len(of_seed), abs=1e-9)
    assert run_interval(own) == interval(list(found.values()))


@settings(max_examples=40)
@given(st.lists(values, min_size=1, max_size=5), st.integers(1, 6))
def test_more_training_seeds_make_no_more_certain(own, repeats):
    """Runs that only repeat those of the first training seed change nothing."""
    once = {(seed, 0): value for seed, value in enumerate(own)}
    often = {(seed, again): value for seed, value in enumerate(own) for again in range(repeats)}
    assert run_interval(often) == run_interval(once) == interval(own)


# ---- two methods


@settings(max_examples=40)
@given(st.dictionaries(st.integers(0, 6), values), st.dictionaries(st.integers(0, 6), values))
def test_a_difference_is_over_the_seeds_that_both_have(ours, theirs):
    shared = sorted(set(ours) & set(theirs))
    if not shared:
        with pytest.raises(ConfigError, match="share no seed"):
            paired(ours, theirs)
        return
    found = differences(ours, theirs)
    assert sorted(found) == shared and all(found[seed] == ours[seed] - theirs[seed] for seed in shared)
    one, other = paired(ours, theirs), paired(theirs, ours)
    assert one == interval([found[seed] for seed in shared])
    assert other.mean == -one.mean and one.excludes_zero == other.excludes_zero


@settings(max_examples=40)
@given(st.dictionaries(st.integers(0, 9), values, min_size=2), values)
def test_what_a_seed_does_to_both_drops_out(ours, ahead):
    theirs = {seed: value - ahead for seed, value in ours.items()}
    found = paired(ours, theirs)
    assert [found.mean, found.low, found.high] == pytest.approx([ahead] * 3, abs=1e-6)


def test_a_pair_tells_what_two_means_do_not():
    ours, theirs = {0: 0.60, 1: 0.70, 2: 0.80}, {0: 0.58, 1: 0.675, 2: 0.785}
    assert interval(ours.values()).low < interval(theirs.values()).mean
    assert paired(ours, theirs).excludes_zero


def test_a_shared_seed_alone_shows_no_difference():
    found = paired({0: 0.9, 1: 0.8}, {1: 0.7, 2: 0.9})
    assert (found.low, found.high, found.count) == (None, None, 1) and not found.excludes_zero


def test_runs_are_paired_by_both_seeds_and_averaged_after():
    ours = {(0, 0): 0.9, (0, 1): 0.8, (1, 0): 0.7, (1, 1): 0.1, (2, 0): 0.5}
    theirs = {(0, 0): 0.6, (0, 1): 0.6, (1, 0): 0.6, (3, 0): 0.5}
    found = paired_runs(ours, theirs)
    expected = interval([(0.3 + 0.2) / 2, 0.1])
    assert found.count == 2
    assert [found.mean, found.low, found.high] == pytest.approx([expected.mean, expected.low, expected.high])


# ---- ranks


def slow_rho(x, y):
    """Pearson's correlation of ranks; a tie's rank is the mean of the places that it takes."""

    def ranks(own):
        return [sum(other < value for other in own) + sum(other == value for other in own) / 2 for value in own]

    a, b = ranks(x), ranks(y)
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    product = sum((p - mean_a) * (q - mean_b) for p, q in zip(a, b, strict=True))
    return product / (sum((p - mean_a) ** 2 for p in a) * sum((q - mean_b) ** 2 for q in b)) ** 0.5


pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=12)


@settings(max_examples=50)
@given(pairs)
def test_rho_is_the_correlation_of_ranks(own):
    x, y = [a for a, _ in own], [b for _, b in own]
    found = rank_correlation(x, y)
    assert found.count == len(own)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert (found.rho, found.low, found.high) == (None, None, None)
        return
    assert found.rho == pytest.approx(slow_rho(x, y), abs=1e-9)
    assert (found.low is None) == (len(own) < 4 or abs(found.rho) > 1 - 1e-9)
    if found.low is not None:
        assert -1 <= found.low < found.rho < found.high <= 1


@settings(max_examples=30)
@given(pairs)
def test_the_shape_of_the_curve_plays_no_part(own):
    x, y = [a for a, _ in own], [b for _, b in own]
    found, turned = rank_correlation(x, y), rank_correlation([-value for value in x], y)
    assert rank_correlation([2.0**value for value in x], y) == found
    if found.low is not None:
        swapped, expected = rank_correlation(y, x), pytest.approx([found.rho, found.low, found.high], abs=1e-9)
        assert [swapped.rho, swapped.low, swapped.high] == expected
        assert [-turned.rho, -turned.high, -turned.low] == expected


def test_interval_of_ranks_is_that_of_a_published_example():
    """Of `ci.spear` in the R package statpsych, by Bonett himself."""
    y = [21, 4, 9, 12, 35, 18, 10, 22, 24, 1, 6, 8, 13, 16, 19]
    x = [67, 28, 30, 28, 52, 40, 25, 37, 44, 10, 14, 20, 28, 40, 51]
    found = rank_correlation(x, y)
    assert [found.rho, found.low, found.high] == pytest.approx([0.8699639, 0.5840951, 0.9638297], abs=1e-6)


@pytest.mark.parametrize("slope", [0.0, 0.6])
def test_interval_of_ranks_covers_rho_19_times_in_20(slope):
    draw, covered = np.random.default_rng(7), 0
    for _ in range(400):
        x, noise = draw.normal(size=(2, 12))
        found = rank_correlation(x.tolist(), (slope * x + (1 - slope**2) ** 0.5 * noise).tolist())
        covered += found.low <= 6 / math.pi * math.asin(slope / 2) <= found.high
    assert covered / 400 == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize(("x", "y"), [([1], [2]), ([], []), ([1, 2], [1, 2, 3])])
def test_too_few_pairs_have_no_rho(x, y):
    with pytest.raises(ConfigError, match=f"{len(x)} and {len(y)} values"):
        rank_correlation(x, y)


def test_ranks_of_values_that_are_none_are_refused():
    with pytest.raises(NonFiniteError):
        rank_correlation([1.0, 2.0, math.nan], [1.0, 2.0, 3.0])
