"""`gradmm.compare` from end to end: what is there and written, which texts it leaves and takes."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

import gradmm
from compare_tools import MOST, Counting, arena, rates, settings, told
from gradmm.comparison import runner
from gradmm.comparison.compare import Comparison
from gradmm.comparison.config import CompareConfig
from gradmm.comparison.methods import METHODS
from gradmm.comparison.runner import Arena
from gradmm.comparison.summary import summarise
from gradmm.config import load_settings
from gradmm.data.sources import load_data
from gradmm.errors import ConfigError, RunFolderError
from gradmm.store import as_json
from labelled_rows import NAMES
from run_tools import KEPT


def test_every_method_budget_and_seed_is_there_once(whole: Any, everything: CompareConfig) -> None:
    found = whole[0]
    cells = Counter(
        (one["method"], one["budget"], one["data_seed"], one["training_seed"]) for one in found.records
    )
    sets = {(name, budget, seed, 0) for name in MOST for budget in (2, 3) for seed in (0, 1)}
    expected = {cell for cell in sets if cell[0] != "real_all"} | {("real_all", 0, 0, 0)}
    assert dict(cells) == dict.fromkeys(expected, 1)
    chosen = rates(found)
    for one in found.records:
        assert one["learning_rate"] == chosen[one["method"], one["budget"]]
        assert one["kind"] == METHODS[one["method"]].kind
        beside = {"real_all": 8, "search_and_real": 8 + one["budget"]}
        assert one["texts"] == 2 * beside.get(one["method"], one["budget"])
        assert 1 <= one["steps"] <= (3 if one["method"] == "real_all" else 2)
        assert 0 <= one["accuracy"] <= 1 and sum(one["class_accuracy"]) == pytest.approx(2 * one["accuracy"])
        assert (one["log_perplexity"] is None) == (one["method"] == "real_all")
        assert one["seconds_training"] > 0 and one["seconds_texts"] >= 0
    assert {chosen[key] for key in chosen} <= set(everything.learning_rates)
    assert [(row.method, row.budget) for row in found.rows if row.method == "search"] == [
        ("search", 2),
        ("search", 3),
    ]


def test_progress_is_told_in_trainings(whole: Any) -> None:
    (name, total), done = whole[1].stages[0], whole[1].done
    assert (name, total) == ("compare", done)
    assert total == (12 * 2 + 1) * 2 + 12 * 2  # two rates for the first seed, one for the other


def test_the_same_settings_give_the_same_records_whatever_else_is_compared(
    whole: Any, everything: CompareConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["real_all", "search_and_real", "other_class", "lm_few_shot", "real_coreset", "lm_by_label", "search"]
    again = gradmm.compare(everything.model_copy(update={"methods": tuple(names), "budgets": (3,), "path": False}))
    assert again.run_dir is None and list(tmp_path.iterdir()) == []  # nothing is kept without a folder
    assert again.path == []
    order = [(name, seed) for seed in (0, 1) for name in names if name != "real_all" or seed == 0]
    assert [(one["method"], one["data_seed"]) for one in again.records] == order
    expected = {
        (one["method"], one["data_seed"]): one for one in told(whole[0].records) if one["budget"] in (0, 3)
    }
    assert told(again.records) == [expected[key] for key in order]


def test_what_is_written_is_what_is_returned(whole: Any, everything: CompareConfig) -> None:
    found = whole[0]
    names = {path.relative_to(found.run_dir).as_posix() for path in found.run_dir.rglob("*")}
    assert names == KEPT | {"results.parquet", "texts.parquet"}
    records = pq.read_table(found.run_dir / "results.parquet").to_pylist()
    assert records == found.records and list(records[0]) == list(found.records[0])
    assert summarise(records) == found.rows
    metrics = json.loads((found.run_dir / "metrics.json").read_text())
    assert metrics == {name: as_json([asdict(one) for one in getattr(found, name)]) for name in ("rows", "path")}
    assert load_settings(CompareConfig, found.run_dir / "config.yaml") == everything


def test_a_complete_folder_is_read_and_nothing_is_run(
    whole: Any, everything: CompareConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("run", "follow"):
        monkeypatch.setattr(Arena, name, None)
    before = {path: path.read_bytes() for path in whole[0].run_dir.rglob("*")}
    assert gradmm.compare(everything, whole[0].run_dir) == whole[0]
    assert {path: path.read_bytes() for path in whole[0].run_dir.rglob("*")} == before


def test_the_path_is_followed_on_our_texts_of_the_largest_budget(whole: Any, files: Path) -> None:
    points = whole[0].path
    assert [point.step for point in points] == [0, 0, 1, 1, 2]
    assert points[0].weights_apart is None and points[-1].weights_apart > 0
    assert all(point.error_head > 0 and -1 <= point.cosine_all <= 1 for point in points)
    assert points[0].error_all != points[-1].error_all
    alone, kept = arena(settings(files, methods=["lm_random"], budgets=[2, 3], path=True))
    assert alone.follow(whole[0].records) == points  # whatever else is compared
    assert [name for name in kept.states if name.startswith("seed-000-texts")] == ["seed-000-texts-search-3"]
    assert alone.follow([]) == points  # as it was kept


def texts_of(found: Comparison) -> dict[tuple[str, int, int], dict[str, list[str]]]:
    """By set and label."""
    sets: dict[tuple[str, int, int], dict[str, list[str]]] = {}
    for row in pq.read_table(found.run_dir / "texts.parquet").to_pylist():
        own = sets.setdefault((row["method"], row["budget"], row["data_seed"]), {})
        own.setdefault(row["label"], []).append(row["text"])
        assert row["weight"] is None
    return sets


def test_texts_are_kept_but_for_real_rows(whole: Any, files: Path) -> None:
    sets = texts_of(whole[0])
    names = [name for name in MOST if METHODS[name].kind != "real"]
    assert set(sets) == {(name, budget, seed) for name in names for budget in (2, 3) for seed in (0, 1)}
    assert {(label, len(texts)) for (_, n, _), own in sets.items() for label, texts in own.items()} == {
        (name, n) for (_, n, _) in sets for name in NAMES
    }
    made, kept = arena(settings(files, methods=["selection"], budgets=[2, 3], seeds=1))
    made.run(Counting())
    assert kept.texts(0, "selection-3") == [sets["selection", 3, 0][name] for name in NAMES]
    rows = {text for label in (0, 1) for text in load_data(str(files / "film.jsonl")).texts_of(label)}
    assert not rows & {text for own in sets.values() for texts in own.values() for text in texts}


def test_texts_of_another_comparison_are_trained_on_as_they_are(
    whole: Any, everything: CompareConfig, files: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same trainings give the same records, and no text is made; real rows are drawn again."""
    names = ("search", "lm_random", "real_random")
    few = {"methods": names, "texts_from": str(whole[0].run_dir), "path": False}
    for method in names[:2]:
        monkeypatch.setitem(METHODS, method, SimpleNamespace(**vars(METHODS[method]) | {"make": None}))
    monkeypatch.setattr(runner, "measure", None)
    found = gradmm.compare(everything.model_copy(update=few), tmp_path / "again")
    expected = [one for one in whole[0].records if one["method"] in names]
    assert sorted(map(str, told(found.records))) == sorted(map(str, told(expected)))
    costs = {(one["method"], one["budget"], one["data_seed"]): one["seconds_texts"] for one in expected}
    for one in found.records:
        if one["method"] != "real_random":
            assert one["seconds_texts"] == costs[one["method"], one["budget"], one["data_seed"]]
    kept = texts_of(whole[0])
    assert texts_of(found) == {key: kept[key] for key in kept if key[0] in names}
    student = everything.train_model or {"model_name_or_path": str(files / "student"), "device": "cpu"}
    other = gradmm.compare(
        CompareConfig.model_validate(everything.model_dump() | few | {"train_model": student, "seeds": 1})
    )
    assert {one["method"] for one in other.records} == set(names)
    assert {one["distance"] for one in other.records} <= {one["distance"] for one in expected}


