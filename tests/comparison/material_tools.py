"""Rows and small settings for the methods of a comparison, and what is measured of their texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradmm.comparison.material import Material
from gradmm.gradients.target import ReleasedTarget
from gradmm.measures import Measured, measure
from gradmm.memory import BatchLimit

COUNT = 3
WORDS = (("bad", "dull", "sad"), ("great", "fine", "happy"))
ROWS = [
    (f"A {WORDS[label][n % 3]} {thing} and a {WORDS[label][n % 2]} end {n}.", label)
    for n, thing in enumerate(("film", "story", "day", "cast", "song", "plot", "part", "line", "view"))
    for label in (0, 1)
]
SMALL: dict[str, Any] = {
    "pool": {"texts_per_text": 6},
    "space": {"public_texts": 9},  # as many as the first round has
    "refinement": {"evaluations": 6, "proposals": 3, "places": 2},
    "initial": {"candidates": 2},
    "writer": {"rounds": 2},
    "label_check": {"max_steps": 2},
    "admm": {"n_outer": 1, "n_inner": 2},
    "lengths": {"distribution": "uniform", "min_tokens": 4, "max_tokens": 8},
    "block_size": 3,
}
MakeMaterial = Callable[..., Material]


def measured(material: Material, texts: list[list[str]], target: ReleasedTarget | None = None) -> Measured:
    return measure(
        material.lm, material.task, target or material.target, material.config.distance, texts, BatchLimit()
    )
