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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from gradmm.errors import ConfigError, ModelError, listed, nearest

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
DEMO_MODEL = "demo"


class ModelConfig(BaseModel):
    """Which model, and how it is held."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_name_or_path: str = DEMO_MODEL
    """Hub id, local folder, or `demo` for the model that ships in the package."""
    revision: str | None = None
    """Git revision on the Hub."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the body; factors, distances and the ADMM state are always float32."""
    device: str = "auto"
    """`auto` takes CUDA, then MPS, then the CPU; or any torch device."""
    attn_implementation: str | None = None
    """As in transformers; None leaves the choice to it."""
    trust_remote_code: bool = False
    """Runs code that comes with the model; off unless asked for."""


@dataclass(frozen=True)
class Head:
    """The output head: `logits = transform(weight @ h + bias)`.

    `transform` is `scale * z`, soft-capped as `cap * tanh(scale * z / cap)` where `cap` is set.
    """

    weight_VD: Tensor
    bias_V: Tensor | None
    scale: float = 1.0
    cap: float | None = None

    def __call__(self, h_ND: Tensor) -> tuple[Tensor, Tensor | float]:
        """Returns float32 logits (N, V) and their derivative with respect to `W h + b` (N, V or a number)."""
        z_NV = torch.nn.functional.linear(h_ND, self.weight_VD, self.bias_V).float()
        if self.cap is None:
            return z_NV * self.scale if self.scale != 1.0 else z_NV, self.scale
        squashed_NV = torch.tanh(z_NV * (self.scale / self.cap))
        return self.cap * squashed_NV, self.scale * (1 - squashed_NV.square())


class LanguageModel:
    """A causal LM and its tokenizer, frozen, in evaluation mode.

    Args:
        model: a transformers `PreTrainedModel` with a language-modelling head.
        tokenizer: its tokenizer.
        name: what the user called it.

    Raises:
        ModelError: if body and head, taken apart, do not give the model's own logits.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str = "in memory") -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.body = _body_of(model, name)
        self.head = _head_of(model, name)
        _check_parts(self)

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
        found = [getattr(config, key, None) for key in ("max_position_embeddings", "n_positions", "n_ctx")]
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
        states_NSD: Tensor = self.body(inputs_embeds=embeds_NSE.to(self.dtype), use_cache=False).last_hidden_state
        index_NLD = index_NL.unsqueeze(-1).expand(-1, -1, states_NSD.shape[-1])
        return states_NSD.gather(1, index_NLD)

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic of the body."""
        return self.embeddings_VE.dtype

    def fingerprint(self) -> str:
        """sha256 of weights and vocabulary: two models with the same one give the same run."""
        digest = hashlib.sha256(repr(sorted(self.tokenizer.get_vocab().items())).encode())
        settings = self.model.config.to_dict()
        for key in ("_name_or_path", "transformers_version", "architectures", "dtype"):
            settings.pop(key, None)
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def load_model(
    model_name_or_path: str | Path | ModelConfig | LanguageModel = DEMO_MODEL, **options: Any
) -> LanguageModel:
    """Loads a causal LM with its tokenizer.

    Args:
        model_name_or_path: Hub id, local folder, `demo`, a `ModelConfig`, or a `LanguageModel` (returned as is).
        **options: the other fields of `ModelConfig`: `dtype`, `device`, `attn_implementation`, ...

    Raises:
        ModelError: if the model cannot be found, is no causal LM, or cannot be taken apart.
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
    path = model_path(config.model_name_or_path)
    model, tokenizer = _load(path, config)
    return LanguageModel(_moved(model, config.device), tokenizer, config.model_name_or_path)


def model_path(name: str) -> str:
    """The folder or Hub id behind a name; `demo` is the packaged model."""
    if name == DEMO_MODEL:
        return str(Path(__file__).parent / "assets" / "reviews6m")
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise ModelError(f"no model folder at {name!r}; give a folder with config.json, a Hub id, or 'demo'")
    return str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name


def _load(path: str, config: ModelConfig) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    shared = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    loaded: Any  # model and report; the stubs know of the model alone
    showed = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **shared)
        loaded = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=DTYPES[config.dtype],
            attn_implementation=config.attn_implementation,
            output_loading_info=True,
            **shared,
        )
    except (OSError, ValueError, KeyError, ImportError) as err:
        raise ModelError(
            f"cannot load {path!r} as a causal language model: {err}\n"
            "Give a folder with config.json, weights and tokenizer, or the id of a causal LM on the Hub "
            "(HF_HUB_OFFLINE=1 reads the local cache only)."
        ) from err
    finally:
        if showed:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    model, report = loaded
    if report["missing_keys"]:
        raise ModelError(
            f"{path!r} has no weights for {listed(report['missing_keys'])}, so transformers drew them at random; "
            "give a checkpoint of a whole causal LM"
        )
    return model, tokenizer


def _moved(model: Any, name: str) -> Any:
    device = _device(name)
    try:
        return model.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as err:
        raise ModelError(f"device {name!r} cannot be used here: {err}; try 'auto' or 'cpu'") from err


def _device(name: str) -> torch.device:
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError as err:
            raise ModelError(f"device {name!r} is unknown to torch; try 'auto', 'cpu' or 'cuda'") from err
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _body_of(model: Any, name: str) -> Any:
    body = getattr(model, model.base_model_prefix, None)
    if body is None or body is model:
        raise ModelError(f"{name!r} ({type(model).__name__}) has no body apart from its head; use a causal LM")
    return body


def _head_of(model: Any, name: str) -> Head:
    layer = model.get_output_embeddings()
    if not isinstance(layer, torch.nn.Linear):
        raise ModelError(f"{name!r} ({type(model).__name__}) has no linear output head; use a causal LM")
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    bias = None if layer.bias is None else layer.bias.detach()
    return Head(layer.weight.detach(), bias, scale, None if cap is None else float(cap))


@torch.no_grad()
def _check_parts(lm: LanguageModel) -> None:
    """Body then head must be the model: catches architectures that do something else in between."""
    ids = torch.arange(2, 10, device=lm.device).remainder(lm.vocab_size)[None]
    own_SV = lm.model(input_ids=ids).logits[0].float()
    index = torch.arange(ids.shape[1], device=lm.device)[None]
    logits_SV, _ = lm.head(lm.hidden(lm.embeddings_VE[ids], index)[0])
    error = (logits_SV - own_SV).abs().max() / own_SV.abs().max().clamp_min(1e-9)
    tolerance = 1e-3 if lm.dtype == torch.float32 else 3e-2
    if not bool(error < tolerance):
        raise ModelError(
            f"{lm.name!r} ({type(lm.model).__name__}): the head on the body's output differs from the model's own "
            f"logits by {error:.1e} relative, so its gradient has no closed form here; use a model without "
            "extra steps between its body and its head"
        )
    other = torch.cat([ids[:, :4], ids[:, :4]], dim=1)
    other_SV, _ = lm.head(lm.hidden(lm.embeddings_VE[other], index)[0])
    if not bool((other_SV[:4] - logits_SV[:4]).abs().max() < tolerance * logits_SV.abs().max()):
        raise ModelError(
            f"{lm.name!r} ({type(lm.model).__name__}) lets a token see those after it; use a causal LM"
        )
