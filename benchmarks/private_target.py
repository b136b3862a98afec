"""What noise leaves of a target: how near it is to the exact one, and how many labels are read by it.

For every epsilon, the mean over draws of the noise: the cosine between the released target and the exact one (all
classes together, centred), the same with noise taken off (`gradmm.gradients.denoising`), and how many test rows
are read right by it (`label_check.reader: target`), mean over classes. Beside it the model as it is, calibrated on
those rows. Half of the budget is for words, as by default; delta is 1e-5, neighbours differ by a row more or less.

    python -m benchmarks.private_target TRAIN.jsonl.gz TEST.jsonl.gz TASK [--read PUBLIC] [--epsilons 0.5 1 2 4 8]
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.material import material
from benchmarks.private import Sums
from gradmm.data.sources import DataConfig, load_data, load_texts
from gradmm.domain import Domain
from gradmm.gradients.denoising import denoised
from gradmm.gradients.target import ReleasedTarget
from gradmm.gradients.target_reader import TargetReader
from gradmm.labelling import calibrated, label_log_probs
from gradmm.memory import BatchLimit
from gradmm.private_settings import MAPS

BATCH = BatchLimit(64)


def main() -> None:
    """Prints the table of one data set."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.private_target")
    parser.add_argument("data", nargs=3, help="rows, rows to ask about, task")
    parser.add_argument("--classes", default="", help="the classes to take; all by default")
    parser.add_argument("--read", help="a file with public text of the domain, which the writer reads first")
    parser.add_argument("--epsilons", type=float, nargs="*", default=[0.5, 1, 2, 4, 8])
    parser.add_argument("--draws", type=int, default=5, help="of the noise")
    parser.add_argument("--test-rows", type=int, default=170, help="of every class, at most")
    arguments = parser.parse_args()
    file, test_file, task = arguments.data
    classes = {"classes": arguments.classes.split(",")} if arguments.classes else {}
    settings = {"space": {"maps": MAPS["verbalisers"]}, "label_check": {"reader": "target"}}
    own = material(file, task, {**settings, "pool": {"texts_per_text": 1}}, **classes)
    if arguments.read:
        own.domain = Domain(own.lm, own.task, own.config, {arguments.read: load_texts(arguments.read)})
    names = list(own.task.task.label_names)
    test = load_data(test_file, DataConfig(classes=names, max_rows_per_class=arguments.test_rows))
    ids = [own.task.texts_ids(test.texts_of(label)) for label in range(test.num_classes)]
    sums, exact = Sums(own), own.target

    def read(target: ReleasedTarget) -> float:
        reader = TargetReader(own.lm, own.task, target, reads_states=True)
        return accuracy([reader.evidence(some, BATCH) for some in ids])

    table = Table("target", "signal to noise", "cosine as released", "without noise", "labels read, %")
    log_probs_NC = torch.cat([label_log_probs(own.lm, own.task, some, BATCH) for some in ids])
    sizes = [len(some) for some in ids]
    table.add_row("none", "", "", "", f"{accuracy(list(torch.split(calibrated(log_probs_NC, sizes), sizes))):.1f}")
    for epsilon in arguments.epsilons:
        drawn = [sums.released(epsilon) for _ in range(arguments.draws)]
        without = [denoised(target) for target, _ in drawn]
        figures = (
            [drawn[0][1]],
            [cosine(target, exact) for target, _ in drawn],
            [cosine(target, exact) for target in without],
            [read(target) for target in without],
        )
        means = [sum(values) / len(values) for values in figures]
        table.add_row(f"epsilon {epsilon:g}", *(f"{mean:.2f}" for mean in means[:-1]), f"{means[-1]:.1f}")
    table.add_row("exact", "", "", "", f"{read(exact):.1f}")
    Console(width=120).print(table)


def cosine(target: ReleasedTarget, exact: ReleasedTarget) -> float:
    """Between two targets of all classes together, as their gradients' matrices."""
    a, b = (torch.stack([own.materialised()[0] for own in of.classes]).mean(0) for of in (target, exact))
    return float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def accuracy(evidence: list[Tensor]) -> float:
    """Percent of a class's rows that are said to be of it, mean over classes."""
    found = [float((own_NC.argmax(1) == label).double().mean()) for label, own_NC in enumerate(evidence)]
    return 100 * sum(found) / len(found)


if __name__ == "__main__":
    main()
