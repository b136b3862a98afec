"""Random targets, and what tells two of them apart."""

from __future__ import annotations

import torch

from gradmm.gradients.factors import Factors
from gradmm.gradients.target import ClassTarget

MIXED = (" bad", " happy", " surprised")
ENDS = ("is great.", "makes me sad", "was bad", "feel", "I", "is fine and great and so on")
TEXTS = tuple(
    f"{begin} {end}" for begin in ("The film", "A dull story", "A", "The end", "It", "I") for end in ENDS
)
SPLIT = [TEXTS[:5], TEXTS[5:8], TEXTS[8:]]
"""Rows of three classes. The tiny models hold fewer than 26 pairs as factors: the last class is held densely."""


def batches(split, size):
    return [[list(own[i : i + size]) for i in range(0, len(own), size)] for own in split]


def random_sum(seed: int, pairs: int, vocabulary: int = 7, hidden: int = 5) -> Factors:
    draw = torch.Generator().manual_seed(seed)
    r_KJV, h_KJD = torch.randn(1, pairs, vocabulary, generator=draw), torch.randn(1, pairs, hidden, generator=draw)
    return Factors(r_KJV, h_KJD, torch.rand(1, pairs, generator=draw))


def assert_same(one: ClassTarget, other: ClassTarget) -> None:
    for found, expected in zip(one.materialised(), other.materialised(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
