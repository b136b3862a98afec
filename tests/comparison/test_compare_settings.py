"""Settings of a comparison: another model, a file of one's own, whose time is counted, what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

import gradmm
from compare_tools import Counting, arena, settings
from gradmm.comparison import runner
from gradmm.comparison.compare import Comparison
from gradmm.comparison.config import CompareConfig
from gradmm.comparison.runner import Arena
from gradmm.errors import DataError, RunFolderError
from gradmm.loading import save_pretrained
from labelled_rows import NAMES, rows_of, written
from tiny_models import make_model, make_tokenizer


def test_the_rows_of_a_batch_may_change_and_other_settings_may_not(files: Path, tmp_path: Path) -> None:
    plain = settings(files, methods=["real_random"], budgets=[2], seeds=1)

    def go(**generate: Any) -> Comparison:
        changed = plain.generate.model_copy(update=generate)
        return gradmm.compare(plain.model_copy(update={"generate": changed}), tmp_path / "run")

    found = go(per_device_batch_size=4)
    assert go(per_device_batch_size=2) == found
    with pytest.raises(RunFolderError, match=r"settings\.generate\.block_size"):
        go(block_size=7)


def test_trainings_differ_by_seed_on_one_set(files: Path) -> None:
    found = gradmm.compare(settings(files, methods=["lm_random"], training_seeds=2, learning_rates=[0.03]))
    assert [(one["data_seed"], one["training_seed"]) for one in found.records] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    a, b, c, _ = found.records
    assert a["distance"] == b["distance"] != c["distance"]
    assert a["dev_loss"] != b["dev_loss"]
    assert found.rows[0].accuracy.count == 2


def test_another_model_is_trained_on_the_same_texts(files: Path) -> None:
    student = {"model_name_or_path": str(files / "student"), "device": "cpu"}
    plain, other = (
        gradmm.compare(settings(files, train_model=model, methods=["lm_random", "real_random"]))
        for model in (None, student)
    )
    for mine, theirs in zip(plain.records, other.records, strict=True):
        for key in ("method", "data_seed", "texts", "distance", "log_perplexity"):
            assert theirs[key] == mine[key]
        assert theirs["dev_loss"] != mine["dev_loss"]


def test_rows_that_do_not_fit_the_model_that_is_trained_are_told_before_any_work(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pretrained(make_model("llama", max_position_embeddings=9), make_tokenizer(True), tmp_path / "short")
    monkeypatch.setattr(Arena, "run", None)
    for role in ("dev", "test"):
        written(tmp_path / f"{role}.jsonl", [{"text": f"{n}", "label": name} for n, name in enumerate(NAMES)])
    short = {"model_name_or_path": str(tmp_path / "short"), "device": "cpu"}
    given = {role: str(tmp_path / f"{role}.jsonl") for role in ("dev", "test")}
    with pytest.raises(DataError, match=r"film\.jsonl, row 0 .* leaves room for"):
        gradmm.compare(settings(files, train_model=short, **given), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_files_of_ones_own_are_compared_and_belong_to_the_run(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    for name, each in (("a/b.jsonl", 1), ("a_b.jsonl", 2)):
        written(tmp_path / name, rows_of("song", each))
    config = settings(files, methods=["file:a/b.jsonl", "file:a_b.jsonl"], budgets=[1, 2])
    found = gradmm.compare(config, "run")
    assert {(one["method"], one["budget"], one["texts"]) for one in found.records} == {
        ("file:a/b.jsonl", 1, 2),
        ("file:a/b.jsonl", 2, 2),
        ("file:a_b.jsonl", 1, 2),
        ("file:a_b.jsonl", 2, 4),
    }
    assert {row.kind for row in found.rows} == {"synthetic"}
    assert gradmm.compare(config, "run") == found
    written(tmp_path / "a_b.jsonl", rows_of("part", 2))
    with pytest.raises(RunFolderError) as caught:
        gradmm.compare(config, "run")
    changed = [line.split(":")[:3] for line in str(caught.value).splitlines() if line.startswith("  ")]
    assert [line[0] + line[1] for line in changed] == ["  files.filea_b.jsonl"]
    (tmp_path / "a_b.jsonl").unlink()
    with pytest.raises(DataError, match=r"a_b\.jsonl"):
        gradmm.compare(config, "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("methods", [["search", "real_random"], ["real_random", "search"]])
def test_the_targets_time_is_that_of_methods_that_use_it_whatever_the_order(
    methods: list[str], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradmm.comparison import material

    clock, own = [0.0], material.class_target

    def slowly(*args: Any, **more: Any) -> Any:
        clock[0] += 100
        return own(*args, **more)

    for module in (material, runner):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(material, "class_target", slowly)
    records = arena(settings(files, methods=methods, seeds=1))[0].run(Counting())
    assert {one["method"]: one["seconds_texts"] for one in records} == {"search": 200, "real_random": 0}


def test_labels_from_rows_that_nobody_learns_are_refused() -> None:
    given = {"dev": "validation", "test": "test", "methods": ["lm_taught"]}
    assert CompareConfig.model_validate(given).methods == ("lm_taught",)
    with pytest.raises(ValidationError) as caught:
        CompareConfig.model_validate(given | {"generate": {"label_check": {"reader": "model"}}})
    assert (
        "methods has lm_taught, whose labels are learnt from rows, and generate.label_check.reader is 'model'; "
        "leave out either"
    ) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("pool.files", ["mine.csv"]),
        ("selection.weights", True),
    ],
)
def test_settings_that_a_comparison_does_not_use_are_refused(name: str, setting: Any) -> None:
    group, key = name.split(".")
    given = {"dev": "validation", "test": "test", "generate": {group: {key: setting}}}
    with pytest.raises(
        ValidationError, match=rf"generate\.{name} is not used by a comparison; leave it out, or make"
    ):
        CompareConfig.model_validate(given)
