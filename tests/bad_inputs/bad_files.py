"""Files of rows that are not what they should be, or not where they should be."""

# fmt: off
# ruff: noqa: E501  (a row stands on one line)

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from bad_table import CSV, JSONL, Bad, bad_file

MANY = b"".join(b'{"text": "%d", "label": %d}\n' % (n, n % 2) for n in range(9000))
ZIPPED = gzip.compress(MANY, mtime=0)
PACKED = pa.Codec("zstd").compress(JSONL, asbytes=True)
HEAD = b"text,label\n"


def jsonl(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in rows)


def table(**columns: Any) -> pa.Table:
    return pa.table(columns)


def parquet(**columns: Any) -> Callable[[Path], object]:
    return lambda path: pq.write_table(table(**columns), path)


def arrow(cut: int = 0, **columns: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table(**columns).schema) as writer:
        writer.write_table(table(**columns))
    return sink.getvalue().to_pybytes()[: -cut or None]


def cut_parquet(path: Path) -> None:
    pq.write_table(table(text=["a", "b"], label=[0, 1]), path)
    path.write_bytes(path.read_bytes()[:-20])


def damaged_parquet(path: Path) -> None:
    pq.write_table(
        table(text=["a long enough text"] * 50 + ["b"] * 50, label=[0, 1] * 50), path, compression="gzip"
    )
    content = bytearray(path.read_bytes())
    content[30:60] = bytes(30)
    path.write_bytes(bytes(content))


