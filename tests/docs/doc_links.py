"""Links and anchors of a Markdown page, as mkdocs makes them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from markdown.extensions.toc import slugify

from doc_blocks import blocks_of

_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
_HEADING = re.compile(r"#{1,6} (.+)")
_OBJECT = re.compile(r"^::: (\S+)", re.MULTILINE)
_TITLE = re.compile(r"\[([^\]]*)\]\([^)]*\)")


def links_of(page: Path) -> list[str]:
    """Targets of all links outside of code."""
    text = "\n".join(_prose(page))
    return _LINK.findall(re.sub(r"`[^`\n]*`", lambda code: "`" + " " * (len(code[0]) - 2) + "`", text))


@cache
def anchors_of(page: Path) -> set[str]:
    """What stands behind the hash of a link to the page: headings, numbered where they repeat, and objects."""
    found: set[str] = set()
    for line in _prose(page):
        heading = _HEADING.fullmatch(line)
        if heading:
            name = slug = slugify(_TITLE.sub(r"\1", heading[1]).replace("`", ""), "-")
            number = 0
            while name in found:
                number += 1
                name = f"{slug}_{number}"
            found.add(name)
    return found | set(objects_of(page))


def objects_of(page: Path) -> list[str]:
    """What the page documents from the code."""
    return _OBJECT.findall(page.read_text(encoding="utf-8"))


def _prose(page: Path) -> list[str]:
    """The lines outside of blocks."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for block in blocks_of(page):
        for at in range(block.line - 1, block.line + block.text.count("\n")):
            lines[at] = ""
    return lines
