"""`gradmm.footprint`: what a run takes at its fullest is measured on full batches of its own passes."""

from __future__ import annotations

from typing import Any

import pytest

from gradmm import footprint
from gradmm.config import GenerateConfig
from gradmm.footprint import kept_bytes, measure_peak
from gradmm.gradients.spaces import SpaceConfig
from gradmm.solvers.kernels import HELD_BYTES
from gradmm.workload import GRADIENTS

ALONE = {"reader": "model"}
WHOLE = {"loss": "vocabulary", "maps": [], "centred": False}


def config(**settings: Any) -> GenerateConfig:
    small = {
        "per_device_batch_size": 2,
        "writer": {"rounds": 1},
        "label_check": ALONE,
        "lengths": {"max_tokens": 16},
    }
    return GenerateConfig.model_validate(small | settings)


@pytest.fixture(scope="module")
def weights(demo_lm: Any) -> int:
    return 4 * sum(weight.numel() for weight in demo_lm.model.parameters())


def test_targets_candidates_and_the_writer_are_kept(demo_lm: Any, demo_task: Any, weights: int) -> None:
    def kept(*counts: int, **settings: Any) -> int:
        return kept_bytes(demo_lm, demo_task, config(**settings), counts)

    size, width = demo_lm.head.weight_VD.shape
    targets, each = 2 * size * (width + 1) * 4, (size + width) * 4
    assert kept(3, 5, solver="admm", space=WHOLE) == targets
    pool = {"texts_per_text": 10}
    assert kept(3, 5, space=WHOLE, pool=pool) == targets + 80 * each
    assert kept(3, 5, space=WHOLE, pool=pool, writer={"rounds": 2}) == targets + 80 * each + weights
    assert kept(3, 10**9, space=WHOLE, pool=pool) == targets + HELD_BYTES, "others are in a file"
    assert kept(3, 5, pool=pool) < kept(3, 5, space=WHOLE, pool=pool), "of the verbalisers alone"
    assert SpaceConfig().loss == "verbalisers"


@pytest.mark.parametrize("solver", ["search", "admm"])
def test_passes_that_the_run_makes_are_made_and_no_others(
    demo_lm: Any, demo_task: Any, monkeypatch: pytest.MonkeyPatch, solver: str
) -> None:
    """Real rows as long as they are, and an update of the reader where one learns."""
    made, lessons = list[tuple[str, int]](), list[int]()

    class Bench:
        def __init__(self, lm: Any, task: Any, settings: GenerateConfig) -> None:
            self.length = settings.lengths.max_tokens

        def passes(self) -> dict[str, Any]:
            kinds = ("gradients", "readability", "writing", "tuning", "x-update")
            return {kind: (2, lambda kind=kind: made.append((kind, self.length))) for kind in kinds}

    monkeypatch.setattr(footprint, "Bench", Bench)
    monkeypatch.setattr(footprint, "teach", lambda lm, task, texts, *given: lessons.append(len(texts[0])))
    measure_peak(demo_lm, demo_task, config(solver=solver, label_check={}), (2, 2), 90)
    kinds = {
        "search": ["gradients", "readability", "writing", "tuning"],
        "admm": ["gradients", "writing", "x-update"],
    }
    assert made == [*((kind, 16) for kind in kinds[solver]), (GRADIENTS, 90)]
    assert lessons == ([16] if solver == "search" else [])


def test_longer_rows_and_larger_batches_take_more(demo_lm: Any, demo_task: Any) -> None:
    def peak(longest: int = 20, **settings: Any) -> int:
        found = measure_peak(demo_lm, demo_task, config(**settings), (2, 2), longest)
        if found is None:
            pytest.skip("this system does not tell of a part of a process's life")
        return found

    small, short = peak(), peak(per_device_batch_size=24)  # first: what is freed may stay with the process
    assert peak(longest=400, per_device_batch_size=24) > short + 2**24
    assert peak(per_device_batch_size=128) > small + 2**25


def test_a_system_that_does_not_tell_is_no_error(
    demo_lm: Any, demo_task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradmm.resources._reset", lambda: False)
    assert measure_peak(demo_lm, demo_task, config(), (2, 2), 20) is None
