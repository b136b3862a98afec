"""`gradmm train`: on the texts of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import gradmm
from command_line import Run
from gradmm.config import load_settings
from gradmm.data.sources import DataConfig, load_data
from gradmm.errors import DataError
from gradmm.models import LanguageModel, load_model
from gradmm.training.finetune import TrainConfig
from gradmm.training_config import TrainRunConfig
from gradmm.training_data import TrainData, load_train_data, with_runs
from gradmm.training_run import TrainResult
from labelled_rows import NAMES, WORDS, rows_of, written
from train_tools import FLAGS, SMALL


def test_a_run_is_trained_on_with_its_weights_names_task_and_model(
    made_run: Path, files: Path, lm: LanguageModel, run: Run
) -> None:
    assert run("train", "--data", made_run, "--device", "cpu", *FLAGS, "-o", "a", "-q").code == 0
    config = load_settings(TrainRunConfig, "a/config.yaml")
    assert config.model.model_name_or_path == str(files / "tiny")
    task = config.resolve_task(NAMES)
    assert (task.template, task.verbalisers) == ("{text} So", (" bad", " great"))
    texts = [[f"A {word} run." for word in own] for own in WORDS]
    rows = [(text, name) for name, own in zip(("positive", "negative"), texts[::-1], strict=True) for text in own]
    labelled = load_data(rows, DataConfig(label_names=("positive", "negative")))
    weighted = TrainData(labelled, torch.tensor([2, 0.5, 0.5] * 2).double().numpy())
    same = gradmm.train(lm, config.resolve_task(("positive", "negative")), weighted, TrainConfig(**SMALL))
    assert same.model.fingerprint() == load_model("a/model", device="cpu").fingerprint()
    unweighted = gradmm.train(lm, task, TrainData(labelled), TrainConfig(**SMALL))
    assert unweighted.model.fingerprint() != same.model.fingerprint()


def test_what_is_given_goes_over_what_the_run_has(made_run: Path, made: TrainResult) -> None:
    flags = {"data.dataset": str(made_run), "task": "sst2", "model.model_name_or_path": "demo"}
    config = with_runs(load_settings(TrainRunConfig, None, flags))
    assert (config.model.model_name_or_path, config.task) == ("demo", "sst2")
    flags = {"data.dataset": str(made_run), "model.model_name_or_path": str(made.run_dir)}
    config = with_runs(load_settings(TrainRunConfig, None, flags, ["model.dtype=bfloat16"]))
    assert (config.model.model_name_or_path, config.model.dtype) == (f"{made.run_dir}/model", "bfloat16")
    assert config.resolve_task(NAMES).template == "{text} It was"  # that of the trained model


def test_weights_come_from_every_file_of_a_run(made_run: Path, tmp_path: Path) -> None:
    for name in ("synthetic.parquet", "synthetic.jsonl"):
        found = load_train_data(made_run / "data" / name)
        assert found.weights is not None
        assert found.weights.tolist() == [2, 0.5, 0.5] * 2
    few = load_train_data(made_run, DataConfig(max_rows_per_class=2, seed=1, classes=NAMES))
    assert few.rows.label_names == NAMES
    assert few.weights is not None
    by_text = dict(zip([text for own in WORDS for text in own], [2, 0.5, 0.5] * 2, strict=True))
    words = [row["text"].split()[1] for row in few.rows.rows]
    assert few.weights.tolist() == [by_text[word] for word in words]
    alike = [{**json.loads(line), "weight": 1.0} for line in (made_run / "data/synthetic.jsonl").open()]
    assert load_train_data(written(tmp_path / "alike.jsonl", alike)).weights is None
    foreign = [{**row, "weight": 80} for row in rows_of("body", 2)]
    assert load_train_data(written(tmp_path / "foreign.jsonl", foreign)).weights is None


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ([1, -1], "{}, row 1 (counted from 0): weight is -1; give a number of at least 0"),
        ([None, 1], "{}, row 0 (counted from 0): weight is None; give a number of at least 0"),
        ([1, float("nan")], "{}, row 1 (counted from 0): weight is nan; give a number of at least 0"),
        ([0, 0], "{}: all weights are 0, so there is nothing to train on; give one row a weight"),
    ],
)
def test_weights_that_cannot_be_meant(weights: list[Any], told: str, tmp_path: Path) -> None:
    ours = {"gradient_distance": 0.1, "source": "lm"}
    rows = [row | ours | {"weight": w} for row, w in zip(rows_of("x", 1), weights, strict=True)]
    path = written(tmp_path / "x.jsonl", rows)
    with pytest.raises(DataError) as caught:
        load_train_data(path)
    assert str(caught.value) == told.format(path)
