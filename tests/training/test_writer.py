"""The writer: its loss against the model's own, and what it has learnt."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from gradmm.errors import NonFiniteError, OutOfMemoryError
from gradmm.training import writer
from gradmm.training.trainable import LoraSettings, TrainableModel
from gradmm.training.writer import Example, WriterConfig, next_token_loss, tune_writer
from tiny_models import TinyLM
from writer_oracles import literal_loss

EXAMPLES: list[Example] = [([3, 4], [5, 6, 7]), ([8], [9]), ([3, 4, 5, 6], [7, 8, 9, 10, 11, 12])]
MODELS = pytest.mark.parametrize("name", ["llama", "gpt2"])


def config(**given: Any) -> WriterConfig:
    return WriterConfig(**{"per_device_train_batch_size": 2, "num_train_epochs": 2, "learning_rate": 1e-2} | given)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@MODELS
def test_the_loss_is_that_of_the_texts_tokens_alone(tiny_lm: TinyLM, name: str) -> None:
    model = TrainableModel(tiny_lm(name))
    model.model.eval()
    loss = next_token_loss(model, EXAMPLES)
    torch.testing.assert_close(loss, literal_loss(model.model, EXAMPLES), rtol=1e-5, atol=1e-5)
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in model.parameters().items() if weight.grad is not None}
    model.model.zero_grad()
    literal_loss(model.model, EXAMPLES).backward()
    for name_, weight in model.parameters().items():
        torch.testing.assert_close(found[name_], weight.grad, rtol=1e-3, atol=1e-5, msg=name_)


@MODELS
def test_one_update_is_that_of_adamw_on_the_mean_over_tokens(tiny_lm: TinyLM, name: str) -> None:
    lm = tiny_lm(name)
    tuned = tune_writer(lm, EXAMPLES[:1], config(per_device_train_batch_size=1, num_train_epochs=1), generator())
    model = copy.deepcopy(lm.model).requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0)
    (literal_loss(model, EXAMPLES[:1]) / 3).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    seen = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(
        tuned.model(seen).logits, model(seen).logits, rtol=1e-2, atol=1e-3
    )  # Adam's first step is the gradient's sign, which rounding turns where a gradient is next to 0


@pytest.mark.parametrize("lora", [None, LoraSettings(r=2)], ids=["all weights", "adapters"])
def test_the_writer_learns_and_the_lm_stays_as_it_is(tiny_lm: TinyLM, lora: LoraSettings | None) -> None:
    lm = tiny_lm("llama")
    before = lm.fingerprint()
    tuned = tune_writer(lm, EXAMPLES, config(num_train_epochs=20, lora=lora), generator())
    assert lm.fingerprint() == before
    assert float(literal_loss(tuned.model, EXAMPLES)) < 0.8 * float(literal_loss(lm.model, EXAMPLES))
    assert not any(weight.requires_grad for weight in tuned.model.parameters())


def test_the_same_seed_gives_the_same_writer(tiny_lm: TinyLM) -> None:
    prints = [tune_writer(tiny_lm("gpt2"), EXAMPLES, config(), generator(s)).fingerprint() for s in (1, 1, 2)]
    assert prints[0] == prints[1] != prints[2]


def test_smaller_passes_change_nothing_but_rounding(tiny_lm: TinyLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three texts at once are too many for the memory."""
    lm, seen = tiny_lm("llama"), torch.tensor([[3, 4, 5]])
    whole = tune_writer(lm, EXAMPLES, config(per_device_train_batch_size=3), generator())
    real, sizes = next_token_loss, list[int]()

    def scarce(model: TrainableModel, part: list[Example]) -> torch.Tensor:
        sizes.append(len(part))
        loss = real(model, part)
        if len(part) > 1:
            loss.backward()  # type: ignore[no-untyped-call]
            raise MemoryError("after a part of the gradient was left")
        return loss

    monkeypatch.setattr(writer, "next_token_loss", scarce)
    halved = tune_writer(lm, EXAMPLES, config(per_device_train_batch_size=3), generator())
    torch.testing.assert_close(whole.model(seen).logits, halved.model(seen).logits, rtol=1e-3, atol=1e-4)
    assert sizes == [3, 1, 1, 1, 1, 1, 1]  # 2 updates; tried once


def test_what_does_not_fit_and_what_diverges_is_said(tiny_lm: TinyLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(model: TrainableModel, part: list[Example]) -> torch.Tensor:
        raise MemoryError("full")

    monkeypatch.setattr(writer, "next_token_loss", full)
    with pytest.raises(OutOfMemoryError, match="a single text does not fit into memory while tuning the writer"):
        tune_writer(tiny_lm("llama"), EXAMPLES, config(), generator())
    monkeypatch.setattr(writer, "next_token_loss", lambda model, part: torch.tensor(float("nan")))
    told = r"loss of the writer is nan; lower writer.learning_rate \(it is 0.01\)"
    with pytest.raises(NonFiniteError, match=told):
        tune_writer(tiny_lm("llama"), EXAMPLES, config(), generator())


@pytest.mark.parametrize("given", [{"rounds": 0}, {"share": 0}, {"share": 1.5}, {"learning_rate": 0}, {"x": 1}])
def test_settings_that_mean_nothing_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        WriterConfig(**given)
