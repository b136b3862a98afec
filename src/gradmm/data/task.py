"""A task: how a text and its label become one sequence of tokens, the same one everywhere.

    sequence = prefix + text + suffix + verbaliser        "{text} It was" + " great"

Each of the four segments is tokenised in its place but on its own, so that a text's tokens do not depend on
its label and the label's tokens do not depend on the text. Matching, fine-tuning and evaluation all take
their tokens from `BoundTask`, and so agree token for token. (The official code matches on " It was " +
"great" and trains on " It was" + " great": another position and other tokens.)

Shape suffixes: N texts, S sequence length, L label tokens, T text tokens.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from torch import Tensor

from gradmm.errors import TaskError

SLOT = "{text}"


class Task(BaseModel):
    """What is asked about a text, in words.

    Raises:
        TaskError: if the template has no `{text}`, or labels, verbalisers and instructions do not pair up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label_names: tuple[str, ...]
    """Names of the classes, in the order of their integer labels."""
    verbalisers: tuple[str, ...]
    """What stands for each class after the template: one or several tokens, leading space as written."""
    template: str = "{text} It was"
    """What surrounds the text; `{text}` stands in it once and the verbaliser follows it."""
    instructions: tuple[str, ...] = ()
    """Per class, the prompt after which the LM writes such a text; made from the label names if not given."""

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as err:
            raise TaskError("; ".join(_sentence(error) for error in err.errors())) from err

    @model_validator(mode="after")
    def _pairs_up(self) -> Task:
        if self.template.count(SLOT) != 1:
            raise ValueError(f"template {self.template!r} must hold {SLOT} exactly once, as in '{{text}} It was'")
        if len(self.label_names) < 2:
            raise ValueError(f"a task needs two classes or more, not {list(self.label_names)}")
        if len(set(self.label_names)) < len(self.label_names):
            raise ValueError(f"label names {list(self.label_names)} repeat; give every class its own")
        for what, given in (("verbalisers", self.verbalisers), ("instructions", self.instructions)):
            if (given and len(given) != len(self.label_names)) or not self.verbalisers:
                raise ValueError(f"{len(given)} {what} for {len(self.label_names)} classes; give one per class")
            if any(not item.strip() for item in given):
                raise ValueError(f"{what} {list(given)} hold an empty one; every class needs words")
        return self

    def instruction(self, label: int) -> str:
        """The prompt after which the LM writes a text of this class."""
        if self.instructions:
            return self.instructions[label]
        return f"Category: {self.label_names[label]}\nText:"

    def string(self, text: str, label: int) -> str:
        """The rendering as one string: what a user would train on."""
        return self.template.replace(SLOT, text) + self.verbalisers[label]


