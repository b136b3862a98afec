"""Take the split and the two columns that are asked for, or found, out of whatever was found."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

import datasets
from datasets import Dataset

from gradmm.data.rows import DataConfig
from gradmm.errors import DataError, closest, listed, nearest

NO_ROWS = "give at least one row of every class"
Tiers: TypeAlias = tuple[tuple[str, ...], ...]
TEXT_COLUMNS: Tiers = (
    ("text",),
    (
        *("sentence", "content", "review", "document", "question", "body"),
        *("comment", "message", "tweet", "utterance", "query"),
    ),
    ("headline", "title"),
)
"""Usual names of the column of texts. An earlier line wins; two names on one line are equally likely, so a
choice between them is the user's: a data set with a sentence and a question is about the pair."""
LABEL_COLUMNS: Tiers = (
    ("label",),
    ("labels",),
    ("category", "class", "target", "sentiment", "intent", "topic", "emotion"),
    ("coarse_label",),
    ("label_text", "label_name"),
)
"""Usual names of the column of labels, by the same rule."""


class Columns(NamedTuple):
    """The names, in the source, of the two columns."""

    text: str
    label: str


class Found(NamedTuple):
    """Rows as they were found: columns `text` and `label`, nothing checked."""

    rows: Dataset
    name: str
    columns: Columns
    label_names: tuple[str, ...] | None = None


def choose_columns(present: Sequence[str], config: DataConfig, name: str) -> Columns:
    """Choose the column of texts and that of labels: those that `config` names, else the usual ones.

    Args:
        present: The columns of the source.
        config: Its `text_column` and `label_column` are taken as they stand; None is found, letter case aside.
        name: The source, for messages.

    Raises:
        DataError: A column that is named is not there or there twice, or it is not clear which one is meant.

    Where labels play no part, the column of texts stands for theirs.
    """
    if not present:
        raise DataError(f"{name} has no columns; give a file with one of texts and one of labels")
    text = _choose(present, config.text_column, config.label_column, TEXT_COLUMNS, f"{name}: ", "text")
    label = (
        text
        if not config.needs_labels
        else _choose(present, config.label_column, config.text_column, LABEL_COLUMNS, f"{name}: ", "label")
    )
    for column in (text, label):
        if list(present).count(column) > 1:
            raise DataError(f"{name}: more than one column is named {column!r}; rename all but one of them")
    return Columns(text, label)


def _choose(
    present: Sequence[str], given: str | None, other: str | None, tiers: Tiers, where: str, role: str
) -> str:
    flag, all_columns = f"{role}_column (--{role}-column)", listed(map(_short, present))
    if given is not None:
        if given in present:
            return given
        near = closest(given, present)
        meant = f"; did you mean {near!r}?" if near else ""
        raise DataError(f"{where}no column {given!r} among {all_columns}; set {flag} to one of them{meant}")
    free = dict.fromkeys(column for column in present if column != other)
    for tier in tiers:
        usual = [column for column in free if column.lower() in tier]
        if len(usual) == 1:
            return usual[0]
        if usual:
            either = " and ".join(map(repr, sorted(usual)))
            raise DataError(f"{where}{either} may each be the {role}s; set {flag} to one of {all_columns}")
    near = closest(role, free)
    meant = f"; did you mean {near!r}?" if near else ""
    rest = all_columns if other not in present or not free else f"{listed(map(_short, free))} (beside {other!r})"
    raise DataError(f"{where}no usual column of {role}s among {rest}; set {flag} to one of them{meant}")


def _short(column: str) -> str:
    """Cut the name of a column: in a file without a header it is a row's text."""
    return column if len(column) <= 40 else f"{column[:37]}..."


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
    if (
        all(piece.from_ >= piece.to or piece.from_ >= lengths[piece.splitname] for piece in slices)
        and "[" in config.split
    ):
        held = ", ".join(
            f"{lengths[split]:,} rows" for split in dict.fromkeys(piece.splitname for piece in slices)
        )
        raise DataError(f"{name}: split {config.split!r} holds none of {held}; choose another slice")
    pieces = [parts[piece.splitname].select(range(piece.from_, piece.to)) for piece in slices]
    rows = pieces[0] if len(pieces) == 1 else datasets.concatenate_datasets(pieces)
    return two_columns(rows, config, name)


def two_columns(rows: Dataset, config: DataConfig, name: str) -> Found:
    """Keep the two columns and name them `text` and `label`; where labels play no part, the first alone."""
    if len(rows) == 0:
        raise DataError(f"{name} has no rows in split {config.split!r}; {NO_ROWS}")
    columns = choose_columns(rows.column_names, config, name)
    if not config.needs_labels:
        return Found(rows.select_columns(columns.text).rename_columns({columns.text: "text"}), name, columns)
    renamed = rows.select_columns(list(columns)).rename_columns({columns.text: "text", columns.label: "label"})
    return Found(renamed, name, columns)


@contextmanager
def quiet(verbosity: int | None = None) -> Iterator[None]:
    """Silence `datasets` for a while: progress bars, what it logs below `verbosity`, and what it reports home.

    It counts loads, those of local files too, by asking a server for a file of the loader's name.
    """
    bars_off, before = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    counted, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS, False
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(before if verbosity is None else verbosity)
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counted
        datasets.logging.set_verbosity(before)
        if not bars_off:
            datasets.enable_progress_bars()
