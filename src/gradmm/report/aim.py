"""What a set was made towards where that is not the rows' mean gradient alone, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradmm.report.numbers import distance, percent


def aimed_at(metrics: Mapping[str, Any]) -> str:
    """Of a run's figures; nothing where it was the target as it is."""
    found = metrics.get("shrinkage")
    if not found:
        return ""
    if found["noise_share"] is None:
        why = "As the settings ask,"
    else:
        share = percent(found["noise_share"])
        why = f"The real rows are few: {share} of what their mean gradient says is noise, so"
    return (
        f"{why} {percent(found['weight'])} of what was aimed at is what the model's own texts say of the "
        f"classes; the set is {distance(found['distance'])} from that."
    )


def reader_of(config: Mapping[str, Any]) -> str:
    """Who said what class a text is of: `rows`, `target` or `model`, which was all there was before."""
    named = (config.get("label_check") or {}).get("reader")
    return str(named) if named in ("rows", "target") and config["solver"] != "admm" else "model"
