"""Find the rows of any source: an object, the demo, a path or a Hub id."""

from __future__ import annotations

import importlib.resources
import reprlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

from gradmm.data.columns import NO_ROWS, Columns, Found, choose_columns, split_name, take, two_columns
from gradmm.data.files import UNREADABLE, format_of, from_file, names_beside, said
from gradmm.data.frames import from_columns, from_frame
from gradmm.data.paths import expanded, kind_of, missing, names_in
from gradmm.data.rows import DataConfig, LabelledData
from gradmm.errors import ConfigError, DataError, listed, nearest

_DAMAGED = (KeyError, TypeError, AttributeError, RecursionError)  # of a state.json that holds something else
_NOT_ROWS = ("labels.json", "state.json", "dataset_info.json", "dataset_dict.json")


def find(source: object, config: DataConfig) -> Found:
    """Find the rows of any source; `ConfigError` if none is named, `DataError` if they cannot be read."""
    if source is None or (isinstance(source, str) and not source.strip()):
        raise ConfigError("no data set is named; set dataset to a Hub id, a path or 'demo'")
    if isinstance(source, LabelledData):
        return Found(source.rows, source.name, Columns(source.text_column, source.label_column))
    if isinstance(source, str | Path):
        return _find_by_name(source, config)
    name = f"the {type(source).__name__} in memory"
    if isinstance(source, DatasetDict):
        return take({split: rows.with_format(None) for split, rows in source.items()}, config, name)
    if isinstance(source, Dataset):
        return take(source.with_format(None), config, name)
    pandas_module = sys.modules.get("pandas")
    if pandas_module is not None and isinstance(source, pandas_module.DataFrame):
        return take(from_frame(source, config, name), config, name)
    if isinstance(source, Sequence) and not isinstance(source, bytes):
        return _from_rows(source, config, name)
    raise DataError(f"{name} holds no rows; give a Dataset, a DataFrame, a list of rows, a path or a Hub id")


def _from_rows(rows: Sequence[Any], config: DataConfig, name: str) -> Found:
    """Turn rows into two columns; a key that a later row lacks is null, as in JSON lines."""
    if not rows:
        raise DataError(f"{name} has no rows; {NO_ROWS}")
    pairs = isinstance(rows[0], tuple)
    for number, row in enumerate(rows):
        if not (isinstance(row, tuple) and len(row) == 2 if pairs else isinstance(row, Mapping)):
            wanted = "(text, label) pairs only" if pairs else "mappings only, or (text, label) pairs only"
            raise DataError(f"{name}, row {number} is {reprlib.repr(row)}; give {wanted}")
    if pairs:
        columns = Columns(config.text_column or "text", config.label_column or "label")
        values = [[row[0] for row in rows], [row[1] for row in rows]]
    else:
        keys = {str(key): key for key in rows[0]}
        columns = choose_columns(list(keys), config, name)
        values = [[row.get(keys[column]) for row in rows] for column in columns]
    return take(from_columns(dict(zip(columns, values, strict=True))), config, name)


def _find_by_name(source: str | Path, config: DataConfig) -> Found:
    if source == "demo":
        split = split_name(config)
        resource = importlib.resources.files("gradmm") / "assets" / "demo" / f"{split}.jsonl"
        if not resource.is_file():
            raise DataError(f"demo: no split {split!r}{nearest(split, ('train', 'test'))}")
        with importlib.resources.as_file(resource) as file:
            return from_file(file, config, "demo", ("negative", "positive"))
    path, name = expanded(source), str(source)
    if isinstance(source, str) and "://" in name:
        raise DataError(f"{name} is a URL, which is not read from; download the file, or give a Hub id")
    kind = kind_of(path, name)
    if kind == "folder":
        return _from_folder(path, config, name)
    if kind == "file":
        return from_file(path, config, name, config.label_names or names_beside(path))
    if isinstance(source, Path) or name[0] in "./~" or format_of(path):
        raise missing(path, name)
    return _from_hub(name, config)


def _from_hub(hub_id: str, config: DataConfig) -> Found:
    if hub_id in _PACKAGED_DATASETS_MODULES:  # the library would read every such file in the current folder
        raise DataError(f"{hub_id!r} is a file format, not a data set; give the path of the file")
    # The Hub client lets through what its HTTP library raises, and that library has changed before.
    try:
        rows = datasets.load_dataset(hub_id, config.name, split=config.split, keep_in_memory=False)
    except Exception as error:
        raise DataError(
            f"cannot load {hub_id!r} from the Hugging Face Hub ({said(error)}), and no file or folder here"
            " has that name; check the id, name and split, the network and HF_HUB_OFFLINE, or give a path"
        ) from error
    return two_columns(rows, config, hub_id)


def _from_folder(path: Path, config: DataConfig, name: str) -> Found:
    names_in(path, name)
    try:
        found = datasets.load_from_disk(str(path), keep_in_memory=False)
    except (*UNREADABLE, *_DAMAGED) as error:
        files = [file for file in names_in(path, name) if format_of(Path(file)) and file not in _NOT_ROWS]
        remedy = f"name a file in it: {listed(files)}" if files else "give a file, or save the data set again"
        raise DataError(f"{name} is not a whole folder of save_to_disk ({said(error)}); {remedy}") from error
    return take(dict(found) if isinstance(found, DatasetDict) else found, config, name)
