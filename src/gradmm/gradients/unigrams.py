"""How often each token stands in a class's rows: what a language model's loss says of them by a bias of its head.

For next tokens y that a model finds probable by p = softmax(z + b),

    d/db mean(-log p_y) = mean p - f      at b = 0, with f_v the share of token v among all y

so the shares f are all of that gradient that real rows decide. It is zero where the model's texts have every word
as often as the rows have it; the gradient at the label, which the distance is of, says next to nothing of words.

Shape suffixes: V vocabulary, W words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradmm.data.task import BoundTask
from gradmm.data.vocabulary import bare_starts, word_tokens

FEWEST_ROWS = 3
"""Rows of a class that hold a token, for its share to be more than 0: names and numbers of one row stay there."""
FLOOR = 2e-4
"""Shares below it are never told apart."""


@dataclass(frozen=True)
class Unigrams:
    """Shares of tokens in texts of one class."""

    share_V: Tensor
    """Mean over texts of each token's share of the text, float64; 0 of tokens that too few texts hold."""
    floor: float
    """Shares well below it are not told apart: of how few tokens they were counted, or their noise, decides."""
    clip: float | None = None
    """Only words were counted, and no text's shares of them had a larger L2 norm; None where all tokens were."""
    noise_std: float = 0.0
    """Standard deviation of the noise on every share; 0 of exact ones."""

    def tensors(self) -> dict[str, Tensor]:
        """For the run folder; `from_tensors` reads it back."""
        assert self.clip is None, "a private release is kept as it was drawn"
        return {"unigrams": self.share_V, "unigrams_floor": torch.tensor([self.floor], dtype=torch.float64)}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor]) -> Unigrams | None:
        """Inverse of `tensors`; None where there are none."""
        if "unigrams" not in tensors:
            return None
        return Unigrams(tensors["unigrams"].cpu(), float(tensors["unigrams_floor"]))


class TokenShares:
    """A text's shares of tokens.

    The first token of a text is counted as the one that it is after a space (`bare_starts`): a model that writes
    after a prompt draws that one.

    Args:
        task: the rendering.
        vocab_size: V.
    """

    def __init__(self, task: BoundTask, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._opens_V = (
            bare_starts(task.tokenizer, vocab_size)[1] if task.starts_bare else torch.arange(vocab_size)
        )
        self.words_V = word_tokens(task.tokenizer, vocab_size)
        """Marks tokens that open a word."""

    def of_all(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Tokens of a text that has some, each once, and their shares of it, float64."""
        found, times = torch.unique(torch.tensor([int(self._opens_V[ids[0]]), *ids[1:]]), return_counts=True)
        return found, times.double() / len(ids)

    def of_words(self, ids: Sequence[int]) -> Tensor:
        """Shares of all words, in the order of their tokens (W), float64; zeros where there is no token."""
        share_V = torch.zeros(self.vocab_size, dtype=torch.float64)
        if len(ids):
            found, share = self.of_all(ids)
            share_V[found] = share
        return share_V[self.words_V]


class UnigramCounter:
    """Counts tokens, text by text.

    Args:
        task: the rendering.
        vocab_size: V.
        clip: as of `Unigrams`, to count texts as rows were counted.
    """

    def __init__(self, task: BoundTask, vocab_size: int, clip: float | None = None) -> None:
        self._shares, self._clip = TokenShares(task, vocab_size), clip
        self._share_V = torch.zeros(vocab_size, dtype=torch.float64)
        self._rows_V = torch.zeros(vocab_size, dtype=torch.long)
        self._rows, self._tokens = 0, 0

    def add(self, texts_ids: Sequence[Sequence[int]]) -> None:
        """Adds texts, as tokens; one without any says nothing."""
        for ids in filter(len, texts_ids):
            found, share = self._shares.of_all(ids)
            if self._clip is not None:
                are_words = self._shares.words_V[found]
                found, share = found[are_words], share[are_words]
                share = share * (self._clip / max(float(share.norm()), self._clip))
            self._share_V[found] += share
            self._rows_V[found] += 1
            self._rows += 1
            self._tokens += len(ids)

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint; `load` takes them."""
        sizes = torch.tensor([self._rows, self._tokens])
        return {"share_sums": self._share_V, "rows_with_token": self._rows_V, "rows_and_tokens": sizes}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the place of what was added."""
        self._share_V, self._rows_V = tensors["share_sums"].cpu(), tensors["rows_with_token"].cpu()
        self._rows, self._tokens = tensors["rows_and_tokens"].tolist()

    def mean(self, fewest_rows: int = FEWEST_ROWS) -> Unigrams:
        """Of all texts that were added; nothing of none.

        Args:
            fewest_rows: texts that a token has to stand in; 1 counts all, where nobody is told of by it.
        """
        share_V = self._share_V / max(1, self._rows)
        kept_V = share_V.masked_fill(self._rows_V < fewest_rows, 0.0)
        return Unigrams(kept_V, FLOOR + 1 / max(1, self._tokens), self._clip)
