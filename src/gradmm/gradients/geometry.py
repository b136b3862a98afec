"""How many numbers a class's target has in a space, and how they stand in the vector that is clipped and released.

Shape suffixes: M numbers, V' and D' of the weight's gradient in the space, K sets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradmm.data.task import BoundTask
from gradmm.gradients.factors import Factors
from gradmm.gradients.spaces import Space, SpaceConfig
from gradmm.gradients.target import ClassTarget
from gradmm.models import LanguageModel


@dataclass(frozen=True)
class Geometry:
    """Sizes of a class's target in a space."""

    rows: int
    """V' of the weight's gradient in the space."""
    columns: int
    """D' of it."""
    with_bias: bool
    """Whether the gradient of the head's bias (V') is part of the vector that is clipped and released."""

    @property
    def dimension(self) -> int:
        """M: numbers of one class's target."""
        return self.rows * self.columns + (self.rows if self.with_bias else 0)

    def flat(self, factors: Factors) -> Tensor:
        """Gradients of K sets as vectors (K, M), float64, each computed on its own."""
        return torch.stack([self._one(factors.sets([k])) for k in range(factors.num_sets)])

    def _one(self, factors: Factors) -> Tensor:
        weight_1VD, bias_1V = Factors(*(value.double() for value in factors.tensors())).dense()
        parts = [weight_1VD.flatten(), *([bias_1V.flatten()] if self.with_bias else [])]
        return torch.cat(parts)

    def target(self, mean_M: Tensor, device: torch.device, noise_std: float = 0.0) -> ClassTarget:
        """The inverse of `flat` for one mean, as float32, with noise on it; a bias that is no part of it is 0."""
        size = self.rows * self.columns
        bias_V = mean_M[size:] if self.with_bias else mean_M.new_zeros(self.rows)
        weight_VD = mean_M[:size].view(self.rows, self.columns)
        dense = weight_VD.float().to(device), bias_V.float().to(device)
        return ClassTarget(None, dense, noise_std=noise_std)


def planned_geometry(lm: LanguageModel, task: BoundTask, config: SpaceConfig, with_bias: bool) -> Geometry:
    """Sizes before the space is fitted; `subspace` may find fewer directions than it is asked for.

    Args:
        lm: the model, for the sizes of its head.
        task: its label tokens are what `verbaliser` keeps.
        config: the space's settings.
        with_bias: as of `geometry`.
    """
    rows, columns = lm.head.weight_VD.shape
    of_labels = len({token for ids in task.label_ids for token in ids})
    if config.loss == "verbalisers":
        rows = of_labels
    for name in config.maps:
        if name == "verbaliser":
            rows = of_labels
        if name == "contrasts":
            rows = max(1, rows - 1)
        if name in ("subspace", "sketch"):
            rows, columns = min(rows, config.rank), min(columns, config.rank)
    return Geometry(rows, columns, with_bias)


def geometry(lm: LanguageModel, space: Space, with_bias: bool) -> Geometry:
    """Sizes of a model's target in a space; no row is needed.

    Args:
        lm: the model, for the sizes of its head.
        space: maps the factors.
        with_bias: whether the distance uses the head's bias.
    """
    vocabulary, hidden = space.loss.size(lm.head), lm.head.weight_VD.shape[1]
    one = torch.zeros(1, 1, 1, device=lm.device)
    mapped = space(Factors(one.expand(1, 1, vocabulary), one.expand(1, 1, hidden), one[0]))
    return Geometry(mapped.r_KJV.shape[-1], mapped.h_KJD.shape[-1], with_bias)
