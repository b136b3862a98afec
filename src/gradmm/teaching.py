"""Who says what class a text is of: the LM as it is, or after it has learnt the classes from real rows.

A model that has never seen a task guesses its classes by the words of their names. After some hundred updates on
real rows it tells them apart nearly as well as it ever will, and so which of thousands of texts that the LM wrote
say what their label says. Where the writer has read text of the domain, the reader learns from where the writer
stands: who has read more of a kind needs fewer rows to tell its classes apart. No real row stands in the result;
but the reader has seen rows, so a private run takes the LM as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property

import torch

from gradmm.config import GenerateConfig
from gradmm.data.task import BoundTask
from gradmm.domain import Domain
from gradmm.errors import NonFiniteError
from gradmm.labelling import BATCH
from gradmm.models import LanguageModel
from gradmm.training.finetune import FineTuner, TrainConfig, TrainState
from gradmm.training.rows import tokenise
from gradmm.training.trainable import TrainableModel

log = logging.getLogger("gradmm")
_TOLD = 50  # updates from one line of the log to the next
Rows = Callable[[Sequence[int]], list[list[str]]]
"""Draws so many real rows of every class; all of a class that has fewer."""


class Teacher:
    """The reader of labels that has learnt from real rows, who learns when he is first asked for.

    Args:
        domain: who writes first, where the weights start; and the rendering.
        config: how (`label_check`), and the seed.
        rows: draws what he learns from.
    """

    def __init__(self, domain: Domain, config: GenerateConfig, rows: Rows) -> None:
        self._domain, self._config, self._rows = domain, config, rows

    @cached_property
    def reader(self) -> TrainableModel:
        """Who writes first, after a training.

        Raises:
            NonFiniteError: if the loss stops being finite.
            OutOfMemoryError: if a single row does not fit into memory.
        """
        task, settings = self._domain.task, self._config.label_check
        classes = len(task.label_ids)
        texts = self._rows([-(-settings.max_steps * BATCH // classes)] * classes)
        log.info("learning from %s real rows which texts carry their label", f"{sum(map(len, texts)):,}")
        return teach(self._domain.writer, task, texts, self._config)


def teach(
    lm: LanguageModel, task: BoundTask, texts: Sequence[Sequence[str]], config: GenerateConfig
) -> TrainableModel:
    """The LM after a training on real rows; the same again for the same seed.

    Args:
        lm: where the weights start; stays as it is.
        task: the rendering.
        texts: rows of every class.
        config: how (`label_check`, adapters as `writer.lora`), and the seed.

    Raises:
        NonFiniteError: if the loss stops being finite.
        OutOfMemoryError: if a single row does not fit into memory.
    """
    steps = config.label_check.steps(sum(map(len, texts)))
    training = TrainConfig(
        learning_rate=config.label_check.learning_rate,
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        eval_steps=steps,
        lora=config.writer.lora,
        bf16=lm.dtype == torch.bfloat16,
        seed=config.seed,
    )
    tuner = FineTuner(lm, task, tokenise(task, texts), training)

    def told(state: TrainState) -> None:
        if state.step % _TOLD == 0 and state.step < steps:
            log.info("learning from real rows: %d of %d updates", state.step, steps)

    try:
        tuner.run(told)
    except NonFiniteError as err:
        remedy = "label_check.learning_rate; label_check.reader=model does without"
        raise NonFiniteError(f"learning the classes from real rows: {err} ({remedy})") from err
    return tuner.model
