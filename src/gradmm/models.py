"""Any Hugging Face causal language model, seen as: token embeddings -> body -> head.

The rest of the house needs four things of a model: the embedding table, the hidden states that enter the
output head, the logits that leave it, and the slope of what happens between `W h + b` and the logits (1 for
most models; soft-capping and scaling change it). This module provides them, checks once that they are what
the model's own forward pass computes, and knows nothing of texts, tasks or gradients.

Shape suffixes: N positions, S sequence length, V vocabulary, D hidden size, E embedding size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradmm.errors import ConfigError, ModelError, NonFiniteError, nearest
from gradmm.heads import USE, Head, head_of
from gradmm.loading import DEMO_MODEL, ModelConfig, load_pretrained, model_path
from gradmm.operators import (
    CompiledBody,
    attention_to_differentiate,
    checkpoint_layers,
    fuse_activations,
    layers_to_differentiate,
)
from gradmm.placement import is_quantised, is_spread, join_ends, keep_derivatives

__all__ = ["DEMO_MODEL", "Head", "LanguageModel", "ModelConfig", "load_model", "model_path"]


IN_MEMORY = "in memory"
_LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length")
_LARGE = 60.0  # of logits, where a cap shows


class LanguageModel:
    """A causal LM and its tokenizer, frozen, in evaluation mode.

    Args:
        model: a transformers `PreTrainedModel` with a language-modelling head; it is set to evaluation, its
            weights need no gradient from here on, and a GELU of many operators becomes one.
        tokenizer: its tokenizer.
        name: what the user called it.
        torch_compile: whether torch compiles the body for passes that are differentiated.
        gradient_checkpointing: whether these compute every layer's activations twice instead of keeping them.

    Raises:
        ModelError: if it is no causal LM, if body and head, taken apart, do not give the model's own logits, if
            the body cannot be differentiated with respect to its input embeddings, if a weight is not finite, or
            if the tokenizer has more tokens than the model.
        NonFiniteError: if the model's logits, or the derivatives, are not finite in its dtype.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str = IN_MEMORY,
        torch_compile: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.model = model
        _check_kind(model, self.title)
        self.model.eval().requires_grad_(False)
        fuse_activations(self.model)
        keep_derivatives(self.model)
        self.body = self._differentiated = body_of(model, self.title)
        if is_spread(model):
            join_ends(model, self.body)
        self.head = head_of(model, self.title)
        if gradient_checkpointing:
            checkpoint_layers(self.body, self.title)
        _check_weights(self)
        _check_tokens(self)
        _check_parts(self)
        _check_backward(self)
        if torch_compile:
            self._differentiated = CompiledBody(self.body)

    @property
    def title(self) -> str:
        """Name and class, for messages."""
        return f"{self.name!r} ({type(self.model).__name__})"

    @property
    def device(self) -> torch.device:
        """Where the embedding table lives; inputs are put there."""
        return self.embeddings_VE.device

    @property
    def vocab_size(self) -> int:
        """Rows of the head, which may exceed the tokenizer's tokens."""
        return self.head.weight_VD.shape[0]

    @property
    def max_length(self) -> int:
        """Longest sequence (tokens) that the model takes."""
        config = self.model.config.get_text_config()
        found = [getattr(config, key, None) for key in _LENGTHS]
        return min((length for length in found if length), default=1_000_000)

    @cached_property
    def embeddings_VE(self) -> Tensor:
        """What the body gets for every token (V, E); computed by the embedding module, which may scale."""
        module = self.model.get_input_embeddings()
        ids = torch.arange(module.weight.shape[0], device=module.weight.device)
        table_VE: Tensor = module(ids).detach()
        return table_VE

    def hidden(self, embeds_NSE: Tensor, index_NL: Tensor) -> Tensor:
        """Hidden states that enter the head, at chosen positions.

        No attention mask is used: sequences are padded on the right, and a causal model cannot see ahead.

        Args:
            embeds_NSE: input embeddings (N, S, E), padded on the right.
            index_NL: positions to return (N, L).

        Returns:
            (N, L, D), in the model's dtype.
        """
        body = self._differentiated if embeds_NSE.requires_grad else self.body
        return hidden_states(body, embeds_NSE.to(self.dtype), index_NL).to(self.head.weight_VD.dtype)

    def read(self, ids_NS: Tensor, index_NL: Tensor) -> Tensor:
        """`hidden` of token ids (N, S), padded on the right."""
        return self.hidden(self.embeddings_VE[ids_NS], index_NL)

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic of the body."""
        return self.embeddings_VE.dtype

    def fingerprint(self) -> str:
        """sha256 of weights, settings and tokenizer: two models with the same one give the same run."""
        digest = hashlib.sha256(_described(self.tokenizer).encode())
        settings = _without_history(self.model.config.to_dict())
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def hidden_states(body: Any, embeds_NSE: Tensor, index_NL: Tensor) -> Tensor:
    """A body's output at chosen positions (N, L, D)."""
    embeds_NSE = embeds_NSE.clone()  # CTRL scales in place what it is given
    with attention_to_differentiate(body), layers_to_differentiate(body):
        states_NSD: Tensor = body(inputs_embeds=embeds_NSE, use_cache=False).last_hidden_state
    return states_NSD.gather(1, index_NL.unsqueeze(-1).expand(-1, -1, states_NSD.shape[-1]))


