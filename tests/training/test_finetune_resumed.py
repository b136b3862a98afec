"""Trainings that go on from a checkpoint, and trainings that cannot be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from finetune_tools import FREE, PLAIN, TinyTask, rows_of, same, settings, tuned
from gradmm.errors import ConfigError, NonFiniteError, OutOfMemoryError
from gradmm.store import RunFolder
from gradmm.training.finetune import FineTuner
from gradmm.training.trainable import LoraSettings
from tiny_models import TinyLM

OPTIMIZERS = {
    "adamw": {"weight_decay": 0.1},
    "sgd": {"momentum": 0.9},
    "addax": {"addax_long_tokens": 12, "learning_rate": 1e-3},
    "adapters": {"lora": LoraSettings(r=2), "optim": "adamw"},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_training_goes_on_from_every_step_bit_for_bit(
    name: str, tiny_lm: TinyLM, tiny_task: TinyTask, tmp_path: Path
) -> None:
    lm, task = tiny_lm(FREE), tiny_task(tiny_lm(FREE))
    rows = rows_of(task, weights=[[1, 2, 1, 1, 0.5], [1] * 5])
    given = {"max_steps": 5, "eval_steps": 2, "warmup_steps": 2, "optim": name} | OPTIMIZERS[name]

    def tuner() -> FineTuner:
        return FineTuner(lm, task, rows, settings(**given), rows_of(task, 2))

    whole, moving = tuner(), tuner()
    with RunFolder(tmp_path / "run", {}) as folder:
        folder.save_state("0", moving.tensors(), moving.facts())
        whole.run()
        moving.run(lambda state: folder.save_state(str(state.step), moving.tensors(), moving.facts()))
        assert same(whole, moving)  # to be looked at changes nothing
        for step in range(6):
            torch.manual_seed(step)  # whatever was drawn elsewhere
            later, kept = tuner(), folder.load_state(str(step))
            assert kept is not None
            later.load(*kept)
            assert later.state.step == step
            later.run()
            assert same(later, whole), step
            assert later.state == whole.state
            assert later.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]
    assert whole.state.best_step is not None
    assert not all(
        torch.equal(value, start)
        for value, start in zip(whole.model.snapshot().values(), tuner().model.snapshot().values(), strict=True)
    )


def test_a_checkpoint_tells_how_much_fits_into_memory(tiny_lm: TinyLM, tiny_task: TinyTask) -> None:
    lm, task = tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN))
    first, later = (FineTuner(lm, task, rows_of(task), settings()) for _ in range(2))
    first.limit.size, first.eval_limit.size = 1, 3
    later.load(first.tensors(), json.loads(json.dumps(first.facts())))
    assert (later.limit.size, later.eval_limit.size) == (1, 3)


def test_numbers_that_are_not_finite_end_a_training(tiny_lm: TinyLM, tiny_task: TinyTask) -> None:
    lm, task = tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN))
    with pytest.raises(NonFiniteError) as caught:
        tuned(lm, task, optim="sgd", learning_rate=1e30, max_grad_norm=0)
    told = "the loss is nan in step 2 of the training; lower learning_rate (it is 1e+30), or set bf16 to false"
    assert str(caught.value) == told


def test_a_gradient_that_is_not_finite_moves_no_weight(
    tiny_lm: TinyLM, tiny_task: TinyTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, task, own = tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN)), FineTuner._loss
    monkeypatch.setattr(FineTuner, "_loss", lambda *args: own(*args) * 1e38)
    for norm in (0, 1):
        tuner = FineTuner(lm, task, rows_of(task), settings(max_grad_norm=norm))
        with pytest.raises(NonFiniteError, match=r"^the (loss|gradient's norm) is (inf|nan) in step 1 of the "):
            tuner.run()
        start = dict(lm.model.named_parameters())
        assert all(torch.equal(value, start[name]) for name, value in tuner.model.snapshot().items())


def test_addax_says_what_would_fit_into_memory(
    tiny_lm: TinyLM, tiny_task: TinyTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(tuner: FineTuner, rows: Sequence[int]) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(FineTuner, "_loss", loss)
    with pytest.raises(OutOfMemoryError) as caught:
        tuned(tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN)), optim="addax")
    assert str(caught.value) == (
        "step 1 of addax does not fit into memory; lower per_device_train_batch_size (it is 4), or "
        "addax_long_tokens (it is 170), so that fewer rows are backpropagated through"
    )


def test_early_stopping_needs_a_development_split(tiny_lm: TinyLM, tiny_task: TinyTask) -> None:
    with pytest.raises(ConfigError) as caught:
        tuned(tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN)), early_stopping_patience=3)
    assert str(caught.value) == (
        "early_stopping_patience is 3 but there is no development split to stop by; give one (dev, or "
        "dev_fraction), or leave it out"
    )


def test_addax_accumulates_nothing() -> None:
    with pytest.raises(
        ValidationError, match="addax applies gradients while they are computed and can accumulate"
    ):
        settings(optim="addax", gradient_accumulation_steps=2)
