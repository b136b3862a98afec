"""What a run is given, beside rows and model: texts that the user brings or has the writer read.

And what `config.yaml` holds of all of it, and what the results depend on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

from gradmm.config import GenerateConfig
from gradmm.data.sources import DataConfig, LabelledData, load_data, load_texts
from gradmm.data.task import BoundTask, Task
from gradmm.domain import Domain
from gradmm.models import LanguageModel
from gradmm.private_run import named, refuse_real_rows
from gradmm.result import texts_of_run
from gradmm.teaching import Teacher


def load_brought(config: GenerateConfig, task: Task, rows: LabelledData) -> dict[str, LabelledData]:
    """Texts of files and runs that the user names as candidates, in the task's classes."""
    classes = DataConfig(classes=task.label_names)
    brought = {name: load_data(texts_of_run(name) or name, classes) for name in config.pool.files}
    if config.privacy is not None:
        refuse_real_rows(rows, "pool.files", {name: own.texts() for name, own in brought.items()})
    return brought


def load_domain(lm: LanguageModel, task: BoundTask, config: GenerateConfig, rows: LabelledData) -> Domain:
    """Who writes first, with the texts that are to be read before."""
    read = {name: load_texts(texts_of_run(name) or name) for name in config.writer.files}
    if config.privacy is not None:
        refuse_real_rows(rows, "writer.files", read)
    return Domain(lm, task, config, read)


def load_teacher(domain: Domain, config: GenerateConfig, rows: LabelledData) -> Teacher | None:
    """Of who says what class a text is of; with privacy nobody learns it from rows."""
    draw = partial(draw_rows, rows, seed=config.seed)
    return Teacher(domain, config, draw) if config.privacy is None else None


def draw_rows(rows: LabelledData, counts: Sequence[int], seed: int) -> list[list[str]]:
    """So many real rows of every class, at random; all of a class that has fewer."""
    drawn = rows.sample(list(map(min, counts, rows.counts())), seed)
    return [drawn.texts_of(label) for label in range(drawn.num_classes)]


def settings_of(lm: LanguageModel, task: Task, rows: LabelledData, config: GenerateConfig) -> dict[str, Any]:
    """What `config.yaml` holds: settings that `gradmm generate --config` reads back.

    A `RunConfig` holds all of them; otherwise model and data stand there by the names they were given.
    """
    words = {
        key: dict(zip(task.label_names, given, strict=True)) if given else None
        for key, given in (("verbalisers", task.verbalisers), ("instructions", task.instructions))
    }
    names = {
        "model": {"model_name_or_path": lm.name, "dtype": str(lm.dtype).removeprefix("torch.")},
        "data": {"dataset": rows.name, "text_column": rows.text_column, "label_column": rows.label_column},
        "task": {"template": task.template, **words},
    }
    return names | config.model_dump(mode="json")


def fingerprint_of(
    lm: LanguageModel, task: Task, rows: LabelledData, config: GenerateConfig, brought: dict[str, LabelledData]
) -> dict[str, Any]:
    """What the results depend on. Of private data it has the name alone: a hash is a function of every row. The
    budget may be raised where a release was lost, and is left to the ledger.
    """
    settings = config.model_dump(mode="json", include=set(GenerateConfig.model_fields) - {"per_device_batch_size"})
    if config.privacy is not None:
        del settings["privacy"]["target_epsilon"]
    return {
        "gradmm": version("gradmm"),  # another version may take other steps
        "settings": settings,
        "task": task.model_dump(mode="json"),
        "model": lm.fingerprint(),
        "dtype": str(lm.dtype),
        "data": rows.fingerprint() if config.privacy is None else named(rows, config),
        "files": {name: own.fingerprint() for name, own in brought.items()},
    }
