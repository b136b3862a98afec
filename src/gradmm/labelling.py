"""How probable a text's label is for the LM, under the task's own rendering, all tokens of the verbaliser.

Used to check texts that were written for a label, and to evaluate a fine-tuned model.

Shape suffixes: N texts, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from gradmm.data.task import BoundTask
from gradmm.memory import BatchLimit
from gradmm.models import LanguageModel


class LabelCheckConfig(BaseModel):
    """Which candidates carry their label."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    min_probability: float = Field(0.0, ge=0, le=1)
    """Candidates whose calibrated label probability is below are not chosen, as long as enough are left."""


@torch.no_grad()
def label_log_probs(
    lm: LanguageModel, task: BoundTask, texts_ids: Sequence[Sequence[int]], limit: BatchLimit | None = None
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
    order = sorted(range(len(texts_ids)), key=lambda i: len(texts_ids[i]))

    def some(part: Sequence[int]) -> None:
        out_NC[list(part)] = _scores(lm, task, [texts_ids[i] for i in part]).cpu()

    for _ in (limit or BatchLimit()).map(some, order, "scoring labels"):
        pass
    return out_NC


def _scores(lm: LanguageModel, task: BoundTask, ids: Sequence[Sequence[int]]) -> Tensor:
    """One pass for all classes whose verbaliser is one token, and one for each other class."""
    out_NC = torch.empty(len(ids), len(task.label_ids), device=lm.device)
    single = [c for c, tokens in enumerate(task.label_ids) if len(tokens) == 1]
    if single:
        log_probs_NLV, _ = _log_probs(lm, task, ids, single[0])
        out_NC[:, single] = log_probs_NLV[:, 0, [task.label_ids[c][0] for c in single]]
    for c in sorted(set(range(len(task.label_ids))) - set(single)):
        log_probs_NLV, labels_NL = _log_probs(lm, task, ids, c)
        out_NC[:, c] = log_probs_NLV.gather(-1, labels_NL.unsqueeze(-1))[..., 0].sum(-1)
    return out_NC


def _log_probs(
    lm: LanguageModel, task: BoundTask, ids: Sequence[Sequence[int]], label: int
) -> tuple[Tensor, Tensor]:
    """At the positions that predict the label's tokens (N, L, V), and those tokens (N, L)."""
    batch = task.collate(ids, [label] * len(ids)).to(lm.device)
    hidden_NLD = lm.hidden(batch.embed(lm.embeddings_VE), batch.predict_at_NL)
    logits_NLV, _ = lm.head(hidden_NLD)
    return torch.log_softmax(logits_NLV, -1), batch.label_ids_NL


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
