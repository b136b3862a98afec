"""Labelled text from anywhere, checked once, in one shape: rows of `text` and `label`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict

from gradmm.data.columns import Found, quiet
from gradmm.data.conflicts import find_conflicts
from gradmm.data.finding import find
from gradmm.data.labels import classes_of
from gradmm.data.mapped import filtered, in_order, plain_texts
from gradmm.data.rows import DataConfig, Indices, LabelledData, TextConfig, column_of, draw
from gradmm.data.vetting import check_counts, check_texts

if TYPE_CHECKING:
    import pandas

__all__ = ["DataConfig", "DataSource", "LabelledData", "load_data", "load_texts"]

log = logging.getLogger("gradmm")
_DEFAULTS = DataConfig()
DataSource: TypeAlias = (
    "str | Path | Dataset | DatasetDict | pandas.DataFrame | Sequence[Mapping[str, object]]"
    " | Sequence[tuple[str, int | str]] | LabelledData"
)


def load_data(source: DataSource | None, config: DataConfig = _DEFAULTS) -> LabelledData:
    """Load labelled text and check every row.

    Says, through `logging`, which columns it took if they were not named, and warns of texts with two labels.

    Args:
        source: A Hub id, a path, "demo" or an object; a string is a path if it exists or looks like one. None
            means `config.dataset`, which is otherwise not read.
        config: Which split, columns, classes and rows to take.

    Returns:
        The rows, in the order of the source.

    Raises:
        ConfigError: No source is named.
        DataError: The source cannot be read, or a row cannot be used.
    """
    with quiet():
        found = find(source if source is not None else config.dataset, config)
        found = found._replace(rows=in_order(found.rows))
        names, labels = classes_of(found, config)
        kept = np.flatnonzero(labels >= 0)
        rows = filtered(found.rows, kept)
        check_texts(rows, kept, found.name, found.columns.text)
        check_counts(names, np.bincount(labels[kept], minlength=len(names)), found.name)
        if config.max_rows_per_class is not None:
            kept = draw(labels, [config.max_rows_per_class] * len(names), config.seed)
            rows = filtered(found.rows, kept)
        texts = plain_texts(rows)
        rows = texts.add_column("label", labels[kept], feature=ClassLabel(names=list(names)))
        if not isinstance(source, LabelledData):
            _say_what_was_found(found, config)
            _warn_of_conflicts(texts, labels[kept], kept, found)
        before = source.numbers if isinstance(source, LabelledData) else None
        numbers = before[kept] if before is not None else kept if len(kept) < len(found.rows) else None
        return LabelledData(rows, found.name, *found.columns, numbers)


def load_texts(source: str | Path) -> list[str]:
    """Load texts whose labels, if they have any, play no part.

    Args:
        source: A Hub id, a path or "demo"; a string is a path if it exists or looks like one.

    Returns:
        The texts, in the order of the source.

    Raises:
        DataError: The source cannot be read, or a text cannot be used.
    """
    with quiet():
        found = find(source, TextConfig())
        rows = in_order(found.rows)
        check_texts(rows, np.arange(len(rows)), found.name, found.columns.text)
        texts: list[str] = column_of(plain_texts(rows), "text").to_pylist()
        return texts


def _say_what_was_found(found: Found, config: DataConfig) -> None:
    """Say which columns were found, unless they have the names that everyone expects."""
    text, label = found.columns
    if (config.text_column is None and text != "text") or (config.label_column is None and label != "label"):
        log.info("%s: texts from column %r, labels from column %r", found.name, text, label)


def _warn_of_conflicts(texts: Dataset, labels: Indices, numbers: Indices, found: Found) -> None:
    """Warn of texts under two labels; `numbers` (N) are the rows' numbers in the source."""
    conflicts = find_conflicts(texts, labels)
    if conflicts is not None:
        log.warning(
            "%s: %d of the texts stand under more than one label, such as that of rows %d and %d (counted from"
            " 0); see whether their labels are right",
            found.name,
            conflicts.count,
            *(numbers[[conflicts.earlier, conflicts.later]]),
        )
