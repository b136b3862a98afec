"""Few rows: how much of what their mean gradient says is noise, and a target that is moved away from it.

The mean gradient m of few rows is mostly noise where a space has many directions. With g its expectation,

    E |m - g|^2 = V = sum_c w_c^2 (mean |G_i|^2 - |m_c|^2) / (n_c - 1)          E |m|^2 = |g|^2 + V

(`gradients.spread`), so V / |m|^2 is the share of noise. A prior p, a mean gradient of texts that are many, is
biased and not noisy; shrunk towards it (James and Stein 1961; Efron and Morris 1973), the target is
(1 - w) m + w p. w is a fixed factor of the noise's share: V falls as 1/n, and a target of many rows stays its own.

The w of least squares follows from |m|^2 - V and <m,p>, but of 20 rows per class it is as noisy as they are: from
0 to 0.9 for different draws of the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from gradmm.gradients.distances import components
from gradmm.gradients.factors import Inner
from gradmm.gradients.target import ClassTarget, ReleasedTarget, weighted_sum

_MOST = 0.7
"""Weight of a prior where rows are nothing but noise. With 0.5 to 0.7, targets of 20 rows per class came nearest
to the gradient of all rows on sst2, emotion and rotten_tomatoes."""
Group = tuple[Sequence[int], Sequence[int]]
"""Classes that are matched together, and how many texts each gets."""


def _check_weight(given: Any) -> Any:
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    if given == "auto" or (is_number and 0 <= given <= 1):
        return given
    raise ValueError("give a number from 0 to 1, or auto")


class ShrinkageConfig(BaseModel):
    """How far a target of few rows is moved towards the LM's own texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weight: Annotated[Literal["auto"] | float, BeforeValidator(_check_weight)] = "auto"
    """Of the LM's texts in the target, from 0 (the rows alone) to 1. `auto`: 0.7 times the share of noise in what
    the rows say, and 0 where they are enough. With privacy it is 0, and all else is refused: how much rows
    disagree is a look at them."""
    share: float = Field(0.2, gt=0, le=1)
    """Of the LM's texts, those that are most surely of their class: their mean gradient is what the target moves
    to. Who says so is the reader of labels (`label_check.reader`)."""


@dataclass(frozen=True)
class RowNoise:
    """Squared norms of what is matched together, summed over groups."""

    rows: float
    """|m|^2, of the rows' mean gradient."""
    noise: float
    """V, of how far it is off its expectation."""

    @property
    def share(self) -> float:
        """Of noise in what the rows say, at most 1."""
        return min(1.0, self.noise / self.rows) if self.rows > 0 else 0.0

    @property
    def weight(self) -> float:
        """What a prior gets for it."""
        return _MOST * self.share


def noise_of(target: ReleasedTarget, groups: Sequence[Group], bias: str) -> RowNoise | None:
    """What a target's rows tell of themselves; None where no class has two rows, whose spread nobody knows.

    Args:
        target: with the spread of every class.
        groups: all classes, as they are matched together.
        bias: as of `components`.
    """
    spreads = [own.spread for own in target.classes]
    known = [_row_noise(own, bias) for own in target.classes if own.spread is not None and own.spread.rows > 1]
    if not known or None in spreads:
        return None
    usual, rows, noise = sum(known) / len(known), 0.0, 0.0
    for classes, counts in groups:
        rows += _number(target.together(classes, counts).square_norm(), bias)
        for label, count in zip(classes, counts, strict=True):
            spread = spreads[label]
            assert spread is not None
            one = _row_noise(target.classes[label], bias) if spread.rows > 1 else usual
            noise += (count / sum(counts)) ** 2 * one / spread.rows
    return RowNoise(rows, noise)


def _row_noise(own: ClassTarget, bias: str) -> float:
    """E |G_i - g|^2 of a row of a class that has several."""
    assert own.spread is not None
    within = _number(own.spread.square_norm(), bias) - _number(own.square_norm(), bias)
    return max(0.0, within) * own.spread.rows / (own.spread.rows - 1)


def shrunk(target: ReleasedTarget, prior: ReleasedTarget, weight: float) -> ReleasedTarget:
    """Between a target and a prior in its space; words, and what all rows have in common, stay the rows' own."""
    classes = [
        replace(weighted_sum([own, other], [1 - weight, weight]), unigrams=own.unigrams)
        for own, other in zip(target.classes, prior.classes, strict=True)
    ]
    return ReleasedTarget(tuple(classes), target.space, target.whole)


def _number(found: Inner, bias: str) -> float:
    return float(components(found, bias).sum())
