"""The shape that all labelled data take, and the settings that choose them.

`LabelledData` keeps its texts in Arrow (memory-mapped wherever the source is a file); only labels and the
numbers of rows, some 8 bytes a row each, are held in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, TypeAlias, cast

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gradmm.errors import ConfigError, DataError

BATCH = 10_000
Indices: TypeAlias = NDArray[np.int64]


class DataConfig(BaseModel):
    """Where the labelled rows are and which of them to use."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    needs_labels: ClassVar[bool] = True

    dataset: str | None = None
    """A Hub id; a path to a CSV, TSV, JSON, JSON lines, Parquet or Arrow file (each may be .gz or .zst), or to
    a folder written by `save_to_disk`; or "demo" for the data that ship with the program."""
    name: str | None = None
    """The configuration of a Hub data set that has several."""
    split: str = "train"
    """The split, or a slice of it such as "train[:10%]". A source without splits (a file, a DataFrame, a
    list) is itself the split, by whatever name; a slice of it works."""
    text_column: str | None = None
    """The column that holds the texts. By default the one with a usual name, in any letter case: text, else
    sentence, content, review, document, question, body, comment, message, tweet, utterance or query, else
    headline or title; it is to be named where two of these are equally likely."""
    label_column: str | None = None
    """The column that holds the labels: names, truth values, or whole numbers that count the label names from
    0. By default the one with a usual name, in any letter case: label, else labels, else category, class,
    target, sentiment, intent, topic or emotion, else coarse_label, else label_text or label_name."""
    label_names: tuple[str, ...] | None = None
    """The names of all classes, in order: 2 to 1,000. By default the `ClassLabel`'s, else those in the
    `labels.json` beside a file, else the distinct labels, sorted; truth values are named false and true."""
    classes: tuple[str, ...] | None = None
    """Keep only the rows of these classes, two at least, relabelled 0, 1, ... in this order."""
    max_rows_per_class: int | None = Field(default=None, ge=1)
    """Keep at most this many rows of every class, drawn with `seed`; None keeps all."""
    seed: int = Field(default=0, ge=0)
    """The seed of that draw."""

    @field_validator("label_names", "classes", mode="before")
    @classmethod
    def _spell(cls, names: object) -> object:
        """Spell numbers and truth values, which YAML makes of bare words, as the classes are named."""
        if not isinstance(names, list | tuple):
            return names
        return tuple(str(name).lower() if isinstance(name, int) else name for name in names)

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.text_column is not None and self.text_column == self.label_column:
            raise ValueError(f"text_column and label_column are both {self.text_column!r}; name two columns")
        if not self.split.strip():
            raise ValueError(f"split is {self.split!r}; name one, such as 'train' or 'train[:10%]'")
        for field in ("label_names", "classes"):
            names: tuple[str, ...] = getattr(self, field) or ()
            if len(set(names)) < len(names) or not all(name.strip() for name in names):
                raise ValueError(f"{field} {names} holds a name twice or a blank one; name every class once")
            if len(names) == 1:
                raise ValueError(f"{field} names only the class {names[0]!r}; name at least two")
        return self


class TextConfig(DataConfig):
    """Where texts are whose labels, if they have any, play no part."""

    needs_labels: ClassVar[bool] = False


@dataclass(frozen=True, eq=False)
class LabelledData:
    """Checked rows: no null, empty or blank text, and at least one row in each of at least two classes."""

    rows: Dataset
    """Columns `text` (string) and `label` (`ClassLabel`)."""
    name: str
    """What the user called the source."""
    text_column: str = "text"
    """The column of the source that the texts are from."""
    label_column: str = "label"
    """The column of the source that the labels are from."""
    numbers: Indices | None = None
    """The number of every row in the source (N), from 0; None where no row was left out."""

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

    def number_of(self, label: int, at: int) -> int:
        """Give the number, in the source, of a class's row at this place."""
        row = int(np.flatnonzero(self._labels == label)[at])
        return row if self.numbers is None else int(self.numbers[row])

    def texts(self) -> list[str]:
        """Collect all texts, in order."""
        found: list[str] = column_of(self.rows, "text").to_pylist()
        return found

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

    def sample(self, n_per_class: int | Sequence[int], seed: int) -> LabelledData:
        """Draw rows of every class without replacement; they keep their order.

        Args:
            n_per_class: Rows to draw from every class, or from each (C).
            seed: Same seed, same rows; a larger draw with it contains the smaller one.

        Returns:
            As many rows as that is in all.

        Raises:
            ConfigError: A number is below 1.
            DataError: A class has fewer rows than that.
        """
        wanted = [n_per_class] * self.num_classes if isinstance(n_per_class, int) else list(n_per_class)
        for name, count, n in zip(self.label_names, self.counts(), wanted, strict=True):
            if n < 1:
                raise ConfigError(f"n_per_class is {n}; give at least 1")
            if count < n:
                raise DataError(f"{self.name}: class {name!r} has {count} rows of {n} asked for; ask for fewer")
        drawn = draw(self._labels, wanted, seed)
        numbers = drawn if self.numbers is None else self.numbers[drawn]
        return replace(self, rows=self.rows.select(drawn), numbers=numbers)

    def fingerprint(self) -> str:
        """Hash label names and rows, in order: SHA-256 in hex, whatever format they were read from.

        Labels, the texts' lengths in bytes and the texts' bytes, as UTF-8, are hashed apart, each end to end.
        """
        labels, lengths, texts = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
        labels.update(self._labels.astype("<i8").data)
        for batch in self.rows.select_columns("text").with_format("arrow").iter(batch_size=BATCH):
            for chunk in batch["text"].chunks:
                _, bounds, content = chunk.buffers()
                ends = np.frombuffer(bounds, "<i4")[chunk.offset : chunk.offset + len(chunk) + 1]
                lengths.update(np.diff(ends).astype("<i8").data)
                if content is not None:
                    texts.update(memoryview(content)[ends[0] : ends[-1]])
        parts = [part.hexdigest() for part in (labels, lengths, texts)]
        return hashlib.sha256(json.dumps(["gradmm-data-2", self.label_names, *parts]).encode()).hexdigest()


def column_of(rows: Dataset, name: str) -> pa.ChunkedArray:
    """Take one column (N), with the labels or texts in the order of the rows."""
    return rows.select_columns(name).with_format("arrow")[:][name]


def draw(labels: Indices, wanted: Sequence[int], seed: int) -> Indices:
    """Up to `wanted[c]` rows of every class c, shuffled by class so that a larger draw only adds rows."""
    shuffles = [
        np.random.default_rng((seed, c)).permutation(np.flatnonzero(labels == c))[:n] for c, n in enumerate(wanted)
    ]
    return np.sort(np.concatenate(shuffles))
