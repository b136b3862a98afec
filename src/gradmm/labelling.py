"""How probable a text's label is for the LM, under the task's own rendering, all tokens of the verbaliser.

Used to check texts that were written for a label, and to evaluate a fine-tuned model.

Shape suffixes: N texts, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from gradmm.data.task import Batch, BoundTask
from gradmm.heads import Head
from gradmm.memory import BatchLimit, by_length

BATCH = 16
"""Rows in an update of the reader."""


class LabelCheckConfig(BaseModel):
    """Which candidates carry their label."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    reader: Literal["rows", "target", "model"] = "rows"
    """Who says how probable a label is. `rows`: the model after a training on real rows. `target`: what the target
    knows of the classes, their words and mean hidden states; the default with privacy, which `rows` would break.
    `model`: the model as it is, calibrated."""
    min_probability: float = Field(0.0, ge=0, le=1)
    """Candidates whose label is less probable are not chosen, as long as enough are left."""
    relabel: bool | None = None
    """A candidate whose most probable class is another one becomes a candidate of that class. None does so where
    the reader is not the model as it is."""
    max_steps: int = Field(200, ge=1)
    """Updates of the reader's training, of 16 rows each."""
    num_train_epochs: float = Field(10.0, gt=0)
    """Times that it sees a row at most, where rows are few."""
    learning_rate: float = Field(3e-4, gt=0)
    """Of AdamW, falling to zero, in that training; for larger models a tenth of it is usual, for adapters more."""

    @property
    def knows_rows(self) -> bool:
        """Whether real rows have a part in it, beside the target."""
        return self.reader == "rows"

    @property
    def knows_classes(self) -> bool:
        """Whether the reader knows of the classes more than their names."""
        return self.reader != "model"

    @property
    def relabels(self) -> bool:
        """Whether candidates go to the class that is most probable."""
        return self.knows_classes if self.relabel is None else self.relabel

    def steps(self, rows: int) -> int:
        """Updates, for so many rows."""
        return max(1, min(self.max_steps, round(self.num_train_epochs * rows / BATCH)))


class Reader(Protocol):
    """A language model as far as labels are concerned, frozen or in training."""

    @property
    def head(self) -> Head:
        """The output head."""

    @property
    def device(self) -> torch.device:
        """Where inputs are put."""

    def read(self, ids_NS: Tensor, index_NL: Tensor) -> Tensor:
        """Hidden states (N, L, D) that enter the head at chosen positions."""


@torch.no_grad()
def label_log_probs(
    lm: Reader, task: BoundTask, texts_ids: Sequence[Sequence[int]], limit: BatchLimit | None = None
) -> Tensor:
    """Log p(verbaliser_c | text) for every text and class.

    Args:
        lm: the language model.
        task: the rendering.
        texts_ids: tokens of each text, from `task.text_ids`.
        limit: texts that go through the model at once; texts of like length go together.

    Returns:
        (N, C), float32, on the CPU; not normalised over classes.
    """
    out_NC = torch.empty(len(texts_ids), len(task.label_ids))
    order = by_length(texts_ids)

    def some(part: Sequence[int]) -> None:
        out_NC[list(part)] = class_log_probs(lm, task, [texts_ids[i] for i in part]).cpu()

    for _ in (limit or BatchLimit()).map(some, order, "scoring labels"):
        pass
    return out_NC


def class_log_probs(lm: Reader, task: BoundTask, texts_ids: Sequence[Sequence[int]]) -> Tensor:
    """Log p(verbaliser_c | text) (N, C) of one batch, differentiable with respect to the model's weights.

    One pass for all classes whose verbaliser is one token, and one for each other class.
    """
    columns: dict[int, Tensor] = {}
    single = [c for c, tokens in enumerate(task.label_ids) if len(tokens) == 1]
    if single:
        log_probs_NLV, _ = _log_probs(lm, task, texts_ids, [single[0]] * len(texts_ids))
        columns = {c: log_probs_NLV[:, 0, task.label_ids[c][0]] for c in single}
    for c in sorted(set(range(len(task.label_ids))) - set(single)):
        columns[c] = own_log_probs(lm, task, texts_ids, [c] * len(texts_ids))
    return torch.stack([columns[c] for c in range(len(task.label_ids))], dim=1)


def own_log_probs(
    lm: Reader, task: BoundTask, texts_ids: Sequence[Sequence[int]], labels: Sequence[int]
) -> Tensor:
    """Log p(verbaliser of its own label | text) (N) of one batch: the negative of what the target is made of."""
    log_probs_NLV, batch = _log_probs(lm, task, texts_ids, labels)
    own_NL = log_probs_NLV.gather(-1, batch.label_ids_NL.unsqueeze(-1))[..., 0]
    return (own_NL * batch.label_mask_NL).sum(-1)


def _log_probs(
    lm: Reader, task: BoundTask, ids: Sequence[Sequence[int]], labels: Sequence[int]
) -> tuple[Tensor, Batch]:
    """At the positions that predict the labels' tokens (N, L, V)."""
    batch = task.collate(ids, labels).to(lm.device)
    logits_NLV, _ = lm.head(lm.read(batch.ids_NS, batch.predict_at_NL))
    return torch.log_softmax(logits_NLV, -1), batch


def calibrated(log_probs_NC: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """Probabilities over classes, made fair: no class is preferred over the whole set of texts.

    The mean over texts of each class's log-probability is taken off before normalising (contextual calibration,
    Zhao et al. 2021, with the texts themselves as context), so that an LM that always says "great" still tells the
    greater from the lesser.

    Args:
        log_probs_NC: from `label_log_probs`.
        counts: texts written for each class in turn, which then count the same however many they are; None takes
            the texts as they come.

    Returns:
        (N, C), rows that add up to 1.
    """
    groups = torch.split(log_probs_NC, list(counts)) if counts is not None else [log_probs_NC]
    mean_C = torch.stack([own_NC.mean(0) for own_NC in groups]).mean(0)
    return torch.softmax(log_probs_NC - mean_C, dim=-1)
