"""Rows, trainings and what they leave, for tests of `gradmm train` and `gradmm evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets

import gradmm
from gradmm.models import LanguageModel
from gradmm.training.finetune import TrainConfig
from gradmm.training_run import TrainResult
from labelled_rows import rows_of
from run_tools import files as contents

SMALL = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 0.01, "eval_steps": 2, "save_steps": 1}

FLAGS = [part for key, value in SMALL.items() for part in (f"--{key.replace('_', '-')}", str(value))]

MODEL_FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def train(lm: LanguageModel, files: Path, data: Any = None, **given: Any) -> TrainResult:
    own = {key: given.pop(key) for key in list(given) if key in TrainConfig.model_fields}
    source = str(files / "train.jsonl") if data is None else data
    return gradmm.train(lm, "sst2", source, TrainConfig(**SMALL | own), **given)


def weights_in(folder: str | Path) -> bytes:
    return (Path(folder) / "model" / "model.safetensors").read_bytes()


def metrics_in(folder: str | Path) -> dict[str, Any]:
    metrics = json.loads((Path(folder) / "metrics.json").read_text())
    assert set(metrics.pop("seconds")) <= {"train", "evaluate"}
    return metrics


def assert_like(folder: str | Path, whole: TrainResult) -> None:
    """As an undisturbed run left it."""
    assert whole.run_dir is not None
    assert contents(Path(folder)) == contents(whole.run_dir)
    assert weights_in(folder) == weights_in(whole.run_dir)
    assert metrics_in(folder) == metrics_in(whole.run_dir)


def saved_splits() -> str:
    """A folder of `save_to_disk` with three splits."""
    each = {"train": 8, "validation": 6, "test": 5}
    splits = {name: datasets.Dataset.from_list(rows_of(name, count)) for name, count in each.items()}
    datasets.DatasetDict(splits).save_to_disk("saved")
    return "saved"
