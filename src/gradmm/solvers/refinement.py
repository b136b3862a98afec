"""Refinement: change one token of one text at a time, as long as the objective of the whole set falls.

    objective(S) = log D(mean of S, target) + nll_weight * max(0, mean log-perplexity of S - free)

What is free is what the set has before, or less: refinement spends no readability that selection left unspent.

A sweep goes through all places (text, position) once, in random order. At a place, tokens are drawn from the LM's
own distribution after the class's prompt and the tokens before; each gives a changed text, which is decoded and
tokenised again before it is judged. Only changed texts go through the model. Every state is a valid set: the
search may stop at any moment.

Shape suffixes: n texts of the set, M changed texts, K texts, V vocabulary, Q components of the distance.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from gradmm.data.task import BoundTask
from gradmm.data.vocabulary import bare_starts
from gradmm.gradients.distances import FORMULAS, DistanceConfig, components, log_scale
from gradmm.gradients.factors import Factors, Inner, join_sets, padded
from gradmm.gradients.spaces import Space
from gradmm.gradients.target import ClassTarget
from gradmm.memory import BatchLimit, by_length
from gradmm.models import LanguageModel
from gradmm.solvers.forms import Form
from gradmm.solvers.judging import Judge
from gradmm.solvers.pool import most_repeats

FRESH = 10  # steps after which everything is computed anew; a state kept at such a step goes on to the same end
_GAIN = 1e-6  # what a change has to gain to be more than the rounding of inner products in float32


class RefinementConfig(BaseModel):
    """How long and how widely a selected set is searched around."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    evaluations: int = Field(80, ge=0)
    """Changed texts that are judged at most, for every text of the set; 0 leaves the set as it was selected."""
    seconds: float | None = Field(None, ge=0)
    """Also stop after so long, with the step that is being made; how far that gets differs from run to run."""
    proposals: int = Field(8, ge=1)
    """Tokens that are tried at one place."""
    places: int = Field(8, ge=1)
    """Places that are tried together."""
    temperature: float = Field(1.0, gt=0)
    """Of the LM's distribution that they are drawn from."""
    nll_weight: float = Field(2.0, ge=0)
    """[alpha] Weight of the mean log-perplexity (nats per token), as far as it exceeds that of the selected set
    and that of the LM's own samples, beside the logarithm of the distance. More than in selection, because texts
    that the LM wrote as a whole read better than their log-perplexity says."""


@dataclass
class RefinementState:
    """Everything between two steps; JSON can hold it. Steps change it in place."""

    texts: list[str]
    objective: float = float("inf")
    start: float = float("inf")
    """Objective of the set that was given."""
    nll_free: float = 0.0
    """Mean log-perplexity that costs nothing."""
    step: int = 0
    evaluations: int = 0
    """Changed texts that were judged."""
    accepted: int = 0
    accepted_in_sweep: int = 0
    sweep: int = 0
    """Sweeps begun."""
    seconds: float = 0.0
    """Spent on steps; counted only where they are limited."""
    places: list[tuple[int, int]] = field(default_factory=list)
    """What is left of this sweep."""
    trace: list[list[float]] = field(default_factory=list)
    """Judged texts and objective, at the start and after every step that lowered it."""

    def __post_init__(self) -> None:
        self.places = [(i, t) for i, t in self.places]  # JSON knows no tuples


@dataclass(frozen=True)
class _Judged:
    """K texts, and what the objective needs to know of each."""

    texts: list[str]
    factors: Factors
    """One set a text."""
    align_QK: Tensor
    """<g, T>, float64."""
    nll_K: Tensor
    """Log-perplexity, float64; zeros where it does not count."""

    def put(self, i: int, other: _Judged, k: int) -> None:
        """Text k of another takes the place of text i."""
        self.texts[i] = other.texts[k]
        for mine, theirs in zip(self.factors.tensors(), other.factors.tensors(), strict=True):
            mine[i] = theirs[k]
        self.align_QK[:, i], self.nll_K[i] = other.align_QK[:, k], other.nll_K[k]


