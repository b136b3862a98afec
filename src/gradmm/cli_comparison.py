"""The verb `gradmm compare`. Nothing heavy is imported before it runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from gradmm.cli_options import Progress, Quiet, Resume, ResumeFlag, Style, interruptible
from gradmm.startup import libraries_load

Settings = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file: methods, budgets, data, model.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="One setting, as in budgets=[10,50]; repeatable.")
]
Folder = Annotated[Path, typer.Option("--output-dir", "-o", help="Run folder; an interrupted comparison goes on.")]
Path_ = Annotated[
    bool, typer.Option("--path", help="Also follow the gradients' error along the trainings on our texts.")
]
_WIDTH = 120  # of tables that go into a file


def compare(
    config: Settings,
    output_dir: Folder = Path("gradmm-compare"),
    resume: ResumeFlag = Resume.if_possible,
    set_: Set = None,
    path: Path_ = False,
    quiet: Quiet = False,
    progress: Progress = Style.auto,
) -> None:
    """Train on texts of every method and on real rows, and say which does better."""
    with libraries_load():
        from rich.console import Console

        from gradmm.comparison.compare import compare as run
        from gradmm.comparison.config import CompareConfig
        from gradmm.config import load_settings
        from gradmm.present_comparison import show_comparison
        from gradmm.report.html import write_report
        from gradmm.reporters import make_reporter

    settings = load_settings(CompareConfig, config, {"path": path or None}, set_ or ())
    reporter = make_reporter(quiet, progress.value)
    with interruptible(goes_on=True):
        found = run(settings, output_dir, reporter, resume.value)
    accuracies = {f"{row.method} {row.budget}": row.accuracy.mean for row in found.rows}
    page = write_report([output_dir])
    reporter.result({"run_dir": str(output_dir), "accuracy": accuracies})
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=_WIDTH)
    show_comparison(console, found, page)
