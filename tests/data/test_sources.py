"""`gradmm.data.sources`: every format gives the same rows, and every fault its own message."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradmm.data import mapped
from gradmm.data.sources import DataConfig, LabelledData, load_data
from gradmm.errors import DataError

Row = tuple[str, int]
NAMES = ("negative", "positive")
ROWS: list[Row] = [
    ("plain", 1),
    ('with "quotes", and a comma', 0),
    ("two\nlines and a\ttab", 1),
    ("NA", 0),
    ("007", 1),
    (" café ☕ 電影 ", 0),
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


# ---- every format


def _delimited(rows: list[Row], separator: str) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=separator)
    writer.writerows([("text", "label"), *rows])
    return stream.getvalue().encode()


def _records(rows: list[Row]) -> list[dict[str, object]]:
    return [{"text": text, "label": label} for text, label in rows]


def _dataset(rows: list[Row]) -> Dataset:
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(NAMES))})
    return Dataset.from_list(_records(rows), features=features)


def _json_lines(rows: list[Row]) -> bytes:
    return "\n".join(json.dumps(record) for record in _records(rows)).encode()


def _table(rows: list[Row]) -> pa.Table:
    return pa.table({"label": [label for _, label in rows], "text": [text for text, _ in rows]})


def _parquet(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


def _arrow(new: Callable[..., pa.RecordBatchWriter], table: pa.Table) -> bytes:
    stream = io.BytesIO()
    with new(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


FILES: dict[str, Callable[[list[Row]], bytes]] = {
    ".csv": lambda rows: _delimited(rows, ","),
    ".tsv": lambda rows: _delimited(rows, "\t"),
    ".json": lambda rows: json.dumps(_records(rows), indent=1).encode(),
    ".jsonl": _json_lines,
    ".parquet": lambda rows: _parquet(_table(rows)),
    ".arrow": lambda rows: _arrow(pa.ipc.new_stream, _table(rows)),
}
SMALLER: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda content: gzip.compress(content, mtime=0),
    ".zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}
OBJECTS: dict[str, Callable[[list[Row]], object]] = {
    "Dataset": _dataset,
    "DatasetDict": lambda rows: DatasetDict({"train": _dataset(rows), "test": _dataset(rows[:1])}),
    "DataFrame": lambda rows: pd.DataFrame(_records(rows)),
    "DataFrame of categories": lambda rows: pd.DataFrame(_records(rows)).astype({"label": "category"}),
    "mappings": _records,
    "tuples": lambda rows: rows,
    "tuples of names": lambda rows: [(text, NAMES[label]) for text, label in rows],
    "tuples of truth values": lambda rows: [(text, label == 1) for text, label in rows],
    "tuples of whole floats": lambda rows: [(text, float(label)) for text, label in rows],
    "tuples of numpy labels": lambda rows: [(text, np.int8(label)) for text, label in rows],
    "LabelledData": lambda rows: load_data(_dataset(rows)),
}
PACKED = [f"{suffix}{packed}" for suffix in FILES for packed in SMALLER]
FORMATS = [*FILES, *PACKED, "folder", "folder of splits", *OBJECTS]


def _source(form: str, rows: list[Row], folder: Path) -> object:
    if form in OBJECTS:
        return OBJECTS[form](rows)
    path = folder / f"rows{form}"
    if form == "folder":
        _dataset(rows).save_to_disk(path)
    elif form == "folder of splits":
        DatasetDict({"train": _dataset(rows)}).save_to_disk(path)
    else:
        packed = path.suffix if path.suffix in SMALLER else ""
        content = FILES[form.removesuffix(packed)](rows)
        path.write_bytes(SMALLER[packed](content) if packed else content)
    return str(path)


def _write(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def _pairs(data: LabelledData) -> list[Row]:
    return [(row["text"], row["label"]) for row in data.rows]


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_loads_to_the_same_rows(form: str, tmp_path: Path) -> None:
    data = load_data(_source(form, ROWS, tmp_path), DataConfig(label_names=NAMES))
    assert _pairs(data) == ROWS
    assert data.fingerprint() == load_data(_dataset(ROWS)).fingerprint()
    assert data.rows.features == Features({"text": Value("string"), "label": ClassLabel(names=list(NAMES))})
    assert (len(data), data.num_classes, data.label_names, data.counts()) == (6, 2, NAMES, [3, 3])


def _is_said(text: str) -> bool:
    return not text.isspace() and "\0" not in text  # NUL ends a cell for the CSV reader


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(min_size=1).filter(_is_said), min_size=2, max_size=8),
    form=st.sampled_from([".csv", ".tsv.gz", ".json", ".jsonl"]),
)
def test_any_text_survives_any_file(texts: list[str], form: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = [(text, n % 2) for n, text in enumerate(texts)]
    assert _pairs(load_data(_source(form, rows, tmp_path_factory.mktemp("rows")))) == rows


def test_demo_data_load() -> None:
    for split in ("train", "test"):
        data = load_data("demo", DataConfig(split=split))
        assert (len(data), data.label_names, data.name) == (240, NAMES, "demo")


@pytest.mark.parametrize("write", [pa.ipc.new_stream, pa.ipc.new_file])
def test_both_formats_of_arrow_files(write: Callable[..., pa.RecordBatchWriter], tmp_path: Path) -> None:
    table = _table(ROWS).cast(pa.schema({"label": pa.int8(), "text": pa.large_string()}))
    assert _pairs(load_data(_write(tmp_path, "rows.arrow", _arrow(write, table)))) == ROWS


def test_categories_in_a_parquet_file(tmp_path: Path) -> None:
    frame = pd.DataFrame({"label": ["b", "a", "b"], "text": ["x", "y", "z"]})
    frame.astype({"label": "category"}).to_parquet(tmp_path / "rows.parquet")
    data = load_data(tmp_path / "rows.parquet")
    assert (data.label_names, _pairs(data)) == (("a", "b"), [("x", 1), ("y", 0), ("z", 1)])


@pytest.mark.parametrize("form", [".csv", ".json", ".jsonl.gz", ".parquet", ".arrow.zst"])
def test_texts_of_a_file_stay_on_the_disk_and_no_copy_is_left(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory that Arrow holds afterwards is that of the labels, and every folder that was used is empty."""
    rows = [(f"a text of some forty characters, number {n}", n % 2) for n in range(20_000)]
    source = _source(form, rows, tmp_path)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    before = pa.total_allocated_bytes()
    data = load_data(source)
    assert pa.total_allocated_bytes() - before <= 8 * len(rows) + 4096
    assert not list((tmp_path / "scratch").iterdir())
    assert not [path for path in datasets.config.HF_DATASETS_CACHE.rglob("*") if path.is_file()]
    assert _pairs(data) == rows


