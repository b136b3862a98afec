"""Which operators a body is computed with, where the library's own choice is slow.

What is computed is the same up to rounding; `docs/performance.md` has what each one brought.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from gradmm.errors import ModelError
from gradmm.memory import is_out_of_memory

log = logging.getLogger("gradmm")
_TANH_GELU = ("NewGELUActivation", "FastGELUActivation")
_HALF = (torch.bfloat16, torch.float16)
_LAYERS = "_checkpointed_layers"


def fuse_activations(model: Any) -> None:
    """Makes one operator of a GELU that transformers computes in eight (GPT-2, Phi and others), in place.

    All of them are `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))` (Hendrycks and Gimpel 2016).
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__ in _TANH_GELU:
                setattr(module, name, torch.nn.GELU(approximate="tanh"))


@contextmanager
def attention_to_differentiate(body: Any) -> Iterator[None]:
    """Attention written out, where the fused one's derivative is slow: on a CPU in half precision.

    There torch's fused kernel takes five times as long for its backward pass as the three products that it is made
    of. Passes that are not differentiated keep it, and so does a model whose attention was chosen by name.
    """
    config = body.config
    if not (torch.is_grad_enabled() and config._attn_implementation == "sdpa" and _is_half_on_cpu(body)):
        yield
        return
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def checkpoint_layers(body: Any, title: str) -> None:
    """Has the activations of every layer computed again on the way back, instead of kept, in place (activation
    checkpointing, Chen et al. 2016): one layer's are held at a time, and the input of each, for a third more time.

    Raises:
        ModelError: if transformers cannot do that with such layers.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers: list[Any] = [layer for layer in body.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            f"{title} has no layers that transformers can checkpoint; leave model.gradient_checkpointing out"
        )
    again = partial(checkpoint, use_reentrant=False, context_fn=partial(_as_before, body))
    for layer in layers:
        layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, again
    setattr(body, _LAYERS, layers)


def _as_before(body: Any) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around a layer's first pass, and around the one on the way back, which has to be the same."""
    return nullcontext(), attention_to_differentiate(body)


@contextmanager
def layers_to_differentiate(body: Any) -> Iterator[None]:
    """Layers that are to be checkpointed are, if a pass is differentiated.

    Transformers does it to layers in training alone; of what is within them, such as dropout, nothing changes.
    """
    idle = [layer for layer in getattr(body, _LAYERS, ()) if not layer.training]
    if not (idle and torch.is_grad_enabled()):
        yield
        return
    for layer in idle:
        layer.training = True
    try:
        yield
    finally:
        for layer in idle:
            layer.training = False


class CompiledBody:
    """A body for passes that are differentiated, compiled by torch: its small operators become a few large ones.

    What torch cannot compile is computed by the body itself from then on, with a warning.
    """

    def __init__(self, body: Any) -> None:
        self._body = body
        self._compiled: Any = torch.compile(body)

    @property
    def config(self) -> Any:
        """The body's."""
        return self._body.config

    def get_input_embeddings(self) -> Any:
        """The body's."""
        return self._body.get_input_embeddings()

    def __call__(self, **inputs: Any) -> Any:
        """As the body's."""
        if self._compiled is not None:
            try:
                return self._compiled(**inputs)
            except Exception as err:  # a compiler's errors are of every kind
                if is_out_of_memory(err):
                    raise
                first = next(iter(str(err).splitlines()), "")
                log.warning("torch cannot compile the model (%s: %s); going on without", type(err).__name__, first)
                self._compiled = None
        return self._body(**inputs)


def _is_half_on_cpu(body: Any) -> bool:
    weight = body.get_input_embeddings().weight
    if weight.device.type != "cpu":
        return False
    return weight.dtype in _HALF or torch.is_autocast_enabled("cpu")
