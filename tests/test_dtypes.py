"""Half precision and attention implementations: what they may change, and what happens when numbers run out."""

from __future__ import annotations

import copy

import pytest
import torch

import matrix
import oracles
from gradmm.data.task import Batch
from gradmm.decoding import PromptCache, decode, log_perplexity, sample
from gradmm.errors import NonFiniteError
from gradmm.gradients.factors import Factors, label_factors
from gradmm.models import LanguageModel, load_model

KINDS = ("gpt2", "phi", "llama", "gemma2", "granite", "falcon_h1", "mixtral", "mamba")
DTYPES = {torch.bfloat16: 0.12, torch.float16: 0.02}
"""Relative error that a gradient of a random two-layer model may have: about 30 and 40 units in the last place."""
PROMPTS = [[40, 7, 9, 30], [5, 6, 7, 8, 9, 10, 11], [3]]


def in_dtype(lm: LanguageModel, dtype: torch.dtype) -> LanguageModel:
    return LanguageModel(copy.deepcopy(lm.model).to(dtype), lm.tokenizer, lm.name)


def factors_of(lm: LanguageModel) -> tuple[Factors, Batch]:
    task = matrix.bind(lm)
    batch = task.collate([task.text_ids(text) for text in matrix.TEXTS], matrix.LABELS)
    return label_factors(lm, batch, batch.embed(lm.embeddings_VE), len(matrix.TEXTS)), batch


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_closed_form_in_half_precision_is_near_that_in_float32(tiny_lm, kind, dtype):
    lm = tiny_lm(kind)
    half = in_dtype(lm, dtype)
    (exact, _), (found, _) = factors_of(lm), factors_of(half)
    assert half.dtype == dtype and {value.dtype for value in vars(found).values()} == {torch.float32}
    for one, two in zip(found.dense(), exact.dense(), strict=True):
        assert 0 < oracles.relative_error(one, two) < DTYPES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_is_used_in_half_precision_too(tiny_lm, kind, dtype, caplog):
    half = in_dtype(tiny_lm(kind), dtype)
    with caplog.at_level("INFO", "gradmm"):
        PromptCache(half, PROMPTS)
    assert not [record for record in caplog.records if record.name == "gradmm"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_whole_run_in_half_precision(tiny_lm, tmp_path, dtype):
    tiny_lm("llama").model.save_pretrained(tmp_path)
    tiny_lm("llama").tokenizer.save_pretrained(tmp_path)
    result = matrix.generate(load_model(tmp_path, device="cpu", dtype=dtype))
    assert 0 <= result.metrics["synthetic"]["distance"] < 2


@pytest.mark.parametrize("kind", ["gpt2", "opt", "neox", "llama", "mistral", "qwen3", "falcon", "mixtral"])
def test_attention_implementations_agree(tiny_lm, kind):
    """Falcon with ALiBi is left out: transformers' two implementations differ there, by percents."""
    eager, sdpa = (tiny_lm(kind, attention) for attention in ("eager", "sdpa"))
    assert [lm.model.config._attn_implementation for lm in (eager, sdpa)] == ["eager", "sdpa"]
    found, expected = (factors_of(lm)[0].dense()[0] for lm in (sdpa, eager))
    assert oracles.relative_error(found, expected) < 1e-5


# ---- numbers that are not finite


def overflowing(lm: LanguageModel) -> LanguageModel:
    """A model whose numbers pass all checks and are then made too large for its dtype."""
    lm = in_dtype(lm, torch.float16)
    lm.model.get_output_embeddings().weight[9] = 6e4
    return lm


def test_logits_after_a_prompt_that_are_not_finite_are_refused(tiny_lm):
    lm = overflowing(tiny_lm("llama"))
    with pytest.raises(NonFiniteError) as caught:
        PromptCache(lm, PROMPTS)
    assert str(caught.value) == (
        "'tiny llama' (LlamaForCausalLM): logits after a class prompt are not finite in float16; load the model "
        "with dtype='float32' (or 'bfloat16' instead of 'float16')"
    )


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_logits_of_a_text_that_are_not_finite_are_refused(tiny_lm, number):
    lm = in_dtype(tiny_lm("gpt2"), torch.float32)
    prompts = PromptCache(lm, PROMPTS)
    lm.body.ln_f.bias.fill_(number)
    allowed_V = torch.ones(lm.vocab_size, dtype=torch.bool)
    with pytest.raises(NonFiniteError, match="logits at token 1 of a text are not finite in float32"):
        sample(prompts, torch.tensor([0, 1]), 3, allowed_V, torch.Generator())
    with pytest.raises(NonFiniteError, match="logits of a text are not finite in float32"):
        log_perplexity(lm, [[4, 5, 6]])


def test_a_token_that_a_model_rules_out_is_no_fault(tiny_lm):
    """Minus infinity is a logit like others."""
    lm = in_dtype(tiny_lm("phi"), torch.float32)
    lm.head.bias_V[:5] = -torch.inf
    tokens = decode(PromptCache(lm, PROMPTS), torch.tensor([0, 1, 2]), 4, lambda t, rows, z: [z.argmax(-1)] * 2)
    assert bool((tokens >= 5).all())


def test_a_model_whose_numbers_overflow_is_refused_before_any_work(tiny_lm):
    model = copy.deepcopy(tiny_lm("gpt2").model).half()
    model.transformer.ln_f.weight.fill_(6e4)
    with pytest.raises(NonFiniteError) as caught:
        LanguageModel(model, None, "mine")
    assert str(caught.value) == (
        "'mine' (GPT2LMHeadModel): the logits of eight tokens are not finite in float16; load it with "
        "dtype='bfloat16' or dtype='float32'"
    )
