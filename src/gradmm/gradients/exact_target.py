"""The exact target: the mean gradient of each class's rows, without noise, streamed.

A class's sum is held as factors while they are smaller than the matrix, J (V + D) < V D, and densely
from then on, so memory is bounded by one matrix per class however many rows stream through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from gradmm.data.task import BoundTask
from gradmm.errors import DataError, NonFiniteError
from gradmm.gradients.factors import Factors
from gradmm.gradients.spaces import IDENTITY, Space
from gradmm.gradients.target import ClassTarget, ReleasedTarget
from gradmm.gradients.unigrams import UnigramCounter
from gradmm.memory import BatchLimit, by_length
from gradmm.models import LanguageModel

WINDOW = 16  # batches of rows that are read, and sorted by length, together


class TargetAccumulator:
    """Running sum of one class's gradients: factors first, a matrix as soon as that is smaller."""

    def __init__(self) -> None:
        self._parts: list[Factors] = []
        self._dense: tuple[Tensor, Tensor] | None = None
        self._rows = 0

    def add(self, sums: Factors, rows: int) -> None:
        """Adds the *sum* (not the mean) over `rows` texts, as factors of one set."""
        self._rows += rows
        if self._dense is None:
            self._parts.append(sums)
            pairs = sum(part.weight_KJ.numel() for part in self._parts)
            vocabulary, hidden = sums.r_KJV.shape[-1], sums.h_KJD.shape[-1]
            if pairs * (vocabulary + hidden) < vocabulary * hidden:
                return
            self._dense = (sums.r_KJV.new_zeros(vocabulary, hidden), sums.r_KJV.new_zeros(vocabulary))
        for part in self._parts or [sums]:
            weighted_JV = part.r_KJV[0] * part.weight_KJ[0].unsqueeze(-1)
            self._dense[0].addmm_(weighted_JV.T, part.h_KJD[0])
            self._dense[1].add_(weighted_JV.sum(0))
        self._parts = []

    def mean(self) -> ClassTarget:
        """The mean gradient over all rows that were added."""
        if self._dense is not None:
            return ClassTarget(None, (self._dense[0] / self._rows, self._dense[1] / self._rows))
        r_KJV, h_KJD, weight_KJ = (
            torch.cat([getattr(part, name) for part in self._parts], dim=1)
            for name in ("r_KJV", "h_KJD", "weight_KJ")
        )
        return ClassTarget(Factors(r_KJV, h_KJD, weight_KJ / self._rows), None)


@torch.no_grad()
def compute_target(
    lm: LanguageModel,
    task: BoundTask,
    rows: Sequence[Iterable[list[str]]],
    progress: Callable[[int], None] = lambda rows: None,
    limit: BatchLimit | None = None,
    space: Space = IDENTITY,
) -> ReleasedTarget:
    """Mean gradient per class over real rows, streamed.

    Args:
        lm: the model at whose weights the gradients are taken.
        task: the rendering.
        rows: per class, batches of texts; those of like length of each go through the model together.
        progress: called with the number of rows of each batch that is done.
        limit: rows that go through the model at once.
        space: where the mean is taken.

    Raises:
        DataError: if a row is longer than the model's context.
        NonFiniteError: if a row's gradient is not finite.
        OutOfMemoryError: if one row does not fit into memory.
    """
    limit = limit or BatchLimit()
    return ReleasedTarget(
        tuple(
            class_target(lm, task, label, batches, limit, progress, space) for label, batches in enumerate(rows)
        ),
        space,
    )


@torch.no_grad()
def class_target(
    lm: LanguageModel,
    task: BoundTask,
    label: int,
    batches: Iterable[list[str]],
    limit: BatchLimit,
    progress: Callable[[int], None] = lambda rows: None,
    space: Space = IDENTITY,
    with_unigrams: bool = False,
) -> ClassTarget:
    """One class's mean gradient, and if asked for how often tokens stand in its rows; else as `compute_target`."""
    total, counter = TargetAccumulator(), UnigramCounter(task, len(lm.embeddings_VE)) if with_unigrams else None
    for texts in batches:
        ids = _checked_ids(task, texts, label)
        if counter is not None:
            counter.add(ids)
        alike = [ids[i] for i in by_length(ids)]
        summed = partial(_summed, lm, task, label=label, space=space)
        for sums, count in limit.map(summed, alike, "computing the target"):
            total.add(sums, count)
            progress(count)
    return total.mean() if counter is None else replace(total.mean(), unigrams=counter.mean())


def _checked_ids(task: BoundTask, texts: Sequence[str], label: int) -> list[list[int]]:
    ids = task.texts_ids(texts)
    for row, text in zip(ids, texts, strict=True):
        if len(row) > task.room:
            raise DataError(
                f"a row of class {task.task.label_names[label]!r} has {len(row)} tokens, and the model's context "
                f"of {task.max_length} leaves room for {task.room}: {text[:60]!r}...; shorten or drop such rows"
            )
    return ids


def _summed(
    lm: LanguageModel, task: BoundTask, ids: Sequence[list[int]], label: int, space: Space
) -> tuple[Factors, int]:
    batch = task.collate(ids, [label] * len(ids)).to(lm.device)
    mean = space.factors(lm, batch, batch.embed(lm.embeddings_VE), len(ids))
    if not bool(torch.isfinite(mean.r_KJV).all() & torch.isfinite(mean.h_KJD).all()):
        raise NonFiniteError(
            f"the gradient of a row of class {task.task.label_names[label]!r} is not finite in {lm.dtype}; set "
            "model.dtype to float32 (or bfloat16, if it is float16)"
        )
    return Factors(mean.r_KJV, mean.h_KJD, mean.weight_KJ * len(ids)), len(ids)
