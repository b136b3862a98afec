"""What `gradmm compare` prints: accuracies with intervals, paired differences, costs."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradmm.comparison.compare import Comparison
from gradmm.comparison.guarantee import PathPoint
from gradmm.comparison.methods import OURS
from gradmm.comparison.statistics import Interval
from gradmm.comparison.summary import Row
from gradmm.errors import printable
from gradmm.privacy.words import NOT_PRIVATE

_KINDS = {"synthetic": "no real row is handed out", "real": "real rows", "control": "controls, there to be beaten"}


def show_comparison(console: Console, found: Comparison, report: Path | None = None) -> None:
    """One table for every budget, and where the records are."""
    for budget in sorted({row.budget for row in found.rows if row.budget}) or [0]:
        rows = [row for row in found.rows if row.budget in (budget, 0)]
        console.print(_table(f"{budget} texts per class" if budget else "All real rows", rows, budget))
    console.print(Text(_note(found.rows)), soft_wrap=True)
    for point in found.path:
        console.print(Text(_path_line(point)), soft_wrap=True)
    if found.run_dir is not None:
        console.print(Text(f"\nRun folder: {found.run_dir}"), soft_wrap=True)
    if report is not None:
        console.print(Text(f"Report:     {report}"), soft_wrap=True)


def _table(title: str, rows: list[Row], budget: int) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("trained on", "accuracy", "gradmm minus this", "rate", "distance", "log-perplexity", "minutes"):
        table.add_column(column, justify="left" if column == "trained on" else "right")
    for kind, words in _KINDS.items():
        own = [row for row in rows if row.kind == kind]
        if own:
            table.add_row(Text(words, style="dim"))
        for row in sorted(own, key=lambda row: -row.accuracy.mean):
            table.add_row(*_cells(row, row.difference(budget)))
    return table


def _cells(row: Row, difference: Interval | None) -> tuple[str | Text, ...]:
    seconds = sum(row.costs[key] or 0.0 for key in ("seconds_texts", "seconds_training"))
    title = Text("  " + printable(row.title), style="bold" if row.method == OURS else "")
    return (
        title,
        percent(row.accuracy),
        "" if difference is None else percent(difference, sign=True),
        f"{row.learning_rate:g}",
        "" if row.distance is None else f"{row.distance:.4f}",
        "" if row.log_perplexity is None else f"{row.log_perplexity:.2f}",
        f"{seconds / 60:.1f}",
    )


def percent(value: Interval, sign: bool = False) -> str:
    """In points; a star where the interval of a difference excludes zero."""
    mean = f"{100 * value.mean:+.1f}" if sign else f"{100 * value.mean:.1f}"
    reach = "" if value.high is None else f" ± {100 * (value.high - value.mean):.1f}"
    return mean + reach + (" *" if sign and value.excludes_zero else "")


def _note(rows: list[Row]) -> str:
    seeds = max(row.accuracy.count for row in rows)
    return (
        f"Accuracy on the test split in percent; mean over {seeds} data seed{'s' if seeds > 1 else ''} and 95% t "
        "interval. Differences are paired by seed, * where the interval excludes zero. Learning rate and steps "
        "were chosen on the development split. Minutes are those of texts and training, shared work counted to "
        f"every method that uses it. {NOT_PRIVATE}"
    )


def _path_line(point: PathPoint) -> str:
    apart = "" if point.weights_apart is None else f"; weights apart {point.weights_apart:.2f} of the way"
    return (
        f"Step {point.step}: gradient error {point.error_all:.2f} on all weights (cosine {point.cosine_all:.2f}), "
        f"{point.error_head:.2f} on the head{apart}"
    )