def load_model(
    model_name_or_path: str | Path | ModelConfig | LanguageModel = DEMO_MODEL, **options: Any
) -> LanguageModel:
    """Loads a causal LM with its tokenizer.

    Args:
        model_name_or_path: Hub id, local folder, `demo`, a `ModelConfig`, or a `LanguageModel` (returned as is).
        **options: the other fields of `ModelConfig`: `dtype`, `device`, `attn_implementation`, ...

    Raises:
        ModelError: if the model cannot be found, is no causal LM, or cannot be taken apart.
        NonFiniteError: if its numbers are not finite in this dtype.
        ConfigError: if there is no such option.
    """
    if isinstance(model_name_or_path, LanguageModel):
        return model_name_or_path
    given = model_name_or_path
    if not isinstance(given, str | Path | ModelConfig):
        raise ModelError(
            f"a {type(given).__name__} is no name of a model; wrap it: LanguageModel(model, tokenizer)"
        )
    known = given.model_dump() if isinstance(given, ModelConfig) else {"model_name_or_path": str(given)}
    for option in options:
        if option not in ModelConfig.model_fields:
            raise ConfigError(f"load_model has no option {option!r}{nearest(option, ModelConfig.model_fields)}")
    config = ModelConfig(**{**known, **options})
    model, tokenizer = load_pretrained(config)
    how = (config.torch_compile, config.gradient_checkpointing)
    return LanguageModel(model, tokenizer, config.model_name_or_path, *how)


def _without_history(settings: Any) -> Any:
    """Settings without what saving and loading changes in them (the weights tell their dtype themselves)."""
    if not isinstance(settings, dict):
        return settings
    history = ("_name_or_path", "transformers_version", "architectures", "dtype")
    return {key: _without_history(value) for key, value in settings.items() if key not in history}


def _described(tokenizer: Any) -> str:
    """What a tokenizer does, merges and normalisation included, without its settings of the moment."""
    vocabulary = repr(sorted(tokenizer.get_vocab().items()))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):
        return vocabulary
    steps = json.loads(backend.to_str())
    for state in ("truncation", "padding"):
        steps.pop(state, None)
    return vocabulary + json.dumps(steps, sort_keys=True)


