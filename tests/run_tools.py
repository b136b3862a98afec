"""Small runs on random models, reporters that end them or forbid them, and what they left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from gradmm.config import GenerateConfig
from gradmm.data.sources import LabelledData, load_data
from gradmm.progress import Reporter, Stage

DATA_FILES = ("data/synthetic.jsonl", "data/synthetic.parquet")
KEPT = {"config.yaml", "environment.json", "fingerprint.json", "metrics.json", "run.log", "SHA256SUMS"}
"""What every finished folder holds, of whatever verb."""
FILES = KEPT | set(DATA_FILES)
FORMS = ["as_written", "lowercase"]
TINY_ROWS = [
    *[(f"The film is bad, a dull story {n}.", 0) for n in range(5)],
    *[(f"A great film is fine, happy {n}.", 1) for n in range(7)],
]


def admm_config(**changes: Any) -> GenerateConfig:
    small = {"solver": "admm", "texts_per_class": 3, "block_size": 3, "initial": {"candidates": 2}}
    admm = {"n_outer": 2, "n_inner": 1, "relative_tolerance": 0}
    lengths, space = {"distribution": "uniform", "min_tokens": 4, "max_tokens": 6}, {"public_texts": 3}
    given = {**small, "admm": admm, "lengths": lengths, "space": space, **changes}
    return GenerateConfig.model_validate(given)


def search_config(**changes: Any) -> GenerateConfig:
    small = {
        **{"solver": "search", "texts_per_class": 3, "block_size": 3, "references": False},
        "space": {"public_texts": 3},
        "shrinkage": {"weight": 0},  # the rows are few, and what that does is told in test_shrinking
        "writer": {"rounds": 1},
        "refinement": {"evaluations": 6, "proposals": 3, "places": 2},
        "initial": {"candidates": 2},
        "admm": {"n_outer": 1, "n_inner": 1},
        "lengths": {"distribution": "uniform", "min_tokens": 4, "max_tokens": 8},
    }
    # Of all the forms that there are, and of who learns labels, test_forming and test_teaching tell.
    pool = {"texts_per_text": 6, "forms": FORMS, **changes.get("pool", {})}
    check = {"reader": "model", **changes.get("label_check", {})}
    return GenerateConfig.model_validate({**small, **changes, "pool": pool, "label_check": check})


@cache
def tiny_data() -> LabelledData:
    return load_data(TINY_ROWS)


class Interrupting(Reporter):
    """Control-C after `left` advances, over all stages."""

    def __init__(self, left: int) -> None:
        self.left = left

    @contextmanager
    def stage(self, name: str, total: float, unit: str) -> Iterator[Stage]:
        yield self  # type: ignore[misc]

    def advance(self, done: float = 1, shown: object = None, **figures: float) -> None:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1


class Idle(Reporter):
    """Nothing may be under way."""

    def stage(self, name: str, total: float, unit: str) -> Any:
        pytest.fail(f"work was begun: stage {name!r}")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def data_bytes(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in DATA_FILES]


def figures(folder: Path) -> dict[str, Any]:
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["seconds"]
    return metrics
