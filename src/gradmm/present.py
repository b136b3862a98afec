"""What the commands print on stdout: texts, tables, findings.

Texts are data: never markup, never control codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradmm.doctor import Finding
from gradmm.errors import printable
from gradmm.privacy.words import NOT_PRIVATE
from gradmm.report.aim import aimed_at
from gradmm.result import Result
from gradmm.training.evaluate import Evaluation
from gradmm.training_run import TrainResult

_MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "fail": ("FAIL", "bold red")}
_MOST_COLUMNS = 12
_ROWS = {"synthetic": "synthetic texts", "real": "real rows", "lm": "LM samples"}


def show_texts(console: Console, result: Result, per_class: int | None = None) -> None:
    """The synthetic texts, class by class."""
    names = result.dataset.features["label"].names
    for label, name in enumerate(names):
        texts = result.texts_of(label)
        console.print(Text(printable(name), style="bold"))
        for text in texts[:per_class]:
            console.print(Text("  " + printable(text)), soft_wrap=True)
        if per_class is not None and len(texts) > per_class:
            console.print(Text(f"  ... and {len(texts) - per_class} more", style="dim"))


def show_measures(console: Console, metrics: dict[str, Any]) -> None:
    """Distance and readability of the synthetic texts beside the references."""
    private = metrics.get("privacy")
    target = "real gradients" if private is None else "released gradients"
    table = Table(title=f"How close to the {target}, how readable: lower is better", title_justify="left")
    for column in ("set", "texts", "distance", "log-perplexity", "distinct pairs"):
        table.add_column(column, justify="left" if column == "set" else "right")
    for name, row in {"synthetic": metrics["synthetic"], **metrics["references"]}.items():
        figures = (f"{row['distance']:.4f}", f"{row['log_perplexity']:.2f}", f"{row['distinct_2']:.0%}")
        table.add_row(_ROWS[name], str(row["texts"]), *figures)
    console.print(table)
    steps = _steps(metrics)
    if len(steps) > 1:
        bought = ", ".join(
            f"{name} {row['distance']:.4f} / {row['log_perplexity']:.2f}" for name, row in steps.items()
        )
        console.print(Text(f"Step by step (distance / log-perplexity): {bought}"), soft_wrap=True)
    form = metrics.get("form")
    if form is not None and form["objectives"]:
        console.print(Text(f"Form of writing: {form['name']}, the nearest of {len(form['objectives'])}."))
    if aimed := aimed_at(metrics):
        console.print(Text(aimed), soft_wrap=True)
    if private is not None:
        console.print(Text(_privacy_line(private)), soft_wrap=True)
    differ, count = metrics["synthetic"]["retokenised_differently"], metrics["synthetic"]["texts"]
    if differ:
        console.print(
            Text(f"{differ} of {count} texts re-tokenise differently; all figures are of the texts as they are.")
        )


def _privacy_line(private: dict[str, Any]) -> str:
    """What was spent, on what."""
    if not private["is_private"]:
        return "NOT PRIVATE: the noise was a test's."
    return (
        f"Private: epsilon {private['epsilon']:.4g} at delta {private['delta']:.3g} "
        f"({private['neighboring_relation']}, per {private['unit']}). Distances are to what was released, with "
        f"noise: its signal-to-noise ratio is about {private['expected_snr']:.3g}."
    )


def _steps(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the set was worth after every step, from the LM's own texts on."""
    words = {"lm": "LM samples", "admm": "ADMM", "formed": "in the form", "selected": "selected"}
    rows = {name: row for name, row in metrics["references"].items() if name == "lm"} | metrics["steps"]
    last = "refined" if "selected" in rows else "ADMM" if metrics["solver"] == "admm" else "selected"
    return {words[name]: row for name, row in rows.items()} | {last: metrics["synthetic"]}


def show_result(
    console: Console, result: Result, per_class: int | None = None, report: Path | None = None
) -> None:
    """Texts, figures, and where everything is."""
    show_texts(console, result, per_class)
    console.print()
    show_measures(console, result.metrics)
    if result.run_dir is not None:
        console.print(Text(f"\nRun folder: {result.run_dir}"), soft_wrap=True)
        console.print(Text(f"Texts:      {result.run_dir / 'data' / 'synthetic.jsonl'}"), soft_wrap=True)
    if report is not None:
        console.print(Text(f"Report:     {report}"), soft_wrap=True)


def show_training(console: Console, result: TrainResult) -> None:
    """What training changed on either split, which weights were kept and why, and where they are."""
    metrics = result.metrics
    table = Table(title="Before and after training", title_justify="left")
    for column in ("split", "rows", "model", "accuracy", "macro-F1", "calibration error", "loss"):
        table.add_column(column, justify="left" if column in ("split", "model") else "right")
    for role in ("dev", "test"):
        for when, found in (metrics[role] or {}).items():
            figures = (f"{found['accuracy']:.1%}", f"{found['macro_f1']:.3f}", f"{found['calibration_error']:.3f}")
            table.add_row(role, f"{found['rows']:,}", when, *figures, f"{found['loss']:.3f}")
    if table.row_count:
        console.print(table)
    console.print(Text(_what_was_kept(metrics)), soft_wrap=True)
    if result.run_dir is not None:
        console.print(Text(f"Model: {result.run_dir / 'model'}"), soft_wrap=True)


def _what_was_kept(metrics: dict[str, Any]) -> str:
    steps = f"{metrics['steps']} steps" + (", stopped early" if metrics["stopped_early"] else "")
    rows = f"{metrics['rows']['train']:,} rows"
    if metrics["best_step"] is None:
        why = " (no development split chose; --dev or --dev-fraction gives one)" if metrics["dev"] is None else ""
        return f"Kept: the last weights of {steps} on {rows}{why}."
    test = " The test split chose nothing." if metrics["test"] else ""
    return f"Kept: the weights of step {metrics['best_step']}, best on dev, of {steps} on {rows}.{test}"


def show_evaluation(console: Console, label_names: Sequence[str], found: Evaluation) -> None:
    """Figures of a classifier, then class by class, with the confusion matrix if it is not too wide."""
    figures = f"accuracy {found.accuracy:.1%}, macro-F1 {found.macro_f1:.3f}, loss {found.loss:.3f}"
    console.print(Text(f"{found.rows:,} rows: {figures}, calibration error {found.calibration_error:.3f}"))
    is_wide = len(label_names) > _MOST_COLUMNS
    names = [printable(name) for name in label_names]
    table = Table(title="Rows by class, and as what they were recognised", title_justify="left")
    table.add_column("class")
    for column in ("rows", "accuracy", *([] if is_wide else (f"as {name}" for name in names))):
        table.add_column(Text(column), justify="right")
    for name, share, counts in zip(names, found.class_accuracy, found.confusion, strict=True):
        recall = "-" if share is None else f"{share:.1%}"
        table.add_row(Text(name), f"{sum(counts):,}", recall, *([] if is_wide else (f"{n:,}" for n in counts)))
    console.print(table)
    if is_wide:
        console.print(Text("The confusion matrix is too wide for a table; --json has it."))
    console.print(Text(NOT_PRIVATE, style="dim"), soft_wrap=True)


def show_findings(console: Console, findings: Iterable[Finding]) -> None:
    """One line for each finding."""
    for finding in findings:
        word, style = _MARKS[finding.level]
        line = Text.assemble((f"{word:>4}", style), f"  {finding.name:<12} ", printable(finding.detail))
        console.print(line, soft_wrap=True)
