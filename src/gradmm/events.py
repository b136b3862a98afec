"""What a run tells to other programs: one JSON object a line, on stderr.

    {"event": "stage", "stage": "pool", "total": 100, "unit": "LM texts"}
    {"event": "progress", "stage": "pool", "done": 40, "total": 100, "seconds": 2.1, "seconds_left": 3.2,
     "text": "A dull film.", "figures": {}}
    {"event": "done", "stage": "pool", "seconds": 5.2}
    {"event": "message", "level": "warning", "message": "..."}
    {"event": "result", ...}

`progress` comes at most twice a second and once at the end of a stage; `seconds_left` and `text` may be null.
Texts and names are as they are: JSON escapes control characters, and a program has to see to them itself.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from gradmm.progress import Reporter, Shown, Stage, seconds_left

_EVERY = 0.5  # seconds between two events of one stage


def as_line(event: str, **facts: Any) -> str:
    """One event."""
    return json.dumps({"event": event, **facts}, allow_nan=False)


class JsonLines(logging.Formatter):
    """Warnings and errors as messages."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        return as_line("message", level=record.levelname.lower(), message=record.getMessage())


class JsonReporter(Reporter):
    """Tells programs; the plain lines go to the log."""

    def tell(self, line: str) -> None:
        """Says something that is no stage's."""
        super().tell(line)
        _write(as_line("message", level="info", message=line))

    @contextmanager
    def stage(self, name: str, total: float, unit: str) -> Iterator[Stage]:
        """Opens a stage of `total` units."""
        _write(as_line("stage", stage=name, total=total, unit=unit))
        with super().stage(name, total, unit) as plain:
            stage = _JsonStage(plain, name, total)
            yield stage
            stage.flush()
        _write(as_line("done", stage=name, seconds=round(time.monotonic() - stage.began, 3)))

    def result(self, figures: Mapping[str, Any]) -> None:
        """What the run achieved."""
        _write(as_line("result", **figures))


class _JsonStage:
    def __init__(self, plain: Stage, name: str, total: float) -> None:
        self.plain, self.name, self.total = plain, name, total
        self.began = time.monotonic()
        self.told, self.done = self.began - _EVERY, 0.0
        self.kept: tuple[Shown | None, dict[str, float]] | None = None

    def advance(self, done: float = 1, shown: Shown | None = None, **figures: float) -> None:
        self.plain.advance(done, shown, **figures)
        self.done += done
        self.kept = shown, figures
        if time.monotonic() - self.told >= _EVERY:
            self.flush()

    def flush(self) -> None:
        """Tells what was not told yet."""
        if self.kept is None:
            return
        (shown, figures), self.kept, self.told = self.kept, None, time.monotonic()
        seconds = self.told - self.began
        left = seconds_left(seconds, self.done, self.total)
        facts = {
            "stage": self.name,
            "done": self.done,
            "total": self.total,
            "seconds": round(seconds, 3),
            "seconds_left": None if left is None else round(left, 1),
            "text": None if shown is None else shown(),
            "figures": {name: value if math.isfinite(value) else None for name, value in figures.items()},
        }
        _write(as_line("progress", **facts))


def _write(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()  # a program waits for it
