"""The verb `gradmm report`. Nothing heavy is imported before it runs, nor by it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradmm.errors import printable

Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of complete runs.")]
Page = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="The page; report.html in the first run's folder without it."
    ),
]
Publishable = Annotated[
    bool, typer.Option("--publishable", help="Leave out real rows, and what is derived from single ones.")
]


def report(runs: Runs, output: Page = None, publishable: Publishable = False) -> None:
    """Write one page about runs, with texts, figures and charts; it opens offline."""
    from gradmm.report.html import write_report

    typer.echo(printable(str(write_report(runs, output, publishable=publishable))))
