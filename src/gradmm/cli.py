"""The command line: one thin function per verb.

Data on stdout, progress and errors on stderr. Exit codes: 0 done, 1 failed, 2 misuse, 130 interrupted.
Nothing heavy is imported before a verb runs, so that `--help` is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradmm.errors import ConfigError, GradmmError

if TYPE_CHECKING:
    from gradmm.config import RunConfig
    from gradmm.result import Result

app = typer.Typer(
    name="gradmm",
    help="Write small, readable synthetic text data sets that train a language model like the real data would.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[str | None, typer.Option("--model", "-m", help="Causal LM: Hub id, local folder, or 'demo'.")]
Data = Annotated[
    str | None, typer.Option("--data", "-d", help="Labelled text: Hub id, CSV, JSON lines, Parquet, or 'demo'.")
]
TaskName = Annotated[str | None, typer.Option("--task", "-t", help="Ready-made task, such as sst2 or ag_news.")]
Template = Annotated[str | None, typer.Option(help="Own task: what surrounds the text, as in '{text} It was'.")]
Verbaliser = Annotated[
    list[str] | None, typer.Option(help="Own task: LABEL=WORDS, once per class, as in 'positive= great'.")
]
Count = Annotated[int | None, typer.Option("--texts-per-class", "-n", min=1, help="Texts for every class.")]
Config = Annotated[
    str | None, typer.Option("--config", "-c", help="YAML file, or 'paper' for the paper's settings.")
]
Set = Annotated[list[str] | None, typer.Option("--set", "-s", help="One setting, as in admm.rho=0.5; repeatable.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Of everything that is drawn.")]
TextColumn = Annotated[str | None, typer.Option(help="Column of the texts.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the labels.")]
Split = Annotated[str | None, typer.Option(help="Split of the data.")]
Output = Annotated[Path, typer.Option("--output-dir", "-o", help="Run folder; an interrupted run there goes on.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    """Options that stand before the verb."""
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"gradmm {installed('gradmm')}")
        raise typer.Exit


@app.command()
def demo(output_dir: Output = Path("gradmm-demo"), seed: Seed = None, quiet: Quiet = False) -> None:
    """Show what this is: a small model and data set that ship in the package, start to end."""
    _generate(_settings({"seed": seed}, config=_demo()), output_dir, quiet)


@app.command()
def generate(
    model: Model = None,
    data: Data = None,
    task: TaskName = None,
    texts_per_class: Count = None,
    output_dir: Output = Path("gradmm-run"),
    config: Config = None,
    set_: Set = None,
    seed: Seed = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    split: Split = None,
    template: Template = None,
    verbaliser: Verbaliser = None,
    quiet: Quiet = False,
) -> None:
    """Write a synthetic data set that matches the gradients of real data."""
    columns = {"data.text_column": text_column, "data.label_column": label_column, "data.split": split}
    flags = _flags(model, data, task, template, verbaliser) | columns
    settings = _settings(flags | {"texts_per_class": texts_per_class, "seed": seed}, config, set_)
    _generate(settings, output_dir, quiet)


@app.command()
def preview(
    model: Model = None,
    data: Data = None,
    task: TaskName = None,
    texts_per_class: Count = 3,
    config: Config = None,
    set_: Set = None,
    seed: Seed = None,
    template: Template = None,
    verbaliser: Verbaliser = None,
) -> None:
    """Make a handful of texts in seconds, to see what they look like; without data, from the demo's."""
    quick = {
        "admm.n_outer": 4,
        "admm.n_inner": 5,
        "data.max_rows_per_class": 50,
        "references": False,
        "initial.candidates": 2,
        "block_size": texts_per_class,
        "texts_per_class": texts_per_class,
        "seed": seed,
    }
    packaged = _demo() if config is None and data is None else config
    settings = _settings(_flags(model, data, task, template, verbaliser) | quick, packaged, set_)
    result = _run(settings, None, quiet=False)
    from rich.console import Console

    from gradmm.present import show_texts

    show_texts(Console(), result)


@app.command()
def doctor(
    model: Model = None,
    data: Data = None,
    task: TaskName = None,
    texts_per_class: Count = None,
    config: Config = None,
    set_: Set = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    split: Split = None,
    template: Template = None,
    verbaliser: Verbaliser = None,
) -> None:
    """Check settings, model and data against each other without running anything."""
    columns = {"data.text_column": text_column, "data.label_column": label_column, "data.split": split}
    flags = _flags(model, data, task, template, verbaliser) | columns | {"texts_per_class": texts_per_class}
    settings = _settings(flags, config, set_)
    from rich.console import Console

    from gradmm.doctor import examine
    from gradmm.present import show_findings

    findings = list(examine(settings))
    show_findings(Console(), findings)
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(1)


def _flags(
    model: str | None, data: str | None, task: str | None, template: str | None, verbaliser: Iterable[str] | None
) -> dict[str, Any]:
    if task is not None and (template is not None or verbaliser):
        raise ConfigError("--task names a ready-made task; give either it or --template and --verbaliser")
    words = dict(_pair(item) for item in verbaliser or ()) or None
    return {
        "model.model_name_or_path": model,
        "data.dataset": data,
        "task": task,
        "task.template": template,
        "task.verbalisers": words,
    }


def _pair(item: str) -> tuple[str, str]:
    label, equals, words = item.partition("=")
    if not equals:
        raise ConfigError(f"--verbaliser {item!r} has no '='; write it as 'positive= great'")
    return label, words


def _settings(flags: dict[str, Any], config: str | None = None, sets: list[str] | None = None) -> RunConfig:
    from gradmm.config import load_config

    return load_config(config, flags, sets or ())


def _run(settings: RunConfig, output_dir: Path | None, quiet: bool) -> Result:
    from gradmm.data.sources import load_data
    from gradmm.models import load_model
    from gradmm.pipeline import generate as make
    from gradmm.progress import make_reporter

    reporter = make_reporter(quiet)
    data = load_data(None, settings.data)
    model = load_model(settings.model)
    task = settings.resolve_task(data.label_names)
    try:
        return make(model, task, data, settings, output_dir, reporter)
    except KeyboardInterrupt:
        if output_dir is not None:
            typer.echo("interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None


def _demo() -> str:
    from gradmm.config import PACKAGED

    return str(PACKAGED / "demo.yaml")


def _generate(settings: RunConfig, output_dir: Path, quiet: bool) -> None:
    result = _run(settings, output_dir, quiet)
    from rich.console import Console

    from gradmm.present import show_result

    show_result(Console(), result, per_class=10)


def main() -> None:
    """Entry point: errors that a user can mend end with a sentence, not a traceback."""
    try:
        app(standalone_mode=True)
    except GradmmError as err:
        typer.echo(f"error: {err}", err=True)
        sys.exit(err.exit_code)


if __name__ == "__main__":
    main()
