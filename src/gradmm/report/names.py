"""Names from outside, as a public page may show them: no folders of the user's, no markup, no control codes."""

from __future__ import annotations

import os
import re
import string

from gradmm.errors import printable

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_FILE = re.compile(r"\.(csv|tsv|jsonl?|parquet|arrow|txt|gz|bz2|xz|zst|zip)$", re.IGNORECASE)
_REFINED = "+refined"
_MARKED = set("`|\\<>&")  # what a code span in backticks shows in another way, or what ends a cell of a table


def public_name(name: str) -> str:
    """What may be published of a model's, a data set's or a file's name.

    Args:
        name: a Hub id, a path, or a word such as `demo`.

    Returns:
        A Hub id as it is; of anything else, a folder here that is named like one included, the last component.
    """
    if _HUB_ID.fullmatch(name) and not _FILE.search(name) and not os.path.exists(name):
        return name
    parts = [part for part in re.split(r"[/\\]", name) if part]
    return parts[-1] if parts else name


def public_source(source: str) -> str:
    """What may be published of a value of the column `source`: a stage of the program, or a file's name."""
    name = source.removesuffix(_REFINED)
    return public_name(name) + source[len(name) :]


def code(text: str) -> str:
    """A name or a template in Markdown, shown letter by letter, in a table too.

    Args:
        text: anything.

    Returns:
        A code span on one line; control and format characters are written out (`errors.printable`).
    """
    text = printable(text)
    if text.strip() and not _MARKED & set(text):
        return f"`{text}`"
    return f"<code>{''.join(map(_entity, text))}</code>"


def _entity(char: str) -> str:
    return f"&#{ord(char)};" if char in string.punctuation else char
