"""What to match: which distance tells what trains best, by rank correlation with accuracy over sets of one pool.

What is compared: the loss, the space, and whether classes are matched together (`VIEWS`). Sets are
nearest in a view that is drawn, among candidates of a number that is drawn, so that they are of all
qualities: n of n are random samples. Intervals are Fisher's, at 95%.

    python -m benchmarks.spaces TRAIN.jsonl.gz TEST.jsonl.gz TASK [--classes A,B] [--sets 40] [--output FILE.jsonl]
    python -m benchmarks.spaces --table FILE.jsonl ...

With `--pools N`, instead: what the set that selection finds in each view is worth, over N pools, as `generate`
finds it without refinement and in one round.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.material import accuracy, material, test_rows
from gradmm.checkpoints import Checkpoints, Within
from gradmm.comparison.material import Material
from gradmm.comparison.statistics import RankCorrelation, interval, paired, rank_correlation
from gradmm.forming import choose_form
from gradmm.gradients.distances import DistanceConfig, DistanceName
from gradmm.gradients.exact_target import class_target
from gradmm.gradients.spaces import MapName, Space, SpaceConfig
from gradmm.gradients.target import ReleasedTarget
from gradmm.measures import measure
from gradmm.search import Search
from gradmm.solvers.pool import Candidate
from gradmm.solvers.refinement import RefinementConfig
from gradmm.solvers.selection import SelectionConfig
from gradmm.training.rows import TokenRows


@dataclass(frozen=True)
class View:
    """What of the gradients is matched."""

    classes: Literal["together", "apart"]
    loss: Literal["verbalisers", "vocabulary"] = "verbalisers"
    maps: tuple[MapName, ...] = ()
    centred: bool = False

    @property
    def space(self) -> SpaceConfig:
        """Its space."""
        return SpaceConfig(loss=self.loss, maps=self.maps, centred=self.centred)


PAPER = "apart, vocabulary"
VIEWS: dict[str, View] = {
    PAPER: View("apart", "vocabulary"),
    "apart, centred, whitened": View("apart", maps=("whitened",), centred=True),
    "vocabulary": View("together", "vocabulary"),
    "vocabulary, centred, whitened": View("together", "vocabulary", ("whitened",), True),
    "plain": View("together"),
    "whitened": View("together", maps=("whitened",)),
    "centred": View("together", centred=True),
    "centred, whitened": View("together", maps=("whitened",), centred=True),
}
FORMULAS: tuple[DistanceName, ...] = ("cosine", "relative_l2")
AMONG = (1, 2, 4, 8)  # candidates for every text that is chosen
TRAININGS = 2  # of every set that is found in a space
NO_MORE = {
    "selection": SelectionConfig(nll_weight=0, label_weight=0),
    "refinement": RefinementConfig(nll_weight=0),
}


def main() -> None:
    """Measures one data set, or prints the table of what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spaces")
    parser.add_argument(
        "data", nargs="+", help="rows to match, rows to test on, task; with --table, files of lines"
    )
    parser.add_argument("--classes", default="", help="the classes to take; all by default")
    parser.add_argument("--sets", type=int, default=40)
    parser.add_argument("--texts", type=int, default=50, help="per class")
    parser.add_argument("--rows", type=int, default=1000, help="real rows per class")
    parser.add_argument("--test-rows", type=int, default=1000, help="of all classes")
    parser.add_argument("--pools", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=VIEWS, default=list(VIEWS), help="views, with --pools")
    parser.add_argument("--output", type=Path, default=Path("spaces.jsonl"))
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        lines = [line for file in arguments.data for line in Path(file).read_text().splitlines()]
        table(Console(width=140), [json.loads(line) for line in lines])
        return
    with arguments.output.open("a") as out:
        for line in winners(arguments) if arguments.pools else measured(arguments):
            print(json.dumps(line), file=out, flush=True)


