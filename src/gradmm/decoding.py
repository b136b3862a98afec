"""Decoding token by token after class prompts: what projection, sampling and readability share.

Knows token ids, not texts. The prompts' caches are computed once per run and copied for every decode; prompts
of equal length share a batch, so no padding and no attention mask is ever needed and a batched decode gives
what a single one gives. Where a model's cache is of no use, whole sequences are read again at every step.

Shape suffixes: N texts, T text tokens, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import torch
from torch import Tensor

from gradmm.continuation import STEPS, Continuation, find_cache
from gradmm.errors import ConfigError, NonFiniteError
from gradmm.memory import BatchLimit, by_length
from gradmm.models import LanguageModel
from gradmm.placement import is_spread
from gradmm.recorded import Recordings, Replayed

log = logging.getLogger("gradmm")

_TRIES = 4  # of drawing a token of the nucleus; after the last but one, the row is sorted

NextToken = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(position, rows (N,), logits (N, V)) -> the tokens to write (N,) and the tokens to show the LM next (N,)."""


class PromptCache:
    """The LM's state after each class's prompt, computed once.

    Args:
        lm: the language model.
        prompts: per class, the prompt's tokens (at least one).
        limit: prompts, and texts, that go through the model at once.

    Raises:
        ConfigError: if a prompt does not fit the context.
        NonFiniteError: if the LM's logits after a prompt are not finite.
    """

    def __init__(
        self, lm: LanguageModel, prompts: Sequence[Sequence[int]], limit: BatchLimit | None = None
    ) -> None:
        self.lm = lm
        self.limit = limit or BatchLimit()
        self.prompts = [list(prompt) for prompt in prompts]
        self.check_room(1)
        alike: dict[int, list[int]] = {}
        for label, prompt in enumerate(self.prompts):
            alike.setdefault(len(prompt), []).append(label)
        self._argument = self._find_cache(list(alike.values()))
        self._recordings = Recordings()
        if is_spread(lm.model):
            self._recordings.refuse("the model is spread over several devices")
        self._groups = [
            group
            for labels in alike.values()
            for group in self.limit.map(self._prefill, labels, "reading the class prompts")
        ]

    def _find_cache(self, groups: list[list[int]]) -> str | None:
        """The argument that takes the body's cache, if it is right for prompts of every length."""
        argument = None
        for labels in groups:
            some_NS = self._ids([labels[0], labels[-1]])[:, : max(1, self.lm.max_length - STEPS)]
            argument, reason = find_cache(self.lm.body, some_NS)
            if argument is None:
                log.info(
                    "%s decodes without a cache (%s): whole sequences are read again, which takes longer",
                    self.lm.title,
                    reason,
                )
                break
        return argument

    def _ids(self, labels: Sequence[int]) -> Tensor:
        return torch.tensor([self.prompts[label] for label in labels], device=self.lm.device)

    @torch.no_grad()
    def _prefill(self, labels: Sequence[int]) -> tuple[list[int], Continuation, Tensor]:
        read, hidden_ND = Continuation.begin(self.lm.body, self._ids(labels), self._argument)
        return list(labels), read, _logits(self.lm, hidden_ND, "after a class prompt")

    def starts(self, labels: Tensor) -> Iterator[tuple[Tensor, Continuation | Replayed, Tensor]]:
        """Rows that can decode together: (rows (N',), where to go on from, first logits (N', V))."""
        for members, read, logits_NV in self._groups:
            place = torch.full((len(self.prompts),), -1, device=labels.device)
            place[members] = torch.arange(len(members), device=labels.device)
            rows = (place[labels] >= 0).nonzero()[:, 0]
            if len(rows):
                chosen = place[labels[rows]]
                yield rows, self._recordings.begin(read, chosen), logits_NV[chosen]

    def check_room(self, steps: int) -> None:
        """Raises `ConfigError` if so many tokens do not fit the context after the longest prompt."""
        longest = max(map(len, self.prompts))
        if longest + steps - 1 > self.lm.max_length:  # the last token is written and never read
            raise ConfigError(
                f"{steps} tokens after an instruction of {longest} exceed the context of {self.lm.max_length} of "
                f"{self.lm.title}; lower lengths.max_tokens or shorten the instructions"
            )


