"""Read a file of rows, and say what is wrong with one that cannot be read.

Lines of a file are numbered from 1, as editors do.
"""

from __future__ import annotations

import json
import re
import reprlib
import textwrap
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import pyarrow as pa
from datasets import Dataset, Features, Value
from datasets.exceptions import DatasetsError

from gradmm.data.columnar import COLUMNAR
from gradmm.data.columns import NO_ROWS, Found, choose_columns, quiet, take
from gradmm.data.compression import COMPRESSIONS, decompressed, inner_suffix
from gradmm.data.jsonarrays import as_lines
from gradmm.data.mapped import detached, scratch
from gradmm.data.rows import DataConfig
from gradmm.data.signatures import check_content
from gradmm.errors import DataError, listed

_FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
UNREADABLE = (OSError, ValueError, StopIteration, NotImplementedError, pa.ArrowException, DatasetsError)
_HEAD = 4096
_NO_DATA = re.compile("corresponds to no data|No columns to parse from file|StopIteration")


def from_file(path: Path, config: DataConfig, name: str, label_names: tuple[str, ...] | None) -> Found:
    """Read a file; `DataError` says what is wrong with it and in which line.

    Nothing of it is left on the disk: it is converted in a folder that is deleted before this returns.
    """
    kind = format_of(path)
    if kind is None:
        known = f"{listed(_FORMATS)}; each also with {' or '.join(COMPRESSIONS)}"
        raise DataError(f"{name}: unknown extension {''.join(path.suffixes)!r}; known: {known}")
    with scratch() as folder:
        try:
            plain = decompressed(path, folder, name)
            check_content(plain, kind, name)
            is_empty = plain.stat().st_size == 0
        except OSError as error:
            raise DataError(f"{name}{_system_fault(error, folder)}") from error
        if is_empty:
            raise DataError(f"{name} has no rows; {NO_ROWS}")
        rows = _convert(plain, kind, folder, config, name)
    return take(rows, config, name)._replace(label_names=label_names)


def _convert(plain: Path, kind: str, folder: Path, config: DataConfig, name: str) -> Dataset:
    """Convert a plain file to memory-mapped Arrow, in `folder`."""
    try:
        if kind in COLUMNAR:
            return COLUMNAR[kind](plain, config, name)
        with quiet(datasets.logging.CRITICAL):  # it also logs every error that it raises
            options = _csv_options(plain, config, name) if kind == "csv" else {}
            files = escape(str((_as_lines(plain, folder, name) if kind == "json" else plain).absolute()))
            rows = datasets.load_dataset(
                kind, data_files=files, split="train", cache_dir=str(folder), keep_in_memory=False, **options
            )
            return detached(rows)
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError(f"{name}{_why_unreadable(plain, kind, error, folder)}") from error


def _as_lines(plain: Path, folder: Path, name: str) -> Path:
    """Make JSON lines of an array; `DataError` for an array that holds something else than objects."""
    lines = as_lines(plain, folder)
    if lines == plain:
        with plain.open("rb") as stream:
            is_array = stream.read(_HEAD).strip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
        if is_array and (fault := _array_fault(plain.read_bytes())):
            raise DataError(f"{name}{fault}")
    return lines


def format_of(path: Path) -> str | None:
    """Name the loader of a path by its extension; None if there is none."""
    return _FORMATS.get(inner_suffix(path))


def _csv_options(path: Path, config: DataConfig, name: str) -> dict[str, Any]:
    """Read every cell as it stands: the reader's own guesses make a null of "NA" and a number of "007"."""
    import pandas as pd

    separator = "\t" if inner_suffix(path) == ".tsv" else ","
    # Two rows, no header: a first row longer than the header is an error here; the reader would shift it.
    head = pd.read_csv(path, sep=separator, header=None, nrows=2, dtype=str, keep_default_na=False)
    columns = [str(column) for column in head.iloc[0]]
    other = next((sign for sign in ",\t;|" if len(columns) == 1 and sign in columns[0]), None)
    if other:
        remedy = {",": "let its name end in .csv", "\t": "let its name end in .tsv"}.get(
            other, "save it with commas"
        )
        raise DataError(f"{name}, line 1 has no {separator!r} between columns but {other!r}; {remedy}")
    choose_columns(columns, config, name)
    cells = {"sep": separator, "names": columns, "header": 0, "index_col": False, "keep_default_na": False}
    return {**cells, "features": Features({column: Value("string") for column in columns})}


