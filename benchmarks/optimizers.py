"""What one training step takes beyond the loaded model, in memory and time: AdamW, SGD and Addax.

Every measurement is a process of its own: two steps, so that moments exist while gradients do, with the peak of
both. On the CPU that is resident memory, on CUDA what torch has allocated. The kinds of rows are separate passes
in every case; AdamW and SGD add up their gradients, as gradient accumulation does. Weights are float32.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

MODELS = ("reviews6m", "Llama, random")
OPTIMIZERS = ("adamw", "sgd", "addax")
KINDS = {"mixed": ("short", "long"), "only short": ("short",), "only long": ("long",)}
ROWS, LENGTHS = 4, {"short": 32, "long": 224}
SMALL_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Freed tensors go back to the system at once: resident memory is what is alive."""


def table(console: Console) -> None:
    """Runs all cases and prints them."""
    sizes = ", ".join(f"{ROWS} {kind} of {length} tokens" for kind, length in LENGTHS.items())
    out = Table(title=f"One training step; rows: {sizes}")
    for column in ("model", "weights MiB", "rows", "optimiser", "peak beyond it MiB", "of the weights", "seconds"):
        out.add_column(column, justify="left" if column in ("model", "rows", "optimiser") else "right")
    for model in MODELS:
        for kinds in KINDS:
            for optim in OPTIMIZERS:
                found = _apart(model, optim, kinds)
                share = f"{found['peak'] / found['weights']:.2f}"
                figures = (f"{found['peak'] / 2**20:,.0f}", share, f"{found['seconds']:.2f}")
                out.add_row(model, f"{found['weights'] / 2**20:,.0f}", kinds, optim, *figures)
        out.add_section()
    console.print(out)


def _apart(*case: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.optimizers", *case]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | SMALL_BLOCKS)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(name: str, optim: str, kinds: str) -> dict[str, float]:
    """One process's measurement: bytes of weights and of the peak beyond them, seconds of the second step."""
    import torch

    from gradmm.training.optimizers import OptimizerConfig, make_optimizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _model(name).to(device).train()
    for weight in model.parameters():  # loaded ones may still be pages of a file, which cost nothing until written
        weight.data = weight.data.clone()
        weight.requires_grad_(True)
    losses = {kind: _loss(model, length) for kind, length in LENGTHS.items()}
    _warm_up(model)
    config = OptimizerConfig.model_validate({"optim": optim, "learning_rate": 1e-4})
    optimizer = make_optimizer(model.parameters(), config)
    before = _memory()
    for _ in range(2):
        began = time.perf_counter()
        _step(optimizer, {kind: losses[kind] for kind in KINDS[kinds]})
        seconds = time.perf_counter() - began
    weights = sum(weight.nbytes for weight in model.parameters())
    return {"weights": weights, "peak": _peak() - before, "seconds": seconds}


def _step(optimizer: Any, losses: dict[str, Callable[[], Any]]) -> None:
    from gradmm.training.addax import Addax

    if isinstance(optimizer, Addax):
        optimizer.step(losses.get("short"), losses.get("long"))
        return
    optimizer.zero_grad()
    for loss in losses.values():
        (loss() / len(losses)).backward()
    optimizer.step()


def _loss(model: Any, length: int) -> Callable[[], Any]:
    import torch

    draw = torch.Generator().manual_seed(length)
    ids = torch.randint(model.config.vocab_size, (ROWS, length), generator=draw).to(model.device)
    return lambda: model(input_ids=ids, labels=ids).loss


def _model(name: str) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from gradmm.models import load_model

    if name == MODELS[0]:
        return load_model("demo").model
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16_384,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=10,
        num_attention_heads=12,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def _warm_up(model: Any) -> None:
    """What libraries allocate once and for all belongs to no optimiser."""
    _loss(model, 4)().backward()
    model.zero_grad()


def _memory() -> float:
    """Bytes now; peaks count from here."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated())
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as refs:  # Linux: sets the peak to what is resident
        refs.write("5")
    return _resident("VmRSS")


def _peak() -> float:
    import torch

    return float(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else _resident("VmHWM")


def _resident(name: str) -> float:
    with open("/proc/self/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith(name))
    return int(line.split()[1]) * 1024.0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("optim", choices=OPTIMIZERS)
    parser.add_argument("kinds", choices=KINDS)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.model, arguments.optim, arguments.kinds)))
