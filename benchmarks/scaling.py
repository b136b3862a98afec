"""How time and memory grow with texts, their length, classes, vocabulary and the model, and with which exponent.

Every point is a process of its own, so that peak memory is its own, with one thread; CPU seconds, the fastest of
three tries. Models are random but for the packaged one: speed does not depend on what they say. An exponent is the
slope of a straight line through the logarithms of all points, and in brackets through the last two alone.

    python -m benchmarks.scaling [texts length classes vocabulary model]
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.candidates import peak

POINT: dict[str, Any] = {"model": "demo", "texts": 16, "length": 24}
AXES: dict[str, list[tuple[float, dict[str, Any]]]] = {
    "texts": [(n, {"texts": n}) for n in (8, 32, 128, 512)],
    "length": [(n, {"length": n}) for n in (16, 32, 64, 128, 256)],
    "vocabulary": [(n, {"model": [6, 256, n]}) for n in (8_192, 32_768, 131_072)],
    "model": [
        (parameters, {"model": model, "texts": 4})
        for parameters, model in (
            (6.9e6, [6, 256, 8_192]),
            (26e6, [6, 512, 16_384]),
            (124e6, [12, 768, 50_257]),
            (355e6, [24, 1024, 50_257]),
            (1.42e9, "phi-1.5"),
        )
    ],
    "classes": [(n, {"classes": n}) for n in (2, 8, 32, 128)],
}
"""Values, and how the point differs from `POINT`."""
WHAT = {
    "texts": "texts at once",
    "length": "tokens a text",
    "vocabulary": "tokens of the vocabulary",
    "model": "parameters",
    "classes": "classes, of 16 real rows each",
}
EACH = 16
"""Rows of every class."""


def main() -> None:
    """Prints the axes that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling")
    parser.add_argument("axes", nargs="*", help=f"{', '.join(AXES)}; all by default")
    parser.add_argument("--point", type=json.loads, help="what a process measures")
    arguments = parser.parse_args()
    if unknown := set(arguments.axes) - set(AXES):
        parser.error(f"no axis {', '.join(sorted(unknown))}; there are {', '.join(AXES)}")
    if arguments.point is not None:
        print(json.dumps(measured(arguments.point)))
        return
    tables(Console(width=140), arguments.axes or list(AXES))


def tables(console: Console, axes: Sequence[str] = tuple(AXES)) -> None:
    """One for every axis."""
    for axis in axes:
        table(console, axis)


def table(console: Console, axis: str) -> None:
    """Runs all points of an axis and prints them."""
    values = [value for value, _ in AXES[axis]]
    points = [_apart(POINT | point) for _, point in AXES[axis]]
    kinds = [kind for kind in points[0] if kind != "peak"]
    out = Table(title=f"CPU ms by {WHAT[axis]}, one thread; of the FLOP limit where it is known")
    for column in (WHAT[axis], *kinds, "peak MiB"):
        out.add_column(column, justify="right")
    for value, point in zip(values, points, strict=True):
        cells = [_cell(**point[kind]) for kind in kinds]
        out.add_row(f"{value:,.0f}", *cells, f"{point['peak'] / 2**20:,.0f}")
    grows = [exponents(values, [point[kind]["seconds"] for point in points]) for kind in kinds]
    out.add_row("exponent", *grows, exponents(values, [point["peak"] for point in points]))
    console.print(out)


def _cell(seconds: float, share: float | None = None) -> str:
    told = f"{1000 * seconds:,.0f}" if seconds > 0.01 else f"{1000 * seconds:.1f}"
    return told if share is None else f"{told} ({share:.0%})"


def exponents(x: Sequence[float], y: Sequence[float]) -> str:
    """Slope of log y over log x, by least squares; and from the last point but one to the last."""
    u, v = [math.log(one) for one in x], [math.log(one) for one in y]
    mean_u, mean_v = sum(u) / len(u), sum(v) / len(v)
    slope = sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True)) / sum((a - mean_u) ** 2 for a in u)
    return f"{slope:.2f} ({(v[-1] - v[-2]) / (u[-1] - u[-2]):.2f})"


