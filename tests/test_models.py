"""`gradmm.models`: a model in parts is the model itself, and what cannot be taken apart is refused."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.utils import logging as transformers_logging

from gradmm.errors import ModelError
from gradmm.models import Head, LanguageModel, ModelConfig, load_model, model_path

LINE = torch.tensor([[5, 17, 40, 99, 3, 77, 28, 60, 14]])


def copy_of(lm: LanguageModel, **config: Any) -> Any:
    """The transformers model, to be altered without harm to the shared one."""
    model = copy.deepcopy(lm.model)
    for key, value in config.items():
        setattr(model.config, key, value)
    return model


def save(lm: LanguageModel, folder: Path) -> str:
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return str(folder)


# ---- the parts


def test_parts_give_the_model_s_own_logits(each_tiny_lm):
    lm = each_tiny_lm
    index_NL = torch.arange(LINE.shape[1])[None]
    logits_NLV, _ = lm.head(lm.hidden(lm.embeddings_VE[LINE], index_NL))
    assert logits_NLV.dtype == torch.float32
    torch.testing.assert_close(logits_NLV, lm.model(input_ids=LINE).logits, rtol=1e-4, atol=1e-5)


def test_slope_is_the_derivative_of_the_logits(each_tiny_lm):
    head = each_tiny_lm.head
    h_ND = 3 * torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    shift_NV = torch.zeros(4, head.weight_VD.shape[0], requires_grad=True)  # of W h + b, as a bias per row

    def logits(n: int) -> torch.Tensor:
        bias_V = shift_NV[n] if head.bias_V is None else head.bias_V + shift_NV[n]
        return type(head)(head.weight_VD, bias_V, head.scale, head.cap)(h_ND[n : n + 1])[0]

    derivative_NV = torch.cat([torch.autograd.grad(logits(n).sum(), shift_NV)[0][n : n + 1] for n in range(4)])
    _, slope = head(h_ND)
    torch.testing.assert_close(torch.as_tensor(slope).expand_as(derivative_NV), derivative_NV)
    expected = {"tiny gemma2": None, "tiny granite": 1 / 1.7, "tiny cohere": 0.4}.get(each_tiny_lm.name, 1.0)
    assert slope == expected if expected is not None else slope.std() > 0.1


def test_a_head_that_scales_and_caps_does_both():
    z_V = torch.linspace(-9, 9, 7, requires_grad=True)
    head = Head(torch.eye(7), None, scale=0.5, cap=2.0)
    logits_1V, slope_1V = head(z_V[None])
    torch.testing.assert_close(logits_1V[0], 2.0 * torch.tanh(0.5 * z_V / 2.0))
    torch.testing.assert_close(slope_1V[0], torch.autograd.grad(logits_1V.sum(), z_V)[0])


def test_padding_on_the_right_changes_no_hidden_state(each_tiny_lm):
    lm, lengths = each_tiny_lm, (9, 4, 1)
    rows = torch.cat([LINE, LINE.flip(1), LINE + 1])
    index_NL = torch.tensor([[8, 0, 4], [3, 3, 0], [0, 0, 0]])
    found_NLD = lm.hidden(lm.embeddings_VE[rows], index_NL)
    assert found_NLD.shape == (3, 3, 32)
    for n, length in enumerate(lengths):
        alone_1SD = lm.body(input_ids=rows[n : n + 1, :length]).last_hidden_state
        torch.testing.assert_close(found_NLD[n], alone_1SD[0][index_NL[n]], rtol=1e-4, atol=1e-5)


def test_embeddings_are_what_the_body_gets(tiny_lm):
    gemma, llama = tiny_lm("gemma2"), tiny_lm("llama")
    torch.testing.assert_close(gemma.embeddings_VE, gemma.model.get_input_embeddings().weight * 32**0.5)
    assert torch.equal(llama.embeddings_VE, llama.model.get_input_embeddings().weight)
    assert not gemma.embeddings_VE.requires_grad


def test_sizes(each_tiny_lm, demo_lm):
    assert (each_tiny_lm.vocab_size, each_tiny_lm.max_length) == (120, 128)
    assert (demo_lm.vocab_size, demo_lm.max_length) == (8192, 1024)


def test_a_model_is_frozen_and_evaluates(tiny_lm):
    model = copy_of(tiny_lm("gpt2")).train().requires_grad_(True)
    lm = LanguageModel(model, tiny_lm("gpt2").tokenizer)
    assert model.config.resid_pdrop > 0 and torch.equal(lm.model(LINE).logits, lm.model(LINE).logits)
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert not lm.head.weight_VD.requires_grad


# ---- what cannot be taken apart


def test_a_step_between_body_and_head_is_refused(tiny_lm, monkeypatch):
    model = copy_of(tiny_lm("llama"))
    LanguageModel(model, None)
    plain = model.lm_head.forward
    monkeypatch.setattr(model.lm_head, "forward", lambda h: 1.1 * plain(h))
    with pytest.raises(ModelError) as caught:
        LanguageModel(model, None, "my model")
    assert str(caught.value) == (
        "'my model' (LlamaForCausalLM): the head on the body's output differs from the model's own logits by "
        "9.1e-02 relative, so its gradient has no closed form here; use a model without extra steps between its "
        "body and its head"
    )


def test_a_scale_that_the_settings_do_not_tell_is_refused(tiny_lm):
    model = copy_of(tiny_lm("cohere"))
    model.config.logit_scale = 0.41  # the model has taken its 0.4 already
    with pytest.raises(ModelError, match=r"by 2\.5e-02 relative, so its gradient has no closed form here"):
        LanguageModel(model, None)


def test_weights_that_are_not_numbers_are_refused(tiny_lm):
    model = copy_of(tiny_lm("llama"))
    model.lm_head.weight[7, 3] = torch.nan
    with pytest.raises(ModelError, match="by nan relative"):
        LanguageModel(model, None)


def test_a_body_alone_is_refused(tiny_lm):
    with pytest.raises(ModelError) as caught:
        LanguageModel(copy_of(tiny_lm("gpt2")).transformer, None, "half")
    assert str(caught.value) == "'half' (GPT2Model) has no body apart from its head; use a causal LM"


def test_a_head_that_is_not_linear_is_refused(tiny_lm):
    model = copy_of(tiny_lm("llama"))
    model.set_output_embeddings(torch.nn.Sequential(model.lm_head))
    with pytest.raises(ModelError) as caught:
        LanguageModel(model, None, "mine")
    assert str(caught.value) == "'mine' (LlamaForCausalLM) has no linear output head; use a causal LM"


def test_a_model_that_sees_ahead_is_refused(tiny_lm):
    """XLNet counts as causal in transformers, but every position sees all others, padding included."""
    config = transformers.XLNetConfig(
        vocab_size=120, d_model=32, n_layer=1, n_head=2, d_inner=48, initializer_range=0.3
    )
    with pytest.raises(ModelError):
        LanguageModel(transformers.XLNetLMHeadModel(config), tiny_lm("gpt2").tokenizer)


# ---- fingerprint


def test_fingerprint_is_that_of_weights_and_vocabulary(tiny_lm, tmp_path):
    lm = tiny_lm("qwen3")
    seen = {"itself": lm.fingerprint()}
    assert seen["itself"] == lm.fingerprint() == load_model(save(lm, tmp_path), device="cpu").fingerprint()
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"):
        model = copy_of(lm)
        weight = model.get_parameter(name).data.view(-1)
        weight[-1] = torch.nextafter(weight[-1], torch.tensor(9.0))
        seen[name] = LanguageModel(model, lm.tokenizer).fingerprint()
    seen["bfloat16"] = LanguageModel(copy_of(lm).to(torch.bfloat16), lm.tokenizer).fingerprint()
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.add_tokens(["wonderful"])
    seen["vocabulary"] = LanguageModel(copy_of(lm), tokenizer).fingerprint()
    assert len(set(seen.values())) == len(seen) and {len(value) for value in seen.values()} == {64}


def test_models_with_one_fingerprint_compute_the_same(tiny_lm):
    """The same weights under other settings are another model."""
    lm = tiny_lm("gemma2")
    other = LanguageModel(copy_of(lm, final_logit_softcapping=1.0), lm.tokenizer)
    assert not torch.allclose(lm.model(LINE).logits, other.model(LINE).logits)
    assert lm.fingerprint() != other.fingerprint()


def test_a_single_number_among_the_weights_has_a_fingerprint_too(tiny_lm):
    found = []
    for number in (1.0, 2.0):
        model = copy_of(tiny_lm("llama"))
        model.register_buffer("step", torch.tensor(number))
        found.append(LanguageModel(model, tiny_lm("llama").tokenizer).fingerprint())
    assert found[0] != found[1]


# ---- loading


@pytest.mark.parametrize("kind", ["gpt2", "phi"])
def test_a_folder_gives_back_the_model(tiny_lm, tmp_path, monkeypatch, kind):
    lm, path = tiny_lm(kind), save(tiny_lm(kind), tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in (path, Path(path), "saved", "./saved", "~/saved", ModelConfig(model_name_or_path=path)):
        found = load_model(given, device="cpu")
        torch.testing.assert_close(found.model(LINE).logits, lm.model(LINE).logits)
        assert found.name == str(given if not isinstance(given, ModelConfig) else path)
        assert found.tokenizer("It was great").input_ids == lm.tokenizer("It was great").input_ids


def test_options_are_obeyed(tiny_lm, tmp_path):
    path = save(tiny_lm("llama"), tmp_path)
    lm = load_model(path, device="cpu", dtype="bfloat16", attn_implementation="eager")
    assert lm.dtype == torch.bfloat16 and lm.model.config._attn_implementation == "eager"
    assert (
        load_model(ModelConfig(model_name_or_path=path, dtype="float16"), dtype="float32").dtype == torch.float32
    )
    assert load_model(path, device="cpu").device == torch.device("cpu")


def test_a_loaded_model_is_returned_as_it_is(tiny_lm):
    assert load_model(tiny_lm("llama")) is tiny_lm("llama")


def test_the_packaged_model_needs_no_network(demo_lm):
    assert model_path("demo").endswith("assets/reviews6m") and demo_lm.name == "demo"
    assert sum(parameter.numel() for parameter in demo_lm.model.parameters()) == 6_623_232


@pytest.mark.parametrize("name", ["./no/such", "/no/such", "~/no/such"])
def test_a_folder_that_is_not_there_is_named(name):
    with pytest.raises(ModelError) as caught:
        load_model(name)
    assert str(caught.value) == (
        f"no model folder at {name!r}; give a folder with config.json, a Hub id, or 'demo'"
    )


@pytest.mark.parametrize("config", [None, transformers.T5Config(), transformers.DistilBertConfig()])
def test_what_is_no_causal_language_model_is_refused(tiny_lm, tmp_path, config):
    tiny_lm("llama").tokenizer.save_pretrained(tmp_path)
    if config is not None:
        config.save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path)
    first, *_, last = str(caught.value).split("\n")
    assert first.startswith(f"cannot load {str(tmp_path)!r} as a causal language model: Unrecognized ")
    assert last == (
        "Give a folder with config.json, weights and tokenizer, or the id of a causal LM on the Hub "
        "(HF_HUB_OFFLINE=1 reads the local cache only)."
    )


def test_bert_is_refused(tiny_lm, tmp_path):
    config = transformers.BertConfig(vocab_size=120, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_lm("llama").tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"\(BertLMHeadModel\): the head on the body's output differs"):
        load_model(tmp_path, device="cpu")


def test_a_folder_without_the_head_s_weights_is_refused(tiny_lm, tmp_path):
    """Transformers would draw a random head and go on."""
    tiny_lm("llama").model.model.save_pretrained(tmp_path)
    tiny_lm("llama").tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        load_model(tmp_path, device="cpu")


def test_an_unknown_device_is_named():
    with pytest.raises(ModelError) as caught:
        load_model("demo", device="tpu")
    assert str(caught.value) == "device 'tpu' is unknown to torch; try 'auto', 'cpu' or 'cuda'"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_this_machine_lacks_is_named():
    with pytest.raises(ModelError, match="device 'cuda'"):
        load_model("demo", device="cuda")


@pytest.mark.parametrize("given", ["demo", ModelConfig()])
@pytest.mark.parametrize("options", [{"devise": "cpu"}, {"dtype": "float64"}])
def test_options_that_do_not_exist_are_refused(given, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        load_model(given, **options)


@pytest.mark.parametrize("shown", [True, False])
def test_progress_bars_are_left_as_they_were(shown):
    before = transformers_logging.is_progress_bar_enabled()
    try:
        (transformers_logging.enable_progress_bar if shown else transformers_logging.disable_progress_bar)()
        for name in ("demo", "no-one/nothing"):
            with contextlib.suppress(ModelError):
                load_model(name, device="cpu")
            assert transformers_logging.is_progress_bar_enabled() == shown
    finally:
        (transformers_logging.enable_progress_bar if before else transformers_logging.disable_progress_bar)()
