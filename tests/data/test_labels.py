"""`gradmm.data.labels` and `gradmm.data.conflicts`: labels of any kind, and texts under two of them."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from gradmm.data import conflicts
from gradmm.data.conflicts import Conflicts, find_conflicts
from gradmm.data.sources import DataConfig, load_data
from gradmm.errors import DataError

ANOTHER = ": it looks like free text or numbers, not classes; set label_column (--label-column) to another column"


@pytest.mark.parametrize(
    "names", [("no", "yes"), ("false", "true"), ("False", "True"), ("TRUE", "FALSE"), ("0", "1")]
)
@pytest.mark.parametrize("labels", [[True, False], ["true", "false"], ["True", "False"]])
def test_truth_values_are_named_or_counted(labels: list[object], names: tuple[str, ...]) -> None:
    data = load_data([("a", labels[0]), ("b", labels[1])], DataConfig(label_names=names))
    spelled = [data.label_names[label].lower() for label in data.rows["label"]]
    assert data.label_names == names
    assert spelled == (["true", "false"] if "true" in {n.lower() for n in names} else [names[1], names[0]])


@pytest.mark.parametrize(
    ("labels", "classes", "kept"),
    [
        ([0, 1, 2], ("2", "0"), [("b0", 1), ("b2", 0)]),
        (["0", "1", "2"], ["2", "0"], [("b0", 1), ("b2", 0)]),
        ([0, 1, 2], [2, 0], [("b0", 1), ("b2", 0)]),
        ([0.0, 1.0, 2.0], ("0", "1"), [("b0", 0), ("b1", 1)]),
        ([True, False, True], [True, False], [("b0", 0), ("b1", 1), ("b2", 0)]),
    ],
)
def test_classes_by_number_or_truth_value(
    labels: list[object], classes: object, kept: list[tuple[str, int]]
) -> None:
    config = DataConfig.model_validate({"classes": classes})
    data = load_data([(f"b{n}", label) for n, label in enumerate(labels)], config)
    assert [(row["text"], row["label"]) for row in data.rows] == kept


def test_two_to_a_thousand_classes() -> None:
    data = load_data([(f"text {n}", n % 1000) for n in range(2000)])
    assert (data.num_classes, set(data.counts())) == (1000, {2})
    many = [f"c{n}" for n in range(1001)]
    with pytest.raises(
        DataError, match=r"has 1,001 classes of at most 1,000; set classes to those that are wanted$"
    ):
        load_data([(f"text {n}", label) for n, label in enumerate(many)], DataConfig(label_names=tuple(many)))
    few = DataConfig(label_names=tuple(many), classes=("c7", "c1000"))
    assert load_data([(f"text {n}", label) for n, label in enumerate(many)], few).counts() == [1, 1]


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        ([f"c{n}" for n in range(1001)], "more than 1,000 labels, such as 'c0' and 'c1'"),
        (list(range(1, 30_000)), "more than 1,000 labels, such as '1' and '2'"),
        (
            ["a", "b" * 257],
            "labels of more than 256 characters, such as 'bbbbbbbbbbbb...bbbbbbbbbbbbb' and 'a'",
        ),
    ],
)
def test_labels_that_look_like_free_text(labels: list[object], fault: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data([("a", label) for label in labels])
    assert str(caught.value) == f"the list in memory: label holds {fault}{ANOTHER}"


def _slow_conflicts(texts: list[str], labels: list[int]) -> Conflicts | None:
    of_text: dict[str, set[int]] = {}
    latest: dict[str, int] = {}
    first: tuple[int, int] | None = None
    for row, (text, label) in enumerate(zip(texts, labels, strict=True)):
        if first is None and text in latest and labels[latest[text]] != label:
            first = (row, latest[text])
        latest[text] = row
        of_text.setdefault(text, set()).add(label)
    return Conflicts(sum(len(found) > 1 for found in of_text.values()), *first) if first else None


@given(
    st.lists(st.tuples(st.sampled_from("abcdé"), st.integers(0, 2)), min_size=1, max_size=30), st.integers(1, 7)
)
@settings(max_examples=60, deadline=None)
def test_conflicts_are_those_of_a_dictionary(rows: list[tuple[str, int]], batch: int) -> None:
    texts, labels = [text for text, _ in rows], [label for _, label in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conflicts, "_BATCH", batch)
        found = find_conflicts(Dataset.from_dict({"text": texts}), np.array(labels))
    assert found == _slow_conflicts(texts, labels)


def test_texts_that_only_share_a_hash_are_no_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conflicts, "_hashes", lambda texts: np.zeros(len(texts), np.int64))
    assert find_conflicts(Dataset.from_dict({"text": ["a", "b"]}), np.array([0, 1])) is None


def test_a_text_under_two_labels_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    rows = [("x", "a"), ("skip", "c"), ("same", "a"), ("x", "a"), ("same", "b"), ("skip", "a")]
    load_data(load_data(rows, DataConfig(classes=("a", "b"))))
    load_data([("x", 0), ("x", 0), ("y", 1)])
    message = (
        "the list in memory: 1 of the texts stand under more than one label, such as that of rows 2 and 4 (counted"
        " from 0); see whether their labels are right"
    )
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [(logging.WARNING, message)]
