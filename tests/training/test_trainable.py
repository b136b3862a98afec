"""A model in training: what it reads, what moves, what comes out."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradmm.data.task import BoundTask
from gradmm.errors import ConfigError
from gradmm.labelling import label_log_probs, own_log_probs
from gradmm.models import LanguageModel
from gradmm.training.trainable import LoraSettings, TrainableModel
from tiny_models import TinyLM, make_model, make_tokenizer

TinyTask = Callable[..., BoundTask]
TEXTS = ("The film is great.", "A dull story with a bad end.", "A")
LORA = LoraSettings(r=4, lora_alpha=64)


def ids(task: BoundTask) -> list[list[int]]:
    return task.texts_ids(TEXTS)


def weights_of(lm: LanguageModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in lm.model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def descend(model: TrainableModel, task: BoundTask, rate: float = 0.1) -> None:
    """A step of gradient descent."""
    weights = list(model.parameters().values())
    loss = -own_log_probs(model, task, ids(task), [0, 1, 1]).sum()
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
        if gradient is not None:
            with torch.no_grad():
                weight.sub_(rate * gradient)


def test_it_reads_as_the_model_that_it_is_a_copy_of(each_tiny_lm: LanguageModel, tiny_task: TinyTask) -> None:
    task, before = tiny_task(each_tiny_lm), weights_of(each_tiny_lm)
    model = TrainableModel(each_tiny_lm)
    expected = label_log_probs(each_tiny_lm, task, ids(task))
    torch.testing.assert_close(label_log_probs(model, task, ids(task)), expected, atol=1e-5, rtol=1e-5)
    assert model.parameters().keys() <= dict(model.model.named_parameters()).keys()
    descend(model, task)
    assert not torch.equal(label_log_probs(model, task, ids(task)), expected)
    assert same(weights_of(each_tiny_lm), before)  # the source stays as it is
    assert not any(weight.requires_grad for weight in each_tiny_lm.model.parameters())


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "recurrent_gemma"])
@pytest.mark.parametrize("lora", [None, LORA])
def test_the_language_model_is_what_was_trained(
    kind: str, lora: LoraSettings | None, tiny_lm: TinyLM, tiny_task: TinyTask
) -> None:
    task = tiny_task(tiny_lm(kind))
    model = TrainableModel(tiny_lm(kind), lora)
    for _ in range(2):  # the first moves only one of an adapter's two factors
        descend(model, task)
    made, trained = model.language_model(), label_log_probs(model, task, ids(task))
    found = label_log_probs(made, task, ids(task))
    torch.testing.assert_close(found, trained, atol=1e-4 if lora else 0, rtol=1e-4 if lora else 0)
    assert not torch.allclose(found, label_log_probs(tiny_lm(kind), task, ids(task)), atol=1e-2)
    assert made.model.state_dict().keys() == tiny_lm(kind).model.state_dict().keys()
    assert type(made.model) is type(tiny_lm(kind).model)
    assert made.name == tiny_lm(kind).name
    descend(model, task)  # what came out is a copy
    assert torch.equal(label_log_probs(made, task, ids(task)), found)


@pytest.mark.parametrize(("kind", "is_tied"), [("gpt2", True), ("qwen3", True), ("llama", False)])
@pytest.mark.parametrize("lora", [None, LORA])
def test_tied_weights_stay_tied(
    kind: str, is_tied: bool, lora: LoraSettings | None, tiny_lm: TinyLM, tiny_task: TinyTask
) -> None:
    model = TrainableModel(tiny_lm(kind), lora)
    descend(model, tiny_task(tiny_lm(kind)))
    model.restore(model.snapshot())
    for held in (model.model, model.language_model().model):
        ends = held.get_input_embeddings().weight, held.get_output_embeddings().weight
        assert (ends[0] is ends[1]) == is_tied
        assert (ends[0].data_ptr() == ends[1].data_ptr()) == is_tied
    moved = model.parameters()
    assert len({weight.data_ptr() for weight in moved.values()}) == len(moved)


def test_a_snapshot_is_a_copy_and_can_be_put_back(tiny_lm: TinyLM, tiny_task: TinyTask) -> None:
    model, task = TrainableModel(tiny_lm("gpt2")), tiny_task(tiny_lm("gpt2"))
    before, read = model.snapshot(), label_log_probs(model, task, ids(task))
    descend(model, task)
    assert not torch.equal(label_log_probs(model, task, ids(task)), read)
    model.restore(before)
    assert torch.equal(label_log_probs(model, task, ids(task)), read)
    assert all(weight.requires_grad and weight.is_leaf for weight in model.parameters().values())


# ---- number formats


def test_weights_are_float32_unless_they_are_to_stay(tiny_task: TinyTask) -> None:
    lm = LanguageModel(make_model("llama").to(torch.bfloat16), make_tokenizer(True))
    for keeps, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        model = TrainableModel(lm, keep_dtype=keeps)
        assert {weight.dtype for weight in model.parameters().values()} == {dtype}
        assert model.language_model().dtype == dtype
    assert lm.dtype == torch.bfloat16


def test_autocast_computes_the_body_in_bfloat16_alone(tiny_lm: TinyLM, tiny_task: TinyTask) -> None:
    task = tiny_task(tiny_lm("llama"))
    plain, model = TrainableModel(tiny_lm("llama")), TrainableModel(tiny_lm("llama"), autocast=True)
    kinds = []
    layer = next(module for module in model.body.modules() if isinstance(module, torch.nn.Linear))
    layer.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    found, expected = label_log_probs(model, task, ids(task)), label_log_probs(plain, task, ids(task))
    assert set(kinds) == {torch.bfloat16}
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, atol=0.2, rtol=0.05)
    assert {weight.dtype for weight in model.parameters().values()} == {torch.float32}


# ---- adapters


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox", "mixtral"])
def test_only_adapters_move(kind: str, tiny_lm: TinyLM, tiny_task: TinyTask) -> None:
    lm, task = tiny_lm(kind), tiny_task(tiny_lm(kind))
    model = TrainableModel(lm, LORA)
    torch.testing.assert_close(label_log_probs(model, task, ids(task)), label_log_probs(lm, task, ids(task)))
    names = model.parameters().keys()
    assert names
    assert all("lora_" in name for name in names)
    assert model.snapshot().keys() == names
    rest = {name: w.clone() for name, w in model.model.named_parameters() if name not in names}
    descend(model, task)
    assert same(rest, {name: w.detach() for name, w in model.model.named_parameters() if name not in names})


def test_adapters_are_drawn_from_the_seed(tiny_lm: TinyLM) -> None:
    before = torch.get_rng_state()
    first, again, other = (TrainableModel(tiny_lm("gpt2"), LORA, seed=seed).snapshot() for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("modules", "told"),
    [
        (
            ("zzz",),
            "lora.target_modules ('zzz',): Target modules {'zzz'} not found in the base model. Please check the "
            "target modules and try again; name linear layers between the embeddings and the head",
        ),
        *(
            (
                names,
                f"lora.target_modules {names!r} cover the input embeddings or the head, which may be one matrix; "
                "name layers between them, or leave it at 'all-linear'",
            )
            for names in (("lm_head",), ("c_attn", "wte"), ".*(c_attn|wte)")
        ),
    ],
)
def test_layers_that_can_have_no_adapter_are_refused(
    modules: str | tuple[str, ...], told: str, tiny_lm: TinyLM
) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainableModel(tiny_lm("gpt2"), LoraSettings(target_modules=modules))
    assert str(caught.value) == told


def test_adapters_need_peft(tiny_lm: TinyLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError) as caught:
        TrainableModel(tiny_lm("gpt2"), LoraSettings())
    assert str(caught.value) == "lora needs the peft library; install gradmm[lora]"
