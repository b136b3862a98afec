"""Tilting: what is added to a writer's logits so that words come as often as the released target has them.

    b <- b + step * log((f + floor) / (g + floor))        after every round, g the shares in what it brought

For a model whose next token does not depend on those before, one step of length 1 is exact (iterative scaling); a
real one uses a word that it has written again, so steps are shorter, and each round takes back what the last one
overdid. Only words are tilted: what stands inside a word, and punctuation, follows from what is around it.

Shape suffixes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradmm.data.vocabulary import token_strings
from gradmm.gradients.unigrams import Unigrams
from gradmm.solvers.forms import Form

_MOST = 3.0  # nats; a word that is 20 times as probable is written everywhere


class Tilt:
    """What is added to the logits of one class's writer.

    Args:
        wanted: shares of tokens in the class's real rows, as released.
        words_V: tokens that are tilted; see `data.vocabulary.word_tokens`.
        written_as_V: for each token, the one that it becomes in the form of writing.
        step: how far each round goes.
    """

    def __init__(self, wanted: Unigrams, words_V: Tensor, written_as_V: Tensor, step: float) -> None:
        self._wanted, self._words_V, self._written_as_V, self._step = wanted, words_V, written_as_V, step
        self._bias_V = torch.zeros_like(wanted.share_V)
        self.clip = wanted.clip
        """That texts have to be counted with to be learnt from."""

    def learn(self, found: Unigrams) -> None:
        """Takes a step by what was found in a round's texts."""
        floor = max(self._wanted.floor, found.floor)
        self._bias_V += self._step * ((self._wanted.share_V + floor) / (found.share_V + floor)).log()

    @property
    def bias_V(self) -> Tensor:
        """The bias now, float32."""
        own_V = self._bias_V.clamp(-_MOST, _MOST)[self._written_as_V]
        return own_V.masked_fill(~self._words_V, 0.0).float()


def written_as(tokenizer: Any, vocab_size: int, form: Form) -> Tensor:
    """For each token the one that its text becomes in a form; itself where that is no token (V,)."""
    strings: Sequence[str] = token_strings(tokenizer)[:vocab_size]
    ids_V = torch.arange(vocab_size)
    if form.is_lowercase:
        known = {string: index for index, string in reversed(list(enumerate(strings)))}
        for index, string in enumerate(strings):
            if string != string.lower():
                ids_V[index] = known.get(string.lower(), index)
    return ids_V
