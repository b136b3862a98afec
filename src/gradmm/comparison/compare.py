"""`gradmm compare`: load -> run the arena -> summarise -> write."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradmm.comparison.config import CompareConfig
from gradmm.comparison.guarantee import PathPoint
from gradmm.comparison.methods import own_texts
from gradmm.comparison.runner import Arena, Record
from gradmm.comparison.sets import RESULTS, TEXTS, as_table, checksum, read_sets
from gradmm.comparison.summary import Row, summarise
from gradmm.config import dump_config
from gradmm.data.checks import check_fits, match_labels
from gradmm.data.sources import LabelledData, load_data
from gradmm.data.task import BoundTask, Task
from gradmm.environment import describe_environment
from gradmm.given import load_domain
from gradmm.models import LanguageModel, load_model
from gradmm.progress import Reporter, log, logging_to
from gradmm.store import LOG, Resume, RunFolder, as_json
from gradmm.training.rows import TokenRows, tokenise_data
from gradmm.training.trainable import require_trainable
from gradmm.training_config import Role

ROLES: tuple[Role, ...] = ("dev", "test")


@dataclass(frozen=True)
class Comparison:
    """Every training that counts, and what they say together."""

    records: list[Record]
    """One for every method, budget, data seed and training seed."""
    rows: list[Row]
    path: list[PathPoint]
    """Gradients along the training on our texts of the largest budget, first seed; empty unless asked for."""
    run_dir: Path | None
    """The run folder, if one was asked for."""


def compare(
    config: CompareConfig,
    output_dir: str | Path | None = None,
    reporter: Reporter | None = None,
    resume: Resume = "if_possible",
) -> Comparison:
    """Makes texts with every method, trains a model on each, and evaluates it.

    Args:
        config: what is compared.
        output_dir: the run folder; a comparison that was interrupted there goes on. None keeps nothing on disk.
        reporter: what shows progress; None logs it.
        resume: as for `generate`.

    Raises:
        GradmmError: if models, task, data and settings do not fit together, before any work is done; if the run
            folder is another run's, in use, damaged or cannot be written.
    """
    data = load_data(None, config.data)
    task = match_labels(config.resolve_task(data.label_names), data)
    others = {role: load_data(None, config.other(role)) for role in ROLES}
    lm = load_model(config.model)
    student = lm if config.train_model is None else load_model(config.train_model)
    require_trainable(student, config.train.lora, "train.lora")
    bound, student_task = (BoundTask(task, own.tokenizer, own.max_length) for own in (lm, student))
    check_fits(bound, data)
    own = {name: own_texts(name, task.label_names) for name in config.methods}
    brought = {name: texts for name, texts in own.items() if texts is not None}
    for rows in (data, *brought.values()):
        check_fits(student_task, rows)
    dev, test = (_rows(student_task, task, others[role]) for role in ROLES)
    domain = load_domain(lm, bound, config.generate, data)
    fingerprint = _fingerprint(config, lm, student, {"train": data} | others, brought) | domain.fingerprint()
    given = {}
    if config.texts_from is not None:
        fingerprint["texts_from"] = checksum(config.texts_from)
        given = read_sets(config.texts_from, fingerprint, task.label_names)
    with ExitStack() as stack:
        place = output_dir or stack.enter_context(tempfile.TemporaryDirectory())
        folder = stack.enter_context(RunFolder(place, fingerprint, resume, (RESULTS, TEXTS)))
        if folder.is_complete:
            log.info("%s is complete; nothing is left to do", folder.path)
            folder.finish()
            return _read(folder)
        with logging_to(folder.path / LOG):
            folder.write_text("config.yaml", dump_config(config))
            folder.write_json("environment.json", describe_environment(lm.device))
            arena = Arena(config, lm, bound, student, student_task, data, dev, test, folder, domain, given)
            with (reporter or Reporter()).stage("compare", arena.trainings, "trainings") as stage:
                records = arena.run(stage)
            path = arena.follow(records) if config.path else []
            found = Comparison(records, summarise(records), path, folder.path if output_dir else None)
            folder.write(TEXTS, partial(pq.write_table, as_table(arena.written(), task.label_names)))
            _write(folder, found)
        folder.finish()
    return found


def _fingerprint(
    config: CompareConfig,
    lm: LanguageModel,
    student: LanguageModel,
    data: Mapping[str, LabelledData],
    brought: Mapping[str, LabelledData],
) -> dict[str, Any]:
    """What a comparison depends on."""
    files = {name: texts.fingerprint() for name, texts in brought.items()}
    without: Any = {"model": True, "train_model": True, "generate": {"per_device_batch_size"}}
    return {
        "gradmm": version("gradmm"),
        "settings": config.model_dump(mode="json", exclude=without),
        "model": lm.fingerprint(),
        "train_model": student.fingerprint(),
        "data": {role: own.fingerprint() for role, own in data.items()},
    } | ({"files": files} if files else {})


def _rows(task: BoundTask, names: Task, data: LabelledData) -> TokenRows:
    match_labels(names, data)
    check_fits(task, data)
    return tokenise_data(task, data)


def _read(folder: RunFolder) -> Comparison:
    """A comparison that is complete."""
    records: list[Record] = pq.read_table(folder.path / RESULTS).to_pylist()
    path = [PathPoint(**point) for point in folder.read_json("metrics.json")["path"]]
    return Comparison(records, summarise(records), path, folder.path)


def _write(folder: RunFolder, found: Comparison) -> None:
    table: Any = pa.Table.from_pylist(found.records)
    folder.write(RESULTS, lambda path: pq.write_table(table, path))
    parts: dict[str, list[Any]] = {"rows": found.rows, "path": found.path}
    folder.write_json(
        "metrics.json", as_json({name: [asdict(one) for one in part] for name, part in parts.items()})
    )
