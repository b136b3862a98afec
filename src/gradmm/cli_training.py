"""The verbs of training: `gradmm train` and `gradmm evaluate`.

Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradmm.cli_options import (
    Attention,
    Classes,
    Device,
    Dtype,
    LabelColumn,
    Model,
    Progress,
    Quiet,
    Resume,
    ResumeFlag,
    Seed,
    Split,
    Style,
    TaskName,
    Template,
    TextColumn,
    Verbaliser,
    interruptible,
    shared_flags,
)
from gradmm.startup import libraries_load, load_transformers

if TYPE_CHECKING:
    from gradmm.progress import Reporter
    from gradmm.training_config import TrainRunConfig

Rows = Annotated[
    str | None,
    typer.Option("--data", "-d", help="Folder of a run of `gradmm generate`, Hub id, file, or 'demo'."),
]
Dev = Annotated[
    str | None,
    typer.Option(metavar="SPLIT_OR_FILE", help="Rows that choose the weights, as in validation or dev.csv."),
]
Test = Annotated[
    str | None,
    typer.Option(metavar="SPLIT_OR_FILE", help="Rows that are looked at last, as in test or test.csv."),
]
Trained = Annotated[str | None, typer.Option("--model", "-m", help="Folder of a training, or any causal LM.")]
Folder = Annotated[
    Path, typer.Option("--output-dir", "-o", help="Run folder, with the model in it; an interrupted run goes on.")
]
File = Annotated[str | None, typer.Option("--config", "-c", help="YAML file of settings.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="One setting, as in learning_rate=1e-4; repeatable.")
]
Whole = Annotated[str | None, typer.Option(metavar="INTEGER")]
Number = Annotated[str | None, typer.Option(metavar="NUMBER")]
Fraction = Annotated[
    str | None, typer.Option(metavar="NUMBER", help="Without --dev: share of the rows that is held out for it.")
]
Patience = Annotated[
    str | None, typer.Option(metavar="INTEGER", help="Stop after so many evaluations without a better one.")
]
Optimizer = Annotated[str | None, typer.Option(help="adamw, sgd or addax.")]
Scheduler = Annotated[str | None, typer.Option(help="linear or constant.")]
Loss = Annotated[str | None, typer.Option(help="Over the classes' verbalisers, or over the whole vocabulary.")]
Lora = Annotated[bool, typer.Option("--lora", help="Train low-rank adapters, merged at the end (gradmm[lora]).")]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

_SETTINGS = (
    *("learning_rate", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "optim"),
    *("lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "loss", "eval_steps", "save_steps"),
    *("early_stopping_patience", "dev_fraction", "dev", "test"),
)


def train(
    context: typer.Context,
    model: Model = None,
    data: Rows = None,
    task: TaskName = None,
    dev: Dev = None,
    test: Test = None,
    output_dir: Folder = Path("gradmm-train"),
    resume: ResumeFlag = Resume.if_possible,
    config: File = None,
    set_: Set = None,
    seed: Seed = None,
    learning_rate: Number = None,
    max_steps: Whole = None,
    per_device_train_batch_size: Whole = None,
    gradient_accumulation_steps: Whole = None,
    optim: Optimizer = None,
    lr_scheduler_type: Scheduler = None,
    warmup_steps: Whole = None,
    weight_decay: Number = None,
    max_grad_norm: Number = None,
    loss: Loss = None,
    lora: Lora = False,
    bf16: Bf16 = False,
    dev_fraction: Fraction = None,
    eval_steps: Whole = None,
    early_stopping_patience: Patience = None,
    save_steps: Whole = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    split: Split = None,
    classes: Classes = None,
    template: Template = None,
    verbaliser: Verbaliser = None,
    dtype: Dtype = None,
    device: Device = None,
    attn_implementation: Attention = None,
    quiet: Quiet = False,
    progress: Progress = Style.auto,
) -> None:
    """Fine-tune a model to tell classes apart, on synthetic or any other labelled text."""
    with libraries_load():
        from gradmm.config import load_settings
        from gradmm.reporters import make_reporter
        from gradmm.training_config import TrainRunConfig

    flags = shared_flags(context.params) | {name: context.params[name] for name in _SETTINGS}
    flags |= {"lora": lora or None, "bf16": bf16 or None}
    reporter = make_reporter(quiet, progress.value)
    _train(load_settings(TrainRunConfig, config, flags, set_ or ()), output_dir, reporter, resume)


def evaluate(
    context: typer.Context,
    model: Trained = None,
    data: Rows = None,
    task: TaskName = None,
    set_: Set = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    split: Split = "test",
    classes: Classes = None,
    template: Template = None,
    verbaliser: Verbaliser = None,
    dtype: Dtype = None,
    device: Device = None,
    attn_implementation: Attention = None,
    as_json: Json = False,
) -> None:
    """Say how well a model tells classes apart: accuracy, calibration, confusion."""
    with libraries_load():
        from rich.console import Console

        from gradmm.config import load_settings
        from gradmm.models import load_model
        from gradmm.present import show_evaluation
        from gradmm.reporters import make_reporter
        from gradmm.training_config import TrainRunConfig
        from gradmm.training_data import load_train_data, with_runs
        from gradmm.training_run import evaluate as judge

    make_reporter(quiet=True)
    settings = with_runs(load_settings(TrainRunConfig, None, shared_flags(context.params), set_ or ()))
    rows = load_train_data(None, settings.data).rows
    asked = settings.resolve_task(rows.label_names)
    load_transformers()
    found = judge(load_model(settings.model), asked, rows, settings.per_device_eval_batch_size)
    if as_json:
        names: dict[str, Any] = {"model": settings.model.model_name_or_path, "data": rows.name}
        typer.echo(json.dumps(names | {"label_names": asked.label_names} | asdict(found), indent=2))
    else:
        show_evaluation(Console(), asked.label_names, found)


def _train(settings: TrainRunConfig, output_dir: Path, reporter: Reporter, resume: Resume) -> None:
    with libraries_load():
        from rich.console import Console

        from gradmm.models import load_model
        from gradmm.present import show_training
        from gradmm.training_data import load_other_data, load_train_data, with_runs
        from gradmm.training_run import train as make

    settings = with_runs(settings)
    data = load_train_data(None, settings.data)
    task = settings.resolve_task(data.rows.label_names)
    dev, test = load_other_data(settings, "dev"), load_other_data(settings, "test")
    load_transformers()
    model = load_model(settings.model)
    with interruptible(True):
        result = make(model, task, data, settings, dev, test, output_dir, reporter, resume.value)
    reporter.result({"run_dir": str(output_dir), "test": result.metrics["test"]})
    show_training(Console(), result)
