"""The training loop of `train_lm.py`: schedule, AdamW steps, validation, checkpoints.

It knows nothing of files of text or of the command line: it sees windows of token ids and a `Recipe`. The
state of a run is one safetensors file (weights, optimizer moments, and `Progress` as JSON in its header),
because replacing one file is atomic and replacing a folder is not.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from train_lm_data import InputError, Windows

Log = Callable[[str], None]
MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW keeps of every weight
LOWEST_LEARNING_RATE = 0.05  # where the cosine ends, as a share of the peak
EVALUATED_AT_ONCE = 4096  # tokens per validation batch, to bound the memory that their logits take


@dataclass(frozen=True)
class Recipe:
    """What decides the weights, besides the model and the data."""

    window: int
    """Tokens in a training window."""
    batch_size: int
    """Windows in one forward and backward pass."""
    accumulate: int
    """Passes per optimizer step."""
    tokens: int | None
    """Stop once so many tokens were trained on."""
    minutes: float | None
    """Stop once training took so long; with both limits, the first one reached ends the run."""
    learning_rate: float
    """Peak, after warm-up."""
    warmup_ratio: float
    """Share of the run over which the learning rate rises from zero."""
    bfloat16: bool
    """Autocast matrix products; weights, gradients and moments are float32 in any case."""
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0

    @property
    def tokens_per_step(self) -> int:
        """Training tokens that one optimizer step sees."""
        return self.window * self.batch_size * self.accumulate

    def fraction(self, step: int, seconds: float) -> float:
        """How much of the run is behind after `step` steps and `seconds` of training; 1 or more: finished."""
        by_tokens = step / math.ceil(self.tokens / self.tokens_per_step) if self.tokens else 0.0
        by_time = seconds / (60 * self.minutes) if self.minutes else 0.0
        return max(by_tokens, by_time)

    def learning_rate_at(self, fraction: float) -> float:
        """Linear warm-up from zero, then half a cosine down to `LOWEST_LEARNING_RATE` of the peak."""
        if fraction < self.warmup_ratio:
            return self.learning_rate * fraction / self.warmup_ratio
        done = (fraction - self.warmup_ratio) / (1 - self.warmup_ratio)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.learning_rate * (LOWEST_LEARNING_RATE + (1 - LOWEST_LEARNING_RATE) * cosine)


@dataclass
class Progress:
    """Where a run stands; with the weights and the moments, all that a resumed run needs."""

    step: int = 0
    seconds: float = 0.0
    """Training and validation, over all sessions."""
    validation: list[dict[str, float]] = field(default_factory=list)
    """`step`, `tokens` and `loss` (nats per token) of every evaluation."""


@dataclass(frozen=True)
class Cadence:
    """What happens how often, in steps; none of it changes the weights."""

    log_every: int
    eval_every: int
    save_every: int
    eval_tokens: int
    stop_after: int | None


class Trainer:
    """A model in training.

    Args:
        model: float32, on the device where it is to be trained.
        train: windows in the order of the run.
        validation: windows in any fixed order.
        recipe: see there.
        log: receives one line of text at a time.
    """

    def __init__(
        self, model: PreTrainedModel, train: Windows, validation: Windows, recipe: Recipe, log: Log
    ) -> None:
        self.model, self.recipe, self.progress = model, recipe, Progress()
        self._train, self._validation, self._log = train, validation, log
        self._parameters = dict(model.named_parameters())
        self._optimizer = make_optimizer(list(self._parameters.values()), recipe)

    @property
    def fraction(self) -> float:
        """How much of the run is behind; 1 or more: finished."""
        return self.recipe.fraction(self.progress.step, self.progress.seconds)

    def _losses(self, windows: Windows, first: int, size: int, reduction: str) -> Tensor:
        """Cross-entropy of every next token of the windows, in nats, reduced as told."""
        device = self.model.device
        inputs_BT, targets_BT = (ids.to(device) for ids in windows.batch(first, size))
        with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.bfloat16):
            logits_BTV = self.model(input_ids=inputs_BT, use_cache=False).logits
        return cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten(), reduction=reduction)

    def step(self) -> float:
        """One optimizer step; returns its training loss. Raises InputError when the loss is not finite."""
        recipe, loss = self.recipe, 0.0
        first = self.progress.step * recipe.batch_size * recipe.accumulate
        for k in range(recipe.accumulate):
            share = self._losses(self._train, first + k * recipe.batch_size, recipe.batch_size, "mean")
            torch.autograd.backward(share / recipe.accumulate)
            loss += float(share.detach()) / recipe.accumulate
        if not math.isfinite(loss):
            raise InputError(
                f"the training loss is {loss} at step {self.progress.step}; "
                f"give a --learning-rate below {recipe.learning_rate:g}, or --autocast off"
            )
        torch.nn.utils.clip_grad_norm_(self._parameters.values(), recipe.max_grad_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(self.fraction)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        return loss

    @torch.no_grad()
    def evaluate(self, tokens: int) -> float:
        """Validation loss in nats per token, over the first windows, about so many tokens; recorded."""
        self.model.train(False)
        window = self.recipe.window
        count = min(self._validation.count, max(1, tokens // window))
        at_once = max(1, EVALUATED_AT_ONCE // window)
        total = 0.0
        for first in range(0, count, at_once):
            total += float(self._losses(self._validation, first, min(at_once, count - first), "sum"))
        self.model.train()
        loss, step = total / (count * window), self.progress.step
        tokens_seen = step * self.recipe.tokens_per_step
        self.progress.validation.append({"step": step, "tokens": tokens_seen, "loss": loss})
        self._log(f"step {step:6,}  validation loss {loss:.4f} nats per token ({count * window:,} tokens)")
        return loss

    def run(self, cadence: Cadence, checkpoint: Path) -> bool:
        """Trains until the budget is spent (True) or to `cadence.stop_after` (False); saves a checkpoint."""
        meter, stop = Meter(self, self._log), cadence.stop_after
        clock = time.monotonic()
        if self.progress.step == 0:
            self.evaluate(cadence.eval_tokens)
        while self.fraction < 1 and (stop is None or self.progress.step < stop):
            began = time.monotonic()
            loss = self.step()
            step = self.progress.step
            meter.add(loss, time.monotonic() - began)
            if step % cadence.eval_every == 0:
                self.evaluate(cadence.eval_tokens)
            now = time.monotonic()
            self.progress.seconds, clock = self.progress.seconds + now - clock, now
            if step % cadence.log_every == 0:
                meter.report()
            if step % cadence.save_every == 0:
                self.save(checkpoint)
        finished = self.fraction >= 1
        if finished and self.progress.validation[-1]["step"] != self.progress.step:
            self.evaluate(cadence.eval_tokens)
        self.save(checkpoint)
        return finished

    def save(self, path: Path) -> None:
        """Replaces the checkpoint; a crash at any moment leaves the old one or the new one, whole."""
        tensors = {f"weight.{name}": weight.detach().cpu() for name, weight in self._parameters.items()}
        for name, weight in self._parameters.items():
            for moment in MOMENTS:
                tensors[f"{moment}.{name}"] = self._optimizer.state[weight][moment].cpu()
        new = path.with_suffix(".new")
        save_file(tensors, new, {"progress": json.dumps(asdict(self.progress))})
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(path)

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Continues from what `save` wrote."""
        with safe_open(path, "pt", device=str(self.model.device)) as file:
            self.progress = Progress(**json.loads(file.metadata()["progress"]))
            for name, weight in self._parameters.items():
                weight.copy_(file.get_tensor(f"weight.{name}"))
                moments = {moment: file.get_tensor(f"{moment}.{name}") for moment in MOMENTS}
                count = torch.tensor(float(self.progress.step), device=weight.device)  # AdamW: per weight
                self._optimizer.state[weight] = {"step": count, **moments}


