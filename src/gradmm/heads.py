"""The output head of a causal LM: what happens between the body's hidden states and the logits.

Shape suffixes: N positions, V vocabulary, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradmm.errors import ModelError

USE = "use a causal LM (decoder-only), such as GPT-2, Llama or Qwen"
_SCALES = {"logit_scale": 1, "lm_head_multiplier": 1, "logits_scaling": -1}
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


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
        h_ND = h_ND.to(self.weight_VD.dtype)  # Mamba's body adds up in float32 whatever its weights are
        z_NV = torch.nn.functional.linear(h_ND, self.weight_VD, self.bias_V).float()
        if self.cap is None:
            return z_NV * self.scale if self.scale != 1.0 else z_NV, self.scale
        squashed_NV = torch.tanh(z_NV * (self.scale / self.cap))
        return self.cap * squashed_NV, self.scale * (1 - squashed_NV.square())

    def rows(self, tokens_M: Tensor) -> Head:
        """The head of some tokens alone."""
        bias_M = None if self.bias_V is None else self.bias_V[tokens_M]
        return replace(self, weight_VD=self.weight_VD[tokens_M], bias_V=bias_M)


def head_of(model: Any, title: str) -> Head:
    """The head of a transformers model, its own weights (which may be in training), scale and soft cap.

    Raises:
        ModelError: if it is not linear.
    """
    layer = model.get_output_embeddings()
    if not isinstance(layer, torch.nn.Linear):
        raise ModelError(f"{title} has no linear output head; {USE}")
    config = model.config.get_text_config()
    scale = 1.0
    for key, power in _SCALES.items():
        scale *= float(getattr(config, key, None) or 1.0) ** power
    caps = [float(cap) for key in _CAPS if (cap := getattr(config, key, None))]
    return Head(layer.weight, layer.bias, scale, caps[0] if caps else None)
