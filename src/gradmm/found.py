"""What a search knows of its candidates, and what it found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gradmm.blocks import Made
from gradmm.solvers.kernels import FactorKernel
from gradmm.solvers.pool import Candidate


@dataclass(frozen=True)
class Written:
    """A text of the result."""

    text: str
    source: str
    """`admm`, `lm`, `writer`, or the name of a file; with `+refined` if tokens of it were changed."""
    label_score: float | None = None
    """Calibrated probability of its label."""
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
    """Per class, what `metrics.json` keeps of the search."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Per class, the objective: of every exchange, and of what was judged in refinement."""
    form: dict[str, Any] | None = None
    """The form of writing, and what was known of every one that was tried."""
    retokenised: int = 0
    """Texts whose tokens, as a user's trainer sees them, are not those that were optimised."""


@dataclass(frozen=True)
class Seen:
    """N candidates of one class, and what selection knows of them: no target has a part in it."""

    label: int
    pool: list[Candidate]
    score_N: Tensor
    """Calibrated probability of the label."""
    nll_N: Tensor
    """Log-perplexity, float64; zeros where it does not count."""
    kernel: FactorKernel
    nll_free: float
    """Log-perplexity that costs nothing: mean of the LM's own samples; of all candidates where there are none."""


def as_found(made: Made) -> Found:
    """ADMM's texts as they are."""
    return Found([[Written(text, "admm") for text in own] for own in made.texts], retokenised=made.retokenised)
