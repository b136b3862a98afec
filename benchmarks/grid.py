"""The comparisons of `benchmarks/results` side by side: a table with a column for each data set.

    python -m benchmarks.grid NAME=results.parquet[,more.parquet] ...

Records of one data set may come from several comparisons that share their data seeds: methods that do not depend
on each other need not be run together. Prints Markdown: accuracy in percent, mean over data seeds with half of the
95% t interval; then what ours has more, paired by data seed, * where the interval excludes zero.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

import pyarrow.parquet as pq

from gradmm.comparison.methods import METHODS, OURS
from gradmm.comparison.runner import Record
from gradmm.comparison.summary import Row, summarise
from gradmm.present_comparison import percent

Cells = dict[str, dict[str, Row]]
"""By data set and method."""


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grid")
    parser.add_argument("results", nargs="+", metavar="NAME=FILE[,FILE]")
    parser.add_argument("--budget", type=int, help="texts per class; the largest by default")
    arguments = parser.parse_args()
    named = (item.partition("=") for item in arguments.results)
    found = {name: read(files.split(","), arguments.budget) for name, _, files in named}
    print(table(found, "trained on", lambda row: percent(row.accuracy)))
    print(table(found, f"{METHODS[OURS].title} less", more))


def read(files: Sequence[str], budget: int | None = None) -> dict[str, Row]:
    """What comparisons of one data set found, by method; all real rows whatever the budget."""
    records: list[Record] = list(chain.from_iterable(pq.read_table(file).to_pylist() for file in files))
    wanted = budget or max(record["budget"] for record in records)
    rows = [row for row in summarise(records) if row.budget in (wanted, 0)]
    return {row.method: replace(row, ours_minus_this=row.difference(wanted)) for row in rows}


def table(found: Cells, head: str, cell: Callable[[Row], str]) -> str:
    """Markdown; methods in the order in which the program lists them."""
    lines = [[head, *found], ["---"] * (1 + len(found))]
    there = set(chain.from_iterable(found.values()))
    for method in [name for name in METHODS if name in there]:
        own = [rows.get(method) for rows in found.values()]
        cells = ["" if row is None else cell(row) for row in own]
        if any(cells):
            lines.append([METHODS[method].title, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def more(row: Row) -> str:
    """What ours has more than a method."""
    return "" if row.ours_minus_this is None else percent(row.ours_minus_this, sign=True)


if __name__ == "__main__":
    main()
