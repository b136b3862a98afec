"""Decoding token by token after class prompts: what projection, sampling and readability share.

Knows token ids, not texts. The prompts' key-value caches are computed once per run and copied for every
decode; prompts of equal length share a batch, so no padding and no attention mask is ever needed and a
batched decode gives what a single one gives.

Shape suffixes: N texts, T text tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gradmm.models import LanguageModel

NextToken = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(position, rows (N,), logits (N, V)) -> the tokens to write (N,) and the tokens to show the LM next (N,)."""


class PromptCache:
    """The LM's state after each class's prompt, computed once.

    Args:
        lm: the language model.
        prompts: per class, the prompt's tokens (at least one).
    """

    def __init__(self, lm: LanguageModel, prompts: Sequence[Sequence[int]]) -> None:
        self.lm = lm
        self.prompts = [list(prompt) for prompt in prompts]
        by_length: dict[int, list[int]] = {}
        for label, prompt in enumerate(self.prompts):
            by_length.setdefault(len(prompt), []).append(label)
        self._groups = [(labels, *self._prefill(labels)) for labels in by_length.values()]

    @torch.no_grad()
    def _prefill(self, labels: list[int]) -> tuple[Any, Tensor]:
        ids = torch.tensor([self.prompts[label] for label in labels], device=self.lm.device)
        output = self.lm.body(input_ids=ids, use_cache=True)
        logits_NV, _ = self.lm.head(output.last_hidden_state[:, -1])
        return output.past_key_values, logits_NV

    def starts(self, labels: Tensor) -> Iterator[tuple[Tensor, Any, Tensor]]:
        """Rows that can decode together: (rows (N',), a cache to decode on, first logits (N', V))."""
        for members, cache, logits_NV in self._groups:
            place = torch.full((len(self.prompts),), -1, device=labels.device)
            place[members] = torch.arange(len(members), device=labels.device)
            rows = (place[labels] >= 0).nonzero()[:, 0]
            if len(rows):
                chosen = place[labels[rows]]
                own = copy.deepcopy(cache)
                own.reorder_cache(chosen)
                yield rows, own, logits_NV[chosen]


@torch.no_grad()
def decode(prompts: PromptCache, labels: Tensor, steps: int, choose: NextToken) -> Tensor:
    """Decodes `steps` tokens after each text's class prompt, one forward pass of one position per step.

    Args:
        prompts: the prompts' caches.
        labels: class of each text (N,).
        steps: tokens to decode.
        choose: picks the next tokens.

    Returns:
        Tokens (N, steps).
    """
    lm = prompts.lm
    out_NT = torch.empty(len(labels), steps, dtype=torch.long, device=labels.device)
    for rows, cache, logits_NV in prompts.starts(labels):
        for t in range(steps):
            written_N, shown_N = choose(t, rows, logits_NV)
            out_NT[rows, t] = written_N
            if t + 1 < steps:
                output = lm.body(input_ids=shown_N[:, None], past_key_values=cache, use_cache=True)
                logits_NV, _ = lm.head(output.last_hidden_state[:, -1])
    return out_NT


def sample(
    prompts: PromptCache,
    labels: Tensor,
    steps: int,
    allowed_V: Tensor,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Tensor:
    """Samples texts from the LM after their class prompts.

    Args:
        prompts: the prompts' caches.
        labels: class of each text (N,).
        steps: tokens to sample.
        allowed_V: tokens that may be drawn (V,).
        generator: random generator on the CPU; draws do not depend on the batching by prompt length.
        temperature: divides the logits.
        top_p: nucleus (Holtzman et al. 2020): the smallest set of tokens with this probability.

    Returns:
        Tokens (N, steps).
    """
    uniform_NT = torch.rand(len(labels), steps, generator=generator).to(labels.device)

    def choose(t: int, rows: Tensor, logits_NV: Tensor) -> tuple[Tensor, Tensor]:
        masked_NV = logits_NV.masked_fill(~allowed_V, -torch.inf) / temperature
        token_N = draw(torch.softmax(masked_NV, -1), uniform_NT[rows, t], top_p)
        return token_N, token_N

    return decode(prompts, labels, steps, choose)


def draw(probabilities_NV: Tensor, uniform_N: Tensor, top_p: float = 1.0) -> Tensor:
    """Inverse-CDF draw from the nucleus of each row, most probable tokens first; (N,)."""
    sorted_NV, order_NV = probabilities_NV.sort(-1, descending=True)
    above_NV = sorted_NV.cumsum(-1)
    nucleus_N = (above_NV - sorted_NV < top_p).sum(-1)
    mass_N = above_NV.gather(-1, (nucleus_N - 1).unsqueeze(-1))[:, 0]
    rank_N = (above_NV <= (uniform_N * mass_N).unsqueeze(-1)).sum(-1)
    return order_NV.gather(-1, torch.minimum(rank_N, nucleus_N - 1).unsqueeze(-1))[:, 0]


@torch.no_grad()
def log_perplexity(lm: LanguageModel, texts_ids: Sequence[Sequence[int]], batch_size: int = 32) -> list[float]:
    """Mean negative log-likelihood per token (nats) of each text, given nothing but the BOS token.

    A model without a BOS token gives no probability to a text's first token, which is then left out (a text
    of one token gets NaN).

    Args:
        lm: the language model.
        texts_ids: tokens of each text.
        batch_size: texts per forward pass; texts of like length go together.
    """
    bos = lm.tokenizer.bos_token_id
    rows = [list(ids) if bos is None or list(ids[:1]) == [bos] else [bos, *ids] for ids in texts_ids]
    out = [float("nan")] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(rows), batch_size):
        chosen = order[start : start + batch_size]
        for i, value in zip(chosen, _mean_nll(lm, [rows[i] for i in chosen]), strict=True):
            out[i] = value
    return out


def _mean_nll(lm: LanguageModel, rows: list[list[int]]) -> list[float]:
    width = max(len(row) for row in rows)
    ids_NS = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=lm.device)
    lengths_N = torch.tensor([len(row) for row in rows], device=lm.device)
    hidden_NSD = lm.body(input_ids=ids_NS, use_cache=False).last_hidden_state[:, :-1]
    real_NS = torch.arange(1, width, device=lm.device)[None] < lengths_N[:, None]
    logits_MV, _ = lm.head(hidden_NSD[real_NS])
    nll_M = torch.nn.functional.cross_entropy(logits_MV, ids_NS[:, 1:][real_NS], reduction="none")
    total_N = torch.zeros(len(rows), device=lm.device)
    total_N.index_add_(0, real_NS.nonzero()[:, 0], nll_M)
    return [float(x) for x in (total_N / (lengths_N - 1)).tolist()]
