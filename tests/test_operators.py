"""Operators that stand in for the library's: the same numbers, and only where they are meant to be."""

from functools import partial

import pytest
import torch

import oracles
from gradmm.errors import ModelError
from gradmm.loading import ModelConfig
from gradmm.models import LanguageModel, load_model
from gradmm.operators import attention_to_differentiate, fuse_activations
from gradmm.training.trainable import TrainableModel
from tiny_models import make_model


def test_a_gelu_of_eight_operators_becomes_one(tiny_lm):
    model = make_model("gpt2").eval()
    ids = torch.arange(2, 40)[None]
    expected = model(ids).logits
    assert type(model.transformer.h[0].mlp.act).__name__ == "NewGELUActivation"
    fuse_activations(model)
    assert [type(block.mlp.act) for block in model.transformer.h] == [torch.nn.GELU] * 2
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)


def test_a_model_in_memory_and_one_that_is_loaded_have_it(tiny_folder, tiny_lm):
    for lm in (load_model(tiny_folder, device="cpu"), tiny_lm("gpt2")):
        assert "NewGELUActivation" not in {type(module).__name__ for module in lm.model.modules()}


def test_other_activations_stay(tiny_lm):
    model = make_model("llama")
    before = [type(module) for module in model.modules()]
    fuse_activations(model)
    assert [type(module) for module in model.modules()] == before


@pytest.fixture
def half(tiny_lm):
    """A model in bfloat16 whose attention transformers chose."""
    lm = tiny_lm("llama")
    return LanguageModel(make_model("llama").bfloat16(), lm.tokenizer)


def attention_in(body):
    with attention_to_differentiate(body):
        return body.config._attn_implementation


def test_attention_is_written_out_where_its_derivative_is_slow(half, tiny_lm):
    assert half.body.config._attn_implementation == "sdpa"
    assert attention_in(half.body) == "eager"
    assert half.body.config._attn_implementation == "sdpa"
    with torch.no_grad():
        assert attention_in(half.body) == "sdpa"
    whole = tiny_lm("llama").body
    assert attention_in(whole) == "sdpa"
    with torch.autocast("cpu", torch.bfloat16):
        assert attention_in(whole) == "eager"


def test_it_comes_back_after_an_error(half):
    with pytest.raises(ZeroDivisionError), attention_to_differentiate(half.body):
        raise ZeroDivisionError
    assert half.body.config._attn_implementation == "sdpa"


def gradient(lm, x_NSE):
    x_NSE = x_NSE.clone().requires_grad_()
    index_NL = torch.tensor([[8], [5], [7]])
    return torch.autograd.grad(lm.hidden(x_NSE, index_NL).float().pow(3).sum(), x_NSE)[0]


def test_its_derivative_is_that_of_the_fused_kernel(half, monkeypatch):
    x_NSE = torch.randn(3, 9, 32, generator=torch.Generator().manual_seed(0))
    exact = LanguageModel(make_model("llama"), half.tokenizer)
    found, expected = gradient(half, x_NSE), gradient(exact, x_NSE)
    with monkeypatch.context() as patch:
        patch.setattr("gradmm.operators._is_half_on_cpu", lambda body: False)
        fused = gradient(half, x_NSE)
    assert not torch.equal(found, fused)  # another kernel ran
    # Rounding apart, which is no worse than the fused kernel's.
    assert oracles.relative_error(found, expected) < 2 * oracles.relative_error(fused, expected) < 0.1


def test_a_compiled_body_gives_the_same_derivative(tiny_lm, monkeypatch):
    lm = tiny_lm("llama")
    calls, plain = [], torch.compile

    def compiles(body, **settings):
        calls.append(body)
        return plain(body, backend="eager")  # the compiler's front alone: the whole takes a minute

    monkeypatch.setattr(torch, "compile", compiles)
    compiled = LanguageModel(lm.model, lm.tokenizer, torch_compile=True)
    x_NSE = torch.randn(3, 9, 32, generator=torch.Generator().manual_seed(0))
    assert oracles.relative_error(gradient(compiled, x_NSE), gradient(lm, x_NSE)) < 1e-5
    assert calls == [lm.body]
    with torch.no_grad():
        assert torch.equal(compiled.read(*(ids := (torch.arange(6)[None], torch.tensor([[5]])))), lm.read(*ids))


