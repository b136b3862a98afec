"""Few rows: what is aimed at lies between the rows' target and what the LM's own texts say of the classes.

    LM, after a short training on the rows -> its texts that carry their label best -> mean gradient -> target

Few rows say little by their mean gradient (`gradients.shrinkage` says how little), and more by what a model learns
from them: it knows of each of its own texts, which are many, what class it looks like. What is measured stays held
against the rows' own target.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gradmm.checkpoints import Checkpoints
from gradmm.gradients.exact_target import class_target
from gradmm.gradients.shrinkage import Group, RowNoise, noise_of, shrunk
from gradmm.gradients.target import ClassTarget, ReleasedTarget
from gradmm.progress import Stage
from gradmm.search import Search
from gradmm.training.finetune import FineTuner, TrainConfig
from gradmm.training.rows import tokenise
from gradmm.training.trainable import TrainableModel

log = logging.getLogger("gradmm")
MOST_ROWS = 240
"""Real rows per class that the LM learns from; more are more than the training sees."""
_ENOUGH = 0.3
"""Share of noise in the rows' target that nothing is done about: with 1,000 rows per class it is 0.08 (two classes
of emotion) to 0.25 (sst2), and sets that are made towards such a target train as well as real rows."""
Rows = Callable[[Sequence[int]], list[list[str]]]
"""Draws so many real rows of every class."""


@dataclass(frozen=True)
class Aim:
    """What solvers follow."""

    target: ReleasedTarget
    figures: dict[str, Any] | None = None
    """What `metrics.json` keeps of it; None where it is the rows' target as it is."""


def is_asked_for(search: Search, target: ReleasedTarget) -> bool:
    """Whether the settings, or the rows by how few they are, ask for the LM's texts in the target."""
    config = search.config
    if config.solver == "admm" or config.shrinkage.weight == 0:
        return False
    if config.shrinkage.weight != "auto":
        return True
    found = _noise(search, target)
    return found is not None and found.share > _ENOUGH


def take_aim(
    search: Search,
    target: ReleasedTarget,
    lm_texts: Sequence[Sequence[str]],
    rows: Rows,
    folder: Checkpoints,
    stage: Stage,
) -> Aim:
    """The target between the rows' and the LM's.

    Args:
        search: knows model, task and settings.
        target: the rows', with their spread where the weight is to be found.
        lm_texts: per class, what the LM wrote.
        rows: draws what the LM learns the classes from.
        folder: keeps what the LM's texts say.
        stage: is told of every class.

    Raises:
        NonFiniteError: if the training's loss stops being finite.
    """
    weight, found = search.config.shrinkage.weight, _noise(search, target)
    share = None
    if weight == "auto":
        assert found is not None, "asked for"
        weight, share = found.weight, found.share
        log.info(
            "few rows: %.0f%% of what their mean gradient says is noise, so %.0f%% of the target is what the LM's "
            "own texts say",
            *(100 * share, 100 * weight),
        )
    prior = _prior(search, target, lm_texts, rows, folder, stage)
    return Aim(shrunk(target, prior, weight), {"weight": weight, "noise_share": share})


def _noise(search: Search, target: ReleasedTarget) -> RowNoise | None:
    groups: list[Group] = [(group, [search.runner.counts[label] for label in group]) for group in search.groups]
    return noise_of(target, groups, search.bias)


def _prior(
    search: Search,
    target: ReleasedTarget,
    lm_texts: Sequence[Sequence[str]],
    rows: Rows,
    folder: Checkpoints,
    stage: Stage,
) -> ReleasedTarget:
    """Mean gradients of the LM's texts that carry their label best, in the target's space."""
    kept = folder.load_state("prior-texts")
    if kept is None:
        kept = {}, {"texts": _best(search, lm_texts, _taught(search, rows))}
        folder.save_state("prior-texts", *kept)
    classes = list[ClassTarget]()
    for label, texts in enumerate(kept[1]["texts"]):
        about = search.lm, search.task, label, [texts], search.runner.limit
        classes.append(class_target(*about, space=target.space))
        stage.advance()
    return ReleasedTarget(tuple(classes), target.space)


def _best(search: Search, lm_texts: Sequence[Sequence[str]], reader: TrainableModel) -> list[list[str]]:
    """Per class, the texts whose label is most probable to a model."""
    pools, found = search.pool(lm_texts, [], fewest=1), list[list[str]]()
    for pool, score_N in zip(pools, search.check_labels(pools, reader), strict=True):
        count = max(1, round(search.config.shrinkage.share * len(pool)))
        best = score_N.argsort(descending=True, stable=True)[:count].tolist()
        found.append([pool[i].text for i in best])
    return found


def _taught(search: Search, rows: Rows) -> TrainableModel:
    """The LM after a short training on rows, as many of every class."""
    settings, lm = search.config.shrinkage, search.lm
    config = TrainConfig(
        learning_rate=settings.learning_rate,
        max_steps=settings.max_steps,
        eval_steps=max(1, settings.max_steps),
        lora=search.config.writer.lora,
        bf16=lm.dtype == torch.bfloat16,
        seed=search.config.seed,
    )
    texts = rows([MOST_ROWS] * len(search.task.task.label_names))
    tuner = FineTuner(lm, search.task, tokenise(search.task, texts), config)
    tuner.run()
    return tuner.model
