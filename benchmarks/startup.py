"""How long a command takes until something is seen, on a terminal as a user has it, and until it is over."""

from __future__ import annotations

import os
import pty
import re
import sys
import time
from statistics import median

from rich.console import Console
from rich.table import Table

_RUNS = 5
_COMMANDS = {
    "gradmm --help": (["--help"], {"first line": rb"Usage"}),
    "gradmm preview": (
        ["preview"],
        {"first text": rb"\d/\d+ LM texts[^\n]*\n[^\n]*\n\s+\S", "all texts": rb"positive"},
    ),
}


def table(console: Console) -> None:
    """Median seconds of five runs, after one that does not count."""
    shown = Table(title="Start-up", title_justify="left")
    for name in ("command", "until", "seconds"):
        shown.add_column(name, justify="right" if name == "seconds" else "left")
    for command, (arguments, marks) in _COMMANDS.items():
        runs = [_seen(arguments, marks) for _ in range(_RUNS + 1)][1:]
        for mark in (*marks, "the end"):
            shown.add_row(command, mark, f"{median(run[mark] for run in runs):.1f}")
    console.print(shown)


def _seen(arguments: list[str], marks: dict[str, bytes]) -> dict[str, float]:
    """Seconds until each mark stands on a terminal, and until the program has ended."""
    began, screen, found = time.monotonic(), b"", {}
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "gradmm", *arguments])
    while read := _read(terminal):
        screen += re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", read)
        for mark, pattern in marks.items():
            if mark not in found and re.search(pattern, screen):
                found[mark] = time.monotonic() - began
    _, status = os.waitpid(child, 0)
    if status or len(found) < len(marks):
        raise RuntimeError(
            f"gradmm {' '.join(arguments)} did not show {', '.join(marks.keys() - found)}: {screen!r}"
        )
    return found | {"the end": time.monotonic() - began}


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # what Linux says when the program has closed it
        return b""
