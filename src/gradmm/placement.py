"""Where a model's weights lie, and in how many bits: one device or several, whole or quantised.

What is quantised are the body's linear layers (bitsandbytes: LLM.int8, Dettmers et al. 2022; NF4, Dettmers et al.
2023). Embedding table and head stay as they are, because gradients are the head's. Inputs, table and head are on
one device, the first; a body that is spread over several ends on another, and what it returns is brought back.
"""

from __future__ import annotations

import importlib.util
import logging
from functools import partial
from typing import Any, Literal

import torch

from gradmm.errors import ModelError, listed

DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]
_EXTRA = "install gradmm[large]"


def loading_arguments(
    device: str, dtype: torch.dtype, device_map: DeviceMap | None, load_in_8bit: bool, load_in_4bit: bool
) -> dict[str, Any]:
    """What transformers has to be told of place and bits; nothing where the model is moved whole afterwards.

    Args:
        device: where all of it goes if there is no map.
        dtype: of the arithmetic, and of all weights that are not quantised.
        device_map: how it is spread.
        load_in_8bit: whether linear layers have 8 bits.
        load_in_4bit: whether they have 4.

    Raises:
        ModelError: if a library is not installed, or the device is unknown.
    """
    found: dict[str, Any] = {}
    if load_in_8bit or load_in_4bit:
        _require("bitsandbytes", "weights in 8 or 4 bits need")
        from transformers import BitsAndBytesConfig

        # It says at every product that in 8 bits it multiplies in float16, which the setting says once.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        found["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_8bit=load_in_8bit,
            load_in_4bit=load_in_4bit,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
        )
        found["device_map"] = {"": str(find_device(device))}
    if device_map is not None:
        found["device_map"] = device_map
    if found:
        _require("accelerate", "quantised models, and those on several devices, need")
    return found


def settled(model: Any, device: str) -> Any:
    """A loaded model where it is to be: moved whole, unless it has been spread or quantised where it is.

    Raises:
        ModelError: if the device cannot be used, or devices hold only a part of the weights.
    """
    if getattr(model, "hf_device_map", None) is None and not is_quantised(model):
        try:
            return model.to(find_device(device))
        except (RuntimeError, AssertionError, NotImplementedError) as err:
            raise ModelError(f"device {device!r} cannot be used here: {err}; try 'auto' or 'cpu'") from err
    away = [name for name, weight in model.named_parameters() if weight.device.type == "meta"]
    if away:
        raise ModelError(
            f"the devices' memory does not hold the whole model ({listed(away)} would stay outside), and what is "
            "outside cannot be differentiated; set model.load_in_8bit or model.load_in_4bit, a smaller "
            "model.dtype, or take a smaller model or more devices"
        )
    return model


def keep_derivatives(model: Any) -> None:
    """Keeps bitsandbytes from laying out 4-bit weights for a CPU's bfloat16 units.

    It does so at the first pass that is not differentiated, and from then on has no derivative, of any pass: what
    comes back is zero, without an error.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def is_quantised(model: Any) -> bool:
    """Whether weights have 8 or 4 bits."""
    return bool(getattr(model, "is_quantized", False))


def is_spread(model: Any) -> bool:
    """Whether weights lie on several devices."""
    return len({weight.device for weight in model.parameters()}) > 1


def find_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA, then MPS, then the CPU.

    Raises:
        ModelError: if torch knows no such device.
    """
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError as err:
            raise ModelError(f"device {name!r} is unknown to torch; try 'auto', 'cpu' or 'cuda'") from err
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def join_ends(model: Any, body: Any) -> None:
    """Brings what a spread body returns, and the head, to the device of the embedding table, in place.

    What is computed with inputs, table and head is computed there.
    """
    device, head = model.get_input_embeddings().weight.device, model.get_output_embeddings()
    body.register_forward_hook(partial(_returned, device))
    if head is not None and head.weight.device != device:
        from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

        remove_hook_from_module(head)
        add_hook_to_module(head.to(device), AlignDevicesHook(execution_device=device))


def _returned(device: torch.device, body: Any, inputs: Any, output: Any) -> Any:
    output.last_hidden_state = output.last_hidden_state.to(device)
    return output


def _require(library: str, what: str) -> None:
    if importlib.util.find_spec(library) is None:
        raise ModelError(f"{what} the {library} library; {_EXTRA}")
