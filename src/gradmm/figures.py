"""What a report draws of a run, computed while model and rows are at hand: `figures` of `metrics.json`.

Means, counts and coordinates; of real rows there is what the caller hands in, and in a private run that is none.

Shape suffixes: P points.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gradmm.gradients.distances import components
from gradmm.gradients.target import ReleasedTarget

_POINTS = 200  # of one curve: more than a screen shows
_BINS = 24
_WORDS = 15
_ENDS = ".,;:!?\"'()[]"  # of words, beside which the same word stands

_OF_ADMM = {"distance": "best", "primal residual": "primal_residual", "dual residual": "dual_residual"}

Texts = Sequence[Sequence[str]]
_Curve = tuple[str, int | None, str, str, Sequence[Sequence[float]]]
"""Stage, label, unit, quantity and points."""


def gradient_map(sets: Mapping[str, ReleasedTarget], bias: str) -> dict[str, Any]:
    """Two coordinates for the mean gradient of every class of every set.

    Principal components of the gradients' directions (each of norm 1, their mean taken off), as a cosine distance
    sees no more of them. Signs are those that put the first class of the first set on the positive side.

    Args:
        sets: mean gradients by kind, in one space.
        bias: as in `DistanceConfig.bias`; what its `separate` averages is added up here.

    Returns:
        `explained`, the share of variance of either axis, and `points`, each with kind, label, x and y.
    """
    places = [(kind, label) for kind, own in sets.items() for label in range(len(own.classes))]
    gradients = [sets[kind].classes[label] for kind, label in places]
    gram_PP = torch.tensor(
        [[float(components(a.inner_with(b), bias).sum()) for b in gradients] for a in gradients],
        dtype=torch.float64,
    )
    norm_P = gram_PP.diagonal().clamp_min(1e-300).sqrt()
    at_P2, explained = _principal(gram_PP / norm_P.unsqueeze(1) / norm_P)
    points = [
        {"kind": kind, "label": label, "x": x, "y": y}
        for (kind, label), (x, y) in zip(places, at_P2.tolist(), strict=True)
    ]
    return {"explained": explained, "points": points}


def _principal(gram_PP: Tensor) -> tuple[Tensor, list[float]]:
    """Coordinates (P, 2) whose inner products are nearest to those given, once centred; shares of variance."""
    centred_PP = gram_PP - gram_PP.mean(0) - gram_PP.mean(1, keepdim=True) + gram_PP.mean()
    values_P, vectors_PP = torch.linalg.eigh((centred_PP + centred_PP.T) / 2)
    values_P = values_P.clamp_min(0).flip(0)
    total = float(values_P.sum())
    at_P2 = vectors_PP.flip(1)[:, :2] * values_P[:2].sqrt()
    at_P2 = at_P2 * torch.where(at_P2[0] < 0, -1.0, 1.0)
    return at_P2, [float(value) / total if total else 0.0 for value in values_P[:2]]


def lengths(tokens: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """How many texts of every set have how many tokens.

    Args:
        tokens: numbers of tokens, by set.

    Returns:
        `edges` of bins that are alike for all (the last one included), and counts by set.
    """
    everything = [count for own in tokens.values() for count in own]
    low, high = min(everything), max(everything) + 1
    width = max(1, -(-(high - low) // _BINS))
    edges = list(range(low, high + width, width))
    counts = {name: [0] * (len(edges) - 1) for name in tokens}
    for name, own in tokens.items():
        for count in own:
            counts[name][(count - low) // width] += 1
    return {"unit": "tokens", "edges": edges, "sets": counts}


def words(ours: Texts, theirs: Texts, reference: str) -> dict[str, Any]:
    """Words whose share of all words differs most between two sets of texts.

    Args:
        ours: the synthetic texts, per class.
        theirs: what they are held against, per class.
        reference: what that is: `real` or `lm`.
    """
    shares = [_shares(texts) for texts in (ours, theirs)]
    both = {word: tuple(own.get(word, 0.0) for own in shares) for word in {**shares[0], **shares[1]}}
    order = sorted(both, key=lambda word: (both[word][1] - both[word][0], word))
    more = [word for word in order[:_WORDS] if both[word][0] > both[word][1]]
    fewer = [word for word in order[::-1][:_WORDS] if both[word][0] < both[word][1]]

    def told(some: list[str]) -> list[dict[str, Any]]:
        return [{"word": word, "synthetic": both[word][0], "reference": both[word][1]} for word in some]

    return {"reference": reference, "more": told(more), "fewer": told(fewer)}


def _shares(texts: Texts) -> dict[str, float]:
    found = Counter(word for own in texts for text in own for word in words_of(text))
    return {word: count / found.total() for word, count in found.items()}


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case and without the punctuation around them."""
    return [word for word in (part.strip(_ENDS) for part in text.lower().split()) if word]


