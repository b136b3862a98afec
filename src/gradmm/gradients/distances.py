"""How far a set's gradient is from the target: `D(G, T)`, always float32, one number per set.

cosine        1 - <G, T> / (|G| |T|)
relative_l2   |G - T|^2 / |T|^2
tag           |G - T|^2 + tag_factor |G - T|_1      (Deng et al. 2021; needs the matrices)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from gradmm.gradients.factors import Factors, Inner, inner
from gradmm.gradients.target import ClassTarget

DistanceName = Literal["cosine", "relative_l2", "tag"]
Formula = Callable[[Tensor, Tensor, Tensor], Tensor]
"""D as a function of <G, G>, <G, T> and <T, T>, elementwise."""
_NO_DISTANCE = 1e-9  # below it a cosine distance in float32 is rounding


class DistanceConfig(BaseModel):
    """Which distance, of which gradients, over which of the head's parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: DistanceName = "cosine"
    """The formula."""
    classes: Literal["together", "apart"] = "together"
    """Of the mean gradient of all classes' texts, which a training follows, or of every class's own (the paper's).
    ADMM, whose blocks are of one class, always takes each class's own."""
    bias: Literal["joint", "separate", "ignore"] = "joint"
    """A head's bias: one vector with the weight; a distance of its own, averaged (the official code; `tag` is a
    sum either way); left out."""
    tag_factor: float = 0.01
    """Weight of the L1 norm in `tag`."""


def matched_together(config: DistanceConfig, num_classes: int) -> list[list[int]]:
    """Classes whose texts have one mean gradient."""
    labels = list(range(num_classes))
    return [labels] if config.classes == "together" else [[label] for label in labels]


def distance(config: DistanceConfig, sets: Factors, target: ClassTarget, has_bias: bool) -> Tensor:
    """D(G_k, target) for every set, differentiable with respect to the factors.

    Args:
        config: which distance.
        sets: gradients of K sets.
        target: the class's target.
        has_bias: whether the model's head has a bias at all.

    Returns:
        (K,), float32.
    """
    bias = config.bias if has_bias else "ignore"
    if config.name == "tag":
        return _tag(sets, target, config.tag_factor, bias)
    return _by_component(FORMULAS[config.name], bias, inner(sets, sets), target.inner(sets), target.square_norm())


def distance_between(config: DistanceConfig, mine: ClassTarget, target: ClassTarget, has_bias: bool) -> float:
    """D(mine, target) of two mean gradients, however each is held."""
    bias = config.bias if has_bias else "ignore"
    if config.name == "tag":
        return float(_tag_of(mine.materialised(), target.materialised(), config.tag_factor, bias))
    inners = (mine.square_norm(), target.inner_with(mine), target.square_norm())
    return float(_by_component(FORMULAS[config.name], bias, *inners))


def components(found: Inner, bias: str) -> Tensor:
    """The inner products that a distance is computed from, each on its own (Q, K); it is the mean over Q.

    Args:
        found: of the head's weight and bias.
        bias: as in `DistanceConfig.bias`; `ignore` where the head has none.
    """
    if bias == "separate":
        return torch.stack([found.weight_K, found.bias_K])
    return (found.weight_K if bias == "ignore" else found.weight_K + found.bias_K).unsqueeze(0)


def log_scale(distance: Tensor) -> Tensor:
    """Log D, what searches add other terms to: a nat of it is a factor in D, whatever the size of D."""
    return distance.clamp_min(_NO_DISTANCE).log()


def _by_component(formula: Formula, bias: str, gg: Inner, gt: Inner, tt: Inner) -> Tensor:
    return formula(components(gg, bias), components(gt, bias), components(tt, bias)).mean(0)


def _cosine(gg_K: Tensor, gt_K: Tensor, tt_K: Tensor) -> Tensor:
    tiny = torch.finfo(gg_K.dtype).tiny
    return 1 - gt_K / (gg_K.clamp_min(tiny).sqrt() * tt_K.clamp_min(tiny).sqrt())


def _relative_l2(gg_K: Tensor, gt_K: Tensor, tt_K: Tensor) -> Tensor:
    return (gg_K - 2 * gt_K + tt_K) / tt_K.clamp_min(torch.finfo(tt_K.dtype).tiny)


FORMULAS: dict[str, Formula] = {"cosine": _cosine, "relative_l2": _relative_l2}


def _tag(sets: Factors, target: ClassTarget, factor: float, bias: str) -> Tensor:
    theirs = target.materialised()
    distances = []
    for k in range(sets.num_sets):  # one matrix at a time
        one = Factors(sets.r_KJV[k : k + 1], sets.h_KJD[k : k + 1], sets.weight_KJ[k : k + 1])
        distances.append(_tag_of(ClassTarget(one, None).materialised(), theirs, factor, bias))
    return torch.stack(distances)


def _tag_of(mine: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], factor: float, bias: str) -> Tensor:
    pairs = list(zip(mine, theirs, strict=True))[: 1 if bias == "ignore" else 2]
    parts = [(a - b).square().sum() + factor * (a - b).abs().sum() for a, b in pairs]
    return torch.stack(parts).sum()
