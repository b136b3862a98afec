"""`gradmm.privacy.mechanism`: how far a row can move the sums, in exact arithmetic, and what the noise is."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from gradmm.errors import DataError
from gradmm.privacy import mechanism
from gradmm.privacy.accounting import Gaussian, noise_multiplier_for
from gradmm.privacy.mechanism import (
    ClippedSums,
    FixedNoise,
    SystemNoise,
    clipped,
    counts_bound,
    quantum_of,
)
from privacy_oracles import shown_epsilon

ADD, REPLACE = "add_or_remove_one", "replace_one"
any_float = st.floats(width=64)
clips = st.floats(1e-6, 1e6)
rows = st.lists(any_float, min_size=1, max_size=8)
finite_rows = st.lists(st.floats(-1e9, 1e9), min_size=3, max_size=3)


class NoNoise:
    """What a release would be without its noise."""

    is_private = False

    def describe(self, dimension: int) -> str:
        return "none"

    def added(self, values_M, std, quantum):
        return values_M


@pytest.fixture(params=["exact", "many numbers"])
def noise(request, monkeypatch):
    """The noise of small releases and, from the first number on, that of large ones."""
    if request.param == "many numbers":
        monkeypatch.setattr(mechanism, "EXACT", 0)
    return SystemNoise()


def clip_one(row: list[float], clip: float) -> list[float]:
    return clipped(torch.tensor([row], dtype=torch.float64), clip)[0].tolist()


def exact_square(values: list[float]) -> Fraction:
    return sum((Fraction(value) ** 2 for value in values), Fraction(0))


# ---- clipping


@given(rows, clips)
@example([math.nan, 1.0], 1.0)
@example([math.inf, -math.inf], 1.0)
@example([1e308, 1e308], 1.0)
@example([5e-324, 0.0], 1.0)
@example([0.6, 0.8], 1.0)
@example([1.0], 1.0)
def test_no_row_is_longer_than_the_clip_in_exact_arithmetic(row, clip):
    found = clip_one(row, clip)
    assert exact_square(found) <= Fraction(clip) ** 2
    quantum = Fraction(quantum_of(clip))
    assert all((Fraction(value) / quantum).denominator == 1 for value in found)
    assert clip / 2**29 <= quantum <= clip / 2**28
    if not all(math.isfinite(value) for value in row):
        assert found == [0] * len(row)


@given(finite_rows, clips)
def test_a_row_keeps_its_direction_and_all_of_its_length_that_fits(row, clip):
    found, quantum = clip_one(row, clip), quantum_of(clip)
    norm = math.hypot(*row)
    scale = 1.0 if norm <= clip * (1 - 2**-20) else clip * (1 - 2**-20) / norm
    for value, before in zip(found, row, strict=True):
        assert abs(value - before * scale) <= quantum + 1e-12 * clip
        assert abs(value) <= abs(before)


def test_a_row_of_zeros_and_a_row_that_is_not_finite_add_nothing():
    bad = torch.tensor([[0.0, 0, 0], [math.nan, 1, 1], [math.inf, 0, 0], [0, -math.inf, math.nan], [3, 0, 4]])
    found = clipped(bad, 1.0)
    assert found[:4].abs().max() == 0
    assert found[4].tolist() == pytest.approx([0.6, 0, 0.8], rel=2e-6)
    sums = ClippedSums(1, 3, 1.0)
    sums.add(0, bad)
    assert sums.release(Gaussian(1.0), NoNoise())[0].tolist() == found[4].tolist()


@given(st.floats(1e-3, 1e3))
def test_long_and_tiny_rows_neither_overflow_nor_vanish(clip):
    (long, short) = clip_one([1e300, 1e300], clip), clip_one([-1e-300 * clip, 1e-3 * clip], clip)
    assert math.hypot(*long) == pytest.approx(clip, rel=2e-6)
    assert short[1] == pytest.approx(1e-3 * clip, rel=1e-5)


def test_float32_rows_are_taken_as_they_are():
    row = torch.tensor([[0.1, 0.2]], dtype=torch.float32)
    assert clipped(row, 1.0).tolist() == clipped(row.double(), 1.0).tolist()


# ---- sums


@given(st.lists(finite_rows, min_size=1, max_size=30), clips, st.randoms(use_true_random=False))
def test_sums_are_exact_whatever_the_order_and_the_batches(all_rows, clip, shuffler):
    exact = [sum((Fraction(clip_one(row, clip)[at]) for row in all_rows), Fraction(0)) for at in range(3)]
    for cut in (1, 7, 30):
        shuffled, sums = shuffler.sample(all_rows, len(all_rows)), ClippedSums(2, 3, clip)
        for start in range(0, len(shuffled), cut):
            sums.add(1, torch.tensor(shuffled[start : start + cut], dtype=torch.float64))
        found_CM = sums.release(Gaussian(1.0), NoNoise())
        assert [Fraction(value) for value in found_CM[1].tolist()] == exact
        assert found_CM[0].abs().max() == 0


@given(st.lists(finite_rows, min_size=1, max_size=20), finite_rows, finite_rows, clips)
def test_what_neighbours_differ_by(all_rows, one, other, clip):
    """One row more: by its own clipped vector, C at most. One exchanged, its class too: by 2 C at most."""

    def released(extra, label):
        sums = ClippedSums(2, 3, clip)
        sums.add(0, torch.tensor([*all_rows, *([extra] if label == 0 else [])], dtype=torch.float64))
        sums.add(1, torch.tensor([*all_rows, *([extra] if label == 1 else [])], dtype=torch.float64))
        return [Fraction(value) for value in sums.release(Gaussian(1.0), NoNoise()).flatten().tolist()]

    def square_distance(a, b):
        return sum(((x - y) ** 2 for x, y in zip(a, b, strict=True)), Fraction(0))

    without, with_one, exchanged = released(None, None), released(one, 0), released(other, 1)
    assert square_distance(without, with_one) == exact_square(clip_one(one, clip))
    assert square_distance(without, with_one) <= Fraction(clip) ** 2
    assert square_distance(with_one, exchanged) <= (2 * Fraction(clip)) ** 2


def test_sums_leave_once(noise):
    sums = ClippedSums(2, 3, 1.0)
    sums.add(0, torch.ones(4, 3))
    sums.release(Gaussian(1.0), noise)
    sums.release_counts(Gaussian(1.0), ADD, noise)
    with pytest.raises(AssertionError, match="another draw is another release"):
        sums.release(Gaussian(1.0), noise)
    with pytest.raises(AssertionError, match="another draw is another release"):
        sums.release_counts(Gaussian(1.0), ADD, noise)
    with pytest.raises(AssertionError, match="released already"):
        sums.add(0, torch.ones(1, 3))


def test_more_rows_than_a_sum_is_exact_for_are_refused(monkeypatch):
    monkeypatch.setattr(mechanism, "MOST_ROWS", 3)
    sums = ClippedSums(1, 2, 1.0)
    sums.add(0, torch.ones(3, 2))
    with pytest.raises(
        DataError, match="more than 3 rows, too many for an exact sum; release from a part of them"
    ):
        sums.add(0, torch.ones(1, 2))


# ---- noise


def draws(noise, std: float, count: int, times: int) -> torch.Tensor:
    values_M = torch.arange(count, dtype=torch.float64)
    return torch.stack([noise.added(values_M, std, 2.0**-40) - values_M for _ in range(times)])


def test_the_noise_is_normal_with_the_variance_that_is_accounted(noise):
    """Each bound fails by chance about once in a million runs of the suite."""
    std, times, count = 3.7306, 400, 32
    found = draws(noise, std, count, times)
    low, high = stats.chi2.ppf([1e-8, 1 - 1e-8], times)
    squares = (found / std).square().sum(0)
    assert low < float(squares.min()) and float(squares.max()) < high
    total = float((found / std).square().sum())
    assert stats.chi2.ppf(1e-7, times * count) < total < stats.chi2.ppf(1 - 1e-7, times * count)
    assert stats.kstest((found / std).flatten().numpy(), "norm").pvalue > 1e-6
    assert abs(float(found.mean())) < 5 * std / math.sqrt(times * count)


def test_a_release_has_noise_of_z_times_the_clip(noise):
    sums = ClippedSums(2, 2048, 0.3)
    sums.add(0, torch.ones(5, 2048))
    alike = 5 * clipped(torch.ones(1, 2048), 0.3)
    found = sums.release(Gaussian(4.0), noise)
    found[0] -= alike[0]
    square = float((found / (4.0 * 0.3)).square().sum())
    assert stats.chi2.ppf(1e-7, 4096) < square < stats.chi2.ppf(1 - 1e-7, 4096)


def test_the_noise_of_different_numbers_is_independent(noise):
    found = draws(noise, 1.0, 24, 400)
    correlations = torch.corrcoef(found.T) - torch.eye(24)
    assert float(correlations.abs().max()) < 6.5 / math.sqrt(400)
    repeated = torch.corrcoef(torch.stack([found[:-1].flatten(), found[1:].flatten()]))[0, 1]
    assert abs(float(repeated)) < 5.5 / math.sqrt(399 * 24)


@pytest.mark.parametrize("count", [1, 2, 3, 2**18 + 1])
def test_as_many_numbers_as_were_asked_for(monkeypatch, count):
    monkeypatch.setattr(mechanism, "_PAIRS", 2**15)
    found = mechanism._normals(count)
    assert found.shape == (count,) and bool(found.isfinite().all())
    if count > 3:
        assert stats.kstest(found.numpy(), "norm").pvalue > 1e-6


def test_no_seed_has_a_part_in_it(noise):
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        found.append(noise.added(torch.zeros(8, dtype=torch.float64), 1.0, 2.0**-30))
    assert not bool((found[0] == found[1]).any())
    with pytest.raises(TypeError):
        SystemNoise(seed=1)


def test_large_releases_are_whole_quanta(monkeypatch):
    """What noise and sum add up to has no bit below those of the sum, through which it could be told apart."""
    monkeypatch.setattr(mechanism, "EXACT", 0)
    sums = ClippedSums(2, 50, 0.3)
    sums.add(0, torch.randn(20, 50, generator=torch.Generator().manual_seed(0)))
    found = sums.release(Gaussian(5.0), SystemNoise())
    quanta = found / quantum_of(0.3)
    assert bool((quanta == quanta.round()).all()) and float(quanta.abs().max()) < 2**52


def test_small_releases_are_exact_and_large_ones_are_said_not_to_be():
    assert "exactly sampled" in SystemNoise().describe(2**17)
    assert "Box-Muller over the operating system's random bits" in SystemNoise().describe(2**17 + 1)


def test_fixed_noise_repeats_and_says_that_it_is_not_private():
    a, b = (FixedNoise(seed=5).added(torch.zeros(4, dtype=torch.float64), 2.0, 1.0) for _ in range(2))
    assert a.tolist() == b.tolist()
    assert not FixedNoise(seed=5).is_private and SystemNoise().is_private
    assert "NOT PRIVATE" in FixedNoise(seed=5).describe(4)
    with pytest.raises(TypeError):
        FixedNoise(5)


# ---- counts


def test_what_stands_for_the_clip_where_rows_are_counted():
    """Half the largest distance of neighbours' counts, and all of it where a row is added: by trying all."""

    def counts(data):
        return [data.count(label) for label in range(3)]

    exchanged = max(
        math.dist(counts(data), counts([*data[:at], label, *data[at + 1 :]]))
        for data in (list(data) for data in product(range(3), repeat=4))
        for at in range(4)
        for label in range(3)
    )
    assert exchanged / 2 == pytest.approx(counts_bound(REPLACE))
    assert counts_bound(ADD) == 1


