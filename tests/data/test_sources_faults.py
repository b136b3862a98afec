"""`gradmm.data.sources`: every fault has its own message."""

from __future__ import annotations

import errno
import gzip
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from pydantic import ValidationError

from gradmm.data.sources import DataConfig, LabelledData, load_data
from gradmm.errors import ConfigError, DataError

Row = tuple[str, int]
NAMES = ("negative", "positive")
ROWS: list[Row] = [(f"row {n}", n % 2) for n in range(6)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def _records(rows: list[Row]) -> list[dict[str, object]]:
    return [{"text": text, "label": label} for text, label in rows]


def _dataset(rows: list[Row]) -> Dataset:
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(NAMES))})
    return Dataset.from_list(_records(rows), features=features)


def _write(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def _pairs(data: LabelledData) -> list[Row]:
    return [(row["text"], row["label"]) for row in data.rows]


GOOD = b'{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n'
ZIPPED = gzip.compress(b"".join(b'{"text": "%d", "label": %d}\n' % (n, n % 2) for n in range(9000)), mtime=0)
PACKED = pa.Codec("zstd").compress(GOOD, asbytes=True)
HEAD = b"text,label\n"
NO_TEXT = "text is missing (null); remove the row or give its text"
NO_STRING = "not a string; choose another text_column or convert it"
NO_LABEL = "label is missing; remove the row or give its label"
EMPTY = "text is empty; remove the row or give its text"
NO_ROWS = "; give at least one row of every class"
MIXED = "; give whole numbers only or words only"
KNOWN = "; known: .arrow, .csv, .json, .jsonl, .parquet, .tsv; each also with .gz or .zst"
CUT = "Compressed file ended before the end-of-stream marker was reached"
MAGIC = "Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file."
TEXT = "; let its name end in .csv, .tsv, .json or .jsonl"
TOKENIZING = " cannot be read (Error tokenizing data. C error: "


def _row(number: int, fault: str) -> str:
    return f", row {number} (counted from 0): {fault}"


BAD_FILES: list[tuple[str, bytes, str]] = [
    ("x.txt", GOOD, f": unknown extension '.txt'{KNOWN}"),
    ("x.txt.gz", GOOD, f": unknown extension '.txt.gz'{KNOWN}"),
    ("x.jsonl.gz.zst", GOOD, f": unknown extension '.jsonl.gz.zst'{KNOWN}"),
    ("x.jsonl", b"", f" has no rows{NO_ROWS}"),
    ("x.csv", b"", f" has no rows{NO_ROWS}"),
    ("x.jsonl.gz", gzip.compress(b"", mtime=0), f" has no rows{NO_ROWS}"),
    ("x.csv", HEAD, f" has no rows{NO_ROWS}"),
    ("x.json", b"[]", f" has no rows{NO_ROWS}"),
    ("x.jsonl", b"\n\n", f" has no rows{NO_ROWS}"),
    (
        "x.jsonl",
        GOOD * 9000 + b'{"te\n' + GOOD,
        ", line 18001: not JSON (Unterminated string starting at, column 2); mend the file",
    ),
    ("x.jsonl", GOOD + b'["c", 1]\n', ", line 3: not a JSON object; write one object a line"),
    (
        "x.json",
        b'[{"text": "a"},\n {"text" "b"}]',
        ", line 2: not JSON (Expecting ':' delimiter, column 10); mend the file",
    ),
    (
        "x.jsonl",
        GOOD + b'{"text": "\xff", "label": 1}\n',
        _row(2, "text is not UTF-8; save the data as UTF-8"),
    ),
    (
        "x.jsonl",
        b'{"text": "a", "label": "c"}\n{"text": "b", "label": "\xff"}\n',
        _row(1, "label is not UTF-8; save the data as UTF-8"),
    ),
    ("x.csv", HEAD + b"a,0\n\xff,1\n", ", line 3: not UTF-8 (invalid start byte); save the file as UTF-8"),
    ("x.jsonl.gz", ZIPPED[:-99], f": damaged gzip file ({CUT}); copy or compress it again"),
    ("x.csv.gz", ZIPPED[:-99], f": damaged gzip file ({CUT}); copy or compress it again"),
    ("x.jsonl.gz", GOOD, f" is named as gzip but holds text{TEXT}"),
    ("x.jsonl.zst", PACKED[:-4], ": damaged zstd file (Truncated compressed stream); copy or compress it again"),
    ("x.arrow.zst", ZIPPED, " is named as Zstandard but holds gzip; add .gz to its name"),
    ("x.jsonl", ZIPPED, " is named as JSON but holds gzip; add .gz to its name"),
    ("x.jsonl", PACKED, " is named as JSON but holds Zstandard; add .zst to its name"),
    ("x.csv", b"PAR1PAR1PAR1", " is named as CSV but holds Parquet; let its name end in .parquet"),
    (
        "x.csv.gz",
        gzip.compress(b"PAR1PAR1", mtime=0),
        " is named as CSV but holds Parquet; let its name end in .parquet",
    ),
    ("x.csv", b"PK\x03\x04", " is named as CSV but holds a ZIP archive or an Excel workbook; give a file of rows"),
    ("x.jsonl", b"\x89PNG\r\n", " is named as JSON but holds a PNG image; give a file of rows"),
    ("x.csv", b"\n<!DOCTYPE HTML>", " is named as CSV but holds an HTML page; give a file of rows"),
    ("x.csv", GOOD, " is named as CSV but holds JSON; let its name end in .json or .jsonl"),
    ("x.csv", "text,label\na,0\n".encode("utf-16"), " is named as CSV but holds UTF-16 text; save it as UTF-8"),
    (
        "x.csv",
        "text,label\na,0\n".encode("utf-16-le"),
        " is named as CSV but holds UTF-16 text or binary data; save it as UTF-8",
    ),
    ("x.parquet", GOOD, f" is named as Parquet but holds text{TEXT}"),
    ("x.arrow", "é電".encode() * 999, f" is named as Arrow but holds text{TEXT}"),
    (
        "x.arrow",
        b"\xfe12345678",
        " is named as Arrow but holds something else (it begins with b'\\xfe1234567'); give a file of rows",
    ),
    (
        "x.parquet",
        b"version https://git-lfs.github.com/spec/v1",
        " is named as Parquet but holds a Git LFS pointer; fetch the file itself with `git lfs pull`",
    ),
    ("x.arrow", b"ARROW1" + bytes(99), " cannot be read (Not an Arrow file); mend the file"),
    ("x.parquet", b"", f" has no rows{NO_ROWS}"),
    ("x.arrow.zst", b"", f" has no rows{NO_ROWS}"),
    ("x.csv", b"text;label\na;0\n", ", line 1 has no ',' between columns but ';'; save it with commas"),
    ("x.csv", b"text\tlabel\na\t0\n", ", line 1 has no ',' between columns but '\\t'; let its name end in .tsv"),
    ("x.tsv", b"text,label\na,0\n", ", line 1 has no '\\t' between columns but ','; let its name end in .csv"),
    (
        "x.csv",
        b"a" * 999 + b",label\na,0\n",
        f": no usual column of texts among {'a' * 37}..., label; set text_column (--text-column) to one of them",
    ),
    ("x.parquet", b"PAR1PAR1PAR2", f" cannot be read ({MAGIC}); mend the file"),
    ("x.csv", HEAD + b"a,0\nb, c,1\n", f"{TOKENIZING}Expected 2 fields in line 3, saw 3); mend the file"),
    ("x.csv", HEAD + b"b, c,1\na, d,0\n", f"{TOKENIZING}Expected 2 fields in line 2, saw 3); mend the file"),
    ("x.csv", HEAD + b'"a,0\nb,1\n', f"{TOKENIZING}EOF inside string starting at row 1); mend the file"),
    (
        "x.csv",
        b"text,text,label\na,b,0\n",
        ": more than one column is named 'text'; rename all but one of them",
    ),
    (
        "x.csv",
        b"a good film,1\na bad film,0\n",
        ": no usual column of texts among 1, a good film; set text_column (--text-column) to one of them",
    ),
    (
        "x.csv",
        b"text,lable\na,0\n",
        ": no usual column of labels among lable, text; set label_column (--label-column) to one of them;"
        " did you mean 'lable'?",
    ),
    ("x.csv", HEAD + b"a,0\n,1\n", _row(1, EMPTY)),
    ("x.csv", HEAD + b"a,0\nb\n", _row(1, NO_LABEL)),
    ("x.jsonl", GOOD + b'{"text": "c"}\n', _row(2, NO_LABEL)),
    ("x.jsonl", GOOD + b'{"label": 1}\n', _row(2, NO_TEXT)),
    ("x.jsonl", GOOD + b'{"text": 3, "label": 1}\n', _row(2, f"text is 3 (int), {NO_STRING}")),
    ("x.jsonl", GOOD + b'{"text": "c", "label": "d"}\n', _row(2, f"label is 'd', after 0 in row 0{MIXED}")),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_bad_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = _write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        load_data(str(path))
    assert str(caught.value) == f"{path}{message}"


GIVEN = DataConfig(label_names=("bad", "good"))
NEGATIVE = "label is -1, which marks a row without a label; remove the row, or count the classes from 0"
UNKNOWN = "an unknown label; mend it or set label_names"
BAD_ROWS: list[tuple[list[object], DataConfig, str]] = [
    ([], GIVEN, f" has no rows{NO_ROWS}"),
    ([("a", 0), (None, 1)], GIVEN, _row(1, NO_TEXT)),
    ([(None, 0), (None, 1)], GIVEN, _row(0, NO_TEXT)),
    ([("a", 0), ("", 1)], GIVEN, _row(1, EMPTY)),
    ([("a", 0), (" \t\u2003", 1)], GIVEN, _row(1, EMPTY.replace("empty", "only white space"))),
    ([("a", 0), (5, 1)], GIVEN, _row(1, f"text is 5 (int), {NO_STRING}")),
    ([(5, 0), (6, 1)], GIVEN, _row(0, f"text is 5 (int), {NO_STRING}")),
    ([("a", 0), ("b", None)], GIVEN, _row(1, NO_LABEL)),
    ([("a", "bad"), ("b", " ")], GIVEN, _row(1, NO_LABEL)),
    (
        [("a", 0), ("b", 2)],
        GIVEN,
        _row(1, "label is 2, but the 2 label names count from 0 (bad, good); mend it or set label_names"),
    ),
    ([("a", 0), ("b", -1)], GIVEN, _row(1, NEGATIVE)),
    ([("a", 1), ("b", -1)], DataConfig(), _row(1, NEGATIVE)),
    ([("a", "bad"), ("b", "goood")], GIVEN, _row(1, f"label is 'goood', {UNKNOWN}; did you mean 'good'?")),
    ([("a", "bad"), ("b", "1")], GIVEN, _row(1, f"label is '1', {UNKNOWN}; known: bad, good")),
    ([("a", 0.0), ("b", 0.5)], GIVEN, _row(1, "label is 0.5; give whole numbers or words")),
    ([("a", 0.0), ("b", float("nan"))], GIVEN, _row(1, "label is nan; give whole numbers or words")),
    ([("a", 0.0), ("b", float("inf"))], GIVEN, _row(1, "label is inf; give whole numbers or words")),
    ([("a", 0), ("b", True)], GIVEN, _row(1, f"label is True, after 0 in row 0{MIXED}")),
    (
        [("a", 1), ("b", 0)],
        DataConfig(label_names=("1", "0")),
        ": label 1 is the name of one class and the number of another; use words in label_names",
    ),
    ([("a", 0)], GIVEN, ": class 'good' has no rows; add some, or set classes to those that have rows (bad)"),
    ([("a", 0)], DataConfig(), " has only the class '0'; give rows of at least two classes"),
    (
        [("a", "x"), ("b", "y")],
        DataConfig(classes=("X", "y")),
        ": classes asks for 'X', which is no class; did you mean 'x'?",
    ),
    (
        [("a", "x"), ("b", "y")],
        DataConfig(classes=("y", "z")),
        ": classes asks for 'z', which is no class; known: x, y",
    ),
    ([("a", 0), ("b", 1)], DataConfig(split="train[:1"), ": no split 'train[:1'; did you mean 'train'?"),
    ([("a", 0), ("b", 1)], DataConfig(split="train+test"), ": no split 'train+test'; did you mean 'train'?"),
    ([("a", 0), ("b", 1, 2)], GIVEN, ", row 1 is ('b', 1, 2); give (text, label) pairs only"),
    (["a", "b"], GIVEN, ", row 0 is 'a'; give mappings only, or (text, label) pairs only"),
]


@pytest.mark.parametrize(("rows", "config", "message"), BAD_ROWS)
def test_bad_rows(rows: list[object], config: DataConfig, message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data(rows, config)
    assert str(caught.value) == f"the list in memory{message}"


def test_the_row_named_is_the_one_in_the_source() -> None:
    rows = [("a", "x"), ("b", "y"), ("c", "z"), ("", "x")]
    with pytest.raises(DataError, match=re.escape("row 3 (counted from 0): text is empty")):
        load_data(rows, DataConfig(classes=("z", "x")))


def test_a_data_frame_with_a_missing_label_says_so() -> None:
    with pytest.raises(
        DataError, match=re.escape("the DataFrame in memory, row 1 (counted from 0): label is missing")
    ):
        load_data(pd.DataFrame({"text": ["a", "b"], "label": [1, None]}))


def test_a_data_frame_with_odd_columns() -> None:
    twice = pd.DataFrame([["a", "b", 0]], columns=["text", "text", "label"])
    with pytest.raises(DataError, match=r"more than one column is named 'text'; rename all but one of them$"):
        load_data(twice)
    mixed = pd.DataFrame({"text": ["a", 3], "label": [0, 1]})
    with pytest.raises(DataError, match=re.escape(_row(1, f"text is 3 (int), {NO_STRING}"))):
        load_data(mixed)
    numbered = pd.DataFrame({0: ["a", "b"], 1: pd.array([True, False])})
    config = DataConfig(text_column="0", label_column="1")
    assert _pairs(load_data(numbered, config)) == [("a", 1), ("b", 0)]


def test_missing_paths_name_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    _write(tmp_path / "data", "train.jsonl", GOOD)
    cases = {
        tmp_path / "data/trian.jsonl": f"no 'trian.jsonl' in {tmp_path}/data; did you mean 'train.jsonl'?",
        tmp_path / "daat/train.jsonl": f"no 'daat' in {tmp_path}; did you mean 'data'?",
        tmp_path / "else": f"no 'else' in {tmp_path}; known: data",
        tmp_path / "data/train.jsonl/x": f"{tmp_path}/data/train.jsonl is a file, not a folder; name a file in a"
        " folder",
    }
    for path, message in cases.items():
        with pytest.raises(DataError) as caught:
            load_data(str(path))
        assert str(caught.value) == f"{path}: {message}"


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "broken.csv").symlink_to("gone.csv")
    not_read = ", which is not read from; write the rows into a file first"
    cases = {
        tmp_path / "pipe.csv": f" is a named pipe{not_read}",
        Path("/dev/zero"): f" is a device{not_read}",
        tmp_path / "broken.csv": " is a link to 'gone.csv', which is not there; mend the link",
    }
    for path, message in cases.items():
        with pytest.raises(DataError) as caught:
            load_data(path)
        assert str(caught.value) == f"{path}{message}"


def test_what_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read anything, so the refusal is played."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    path = _write(tmp_path, "x.jsonl", GOOD)
    cases = [
        ("os.listdir", tmp_path, f": {tmp_path} cannot be listed (Permission denied); see to its permissions"),
        (
            "os.listdir",
            tmp_path / "y",
            f": {tmp_path} cannot be listed (Permission denied); see to its permissions",
        ),
        ("os.stat", path, " cannot be looked at (Permission denied); see to the permissions"),
        (
            "gradmm.data.files.check_content",
            path,
            " cannot be read ([Errno 13] Permission denied); see to its permissions and to the space in"
            f" {tempfile.gettempdir()} (TMPDIR)",
        ),
    ]
    for function, source, message in cases:
        with monkeypatch.context() as patch:
            patch.setattr(function, refuse)
            with pytest.raises(DataError) as caught:
                load_data(source)
        assert str(caught.value) == f"{source}{message}"


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    _write(tmp_path, "train.jsonl", GOOD)
    with pytest.raises(
        DataError, match=r"is not a whole folder of save_to_disk .*; name a file in it: train.jsonl$"
    ):
        load_data(tmp_path)
    _dataset(ROWS).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved/state.json").write_text("{}")
    with pytest.raises(DataError, match=r"\('_data_files'\); name a file in it: data-00000-of-00001.arrow$"):
        load_data(tmp_path / "saved")
    _dataset(ROWS).save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).unlink()
    with pytest.raises(DataError, match=r"No such file.*; give a file, or save the data set again$"):
        load_data(tmp_path / "saved")


def test_unknown_splits_name_the_nearest() -> None:
    with pytest.raises(
        DataError, match=re.escape("the DatasetDict in memory: no split 'tset'; did you mean 'test'?")
    ):
        load_data(DatasetDict({"train": _dataset(ROWS), "test": _dataset(ROWS)}), DataConfig(split="tset"))
    with pytest.raises(DataError, match=re.escape("demo: no split 'validation'; known: test, train")):
        load_data("demo", DataConfig(split="validation"))


@pytest.mark.parametrize(
    ("content", "fault"),
    [("[1, 2]", "holds [1, 2]"), ('["a", "a"]', "holds ['a', 'a']"), ("[", "is not JSON")],
)
def test_bad_label_names_beside_a_file(content: str, fault: str, tmp_path: Path) -> None:
    path = _write(tmp_path, "x.jsonl", GOOD)
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/labels.json {fault}")):
        load_data(path)


def test_a_hub_id_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError) as caught:
        load_data("someone/some-data")
    assert str(caught.value) == (
        "cannot load 'someone/some-data' from the Hugging Face Hub (Couldn't reach 'someone/some-data' on the"
        " Hub (OfflineModeIsEnabled)), and no file or folder here has that name; check the id, name and"
        " split, the network and HF_HUB_OFFLINE, or give a path"
    )
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_a_hub_data_set_takes_name_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def fake(path: str, name: str, *, split: str, keep_in_memory: bool) -> Dataset:
        asked.append((path, name, split, keep_in_memory))
        if split == "tset":
            raise ValueError("Unknown split \"tset\". Should be one of ['train'].")
        return _dataset(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", fake)
    assert _pairs(load_data("some/data", DataConfig(name="part", split="test[:9]"))) == ROWS
    assert asked == [("some/data", "part", "test[:9]", False)]
    with pytest.raises(DataError, match=r"\(Unknown split .tset.. Should be one of .*\), and"):
        load_data("some/data", DataConfig(split="tset"))


def test_misuse() -> None:
    data = load_data(ROWS)
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: load_data(None), "no data set is named; set dataset to a Hub id, a path or 'demo'"),
        (lambda: load_data(" "), "no data set is named; set dataset to a Hub id, a path or 'demo'"),
        (lambda: data.iter_batches(2, 1), "the list in memory: no class 2; classes are 0 to 1"),
        (lambda: data.iter_batches(0, 0), "batch_size is 0; give at least 1"),
        (lambda: data.sample(0, 0), "n_per_class is 0; give at least 1"),
    ]
    for misuse, message in cases:
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            misuse()
    with pytest.raises(DataError, match=r"class '0' has 3 rows of 4 asked for; ask for fewer"):
        data.sample(4, 0)
    with pytest.raises(DataError, match=r"^'json' is a file format, not a data set; give the path of the file$"):
        load_data("json")
    with pytest.raises(DataError, match=r"the IterableDataset in memory holds no rows; give a Dataset"):
        load_data(_dataset(ROWS).to_iterable_dataset())


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"label_names": ("a", "a")}, "holds a name twice or a blank one"),
        ({"classes": ("a", " ")}, "holds a name twice or a blank one"),
        ({"text_column": "x", "label_column": "x"}, "are both 'x'; name two columns"),
        ({"classes": ("a",)}, "classes names only the class 'a'; name at least two"),
        ({"label_names": ("a",)}, "label_names names only the class 'a'; name at least two"),
        ({"max_rows_per_class": 0}, "greater than or equal to 1"),
        ({"datset": "x"}, "Extra inputs are not permitted"),
    ],
)
def test_bad_settings(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate(settings_)
