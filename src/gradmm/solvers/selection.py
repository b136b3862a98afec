"""Selection: of many candidate texts, the n whose mean gradient is nearest to the target.

    objective(S) = log D(mean of S, target) + alpha * max(0, mean log-perplexity of S - free)
                   + mean penalty of S + diversity * mean similarity of two texts in S

First greedily, one text after the other; then by exchanges: each place in turn is given to the text that serves
it best, round and round, until no single exchange lowers the objective. Candidates may be of several classes that
are matched together: every place is of a class, and the classes' places alternate. D depends on inner products
alone, so everything follows from b_i = <g_i, T> and from the rows K_ij = <g_i, g_j> of the texts that are chosen;
the rest of the kernel is never computed.

Candidates stand in an order of their own (that of their texts), and ties go to the first: the order in which they
were made plays no part. The logarithm makes weights mean the same for every model, data set and number of texts:
distances differ by orders of magnitude, nats per token do not. What is as readable as the LM's own samples
(`free`) is readable enough: below that, texts would only become trite.

Shape suffixes: N candidates, n chosen, Q components of the distance (one, or weight and bias apart).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from gradmm.gradients.distances import Formula, log_scale
from gradmm.solvers.kernels import Kernel

_ROUNDS = 1000  # of fitting weights; a dozen is usual
_GAIN = 1e-9  # what an exchange has to gain to be more than rounding
_CANCELLED = 1e-6  # of the sum of |g|^2: below this, |sum of g|^2 is what float32 made of opposite gradients
_KEPT_BYTES = 2**29  # rows of members that are kept, per kernel; more members' rows are computed again


class SelectionConfig(BaseModel):
    """What a good set is, beside its distance."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    nll_weight: float = Field(0.5, ge=0)
    """[alpha] Weight of the mean log-perplexity (nats per token), as far as it exceeds that of the LM's own
    samples, beside the logarithm of the distance: with 0.5, a set that is harder to read by a nat has to lower the
    distance by 40%."""
    label_weight: float = Field(0.0, ge=0)
    """Weight of the mean of minus the label's calibrated log-probability, beside the same."""
    diversity_weight: float = Field(0.0, ge=0)
    """Weight of the mean similarity (cosine of word pairs) of two texts, beside the same."""
    exchange: bool = True
    """Exchange texts until no single exchange lowers the objective."""
    weights: bool = False
    """Also give every text a weight that lowers the distance further: non-negative, and 1 on average over all
    texts that are matched together."""


@dataclass(frozen=True)
class Candidates:
    """What selection knows of N candidates.

    Whoever makes them sorts them by class and text, before any gradient is computed: batches that are made up
    otherwise round otherwise.
    """

    kernel: Kernel
    """Of gradients."""
    alignment_QN: Tensor
    """<g_i, T>, float64."""
    target_Q: Tensor
    """<T, T>, float64."""
    penalty_N: Tensor
    """What is averaged over a set, such as label scores, weighted; float64, finite."""
    of_N: Tensor
    """The class of each, counted from 0."""
    similarity: Kernel | None = None
    """Of texts, weighted (Q = 1); None where diversity does not count."""
    nll_N: Tensor | None = None
    """Log-perplexity, weighted; float64, finite; None where it does not count."""
    nll_free: float = 0.0
    """Mean log-perplexity of a set that costs nothing, weighted likewise."""

    def __len__(self) -> int:
        """N."""
        return len(self.penalty_N)


@dataclass(frozen=True)
class Selected:
    """A set, and how it was reached."""

    indices: list[int]
    """In the order in which their places were first given."""
    objective: float
    trace: list[float]
    """Objective when greed was done, and after every exchange; it falls."""


def select(candidates: Candidates, counts: Sequence[int], formula: Formula, exchange: bool = True) -> Selected:
    """Chooses a set.

    Args:
        candidates: what there is to choose from, N >= count.
        counts: texts of every class; it has so many candidates at least.
        formula: D as a function of <G, G>, <G, T> and <T, T>.
        exchange: whether to exchange texts after greed.

    Returns:
        Exactly so many different candidates.
    """
    there = torch.bincount(candidates.of_N, minlength=len(counts)).tolist()
    assert all(1 <= count <= own for count, own in zip(counts, there, strict=True)), (counts, there)
    known = [candidates.kernel.diagonal_QN, candidates.alignment_QN, candidates.penalty_N]
    known += [] if candidates.nll_N is None else [candidates.nll_N]
    assert all(bool(values.isfinite().all()) for values in known), "a NaN would be chosen first"
    chosen, count = _Set(candidates, formula), sum(counts)
    for label in alternating(counts):
        chosen.put(chosen.best(None, label)[1])
    trace, place, idle = [chosen.value()], 0, 0
    while exchange and idle < count:
        idle = 0 if chosen.exchange(place) else idle + 1
        if idle == 0:
            trace.append(chosen.value())
        place = (place + 1) % count
    return Selected(chosen.members, trace[-1], trace)


