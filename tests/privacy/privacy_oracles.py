"""The Gaussian mechanism from its definition, and what an attacker can show; no library of privacy has a part
here."""

from __future__ import annotations

import math

from scipy.stats import beta, norm


def delta_of_gaussian(epsilon: float, noise_multiplier: float, sensitivity: float = 1.0) -> float:
    """The least delta of N(0, z^2) at a sensitivity (Balle and Wang 2018, theorem 8)."""
    a = sensitivity / noise_multiplier
    high = norm.logcdf(a / 2 - epsilon / a)
    low = epsilon + norm.logcdf(-a / 2 - epsilon / a)
    return math.exp(high) * -math.expm1(low - high) if low < high else 0.0


def epsilon_of_gaussian(noise_multiplier: float, delta: float, sensitivity: float = 1.0) -> float:
    """The least epsilon at a delta, by bisection."""
    low, high = 0.0, 1.0
    while delta_of_gaussian(high, noise_multiplier, sensitivity) > delta:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        is_enough = delta_of_gaussian(middle, noise_multiplier, sensitivity) <= delta
        low, high = (low, middle) if is_enough else (middle, high)
    return high


def shown_epsilon(hits: int, false_alarms: int, draws: int, delta: float, doubt: float) -> float:
    """A lower bound of epsilon from a test that told neighbours apart; wrong with probability `doubt` at most.

    hits <= e^epsilon false alarms + delta, with both rates at the ends of their Clopper-Pearson intervals.
    """
    least = beta.ppf(doubt / 2, hits, draws - hits + 1) if hits else 0.0
    most = beta.ppf(1 - doubt / 2, false_alarms + 1, draws - false_alarms) if false_alarms < draws else 1.0
    return math.log((least - delta) / most) if least > delta else -math.inf