def _logits(lm: LanguageModel, hidden_ND: Tensor, where: str) -> Tensor:
    logits_NV, _ = lm.head(hidden_ND)
    if not bool(_are_finite(logits_NV)):
        _refuse(lm, where)
    return logits_NV


def _are_finite(logits_NV: Tensor) -> Tensor:
    """Whether all are, without asking the host; the largest is NaN where any is."""
    return logits_NV.amax().isfinite()


def _refuse(lm: LanguageModel, where: str) -> NoReturn:
    raise NonFiniteError(
        f"{lm.title}: logits {where} are not finite in {str(lm.dtype).removeprefix('torch.')}; "
        "load the model with dtype='float32' (or 'bfloat16' instead of 'float16')"
    )


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

    Raises:
        ConfigError: if they do not fit the context.
        NonFiniteError: if logits are not finite.
        OutOfMemoryError: if one text does not fit into memory.
    """
    prompts.check_room(steps)
    out_NT = torch.empty(len(labels), steps, dtype=torch.long, device=labels.device)

    def some(part: Sequence[int]) -> None:
        chosen = torch.tensor(list(part), device=labels.device)
        for among, going, logits_NV in prompts.starts(labels[chosen]):
            _decode(prompts.lm, chosen[among], going, logits_NV, choose, out_NT)

    for _ in prompts.limit.map(some, range(len(labels)), "decoding"):
        pass
    return out_NT


def _decode(
    lm: LanguageModel,
    rows: Tensor,
    going: Continuation | Replayed,
    logits_NV: Tensor,
    choose: NextToken,
    out_NT: Tensor,
) -> None:
    """Decodes some rows of `out_NT`, whose prompts have been read."""
    steps, finite = out_NT.shape[1], list[Tensor]()
    for t in range(steps):
        written_N, shown_N = choose(t, rows, logits_NV)
        out_NT[rows, t] = written_N
        if t + 1 < steps:
            logits_NV, _ = lm.head(going.step(shown_N))
            finite.append(_are_finite(logits_NV))
    # Looked at once, after all: a GPU would have to wait for the host at every token.
    if finite and not all(found := torch.stack(finite).tolist()):
        _refuse(lm, f"at token {found.index(False) + 1} of a text")


def sample(
    prompts: PromptCache,
    labels: Tensor,
    steps: int,
    allowed_V: Tensor,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_p: float = 1.0,
    bias_V: Tensor | None = None,
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
        bias_V: is added to the logits (V,).

    Returns:
        Tokens (N, steps).
    """
    uniform_NTR = torch.rand(len(labels), steps, _TRIES, generator=generator).to(labels.device)

    def choose(t: int, rows: Tensor, logits_NV: Tensor) -> tuple[Tensor, Tensor]:
        tilted_NV = logits_NV if bias_V is None else logits_NV + bias_V
        masked_NV = tilted_NV.masked_fill(~allowed_V, -torch.inf) / temperature
        token_N = draw(torch.softmax(masked_NV, -1), uniform_NTR[rows, t], top_p)
        return token_N, token_N

    return decode(prompts, labels, steps, choose)


def draw(probabilities_NV: Tensor, uniform_NR: Tensor, top_p: float = 1.0) -> Tensor:
    """Draws a token from the nucleus of each row, by rejection: sorting a vocabulary takes longer than the model.

    A token that is drawn from all is kept if those that are more probable hold less than `top_p`, which is what
    being in the nucleus means. Rows whose tries have all been rejected are sorted.

    Args:
        probabilities_NV: distributions.
        uniform_NR: numbers in [0, 1), one for every try; the last one is for the draw from the sorted row.
        top_p: mass of the nucleus.

    Returns:
        Tokens (N,).
    """
    token_N = torch.empty(len(probabilities_NV), dtype=torch.long, device=probabilities_NV.device)
    left_M = torch.arange(len(token_N), device=token_N.device)
    for tried_N in uniform_NR[:, :-1].T:
        left_MV = probabilities_NV if len(left_M) == len(token_N) else probabilities_NV[left_M]
        below_MV = left_MV.cumsum(-1)
        at_M1 = (tried_N[left_M] * below_MV[:, -1]).unsqueeze(-1)
        found_M1 = torch.searchsorted(below_MV, at_M1, right=True).clamp_max(left_MV.shape[-1] - 1)
        own_M1 = left_MV.gather(-1, found_M1)
        above_M = torch.where(left_MV > own_M1, left_MV, 0).sum(-1) if top_p < 1 else torch.zeros_like(at_M1[:, 0])
        kept_M = (above_M < top_p) & (own_M1[:, 0] > 0)  # rounding may end behind the last probable token
        token_N[left_M[kept_M]] = found_M1[kept_M, 0]
        left_M = left_M[~kept_M]
        if not len(left_M):
            return token_N
    token_N[left_M] = _draw_sorted(probabilities_NV[left_M], uniform_NR[left_M, -1], top_p)
    return token_N