class Refiner:
    """Refines the set of some classes, as init / step / stop.

    Args:
        lm: the language model.
        task: the rendering.
        labels: class of every text of the set.
        target: the mean gradient that the set's is to come near to.
        space: where it is.
        distance: the distance, cosine or relative L2.
        allowed_V: tokens that may be written (V,).
        config: budget and proposals.
        limit: texts that go through the model at once.
        make_generator: a random generator for a purpose.
        nll_free: mean log-perplexity of a set that costs nothing, where the given set has no less.
        form: of the texts, which changed ones keep.
        max_repeats: as of the pool; None lets a changed text say a word any number of times in a row.
        carries: whether a changed text, of a class, carries its label; None asks nobody.
    """

    def __init__(
        self,
        lm: LanguageModel,
        task: BoundTask,
        labels: Sequence[int],
        target: ClassTarget,
        space: Space,
        distance: DistanceConfig,
        allowed_V: Tensor,
        config: RefinementConfig,
        limit: BatchLimit,
        make_generator: Callable[..., torch.Generator],
        nll_free: float = 0.0,
        form: Form = Form(),
        max_repeats: int | None = None,
        carries: Callable[[int, str], bool] | None = None,
    ) -> None:
        self._carries = carries
        self.nll_free, self.form = nll_free, form
        self.max_repeats = math.inf if max_repeats is None else max_repeats
        self.lm, self.task, self.labels, self.config = lm, task, list(labels), config
        self.limit, self.make_generator = limit, make_generator
        self.target = target
        self._look = Judge(lm, task, space, limit, reads=config.nll_weight > 0)
        self.formula, self.bias = (
            FORMULAS[distance.name],
            distance.bias if lm.head.bias_V is not None else "ignore",
        )
        self._target_Q = components(self.target.square_norm(), self.bias).cpu().double()[:, 0]
        self._pairs = max(len(task.label_ids[label]) for label in self.labels)
        self._allowed_V, self._banned = allowed_V, set((~allowed_V).nonzero()[:, 0].tolist())
        self._heard_V = bare_starts(task.tokenizer, lm.vocab_size)[1].tolist() if task.starts_bare else None

    @torch.no_grad()
    def init(self, texts: Sequence[str]) -> RefinementState:
        """The state before the first step.

        Args:
            texts: the set, a text for each of `labels`.
        """
        own = self._judge(texts, self.labels)
        free = min(self.nll_free, float(own.nll_K.mean()))
        value = float(self._value(own, self._gram(own, own), free))
        return RefinementState(list(texts), objective=value, start=value, nll_free=free, trace=[[0, value]])

    def stop(self, state: RefinementState) -> Literal["budget", "sweep"] | None:
        """Whether to stop: nothing is left to spend, or a whole sweep brought nothing; None to go on."""
        late = self.config.seconds is not None and state.seconds >= self.config.seconds
        if late or self._left(state) <= 0:
            return "budget"
        return "sweep" if state.sweep and not state.places and not state.accepted_in_sweep else None

    @torch.no_grad()
    def run(self, state: RefinementState, told: Callable[[RefinementState], None]) -> RefinementState:
        """Goes on until it stops; `told` hears of every step, and may keep a copy of the state."""
        if self.stop(state) is not None:
            return state
        own = self._judge(state.texts, self.labels)
        gram_Qnn = self._gram(own, own)
        while self.stop(state) is None:
            began = time.monotonic()
            if not state.places:
                self._begin_sweep(state)
            places, state.places = state.places[: self.config.places], state.places[self.config.places :]
            changed = self._propose(state, places)[: self._left(state)]
            if changed:
                self._accept(state, changed, own, gram_Qnn)
            if state.objective < state.trace[-1][1]:
                state.trace.append([state.evaluations, state.objective])
            state.step += 1
            if state.step % FRESH == 0:  # as a run that goes on from here computes it, to the last digit
                own = self._judge(state.texts, self.labels)
                gram_Qnn = self._gram(own, own)
            state.seconds += 0.0 if self.config.seconds is None else time.monotonic() - began
            told(state)
        return state

    def _left(self, state: RefinementState) -> int:
        """Evaluations that may still be made."""
        return self.config.evaluations * len(state.texts) - state.evaluations

    # ---- what to change

    def _begin_sweep(self, state: RefinementState) -> None:
        """All places but the first token, which opens a text, and the last, which ends it; in random order."""
        prompts = [len(self.task.instruction_ids[label]) for label in self.labels]
        rooms = [self.lm.max_length - length for length in prompts]  # for the tokens before
        lengths = [len(ids) for ids in self.task.texts_ids(state.texts)]
        places = [(i, t) for i, length in enumerate(lengths) for t in range(1, min(length - 1, rooms[i] + 1))]
        order = torch.randperm(len(places), generator=self.make_generator("sweep", state.sweep))
        state.places = [places[k] for k in order.tolist()]
        state.sweep += 1
        state.accepted_in_sweep = 0

    def _propose(
        self, state: RefinementState, places: Sequence[tuple[int, int]]
    ) -> list[tuple[int, list[int], str]]:
        """Changed texts, each with the number of the text that it may replace and its tokens.

        They are new to the set, hold allowed tokens alone, and are no longer than the texts that they replace.
        """
        ids = self.task.texts_ids([state.texts[i] for i, _ in places])
        # An accepted change may have shortened a text since the sweep began.
        usable = [(i, t, row) for (i, t), row in zip(places, ids, strict=True) if t < len(row) - 1]
        logits_KV = self._next_token_logits([self._shown(self.labels[i], row[:t]) for i, t, row in usable])
        generator = self.make_generator("propose", state.step)
        drawn, seen = list[tuple[int, int, str]](), set(state.texts)
        for (i, t, row), logits_V in zip(usable, logits_KV, strict=True):
            logits_V[row[t]] = -torch.inf
            for token in self._draw(logits_V, generator):
                text = self.form(self.task.decode([*row[:t], token, *row[t + 1 :]]))
                if text and text not in seen and most_repeats(text) <= self.max_repeats:
                    seen.add(text)
                    drawn.append((i, len(row), text))
        again = self.task.texts_ids([text for _, _, text in drawn])
        return [
            (i, row, text)
            for (i, longest, text), row in zip(drawn, again, strict=True)
            if 0 < len(row) <= longest and self._banned.isdisjoint(row)
        ]

    def _draw(self, logits_V: Tensor, generator: torch.Generator) -> list[int]:
        """Tokens drawn without replacement, by Gumbel's trick; as many as there are, if fewer than asked for."""
        noise_V = -torch.empty(len(logits_V)).exponential_(generator=generator).log()
        count = min(self.config.proposals, int(logits_V.isfinite().sum()))
        return (logits_V / self.config.temperature + noise_V).topk(count).indices.tolist()

    def _next_token_logits(self, rows: Sequence[list[int]]) -> Tensor:
        """The LM's logits after these tokens, banned ones at minus infinity (K, V)."""
        parts = list(self.limit.map(self._last_logits, rows, "proposing changes"))
        return torch.cat(parts) if parts else torch.empty(0, len(self._allowed_V))

    def _shown(self, label: int, start: Sequence[int]) -> list[int]:
        """The class's prompt and the start of a text, whose first word is the token that it is after a prompt
        (see `bare_starts`).
        """
        first = start[0] if self._heard_V is None else self._heard_V[start[0]]
        return [*self.task.instruction_ids[label], first, *start[1:]]

    def _last_logits(self, rows: Sequence[list[int]]) -> Tensor:
        width = max(map(len, rows))
        ids_KS = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=self.lm.device)
        last_K1 = torch.tensor([[len(row) - 1] for row in rows], device=self.lm.device)
        logits_KV, _ = self.lm.head(self.lm.hidden(self.lm.embeddings_VE[ids_KS], last_K1)[:, 0])
        return logits_KV.masked_fill(~self._allowed_V, -torch.inf).cpu()

    # ---- what it is worth

    def _judge(
        self, texts: Sequence[str], labels: Sequence[int], ids: Sequence[Sequence[int]] | None = None
    ) -> _Judged:
        """Texts of like length go through the model together: padding costs what text costs.

        On a GPU all of them do, because it is a pass that costs.
        """
        ids = self.task.texts_ids(texts) if ids is None else ids
        order = by_length(ids)
        parts, nll, is_cpu = list[Factors](), list[float](), self.lm.device.type == "cpu"
        for _, group in groupby(order, key=lambda k: round(4 * math.log2(len(ids[k]))) if is_cpu else 0):
            for factors, own in self._look([(labels[k], ids[k]) for k in group], "refining"):
                parts.append(padded(factors, self._pairs))
                nll += own
        back_K = torch.tensor(order).argsort()
        factors = join_sets(parts).sets(back_K.tolist())
        align_QK = components(self.target.inner(factors), self.bias).cpu().double()
        # A model without a BOS token says nothing of a text of one token.
        nll_K = torch.tensor(nll, dtype=torch.float64).nan_to_num()[back_K]
        return _Judged(list(texts), factors, align_QK, nll_K)

    def _gram(self, a: _Judged, b: _Judged) -> Tensor:
        """<g_i, g'_j> for all texts of both (Q, K, K'), float64."""
        (r_KJV, h_KJD, w_KJ), (s_LIV, g_LID, u_LI) = a.factors.tensors(), b.factors.tensors()
        shape = (*w_KJ.shape, *u_LI.shape)
        rr = ((r_KJV * w_KJ.unsqueeze(-1)).flatten(0, 1) @ (s_LIV * u_LI.unsqueeze(-1)).flatten(0, 1).T).view(
            shape
        )
        hh = (h_KJD.flatten(0, 1) @ g_LID.flatten(0, 1).T).view(shape)
        return components(Inner((rr * hh).sum((1, 3)), rr.sum((1, 3))), self.bias).cpu().double()

    def _accept(
        self, state: RefinementState, changed: list[tuple[int, list[int], str]], own: _Judged, gram_Qnn: Tensor
    ) -> None:
        """Takes the best change, then the best one of the set that results, while the objective falls.

        One that would no longer carry its label is left; of others, nobody asks.
        """
        refused_M = torch.zeros(len(changed), dtype=torch.bool)
        of_M = torch.tensor([i for i, _, _ in changed])
        labels = [self.labels[i] for i, _, _ in changed]
        new = self._judge([text for _, _, text in changed], labels, [ids for _, ids, _ in changed])
        cross_QMn, gram_QMM = self._gram(new, own), self._gram(new, new)
        state.evaluations += len(changed)
        while True:
            values_M = self._values(own, gram_Qnn, new, cross_QMn, gram_QMM, of_M, state.nll_free)
            values_M = values_M.nan_to_num(nan=torch.inf).masked_fill(refused_M, torch.inf)
            best = int(values_M.argmin())
            if not float(values_M[best]) < state.objective - _GAIN * max(1.0, abs(state.objective)):
                return
            if self._carries is not None and not self._carries(labels[best], new.texts[best]):
                refused_M[best] = True
                continue
            i = int(of_M[best])
            own.put(i, new, best)
            gram_Qnn[:, i, :] = gram_Qnn[:, :, i] = cross_QMn[:, best]
            gram_Qnn[:, i, i] = gram_QMM[:, best, best]
            cross_QMn[:, :, i] = gram_QMM[:, :, best]
            state.texts[i], state.objective = new.texts[best], float(values_M[best])
            state.accepted += 1
            state.accepted_in_sweep += 1

    def _value(self, own: _Judged, gram_Qnn: Tensor, nll_free: float) -> Tensor:
        """The objective of a set (1)."""
        gg_Q1, gt_Q1 = gram_Qnn.sum((1, 2)).unsqueeze(1), own.align_QK.sum(1, keepdim=True)
        return self._objective(gg_Q1, gt_Q1, own.nll_K.mean() - nll_free, len(own.texts))

    def _values(
        self,
        own: _Judged,
        gram_Qnn: Tensor,
        new: _Judged,
        cross_QMn: Tensor,
        gram_QMM: Tensor,
        of_M: Tensor,
        nll_free: float,
    ) -> Tensor:
        """The objective of the set with each new text in the place of text `of_M` (M)."""
        # |S - g + g'|^2 = |S|^2 + |g|^2 + |g'|^2 - 2 <S, g> + 2 <S, g'> - 2 <g, g'>
        gg_QM = gram_Qnn.sum((1, 2)).unsqueeze(1) - 2 * gram_Qnn.sum(2)[:, of_M] + gram_Qnn[:, of_M, of_M]
        pairs_QM = cross_QMn[:, torch.arange(len(of_M)), of_M]
        gg_QM = gg_QM + 2 * (cross_QMn.sum(2) - pairs_QM) + gram_QMM.diagonal(dim1=1, dim2=2)
        gt_QM = own.align_QK.sum(1, keepdim=True) - own.align_QK[:, of_M] + new.align_QK
        n = len(own.texts)
        nll_M = (own.nll_K.sum() - own.nll_K[of_M] + new.nll_K) / n
        return self._objective(gg_QM, gt_QM, nll_M - nll_free, n)

    def _objective(self, gg_QM: Tensor, gt_QM: Tensor, excess_M: Tensor, n: int) -> Tensor:
        """Of sets of n texts, from sums over their texts and log-perplexity beyond what is free."""
        distance_QM = self.formula(gg_QM / n**2, gt_QM / n, self._target_Q.unsqueeze(1))
        return log_scale(distance_QM.mean(0)) + self.config.nll_weight * excess_M.clamp_min(0)
