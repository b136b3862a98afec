"""Few rows: what is aimed at lies between the rows' target and what the LM's own texts say of the classes.

    reader of labels -> the LM's texts that are most surely of each class -> mean gradient -> target

Few rows say little by their mean gradient (`gradients.shrinkage` says how little), and more by what a model learns
from them: it knows of each of the LM's own texts, which are many, what class it looks like. So the reader of
labels (`label_check`) is asked. What is measured stays held against the rows' own target.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from gradmm.checkpoints import Checkpoints
from gradmm.gradients.exact_target import compute_target
from gradmm.gradients.shrinkage import Group, noise_of, shrunk
from gradmm.gradients.target import ReleasedTarget
from gradmm.search import Search

log = logging.getLogger("gradmm")
_ENOUGH = 0.3
"""Share of noise in the rows' target that nothing is done about: with 1,000 rows per class it is 0.08 (two classes
of emotion) to 0.25 (sst2), and sets that are made towards such a target train as well as real rows."""


@dataclass(frozen=True)
class Shift:
    """How far the rows' target is moved."""

    weight: float
    """Of the LM's texts in what is aimed at."""
    noise_share: float | None
    """In what the rows say; None where the settings gave the weight."""


def find_shift(search: Search, target: ReleasedTarget) -> Shift | None:
    """What the settings, or the rows by how few they are, ask for; None where the rows' target is taken as it is.

    Args:
        search: knows the settings.
        target: the rows', with their spread where the weight is to be found.
    """
    config, weight = search.config, search.config.shrinkage.weight
    if config.solver == "admm" or weight == 0:
        return None
    if weight != "auto":
        return Shift(weight, None)
    groups: list[Group] = [(group, [search.runner.counts[label] for label in group]) for group in search.groups]
    found = noise_of(target, groups, search.bias)
    if found is None:
        log.warning(
            "every class has one real row: how far their mean gradient is to be trusted cannot be told, and it is "
            "taken as it is; give shrinkage.weight a number to move it to what the LM's own texts say"
        )
        return None
    if found.share <= _ENOUGH:
        return None
    log.info(
        "few rows: %.0f%% of what their mean gradient says is noise, so %.0f%% of the target is what the LM's own "
        "texts say",
        *(100 * found.share, 100 * found.weight),
    )
    return Shift(found.weight, found.share)


def shift_target(
    search: Search,
    target: ReleasedTarget,
    shift: Shift,
    lm_texts: Sequence[Sequence[str]],
    folder: Checkpoints,
) -> ReleasedTarget:
    """What is aimed at, between the rows' target and the LM's texts.

    Args:
        search: knows model, task and settings.
        target: the rows'.
        shift: how far.
        lm_texts: per class, what the LM wrote.
        folder: keeps which texts were taken.

    Raises:
        NonFiniteError: if the reader's loss stops being finite.
    """
    kept = folder.load_state("prior-texts")
    if kept is None:
        kept = {}, {"texts": _surest(search, target, lm_texts)}
        folder.save_state("prior-texts", *kept)
    texts = [[own] for own in kept[1]["texts"]]
    prior = compute_target(search.lm, search.task, texts, limit=search.runner.limit, space=target.space)
    return shrunk(target, prior, shift.weight)


def _surest(search: Search, target: ReleasedTarget, lm_texts: Sequence[Sequence[str]]) -> list[list[str]]:
    """Per class, a share of the LM's texts: those that are most probably of it."""
    pools, share = search.pool(lm_texts, [], fewest=1), search.config.shrinkage.share
    return [[candidate.text for candidate in own] for own in search.labels.by(target).surest(pools, share)]
