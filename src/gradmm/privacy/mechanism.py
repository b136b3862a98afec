"""The mechanism: clip every row, sum exactly, add noise once.

    v = trunc(g min(1, (1 - 2^-20) C / |g|) / q) q        a row; 0 where g is not finite
    S_c = sum of v over the rows of class c               exact, in float64
    release = (S_1, ..., S_C) + N(0, (z C)^2)             one query

Why a row moves the sums by at most C, with the rounding that computers do and not without it:

- The norm of M float64 numbers is computed with a relative error below (M + 3) 2^-53, and the product rounds by
  2^-53; for M up to 2^31 both together are less than the 2^-20 that the clip gives away. So |v| <= C.
- v is a multiple of the quantum q = 2^floor(log2 C) / 2^28, rounded towards 0, which shortens it further. Up to
  2^23 rows, all sums are whole numbers of quanta below 2^53, so every addition is exact: the sum does not depend
  on its order, and a row more changes it by that row's v and by nothing else. (A float sum that rounds can move by
  far more than one row: Casacuberta et al. 2022.)
- A row belongs to one class, so its v stands in one block of the concatenation: its norm is that of v. One row
  exchanged for another moves two blocks at most, by |v| + |v'| <= 2 C.

Noise of up to `EXACT` numbers is that of opendp: the discrete Gaussian on multiples of 2^-1074, sampled exactly
from the operating system's random bits (Canonne, Kamath, Steinke 2020), added exactly, then rounded to float64,
which is post-processing. No bit of the result says more than theory says (Mironov 2012). More numbers take Box and
Muller's formula over the operating system's random bits, rounded to multiples of q before it is added, so that the
addition is exact too and no bit of the sum shines through; what is approximate is the noise's own distribution, by
float64's rounding of the formula and a tail of 1e-17 that is missing beyond 8.6 standard deviations.

No generator stands between the operating system and the noise: torch's takes 32 bits of a seed, which can be tried
out.

Shape suffixes: C classes, K rows, M numbers of a row's gradient in the space.
"""

from __future__ import annotations

import math
import os
from importlib.metadata import version
from typing import Protocol

import torch
from torch import Tensor

from gradmm.errors import DataError
from gradmm.privacy.accounting import Gaussian, Relation

EXACT = 2**17
"""As many numbers take exactly sampled noise (6 s); more take the faster one."""
MOST_ROWS = 2**23
"""Rows of a class whose sum is exact."""
_GIVEN_AWAY = 2.0**-20
_QUANTA = 2**28
_PAIRS = 2**20  # of random numbers at once


class Noise(Protocol):
    """Where noise comes from."""

    is_private: bool
    """Whether nobody can know or repeat it."""

    def describe(self, dimension: int) -> str:
        """How so many numbers are drawn, for the ledger."""

    def added(self, values_M: Tensor, std: float, quantum: float) -> Tensor:
        """Values (M), float64 multiples of the quantum, with independent noise on each."""


class SystemNoise:
    """Noise that nobody can know or repeat: it has no seed. What releases use unless a test says otherwise."""

    is_private = True

    def describe(self, dimension: int) -> str:
        """How so many numbers are drawn."""
        if dimension <= EXACT:
            return f"opendp {version('opendp')}, discrete Gaussian, exactly sampled"
        return "Box-Muller over the operating system's random bits, float64"

    def added(self, values_M: Tensor, std: float, quantum: float) -> Tensor:
        """Values (M) with noise."""
        if len(values_M) <= EXACT:
            return _exactly(values_M, std)
        return values_M + torch.round(_normals(len(values_M)) * (std / quantum)) * quantum


