"""The pool: candidate texts from several sources, cleaned, each said once, each marked with where it is from.

Sources: what ADMM found, what the LM writes after the class's prompt, texts that the user brings, earlier runs.
Nothing here looks at gradients.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from gradmm.data.task import BoundTask

_SPACES = re.compile(r"\s+")
_UNREADABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff]")
_INVISIBLE = re.compile("[\u00ad\u200b\u2060-\u2064\u206a-\u206f\ufeff\ufff9-\ufffb]")
_CLOSING = "['\")\\]\u2019\u201d\u00bb\u203a\u300d\u300f\uff09]*"  # quotation marks and brackets
_SENTENCE_END = re.compile(
    # . ! ? and the dots, danda and question marks of Arabic, Urdu, Devanagari, Ethiopic and Khmer, before a space
    r"(?:(?<!\b(?:Mr|Ms|Dr|St|Jr|vs))(?<!\bMrs)(?<!\b[A-Z])\.|[!?\u2026\u061f\u06d4\u0964\u0965\u1362\u17d4])"
    rf"[.!?\u2026]*{_CLOSING}(?=\s|$)"
    rf"|[\u3002\uff01\uff1f\uff61]+{_CLOSING}"  # those of Chinese and Japanese, anywhere
)
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")  # Thai, Lao, Burmese, Khmer


class PoolConfig(BaseModel):
    """Which texts there are to choose from."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    texts_per_text: int = Field(20, ge=1)
    """LM texts to choose from, for every text that is kept."""
    files: tuple[str, ...] = ()
    """Labelled files, folders or runs whose texts are candidates too."""
    near_duplicate: float = Field(0.8, gt=0, le=1)
    """Of two texts that share this part of their words (Jaccard index of word pairs) or more, one is kept."""


@dataclass(frozen=True)
class Candidate:
    """A text that may be chosen."""

    text: str
    source: str
    """`admm`, `lm`, or the name of a file."""


def clean(text: str) -> str:
    """The text with white space of every kind as single spaces and without what cannot be read.

    Control characters, lone surrogates and private characters become a space. Invisible characters that break no
    word (soft hyphen, zero-width space, byte order mark) go without one. What shapes the words stays: joiners of
    emoji and of Persian or Indic letters, marks of direction, and characters newer than Python's tables.
    """
    return _SPACES.sub(" ", _UNREADABLE.sub(" ", _INVISIBLE.sub("", text))).strip()


def fit(task: BoundTask, text: str, allowed_V: Tensor, max_tokens: int) -> str | None:
    """The cleaned text; a longer one cut at its last sentence end within the limit.

    Args:
        task: the rendering, whose tokens are counted.
        text: any text.
        allowed_V: tokens that a text may hold (V,).
        max_tokens: the limit.

    Returns:
        None if nothing is left, no sentence ends within the limit, or what is left holds a token that is banned.
    """
    text = clean(text)
    ids = task.text_ids(text) if text else []
    if len(ids) > max_tokens:
        text, ids = _cut(task, text, max_tokens)
    return text if ids and bool(allowed_V[ids].all()) else None


def _cut(task: BoundTask, text: str, max_tokens: int) -> tuple[str, list[int]]:
    kept, kept_ids = "", list[int]()
    for match in _SENTENCE_END.finditer(text):
        ids = task.text_ids(text[: match.end()])
        if len(ids) > max_tokens:
            break
        kept, kept_ids = text[: match.end()], ids
    return kept, kept_ids


class _Parts(dict[int, str]):
    """For `str.translate`: words apart, with emoji and letters of scripts without spaces as words of their own."""

    def __missing__(self, code: int) -> str:
        char, kind = chr(code), unicodedata.category(chr(code))
        if kind == "Cf" or 0xFE00 <= code <= 0xFE0F:  # joiners and variation selectors
            self[code] = ""
        elif kind == "So" or (
            kind[0] in "LMN" and (unicodedata.east_asian_width(char) in "WF" or _UNSPACED.match(char))
        ):
            self[code] = f" {char} "
        else:
            self[code] = char if kind[0] in "LMN" else " "
        return self[code]


_PARTS = _Parts()


def word_pairs(text: str) -> frozenset[str]:
    """Pairs of neighbouring words, the text's two ends included; case, punctuation and width play no part.

    Where a script has no spaces, its letters are the words; in a text without words, all its characters are.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    words = plain.translate(_PARTS).split() or list("".join(plain.split()))
    return frozenset(map(" ".join, pairwise(["", *words, ""])))


class Pool:
    """Candidates of one class, no two alike. Of two that are, the one that was added first stays.

    Two texts are alike if they share so many of their `word_pairs`; the same text twice always is.

    Args:
        near_duplicate: Jaccard index from which on two texts are alike, in (0, 1].
    """

    def __init__(self, near_duplicate: float = 0.8) -> None:
        self.candidates: list[Candidate] = []
        self.dropped = 0
        """Texts that were said before."""
        self._threshold = near_duplicate
        self._pairs: list[frozenset[str]] = []
        self._holders: dict[str, list[int]] = {}

    def add(self, texts: Iterable[str], source: str) -> None:
        """Adds the texts that are new."""
        for text in texts:
            pairs = word_pairs(text)
            telling = self._telling(pairs)
            if self._knows(pairs, telling):
                self.dropped += 1
                continue
            for pair in telling:
                self._holders.setdefault(pair, []).append(len(self._pairs))
            self._pairs.append(pairs)
            self.candidates.append(Candidate(text, source))

    def _knows(self, pairs: frozenset[str], telling: list[str]) -> bool:
        """Whether a text that is there has a Jaccard index of at least the threshold with this one."""
        met = {i for pair in telling for i in self._holders.get(pair, ())}
        return any(self._alike(pairs, self._pairs[i]) for i in met)

    def _alike(self, a: frozenset[str], b: frozenset[str]) -> bool:
        few, many = sorted((len(a), len(b)))
        if few / many < self._threshold:  # even if all of the few were shared
            return False
        shared = len(a & b)
        return shared / (few + many - shared) >= self._threshold

    def _telling(self, pairs: frozenset[str]) -> list[str]:
        """So many pairs, in one order for all texts, that texts which are alike share at least one.

        Two sets with |A & B| >= t |A | B| share one of their first |A| - ceil(t |A|) + 1 (prefix filtering,
        Chaudhuri et al. 2006); long pairs come first, which few texts hold.
        """
        count = len(pairs) - math.ceil(self._threshold * len(pairs) - 1e-9) + 1
        return sorted(pairs, key=lambda pair: (-len(pair), pair))[:count]
