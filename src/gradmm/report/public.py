"""A run without what a public page must not show: real rows, what comes from single ones, the user's folders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gradmm.report.names import public_name, public_source
from gradmm.report.read import Run, Texts

_NAMES = ("model_name_or_path", "dataset", "files")
"""Settings whose values may be paths; so may those of `methods` that begin with `file:`."""
_FILE = "file:"


def without_real_rows(run: Texts) -> Texts:
    """The run less its figures of real rows: nearest rows, and words, lengths and points of the map beside theirs.

    Means over all of them stay: distances, log-perplexities, and the target on the map.
    """
    figures = {key: value for key, value in run.figures.items() if key != "nearest"}
    if figures.get("words") and figures["words"]["reference"] == "real":
        del figures["words"]
    if figures.get("lengths"):
        sets = {name: counts for name, counts in figures["lengths"]["sets"].items() if name != "real"}
        figures["lengths"] = figures["lengths"] | {"sets": sets}
    if figures.get("map"):
        points = [point for point in figures["map"]["points"] if not point["kind"].startswith("real")]
        figures["map"] = figures["map"] | {"points": points}
    return replace(run, figures=figures)


def with_public_names(run: Run) -> Run:
    """The run with names of models, data and files cut to what may be published (`names.public_name`)."""
    config = _public("", run.config)
    if isinstance(run, Texts):
        rows = tuple(row | {"source": public_source(row["source"])} for row in run.rows)
        return replace(run, config=config, rows=rows)
    return replace(run, config=config)


def _public(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _public(str(name), own) for name, own in value.items()}
    if isinstance(value, list):
        return [_public(key, own) for own in value]
    if isinstance(value, str) and key in _NAMES:
        return public_name(value)
    if isinstance(value, str) and value.startswith(_FILE):
        return _FILE + public_name(value.removeprefix(_FILE))
    return value
