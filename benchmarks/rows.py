"""Many real rows, read from Parquet: CPU time a row, how much of it the model takes, and memory.

The model is small and random, so that what stands around its passes shows; the rows are of 4 to 19 words. Every
number of rows is a process of its own, with one thread; the peak is all that was resident in it, the pages of the
rows' file included, beside what was resident when model and rows were loaded.

    python -m benchmarks.rows 20000 200000 1000000
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.candidates import peak

WORDS = "a the film story plot cast song is was very dull great sad warm end"
BATCH, WRITTEN = 64, 50_000


def main() -> None:
    """Prints the table; with `--measure`, what a process measures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rows")
    parser.add_argument("rows", type=int, nargs="+", help="of two classes together")
    parser.add_argument("--measure", action="store_true")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measured(arguments.rows[0])))
        return
    out = Table(title=f"Targets of two classes, batches of {BATCH}, one thread")
    for column in ("rows", "CPU s", "ms a row", "the model's part", "MiB when loaded", "peak MiB"):
        out.add_column(column, justify="right")
    for count in arguments.rows:
        command = [sys.executable, "-m", "benchmarks.rows", str(count), "--measure"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        one = json.loads(done.stdout)
        share, each = one["model"] / one["seconds"], 1000 * one["seconds"] / count
        sizes = (f"{one[key] / 2**20:,.0f}" for key in ("loaded", "peak"))
        out.add_row(f"{count:,}", f"{one['seconds']:.1f}", f"{each:.3f}", f"{share:.0%}", *sizes)
    Console(width=140).print(out)


def measured(count: int) -> dict[str, float]:
    """Seconds of both classes' targets and of the model within them; bytes that were resident."""
    import torch

    from gradmm.data.checks import match_labels
    from gradmm.data.presets import get_task
    from gradmm.data.sources import load_data
    from gradmm.data.task import BoundTask
    from gradmm.gradients.exact_target import WINDOW, class_target
    from gradmm.memory import BatchLimit

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "rows.parquet", count)
        lm, rows = small_model(), load_data(Path(folder) / "rows.parquet")
        task = BoundTask(match_labels(get_task("sst2"), rows), lm.tokenizer, lm.max_length)
        clock, loaded = Clock(lm.body), peak()
        began = time.process_time()
        for label in range(2):
            batches = rows.iter_batches(label, WINDOW * BATCH)
            class_target(lm, task, label, batches, BatchLimit(BATCH), with_unigrams=True)
        return {"seconds": time.process_time() - began, "model": clock.seconds, "loaded": loaded, "peak": peak()}


class Clock:
    """CPU seconds of a module's passes."""

    def __init__(self, module: Any) -> None:
        self.seconds, self._began = 0.0, 0.0
        module.register_forward_pre_hook(lambda *_: self._begin())
        module.register_forward_hook(lambda *_: self._end())

    def _begin(self) -> None:
        self._began = time.process_time()

    def _end(self) -> None:
        self.seconds += time.process_time() - self._began


def small_model() -> Any:
    """Two layers of 64, on the packaged tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from gradmm.models import LanguageModel, load_model

    packaged = load_model("demo")
    sizes: Any = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128, "vocab_size": packaged.vocab_size}
    config = GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)
    return LanguageModel(GPT2LMHeadModel(config), packaged.tokenizer, "small")


def write(file: Path, count: int) -> None:
    """Rows of two classes, no two alike."""
    schema = pa.schema([("text", pa.string()), ("label", pa.int64())])
    with pq.ParquetWriter(file, schema) as out:
        for texts, labels in drawn(count):
            out.write_table(pa.table({"text": texts, "label": labels}, schema))


def drawn(count: int) -> Iterator[tuple[list[str], list[int]]]:
    """Texts and labels, some at a time."""
    chance, words = random.Random(0), WORDS.split()
    for first in range(0, count, WRITTEN):
        numbers = range(first, min(first + WRITTEN, count))
        texts = [f"{' '.join(chance.choices(words, k=chance.randrange(4, 20)))} {number}." for number in numbers]
        yield texts, [chance.randrange(2) for _ in numbers]


if __name__ == "__main__":
    main()
