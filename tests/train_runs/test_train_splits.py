"""`gradmm train`: what is chosen, on which split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command_line import Run
from gradmm import training_run
from gradmm.config import load_settings
from gradmm.data.sources import DataConfig, load_data
from gradmm.models import LanguageModel
from gradmm.training.finetune import FineTuner
from gradmm.training_config import TrainRunConfig
from gradmm.training_data import TrainData
from gradmm.training_run import TrainResult
from labelled_rows import flipped, rows_of
from train_tools import FLAGS, metrics_in, saved_splits, train


def test_the_test_split_chooses_nothing(
    lm: LanguageModel, files: Path, made: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[tuple[int, bool]] = []
    own = training_run.judge_rows
    monkeypatch.setattr(
        training_run, "judge_rows", lambda *args: looked.append((len(args[2]), in_training[0])) or own(*args)
    )
    in_training, fit = [False], FineTuner.run

    def fitting(*args: Any) -> Any:
        in_training[0] = True
        try:
            return fit(*args)
        finally:
            in_training[0] = False

    monkeypatch.setattr(FineTuner, "run", fitting)
    dev = str(files / "dev.jsonl")
    results = [train(lm, files, dev=dev, test=test) for test in (None, flipped(rows_of("test", 5)))]
    assert looked == [(12, False)] * 2 + [(12, False)] * 2 + [(10, False)] * 2
    for result in results:
        assert result.model.fingerprint() == made.model.fingerprint()
        assert result.metrics["history"] == made.metrics["history"]
    assert results[0].metrics["test"] is None
    assert results[1].accuracy("test") == pytest.approx(1 - made.accuracy("test"))


def test_without_a_development_split_the_last_weights_are_kept(run: Run, base: list[str]) -> None:
    outcome = run(*base, "-o", "a", "-q")
    assert outcome.out == (
        "Kept: the last weights of 6 steps on 16 rows (no development split chose; --dev or --dev-fraction gives "
        "one).\nModel: a/model\n"
    )
    metrics = metrics_in("a")
    assert (metrics["dev"], metrics["test"], metrics["best_step"]) == (None, None, None)
    assert metrics["rows"] == {"train": 16}


def test_a_fraction_is_held_out_of_every_class(lm: LanguageModel, files: Path) -> None:
    data = TrainData(load_data(files / "train.jsonl"))
    train_, held = data.hold_out(0.3, 0)
    assert (train_.rows.counts(), held.rows.counts()) == ([6, 6], [2, 2])
    parts = [{text for label in (0, 1) for text in part.rows.texts_of(label)} for part in (train_, held)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {row["text"] for row in rows_of("train", 8)}
    assert data.hold_out(0.3, 0)[1].fingerprint() == held.fingerprint() != data.hold_out(0.3, 1)[1].fingerprint()
    assert data.hold_out(0.01, 0)[1].rows.counts() == [1, 1]  # one at least
    result = train(lm, files, dev_fraction=0.3)
    assert result.metrics["rows"] == {"train": 12, "dev": 4}
    assert result.metrics["best_step"] is not None
    given = train(lm, files, dev_fraction=0.3, dev=str(files / "dev.jsonl"))
    assert given.metrics["rows"] == {"train": 16, "dev": 12}


def test_early_stopping_is_told(run: Run, base: list[str], splits: list[str]) -> None:
    flags = ["--early-stopping-patience", "1", "--learning-rate", "1e-9", "--max-steps", "40", "-q", "-o", "a"]
    outcome = run(*base, *splits, *flags)
    metrics = metrics_in("a")
    assert metrics["stopped_early"]
    assert metrics["steps"] == metrics["best_step"] + 2 < 40
    assert f"best on dev, of {metrics['steps']} steps, stopped early on 16 rows" in outcome.out


def test_rows_that_are_trained_and_judged_on_are_told(
    lm: LanguageModel, files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = rows_of("train", 2) + rows_of("test", 3)
    train(lm, files, test=both, dev=rows_of("dev", 2), max_steps=0)
    told = "4 of the 10 texts of test (the list in memory) are trained on as well; its figures flatter the model"
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [told]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("validation", {"split": "validation"}),
        ("train[80%:]", {"split": "train[80%:]"}),
        ("train[:10]+test", {"split": "train[:10]+test"}),
        ("dev.csv", {"dataset": "dev.csv", "split": "validation"}),
        ("./validation", {"dataset": "./validation", "split": "validation"}),
        ("someone/data", {"dataset": "someone/data", "split": "validation"}),
        ("demo", {"dataset": "demo", "split": "validation"}),
    ],
)
def test_a_split_is_told_from_a_source(given: str, meant: dict[str, str]) -> None:
    sets = ["data.dataset=x/y", "data.text_column=review", "data.classes=[a, b]", "data.max_rows_per_class=3"]
    for flags, more in (({"dev": given}, []), ({}, [f"dev={json.dumps(given)}"])):
        found = load_settings(TrainRunConfig, None, flags, sets + more).data_of("dev")
        shared = {"dataset": "x/y", "text_column": "review", "classes": ("a", "b")}
        assert found == DataConfig(**shared | meant)
    own = load_settings(TrainRunConfig, None, {"dev": given}, [*sets, "dev.text_column=t"]).data_of("dev")
    assert own == DataConfig(**shared | {"text_column": "t"} | meant)


def test_splits_of_one_source(run: Run, files: Path) -> None:
    own = ["--model", files / "tiny", "--device", "cpu", "--task", "sst2", *FLAGS, "-q"]
    sliced = ["--data", files / "train.jsonl", "--split", "train[:10]", "--dev", "train[10:]"]
    assert run("train", *own, *sliced, "-o", "a").code == 0
    assert metrics_in("a")["rows"] == {"train": 10, "dev": 6}
    named = [
        "--data",
        saved_splits(),
        "--dev",
        "validation",
        "--test",
        "test",
        "--set",
        "data.max_rows_per_class=3",
    ]
    assert run("train", *own, *named, "-o", "b").code == 0
    assert metrics_in("b")["rows"] == {"train": 6, "dev": 12, "test": 10}
    config = load_settings(TrainRunConfig, "b/config.yaml")
    assert config.data_of("test") == DataConfig(dataset="saved", split="test")