def test_texts_that_would_be_others_are_refused(whole: Any, everything: CompareConfig, tmp_path: Path) -> None:
    run = str(whole[0].run_dir)
    changed = everything.model_copy(update={"texts_from": run, "budgets": (2,), "real_rows_per_class": 4})
    with pytest.raises(ConfigError) as caught:
        gradmm.compare(changed, tmp_path / "again")
    assert str(caught.value) == (
        f"texts_from {run!r} holds sets that were made otherwise:\n  largest budget: 3 -> 2\n"
        "  real_rows_per_class: None -> 4\nset these as they were there, or leave texts_from out"
    )
    with pytest.raises(ConfigError) as caught:
        gradmm.compare(everything.model_copy(update={"texts_from": str(tmp_path)}))
    assert str(caught.value) == (
        f"texts_from {str(tmp_path)!r} holds no texts.parquet; give the folder of a comparison that has ended, or "
        "leave it out to have the texts made"
    )
    assert not (tmp_path / "again").exists()


def test_texts_that_were_changed_are_refused(files: Path, tmp_path: Path) -> None:
    config = settings(files, methods=["lm_random"], seeds=1, learning_rates=[0.03])
    gradmm.compare(config, tmp_path / "run")
    (tmp_path / "run" / "texts.parquet").write_bytes(b"x")
    with pytest.raises(RunFolderError, match=r"texts\.parquet is not as the run left it"):
        gradmm.compare(config.model_copy(update={"texts_from": str(tmp_path / "run")}))