def test_counts_have_noise_and_stay_above_zero(noise):
    released = []
    for _ in range(200):
        sums = ClippedSums(3, 1, 1.0)
        sums.add(0, torch.zeros(50, 1))
        sums.add(1, torch.zeros(3, 1))
        released.append(sums.release_counts(Gaussian(2.0), ADD, noise))
    first, second, third = (torch.tensor(values) for values in zip(*released, strict=True))
    low, high = stats.chi2.ppf([1e-7, 1 - 1e-7], 200)
    assert low < float(((first - 50) / 2).square().sum()) < high
    assert float(second.min()) == float(third.min()) == 1


# ---- what an attacker can show


def told_apart(noise_multiplier: float, noise, draws: int) -> tuple[int, int]:
    """How often a released target looks as if a row were in it: where it is, and where it is not."""
    row = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    others = torch.tensor([[0.1, -0.4], [2.0, 0.0]])
    found = []
    for extra in (row, row[:0]):
        projections = []
        for _ in range(draws):
            sums = ClippedSums(2, 2, 1.0)
            sums.add(0, others)
            sums.add(1, extra)
            released_CM = sums.release(Gaussian(noise_multiplier), noise)
            projections.append(float(released_CM[1] @ row[0]) / 5)
        found.append(sum(value > max(0.5, 1.3 * noise_multiplier) for value in projections))
    return found[0], found[1]


def test_an_attacker_shows_less_than_is_stated_and_more_where_noise_is_missing():
    """From so many draws of either neighbour; each bound is wrong about once in a million runs."""
    epsilon, delta, doubt = 4.0, 1e-5, 1e-6
    stated = noise_multiplier_for(epsilon, delta, ADD)
    assert 0.2 < shown_epsilon(*told_apart(stated, SystemNoise(), 1400), 1400, delta, doubt) <= epsilon
    # A sixteenth, as at an eighth two false alarms, which one run in 200 has, would spoil the bound.
    assert epsilon < shown_epsilon(*told_apart(stated / 16, SystemNoise(), 900), 900, delta, doubt)
    hits, false_alarms = told_apart(0.1, NoNoise(), 1)  # every draw is the same
    assert epsilon + 0.5 < shown_epsilon(2000 * hits, 2000 * false_alarms, 2000, delta, doubt)