def test_the_folder_of_chosen_rows_is_not_written_to(tmp_path: Path) -> None:
    _dataset(ROWS).save_to_disk(tmp_path / "rows")
    chosen = datasets.load_from_disk(tmp_path / "rows").select([5, 0, 3])
    before = sorted(path.name for path in (tmp_path / "rows").iterdir())
    assert _pairs(load_data(chosen)) == [ROWS[5], ROWS[0], ROWS[3]]
    assert sorted(path.name for path in (tmp_path / "rows").iterdir()) == before


def test_loaded_rows_can_be_pickled_and_mapped(tmp_path: Path) -> None:
    data = load_data(_source(".jsonl", ROWS, tmp_path))
    again = pickle.loads(pickle.dumps(data.rows))  # noqa: S301
    assert LabelledData(again, data.name).fingerprint() == data.fingerprint()
    assert data.rows.map(lambda row: {"text": row["text"] * 2})["text"][:] == [text * 2 for text, _ in ROWS]


@pytest.mark.parametrize("form", [".csv", ".jsonl.gz"])
def test_a_rewritten_file_is_read_again(form: str, tmp_path: Path) -> None:
    for rows in (ROWS, ROWS[::-1]):
        assert _pairs(load_data(_source(form, rows, tmp_path))) == rows


