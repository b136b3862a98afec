"""What noise costs: epsilon from noise and noise from epsilon, by the accountants of dp-accounting.

A mechanism says what it did as an event, and an accountant turns events into epsilon at a delta. There is one:

    Gaussian(z)    every row adds a vector of norm at most C to a sum; each of its numbers gets N(0, (z C)^2)

Under `add_or_remove_one` the sums of two neighbouring data sets differ by one such vector, by C at most; under
`replace_one` by two, by 2 C at most. That factor belongs to the relation, not to the event, and is counted once:

    PLD   dp-accounting doubles the sensitivity itself when told REPLACE_ONE
    RDP   dp-accounting does not (its Gaussian takes no notice of the relation), so here z is halved for it

Gaussians compose to a Gaussian, z^-2 = sum_i z_i^-2, exactly and adaptively (Dong, Roth, Su 2022, corollary 3.3),
so they are put together before they are accounted; rows that are sampled first (DP-SGD) are composed by the
accountant. Both accountants give upper bounds. PLD (privacy loss distributions, Doroshenko et al. 2022) is tight
up to its grid, whose rounding is pessimistic; RDP (Mironov 2017) is looser and shares no code with it: the
cross-check.

No torch here, and dp-accounting, which takes a second to import, is imported when it is asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Literal

from gradmm.errors import ConfigError

Relation = Literal["add_or_remove_one", "replace_one"]
"""Which data sets are neighbours: one has a row more, or one row is another."""
Accountant = Literal["pld", "rdp"]

LEAST_DELTA = 1e-12
"""Below it, sums of probabilities in float64 say nothing."""
_MARGIN = 1e-6  # of the noise: what is added up in another order must not exceed by rounding
_TOLERANCE = 1e-7  # of the noise, in the search for it
_MOST = 1e6  # what an infinite epsilon counts as, in the search
_GRID = 1e-4  # of privacy losses, for PLD; coarser in proportion where they are large


@dataclass(frozen=True)
class Gaussian:
    """Gaussian noise on a sum to which every row adds a vector of bounded norm."""

    noise_multiplier: float
    """z: standard deviation of the noise, over the bound."""
    count: int = 1
    """How often, each time with new noise."""
    sampling_probability: float = 1.0
    """With which each row takes part, on its own (Poisson sampling, as in DP-SGD)."""

    def __post_init__(self) -> None:
        assert 0 < self.noise_multiplier < math.inf, self
        assert self.count >= 1, self
        assert 0 < self.sampling_probability <= 1, self

    def scaled(self, factor: float) -> Gaussian:
        """The same with other noise."""
        return replace(self, noise_multiplier=self.noise_multiplier * factor)


def accountant_version() -> str:
    """Name and version of the library that accounts."""
    return f"dp-accounting {version('dp-accounting')}"


def epsilon_of(
    events: Sequence[Gaussian], delta: float, relation: Relation, accountant: Accountant = "pld"
) -> float:
    """Epsilon of everything that was released, composed; later events may be chosen after seeing earlier results.

    Args:
        events: what was released; none costs nothing.
        delta: the delta at which epsilon is stated, from `LEAST_DELTA` to below 1.
        relation: which data sets are neighbours.
        accountant: `pld`, or `rdp`, which is larger.

    Returns:
        An upper bound; infinite where the accountant finds none.

    Raises:
        ConfigError: if RDP is asked about sampled rows under `replace_one`, for which it has no bound here.
    """
    assert LEAST_DELTA <= delta < 1, delta
    return _epsilon_of(merged(events), delta, relation, accountant)


def merged(events: Sequence[Gaussian]) -> tuple[Gaussian, ...]:
    """The same guarantee in fewer events: all that use every row as one; the order does not matter."""
    whole = [event for event in events if event.sampling_probability == 1]
    sampled = [event for event in events if event.sampling_probability < 1]
    sampled.sort(key=lambda event: (event.noise_multiplier, event.sampling_probability, event.count))
    precision = math.fsum(event.count / event.noise_multiplier**2 for event in whole)
    return (*([Gaussian(precision**-0.5)] if whole else []), *sampled)


@lru_cache(maxsize=256)
def _epsilon_of(events: tuple[Gaussian, ...], delta: float, relation: Relation, accountant: Accountant) -> float:
    import dp_accounting
    from dp_accounting import pld, rdp

    if not events:
        return 0.0
    neighbours = dp_accounting.NeighboringRelation[relation.upper()]
    if accountant == "pld":
        counted: Any = pld.PLDAccountant(neighbours, _grid(events, delta, relation))
    else:
        counted = rdp.RdpAccountant(neighboring_relation=neighbours)
    for event in events:
        counted.compose(_as_dp_event(event, relation, accountant))
    return float(counted.get_epsilon(delta))


def _as_dp_event(event: Gaussian, relation: Relation, accountant: Accountant) -> Any:
    import dp_accounting

    is_sampled = event.sampling_probability < 1
    if accountant == "rdp" and relation == "replace_one":
        if is_sampled:
            raise ConfigError(
                "accountant 'rdp' has no bound for sampled rows under 'replace_one'; take 'pld', or the relation "
                "'add_or_remove_one'"
            )
        event = event.scaled(0.5)  # the sensitivity is 2 C, and this is the accountant that does not know
    noise = dp_accounting.GaussianDpEvent(event.noise_multiplier)
    if is_sampled:
        noise = dp_accounting.PoissonSampledDpEvent(event.sampling_probability, noise)
    return dp_accounting.SelfComposedDpEvent(noise, event.count)


def _grid(events: tuple[Gaussian, ...], delta: float, relation: Relation) -> float:
    """The interval of PLD's grid: a fixed number of points, as an epsilon of 100 would need millions.

    The size of the losses is that of zero-concentrated privacy, rho + 2 sqrt(rho log(1 / delta)).
    """
    if any(event.sampling_probability < 1 for event in events):
        return _GRID
    rho = math.fsum(_sensitivity(relation) ** 2 / (2 * event.noise_multiplier**2) for event in events)
    return _GRID * max(1.0, rho + 2 * math.sqrt(rho * -math.log(delta)))


def _sensitivity(relation: Relation) -> float:
    """Of a sum, over the bound of a row's norm; for first guesses and grids, never for a bound."""
    return 2.0 if relation == "replace_one" else 1.0


