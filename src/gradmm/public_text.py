"""Public text: what the LM writes after the class prompts. No real row has a part in it.

Losses are calibrated on it and spaces fitted, and a private run takes its clip from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from gradmm.blocks import BlockRunner
from gradmm.gradients.factors import Factors, as_one_set
from gradmm.gradients.losses import VOCABULARY, Loss, VerbaliserLoss
from gradmm.gradients.spaces import Space, fit_space
from gradmm.memory import by_length
from gradmm.seeds import make_generator
from gradmm.solvers.judging import Judge


class PublicText:
    """Fits what is to be fitted before there is a target.

    Args:
        runner: the run's model, task and settings.
    """

    def __init__(self, runner: BlockRunner) -> None:
        self.lm, self.task, self.config, self.limit = runner.lm, runner.task, runner.config, runner.limit
        self.count = self.config.space.public_count(len(runner.counts))
        """Texts of every class that are looked at."""

    def fit_space(self, texts: Sequence[Sequence[str]]) -> Space:
        """The space of the settings, fitted on what the LM wrote for each class."""
        generator = make_generator(self.config.seed, "space")
        label_ids, loss = [token for ids in self.task.label_ids for token in ids], self._fit_loss(texts)
        if isinstance(loss, VerbaliserLoss):
            label_ids = list(range(len(loss.tokens_M)))
        parts = [part for own in self.factors(texts, Space((), loss)) for part in own]
        return fit_space(self.config.space, as_one_set(parts), label_ids, generator, loss)

    def factors(self, texts: Sequence[Sequence[str]], space: Space) -> list[list[Factors]]:
        """Per class, gradients in a space, one set for each text."""
        look = Judge(self.lm, self.task, space, self.limit, reads=False)
        doing = "computing the gradients of public text"
        return [
            [factors for factors, _ in look([(label, own[i]) for i in by_length(own)], doing)]
            for label, own in enumerate(self.ids(texts))
        ]

    def ids(self, texts: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """Per class, tokens of those texts that are looked at."""
        return [self.task.texts_ids(list(own[: self.count]) or ["."]) for own in texts]

    def _fit_loss(self, texts: Sequence[Sequence[str]]) -> Loss:
        """The loss of the settings, calibrated."""
        if self.config.space.loss == "vocabulary":
            return VOCABULARY
        loss, found = VerbaliserLoss.of(self.task, self.lm.device), list[Tensor]()
        for label, ids in enumerate(self.ids(texts)):
            ordered = [ids[i] for i in by_length(ids)]
            parts = self.limit.map(partial(self._logits, loss, label), ordered, "calibrating the verbalisers")
            found.append(torch.cat(list(parts)))
        return loss.calibrated(self.task, found)

    @torch.no_grad()
    def _logits(self, loss: VerbaliserLoss, label: int, ids: Sequence[Sequence[int]]) -> Tensor:
        """Of the verbalisers' tokens at a class's label places (N, L, M)."""
        batch = self.task.collate(ids, [label] * len(ids)).to(self.lm.device)
        hidden_NLD = self.lm.hidden(batch.embed(self.lm.embeddings_VE), batch.predict_at_NL)
        return self.lm.head.rows(loss.tokens_M)(hidden_NLD)[0]
