"""What the tests of trainings share: a model, rows, and an undisturbed training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradmm.found import Written
from gradmm.loading import save_pretrained
from gradmm.models import LanguageModel, load_model
from gradmm.result import make_dataset, write_result
from gradmm.store import RunFolder
from gradmm.training_run import TrainResult
from labelled_rows import WORDS, rows_of, written
from tiny_models import make_model, make_tokenizer
from train_tools import FLAGS, train


@pytest.fixture(autouse=True)
def apart(own_folder: None) -> None:
    """Every test has an empty folder."""


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with dropout and tied weights, and rows to train on, to choose by and to test on."""
    folder = tmp_path_factory.mktemp("files")
    save_pretrained(make_model("gpt2"), make_tokenizer(), folder / "tiny")
    for name, each in (("train", 8), ("dev", 6), ("test", 5)):
        written(folder / f"{name}.jsonl", rows_of(name, each))
    return folder


@pytest.fixture(scope="session")
def lm(files: Path) -> LanguageModel:
    return load_model(files / "tiny", device="cpu")


@pytest.fixture
def base(files: Path) -> list[str]:
    """The arguments that every training has here."""
    own = [
        "--model",
        str(files / "tiny"),
        "--device",
        "cpu",
        "--data",
        str(files / "train.jsonl"),
        "--task",
        "sst2",
    ]
    return ["train", *own, *FLAGS]


@pytest.fixture
def splits(files: Path) -> list[str]:
    return ["--dev", str(files / "dev.jsonl"), "--test", str(files / "test.jsonl")]


@pytest.fixture(scope="session")
def made(files: Path, lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """An undisturbed training, from Python."""
    folder = tmp_path_factory.mktemp("made") / "run"
    return train(lm, files, dev=str(files / "dev.jsonl"), test=str(files / "test.jsonl"), output_dir=folder)


@pytest.fixture(scope="session")
def made_run(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of `gradmm generate`, with weights."""
    folder = tmp_path_factory.mktemp("run") / "run"
    names = ("positive", "negative")  # another order than the task's
    texts = [[Written(f"A {word} run.", "lm", weight=w) for word, w in zip(own, (2.0, 0.5, 0.5), strict=True)]
             for own in (WORDS[1], WORDS[0])]  # fmt: skip
    settings = {
        "model": {"model_name_or_path": str(files / "tiny"), "dtype": "float32"},
        "task": {"template": "{text} So", "verbalisers": {"negative": " bad", "positive": " great"}},
        "texts_per_class": 3,
    }
    with RunFolder(folder, {"of": "a run"}) as held:
        write_result(held, make_dataset(names, texts, (0.1, 0.1), [[1.0] * 3] * 2), {})
        held.write_text("config.yaml", json.dumps(settings))
        held.write_json("environment.json", {})
        held.finish()
    return folder
