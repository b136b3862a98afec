"""What a private target is worth: accuracy after training on texts made towards it, epsilon by epsilon.

The real rows' clipped sums (gradients, and shares of words) are computed once per seed, and every epsilon draws
its noise on them (a run of `gradmm generate` draws once and forgets them, and so no figure here is private).
Beside: the exact target in the same space, a target of pure noise, the LM's samples, as many real rows, all real
rows, and where `--dp-sgd` is given DP-SGD fine-tuning on the rows themselves (`benchmarks.dp_sgd`). n is public;
delta is 1e-5, neighbours differ by a row more or less.

    python -m benchmarks.private TRAIN.jsonl.gz TEST.jsonl.gz TASK [--seeds 5] [--output FILE.jsonl]
    python -m benchmarks.private --table FILE.jsonl ...
    python -m benchmarks.private --figure FIGURE.svg FILE.jsonl ...
"""

from __future__ import annotations

import argparse
import copy
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.material import TRAINING, accuracy, material, test_rows
from gradmm.comparison.material import Material
from gradmm.comparison.methods import METHODS
from gradmm.comparison.statistics import interval
from gradmm.data.sources import load_texts
from gradmm.domain import Domain
from gradmm.gradients.denoising import denoised
from gradmm.gradients.geometry import geometry
from gradmm.gradients.private_sums import Release
from gradmm.gradients.private_unigrams import public_words_clip
from gradmm.gradients.public_clip import public_clip
from gradmm.gradients.target import ReleasedTarget
from gradmm.gradients.unigrams import TokenShares
from gradmm.measures import measure
from gradmm.privacy.config import PrivacyConfig
from gradmm.privacy.mechanism import SystemNoise
from gradmm.privacy.planning import expected_snr, make_plan, shares_of
from gradmm.private_run import with_bias
from gradmm.private_settings import MAPS

DELTA = 1e-5
BATCH = 64
EXACT = "exact target"
NOISE = "pure noise"
PRIVATE = "private"
WITHOUT_WORDS = "private, without words"
ALL = "all real rows"
OTHERS = {"LM samples": "lm_random", "real rows": "real_random"}
SETS = (*OTHERS, EXACT, NOISE, PRIVATE, ALL)