def prepared(arguments: argparse.Namespace, among: int, seed: int = 0) -> tuple[Material, TokenRows]:
    """Material with so many candidates for every text, and the rows to test on."""
    file, test_file, task = arguments.data
    classes = {"classes": arguments.classes.split(",")} if arguments.classes else {}
    settings = {"pool": {"texts_per_text": among}, "writer": {"rounds": 1}}
    own = material(file, task, settings, seed, arguments.texts, max_rows_per_class=arguments.rows, **classes)
    return own, test_rows(own, test_file, arguments.test_rows // own.rows.num_classes)


def winners(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A line for every set that selection finds in some view."""
    for seed in range(arguments.pools):
        own, test = prepared(arguments, max(AMONG), seed)
        found = {"data": arguments.data[2], "classes": own.rows.num_classes, "pool": seed}
        for name in arguments.only:
            view = VIEWS[name]
            texts, form = selected(own, view, target_in(own, view), Within(own.folder, name))
            rates = [accuracy(own, texts, test, number) for number in range(TRAININGS)]
            yield found | {"view": name, "form": form, "accuracy": sum(rates) / len(rates)}


def selected(
    own: Material, view: View, target: ReleasedTarget, folder: Checkpoints
) -> tuple[list[list[str]], str]:
    """The set per class that the default settings choose from the LM's texts, and the name of its form."""
    search = own.search(own.budget, distance=DistanceConfig(classes=view.classes))
    form = choose_form(search, target, own.lm_texts, folder, own.stage).form
    checked = search.labels.by(target).checked(search.pool(own.lm_texts, [], form))
    return chosen(search, target, [one.pool for one in checked], own.budget), form.name


def chosen(
    search: Search, target: ReleasedTarget, pools: Sequence[list[Candidate]], count: int
) -> list[list[str]]:
    """Per class the set of candidates that is best."""
    found = []
    for group in search.groups:
        own = [pools[label] for label in group]
        seen = search.look_at(group, own, [torch.ones(len(pool)) for pool in own], target.space)
        members = search.select(seen, target, [count] * len(group)).indices
        found += [[seen.pool[i].text for i in some] for some in seen.by_class(members)]
    return found


def measured(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A line for every set that is trained on."""
    task, count = arguments.data[2], arguments.texts
    own, test = prepared(arguments, 2 * max(AMONG))
    targets = {name: target_in(own, view) for name, view in VIEWS.items()}
    for number in range(arguments.sets):
        chance = random.Random(number)
        among, chosen_in = chance.choice(AMONG), chance.choice(list(VIEWS))
        texts = nearest(own, VIEWS[chosen_in], targets[chosen_in], among * count, chance)
        found = {"data": task, "classes": own.rows.num_classes, "among": among, "chosen_in": chosen_in}
        yield found | {"accuracy": accuracy(own, texts, test, number)} | distances(own, targets, texts)


def target_in(own: Material, view: View) -> ReleasedTarget:
    """The real rows' mean gradients in a view."""
    search = own.search(own.budget, space=view.space)
    space = Space() if view.space.is_identity else search.public.fit_space(own.lm_texts)
    batches = [own.rows.iter_batches(label, 64) for label in range(own.rows.num_classes)]
    classes = [class_target(own.lm, own.task, c, rows, own.limit, space=space) for c, rows in enumerate(batches)]
    target = ReleasedTarget(tuple(classes), space)
    return target.centred() if view.centred else target


def nearest(
    own: Material, view: View, target: ReleasedTarget, among: int, chance: random.Random
) -> list[list[str]]:
    """Per class the set that is nearest to the target, of so many candidates that are drawn."""
    search = own.search(own.budget, distance=DistanceConfig(classes=view.classes), **NO_MORE)
    drawn = [chance.sample(pool, min(among, len(pool))) for pool in own.pools]
    return chosen(search, target, drawn, own.budget)


def distances(own: Material, targets: dict[str, ReleasedTarget], texts: list[list[str]]) -> dict[str, float]:
    """Of one set, in every view."""
    found = {}
    for (name, target), formula in product(targets.items(), FORMULAS):
        config = DistanceConfig(name=formula, classes=VIEWS[name].classes)
        found[f"{name}/{formula}"] = measure(own.lm, own.task, target, config, texts, own.limit).measures.distance
    return found


def table(console: Console, lines: list[dict[str, Any]]) -> None:
    """Rank correlations, with the sign that makes 1 a perfect prediction."""
    kinds = sorted({(line["data"], line["classes"]) for line in lines})
    if "pool" in lines[0]:
        table_of_winners(console, kinds, lines)
        return
    out = Table("view", "distance", *(f"{data}, {classes} classes" for data, classes in kinds))
    for name, formula in product(VIEWS, FORMULAS):
        cells = []
        for kind in kinds:
            own = [line for line in lines if (line["data"], line["classes"]) == kind]
            near = [-line[f"{name}/{formula}"] for line in own]
            cells.append(said(rank_correlation(near, [line["accuracy"] for line in own])))
        out.add_row(name, formula, *cells)
    console.print(out)


def table_of_winners(console: Console, kinds: list[tuple[str, int]], lines: list[dict[str, Any]]) -> None:
    """Accuracy in percent, mean over pools with 95% t interval, and what it is more than with the paper's view."""
    out = Table("view", *(f"{data}, {classes} classes" for data, classes in kinds))
    for name in [name for name in VIEWS if any(line["view"] == name for line in lines)]:
        cells = []
        for kind in kinds:
            rates = {
                view: {
                    line["pool"]: 100 * line["accuracy"]
                    for line in lines
                    if (line["data"], line["classes"], line["view"]) == (*kind, view)
                }
                for view in (name, PAPER)
            }
            mean, more = interval(rates[name].values()), paired(rates[name], rates[PAPER])
            spread = "" if more.low is None else f", {more.low:+.1f} to {more.high:+.1f}"
            cells.append(f"{mean.mean:.1f} ({more.mean:+.1f}{spread})")
        out.add_row(name, *cells)
    console.print(out)


def said(found: RankCorrelation) -> str:
    """The coefficient and its interval."""
    spread = "" if found.low is None else f" ({found.low:.2f} to {found.high:.2f})"
    return "" if found.rho is None else f"{found.rho:.2f}{spread}"


if __name__ == "__main__":
    main()