def class_labels(path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    made = table(text=["a", "b", "c"], label=[0, 1, 5]).replace_schema_metadata(features.arrow_schema.metadata)
    pq.write_table(made, path)


def saved(
    rows: dict[str, list[Any]] | None = None, spoil: Callable[[Path], object] | None = None
) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
        data = Dataset.from_dict(rows or {"text": ["a", "b"], "label": [0, 1]}, features=features)
        data.save_to_disk(str(path))
        if spoil is not None:
            spoil(path)

    return make


def saved_splits(path: Path) -> None:
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    DatasetDict({"train": rows, "test": rows}).save_to_disk(str(path))


def generate(name: str, args: str, told: str | re.Pattern[str], **files: Any) -> Bad:
    return Bad(name, f"generate {args}", told, files)


CONTENTS: list[Bad] = [
    bad_file("unknown extension", "rows.txt", JSONL, ": unknown extension '.txt'; known: .arrow, .csv, .json, .jsonl, .parquet, .tsv; each also with .gz or .zst"),
    bad_file("unknown extension, compressed", "rows.xlsx.gz", JSONL, ": unknown extension '.xlsx.gz'; known: .arrow, .csv, .json, .jsonl, .parquet, .tsv; each also with .gz or .zst"),
    bad_file("no extension", "rows", JSONL, ": unknown extension ''; known: .arrow, .csv, .json, .jsonl, .parquet, .tsv; each also with .gz or .zst"),
    bad_file("compressed twice", "rows.jsonl.gz.zst", JSONL, ": unknown extension '.jsonl.gz.zst'; known: .arrow, .csv, .json, .jsonl, .parquet, .tsv; each also with .gz or .zst"),
    *(
        bad_file(f"empty {end}", f"rows{end}", b"", " has no rows; give at least one row of every class")
        for end in (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".csv.gz", ".jsonl.zst")
    ),
    bad_file("empty within gzip", "none.jsonl.gz", gzip.compress(b"", mtime=0), " has no rows; give at least one row of every class"),
    bad_file("header only", "head.csv", HEAD, " has no rows; give at least one row of every class"),
    bad_file("header only, tabs", "head.tsv", b"text\tlabel\n", " has no rows; give at least one row of every class"),
    bad_file("blank lines only", "blank.jsonl", b"\n\n \n", " has no rows; give at least one row of every class"),
    bad_file("blank lines only in CSV", "blank.csv", b"\n\n\n", " has no rows; give at least one row of every class"),
    bad_file("empty array", "array.json", b"[]", " has no rows; give at least one row of every class"),
    bad_file("Parquet without rows", "none.parquet", parquet(text=pa.array([], pa.string()), label=pa.array([], pa.int64())), " has no rows in split 'train'; give at least one row of every class"),
    bad_file("Arrow without rows", "none.arrow", arrow(text=pa.array([], pa.string()), label=pa.array([], pa.int64())), " has no rows in split 'train'; give at least one row of every class"),
    bad_file("Parquet without columns", "none2.parquet", parquet(), " has no columns; give a file with one of texts and one of labels"),
    bad_file("JSON lines cut in the middle", "cut.jsonl", JSONL + b'{"text": "c", "lab', ", line 3: not JSON (Unterminated string starting at, column 15); mend the file"),
    bad_file("a list among JSON lines", "list.jsonl", JSONL + b'["c", 1]\n', ", line 3: not a JSON object; write one object a line"),
    bad_file("a number among JSON lines", "number.jsonl", JSONL + b"7\n", ", line 3: not a JSON object; write one object a line"),
    bad_file("null among JSON lines", "null.jsonl", JSONL + b"null\n", ", row 2 (counted from 0): label is missing; remove the row or give its label"),
    bad_file("JSON array that is cut", "cut.json", b'[{"text": "a", "label": 0},\n {"text": "b", "la', ", line 2: not JSON (Unterminated string starting at, column 16); mend the file"),
    bad_file("JSON array with a comma missing", "comma.json", b'[{"text": "a", "label": 0}\n {"text": "b", "label": 1}]', ", line 2: not JSON (Expecting ',' delimiter, column 2); mend the file"),
    bad_file("JSON array with more after it", "more.json", b'[{"text": "a", "label": 0}] and more', ", line 1: not JSON (Extra data, column 29); mend the file"),
    bad_file("JSON array of numbers", "numbers.json", b"[1, 2, 3]", ", item 0 (counted from 0): not an object; write an array of objects"),
    bad_file("JSON object of columns", "columns.json", b'{"text": ["a", "b"], "label": [0, 1]}', ", row 0 (counted from 0): label is [0, 1]; give whole numbers only or words only"),
    bad_file("JSON object with the rows inside", "inside.json", b'{"data": [{"text": "a", "label": 0}]}', ": no usual column of texts among data; set text_column (--text-column) to one of them"),
    bad_file("JSON nested very deep", "deep.json", b"[" * 100_000, ", line 1: nested too deep; write objects with a text and a label"),
    bad_file("JSON lines nested very deep", "deep.jsonl", JSONL + b'{"text": ' + b"[" * 100_000 + b"\n", ", line 3: nested too deep; write objects with a text and a label"),
    bad_file("JSON with a number of 5,000 digits", "digits.jsonl", JSONL + b'{"text": "c", "label": ' + b"9" * 5000 + b"}\n", ", row 2 (counted from 0): label is inf; give whole numbers or words"),
    bad_file("JSON with a number of 30 digits", "thirty.jsonl", JSONL + b'{"text": "c", "label": ' + b"9" * 30 + b"}\n", ", row 2 (counted from 0): label is 1e+30; give whole numbers or words"),
    bad_file("JSON with half of a surrogate pair", "half.jsonl", JSONL + b'{"text": "\\ud800", "label": 1}\n', " cannot be read (JSON parse error: The surrogate pair in string is invalid. in row 2); mend the file"),
    bad_file("JSON in single quotes", "python.jsonl", b"{'text': 'a', 'label': 0}\n", ", line 1: not JSON (Expecting property name enclosed in double quotes, column 2); mend the file"),
    bad_file("CSV named as JSON lines", "csv.jsonl", CSV, ", line 1: not JSON (Expecting value, column 1); mend the file"),
    bad_file("not UTF-8 in CSV", "latin.csv", HEAD + b"a,0\ncaf\xe9,1\n", ", line 3: not UTF-8 (invalid continuation byte); save the file as UTF-8"),
    bad_file("not UTF-8 in TSV", "latin.tsv", b"text\tlabel\na\t0\nb\t1\ncaf\xe9\t1\n", ", line 4: not UTF-8 (invalid continuation byte); save the file as UTF-8"),
    bad_file("not UTF-8 in the header", "head2.csv", b"text,label,caf\xe9\na,0,x\n", ", line 1: not UTF-8 (invalid continuation byte); save the file as UTF-8"),
    bad_file("not UTF-8 in JSON lines", "latin.jsonl", JSONL + b'{"text": "caf\xe9", "label": 1}\n', ", row 2 (counted from 0): text is not UTF-8; save the data as UTF-8"),
    bad_file("not UTF-8 in a JSON array", "latin.json", b'[{"text": "a", "label": 0},\n{"text": "caf\xe9", "label": 1}]', ", line 2: not UTF-8 (invalid continuation byte); save the file as UTF-8"),
    bad_file("not UTF-8 in a label of JSON lines", "latin2.jsonl", b'{"text": "a", "label": "c"}\n{"text": "b", "label": "\xff"}\n', ", row 1 (counted from 0): label is not UTF-8; save the data as UTF-8"),
    bad_file("not UTF-8 within gzip", "latin.csv.gz", gzip.compress(HEAD + b"a,0\nb,1\ncaf\xe9,1\n", mtime=0), ", line 4: not UTF-8 (invalid continuation byte); save the file as UTF-8"),
    bad_file("not UTF-8 in Parquet", "latin.parquet", parquet(text=pa.array([b"a", b"caf\xe9"], pa.binary()).view(pa.string()), label=[0, 1]), ", row 1 (counted from 0): text is not UTF-8; save the data as UTF-8"),
    bad_file("not UTF-8 in Arrow", "latin.arrow", arrow(text=pa.array([b"a", b"caf\xe9"], pa.binary()).view(pa.string()), label=[0, 1]), ", row 1 (counted from 0): text is not UTF-8; save the data as UTF-8"),
    bad_file("UTF-16", "wide.csv", "text,label\na,0\n".encode("utf-16"), " is named as CSV but holds UTF-16 text; save it as UTF-8"),
    bad_file("UTF-16 without its mark", "wide2.csv", "text,label\na,0\n".encode("utf-16-le"), " is named as CSV but holds UTF-16 text or binary data; save it as UTF-8"),
    bad_file("UTF-16 JSON lines", "wide.jsonl", JSONL.decode().encode("utf-16"), " is named as JSON but holds UTF-16 text; save it as UTF-8"),
    bad_file("UTF-32", "wider.csv", "text,label\na,0\n".encode("utf-32"), " is named as CSV but holds UTF-16 text; save it as UTF-8"),
    bad_file("NUL in a text of CSV", "nul.csv", HEAD + b"a\0b,0\nc,1\n", " is named as CSV but holds UTF-16 text or binary data; save it as UTF-8"),
    bad_file("gzip that is cut", "cut.jsonl.gz", ZIPPED[:-99], ": damaged gzip file (Compressed file ended before the end-of-stream marker was reached); copy or compress it again"),
    bad_file("gzip of which the end is missing", "cut.csv.gz", gzip.compress(CSV, mtime=0)[:-4], ": damaged gzip file (Compressed file ended before the end-of-stream marker was reached); copy or compress it again"),
    bad_file("gzip of two bytes", "two.csv.gz", b"\x1f\x8b", ": damaged gzip file (Compressed file ended before the end-of-stream marker was reached); copy or compress it again"),
    bad_file("gzip with a wrong checksum", "sum.jsonl.gz", ZIPPED[:-8] + bytes(4) + ZIPPED[-4:], ": damaged gzip file (CRC check failed 0x0 != 0x54a9a7b5); copy or compress it again"),
    bad_file("gzip with rubbish inside", "rubbish.jsonl.gz", ZIPPED[:40] + bytes(40) + ZIPPED[80:], ": damaged gzip file (Error -3 while decompressing data: invalid literal/lengths set); copy or compress it again"),
    bad_file("gzip with rubbish after it", "after.jsonl.gz", ZIPPED + b"rubbish", ": damaged gzip file (Not a gzipped file (b'ru')); copy or compress it again"),
    bad_file("Zstandard that is cut", "cut.jsonl.zst", PACKED[:-4], ": damaged zstd file (Truncated compressed stream); copy or compress it again"),
    bad_file("Zstandard with rubbish inside", "rubbish.jsonl.zst", PACKED[:6] + b"\xff" * 10 + PACKED[16:], ": damaged zstd file (ZSTD decompress failed: Data corruption detected); copy or compress it again"),
    bad_file("text named as gzip", "text.jsonl.gz", JSONL, " is named as gzip but holds text; let its name end in .csv, .tsv, .json or .jsonl"),
    bad_file("gzip named as Zstandard", "gzip.jsonl.zst", ZIPPED, " is named as Zstandard but holds gzip; add .gz to its name"),
    bad_file("gzip named as JSON lines", "gzip.jsonl", ZIPPED, " is named as JSON but holds gzip; add .gz to its name"),
    bad_file("Zstandard named as CSV", "zst.csv", PACKED, " is named as CSV but holds Zstandard; add .zst to its name"),
    bad_file("Parquet named as CSV", "parquet.csv", parquet(text=["a"], label=[0]), " is named as CSV but holds Parquet; let its name end in .parquet"),
    bad_file("Parquet within gzip named as CSV", "parquet.csv.gz", gzip.compress(b"PAR1PAR1", mtime=0), " is named as CSV but holds Parquet; let its name end in .parquet"),
    bad_file("Arrow named as Parquet", "arrow.parquet", arrow(text=["a"], label=[0]), " is named as Parquet but holds Arrow; let its name end in .arrow"),
    bad_file("workbook named as CSV", "book.csv", b"PK\x03\x04", " is named as CSV but holds a ZIP archive or an Excel workbook; give a file of rows"),
    bad_file("page named as CSV", "page.csv", b"\n<!DOCTYPE HTML>", " is named as CSV but holds an HTML page; give a file of rows"),
    bad_file("picture named as JSON lines", "picture.jsonl", b"\x89PNG\r\n", " is named as JSON but holds a PNG image; give a file of rows"),
    bad_file("JSON named as CSV", "json.csv", JSONL, " is named as CSV but holds JSON; let its name end in .json or .jsonl"),
    bad_file("CSV named as Parquet", "csv.parquet", CSV, " is named as Parquet but holds text; let its name end in .csv, .tsv, .json or .jsonl"),
    bad_file("CSV named as Arrow", "csv.arrow", CSV, " is named as Arrow but holds text; let its name end in .csv, .tsv, .json or .jsonl"),
    bad_file("something named as Arrow", "noise.arrow", b"\xfe12345678", " is named as Arrow but holds something else (it begins with b'\\xfe1234567'); give a file of rows"),
    bad_file("LFS pointer", "lfs.parquet", b"version https://git-lfs.github.com/spec/v1", " is named as Parquet but holds a Git LFS pointer; fetch the file itself with `git lfs pull`"),
    bad_file("Parquet that is cut", "cut.parquet", cut_parquet, " cannot be read (Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file.); mend the file"),
    bad_file("Parquet with rubbish inside", "damaged.parquet", damaged_parquet, " cannot be read (GZipCodec failed: incorrect data check); mend the file"),
    bad_file("Parquet of its mark alone", "mark.parquet", b"PAR1PAR2", " cannot be read (Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file.); mend the file"),
    bad_file("Arrow that is cut", "cut.arrow", arrow(cut=300, text=["a", "b"] * 50, label=[0, 1] * 50), " cannot be read (Expected to be able to read 1312 bytes for message body, got 1020); mend the file"),
    bad_file("Arrow of its mark alone", "mark.arrow", b"ARROW1" + bytes(99), " cannot be read (Not an Arrow file); mend the file"),
]

PLACES: list[Bad] = [
    generate("no such file", "-d ./nope.csv", "./nope.csv: no 'nope.csv' in <here>, which is empty; give the path of a file that is there"),
    generate("no such file, one is near", "-d trian.csv", "trian.csv: no 'trian.csv' in <here>; did you mean 'train.csv'?", **{"train.csv": CSV}),
    generate("no such file, none is near", "-d nope.parquet", "nope.parquet: no 'nope.parquet' in <here>; known: train.csv", **{"train.csv": CSV}),
    generate("no such folder", "-d daat/train.csv", "daat/train.csv: no 'daat' in <here>; did you mean 'data'?", **{"data/train.csv": CSV}),
    generate("a file as a folder", "-d train.csv/rows.csv", "train.csv/rows.csv: train.csv is a file, not a folder; name a file in a folder", **{"train.csv": CSV}),
    generate("no such user", "-d ~nobody-here/train.csv", "~nobody-here/train.csv: no '~nobody-here' in <here>, which is empty; give the path of a file that is there"),
    generate("a name that is too long", f"-d {'x' * 300}.csv", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx.csv: no 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx.csv' in <here>, which is empty; give the path of a file that is there"),
    generate("a URL", "-d https://example.com/train.csv", "https://example.com/train.csv is a URL, which is not read from; download the file, or give a Hub id"),
    generate("broken link", "-d link.csv", "link.csv is a link to 'gone.csv', which is not there; mend the link", **{"link.csv": lambda path: path.symlink_to("gone.csv")}),
    generate("link to itself", "-d loop.csv", "loop.csv is a link to 'loop.csv', which is not there; mend the link", **{"loop.csv": lambda path: path.symlink_to("loop.csv")}),
    generate("named pipe", "-d pipe.csv", "pipe.csv is a named pipe, which is not read from; write the rows into a file first", **{"pipe.csv": os.mkfifo}),
    generate("device", "-d /dev/zero", "/dev/zero is a device, which is not read from; write the rows into a file first"),
    generate("folder without a data set", "-d folder", "folder is not a whole folder of save_to_disk (Directory folder is neither a `Dataset` directory nor a `DatasetDict` directory.); name a file in it: train.csv", **{"folder/train.csv": CSV, "folder/notes.md": b"x"}),
    generate("empty folder", "-d folder2", "folder2 is not a whole folder of save_to_disk (Directory folder2 is neither a `Dataset` directory nor a `DatasetDict` directory.); give a file, or save the data set again", folder2=lambda path: path.mkdir()),
    generate("folder with nothing to read", "-d folder3", "folder3 is not a whole folder of save_to_disk (Directory folder3 is neither a `Dataset` directory nor a `DatasetDict` directory.); give a file, or save the data set again", **{"folder3/notes.md": b"x"}),
    generate("saved data set without its rows", "-d saved1", "saved1 is not a whole folder of save_to_disk ([Errno 2] No such file or directory: '<here>/saved1/data-00000-of-00001.arrow'); give a file, or save the data set again", saved1=saved(spoil=lambda path: next(path.glob("*.arrow")).unlink())),
    generate("saved data set with rows that are cut", "-d saved2", "saved2 is not a whole folder of save_to_disk (Expected to read 360 metadata bytes, but only read 292); name a file in it: data-00000-of-00001.arrow", saved2=saved(spoil=lambda path: os.truncate(next(path.glob("*.arrow")), 300))),
    generate("saved data set whose state is damaged", "-d saved3", "saved3 is not a whole folder of save_to_disk ('_data_files'); name a file in it: data-00000-of-00001.arrow", saved3=saved(spoil=lambda path: (path / "state.json").write_text("{}"))),
    generate("saved data set whose state is no JSON", "-d saved4", "saved4 is not a whole folder of save_to_disk (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); name a file in it: data-00000-of-00001.arrow", saved4=saved(spoil=lambda path: (path / "state.json").write_text("{"))),
    generate("saved data set whose features are damaged", "-d saved5", "saved5 is not a whole folder of save_to_disk ('list' object has no attribute 'items'); name a file in it: data-00000-of-00001.arrow", saved5=saved(spoil=lambda path: (path / "dataset_info.json").write_text("[]"))),
    generate("saved data set with an empty text", "-d saved6", "saved6, row 1 (counted from 0): text is empty; remove the row or give its text", saved6=saved({"text": ["a", ""], "label": [0, 1]})),
    generate("saved data set without labels", "-d saved7", "saved7, row 1 (counted from 0): label is -1, which marks a row without a label; remove the row, or count the classes from 0", saved7=saved({"text": ["a", "b"], "label": [0, -1]})),
    generate("saved data set with one class", "-d saved8", "saved8: class 'good' has no rows; add some, or set classes to those that have rows (bad)", saved8=saved({"text": ["a", "b"], "label": [0, 0]})),
    generate("saved splits, another asked for", "-d saved9 --split tset", "saved9: no split 'tset'; did you mean 'test'?", saved9=saved_splits),
    generate("saved splits, nothing near", "-d saved10 --split zzz", "saved10: no split 'zzz'; known: test, train", saved10=saved_splits),
    generate("Hub id while offline", "-d someone/some-data", "cannot load 'someone/some-data' from the Hugging Face Hub (Couldn't reach 'someone/some-data' on the Hub (OfflineModeIsEnabled)), and no file or folder here has that name; check the id, name and split, the network and HF_HUB_OFFLINE, or give a path"),
    generate("Hub id of one word while offline", "-d imbd", "cannot load 'imbd' from the Hugging Face Hub (Couldn't reach 'imbd' on the Hub (OfflineModeIsEnabled)), and no file or folder here has that name; check the id, name and split, the network and HF_HUB_OFFLINE, or give a path"),
    generate("Hub id that cannot be one", "-d 'a b/c d/e'", "cannot load 'a b/c d/e' from the Hugging Face Hub (Couldn't find any data file at <here>/a b/c d/e.), and no file or folder here has that name; check the id, name and split, the network and HF_HUB_OFFLINE, or give a path"),
    generate("format instead of a file", "-d csv", "'csv' is a file format, not a data set; give the path of the file", **{"rows.csv": CSV}),
    generate("unknown split of the demo", "-d demo --split validation", "demo: no split 'validation'; known: test, train"),
    generate("unknown split of the demo, one is near", "-d demo --split tran", "demo: no split 'tran'; did you mean 'train'?"),
    generate("slice of the demo without rows", "-d demo --split 'train[:0]'", "demo: split 'train[:0]' holds none of 240 rows; choose another slice"),
    Bad("doctor: no such file", "doctor -m <tiny> -d ./gone.csv", "./gone.csv: no 'gone.csv' in <here>, which is empty; give the path of a file that is there", {}, finding="data"),
    Bad("preview: empty text", "preview -d rows.csv", "rows.csv, row 1 (counted from 0): text is only white space; remove the row or give its text", {"rows.csv": HEAD + b"a,0\n ,1\n"}),
]

FILES = CONTENTS + PLACES
