"""Trainings that cannot be: each ends with the reason and the remedy."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from finetune_tools import PLAIN, TinyTask, out_of_memory, rows_of, settings, tuned
from gradmm.errors import ConfigError, NonFiniteError, OutOfMemoryError
from gradmm.training.finetune import FineTuner
from tiny_models import TinyLM


def test_a_row_that_does_not_fit_into_memory_ends_a_training(
    tiny_lm: TinyLM, tiny_task: TinyTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FineTuner, "_loss", out_of_memory)
    with pytest.raises(OutOfMemoryError) as caught:
        tuned(tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN)))
    assert str(caught.value) == (
        "a single text does not fit into memory while training (no memory); what would: rows with fewer tokens, "
        "adapters (lora), bf16, optim addax, a smaller model, or a device with more memory (model.device)"
    )


def test_other_errors_are_not_taken_for_want_of_memory(
    tiny_lm: TinyLM, tiny_task: TinyTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(tuner: FineTuner, rows: Sequence[int]) -> Tensor:
        raise RuntimeError("a bug")

    monkeypatch.setattr(FineTuner, "_loss", loss)
    for optim in ("adamw", "addax"):
        with pytest.raises(RuntimeError, match=r"^a bug$"):
            tuned(tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN)), optim=optim)


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
    monkeypatch.setattr(FineTuner, "_loss", out_of_memory)
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
