"""The target: rows as they come beside rows of like length together, and beside what the machine can multiply.

CPU seconds with one thread, of one class; the better of two.
"""

from __future__ import annotations

import argparse
import time

import torch
from rich.console import Console
from rich.table import Table

from gradmm.config import GenerateConfig
from gradmm.data.checks import match_labels
from gradmm.data.presets import get_task
from gradmm.data.sources import DataConfig, LabelledData, load_data
from gradmm.data.task import BoundTask
from gradmm.gradients.exact_target import WINDOW, class_target
from gradmm.memory import BatchLimit
from gradmm.models import LanguageModel, load_model
from gradmm.throughput import matrix_peak
from gradmm.workload import GRADIENTS, Workload

BATCH = 64


def table(console: Console, arguments: argparse.Namespace) -> None:
    """Computes a class's target with rows sorted within one batch and within several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    lm = load_model("demo")
    rows = load_data(arguments.data, DataConfig(max_rows_per_class=arguments.rows))
    task = BoundTask(match_labels(get_task(arguments.task), rows), lm.tokenizer, lm.max_length)
    load, texts = Workload(lm, task, GenerateConfig()), rows.texts_of(0)
    flop = sum(load.each(GRADIENTS, len(ids)) for ids in task.texts_ids(texts))
    peak = matrix_peak(lm.device, lm.dtype, time.process_time)
    out = Table(title=f"Target of {len(texts)} rows, one thread, product of matrices {peak / 1e9:.0f} GFLOP/s")
    for column in ("batches sorted together", "CPU s", "rows/s", "GFLOP/s", "of the peak"):
        out.add_column(column, justify="right")
    for window in (1, WINDOW):
        seconds = min(_measured(lm, task, rows, window) for _ in range(2))
        rate = flop / seconds
        figures = f"{seconds:.2f}", f"{len(texts) / seconds:.0f}", f"{rate / 1e9:.0f}", f"{rate / peak:.0%}"
        out.add_row(str(window), *figures)
    console.print(out)
    torch.set_num_threads(threads)


def _measured(lm: LanguageModel, task: BoundTask, rows: LabelledData, window: int) -> float:
    began = time.process_time()
    class_target(lm, task, 0, rows.iter_batches(0, window * BATCH), BatchLimit(BATCH))
    return time.process_time() - began
