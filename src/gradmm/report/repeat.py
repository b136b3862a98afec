"""How to load what a run made, and how to make it again."""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from gradmm.report.page import Code, Paragraph, Part, Section, table
from gradmm.report.read import Comparison, Run, Texts

_SAME = (
    "The same settings, versions, machine and number of threads write the same bytes; others agree to about four "
    "digits."
)


def command(*arguments: str) -> str:
    """A line for a shell."""
    return shlex.join(arguments)


def repeat_texts(run: Texts) -> Section:
    """Of `gradmm generate`."""
    name = run.path.resolve().name
    load = (
        "from datasets import load_dataset\n\n"
        f"rows = load_dataset({'parquet'!r}, data_files={f'{name}/data/synthetic.parquet'!r}, split={'train'!r})\n"
        'names = rows.features["label"].names'
    )
    train = command("gradmm", "train", "--data", name, "--model", _model(run), "-o", f"{name}-model")
    again = command("gradmm", "generate", "--config", f"{name}/config.yaml", "-o", f"{name}-again")
    said = _SAME
    if run.is_private:
        said = "A new run draws new noise, spends a budget of its own, and writes other texts."
    parts: list[Part] = [
        Paragraph(f"Commands are for the folder above {name}."),
        Code("Load the texts, in Python", load),
        Code("Train a model on them", train),
        Code("Make them again", again),
        Paragraph(said),
        *_settings(run),
    ]
    return Section("repeat", "Use it, repeat it", parts)


def repeat_comparison(run: Comparison) -> Section:
    """Of `gradmm compare`."""
    name = run.path.resolve().name
    load = f"import pandas\n\nrecords = pandas.read_parquet({f'{name}/results.parquet'!r})"
    again = command("gradmm", "compare", f"{name}/config.yaml", "-o", f"{name}-again")
    parts: list[Part] = [
        Paragraph(f"Commands are for the folder above {name}."),
        Code("Load every training's figures, in Python", load),
        Code("Compare again", again),
        *_settings(run),
    ]
    return Section("repeat", "Use it, repeat it", parts)


def _model(run: Texts) -> str:
    return str(run.config["model"]["model_name_or_path"])


def _settings(run: Run) -> list[Part]:
    """The settings as the folder has them, less what is not to be shown, and what it ran on."""
    settings = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
    return [Code("All settings (config.yaml)", settings, is_folded=True), _versions(run.environment)]


def _versions(environment: dict[str, Any]) -> Part:
    rows = [(name, str(version)) for name, version in environment["packages"].items()]
    rows.insert(0, ("Python", str(environment["python"])))
    device = " ".join(str(environment[key]) for key in ("device", "device_name") if environment.get(key))
    rows += [("platform", str(environment["platform"])), ("device", device)]
    return table("What it ran on", ("", "version"), rows, (0, 1))
