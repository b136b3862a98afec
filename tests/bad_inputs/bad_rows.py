"""Columns that are not there, and rows that cannot be used."""

# fmt: off
# ruff: noqa: E501  (a row stands on one line)

from __future__ import annotations

import gzip

import pyarrow as pa

from bad_files import HEAD, arrow, class_labels, jsonl, parquet
from bad_table import CSV, JSONL, Bad, bad_file

COLUMNS: list[Bad] = [
    bad_file("semicolons", "semi.csv", b"text;label\na;0\n", ", line 1 has no ',' between columns but ';'; save it with commas"),
    bad_file("tabs in CSV", "tabs.csv", b"text\tlabel\na\t0\n", ", line 1 has no ',' between columns but '\\t'; let its name end in .tsv"),
    bad_file("commas in TSV", "commas.tsv", CSV, ", line 1 has no '\\t' between columns but ','; let its name end in .csv"),
    bad_file("no header", "headless.csv", b"a good film,1\na bad film,0\n", ": no usual column of texts among 1, a good film; set text_column (--text-column) to one of them"),
    bad_file("a comma too many", "extra.csv", HEAD + b"a,0\nb, c,1\n", " cannot be read (Error tokenizing data. C error: Expected 2 fields in line 3, saw 3); mend the file"),
    bad_file("a comma too many in the first row", "extra1.csv", HEAD + b"b, c,1\na, d,0\n", " cannot be read (Error tokenizing data. C error: Expected 2 fields in line 2, saw 3); mend the file"),
    bad_file("an open quote", "quote.csv", HEAD + b'"a,0\nb,1\n', " cannot be read (Error tokenizing data. C error: EOF inside string starting at row 1); mend the file"),
    bad_file("a column twice", "twice.csv", b"text,text,label\na,b,0\n", ": more than one column is named 'text'; rename all but one of them"),
    bad_file("no text column", "notext.csv", b"words,label\na,0\n", ": no usual column of texts among label, words; set text_column (--text-column) to one of them"),
    bad_file("a text column of nearly that name", "near.csv", b"txet,label\na,0\n", ": no usual column of texts among label, txet; set text_column (--text-column) to one of them; did you mean 'txet'?"),
    bad_file("no label column", "nolabel.csv", b"text,stars\na,0\n", ": no usual column of labels among stars, text; set label_column (--label-column) to one of them"),
    bad_file("a label column of nearly that name", "near2.csv", b"text,lable\na,0\n", ": no usual column of labels among lable, text; set label_column (--label-column) to one of them; did you mean 'lable'?"),
    bad_file("no text column in JSON lines", "notext.jsonl", jsonl({"words": "a", "label": 0}), ": no usual column of texts among label, words; set text_column (--text-column) to one of them"),
    bad_file("no text column in Parquet", "notext.parquet", parquet(words=["a"], label=[0]), ": no usual column of texts among label, words; set text_column (--text-column) to one of them"),
    bad_file("no label column in Arrow", "nolabel.arrow", arrow(text=["a"], stars=[0]), ": no usual column of labels among stars, text; set label_column (--label-column) to one of them"),
    bad_file("two columns may be the texts", "both.csv", b"sentence,question,label\na,b,0\n", ": 'question' and 'sentence' may each be the texts; set text_column (--text-column) to one of label, question, sentence"),
    bad_file("two columns may be the labels", "both2.csv", b"text,topic,emotion\na,b,0\n", ": 'emotion' and 'topic' may each be the labels; set label_column (--label-column) to one of emotion, text, topic"),
    bad_file("a text column that is not there", "rows.csv", CSV, ": no column 'txt' among label, text; set text_column (--text-column) to one of them; did you mean 'text'?", "--text-column txt"),
    bad_file("a text column that is not there, nothing near", "rows1.csv", CSV, ": no column 'body' among label, text; set text_column (--text-column) to one of them", "--text-column body"),
    bad_file("a label column that is not there", "rows2.csv", CSV, ": no column 'lable' among label, text; set label_column (--label-column) to one of them; did you mean 'label'?", "--label-column lable"),
    bad_file("the label column as text column", "rows3.csv", CSV, ": no usual column of labels among text (beside 'label'); set label_column (--label-column) to one of them", "--text-column label"),
    bad_file("split that is none", "rows4.csv", CSV, ": no split 'train[:1'; did you mean 'train'?", "--split 'train[:1'"),
    bad_file("two splits of one file", "rows5.csv", CSV, ": no split 'train+test'; did you mean 'train'?", "--split train+test"),
    bad_file("slice without rows", "rows6.csv", CSV, ": split 'train[:0]' holds none of 2 rows; choose another slice", "--split 'train[:0]'"),
    bad_file("slice beyond the rows", "rows7.csv", CSV, ": split 'train[50:60]' holds none of 2 rows; choose another slice", "--split 'train[50:60]'"),
    bad_file("slice beyond 100 %", "rows8.csv", CSV, ": no split 'train[:150%]'; did you mean 'train'?", "--split 'train[:150%]'"),
    bad_file("slice that runs backwards", "rows9.csv", CSV, ": split 'train[2:1]' holds none of 2 rows; choose another slice", "--split 'train[2:1]'"),
    bad_file("slice of words", "rows11.csv", CSV, ": no split 'train[a:b]'; did you mean 'train'?", "--split 'train[a:b]'"),
]

