"""Fine-tuning: a causal LM as a classifier through the task's verbalisers.

Every step is a function of (seed, step), so that a training that is resumed draws the rows, and the dropout, that
an uninterrupted one draws. The weights of the best evaluation on a *development* split are kept; the test split
plays no part here.

Shape suffixes: N texts, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from gradmm.data.task import BoundTask
from gradmm.errors import ConfigError, NonFiniteError, OutOfMemoryError
from gradmm.labelling import class_log_probs, own_log_probs
from gradmm.memory import BatchLimit, is_out_of_memory
from gradmm.models import LanguageModel
from gradmm.seeds import derive_seed
from gradmm.training.addax import Addax, split_by_length
from gradmm.training.evaluate import evaluate
from gradmm.training.optimizers import OptimizerConfig, make_optimizer, make_schedule
from gradmm.training.rows import TokenRows
from gradmm.training.trainable import LoraSettings, TrainableModel

_LIKE, _FEW = 1.3, 4  # of the shortest text's length with the template; texts that are worth a pass
_WOULD_FIT = (
    "rows with fewer tokens, adapters (lora), bf16, optim addax, a smaller model, or a device with more memory "
    "(model.device)"
)


class TrainConfig(OptimizerConfig):
    """How a model is fine-tuned; names as in transformers."""

    max_steps: int = Field(200, ge=0)
    """Updates of the weights."""
    per_device_train_batch_size: int = Field(16, ge=1)
    """Rows that go through the model at once."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Such batches for every update."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients are clipped to this norm (over all weights); 0 does not clip. Not for Addax, which never holds
    all of them."""
    dev_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of every class's rows, one at least, that is held out as the development split where none is given.
    Read by `gradmm.train` alone."""
    loss: Literal["verbalisers", "vocabulary"] = "verbalisers"
    """Cross-entropy over the classes' verbalisers, or of the label's tokens over the whole vocabulary."""
    lora: LoraSettings | None = None
    """Adapters to train instead of all weights."""
    bf16: bool = False
    """Compute the body in bfloat16, with weights in float32."""
    seed: int = Field(0, ge=0)
    """Of the order of rows, of dropout, adapters and zeroth-order directions."""
    eval_steps: int = Field(20, ge=1)
    """Updates from one line of the history, and evaluation on the development split, to the next."""
    save_steps: int = Field(50, ge=1)
    """Updates from one checkpoint to the next, in a run folder."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop after so many evaluations without a better one; None trains to the end."""
    per_device_eval_batch_size: int = Field(64, ge=1)
    """Rows that are evaluated at once."""

    @model_validator(mode="after")
    def _one_way(self) -> TrainConfig:
        if self.optim == "addax" and self.gradient_accumulation_steps > 1:
            raise ValueError(
                "addax applies gradients while they are computed and can accumulate none; set "
                "gradient_accumulation_steps to 1"
            )
        return self


@dataclass
class TrainState:
    """Where a training is; with the tensors of `FineTuner.tensors`, a checkpoint."""

    step: int = 0
    """Updates that were made."""
    best_step: int | None = None
    """The step of the best evaluation, whose weights are kept."""
    best: tuple[float, float] = (-math.inf, -math.inf)
    """Its accuracy, and loss with the sign changed: larger is better."""
    stale: int = 0
    """Evaluations since."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Every `eval_steps`: step, mean training loss since the last line, accuracy and loss on the development split
    if there is one."""
    losses: list[float] = field(default_factory=list)
    """Training losses since the last line."""


