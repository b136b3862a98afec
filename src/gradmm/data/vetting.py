"""Check every row.

Rows are numbered from 0, as `datasets` does.
"""

from __future__ import annotations

import reprlib

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Value

from gradmm.data.rows import BATCH, Indices
from gradmm.errors import DataError

MOST_CLASSES = 1000
_STRINGS = ("string", "large_string", "string_view")


def row_of(name: str, row: object) -> str:
    """Name a row of a source."""
    return f"{name}, row {row} (counted from 0)"


def is_string(feature: object) -> bool:
    """Tell whether a column holds strings."""
    return isinstance(feature, Value) and feature.dtype in _STRINGS


def check_texts(rows: Dataset, numbers: Indices, name: str, column: str) -> None:
    """Every text is a string that says something; `numbers` (N) are the rows' numbers in the source."""
    if not is_string(rows.features["text"]):
        row = next((n for n, text in enumerate(rows["text"]) if not isinstance(text, str)), 0)
        raise DataError(f"{row_of(name, numbers[row])}: {column} {_text_fault(rows[row]['text'])}")
    start = 0
    for batch in rows.select_columns("text").with_format("arrow").iter(batch_size=BATCH):
        texts = batch["text"]
        check_utf8(texts, numbers[start:], name, column)
        blank = pc.or_(pc.equal(pc.binary_length(texts), 0), pc.utf8_is_space(texts))
        row = pc.index(pc.fill_null(blank, True), True).as_py()
        if row >= 0:
            raise DataError(f"{row_of(name, numbers[start + row])}: {column} {_text_fault(texts[row].as_py())}")
        start += len(texts)


def check_utf8(strings: pa.ChunkedArray, numbers: Indices, name: str, column: str) -> None:
    """Every string is UTF-8, which the JSON reader does not see to."""
    try:
        strings.validate(full=True)
    except pa.ArrowInvalid as error:
        raw = strings.cast(pa.large_binary()).to_pylist()
        row = next(n for n, s in enumerate(raw) if s is not None and s.decode(errors="ignore").encode() != s)
        raise DataError(f"{row_of(name, numbers[row])}: {column} is not UTF-8; save the data as UTF-8") from error


def _text_fault(text: object) -> str:
    if text is None:
        return "is missing (null); remove the row or give its text"
    if not isinstance(text, str):
        kind = type(text).__name__
        return f"is {reprlib.repr(text)} ({kind}), not a string; choose another text_column or convert it"
    return f"is {'only white space' if text else 'empty'}; remove the row or give its text"


def check_counts(names: tuple[str, ...], counts: Indices, name: str) -> None:
    """Refuse fewer than two classes, more than 1,000, and a class without rows."""
    if len(names) < 2:
        raise DataError(f"{name} has only the class {names[0]!r}; give rows of at least two classes")
    if len(names) > MOST_CLASSES:
        raise DataError(
            f"{name} has {len(names):,} classes of at most {MOST_CLASSES:,}; set classes to those that are wanted"
        )
    for label_name, count in zip(names, counts, strict=True):
        if count == 0:
            with_rows = ", ".join(n for n, c in zip(names, counts, strict=True) if c > 0)
            remedy = f"add some, or set classes to those that have rows ({with_rows})"
            raise DataError(f"{name}: class {label_name!r} has no rows; {remedy}")
