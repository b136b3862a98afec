"""`gradmm train`: settings, and what cannot be meant."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from command_line import Outcome, Run
from gradmm.config import load_settings
from gradmm.data.sources import DataConfig
from gradmm.errors import ConfigError, GradmmError
from gradmm.models import LanguageModel
from gradmm.training.finetune import TrainConfig
from gradmm.training_config import TrainRunConfig
from gradmm.training_data import load_train_data
from gradmm.training_run import TrainResult
from labelled_rows import rows_of, written
from train_tools import train

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