def _apart(point: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.scaling", "--point", json.dumps(point)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(point: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds by kind of pass, their share of the limit, and the bytes that were resident at most."""
    import torch

    torch.set_num_threads(1)
    found = _stages(point["classes"]) if "classes" in point else _passes(point)
    return found | {"peak": peak()}


def _passes(point: dict[str, Any]) -> dict[str, Any]:
    """One pass of every kind over so many texts."""
    from gradmm.config import GenerateConfig
    from gradmm.data.presets import get_task
    from gradmm.data.task import BoundTask
    from gradmm.throughput import measure_rates

    lm = _model(point["model"])
    config = GenerateConfig.model_validate(
        {
            "solver": "both",
            "per_device_batch_size": point["texts"],
            "block_size": min(10, point["texts"]),
            "lengths": {"max_tokens": point["length"], "mean": min(20, point["length"])},
            "writer": {"rounds": 1},
            "label_check": {"reader": "model"},
        }
    )
    task = BoundTask(get_task("sst2"), lm.tokenizer, lm.max_length)
    rates = measure_rates(lm, task, config, time.process_time)
    return {rate.kind: {"seconds": rate.seconds, "share": rate.share} for rate in rates}


def _model(name: str | list[int]) -> Any:
    """The packaged model, one of `speed.random_model`, or GPT-2 of so many layers, numbers and tokens."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from benchmarks.speed import random_model
    from gradmm.models import LanguageModel, load_model

    if isinstance(name, str):
        return random_model(name, torch.device("cpu"))
    layers, width, tokens = name
    torch.manual_seed(0)
    ends: Any = {"bos_token_id": 0, "eos_token_id": 0}  # GPT-2's own are beyond a smaller vocabulary
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=width // 64, vocab_size=tokens, **ends)
    return LanguageModel(GPT2LMHeadModel(config), load_model("demo").tokenizer, f"{layers}x{width}")


def _stages(classes: int) -> dict[str, Any]:
    """What runs do once for all classes: the target, a look at the candidates, and a choice among them."""
    import torch

    from benchmarks.material import Memory
    from gradmm.comparison.material import Material
    from gradmm.config import GenerateConfig
    from gradmm.data.rows import LabelledData
    from gradmm.data.sources import load_data
    from gradmm.data.task import BoundTask, Task
    from gradmm.models import load_model

    lm = load_model("demo")
    words = [lm.tokenizer.decode(token) for token in range(lm.vocab_size)]
    words = [word for word in words if word[:1] == " " and word[1:].isalpha()][:classes]
    names = tuple(word.strip() for word in words)
    drawn = torch.randint(len(words), (classes, EACH, 12), generator=torch.Generator().manual_seed(0)).tolist()
    rows: LabelledData = load_data(
        [
            {"text": f"{number} {''.join(words[i] for i in text)}.", "label": name}
            for name, own in zip(names, drawn, strict=True)
            for number, text in enumerate(own)
        ]
    )
    about = Task(label_names=rows.label_names, verbalisers=tuple(f" {name}" for name in rows.label_names))
    task = BoundTask(about, lm.tokenizer, lm.max_length)
    settings = {
        "space": {"public_texts": EACH // 2},
        "pool": {"texts_per_text": 1},
        "writer": {"rounds": 1},
        "shrinkage": {"weight": 0},
    }
    material = Material(lm, task, rows, GenerateConfig.model_validate(settings), 0, Memory(), EACH // 4)
    found = {}
    stages: dict[str, Callable[[], object]] = {
        "space": lambda: material.space,
        "target": lambda: material.target,
        "look": lambda: material.seen_real,
        "select": lambda: material.select("real", material.target, EACH // 4),
    }
    _ = material.lm_texts  # written before: how long that takes, `texts` tells
    for name, work in stages.items():
        began = time.process_time()
        work()
        found[name] = {"seconds": time.process_time() - began}
    return found


if __name__ == "__main__":
    main()
