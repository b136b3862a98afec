"""A run on a terminal: a bar for every stage, and under the present one its course, memory and newest text."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from gradmm.errors import printable, printable_lines
from gradmm.progress import Reporter, Shown, Stage, written

_LEVELS = "▁▂▃▄▅▆▇█"
_COURSE = 40  # characters
_EVERY = 0.25  # seconds between two looks at a text


class LiveReporter(Reporter):
    """A view that changes in its place; the plain lines go to the log."""

    def tell(self, line: str) -> None:
        """Says something that is no stage's."""
        super().tell(line)
        sys.stderr.write(printable_lines(line) + "\n")

    @contextmanager
    def stage(self, name: str, total: float, unit: str) -> Iterator[Stage]:
        """Opens a stage of `total` units."""
        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[figures]}"),
        )
        console, bars = Console(stderr=True), Progress(*columns)
        with super().stage(name, total, unit) as plain, Live(bars, console=console, refresh_per_second=4) as live:
            view = _View(plain, bars, live, name, total)
            try:
                yield view
            finally:
                live.update(bars)  # what stays is the bar


class _View:
    """One stage: passes on what it is told, and shows it."""

    def __init__(self, plain: Stage, bars: Progress, live: Live, name: str, total: float) -> None:
        self.plain, self.bars, self.live = plain, bars, live
        self.task = bars.add_task(name, total=total, figures="")
        self.course: list[float] = []
        self.text, self.looked = "", -_EVERY

    def advance(self, done: float = 1, shown: Shown | None = None, **figures: float) -> None:
        self.plain.advance(done, shown, **figures)
        self.bars.update(self.task, advance=done, figures=written(figures))
        self.course += list(figures.values())[:1]
        now = time.monotonic()
        if shown is not None and now - self.looked >= _EVERY:
            self.text, self.looked = shown(), now
        self.live.update(Group(self.bars, *self._below()))

    def _below(self) -> Iterator[Text]:
        console = self.live.console
        course = "" if console.options.ascii_only or len(self.course) < 2 else sparkline(self.course) + "  "
        memory = peak_memory()
        if course or memory is not None:
            said = "" if memory is None else f"peak memory {memory / 2**30:.1f} GiB"
            yield Text(f"  {course}{said}", style="dim", no_wrap=True)
        if self.text:
            line = Text(f"  {printable(self.text)}", style="italic", no_wrap=True, overflow="ellipsis")
            line.truncate(console.width - 1, overflow="ellipsis")
            yield line


def sparkline(values: list[float]) -> str:
    """The course of values in one line: the means of as many stretches as there is room for."""
    count = min(len(values), _COURSE)
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, reach = min(means), max(means) - min(means)
    top = len(_LEVELS) - 1
    return "".join(_LEVELS[round((mean - low) / reach * top) if reach > 0 else 0] for mean in means)


def peak_memory() -> int | None:
    """Most that was resident of this process (bytes); None where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