def main() -> None:
    """Measures one data set, or shows what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.private")
    parser.add_argument("data", nargs="+", help="rows, rows to test on, task; with --table or --figure, files")
    parser.add_argument("--classes", default="", help="the classes to take; all by default")
    parser.add_argument("--trainings", type=int, default=1, help="of every set, whose mean counts")
    parser.add_argument("--only", nargs="*", choices=SETS, default=list(SETS))
    parser.add_argument("--epsilons", type=float, nargs="*", default=[0.5, 1, 2, 4, 8])
    parser.add_argument("--dp-sgd", type=float, nargs="*", default=[], help="epsilons of DP-SGD")
    parser.add_argument("--texts", type=int, default=100, help="per class")
    parser.add_argument("--pool", type=int, default=10, help="candidates for every text")
    parser.add_argument("--evaluations", type=int, default=20, help="of refinement, for every text")
    parser.add_argument("--unigram-step", type=float, default=0.7, help="0 releases no shares of words")
    parser.add_argument("--reader", choices=("target", "model"), default="target", help="of labels")
    parser.add_argument("--read", help="a file with public text of the domain, which the writer reads first")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--test-rows", type=int, default=1000, help="of all classes")
    parser.add_argument("--all-steps", type=int, default=600, help="updates on all real rows")
    parser.add_argument("--output", type=Path, default=Path("private.jsonl"))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    if arguments.table or arguments.figure:
        lines = [json.loads(line) for file in arguments.data for line in Path(file).read_text().splitlines()]
        if arguments.figure:
            draw(lines, arguments.figure)
        else:
            table(Console(width=140), lines)
        return
    with arguments.output.open("a") as out:
        for seed in arguments.seeds:
            for line in measured(arguments, seed):
                print(json.dumps(line), file=out, flush=True)


def measured(arguments: argparse.Namespace, seed: int) -> Iterator[dict[str, Any]]:
    """A line for every set that is trained on."""
    file, test_file, task = arguments.data
    settings = {
        "space": {"maps": MAPS["verbalisers"]},
        "pool": {"texts_per_text": arguments.pool},
        "writer": {"unigram_step": arguments.unigram_step},
        "refinement": {"evaluations": arguments.evaluations},
        "label_check": {"reader": arguments.reader},
    }
    classes = {"classes": arguments.classes.split(",")} if arguments.classes else {}
    own = material(file, task, settings, seed, arguments.texts, **classes)
    if arguments.read:
        own.domain = Domain(own.lm, own.task, own.config, {arguments.read: load_texts(arguments.read)})
    test = test_rows(own, test_file, arguments.test_rows // own.rows.num_classes)
    facts = {"data": task, "classes": own.rows.num_classes, "rows": own.rows.counts(), "seed": seed}
    for name, texts, more in sets(own, arguments):
        found, *_ = measure(own.lm, own.task, own.target, own.config.distance, texts, own.limit)
        rates = [accuracy(own, texts, test, 1000 * number + seed) for number in range(arguments.trainings)]
        about = {"set": name, "distance": found.distance, "log_perplexity": found.log_perplexity}
        yield facts | about | more | {"accuracy": sum(rates) / len(rates)}
    if ALL in arguments.only:
        steps = TRAINING.model_copy(update={"max_steps": arguments.all_steps})
        every = [own.rows.texts_of(label) for label in range(own.rows.num_classes)]
        yield facts | {"set": ALL, "accuracy": accuracy(own, every, test, seed, steps)}
    if arguments.dp_sgd:
        from benchmarks.dp_sgd import private_accuracy  # opacus is needed here alone

        for epsilon in arguments.dp_sgd:
            yield facts | {"set": "DP-SGD", "epsilon": epsilon} | private_accuracy(own, test, epsilon, DELTA, seed)


def sets(own: Material, arguments: argparse.Namespace) -> Iterator[tuple[str, list[list[str]], dict[str, Any]]]:
    """Name, texts per class and what there is to say, of every set that is wanted."""
    count, wanted = arguments.texts, arguments.only
    for name, method in OTHERS.items():
        if name in wanted:
            yield name, METHODS[method].make(own, count).texts, {}
    if EXACT in wanted:
        yield EXACT, made(own, "grown", own.target, count), {}
    if NOISE in wanted:
        yield NOISE, METHODS["noise"].make(own, count).texts, {}
    if PRIVATE not in wanted:
        return
    sums, name = Sums(own), PRIVATE if own.config.tilts else WITHOUT_WORDS
    for epsilon in arguments.epsilons:
        released, snr = sums.released(epsilon)
        kind, target = f"private-{epsilon}", denoised(released)
        own.grow(kind, target)  # their form of writing, too, is chosen by what is released alone
        yield name, made(own, kind, target, count), {"epsilon": epsilon, "expected_snr": snr}


def made(own: Material, kind: str, target: ReleasedTarget, count: int) -> list[list[str]]:
    """Texts that are selected towards a target and refined."""
    return own.refine(target, own.select(kind, target, count), f"refined-{kind}", kind)


class Sums:
    """Of all real rows, clipped at the median norms of what the LM wrote."""

    def __init__(self, own: Material) -> None:
        public, has_bias = own.search(own.budget).public, with_bias(own.lm, own.config)
        factors = public.factors(own.lm_texts, own.space)
        clip = public_clip([part for some in factors for part in some], has_bias)
        shares, words_clip = TokenShares(own.task, len(own.lm.embeddings_VE)), None
        if own.config.tilts:
            words_clip = public_words_clip(shares, [one for some in public.ids(own.lm_texts) for one in some])
        self.own, sizes = own, geometry(own.lm, own.space, has_bias)
        self.release = Release(own.space, sizes, clip, shares, words_clip)
        self.sums = self.release.sums(own.rows.num_classes)
        for label in range(own.rows.num_classes):
            for texts in own.rows.iter_batches(label, BATCH):
                self._add(label, own.task.texts_ids(texts))

    @torch.no_grad()
    def _add(self, label: int, ids: list[list[int]]) -> None:
        own, batch = self.own, self.own.task.collate(ids, [label] * len(ids))
        rows = own.space.factors(own.lm, batch, batch.embed(own.lm.embeddings_VE), 1)
        self.sums.add(label, rows, ids)

    def released(self, epsilon: float) -> tuple[ReleasedTarget, float]:
        """The target of one release, and its expected signal-to-noise ratio for a signal of the clip's size."""
        own, counts = self.own, [float(count) for count in self.own.rows.counts()]
        privacy = PrivacyConfig(
            target_epsilon=epsilon,
            target_delta=DELTA,
            neighboring_relation="add_or_remove_one",
            num_rows=sum(own.rows.counts()),
        )
        plan = make_plan(privacy, shares_of(privacy, own.config.tilts))
        drawn = copy.deepcopy(self.sums).release(plan, counts, SystemNoise())
        snr = expected_snr(plan.noise_multiplier, self.release.sizes.dimension, min(counts))
        target = self.release.target(drawn, plan, own.lm.device)
        return target.centred() if own.config.space.centred else target, snr


