"""`gradmm.compare` from end to end: what is there, what chooses, how it goes on, what it leaves."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

import gradmm
from gradmm.comparison import runner
from gradmm.comparison.compare import Comparison
from gradmm.comparison.config import CompareConfig
from gradmm.comparison.methods import METHODS
from gradmm.comparison.runner import Arena
from gradmm.comparison.summary import summarise
from gradmm.config import load_settings
from gradmm.data.presets import get_task
from gradmm.data.sources import LabelledData, load_data
from gradmm.data.task import BoundTask
from gradmm.errors import ConfigError, DataError, RunFolderError
from gradmm.loading import save_pretrained
from gradmm.models import load_model
from gradmm.progress import Reporter
from gradmm.store import RunFolder, as_json
from gradmm.training.rows import TokenRows, tokenise_data
from store_tools import Kept
from tiny_models import make_model, make_tokenizer

NAMES = ("negative", "positive")
WORDS = (("dull", "bad", "sad"), ("fine", "great", "happy"))
RATES = (1e-6, 0.03)
MEASURED = ("seconds_texts", "seconds_training", "peak_bytes_texts", "peak_bytes_training")  # another every time
LEFT = {"config.yaml", "environment.json", "fingerprint.json", "metrics.json", "run.log", "SHA256SUMS"}
MOST = tuple(name for name in METHODS if name not in ("real_k_center", "noise", "projection"))
FEW = ("search", "lm_few_shot", "real_random", "real_coreset")


class Sets(Kept):
    """Checkpoints of a comparison."""

    def texts(self, seed: int, name: str) -> list[list[str]]:
        found: list[list[str]] = self.states[f"seed-{seed:03d}-texts-{name}"][1]["texts"]
        return found


class Counting(Reporter):
    """What it is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, float]] = []
        self.done = 0.0

    @contextmanager
    def stage(self, name: str, total: float, unit: str) -> Any:
        self.stages.append((name, total))
        yield self

    def advance(self, done: float = 1, shown: object = None, **figures: float) -> None:
        self.done += done


def rows_of(kind: str, each: int) -> list[dict[str, str]]:
    return [
        {"text": f"A {WORDS[label][n % 3]} {kind} {n}.", "label": name}
        for n in range(each)
        for label, name in enumerate(NAMES)
    ]


