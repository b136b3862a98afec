"""The plan of a budget, before any of it is spent: which releases, with how much noise, and what is left to see.

What noise does to a class's mean gradient of M numbers over n rows, in units of the clip C:

    signal <= 1        |noise| = z sqrt(M) / n        signal-to-noise ratio <= n / (z sqrt(M))

The signal is 1 where all rows agree and none is shorter than C; rows that disagree have a shorter mean, a third of
it being common. The noise's norm is that of an M-dimensional normal, whose spread is negligible for large M.

No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gradmm.errors import ConfigError
from gradmm.privacy.accounting import (
    Accountant,
    Gaussian,
    Relation,
    accountant_version,
    calibrated,
    epsilon_of,
)
from gradmm.privacy.config import Budget, PrivacyConfig, Promise

COUNTS, WORDS, TARGET = "counts", "words", "target"
_CLEAR = 4.0  # a ratio from which on even a signal of a third stands out


@dataclass(frozen=True)
class PlannedRelease:
    """One thing that will be computed from the rows and handed on with noise."""

    name: str
    """`counts`, `words` or `target`; with several rounds `target 1`, `target 2`, ..."""
    share: float
    """Of the budget: of the sum of z^-2."""
    event: Gaussian
    """Its noise."""


@dataclass(frozen=True)
class Plan:
    """All releases of a run, and what they cost together."""

    neighboring_relation: Relation
    target_epsilon: float
    delta: float
    accountant: Accountant
    accountant_version: str
    releases: tuple[PlannedRelease, ...]
    epsilon_pld: float
    epsilon_rdp: float

    @property
    def epsilon(self) -> float:
        """Composed, by the accountant that the budget is held to; at most the target."""
        return self.epsilon_pld if self.accountant == "pld" else self.epsilon_rdp

    @property
    def noise_multiplier(self) -> float:
        """Of the target; of each, with several rounds."""
        return self.releases[-1].event.noise_multiplier

    def event(self, name: str) -> Gaussian:
        """The event of a release by its name."""
        return next(release.event for release in self.releases if release.name == name)


def shares_of(privacy: PrivacyConfig, with_words: bool) -> dict[str, float]:
    """What is released beside the target, and its share of the budget: noisy counts, shares of words.

    Args:
        privacy: the settings.
        with_words: whether the writer is tilted.
    """
    counts = {COUNTS: privacy.count_fraction} if privacy.count == "noisy" else {}
    return counts | ({WORDS: privacy.words_fraction} if with_words else {})


def make_plan(budget: Budget, others: Mapping[str, float] | None = None, rounds: int = 1) -> Plan:
    """Shares the budget out: some to other releases, the rest to the target, in equal parts to its rounds.

    Args:
        budget: what may be spent.
        others: releases beside the target and the share of each; together below 1; `shares_of`.
        rounds: how many targets, each at another point of the fine-tuning path.

    Raises:
        ConfigError: if the others leave nothing to the target, or no practical noise meets the budget.
    """
    others = others or {}
    rest = 1 - sum(others.values())
    assert rounds >= 1, rounds
    assert all(share > 0 for share in others.values()), others
    if rest <= 0:
        told = " and ".join(f"{100 * share:.3g}% of the budget for {name}" for name, share in others.items())
        raise ConfigError(f"{told} leave nothing to the target; lower a fraction")
    names = [TARGET] if rounds == 1 else [f"{TARGET} {number}" for number in range(1, rounds + 1)]
    shares = dict(others) | dict.fromkeys(names, rest / rounds)
    asked = [Gaussian(share**-0.5) for share in shares.values()]
    epsilon, relation = budget.target_epsilon, budget.neighboring_relation
    events = calibrated(asked, epsilon, budget.delta, relation, budget.accountant)
    return _as_plan(
        budget, epsilon, [PlannedRelease(*one) for one in zip(shares, shares.values(), events, strict=True)]
    )


def plan_of_noise(promise: Promise, noise_multiplier: float, rounds: int = 1) -> Plan:
    """The way back: what a noise multiplier costs. The plan's target is the epsilon that was found."""
    release = PlannedRelease(TARGET, 1.0, Gaussian(noise_multiplier, rounds))
    spent = epsilon_of([release.event], promise.delta, promise.neighboring_relation, promise.accountant)
    return _as_plan(promise, spent, [release])


