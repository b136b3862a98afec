"""Fixtures shared by all tests: the packaged model, and small random models of many architectures.

`demo_lm`, `demo_task`   the model that ships in the package, and the sentiment task in its tokens
`tiny_lm(kind)`          a random model of that kind (`KINDS`), cached for the session; `tiny_lm(kind, "eager")`
                         is the same with attention that can be differentiated twice; do not change its weights
`each_tiny_lm`           runs a test once for every kind
`tiny_task(lm, ...)`     a `BoundTask` in a model's tokens
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports a Hugging Face library

import string
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import gradmm
from gradmm.data.task import BoundTask, Task
from gradmm.models import LanguageModel

torch.set_num_threads(1)  # the suite runs a process per core
settings.register_profile("gradmm", deadline=None)  # a busy machine is no failure
settings.load_profile("gradmm")

TOKENS = 112
ROWS = 120  # of the embedding table and the head: more than there are tokens, as in many a real model
CONTEXT = 128
SENTENCES = (
    "The film is great. It was great",
    "The film is bad. It was bad",
    "A fine story and a great end. It was great",
    "A dull story with a bad end. It was bad",
    "This makes me feel happy. I feel happy",
    "This makes me feel sad. I feel sad",
)
_SIZES = {"vocab_size": ROWS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA = {**_SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT}
_GPT2 = {"vocab_size": ROWS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
_OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": CONTEXT, "do_layer_norm_before": True}

# What sets each apart, as the head sees it.
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", **_GPT2},  # tied, absolute positions
    "opt": {"model_type": "opt", **_SIZES, **_OPT},  # tied, a decoder inside the body
    "neox": {"model_type": "gpt_neox", **_SIZES, "intermediate_size": 48, "max_position_embeddings": CONTEXT},
    "phi": {"model_type": "phi", **_LLAMA},  # untied, the head has a bias
    "llama": {"model_type": "llama", **_LLAMA, "tie_word_embeddings": False},  # the tokenizer adds a BOS token
    "qwen3": {"model_type": "qwen3", **_LLAMA, "head_dim": 8, "tie_word_embeddings": True},
    "gemma2": {  # soft-capped logits, scaled embeddings; the tokenizer adds a BOS token
        **{"model_type": "gemma2", **_LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8},
        **{"final_logit_softcapping": 3.0, "sliding_window": CONTEXT},
    },
    "granite": {"model_type": "granite", **_LLAMA, "logits_scaling": 1.7, "embedding_multiplier": 3.0},
    "cohere": {"model_type": "cohere", **_LLAMA, "logit_scale": 0.4},
}
_WITH_BOS = ("llama", "gemma2")
TinyLM = Callable[..., LanguageModel]


@pytest.fixture(scope="session")
def demo_lm() -> LanguageModel:
    return gradmm.load_model("demo", device="cpu")


@pytest.fixture(scope="session")
def demo_task(demo_lm: LanguageModel) -> BoundTask:
    return BoundTask(gradmm.get_task("sst2"), demo_lm.tokenizer, demo_lm.max_length)


@pytest.fixture(scope="session")
def tiny_lm() -> TinyLM:
    """`tiny_lm(kind, attn=None)`: a small random model of one of `KINDS`."""
    return cache(_tiny_lm)


@pytest.fixture(params=KINDS)
def each_tiny_lm(request: pytest.FixtureRequest, tiny_lm: TinyLM) -> LanguageModel:
    return tiny_lm(request.param)


@pytest.fixture(scope="session")
def tiny_task() -> Callable[..., BoundTask]:
    """`tiny_task(lm, verbalisers=..., template=...)`: a task in the tokens of a tiny model."""

    def bind(
        lm: LanguageModel, verbalisers: tuple[str, ...] = (" bad", " great"), template: str = "{text} It was"
    ) -> BoundTask:
        names = tuple(f"class {c}" for c in range(len(verbalisers)))
        return BoundTask(
            Task(label_names=names, verbalisers=verbalisers, template=template), lm.tokenizer, lm.max_length
        )

    return bind


def _tiny_lm(kind: str, attn: str | None = None) -> LanguageModel:
    config = transformers.AutoConfig.for_model(
        **KINDS[kind], initializer_range=0.25, bos_token_id=0, eos_token_id=0, pad_token_id=1
    )
    with torch.random.fork_rng():
        torch.manual_seed(sum(map(ord, kind)))
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attn)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # biases begin at 0 and norms at 1, where mistakes do not show
                    parameter.add_(0.2 * torch.randn_like(parameter))
    return LanguageModel(model, _tokenizer(kind in _WITH_BOS), f"tiny {kind}")


@cache
def _tokenizer(bos: bool) -> Any:
    """Byte-level BPE over the ASCII characters of plain text, with some 40 merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    byte_of = {
        char: pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(char)[0][0] for char in " \n"
    }
    alphabet = [*string.ascii_letters, *string.digits, *".,!?:'-", *byte_of.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
    )
