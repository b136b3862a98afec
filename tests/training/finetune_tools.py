"""Small trainings, and what tells two of them apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradmm.data.task import BoundTask
from gradmm.models import LanguageModel
from gradmm.training.finetune import FineTuner, TrainConfig
from gradmm.training.rows import TokenRows, tokenise

TinyTask = Callable[..., BoundTask]
TEXTS = (
    ("A dull story.", "The film is bad", "sad, so sad", "What a dull end. It makes me feel bad.", "no"),
    ("A fine story.", "The film is great", "happy end", "This makes me feel great. I feel happy!", "yes"),
)
PLAIN = "llama"  # without dropout
FREE = "gpt2"  # with dropout; tied


def rows_of(task: BoundTask, each: int = 5, weights: Sequence[Sequence[float]] | None = None) -> TokenRows:
    return tokenise(task, [own[:each] for own in TEXTS], weights)


def settings(**given: Any) -> TrainConfig:
    small = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "eval_steps": 1}
    return TrainConfig(**small | {"adam_epsilon": 1e-4} | given)


def tuned(lm: LanguageModel, task: BoundTask, rows: TokenRows | None = None, **given: Any) -> FineTuner:
    """A training that has ended."""
    tuner = FineTuner(lm, task, rows or rows_of(task), settings(**given))
    tuner.run()
    return tuner


def out_of_memory(tuner: FineTuner, rows: Sequence[int]) -> Tensor:
    """In place of a training's loss: no batch is small enough."""
    raise torch.OutOfMemoryError("no memory")


def same(a: FineTuner, b: FineTuner) -> bool:
    weights = b.model.snapshot()
    return all(torch.equal(value, weights[name]) for name, value in a.model.snapshot().items())
