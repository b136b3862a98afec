"""How near a target of few rows is to that of many: alone, and shrunk towards what the LM's own texts say.

Cosines with the mean gradient of all rows (at most `--all` per class) in the default space, centred by it.
`labels`: the LM's texts whose label is most probable to it; `taught`: to the LM after the short training on the
few rows, as `shrinkage` takes them. Behind each, the target between rows and these texts, by the weight of the
latter; `auto` is what a run takes; noise that it takes no notice of is 0. Draws of rows are averaged.

    python -m benchmarks.few_rows TRAIN.jsonl.gz TASK [--classes A,B] [--rows 5 20 50] [--draws 4]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.material import Memory, material
from gradmm.comparison.material import Material
from gradmm.gradients.exact_target import compute_target
from gradmm.gradients.target import ReleasedTarget
from gradmm.measures import set_distance
from gradmm.shrinking import Shift, find_shift, shift_target

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
    search = many.search(many.budget)
    texts = replace(many, seed=draw).draw_rows([count] * many.rows.num_classes)
    own = compute_target(many.lm, many.task, [[some] for some in texts], limit=many.limit, space=many.target.space)
    shift = find_shift(search, own)
    found = {"noise": (shift and shift.noise_share) or 0.0, "rows": cosine(many, own)}
    for who, steps in (("labels", 0), ("taught", 30)):
        settings, folder = many.config.shrinkage.model_copy(update={"max_steps": steps}), Memory()
        about = many.lm_texts, lambda counts: texts, folder
        search = many.search(many.budget, shrinkage=settings)
        for weight in WEIGHTS:
            found[f"{who} {weight}"] = cosine(many, shift_target(search, own, Shift(weight, None), *about))
    return found | {"auto": cosine(many, own if shift is None else shift_target(search, own, shift, *about))}


def cosine(many: Material, target: ReleasedTarget) -> float:
    """With the gradient of all rows, all classes together."""
    counts = [1] * many.rows.num_classes
    return 1 - set_distance(many.config.distance, target, many.target, counts, many.lm.head.bias_V is not None)


if __name__ == "__main__":
    main()
