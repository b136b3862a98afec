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
    """Accuracy of ours less that of this method, paired by seed; None for ours, and where ours was not run."""
    learning_rate: float
    distance: float | None
    """Mean over data seeds; None of all rows."""
    log_perplexity: float | None
    costs: dict[str, float | None]
    """Mean seconds, and peak memory in bytes, of making texts and of training."""


def summarise(records: Sequence[dict[str, Any]]) -> list[Row]:
    """A row for every method and budget, in the order in which they were run."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for one in records:
        groups.setdefault((one["method"], one["budget"]), []).append(one)
    return [_row(method, budget, own, groups.get((OURS, budget))) for (method, budget), own in groups.items()]


def _row(method: str, budget: int, own: list[dict[str, Any]], ours: list[dict[str, Any]] | None) -> Row:
    compared = None
    if ours is not None and method != OURS:
        compared = paired_runs(_by_run(ours, "accuracy"), _by_run(own, "accuracy"))
    return Row(
        method=method,
        title=get_method(method).title,
        kind=own[0]["kind"],
        budget=budget,
        accuracy=run_interval(_by_run(own, "accuracy")),
        macro_f1=run_interval(_by_run(own, "macro_f1")),
        ours_minus_this=compared,
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
