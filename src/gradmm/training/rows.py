"""Labelled texts in a task's tokens: what is trained and evaluated on, tokenised once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradmm.data.checks import match_labels
from gradmm.data.rows import LabelledData
from gradmm.data.task import BoundTask
from gradmm.errors import DataError


@dataclass(frozen=True)
class TokenRows:
    """Tokenised texts with labels."""

    ids: list[list[int]]
    """Tokens of each text."""
    labels: list[int]
    weights: list[float] | None = None
    """In the mean loss, per text; None weighs all alike."""

    def __len__(self) -> int:
        """How many."""
        return len(self.ids)


def token_ids(task: BoundTask, label: int, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of one class's texts.

    Raises:
        DataError: if a text is empty or does not fit the model's context.
    """
    ids = task.texts_ids(texts)
    for text, row in zip(texts, ids, strict=True):
        if not 0 < len(row) <= task.room:
            raise DataError(
                f"a text of class {task.task.label_names[label]!r} has {len(row)} tokens, and the model's context "
                f"of {task.max_length} leaves room for 1 to {task.room}: {text[:60]!r}; shorten or drop such rows"
            )
    return ids


def tokenise(
    task: BoundTask, texts: Sequence[Sequence[str]], weights: Sequence[Sequence[float]] | None = None
) -> TokenRows:
    """Rows of texts per class.

    Args:
        task: the rendering.
        texts: per class, its texts.
        weights: per class, its texts' weights.

    Raises:
        DataError: if a text is empty or does not fit the model's context.
    """
    assert len(texts) == len(task.label_ids), (len(texts), len(task.label_ids))
    assert weights is None or list(map(len, weights)) == list(map(len, texts)), "a weight for every text"
    ids = [row for label, own in enumerate(texts) for row in token_ids(task, label, own)]
    labels = [label for label, own in enumerate(texts) for _ in own]
    return TokenRows(ids, labels, None if weights is None else [weight for own in weights for weight in own])


def tokenise_data(task: BoundTask, data: LabelledData) -> TokenRows:
    """All rows of a data set, by the task's classes, whatever order the data have them in.

    Raises:
        DataError: if a text does not fit the model's context.
        TaskError: if the data's classes are not the task's.
    """
    names = match_labels(task.task, data).label_names
    return tokenise(task, [data.texts_of(names.index(name)) for name in task.task.label_names])
