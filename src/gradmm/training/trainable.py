"""A causal LM whose weights move: the same reading of token ids as `LanguageModel`, with derivatives.

Shape suffixes: N texts, S sequence length, L label tokens, D hidden size.
"""

from __future__ import annotations

import copy
import importlib.util
import textwrap
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from gradmm.errors import ConfigError
from gradmm.heads import Head, head_of
from gradmm.models import LanguageModel, body_of, hidden_states
from gradmm.placement import is_quantised


class LoraSettings(BaseModel):
    """Low-rank adapters (Hu et al., 2022) instead of all weights, by the peft library."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    r: int = Field(16, ge=1)
    """Rank of every adapter."""
    lora_alpha: int = Field(32, ge=1)
    """The adapters' output is scaled by `lora_alpha / r`."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Names of the layers that get one, or a regular expression; by default all linear ones but the head."""


class TrainableModel:
    """A copy of a language model, in training.

    Args:
        lm: where it starts; stays as it is.
        lora: adapters to train instead of all weights.
        autocast: whether the body computes in bfloat16, with weights as they are.
        keep_dtype: weights stay in the model's dtype; otherwise those that are trained are float32.
        seed: of the adapters' first values.

    Raises:
        ConfigError: if adapters are asked for and peft is not installed, or finds no such layers; if weights that
            are quantised are to be trained.
    """

    def __init__(
        self,
        lm: LanguageModel,
        lora: LoraSettings | None = None,
        autocast: bool = False,
        keep_dtype: bool = False,
        seed: int = 0,
    ) -> None:
        require_trainable(lm, lora)
        self.name, self.tokenizer, self._autocast = lm.name, lm.tokenizer, autocast
        self.model = _copied(lm.model)
        self._adapted = None if lora is None else _with_adapters(self.model, lora, seed)
        if lora is None:
            self.model.requires_grad_(True)
            if not keep_dtype:
                self.model.float()
        self.body = body_of(self.model, lm.title)
        self.head: Head = head_of(self.model, lm.title)

    @property
    def device(self) -> torch.device:
        """Where inputs are put."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The weights that are trained, by name; a weight that is used twice is there once."""
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    def read(self, ids_NS: Tensor, index_NL: Tensor) -> Tensor:
        """Hidden states (N, L, D) that enter the head at chosen positions; no mask, as in `LanguageModel`."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            states_NLD = hidden_states(self.body, self.model.get_input_embeddings()(ids_NS), index_NL)
        return states_NLD.to(self.head.weight_VD.dtype)

    @torch.no_grad()
    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the weights that are trained."""
        return {name: weight.detach().clone() for name, weight in self.parameters().items()}

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Puts a snapshot back."""
        for name, weight in self.parameters().items():
            weight.copy_(weights[name])

    def language_model(self) -> LanguageModel:
        """A frozen copy as it is now, adapters merged into the weights.

        Beside weights that are quantised they stay: most of what they say is less than a step of 4 bits.
        """
        if self._adapted is None or is_quantised(self.model):
            return LanguageModel(_copied(self.model), self.tokenizer, self.name)
        return LanguageModel(_copied(self._adapted).merge_and_unload(), self.tokenizer, self.name)


def _copied(model: Any) -> Any:
    """A copy; states that modules keep of what they read last (RecurrentGemma) are cut off from their history."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and value.grad_fn is not None:
                setattr(module, name, value.detach())
    return copy.deepcopy(model)


def require_trainable(lm: LanguageModel, lora: LoraSettings | None, setting: str = "lora") -> None:
    """Whether a model can be trained as asked for.

    Args:
        lm: the model.
        lora: adapters to train instead of all weights.
        setting: where those are given, for the message.

    Raises:
        ConfigError: if its weights have too few bits for it, or peft, which adapters need, is not installed.
    """
    if lora is None and is_quantised(lm.model):
        raise ConfigError(
            f"{lm.title} has weights in 8 or 4 bits, which cannot be trained; train adapters beside them "
            f"({setting}={{}}), or load it without load_in_8bit and load_in_4bit"
        )
    if lora is not None and importlib.util.find_spec("peft") is None:
        raise ConfigError("lora needs the peft library; install gradmm[lora]")


def _with_adapters(model: Any, lora: LoraSettings, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    modules = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=lora.r, lora_alpha=lora.lora_alpha, target_modules=modules, lora_dropout=0.0
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it adapts itself to GPT-2's transposed layers
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, config)
        except ValueError as err:
            said = textwrap.shorten(str(err), 200, placeholder="...")
            raise ConfigError(
                f"lora.target_modules {lora.target_modules!r}: {said.rstrip('.')}; name linear layers between the "
                "embeddings and the head"
            ) from err
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if any(hasattr(end, "base_layer") for end in ends):
        raise ConfigError(
            f"lora.target_modules {lora.target_modules!r} cover the input embeddings or the head, which may be "
            "one matrix; name layers between them, or leave it at 'all-linear'"
        )
    return adapted
