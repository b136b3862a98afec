"""What a comparison chooses by: the development split alone; and which rows a method sees where they are few."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import gradmm
from compare_tools import RATES, Counting, arena, rates, settings
from gradmm.comparison import runner
from gradmm.comparison.methods import METHODS
from gradmm.data.sources import load_data
from gradmm.training.rows import TokenRows
from labelled_rows import flipped, rows_of, written


def test_learning_rates_are_chosen_on_the_development_split_alone(files: Path, tmp_path: Path) -> None:
    methods = ["lm_random", "real_random", "real_all"]
    plain = gradmm.compare(settings(files, methods=methods, budgets=[3]))
    wrong = {
        role: str(written(tmp_path / f"{role}.jsonl", flipped(rows_of(name, each))))
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
