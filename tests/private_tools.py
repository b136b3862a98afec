"""Small private runs, and reporters and flags for them."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradmm.config import GenerateConfig
from gradmm.pipeline import generate
from gradmm.progress import Reporter
from gradmm.result import Result

COUNTS = (23, 19)
ROWS = [
    (f"The film is {word}, a story {n}.", label)
    for label, word in enumerate(("bad", "great"))
    for n in range(COUNTS[label])
]
FEW = [*ROWS[:4], *ROWS[-4:]]
PRIVACY = {
    "neighboring_relation": "add_or_remove_one",
    **{"target_epsilon": 3.0, "target_delta": 1e-5, "num_rows": 2000, "accountant": "rdp"},
}
SMALL = {
    **{"texts_per_class": 2, "pool": {"texts_per_text": 3}, "writer": {"rounds": 1}},
    "refinement": {"evaluations": 2, "proposals": 2, "places": 1},
    "space": {"public_texts": 4},
    "lengths": {"distribution": "uniform", "min_tokens": 4, "max_tokens": 8},
}
TILTED = {"writer": {"rounds": 2}}
"""With two releases: shares of words steer the writer."""
SETS = [
    *("texts_per_class=2", "pool.texts_per_text=3", "writer.rounds=1", "refinement.evaluations=2"),
    *("refinement.proposals=2", "refinement.places=1", "space.public_texts=4", "lengths.distribution=uniform"),
    *("lengths.min_tokens=4", "lengths.max_tokens=8"),
]
BUDGET = ["--epsilon", "2", "--delta", "1e-5", "--num-rows", "2000"]
RELATION = ["--neighboring-relation", "add_or_remove_one"]
BASE = ["--task", "sst2", *(word for one in SETS for word in ("--set", one))]
COMMAND = [*BASE, *BUDGET, *RELATION]


def config(**changes: Any) -> GenerateConfig:
    return GenerateConfig.model_validate(SMALL | {"privacy": PRIVACY} | changes)


def make(lm: Any, rows: Any, folder: Path, reporter: Reporter | None = None, **changes: Any) -> Result:
    return generate(lm, "sst2", rows, config(**changes), folder, reporter)


class StopAt(Reporter):
    """Control-C where a stage begins."""

    def __init__(self, name: str) -> None:
        self.name = name

    @contextmanager
    def stage(self, name: str, total: float, unit: str) -> Any:
        if name == self.name:
            raise KeyboardInterrupt
        with super().stage(name, total, unit) as stage:
            yield stage
