"""The theorem's premise, measured: how far the gradient on a set of texts is from that on the real rows.

Fine-tuning on a set is gradient descent with an error e(theta) = grad L_set(theta) - grad L_real(theta). Where
L_real is smooth and satisfies the Polyak-Lojasiewicz inequality, such a descent comes as near to the optimum as
|e| allows (see `docs/method.md`); so what has to be small is the error, relative to the real gradient, at the
pretrained weights *and along the path* that the training takes. Both are measured here, on the head and on all
weights, for the loss whose gradient is matched: cross-entropy of the label's tokens over the vocabulary, mean over
classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradmm.data.task import BoundTask
from gradmm.labelling import own_log_probs
from gradmm.models import LanguageModel
from gradmm.training.finetune import FineTuner, TrainConfig
from gradmm.training.rows import TokenRows
from gradmm.training.trainable import TrainableModel


@dataclass(frozen=True)
class PathPoint:
    """One place on the path of a training on the set."""

    step: int
    error_all: float
    """|grad L_set - grad L_real| / |grad L_real| over all weights."""
    error_head: float
    """The same over the head's own weights; where they are also the embedding table, that use is left out."""
    cosine_all: float
    """Cosine of the two gradients over all weights."""
    weights_apart: float | None
    """Distance between the weights reached on the set and on the real rows in as many steps, relative to how far
    the latter are from the start; None as long as these have not moved."""


def follow(
    lm: LanguageModel,
    task: BoundTask,
    made: TokenRows,
    real: TokenRows,
    config: TrainConfig,
    points: Sequence[int],
    batch_size: int = 32,
) -> list[PathPoint]:
    """Trains on a set and on real rows side by side, and compares gradients on the way.

    Args:
        lm: where both start.
        task: the rendering.
        made: the set of texts.
        real: the real rows.
        config: how is trained, on either.
        points: steps at which to look, rising, the last one at most `config.max_steps`.
        batch_size: texts whose gradients are computed at once.
    """
    here, there = FineTuner(lm, task, made, config), FineTuner(lm, task, real, config)
    start, found = here.model.snapshot(), list[PathPoint]()
    for step in points:
        for tuner in (here, there):
            while tuner.state.step < step:
                tuner.step()
        ours = mean_gradient(here.model, task, made, batch_size)
        theirs = mean_gradient(here.model, task, real, batch_size)
        found.append(
            PathPoint(
                step,
                _relative(ours["all"], theirs["all"]),
                _relative(ours["head"], theirs["head"]),
                float(ours["all"] @ theirs["all"] / (ours["all"].norm() * theirs["all"].norm())),
                _apart(here.model.snapshot(), there.model.snapshot(), start),
            )
        )
    return found


def mean_gradient(model: TrainableModel, task: BoundTask, rows: TokenRows, batch_size: int) -> dict[str, Tensor]:
    """Gradient of the mean over classes of each class's (weighted) mean loss.

    Returns:
        `all` weights, and the `head`'s own use of its matrix, flat, float32.
    """
    share = _shares(rows)
    parameters, kept = list(model.parameters().values()), model.head
    apart_VD = kept.weight_VD.detach().clone().requires_grad_(True)  # an embedding table may be the same matrix
    for parameter in parameters:
        parameter.grad = None
    model.head = replace(kept, weight_VD=apart_VD)
    try:
        order = sorted(range(len(rows)), key=lambda i: len(rows.ids[i]))
        for at in range(0, len(order), batch_size):
            part = order[at : at + batch_size]
            ids, labels = [rows.ids[i] for i in part], [rows.labels[i] for i in part]
            share_N = torch.tensor([share[i] for i in part], device=model.device)
            torch.autograd.backward((-own_log_probs(model, task, ids, labels) * share_N).sum())
    finally:
        model.head = kept
    assert apart_VD.grad is not None, "rows are not empty"
    flat = [_gradient(one, apart_VD.grad if one is kept.weight_VD else None) for one in parameters]
    return {"all": torch.cat(flat), "head": apart_VD.grad.flatten().float()}


def _shares(rows: TokenRows) -> list[float]:
    """What every row counts in the mean over classes of weighted means."""
    weights = rows.weights or [1.0] * len(rows)
    totals: dict[int, float] = {}
    for weight, label in zip(weights, rows.labels, strict=True):
        totals[label] = totals.get(label, 0.0) + weight
    return [w / (totals[label] * len(totals)) for w, label in zip(weights, rows.labels, strict=True)]


def _gradient(parameter: Tensor, more: Tensor | None) -> Tensor:
    """A weight's gradient, flat, which is taken off it."""
    own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    parameter.grad = None
    return (own if more is None else own + more).flatten().float()


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def _apart(here: Mapping[str, Tensor], there: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float | None:
    apart = sum(float((here[name] - there[name]).double().square().sum()) for name in start)
    far = sum(float((there[name] - start[name]).double().square().sum()) for name in start)
    return float((apart / far) ** 0.5) if far else None
