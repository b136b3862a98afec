"""Options that several verbs of the command line share, and the settings that they override."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from gradmm.errors import ConfigError


class Style(StrEnum):
    """How progress is told on stderr."""

    auto = "auto"
    live = "live"
    lines = "lines"
    json = "json"


class Resume(StrEnum):
    """What to do about a run that is in the folder already."""

    never = "never"
    always = "always"
    if_possible = "if_possible"


Model = Annotated[str | None, typer.Option("--model", "-m", help="Causal LM: Hub id, local folder, or 'demo'.")]
Dtype = Annotated[str | None, typer.Option(help="Arithmetic of the model: float32, bfloat16 or float16.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")]
Attention = Annotated[
    str | None, typer.Option("--attn-implementation", help="As in transformers: sdpa, eager, ...")
]
Data = Annotated[
    str | None,
    typer.Option("--data", "-d", help="Labelled text: Hub id, CSV, JSON lines, Parquet, Arrow folder, or 'demo'."),
]
TextColumn = Annotated[str | None, typer.Option(help="Column of the texts, if it has no usual name.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the labels, if it has no usual name.")]
Split = Annotated[str | None, typer.Option(help="Split of the data.")]
Classes = Annotated[str | None, typer.Option(help="Keep these classes alone, as in 'sadness,joy'.")]
TaskName = Annotated[str | None, typer.Option("--task", "-t", help="Ready-made task, such as sst2 or ag_news.")]
Template = Annotated[str | None, typer.Option(help="Own task: what surrounds the text, as in '{text} It was'.")]
Verbaliser = Annotated[
    list[str] | None, typer.Option(help="Own task: LABEL=WORDS, once per class, as in 'positive= great'.")
]
Count = Annotated[
    str | None,
    typer.Option("--texts-per-class", "-n", help="Texts for every class, as in 50 or 'sadness=20,joy=80'."),
]
Balance = Annotated[
    str | None, typer.Option("--class-balance", help="equal, or proportional to the real rows (-n on average).")
]
Few = Annotated[str, typer.Option("--texts-per-class", "-n", metavar="INTEGER", help="Texts for every class.")]
Config = Annotated[
    str | None, typer.Option("--config", "-c", help="YAML file, or 'paper' for the paper's settings.")
]
Set = Annotated[list[str] | None, typer.Option("--set", "-s", help="One setting, as in admm.rho=0.5; repeatable.")]
Seed = Annotated[str | None, typer.Option(metavar="INTEGER", help="Of everything that is drawn.")]
Output = Annotated[Path, typer.Option("--output-dir", "-o", help="Run folder; an interrupted run there goes on.")]
ResumeFlag = Annotated[
    Resume, typer.Option("--resume", help="Go on with a run that is in the folder: if_possible, always or never.")
]
Epsilon = Annotated[
    str | None, typer.Option(metavar="NUMBER", help="Differential privacy: budget of everything that is released.")
]
Delta = Annotated[
    str | None, typer.Option(metavar="NUMBER", help="Probability with which it may fail; 'auto' is 1 / n^1.2.")
]
Relation = Annotated[
    str | None,
    typer.Option(
        "--neighboring-relation", metavar="RELATION", help="add_or_remove_one or replace_one; no default."
    ),
]
Rows = Annotated[str | None, typer.Option(metavar="INTEGER", help="Public number of rows, of all classes.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Progress = Annotated[
    Style,
    typer.Option("--progress", help="Progress as a live view, plain lines or JSON lines; auto: by terminal."),
]

SETTINGS = {
    "model": "model.model_name_or_path",
    "dtype": "model.dtype",
    "device": "model.device",
    "attn_implementation": "model.attn_implementation",
    "data": "data.dataset",
    "text_column": "data.text_column",
    "label_column": "data.label_column",
    "split": "data.split",
    "classes": "data.classes",
    "task": "task",
    "template": "task.template",
    "verbaliser": "task.verbalisers",
    "seed": "seed",
}
"""Flag by flag, the setting that it overrides."""


PRIVACY = {
    "epsilon": "privacy.target_epsilon",
    "delta": "privacy.target_delta",
    "neighboring_relation": "privacy.neighboring_relation",
    "num_rows": "privacy.num_rows",
}
"""The same of the flags of privacy."""


def shared_flags(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that flags of several verbs override.

    Args:
        given: the flags' values by name; a verb need not have all.

    Raises:
        ConfigError: if a flag cannot be meant.
    """
    words = pairs(given["verbaliser"] or (), "--verbaliser", "positive= great")
    if given["task"] is not None and (given["template"] is not None or words):
        raise ConfigError("--task names a ready-made task; give either it or --template and --verbaliser")
    read: dict[str, Any] = {"verbaliser": words or None}
    if given["classes"] is not None:
        read["classes"] = [name.strip() for name in given["classes"].split(",")]
    return {key: read.get(flag, given.get(flag)) for flag, key in SETTINGS.items()}


@contextmanager
def interruptible(goes_on: bool) -> Iterator[None]:
    """Ends an interrupted command with 130, and says so if the same one can go on from there."""
    try:
        yield
    except KeyboardInterrupt:
        if goes_on:
            typer.echo("interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None


def pairs(items: Iterable[str], flag: str, example: str) -> dict[str, str]:
    """What stands before and after each first equals sign.

    Raises:
        ConfigError: if there is none, or a name stands there twice.
    """
    found: dict[str, str] = {}
    for item in items:
        label, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"{flag} {item!r} has no '='; write it as {example!r}")
        if label.strip() in found:
            raise ConfigError(f"{flag} names {label.strip()!r} twice; give every class once")
        found[label.strip()] = value
    return found
