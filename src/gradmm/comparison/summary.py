"""What the records of a comparison say: means, intervals, and paired differences to ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradmm.comparison.methods import OURS, get_method
from gradmm.comparison.statistics import Interval, paired_runs, run_interval

_COSTS = ("seconds_texts", "seconds_training", "peak_bytes_texts", "peak_bytes_training")


@dataclass(frozen=True)
class Row:
    """One method at one budget."""

    method: str
    title: str
    kind: str
    budget: int
    """Texts per class; 0 where all rows were taken."""
    accuracy: Interval
    """Over data seeds, on the test split."""
    macro_f1: Interval
    ours_minus_this: Interval | None
    """Accuracy of ours less that of this method, paired by seed; None for ours, where ours was not run, and for
    all rows."""
    ours_minus_this_at: dict[str, Interval]
    """Of all rows, which have no budget: the same for every budget of ours, by its number; empty for others."""
    learning_rate: float
    distance: float | None
    """Mean over data seeds; None of all rows."""
    log_perplexity: float | None
    costs: dict[str, float | None]
    """Mean seconds, and peak memory in bytes, of making texts and of training."""

    def difference(self, budget: int) -> Interval | None:
        """What ours of a budget have more than this, where both are known."""
        return self.ours_minus_this if self.budget else self.ours_minus_this_at.get(str(budget))


def summarise(records: Sequence[dict[str, Any]]) -> list[Row]:
    """A row for every method and budget, in the order in which they were run."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for one in records:
        groups.setdefault((one["method"], one["budget"]), []).append(one)
    ours = {budget: _by_run(own, "accuracy") for (method, budget), own in groups.items() if method == OURS}
    return [_row(method, budget, own, ours) for (method, budget), own in groups.items()]


def _row(
    method: str, budget: int, own: list[dict[str, Any]], ours: dict[int, dict[tuple[int, int], float]]
) -> Row:
    others = {} if method == OURS else ours
    compared = {
        at: paired_runs(runs, _by_run(own, "accuracy")) for at, runs in others.items() if budget in (at, 0)
    }
    return Row(
        method=method,
        title=get_method(method).title,
        kind=own[0]["kind"],
        budget=budget,
        accuracy=run_interval(_by_run(own, "accuracy")),
        macro_f1=run_interval(_by_run(own, "macro_f1")),
        ours_minus_this=compared.get(budget),
        ours_minus_this_at={} if budget else {str(at): found for at, found in compared.items()},
        learning_rate=own[0]["learning_rate"],
        distance=_mean(own, "distance"),
        log_perplexity=_mean(own, "log_perplexity"),
        costs={key: _mean(own, key) for key in _COSTS},
    )


def _by_run(records: list[dict[str, Any]], key: str) -> dict[tuple[int, int], float]:
    return {(one["data_seed"], one["training_seed"]): float(one[key]) for one in records}


def _mean(records: list[dict[str, Any]], key: str) -> float | None:
    values = [one[key] for one in records if one[key] is not None]
    return sum(values) / len(values) if values else None
