"""How a model is trained, and what is left behind: the page to read first for `gradmm train`.

    load -> tokenise -> train -> evaluate -> write

The development split chooses the weights (best accuracy, then lowest loss). The test split is looked at once, when
they are chosen. A training that is interrupted goes on from its folder: weights, moments of the optimiser and the
best weights are checkpointed, and whatever is drawn comes from the seed and the step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gradmm.data.presets import get_task
from gradmm.data.sources import DataSource, LabelledData
from gradmm.data.task import BoundTask, Task
from gradmm.environment import describe_environment
from gradmm.errors import ConfigError
from gradmm.labelling import Reader
from gradmm.loading import save_pretrained
from gradmm.memory import BatchLimit
from gradmm.models import LanguageModel, ModelConfig, load_model
from gradmm.placement import is_quantised
from gradmm.progress import Reporter, Stage, log, logging_to
from gradmm.store import LOG, Resume, RunFolder, as_json
from gradmm.training.evaluate import Evaluation
from gradmm.training.evaluate import evaluate as judge_rows
from gradmm.training.finetune import FineTuner, TrainConfig, TrainState
from gradmm.training.rows import TokenRows
from gradmm.training_config import Role, TrainRunConfig
from gradmm.training_data import MODEL, TrainData, load_train_data, warn_of_overlap
from gradmm.yamlfiles import to_yaml

_STATE = "training"
_FREE = {"per_device_eval_batch_size", "save_steps"}  # settings that change no result


@dataclass(frozen=True)
class TrainResult:
    """A fine-tuned model and what it achieves."""

    model: LanguageModel
    """The weights that were kept, adapters merged."""
    metrics: dict[str, Any]
    """What `metrics.json` holds: rows, steps, figures of either split before and after, history, seconds."""
    run_dir: Path | None
    """The run folder, if one was asked for; the model is in its folder `model`."""

    def __repr__(self) -> str:
        roles: tuple[Role, ...] = ("dev", "test")
        figures = [f"{role} accuracy {self.accuracy(role):.3f}" for role in roles if self.metrics[role]]
        figures.append(f"{self.metrics['steps']} steps")
        return f"TrainResult({', '.join(figures)}, run_dir={str(self.run_dir) if self.run_dir else None!r})"

    def accuracy(self, role: Role) -> float:
        """Of the trained model on a split that was given."""
        found: float = self.metrics[role]["after"]["accuracy"]
        return found


def train(
    model: str | Path | LanguageModel,
    task: str | Task,
    data: DataSource | TrainData,
    config: TrainConfig = TrainConfig(),
    dev: DataSource | None = None,
    test: DataSource | None = None,
    output_dir: str | Path | None = None,
    reporter: Reporter | None = None,
    resume: Resume = "if_possible",
) -> TrainResult:
    """Fine-tunes a causal LM as a classifier through the task's verbalisers.

    Args:
        model: where the weights start: Hub id, local folder, `demo`, or a loaded `LanguageModel`, which stays as
            it is.
        task: a `Task`, or the name of a ready-made one.
        data: the rows to train on: the folder of a run of `generate`, whose weights count, or what `load_data`
            takes.
        config: how; a `TrainRunConfig` is kept whole in the run folder, but its model, data and task are not read
            here.
        dev: the development split, which chooses the weights and when to stop. Without it, `config.dev_fraction`
            of the rows are held out; if that is 0, the last weights are kept.
        test: the test split, which chooses nothing.
        output_dir: the run folder; a training that was interrupted there goes on. None keeps nothing on disk.
        reporter: what shows progress; None logs it.
        resume: as for `generate`.

    Raises:
        GradmmError: if model, task, data and config do not fit together, before any work is done; if the run
            folder is another run's, in use, damaged or cannot be written; if a loss stops being finite or a single
            text does not fit into memory. The same call goes on from the last checkpoint.
    """
    lm = load_model(model)
    _refuse_few_bits(lm)
    splits = _load(data, dev, test, config)
    bound = BoundTask(get_task(task), lm.tokenizer, lm.max_length)
    rows = {role: split.tokens(bound) for role, split in splits.items()}
    tuner = FineTuner(lm, bound, rows["train"], config, rows.get("dev"))
    run = _Training(lm, bound, rows, config, tuner, reporter or Reporter())
    del tuner  # `run` lets go of it before the models are compared
    if output_dir is None:
        return run.go()
    fingerprint = _fingerprint(lm, bound.task, splits, config)
    with RunFolder(output_dir, fingerprint, resume, (f"{MODEL}/config.json",)) as folder:
        if folder.is_complete:
            log.info("%s is complete; nothing is left to do", folder.path)
            folder.finish()
            return _read_result(folder, lm)
        with logging_to(folder.path / LOG):
            folder.write_text("config.yaml", to_yaml(_settings(lm, bound.task, splits, config)))
            folder.write_json("environment.json", describe_environment(lm.device))
            result = run.go(folder)
        folder.finish()
    return result


def evaluate(
    model: str | Path | LanguageModel, task: str | Task, data: DataSource, per_device_eval_batch_size: int = 64
) -> Evaluation:
    """Evaluates a causal LM as a classifier through the task's verbalisers, with classes in the task's order.

    Args:
        model: Hub id, local folder, `demo`, or a loaded `LanguageModel`.
        task: a `Task`, or the name of a ready-made one.
        data: labelled rows, as for `train`; weights play no part.
        per_device_eval_batch_size: rows that go through the model at once.

    Raises:
        GradmmError: if model, task and data do not fit together.
    """
    lm = load_model(model)
    bound = BoundTask(get_task(task), lm.tokenizer, lm.max_length)
    rows = load_train_data(data).tokens(bound)
    return judge_rows(lm, bound, rows, BatchLimit(per_device_eval_batch_size))


def _refuse_few_bits(lm: LanguageModel) -> None:
    """Whether what is trained can be written down."""
    if is_quantised(lm.model):
        raise ConfigError(
            f"{lm.title} has weights in 8 or 4 bits, and what is trained beside them (adapters) cannot be merged "
            "into weights of so few bits; load it without load_in_8bit and load_in_4bit (model.dtype bfloat16)"
        )


@dataclass
class _Training:
    """What the stages share."""

    lm: LanguageModel
    task: BoundTask
    rows: Mapping[str, TokenRows]
    config: TrainConfig
    tuner: FineTuner
    reporter: Reporter
    seconds: dict[str, float] = field(default_factory=dict)

    def go(self, folder: RunFolder | None = None) -> TrainResult:
        """All stages."""
        state = self._fit(folder)
        trained = self.tuner.model.language_model()
        del self.tuner  # which holds three to four times the weights
        metrics: dict[str, Any] = as_json(
            {
                "label_names": self.task.task.label_names,
                "rows": {role: len(rows) for role, rows in self.rows.items()},
                "steps": state.step,
                "best_step": state.best_step,
                "stopped_early": state.step < self.config.max_steps,
                "dtype": str(trained.dtype).removeprefix("torch."),
                **self._compare(trained),
                "history": state.history,
                "seconds": self.seconds,
            }
        )
        if folder is None:
            return TrainResult(trained, metrics, None)
        folder.write_folder(MODEL, lambda path: save_pretrained(trained.model, trained.tokenizer, path))
        folder.write_json("metrics.json", metrics)
        return TrainResult(trained, metrics, folder.path)

    def _fit(self, folder: RunFolder | None) -> TrainState:
        kept = folder.load_state(_STATE) if folder is not None else None
        if kept is not None:
            self.tuner.load(*kept)
        with self._stage("train", self.config.max_steps, "steps") as stage:
            if self.tuner.state.step:
                stage.advance(self.tuner.state.step)
            return self.tuner.run(lambda state: self._told(state, stage, folder))

    def _told(self, state: TrainState, stage: Stage, folder: RunFolder | None) -> None:
        """After every step."""
        last = state.history[-1] if state.history and not state.losses else {}
        stage.advance(loss=last["train_loss"] if last else state.losses[-1])
        if last:
            figures = (f"{name.replace('_', ' ')} {value:.4g}" for name, value in last.items() if name != "step")
            log.info("step %d: %s", state.step, ", ".join(figures))
        if folder is not None and (
            state.step % self.config.save_steps == 0 or state.step == self.config.max_steps
        ):
            folder.save_state(_STATE, self.tuner.tensors(), self.tuner.facts())

    def _compare(self, trained: LanguageModel) -> dict[str, Any]:
        """Figures of the model as it was and as it is, on either split."""
        splits = [role for role in ("dev", "test") if role in self.rows]
        if not splits:
            return {"dev": None, "test": None}
        with self._stage("evaluate", sum(2 * len(self.rows[role]) for role in splits), "rows") as stage:
            found = {role: self._both(trained, self.rows[role], stage) for role in splits}
        return {role: found.get(role) for role in ("dev", "test")}

    def _both(self, trained: LanguageModel, rows: TokenRows, stage: Stage) -> dict[str, Any]:
        def judged(model: Reader) -> dict[str, Any]:
            found = judge_rows(model, self.task, rows, BatchLimit(self.config.per_device_eval_batch_size))
            stage.advance(len(rows), accuracy=found.accuracy)
            return asdict(found)

        return {"before": judged(self.lm), "after": judged(trained)}

    @contextmanager
    def _stage(self, name: str, total: float, unit: str) -> Iterator[Stage]:
        began = time.monotonic()
        with self.reporter.stage(name, total, unit) as stage:
            yield stage
        self.seconds[name] = round(time.monotonic() - began, 2)


def _load(
    data: DataSource | TrainData, dev: DataSource | None, test: DataSource | None, config: TrainConfig
) -> dict[str, TrainData]:
    """The splits that there are, by name."""
    train = load_train_data(data)
    others: dict[Role, DataSource | None] = {"dev": dev, "test": test}
    if config.dev_fraction and dev is None:
        train, held = train.hold_out(config.dev_fraction, config.seed)
        others["dev"] = held.rows
    splits = {"train": train}
    for role, source in others.items():
        if source is not None:
            splits[role] = TrainData(load_train_data(source).rows)
            warn_of_overlap(train.rows, splits[role].rows, role)
    return splits


def _read_result(folder: RunFolder, lm: LanguageModel) -> TrainResult:
    """The result of a training that is complete."""
    metrics = folder.read_json("metrics.json")
    where = ModelConfig(
        model_name_or_path=str((folder.path / MODEL).absolute()), dtype=metrics["dtype"], device=str(lm.device)
    )
    return TrainResult(load_model(where), metrics, folder.path)


def _settings(
    lm: LanguageModel, task: Task, splits: Mapping[str, TrainData], config: TrainConfig
) -> dict[str, Any]:
    """What `config.yaml` holds: settings that `gradmm train --config` reads back.

    A `TrainRunConfig` holds nearly all of them; otherwise model and data stand there by the names they were given.
    """
    words = dict(zip(task.label_names, task.verbalisers, strict=True))
    settings = {
        "model": {"model_name_or_path": lm.name, "dtype": str(lm.dtype).removeprefix("torch.")},
        "data": _named(splits["train"].rows),
        **{role: _named(splits[role].rows) if role in splits else None for role in ("dev", "test")},
    }
    if config.dev_fraction:
        settings["dev"] = None  # what was held out
    settings |= config.model_dump(mode="json")
    if isinstance(config, TrainRunConfig):
        settings |= {role: _dumped(config, role) for role in ("dev", "test")}
    return settings | {"task": {"template": task.template, "verbalisers": words}}


def _named(rows: LabelledData) -> dict[str, Any]:
    return {"dataset": rows.name, "text_column": rows.text_column, "label_column": rows.label_column}


def _dumped(config: TrainRunConfig, role: Role) -> dict[str, Any] | None:
    data = config.data_of(role)
    return None if data is None else data.model_dump(mode="json")


def _fingerprint(
    lm: LanguageModel, task: Task, splits: Mapping[str, TrainData], config: TrainConfig
) -> dict[str, Any]:
    """What the results depend on."""
    return {
        "gradmm": version("gradmm"),  # another version may take other steps
        "verb": "train",
        "settings": config.model_dump(mode="json", include=set(TrainConfig.model_fields) - _FREE),
        "task": task.model_dump(mode="json", exclude={"instructions"}),
        "model": lm.fingerprint(),
        "dtype": str(lm.dtype),
        "data": {role: data.fingerprint() for role, data in splits.items()},
    }
