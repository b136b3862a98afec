"""Read a file of rows, and say what is wrong with one that cannot be read.

Lines of a file are numbered from 1, as editors do.
"""

from __future__ import annotations

import gzip
import json
import re
import reprlib
import zlib
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO, cast

import datasets
import pyarrow as pa
from datasets import Features, Value
from datasets.exceptions import DatasetsError

from gradmm.data.columns import NO_ROWS, Found, quiet, take
from gradmm.data.rows import DataConfig
from gradmm.errors import DataError, listed

_FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_GZIP_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error)
UNREADABLE = (OSError, ValueError, StopIteration, pa.ArrowException, DatasetsError, *_GZIP_DAMAGE)
_NO_DATA = re.compile("corresponds to no data|No columns to parse from file|StopIteration")


def from_file(path: Path, config: DataConfig, name: str, label_names: tuple[str, ...] | None) -> Found:
    """Read a file; `DataError` says what is wrong with it and in which line."""
    kind = format_of(path)
    if kind is None:
        known = f"{listed(_FORMATS)}; all but Parquet also with .gz"
        raise DataError(f"{name}: unknown extension {''.join(path.suffixes)!r}; known: {known}")
    try:
        with quiet(datasets.logging.CRITICAL):  # it also logs every error that it raises
            options = _csv_options(path) if kind == "csv" else {}
            rows = datasets.load_dataset(kind, data_files=escape(str(path.absolute())), split="train", **options)
    except UNREADABLE as error:
        raise DataError(f"{name}{_why_unreadable(path, kind, error)}") from error
    return take(rows, config, name)._replace(label_names=label_names)


def format_of(path: Path) -> str | None:
    """Name the loader of a path by its extension; None if there is none."""
    kind = _FORMATS.get(_extension(path))
    # Parquet is compressed already, and its reader seeks.
    return None if kind == "parquet" and path.suffix == ".gz" else kind


def _extension(path: Path) -> str:
    return (Path(path.stem) if path.suffix == ".gz" else path).suffix.lower()


def _csv_options(path: Path) -> dict[str, Any]:
    """Read every cell as it stands: the reader's own guesses make a null of "NA" and a number of "007"."""
    import pandas as pd

    separator = "\t" if _extension(path) == ".tsv" else ","
    # Two rows, no header: a first row longer than the header is an error here; the reader would shift it.
    head = pd.read_csv(path, sep=separator, header=None, nrows=2, dtype=str, keep_default_na=False)
    columns = [str(column) for column in head.iloc[0]]
    cells = {"sep": separator, "names": columns, "header": 0, "index_col": False, "keep_default_na": False}
    return {**cells, "features": Features({column: Value("string") for column in columns})}


def names_beside(path: Path) -> tuple[str, ...] | None:
    """Read the label names in the `labels.json` beside a file; None if there is none."""
    file = path.parent / "labels.json"
    if not file.exists():
        return None
    try:
        names = json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file} is not JSON ({error}); write a list of label names") from error
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not is_list or len(set(names)) < len(names):
        raise DataError(f"{file} holds {reprlib.repr(names)}; write a list of distinct label names")
    return tuple(names)


def _root(error: BaseException) -> BaseException:
    """Find the first cause: `datasets` wraps what happened in what it was doing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def said(error: BaseException) -> str:
    """Give the message of the first cause, on one line."""
    error = _root(error)
    return " ".join(f"{error}".split()) or type(error).__name__


def _why_unreadable(path: Path, kind: str, error: BaseException) -> str:
    """Say what is wrong and in which line; the readers count lines within blocks, so read the file again."""
    found, root = "", _root(error)
    if isinstance(root, OSError) and not isinstance(root, gzip.BadGzipFile):
        return f" cannot be read ({root}); see to its permissions and to the space on the disk"
    if kind != "parquet":
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
                found = _first_bad_line(cast("BinaryIO", stream), kind == "json")
        except _GZIP_DAMAGE as damage:
            return f": damaged gzip file ({damage}); copy or compress it again"
    if not found and _NO_DATA.search(said(error)):
        return f" has no rows; {NO_ROWS}"
    return found or f" cannot be read ({said(error)}); mend the file"


def _first_bad_line(stream: BinaryIO, is_json: bool) -> str:
    """Say which line is not UTF-8 or, in a JSON file, not JSON; "" if none is."""
    for number, line in enumerate(stream, 1):
        try:
            text = line.decode().strip("\ufeff \t\r\n")
            if is_json and number == 1 and text.startswith("["):  # one array, so one document
                json.loads(line.decode() + stream.read().decode(errors="replace"))
            elif is_json and text and not isinstance(json.loads(text), dict):
                return f", line {number}: not a JSON object; write one object a line"
        except UnicodeDecodeError as error:
            return f", line {number}: not UTF-8 ({error.reason}); save the file as UTF-8"
        except json.JSONDecodeError as error:
            where = f"line {number + error.lineno - 1}"
            return f", {where}: not JSON ({error.msg}, column {error.colno}); mend the file"
    return ""
