"""`make bench`, or `python -m benchmarks [TABLE ...] [--data FILE --task NAME] [--tokenizers DIR]`."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from rich.console import Console

from benchmarks import (
    anatomy,
    architectures,
    candidates,
    optimizers,
    quality,
    sampling,
    scaling,
    speed,
    stages,
    startup,
    target,
)

TABLES: dict[str, Callable[[Console, argparse.Namespace], None]] = {
    "startup": lambda console, _: startup.table(console),
    "speed": lambda console, _: speed.table(console),
    "stages": lambda console, _: stages.table(console),
    "scaling": lambda console, _: scaling.tables(console),
    "quality": quality.table,
    "anatomy": anatomy.table,
    "architectures": architectures.table,
    "optimizers": lambda console, _: optimizers.table(console),
    "candidates": lambda console, _: candidates.table(console),
    "sampling": lambda console, _: sampling.table(console),
    "target": target.table,
}


def main() -> None:
    """Prints the tables that are asked for; all of them, on the demo data, without arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("tables", nargs="*", help=f"{', '.join(TABLES)}; all by default")
    parser.add_argument("--data", default="demo", help="labelled text for quality, anatomy and target")
    parser.add_argument("--task", default="sst2", help="its ready-made task")
    parser.add_argument("--rows", type=int, default=400, help="real rows per class")
    parser.add_argument("--texts", type=int, default=50, help="synthetic texts per class")
    parser.add_argument("--methods", nargs="*", default=None, help="methods of the quality table; all by default")
    parser.add_argument("--tokenizers", help="folder of tokenizers for architectures; by default the packaged one")
    parser.add_argument("--kinds", nargs="*", default=None, help="architectures; all by default")
    arguments = parser.parse_args()
    if unknown := set(arguments.tables) - set(TABLES):
        parser.error(f"no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    for name in arguments.tables or TABLES:
        TABLES[name](Console(width=140), arguments)


if __name__ == "__main__":
    main()