def _sentence(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


@dataclass(frozen=True)
class Batch:
    """Rendered texts, padded on the right, with the places where their label tokens are predicted."""

    ids_NS: Tensor
    """Tokens without the last label token, which nothing follows."""
    text_start: int
    """Position of every text's first token."""
    text_lengths_N: Tensor
    """Tokens of each text."""
    predict_at_NL: Tensor
    """Positions whose hidden state predicts a label token."""
    labels_N: Tensor
    """Class of each text."""
    label_ids_NL: Tensor
    """The label tokens."""
    label_mask_NL: Tensor
    """1.0 where there is a label token, 0.0 where a shorter verbaliser is padded."""

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        moved = {key: value.to(device) for key, value in vars(self).items() if isinstance(value, Tensor)}
        return Batch(text_start=self.text_start, **moved)

    def part(self, start: int, stop: int) -> Batch:
        """Some of the texts, padded as the whole is."""
        cut = {key: value[start:stop] for key, value in vars(self).items() if isinstance(value, Tensor)}
        return Batch(text_start=self.text_start, **cut)

    def embed(self, embeddings_VE: Tensor, text_NTE: Tensor | None = None) -> Tensor:
        """Input embeddings (N, S, E); `text_NTE` replaces the text's own, so that they can be variables."""
        embeds_NSE = embeddings_VE[self.ids_NS]
        if text_NTE is None:
            return embeds_NSE
        start, stop = self.text_start, self.text_start + text_NTE.shape[1]
        steps_T = torch.arange(text_NTE.shape[1], device=text_NTE.device)
        inside_NT1 = (steps_T[None] < self.text_lengths_N[:, None]).unsqueeze(-1)
        middle_NTE = torch.where(inside_NT1, text_NTE.to(embeds_NSE.dtype), embeds_NSE[:, start:stop])
        return torch.cat([embeds_NSE[:, :start], middle_NTE, embeds_NSE[:, stop:]], dim=1)


class BoundTask:
    """A task in a tokenizer's tokens.

    Args:
        task: what is asked.
        tokenizer: a Hugging Face tokenizer.
        max_length: the model's context in tokens.

    Raises:
        TaskError: if a verbaliser begins with all of another's tokens, or the template alone fills the context.
    """

    def __init__(self, task: Task, tokenizer: Any, max_length: int) -> None:
        self.task = task
        self.tokenizer = tokenizer
        self.max_length = max_length
        prefix, suffix = task.template.split(SLOT)
        # "Review: {text}": the space belongs to the text's first token.
        self._before, self._lead = prefix.rstrip(" "), " " * (len(prefix) - len(prefix.rstrip(" ")))
        self.bos_ids = _leading_specials(tokenizer)
        self.prefix_ids = self.bos_ids + self._encode(self._before)
        self.suffix_ids = continuation_ids(tokenizer, "x", suffix)
        self.label_ids = [continuation_ids(tokenizer, "x" + suffix, verbaliser) for verbaliser in task.verbalisers]
        self.instruction_ids = [
            self.bos_ids + self._encode(task.instruction(c)) for c in range(len(task.label_names))
        ]
        self._check_labels()
        if self.room < 1:
            raise TaskError(
                f"template {reprlib.repr(task.template)} and verbalisers take {max_length - self.room} of the "
                f"model's {max_length} tokens and leave none for the text; shorten them"
            )

    @property
    def room(self) -> int:
        """Longest text, in tokens, that fits the context with the template and the longest verbaliser."""
        label = max(len(ids) for ids in self.label_ids)
        return self.max_length - len(self.prefix_ids) - len(self.suffix_ids) - label

    @cached_property
    def starts_bare(self) -> bool:
        """Whether a text's first word is another token than the same word after a prompt's colon."""
        return self.text_ids("The film") != continuation_ids(self.tokenizer, ":", " The film")

    def text_ids(self, text: str) -> list[int]:
        """Tokens of a text in its place in the template."""
        if not self._before:
            return self._encode(self._lead + text)
        return continuation_ids(self.tokenizer, self._before, self._lead + text)

    def texts_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """`text_ids` of many texts, at once and so much faster."""
        if not texts:
            return []
        head = self._encode(self._before)
        strings = [self._before + self._lead + text for text in texts]
        alone = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
        wholes = self.tokenizer(strings, **alone).input_ids
        return [
            list(whole[len(head) :]) if whole[: len(head)] == head else self.text_ids(text)
            for whole, text in zip(wholes, texts, strict=True)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text that a user gets for these tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def decode_each(self, ids: Sequence[int]) -> list[str]:
        """`decode` of texts of one token each, at once."""
        texts = self.tokenizer.batch_decode([[i] for i in ids], skip_special_tokens=True) if ids else []
        return [str(text).strip() for text in texts]

    def render(self, text: str, label: int) -> list[int]:
        """All tokens of a labelled text: what fine-tuning trains on."""
        return self.prefix_ids + self.text_ids(text) + self.suffix_ids + self.label_ids[label]

    def collate(self, texts_ids: Sequence[Sequence[int]], labels: Sequence[int]) -> Batch:
        """Renders tokenised texts as one right-padded batch.

        Args:
            texts_ids: tokens of each text, from `text_ids`.
            labels: class of each text.

        Raises:
            TaskError: if a text is empty or does not fit the model's context.
        """
        for row, ids in enumerate(texts_ids):
            if not 0 < len(ids) <= self.room:
                raise TaskError(
                    f"text {row} has {len(ids)} tokens; with the template there is room for 1 to {self.room} "
                    f"in the model's context of {self.max_length}"
                )
        rows = [
            [*self.prefix_ids, *ids, *self.suffix_ids, *self.label_ids[c][:-1]]
            for ids, c in zip(texts_ids, labels, strict=True)
        ]
        label_rows = [self.label_ids[c] for c in labels]
        first_at = [len(row) - len(label) for row, label in zip(rows, label_rows, strict=True)]
        steps_L = torch.arange(max(map(len, label_rows)))
        ids_NS = _pad(rows)
        return Batch(
            ids_NS=ids_NS,
            text_start=len(self.prefix_ids),
            text_lengths_N=torch.tensor([len(ids) for ids in texts_ids]),
            predict_at_NL=(torch.tensor(first_at)[:, None] + steps_L).clamp_max(ids_NS.shape[1] - 1),
            labels_N=torch.tensor(list(labels)),
            label_ids_NL=_pad(label_rows),
            label_mask_NL=(steps_L < torch.tensor([len(row) for row in label_rows])[:, None]).float(),
        )

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids) if text else []

    def _check_labels(self) -> None:
        """Every verbaliser has tokens, and none begins with all of another's."""
        words = self.task.verbalisers
        for verbaliser, ids in zip(words, self.label_ids, strict=True):
            if not ids:
                raise TaskError(f"verbaliser {verbaliser!r} has no tokens; write it as it follows the template")
        # In the order of their tokens, one that begins with all of another's comes right behind such a one.
        for (ids, c), (longer, d) in pairwise(sorted((ids, c) for c, ids in enumerate(self.label_ids))):
            if longer[: len(ids)] == ids:
                tokens = "|".join(self.tokenizer.convert_ids_to_tokens(ids))
                raise TaskError(
                    f"verbaliser {words[d]!r} begins with all tokens ({tokens}) of {words[c]!r}, so the model "
                    "cannot tell the classes apart there; choose other words"
                )


def continuation_ids(tokenizer: Any, before: str, piece: str) -> list[int]:
    """Tokens of `piece` where it follows `before`, with the leading-space manners of any tokenizer.

    Raises:
        TaskError: if the boundary always falls inside a token.
    """
    if not piece:
        return []
    for anchor in (before, "x", ".", "\n"):
        head = list(tokenizer(anchor, add_special_tokens=False).input_ids)
        whole = list(tokenizer(anchor + piece, add_special_tokens=False).input_ids)
        if whole[: len(head)] == head:
            return whole[len(head) :]
    raise TaskError(f"{piece!r} melts into the token before it; begin it with a space or a line break")


def _leading_specials(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text by itself (a BOS token, for many)."""
    plain = list(tokenizer("x", add_special_tokens=False).input_ids)
    full = list(tokenizer("x").input_ids)
    return full[: full.index(plain[0])] if plain and plain[0] in full else []


def _pad(rows: Sequence[Sequence[int]]) -> Tensor:
    # The padding's value is never looked at: nothing to the left sees it.
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