def make_optimizer(weights: list[torch.nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW that decays matrices (embeddings too) and leaves the gains of the norms alone."""
    groups: list[dict[str, Any]] = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)


class Meter:
    """Speed, mean loss and remaining time since the last line, for people."""

    def __init__(self, trainer: Trainer, log: Log) -> None:
        self._trainer, self._log = trainer, log
        self._started, self._fraction = time.monotonic(), trainer.fraction
        self._losses: list[float] = []
        self._seconds = 0.0

    def add(self, loss: float, seconds: float) -> None:
        """Takes note of one step."""
        self._losses.append(loss)
        self._seconds += seconds

    def report(self) -> None:
        """Logs one line and starts anew."""
        recipe, step, done = self._trainer.recipe, self._trainer.progress.step, self._trainer.fraction
        speed = len(self._losses) * recipe.tokens_per_step / self._seconds
        left = (time.monotonic() - self._started) * (1 - done) / max(done - self._fraction, 1e-9)
        self._log(
            f"step {step:6,}  {100 * min(done, 1):5.1f}%  {step * recipe.tokens_per_step:,} tokens  "
            f"loss {sum(self._losses) / len(self._losses):.4f}  lr {recipe.learning_rate_at(done):.2e}  "
            f"{speed:,.0f} tokens/s  ETA {clock_time(left)}"
        )
        self._losses, self._seconds = [], 0.0


def clock_time(seconds: float) -> str:
    """`1:02:03` for 3,723 seconds."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
