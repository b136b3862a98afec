"""The form of writing in which a model's texts come nearest to a target: chosen once per run, before all else.

It is one form for all classes: were it each class's own, a model that is trained on the texts would tell the
classes apart by it. Only the released target says which; no real row has a part in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from gradmm.checkpoints import Checkpoints
from gradmm.gradients.target import ReleasedTarget
from gradmm.progress import Stage
from gradmm.search import Search
from gradmm.solvers.forms import AS_WRITTEN, Form

_FEWEST, _MOST = 32, 128  # LM texts of every class that are looked at
_IN_ALL = 768  # of all classes, unless that leaves too few of each
_OF = 4  # one of so many is selected


@dataclass(frozen=True)
class ChosenForm:
    """The form, and what was known of every one."""

    name: str
    objectives: dict[str, float | None]
    """Mean over classes of what selection minimises; None where too few texts can take the form."""

    @property
    def form(self) -> Form:
        """What brings texts into it."""
        return Form(self.name)


def choose_form(
    search: Search,
    target: ReleasedTarget,
    lm_texts: Sequence[Sequence[str]],
    folder: Checkpoints,
    stage: Stage,
) -> ChosenForm:
    """The form of `pool.forms` in which a set that is selected from the LM's texts is best.

    Args:
        search: selects, and knows the settings.
        target: what to come near to.
        lm_texts: what the LM wrote, per class.
        folder: keeps the choice.
        stage: is told of every form.
    """
    names = search.config.pool.forms
    if len(names) == 1:
        return ChosenForm(names[0], {})
    kept = folder.load_state("form")
    if kept is None:
        each = max(_FEWEST, min(_MOST, _IN_ALL // len(lm_texts)))
        chosen = _compare(search, target, [list(own[:each]) for own in lm_texts], names, stage)
        kept = {}, asdict(chosen)
        folder.save_state("form", *kept)
    return ChosenForm(**kept[1])


def _compare(
    search: Search, target: ReleasedTarget, texts: list[list[str]], names: Sequence[str], stage: Stage
) -> ChosenForm:
    """The first of the best forms; all are as readable as they are beside the texts as they were written."""
    free = list[float]()
    objectives: dict[str, float] = {}
    for name in dict.fromkeys((AS_WRITTEN, *names)):
        value, own_free = _objective(search, target, texts, Form(name), free)
        free = free or own_free
        if name in names:
            objectives[name] = value
            stage.advance()
    told = {name: value if math.isfinite(value) else None for name, value in objectives.items()}
    return ChosenForm(min(names, key=objectives.__getitem__), told)


def _objective(
    search: Search, target: ReleasedTarget, texts: list[list[str]], form: Form, free: list[float]
) -> tuple[float, list[float]]:
    """Mean over classes of the selected sets' objectives, and the log-perplexity of each class's texts."""
    pools, total, own_free = search.pool(texts, [], form, fewest=0), 0.0, list[float]()
    wanted = [max(1, len(own) // _OF) for own in texts]
    if any(len(pool) < count for pool, count in zip(pools, wanted, strict=True)):
        return math.inf, own_free
    for label, (pool, score_N) in enumerate(zip(pools, search.check_labels(pools), strict=True)):
        seen = search.look_at(label, pool, score_N, target.space)
        own_free.append(seen.nll_free)
        seen = replace(seen, nll_free=free[label]) if free else seen
        total += search.select(seen, target, wanted[label]).objective
    return total / len(texts), own_free
