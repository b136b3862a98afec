"""What is told while a run goes on: a live view on a terminal, plain lines elsewhere, or JSON lines for programs.

`run.log` gets the plain lines in any case. Reporters are told, they never compute: everything they show is a
number or a text that the run has anyway.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from gradmm.errors import printable_lines

log = logging.getLogger("gradmm")
EVERY = 10.0  # seconds between two plain lines of one stage
Shown = Callable[[], str]


class Stage(Protocol):
    """A part of the run that is under way."""

    def advance(self, done: float = 1, shown: Shown | None = None, **figures: float) -> None:
        """`done` more units are done; figures are told beside, and by some a text that has come of it."""


class Reporter:
    """Plain lines through `logging`."""

    def tell(self, line: str) -> None:
        """Says something that is no stage's."""
        log.info("%s", line)

    @contextmanager
    def stage(self, name: str, total: float, unit: str) -> Iterator[Stage]:
        """Opens a stage of `total` units."""
        log.info("%s: %g %s", name, total, unit)
        stage = _PlainStage(name, total, unit)
        yield stage
        log.info("%s: done in %.1f s%s", name, time.monotonic() - stage.began, stage.figures)

    def result(self, figures: Mapping[str, Any]) -> None:
        """Tells a program what the run achieved; people see it elsewhere."""


class _PlainStage:
    def __init__(self, name: str, total: float, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.began = self.spoke = time.monotonic()
        self.done = 0.0
        self.figures = ""

    def advance(self, done: float = 1, shown: Shown | None = None, **figures: float) -> None:
        self.done += done
        self.figures = written(figures)
        now = time.monotonic()
        if now - self.spoke >= EVERY:
            self.spoke = now
            counts = (self.done, self.total, self.unit)
            log.info("%s: %g of %g %s%s%s", self.name, *counts, self.figures, self._left(now))

    def _left(self, now: float) -> str:
        seconds = seconds_left(now - self.began, self.done, self.total)
        return "" if seconds is None else f", {seconds:.0f} s left"


def seconds_left(seconds: float, done: float, total: float) -> float | None:
    """At the rate so far; None where nothing is done yet."""
    return seconds / done * (total - done) if done else None


def written(figures: Mapping[str, float]) -> str:
    """Figures in words."""
    return "".join(f"  {name.replace('_', ' ')} {value:.4g}" for name, value in figures.items())


class PlainLines(logging.Formatter):
    """Messages may hold names and excerpts from data: no control characters reach a screen or a log."""

    def format(self, record: logging.LogRecord) -> str:
        """Without them."""
        return printable_lines(super().format(record))


class _LogFile(logging.FileHandler):
    """Says once that it cannot write, and leaves; a log is no reason to lose a run."""

    def handleError(self, record: logging.LogRecord) -> None:
        log.removeHandler(self)
        log.warning("cannot write %s (%s); going on without it", self.baseFilename, sys.exc_info()[1])


@contextmanager
def logging_to(path: Path, times: bool = True) -> Iterator[None]:
    """Appends the log to a file for a while; if that cannot be, says so and goes on.

    Args:
        path: the file.
        times: whether every line begins with the time of day.
    """
    try:
        handler = _LogFile(path, encoding="utf-8")
    except OSError as err:
        log.warning("cannot write %s (%s); going on without it", path, err)
        yield
        return
    handler.setFormatter(PlainLines(("%(asctime)s " if times else "") + "%(message)s", "%Y-%m-%dT%H:%M:%S"))
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        with suppress(OSError):  # lines that the disk had no room for, which was told of
            handler.close()


@contextmanager
def on_screen_alone() -> Iterator[None]:
    """Keeps lines below warnings out of the log's files for a while: the time that work takes tells of it."""
    files = [handler for handler in log.handlers if isinstance(handler, _LogFile)]
    for handler in files:
        handler.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for handler in files:
            handler.setLevel(logging.NOTSET)


@contextmanager
def unsaid(is_so: bool = True) -> Iterator[None]:
    """Drops what is logged meanwhile, where that is so: messages about rows name and count them."""

    def nothing(record: logging.LogRecord) -> bool:
        return not is_so

    log.addFilter(nothing)
    try:
        yield
    finally:
        log.removeFilter(nothing)
