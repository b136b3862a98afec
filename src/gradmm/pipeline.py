"""The page to read first: how a data set is made.

    load -> target -> start -> admm -> measure -> write

Only `_release` and `_references` see real rows; the solvers get a `ReleasedTarget`. A run that is interrupted
continues from its folder: the target and every outer iteration are checkpointed, and whatever is drawn comes
from a generator of its own, seeded by what it is for.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gradmm.blocks import BlockRunner
from gradmm.config import GenerateConfig, to_yaml
from gradmm.data.checks import check_fits, match_labels
from gradmm.data.presets import get_task
from gradmm.data.sources import DataSource, LabelledData, load_data
from gradmm.data.task import BoundTask, Task
from gradmm.environment import describe_environment
from gradmm.gradients.target import ReleasedTarget, compute_target
from gradmm.measures import SetMeasures, measure
from gradmm.models import LanguageModel, load_model
from gradmm.progress import Reporter, Stage, log, logging_to
from gradmm.result import Result, make_dataset, read_result, write_result
from gradmm.store import RunFolder, as_json


def generate(
    model: str | Path | LanguageModel,
    task: str | Task,
    data: DataSource,
    config: GenerateConfig = GenerateConfig(),
    output_dir: str | Path | None = None,
    reporter: Reporter | None = None,
) -> Result:
    """Writes a synthetic data set whose gradients match those of real data.

    Args:
        model: a causal LM: Hub id, local folder, `demo`, or a loaded `LanguageModel`.
        task: a `Task`, or the name of a ready-made one.
        data: the real rows: Hub id, file, `demo`, `Dataset`, DataFrame, list, or `LabelledData`.
        config: how texts are made; a `RunConfig` is kept whole in the run folder, but its model, data and task
            are not read here.
        output_dir: the run folder; a run that was interrupted there is continued. None keeps nothing on disk.
        reporter: what shows progress; None logs it.

    Raises:
        GradmmError: if model, task, data and config do not fit together, before any work is done.
    """
    lm = load_model(model)
    rows = load_data(data)
    bound = BoundTask(match_labels(get_task(task), rows), lm.tokenizer, lm.max_length)
    check_fits(bound, rows)
    runner = BlockRunner(lm, bound, config)
    fingerprint = _fingerprint(lm, bound.task, rows, config)
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(output_dir or scratch, fingerprint)
        if folder.is_complete:
            log.info("%s is complete; nothing is left to do", folder.path)
            folder.finish()
            return read_result(folder)
        with logging_to(folder.path / "run.log"):
            settings = _settings(lm, bound.task, rows, config)
            folder.write_text("config.yaml", to_yaml(settings))
            folder.write_json("environment.json", describe_environment(lm.device))
            result = _Run(lm, bound, rows, config, runner, folder, reporter or Reporter()).go()
        folder.finish()
    return result if output_dir else Result(result.dataset, result.metrics, None)


@dataclass
class _Run:
    """What the stages share."""

    lm: LanguageModel
    task: BoundTask
    rows: LabelledData
    config: GenerateConfig
    runner: BlockRunner
    folder: RunFolder
    reporter: Reporter
    seconds: dict[str, float] = field(default_factory=dict)

    def go(self) -> Result:
        """All stages."""
        target = self._release()
        with self._stage("admm", self.runner.steps, "block steps") as stage:
            made = self.runner.run(target, self.folder, stage)
        with self._stage("measure", 3 if self.config.references else 1, "sets") as stage:
            own, nll = self._measure(target, made.texts)
            stage.advance()
            references = self._references(target, stage) if self.config.references else {}
        metrics: dict[str, Any] = as_json(
            {
                "synthetic": asdict(own) | {"retokenised_differently": made.retokenised},
                "references": {name: asdict(measures) for name, measures in references.items()},
                "stops": made.stops,
                "seconds": self.seconds,
                "trace": made.trace,
            }
        )
        names = self.task.task.label_names
        dataset = make_dataset(names, made.texts, own.class_distances, nll, "admm")
        write_result(self.folder, dataset, metrics)
        return Result(dataset, metrics, self.folder.path)

    def _release(self) -> ReleasedTarget:
        """The mean gradients of the real rows; computed once per run."""
        kept = self.folder.load_state("target")
        if kept is not None:
            return ReleasedTarget.from_tensors({k: v.to(self.lm.device) for k, v in kept[0].items()})
        size = self.config.per_device_batch_size
        batches = [self.rows.iter_batches(label, size) for label in range(self.rows.num_classes)]
        with self._stage("target", len(self.rows), "rows") as stage:
            target = compute_target(self.lm, self.task, batches, stage.advance)
        self.folder.save_state("target", target.tensors(), {})
        return target

    def _references(self, target: ReleasedTarget, stage: Stage) -> dict[str, SetMeasures]:
        """As many real rows, drawn at random, and as many texts that the LM writes unguided."""
        count = min(self.config.texts_per_class, *self.rows.counts())
        real = self.rows.sample(count, self.config.seed)
        found = {"real": self._measure(target, [real.texts_of(c) for c in range(real.num_classes)])[0]}
        stage.advance()
        plain = self.runner.sample_texts(self.config.texts_per_class, "lm reference")
        found["lm"] = self._measure(target, plain)[0]
        stage.advance()
        return found

    def _measure(self, target: ReleasedTarget, texts: list[list[str]]) -> tuple[SetMeasures, list[list[float]]]:
        return measure(self.lm, self.task, target, self.config.distance, texts, self.config.per_device_batch_size)

    @contextmanager
    def _stage(self, name: str, total: float, unit: str) -> Iterator[Stage]:
        began = time.monotonic()
        with self.reporter.stage(name, total, unit) as stage:
            yield stage
        self.seconds[name] = round(time.monotonic() - began, 2)


def _settings(lm: LanguageModel, task: Task, rows: LabelledData, config: GenerateConfig) -> dict[str, Any]:
    """What `config.yaml` holds: settings that `gradmm generate --config` reads back.

    A `RunConfig` holds all of them; otherwise model and data stand there by the names they were given.
    """
    words = {
        key: dict(zip(task.label_names, given, strict=True)) if given else None
        for key, given in (("verbalisers", task.verbalisers), ("instructions", task.instructions))
    }
    names = {
        "model": {"model_name_or_path": lm.name, "dtype": str(lm.dtype).removeprefix("torch.")},
        "data": {"dataset": rows.name},
        "task": {"template": task.template, **words},
    }
    return names | config.model_dump(mode="json")


def _fingerprint(lm: LanguageModel, task: Task, rows: LabelledData, config: GenerateConfig) -> dict[str, Any]:
    """What the results depend on."""
    settings = config.model_dump(mode="json", include=set(GenerateConfig.model_fields) - {"per_device_batch_size"})
    return {
        "settings": settings,
        "task": task.model_dump(mode="json"),
        "model": lm.fingerprint(),
        "dtype": str(lm.dtype),
        "data": rows.fingerprint(),
    }
