"""The exact target: the mean gradient of each class's rows, without noise, streamed.

A class's sum is held as factors while they are smaller than the matrix, J (V + D) < V D, and densely
from then on, so memory is bounded by one matrix per class however many rows stream through. Where that takes long,
the sum is kept on the way, and goes on from there to the same target, to the last digit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from gradmm.checkpoints import Checkpoints
from gradmm.data.task import BoundTask
from gradmm.errors import DataError, NonFiniteError
from gradmm.gradients.factors import Factors, as_one_set
from gradmm.gradients.spaces import IDENTITY, Space
from gradmm.gradients.spread import SpreadCounter
from gradmm.gradients.target import ClassTarget, ReleasedTarget
from gradmm.gradients.unigrams import UnigramCounter
from gradmm.memory import BatchLimit, by_length
from gradmm.models import LanguageModel

WINDOW = 16  # batches of rows that are read, and sorted by length, together
_SECONDS = 60.0  # of work that a run which is killed does again, at most


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

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint; `load` takes them. Empty while all there is are factors, of few rows then."""
        return {} if self._dense is None else {"sum_weight": self._dense[0], "sum_bias": self._dense[1]}

    def load(self, tensors: Mapping[str, Tensor], rows: int, device: torch.device) -> None:
        """Takes the place of what was added: a sum over so many rows."""
        self._parts, self._rows = [], rows
        self._dense = tensors["sum_weight"].to(device), tensors["sum_bias"].to(device)

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


@dataclass
class Unfinished:
    """Where the sum over a class is kept on the way, between two windows of rows."""

    folder: Checkpoints
    name: str
    seconds: float = _SECONDS
    """Between two times; 0 keeps it after every window."""
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._kept_at = self.clock()

    def load(
        self,
        total: TargetAccumulator,
        spread: SpreadCounter,
        counter: UnigramCounter | None,
        device: torch.device,
    ) -> int:
        """Goes on from what was kept; returns the number of rows in it."""
        kept = self.folder.load_state(self.name)
        if kept is None:
            return 0
        rows = int(kept[1]["rows"])
        total.load(kept[0], rows, device)
        spread.load(kept[0])
        if counter is not None:
            counter.load(kept[0])
        return rows

    def keep(
        self, total: TargetAccumulator, spread: SpreadCounter, counter: UnigramCounter | None, rows: int
    ) -> None:
        """Keeps the sum over the first rows, if it is time."""
        sums = total.tensors()
        if sums and self.clock() - self._kept_at >= self.seconds:
            counts = {} if counter is None else counter.tensors()
            self.folder.save_state(self.name, sums | spread.tensors() | counts, {"rows": rows})
            self._kept_at = self.clock()


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
    unfinished: Unfinished | None = None,
) -> ClassTarget:
    """One class's mean gradient; else as `compute_target`.

    Args:
        lm: as of `compute_target`.
        task: likewise.
        label: the class.
        batches: its rows; what is read together decides in which order rows are added.
        limit: as of `compute_target`.
        progress: likewise.
        space: likewise.
        with_unigrams: whether it is also said how often tokens stand in the rows.
        unfinished: where the sum is kept on the way; None starts from the first row.
    """
    total, spread = TargetAccumulator(), SpreadCounter()
    counter = UnigramCounter(task, len(lm.embeddings_VE)) if with_unigrams else None
    done, rows = 0 if unfinished is None else unfinished.load(total, spread, counter, lm.device), 0
    if done:
        progress(done)
    for texts in batches:
        rows += len(texts)
        if rows <= done:
            continue
        left = texts[max(0, len(texts) - (rows - done)) :]  # windows may have had another size
        ids = _checked_ids(task, left, label)
        if counter is not None:
            counter.add(ids)
        alike = [ids[i] for i in by_length(ids)]
        each = partial(_each, lm, task, label=label, space=space)
        for sets in limit.map(each, alike, "computing the target"):
            total.add(as_one_set([sets]), sets.num_sets)
            spread.add(sets)
            progress(sets.num_sets)
        if unfinished is not None:
            unfinished.keep(total, spread, counter, rows)
    return replace(total.mean(), spread=spread.mean(), unigrams=None if counter is None else counter.mean())


def _checked_ids(task: BoundTask, texts: Sequence[str], label: int) -> list[list[int]]:
    ids = task.texts_ids(texts)
    for row, text in zip(ids, texts, strict=True):
        if len(row) > task.room:
            raise DataError(
                f"a row of class {task.task.label_names[label]!r} has {len(row)} tokens, and the model's context "
                f"of {task.max_length} leaves room for {task.room}: {text[:60]!r}...; shorten or drop such rows"
            )
    return ids


def _each(lm: LanguageModel, task: BoundTask, ids: Sequence[list[int]], label: int, space: Space) -> Factors:
    """Every row's gradient, as a set of its own."""
    batch = task.collate(ids, [label] * len(ids)).to(lm.device)
    sets = space.factors(lm, batch, batch.embed(lm.embeddings_VE), 1)
    if not bool(torch.isfinite(sets.r_KJV).all() & torch.isfinite(sets.h_KJD).all()):
        raise NonFiniteError(
            f"the gradient of a row of class {task.task.label_names[label]!r} is not finite in {lm.dtype}; set "
            "model.dtype to float32 (or bfloat16, if it is float16)"
        )
    return sets