class FixedNoise:
    """The same noise every time, for tests that look at what else changes. A release with it is not private."""

    is_private = False

    def __init__(self, *, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def describe(self, dimension: int) -> str:
        """That it is fixed."""
        return "fixed for a test: NOT PRIVATE"

    def added(self, values_M: Tensor, std: float, quantum: float) -> Tensor:
        """Values (M) with noise."""
        return values_M + std * torch.randn(len(values_M), dtype=torch.float64, generator=self._generator)


def _exactly(values_M: Tensor, std: float) -> Tensor:
    """With opendp's noise; its own statement of the cost is held against ours."""
    import opendp.prelude as dp

    dp.enable_features("contrib")
    assert bool(values_M.isfinite().all()), "opendp would put numbers of its own in their place"
    domain = dp.vector_domain(dp.atom_domain(T=float, nan=False), size=len(values_M))
    measurement = dp.m.make_gaussian(domain, dp.l2_distance(T=float), scale=std)
    rho = float(measurement.map(std))  # type: ignore[no-untyped-call]
    assert rho <= 0.5 * (1 + 1e-9), "of a sensitivity of one standard deviation"
    return torch.tensor(measurement(values_M.tolist()), dtype=torch.float64)


def _normals(count: int) -> Tensor:
    """Standard normal numbers (count), float64, from the operating system's random bits."""
    parts = [_box_muller(min(_PAIRS, (count - start + 1) // 2)) for start in range(0, count, 2 * _PAIRS)]
    return torch.cat(parts)[:count]


def _box_muller(pairs: int) -> Tensor:
    bits = torch.frombuffer(bytearray(os.urandom(16 * pairs)), dtype=torch.int64)
    uniform = ((bits & (2**53 - 1)).double() + 0.5) * 2.0**-53  # above 0; the last step to 1 rounds up to it
    radius = (-2 * uniform[:pairs].log()).sqrt()
    angle = 2 * math.pi * uniform[pairs:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()])


def quantum_of(clip: float) -> float:
    """q: a power of two, from clip / 2^29 to clip / 2^28."""
    assert 0 < clip < math.inf, clip
    quantum = math.ldexp(1.0, math.frexp(clip)[1] - 1) / _QUANTA
    assert quantum > 0, clip
    return quantum


def clipped(rows_KM: Tensor, clip: float) -> Tensor:
    """Rows whose norm is at most the clip, as multiples of its quantum (K, M), float64.

    A row with a number that is not finite becomes 0: to refuse it would tell that it is there.

    Args:
        rows_KM: gradients of single rows, of any float type.
        clip: C, above 0.
    """
    rows_KM, quantum = rows_KM.double(), quantum_of(clip)
    rows_KM = torch.where(rows_KM.isfinite().all(1, keepdim=True), rows_KM, 0.0)
    largest_K1 = rows_KM.abs().amax(1, keepdim=True)
    largest_K1 = torch.where(largest_K1 > 0, largest_K1, 1.0)  # squares neither overflow nor vanish
    relative_K1 = torch.linalg.vector_norm(rows_KM / largest_K1, dim=1, keepdim=True)
    within = (1 - _GIVEN_AWAY) * clip
    scale_K1 = torch.where(relative_K1 > within / largest_K1, within / relative_K1 / largest_K1, 1.0)
    return torch.trunc(rows_KM * scale_K1 / quantum) * quantum


def counts_bound(relation: Relation) -> float:
    """What stands for the clip where rows are counted by class: the event of noise z times it is `Gaussian(z)`.

    A row more moves the counts by 1. A row exchanged for one of another class moves two counts by 1 each, by
    sqrt(2); the accountant takes twice the bound for it.
    """
    return 1.0 if relation == "add_or_remove_one" else math.sqrt(0.5)


class ClippedSums:
    """Sums of clipped rows, class by class, and how many there were: all that is ever held of real rows.

    What was not released stays inside: numbers leave with noise, and each kind once.

    Args:
        num_classes: C.
        dimension: M.
        clip: bound of a row's norm.
        device: where sums are held; it must have float64.
    """

    def __init__(self, num_classes: int, dimension: int, clip: float, device: torch.device | str = "cpu") -> None:
        self.clip, self.num_classes, self.dimension = clip, num_classes, dimension
        self._sums_CM: Tensor | None = torch.zeros(num_classes, dimension, dtype=torch.float64, device=device)
        self._counts: list[int] | None = [0] * num_classes

    def add(self, label: int, rows_KM: Tensor) -> None:
        """Adds rows of one class.

        Raises:
            DataError: if the class has too many rows for an exact sum.
        """
        assert self._sums_CM is not None, "released already"
        assert self._counts is not None, "released already"
        self._counts[label] += len(rows_KM)
        if self._counts[label] > MOST_ROWS:
            raise DataError(
                f"a class has more than {MOST_ROWS:,} rows, too many for an exact sum; release from a part of them"
            )
        self._sums_CM[label] += clipped(rows_KM, self.clip).sum(0)

    def release(self, event: Gaussian, noise: Noise) -> Tensor:
        """The sums (C, M) with noise of z C on each number; they are gone afterwards."""
        assert self._sums_CM is not None, "released already: another draw is another release"
        assert event == Gaussian(event.noise_multiplier), event
        sums_M = self._sums_CM.flatten().cpu()
        self._sums_CM = None
        std = _above(event.noise_multiplier * self.clip)
        return noise.added(sums_M, std, quantum_of(self.clip)).view(self.num_classes, self.dimension)

    def release_counts(self, event: Gaussian, relation: Relation, noise: Noise) -> tuple[float, ...]:
        """Rows of each class with noise, at least 1; they are gone afterwards."""
        assert self._counts is not None, "released already: another draw is another release"
        assert event == Gaussian(event.noise_multiplier), event
        counts_C = torch.tensor(self._counts, dtype=torch.float64)
        self._counts = None
        std = _above(event.noise_multiplier * counts_bound(relation))
        return tuple(max(1.0, value) for value in noise.added(counts_C, std, quantum_of(1.0)).tolist())


def _above(value: float) -> float:
    """The next larger float: a product that was rounded down would be too little noise."""
    return math.nextafter(value, math.inf)
