"""Where stages keep what they have done: the run folder, or a part of it for one of several like jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


class Checkpoints(Protocol):
    """Where a stage keeps what it has done, and finds it again."""

    def save_state(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Keeps tensors, and facts that JSON can hold."""

    def load_state(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was kept; None if nothing was."""


@dataclass(frozen=True)
class Within:
    """Checkpoints of one of several like jobs in a run folder, under names of their own."""

    folder: Checkpoints
    prefix: str

    def save_state(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Keeps tensors, and facts that JSON can hold."""
        self.folder.save_state(f"{self.prefix}-{name}", tensors, facts)

    def load_state(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was kept; None if nothing was."""
        return self.folder.load_state(f"{self.prefix}-{name}")
