"""`gradmm train` and `gradmm evaluate`, and what Python users call: what is left, chosen, resumed, refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers

import gradmm
from command_line import Outcome, Run
from gradmm import training_run
from gradmm.config import load_settings
from gradmm.data.sources import DataConfig, load_data
from gradmm.data.task import BoundTask
from gradmm.errors import ConfigError, DataError, GradmmError
from gradmm.found import Written
from gradmm.labelling import label_log_probs
from gradmm.loading import save_pretrained
from gradmm.models import LanguageModel, load_model
from gradmm.result import make_dataset, write_result
from gradmm.store import RunFolder
from gradmm.training.finetune import FineTuner, TrainConfig
from gradmm.training_config import TrainRunConfig
from gradmm.training_data import TrainData, load_train_data, with_runs
from gradmm.training_run import TrainResult
from tiny_models import make_model, make_tokenizer

NAMES = ("negative", "positive")
WORDS = (("dull", "bad", "sad"), ("fine", "great", "happy"))
SMALL = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 0.01, "eval_steps": 2, "save_steps": 1}
FLAGS = [part for key, value in SMALL.items() for part in (f"--{key.replace('_', '-')}", str(value))]
MODEL_FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
pytestmark = pytest.mark.usefixtures("own_folder")
KEPT = {"SHA256SUMS", "config.yaml", "environment.json", "fingerprint.json", "metrics.json", "run.log"}


def rows_of(kind: str, each: int) -> list[dict[str, str]]:
    return [
        {"text": f"A {WORDS[label][n % 3]} {kind}, {n}.", "label": name}
        for n in range(each)
        for label, name in enumerate(NAMES)
    ]


def written(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with dropout and tied weights, and rows to train on, to choose by and to test on."""
    folder = tmp_path_factory.mktemp("files")
    save_pretrained(make_model("gpt2"), make_tokenizer(), folder / "tiny")
    for name, each in (("train", 8), ("dev", 6), ("test", 5)):
        written(folder / f"{name}.jsonl", rows_of(name, each))
    return folder


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def made(files: Path, lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """An undisturbed training, from Python."""
    folder = tmp_path_factory.mktemp("made") / "run"
    return train(lm, files, dev=str(files / "dev.jsonl"), test=str(files / "test.jsonl"), output_dir=folder)


def train(lm: LanguageModel, files: Path, data: Any = None, **given: Any) -> TrainResult:
    own = {key: given.pop(key) for key in list(given) if key in TrainConfig.model_fields}
    source = str(files / "train.jsonl") if data is None else data
    return gradmm.train(lm, "sst2", source, TrainConfig(**SMALL | own), **given)


def contents(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


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


# ---- what is left behind


def test_train_from_flags_alone(run: Run, base: list[str], splits: list[str], made: TrainResult) -> None:
    outcome = run(*base, *splits, "-o", "a")
    assert outcome.code == 0
    assert_like("a", made)
    assert contents(Path("a")) == KEPT | {f"model/{name}" for name in MODEL_FILES}
    for line in Path("a/SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((Path("a") / name).read_bytes()).hexdigest() == digest
    assert len(Path("a/SHA256SUMS").read_text().splitlines()) == len(contents(Path("a"))) - 2  # itself and the log
    metrics = metrics_in("a")
    assert metrics["rows"] == {"train": 16, "dev": 12, "test": 10}
    assert [line["step"] for line in metrics["history"]] == [2, 4, 6]
    best = max(metrics["history"], key=lambda line: (line["accuracy"], -line["loss"]))
    assert metrics["best_step"] == best["step"]
    assert metrics["dev"]["after"]["accuracy"] == best["accuracy"]
    assert metrics["dev"]["after"]["loss"] == pytest.approx(best["loss"])

    lines = outcome.out.splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert [row[:3] for row in rows] == [
        ["dev", "12", "before"],
        ["dev", "12", "after"],
        ["test", "10", "before"],
        ["test", "10", "after"],
    ]
    figures = [metrics[row[0]][row[2]] for row in rows]
    assert [row[3] for row in rows] == [f"{found['accuracy']:.1%}" for found in figures]
    assert lines[-2:] == [
        f"Kept: the weights of step {best['step']}, best on dev, of 6 steps on 16 rows. The test split chose "
        "nothing.",
        "Model: a/model",
    ]
    told = outcome.err.splitlines()
    assert told[0] == "train: 6 steps"
    assert [line for line in told if line.startswith("step ")] == [
        f"step {line['step']}: train loss {line['train_loss']:.4g}, accuracy {line['accuracy']:.4g}, "
        f"loss {line['loss']:.4g}"
        for line in metrics["history"]
    ]


def test_the_settings_in_the_folder_make_the_same_run(run: Run, base: list[str], splits: list[str]) -> None:
    assert run(*base, *splits, "--lora", "--seed", "3", "-o", "a", "-q").code == 0
    again = run("train", "--config", "a/config.yaml", "-o", "b", "--quiet")
    assert (again.code, again.err) == (0, "")
    assert weights_in("a") == weights_in("b")
    assert Path("a/config.yaml").read_bytes() == Path("b/config.yaml").read_bytes()
    assert metrics_in("a") == metrics_in("b")
    config = load_settings(TrainRunConfig, "a/config.yaml")
    assert (config.seed, config.max_steps, config.lora) == (3, 6, gradmm.TrainConfig(lora={}).lora)


def test_settings_of_a_python_run_can_be_read_back(made: TrainResult, files: Path, run: Run) -> None:
    assert made.run_dir is not None
    assert run("train", "-c", made.run_dir / "config.yaml", "--device", "cpu", "-o", "b", "-q").code == 0
    assert weights_in("b") == weights_in(made.run_dir)


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_the_model_is_a_plain_one(lora: Any, lm: LanguageModel, files: Path) -> None:
    result = train(lm, files, lora=lora, output_dir="a")
    task = BoundTask(gradmm.get_task("sst2"), lm.tokenizer, lm.max_length)
    ids = task.texts_ids(["A dull film.", "A fine film, a great end."])
    expected = label_log_probs(result.model, task, ids)
    loaded = gradmm.load_model("a/model", device="cpu")
    assert torch.equal(label_log_probs(loaded, task, ids), expected)
    assert not torch.allclose(label_log_probs(lm, task, ids), expected, atol=1e-3)
    assert contents(Path("a/model")) == MODEL_FILES
    theirs = transformers.AutoModelForCausalLM.from_pretrained("a/model")
    assert theirs.state_dict().keys() == lm.model.state_dict().keys()
    assert theirs.lm_head.weight is theirs.transformer.wte.weight
    tokenizer = transformers.AutoTokenizer.from_pretrained("a/model")
    assert tokenizer("A dull film.").input_ids == lm.tokenizer("A dull film.").input_ids


def test_nothing_is_kept_without_a_folder(lm: LanguageModel, files: Path, made: TrainResult) -> None:
    result = train(lm, files, dev=str(files / "dev.jsonl"), test=load_data(files / "test.jsonl"))
    assert list(Path().iterdir()) == []
    assert result.run_dir is None
    assert result.model.fingerprint() == made.model.fingerprint() != lm.fingerprint()
    assert repr(result) == (
        f"TrainResult(dev accuracy {result.accuracy('dev'):.3f}, test accuracy {result.accuracy('test'):.3f}, "
        "6 steps, run_dir=None)"
    )


def test_a_run_that_is_complete_is_shown_again(
    run: Run, base: list[str], splits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(*base, *splits, "-o", "a")
    monkeypatch.setattr(FineTuner, "step", None)
    again = run(*base, *splits, "-o", "a", "--save-steps", "3", "--set", "per_device_eval_batch_size=2")
    assert (again.code, again.out) == (0, first.out)
    assert again.err == "a is complete; nothing is left to do\n"
    other = run(*base, *splits, "-o", "a", "--seed", "1")
    assert other == Outcome(
        1,
        "",
        "error: a holds a run with other settings:\n  settings.seed: 0 -> 1\n"
        "continue it with the old ones, or give another folder\n",
    )
    (Path("a") / "model" / "tokenizer.json").write_text("{}")
    damaged = run(*base, *splits, "-o", "a")
    assert damaged.code == 1
    assert damaged.err.startswith("error: a/model/tokenizer.json is not as the run left it")


def test_a_complete_training_gives_its_model(lm: LanguageModel, files: Path, made: TrainResult) -> None:
    assert made.run_dir is not None
    again = train(lm, files, dev=str(files / "dev.jsonl"), test=str(files / "test.jsonl"), output_dir=made.run_dir)
    assert again.metrics == made.metrics
    assert again.model.fingerprint() == made.model.fingerprint()


# ---- what is chosen on which split


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
    flipped = [{**row, "label": NAMES[row["label"] == NAMES[0]]} for row in rows_of("test", 5)]
    results = [train(lm, files, dev=dev, test=test) for test in (None, flipped)]
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


def saved_splits() -> str:
    """A folder of `save_to_disk` with three splits."""
    each = {"train": 8, "validation": 6, "test": 5}
    splits = {name: datasets.Dataset.from_list(rows_of(name, count)) for name, count in each.items()}
    datasets.DatasetDict(splits).save_to_disk("saved")
    return "saved"


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


# ---- the texts of a run


@pytest.fixture(scope="module")
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


# ---- interruption


def test_control_c_ends_with_130_and_the_same_command_goes_on(
    run: Run, base: list[str], splits: list[str], made: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = FineTuner.step
    for stops in (1, 4):

        def step(tuner: FineTuner, at: int = stops) -> None:
            if tuner.state.step == at:
                raise KeyboardInterrupt
            own(tuner)

        with monkeypatch.context() as patch:
            patch.setattr(FineTuner, "step", step)
            outcome = run(*base, *splits, "-o", "a", "-q")
        assert outcome == Outcome(130, "", "interrupted; the same command goes on from here\n")
        assert not Path("a/model").exists()
    taken: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(FineTuner, "step", lambda tuner: taken.append(tuner.state.step) or own(tuner))
        assert run(*base, *splits, "-o", "a", "-q").code == 0
    assert taken == [4, 5]  # and none that was made
    assert_like("a", made)


@pytest.mark.parametrize("moment", ["model", "metrics.json", "SHA256SUMS"])
def test_a_run_that_stops_while_it_writes_its_end_goes_on(
    moment: str, files: Path, lm: LanguageModel, made: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"dev": str(files / "dev.jsonl"), "test": str(files / "test.jsonl"), "output_dir": "a"}
    write, write_folder = RunFolder.write, RunFolder.write_folder

    def stopping(folder: RunFolder, name: str, *args: Any) -> Path:
        if name == moment:
            raise KeyboardInterrupt
        return (write_folder if name == "model" else write)(folder, name, *args)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write", stopping)
        patch.setattr(RunFolder, "write_folder", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(lm, files, **given)
    assert Path("a/model").exists() == (moment != "model")
    left = Path("a/.model.killed.tmp")  # as SIGKILL leaves it in the middle of a model
    (left / "deeper").mkdir(parents=True)
    (left / "deeper" / "model.safetensors").write_text("half")
    train(lm, files, **given)
    assert_like("a", made)
    assert not left.exists()


def test_a_disk_that_is_full_is_told(
    run: Run, base: list[str], monkeypatch: pytest.MonkeyPatch, files: Path
) -> None:
    def full(model: Any, tokenizer: Any, folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "save_pretrained", full)
        outcome = run(*base, "-o", "a", "-q")
    assert outcome.code == 1
    assert "cannot be written to (model): no space is left" in outcome.err
    assert not list(Path("a").glob(".model*")) + list(Path("a").glob("model"))
    assert run(*base, "-o", "a", "-q").code == 0


def test_a_process_that_is_killed_goes_on(run: Run, base: list[str], splits: list[str]) -> None:
    command = [*base, *splits, "--max-steps", "24", "-q"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "gradmm", *command, "-o", "a"], env=environment)
    while process.poll() is None and not Path("a/state/training.safetensors").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert Path("a/state/training.safetensors").exists()
    assert not Path("a/SHA256SUMS").exists()
    first = run(*command, "-o", "a")
    whole = run(*command, "-o", "b")
    assert first.code == whole.code == 0
    assert first.out == whole.out.replace("Model: b/model", "Model: a/model")
    assert weights_in("a") == weights_in("b")
    assert metrics_in("a") == metrics_in("b")
    assert not Path("a/state").exists()


# ---- evaluate


def test_evaluate_prints_what_python_finds(run: Run, files: Path, made: TrainResult) -> None:
    data = files / "test.jsonl"
    found = gradmm.evaluate(made.model, "sst2", str(data))
    assert asdict(found) == {key: tuple_of(value) for key, value in made.metrics["test"]["after"].items()}
    for model in (made.run_dir, f"{made.run_dir}/model"):
        outcome = run("evaluate", "-m", model, "-d", data, "--device", "cpu", "--json")
        assert (outcome.code, outcome.err) == (0, "")
        told = json.loads(outcome.out)
        assert told.pop("model") == f"{made.run_dir}/model"
        assert (told.pop("data"), told.pop("label_names")) == (str(data), list(NAMES))
        assert told == json.loads(json.dumps(asdict(found)))
    outcome = run("evaluate", "-m", made.run_dir, "-d", data, "--task", "sst2", "--device", "cpu")
    lines = outcome.out.splitlines()
    assert lines[0] == (
        f"10 rows: accuracy {found.accuracy:.1%}, macro-F1 {found.macro_f1:.3f}, loss {found.loss:.3f}, "
        f"calibration error {found.calibration_error:.3f}"
    )
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert rows == [
        [name, "5", f"{share:.1%}", *map(str, counts)]
        for name, share, counts in zip(NAMES, found.class_accuracy, found.confusion, strict=True)
    ]


def tuple_of(value: Any) -> Any:
    return tuple(map(tuple_of, value)) if isinstance(value, list) else value


def test_a_matrix_that_is_too_wide_is_left_to_json(run: Run, files: Path) -> None:
    names = [f"c{n:02}" for n in range(13)]
    written(Path("many.jsonl"), [{"text": f"text {name}", "label": name} for name in names])
    flags = [flag for name in names for flag in ("--verbaliser", f"{name}= {name}")]
    outcome = run("evaluate", "-m", files / "tiny", "-d", "many.jsonl", "--device", "cpu", *flags)
    assert outcome.code == 0
    assert outcome.out.splitlines()[-2:] == [
        "The confusion matrix is too wide for a table; --json has it.",
        "Computed from the rows themselves, without noise: these figures are not private.",
    ]
    assert "as c00" not in outcome.out


def test_evaluate_takes_the_test_split(run: Run, files: Path) -> None:
    own = ["evaluate", "-m", files / "tiny", "-d", saved_splits(), "--device", "cpu", "--json"]
    for flags, rows in (([], 10), (["--split", "train"], 16)):
        assert json.loads(run(*own, *flags).out)["rows"] == rows


# ---- settings


@pytest.mark.parametrize(
    ("text", "flags", "sets", "r"),
    [
        ("", {"lora": True}, [], 16),
        ("", {}, ["lora=true"], 16),
        ("", {"lora": True}, ["lora.r=3"], 3),
        ("", {}, ["lora.r=3"], 3),
        ("lora: {r: 4}", {"lora": True}, [], 4),
        ("lora: {r: 4}", {"lora": True}, ["lora.lora_alpha=1"], 4),
        ("lora: true", {}, ["lora.r=3"], 3),
        ("lora: {r: 4}", {}, ["lora=false"], None),
        ("lora:", {}, [], None),
        ("", {}, [], None),
    ],
)
def test_adapters_are_on_or_off_or_a_group(
    text: str, flags: dict[str, Any], sets: list[str], r: int | None, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(text)
    config = load_settings(TrainRunConfig, tmp_path / "run.yaml", flags, sets)
    assert (config.lora.r if config.lora else None) == r
    assert type(config.train_config()) is TrainConfig
    assert config.train_config().lora == config.lora


# ---- what cannot be meant


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["--data", "./nope.jsonl"], 1, "./nope.jsonl: no 'nope.jsonl' in {here}; did you mean 'one.jsonl'?"),
        (["--dev", "nope.csv"], 1, "nope.csv: no 'nope.csv' in {here}; known: odd.jsonl, one.jsonl"),
        (
            ["--test", "test"],
            2,
            "test is 'test', but {files}/train.jsonl has no splits; give a file with the rows of test, or slices "
            "of one file: split 'train[:80%]' and test 'train[80%:]'",
        ),
        (
            ["--model", "./nope"],
            1,
            "no model folder at './nope'; give a folder with config.json, a Hub id, or 'demo'",
        ),
        (
            ["--task", "emotion2"],
            2,
            "the task's classes are ['sadness', 'joy'] but those of {files}/train.jsonl are ['negative', "
            "'positive']; give a task over the data's classes (task.template, task.verbalisers), or set "
            "data.label_names and data.classes to the task's",
        ),
        (
            ["--dev", "odd.jsonl"],
            2,
            "the task's classes are ['negative', 'positive'] but those of odd.jsonl are ['joy', 'sadness']; "
            "give a task over the data's classes (task.template, task.verbalisers), or set data.label_names and "
            "data.classes to the task's",
        ),
        (["--learning-rate", "0"], 2, "learning_rate: Input should be greater than 0 (it is '0')"),
        (
            ["--max-steps", "many"],
            2,
            "max_steps: Input should be a valid integer, unable to parse string as an integer (it is 'many')",
        ),
        (["--optim", "adam"], 2, "optim: Input should be 'adamw', 'sgd' or 'addax' (it is 'adam')"),
        (
            ["--optim", "addax", "--gradient-accumulation-steps", "2"],
            2,
            "settings: addax applies gradients while they are computed and can accumulate none; set "
            "gradient_accumulation_steps to 1",
        ),
        (
            ["--warmup-steps", "9"],
            2,
            "warmup_steps is 9 but training ends after 6 steps; lower warmup_steps, or train longer",
        ),
        (
            ["--early-stopping-patience", "2"],
            2,
            "early_stopping_patience is 2 but there is no development split to stop by; give one (dev, or "
            "dev_fraction), or leave it out",
        ),
        (
            ["--data", "one.jsonl", "--dev-fraction", "0.5"],
            1,
            "one.jsonl: class 'negative' has 1 rows, of which dev_fraction 0.5 would hold out 1; lower it, or "
            "give a development split",
        ),
        (["--set", "learningrate=1"], 2, "unknown setting 'learningrate'; did you mean 'learning_rate'?"),
        (["--set", "lora.rank=1"], 2, "unknown setting 'lora.rank'; known: lora_alpha, r, target_modules"),
        (["--set", "admm.rho=1"], 2, "unknown setting 'admm'; {known}"),
        (["--set", "r=1"], 2, "unknown setting 'r'; did you mean 'lora.r'?"),
        (["--set", "learning_rate"], 2, "--set 'learning_rate' has no '='; write it as learning_rate=1e-4"),
        (
            ["--template", "{text}"],
            2,
            "--task names a ready-made task; give either it or --template and --verbaliser",
        ),
    ],
)
def test_what_cannot_be_meant(
    args: list[str], code: int, told: str, run: Run, base: list[str], files: Path
) -> None:
    written(Path("one.jsonl"), rows_of("one", 1))
    written(Path("odd.jsonl"), [{"text": "x", "label": "joy"}, {"text": "y", "label": "sadness"}])
    before = set(Path().iterdir())
    outcome = run(*base, *args, "-o", "a")
    known = "known: adam_beta1, adam_beta2, " if "{known}" in told else ""
    told = told.replace("{here}", str(Path().absolute())).replace("{files}", str(files)).replace("{known}", known)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith(f"error: {told}") if known else outcome.err == f"error: {told}\n"
    assert set(Path().iterdir()) == before


@pytest.mark.parametrize("flag", ["--data", "--model", "--dev"])
def test_a_name_that_is_too_long_for_a_path_is_no_crash(flag: str, run: Run, base: list[str]) -> None:
    outcome = run(*base, flag, "x/" + "x" * 5000, "-o", "a")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("error: cannot ")
    assert not Path("a").exists()


def test_adapters_need_peft(run: Run, base: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    told = "error: lora needs the peft library; install gradmm[lora]\n"
    assert run(*base, "--lora", "-o", "a") == Outcome(2, "", told)
    assert not Path("a").exists()


def test_no_data_ends_with_2(run: Run) -> None:
    for verb in ("train", "evaluate"):
        told = "error: no data set is named; set dataset to a Hub id, a path or 'demo'\n"
        assert run(verb) == Outcome(2, "", told)


def test_a_run_without_texts_is_no_data(made: TrainResult, made_run: Path, run: Run) -> None:
    for verb in ("train", "evaluate"):
        outcome = run(verb, "--data", made.run_dir)
        told = (
            f"error: {made.run_dir} is the folder of a run that holds no texts (data/synthetic.parquet); let "
            "`gradmm generate` end there first, or give another source\n"
        )
        assert outcome == Outcome(1, "", told)
    with pytest.raises(ConfigError) as caught:
        load_train_data(made_run, DataConfig(split="train[:4]"))
    assert str(caught.value) == (
        f"{made_run} has weights for the mean over the whole set, and split is 'train[:4]'; train on all of it"
    )


def test_a_row_that_is_too_long_is_named(lm: LanguageModel, files: Path) -> None:
    long = [*rows_of("dev", 2), {"text": "word " * 100, "label": "positive"}]
    with pytest.raises(GradmmError, match=re.escape("the list in memory, row 4 (counted from 0): text has ")):
        train(lm, files, dev=long)
