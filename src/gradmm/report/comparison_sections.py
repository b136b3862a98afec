"""The chapter of a run of `gradmm compare`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from gradmm.report import drawings
from gradmm.report.numbers import NONE, distance, fixed, percent, significant
from gradmm.report.page import Chapter, Charts, Folded, Lead, Paragraph, Part, Row, Section, Table, table
from gradmm.report.read import Comparison
from gradmm.report.repeat import repeat_comparison
from gradmm.report.words import quoted

OURS = "search"  # the method that the others are compared with
_KINDS = {"synthetic": "No real row is handed out", "real": "Real rows", "control": "Controls, there to be beaten"}
_MOST_RECORDS = 1000


def comparison_chapter(run: Comparison) -> Chapter:
    """A comparison, section by section."""
    found = (_lead(run), *_budgets(run), _by_budget(run), _path(run), _trainings(run), repeat_comparison(run))
    sections = [section for section in found if section is not None]
    return Chapter(run.path.resolve().name, "comparison", sections, {})


def _lead(run: Comparison) -> Section:
    rows = run.metrics["rows"]
    budgets = sorted({row["budget"] for row in rows if row["budget"]})
    methods = len({row["method"] for row in rows})
    sizes = " and ".join(f"{budget:,}" for budget in budgets) or "all"
    asked = (
        f"A model was trained on the texts of {methods} methods, with {sizes} texts per class, for the data "
        f"{quoted(run.config['data'].get('dataset'))} and the model "
        f"{quoted(run.config['model'].get('model_name_or_path'))}, and evaluated on the test split."
    )
    said = [_outcome(budget, [row for row in rows if row["budget"] in (budget, 0)]) for budget in budgets]
    note = (
        "Differences are paired by seed, with 95% t intervals; * where the interval excludes zero. Learning rate "
        "and steps were chosen on the development split; the test split chose nothing."
    )
    return Section("result", "What was asked, what was found", [Lead(asked), *map(Lead, said), Paragraph(note)])


def _outcome(budget: int, rows: Sequence[dict[str, Any]]) -> str:
    """Ours beside the best of the others and the best that hands out real rows."""
    ours = next((row for row in rows if row["method"] == OURS), None)
    best = max(rows, key=lambda row: row["accuracy"]["mean"])
    if ours is None:
        return f"At {budget:,} texts per class, {best['title']} did best with {_accuracy(best['accuracy'])}%."
    least = "" if best is ours else f" The best is {best['title']}, with {_accuracy(best['accuracy'])}%."
    reached = f"{ours['title']} reached {_accuracy(ours['accuracy'])}%{_sure(rows, budget)}."
    return f"At {budget:,} texts per class, {reached}{least}"


def _difference(row: dict[str, Any], budget: int) -> dict[str, Any] | None:
    """What ours of a budget have more; of all rows, runs of before they were compared do not say."""
    found = row["ours_minus_this"] if row["budget"] else row.get("ours_minus_this_at", {}).get(str(budget))
    return cast("dict[str, Any] | None", found)


def _sure(rows: Sequence[dict[str, Any]], budget: int) -> str:
    """Which differences exclude zero."""
    known = [(row["title"], _difference(row, budget)) for row in rows]
    others = [(title, found) for title, found in known if found is not None and found["low"] is not None]
    clear = [(title, found["mean"]) for title, found in others if _is_clear(found)]
    ahead = [title for title, mean in clear if mean > 0]
    behind = [title for title, mean in clear if mean < 0]
    told = [f"{word} {', '.join(names)}" for word, names in (("ahead of", ahead), ("behind", behind)) if names]
    if told:
        return f", {' and '.join(told)} by more than the interval of the difference"
    return "; no interval of its difference from another method excludes zero" if others else ""


def _budgets(run: Comparison) -> list[Section]:
    rows = run.metrics["rows"]
    found = []
    for budget in sorted({row["budget"] for row in rows if row["budget"]}) or [0]:
        own = [row for row in rows if row["budget"] in (budget, 0)]
        title = f"{budget:,} texts per class" if budget else "All real rows"
        ordered = sorted(own, key=lambda row: (list(_KINDS).index(row["kind"]), -row["accuracy"]["mean"]))
        chart = drawings.accuracies(ordered, f"Accuracy with {title[0].lower() + title[1:]}.")
        found.append(Section(f"budget-{budget}", title, [_table(own, budget), Charts([chart])]))
    return found


def _table(rows: Sequence[dict[str, Any]], budget: int) -> Table:
    head = (
        *("trained on", "accuracy, %", "gradmm minus this", "learning rate", "distance", "log-perplexity"),
        *("minutes", "memory"),
    )
    groups = []
    for kind, heading in _KINDS.items():
        own = sorted((row for row in rows if row["kind"] == kind), key=lambda row: -row["accuracy"]["mean"])
        if own:
            groups.append(
                (heading, [Row(_cells(row, _difference(row, budget)), row["method"] == OURS) for row in own])
            )
    seeds = max(row["accuracy"]["count"] for row in rows)
    caption = (
        f"Accuracy on the test split: mean over {seeds} data seed{'s' if seeds > 1 else ''} and 95% interval. "
        "Minutes and memory are those of texts and training, shared work counted to every method that uses it"
    )
    return Table(caption, head, groups)


def _cells(row: dict[str, Any], difference: dict[str, Any] | None) -> tuple[str, ...]:
    costs = row["costs"]
    seconds = sum(costs[key] or 0.0 for key in ("seconds_texts", "seconds_training"))
    peak = max(costs[key] or 0.0 for key in ("peak_bytes_texts", "peak_bytes_training"))
    return (
        row["title"],
        _accuracy(row["accuracy"]),
        "" if difference is None else _accuracy(difference, sign=True),
        significant(row["learning_rate"]),
        distance(row["distance"]),
        fixed(row["log_perplexity"]),
        f"{seconds / 60:.1f}",
        f"{peak / 2**30:.1f} GiB" if peak else NONE,
    )


def _accuracy(value: dict[str, Any], sign: bool = False) -> str:
    """In points; a star where the interval of a difference excludes zero."""
    mean = f"{100 * value['mean']:+.1f}" if sign else f"{100 * value['mean']:.1f}"
    reach = "" if value["high"] is None else f" ± {100 * (value['high'] - value['mean']):.1f}"
    return mean + reach + (" *" if sign and _is_clear(value) else "")


def _is_clear(value: dict[str, Any]) -> bool:
    return value["low"] is not None and value["high"] is not None and not value["low"] <= 0 <= value["high"]


def _by_budget(run: Comparison) -> Section | None:
    chart = drawings.by_budget(run)
    return None if chart is None else Section("budgets", "Accuracy against budget", [Charts([chart])])


def _path(run: Comparison) -> Section | None:
    path = run.metrics.get("path") or []
    if not path:
        return None
    keys = ("error_all", "cosine_all", "error_head", "weights_apart")
    rows = [(f"{point['step']:,}", *(fixed(point[key]) for key in keys)) for point in path]
    head = ("step", "error, all weights", "cosine, all weights", "error, head", "weights apart")
    note = (
        "How far the gradient on our texts is from that on real rows while a model is trained on the texts, "
        "relative to the latter. The match is made at step 0; what training gains depends on how long it holds."
    )
    parts: list[Part] = [Paragraph(note), Charts([drawings.along_the_path(path)])]
    parts.append(table("Gradients along the training", head, rows))
    return Section("path", "Gradients along the training", parts)


def _trainings(run: Comparison) -> Section | None:
    head = ("method", "texts per class", "data seed", "training seed", "steps", "accuracy", "macro-F1")
    rows = [
        (
            one["method"],
            f"{one['budget']:,}" if one["budget"] else "all",
            str(one["data_seed"]),
            str(one["training_seed"]),
            f"{one['steps']:,}",
            percent(one["accuracy"], 1),
            fixed(one["macro_f1"], 3),
        )
        for one in run.records[:_MOST_RECORDS]
    ]
    more = len(run.records) - len(rows)
    title = (
        f"All {len(rows):,} trainings"
        if not more
        else f"The first {len(rows):,} of {len(run.records):,} trainings"
    )
    return Section("trainings", "Every training", [Folded(title, table("", head, rows))])
