"""What a search knows of its candidates, and what it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, TypeVar

from torch import Tensor

from gradmm.blocks import Made
from gradmm.solvers.kernels import FactorKernel
from gradmm.solvers.pool import Candidate

Item = TypeVar("Item")


@dataclass(frozen=True)
class Written:
    """A text of the result."""

    text: str
    source: str
    """`admm`, `lm`, `writer`, or the name of a file; with `+refined` if tokens of it were changed."""
    label_score: float | None = None
    """Probability of its label, in the eyes of who was asked (`label_check`); None where tokens were changed."""
    weight: float = 1.0
    """In the mean over its class."""


@dataclass(frozen=True)
class Found:
    """The texts of a run, and how they came about."""

    texts: list[list[Written]]
    """Per class."""
    before: dict[str, list[list[str]]] = field(default_factory=dict)
    """Texts per class as they were after earlier steps."""
    figures: list[dict[str, Any]] = field(default_factory=list)
    """Per group of classes that are matched together, what `metrics.json` keeps of the search."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Likewise, the objective: of every exchange, and of what was judged in refinement."""
    form: dict[str, Any] | None = None
    """The form of writing, and what was known of every one that was tried."""
    retokenised: int = 0
    """Texts whose tokens, as a user's trainer sees them, are not those that were optimised."""


@dataclass(frozen=True)
class Seen:
    """N candidates of classes that are matched together, and what selection knows of them, whatever the target."""

    classes: tuple[int, ...]
    """Labels, in the order in which their candidates stand."""
    pool: list[Candidate]
    """Class by class."""
    of_N: Tensor
    """Which of `classes` each candidate is of."""
    score_N: Tensor
    """Probability of the label, in the eyes of who was asked."""
    nll_N: Tensor
    """Log-perplexity, float64; zeros where it does not count."""
    kernel: FactorKernel
    nll_free: tuple[float, ...]
    """Log-perplexity that costs nothing, per class: mean of the LM's own samples; of all candidates where
    there are none."""

    def free(self, counts: Sequence[int]) -> float:
        """The same of a set of so many texts of every class."""
        return sum(n * own for n, own in zip(counts, self.nll_free, strict=True)) / sum(counts)

    def by_class(self, members: Sequence[int]) -> list[list[int]]:
        """Candidates by their class, in their order."""
        chosen = sorted(members)
        return [[i for i in chosen if int(self.of_N[i]) == at] for at in range(len(self.classes))]


def split(items: Sequence[Item], counts: Sequence[int]) -> list[list[Item]]:
    """Items of several classes, which stand class by class, for each of them."""
    ends = list(accumulate(counts))
    return [list(items[end - count : end]) for count, end in zip(counts, ends, strict=True)]


def as_found(made: Made) -> Found:
    """ADMM's texts as they are."""
    return Found([[Written(text, "admm") for text in own] for own in made.texts], retokenised=made.retokenised)