def _as_plan(promise: Promise, target_epsilon: float, releases: Sequence[PlannedRelease]) -> Plan:
    events, relation = [release.event for release in releases], promise.neighboring_relation
    return Plan(
        neighboring_relation=relation,
        target_epsilon=target_epsilon,
        delta=promise.delta,
        accountant=promise.accountant,
        accountant_version=accountant_version(),
        releases=tuple(releases),
        epsilon_pld=epsilon_of(events, promise.delta, relation, "pld"),
        epsilon_rdp=epsilon_of(events, promise.delta, relation, "rdp"),
    )


def noise_norm(noise_multiplier: float, dimension: int, rows: float) -> float:
    """Norm of the noise on a class's mean gradient, over the clip.

    Args:
        noise_multiplier: z.
        dimension: numbers of one class's target in the space.
        rows: what the class's sum is divided by.
    """
    return noise_multiplier * math.sqrt(dimension) / rows


def expected_snr(noise_multiplier: float, dimension: int, rows: float, signal: float = 1.0) -> float:
    """Signal-to-noise ratio of a class's released mean gradient.

    Args:
        noise_multiplier: z.
        dimension: numbers of one class's target in the space.
        rows: what the class's sum is divided by.
        signal: norm of the mean clipped gradient over the clip: 1 at most, or as found on public text.
    """
    return signal / noise_norm(noise_multiplier, dimension, rows)


@dataclass(frozen=True)
class Outlook:
    """A plan, and what is left to see of one class's target through its noise."""

    plan: Plan
    dimension: int | None
    """Numbers of one class's target; None where the space is not known."""
    rows: float | None
    """What a class's sum is divided by."""
    noise_norm: float | None
    """Over the clip; the signal is 1 at most."""
    expected_snr: float | None
    """At most."""
    advice: tuple[str, ...]
    """What would help, where the target drowns or may."""


def outlook(promise: Promise, plan: Plan, dimension: int | None = None, num_classes: int = 1) -> Outlook:
    """What a plan leaves of the target, by the least class.

    Args:
        promise: what the plan is for; its public numbers of rows are the divisors.
        plan: the noise.
        dimension: numbers of one class's target in the space; None says nothing about it.
        num_classes: classes that `num_rows` is shared out to.

    Raises:
        ConfigError: if there is a dimension and no public number of rows.
    """
    counts = promise.public_counts
    rows = min(counts.values()) if counts else None if promise.rows is None else promise.rows / num_classes
    if dimension is None:
        return Outlook(plan, None, rows, None, None, ())
    if rows is None:
        raise ConfigError("the signal-to-noise ratio takes a number of rows too; give num_rows (--num-rows)")
    about = (plan.noise_multiplier, dimension, rows)
    words = tuple(advice(*about, promise))
    return Outlook(plan, dimension, rows, noise_norm(*about), expected_snr(*about), words)


def advice(
    noise_multiplier: float, dimension: int, rows: float, promise: Promise, signal: float = 1.0
) -> list[str]:
    """What to change where the noise drowns the target, or may; nothing where it does not.

    Args:
        noise_multiplier: z.
        dimension: numbers of one class's target in the space.
        rows: what the class's sum is divided by.
        promise: for the epsilon that would be enough.
        signal: as of `expected_snr`.
    """
    ratio = expected_snr(noise_multiplier, dimension, rows, signal)
    if ratio >= _CLEAR:
        return []
    wanted = _CLEAR / ratio
    bound = ", as it is often a third of the bound" if signal == 1 else ""
    verdict = "drowns in the noise" if ratio < 1 else f"may drown in the noise{bound}"
    space, enough = int(dimension / wanted**2), _epsilon_for(noise_multiplier / wanted, promise)
    remedies = [f"{math.ceil(rows * wanted):,} rows per class instead of {math.floor(rows):,}"]
    if space > 1:
        maps = "space.maps: verbaliser, subspace, sketch"
        remedies.insert(0, f"a space of at most {space:,} numbers instead of {dimension:,} ({maps})")
    if enough is not None:
        remedies.append(f"an epsilon of {enough:.3g} for the target, which is a weaker promise")
    return [f"The target {verdict}; what brings the ratio to {_CLEAR:g}:", *remedies]


def _epsilon_for(noise_multiplier: float, promise: Promise) -> float | None:
    """What less noise would cost; None where that promises nothing any more."""
    sensitivity = 2 if promise.neighboring_relation == "replace_one" else 1
    if sensitivity > 10 * noise_multiplier:  # epsilon is above 50, and its grid large
        return None
    return epsilon_of([Gaussian(noise_multiplier)], promise.delta, promise.neighboring_relation, "pld")