TEXTS: list[Bad] = [
    bad_file("empty text in CSV", "empty.csv", HEAD + b"a,0\n,1\n", ", row 1 (counted from 0): text is empty; remove the row or give its text"),
    bad_file("empty text in quotes", "empty2.csv", HEAD + b'a,0\nb,1\n"",1\n', ", row 2 (counted from 0): text is empty; remove the row or give its text"),
    bad_file("white space in TSV", "space.tsv", b"text\tlabel\na\t0\n  \t1\n", ", row 1 (counted from 0): text is only white space; remove the row or give its text"),
    bad_file("odd white space in JSON lines", "space.jsonl", jsonl({"text": "a", "label": 0}, {"text": "\u2003\u00a0\n", "label": 1}), ", row 1 (counted from 0): text is only white space; remove the row or give its text"),
    bad_file("empty text in a JSON array", "empty.json", b'[{"text": "a", "label": 0}, {"text": "", "label": 1}]', ", row 1 (counted from 0): text is empty; remove the row or give its text"),
    bad_file("empty text in Parquet", "empty.parquet", parquet(text=["a", "b", ""], label=[0, 1, 1]), ", row 2 (counted from 0): text is empty; remove the row or give its text"),
    bad_file("empty text in Arrow", "empty.arrow", arrow(text=["a", "", "c"], label=[0, 1, 1]), ", row 1 (counted from 0): text is empty; remove the row or give its text"),
    bad_file("empty text within gzip", "empty.jsonl.gz", gzip.compress(JSONL + jsonl({"text": "", "label": 1}), mtime=0), ", row 2 (counted from 0): text is empty; remove the row or give its text"),
    bad_file("empty text within Zstandard", "empty.csv.zst", pa.Codec("zstd").compress(HEAD + b"a,0\nb,1\nc,1\n,1\n", asbytes=True), ", row 3 (counted from 0): text is empty; remove the row or give its text"),
    bad_file("no text in a JSON line", "lacks.jsonl", JSONL + jsonl({"label": 1}), ", row 2 (counted from 0): text is missing (null); remove the row or give its text"),
    bad_file("null as text in JSON lines", "null2.jsonl", JSONL + JSONL + jsonl({"text": None, "label": 1}), ", row 4 (counted from 0): text is missing (null); remove the row or give its text"),
    bad_file("null as text in Parquet", "null.parquet", parquet(text=["a", None], label=[0, 1]), ", row 1 (counted from 0): text is missing (null); remove the row or give its text"),
    bad_file("null as text in Arrow", "null.arrow", arrow(text=[None, "a"], label=[0, 1]), ", row 0 (counted from 0): text is missing (null); remove the row or give its text"),
    bad_file("null as every text", "nulls.parquet", parquet(text=pa.array([None, None], pa.null()), label=[0, 1]), ", row 0 (counted from 0): text is missing (null); remove the row or give its text"),
    bad_file("a number as text", "number2.jsonl", JSONL + jsonl({"text": 3, "label": 1}), ", row 2 (counted from 0): text is 3 (int), not a string; choose another text_column or convert it"),
    bad_file("numbers as texts in Parquet", "numbers.parquet", parquet(text=[1, 2], label=[0, 1]), ", row 0 (counted from 0): text is 1 (int), not a string; choose another text_column or convert it"),
    bad_file("a list as text", "list2.jsonl", jsonl({"text": ["a", "b"], "label": 1}, {"text": ["c"], "label": 0}), ", row 0 (counted from 0): text is ['a', 'b'] (list), not a string; choose another text_column or convert it"),
    bad_file("an object as text", "object.jsonl", jsonl({"text": {"body": "a"}, "label": 1}), ", row 0 (counted from 0): text is {'body': 'a'} (dict), not a string; choose another text_column or convert it"),
    bad_file("a truth value as text", "true.jsonl", jsonl({"text": True, "label": 1}, {"text": False, "label": 0}), ", row 0 (counted from 0): text is True (bool), not a string; choose another text_column or convert it"),
    bad_file("bytes as text", "bytes.parquet", parquet(text=[b"a", b"b"], label=[0, 1]), ", row 0 (counted from 0): text is b'a' (bytes), not a string; choose another text_column or convert it"),
    bad_file("an object among texts", "object2.jsonl", JSONL + jsonl({"text": {"body": "a"}, "label": 1}), ", row 2 (counted from 0): text is {'body': 'a'} (dict), not a string; choose another text_column or convert it"),
    bad_file("a long number as text", "long.jsonl", jsonl({"text": list(range(9999)), "label": 1}), ", row 0 (counted from 0): text is [0, 1, 2, 3, 4, 5, ...] (list), not a string; choose another text_column or convert it"),
]

