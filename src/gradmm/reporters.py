"""Who tells of a command on stderr: a live view, plain lines, or JSON lines."""

from __future__ import annotations

import logging
import sys
from typing import Literal, TextIO

from gradmm.events import JsonLines, JsonReporter
from gradmm.live import LiveReporter
from gradmm.progress import PlainLines, Reporter, log

Style = Literal["auto", "live", "lines", "json"]


def make_reporter(quiet: bool = False, style: Style = "auto") -> Reporter:
    """Who tells of a command, and how; sets up the log accordingly.

    Args:
        quiet: tells of warnings alone.
        style: `live` is a view that changes in its place, `lines` are plain, `json` is one object a line (see
            `events`); `auto` is live if stderr is a terminal.
    """
    if style == "auto":
        style = "live" if sys.stderr.isatty() else "lines"
    log.setLevel(logging.INFO)
    for handler in [h for h in log.handlers if isinstance(h, _Screen)]:
        log.removeHandler(handler)
    level = logging.INFO if style == "lines" and not quiet else logging.WARNING
    log.addHandler(_Screen(level, JsonLines() if style == "json" else PlainLines("%(message)s")))
    if quiet:
        return Reporter()
    return {"live": LiveReporter, "json": JsonReporter, "lines": Reporter}[style]()


class _Screen(logging.StreamHandler[TextIO]):
    """Writes to whatever `sys.stderr` is at that moment: a live view takes it over."""

    def __init__(self, level: int, formatter: logging.Formatter) -> None:
        super().__init__(sys.stderr)
        self.setLevel(level)
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)
