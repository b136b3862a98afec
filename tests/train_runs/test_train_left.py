"""`gradmm train` and `gradmm.train`: what is left behind."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import gradmm
from command_line import Outcome, Run
from gradmm.config import load_settings
from gradmm.data.sources import load_data
from gradmm.data.task import BoundTask
from gradmm.labelling import label_log_probs
from gradmm.models import LanguageModel
from gradmm.training.finetune import FineTuner
from gradmm.training_config import TrainRunConfig
from gradmm.training_run import TrainResult
from run_tools import KEPT
from train_tools import MODEL_FILES, assert_like, contents, metrics_in, train, weights_in


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
