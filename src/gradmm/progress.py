"""What a person sees while a run goes on: bars on a terminal, plain lines elsewhere, both in `run.log`.

Reporters are told, they never compute: everything they show is a number that the run has anyway.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, TextIO

from gradmm.errors import printable_lines

log = logging.getLogger("gradmm")
EVERY = 10.0  # seconds between two plain lines of one stage


class Stage(Protocol):
    """A part of the run that is under way."""

    def advance(self, done: float = 1, **figures: float) -> None:
        """`done` more units are done; `figures` are shown beside."""


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


class _PlainStage:
    def __init__(self, name: str, total: float, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.began = self.spoke = time.monotonic()
        self.done = 0.0
        self.figures = ""

    def advance(self, done: float = 1, **figures: float) -> None:
        self.done += done
        self.figures = _written(figures)
        now = time.monotonic()
        if now - self.spoke >= EVERY:
            self.spoke = now
            counts = (self.done, self.total, self.unit)
            log.info("%s: %g of %g %s%s%s", self.name, *counts, self.figures, self._left(now))

    def _left(self, now: float) -> str:
        if not self.done:
            return ""  # at this rate it takes for ever
        return f", {(now - self.began) / self.done * (self.total - self.done):.0f} s left"


class RichReporter(Reporter):
    """Progress bars on a terminal; the plain lines go to the other handlers of the log."""

    def tell(self, line: str) -> None:
        """Says something that is no stage's."""
        super().tell(line)
        sys.stderr.write(printable_lines(line) + "\n")

    @contextmanager
    def stage(self, name: str, total: float, unit: str) -> Iterator[Stage]:
        """Opens a stage of `total` units."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[figures]}"),
        )
        with super().stage(name, total, unit) as plain, Progress(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task(name, total=total, figures="")
            yield _BarStage(plain, lambda done, figures: bars.update(task, advance=done, figures=figures))


class _BarStage:
    def __init__(self, plain: Stage, update: object) -> None:
        self.plain, self.update = plain, update

    def advance(self, done: float = 1, **figures: float) -> None:
        self.plain.advance(done, **figures)
        self.update(done, _written(figures))  # type: ignore[operator]


def _written(figures: dict[str, float]) -> str:
    return "".join(f"  {name.replace('_', ' ')} {value:.4g}" for name, value in figures.items())


class _Lines(logging.Formatter):
    """Messages may hold names and excerpts from data: no control characters reach a screen or a log."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


class _Screen(logging.StreamHandler[TextIO]):
    """Writes to whatever `sys.stderr` is at that moment: bars that are shown take it over."""

    def __init__(self, level: int) -> None:
        super().__init__(sys.stderr)
        self.setLevel(level)
        self.setFormatter(_Lines("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _LogFile(logging.FileHandler):
    """Says once that it cannot write, and leaves; a log is no reason to lose a run."""

    def handleError(self, record: logging.LogRecord) -> None:
        log.removeHandler(self)
        log.warning("cannot write %s (%s); going on without it", self.baseFilename, sys.exc_info()[1])


def make_reporter(quiet: bool = False) -> Reporter:
    """Bars if stderr is a terminal, lines otherwise, and warnings always; sets up the log accordingly."""
    log.setLevel(logging.INFO)
    for handler in [h for h in log.handlers if isinstance(h, _Screen)]:
        log.removeHandler(handler)
    bars = not quiet and sys.stderr.isatty()
    log.addHandler(_Screen(logging.WARNING if quiet or bars else logging.INFO))
    return RichReporter() if bars else Reporter()


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
    handler.setFormatter(_Lines(("%(asctime)s " if times else "") + "%(message)s", "%Y-%m-%dT%H:%M:%S"))
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
