"""`gradmm.data.columns`: the usual columns are found, and asked for where that would be a guess."""

from __future__ import annotations

import logging
import re

import pytest

from gradmm.data.columns import LABEL_COLUMNS, TEXT_COLUMNS, choose_columns
from gradmm.data.sources import DataConfig, load_data
from gradmm.errors import DataError

TEXT_FLAG = "set text_column (--text-column) to one of"
LABEL_FLAG = "set label_column (--label-column) to one of"
NONE = DataConfig()
USUAL = [
    *((text, "label") for tier in TEXT_COLUMNS for text in tier),
    *(("text", label) for tier in LABEL_COLUMNS for label in tier),
]


@pytest.mark.parametrize(("text", "label"), USUAL)
def test_one_usual_name_is_taken_in_any_letter_case(text: str, label: str) -> None:
    for spell in (str, str.upper, str.title):
        columns = ["id", spell(label), "note", spell(text)]
        assert choose_columns(columns, NONE, "x") == (spell(text), spell(label))


@pytest.mark.parametrize(
    ("columns", "config", "chosen"),
    [
        (["title", "content", "label"], NONE, ("content", "label")),
        (["review", "Text", "title", "label"], NONE, ("Text", "label")),
        (["text", "label_text", "label"], NONE, ("text", "label")),
        (["text", "fine_label", "coarse_label"], NONE, ("text", "coarse_label")),
        (["text", "category", "labels"], NONE, ("text", "labels")),
        (
            ["text", "body", "topic", "class"],
            DataConfig(text_column="body", label_column="class"),
            ("body", "class"),
        ),
        (["text", "review", "label"], DataConfig(label_column="text"), ("review", "text")),
    ],
)
def test_an_earlier_name_wins_and_one_that_is_given_above_all(
    columns: list[str], config: DataConfig, chosen: tuple[str, str]
) -> None:
    for order in (columns, columns[::-1]):
        assert choose_columns(order, config, "x") == chosen


@pytest.mark.parametrize(
    ("columns", "config", "message"),
    [
        (
            ["question", "sentence", "label"],
            NONE,
            f"'question' and 'sentence' may each be the texts; {TEXT_FLAG} label, question, sentence",
        ),
        (
            ["text", "Text", "label"],
            NONE,
            f"'Text' and 'text' may each be the texts; {TEXT_FLAG} Text, label, text",
        ),
        (
            ["text", "topic", "intent"],
            NONE,
            f"'intent' and 'topic' may each be the labels; {LABEL_FLAG} intent, text, topic",
        ),
        (["prose", "label"], NONE, f"no usual column of texts among label, prose; {TEXT_FLAG} them"),
        (
            ["text", "lable"],
            NONE,
            f"no usual column of labels among lable, text; {LABEL_FLAG} them; did you mean 'lable'?",
        ),
        (
            ["text", "label"],
            DataConfig(text_column="Text"),
            f"no column 'Text' among label, text; {TEXT_FLAG} them; did you mean 'text'?",
        ),
        (
            ["label"],
            DataConfig(label_column="label"),
            f"no usual column of texts among label; {TEXT_FLAG} them",
        ),
        (["text", "label", "text"], NONE, "more than one column is named 'text'; rename all but one of them"),
    ],
)
def test_what_is_not_clear_is_asked_for(columns: list[str], config: DataConfig, message: str) -> None:
    with pytest.raises(DataError) as caught:
        choose_columns(columns, config, "x")
    assert str(caught.value) == f"x: {message}"


def test_columns_that_were_found_are_named(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"Review": "a", "mood": "x", "label": 0}, {"Review": "b", "mood": "y", "label": 1}]
    with caplog.at_level(logging.INFO, "gradmm"):
        data = load_data(rows)
        assert (data.text_column, data.label_column) == ("Review", "label")
        assert (data.sample(1, 0).text_column, load_data(data).text_column) == ("Review", "Review")
        load_data(rows, DataConfig(text_column="Review"))
        load_data([("a", 0), ("b", 1)])
    assert caplog.messages == ["the list in memory: texts from column 'Review', labels from column 'label'"]
    with pytest.raises(DataError, match=re.escape("row 1 (counted from 0): Review is empty")):
        load_data([rows[0], rows[1] | {"Review": ""}])