def test_a_path_may_hold_wildcards_and_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a [1]*"
    folder.mkdir()
    assert _pairs(load_data(_source(".jsonl", ROWS, folder))) == ROWS
    monkeypatch.setenv("HOME", str(folder))
    assert _pairs(load_data("~/rows.jsonl")) == ROWS
    monkeypatch.chdir(folder)
    assert _pairs(load_data("rows.jsonl")) == ROWS
    assert _pairs(load_data(None, DataConfig(dataset="rows.jsonl"))) == ROWS


def test_progress_bars_are_silent_only_inside(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert not datasets.are_progress_bars_disabled()
    with pytest.raises(DataError):
        load_data(_write(tmp_path, "broken.parquet", b"PAR1"))
    load_data(_source(".jsonl", ROWS, tmp_path))
    assert not datasets.are_progress_bars_disabled()
    assert capfd.readouterr() == ("", "")


# ---- which classes, which rows


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        ([4, 1, 10], ("1", "4", "10"), [1, 0, 2]),
        (["4", "1", "10"], ("1", "4", "10"), [1, 0, 2]),
        (["sad", "joy", "sad"], ("joy", "sad"), [1, 0, 1]),
        ([True, False, True], ("false", "true"), [1, 0, 1]),
        (["True", "FALSE", "true"], ("false", "true"), [1, 0, 1]),
        ([1.0, 0.0, 10.0], ("0", "1", "10"), [1, 0, 2]),
        (["1.0", "0.0", "10.0"], ("0", "1", "10"), [1, 0, 2]),
        (["1.5", "0.0", "1.5"], ("0.0", "1.5"), [1, 0, 1]),
        (["true", "no", "true"], ("no", "true"), [1, 0, 1]),
    ],
)
def test_labels_name_the_classes(labels: list[object], names: tuple[str, ...], numbers: list[int]) -> None:
    data = load_data([("x", label) for label in labels])
    assert (data.label_names, data.rows["label"][:]) == (names, numbers)


