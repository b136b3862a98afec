"""Gradient matching as ADMM's problem: blocks of token embeddings, scored by the text they stand for.

Shape suffixes: K blocks, B texts of a block, T text positions, E embedding size, N = K B texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradmm.data.task import BoundTask
from gradmm.gradients.distances import DistanceConfig, distance
from gradmm.gradients.factors import Factors
from gradmm.gradients.target import ReleasedTarget
from gradmm.memory import BatchLimit
from gradmm.models import LanguageModel
from gradmm.solvers.projection import Projector


class GradientMatching:
    """`Problem` whose objective is the distance between a block's mean gradient and its class's target.

    Args:
        lm: the language model.
        task: the rendering.
        target: released mean gradients.
        config: the distance.
        projector: vectors to readable tokens.
        labels_K: class of each block.
        lengths_KB: tokens of each text.
        limit: texts whose activations are held at once; None holds all.
    """

    def __init__(
        self,
        lm: LanguageModel,
        task: BoundTask,
        target: ReleasedTarget,
        config: DistanceConfig,
        projector: Projector,
        labels_K: Sequence[int],
        lengths_KB: Tensor,
        limit: BatchLimit | None = None,
    ) -> None:
        self.lm, self.task, self.target, self.config, self.projector = lm, task, target, config, projector
        self.labels_K, self.limit = list(labels_K), limit
        self.lengths_KB = lengths_KB.cpu()
        self.texts_per_block = lengths_KB.shape[1]
        self._labels_N = [label for label in self.labels_K for _ in range(self.texts_per_block)]
        # Any token serves as the placeholder that the variables replace.
        placeholders = [[0] * length for length in self.lengths_KB.flatten().tolist()]
        self._batch = task.collate(placeholders, self._labels_N).to(lm.device)
        self._members = _by_label(self.labels_K, lm.device)

    def objective(self, x: Tensor) -> Tensor:
        """D(G(X_k), target of k's class) for every block (K,); x is (K, B, T, E)."""
        embeds_NSE = self._batch.embed(self.lm.embeddings_VE, x.flatten(0, 1))
        sets = self.target.space.factors(self.lm, self._batch, embeds_NSE, self.texts_per_block, self.limit)
        return self._distances(sets)

    def project(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (K, B, T, E) and tokens (K, B, T) of the readable texts nearest to v."""
        lengths_N = self.lengths_KB.flatten().to(v.device)
        labels_N = torch.tensor(self._labels_N, device=v.device)
        ids_KBT = self.projector(v.flatten(0, 1), lengths_N, labels_N).view(v.shape[:3])
        steps_T = torch.arange(v.shape[2], device=v.device)
        inside = (steps_T < self.lengths_KB.to(v.device).unsqueeze(-1)).unsqueeze(-1)
        return self.lm.embeddings_VE[ids_KBT].to(v.dtype) * inside, ids_KBT

    @torch.no_grad()
    def score(self, codes: Tensor) -> Tensor:
        """The objective of the *text*: decoded, and tokenised again as a user's trainer would."""
        ids = [self.task.text_ids(text) for text in self.texts(codes)]
        batch = self.task.collate(ids, self._labels_N).to(self.lm.device)
        embeds_NSE = batch.embed(self.lm.embeddings_VE)
        sets = self.target.space.factors(self.lm, batch, embeds_NSE, self.texts_per_block, self.limit)
        return self._distances(sets)

    def _distances(self, sets: Factors) -> Tensor:
        """Distance of every set to the target of its class (K,)."""
        has_bias = self.lm.head.bias_V is not None
        parts = [
            distance(self.config, sets.sets(members_k), self.target.classes[label], has_bias)
            for label, members_k in self._members.items()
        ]
        return torch.cat(parts)[torch.cat(list(self._members.values())).argsort()]

    def texts(self, codes: Tensor) -> list[str]:
        """The texts that tokens (K, B, T) stand for, block by block."""
        rows = codes.flatten(0, 1).tolist()
        lengths = self.lengths_KB.flatten().tolist()
        return [self.task.decode(row[:length]) for row, length in zip(rows, lengths, strict=True)]


def _by_label(labels_K: Sequence[int], device: torch.device) -> dict[int, Tensor]:
    """The blocks of every class that has some. On the device at once: an inner step waits for nothing."""
    return {
        label: torch.tensor([k for k, own in enumerate(labels_K) if own == label], device=device)
        for label in sorted(set(labels_K))
    }
