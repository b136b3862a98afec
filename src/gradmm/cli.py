"""The command line: one thin function per verb.

Data on stdout, progress and errors on stderr. Exit codes: 0 done, 1 failed, 2 misuse, 3 refused privacy
budget, 130 interrupted.
Nothing heavy is imported before a verb runs, so that `--help` is quick.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from gradmm import cli_comparison, cli_privacy, cli_push, cli_report, cli_training
from gradmm.cli_options import (
    PRIVACY,
    Attention,
    Balance,
    Classes,
    Config,
    Count,
    Data,
    Delta,
    Device,
    Dtype,
    Epsilon,
    Few,
    LabelColumn,
    Model,
    Output,
    Progress,
    Quiet,
    Relation,
    Resume,
    ResumeFlag,
    Rows,
    Seed,
    Set,
    Split,
    Style,
    TaskName,
    Template,
    TextColumn,
    Verbaliser,
    interruptible,
    pairs,
    shared_flags,
)
from gradmm.errors import ConfigError, GradmmError, listed, printable_lines
from gradmm.startup import end_quickly, libraries_load, load_transformers

if TYPE_CHECKING:
    from gradmm.config import RunConfig
    from gradmm.progress import Reporter
    from gradmm.result import Result

app = typer.Typer(
    name="gradmm",
    help="Write small, readable synthetic text data sets that train a language model like the real data would.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# What the parser raises; typer brings a copy of click, or takes click itself, by its version.
_ParserError: type[Exception] = typer.BadParameter.__mro__[2]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    """Options that stand before the verb."""
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"gradmm {installed('gradmm')}")
        raise typer.Exit


@app.command()
def demo(
    output_dir: Output = Path("gradmm-demo"),
    seed: Seed = None,
    quiet: Quiet = False,
    progress: Progress = Style.auto,
) -> None:
    """Show what this is: a small model and data set that ship in the package, start to end."""
    _generate(_settings({"seed": seed}, config=_demo()), output_dir, _reporter(quiet, progress))


@app.command()
def generate(
    context: typer.Context,
    model: Model = None,
    data: Data = None,
    task: TaskName = None,
    texts_per_class: Count = None,
    output_dir: Output = Path("gradmm-run"),
    resume: ResumeFlag = Resume.if_possible,
    config: Config = None,
    set_: Set = None,
    seed: Seed = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    split: Split = None,
    classes: Classes = None,
    class_balance: Balance = None,
    template: Template = None,
    verbaliser: Verbaliser = None,
    epsilon: Epsilon = None,
    delta: Delta = None,
    neighboring_relation: Relation = None,
    num_rows: Rows = None,
    dtype: Dtype = None,
    device: Device = None,
    attn_implementation: Attention = None,
    quiet: Quiet = False,
    progress: Progress = Style.auto,
) -> None:
    """Write a synthetic data set that matches the gradients of real data."""
    _generate(_settings(_flags(context), config, set_), output_dir, _reporter(quiet, progress), resume)


@app.command()
def preview(
    context: typer.Context,
    model: Model = None,
    data: Data = None,
    task: TaskName = None,
    texts_per_class: Few = "3",
    config: Config = None,
    set_: Set = None,
    seed: Seed = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    split: Split = None,
    classes: Classes = None,
    template: Template = None,
    verbaliser: Verbaliser = None,
    dtype: Dtype = None,
    device: Device = None,
    attn_implementation: Attention = None,
) -> None:
    """Make a handful of texts in seconds, to see what they look like; without data, from the demo's."""
    if not texts_per_class.strip().isdecimal() or int(texts_per_class) < 1:
        raise ConfigError(
            f"--texts-per-class (-n) is {texts_per_class!r}; preview takes a whole number, at least 1"
        )
    quick = {
        "pool.texts_per_text": 8,
        "writer.rounds": 1,  # from so few texts there is nothing to learn, neither their kind nor their words
        "shrinkage.weight": 0,  # likewise
        "label_check.reader": "model",  # who learns takes longer than a look should
        "space.public_texts": 24,
        "refinement.evaluations": 8,
        "admm.n_outer": 4,
        "admm.n_inner": 5,
        "data.max_rows_per_class": 50,
        "references": False,
        "initial.candidates": 2,
        "block_size": int(texts_per_class),
        "class_balance": "equal",
    }
    packaged = _demo() if config is None and data is None else config
    if _settings(_flags(context), packaged, set_).privacy is not None:
        raise ConfigError(
            "preview keeps no run folder, and so no ledger of what it would spend; leave privacy out and give "
            "rows that are public, or use generate"
        )
    result = _run(_settings(_flags(context) | quick, packaged, set_), None, _reporter())
    from rich.console import Console

    from gradmm.present import show_texts

    show_texts(Console(), result)


