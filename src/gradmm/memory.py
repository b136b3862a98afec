"""How many texts go through the model at once, and what happens when they are too many for the memory.

Work is done in batches of `BatchLimit.size`. Where the memory does not hold one, the limit is halved, once and
for the whole run, and the batch is done again in smaller ones. What is computed changes by rounding only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from gradmm.errors import OutOfMemoryError

log = logging.getLogger("gradmm")
_WOULD_FIT = (
    "texts with fewer tokens (lengths.max_tokens, a shorter template or instruction), a body in half the bytes "
    "(model.dtype bfloat16), a smaller model, or a device with more memory (model.device)"
)
Item = TypeVar("Item")
Out = TypeVar("Out")


class BatchLimit:
    """Texts that go through the model at once; falls when memory runs out.

    Args:
        size: texts to begin with, at least 1.
        would_fit: what to do where a single text is too much, for messages.
    """

    def __init__(self, size: int = 64, would_fit: str = _WOULD_FIT) -> None:
        assert size >= 1, size
        self.size, self._would_fit = size, would_fit

    def lower(self, error: BaseException, doing: str, texts: int | None = None) -> None:
        """Halves the limit because of an error; re-raises one that is not about memory.

        Args:
            error: what was raised.
            doing: what was being done, for messages.
            texts: how many texts were too many, where that may be fewer than the limit.

        Raises:
            OutOfMemoryError: if a single text was too much.
        """
        if not is_out_of_memory(error):
            raise error
        before = min(self.size, texts or self.size)
        if before == 1:
            raise OutOfMemoryError(
                f"a single text does not fit into memory while {doing} ({_first_line(error)}); what would: "
                f"{self._would_fit}"
            ) from error
        self.size = before // 2
        log.warning("out of memory with %d texts at once while %s: from here on %d", before, doing, self.size)

    def map(self, work: Callable[[Sequence[Item]], Out], items: Sequence[Item], doing: str) -> Iterator[Out]:
        """Does work on consecutive parts of at most `size` items, halving it when memory runs out."""
        start = 0
        while start < len(items):
            part = items[start : start + self.size]
            try:
                out = work(part)
            except (RuntimeError, MemoryError) as error:
                self.lower(error, doing, len(part))
                continue  # outside of the handler, whose traceback holds the tensors that were too many
            yield out
            start += len(part)


def by_length(rows: Sequence[Sequence[Any]]) -> list[int]:
    """The order in which rows of like length stand together, so that little of a batch is padding."""
    return sorted(range(len(rows)), key=lambda i: len(rows[i]))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device; torch's CPU allocator has no class of its own."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
