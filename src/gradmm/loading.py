"""Where a language model comes from: its settings, its folder or Hub id, and what to do if it cannot be loaded.

A local folder is read without a network, weights come from safetensors alone (no pickle is ever opened), and
whatever transformers raises becomes a `ModelError` with a remedy.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, model_validator

from gradmm.errors import ModelError, listed
from gradmm.placement import DeviceMap, loading_arguments, settled

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
DEMO_MODEL = "demo"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_WHOLE = (
    "Give a folder with config.json, safetensors weights and tokenizer, or the id of a causal LM on the Hub "
    "(HF_HUB_OFFLINE=1 reads the local cache only)."
)
_TOKENIZER = (
    "Give a folder that also holds the tokenizer's files (tokenizer.json, tokenizer_config.json), as "
    "tokenizer.save_pretrained writes them."
)
_REMEDIES = {
    "trust_remote_code": "Its code is not part of transformers: read it, then set trust_remote_code=True.",
    "safetensorerror": "The weights are damaged or cut short; copy or download them again.",
    "ignore_mismatched_sizes": (
        "The weights have other shapes than config.json says; give the config.json that was saved with them."
    ),
    "unrecognized configuration class": (
        "It is no causal LM (an encoder-decoder, a masked LM or another kind), so no next token follows a text; "
        "use a decoder-only model such as GPT-2, Llama or Qwen."
    ),
    "file named model.safetensors": (
        "It has no safetensors weights, and pickles, which can run code, are never opened here; where you trust "
        "it, load it once with transformers and write it to a folder with save_pretrained."
    ),
}
"""What to do, by a part of what transformers says."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


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
    device_map: DeviceMap | None = None
    """As in transformers: spreads the layers over all GPUs there are, for models that one does not hold; `auto` is
    the usual one."""
    load_in_8bit: bool = False
    """The body's linear layers in 8 bits, by bitsandbytes (`gradmm[large]`): a quarter of float32's memory. They
    multiply in float16."""
    load_in_4bit: bool = False
    """The same in 4 bits (NF4): an eighth of it, with more rounding."""
    attn_implementation: str | None = None
    """As in transformers; None leaves the choice to it."""
    torch_compile: bool = False
    """Have torch compile the body for passes that are differentiated (ADMM's x-update). It takes up to a minute,
    and on a GPU then saves a seventh of every pass."""
    gradient_checkpointing: bool = False
    """Passes that are differentiated (ADMM's x-update, tuning the writer, fine-tuning) hold one layer's
    activations at a time and compute them again on the way back, which takes about a third longer."""
    trust_remote_code: bool = False
    """Runs code that comes with the model; off unless asked for."""

    @model_validator(mode="after")
    def _one_place(self) -> ModelConfig:
        if self.load_in_8bit and self.load_in_4bit:
            raise ValueError("load_in_8bit and load_in_4bit are two ways to hold the same weights; set one")
        if self.device_map is not None and self.device != "auto":
            raise ValueError(
                f"device {self.device!r} is one device and device_map {self.device_map!r} spreads over all; set "
                "one"
            )
        return self


def model_path(name: str) -> str:
    """The folder or Hub id behind a name; `demo` is the packaged model."""
    if name == DEMO_MODEL:
        return str(Path(__file__).parent / "assets" / "reviews6m")
    path = Path(
        os.path.expanduser(name)
    )  # unlike Path.expanduser it leaves the folder of an unknown user as it is
    is_folder = os.path.isdir(path)  # `Path.is_dir` raises for a name that is too long
    if name.startswith((".", "/", "~")) and not is_folder:
        raise ModelError(f"no model folder at {name!r}; give a folder with config.json, a Hub id, or 'demo'")
    return str(path) if is_folder else name


