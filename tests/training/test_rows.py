"""`gradmm.training.rows`: tokens, labels and weights stay together, text by text."""

from __future__ import annotations

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from gradmm.data.rows import LabelledData
from gradmm.errors import DataError, TaskError
from gradmm.training.rows import TokenRows, token_ids, tokenise, tokenise_data

words = st.lists(st.sampled_from(["A", "film", "great", "bad", "end."]), min_size=1, max_size=6).map(" ".join)
classes = st.lists(st.lists(words, max_size=4), min_size=2, max_size=2)


def data(rows, names=("negative", "positive")):
    own = Features({"text": Value("string"), "label": ClassLabel(names=list(names))})
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    return LabelledData(Dataset.from_dict(columns, features=own), "my data")


@settings(max_examples=30)
@given(classes)
def test_rows_are_the_task_s_own_tokens_class_by_class(demo_task, texts):
    found = tokenise(demo_task, texts)
    assert found.ids == [demo_task.text_ids(text) for own in texts for text in own]
    assert found.labels == [0] * len(texts[0]) + [1] * len(texts[1])
    assert found.weights is None and len(found) == len(texts[0]) + len(texts[1])


@settings(max_examples=30)
@given(classes)
def test_a_weight_goes_with_its_text(demo_task, texts):
    weights = [[label + len(text) / 100 for text in own] for label, own in enumerate(texts)]
    found = tokenise(demo_task, texts, weights)
    assert found.weights == [label + len(text) / 100 for label, own in enumerate(texts) for text in own]
    assert found.ids == tokenise(demo_task, texts).ids


@pytest.mark.parametrize("weights", [[[1.0], [1.0]], [[1.0, 1.0, 1.0], []], [[1.0, 1.0]]])
def test_weights_of_other_texts_are_a_mistake(demo_task, weights):
    """Though they may be as many in all."""
    with pytest.raises(AssertionError):
        tokenise(demo_task, [["A film.", "An end."], ["A story."]], weights)


@pytest.mark.parametrize("texts", [[], [["A film."]], [["A film."], ["An end."], ["A story."]]])
def test_texts_of_other_classes_are_a_mistake(demo_task, texts):
    with pytest.raises(AssertionError):
        tokenise(demo_task, texts)


@pytest.mark.parametrize(("label", "name"), [(0, "negative"), (1, "positive")])
@pytest.mark.parametrize("bad", ["", "word " * 2000], ids=["empty", "long"])
def test_a_text_without_tokens_or_room_is_named(demo_task, label, name, bad):
    texts = [["A film."], ["An end."]]
    texts[label].append(bad)
    with pytest.raises(DataError, match=f"class '{name}' has \\d+ tokens.*1 to {demo_task.room}: '{bad[:10]}"):
        tokenise(demo_task, texts)


def test_a_text_that_just_fits_passes(demo_task):
    longest = "A" + " film" * (demo_task.room - 1)
    assert len(token_ids(demo_task, 0, [longest])[0]) == demo_task.room
    with pytest.raises(DataError, match=f"has {demo_task.room + 1} tokens"):
        token_ids(demo_task, 0, [longest + " film"])


@pytest.mark.parametrize("names", [("negative", "positive"), ("0", "1")])
def test_rows_of_data_go_by_class(demo_task, names):
    found = tokenise_data(demo_task, data([("bad", 0), ("great", 1), ("A film", 0)], names))
    assert found == tokenise(demo_task, [["bad", "A film"], ["great"]])


def test_data_with_their_classes_in_another_order_keep_their_labels(demo_task):
    turned = data([("bad", 1), ("great", 0)], ("positive", "negative"))
    assert tokenise_data(demo_task, turned) == tokenise(demo_task, [["bad"], ["great"]])


@pytest.mark.parametrize("names", [("bad", "good"), ("negative", "neutral", "positive")])
def test_data_of_other_classes_are_refused(demo_task, names):
    with pytest.raises(TaskError, match="my data"):
        tokenise_data(demo_task, data([("a", label) for label in range(len(names))], names))


def test_no_rows_are_none():
    assert len(TokenRows([], [])) == 0
