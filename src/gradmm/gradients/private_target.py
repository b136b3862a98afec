"""The private target: the mean gradient of each class's real rows, clipped and with noise, released once.

As `target.py`, but what real rows do to the result is bounded and covered (`privacy.mechanism` has the argument):

    per row: its gradient in the space, (weight, bias) as one vector of M numbers -> clip to C -> sum by class
    -> noise on the concatenation of all classes -> divide by public or noisy counts -> `ReleasedTarget`

and, where the writer is tilted, shares of words beside it (`private_unigrams`), from the same pass over the rows.
What is summed, and how it is read afterwards, is in `private_sums`.

A row has to be a function of itself alone up to its last bit: padding, and batches of other sizes, change the
rounding of all rows in a batch. So rows go through the model one by one. For the same reason nothing about a row
may stop the run: one with too many tokens is cut to those that fit, one without tokens or with a gradient that is
not finite adds nothing. (Memory is the exception: a row that does not fit ends the run.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor

from gradmm.data.task import BoundTask
from gradmm.errors import TaskError
from gradmm.gradients.factors import Factors
from gradmm.gradients.private_sums import PrivateSums, Release
from gradmm.gradients.spaces import Space
from gradmm.gradients.target import ReleasedTarget
from gradmm.memory import BatchLimit
from gradmm.models import LanguageModel
from gradmm.privacy.config import PrivacyConfig
from gradmm.privacy.ledger import Ledger, release_once
from gradmm.privacy.ledger_lines import Spend
from gradmm.privacy.mechanism import Noise, SystemNoise, counts_bound
from gradmm.privacy.planning import COUNTS, Plan

STATE = "private_target"
"""Name of the release in the run folder."""


class Shelf(Protocol):
    """Where a release is kept: a `RunFolder` is one."""

    def load_state(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Reads it; None if there is none."""

    def save_state(self, name: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Writes it, on the disk."""


def planned_spends(
    plan: Plan, num_classes: int, parts: Mapping[str, tuple[float, int]], noise: Noise
) -> list[Spend]:
    """What the ledger will say of the plan's releases.

    Args:
        plan: the releases.
        num_classes: classes.
        parts: clip and numbers of one class, of each release; of counts they are known.
        noise: where it comes from.
    """
    known = {COUNTS: (counts_bound(plan.neighboring_relation), 1), **parts}
    found = []
    for one in plan.releases:
        bound, dimension = known[one.name][0], num_classes * known[one.name][1]
        drawn = noise.describe(dimension)
        found.append(Spend(one.name, one.event, bound, dimension, drawn, noise.is_private))
    return found


@torch.no_grad()
def private_target(
    lm: LanguageModel,
    task: BoundTask,
    rows: Sequence[Iterable[list[str]]],
    release: Release,
    config: PrivacyConfig,
    plan: Plan,
    ledger: Ledger,
    shelf: Shelf,
    progress: Callable[[int], None] = lambda rows: None,
    noise: Noise = SystemNoise(),
) -> tuple[ReleasedTarget, tuple[float, ...]]:
    """The private mean gradient per class, with shares of words if asked for: from the run folder if it is there,
    else released and paid for.

    Args:
        lm: the model at whose weights the gradients are taken.
        task: the rendering.
        rows: per class, batches of texts; not touched where the release is there already or the budget is used up.
        release: what is released, in which space and how clipped.
        config: what sums are divided by.
        plan: of one round, from `make_plan(config, shares_of(config, ...))`, with words if the release has them.
        ledger: of the run folder.
        shelf: the run folder.
        progress: called with the number of rows that are done. What adds it up has an exact count of real rows.
        noise: a test's own makes the release not private.

    Returns:
        The target, and what each class's sum was divided by: public or released.

    Raises:
        PrivacyBudgetError: if the budget does not hold the plan.
        ConfigError: if public counts are for other classes.
        RunFolderError: if release and ledger do not belong together.
        DataError: if a class has too many rows for an exact sum.
        OutOfMemoryError: if one row does not fit into memory.
    """
    classes, divisors = len(rows), config.divisors(task.task.label_names)

    def prepare() -> PrivateSums:
        sums = release.sums(classes, lm.device)
        _add_rows(sums, lm, task, rows, release.space, progress)
        return sums

    def load() -> dict[str, Tensor] | None:
        kept = shelf.load_state(STATE)
        return None if kept is None else kept[0]

    kept = release_once(
        ledger,
        planned_spends(plan, classes, release.parts, noise),
        load,
        prepare,
        lambda sums: sums.release(plan, divisors, noise),
        lambda drawn: shelf.save_state(STATE, drawn, {}),
    )
    return release.target(kept, plan, lm.device), tuple(kept["counts"].tolist())


def _add_rows(
    sums: PrivateSums,
    lm: LanguageModel,
    task: BoundTask,
    rows: Sequence[Iterable[list[str]]],
    space: Space,
    progress: Callable[[int], None],
) -> None:
    """Adds every row to the sums, alone: in a batch its numbers would depend on other rows."""
    for label, batches in enumerate(rows):
        for text in chain.from_iterable(batches):
            ids = _ids_of(task, text)
            sums.add(label, _one_text(lm, task, space, ids, label), [ids])
            progress(1)


def _ids_of(task: BoundTask, text: str) -> list[int]:
    """Tokens of a text, cut to the context; none where the task has no tokens for it."""
    try:
        return task.text_ids(text)[: task.room]
    except TaskError:  # names the text
        return []


def _one_text(lm: LanguageModel, task: BoundTask, space: Space, ids: list[int], label: int) -> Factors | None:
    """Factors of one text, alone in its batch; None of one without tokens."""
    if not ids:
        return None
    batch = task.collate([ids], [label]).to(lm.device)
    (factors,) = BatchLimit(1).map(
        lambda one: space.factors(lm, batch, batch.embed(lm.embeddings_VE), 1), [batch], "computing the target"
    )
    return factors
