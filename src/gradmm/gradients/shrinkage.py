"""Few rows: a target between what the rows say and what a prior says, by how much the rows disagree.

A mean gradient m of few rows is mostly noise where a space has many directions. A prior p, another estimate that
no row has a part in, may be biased, and is less noisy. Of all a m + b p, the nearest to the expectation g of m:

    min E |a m + b p - g|^2:    a |m|^2 + b <m,p> = |m|^2 - V        a <m,p> + b |p|^2 = <m,p>
    a = ((|m|^2 - V) |p|^2 - <m,p>^2) / det        b = <m,p> V / det        det = |m|^2 |p|^2 - <m,p>^2

with V = E |m - g|^2 from the spread of the rows (`gradients.spread`): |m|^2 - V and <m,p> estimate |g|^2 and
<g,p> without bias. It is the best linear predictor of g from m and p (James and Stein 1961, shrunk to a line
instead of a point; Efron and Morris 1973). V falls as 1/n, so a target of many rows stays what it is.

Only b / (a + b) is used, the weight of the prior: directions are matched, and a and b have one factor in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from gradmm.gradients.distances import components
from gradmm.gradients.factors import Inner
from gradmm.gradients.target import ClassTarget, ReleasedTarget, weighted_sum

MOST = 0.9
"""Weight of the prior at the most: what so few rows say is not left out altogether."""
Group = tuple[Sequence[int], Sequence[int]]
"""Classes that are matched together, and how many texts each gets."""


def _check_weight(given: Any) -> Any:
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    if given == "auto" or (is_number and 0 <= given <= MOST):
        return given
    raise ValueError(f"give a number from 0 to {MOST}, or auto")


class ShrinkageConfig(BaseModel):
    """How far a target of few rows is moved to what the LM's own texts say."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weight: Annotated[Literal["auto"] | float, BeforeValidator(_check_weight)] = "auto"
    """Of the LM's texts in the target, from 0 (the rows alone) to 0.9. `auto`: by how much the rows disagree; 0
    where there are enough of them. Refused with privacy, where it is 0 by default: nobody knows how much they
    do."""
    share: float = Field(0.2, gt=0, le=1)
    """Of the LM's texts of every class, those whose label is most probable: the target is moved to their mean
    gradient."""


@dataclass(frozen=True)
class Shrinkage:
    """Squared norms of what is matched together, summed over groups, and what follows."""

    rows: float
    """|m|^2, of the rows' mean gradient."""
    noise: float
    """V, of how far it is off its expectation."""

    @property
    def noise_share(self) -> float:
        """Of the noise in what the rows say; 0 where they say nothing at all."""
        return self.noise / self.rows if self.rows > 0 else 0.0

    def weight(self, prior: float, agreement: float) -> float:
        """Of the prior, b / (a + b), at most `MOST`; 0 where it says the opposite.

        Args:
            prior: |p|^2.
            agreement: <m,p>.
        """
        rows = max(0.0, (self.rows - self.noise) * prior - agreement**2)
        other = max(0.0, agreement * self.noise)
        return min(MOST, other / (rows + other)) if other else 0.0


def noise_of(target: ReleasedTarget, groups: Sequence[Group], bias: str) -> Shrinkage | None:
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
    return Shrinkage(rows, noise)


def _row_noise(own: ClassTarget, bias: str) -> float:
    """E |G_i - g|^2 of a row of a class that has several."""
    assert own.spread is not None
    within = _number(own.spread.square_norm(), bias) - _number(own.square_norm(), bias)
    return max(0.0, within) * own.spread.rows / (own.spread.rows - 1)


def weight_of(
    target: ReleasedTarget, prior: ReleasedTarget, found: Shrinkage, groups: Sequence[Group], bias: str
) -> float:
    """The prior's weight, of a prior in the target's space."""
    square, agreement = 0.0, 0.0
    for classes, counts in groups:
        own, other = target.together(classes, counts), prior.together(classes, counts)
        square += _number(other.square_norm(), bias)
        agreement += _number(own.inner_with(other), bias)
    return found.weight(square, agreement)


def shrunk(target: ReleasedTarget, prior: ReleasedTarget, weight: float) -> ReleasedTarget:
    """Between both; words, and what all rows have in common, stay the rows' own."""
    classes = [
        replace(weighted_sum([own, other], [1 - weight, weight]), unigrams=own.unigrams)
        for own, other in zip(target.classes, prior.classes, strict=True)
    ]
    return ReleasedTarget(tuple(classes), target.space, target.whole)


def _number(found: Inner, bias: str) -> float:
    return float(components(found, bias).sum())
