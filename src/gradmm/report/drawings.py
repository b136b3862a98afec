"""What is drawn of a run: from its figures to charts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup

from gradmm.report.charts import NEUTRAL, Bar, Point, Series, Words, dot_plot, histogram, line_chart, scatter
from gradmm.report.numbers import distance, fixed, percent
from gradmm.report.read import Comparison, Texts
from gradmm.report.words import SETS, STEPS

_MOST_POINTS = 3000
_DISTANCE, _PERPLEXITY = "gradient distance", "log-perplexity, nats per token"
_KINDS = {
    "real text": ("real rows", "faint"),
    "lm text": ("LM samples", "speck"),
    "text": ("synthetic texts", "filled"),
    "target": ("target", "cross"),
    "real set": ("mean of real rows", "ring"),
    "lm set": ("mean of LM samples", "hollow"),
    "synthetic set": ("mean of synthetic texts", "large"),
}
"""Kinds of points of the map: name, and how they are drawn; the last lie on top."""


def trade_off(run: Texts) -> Markup:
    """Distance and log-perplexity of the set after every step, beside real rows and LM samples."""
    metrics, last = run.metrics, "synthetic texts"
    way = {**metrics["steps"], last: metrics["synthetic"]}
    marks = [(STEPS.get(name, name), row, 2, "hollow") for name, row in metrics["steps"].items()]
    looks = {"real": (1, "ring"), "lm": (3, "hollow")}
    marks += [(SETS[name], row, *looks[name]) for name, row in metrics["references"].items()]
    marks.append((last, metrics["synthetic"], 0, "large"))
    series = [
        Series(name, [_place(row)], look, kind, is_labelled=True)
        for name, row, look, kind in marks
        if _is_known(row)
    ]
    path = [_place(row) for row in way.values() if _is_known(row)]
    told = ", ".join(f"{one.name} {distance(one.points[0][0])} / {fixed(one.points[0][1])}" for one in series)
    words = Words("Distance / log-perplexity:", told + ".", _DISTANCE, _PERPLEXITY)
    return scatter(words, series, path)


def _place(row: dict[str, Any]) -> Point:
    return row["distance"], row["log_perplexity"]


def _is_known(row: dict[str, Any]) -> bool:
    return row["distance"] is not None and row["log_perplexity"] is not None


def history(run: Texts) -> list[Markup]:
    """A chart for every stage and quantity; both residuals share one."""
    groups: dict[tuple[str, str, str], list[Series]] = {}
    for one in run.figures.get("history") or ():
        quantity = one["quantity"]
        kind = "residual" if quantity.endswith("residual") else quantity
        who = "all classes" if one["label"] is None else run.label_names[one["label"]]
        name = f"{who}, {quantity.removesuffix(' residual')}" if kind == "residual" else who
        own = groups.setdefault((one["stage"], kind, one["unit"]), [])
        points = [(x, y) for x, y in one["points"] if y is not None]
        look = len(own) if one["label"] is None or kind == "residual" else one["label"]
        if points:
            own.append(Series(name, points, look))
    titles = {"admm": "ADMM", "selection": "Selection", "refinement": "Refinement"}
    return [
        line_chart(
            Words(f"{titles.get(stage, stage)}: {kind}.", f"{_ends(own)}.", unit, kind),
            own,
        )
        for (stage, kind, unit), own in groups.items()
        if own
    ]


def _ends(series: Sequence[Series]) -> str:
    told = [f"{one.name} from {one.points[0][1]:.3g} to {one.points[-1][1]:.3g}" for one in series[:4]]
    return "; ".join(told) + (" and others" if len(series) > 4 else "")


def lengths(found: dict[str, Any]) -> Markup:
    """Shares of texts by length."""
    kinds = {"synthetic": (0, "filled"), "real": (1, "hollow"), "lm": (3, "dashed")}
    series = []
    for name, counts in found["sets"].items():
        total = sum(counts) or 1
        points = [(left, count / total) for left, count in zip(found["edges"], counts, strict=False)]
        series.append(Series(SETS.get(name, name), points, *kinds.get(name, (2, "hollow"))))
    words = Words("How long the texts are.", "Share of texts by length.", found["unit"], "share of texts")
    return histogram(words, found["edges"], series)


def gradient_map(run: Texts) -> Markup:
    """Points by class (colour and shape) and kind (how they are filled)."""
    found = run.figures["map"]
    points = found["points"]
    kept = list(_thinned(points))
    groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for one in kept:
        groups.setdefault((list(_KINDS).index(one["kind"]), one["label"]), []).append(one)
    series = []
    for (_, label), own in sorted(groups.items()):
        kind, mark = _KINDS[own[0]["kind"]]
        name = f"{run.label_names[label]}: {kind}"
        places, labels = [(one["x"], one["y"]) for one in own], [_pointed_at(run, one, name) for one in own]
        series.append(Series(name, places, label, mark, labels))
    shares = [percent(share) for share in found["explained"]]
    left_out = "" if len(kept) == len(points) else f" {len(kept):,} of {len(points):,} points are shown."
    said = f"The axes hold {shares[0]} and {shares[1]} of the variance.{left_out}"
    words = Words("Where the gradients lie.", said, f"first axis, {shares[0]}", f"second axis, {shares[1]}")
    kinds = [kind for kind in _KINDS if any(one["kind"] == kind for one in kept)]
    legend = [Series(name, (), label) for label, name in enumerate(run.label_names)]
    legend += [Series(_KINDS[kind][0], (), NEUTRAL, _KINDS[kind][1]) for kind in kinds]
    return scatter(words, series, log_x=False, legend=legend)


def _thinned(points: Sequence[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """All means, and as many texts as a page bears."""
    step = -(-len(points) // _MOST_POINTS)
    texts = 0
    for one in points:
        texts += one["kind"].endswith("text")
        if not one["kind"].endswith("text") or texts % step == 0:
            yield one


def _pointed_at(run: Texts, point: dict[str, Any], name: str) -> str:
    row = point.get("row")
    if row is None:
        return name
    text = run.rows[row]["text"]
    return f"{name}, text {row + 1}: {text[:100]}" + ("\N{HORIZONTAL ELLIPSIS}" if len(text) > 100 else "")


def accuracies(rows: Sequence[dict[str, Any]], title: str) -> Markup:
    """Accuracy of every method at one budget, with intervals."""
    looks = {"synthetic": (0, "filled"), "real": (1, "hollow"), "control": (NEUTRAL, "hollow")}
    bars = [Bar(row["title"], _interval(row["accuracy"]), *looks[row["kind"]]) for row in rows]
    said = "Dots are means over data seeds, lines their 95% intervals."
    return dot_plot(Words(title, said, "accuracy on the test split", ""), bars, percent)


def _interval(value: dict[str, Any]) -> tuple[float, float | None, float | None]:
    return value["mean"], value["low"], value["high"]


def by_budget(run: Comparison) -> Markup | None:
    """Accuracy against texts per class, where there are several budgets."""
    own: dict[str, list[Point]] = {}
    for row in run.metrics["rows"]:
        if row["budget"]:
            own.setdefault(row["title"], []).append((row["budget"], row["accuracy"]["mean"]))
    if len({x for points in own.values() for x, _ in points}) < 2:
        return None
    series = [Series(title, sorted(points), look) for look, (title, points) in enumerate(own.items())]
    said = "Means over data seeds; the intervals stand in the tables."
    return line_chart(Words("Accuracy against texts per class.", said, "texts per class", "accuracy"), series)


def along_the_path(path: Sequence[dict[str, Any]]) -> Markup:
    """Errors of the gradient while a model is trained."""
    names = {
        "error_all": "gradient error, all weights",
        "error_head": "gradient error, head",
        "weights_apart": "weights apart",
    }
    series = []
    for look, (key, name) in enumerate(names.items()):
        points = [(float(point["step"]), point[key]) for point in path if point[key] is not None]
        if points:
            series.append(Series(name, points, look))
    said = "Relative to the real rows' gradient, and to how far training on real rows moved the weights."
    return line_chart(Words("Along the training.", said, "step", "relative error"), series)
