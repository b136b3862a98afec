"""The form of writing in which a model's texts come nearest to a target: chosen once per run, before all else.

It is one form for all classes: were it each class's own, a model that is trained on the texts would tell the
classes apart by it. Which it is shows in what all rows have in common, so the target is taken whole, and each
class's own. Only the released target says which; no real row has a part in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from gradmm.checkpoints import Checkpoints
from gradmm.found import Seen
from gradmm.gradients.target import ReleasedTarget
from gradmm.progress import Stage
from gradmm.search import Search
from gradmm.solvers.forms import Form

_FEWEST, _MOST = 32, 64  # LM texts of every class that are looked at
_IN_ALL = 384  # of all classes, unless that leaves too few of each
_OF = 4  # one of so many is selected


@dataclass(frozen=True)
class ChosenForm:
    """The form, and what was known of every one."""

    name: str
    objectives: dict[str, float | None]
    """Mean over classes of a selected set's log distance; None where too few texts can take the form."""

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
    """The form of `pool.forms` in which a set that is selected from the LM's texts is nearest.

    Args:
        search: selects, and knows the settings.
        target: what to come near to.
        lm_texts: what the LM wrote, per class.
        folder: keeps the choice.
        stage: is told of every form.
    """
    names = search.config.pool.forms
    if len(names) == 1:
        stage.advance()
        return ChosenForm(names[0], {})
    kept = folder.load_state("form")
    if kept is None:
        each = max(_FEWEST, min(_MOST, _IN_ALL // len(lm_texts)))
        chosen = _compare(search, target.whole or target, [list(own[:each]) for own in lm_texts], names, stage)
        kept = {}, asdict(chosen)
        folder.save_state("form", *kept)
    return ChosenForm(**kept[1])


def _compare(
    search: Search, target: ReleasedTarget, texts: list[list[str]], names: Sequence[str], stage: Stage
) -> ChosenForm:
    """The first of the best forms."""
    objectives: dict[str, float] = {}
    for name in names:
        objectives[name] = _objective(search, target, texts, Form(name))
        stage.advance()
    told = {name: value if math.isfinite(value) else None for name, value in objectives.items()}
    return ChosenForm(min(names, key=objectives.__getitem__), told)


def _objective(search: Search, target: ReleasedTarget, texts: list[list[str]], form: Form) -> float:
    """Mean over classes of the selected set's log distance. Readability has no say: so are the data."""
    pools, total = search.pool(texts, [], form, fewest=0), 0.0
    wanted = [max(1, len(own) // _OF) for own in texts]
    if any(len(pool) < count for pool, count in zip(pools, wanted, strict=True)):
        return math.inf
    for label, (pool, count) in enumerate(zip(pools, wanted, strict=True)):
        kernel, _ = search.kernel([label] * len(pool), [candidate.text for candidate in pool], target.space)
        none_N = torch.zeros(len(pool), dtype=torch.float64)
        seen = Seen((label,), pool, none_N.long(), torch.ones(len(pool)), none_N, kernel, (0.0,))
        total += search.select(seen, target, [count]).objective
    return total / len(texts)
