"""How many test rows the reader of labels gets right who has learnt from few rows.

Once from the model as it is, and once from the writer who has read text of the domain, which is what runs do.

python -m benchmarks.reader TRAIN.jsonl.gz TEST.jsonl.gz TASK --file PUBLIC [--rows 20] [--draws 3]
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from benchmarks.material import material, test_rows
from gradmm.comparison.statistics import interval
from gradmm.data.sources import load_texts
from gradmm.domain import Domain
from gradmm.given import draw_rows
from gradmm.memory import BatchLimit
from gradmm.teaching import Teacher
from gradmm.training.evaluate import evaluate

TRAININGS = 3


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reader")
    parser.add_argument("data", help="labelled rows")
    parser.add_argument("test", help="rows to ask about")
    parser.add_argument("task", help="a ready-made task")
    parser.add_argument("--file", required=True, help="of texts of the domain")
    parser.add_argument("--split", default="train", help="of the rows, such as train[:4500]")
    parser.add_argument("--rows", type=int, nargs="*", default=[20], help="of every class")
    parser.add_argument("--draws", type=int, default=3, help=f"of rows, with {TRAININGS} trainings each")
    parser.add_argument("--steps", type=int, default=300, help="writer.files_max_steps")
    arguments = parser.parse_args()
    settings = {"writer": {"files_max_steps": arguments.steps}}
    own = material(arguments.data, arguments.task, settings, split=arguments.split)
    test, read = test_rows(own, arguments.test, 170), {arguments.file: load_texts(arguments.file)}
    who = [Domain(own.lm, own.task, own.config, files) for files in ({}, read)]

    def right(domain: Domain, count: int, draw: int) -> float:
        drawn, found = draw_rows(own.rows, [count] * own.rows.num_classes, draw), 0.0
        for training in range(TRAININGS):
            config = own.config.model_copy(update={"seed": TRAININGS * draw + training})
            reader = Teacher(domain, config, lambda _: drawn).reader
            found += 100 * evaluate(reader, own.task, test, BatchLimit(64)).accuracy / TRAININGS
        return found

    table = Table("rows per class", "as the model is", "after reading", "difference")
    for count in arguments.rows:
        plain, after = ([right(domain, count, draw) for draw in range(arguments.draws)] for domain in who)
        gains = [b - a for a, b in zip(plain, after, strict=True)]
        table.add_row(str(count), *(_told(values) for values in (plain, after, gains)))
    Console(width=100).print(table)


def _told(values: list[float]) -> str:
    found = interval(values)
    return f"{found.mean:.1f}" if found.high is None else f"{found.mean:.1f} ± {found.high - found.mean:.1f}"


if __name__ == "__main__":
    main()
