"""How near a target of few rows is to that of many: alone, and shrunk towards what the LM's own texts say.

Cosines with the mean gradient of all rows (at most `--all` per class) in the default space, centred by it.
`labels`: the LM's texts whose label is most probable to it; `taught`: to the LM after the short training on the
few rows, as `shrinkage` takes them. Behind each, the target between rows and these texts, by the weight of the
latter; `auto` is what a run takes. Draws of rows are averaged.

    python -m benchmarks.few_rows TRAIN.jsonl.gz TASK [--classes A,B] [--rows 5 20 50] [--draws 4]
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.material import Memory, material
from gradmm.comparison.material import Material
from gradmm.gradients.distances import components
from gradmm.gradients.shrinkage import noise_of
from gradmm.gradients.target import ClassTarget, ReleasedTarget
from gradmm.shrinking import take_aim

WEIGHTS = (0.3, 0.5, 0.7, 1.0)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_rows")
    parser.add_argument("data", help="labelled rows")
    parser.add_argument("task", help="a ready-made task")
    parser.add_argument("--classes", default="", help="the classes to take; all by default")
    parser.add_argument("--rows", type=int, nargs="*", default=[5, 20, 50], help="of every class")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--all", type=int, default=600, help="rows per class that the others are held against")
    parser.add_argument("--texts", type=int, default=256, help="of the LM, per class")
    arguments = parser.parse_args()
    classes = {"classes": arguments.classes.split(",")} if arguments.classes else {}
    settings = {"pool": {"texts_per_text": arguments.texts}, "writer": {"rounds": 1}}
    many = material(arguments.data, arguments.task, settings, max_rows_per_class=arguments.all, **classes)
    table = Table(
        "rows per class",
        "noise",
        "rows",
        *(f"{who} {w:g}" for who in ("labels", "taught") for w in WEIGHTS),
        "auto",
    )
    for count in arguments.rows:
        found = defaultdict[str, list[float]](list)
        for draw in range(arguments.draws):
            for name, value in cosines(many, count, draw).items():
                found[name].append(value)
        table.add_row(str(count), *(f"{np.mean(values):.2f}" for values in found.values()))
    Console(width=160).print(table)


def cosines(many: Material, count: int, draw: int) -> dict[str, float]:
    """Of one draw of rows."""
    rows = many.rows.sample([min(count, own) for own in many.rows.counts()], draw)
    few = replace(many, rows=rows, seed=draw, folder=Memory(), _seen={}, _pools={}, _forms={}, _scores={})
    few.__dict__ |= {"space": many.space, "lm_texts": many.lm_texts}
    centre = many.target.space.maps[-1]
    own = ReleasedTarget(
        tuple(one.mapped(centre) for one in (few.target.whole or few.target).classes), many.target.space
    )
    search = many.search(many.budget)
    groups = [(group, [1] * len(group)) for group in search.groups]
    noise = noise_of(own, groups, search.bias)
    assert noise is not None, "several rows"
    found = {"noise": noise.share, "rows": cosine(many, own)}
    for who, steps in (("labels", 0), ("taught", 30)):
        for weight in WEIGHTS:
            found[f"{who} {weight}"] = cosine(many, aim(few, own, {"weight": weight, "max_steps": steps}, who))
    return found | {"auto": cosine(many, aim(few, own, {}, "taught"))}


def aim(few: Material, own: ReleasedTarget, changes: dict[str, Any], who: str) -> ReleasedTarget:
    """The shrunk target; texts are chosen once for each way."""
    shrinkage = few.config.shrinkage.model_copy(update=changes)
    folder = few.__dict__.setdefault(f"kept {who}", Memory())
    return take_aim(
        few.search(few.budget, shrinkage=shrinkage), own, few.lm_texts, few.draw_rows, folder, few.stage
    ).target


def cosine(many: Material, target: ReleasedTarget) -> float:
    """With the gradient of all rows, all classes together."""
    classes = range(many.rows.num_classes)
    one, other = (some.together(classes, [1] * len(classes)) for some in (target, many.target))
    return _inner(many, one, other) / math.sqrt(_inner(many, one, one) * _inner(many, other, other))


def _inner(many: Material, one: ClassTarget, other: ClassTarget) -> float:
    return float(components(one.inner_with(other), many.search(many.budget).bias).sum())


if __name__ == "__main__":
    main()
