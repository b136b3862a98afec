"""Code blocks of the documentation, found as Markdown has them.

A block is fenced (its kind stands after the fence) or indented by four spaces. Of those that are indented, one
whose lines all begin with a program is commands, and any other is what a program printed. A line
`<!-- not run: reason -->` before a fence says that a block cannot be run here.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = ("gradmm", "make", "pip", "cd", "sha256sum", "hf")
_FENCE = re.compile(r"\s*```(\w*)\s*")
_NOT_RUN = re.compile(r"<!-- not run: (\S.*) -->")
_REDIRECTED = re.compile(r"\d?>")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    kind: str
    """What stands after the fence; `shown` for indented output."""
    text: str
    reason: str | None = None
    """Why it is not run."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    words: list[str]
    errors_to: str | None = None
    """The file that stderr goes to."""


def blocks_of(page: Path) -> Iterator[Block]:
    """All blocks of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        fence = _FENCE.fullmatch(lines[at])
        start = at
        if fence:
            at = next(i for i in range(start + 1, len(lines)) if lines[i].strip() == "```")
            marked = _NOT_RUN.fullmatch(lines[start - 1])
            text = "\n".join(lines[start + 1 : at]) + "\n"
            yield Block(page, start + 1, fence[1], text, marked[1] if marked else None)
        elif lines[at].startswith("    ") and start and not lines[start - 1].strip():
            while at + 1 < len(lines) and lines[at + 1].startswith("    "):
                at += 1
            text = "\n".join(line[4:] for line in lines[start : at + 1]) + "\n"
            yield Block(page, start + 1, "bash" if _is_commands(text) else "shown", text)
        at += 1


def _is_commands(text: str) -> bool:
    return all(line.split(" ")[0] in PROGRAMS for line in _lines(text))


def _lines(text: str) -> list[str]:
    return [line for line in text.replace("\\\n", "").splitlines() if line.strip() and not line.startswith("#")]


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a block; in a `console` they stand after a dollar sign, among what they print."""
    lines = _lines(block.text)
    if block.kind == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    for line in lines:
        for part in line.split(" && "):
            words = shlex.split(part, comments=True)
            if len(words) > 1 and _REDIRECTED.fullmatch(words[-2]):
                yield Command(words[:-2], words[-1] if words[-2] == "2>" else None)
            else:
                yield Command(words)


def named(page: str) -> set[str]:
    """All that stands as code within the sentences of a page in `docs`, and the words of it."""
    spans = re.findall(r"`([^`\n]+)`", (ROOT / "docs" / page).read_text(encoding="utf-8"))
    return set(spans) | {word for span in spans for word in re.findall(r"[\w./]+", span)}
