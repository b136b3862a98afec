"""Check every row, and make classes of the labels.

Rows are numbered from 0, as `datasets` does.
"""

from __future__ import annotations

import re
import reprlib
import textwrap
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Value

from gradmm.data.columns import Found
from gradmm.data.rows import BATCH, DataConfig, Indices, column_of
from gradmm.errors import DataError, nearest

_STRINGS = ("string", "large_string", "string_view")
_POSITIONS = {"False": 0, "True": 1}
_INTEGER = re.compile(r"-?[0-9]+")


def _at(name: str, row: object) -> str:
    return f"{name}, row {row} (counted from 0)"


def _is_string(feature: object) -> bool:
    return isinstance(feature, Value) and feature.dtype in _STRINGS


def check_texts(rows: Dataset, numbers: Indices, name: str, column: str) -> None:
    """Every text is a string that says something; `numbers` (N) are the rows' numbers in the source."""
    if not _is_string(rows.features["text"]):
        row = next((n for n, text in enumerate(rows["text"]) if not isinstance(text, str)), 0)
        raise DataError(f"{_at(name, numbers[row])}: {column} {_text_fault(rows[row]['text'])}")
    start = 0
    for batch in rows.select_columns("text").with_format("arrow").iter(batch_size=BATCH):
        texts = batch["text"]
        _check_utf8(texts, numbers[start:], name, column)
        blank = pc.or_(pc.equal(pc.binary_length(texts), 0), pc.utf8_is_space(texts))
        row = pc.index(pc.fill_null(blank, True), True).as_py()
        if row >= 0:
            raise DataError(f"{_at(name, numbers[start + row])}: {column} {_text_fault(texts[row].as_py())}")
        start += len(texts)


def _check_utf8(strings: pa.ChunkedArray, numbers: Indices, name: str, column: str) -> None:
    """Every string is UTF-8, which the JSON reader does not see to."""
    try:
        strings.validate(full=True)
    except pa.ArrowInvalid as error:
        raw = strings.cast(pa.large_binary()).to_pylist()
        row = next(n for n, s in enumerate(raw) if s is not None and s.decode(errors="ignore").encode() != s)
        raise DataError(f"{_at(name, numbers[row])}: {column} is not UTF-8; save the data as UTF-8") from error


def _text_fault(text: object) -> str:
    if text is None:
        return "is missing (null); remove the row or give its text"
    if not isinstance(text, str):
        kind = type(text).__name__
        return f"is {reprlib.repr(text)} ({kind}), not a string; choose another text_column or convert it"
    return f"is {'only white space' if text else 'empty'}; remove the row or give its text"


def classes_of(found: Found, config: DataConfig) -> tuple[tuple[str, ...], Indices]:
    """Name the classes and find every row's class (N), -1 for the rows of classes that are not kept."""
    _check_labels(found.rows, found.name, config.label_column)
    feature, column = found.rows.features["label"], column_of(found.rows, "label")
    values = pc.unique(column)
    keys = [str(value) for value in values.to_pylist()]
    own_names = feature.names if isinstance(feature, ClassLabel) else found.label_names
    names = config.label_names or (tuple(own_names) if own_names else None)
    if names is None:
        names, numbers = _name_classes(keys)
    elif isinstance(feature, ClassLabel):
        numbers = [_place(key, names) for key in keys]
    else:
        numbers = _read_labels(keys, names, f"{found.name}: {config.label_column}")
    unknown = [key for key, number in zip(keys, numbers, strict=True) if number is None]
    if unknown:
        key = min(unknown, key=_name_order)
        where = _at(found.name, pc.index(column, values[keys.index(key)]).as_py())
        raise DataError(f"{where}: {config.label_column} {_label_fault(key, names)}")
    labels = np.array(numbers)[pc.index_in(column, value_set=values).to_numpy()]
    if config.classes is None:
        return names, labels
    return config.classes, _new_labels(config.classes, names, found.name)[labels]