def _draw_sorted(probabilities_NV: Tensor, uniform_N: Tensor, top_p: float) -> Tensor:
    """Inverse-CDF draw from the nucleus of each row, most probable tokens first; (N,)."""
    sorted_NV, order_NV = probabilities_NV.sort(-1, descending=True)
    above_NV = sorted_NV.cumsum(-1)
    nucleus_N = (above_NV - sorted_NV < top_p).sum(-1).clamp_min(1)  # NaN is in none
    mass_N = above_NV.gather(-1, (nucleus_N - 1).unsqueeze(-1))[:, 0]
    rank_N = (above_NV <= (uniform_N * mass_N).unsqueeze(-1)).sum(-1)
    return order_NV.gather(-1, torch.minimum(rank_N, nucleus_N - 1).unsqueeze(-1))[:, 0]


@torch.no_grad()
def log_perplexity(
    lm: LanguageModel, texts_ids: Sequence[Sequence[int]], limit: BatchLimit | None = None
) -> list[float]:
    """Mean negative log-likelihood per token (nats) of each text, given nothing but the BOS token.

    A model without a BOS token gives no probability to a text's first token, which is then left out (a text
    of one token gets NaN).

    Args:
        lm: the language model.
        texts_ids: tokens of each text.
        limit: texts that go through the model at once; texts of like length go together.
    """
    bos = lm.tokenizer.bos_token_id
    rows = [list(ids) if bos is None or list(ids[:1]) == [bos] else [bos, *ids] for ids in texts_ids]
    out = [float("nan")] * len(rows)
    order = by_length(rows)

    def some(part: Sequence[int]) -> None:
        for i, value in zip(part, _mean_nll(lm, [rows[i] for i in part]), strict=True):
            out[i] = value

    for _ in (limit or BatchLimit()).map(some, order, "measuring readability"):
        pass
    return out


def _mean_nll(lm: LanguageModel, rows: list[list[int]]) -> list[float]:
    width = max(len(row) for row in rows)
    ids_NS = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=lm.device)
    lengths_N = torch.tensor([len(row) for row in rows], device=lm.device)
    hidden_NSD = lm.body(input_ids=ids_NS, use_cache=False).last_hidden_state[:, :-1]
    real_NS = torch.arange(1, width, device=lm.device)[None] < lengths_N[:, None]
    return mean_nll(lm, hidden_NSD, ids_NS[:, 1:], real_NS)


def mean_nll(lm: LanguageModel, hidden_NTD: Tensor, next_NT: Tensor, counted_NT: Tensor) -> list[float]:
    """Mean negative log-likelihood (nats) of the tokens of each text; NaN where none counts.

    Args:
        lm: the language model.
        hidden_NTD: states that predict them.
        next_NT: the tokens.
        counted_NT: which of them count.

    Raises:
        NonFiniteError: if logits are not finite.
    """
    if not bool(counted_NT.any()):
        return [float("nan")] * len(next_NT)
    logits_MV = _logits(lm, hidden_NTD[counted_NT], "of a text")
    nll_M = torch.nn.functional.cross_entropy(logits_MV, next_NT[counted_NT], reduction="none")
    total_N = torch.zeros(len(next_NT), device=lm.device)
    total_N.index_add_(0, counted_NT.nonzero()[:, 0], nll_M)
    return [float(x) for x in (total_N / counted_NT.sum(1)).tolist()]
