"""Notice a text that stands under two labels, in memory that does not grow with the texts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from datasets import Dataset

from gradmm.data.rows import Indices

_BATCH = 1000


@dataclass(frozen=True)
class Conflicts:
    """The texts that have more than one label."""

    count: int
    """How many distinct texts there are."""
    later: int
    """The first row that repeats an earlier row's text under another label."""
    earlier: int
    """That earlier row, or the last of them."""


def find_conflicts(texts: Dataset, labels: Indices) -> Conflicts | None:
    """Find the texts that stand under more than one label; None if there are none.

    Each text is held as 64 bits of hash, and those with the same hash are compared by what they say; two texts
    of one hash, of which there is one pair in 10^7 data sets of a million rows, may hide a conflict but make none.

    Args:
        texts: A column `text` (N), without nulls.
        labels: The label of every row (N).
    """
    hashes = _hashes(texts)
    order = np.argsort(hashes, kind="stable")  # so rows of one hash follow each other in the order of the rows
    at = np.flatnonzero((np.diff(hashes[order]) == 0) & (np.diff(labels[order]) != 0))
    pairs = np.stack([order[at], order[at + 1]], axis=1)
    pairs = pairs[_say_the_same(texts, pairs)]
    if not len(pairs):
        return None
    earlier, later = pairs[pairs[:, 1].argmin()]
    return Conflicts(len(np.unique(hashes[pairs[:, 0]])), int(later), int(earlier))


def _hashes(texts: Dataset) -> Indices:
    """Hash every text (N): Python's own hash, keyed anew in every process."""
    found = np.empty(len(texts), np.int64)
    start = 0
    for batch in texts.with_format("arrow").iter(batch_size=_BATCH):
        strings = batch["text"].to_pylist()
        found[start : start + len(strings)] = np.fromiter(map(hash, strings), np.int64, len(strings))
        start += len(strings)
    return found


def _say_the_same(texts: Dataset, pairs: Indices) -> np.ndarray:
    """Tell which pairs of rows (M, 2) have the same text (M)."""
    formatted = texts.with_format("arrow")
    same = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), _BATCH):
        rows = pairs[start : start + _BATCH]
        strings: pa.ChunkedArray = formatted[rows.ravel().tolist()]["text"]
        said = np.array(strings.to_pylist(), object).reshape(-1, 2)
        same[start : start + _BATCH] = said[:, 0] == said[:, 1]
    return same
