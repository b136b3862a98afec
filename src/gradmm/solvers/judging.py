"""What searches ask of a text: its gradient and how well it reads, in one pass where one will do.

A text is read in its place in the template. Where nothing but the BOS token stands before it there, a causal
model's states at its tokens are those that its log-perplexity is computed from: no second pass is needed.

Shape suffixes: N texts, T tokens, S sequence, L label tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gradmm.data.task import Batch, BoundTask
from gradmm.decoding import log_perplexity, mean_nll
from gradmm.gradients.factors import Factors, as_factors
from gradmm.gradients.spaces import Space
from gradmm.memory import BatchLimit, by_length
from gradmm.models import LanguageModel
from gradmm.solvers.kernels import FactorKernel

Labelled = tuple[int, Sequence[int]]
"""Label and tokens of a text."""


class Judge:
    """Looks at texts, some at a time.

    Args:
        lm: the model at whose weights gradients are taken, and whose log-perplexity counts.
        task: the rendering.
        space: where the gradients are wanted.
        limit: texts that go through the model at once.
        reads: whether log-perplexity is wanted at all; zeros otherwise.
    """

    def __init__(
        self, lm: LanguageModel, task: BoundTask, space: Space, limit: BatchLimit, reads: bool = True
    ) -> None:
        self.lm, self.task, self.space, self.limit, self.reads = lm, task, space, limit, reads
        self._bos_ids = [] if lm.tokenizer.bos_token_id is None else [lm.tokenizer.bos_token_id]

    def __call__(self, labelled: Sequence[Labelled], doing: str) -> Iterator[tuple[Factors, list[float]]]:
        """Factors, a set for each text (J is that of the longest verbaliser among them), and log-perplexities.

        Args:
            labelled: the texts; those of like length should stand together.
            doing: what for, should memory run out.
        """
        return self.limit.map(self._look, labelled, doing)

    def kernel(self, labelled: Sequence[Labelled], bias: str, doing: str) -> tuple[FactorKernel, Tensor]:
        """Inner products of the texts' gradients, and log-perplexities (N), float64, 0 where there is none.

        Args:
            labelled: the texts, in any order.
            bias: as in `DistanceConfig.bias`.
            doing: as above.
        """
        order, nll = by_length([ids for _, ids in labelled]), list[float]()  # padding costs what text costs

        def blocks() -> Iterator[Factors]:
            for factors, own in self([labelled[i] for i in order], doing):
                nll.extend(own)
                yield factors

        kernel = FactorKernel(blocks(), bias, order=order)  # reads all of them
        back_N = torch.tensor(order, dtype=torch.long).argsort()
        return kernel, torch.tensor(nll, dtype=torch.float64).nan_to_num()[back_N]

    @torch.no_grad()
    def _look(self, labelled: Sequence[Labelled]) -> tuple[Factors, list[float]]:
        ids = [list(own) for _, own in labelled]
        batch = self.task.collate(ids, [label for label, _ in labelled]).to(self.lm.device)
        embeds_NSE = batch.embed(self.lm.embeddings_VE)
        if not self.reads:
            return self.space.factors(self.lm, batch, embeds_NSE, 1), [0.0] * len(ids)
        if not self._reads_in_place(ids):
            factors = self.space.factors(self.lm, batch, embeds_NSE, 1)
            return factors, log_perplexity(self.lm, ids, self.limit)
        after_NT, counted_NT = self._text_tokens(batch)
        places = batch.predict_at_NL.shape[1]
        h_NPD = self.lm.hidden(embeds_NSE, torch.cat([batch.predict_at_NL, after_NT - 1], dim=1))
        factors = self.space(as_factors(self.lm, batch, h_NPD[:, :places], 1, self.space.loss))
        nll = mean_nll(self.lm, h_NPD[:, places:], batch.ids_NS.gather(1, after_NT), counted_NT)
        return factors, nll

    def _reads_in_place(self, ids: Sequence[Sequence[int]]) -> bool:
        """Whether what stands before these texts in the template is what stands before them when they are read."""
        return self.task.prefix_ids == self._bos_ids and all(list(own[:1]) != self._bos_ids for own in ids)

    def _text_tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Positions of the tokens that are predicted (N, T), and whether there is one (N, T)."""
        first = max(batch.text_start, 1)  # without a BOS token nothing predicts the first one
        width, last = batch.ids_NS.shape[1], batch.text_start + batch.text_lengths_N
        after_T = torch.arange(first, max(first + 1, int(last.max())), device=last.device)
        counted_NT = after_T < last.unsqueeze(1)
        return after_T.clamp_max(width - 1).expand_as(counted_NT), counted_NT
