"""The shape that all labelled data take, and the settings that choose them.

`LabelledData` keeps its texts in Arrow (memory-mapped wherever the source is a file); only the labels, 8 bytes
a row, are held in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, cast

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gradmm.errors import ConfigError, DataError

BATCH = 10_000
Indices: TypeAlias = NDArray[np.int64]


class DataConfig(BaseModel):
    """Where the labelled rows are and which of them to use."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    dataset: str | None = None
    """A Hub id; a path to a CSV, TSV, JSON, JSON lines (each may be .gz) or Parquet file, or to a folder
    written by `Dataset.save_to_disk`; or "demo" for the data that ship with the program."""
    name: str | None = None
    """The configuration of a Hub data set that has several."""
    split: str = "train"
    """The split, or a slice of it such as "train[:10%]". A source without splits (a file, a DataFrame, a
    list) is itself the split, by whatever name; a slice of it works."""
    text_column: str = "text"
    """The column that holds the texts."""
    label_column: str = "label"
    """The column that holds the labels: names, or whole numbers that count the label names from 0."""
    label_names: tuple[str, ...] | None = None
    """The names of all classes, in order. By default the `ClassLabel`'s, else those in the `labels.json`
    beside a file, else the distinct labels, sorted."""
    classes: tuple[str, ...] | None = None
    """Keep only the rows of these classes, relabelled 0, 1, ... in this order."""
    max_rows_per_class: int | None = Field(default=None, ge=1)
    """Keep at most this many rows of every class, drawn with `seed`; None keeps all."""
    seed: int = Field(default=0, ge=0)
    """The seed of that draw."""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.text_column == self.label_column:
            raise ValueError(f"text_column and label_column are both {self.text_column!r}; name two columns")
        for field in ("label_names", "classes"):
            names = getattr(self, field) or ()
            if len(set(names)) < len(names) or not all(name.strip() for name in names):
                raise ValueError(f"{field} {names} holds a name twice or a blank one; name every class once")
        return self


@dataclass(frozen=True, eq=False)
class LabelledData:
    """Checked rows: no null, empty or blank text, and at least one row in each of at least two classes."""

    rows: Dataset
    """Columns `text` (string) and `label` (`ClassLabel`)."""
    name: str
    """What the user called the source."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels."""
        return tuple(self.rows.features["label"].names)

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return len(self.label_names)

    def __len__(self) -> int:
        """N, the number of rows."""
        return len(self.rows)

    @cached_property
    def _labels(self) -> Indices:
        """The label of every row (N)."""
        return cast("Indices", column_of(self.rows, "label").to_numpy())

    def counts(self) -> list[int]:
        """Count the rows of every class (C)."""
        return cast("list[int]", np.bincount(self._labels, minlength=self.num_classes).tolist())

    def texts_of(self, label: int) -> list[str]:
        """Collect the texts of one class, in order; `iter_batches` does so without holding all of them."""
        return [text for batch in self.iter_batches(label, BATCH) for text in batch]

    def iter_batches(self, label: int, batch_size: int) -> Iterator[list[str]]:
        """Stream the texts of one class, in order.

        Args:
            label: The class, 0 to C - 1.
            batch_size: Texts in a batch; the last one may hold fewer.

        Returns:
            An iterator over batches; only one batch is in memory at a time.

        Raises:
            ConfigError: `label` is no class, or `batch_size` is below 1.
        """
        if not 0 <= label < self.num_classes:
            raise ConfigError(f"{self.name}: no class {label}; classes are 0 to {self.num_classes - 1}")
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; give at least 1")
        of_class = np.flatnonzero(self._labels == label)
        texts = self.rows.select_columns("text").with_format("arrow")
        starts = range(0, len(of_class), batch_size)
        return (texts[of_class[s : s + batch_size].tolist()]["text"].to_pylist() for s in starts)

    def sample(self, n_per_class: int, seed: int) -> LabelledData:
        """Draw rows of every class without replacement; they keep their order.

        Args:
            n_per_class: Rows to draw from every class.
            seed: Same seed, same rows; a larger draw with it contains the smaller one.

        Returns:
            C * n_per_class rows.

        Raises:
            ConfigError: `n_per_class` is below 1.
            DataError: A class has fewer rows than that.
        """
        if n_per_class < 1:
            raise ConfigError(f"n_per_class is {n_per_class}; give at least 1")
        for name, count in zip(self.label_names, self.counts(), strict=True):
            if count < n_per_class:
                raise DataError(
                    f"{self.name}: class {name!r} has {count} rows of {n_per_class} asked for; ask for fewer"
                )
        return LabelledData(self.rows.select(draw(self._labels, self.num_classes, n_per_class, seed)), self.name)

    def fingerprint(self) -> str:
        """Hash label names and rows, in order: SHA-256 in hex, whatever format they were read from."""
        digest = hashlib.sha256(json.dumps(["gradmm-data-1", self.label_names]).encode())
        for batch in self.rows.with_format("arrow").iter(batch_size=BATCH):
            for row in zip(batch["label"].to_pylist(), batch["text"].to_pylist(), strict=True):
                digest.update(json.dumps(row).encode())
        return digest.hexdigest()


def column_of(rows: Dataset, name: str) -> pa.ChunkedArray:
    """Take one column (N), with the labels or texts in the order of the rows."""
    return rows.select_columns(name).with_format("arrow")[:][name]


def draw(labels: Indices, num_classes: int, n: int, seed: int) -> Indices:
    """Up to n rows of every class, shuffled by class so that a larger n only adds rows."""
    shuffles = [
        np.random.default_rng((seed, c)).permutation(np.flatnonzero(labels == c)) for c in range(num_classes)
    ]
    return np.sort(np.concatenate([shuffle[:n] for shuffle in shuffles]))
