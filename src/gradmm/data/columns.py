"""Take the split and the two columns that are asked for, out of whatever was found."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import datasets
from datasets import Dataset

from gradmm.data.rows import DataConfig
from gradmm.errors import DataError, closest, listed, nearest

NO_ROWS = "give at least one row of every class"


class Found(NamedTuple):
    """Rows as they were found: columns `text` and `label`, nothing checked."""

    rows: Dataset
    name: str
    label_names: tuple[str, ...] | None = None


def split_name(config: DataConfig) -> str:
    """Name the first split that is asked for, without its slice."""
    return re.split(r"[^\w.]", config.split)[0]


def take(found: Dataset | dict[str, Dataset], config: DataConfig, name: str) -> Found:
    """Take the split, or the slices of splits, that `config.split` asks for."""
    parts = found if isinstance(found, dict) else {split_name(config): found}
    lengths = {split: len(rows) for split, rows in parts.items()}
    try:
        slices = datasets.ReadInstruction.from_spec(config.split).to_absolute(lengths)
    except (ValueError, AssertionError) as error:
        raise DataError(f"{name}: no split {config.split!r}{nearest(split_name(config), parts)}") from error
    pieces = [parts[piece.splitname].select(range(piece.from_, piece.to)) for piece in slices]
    rows = pieces[0] if len(pieces) == 1 else datasets.concatenate_datasets(pieces)
    return Found(two_columns(rows, config, name), name)


def two_columns(rows: Dataset, config: DataConfig, name: str) -> Dataset:
    """Keep the two columns and name them `text` and `label`."""
    if len(rows) == 0:
        raise DataError(f"{name} has no rows in split {config.split!r}; {NO_ROWS}")
    for setting in ("text_column", "label_column"):
        column, present = getattr(config, setting), rows.column_names
        if column not in present:
            near = closest(column, present)
            meant = f"; did you mean {near!r}?" if near else ""
            raise DataError(
                f"{name}: no column {column!r} among {listed(present)}; set {setting} to one of them{meant}"
            )
    columns = {config.text_column: "text", config.label_column: "label"}
    return rows.select_columns(list(columns)).rename_columns(columns)


@contextmanager
def quiet(verbosity: int | None = None) -> Iterator[None]:
    """Silence the progress bars of `datasets`, and what it logs below `verbosity`, for a while."""
    bars_off, before = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(before if verbosity is None else verbosity)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(before)
        if not bars_off:
            datasets.enable_progress_bars()
