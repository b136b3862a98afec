"""Rows that are in memory already: a pandas DataFrame, or plain columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
from datasets import Dataset

from gradmm.data.columns import choose_columns
from gradmm.data.mapped import as_dataset
from gradmm.data.rows import DataConfig

if TYPE_CHECKING:
    import pandas


def from_frame(frame: pandas.DataFrame, config: DataConfig, name: str) -> Dataset:
    """Take the two columns of a DataFrame without making Python objects of them, unless they are mixed.

    Raises:
        DataError: It is not clear which columns are meant.
    """
    present = [str(column) for column in frame.columns]
    columns = choose_columns(present, config, name)
    chosen = {column: frame.iloc[:, present.index(column)] for column in columns}
    try:
        return as_dataset(pa.table({column: _to_arrow(values) for column, values in chosen.items()}))
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        objects = {column: values.astype(object) for column, values in chosen.items()}
        return from_columns({c: values.where(values.notna(), None).tolist() for c, values in objects.items()})


def _to_arrow(values: pandas.Series) -> pa.Array:
    array = pa.Array.from_pandas(values)
    return array.cast(array.type.value_type) if pa.types.is_dictionary(array.type) else array


def from_columns(columns: dict[str, Sequence[object]]) -> Dataset:
    """Make a `Dataset` of columns, mixed ones too: which row is odd is found later."""
    return Dataset.from_dict(columns, on_mixed_types="use_json")