LABELS: list[Bad] = [
    bad_file("empty label", "none.csv", HEAD + b"a,0\nb,\n", ", row 1 (counted from 0): label is missing; remove the row or give its label"),
    bad_file("a row that ends early", "early.csv", HEAD + b"a,0\nb,1\nc\n", ", row 2 (counted from 0): label is missing; remove the row or give its label"),
    bad_file("blank label", "blank.tsv", b"text\tlabel\na\tx\nb\ty\nc\t \n", ", row 2 (counted from 0): label is missing; remove the row or give its label"),
    bad_file("null as label in JSON lines", "null3.jsonl", JSONL + jsonl({"text": "c", "label": None}), ", row 2 (counted from 0): label is missing; remove the row or give its label"),
    bad_file("null as label in Parquet", "null2.parquet", parquet(text=["a", "b"], label=pa.array([0, None], pa.int64())), ", row 1 (counted from 0): label is missing; remove the row or give its label"),
    bad_file("null as every label", "nulls2.parquet", parquet(text=["a", "b"], label=pa.array([None, None], pa.null())), ", row 0 (counted from 0): label is missing; remove the row or give its label"),
    bad_file("label below 0", "minus.csv", HEAD + b"a,0\nb,1\nc,-1\n", ", row 2 (counted from 0): label is -1, which marks a row without a label; remove the row, or count the classes from 0"),
    bad_file("label below 0 in Parquet", "minus.parquet", parquet(text=["a", "b"], label=[1, -1]), ", row 1 (counted from 0): label is -1, which marks a row without a label; remove the row, or count the classes from 0"),
    bad_file("label beyond the names", "beyond.csv", HEAD + b"a,0\nb,1\nc,2\n", ", row 2 (counted from 0): label is 2, but the 2 label names count from 0 (bad, good); mend it or set label_names", "-s data.label_names=[bad,good]"),
    bad_file("label of no name", "other.csv", HEAD + b"a,bad\nb,goood\n", ", row 1 (counted from 0): label is 'goood', an unknown label; mend it or set label_names; did you mean 'good'?", "-s data.label_names=[bad,good]"),
    bad_file("label of no name, nothing near", "other2.csv", HEAD + b"a,bad\nb,zzz\n", ", row 1 (counted from 0): label is 'zzz', an unknown label; mend it or set label_names; known: bad, good", "-s data.label_names=[bad,good]"),
    bad_file("numbers among names", "among.csv", HEAD + b"a,bad\nb,1\n", ", row 1 (counted from 0): label is '1', an unknown label; mend it or set label_names; known: bad, good", "-s data.label_names=[bad,good]"),
    bad_file("label of 5,000 digits", "digits.csv", HEAD + b"a,0\nb," + b"9" * 5000 + b"\n", ", row 1 (counted from 0): label is '999999999999...9999999999999', an unknown label; mend it or set label_names", "-s data.label_names=[bad,good]"),
    bad_file("label of 30 digits", "thirty.csv", HEAD + b"a,0\nb," + b"9" * 30 + b"\n", ", row 1 (counted from 0): label is 999999999999999999999999999999, but the 2 label names count from 0 (bad, good); mend it or set label_names", "-s data.label_names=[bad,good]"),
    bad_file("number and name of two classes", "swapped.csv", CSV, ": label 1 is the name of one class and the number of another; use words in label_names", '-s \'data.label_names=["1","0"]\''),
    bad_file("fraction as label", "half.jsonl", jsonl({"text": "a", "label": 0.0}, {"text": "b", "label": 0.5}), ", row 1 (counted from 0): label is 0.5; give whole numbers or words"),
    bad_file("fractions as labels in Parquet", "half.parquet", parquet(text=["a", "b"], label=[0.25, 1.0]), ", row 0 (counted from 0): label is 0.25; give whole numbers or words"),
    bad_file("NaN as label", "nan.parquet", parquet(text=["a", "b"], label=[0.0, float("nan")]), ", row 1 (counted from 0): label is nan; give whole numbers or words"),
    bad_file("infinite label", "inf.arrow", arrow(text=["a", "b"], label=[0.0, float("inf")]), ", row 1 (counted from 0): label is inf; give whole numbers or words"),
    bad_file("word after numbers", "mixed.jsonl", JSONL + jsonl({"text": "c", "label": "good"}), ", row 2 (counted from 0): label is 'good', after 1 in row 0; give whole numbers only or words only"),
    bad_file("truth value after numbers", "mixed2.jsonl", JSONL + jsonl({"text": "c", "label": True}), ", row 2 (counted from 0): label is True, after 1 in row 0; give whole numbers only or words only"),
    bad_file("lists as labels", "lists.jsonl", jsonl({"text": "a", "label": [0]}, {"text": "b", "label": [1]}), ", row 0 (counted from 0): label is [0]; give whole numbers only or words only"),
    bad_file("objects as labels", "objects.jsonl", jsonl({"text": "a", "label": {"id": 0}}), ", row 0 (counted from 0): label is {'id': 0}; give whole numbers only or words only"),
    bad_file("dates as labels", "dates.parquet", parquet(text=["a", "b"], label=pa.array([0, 1], pa.date32())), ", row 0 (counted from 0): label is datetime.date(1970, 1, 1); give whole numbers only or words only"),
    bad_file("bytes as labels", "bytes2.parquet", parquet(text=["a", "b"], label=[b"x", b"y"]), ", row 0 (counted from 0): label is b'x'; give whole numbers only or words only"),
    bad_file("class of a number beyond its names", "class.parquet", class_labels, ", row 2 (counted from 0): label is 5, but the 2 label names count from 0 (bad, good); mend it or set label_names"),
    bad_file("only one class", "one.csv", HEAD + b"a,x\nb,x\n", " has only the class 'x'; give rows of at least two classes"),
    bad_file("one row", "row.jsonl", jsonl({"text": "a", "label": 0}), " has only the class '0'; give rows of at least two classes"),
    bad_file("more than 1,000 classes", "many.csv", HEAD + b"".join(b"a,%d\n" % n for n in range(1001)), ": label holds more than 1,000 labels, such as '0' and '1': it looks like free text or numbers, not classes; set label_column (--label-column) to another column"),
    bad_file("more than 1,000 words", "words.csv", HEAD + b"".join(b"a,word %d\n" % n for n in range(1001)), ": label holds more than 1,000 labels, such as 'word 0' and 'word 1': it looks like free text or numbers, not classes; set label_column (--label-column) to another column"),
    bad_file("free text as labels", "free.csv", HEAD + b"a," + b"word " * 60 + b"\nb,short\n", ": label holds labels of more than 256 characters, such as 'word word wo...rd word word ' and 'short': it looks like free text or numbers, not classes; set label_column (--label-column) to another column"),
    bad_file("class without rows", "without.csv", HEAD + b"a,bad\nb,good\n", ": class 'mixed' has no rows; add some, or set classes to those that have rows (bad, good)", "-s data.label_names=[bad,good,mixed]"),
    bad_file("classes asks for none", "asks.csv", HEAD + b"a,bad\nb,good\n", ": classes asks for 'god', which is no class; did you mean 'good'?", "--classes bad,god"),
    bad_file("classes asks for none, nothing near", "asks2.csv", HEAD + b"a,bad\nb,good\n", ": classes asks for 'zzz', which is no class; known: bad, good", "--classes bad,zzz"),
    bad_file("class without rows in the slice", "slice.csv", HEAD + b"a,bad\nb,bad\nc,good\n", ": class 'good' has no rows; add some, or set classes to those that have rows (bad)", "--split 'train[:2]' -s data.label_names=[bad,good]"),
]