@app.command()
def doctor(
    context: typer.Context,
    model: Model = None,
    data: Data = None,
    task: TaskName = None,
    texts_per_class: Count = None,
    config: Config = None,
    set_: Set = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    split: Split = None,
    classes: Classes = None,
    class_balance: Balance = None,
    template: Template = None,
    verbaliser: Verbaliser = None,
    epsilon: Epsilon = None,
    delta: Delta = None,
    neighboring_relation: Relation = None,
    num_rows: Rows = None,
    dtype: Dtype = None,
    device: Device = None,
    attn_implementation: Attention = None,
    bench: Annotated[
        bool, typer.Option("--bench", help="Also measure how fast this machine is at what the run would compute.")
    ] = False,
) -> None:
    """Check settings, model and data against each other without running anything."""
    settings = _settings(_flags(context), config, set_)
    with libraries_load():
        from rich.console import Console

        from gradmm.doctor import examine
        from gradmm.present import show_findings

    load_transformers()
    findings = list(examine(settings, bench))
    show_findings(Console(), findings)
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(1)


def _flags(context: typer.Context) -> dict[str, Any]:
    """The settings that flags override."""
    count = context.params["texts_per_class"]
    return shared_flags(context.params) | {
        "texts_per_class": _texts_per_class(count) if isinstance(count, str) else None,
        "class_balance": context.params.get("class_balance"),
        **{key: context.params.get(flag) for flag, key in PRIVACY.items()},
    }


def _texts_per_class(given: str) -> Any:
    """One number, or one for every class; what is none of both, the settings refuse."""
    if "=" not in given:
        return int(given) if given.strip().isdecimal() else given
    counts = pairs(given.split(","), "--texts-per-class", "sadness=20,joy=80")
    return {name: int(count) if count.strip().isdecimal() else count for name, count in counts.items()}


def _settings(flags: dict[str, Any], config: str | None = None, sets: list[str] | None = None) -> RunConfig:
    with libraries_load():
        from gradmm.config import load_config

    return load_config(config, flags, sets or ())


def _reporter(quiet: bool = False, style: Style = Style.auto) -> Reporter:
    from gradmm.reporters import make_reporter

    return make_reporter(quiet, style.value)


def _run(
    settings: RunConfig, output_dir: Path | None, reporter: Reporter, resume: Resume = Resume.if_possible
) -> Result:
    with libraries_load():
        from gradmm.data.checks import match_labels
        from gradmm.data.sources import load_data
        from gradmm.models import load_model
        from gradmm.pipeline import generate as make
        from gradmm.progress import unsaid

    with unsaid(settings.privacy is not None):
        data = load_data(None, settings.data)
    task = match_labels(settings.resolve_task(data.label_names), data)
    settings.count_texts(task.label_names, data.counts())  # refused before a large model is loaded
    load_transformers()
    model = load_model(settings.model)
    with interruptible(output_dir is not None):
        return make(model, task, data, settings, output_dir, reporter, resume.value)


def _demo() -> str:
    with libraries_load():
        from gradmm.config import PACKAGED

    return str(PACKAGED / "demo.yaml")


def _generate(
    settings: RunConfig, output_dir: Path, reporter: Reporter, resume: Resume = Resume.if_possible
) -> None:
    result = _run(settings, output_dir, reporter, resume)
    from rich.console import Console

    from gradmm.present import show_result
    from gradmm.report.card import write_card
    from gradmm.report.html import write_report

    write_card(output_dir)
    page = write_report([output_dir])
    reporter.result({"run_dir": str(output_dir), "synthetic": result.metrics["synthetic"]})
    show_result(Console(), result, per_class=10, report=page)


app.command()(cli_training.train)
app.command()(cli_training.evaluate)
app.command()(cli_comparison.compare)
app.command()(cli_report.report)
app.command()(cli_push.push)
app.add_typer(cli_privacy.app, name="privacy")


def main() -> None:
    """Entry point: errors that a user can mend end with a sentence, not a traceback."""
    end_quickly()
    try:
        code = app(standalone_mode=False)
    except GradmmError as err:
        _leave(str(err), err.exit_code)
    except _ParserError as err:
        if not sys.argv[1:]:  # then it is no error but the help
            err.show()  # type: ignore[attr-defined]
            sys.exit(2)
        _leave(_misuse(err), 2)
    sys.exit(code if isinstance(code, int) else 0)


def _leave(message: str, code: int) -> NoReturn:
    typer.echo(f"error: {printable_lines(message)}", err=True)
    sys.exit(code)


def _misuse(err: Any) -> str:
    """What the command line's parser found, and where to look it up."""
    verbs = [command.callback.__name__ for command in app.registered_commands if command.callback]
    verbs += [group.name for group in app.registered_groups if group.name]
    verb = next((word for word in sys.argv[1:] if word in verbs), None)
    said = err.format_message().rstrip(".")
    for theirs, ours in (
        ("Value error, ", ""),
        ("(Possible options: ", "(did you mean "),
        (". Did you", "; did you"),
    ):
        said = said.replace(theirs, ours)
    if verb is None and "did you" not in said:
        said += f"; known: {listed(verbs)}"
    usage = f"gradmm {verb} [OPTIONS]" if verb else "gradmm [OPTIONS] COMMAND"
    return f"{said[:1].lower()}{said[1:]}\nUsage: {usage}; --help lists what there is"


if __name__ == "__main__":
    main()
