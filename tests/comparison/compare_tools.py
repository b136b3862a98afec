"""Small settings for comparisons, and what tells two of them apart."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradmm.comparison.compare import Comparison
from gradmm.comparison.config import CompareConfig
from gradmm.comparison.methods import METHODS
from gradmm.comparison.runner import Arena
from gradmm.data.presets import get_task
from gradmm.data.sources import LabelledData, load_data
from gradmm.data.task import BoundTask
from gradmm.models import load_model
from gradmm.progress import Reporter
from gradmm.training.rows import tokenise_data
from store_tools import Kept

RATES = (1e-6, 0.03)
MEASURED = ("seconds_texts", "seconds_training", "peak_bytes_texts", "peak_bytes_training")  # another every time
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