def history(trace: Sequence[Mapping[str, float]], groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How objective, distance and residuals went on.

    Args:
        trace: of ADMM, one entry for each wave of blocks and outer iteration.
        groups: per group of classes that are matched together, what the search kept: `classes`, `exchanges`,
            values of the objective, and `refinement`, pairs of judged texts and objective.

    Returns:
        Curves of at most 200 points, the first and the last among them.
    """
    curves = list[_Curve]()
    for quantity, key in _OF_ADMM.items():
        by_outer: dict[int, list[float]] = defaultdict(list)
        for entry in trace:
            by_outer[int(entry["outer"])].append(entry[key])
        points = [(outer, sum(own) / len(own)) for outer, own in sorted(by_outer.items())]
        curves.append(("admm", None, "outer iterations", quantity, points))
    for own in groups:
        label = own["classes"][0] if len(own["classes"]) == 1 else None
        curves.append(("selection", label, "exchanges", "objective", list(enumerate(own["exchanges"]))))
        curves.append(("refinement", label, "judged texts", "objective", own["refinement"]))
    return [
        {"stage": stage, "label": label, "unit": unit, "quantity": quantity, "points": thinned(points)}
        for stage, label, unit, quantity, points in curves
        if len(points) > 1
    ]


def thinned(points: Sequence[Sequence[float]]) -> list[list[float]]:
    """At most 200 of the points, evenly, with the first and the last."""
    if len(points) <= _POINTS:
        return [list(point) for point in points]
    return [list(points[round(i * (len(points) - 1) / (_POINTS - 1))]) for i in range(_POINTS)]


def nearest_rows(texts: Texts, rows: Sequence[Iterable[list[str]]]) -> list[dict[str, Any]]:
    """For every text the real row of its class that has most of its word pairs.

    Args:
        texts: the synthetic texts, per class.
        rows: per class, batches of real rows.

    Returns:
        In the order of the texts: `row`, its place among them, `text`, the real row (the first of several that are
        as near), and `overlap`, the share of the text's word pairs that it has; texts that share no pair with
        any row are left out.
    """
    found, before = [], 0
    for own, batches in zip(texts, rows, strict=True):
        pairs = [_pairs(text) for text in own]
        places: dict[tuple[str, str], list[int]] = defaultdict(list)
        for i, some in enumerate(pairs):
            for pair in some:
                places[pair].append(i)
        best: dict[int, tuple[int, str]] = {}
        for row in (row for batch in batches for row in batch):
            for i, shared in Counter(i for pair in _pairs(row) for i in places.get(pair, ())).items():
                if shared > best.get(i, (0, ""))[0]:
                    best[i] = shared, row
        found += [
            {"row": before + i, "text": row, "overlap": shared / len(pairs[i])}
            for i, (shared, row) in sorted(best.items())
        ]
        before += len(own)
    return found


def _pairs(text: str) -> set[tuple[str, str]]:
    return set(pairwise(words_of(text)))