def _name_classes(keys: Sequence[str]) -> tuple[tuple[str, ...], list[int | None]]:
    """Name the classes after the distinct labels; a negative number makes no class."""
    names = tuple(sorted(keys, key=_name_order))
    numbers = {name: None if _name_order(name) < (0, 0, "") else n for n, name in enumerate(names)}
    return names, [numbers[key] for key in keys]


def _read_labels(keys: Sequence[str], names: tuple[str, ...], where: str) -> list[int | None]:
    """Take the distinct labels for names of classes or, if they are none, for their numbers."""
    numbers = {name: number for number, name in enumerate(names)}
    by_name, by_place = [numbers.get(key) for key in keys], [_place(key, names) for key in keys]
    if None in by_name:
        return by_place if None not in by_place or by_name.count(None) == len(keys) else by_name
    if None not in by_place and by_name != by_place:
        key = next(key for key, *pair in zip(keys, by_name, by_place, strict=True) if pair[0] != pair[1])
        raise DataError(
            f"{where} {key} is the name of one class and the number of another; use words in label_names"
        )
    return by_name


def _name_order(key: str) -> tuple[int, int, str]:
    """Numbers by size, then words."""
    return (0, int(key), "") if _INTEGER.fullmatch(key) else (1, 0, key)


def _place(key: str, names: tuple[str, ...]) -> int | None:
    """Find the class that a number or a truth value stands for; None if there is none."""
    number = int(key) if _INTEGER.fullmatch(key) else _POSITIONS.get(key, -1)
    return number if 0 <= number < len(names) else None


def _label_fault(key: str, names: tuple[str, ...]) -> str:
    if not _INTEGER.fullmatch(key) or 0 <= int(key) < len(names):
        return f"is {key!r}, an unknown label; mend it or set label_names{nearest(key, names)}"
    if int(key) < 0:
        return f"is {key}, which marks a row without a label; remove the row, or count the classes from 0"
    shown = textwrap.shorten(", ".join(names), 60, placeholder="...")
    return f"is {key}, but the {len(names)} label names count from 0 ({shown}); mend it or set label_names"


def _check_labels(rows: Dataset, name: str, column: str) -> None:
    """Every label is there, and all are whole numbers, truth values or words."""
    labels, is_string = column_of(rows, "label"), _is_string(rows.features["label"])
    if is_string:
        _check_utf8(labels, np.arange(len(labels)), name, column)
    blank = pc.equal(pc.utf8_trim_whitespace(labels), "") if is_string else pc.is_null(labels)
    row = pc.index(pc.fill_null(blank, True), True).as_py()
    if row >= 0:
        raise DataError(f"{_at(name, row)}: {column} is missing; remove the row or give its label")
    if is_string or pa.types.is_integer(labels.type) or pa.types.is_boolean(labels.type):
        return
    first = rows[0]["label"]
    row, odd = next(((n, x) for n, x in enumerate(rows["label"]) if type(x) is not type(first)), (0, first))
    before = f", after {reprlib.repr(first)} in row 0" if row else ""
    raise DataError(
        f"{_at(name, row)}: {column} is {reprlib.repr(odd)}{before}; give whole numbers only or words only"
    )


def _new_labels(classes: tuple[str, ...], names: tuple[str, ...], name: str) -> Indices:
    """Give the new label of every old one (C), -1 for the classes that are not kept."""
    for wanted in classes:
        if wanted not in names:
            raise DataError(f"{name}: classes asks for {wanted!r}, which is no class{nearest(wanted, names)}")
    return np.array([classes.index(old) if old in classes else -1 for old in names])


def check_counts(names: tuple[str, ...], counts: Indices, name: str) -> None:
    """Refuse fewer than two classes, and a class without rows."""
    if len(names) < 2:
        raise DataError(f"{name} has only the class {names[0]!r}; give rows of at least two classes")
    for label_name, count in zip(names, counts, strict=True):
        if count == 0:
            with_rows = ", ".join(n for n, c in zip(names, counts, strict=True) if c > 0)
            remedy = f"add some, or set classes to those that have rows ({with_rows})"
            raise DataError(f"{name}: class {label_name!r} has no rows; {remedy}")
