"""What a set of labelled texts is worth: distance of its gradients, readability. Always of the decoded text.

Texts are tokenised here as a user's trainer would tokenise them; whatever tokens a solver had in mind play
no part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch

from gradmm.data.task import BoundTask
from gradmm.decoding import log_perplexity
from gradmm.gradients.distances import DistanceConfig, distance_between, matched_together
from gradmm.gradients.exact_target import compute_target
from gradmm.gradients.target import ReleasedTarget
from gradmm.memory import BatchLimit
from gradmm.models import LanguageModel


@dataclass(frozen=True)
class SetMeasures:
    """One set of texts: real rows, LM samples or synthetic texts."""

    texts: int
    """Number of texts."""
    distance: float
    """Distance between the set's mean gradient and the target: of all classes together, or, where they are matched
    apart, averaged over them."""
    class_distances: tuple[float, ...]
    """Of each class's own mean gradient."""
    log_perplexity: float
    """Mean over texts of the LM's negative log-likelihood per token (nats)."""
    distinct_2: float
    """Different word pairs over all word pairs: 1 is varied, 0 is all the same."""
    tokens: float
    """Mean length of a text in tokens."""


class Measured(NamedTuple):
    """A set of texts, measured."""

    measures: SetMeasures
    log_perplexities: list[list[float]]
    """Per class, of each text."""
    gradients: ReleasedTarget
    """The set's own mean gradients, in the target's space."""
    tokens: list[int]
    """Length of each text."""


@torch.no_grad()
def measure(
    lm: LanguageModel,
    task: BoundTask,
    target: ReleasedTarget,
    config: DistanceConfig,
    texts: Sequence[Sequence[str]],
    limit: BatchLimit | None = None,
) -> Measured:
    """Measures a set of texts against a target.

    Args:
        lm: the language model.
        task: the rendering.
        target: mean gradients of the real rows.
        config: the distance.
        texts: per class, its texts (at least one).
        limit: texts that go through the model at once.
    """
    limit = limit or BatchLimit()
    gradients = compute_target(lm, task, [[list(own)] for own in texts], limit=limit, space=target.space)
    has_bias, counts = lm.head.bias_V is not None, [len(own) for own in texts]
    distances = [
        distance_between(config, mine, theirs, has_bias)
        for mine, theirs in zip(gradients.classes, target.classes, strict=True)
    ]
    ids = [[task.text_ids(text) for text in own] for own in texts]
    nll = [log_perplexity(lm, own, limit) for own in ids]
    flat = [value for own in nll for value in own if not math.isnan(value)]
    lengths = [len(row) for own in ids for row in own]
    found = SetMeasures(
        texts=len(lengths),
        distance=set_distance(config, gradients, target, counts, has_bias),
        class_distances=tuple(distances),
        log_perplexity=sum(flat) / len(flat) if flat else float("nan"),
        distinct_2=distinct_2([text for own in texts for text in own]),
        tokens=sum(lengths) / len(lengths),
    )
    return Measured(found, nll, gradients, lengths)


def set_distance(
    config: DistanceConfig, mine: ReleasedTarget, target: ReleasedTarget, counts: Sequence[int], has_bias: bool
) -> float:
    """Distance of what is matched together, averaged where that is each class's own.

    Args:
        config: the distance.
        mine: mean gradients of a set of texts.
        target: what they are held against, in the same space.
        counts: texts of every class.
        has_bias: whether the model's head has a bias.
    """
    found = [
        distance_between(config, mine.together(group, own), target.together(group, own), has_bias)
        for group in matched_together(config, len(counts))
        for own in [[counts[label] for label in group]]
    ]
    return sum(found) / len(found)


def distinct_2(texts: Sequence[str]) -> float:
    """Share of word pairs that are different (Li et al. 2016); NaN where there are none."""
    words = [text.lower().split() for text in texts]
    pairs = [pair for own in words for pair in pairwise(own)]
    return len(set(pairs)) / len(pairs) if pairs else float("nan")