NAMES: list[Bad] = [
    Bad(f"labels.json {what}", f"generate -d {n}.csv", told, {f"{n}.csv": CSV, "labels.json": content})
    for n, (what, content, told) in enumerate(
        [
            (
                "is cut",
                b'["bad", ',
                "labels.json is not JSON (Expecting value: line 1 column 9 (char 8)); write a list of label names",
            ),
            (
                "names a class twice",
                b'["bad", "bad"]',
                "labels.json holds ['bad', 'bad']; write a list of distinct label names, two at least",
            ),
            (
                "is a mapping",
                b'{"0": "bad"}',
                "labels.json holds {'0': 'bad'}; write a list of distinct label names, two at least",
            ),
            (
                "holds numbers",
                b"[0, 1]",
                "labels.json holds [0, 1]; write a list of distinct label names, two at least",
            ),
            (
                "is not UTF-8",
                b'["caf\xe9", "b"]',
                "labels.json is not JSON ('utf-8' codec can't decode byte 0xe9 in position 5: invalid continuation byte); write a list of label names",
            ),
            (
                "is empty",
                b"",
                "labels.json is not JSON (Expecting value: line 1 column 1 (char 0)); write a list of label names",
            ),
            (
                "names one class",
                b'["bad"]',
                "labels.json holds ['bad']; write a list of distinct label names, two at least",
            ),
            (
                "names a class beyond the rows",
                b'["bad", "good", "mixed"]',
                "7.csv: class 'mixed' has no rows; add some, or set classes to those that have rows (bad, good)",
            ),
            ("names nothing", b"[]", "labels.json holds []; write a list of distinct label names, two at least"),
            (
                "has a blank name",
                b'["bad", " "]',
                "labels.json holds ['bad', ' ']; write a list of distinct label names, two at least",
            ),
            (
                "is nested very deep",
                b"[" * 100_000,
                "labels.json is not JSON (maximum recursion depth exceeded while decoding a JSON array from a unicode string); write a list of label names",
            ),
            (
                "is a folder",
                lambda path: path.mkdir(),
                "labels.json is no file, but stands where one with a list of label names may; move it away",
            ),
        ]
    )
]

ROWS = COLUMNS + TEXTS + LABELS + NAMES
