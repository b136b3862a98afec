"""Relabelling: a candidate whose most probable class is another one becomes a candidate of that class.

Shape suffixes: N candidates of one class, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradmm.solvers.pool import Candidate, Pool

log = logging.getLogger("gradmm")


@dataclass(frozen=True)
class Checked:
    """Candidates of one class, in the order of their texts, after the label check."""

    pool: list[Candidate]
    score_N: Tensor
    """Probability of the class's label."""
    relabelled_in: int = 0
    """Of `pool`, those that were written for another class."""
    relabelled_out: int = 0
    """Candidates that were written for this class and went."""


def relabel(
    pools: Sequence[Sequence[Candidate]],
    scores: Sequence[Tensor],
    counts: Sequence[int],
    names: Sequence[str],
    near_duplicate: float,
) -> list[Checked]:
    """Gives every candidate to the class that is most probable; to the one that it was written for in a tie.

    A text that its new class has already, or one that is like it, is not added; a class's own stay before those
    that come. Where a class would be left with fewer candidates than texts are asked for, as many of its own as
    it takes stay, the most probable ones, and the log says so.

    Args:
        pools: candidates per class, no two of a class alike.
        scores: probability of every class (N, C), for each of them.
        counts: texts that are asked for, per class.
        names: of the classes, for the log.
        near_duplicate: as of `Pool`.
    """
    needed = [min(count, len(pool)) for count, pool in zip(counts, pools, strict=True)]
    goes = [_most_probable(own_NC, label) for label, own_NC in enumerate(scores)]
    while True:
        found = [_gathered(label, pools, scores, goes, near_duplicate) for label in range(len(pools))]
        short = [label for label, own in enumerate(found) if len(own.pool) < needed[label]]
        if not short:
            return found
        for label in short:
            left, count = len(found[label].pool), needed[label]
            log.warning(
                "class %s: relabelling would leave %d candidates, and %d are needed; the most probable ones of "
                "its own stay",
                names[label],
                left,
                count,
            )
            goes[label][_likeliest_gone(scores[label], goes[label], label)[: count - left]] = label


def _most_probable(score_NC: Tensor, own: int) -> Tensor:
    """The class of every candidate (N)."""
    best_N, label_N = score_NC.max(1)
    return torch.where(score_NC[:, own] >= best_N, own, label_N)


def _likeliest_gone(score_NC: Tensor, goes_N: Tensor, label: int) -> Tensor:
    """Candidates of a class that go to others, those first whose own label is most probable."""
    gone = (goes_N != label).nonzero()[:, 0]
    return gone[score_NC[gone, label].argsort(descending=True, stable=True)]


def _gathered(
    label: int,
    pools: Sequence[Sequence[Candidate]],
    scores: Sequence[Tensor],
    goes: Sequence[Tensor],
    near_duplicate: float,
) -> Checked:
    """The candidates that go to a class, its own first."""
    pool, score = Pool(near_duplicate), dict[str, float]()
    for origin in sorted(range(len(pools)), key=lambda origin: origin != label):
        for i in (goes[origin] == label).nonzero()[:, 0].tolist():
            candidate = pools[origin][i]
            pool.add([candidate.text], candidate.source)
            score.setdefault(candidate.text, float(scores[origin][i, label]))
    kept = sorted(pool.candidates, key=lambda candidate: candidate.text)
    gone = int((goes[label] != label).sum())
    own = len(pools[label]) - gone
    score_N = torch.tensor([score[candidate.text] for candidate in kept], dtype=scores[label].dtype)
    return Checked(kept, score_N, len(kept) - own, gone)


def survivors(name: str, score_N: Tensor, count: int, least: float) -> list[int]:
    """Candidates whose label is probable enough; the most probable ones where too few are.

    Args:
        name: of the class, for the log.
        score_N: probability of every candidate's label.
        count: how many are needed.
        least: probability that is enough.
    """
    kept: list[int] = (score_N >= least).nonzero()[:, 0].tolist()
    if len(kept) < count:
        log.warning(
            "class %s: %d of %d candidates carry their label with a probability of %g or more, and %d are "
            "needed; the most probable ones are taken",
            name,
            len(kept),
            len(score_N),
            least,
            count,
        )
        kept = sorted(score_N.argsort(descending=True, stable=True)[:count].tolist())
    return kept
