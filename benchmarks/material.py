"""What benchmarks on real rows share: the packaged model's material for a file of them, without a run folder."""

from __future__ import annotations

from typing import Any

from gradmm.comparison.material import Material
from gradmm.config import GenerateConfig
from gradmm.data.checks import match_labels
from gradmm.data.presets import get_task
from gradmm.data.sources import DataConfig, load_data
from gradmm.data.task import BoundTask
from gradmm.memory import BatchLimit
from gradmm.models import load_model
from gradmm.training.evaluate import evaluate
from gradmm.training.finetune import FineTuner, TrainConfig
from gradmm.training.rows import TokenRows, tokenise, tokenise_data

TRAINING = TrainConfig(max_steps=60, learning_rate=3e-4, eval_steps=60)
"""For sets of some 50 texts per class; one training is about as good as another near it."""


class Memory:
    """Checkpoints of a run that is never resumed."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def save_state(self, name: str, tensors: Any, facts: Any) -> None:
        """Keeps a state."""
        self._kept[name] = dict(tensors), facts

    def load_state(self, name: str) -> Any:
        """The state that was kept, or None."""
        return self._kept.get(name)


def material(
    file: str, task: str, settings: dict[str, Any], seed: int = 0, budget: int = 1, **data: Any
) -> Material:
    """Material for labelled rows of a file under a ready-made task.

    Args:
        file: of labelled text.
        task: name of the ready-made task.
        settings: of `gradmm generate`.
        seed: of all that is drawn.
        budget: the most texts per class that the pool is for.
        data: which rows; as in `data:` of a configuration.
    """
    lm, rows = load_model("demo"), load_data(file, DataConfig(seed=seed, **data))
    bound = BoundTask(match_labels(get_task(task), rows), lm.tokenizer, lm.max_length)
    return Material(lm, bound, rows, GenerateConfig.model_validate(settings), seed, Memory(), budget)


def test_rows(own: Material, file: str, each: int) -> TokenRows:
    """Rows of another file, of the same classes, at most so many of each."""
    names = list(own.task.task.label_names)
    return tokenise_data(own.task, load_data(file, DataConfig(classes=names, max_rows_per_class=each)))


def accuracy(
    own: Material, texts: list[list[str]], test: TokenRows, seed: int, config: TrainConfig = TRAINING
) -> float:
    """Of the model after training on texts per class."""
    rows = tokenise(own.task, texts)
    tuner = FineTuner(own.lm, own.task, rows, config.model_copy(update={"seed": seed}))
    tuner.run()
    return evaluate(tuner.model, own.task, test, BatchLimit(config.per_device_eval_batch_size)).accuracy
