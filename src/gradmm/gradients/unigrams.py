"""How often each token stands in a class's rows: what a language model's loss says of them by a bias of its head.

For next tokens y that a model finds probable by p = softmax(z + b),

    d/db mean(-log p_y) = mean p - f      at b = 0, with f_v the share of token v among all y

so the shares f are all of that gradient that real rows decide. It is zero where the model's texts have every word
as often as the rows have it; the gradient at the label, which the distance is of, says next to nothing of words.

Shape suffixes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradmm.data.task import BoundTask
from gradmm.data.vocabulary import bare_starts

FEWEST_ROWS = 3
"""Rows of a class that hold a token, for its share to be more than 0: names and numbers of one row stay there."""
_FLOOR = 2e-4


@dataclass(frozen=True)
class Unigrams:
    """Shares of tokens in texts of one class."""

    share_V: Tensor
    """Mean over texts of each token's share of the text, float64; 0 of tokens that too few texts hold."""
    floor: float
    """Shares well below it are not told apart: of how few tokens they were counted decides."""

    def tensors(self) -> dict[str, Tensor]:
        """For the run folder; `from_tensors` reads it back."""
        return {"unigrams": self.share_V, "unigrams_floor": torch.tensor([self.floor], dtype=torch.float64)}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor]) -> Unigrams | None:
        """Inverse of `tensors`; None where there are none."""
        if "unigrams" not in tensors:
            return None
        return Unigrams(tensors["unigrams"].cpu(), float(tensors["unigrams_floor"]))


class UnigramCounter:
    """Counts tokens, text by text.

    The first token of a text is counted as the one that it is after a space (`bare_starts`): a model that writes
    after a prompt draws that one.

    Args:
        task: the rendering.
        vocab_size: V.
    """

    def __init__(self, task: BoundTask, vocab_size: int) -> None:
        self._opens_V = (
            bare_starts(task.tokenizer, vocab_size)[1] if task.starts_bare else torch.arange(vocab_size)
        )
        self._share_V = torch.zeros(vocab_size, dtype=torch.float64)
        self._rows_V = torch.zeros(vocab_size, dtype=torch.long)
        self._rows, self._tokens = 0, 0

    def add(self, texts_ids: Sequence[Sequence[int]]) -> None:
        """Adds texts, as tokens; one without any says nothing."""
        for ids in filter(len, texts_ids):
            found, times = torch.unique(torch.tensor([int(self._opens_V[ids[0]]), *ids[1:]]), return_counts=True)
            self._share_V[found] += times / len(ids)
            self._rows_V[found] += 1
            self._rows += 1
            self._tokens += len(ids)

    def mean(self, fewest_rows: int = FEWEST_ROWS) -> Unigrams:
        """Of all texts that were added; nothing of none.

        Args:
            fewest_rows: texts that a token has to stand in; 1 counts all, where nobody is told of by it.
        """
        share_V = self._share_V / max(1, self._rows)
        return Unigrams(share_V.masked_fill(self._rows_V < fewest_rows, 0.0), _FLOOR + 1 / max(1, self._tokens))
