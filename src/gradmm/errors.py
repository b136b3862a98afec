"""Errors that a user can cause or mend, and the words that help to mend them.

Every message names what was wrong, the value that was wrong, and the remedy. Anything that is not a
`GradmmError` is a bug in the program and keeps its traceback. The command line ends with `exit_code`.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

_MOST_LISTED = 12


class GradmmError(Exception):
    """Base of every error that a user can cause or mend."""

    exit_code = 1
    """The status with which the command line ends: 1 failed, 2 misuse, 3 refused privacy budget."""


class ConfigError(GradmmError, ValueError):
    """Misuse: a flag, a setting or an argument that cannot be meant."""

    exit_code = 2


class TaskError(ConfigError):
    """A template or a verbaliser that does not fit the task, the tokenizer or each other."""


class DataError(GradmmError, ValueError):
    """Data that cannot be read, or rows that cannot be used."""


class ModelError(GradmmError, ValueError):
    """A model or tokenizer that cannot be loaded or used."""


class RunFolderError(GradmmError):
    """A run folder that is missing, incomplete, or not the one that the settings describe."""


class HubError(GradmmError):
    """The Hugging Face Hub, or the way to it, refused an upload."""


class NonFiniteError(GradmmError, ArithmeticError):
    """A loss, gradient or distance became NaN or infinite."""


class OutOfMemoryError(GradmmError):
    """A single text is more than the memory holds, or all candidates are more than memory and disk."""


class PrivacyBudgetError(GradmmError):
    """A release would cost more privacy than the budget holds; nothing was drawn."""

    exit_code = 3


def printable(text: str) -> str:
    r"""Write control and format characters out, so that a text cannot steer a terminal or forge a line.

    Args:
        text: Anything that may come from a data set, a model or an argument.

    Returns:
        The text with every character of the Unicode categories C* as its escape, as in `\x1b`.
    """
    return "".join(
        char if unicodedata.category(char)[0] != "C" else char.encode("unicode_escape").decode() for char in text
    )


def printable_lines(text: str) -> str:
    """Make several lines printable, each on its own; the line breaks between them stay."""
    return "\n".join(printable(line) for line in text.split("\n"))


def closest(name: str, known: Iterable[str]) -> str | None:
    """Find the known name that `name` was probably meant to be.

    Args:
        name: What the user wrote.
        known: The names that exist.

    Returns:
        The nearest known name, letter case aside, or None when none is near.
    """
    by_lower = {candidate.lower(): candidate for candidate in sorted(known, reverse=True)}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return by_lower[near[0]] if near else None


def listed(names: Iterable[str]) -> str:
    """List names for a message: sorted, the first 12, then "..." if there are more.

    Args:
        names: The names to list.

    Returns:
        The names joined by commas; "" when there are none.
    """
    ordered = sorted(names)
    shown = ordered[:_MOST_LISTED] + (["..."] if len(ordered) > _MOST_LISTED else [])
    return ", ".join(shown)


def nearest(name: str, known: Iterable[str]) -> str:
    """Say what an unknown name may have meant, to be put at the end of a message.

    Args:
        name: What the user wrote.
        known: The names that exist.

    Returns:
        "; did you mean 'label'?", or "; known: a, b, c" (`listed`) when nothing is near, or "" when there is
        nothing to name.
    """
    names = list(known)
    near = closest(name, names)
    if near is not None:
        return f"; did you mean {near!r}?"
    return f"; known: {listed(names)}" if names else ""
