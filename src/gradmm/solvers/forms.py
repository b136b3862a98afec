"""Forms of writing: case, punctuation and its spacing, changed in whole texts.

Data sets differ from what a language model writes in how text looks before they differ in what it says: rows that
are lower-cased, without punctuation, or with spaces around it ("it 's good ."). The gradient at the label sees
that first, because the end of the text is what stands next to the template.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from gradmm.errors import nearest

AS_WRITTEN = "as_written"
_APOSTROPHES = "'\u2019"
# Penn Treebank: clitics are words of their own, and so is punctuation.
_CLITIC = re.compile(rf"(?<=\w)(n[{_APOSTROPHES}]t|[{_APOSTROPHES}](?:s|re|ve|ll|d|m))\b", re.IGNORECASE)
_MARK = re.compile(r"\s*(\.\.\.|--+|[.,](?!\d)|[!?;:()\[\]\"\u201c\u201d])\s*")
_SPACES = re.compile(r"\s+")


def _without_final_punctuation(text: str) -> str:
    end = len(text)
    while end and (text[end - 1].isspace() or _is_punctuation(text[end - 1])):
        end -= 1
    return text[:end]


def _without_punctuation(text: str) -> str:
    """Apostrophes close up ("dont"), all other marks part words."""
    kept = ("" if c in _APOSTROPHES else " " if _is_punctuation(c) else c for c in text)
    return _SPACES.sub(" ", "".join(kept)).strip()


def _with_spaced_punctuation(text: str) -> str:
    return _SPACES.sub(" ", _MARK.sub(r" \1 ", _CLITIC.sub(r" \1", text))).strip()


def _is_punctuation(char: str) -> bool:
    return unicodedata.category(char).startswith("P")


STEPS: dict[str, Callable[[str], str]] = {
    "lowercase": str.lower,
    "no_final_punctuation": _without_final_punctuation,
    "no_punctuation": _without_punctuation,
    "spaced_punctuation": _with_spaced_punctuation,
}
"""What a form is made of."""


@dataclass(frozen=True)
class Form:
    """A form of writing; a text that has it already is returned as it is.

    Args:
        name: `as_written`, or names of `STEPS` with `+` between them, taken in that order.

    Raises:
        ValueError: if there is no such form.
    """

    name: str = AS_WRITTEN

    def __post_init__(self) -> None:
        for step in self._steps:
            if step not in STEPS:
                raise ValueError(
                    f"{step!r} is no step of a form{nearest(step, STEPS)}; give {AS_WRITTEN!r}, or steps with + "
                    f"between them: {', '.join(STEPS)}"
                )

    @property
    def _steps(self) -> list[str]:
        return [] if self.name == AS_WRITTEN else self.name.split("+")

    @property
    def is_lowercase(self) -> bool:
        """Whether nothing is in upper case."""
        return "lowercase" in self._steps

    def __call__(self, text: str) -> str:
        """The text in this form; may be empty."""
        for step in self._steps:
            text = STEPS[step](text)
        return text