def grouped(lines: list[dict[str, Any]]) -> dict[tuple[str, float], dict[str, list[float]]]:
    """Accuracies by set and epsilon, and data set."""
    found: dict[tuple[str, float], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        name = f"{line['data']}, {line['classes']} classes"
        found[line["set"], line.get("epsilon", np.inf)][name].append(line["accuracy"])
    return found


def table(console: Console, lines: list[dict[str, Any]]) -> None:
    """Mean accuracy in percent, with the 95% interval over seeds."""
    found = grouped(lines)
    data = sorted({name for own in found.values() for name in own})
    out = Table("set", "epsilon", *data)
    for (name, epsilon), own in found.items():
        cells = [said(own[one]) if one in own else "" for one in data]
        out.add_row(name, "" if np.isinf(epsilon) else f"{epsilon:g}", *cells)
    console.print(out)


def said(values: list[float]) -> str:
    """Mean and half of its interval, in percent."""
    found = interval([100 * value for value in values])
    spread = "" if found.high is None else f" ± {found.high - found.mean:.1f}"
    return f"{found.mean:.1f}{spread} ({found.count})"


def draw(lines: list[dict[str, Any]], file: Path) -> None:
    """One panel for each data set: accuracy over epsilon, all else as lines across."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot as plt

    found = grouped(lines)
    data = sorted({name for own in found.values() for name in own})
    epsilons = sorted({epsilon for _, epsilon in found if not np.isinf(epsilon)})
    figure, axes = plt.subplots(1, len(data), figsize=(3.6 * len(data), 3.4), squeeze=False)
    kinds = [
        one
        for one in ((PRIVATE, "o-"), (WITHOUT_WORDS, "^-"), ("DP-SGD", "s--"))
        if any(one[0] == k for k, _ in found)
    ]
    for axis, name in zip(axes[0], data, strict=True):
        for kind, style in kinds:
            points = sorted((epsilon, own[name]) for (what, epsilon), own in found.items() if what == kind)
            points = [point for point in points if point[1]]
            x, y = [point[0] for point in points], [100 * float(np.mean(point[1])) for point in points]
            axis.errorbar(x, y, [100 * np.std(p[1]) / len(p[1]) ** 0.5 for p in points], fmt=style, label=kind)
        across = [(what, own[name]) for (what, epsilon), own in found.items() if np.isinf(epsilon) and name in own]
        for number, (what, values) in enumerate(across):
            axis.axhline(100 * float(np.mean(values)), color=f"C{number + len(kinds)}", linewidth=1, label=what)
        axis.set(xscale="log", xlabel="epsilon", ylabel="accuracy, %")
        axis.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
        axis.set_xlim(epsilons[0] / 1.2, epsilons[-1] * 1.2)
        axis.minorticks_off()
        axis.set_title(name, fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=4, fontsize=8)
    figure.tight_layout(rect=(0, 0.16, 1, 1))
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
