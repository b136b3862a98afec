"""On a GPU: how near the limit passes come, what recorded decodes bring, the literal algorithm, the paper's job.

    python -m benchmarks.gpu rates decode outer job bits

Models are of Phi-1.5's size (1.4 billion parameters) with random weights, in bfloat16: speed does not depend on
what they say. The job is that of `--config paper`: 2 classes of 100 texts, 30 outer iterations of 50 Adam steps.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import gradmm
from benchmarks import speed
from gradmm.config import GenerateConfig, load_config
from gradmm.data.presets import get_task
from gradmm.data.task import BoundTask
from gradmm.decoding import PromptCache
from gradmm.environment import describe_environment
from gradmm.loading import save_pretrained
from gradmm.memory import BatchLimit
from gradmm.models import LanguageModel, load_model
from gradmm.resources import peak_memory
from gradmm.solvers.projection import Projector, Vocabulary
from gradmm.throughput import measure_rates
from gradmm.workload import UPDATE

_OUTER = {"model": "phi-1.5", "device": "cuda", "texts": 10, "length": 24, "blocks": 20, "inner": 50, "outer": 2}


def main() -> None:
    """Prints the tables that are asked for."""
    tables: dict[str, Callable[[Console, argparse.Namespace], None]] = {
        "rates": rates,
        "decode": decodes,
        "outer": outer,
        "job": job,
        "bits": bits,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", choices=list(tables))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", choices=["phi-1.5", "gpt2", "demo"], default="phi-1.5")
    parser.add_argument("--texts", type=int, nargs="*", default=[64, 200], help="texts at once")
    arguments = parser.parse_args()
    console = Console(width=140)
    console.print(
        f"{describe_environment(torch.device(arguments.device))['device_name']}, torch {torch.__version__}"
    )
    for name in arguments.tables:
        tables[name](console, arguments)


def rates(console: Console, arguments: argparse.Namespace) -> None:
    """FLOP/s of every kind of pass, beside a product of large matrices."""
    lm, task = _model(arguments)
    out = Table(title="passes")
    for column in ("pass", "texts", "ms", "TFLOP/s", "of the peak"):
        out.add_column(column, justify="right")
    for texts in arguments.texts:
        for rate in measure_rates(lm, task, paper(per_device_batch_size=texts)):
            cells = (f"{1000 * rate.seconds:.1f}", f"{rate.per_second / 1e12:.1f}", f"{rate.share:.0%}")
            out.add_row(rate.kind, str(rate.texts), *cells)
    console.print(out)


@torch.no_grad()
def decodes(console: Console, arguments: argparse.Namespace) -> None:
    """A projection, its steps launched one by one and replayed."""
    lm, task = _model(arguments)
    out = Table(title="a projection of 24 tokens, ms a token")
    for column in ("texts", "plain", "replayed", "ratio"):
        out.add_column(column, justify="right")
    for texts in arguments.texts:
        plain, replayed = (_projection(lm, task, texts, refused) for refused in (True, False))
        out.add_row(str(texts), f"{plain:.2f}", f"{replayed:.2f}", f"{plain / replayed:.1f}x")
    console.print(out)


def _projection(lm: LanguageModel, task: BoundTask, texts: int, is_refused: bool) -> float:
    """Milliseconds a token."""
    prompts = PromptCache(lm, task.instruction_ids, BatchLimit(texts))
    if is_refused:
        prompts._recordings.refuse("the benchmark asks for it")
    vocabulary = Vocabulary(torch.ones(lm.vocab_size, dtype=torch.bool, device=lm.device), None, None)
    projector = Projector(prompts, lm.embeddings_VE, vocabulary, paper().projection)
    vectors = torch.randn(texts, 24, lm.embeddings_VE.shape[1], device=lm.device)
    labels, lengths = (torch.full((texts,), number, device=lm.device) for number in (0, 24))
    found = []
    for _ in range(5):
        began = time.perf_counter()
        projector(vectors, lengths, labels).cpu()  # waits for the device
        found.append(1000 * (time.perf_counter() - began) / 24)
    return min(found[1:])


def outer(console: Console, arguments: argparse.Namespace) -> None:
    """One outer iteration over all blocks of the paper's job, beside the literal algorithm's."""
    case: dict[str, Any] = {**_OUTER, "model": arguments.model, "device": arguments.device, "dtype": "bfloat16"}
    ours = speed.apart("closed", case)
    out = Table(title="one outer iteration, 20 blocks of 10 texts")
    for column in ("", "s", "ratio", "GiB", "distance differs"):
        out.add_column(column, justify="right" if column else "left")
    out.add_row("ours, bfloat16", f"{ours['seconds']:.2f}", "", f"{ours['gib']:.1f}", "")
    for dtype in ("bfloat16", "float32"):
        slow = speed.apart("literal", {**case, "literal_dtype": dtype})
        differs = abs(slow["objective"] - ours["objective"]) / slow["objective"]
        cells = (f"{slow['seconds']:.2f}", f"{slow['seconds'] / ours['seconds']:.1f}x", f"{slow['gib']:.1f}")
        out.add_row(f"literal, {dtype}", *cells, f"{differs:.1e}")
    console.print(out)


def job(console: Console, arguments: argparse.Namespace) -> None:
    """The paper's job, from real rows to a run folder."""
    lm, _ = _model(arguments)
    with peak_memory(lm.device) as peak, tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        result = gradmm.generate(lm, "sst2", "demo", paper(per_device_batch_size=200), f"{folder}/run")
        seconds = time.perf_counter() - began
    stages = ", ".join(f"{name} {spent:.1f}" for name, spent in result.metrics["seconds"].items())
    gib = (peak.bytes or 0) / 2**30
    console.print(f"the paper's job: {seconds:.1f} s ({stages}); {gib:.1f} GiB; {len(result.dataset)} texts")


def bits(console: Console, arguments: argparse.Namespace) -> None:
    """An Adam step of the x-update, and its memory, with weights in fewer bits and activations computed again."""
    whole, task = _model(arguments)
    out = Table(title=f"x-update, one step of {arguments.texts[-1]} texts")
    for column in ("", "weights GiB", "peak GiB", "ms"):
        out.add_column(column, justify="right" if column else "left")
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(whole.model, whole.tokenizer, Path(folder))
        del whole
        for name in ("", "load_in_8bit", "load_in_4bit", "gradient_checkpointing"):
            gc.collect()
            torch.cuda.empty_cache()
            options = {name: True} if name else {}
            lm = load_model(folder, dtype="bfloat16", device=arguments.device, **options)
            weights = torch.cuda.memory_allocated() / 2**30
            with peak_memory(lm.device) as peak:
                config = paper(per_device_batch_size=arguments.texts[-1])
                rate = next(r for r in measure_rates(lm, task, config) if r.kind == UPDATE)
            cells = (f"{weights:.2f}", f"{(peak.bytes or 0) / 2**30:.2f}", f"{1000 * rate.seconds:.1f}")
            out.add_row(name or "bfloat16", *cells)
            del lm
    console.print(out)


def paper(**settings: Any) -> GenerateConfig:
    """The settings of `--config paper`."""
    return load_config("paper", settings).generate_config()


def _model(arguments: argparse.Namespace) -> tuple[LanguageModel, BoundTask]:
    lm = speed.random_model(arguments.model, torch.device(arguments.device), "bfloat16")
    return lm, BoundTask(get_task("sst2"), lm.tokenizer, lm.max_length)


if __name__ == "__main__":
    main()
