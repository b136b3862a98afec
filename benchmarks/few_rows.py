"""How near a target of few rows is to that of many: alone, and shrunk towards what the LM's own texts say.

Cosines with the mean gradient of all rows (at most `--all` per class) in the default space, centred by it.
`labels`: the LM's texts whose label is most probable to it; `taught`: to the reader of labels who has learnt from
the few rows, as `shrinkage` takes them. Behind each, the target between rows and these texts, by the weight of the
latter; `auto` is what a run takes; noise that it takes no notice of is 0. Draws of rows are averaged.

    python -m benchmarks.few_rows TRAIN.jsonl.gz TASK [--classes A,B] [--rows 5 20 50] [--draws 4] [--file PUBLIC]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.material import Memory, material
from gradmm.checkpoints import Within
from gradmm.comparison.material import Material
from gradmm.data.sources import load_texts
from gradmm.domain import Domain
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
    parser.add_argument("--split", help="of the rows, such as train[:4500]")
    parser.add_argument("--file", help="of texts of the domain that the writer reads first")
    arguments = parser.parse_args()
    which = {"classes": arguments.classes.split(",")} if arguments.classes else {}
    which |= {"split": arguments.split} if arguments.split else {}
    settings = {"pool": {"texts_per_text": arguments.texts}, "writer": {"rounds": 1, "files_max_steps": 300}}
    many = material(arguments.data, arguments.task, settings, max_rows_per_class=arguments.all, **which)
    read = {arguments.file: load_texts(arguments.file)} if arguments.file else {}
    many = replace(many, domain=Domain(many.lm, many.task, many.config, read))
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
    few = replace(many, rows=many.rows.sample([count] * many.rows.num_classes, draw), seed=draw, folder=Memory())
    texts = [[few.rows.texts_of(label)] for label in range(few.rows.num_classes)]
    own = compute_target(few.lm, few.task, texts, limit=few.limit, space=many.target.space)
    shift = find_shift(few.search(few.budget), own)
    found = {"noise": (shift and shift.noise_share) or 0.0, "rows": cosine(many, own)}

    def moved(reader: str, shift: Shift) -> float:
        check = few.config.label_check.model_copy(update={"reader": reader})
        search = few.search(few.budget, label_check=check)
        return cosine(many, shift_target(search, own, shift, many.lm_texts, Within(few.folder, reader)))

    for who, reader in (("labels", "model"), ("taught", "rows")):
        found |= {f"{who} {weight}": moved(reader, Shift(weight, None)) for weight in WEIGHTS}
    return found | {"auto": cosine(many, own) if shift is None else moved("rows", shift)}


def cosine(many: Material, target: ReleasedTarget) -> float:
    """With the gradient of all rows, all classes together."""
    counts = [1] * many.rows.num_classes
    return 1 - set_distance(many.config.distance, target, many.target, counts, many.lm.head.bias_V is not None)


if __name__ == "__main__":
    main()
