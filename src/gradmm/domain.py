"""Who writes first: the LM as it is, or after it has read texts of the domain that need no protection.

What a model has never read it cannot write, and what is not in the pool cannot be chosen: a model of film reviews
writes no question, however long it is asked for one. Text of the same kind is often at hand without labels, or is
nobody's secret. Which class a text belongs to is not learnt from it: class prompts are drawn at random, and what
the classes are is left to the gradients.

Gradients and readability are computed at the LM's own weights, whoever writes; a reader of labels who learns from
rows starts where the writer stands (`teaching`).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from gradmm.config import GenerateConfig
from gradmm.data.task import BoundTask, continuation_ids
from gradmm.models import LanguageModel
from gradmm.seeds import make_generator
from gradmm.training.writer import Example, tune_writer

log = logging.getLogger("gradmm")


class Domain:
    """The first writer, who learns when he is first asked for.

    Args:
        lm: where the weights start.
        task: the rendering, and the class prompts.
        config: how, and the seed.
        files: what is read, by the name that the user gave; none leaves the LM as it is.
    """

    def __init__(
        self, lm: LanguageModel, task: BoundTask, config: GenerateConfig, files: Mapping[str, Sequence[str]] = {}
    ) -> None:
        self.lm, self.task, self.config, self.files = lm, task, config, files
        self.texts = [text for texts in files.values() for text in texts]

    @cached_property
    def writer(self) -> LanguageModel:
        """The LM after it has read the texts.

        Raises:
            NonFiniteError: if the loss stops being finite.
            OutOfMemoryError: if a single text does not fit into memory.
        """
        if not self.texts:
            return self.lm
        log.info("the writer reads %s texts of %s", f"{len(self.texts):,}", ", ".join(self.files))
        generator = make_generator(self.config.seed, "domain")
        examples, settings = self._examples(generator), self.config.writer
        return tune_writer(self.lm, examples, settings, generator, settings.files_max_steps)

    @property
    def ending(self) -> list[int]:
        """The token behind a text that is over, where texts are read at all and there is such a token."""
        end = self.task.tokenizer.eos_token_id
        return [end] if self.texts and end is not None else []

    def fingerprint(self) -> dict[str, Any]:
        """What results depend on of the texts; nothing where there are none."""
        found = {name: hashlib.sha256("\0".join(own).encode()).hexdigest() for name, own in self.files.items()}
        return {"read": found} if found else {}

    def _examples(self, generator: torch.Generator) -> list[Example]:
        """Every text behind some class's prompt, cut where the longest text ends; one that fits has an end."""
        task, found = self.task, list[Example]()
        most = self.config.lengths.max_tokens
        classes = torch.randint(len(task.instruction_ids), (len(self.texts),), generator=generator).tolist()
        for label, text in zip(classes, self.texts, strict=True):
            ids = continuation_ids(task.tokenizer, task.task.instruction(label), f" {text.strip()}")
            found.append((task.instruction_ids[label], [*ids[:most], *(self.ending if len(ids) <= most else [])]))
        return found