def alternating(counts: Sequence[int]) -> list[int]:
    """The class of every place, such that at any of them the classes have about their shares."""
    places = [((place + 0.5) / count, label) for label, count in enumerate(counts) for place in range(count)]
    return [label for _, label in sorted(places)]


class _Set:
    """The chosen, with the sums that the objective of every neighbouring set follows from."""

    def __init__(self, candidates: Candidates, formula: Formula) -> None:
        self.candidates, self.formula = candidates, formula
        self.members: list[int] = []
        self._gradients = _Rows(candidates.kernel)
        self._texts = None if candidates.similarity is None else _Rows(candidates.similarity)

    def put(self, j: int, place: int | None = None) -> None:
        """Adds a candidate, or gives it a member's place."""
        for rows in filter(None, (self._gradients, self._texts)):
            if place is not None:
                rows.remove(self.members[place])
            rows.add(j)
        if place is None:
            self.members.append(j)
        else:
            self.members[place] = j

    def exchange(self, place: int) -> bool:
        """Gives a place to whoever serves it best; returns whether that lowers the objective."""
        old, enough = self.members[place], self.value()
        enough -= _GAIN * max(1.0, abs(enough))
        value, j = self.best(place, int(self.candidates.of_N[old]))
        if not value < enough:
            return False
        self.put(j, place)
        if self.value() < enough:
            return True
        self.put(old, place)  # K_ij and K_ji are the same but for float32's last digits: there was no gain
        return False

    def best(self, without: int | None, label: int) -> tuple[float, int]:
        """The candidate of a class with which the set, but for one place, is best, and how good that is."""
        values_N = self.objectives(without)
        values_N[self.members] = torch.inf
        values_N[self.candidates.of_N != label] = torch.inf
        j = int(values_N.argmin())
        return float(values_N[j]), j

    def value(self) -> float:
        """The objective."""
        at, own, texts = self.members, self.candidates, self._texts
        pairs = None if texts is None else texts.within(at)
        gt_Q1, penalty_1 = own.alignment_QN[:, at].sum(1, keepdim=True), own.penalty_N[at].mean()[None]
        if own.nll_N is not None:
            penalty_1 = penalty_1 + (own.nll_N[at].mean() - own.nll_free).clamp_min(0)
        return float(self._objective(len(at), self._gradients.within(at), gt_Q1, penalty_1, pairs))

    def objectives(self, without: int | None) -> Tensor:
        """The objective of the set, but for one place, with each candidate added (N)."""
        own, rest, texts = self.candidates, list(self.members), self._texts
        old = None if without is None else rest.pop(without)
        pairs = None if texts is None else texts.with_each(rest, old)
        gt_QN = own.alignment_QN[:, rest].sum(1, keepdim=True) + own.alignment_QN
        count = len(rest) + 1
        penalty_N = (own.penalty_N[rest].sum() + own.penalty_N) / count
        if own.nll_N is not None:
            penalty_N = penalty_N + ((own.nll_N[rest].sum() + own.nll_N) / count - own.nll_free).clamp_min(0)
        return self._objective(count, self._gradients.with_each(rest, old), gt_QN, penalty_N, pairs)

    def _objective(self, count: int, gg: _Sums, gt_QN: Tensor, penalty_N: Tensor, texts: _Sums | None) -> Tensor:
        """Of one set or of many, from sums over all members and from mean penalties."""
        gg_QN = torch.maximum(gg.pairs_QN, _CANCELLED * gg.own_QN)
        distance_QN = self.formula(gg_QN / count**2, gt_QN / count, self.candidates.target_Q.unsqueeze(1))
        values_N = log_scale(distance_QN.mean(0)) + penalty_N
        if texts is not None and count > 1:
            values_N = values_N + (texts.pairs_QN - texts.own_QN)[0] / (count * (count - 1))
        return values_N


@dataclass(frozen=True)
class _Sums:
    """Of a kernel, over one set or over N."""

    pairs_QN: Tensor
    """Over all pairs of members."""
    own_QN: Tensor
    """Of these, over the pairs of a member with itself."""


