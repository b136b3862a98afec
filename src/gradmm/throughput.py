"""How fast this machine is at what runs are made of, beside the fastest that it multiplies matrices.

Rates are those of the fastest of several tries, because other programs only ever take time away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from gradmm.blocks import BlockRunner
from gradmm.config import GenerateConfig
from gradmm.data.task import BoundTask
from gradmm.decoding import log_perplexity, sample
from gradmm.gradients.exact_target import compute_target
from gradmm.gradients.factors import label_factors
from gradmm.gradients.losses import VOCABULARY, Loss, VerbaliserLoss
from gradmm.gradients.spaces import Space
from gradmm.models import LanguageModel
from gradmm.solvers.matching import GradientMatching
from gradmm.training.writer import tune_writer
from gradmm.workload import GRADIENTS, READABILITY, TUNING, UPDATE, WRITING, Workload

_TRIES = 3
_LONG = 5.0  # seconds, beside which warming up is nothing
_SIDES = {"cpu": (512, 1024, 2048)}  # of square matrices; the last ones are large enough for the peak
_LARGE_SIDE = 8192
_SLOW = 0.1  # seconds of a product, where a larger one would show nothing more


@dataclass(frozen=True)
class Rate:
    """One kind of pass on a full batch of full texts."""

    kind: str
    """One of `gradmm.workload.PASSES`."""
    texts: int
    flop: float
    """See `gradmm.arithmetic`."""
    seconds: float
    peak: float
    """FLOP/s of a product of large matrices in the model's arithmetic."""

    @property
    def per_second(self) -> float:
        """FLOP/s."""
        return self.flop / self.seconds

    @property
    def share(self) -> float:
        """Of the peak."""
        return self.per_second / self.peak


def matrix_peak(device: torch.device, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter) -> float:
    """FLOP/s of the product of two large square matrices: less large ones where they already take long.

    A processor without bfloat16 takes a hundred times as long for it, and its peak is as low at any size.

    Args:
        device: where.
        dtype: of the matrices.
        clock: seconds of what; `time.process_time` leaves out what other programs took from one thread.
    """
    peak = 0.0
    for side in _SIDES.get(device.type, (_LARGE_SIDE,)):
        # Of numbers like any other: a GPU multiplies ones faster, because it takes less power.
        generator = torch.Generator(device).manual_seed(0)
        a, b = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
        seconds = _fastest(partial(torch.mm, a, b), device, clock)
        peak = max(peak, 2.0 * side**3 / seconds)
        if seconds > _SLOW:
            break
    return peak


def measure_rates(
    lm: LanguageModel, task: BoundTask, config: GenerateConfig, clock: Callable[[], float] = time.perf_counter
) -> Iterator[Rate]:
    """Rates of the passes that runs with these settings are made of.

    Args:
        lm: the model.
        task: the rendering.
        config: batch size, block size, length and solver are taken from it.
        clock: as of `matrix_peak`.

    Raises:
        ConfigError: if such texts do not fit the context.
        OutOfMemoryError: if one text does not fit into memory.
    """
    bench, load = Bench(lm, task, config), Workload(lm, task, config)
    peak = matrix_peak(lm.device, lm.dtype, clock)
    asked = load.texts([1], rows=1)
    for kind, (texts, work) in bench.passes().items():
        if asked[kind]:
            flop = texts * load.each(kind, config.lengths.max_tokens)
            yield Rate(kind, texts, flop, _fastest(work, lm.device, clock), peak)


class Bench:
    """One batch of texts of random tokens, and what can be done with it."""

    def __init__(self, lm: LanguageModel, task: BoundTask, config: GenerateConfig) -> None:
        self.lm, self.task, self.config = lm, task, config
        self.runner = BlockRunner(lm, task, config)
        self.loss: Loss = VOCABULARY
        if config.space.loss == "verbalisers":
            self.loss = VerbaliserLoss.of(task, lm.device)
        self.texts, self.length = config.batch_size(lm.device), config.lengths.max_tokens
        allowed_A = self.runner.allowed_V.nonzero()[:, 0].cpu()
        generator = torch.Generator().manual_seed(0)
        drawn_NT = torch.randint(len(allowed_A), (self.texts, self.length), generator=generator)
        self.ids: list[list[int]] = allowed_A[drawn_NT].tolist()

    def passes(self) -> dict[str, tuple[int, Callable[[], object]]]:
        """By kind: how many texts go through at once, and the work."""
        size = min(self.config.block_size, self.texts)
        blocks = max(1, self.texts // size)
        return {
            GRADIENTS: (self.texts, self._gradients),
            READABILITY: (self.texts, lambda: log_perplexity(self.lm, self.ids, self.runner.limit)),
            WRITING: (self.texts, self._write),
            TUNING: (self.config.writer.per_device_train_batch_size, self._tune),
            UPDATE: (blocks * size, self._x_update(blocks, size)),
        }

    def _gradients(self) -> None:
        for _ in self.runner.limit.map(self._factors, self.ids, "measuring speed"):
            pass

    @torch.no_grad()
    def _factors(self, ids: Sequence[list[int]]) -> None:
        batch = self.task.collate(ids, [0] * len(ids)).to(self.lm.device)
        label_factors(self.lm, batch, batch.embed(self.lm.embeddings_VE), 1, loss=self.loss)

    def _write(self) -> None:
        labels_N = torch.zeros(self.texts, dtype=torch.long, device=self.lm.device)
        generator = torch.Generator().manual_seed(0)
        sample(self.runner.prompts, labels_N, self.length, self.runner.allowed_V, generator)

    def _tune(self) -> None:
        """One update. The copy that is tuned is part of it, as it is of a run."""
        examples = [(self.task.instruction_ids[0], self.ids[0])] * self.config.writer.per_device_train_batch_size
        config = self.config.writer.model_copy(update={"num_train_epochs": 1.0})
        tune_writer(self.lm, examples, config, torch.Generator().manual_seed(0))

    def _x_update(self, blocks: int, size: int) -> Callable[[], object]:
        """One inner step."""
        text = self.task.decode(self.ids[0])
        rows = [[[text]] for _ in self.task.label_ids]
        target = compute_target(self.lm, self.task, rows, space=Space((), self.loss))
        lengths_KB = torch.full((blocks, size), self.length)
        config, projector = self.config.distance, self.runner.projector
        problem = GradientMatching(self.lm, self.task, target, config, projector, [0] * blocks, lengths_KB)
        x = self.lm.embeddings_VE[torch.tensor(self.ids[: blocks * size], device=self.lm.device)].float()
        x = x.view(blocks, size, self.length, -1).requires_grad_()
        return lambda: torch.autograd.grad(problem.objective(x).sum(), x)


def _fastest(
    work: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of the fastest try after one that warms up; what takes long is done once."""
    best = float("inf")
    for attempt in range(_TRIES + 1):
        began = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = clock() - began
        if seconds > _LONG:
            return min(best, seconds)
        best = min(best, seconds) if attempt else best
    return best