def load_pretrained(config: ModelConfig) -> tuple[Any, Any]:
    """A transformers model, on its device, and its tokenizer.

    Raises:
        ModelError: if they cannot be loaded, saying why and what to do.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    path = model_path(config.model_name_or_path)
    is_folder = os.path.isdir(path)
    if is_folder:
        _check_folder(Path(path))
    shared = {
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
        "local_files_only": is_folder,
    }
    place = loading_arguments(
        config.device, DTYPES[config.dtype], config.device_map, config.load_in_8bit, config.load_in_4bit
    )
    loaded: Any  # model and report; the stubs know of the model alone
    with _silent_transformers():
        with _explained(config, f"cannot read the settings of {path!r}", _WHOLE):
            AutoConfig.from_pretrained(path, **shared)
        with _explained(config, f"cannot load the tokenizer of {path!r}", _TOKENIZER):
            tokenizer = AutoTokenizer.from_pretrained(path, **shared)
        with _explained(config, f"cannot load {path!r} as a causal language model", _WHOLE):
            loaded = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=DTYPES[config.dtype],
                attn_implementation=config.attn_implementation,
                use_safetensors=True,
                output_loading_info=True,
                **place,
                **shared,
            )
    if not tokenizer("a text", add_special_tokens=False).input_ids:  # what transformers makes where there is none
        raise ModelError(f"{path!r} has no tokenizer; copy the whole model, tokenizer.json included")
    model, report = loaded
    if report["missing_keys"]:
        raise ModelError(
            f"{path!r} has no weights for {listed(report['missing_keys'])}, so transformers drew them at random; "
            "give a checkpoint of a whole causal LM"
        )
    return settled(model, config.device), tokenizer


def save_pretrained(model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes a model and its tokenizer as transformers does, weights as safetensors, without a word."""
    with _silent_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers about itself
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _check_folder(folder: Path) -> None:
    """What is wrong with a folder before a library looks at it."""
    settings = folder / "config.json"
    if not settings.is_file():
        adapter = (folder / "adapter_config.json").is_file()
        remedy = (
            "merge the adapter into its model and save that" if adapter else "give a folder that save_pretrained"
        )
        remedy += "" if adapter else " wrote, or a Hub id"
        raise ModelError(f"{str(folder)!r} has no config.json{' but an adapter' if adapter else ''}; {remedy}")
    try:
        is_mapping = isinstance(json.loads(settings.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError) as err:
        raise ModelError(f"{str(settings)!r} is no JSON: {err}; copy the model again") from err
    if not is_mapping:
        raise ModelError(f"{str(settings)!r} holds no settings (a JSON object is needed); copy the model again")
    if any((folder / name).is_file() for name in _WEIGHTS):
        return
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{str(folder)!r} has weights as pickle only ({listed(pickles)}), which can run code and is never "
            f"opened here; where you trust it, convert it once: "
            f"AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    raise ModelError(f"{str(folder)!r} has no weights ({' or '.join(_WEIGHTS)}); copy the whole model")


@contextmanager
def _explained(config: ModelConfig, failed: str, remedy: str) -> Iterator[None]:
    """Makes whatever transformers and its readers raise, which is of every kind, a `ModelError`."""
    try:
        yield
    except Exception as err:
        text = (str(err).strip() or type(err).__name__).split("\nModel type should be one of")[0]
        if not isinstance(err, OSError | ValueError | ImportError):
            text = f"{type(err).__name__}: {text}"
        raise ModelError(f"{failed}: {text}\n{_known_remedy(err, config) or remedy}") from err


def _known_remedy(err: Exception, config: ModelConfig) -> str | None:
    """What to do, by what is said."""
    said = f"{type(err).__name__} {err}".lower()
    attention = config.attn_implementation
    if attention and any(sign in said for sign in ("attn_implementation", "flash", "sdpa", "attention impl")):
        return f"attn_implementation={attention!r} cannot be used here; leave it out, or give 'sdpa' or 'eager'."
    if "does not recognize this architecture" in said or "should have a `model_type`" in said:
        import transformers

        return (
            f"transformers {transformers.__version__} does not know this model_type: install a newer "
            "transformers, or, if the model brings code of its own, read it and set trust_remote_code=True."
        )
    return next((remedy for sign, remedy in _REMEDIES.items() if sign in said), None)


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """No bars, and no report of the loader's own: what is wrong is told by the error."""
    from transformers.utils import logging as transformers_logging

    showed, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if showed:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