class _Rows:
    """A kernel's rows of the members, and their sum."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel, self._own_QN = kernel, kernel.diagonal_QN
        self._kept: dict[int, Tensor] = {}
        self._sum_QN = torch.zeros_like(kernel.diagonal_QN)

    def add(self, j: int) -> None:
        row_QN = self._row(j)
        self._sum_QN += row_QN
        if (len(self._kept) + 1) * row_QN.nbytes <= _KEPT_BYTES:
            self._kept[j] = row_QN

    def remove(self, j: int) -> None:
        self._sum_QN -= self._row(j)
        self._kept.pop(j, None)

    def within(self, members: list[int]) -> _Sums:
        """Of the members."""
        total_Q1 = self._sum_QN[:, members].sum(1, keepdim=True)
        return _Sums(total_Q1, self._own_QN[:, members].sum(1, keepdim=True))

    def with_each(self, rest: list[int], old: int | None) -> _Sums:
        """Of the members but the old one, with each candidate added."""
        cross_QN = self._sum_QN if old is None else self._sum_QN - self._row(old)
        own_QN = self._own_QN[:, rest].sum(1, keepdim=True) + self._own_QN
        return _Sums(cross_QN[:, rest].sum(1, keepdim=True) + 2 * cross_QN + self._own_QN, own_QN)

    def _row(self, j: int) -> Tensor:
        return self._kept[j] if j in self._kept else self._kernel.row(j)


def fit_weights(
    candidates: Candidates, members: Sequence[int], name: Literal["cosine", "relative_l2"] = "cosine"
) -> Tensor:
    """Non-negative weights, 1 on average, that bring the weighted mean of a set nearest to the target.

    Both distances fall as s(w) = sum_q b_q w / sqrt(w^T K_q w) rises: for the cosine, b_q = <g, T> / |T| and
    K = <g, g'>; for relative L2, b = 1 and K = <g - T, g' - T> (the point of a hull that is nearest to T). Each
    round maximises the quadratic that s is like near w, over w >= 0, and goes as far that way as s rises.

    Args:
        candidates: what the set was selected from.
        members: the set.
        name: the distance.

    Returns:
        (n,), float64; even where no text is on the target's side.
    """
    kernel_Qnn, b_Qn = _ratio(candidates, list(members), name)
    w_n = torch.ones(len(members), dtype=torch.float64)
    for _ in range(_ROUNDS):
        kw_Qn = kernel_Qnn @ w_n
        length_Q1, ahead_Q1 = (kw_Qn @ w_n).sqrt()[:, None], (b_Qn @ w_n)[:, None]
        curved_nn = ((ahead_Q1.abs() / length_Q1**3).unsqueeze(-1) * kernel_Qnn).sum(0)
        slope_n = (b_Qn / length_Q1 - ahead_Q1 / length_Q1**3 * kw_Qn).sum(0)
        goal_n = _nonnegative(curved_nn, curved_nn @ w_n + slope_n)
        best, best_n = float((ahead_Q1 / length_Q1).sum()) * (1 + 1e-12) + 1e-12, w_n
        for halvings in range(20):
            try_n = w_n + (goal_n - w_n) / 2**halvings
            worth = float(((b_Qn @ try_n) / ((kernel_Qnn @ try_n) @ try_n).clamp_min(1e-300).sqrt()).sum())
            if worth > best:
                best, best_n = worth, try_n / try_n.mean()
                break
        if best_n is w_n:
            break
        w_n = best_n
    return w_n


def _ratio(candidates: Candidates, at: list[int], name: str) -> tuple[Tensor, Tensor]:
    """K (Q, n, n) and b (Q, n) of the sum of ratios that is to be maximised."""
    kernel_Qnn = torch.stack([candidates.kernel.row(j)[:, at].double() for j in at], dim=1)
    kernel_Qnn = (kernel_Qnn + kernel_Qnn.mT) / 2
    b_Qn, target_Q1 = candidates.alignment_QN[:, at], candidates.target_Q.unsqueeze(1).clamp_min(1e-300)
    if name == "cosine":
        b_Qn = b_Qn / target_Q1.sqrt()
    else:
        apart_Qnn = kernel_Qnn - b_Qn.unsqueeze(1) - b_Qn.unsqueeze(2) + target_Q1.unsqueeze(2)
        kernel_Qnn = (apart_Qnn / target_Q1.unsqueeze(2)).sum(0, keepdim=True)
        b_Qn = torch.ones_like(kernel_Qnn[:, 0])
    diagonal_Qn = kernel_Qnn.diagonal(dim1=1, dim2=2)
    diagonal_Qn += 1e-7 * diagonal_Qn.mean(1, keepdim=True)  # what float32 leaves open: K stays definite
    return kernel_Qnn, b_Qn


def _nonnegative(kernel_nn: Tensor, b_n: Tensor) -> Tensor:
    """The w >= 0 where w^T K w / 2 - b^T w is least, by active sets (Lawson and Hanson 1974)."""
    w_n, free_n = torch.zeros_like(b_n), torch.zeros_like(b_n, dtype=torch.bool)
    for _ in range(3 * len(b_n)):
        pull_n = (b_n - kernel_nn @ w_n).masked_fill(free_n, -torch.inf)
        if float(pull_n.max()) <= 1e-12 * float(b_n.abs().max()):
            break
        free_n[pull_n.argmax()] = True
        while True:
            goal_n = torch.zeros_like(b_n)
            goal_n[free_n] = torch.linalg.solve(kernel_nn[free_n][:, free_n], b_n[free_n])
            ratio_n = (w_n / (w_n - goal_n)).masked_fill(~free_n | (goal_n >= 0), torch.inf)
            if bool(ratio_n.isinf().all()):
                break
            w_n = w_n + ratio_n.min() * (goal_n - w_n)
            stopped_n = ratio_n <= ratio_n.min()
            w_n[stopped_n], free_n = 0, free_n & ~stopped_n
        w_n = goal_n
    return w_n
