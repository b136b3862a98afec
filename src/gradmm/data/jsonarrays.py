"""Turn a JSON file that is one array of objects into JSON lines, an object at a time.

`datasets` reads such a file whole, which takes ten times its size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

_BLOCK = 1 << 20
_SPACE = " \t\r\n"
_DECODER = json.JSONDecoder()


def as_lines(path: Path, folder: Path) -> Path:
    """Write the objects of an array into `folder`, one a line.

    Returns:
        The file of JSON lines; `path` itself if it holds anything else or is damaged, which its reader will say.

    Raises:
        OSError: It cannot be read, or there is no space for it.
    """
    lines = folder / "lines.jsonl"
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream, lines.open("w", encoding="utf-8") as out:
            for item in _objects(stream):
                # A line break in JSON stands between tokens only: in a string it is escaped.
                out.write(item.replace("\n", " ").replace("\r", " ") + "\n")
    except ValueError:
        return path
    return lines


def _objects(stream: TextIO) -> Iterator[str]:
    """Yield the objects of an array as they are written; `ValueError` for anything else."""
    text = stream.read(_BLOCK).lstrip(_SPACE)
    if not text.startswith("["):
        raise ValueError("no array")
    at, is_first = 1, True
    while True:
        try:
            at = _skip(text, at)
            if text[at] == "]":
                break
            start = at if is_first else _skip(text, at + 1)
            if text[start] != "{" or not (is_first or text[at] == ","):
                raise ValueError("no array of objects alone")
            end = _DECODER.raw_decode(text, start)[1]
        except (IndexError, json.JSONDecodeError):  # perhaps cut: go on from `at` with more of the file
            more = stream.read(max(_BLOCK, len(text) - at))
            if not more:
                raise ValueError("no end") from None
            text, at = text[at:] + more, 0
            continue
        yield text[start:end]
        at, is_first = end, False
    if (text[at + 1 :] + stream.read()).strip(_SPACE):
        raise ValueError("something after the array")


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at
