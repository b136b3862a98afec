"""Gradients of single texts, in a space: what candidates and public texts are known by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from gradmm.data.task import BoundTask
from gradmm.gradients.factors import Factors
from gradmm.gradients.spaces import Space
from gradmm.memory import BatchLimit
from gradmm.models import LanguageModel


def single_factors(
    lm: LanguageModel,
    task: BoundTask,
    space: Space,
    labelled: Sequence[tuple[int, Sequence[int]]],
    limit: BatchLimit,
    doing: str,
) -> Iterator[Factors]:
    """Factors of texts, a set for each, some texts at a time; J is that of the longest verbaliser among them.

    Args:
        lm: the model at whose weights the gradients are taken.
        task: the rendering.
        space: where they are wanted.
        labelled: label and tokens of every text.
        limit: texts that go through the model at once.
        doing: what for, should memory run out.
    """

    def some(part: Sequence[tuple[int, Sequence[int]]]) -> Factors:
        batch = task.collate([ids for _, ids in part], [label for label, _ in part]).to(lm.device)
        with torch.no_grad():
            return space.factors(lm, batch, batch.embed(lm.embeddings_VE), 1)

    return limit.map(some, labelled, doing)
