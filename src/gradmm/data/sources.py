"""Labelled text from anywhere, checked once, in one shape: rows of `text` and `label`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Value

from gradmm.data.columns import quiet
from gradmm.data.finding import find
from gradmm.data.rows import DataConfig, LabelledData, draw
from gradmm.data.vetting import check_counts, check_texts, classes_of

if TYPE_CHECKING:
    import pandas

__all__ = ["DataConfig", "DataSource", "LabelledData", "load_data"]

_DEFAULTS = DataConfig()
DataSource: TypeAlias = (
    "str | Path | Dataset | DatasetDict | pandas.DataFrame | Sequence[Mapping[str, object]]"
    " | Sequence[tuple[str, int | str]] | LabelledData"
)


def load_data(source: DataSource | None, config: DataConfig = _DEFAULTS) -> LabelledData:
    """Load labelled text and check every row.

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
        names, labels = classes_of(found, config)
        kept = np.flatnonzero(labels >= 0)
        checked = found.rows if len(kept) == len(labels) else found.rows.select(kept)
        check_texts(checked, kept, found.name, config.text_column)
        check_counts(names, np.bincount(labels[kept], minlength=len(names)), found.name)
        if config.max_rows_per_class is not None:
            kept = draw(labels, len(names), config.max_rows_per_class, config.seed)
        texts = found.rows.select_columns("text")
        if texts.features["text"] != Value("string"):  # large strings; casting copies, so not without need
            texts = texts.cast_column("text", Value("string"))
        rows = texts.add_column("label", labels, feature=ClassLabel(names=list(names)))
        return LabelledData(rows if len(kept) == len(rows) else rows.select(kept), found.name)
