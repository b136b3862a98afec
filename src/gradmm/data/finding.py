"""Find the rows of any source: an object, the demo, a path or a Hub id."""

from __future__ import annotations

import importlib.resources
import os
import reprlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

from gradmm.data.columns import Found, split_name, take, two_columns
from gradmm.data.files import UNREADABLE, format_of, from_file, names_beside, said
from gradmm.data.rows import DataConfig, LabelledData
from gradmm.errors import ConfigError, DataError, listed, nearest

_NOT_ROWS = ("labels.json", "state.json", "dataset_info.json", "dataset_dict.json")


def find(source: object, config: DataConfig) -> Found:
    """Find the rows of any source; `ConfigError` if none is named, `DataError` if they cannot be read."""
    if source is None or (isinstance(source, str) and not source.strip()):
        raise ConfigError("no data set is named; set dataset to a Hub id, a path or 'demo'")
    if isinstance(source, LabelledData):
        return Found(source.rows, source.name)
    if isinstance(source, str | Path):
        return _find_by_name(source, config)
    name = f"the {type(source).__name__} in memory"
    if isinstance(source, DatasetDict):
        return take(dict(source), config, name)
    if isinstance(source, Dataset):
        return take(source.with_format(None), config, name)
    pandas_module = sys.modules.get("pandas")
    if pandas_module is not None and isinstance(source, pandas_module.DataFrame):
        frame = source.astype(object).where(source.notna(), None)
        columns = {str(column): frame[column].tolist() for column in frame}
    elif isinstance(source, Sequence) and not isinstance(source, bytes):
        columns = _columns_of(source, config, name)
    else:
        raise DataError(f"{name} holds no rows; give a Dataset, a DataFrame, a list of rows, a path or a Hub id")
    wanted = (config.text_column, config.label_column)
    nothing = [None] * max(map(len, columns.values()), default=0)
    kept = {column: values if column in wanted else nothing for column, values in columns.items()}
    return take(Dataset.from_dict(kept, on_mixed_types="use_json"), config, name)


def _columns_of(rows: Sequence[Any], config: DataConfig, name: str) -> dict[str, list[object]]:
    """Turn rows into columns; a key that a later row lacks is null, as in JSON lines."""
    pairs = not rows or isinstance(rows[0], tuple)
    for number, row in enumerate(rows):
        if not (isinstance(row, tuple) and len(row) == 2 if pairs else isinstance(row, Mapping)):
            wanted = "(text, label) pairs only" if pairs else "mappings only, or (text, label) pairs only"
            raise DataError(f"{name}, row {number} is {reprlib.repr(row)}; give {wanted}")
    if pairs:
        return {config.text_column: [row[0] for row in rows], config.label_column: [row[1] for row in rows]}
    return {str(key): [row.get(key) for row in rows] for key in rows[0]}


def _find_by_name(source: str | Path, config: DataConfig) -> Found:
    if source == "demo":
        split = split_name(config)
        resource = importlib.resources.files("gradmm") / "assets" / "demo" / f"{split}.jsonl"
        if not resource.is_file():
            raise DataError(f"demo: no split {split!r}{nearest(split, ('train', 'test'))}")
        with importlib.resources.as_file(resource) as file:
            return from_file(file, config, "demo", ("negative", "positive"))
    path, name = Path(source).expanduser(), str(source)
    if os.path.isdir(path):  # unlike Path.is_dir, False for a name too long to be a path
        return _from_folder(path, config, name)
    if os.path.exists(path):
        return from_file(path, config, name, config.label_names or names_beside(path))
    if isinstance(source, Path) or name[0] in "./~" or format_of(path):
        missing = next(part for part in (path, *path.parents) if part.parent.is_dir())
        hint = nearest(missing.name, [sibling.name for sibling in missing.parent.iterdir()])
        raise DataError(f"{name}: no {missing.name!r} in {missing.parent.absolute()}{hint}")
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
    return Found(two_columns(rows, config, hub_id), hub_id)


def _from_folder(path: Path, config: DataConfig, name: str) -> Found:
    try:
        found = datasets.load_from_disk(str(path), keep_in_memory=False)
    except UNREADABLE as error:
        files = [file.name for file in path.iterdir() if format_of(file) and file.name not in _NOT_ROWS]
        remedy = f"name a file in it: {listed(files)}" if files else "give a file, or save the data set again"
        raise DataError(f"{name} is not a whole folder of save_to_disk ({said(error)}); {remedy}") from error
    return take(dict(found) if isinstance(found, DatasetDict) else found, config, name)