def test_label_names_come_from_config_then_class_label_then_the_file_beside(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('["bad", "good"]')
    path = _source(".jsonl", ROWS, tmp_path)
    assert load_data(path).label_names == ("bad", "good")
    assert load_data(path, DataConfig(label_names=NAMES)).label_names == NAMES
    _dataset(ROWS).to_parquet(tmp_path / "typed.parquet")
    assert load_data(tmp_path / "typed.parquet").label_names == NAMES
    assert load_data(_dataset(ROWS), DataConfig(label_names=("a", "b"))).label_names == ("a", "b")


def test_classes_are_kept_in_the_order_given() -> None:
    rows = [("a", "x"), ("b", "y"), ("c", "z"), ("d", "x"), ("", "y")]
    data = load_data(rows, DataConfig(classes=("z", "x")))
    assert (data.label_names, _pairs(data)) == (("z", "x"), [("a", 1), ("c", 0), ("d", 1)])


def test_columns_are_renamed_even_when_swapped() -> None:
    rows = [{"label": text, "text": label} for text, label in ROWS]
    assert _pairs(load_data(rows, DataConfig(text_column="label", label_column="text"))) == ROWS
    data = load_data(ROWS, DataConfig(text_column="label", label_column="text"))
    assert (_pairs(data), data.text_column, data.label_column) == (ROWS, "label", "text")


def test_splits_and_slices(tmp_path: Path) -> None:
    splits = DatasetDict({"train": _dataset(ROWS), "test": _dataset(ROWS[:2])})
    assert _pairs(load_data(splits, DataConfig(split="test"))) == ROWS[:2]
    assert _pairs(load_data(splits, DataConfig(split="train[-3:]+test"))) == ROWS[-3:] + ROWS[:2]
    assert _pairs(load_data(_source(".csv", ROWS, tmp_path), DataConfig(split="any[:50%]"))) == ROWS[:3]


def _many(counts: tuple[int, ...] = (20, 30, 7)) -> LabelledData:
    rows = [(f"class {c} row {n}", c) for c, count in enumerate(counts) for n in range(count)]
    return load_data([rows[n] for n in np.random.default_rng(1).permutation(len(rows))])


@given(st.lists(st.integers(0, 11), min_size=2, max_size=20), st.integers(1, 12), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_chosen_rows_keep_their_order_whatever_their_chunks(numbers: list[int], cut: int, batch: int) -> None:
    rows = _dataset([(f"row {n}", n % 2) for n in range(12)])
    pieces = [rows.select(range(s, min(s + cut, 12))) for s in range(0, 12, cut)]
    chosen = datasets.concatenate_datasets(pieces).select([*numbers, 0, 1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapped, "BATCH", batch)
        assert _pairs(load_data(chosen)) == [(f"row {n}", n % 2) for n in [*numbers, 0, 1]]


def test_a_shuffled_selection_keeps_its_own_order() -> None:
    shuffled = _dataset(ROWS).shuffle(seed=3)
    assert _pairs(load_data(shuffled)) == list(zip(shuffled["text"], shuffled["label"], strict=True))


def test_max_rows_per_class_takes_at_most_that_many() -> None:
    whole = _many()
    cut = load_data(whole, DataConfig(max_rows_per_class=10, seed=1))
    assert cut.counts() == [10, 10, 7]
    assert set(_pairs(cut)) < set(_pairs(whole))
    assert _pairs(cut) != _pairs(load_data(whole, DataConfig(max_rows_per_class=10, seed=2)))


@given(n=st.integers(1, 7), seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_sample_is_reproducible_and_without_replacement(n: int, seed: int) -> None:
    whole = _many()
    drawn = whole.sample(n, seed)
    assert drawn.counts() == [n, n, n]
    assert len(set(_pairs(drawn))) == 3 * n
    assert _pairs(drawn) == [row for row in _pairs(whole) if row in set(_pairs(drawn))]
    assert drawn.fingerprint() == whole.sample(n, seed).fingerprint()
    assert set(_pairs(drawn)) <= set(_pairs(whole.sample(7, seed)))


@given(batch_size=st.integers(1, 40), label=st.integers(0, 2))
@settings(max_examples=20, deadline=None)
def test_iter_batches_streams_every_row_once_in_order(batch_size: int, label: int) -> None:
    data = _many().sample(7, 0)
    batches = list(data.iter_batches(label, batch_size))
    expected = [text for text, of in _pairs(data) if of == label]
    assert [text for batch in batches for text in batch] == expected == data.texts_of(label)
    assert all(len(batch) == batch_size for batch in batches[:-1])


@given(st.lists(st.sampled_from(["a", "ab", "b", "é", "電"]), min_size=2, max_size=6), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_fingerprint_depends_on_rows_alone(texts: list[str], cut: int) -> None:
    """Not on chunks, on offsets into them or on a selection; it is that of a slow and obvious definition."""
    labels = [n % 2 for n in range(len(texts))]
    parts = (
        b"".join(label.to_bytes(8, "little") for label in labels),
        b"".join(len(text.encode()).to_bytes(8, "little") for text in texts),
        "".join(texts).encode(),
    )
    slow = ["gradmm-data-2", NAMES, *(hashlib.sha256(part).hexdigest() for part in parts)]
    rows = _dataset(list(zip(texts, labels, strict=True)))
    pieces = [rows.select(range(s, min(s + cut, len(rows)))) for s in range(0, len(rows), cut)]
    backwards = _dataset(list(zip(texts, labels, strict=True))[::-1])
    for same in (rows, datasets.concatenate_datasets(pieces), backwards.select(range(len(rows))[::-1])):
        assert LabelledData(same, "rows").fingerprint() == hashlib.sha256(json.dumps(slow).encode()).hexdigest()


def test_fingerprint_sees_names_texts_labels_and_order() -> None:
    seen = {
        load_data(rows, DataConfig(label_names=names)).fingerprint()
        for rows in (ROWS, ROWS[::-1], [("changed", 1), *ROWS[1:]], [(ROWS[0][0], 0), *ROWS[1:]])
        for names in (NAMES, NAMES[::-1])
    }
    assert len(seen) == 8
