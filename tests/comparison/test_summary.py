"""What records of a comparison say."""

from __future__ import annotations

from typing import Any

import pytest

from gradmm.comparison.runner import choose_rates
from gradmm.comparison.statistics import interval
from gradmm.comparison.summary import summarise


def record(method: str, budget: int, seed: int, accuracy: float, **more: Any) -> dict[str, Any]:
    return {
        "method": method,
        "kind": "synthetic",
        "budget": budget,
        "data_seed": seed,
        "training_seed": 0,
        "learning_rate": 1e-4,
        "dev_accuracy": accuracy,
        "dev_loss": 1.0,
        "accuracy": accuracy,
        "macro_f1": accuracy - 0.1,
        "distance": 0.25 * (seed + 1),
        "log_perplexity": 4.0,
        "seconds_texts": 2.0,
        "peak_bytes_texts": None,
        "seconds_training": 3.0,
        "peak_bytes_training": 8,
    } | more


def test_rows_are_means_with_intervals_and_paired_differences_to_ours() -> None:
    ours, theirs = [0.70, 0.74, 0.72], [0.69, 0.70, 0.71]
    records = [record("search", 10, seed, value) for seed, value in enumerate(ours)]
    records += [record("lm_random", 10, seed, value) for seed, value in enumerate(theirs)]
    first, second = summarise(records)
    assert (first.method, first.budget, second.method) == ("search", 10, "lm_random")
    assert first.accuracy == interval(ours) and first.ours_minus_this is None
    assert second.ours_minus_this == interval([a - b for a, b in zip(ours, theirs, strict=True)])
    assert second.macro_f1.mean == pytest.approx(0.6) and second.distance == pytest.approx(0.5)
    assert second.costs["peak_bytes_texts"] is None and second.costs["seconds_training"] == 3.0


def test_runs_of_one_set_count_as_one() -> None:
    values = {(0, 0): 0.5, (0, 1): 0.7, (1, 0): 0.8, (1, 1): 0.8}
    records = [record("search", 5, d, value, training_seed=t) for (d, t), value in values.items()]
    assert summarise(records)[0].accuracy == interval([0.6, 0.8])


def test_budgets_that_ours_was_not_run_at_have_no_difference() -> None:
    rows = summarise([record("search", 5, 0, 0.5), record("lm_random", 6, 0, 0.9)])
    assert rows[1].ours_minus_this is None and rows[1].accuracy.low is None
    assert rows[1].difference(5) is None and rows[1].ours_minus_this_at == {}


def test_all_rows_are_held_against_ours_of_every_budget() -> None:
    ours, every = {5: [0.5, 0.7, 0.6], 9: [0.8, 0.9, 0.8]}, [0.9, 0.8, 0.85]
    records = [record("search", budget, s, one) for budget, own in ours.items() for s, one in enumerate(own)]
    records += [record("real_all", 0, s, one) for s, one in enumerate(every)]
    whole = summarise(records)[-1]
    assert whole.budget == 0 and whole.ours_minus_this is None
    for budget, own in ours.items():
        assert whole.difference(budget) == interval([a - b for a, b in zip(own, every, strict=True)])
    assert whole.difference(7) is None and set(whole.ours_minus_this_at) == {"5", "9"}


def test_where_all_rows_are_the_same_for_every_seed_they_are_held_against_ours_of_that_one() -> None:
    rows = summarise([record("search", 5, 0, 0.5), record("search", 5, 1, 0.7), record("real_all", 0, 0, 0.9)])
    assert rows[1].difference(5) == interval([0.5 - 0.9])


def test_the_rate_is_the_best_on_the_development_split_and_not_on_the_test_split() -> None:
    records = [
        record("search", 5, seed, test, learning_rate=rate, dev_accuracy=dev, dev_loss=loss)
        for seed in (0, 1)
        for rate, dev, loss, test in ((1e-4, 0.6, 0.9, 0.9), (3e-4, 0.7, 0.8, 0.1), (1e-3, 0.7, 0.7, 0.2))
    ]
    assert choose_rates(records) == {("search", 5): 1e-3}
    records.append(record("search", 5, 2, 0.5, learning_rate=1e-4, dev_accuracy=1.0))
    records.append(record("search", 5, 3, 0.5, learning_rate=1e-4, dev_accuracy=1.0))
    assert choose_rates(records) == {("search", 5): 1e-4}
