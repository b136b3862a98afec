"""Rows in files that have no name any more.

A file that is mapped into memory can be deleted: the rows stay readable, page by page, until nothing refers to
them, and then the disk space is free. So a copy of a user's rows outlives neither the process nor a SIGKILL.
(Where a mapped file cannot be deleted, on Windows, its folder stays in the temporary folder.)
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetInfo, Value

from gradmm.data.rows import BATCH, Indices


@contextmanager
def scratch() -> Iterator[Path]:
    """Make a folder that only the user can read, under TMPDIR, for as long as the block lasts."""
    with TemporaryDirectory(prefix="gradmm-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def detached(rows: Dataset) -> Dataset:
    """Take over the mapped pages of `rows` without the name of their file, which can then be deleted."""
    return as_dataset(rows.data.table, rows.info)


def as_dataset(table: pa.Table, info: DatasetInfo | None = None) -> Dataset:
    """Make a `Dataset` of a table, unlike its constructor without reading the table to hash it."""
    return Dataset(table, info=info, fingerprint=uuid.uuid4().hex)


def stored(batches: Iterable[pa.Table], schema: pa.Schema) -> Dataset:
    """Write batches into a mapped file, one at a time.

    Args:
        batches: Tables with the columns of `schema`, in any order.
        schema: What their columns are cast to.
    """
    with scratch() as folder:
        path = str(folder / "rows.arrow")
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for batch in batches:
                writer.write_table(batch.select(schema.names).cast(schema))
        with pa.memory_map(path) as file:
            return as_dataset(pa.ipc.open_stream(file).read_all())


def in_order(rows: Dataset) -> Dataset:
    """Copy rows that were shuffled or selected into a mapped file, in their own order; others stay as they are.

    `datasets` gathers such rows one by one, every time that they are read.
    """
    if rows._indices is None:
        return rows
    numbers = rows._indices.column(0).to_numpy().astype(np.int64)
    table = rows.data.table.select(rows.column_names)
    starts = range(0, len(numbers), BATCH)
    return stored((_gather(table, numbers[s : s + BATCH]) for s in starts), rows.features.arrow_schema)


def _gather(table: pa.Table, numbers: Indices) -> pa.Table:
    """Take rows in the order of their numbers (n); unlike `Table.take` it never joins the chunks of the table."""
    order = np.argsort(numbers, kind="stable")
    ascending, pieces, start = numbers[order], [], 0
    for batch in table.to_batches():
        first, last = np.searchsorted(ascending, [start, start + len(batch)])
        if first < last:
            pieces.append(batch.take(pa.array(ascending[first:last] - start)))
        start += len(batch)
    return pa.Table.from_batches(pieces).combine_chunks().take(pa.array(np.argsort(order)))


def filtered(rows: Dataset, kept: Indices) -> Dataset:
    """Copy the rows of the numbers `kept` (n), which ascend, into a mapped file; all rows stay as they are."""
    if len(kept) == len(rows):
        return rows
    mask = np.zeros(len(rows), bool)
    mask[kept] = True
    batches = _batches(rows)
    return stored(
        (batch.filter(pa.array(mask[s : s + len(batch)])) for s, batch in batches), rows.features.arrow_schema
    )


def _batches(rows: Dataset) -> Iterator[tuple[int, pa.Table]]:
    """Iterate over tables of some rows each, with the number of the first."""
    start = 0
    for batch in rows.with_format("arrow").iter(batch_size=BATCH):
        yield start, batch
        start += len(batch)


def plain_texts(rows: Dataset) -> Dataset:
    """Take the column `text` as plain strings; large ones are copied into a mapped file."""
    texts = rows.select_columns("text")
    if texts.features["text"] == Value("string"):
        return texts
    return stored((batch for _, batch in _batches(texts)), pa.schema({"text": pa.string()}))
