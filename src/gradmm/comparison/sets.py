"""The sets of texts of a comparison, kept in its run folder: to be read, and to be trained on again.

Sets of real rows are not written out. What all sets measure stands in the records, and a later comparison takes it
from there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradmm.checksums import check_sums, sha256
from gradmm.errors import ConfigError
from gradmm.store import FINGERPRINT, flatten

RESULTS = "results.parquet"
TEXTS = "texts.parquet"
Key = tuple[str, int, int]
"""Method, budget and data seed of a set."""
_COLUMNS = pa.schema(
    {
        "method": pa.string(),
        "budget": pa.int64(),
        "data_seed": pa.int64(),
        "label": pa.string(),
        "text": pa.string(),
        "weight": pa.float64(),
    }
)
_MEASURED = {
    "seconds": "seconds_texts",
    "peak_bytes": "peak_bytes_texts",
    "distance": "distance",
    "log_perplexity": "log_perplexity",
}
"""What is known of a set, and its column in the records."""
_DECIDE = ("gradmm", "model", "data.train", "settings.data", "settings.task", "settings.generate", "read")
"""Entries of the fingerprint, or groups of them, that decide what sets are like; `_deciding` has two more."""


def as_table(sets: Iterable[tuple[Key, Mapping[str, Any]]], label_names: Sequence[str]) -> pa.Table:
    """A row for every text.

    Args:
        sets: `texts` and `weights` (or None) per class, of each.
        label_names: of the classes.
    """
    rows = []
    for (method, budget, seed), made in sets:
        weights = made["weights"] or [[None] * len(own) for own in made["texts"]]
        rows += [
            dict(zip(_COLUMNS.names, (method, budget, seed, name, text, weight), strict=True))
            for name, texts, own in zip(label_names, made["texts"], weights, strict=True)
            for text, weight in zip(texts, own, strict=True)
        ]
    return pa.Table.from_pylist(rows, schema=_COLUMNS)


def checksum(run: str) -> str:
    """Of the texts of a finished comparison.

    Raises:
        ConfigError: if there is no such run folder.
        RunFolderError: if it is damaged.
    """
    folder = Path(os.path.expanduser(run))
    if not (folder / TEXTS).is_file():
        raise ConfigError(
            f"texts_from {run!r} holds no {TEXTS}; give the folder of a comparison that has ended, or leave it "
            "out to have the texts made"
        )
    check_sums(folder, (RESULTS, TEXTS, FINGERPRINT))
    return sha256(folder / TEXTS)


def read_sets(run: str, fingerprint: Mapping[str, Any], label_names: Sequence[str]) -> dict[Key, dict[str, Any]]:
    """What a finished comparison knows of its sets; `texts` and `weights` only of those that it wrote out.

    Args:
        run: its folder, see `checksum`.
        fingerprint: of the comparison that is to take them.
        label_names: of the classes.

    Raises:
        ConfigError: if these sets would be others there.
    """
    folder = Path(os.path.expanduser(run))
    there = json.loads((folder / FINGERPRINT).read_text(encoding="utf-8"))
    before, now = (_deciding(tree) for tree in (there, json.loads(json.dumps(fingerprint))))
    if changed := [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]:
        raise ConfigError(
            f"texts_from {run!r} holds sets that were made otherwise:\n"
            + "\n".join(f"  {key}: {before.get(key, 'not set')} -> {now.get(key, 'not set')}" for key in changed)
            + "\nset these as they were there, or leave texts_from out"
        )
    found: dict[Key, dict[str, Any]] = {}
    for record in pq.read_table(folder / RESULTS).to_pylist():
        key = record["method"], record["budget"], record["data_seed"]
        found[key] = {name: record[column] for name, column in _MEASURED.items()}
    for row in pq.read_table(folder / TEXTS).to_pylist():
        made = found[row["method"], row["budget"], row["data_seed"]]
        for part, value in (("texts", row["text"]), ("weights", row["weight"])):
            made.setdefault(part, [[] for _ in label_names])[label_names.index(row["label"])].append(value)
    for made in found.values():
        if None in [weight for own in made.get("weights", []) for weight in own]:
            made["weights"] = None
    return found


def _deciding(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    settings = fingerprint["settings"]
    more = {"real_rows_per_class": settings["real_rows_per_class"], "largest budget": max(settings["budgets"])}
    return more | {
        key: value
        for key, value in flatten(fingerprint).items()
        if any(key == name or key.startswith(f"{name}.") for name in _DECIDE)
    }
