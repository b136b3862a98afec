"""`gradmm.data.checks`: data, task and model fit together; and the packaged data are what they claim to be."""

from __future__ import annotations

import copy
import re
from functools import cache

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

import gradmm
from gradmm.data.checks import check_fits, match_labels
from gradmm.data.rows import DataConfig, LabelledData
from gradmm.data.sources import load_data
from gradmm.data.task import BoundTask, Task
from gradmm.errors import DataError, TaskError

TASK = gradmm.get_task("sst2")


def data(texts: list[tuple[str, int]], names: tuple[str, ...] = ("negative", "positive")) -> LabelledData:
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(names))})
    columns = {"text": [text for text, _ in texts], "label": [label for _, label in texts]}
    return LabelledData(Dataset.from_dict(columns, features=features), "my data")


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LabelledData]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        return {name: load_data("demo", DataConfig(split=name)) for name in ("train", "test")}


# ---- classes


@pytest.mark.parametrize("names", [("negative", "positive"), ("0", "1")])
def test_the_task_s_classes_and_unnamed_ones_pass(names):
    assert match_labels(TASK, data([("a", 0), ("b", 1)], names)) == TASK


def test_the_task_takes_the_data_s_order():
    task = match_labels(TASK, data([("a", 0), ("b", 1)], ("positive", "negative")))
    assert task.label_names == ("positive", "negative")
    assert task.verbalisers == (" great", " bad")
    assert [task.instruction(label) for label in (0, 1)] == [TASK.instruction(label) for label in (1, 0)]
    plain = TASK.model_copy(update={"instructions": ()})
    assert match_labels(plain, data([("a", 0), ("b", 1)], ("positive", "negative"))).instructions == ()


@pytest.mark.parametrize(
    "names",
    [
        ("negative", "neutral", "positive"),
        ("0", "1", "2"),
        ("1", "0"),
        ("Negative", "Positive"),
    ],
)
def test_other_classes_are_refused(names):
    with pytest.raises(TaskError) as caught:
        match_labels(TASK, data([("a", 0), ("b", 1)], names))
    assert str(caught.value) == (
        f"the task's classes are ['negative', 'positive'] but those of my data are {list(names)}; give a task "
        "over the data's classes (task.template, task.verbalisers), or set data.label_names and data.classes to "
        "the task's"
    )


# ---- lengths


def test_a_row_that_does_not_fit_is_named(demo_lm):
    bound = BoundTask(TASK, demo_lm.tokenizer, 20)  # room for 17 tokens
    fitting = " ".join(["bad"] * 17)
    rows = [("short", 1), *[("fine", 0)] * 1003, (fitting, 0), (f"{fitting} bad", 0), (f"{fitting} bad bad", 0)]
    assert bound.room == 17 and check_fits(bound, data(rows[:-2])) == 17
    with pytest.raises(DataError) as caught:
        check_fits(bound, data(rows))
    assert str(caught.value) == (
        "my data, row 1005 (counted from 0): text has 18 tokens, but the model's context of 20 leaves room "
        f"for 17: '{fitting[:60]}'...; shorten or drop such rows, or take a model with a longer context"
    )


TEXTS = st.text(st.sampled_from("ab I.\u00e9\u2615\n"), max_size=24).map(lambda text: f"{text}x")


@given(
    st.lists(TEXTS, min_size=1, max_size=5),
    st.integers(5, 20),
    st.sampled_from(["{text} It was", "A: {text}\nIs"]),
)
def test_rows_pass_if_and_only_if_they_fit(demo_lm, texts, context, template):
    task = Task(label_names=TASK.label_names, verbalisers=TASK.verbalisers, template=template)
    try:
        bound = BoundTask(task, demo_lm.tokenizer, context)
    except TaskError:
        return  # the template alone fills the context
    counts = [len(bound.text_ids(text)) for text in texts]
    rows = data([(text, 1) for text in texts] + [("x", 0)])
    if max(counts) > bound.room:
        with pytest.raises(DataError, match=f"has {next(n for n in counts if n > bound.room)} tokens"):
            check_fits(bound, rows)
    else:
        assert check_fits(bound, rows) in (0, *counts)
        bound.collate([bound.text_ids(text) for text in texts], [1] * len(texts))


def test_rows_that_are_short_for_certain_are_not_tokenized(splits, demo_lm, monkeypatch):
    bound = BoundTask(TASK, demo_lm.tokenizer, 1024)
    monkeypatch.setattr(bound, "text_ids", None)
    assert check_fits(bound, splits["train"]) == 0


def test_a_letter_that_normalizes_to_many_is_counted_as_many(demo_lm):
    """Qwen's NFC makes two letters, 6 bytes, of this one of 3 bytes; bytes before it bound no tokens after it."""
    tokenizer = copy.deepcopy(demo_lm.tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    bound, text = BoundTask(TASK, tokenizer, 20), "\u0958" * 5
    assert bound.room == 17 < len(bound.text_ids(text))
    with pytest.raises(DataError, match="leaves room for 17"):
        check_fits(bound, data([("fine", 0), (text, 1)]))


# ---- the packaged data


def test_packaged_data_are_balanced_and_fit(splits, demo_task):
    for rows in splits.values():
        assert rows.label_names == ("negative", "positive") and rows.counts() == [120, 120]
        assert match_labels(TASK, rows) == TASK
        assert check_fits(demo_task, rows) == 0
        assert all(text == " ".join(text.split()) for text in all_texts(rows))


def test_no_packaged_text_stands_twice(splits):
    texts = [" ".join(words(text)) for rows in splits.values() for text in all_texts(rows)]
    assert len(texts) == len(set(texts)) == 480


def test_no_six_words_stand_in_two_packaged_texts(splits):
    where: dict[tuple[str, ...], set[str]] = {}
    for rows in splits.values():
        for text in all_texts(rows):
            own = words(text)
            for start in range(len(own) - 5):
                where.setdefault(tuple(own[start : start + 6]), set()).add(text)
    assert len(where) > 4000
    assert [sorted(texts) for texts in where.values() if len(texts) > 1] == []


def test_no_two_packaged_texts_are_alike(splits):
    """difflib's ratio counts a common subsequence of characters, so that the longest bounds it from above."""
    texts = [text for rows in splits.values() for text in all_texts(rows)]
    alike = [
        (one, other)
        for number, one in enumerate(texts)
        for other in texts[:number]
        if 2 * common_subsequence(one, other) > 0.6 * (len(one) + len(other))
    ]
    assert alike == []


def test_the_measure_of_likeness_itself():
    for one, other, length in (("", "a", 0), ("abcbdab", "bdcaba", 4), ("same", "same", 4), ("xaybzc", "abc", 3)):
        assert common_subsequence(one, other) == common_subsequence(other, one) == length


def all_texts(rows: LabelledData) -> list[str]:
    return rows.texts_of(0) + rows.texts_of(1)


def words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.casefold())


@cache
def places(text: str) -> dict[str, int]:
    """For each character, a bit wherever it stands."""
    return {char: sum(1 << at for at, own in enumerate(text) if own == char) for char in set(text)}


def common_subsequence(one: str, other: str) -> int:
    """The length of the longest common subsequence; the bits of a number are a row of the usual table."""
    at, full = places(one), (1 << len(one)) - 1
    row = full
    for char in other:
        kept = row & at.get(char, 0)
        row = ((row + kept) | (row - kept)) & full
    return len(one) - row.bit_count()