class FineTuner:
    """One training.

    Args:
        lm: where the weights start; stays as it is.
        task: the rendering.
        train: the rows to train on; only the ratio of their weights counts, so that one of weight 2 among rows
            of weight 1 is as if it stood there twice.
        config: how.
        dev: the development split; None evaluates nothing and keeps the last weights.

    Raises:
        ConfigError: if there is nothing to stop early by, or the settings do not fit together or to the model.
    """

    def __init__(
        self,
        lm: LanguageModel,
        task: BoundTask,
        train: TokenRows,
        config: TrainConfig,
        dev: TokenRows | None = None,
    ) -> None:
        if config.early_stopping_patience is not None and dev is None:
            raise ConfigError(
                f"early_stopping_patience is {config.early_stopping_patience} but there is no development split "
                "to stop by; give one (dev, or dev_fraction), or leave it out"
            )
        self.task, self.train, self.config, self.dev = task, train, config, dev
        self._row_weights = None if train.weights is None else np.array(train.weights) / np.mean(train.weights)
        saves_memory = config.optim == "addax"
        self.model = TrainableModel(lm, config.lora, config.bf16, saves_memory, config.seed)
        self._weights = list(self.model.parameters().values())
        self.optimizer = make_optimizer(self._weights, config, config.seed)
        self.schedule = make_schedule(self.optimizer, config, config.max_steps)
        self.limit = BatchLimit(config.per_device_train_batch_size, _WOULD_FIT)
        self.eval_limit = BatchLimit(config.per_device_eval_batch_size, _WOULD_FIT)
        self.state = TrainState()
        self._best: dict[str, Tensor] = {}

    def run(self, told: Callable[[TrainState], None] = lambda state: None) -> TrainState:
        """Trains from the present state to the end, then puts the best weights back; `told` after every step."""
        while self.state.step < self.config.max_steps and not self._is_stale:
            self.step()
            told(self.state)
        if self._best:
            self.model.restore(self._best)
        return self.state

    @property
    def _is_stale(self) -> bool:
        patience = self.config.early_stopping_patience
        return patience is not None and self.state.stale >= patience

    def step(self) -> None:
        """One update, and an evaluation where one is due."""
        state, config = self.state, self.config
        rows = self._rows(state.step)
        self.model.model.train()
        with torch.random.fork_rng(devices=_devices(self.model.device)):
            torch.manual_seed(derive_seed(config.seed, "dropout", state.step))
            state.losses.append(self._update(rows))
        self.model.model.eval()
        self.schedule.step()
        state.step += 1
        if state.step % config.eval_steps == 0 or state.step == config.max_steps:
            self._note()

    def _rows(self, step: int) -> list[int]:
        """Rows of a step: epochs, each in an order of its own, end to end."""
        size, count = (
            self.config.per_device_train_batch_size * self.config.gradient_accumulation_steps,
            len(self.train),
        )
        places = range(step * size, (step + 1) * size)
        orders = {
            epoch: np.random.default_rng((self.config.seed, epoch)).permutation(count)
            for epoch in {place // count for place in places}
        }
        return [int(orders[place // count][place % count]) for place in places]

    def _update(self, rows: Sequence[int]) -> float:
        """Moves the weights; the mean loss before."""
        if isinstance(self.optimizer, Addax):
            return self._update_with(self.optimizer, rows)
        while True:
            try:
                loss = self._accumulate(rows)
                break
            except (RuntimeError, MemoryError) as error:
                self.optimizer.zero_grad()  # a backward pass that broke off has left a part
                self.limit.lower(error, "training")
        norm = torch.nn.utils.clip_grad_norm_(self._weights, self.config.max_grad_norm or math.inf)
        self._check_finite("gradient's norm", norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def _update_with(self, addax: Addax, rows: Sequence[int]) -> float:
        short, long = split_by_length([len(self.train.ids[i]) for i in rows], self.config.addax_long_tokens)
        losses = [self._closure([rows[i] for i in part]) if part else None for part in (short, long)]
        try:
            return addax.step(losses[0], losses[1], (len(short), len(long)))
        except (RuntimeError, MemoryError) as error:  # some weights may have moved, so it cannot be done again
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"step {self.state.step + 1} of addax does not fit into memory; lower per_device_train_batch_size "
                f"(it is {self.config.per_device_train_batch_size}), or addax_long_tokens (it is "
                f"{self.config.addax_long_tokens}), so that fewer rows are backpropagated through"
            ) from error

    def _closure(self, rows: Sequence[int]) -> Callable[[], Tensor]:
        return lambda: self._loss(rows).mean()

    def _accumulate(self, rows: Sequence[int]) -> float:
        """Gradient of the mean loss, part by part."""
        total = 0.0
        for part in self._parts(rows):
            loss = self._loss(part).sum() / len(rows)
            self._check_finite("loss", loss)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def _parts(self, rows: Sequence[int]) -> Iterator[list[int]]:
        """Rows that go through the model together: of like length on a CPU, where padding costs time."""
        fixed = len(self.task.prefix_ids) + len(self.task.suffix_ids)
        ordered, part = list(rows), list[int]()
        if self.model.device.type == "cpu":
            ordered.sort(key=lambda i: len(self.train.ids[i]))
        for i in ordered:
            ragged = part and fixed + len(self.train.ids[i]) > _LIKE * (fixed + len(self.train.ids[part[0]]))
            if len(part) == self.limit.size or (ragged and len(part) >= _FEW and self.model.device.type == "cpu"):
                yield part
                part = []
            part.append(i)
        yield part

    def _check_finite(self, what: str, value: Tensor) -> None:
        if not bool(value.isfinite()):
            raise NonFiniteError(
                f"the {what} is {float(value.detach())} in step {self.state.step + 1} of the training; lower "
                f"learning_rate (it is {self.config.learning_rate:g}), or set bf16 to false"
            )

    def _loss(self, rows: Sequence[int]) -> Tensor:
        """Weighted losses of rows (N)."""
        ids, labels = [self.train.ids[i] for i in rows], [self.train.labels[i] for i in rows]
        if self.config.loss == "vocabulary":
            loss_N = -own_log_probs(self.model, self.task, ids, labels)
        else:
            log_probs_NC = class_log_probs(self.model, self.task, ids)
            right_N = torch.tensor(labels, device=log_probs_NC.device)
            loss_N = torch.nn.functional.cross_entropy(log_probs_NC, right_N, reduction="none")
        if self._row_weights is None:
            return loss_N
        return loss_N * torch.tensor(self._row_weights[list(rows)], device=loss_N.device).to(loss_N.dtype)

    def _note(self) -> None:
        """A line of the history; the weights are kept if they are the best so far."""
        state = self.state
        line: dict[str, float] = {"step": state.step, "train_loss": sum(state.losses) / len(state.losses)}
        state.losses = []
        if self.dev is not None:
            found = evaluate(self.model, self.task, self.dev, self.eval_limit)
            line |= {"accuracy": found.accuracy, "loss": found.loss}
            self._compare((found.accuracy, -found.loss))
        state.history.append(line)

    def _compare(self, score: tuple[float, float]) -> None:
        if score > self.state.best:
            self.state.best, self.state.best_step, self.state.stale = score, self.state.step, 0
            self._best = self.model.snapshot()
        else:
            self.state.stale += 1

    # ---- checkpoints

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that a training goes on from."""
        moments = self.optimizer.state_dict()["state"]
        kept = {f"weight/{name}": weight.detach() for name, weight in self.model.parameters().items()}
        kept |= {f"best/{name}": weight for name, weight in self._best.items()}
        return kept | {
            f"moment/{index}/{name}": value
            for index, own in moments.items()
            for name, value in own.items()
            if isinstance(value, Tensor)
        }

    def facts(self) -> dict[str, Any]:
        """All else that a training goes on from, as JSON can hold it."""
        return {
            "state": asdict(self.state),
            "groups": self.optimizer.state_dict()["param_groups"],
            "limits": [self.limit.size, self.eval_limit.size],
        }

    def load(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Goes back to a checkpoint."""
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("moment/"):
                _, index, name = key.split("/", 2)
                moments.setdefault(int(index), {})[name] = value
        self.model.restore(_under("weight/", tensors))
        self._best = {name: value.to(self.model.device) for name, value in _under("best/", tensors).items()}
        self.optimizer.load_state_dict({"state": moments, "param_groups": facts["groups"]})
        self.state = TrainState(**facts["state"] | {"best": tuple(facts["state"]["best"])})
        self.schedule.last_epoch = self.state.step
        self.limit.size, self.eval_limit.size = facts["limits"]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
