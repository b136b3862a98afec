"""Few rows: what is aimed at lies between the rows' target and what the LM's own texts say of the classes.

    label check of the LM's texts -> mean gradient of those that carry their label best -> weight -> shrunk target

The rows say how far they are to be trusted (`gradients.shrinkage`), by how much their gradients differ; no row has
a part in what the LM's texts say. What is measured stays held against the rows' own target.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradmm.checkpoints import Checkpoints
from gradmm.gradients.exact_target import class_target
from gradmm.gradients.shrinkage import Group, Shrinkage, noise_of, shrunk, weight_of
from gradmm.gradients.target import ClassTarget, ReleasedTarget
from gradmm.progress import Stage
from gradmm.search import Search

log = logging.getLogger("gradmm")
_ENOUGH = 0.2
"""Noise in the rows' target, of its squared norm, that a prior would add next to nothing to: at 0.12 it had a
weight of 3%, and to find out costs a look at the LM's texts."""


@dataclass(frozen=True)
class Aim:
    """What solvers follow."""

    target: ReleasedTarget
    figures: dict[str, Any] | None = None
    """What `metrics.json` keeps of it; None where it is the rows' target as it is."""


def asked_for(search: Search, target: ReleasedTarget) -> bool:
    """Whether the settings, or the rows by how few they are, ask for the LM's texts in the target."""
    config = search.config
    if config.solver == "admm" or config.shrinkage.weight == 0:
        return False
    found = _noise(search, target) if config.shrinkage.weight == "auto" else None
    return config.shrinkage.weight != "auto" or (found is not None and found.noise_share > _ENOUGH)


def take_aim(
    search: Search,
    target: ReleasedTarget,
    lm_texts: Sequence[Sequence[str]],
    folder: Checkpoints,
    stage: Stage,
) -> Aim:
    """The target between the rows' and the LM's.

    Args:
        search: knows model, task and settings.
        target: the rows', with their spread where the weight is to be found.
        lm_texts: per class, what the LM wrote.
        folder: keeps what the LM's texts say.
        stage: is told of every class.
    """
    settings, found = search.config.shrinkage, _noise(search, target)
    prior = _prior(search, target, lm_texts, folder, stage)
    if settings.weight != "auto":
        return Aim(shrunk(target, prior, settings.weight), {"weight": settings.weight, "noise_share": None})
    assert found is not None, "asked for"
    weight = weight_of(target, prior, found, _groups(search), search.bias)
    log.info(
        "few rows: %.0f%% of what their mean gradient says is noise, so %.0f%% of the target is what the LM's own "
        "texts say",
        100 * min(1.0, found.noise_share),
        100 * weight,
    )
    return Aim(shrunk(target, prior, weight), {"weight": weight, "noise_share": found.noise_share})


def _groups(search: Search) -> list[Group]:
    return [(group, [search.runner.counts[label] for label in group]) for group in search.groups]


def _noise(search: Search, target: ReleasedTarget) -> Shrinkage | None:
    return noise_of(target, _groups(search), search.bias)


def _prior(
    search: Search,
    target: ReleasedTarget,
    lm_texts: Sequence[Sequence[str]],
    folder: Checkpoints,
    stage: Stage,
) -> ReleasedTarget:
    """Mean gradients of the LM's texts that carry their label best, in the target's space."""
    names = [f"prior-{label:06d}" for label in range(len(lm_texts))]
    kept = [folder.load_state(name) for name in names]
    if None in kept:
        kept = [(own.tensors(), {}) for own in _computed(search, target, lm_texts, stage)]
        for name, (tensors, facts) in zip(names, filter(None, kept), strict=True):
            folder.save_state(name, tensors, facts)
    classes = [
        ClassTarget.from_tensors({name: value.to(search.lm.device) for name, value in one[0].items()})
        for one in kept
        if one is not None
    ]
    return ReleasedTarget(tuple(classes), target.space)


def _computed(
    search: Search, target: ReleasedTarget, lm_texts: Sequence[Sequence[str]], stage: Stage
) -> list[ClassTarget]:
    pools = search.pool(lm_texts, [], fewest=1)
    found = []
    for label, (pool, score_N) in enumerate(zip(pools, search.check_labels(pools), strict=True)):
        count = max(1, round(search.config.shrinkage.share * len(pool)))
        best = score_N.argsort(descending=True, stable=True)[:count].tolist()
        texts = [pool[i].text for i in best]
        about = (search.lm, search.task, label, [texts], search.runner.limit)
        found.append(class_target(*about, space=target.space))
        stage.advance()
    return found
