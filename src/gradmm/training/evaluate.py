"""How well a model tells the classes apart, through the task's verbalisers.

Shape suffixes: N texts, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradmm.data.task import BoundTask
from gradmm.errors import NonFiniteError
from gradmm.labelling import Reader, label_log_probs
from gradmm.memory import BatchLimit
from gradmm.training.rows import TokenRows

BINS = 15  # of confidence, as in Guo et al.


@dataclass(frozen=True)
class Evaluation:
    """What a classifier does on one split."""

    rows: int
    accuracy: float
    """Share of rows whose most probable class is theirs."""
    macro_f1: float
    """F1 of each class, averaged over the classes that occur, as a row's own or as a predicted one."""
    class_accuracy: tuple[float | None, ...]
    """Share of each class's rows that are recognised (recall); None for a class without rows."""
    calibration_error: float
    """Expected calibration error over 15 bins of equal width (Guo et al., 2017)."""
    loss: float
    """Mean cross-entropy over classes (nats)."""
    confusion: tuple[tuple[int, ...], ...]
    """Rows by class (first index) and by predicted class."""


def evaluate(model: Reader, task: BoundTask, rows: TokenRows, limit: BatchLimit | None = None) -> Evaluation:
    """Evaluates a model on labelled rows.

    Args:
        model: the language model, in evaluation mode.
        task: the rendering.
        rows: at least one.
        limit: texts that go through the model at once; those of like length go together.

    Raises:
        NonFiniteError: if the model finds a row's classes equally impossible, or NaN.
    """
    return judge(label_log_probs(model, task, rows.ids, limit), rows.labels)


def judge(log_probs_NC: Tensor, labels: Sequence[int]) -> Evaluation:
    """Evaluates log-probabilities of classes, normalised or not, against the right ones (N); errors as there."""
    from sklearn.metrics import confusion_matrix, f1_score  # with scipy behind it: no start-up pays for it

    fair_NC = _normalised(log_probs_NC, labels)
    right_N, found_N = torch.tensor(labels), fair_NC.argmax(-1)
    confusion = confusion_matrix(right_N.numpy(), found_N.numpy(), labels=range(fair_NC.shape[1]))
    of_class = confusion.sum(1)
    return Evaluation(
        rows=len(labels),
        accuracy=float((found_N == right_N).double().mean()),
        macro_f1=float(f1_score(right_N.numpy(), found_N.numpy(), average="macro", zero_division=0.0)),
        class_accuracy=tuple(
            float(confusion[c, c] / count) if count else None for c, count in enumerate(of_class)
        ),
        calibration_error=_calibration_error(fair_NC, found_N == right_N),
        loss=float(-fair_NC.gather(1, right_N[:, None]).mean()),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def _normalised(log_probs_NC: Tensor, labels: Sequence[int]) -> Tensor:
    assert 0 < len(labels) == len(log_probs_NC), (len(labels), len(log_probs_NC))
    assert 0 <= min(labels) <= max(labels) < log_probs_NC.shape[1], "confusion_matrix leaves other labels out"
    fair_NC = torch.log_softmax(log_probs_NC.double(), -1)
    if bad := int(fair_NC.isnan().any(1).sum()):
        raise NonFiniteError(
            f"the model gives no class of {bad} of {len(labels)} rows a probability; if it was trained, lower "
            "learning_rate, or set bf16 to false"
        )
    return fair_NC


def _calibration_error(log_probs_NC: Tensor, is_right_N: Tensor) -> float:
    """Mean over rows of the gap between their bin's mean confidence and its accuracy."""
    confidence = log_probs_NC.exp().max(-1).values.numpy()
    right = is_right_N.double().numpy()
    # A bin holds its upper edge, and what lies above it by rounding only.
    bins = (np.ceil(confidence * BINS - 1e-9).astype(int) - 1).clip(0, BINS - 1)
    gap = np.abs(np.bincount(bins, confidence - right, minlength=BINS))
    return float(gap.sum() / len(right))
