"""`make bench`, or `python -m benchmarks [TABLE ...] [--data FILE --task NAME] [--tokenizers DIR]`."""

from __future__ import annotations

import argparse

from rich.console import Console

from benchmarks import anatomy, architectures, candidates, optimizers, quality, sampling, speed, target

TABLES = ["speed", "quality", "anatomy", "architectures", "optimizers", "candidates", "sampling", "target"]


def main() -> None:
    """Prints the tables that are asked for; all of them, on the demo data, without arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("tables", nargs="*", choices=TABLES, default=TABLES)
    parser.add_argument("--data", default="demo", help="labelled text for quality, anatomy and target")
    parser.add_argument("--task", default="sst2", help="its ready-made task")
    parser.add_argument("--rows", type=int, default=400, help="real rows per class")
    parser.add_argument("--texts", type=int, default=50, help="synthetic texts per class")
    parser.add_argument("--methods", nargs="*", default=None, help="methods of the quality table; all by default")
    parser.add_argument("--tokenizers", help="folder of tokenizers for architectures; by default the packaged one")
    parser.add_argument("--kinds", nargs="*", default=None, help="architectures; all by default")
    arguments = parser.parse_args()
    console = Console(width=140)
    if "speed" in arguments.tables:
        speed.table(console)
    if "quality" in arguments.tables:
        quality.table(console, arguments)
    if "anatomy" in arguments.tables:
        anatomy.table(console, arguments)
    if "architectures" in arguments.tables:
        architectures.table(console, arguments)
    if "optimizers" in arguments.tables:
        optimizers.table(console)
    if "candidates" in arguments.tables:
        candidates.table(console)
    if "sampling" in arguments.tables:
        sampling.table(console)
    if "target" in arguments.tables:
        target.table(console, arguments)


if __name__ == "__main__":
    main()