def _check_kind(model: Any, title: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{title} is an encoder-decoder, whose text and label are two sequences; {USE}")
    reads_forward = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not reads_forward:
        raise ModelError(f"{title} is a masked LM, which lets a token see those after it; {USE}")


def body_of(model: Any, title: str) -> Any:
    """What a transformers model computes hidden states with.

    Raises:
        ModelError: if it has no such part.
    """
    body = getattr(model, model.base_model_prefix, None)
    if body is None or body is model:
        raise ModelError(f"{title} has no body apart from its head; {USE}")
    return body


def _check_weights(lm: LanguageModel) -> None:
    for name, weight in lm.model.named_parameters():
        if weight.is_floating_point() and not bool(torch.stack(weight.detach().aminmax()).isfinite().all()):
            remedy = "" if weight.dtype == torch.float32 else ", or load it with dtype='float32'"
            raise ModelError(
                f"{lm.title} has NaN or infinity in its weight {name}, in {_dtype(weight)}; give an intact "
                f"checkpoint{remedy}"
            )


def _check_tokens(lm: LanguageModel) -> None:
    vocabulary = lm.tokenizer.get_vocab() if hasattr(lm.tokenizer, "get_vocab") else {}
    tokens, rows = max(vocabulary.values(), default=-1) + 1, lm.model.get_input_embeddings().weight.shape[0]
    if tokens > min(rows, lm.vocab_size):
        raise ModelError(
            f"{lm.title} has {min(rows, lm.vocab_size)} rows in its embedding table and its tokenizer has "
            f"{tokens} tokens; give the tokenizer that it was trained with, or call "
            f"model.resize_token_embeddings({tokens})"
        )


@contextmanager
def _explained(lm: LanguageModel, what: str) -> Iterator[None]:
    """Whatever a model's own code raises is an error of the model."""
    try:
        yield
    except (torch.OutOfMemoryError, ModelError, NonFiniteError):
        raise
    except Exception as err:
        raise ModelError(
            f"{lm.title} does not {what} in {_dtype(lm.head.weight_VD)} on {lm.head.weight_VD.device}: "
            f"{type(err).__name__}: {err}; try dtype='float32' and attn_implementation='eager', or {USE}"
        ) from err


def _check_finite(lm: LanguageModel, numbers: Tensor, what: str) -> None:
    if not bool(numbers.isfinite().all()):
        raise NonFiniteError(
            f"{lm.title}: {what} of eight tokens are not finite in {_dtype(lm.embeddings_VE)}; "
            "load it with dtype='bfloat16' or dtype='float32'"
        )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


@torch.no_grad()
def _check_parts(lm: LanguageModel) -> None:
    """Body then head must be the model: catches architectures that do something else in between.

    Logits that are small hide a soft cap, so the head is also tried on hidden states made large.
    """
    ids = torch.arange(2, 10, device=lm.device).remainder(lm.vocab_size)[None]
    index = torch.arange(ids.shape[1], device=lm.device)[None]
    with _explained(lm, "run"):
        own_SV = _own_logits(lm, ids, 1.0)
    assert own_SV is not None
    _check_finite(lm, own_SV, "the logits")
    with _explained(lm, "run on input embeddings (inputs_embeds), which are what the x-update changes,"):
        hidden_SD = lm.hidden(lm.embeddings_VE[ids], index)[0]
    logits_SV = _check_head(lm, hidden_SD, own_SV)
    size = torch.nn.functional.linear(hidden_SD, lm.head.weight_VD).abs().max() * lm.head.scale
    boost = float(_LARGE / size.float().clamp_min(1e-9))
    if (large_SV := _own_logits(lm, ids, boost)) is not None:
        _check_head(lm, hidden_SD * boost, large_SV)
    other = torch.cat([ids[:, :4], ids[:, :4]], dim=1)
    other_SV, _ = lm.head(lm.hidden(lm.embeddings_VE[other], index)[0])
    if not bool((other_SV[:4] - logits_SV[:4]).abs().max() < _tolerance(lm) * logits_SV.abs().max()):
        raise ModelError(f"{lm.title} lets a token see those after it; use a causal LM")


def _own_logits(lm: LanguageModel, ids_1S: Tensor, boost: float) -> Tensor | None:
    """The model's own logits (S, V), of hidden states that are multiplied on their way into the head.

    None where its head cannot be reached that way.
    """
    calls = []

    def multiply(layer: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        calls.append(layer)
        return (inputs[0] * boost, *inputs[1:])

    handle = lm.model.get_output_embeddings().register_forward_pre_hook(multiply)
    try:
        logits_SV: Tensor = lm.model(input_ids=ids_1S, use_cache=False).logits[0].float()
    finally:
        handle.remove()
    return logits_SV if calls or boost == 1.0 else None


def _check_head(lm: LanguageModel, hidden_SD: Tensor, own_SV: Tensor) -> Tensor:
    logits_SV, _ = lm.head(hidden_SD)
    error = (logits_SV - own_SV).abs().max() / own_SV.abs().max().clamp_min(1e-9)
    if not bool(error < _tolerance(lm)):
        raise ModelError(
            f"{lm.title}: the head on the body's output differs from the model's own "
            f"logits by {error:.1e} relative, so its gradient has no closed form here; use a model without "
            "extra steps between its body and its head"
        )
    return logits_SV


def _tolerance(lm: LanguageModel) -> float:
    """Relative, of logits: rounding apart, both sides compute the same."""
    return 1e-3 if lm.dtype == torch.float32 and not is_quantised(lm.model) else 3e-2


@torch.enable_grad()
def _check_backward(lm: LanguageModel) -> None:
    """The x-update needs the derivative with respect to input embeddings; not every kernel has one."""
    ids = torch.arange(2, 10, device=lm.device).remainder(lm.vocab_size)[None]
    embeds_1SE = lm.embeddings_VE[ids].requires_grad_(True)
    with _explained(lm, "differentiate with respect to its input embeddings"):
        states = lm.hidden(embeds_1SE, torch.tensor([[7]], device=lm.device)).float()
        weights_D = torch.linspace(-1, 1, states.shape[-1], device=lm.device)
        (found_1SE,) = torch.autograd.grad((states * weights_D).sum(), embeds_1SE)
    _check_finite(lm, found_1SE, "the derivatives with respect to the input embeddings")