def flipped(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [row | {"label": NAMES[row["label"] == NAMES[0]]} for row in rows]


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small models with tokens of their own, and rows to train on, to choose by and to test on."""
    folder = tmp_path_factory.mktemp("files")
    save_pretrained(make_model("gpt2"), make_tokenizer(), folder / "tiny")
    others = ("A great, happy film.", "What a dull, sad story!")
    save_pretrained(make_model("llama"), make_tokenizer(True, others, 100), folder / "student")
    for name, each in (("film", 8), ("story", 5), ("end", 6)):
        write(folder / f"{name}.jsonl", rows_of(name, each))
    return folder


def settings(files: Path, **changes: Any) -> CompareConfig:
    small = {
        "model": {"model_name_or_path": str(files / "tiny"), "device": "cpu"},
        "data": {"dataset": str(files / "film.jsonl")},
        "dev": str(files / "story.jsonl"),
        "test": str(files / "end.jsonl"),
        "methods": FEW,
        "budgets": [2],
        "seeds": 2,
        "tuning_seeds": 1,
        "learning_rates": RATES,
        "train": {"max_steps": 2, "eval_steps": 1, "per_device_train_batch_size": 4},
        "ceiling_steps": 3,
        "generate": {
            "pool": {"texts_per_text": 6},
            "space": {"public_texts": 6},
            "refinement": {"evaluations": 6, "proposals": 1, "places": 1},  # more steps than to a checkpoint
            "initial": {"candidates": 2},
            "writer": {"rounds": 2},
            "label_check": {"max_steps": 1},
            "admm": {"n_outer": 1, "n_inner": 1},
            "lengths": {"distribution": "uniform", "min_tokens": 4, "max_tokens": 8},
        },
    }
    return CompareConfig.model_validate(small | changes)


def arena(config: CompareConfig, data: LabelledData | None = None) -> tuple[Arena, Sets]:
    """What `compare` makes of settings, with checkpoints in memory."""
    lm, kept = load_model(config.model), Sets()
    task = BoundTask(get_task("sst2"), lm.tokenizer, lm.max_length)
    dev, test = (tokenise_data(task, load_data(None, config.other(role))) for role in ("dev", "test"))
    return Arena(config, lm, task, lm, task, data or load_data(None, config.data), dev, test, kept), kept


def told(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what is measured anew every time."""
    return [{key: value for key, value in one.items() if key not in MEASURED} for one in records]


def rates(found: Comparison) -> dict[tuple[str, int], float]:
    return {(row.method, row.budget): row.learning_rate for row in found.rows}


def assert_alike(found: Comparison, whole: Comparison) -> None:
    assert told(found.records) == told(whole.records)
    assert found.path == whole.path
    for mine, other in zip(found.rows, whole.rows, strict=True):
        assert asdict(mine) | {"costs": None} == asdict(other) | {"costs": None}


@pytest.fixture(scope="module")
def everything(files: Path) -> CompareConfig:
    """Nearly all methods, at two budgets, for two seeds."""
    return settings(files, methods=MOST, budgets=[2, 3], path=True)


@pytest.fixture(scope="module")
def whole(everything: CompareConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Counting]:
    reporter = Counting()
    return gradmm.compare(everything, tmp_path_factory.mktemp("whole") / "run", reporter), reporter


# ---- what is there


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
    assert names == LEFT | {"results.parquet", "texts.parquet"}
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


def test_the_rows_of_a_batch_may_change_and_other_settings_may_not(files: Path, tmp_path: Path) -> None:
    plain = settings(files, methods=["real_random"], budgets=[2], seeds=1)

    def go(**generate: Any) -> Comparison:
        changed = plain.generate.model_copy(update=generate)
        return gradmm.compare(plain.model_copy(update={"generate": changed}), tmp_path / "run")

    found = go(per_device_batch_size=4)
    assert go(per_device_batch_size=2) == found
    with pytest.raises(RunFolderError, match=r"settings\.generate\.block_size"):
        go(block_size=7)


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


def test_trainings_differ_by_seed_on_one_set(files: Path) -> None:
    found = gradmm.compare(settings(files, methods=["lm_random"], training_seeds=2, learning_rates=[0.03]))
    assert [(one["data_seed"], one["training_seed"]) for one in found.records] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    a, b, c, _ = found.records
    assert a["distance"] == b["distance"] != c["distance"]
    assert a["dev_loss"] != b["dev_loss"]
    assert found.rows[0].accuracy.count == 2


# ---- what chooses


def test_learning_rates_are_chosen_on_the_development_split_alone(files: Path, tmp_path: Path) -> None:
    methods = ["lm_random", "real_random", "real_all"]
    plain = gradmm.compare(settings(files, methods=methods, budgets=[3]))
    wrong = {
        role: write(tmp_path / f"{role}.jsonl", flipped(rows_of(name, each)))
        for role, name, each in (("dev", "story", 5), ("test", "end", 6))
    }
    other_test = gradmm.compare(settings(files, methods=methods, budgets=[3], test=wrong["test"]))
    assert rates(other_test) == rates(plain)
    for mine, other in zip(plain.records, other_test.records, strict=True):
        assert other["accuracy"] == pytest.approx(1 - mine["accuracy"])
        for key in ("steps", "dev_accuracy", "dev_loss", "distance"):
            assert other[key] == mine[key]
    other_dev = gradmm.compare(settings(files, methods=methods, budgets=[3], dev=wrong["dev"]))
    assert rates(other_dev) != rates(plain)
    assert set(rates(plain).values()) | set(rates(other_dev).values()) == set(RATES)


def test_the_test_split_is_looked_at_once_for_every_training(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Seen(runner.FineTuner):
        def __init__(
            self, lm: Any, task: Any, train: TokenRows, config: Any, dev: TokenRows | None = None
        ) -> None:
            trained.append((len(train), config.max_steps, dev))
            super().__init__(lm, task, train, config, dev)

    trained: list[tuple[int, int, TokenRows | None]] = []
    looked: list[TokenRows] = []
    own = runner.evaluate
    monkeypatch.setattr(runner, "FineTuner", Seen)
    monkeypatch.setattr(
        runner, "evaluate", lambda model, task, rows, *more: looked.append(rows) or own(model, task, rows, *more)
    )
    made, _ = arena(settings(files, methods=["lm_random", "real_all"]))
    made.run(Counting())
    assert [(rows, steps) for rows, steps, _ in trained] == [(4, 2), (4, 2), (16, 3), (16, 3), (4, 2)]
    assert all(dev is made.dev for *_, dev in trained)
    assert len(looked) == len(trained) and all(rows is made.test for rows in looked)


def test_rates_that_are_nearly_the_same_are_trainings_of_their_own(files: Path) -> None:
    made, kept = arena(settings(files, methods=["lm_random"], seeds=1, learning_rates=[0.03, 0.03 * (1 + 1e-9)]))
    assert len(made.run(Counting())) == 1
    assert len([name for name in kept.states if "-trained-" in name]) == 2


# ---- few real rows


def test_few_rows_are_others_for_every_seed_and_no_method_sees_more(files: Path) -> None:
    names = [name for name in METHODS if name not in ("admm", "projection")]
    data = load_data(str(files / "film.jsonl"))
    few = settings(files, methods=names, real_rows_per_class=4, learning_rates=[0.03], seeds=2)
    made, kept = arena(few)
    records = made.run(Counting())
    assert [one["data_seed"] for one in records if one["method"] == "real_all"] == [0, 1]
    assert {one["budget"] for one in records if one["method"] == "real_all"} == {0}
    real = [kept.texts(seed, "real_all-0") for seed in range(2)]
    for seed, own in enumerate(real):
        assert [len(set(texts)) for texts in own] == [4, 4]
        for label in (0, 1):
            assert set(own[label]) < set(data.texts_of(label))
            for name in ("real_random-2", "real_herding-2", "real_k_center-2", "real_coreset-2"):
                assert set(kept.texts(seed, name)[label]) < set(own[label])
            assert kept.texts(seed, "search_and_real-2")[label][2:] == own[label]
    assert len({frozenset(own[0] + own[1]) for own in real}) == 2

    # Where the other rows do not exist, all is the same.
    alone, kept_alone = arena(few.model_copy(update={"real_rows_per_class": None, "seeds": 1}), data.sample(4, 0))
    alone.run(Counting())
    for name in (f"{name}-{0 if name == 'real_all' else 2}" for name in names):
        assert kept_alone.texts(0, name) == kept.texts(0, name), name
    target, other = (own.states["seed-000-target-000000"][0] for own in (kept, kept_alone))
    assert all(bool((target[key] == other[key]).all()) for key in target)


def test_a_budget_beyond_few_rows_is_no_failure(files: Path) -> None:
    methods = ["real_random", "real_coreset", "real_herding", "real_k_center"]
    found = gradmm.compare(
        settings(files, methods=methods, budgets=[4], real_rows_per_class=3, learning_rates=[0.03])
    )
    assert {one["texts"] for one in found.records} == {6}


# ---- another model, a file of one's own


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
        write(tmp_path / f"{role}.jsonl", [{"text": f"{n}", "label": name} for n, name in enumerate(NAMES)])
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
        write(tmp_path / name, rows_of("song", each))
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
    write(tmp_path / "a_b.jsonl", rows_of("part", 2))
    with pytest.raises(RunFolderError) as caught:
        gradmm.compare(config, "run")
    changed = [line.split(":")[:3] for line in str(caught.value).splitlines() if line.startswith("  ")]
    assert [line[0] + line[1] for line in changed] == ["  files.filea_b.jsonl"]
    (tmp_path / "a_b.jsonl").unlink()
    with pytest.raises(DataError, match=r"a_b\.jsonl"):
        gradmm.compare(config, "other")
    assert not (tmp_path / "other").exists()


# ---- interruption


def interrupt_after(saves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control-C at the next checkpoint but so many."""
    left = [saves]

    def save(self: RunFolder, *args: Any) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        own(self, *args)

    own = RunFolder.save_state
    monkeypatch.setattr(RunFolder, "save_state", save)


def test_wherever_a_comparison_is_interrupted_it_ends_the_same(files: Path, tmp_path: Path) -> None:
    generate = settings(files).generate.model_dump() | {"space": {"maps": ["whitened"], "public_texts": 5}}
    config = settings(files, methods=["search", "admm"], path=True, generate=generate)
    undisturbed = gradmm.compare(config, tmp_path / "whole")
    attempts, saves = 0, 1
    while True:  # killed at every checkpoint of the first seed, then at every fifth: the second has the same kinds
        with pytest.MonkeyPatch.context() as patch:
            interrupt_after(saves, patch)
            try:
                found = gradmm.compare(config, tmp_path / "often")
                break
            except KeyboardInterrupt:
                attempts += 1
        saves = 5 if list((tmp_path / "often" / "state").glob("seed-001-*")) else 1
        assert not (tmp_path / "often" / "results.parquet").exists()
    assert attempts >= 19
    assert_alike(found, undisturbed)
    left = [{path.name for path in (tmp_path / name).iterdir()} for name in ("whole", "often")]
    assert left[0] == left[1] == LEFT | {"results.parquet", "texts.parquet"}


@pytest.mark.parametrize("saves", [3, 12])
def test_what_was_done_is_not_done_again(
    saves: int, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    own = RunFolder.save_state
    monkeypatch.setattr(
        RunFolder, "save_state", lambda self, name, *more: made.append(name) or own(self, name, *more)
    )
    config = settings(files, methods=["search", "real_coreset"])
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(saves, patch)
        with pytest.raises(KeyboardInterrupt):
            gradmm.compare(config, tmp_path / "run")
    assert len(made) == saves
    gradmm.compare(config, tmp_path / "run")
    repeated = [name for name, count in Counter(made).items() if count > 1 and "refined" not in name]
    assert repeated == []


# ---- costs


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


# ---- the texts


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
