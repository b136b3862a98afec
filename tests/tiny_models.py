"""Small random models of many architectures, and a small tokenizer for them.

`KINDS`              settings by name; what sets each apart, as the body, its cache or the head sees it
`make_model(kind)`   a random transformers model of that kind
`make_tokenizer()`   byte-level BPE over plain text
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from gradmm.models import LanguageModel

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
_BLOOM = {"vocab_size": ROWS, "hidden_size": 32, "n_layer": 2, "n_head": 4}
_GPT2 = {"vocab_size": ROWS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
_SIZES = {"vocab_size": ROWS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_NEOX = {**_SIZES, "intermediate_size": 48, "max_position_embeddings": CONTEXT}
_LLAMA = {**_NEOX, "num_key_value_heads": 2}
_OPT = {**_SIZES, "ffn_dim": 48, "max_position_embeddings": CONTEXT}
_NEO = {"vocab_size": ROWS, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": CONTEXT}
_MPT = {"vocab_size": ROWS, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": CONTEXT}
_CTRL = {"vocab_size": ROWS, "n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 48, "n_positions": CONTEXT}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_HEAD = {"head_dim": 8}
_MAMBA = {"mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 4}
_SSM = {"vocab_size": ROWS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}

TinyLM = Callable[..., LanguageModel]
"""What the fixture `tiny_lm` is: a kind's name makes the model."""
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", **_GPT2},  # tied, absolute positions
    "openai-gpt": {"model_type": "openai-gpt", **_GPT2},  # no cache at all
    "ctrl": {"model_type": "ctrl", **_CTRL},  # sinusoidal positions, head with a bias; scales its input in place
    "gpt_neo": {  # every other layer sees three tokens back
        **{"model_type": "gpt_neo", **_NEO, "attention_types": [[["global", "local"], 1]], "window_size": 3}
    },
    "gptj": {"model_type": "gptj", **_GPT2, "rotary_dim": 4},  # untied, head with a bias
    "codegen": {"model_type": "codegen", **_GPT2, "rotary_dim": 4},  # the same, other attention
    "gpt_bigcode": {"model_type": "gpt_bigcode", **_GPT2},  # one key-value head for all
    "opt": {  # tied, a decoder inside the body
        **{"model_type": "opt", **_OPT, "word_embed_proj_dim": 32, "do_layer_norm_before": True}
    },
    "opt_projected": {  # embeddings and head are narrower than the body
        **{"model_type": "opt", **_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}
    },
    "bloom": {"model_type": "bloom", **_BLOOM},  # ALiBi
    "mpt": {"model_type": "mpt", **_MPT},  # ALiBi, no biases
    "neox": {"model_type": "gpt_neox", **_NEOX},  # rotary positions
    "phi": {"model_type": "phi", **_LLAMA},  # untied, the head has a bias
    "falcon": {"model_type": "falcon", **_SIZES, "multi_query": True, "max_position_embeddings": CONTEXT},
    "falcon_alibi": {"model_type": "falcon", **_SIZES, "alibi": True, "max_position_embeddings": CONTEXT},
    "stablelm": {"model_type": "stablelm", **_LLAMA},  # part of each head is rotated
    "llama": {"model_type": "llama", **_LLAMA, "tie_word_embeddings": False},  # the tokenizer adds a BOS token
    "mistral": {"model_type": "mistral", **_LLAMA, "sliding_window": 3},  # shorter than any prompt
    "qwen3": {"model_type": "qwen3", **_LLAMA, **_HEAD, "tie_word_embeddings": True},
    "olmo2": {"model_type": "olmo2", **_LLAMA},  # norms after the sublayers
    "gemma2": {  # soft-capped logits, scaled embeddings; the tokenizer adds a BOS token
        **{"model_type": "gemma2", **_LLAMA, **_HEAD, "query_pre_attn_scalar": 8},
        **{"final_logit_softcapping": 3.0, "sliding_window": CONTEXT},
    },
    "gemma3": {  # windows in turn with full attention
        **{"model_type": "gemma3_text", **_LLAMA, **_HEAD, "query_pre_attn_scalar": 8, "sliding_window": 3},
        **{"layer_types": ["sliding_attention", "full_attention"]},
    },
    "granite": {"model_type": "granite", **_LLAMA, "logits_scaling": 1.7, "embedding_multiplier": 3.0},
    "cohere": {"model_type": "cohere", **_LLAMA, "logit_scale": 0.4},
    "mixtral": {"model_type": "mixtral", **_LLAMA, **_EXPERTS},
    "gpt_oss": {"model_type": "gpt_oss", **_LLAMA, **_EXPERTS, **_HEAD, "sliding_window": 3},  # attention sinks
    "deepseek_v3": {  # latent attention, experts in groups
        **{"model_type": "deepseek_v3", **_LLAMA, "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8},
        **{"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1},
        **{"topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1},
    },
    "mamba": {"model_type": "mamba", **_SSM, "time_step_rank": 4},
    "mamba2": {
        **{"model_type": "mamba2", **_SSM, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 4},
    },
    "rwkv": {"model_type": "rwkv", **_SIZES, "attention_hidden_size": 32, "context_length": CONTEXT},
    "falcon_h1": {  # attention and state space side by side; scaled logits
        **{"model_type": "falcon_h1", **_LLAMA, **_MAMBA, "mamba_d_ssm": 32, "mamba_n_heads": 4},
        **{"lm_head_multiplier": 0.5},
    },
    "bamba": {"model_type": "bamba", **_LLAMA, **_MAMBA, "attn_layer_indices": [1], "mamba_n_heads": 8},
    "jamba": {
        **{"model_type": "jamba", **_LLAMA, "num_experts": 2, "num_experts_per_tok": 1, "mamba_d_state": 4},
        **{"attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2},
        **{"mamba_dt_rank": 4},
    },
    "lfm2": {  # convolutions
        **{"model_type": "lfm2", **_LLAMA, "layer_types": ["conv", "full_attention"]},
        **{"block_auto_adjust_ff_dim": False},
    },
    "recurrent_gemma": {  # state inside the modules, soft-capped logits under another name
        **{"model_type": "recurrent_gemma", **_LLAMA, **_HEAD, "num_hidden_layers": 3, "lru_width": 32},
        **{"attention_window_size": 8, "logits_soft_cap": 3.0},
    },
    "qwen3_next": {  # gated delta rule
        **{"model_type": "qwen3_next", **_LLAMA, **_HEAD, "num_experts": 4, "num_experts_per_tok": 2},
        **{"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
        **{"layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4},
        **{"linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    },
    "minimax": {
        **{"model_type": "minimax", **_LLAMA, **_HEAD, **_EXPERTS, "block_size": 4},
        **{"layer_types": ["linear_attention", "full_attention"]},
    },
}
WITH_BOS = ("llama", "gemma2")
UNLIMITED = ("bloom", "mamba", "mamba2")
"""Kinds without a longest sequence."""
WITH_BIAS = ("phi", "gptj", "codegen", "ctrl")
"""Kinds whose head has a bias."""
WITHOUT_CACHE = ("openai-gpt", "rwkv", "recurrent_gemma", "bamba", "minimax")
"""Kinds that return no cache (the first three), or one that gives other results in transformers 5.23."""
WITHOUT_DOUBLE_BACKWARD = ("rwkv",)
"""Kinds whose backward pass cannot be differentiated again; gradients are then held against differences."""


def make_model(kind: str, attn: str | None = None, special_id: int = 0, **settings: Any) -> Any:
    """A random model of a kind, the same at every call; `settings` go over those of `KINDS`."""
    tokens = {"bos_token_id": special_id, "eos_token_id": special_id, "pad_token_id": 1}
    config = transformers.AutoConfig.for_model(**KINDS[kind] | tokens | {"initializer_range": 0.25} | settings)
    with torch.random.fork_rng():
        torch.manual_seed(sum(map(ord, kind)))
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attn)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # biases begin at 0 and norms at 1, where mistakes do not show
                    parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@cache
def make_tokenizer(bos: bool = False, sentences: Iterable[str] = SENTENCES, tokens: int = TOKENS) -> Any:
    """Byte-level BPE over the ASCII characters of plain text, with some 40 merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    byte_of = {
        char: pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(char)[0][0] for char in " \n"
    }
    alphabet = [*string.ascii_letters, *string.digits, *".,!?:'-", *byte_of.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=tokens,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
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
