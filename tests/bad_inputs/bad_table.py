"""What a row of the table of bad inputs is, and the small files that several rows need."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

HERE, TINY = "<here>", "<tiny>"
"""In arguments and messages: the folder in which the command runs, and that of a tiny model."""
CSV = b"text,label\na good film,1\na bad film,0\n"
JSONL = b'{"text": "a good film", "label": 1}\n{"text": "a bad film", "label": 0}\n'

Content = bytes | Callable[[Path], object]


class Bad(NamedTuple):
    """One bad input, and what is said of it."""

    name: str
    """What is wrong, in words."""
    args: str
    """The command line, as in a shell."""
    told: str | re.Pattern[str]
    """The whole message, or a pattern of it."""
    files: Mapping[str, Content] = {}
    """What is there before: by its path the content, or what makes it."""
    code: int = 1
    """The exit code: 1 failed, 2 misuse."""
    finding: str = ""
    """Of `doctor`: the name of the finding that failed; it stands on stdout."""


def misuse(name: str, args: str, told: str | re.Pattern[str], **files: Content) -> Bad:
    """What cannot be meant; `rows.csv` is there in any case."""
    return Bad(name, args, told, {"rows.csv": CSV, **files}, code=2)


def bad_file(name: str, file: str, content: Content, told: str, args: str = "", **files: Content) -> Bad:
    """A file of rows that cannot be used; the message begins with its name."""
    return Bad(name, f"generate -d {file} {args}", file + told, {file: content, **files})


def row(number: int, fault: str) -> str:
    return f", row {number} (counted from 0): {fault}"
