"""Rows of two classes, and files of rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = ("negative", "positive")
WORDS = (("dull", "bad", "sad"), ("fine", "great", "happy"))


def rows_of(kind: str, each: int) -> list[dict[str, str]]:
    """So many rows of each class, all different; of another kind they are other rows."""
    return [
        {"text": f"A {WORDS[label][n % 3]} {kind}, {n}.", "label": name}
        for n in range(each)
        for label, name in enumerate(NAMES)
    ]


def flipped(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The rows with the other label."""
    return [row | {"label": NAMES[row["label"] == NAMES[0]]} for row in rows]


def written(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """The path, where the rows now stand as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
