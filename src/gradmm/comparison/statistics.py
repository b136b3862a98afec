"""What values over seeds say: means and paired differences with intervals, and rank correlation.

A *run* is one training: a set of texts, made with a data seed, and a training seed. Runs on one set differ by the
training only, and the more of them there are, the more would each set count; the independent units are the sets.
So runs of one data seed are averaged before an interval is taken.

Where a figure has no interval, its bounds are None, never NaN, which JSON does not have.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TypeAlias, TypeVar

from scipy import stats

from gradmm.errors import ConfigError, NonFiniteError

LEVEL = 0.95
"""Of every interval here."""
_FEWEST_PAIRS = 4  # the variance of Fisher's z has n - 3 below it

Runs: TypeAlias = Mapping[tuple[int, int], float]
"""Value of each run, by (data seed, training seed)."""
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float | None
    """None where one value is all there is, which does not say how far it may be off."""
    high: float | None
    count: int
    """Values that the mean is of."""

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside; False where there is no interval."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def interval(values: Collection[float]) -> Interval:
    """The mean of independent values, with Student's t interval.

    It covers the true mean 95 times in 100 where values are normally distributed. Values that are all the same
    have an interval of no width: few seeds on a small test split can agree by chance, so it proves little.

    Args:
        values: one per seed, at least one.

    Raises:
        ConfigError: if there is none.
        NonFiniteError: if one is NaN or infinite.
    """
    if not values:
        raise ConfigError("there is no value to take the mean of; run at least one seed")
    _check_finite(values)
    middle, count = float(mean(values)), len(values)
    if count == 1:
        return Interval(middle, None, None, 1)
    # The standard library computes in exact fractions: values that are the same deviate by 0, not by rounding.
    reach = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * stdev(values) / math.sqrt(count)
    return Interval(middle, middle - reach, middle + reach, count)


def by_data_seed(runs: Runs) -> dict[int, float]:
    """The mean of each data seed's runs, in the order of the seeds."""
    seeds = sorted({data_seed for data_seed, _ in runs})
    return {seed: float(mean(value for (own, _), value in runs.items() if own == seed)) for seed in seeds}


def run_interval(runs: Runs) -> Interval:
    """The mean over data seeds of the mean over training seeds; `count` is that of data seeds; errors as there."""
    _check_finite(runs.values())
    return interval(by_data_seed(runs).values())


def differences(ours: Mapping[Key, float], theirs: Mapping[Key, float]) -> dict[Key, float]:
    """Ours minus theirs, for the seeds that both have, in the order of ours.

    Raises:
        ConfigError: if they share no seed.
    """
    if not (shared := [key for key in ours if key in theirs]):
        raise ConfigError(
            f"methods that are compared share no seed: one has {list(ours)}, the other {list(theirs)}; "
            "run both with the same seeds"
        )
    return {key: ours[key] - theirs[key] for key in shared}


def paired(ours: Mapping[Key, float], theirs: Mapping[Key, float]) -> Interval:
    """The mean of ours minus theirs over the seeds that both have (the paired t interval).

    What a seed does to both, such as how hard its rows are, drops out. Errors as of `differences` and `interval`.
    """
    return interval(differences(ours, theirs).values())


def paired_runs(ours: Runs, theirs: Runs) -> Interval:
    """`paired` over data seeds: differences of the runs that both have, averaged over training seeds."""
    return run_interval(differences(ours, theirs))


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho and its 95 % interval."""

    rho: float | None
    """From -1 to 1; None where one of the two never changes."""
    low: float | None
    """None where there is no interval: fewer than 4 pairs, or ranks in perfect (dis)agreement."""
    high: float | None
    count: int
    """Pairs."""


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> RankCorrelation:
    """How far one quantity rises with another, whatever the shape of the curve; ties share their mean rank.

    The interval is Fisher's, with the variance (1 + rho^2 / 2) / (n - 3) of Bonett and Wright (2000); it takes
    pairs for independent, which sets of one method or size are not quite.

    Raises:
        ConfigError: if there are fewer than two pairs, or x and y are not of one length.
        NonFiniteError: if a value is NaN or infinite.
    """
    if len(x) != len(y) or len(x) < 2:
        raise ConfigError(f"{len(x)} and {len(y)} values have no rank correlation; give two pairs or more")
    _check_finite([*x, *y])
    if len(set(x)) == 1 or len(set(y)) == 1:
        return RankCorrelation(None, None, None, len(x))
    rho = min(1.0, max(-1.0, float(stats.spearmanr(x, y).statistic)))
    if len(x) < _FEWEST_PAIRS or abs(rho) > 1 - 1e-12:
        return RankCorrelation(rho, None, None, len(x))
    reach = float(stats.norm.ppf((1 + LEVEL) / 2)) * math.sqrt((1 + rho**2 / 2) / (len(x) - 3))
    return RankCorrelation(rho, math.tanh(math.atanh(rho) - reach), math.tanh(math.atanh(rho) + reach), len(x))


def _check_finite(values: Collection[float]) -> None:
    for value in values:
        if not math.isfinite(value):
            raise NonFiniteError(
                f"a value is {value}, and has no mean or rank; see why that run failed, and repeat it"
            )
