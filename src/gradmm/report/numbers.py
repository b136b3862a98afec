"""Numbers as people read them, and round places for the ticks of an axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from decimal import Decimal

NONE = "\N{EN DASH}"
"""What stands where there is no value."""
_LEAST = 1e-300


def significant(value: float | None, digits: int = 3) -> str:
    """With so many significant digits, never with an exponent down to a millionth; a dash for None."""
    if value is None:
        return NONE
    short = f"{value:.{digits}g}"
    if "e" not in short:
        return short
    return f"{Decimal(short):,f}" if 1e-7 < abs(value) < 1e12 else short


def at_most(value: float) -> str:
    """Four places, rounded up: what was promised or spent is never said to be less than it is."""
    return f"{math.ceil(value * 10_000 - 1e-6) / 10_000:g}"


def distance(value: float | None) -> str:
    """Four places, and two significant digits where these would be lost."""
    if value is None:
        return NONE
    return f"{value:.4f}" if abs(value) >= 0.001 or value == 0 else significant(value, 2)


def fixed(value: float | None, places: int = 2) -> str:
    """So many places; a dash for None."""
    return NONE if value is None else f"{value:,.{places}f}"


def percent(value: float | None, places: int = 0) -> str:
    """A share of one; a dash for None."""
    return NONE if value is None else f"{value:.{places}%}"


def duration(seconds: float) -> str:
    """In the unit that suits."""
    if seconds < 90:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def is_wide(values: Iterable[float]) -> bool:
    """Whether an axis with logarithmic scale shows them better: all above 0, the largest three times the least.

    Where one is so near to 0 that room beside it is 0, there is no such scale.
    """
    known = list(values)
    return bool(known) and min(known) > _LEAST and max(known) >= 3 * min(known)


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, about `count` of them, from `low` to `high`."""
    rough = (high - low) / count
    if not rough > 0 or not math.isfinite(rough):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """1, 2 and 5 times powers of ten; powers alone, and then every other, where these are too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        found = [factor * 10.0**power for power in powers for factor in factors]
        found = [tick for tick in found if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if 2 <= len(found) <= most:
            return found
    return found[:: -(-len(found) // most)] if len(found) > most else ticks(low, high)


def tick_labels(values: Sequence[float]) -> list[str]:
    """As many places for all as tell them apart."""
    return [significant(0.0 if abs(value) < 1e-12 else value, 4) for value in values]
