"""Kernels: inner products between the candidates of a class, a row at a time, so that all of one is never held.

Shape suffixes: N candidates, Q components of the distance (one, or weight and bias apart), J label tokens,
V vocabulary, D hidden size, M counters.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Protocol

import torch
from torch import Tensor

from gradmm.gradients.distances import components
from gradmm.gradients.factors import Factors, Inner, inner, join_sets
from gradmm.gradients.stored import StoredFactors
from gradmm.gradients.target import ClassTarget

_GROUP_NUMBERS = 2**25  # of factors that are multiplied at once
HELD_BYTES = 2**31  # factors that are held in memory, per kernel; others are read from a file for every row


class Kernel(Protocol):
    """Inner products between N candidates, on the CPU."""

    diagonal_QN: Tensor
    """<g_i, g_i>, float64."""

    def row(self, j: int) -> Tensor:
        """<g_i, g_j> for every i (Q, N), float32 or float64; the same at every call."""


class FactorKernel:
    """Inner products of single texts' gradients, from their factors, a block of texts at a time.

    Args:
        blocks: factors of consecutive candidates, each candidate a set of its own: N J (V + D) numbers, of factors
            that a space has mapped. One pass over them gives a row, and none is ever changed.
        bias: as in `DistanceConfig.bias`; `separate` has two components, weight and bias.
        held_bytes: of factors that stay in memory; the others go into a temporary file. Results are the same.
        order: which candidate each set of `blocks` is, where they come in another order than the candidates.

    Raises:
        OutOfMemoryError: if the temporary folder has no room for the others.
    """

    def __init__(
        self,
        blocks: Iterable[Factors],
        bias: str,
        held_bytes: int = HELD_BYTES,
        order: Sequence[int] | None = None,
    ) -> None:
        self._bias = bias
        self._at_N = None if order is None else torch.tensor(order).argsort()
        self._blocks = StoredFactors(_grouped(blocks), held_bytes)
        self._starts = list(accumulate((block.num_sets for block in self._blocks), initial=0))
        self.diagonal_QN = self._each(lambda block: inner(block, block)).double()

    def row(self, j: int) -> Tensor:
        """<g_i, g_j> for every i (Q, N), float32."""
        j = j if self._at_N is None else int(self._at_N[j])
        at = bisect_right(self._starts, j) - 1
        one = self._blocks[at].sets(slice(j - self._starts[at], j - self._starts[at] + 1))
        return self._each(lambda block: inner(block, one))

    def align(self, target: ClassTarget) -> Tensor:
        """<g_i, T> for every i (Q, N), float64."""
        return self._each(target.inner).double()

    def _each(self, product: Callable[[Factors], Inner]) -> Tensor:
        """An inner product of every candidate (Q, N)."""
        found_QN = torch.cat([components(product(block), self._bias).cpu() for block in self._blocks], dim=1)
        return found_QN if self._at_N is None else found_QN[:, self._at_N]


def _grouped(blocks: Iterable[Factors]) -> Iterator[Factors]:
    """Neighbouring blocks put together, up to a size: many small ones would cost more calls than sums."""
    group: list[Factors] = []
    for block in blocks:
        size = sum(part.r_KJV.numel() + part.h_KJD.numel() for part in [*group, block])
        if group and (size > _GROUP_NUMBERS or group[0].weight_KJ.shape[1] != block.weight_KJ.shape[1]):
            yield join_sets(group)
            group = []
        group.append(block)
    if group:
        yield join_sets(group)


class SimilarityKernel:
    """Cosine of two texts' word pairs, times a weight.

    Pairs are hashed into `size` counters, so a text is a short vector whatever its language.
    """

    def __init__(self, texts: Sequence[str], weight: float, size: int = 512) -> None:
        places = [i * size + place for i, text in enumerate(texts) for place in _hashed_pairs(text, size)]
        counts_NM = torch.zeros(len(texts) * size).index_add_(0, torch.tensor(places), torch.ones(len(places)))
        self._unit_NM = torch.nn.functional.normalize(counts_NM.view(-1, size), dim=1)
        self._weight = weight
        self.diagonal_QN = torch.full((1, len(texts)), weight, dtype=torch.float64)

    def row(self, j: int) -> Tensor:
        """Weighted similarity of every text with text j (1, N), float32."""
        cosine_N = (self._unit_NM @ self._unit_NM[j]).clamp(0, 1)
        return self._weight * cosine_N[None]


def _hashed_pairs(text: str, size: int) -> Iterator[int]:
    for pair in pairwise(["", *text.lower().split(), ""]):
        yield zlib.crc32(" ".join(pair).encode()) % size
