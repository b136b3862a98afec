"""Read the two columns of a Parquet or Arrow file, a batch of rows at a time.

`datasets` reads a row group at once, which is often the whole file, and every column of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features

from gradmm.data.columns import choose_columns
from gradmm.data.mapped import stored
from gradmm.data.rows import DataConfig

_BATCH = 1000
_BUFFER = 1 << 20
_BYTES = {"string": pa.binary(), "large_string": pa.large_binary()}


def _from_parquet(path: Path, config: DataConfig, name: str) -> Dataset:
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER) as file:
        columns = choose_columns(file.schema_arrow.names, config, name)
        batches = file.iter_batches(_BATCH, columns=list(columns), use_threads=False)
        return stored(map(_table, batches), _schema(file.schema_arrow, columns))


def _from_arrow(path: Path, config: DataConfig, name: str) -> Dataset:
    """Read the streaming format, which `datasets` writes, or the file format, which others do."""
    with pa.memory_map(str(path)) as file:
        if file.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(file)
            batches: Iterable[pa.RecordBatch] = map(reader.get_batch, range(reader.num_record_batches))
        else:
            file.seek(0)
            reader = batches = pa.ipc.open_stream(file)
        columns = choose_columns(reader.schema.names, config, name)
        checked = (_table(batch.select(list(columns))) for batch in batches)
        return stored(checked, _schema(reader.schema, columns))


COLUMNAR: dict[str, Callable[[Path, DataConfig, str], Dataset]] = {
    "parquet": _from_parquet,
    "arrow": _from_arrow,
}
"""The readers, by format; each may raise `DataError`, `OSError` and pyarrow's own errors."""


def _table(batch: pa.RecordBatch) -> pa.Table:
    """Make a table of a batch; its offsets are checked, for a wrong one would end the process, UTF-8 later."""
    for column in batch.columns:
        bytes_of = _BYTES.get(str(column.type))
        (column.view(bytes_of) if bytes_of else column).validate(full=True)
    return pa.Table.from_batches([batch])


def _schema(schema: pa.Schema, columns: Iterable[str]) -> pa.Schema:
    """Make the schema of the columns alone: plain strings, no dictionaries; a `ClassLabel` keeps its names."""
    plain = pa.schema({column: _plain(schema.field(column).type) for column in columns})
    marked = Features.from_arrow_schema(schema) if b"huggingface" in (schema.metadata or {}) else {}
    names = {column: marked[column] for column in columns if isinstance(marked.get(column), ClassLabel)}
    return Features({**Features.from_arrow_schema(plain), **names}).arrow_schema if names else plain


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.string() if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else kind
