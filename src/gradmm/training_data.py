"""What is trained and judged on: labelled rows from anywhere, or the weighted texts of a run of `generate`."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gradmm.config import parse_settings
from gradmm.data.checks import check_fits, match_labels
from gradmm.data.rows import Indices, column_of, draw
from gradmm.data.sources import DataConfig, DataSource, LabelledData, load_data
from gradmm.data.task import BoundTask
from gradmm.errors import ConfigError, DataError
from gradmm.models import IN_MEMORY
from gradmm.result import texts_of_run
from gradmm.seeds import derive_seed
from gradmm.training.rows import TokenRows, tokenise
from gradmm.training_config import Role, TrainRunConfig
from gradmm.yamlfiles import read_mapping

log = logging.getLogger("gradmm")
MODEL = "model"  # within the folder of a training
_OURS = {"weight", "source", "gradient_distance"}  # columns of what `gradmm generate` writes


@dataclass(frozen=True, eq=False)
class TrainData:
    """Rows to train on."""

    rows: LabelledData
    weights: NDArray[np.float64] | None = None
    """Of every row in the mean loss (N); None weighs all alike."""

    def tokens(self, task: BoundTask) -> TokenRows:
        """The rows in the task's tokens, class by class.

        Raises:
            TaskError: if the data's classes are not the task's.
            DataError: if a row does not fit the model's context.
        """
        check_fits(task, self.rows)  # names the row
        names = match_labels(task.task, self.rows).label_names
        order = [names.index(name) for name in task.task.label_names]
        labels = _labels(self.rows)
        weights = None if self.weights is None else [self.weights[labels == label].tolist() for label in order]
        return tokenise(task, [self.rows.texts_of(label) for label in order], weights)

    def fingerprint(self) -> str:
        """Hash of rows and weights."""
        rows = self.rows.fingerprint()
        return rows if self.weights is None else hashlib.sha256(rows.encode() + self.weights.tobytes()).hexdigest()

    def hold_out(self, fraction: float, seed: int) -> tuple[TrainData, TrainData]:
        """Keeps a share of every class's rows, one at least, apart.

        Returns:
            What is left to train on, and what was held out.

        Raises:
            DataError: if a class has too few rows.
        """
        wanted = [max(1, round(fraction * count)) for count in self.rows.counts()]
        for name, count, held in zip(self.rows.label_names, self.rows.counts(), wanted, strict=True):
            if held >= count:
                raise DataError(
                    f"{self.rows.name}: class {name!r} has {count} rows, of which dev_fraction {fraction:g} would "
                    f"hold out {held}; lower it, or give a development split"
                )
        drawn = draw(_labels(self.rows), wanted, derive_seed(seed, "dev"))
        return self._of(np.setdiff1d(np.arange(len(self.rows)), drawn)), self._of(drawn)

    def _of(self, chosen: Indices) -> TrainData:
        numbers = chosen if self.rows.numbers is None else self.rows.numbers[chosen]
        rows = replace(self.rows, rows=self.rows.rows.select(chosen), numbers=numbers)
        return TrainData(rows, None if self.weights is None else self.weights[chosen])


def load_train_data(source: DataSource | TrainData | None, config: DataConfig = DataConfig()) -> TrainData:
    """Loads rows to train on; the texts of a run of `gradmm generate` come with their weights.

    Args:
        source: the folder of a run, or whatever `load_data` takes; None means `config.dataset`.
        config: which split, columns, classes and rows to take.

    Raises:
        ConfigError: if no source is named, or a slice of weighted texts is asked for.
        DataError: if it cannot be read, or a row cannot be used.
    """
    if isinstance(source, TrainData):
        return source
    named = config.dataset if source is None else source
    if not isinstance(named, str | Path):
        return TrainData(load_data(source, config))
    texts = texts_of_run(named)
    if texts is not None:
        config = config.model_copy(update={"text_column": None, "label_column": None, "label_names": None})
    rows = load_data(texts or named, config)
    weights = _weights_in(texts or Path(os.path.expanduser(named)))
    if weights is not None and "[" in config.split:
        raise ConfigError(
            f"{named} has weights for the mean over the whole set, and split is {config.split!r}; train on all of "
            "it"
        )
    if weights is not None and rows.numbers is not None:
        weights = weights[rows.numbers]
    return TrainData(replace(rows, name=str(named)), weights)


def load_other_data(config: TrainRunConfig, role: Role) -> LabelledData | None:
    """Loads the development or the test split.

    Raises:
        ConfigError: if a split is named but the data have none.
        DataError: if it cannot be read.
    """
    own, named = config.data_of(role), config.data.dataset
    if own is None:
        return None
    if own.dataset == named and named is not None and "[" not in own.split:
        path = Path(os.path.expanduser(named))
        if path.is_file() or texts_of_run(named) is not None:
            raise ConfigError(
                f"{role} is {own.split!r}, but {named} has no splits; give a file with the rows of {role}, or "
                f"slices of one file: split 'train[:80%]' and {role} 'train[80%:]'"
            )
    return load_train_data(None, own).rows


def with_runs(config: TrainRunConfig) -> TrainRunConfig:
    """Settings with what is not given taken from the folders of runs that model and data are.

    Raises:
        ConfigError: if the settings of such a run are damaged.
        DataError: if the folder of data is that of a run without texts.
    """
    name, data = config.model.model_name_or_path, config.data.dataset
    trained = Path(os.path.expanduser(name)) / MODEL
    if os.path.isfile(trained / "config.json"):
        config = _filled(config, name, str(trained))
    if data is not None and texts_of_run(data) is not None:
        own = "model_name_or_path" in config.model.model_fields_set
        config = _filled(config, data, None if own else _settings_of(data).model.model_name_or_path)
    return config


def _filled(config: TrainRunConfig, folder: str, model: str | None) -> TrainRunConfig:
    """With the run's task, if none is given, and with this model."""
    update: dict[str, Any] = {}
    if config.task is None and (task := _settings_of(folder).task) is not None:
        update["task"] = task
    if model not in (None, IN_MEMORY):
        update["model"] = config.model.model_copy(update={"model_name_or_path": model})
    if update:
        log.info("%s: %s as there", folder, " and ".join(update))
    return config.model_copy(update=update)