def test_what_cannot_be_compiled_is_computed_all_the_same(tiny_lm, monkeypatch, caplog):
    def fails(**inputs):
        raise ValueError("no compiler\nand much more")

    monkeypatch.setattr(torch, "compile", lambda body: fails)
    lm = tiny_lm("llama")
    compiled = LanguageModel(lm.model, lm.tokenizer, torch_compile=True)
    x_NSE = torch.randn(3, 9, 32, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        assert torch.equal(gradient(compiled, x_NSE), gradient(lm, x_NSE))
    assert caplog.messages == ["torch cannot compile the model (ValueError: no compiler); going on without"]


def test_running_out_of_memory_is_no_fault_of_the_compiler(tiny_lm, monkeypatch):
    def fails(**inputs):
        raise torch.OutOfMemoryError("all of it")

    monkeypatch.setattr(torch, "compile", lambda body: fails)
    lm = tiny_lm("llama")
    compiled = LanguageModel(lm.model, lm.tokenizer, torch_compile=True)
    with pytest.raises(torch.OutOfMemoryError):
        gradient(compiled, torch.randn(3, 9, 32))


def test_the_setting_reaches_the_model(tiny_folder, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    for wanted in (False, True):
        lm = load_model(ModelConfig(model_name_or_path=str(tiny_folder), device="cpu", torch_compile=wanted))
        assert (type(lm._differentiated).__name__ == "CompiledBody") == wanted


# ---- activations computed again


def bytes_kept(lm, texts=4):
    """What a differentiated pass keeps for the way back, of storages that are no weights'."""
    weights = {weight.untyped_storage().data_ptr() for weight in lm.model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.arange(2, 34)[None].repeat(texts, 1)
    embeds = lm.embeddings_VE[ids].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        lm.hidden(embeds, torch.full((texts, 1), 31))
    return sum(kept.values())


@pytest.mark.parametrize("kind", ["gpt2", "llama", "phi", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_that_are_computed_again_are_the_same(tiny_lm, kind, dtype):
    """Attention written out on the way there is written out on the way back, too."""
    plain, again = (
        LanguageModel(make_model(kind, num_hidden_layers=6).to(dtype), tiny_lm(kind).tokenizer, "x", False, on)
        for on in (False, True)
    )
    ids, index, found = torch.tensor([[5, 17, 40, 99]]), torch.tensor([[3]]), []
    for lm in (plain, again):
        embeds = lm.embeddings_VE[ids].requires_grad_()
        states = lm.hidden(embeds, index)
        found.append((states.detach(), *torch.autograd.grad(states.float().pow(2).sum(), embeds)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert bytes_kept(again) < 0.5 * bytes_kept(plain)
    assert not any(layer.training for layer in again.body._checkpointed_layers)


def test_a_copy_in_training_computes_again_what_is_its_own(tiny_lm):
    lm = LanguageModel(make_model("llama").bfloat16(), tiny_lm("llama").tokenizer, gradient_checkpointing=True)
    gradients = []
    for one in (lm, LanguageModel(make_model("llama").bfloat16(), lm.tokenizer)):
        model = TrainableModel(one)
        with torch.no_grad():
            model.head.weight_VD.mul_(2)
        model.read(torch.tensor([[5, 17, 40, 99]]), torch.tensor([[3]])).square().sum().backward()
        gradients.append([weight.grad for weight in model.parameters().values() if weight.grad is not None])
    assert gradients[0]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_layers_that_cannot_be_checkpointed_are_refused(tiny_lm):
    model = make_model("ctrl")
    with pytest.raises(ModelError) as caught:
        LanguageModel(model, tiny_lm("ctrl").tokenizer, "mine", gradient_checkpointing=True)
    assert str(caught.value) == (
        "'mine' (CTRLLMHeadModel) has no layers that transformers can checkpoint; leave "
        "model.gradient_checkpointing out"
    )
