"""Optimisers and schedules for fine-tuning, by name; settings have transformers' names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gradmm.errors import ConfigError
from gradmm.training.addax import Addax


class OptimizerConfig(BaseModel):
    """How weights are moved; names as in transformers, where it has one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    optim: Literal["adamw", "sgd", "addax"] = "adamw"
    """`addax` takes the least memory; it is meant for weights that barely fit."""
    learning_rate: float = Field(5e-5, gt=0)
    """Peak, after warm-up."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled, of all weights alike; for `sgd` as in torch."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of AdamW's first moment."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of its second moment."""
    adam_epsilon: float = Field(1e-8, ge=0)
    """Added to the root of its second moment."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Of SGD."""
    addax_alpha: float = Field(1e-3, ge=0, le=1)
    """[alpha] Weight of the zeroth-order estimate beside the gradient. g0 z is about sqrt(number of weights) times
    as long as a gradient, so this is small; the paper tunes it per task."""
    addax_perturbation: float = Field(1e-3, gt=0)
    """[eps] How far the weights are moved to and fro, times N(0, 1); MeZO's value."""
    addax_long_tokens: int = Field(170, ge=0)
    """[L_T] Rows of more tokens get the zeroth-order estimate. The longest that backpropagation has memory for."""
    lr_scheduler_type: Literal["linear", "constant"] = "linear"
    """`linear` falls to zero over the training."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from zero."""


def make_optimizer(parameters: Iterable[Tensor], config: OptimizerConfig, seed: int = 0) -> Optimizer:
    """The optimiser that the settings name.

    Args:
        parameters: weights to move.
        config: which, and how.
        seed: of Addax's directions.

    Raises:
        ConfigError: if Addax cannot move such parameters.
    """
    rate, decay = config.learning_rate, config.weight_decay
    if config.optim == "addax":
        return Addax(parameters, rate, config.addax_alpha, config.addax_perturbation, decay, seed)
    if config.optim == "sgd":
        return torch.optim.SGD(parameters, rate, config.momentum, weight_decay=decay)
    betas = (config.adam_beta1, config.adam_beta2)
    return torch.optim.AdamW(parameters, rate, betas, config.adam_epsilon, decay)


def make_schedule(optimizer: Optimizer, config: OptimizerConfig, max_steps: int) -> LambdaLR:
    """Warm-up from zero, then a constant rate or a line to zero; as transformers' schedules.

    Args:
        optimizer: whose learning rate is set.
        config: which schedule.
        max_steps: steps of the whole training.

    Raises:
        ConfigError: if the warm-up is longer than the training.
    """
    warmup = config.warmup_steps
    if 0 < max_steps < warmup:
        raise ConfigError(
            f"warmup_steps is {warmup} but training ends after {max_steps} steps; lower warmup_steps, or train "
            "longer"
        )

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        if config.lr_scheduler_type == "constant":
            return 1.0
        return max(0.0, (max_steps - step) / max(1, max_steps - warmup))

    return LambdaLR(optimizer, factor)
