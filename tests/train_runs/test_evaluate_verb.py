"""`gradmm evaluate`, and `gradmm.evaluate`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradmm
from command_line import Run
from gradmm.training_run import TrainResult
from labelled_rows import NAMES, written
from train_tools import saved_splits


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
