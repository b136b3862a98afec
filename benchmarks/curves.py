"""Distance against log-perplexity: a curve for each way to make texts, points for real rows and LM samples.

A curve runs over the weight of readability in selection (alpha). All numbers of texts are chosen from one pool, so
that what differs along a curve, and from one number to the next, is the choice. Distances are cosine distances of
the mean gradient of the head, log-perplexities in nats per token under the same model; means over classes and
texts. Seconds are those of pool and choice, of what is made without a pool those of the making.

    python -m benchmarks.curves FILE.jsonl.gz TASK [--texts 10 50 200] [--only refined admm] [--output FILE.jsonl]
    python -m benchmarks.curves --figure FIGURE.svg FILE.jsonl ...
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.material import material
from gradmm.comparison.material import Material
from gradmm.comparison.methods import METHODS
from gradmm.measures import measure
from gradmm.solvers.admm import AdmmConfig
from gradmm.solvers.selection import SelectionConfig

ALPHAS = (0.0, 0.5, 2.0, 8.0)
DEFAULT = SelectionConfig().nll_weight
STYLES = {
    "search": "o-",
    "search, refined": "*",
    "search, one round": "s--",
    "ADMM": "X",
    "real rows": "D",
    "LM samples": "^",
}
WAYS = ("selected", "refined", "real", "lm", "admm", "one_round")
Texts = list[list[str]]


def main() -> None:
    """Measures one data set, or draws what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves")
    parser.add_argument("data", nargs="+", help="labelled text and its task; with --figure, files of lines")
    parser.add_argument("--texts", type=int, nargs="*", default=[10, 50, 200], help="per class")
    parser.add_argument("--only", nargs="*", choices=WAYS, default=WAYS, help="what is made")
    parser.add_argument("--outer", type=int, default=AdmmConfig().n_outer, help="outer iterations of ADMM")
    parser.add_argument("--pool", type=int, default=1000, help="candidates per class")
    parser.add_argument("--rows", type=int, default=1000, help="real rows per class")
    parser.add_argument("--output", type=Path, default=Path("curves.jsonl"))
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    if arguments.figure:
        lines = [line for file in arguments.data for line in Path(file).read_text().splitlines()]
        draw([json.loads(line) for line in lines], arguments.figure)
        return
    with arguments.output.open("a") as out:
        for line in measured(arguments):
            print(json.dumps(line), file=out, flush=True)
            print(line, flush=True)


@dataclass
class Measured:
    """One pool, and what is made from it."""

    material: Material
    name: str
    """Of the data."""

    @property
    def pool_seconds(self) -> float:
        """That the pool took, with all that it needs; it is made when it is first asked for."""
        return self.material.prepare(("lm_texts", "space", "target", "grown", "seen_grown"))

    def line(self, solver: str, texts: Texts, began: float | None = None, **more: Any) -> dict[str, Any]:
        """What one set achieves, and the seconds since `began`."""
        own = self.material
        seconds = {} if began is None else {"seconds": time.monotonic() - began}
        found, *_ = measure(own.lm, own.task, own.target, own.config.distance, texts)
        figures = {
            "distance": found.distance,
            "log_perplexity": found.log_perplexity,
            "distinct_2": found.distinct_2,
        }
        return {"data": self.name, "texts": len(texts[0]), "solver": solver} | figures | seconds | more

    def chosen(self, count: int, alpha: float) -> Texts:
        """The best set of the pool."""
        search, found = self.material.search(count, selection=SelectionConfig(nll_weight=alpha)), []
        for seen in self.material.seen("grown", self.material.target):
            members = search.select(seen, self.material.target, [count] * len(seen.classes)).indices
            found += [[seen.pool[i].text for i in own] for own in seen.by_class(members)]
        return found

    def curve(self, solver: str, count: int) -> Iterator[dict[str, Any]]:
        """One line for every weight of readability."""
        for alpha in ALPHAS:
            began = -self.pool_seconds + time.monotonic()
            texts = self.chosen(count, alpha)
            yield self.line(solver, texts, began, alpha=alpha)

    def refined(self, count: int) -> dict[str, Any]:
        """The default recipe's end."""
        began = -self.pool_seconds + time.monotonic()
        chosen = self.chosen(count, DEFAULT)
        texts = self.material.refine(self.material.target, chosen, f"refined-{count}")
        return self.line("search, refined", texts, began, alpha=DEFAULT)

    def made(self, method: str, solver: str, count: int) -> dict[str, Any]:
        """What a method of `gradmm compare` makes."""
        self.material.prepare(METHODS[method].needs)
        began = time.monotonic()
        texts = METHODS[method].make(self.material, count).texts
        return self.line(solver, texts, began)


def measured(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A line for every set that is made."""
    own = Measured(*prepared(arguments))
    makers: dict[str, Callable[[int], Iterable[dict[str, Any]]]] = {
        "selected": lambda count: own.curve("search", count),
        "refined": lambda count: [own.refined(count)],
        "real": lambda count: [own.made("real_random", "real rows", count)],
        "lm": lambda count: [own.made("lm_random", "LM samples", count)],
        "admm": lambda count: [own.made("admm", "ADMM", count)],
    }
    for way, count in product(arguments.only, arguments.texts):
        if way in makers:
            yield from makers[way](count)
    if "one_round" in arguments.only:
        single = Measured(*prepared(arguments, writer={"rounds": 1}))
        for count in arguments.texts:
            yield from single.curve("search, one round", count)


def prepared(arguments: argparse.Namespace, **more: Any) -> tuple[Material, str]:
    """A pool for the data, with more settings, and the data's name."""
    file, name = arguments.data
    # For one text; all sets are chosen from the same pool.
    settings = {"pool": {"texts_per_text": arguments.pool}, "admm": {"n_outer": arguments.outer}}
    return material(file, name, settings | more, max_rows_per_class=arguments.rows), name


def draw(lines: list[dict[str, Any]], file: Path) -> None:
    """One panel for each data set and number of texts."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = (
        "none"  # letters stay letters: a third of the size, and they can be found
    )
    from matplotlib import pyplot as plt

    names, counts = sorted({line["data"] for line in lines}), sorted({line["texts"] for line in lines})
    size = (3.2 * len(counts), 2.6 * len(names))
    figure, axes = plt.subplots(len(names), len(counts), figsize=size, squeeze=False)
    for row, name in zip(axes, names, strict=True):
        for axis, count in zip(row, counts, strict=True):
            for solver, style in STYLES.items():
                points = [x for x in lines if (x["data"], x["texts"], x["solver"]) == (name, count, solver)]
                x, y = [p["log_perplexity"] for p in points], [p["distance"] for p in points]
                axis.plot(x, y, style, label=solver, markersize=5)
            axis.set(yscale="log", xlabel="log-perplexity", ylabel="distance")
            axis.set_title(f"{name}, {count} per class", fontsize=9)
            axis.set_visible(any(len(line.get_xdata()) for line in axis.lines))
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=len(labels), fontsize=8)
    figure.tight_layout(rect=(0, 0.3 / size[1], 1, 1))
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