def calibrated(
    events: Sequence[Gaussian],
    epsilon: float,
    delta: float,
    relation: Relation,
    accountant: Accountant = "pld",
) -> tuple[Gaussian, ...]:
    """The events with all their noise scaled by one factor, the least with which they stay within epsilon.

    Shares of a budget are shares of z^-2, which is what adds up: events of z / sqrt(share) spend a share each,
    rounds are equal shares.

    Args:
        events: what will be released; their noise multipliers count in proportion to each other alone.
        epsilon: the budget, above 0.
        delta: as of `epsilon_of`.
        relation: which data sets are neighbours.
        accountant: whose epsilon it is.

    Returns:
        Events whose epsilon is at most the budget by the same accountant (asserted).

    Raises:
        ConfigError: if no noise of any practical size is enough, or as `epsilon_of`.
    """

    def excess(factor: float) -> float:
        spent = epsilon_of([event.scaled(factor) for event in events], delta, relation, accountant)
        return min(spent, _MOST) - epsilon

    factor = _root(excess, _closed_form(events, epsilon, delta, relation))
    found = tuple(event.scaled(factor) for event in events)
    assert epsilon_of(found, delta, relation, accountant) <= epsilon, (found, epsilon)
    return found


def noise_multiplier_for(
    epsilon: float, delta: float, relation: Relation, accountant: Accountant = "pld"
) -> float:
    """The noise multiplier of a single release that spends the whole budget; as `calibrated`."""
    return calibrated([Gaussian(1.0)], epsilon, delta, relation, accountant)[0].noise_multiplier


def _closed_form(events: Sequence[Gaussian], epsilon: float, delta: float, relation: Relation) -> float:
    """Where the search begins: the factor for rows that are not sampled (Balle and Wang 2018)."""
    from dp_accounting.gaussian_mechanism import get_sigma_gaussian

    (whole,) = merged([replace(event, sampling_probability=1.0) for event in events])
    sigma = float(get_sigma_gaussian(epsilon, delta))
    return sigma * _sensitivity(relation) / whole.noise_multiplier


def _root(excess: Callable[[float], float], guess: float) -> float:
    """A factor, just above that where the falling function `excess` becomes 0, where it is 0 or less."""
    from scipy.optimize import brentq

    low, high = _bracket(excess, guess)
    root = float(brentq(excess, low, high, xtol=_TOLERANCE * high))
    for step in range(40):
        factor: float = root * (1 + _MARGIN * 2.0**step)
        if excess(factor) <= 0:
            return factor
    raise _no_noise()


def _bracket(excess: Callable[[float], float], guess: float) -> tuple[float, float]:
    """A factor with too little noise and one with enough, in steps that grow from 0.01% of the guess to double."""
    near, is_enough = guess, excess(guess) <= 0
    for step in range(30):
        size = min(2.0, 1 + 1e-4 * 4**step)
        far = near / size if is_enough else near * size
        if (excess(far) <= 0) != is_enough:
            return min(near, far), max(near, far)
        near = far
    raise _no_noise()


def _no_noise() -> ConfigError:
    return ConfigError(
        "no amount of noise was found that just meets the budget; take a larger epsilon or delta, or the "
        "accountant 'pld'"
    )