def _settings_of(folder: str) -> TrainRunConfig:
    """Model and task of a run."""
    path = Path(os.path.expanduser(folder)) / "config.yaml"
    kept = read_mapping(path, str(path)) if path.is_file() else {}
    return parse_settings(TrainRunConfig, {key: kept[key] for key in ("model", "task") if key in kept})


def warn_of_overlap(train: LabelledData, other: LabelledData, role: Role) -> None:
    """Says so if texts stand in both."""
    trained = {text for label in range(train.num_classes) for text in train.texts_of(label)}
    texts = [text for label in range(other.num_classes) for text in other.texts_of(label)]
    shared = sum(text in trained for text in texts)
    if shared:
        log.warning(
            "%d of the %d texts of %s (%s) are trained on as well; its figures flatter the model",
            *(shared, len(texts), role, other.name),
        )


def _labels(rows: LabelledData) -> Indices:
    labels: Indices = column_of(rows.rows, "label").to_numpy()
    return labels


def _weights_in(path: Path) -> NDArray[np.float64] | None:
    """The weights in a file that `gradmm generate` wrote; None if it wrote none, or all are 1."""
    weights: list[Any] = []
    if path.suffix == ".parquet" and path.is_file() and set(pq.read_schema(path).names) >= _OURS:
        weights = pq.read_table(path, columns=["weight"])["weight"].to_pylist()
    elif path.suffix == ".jsonl" and path.is_file():
        with path.open(encoding="utf-8-sig") as lines:
            rows = (json.loads(line) for line in lines if line.strip())
            first = next(rows)
            if set(first) >= _OURS:
                weights = [row.get("weight") for row in chain([first], rows)]
    _check_weights(weights, path)
    return np.array(weights, float) if set(weights) - {1} else None


def _check_weights(weights: Sequence[Any], path: Path) -> None:
    for row, weight in enumerate(weights):
        if not isinstance(weight, int | float) or not 0 <= weight < np.inf:
            raise DataError(
                f"{path}, row {row} (counted from 0): weight is {weight!r}; give a number of at least 0"
            )
    if weights and not any(weights):
        raise DataError(f"{path}: all weights are 0, so there is nothing to train on; give one row a weight")
