"""The target: the mean gradient of each class's real rows, as all that is downstream of a release knows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from gradmm.gradients.factors import Factors, Inner, as_one_set, inner, inner_dense
from gradmm.gradients.spaces import IDENTITY, LinearMap, Space
from gradmm.gradients.spread import Spread
from gradmm.gradients.unigrams import Unigrams


@dataclass(frozen=True)
class ClassTarget:
    """Mean gradient of one class: `factors` (of one set) or `dense` (V x D and V)."""

    factors: Factors | None
    dense: tuple[Tensor, Tensor] | None
    unigrams: Unigrams | None = None
    """How often each token stands in the rows, where that is released too."""
    spread: Spread | None = None
    """How much the rows' gradients differ; None where that is not released."""
    noise_std: float = 0.0
    """Standard deviation of the noise on every number of the gradient; 0 of an exact one."""

    def inner(self, sets: Factors) -> Inner:
        """<G_k, target> for every set."""
        if self.factors is not None:
            return inner(sets, self.factors)
        weight_VD, bias_V = cast(tuple[Tensor, Tensor], self.dense)
        return inner_dense(sets, weight_VD, bias_V)

    def inner_with(self, other: ClassTarget) -> Inner:
        """<other, target> of two mean gradients, as tensors of one element."""
        if other.factors is not None:
            return self.inner(other.factors)
        if self.factors is not None:
            return other.inner(self.factors)
        (a_VD, a_V), (b_VD, b_V) = self.materialised(), other.materialised()
        return Inner((a_VD * b_VD).sum()[None], (a_V * b_V).sum()[None])

    def square_norm(self) -> Inner:
        """||target||^2, as tensors of one element."""
        return self.inner_with(self)

    def materialised(self) -> tuple[Tensor, Tensor]:
        """The gradient as a matrix (V, D) and a vector (V)."""
        if self.factors is None:
            return cast(tuple[Tensor, Tensor], self.dense)
        weight_1VD, bias_1V = self.factors.dense()
        return weight_1VD[0], bias_1V[0]

    def bias(self) -> Tensor:
        """The gradient of the bias (V)."""
        if self.factors is None:
            return cast(tuple[Tensor, Tensor], self.dense)[1]
        return (self.factors.r_KJV[0] * self.factors.weight_KJ[0].unsqueeze(-1)).sum(0)

    def transposed(self, at_V: Tensor) -> Tensor:
        """The weight's gradient, transposed, times a vector (D)."""
        if self.factors is None:
            return cast(tuple[Tensor, Tensor], self.dense)[0].T @ at_V
        return ((self.factors.r_KJV[0] @ at_V) * self.factors.weight_KJ[0]) @ self.factors.h_KJD[0]

    def mapped(self, shift: LinearMap) -> ClassTarget:
        """The gradient after a map that only shifts h."""
        h_shift_D = cast(Tensor, shift.h_shift_D)
        spread = None if self.spread is None else self.spread.shifted(h_shift_D)
        if self.factors is not None:
            r_KJV, h_KJD = shift(self.factors.r_KJV, self.factors.h_KJD)
            return replace(self, factors=Factors(r_KJV, h_KJD, self.factors.weight_KJ), spread=spread)
        weight_VD, bias_V = self.materialised()
        return replace(self, dense=(weight_VD - bias_V.unsqueeze(1) * h_shift_D, bias_V), spread=spread)

    def tensors(self) -> dict[str, Tensor]:
        """For the run folder; `from_tensors` reads it back."""
        more = {} if self.unigrams is None else self.unigrams.tensors()
        more |= {} if self.spread is None else self.spread.tensors()
        if self.factors is not None:
            own = {"r": self.factors.r_KJV, "h": self.factors.h_KJD, "weight": self.factors.weight_KJ}
            return own | more
        weight_VD, bias_V = cast(tuple[Tensor, Tensor], self.dense)
        return {"dense_weight": weight_VD, "dense_bias": bias_V} | more

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor]) -> ClassTarget:
        """Inverse of `tensors`."""
        known = Unigrams.from_tensors(tensors), Spread.from_tensors(tensors)
        if "dense_weight" in tensors:
            return ClassTarget(None, (tensors["dense_weight"], tensors["dense_bias"]), *known)
        return ClassTarget(Factors(tensors["r"], tensors["h"], tensors["weight"]), None, *known)


def weighted_sum(parts: Sequence[ClassTarget], weights: Sequence[float]) -> ClassTarget:
    """Weighted sum of mean gradients, as factors where all are."""
    if len(parts) == 1 and weights[0] == 1:
        return parts[0]
    factors = [part.factors for part in parts if part.factors is not None]
    if len(factors) == len(parts):
        scaled = [
            Factors(own.r_KJV, own.h_KJD, own.weight_KJ * weight)
            for own, weight in zip(factors, weights, strict=True)
        ]
        return ClassTarget(as_one_set(scaled), None)
    (weight_VD, bias_V), *others = (part.materialised() for part in parts)
    weight_VD, bias_V = weight_VD * weights[0], bias_V * weights[0]
    for (more_VD, more_V), weight in zip(others, weights[1:], strict=True):
        weight_VD += more_VD * weight
        bias_V += more_V * weight
    return ClassTarget(None, (weight_VD, bias_V))


@dataclass(frozen=True)
class ReleasedTarget:
    """All that solvers ever know of the real rows."""

    classes: tuple[ClassTarget, ...]
    """One target per class."""
    space: Space = IDENTITY
    """Where the targets are; every gradient that is held against them is mapped there first."""
    whole: ReleasedTarget | None = None
    """Of a centred target, what it was before: with what all rows have in common."""

    def together(self, classes: Sequence[int], counts: Sequence[float]) -> ClassTarget:
        """Mean gradient of several classes, of so many texts each: what a training on such a set follows."""
        own, total = [self.classes[label] for label in classes], sum(counts)
        return weighted_sum(own, [count / total for count in counts])

    def centred(self) -> ReleasedTarget:
        """The targets and their space, with the hidden states' common part taken off: G -> G - grad_b m^T.

        m leaves least of all classes' gradients: sum_c G_c^T g_c / sum_c |g_c|^2, with g the gradient of the bias.
        For two classes that pull alike it is the mean of their mean hidden states. Where there is noise, classes
        count by their precision. It is computed from the released means alone.
        """
        noise = [own.noise_std for own in self.classes]
        counts = [(min(noise) / std) ** 2 for std in noise] if all(noise) else [1.0] * len(noise)
        bias = [own.bias() for own in self.classes]
        parts = list(zip(self.classes, bias, counts, strict=True))
        square = sum(float(bias_V.square().sum()) * count for _, bias_V, count in parts)
        if square == 0:
            return self
        pulls = [own.transposed(bias_V) * count for own, bias_V, count in parts]
        one = LinearMap(h_shift_D=torch.stack(pulls).sum(0) / square)
        return ReleasedTarget(tuple(own.mapped(one) for own in self.classes), self.space.then(one), self)
