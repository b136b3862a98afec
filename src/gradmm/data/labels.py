"""Make classes of the labels: words, whole numbers or truth values.

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
from datasets import ClassLabel

from gradmm.data.columns import Found
from gradmm.data.rows import BATCH, DataConfig, Indices, column_of
from gradmm.data.vetting import MOST_CLASSES, check_utf8, is_string, row_of
from gradmm.errors import DataError, nearest

_POSITIONS = {"false": 0, "true": 1}
_WHOLE = re.compile(r"(-?[0-9]+)(\.0+)?")
_LONGEST = 256
_INTEGER = re.compile(rf"-?[0-9]{{1,{_LONGEST}}}")  # Python makes no number of thousands of digits
_EXACT = 2.0**53


def classes_of(found: Found, config: DataConfig) -> tuple[tuple[str, ...], Indices]:
    """Name the classes and find every row's class (N), -1 for the rows of classes that are not kept.

    Raises:
        DataError: A label is missing, of no class or not like the others, or they look like free text.
    """
    feature, column = found.rows.features["label"], _checked(found)
    own_names = feature.names if isinstance(feature, ClassLabel) else found.label_names
    names = config.label_names or (tuple(own_names) if own_names else None)
    values = _distinct(column, max(MOST_CLASSES, len(names or ())))
    raw = [str(value) for value in values.to_pylist()]
    if names is None:
        _refuse_free_text(raw, found)
    keys = _spelled(raw, names)
    if names is None:
        names, numbers = _name_classes(keys)
    elif isinstance(feature, ClassLabel):
        numbers = [_place(key, names) for key in keys]
    else:
        numbers = _read_labels(keys, names, f"{found.name}: {found.columns.label}")
    unknown = [key for key, number in zip(keys, numbers, strict=True) if number is None]
    if unknown:
        key = min(unknown, key=_name_order)
        where = row_of(found.name, pc.index(column, values[keys.index(key)]).as_py())
        raise DataError(f"{where}: {found.columns.label} {_label_fault(key, names)}")
    labels = np.array(numbers)[pc.index_in(column, value_set=values).to_numpy()]
    if config.classes is None:
        return names, labels
    return config.classes, _new_labels(config.classes, names, found.name)[labels]


def _checked(found: Found) -> pa.ChunkedArray:
    """Take the labels (N): each is there, and all are whole numbers, truth values or words."""
    labels, column, name = column_of(found.rows, "label"), found.columns.label, found.name
    has_words = is_string(found.rows.features["label"])
    if has_words:
        check_utf8(labels, np.arange(len(labels)), name, column)
    blank = pc.equal(pc.utf8_trim_whitespace(labels), "") if has_words else pc.is_null(labels)
    row = pc.index(pc.fill_null(blank, True), True).as_py()
    if row >= 0:
        raise DataError(f"{row_of(name, row)}: {column} is missing; remove the row or give its label")
    if has_words or pa.types.is_integer(labels.type) or pa.types.is_boolean(labels.type):
        return labels
    if pa.types.is_floating(labels.type):  # what pandas makes of whole numbers when one is missing
        whole = pc.and_(pc.equal(labels, pc.round(labels)), pc.less(pc.abs(labels), _EXACT))
        row = pc.index(whole, False).as_py()
        if row < 0:
            return labels.cast(pa.int64())
        raise DataError(f"{row_of(name, row)}: {column} is {labels[row]}; give whole numbers or words")
    rows = found.rows
    first = rows[0]["label"]
    row, odd = next(((n, x) for n, x in enumerate(rows["label"]) if type(x) is not type(first)), (0, first))
    before = f", after {reprlib.repr(first)} in row 0" if row else ""
    raise DataError(
        f"{row_of(name, row)}: {column} is {reprlib.repr(odd)}{before}; give whole numbers only or words only"
    )


def _distinct(column: pa.ChunkedArray, most: int) -> pa.Array:
    """Collect the distinct labels in the order of their first rows, but not many more than `most`."""
    seen = pa.array([], column.type)
    for batch in pa.table([column], names=["label"]).to_batches(max_chunksize=BATCH):
        seen = pc.unique(pa.concat_arrays([seen, pc.unique(batch["label"])]))
        if len(seen) > most:
            break
    return seen


def _refuse_free_text(keys: Sequence[str], found: Found) -> None:
    """Refuse labels that are too many, or too long, to name classes."""
    is_long = max(map(len, keys)) > _LONGEST
    if len(keys) <= MOST_CLASSES and not is_long:
        return
    longest = sorted(keys, key=len, reverse=True)[:2] if is_long else keys[:2]
    fault = f"labels of more than {_LONGEST} characters" if is_long else f"more than {MOST_CLASSES:,} labels"
    examples = " and ".join(map(reprlib.repr, longest))
    raise DataError(
        f"{found.name}: {found.columns.label} holds {fault}, such as {examples}: it looks like free text or"
        " numbers, not classes; set label_column (--label-column) to another column"
    )


def _spelled(keys: list[str], names: tuple[str, ...] | None) -> list[str]:
    """Spell truth values "false" and "true", and 1.0 as 1, unless the names of the classes are spelled so."""
    if names is not None and set(keys) <= set(names):
        return keys
    if all(key.lower() in _POSITIONS for key in keys):
        return [key.lower() for key in keys]
    whole = [_WHOLE.fullmatch(key) for key in keys]
    return [match[1] for match in whole if match] if all(whole) else keys


def _name_classes(keys: Sequence[str]) -> tuple[tuple[str, ...], list[int | None]]:
    """Name the classes after the distinct labels; a negative number makes no class."""
    names = tuple(sorted(set(keys), key=_name_order))
    numbers = {name: None if _name_order(name) < (0, 0, "") else n for n, name in enumerate(names)}
    return names, [numbers[key] for key in keys]


def _read_labels(keys: Sequence[str], names: tuple[str, ...], where: str) -> list[int | None]:
    """Take the distinct labels for names of classes or, if they are none, for their numbers."""
    numbers = {name: number for number, name in enumerate(names)}
    if all(key in _POSITIONS for key in keys):  # in which letter case does not matter
        numbers |= {name.lower(): number for number, name in enumerate(names) if name.lower() in _POSITIONS}
    by_name, by_place = [numbers.get(key) for key in keys], [_place(key, names) for key in keys]
    if None in by_name:
        return by_place if None not in by_place or by_name.count(None) == len(keys) else by_name
    differ = [key for key, *pair in zip(keys, by_name, by_place, strict=True) if pair[0] != pair[1]]
    if None not in by_place and differ and _INTEGER.fullmatch(differ[0]):
        raise DataError(
            f"{where} {differ[0]} is the name of one class and the number of another; use words in label_names"
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
        known = nearest(key, names) if len(key) <= _LONGEST else ""
        return f"is {reprlib.repr(key)}, an unknown label; mend it or set label_names{known}"
    if int(key) < 0:
        return f"is {key}, which marks a row without a label; remove the row, or count the classes from 0"
    shown = textwrap.shorten(", ".join(names), 60, placeholder="...")
    return f"is {key}, but the {len(names)} label names count from 0 ({shown}); mend it or set label_names"


def _new_labels(classes: tuple[str, ...], names: tuple[str, ...], name: str) -> Indices:
    """Give the new label of every old one (C), -1 for the classes that are not kept."""
    for wanted in classes:
        if wanted not in names:
            raise DataError(f"{name}: classes asks for {wanted!r}, which is no class{nearest(wanted, names)}")
    return np.array([classes.index(old) if old in classes else -1 for old in names])
