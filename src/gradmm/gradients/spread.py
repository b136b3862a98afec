"""How much the gradients of a class's rows differ from one another, wherever hidden states are shifted to later.

With G_i = sum_j r_j h_j^T of row i and g_i = sum_j r_j of the head's bias, a shift of h by m makes of it

    |G_i - g_i m^T|^2 = |G_i|^2 - 2 m . p_i + |m|^2 |g_i|^2         p_i = sum_jk (r_j . r_k) h_k = G_i^T g_i

so three means over rows are enough, streamed beside their sum. The mean of n rows is then off its expectation by

    E |mean - E G|^2 = (mean |G_i|^2 - |mean|^2) / (n - 1)

without bias, whatever the rows' distribution.

Shape suffixes: K rows, J label tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradmm.gradients.factors import Factors, Inner


@dataclass(frozen=True)
class Spread:
    """Means over rows, float64 on the CPU."""

    rows: int
    square_weight: float
    """|G_i|^2, of the head's weight."""
    square_bias: float
    """|g_i|^2, of its bias."""
    pull_D: Tensor
    """p_i."""

    def shifted(self, shift_D: Tensor) -> Spread:
        """After G -> G - g m^T."""
        m_D = shift_D.cpu().double()
        moved = float(m_D @ m_D) * self.square_bias - 2 * float(m_D @ self.pull_D)
        return replace(self, square_weight=self.square_weight + moved, pull_D=self.pull_D - self.square_bias * m_D)

    def square_norm(self) -> Inner:
        """Mean over rows of the squared norm of a row's gradient, as tensors of one element."""
        return Inner(torch.tensor([self.square_weight]), torch.tensor([self.square_bias]))

    def tensors(self) -> dict[str, Tensor]:
        """For the run folder; `from_tensors` reads it back."""
        squares = torch.tensor([self.square_weight, self.square_bias], dtype=torch.float64)
        return {"spread_rows": torch.tensor([self.rows]), "spread_squares": squares, "spread_pull": self.pull_D}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> Spread | None:
        """Inverse of `tensors`; None where there are none."""
        if "spread_rows" not in tensors:
            return None
        weight, bias = tensors["spread_squares"].tolist()
        return Spread(int(tensors["spread_rows"]), weight, bias, tensors["spread_pull"].cpu())


class SpreadCounter:
    """Adds up what a spread is the mean of, batch by batch."""

    def __init__(self) -> None:
        self._rows, self._squares, self._pull_D = 0, torch.zeros(2, dtype=torch.float64), torch.zeros(())

    def add(self, rows: Factors) -> None:
        """Adds rows, each a set of its own."""
        weighted_KJV = rows.r_KJV * rows.weight_KJ.unsqueeze(-1)
        rr_KJI = weighted_KJV @ weighted_KJV.transpose(1, 2)
        pull_KJD = rr_KJI @ rows.h_KJD
        squares = torch.stack([(pull_KJD * rows.h_KJD).sum((1, 2)), rr_KJI.sum((1, 2))], dim=1)
        self._rows += rows.num_sets
        self._squares = self._squares + squares.cpu().double().sum(0)
        self._pull_D = self._pull_D + pull_KJD.sum(1).cpu().double().sum(0)

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint; `load` takes them."""
        counted = {"spread_counted": torch.tensor([self._rows])}
        return counted | {"spread_square_sums": self._squares, "spread_pull_sum": self._pull_D}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the place of what was added."""
        self._rows = int(tensors["spread_counted"])
        self._squares, self._pull_D = tensors["spread_square_sums"].cpu(), tensors["spread_pull_sum"].cpu()

    def mean(self) -> Spread:
        """Of all rows that were added."""
        weight, bias = (self._squares / self._rows).tolist()
        return Spread(self._rows, weight, bias, self._pull_D / self._rows)
