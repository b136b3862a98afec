"""What the development split decides, and nothing else does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from finetune_tools import FREE, PLAIN, TinyTask, rows_of, settings
from gradmm.labelling import label_log_probs
from gradmm.training import finetune
from gradmm.training.evaluate import judge
from gradmm.training.finetune import FineTuner, TrainState
from tiny_models import TinyLM


def scripted(monkeypatch: pytest.MonkeyPatch, scores: Sequence[tuple[float, float]]) -> None:
    """Evaluations that find these accuracies and losses, in turn."""
    left, real = list(scores), finetune.evaluate

    def found(*args: Any) -> Any:
        accuracy, loss = left.pop(0)
        return type(real(*args))(4, accuracy, 0.0, (), 0.0, loss, ())

    monkeypatch.setattr(finetune, "evaluate", found)


@pytest.mark.parametrize(
    ("scores", "best", "last"),
    [
        ([(0.5, 1.0), (0.7, 0.9), (0.6, 0.5), (0.7, 1.0), (0.7, 0.9)], 4, 10),  # what is no better changes nothing
        ([(0.5, 1.0), (0.5, 0.9), (0.5, 0.8), (0.5, 0.7), (0.5, 0.6)], 10, 10),
        ([(0.9, 1.0), (0.5, 0.9), (0.8, 0.8), (0.8, 0.7)], 2, 8),  # three without a better one
    ],
)
def test_the_best_weights_come_out(
    scores: list[tuple[float, float]],
    best: int,
    last: int,
    tiny_lm: TinyLM,
    tiny_task: TinyTask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm, task, kept = tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN)), {}
    config = settings(max_steps=10, eval_steps=2, early_stopping_patience=3)
    tuner = FineTuner(lm, task, rows_of(task), config, rows_of(task, 2))
    scripted(monkeypatch, scores)
    state = tuner.run(lambda state: kept.update({state.step: tuner.model.snapshot()}))
    assert (state.best_step, state.step) == (best, last)
    assert [(line["step"], line["accuracy"], line["loss"]) for line in state.history] == [
        (2 * at, *score) for at, score in enumerate(scores, 1)
    ]
    assert all(torch.equal(value, kept[best][name]) for name, value in tuner.model.snapshot().items())
    assert best == last or not all(torch.equal(kept[best][name], kept[last][name]) for name in kept[best])


def test_figures_of_the_development_split_are_those_of_the_weights_then(
    tiny_lm: TinyLM, tiny_task: TinyTask
) -> None:
    lm, task = tiny_lm(FREE), tiny_task(tiny_lm(FREE))
    rows, dev = rows_of(task), rows_of(task, 2)
    tuner = FineTuner(lm, task, rows, settings(max_steps=5, eval_steps=2, optim="sgd"), dev)
    found = []
    tuner.run(lambda state: found.append(judge(label_log_probs(tuner.model, task, dev.ids), dev.labels)))
    assert [line["step"] for line in tuner.state.history] == [2, 4, 5]  # the last step is always looked at
    for line in tuner.state.history:
        then = found[int(line["step"]) - 1]
        assert (line["accuracy"], line["loss"]) == (then.accuracy, then.loss)


def test_without_a_development_split_the_last_weights_are_kept(tiny_lm: TinyLM, tiny_task: TinyTask) -> None:
    lm, task, kept = tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN)), []
    tuner = FineTuner(lm, task, rows_of(task), settings(eval_steps=2))
    state = tuner.run(lambda state: kept.append(tuner.model.snapshot()))
    assert state.best_step is None
    assert [list(line) for line in state.history] == [["step", "train_loss"]] * 2
    assert all(torch.equal(value, kept[-1][name]) for name, value in tuner.model.snapshot().items())


def test_no_steps_leave_the_model_as_it_was(tiny_lm: TinyLM, tiny_task: TinyTask) -> None:
    lm, task = tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN))
    tuner = FineTuner(lm, task, rows_of(task), settings(max_steps=0), rows_of(task, 2))
    assert tuner.run() == TrainState()
    assert tuner.model.language_model().fingerprint() == lm.fingerprint()