def names_beside(path: Path) -> tuple[str, ...] | None:
    """Read the label names in the `labels.json` beside a file; None if there is none."""
    file = path.parent / "labels.json"
    if not file.exists():
        return None
    if not file.is_file():
        raise DataError(f"{file} is no file, but stands where one with a list of label names may; move it away")
    try:
        names = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON ({said(error)}); write a list of label names") from error
    is_list = isinstance(names, list) and all(isinstance(name, str) and name.strip() for name in names)
    if not is_list or len(set(names)) < max(2, len(names)):
        raise DataError(f"{file} holds {reprlib.repr(names)}; write a list of distinct label names, two at least")
    return tuple(names)


def _root(error: BaseException) -> BaseException:
    """Find the first cause: `datasets` wraps what happened in what it was doing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def said(error: BaseException) -> str:
    """Give the message of the first cause, on one line and not too long: it may quote a row."""
    error = _root(error)
    return textwrap.shorten(f"{error}", 200, placeholder="...") or type(error).__name__


def _system_fault(error: OSError, folder: Path) -> str:
    return f" cannot be read ({error}); see to its permissions and to the space in {folder.parent} (TMPDIR)"


def _why_unreadable(path: Path, kind: str, error: BaseException, folder: Path) -> str:
    """Say what is wrong and in which line; the readers count lines within blocks, so read the file again."""
    found, root = "", _root(error)
    if isinstance(root, OSError) and root.errno is not None:
        return _system_fault(root, folder)
    if kind in ("csv", "json"):
        with path.open("rb") as stream:
            found = _first_bad_line(stream, kind == "json")
    if not found and _NO_DATA.search(said(error)):
        return f" has no rows; {NO_ROWS}"
    return found or f" cannot be read ({said(error)}); mend the file"


def _first_bad_line(stream: BinaryIO, is_json: bool) -> str:
    """Say which line is not UTF-8 or, in a JSON file, not JSON; "" if none is."""
    for number, line in enumerate(stream, 1):
        try:
            text = line.decode().strip("\ufeff \t\r\n")
            if is_json and number == 1 and text.startswith("["):  # one array, so one document
                return _array_fault(line + stream.read())
            if is_json and text and not isinstance(json.loads(text, parse_int=str), dict):
                return f", line {number}: not a JSON object; write one object a line"
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            return _line_fault(number, error)
    return ""


def _array_fault(content: bytes) -> str:
    """Say what is wrong with a JSON array, or what it holds that is no object; "" if nothing is."""
    try:
        items = json.loads(content.decode("utf-8-sig"), parse_int=str)
    except UnicodeDecodeError as error:
        return _line_fault(content.count(b"\n", 0, error.start) + 1, error)
    except (json.JSONDecodeError, RecursionError) as error:
        return _line_fault(1, error)
    number = next((n for n, item in enumerate(items) if not isinstance(item, dict)), None)
    return "" if number is None else f", item {number} (counted from 0): not an object; write an array of objects"


def _line_fault(number: int, error: Exception) -> str:
    """Say what is wrong; `number` is that of the line with which the document begins."""
    if isinstance(error, UnicodeDecodeError):
        return f", line {number}: not UTF-8 ({error.reason}); save the file as UTF-8"
    if isinstance(error, json.JSONDecodeError):
        where = f"line {number + error.lineno - 1}"
        return f", {where}: not JSON ({error.msg}, column {error.colno}); mend the file"
    return f", line {number}: nested too deep; write objects with a text and a label"
