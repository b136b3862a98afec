"""`gradmm.models`: a model in parts is the model itself, and what cannot be taken apart is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer

from gradmm.errors import ModelError
from gradmm.heads import USE
from gradmm.models import Head, LanguageModel, load_model
from tiny_models import UNLIMITED, make_model

LINE = torch.tensor([[5, 17, 40, 99, 3, 77, 28, 60, 14]])


SMALL_T5 = transformers.T5Config(vocab_size=120, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
SMALL_BERT = transformers.BertConfig(
    vocab_size=120, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
)


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
    h_ND = 3 * torch.randn(4, head.weight_VD.shape[1], generator=torch.Generator().manual_seed(0))
    shift_NV = torch.zeros(4, head.weight_VD.shape[0], requires_grad=True)  # of W h + b, as a bias per row

    def logits(n: int) -> torch.Tensor:
        bias_V = shift_NV[n] if head.bias_V is None else head.bias_V + shift_NV[n]
        return type(head)(head.weight_VD, bias_V, head.scale, head.cap)(h_ND[n : n + 1])[0]

    derivative_NV = torch.cat([torch.autograd.grad(logits(n).sum(), shift_NV)[0][n : n + 1] for n in range(4)])
    _, slope = head(h_ND)
    torch.testing.assert_close(torch.as_tensor(slope).expand_as(derivative_NV), derivative_NV)
    scaled = {"tiny granite": 1 / 1.7, "tiny cohere": 0.4, "tiny falcon_h1": 0.5}
    capped = dict.fromkeys(["tiny gemma2", "tiny recurrent_gemma"])
    expected = (scaled | capped).get(each_tiny_lm.name, 1.0)
    assert slope == expected if expected is not None else slope.std() > 0.01


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
    assert found_NLD.shape == (3, 3, lm.head.weight_VD.shape[1])
    for n, length in enumerate(lengths):
        alone_1SD = lm.body(input_ids=rows[n : n + 1, :length]).last_hidden_state
        torch.testing.assert_close(found_NLD[n], alone_1SD[0][index_NL[n]], rtol=1e-4, atol=1e-5)


def test_embeddings_are_what_the_body_gets(tiny_lm):
    gemma, llama = tiny_lm("gemma2"), tiny_lm("llama")
    torch.testing.assert_close(gemma.embeddings_VE, gemma.model.get_input_embeddings().weight * 32**0.5)
    assert torch.equal(llama.embeddings_VE, llama.model.get_input_embeddings().weight)
    assert not gemma.embeddings_VE.requires_grad


def test_sizes(each_tiny_lm, demo_lm):
    limit = 1_000_000 if each_tiny_lm.name.removeprefix("tiny ") in UNLIMITED else 128
    assert (each_tiny_lm.vocab_size, each_tiny_lm.max_length) == (120, limit)
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
    for number in (torch.nan, torch.inf):
        model = copy_of(tiny_lm("llama"))
        model.model.layers[1].mlp.up_proj.weight[7, 3] = number
        with pytest.raises(ModelError) as caught:
            LanguageModel(model, None, "mine")
        assert str(caught.value) == (
            "'mine' (LlamaForCausalLM) has NaN or infinity in its weight model.layers.1.mlp.up_proj.weight, in "
            "float32; give an intact checkpoint"
        )


def test_a_soft_cap_that_small_logits_hide_is_found(tiny_lm):
    """Of a model whose logits stay far below its cap, under a name that the settings do not tell."""
    model = copy_of(tiny_lm("llama"))
    model.lm_head.weight.mul_(1e-3)
    LanguageModel(model, None)
    plain = model.lm_head.forward
    model.lm_head.forward = lambda h: 30 * torch.tanh(plain(h) / 30)
    with pytest.raises(ModelError, match="the head on the body's output differs"):
        LanguageModel(model, None)


@pytest.mark.parametrize("kind", ["recurrent_gemma", "falcon_h1"])
def test_scales_and_caps_of_other_names_are_known(kind):
    settings = {"recurrent_gemma": {"logits_soft_cap": 30.0}, "falcon_h1": {"lm_head_multiplier": 0.02}}[kind]
    lm = LanguageModel(make_model(kind, **settings), None)
    assert (lm.head.cap, lm.head.scale) == {"recurrent_gemma": (30.0, 1.0), "falcon_h1": (None, 0.02)}[kind]


def test_more_tokens_than_rows_are_refused(tiny_lm):
    tokenizer = copy.deepcopy(tiny_lm("gpt2").tokenizer)
    tokenizer.add_tokens([f"<extra {n}>" for n in range(9)])
    with pytest.raises(ModelError) as caught:
        LanguageModel(copy_of(tiny_lm("gpt2")), tokenizer, "mine")
    assert str(caught.value) == (
        "'mine' (GPT2LMHeadModel) has 120 rows in its embedding table and its tokenizer has 121 tokens; give the "
        "tokenizer that it was trained with, or call model.resize_token_embeddings(121)"
    )


def test_a_body_that_takes_no_embeddings_is_refused(tiny_lm, monkeypatch):
    model = copy_of(tiny_lm("gpt2"))
    plain = model.transformer.forward

    def forward(input_ids=None, **options):
        if input_ids is None:
            raise TypeError("forward() got an unexpected keyword argument 'inputs_embeds'")
        return plain(input_ids=input_ids, **options)

    monkeypatch.setattr(model.transformer, "forward", forward)
    with pytest.raises(ModelError) as caught:
        LanguageModel(model, None, "mine")
    assert str(caught.value) == (
        "'mine' (GPT2LMHeadModel) does not run on input embeddings (inputs_embeds), which are what the x-update "
        "changes, in float32 on cpu: TypeError: forward() got an unexpected keyword argument 'inputs_embeds'; try "
        f"dtype='float32' and attn_implementation='eager', or {USE}"
    )


def test_a_body_without_a_derivative_is_refused(tiny_lm, monkeypatch):
    model = copy_of(tiny_lm("gpt2"))
    monkeypatch.setattr(model.transformer, "forward", torch.no_grad()(model.transformer.forward))
    with pytest.raises(ModelError, match="does not differentiate with respect to its input embeddings in float32"):
        LanguageModel(model, None)


def test_a_body_that_does_not_run_in_its_dtype_is_refused(tiny_lm, monkeypatch):
    def forward(*args, **options):
        raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")

    model = copy_of(tiny_lm("gpt2")).half()
    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(ModelError, match=r"does not run in float16 on cpu: RuntimeError: .* try dtype='float32'"):
        LanguageModel(model, None)


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (lambda: transformers.T5ForConditionalGeneration(SMALL_T5), "is an encoder-decoder, whose text and label"),
        (
            lambda: transformers.BertForMaskedLM(SMALL_BERT),
            "is a masked LM, which lets a token see those after it",
        ),
        (
            lambda: transformers.BertLMHeadModel(SMALL_BERT),
            "is a masked LM, which lets a token see those after it",
        ),
    ],
)
def test_other_kinds_of_language_models_are_refused(model, what):
    with pytest.raises(ModelError, match=what):
        LanguageModel(model(), None)


def test_embeddings_are_left_as_they_are(tiny_lm):
    """CTRL scales in place what its body is given."""
    lm = tiny_lm("ctrl")
    embeds_NSE = lm.embeddings_VE[LINE].clone()
    lm.hidden(embeds_NSE, torch.tensor([[3]]))
    assert torch.equal(embeds_NSE, lm.embeddings_VE[LINE])


def test_a_body_alone_is_refused(tiny_lm):
    with pytest.raises(ModelError) as caught:
        LanguageModel(copy_of(tiny_lm("gpt2")).transformer, None, "half")
    assert str(caught.value) == f"'half' (GPT2Model) has no body apart from its head; {USE}"


def test_a_head_that_is_not_linear_is_refused(tiny_lm):
    model = copy_of(tiny_lm("llama"))
    model.set_output_embeddings(torch.nn.Sequential(model.lm_head))
    with pytest.raises(ModelError) as caught:
        LanguageModel(model, None, "mine")
    assert str(caught.value) == f"'mine' (LlamaForCausalLM) has no linear output head; {USE}"


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
    tokenizer = copy.deepcopy(lm.tokenizer)
    steps = json.loads(tokenizer.backend_tokenizer.to_str())
    steps["model"]["merges"].pop()
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(steps))
    seen["merges"] = LanguageModel(copy_of(lm), tokenizer).fingerprint()
    assert len(set(seen.values())) == len(seen) and {len(value) for value in seen.values()} == {64}


def test_fingerprint_does_not_tell_how_a_tokenizer_was_last_used(tiny_lm):
    lm = tiny_lm("llama")
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer(["The film", "It"], padding=True, truncation=True, max_length=4)
    assert tokenizer.backend_tokenizer.truncation is not None
    assert LanguageModel(copy_of(lm), tokenizer).fingerprint() == lm.fingerprint()


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
