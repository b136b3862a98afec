"""The pool: candidate texts from several sources, cleaned, each said once, each marked with where it is from.

Sources: what ADMM found, what the LM writes after the class's prompt, texts that the user brings, earlier runs.
Nothing here looks at gradients.
"""

from __future__ import annotations

import math
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from gradmm.data.task import BoundTask
from gradmm.solvers.forms import AS_WRITTEN, Form

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
    max_repeats: int | None = Field(2, ge=1)
    """A text that says a word more often than this in a row is no candidate; None takes all."""
    forms: tuple[str, ...] = Field(
        (
            AS_WRITTEN,
            "lowercase",
            "no_final_punctuation",
            "lowercase+no_final_punctuation",
            "lowercase+no_punctuation",
            "spaced_punctuation",
            "lowercase+spaced_punctuation",
        ),
        min_length=1,
    )
    """Forms of writing that are tried; all candidates take the one in which they come nearest to the target."""

    @field_validator("forms")
    @classmethod
    def _known(cls, forms: tuple[str, ...]) -> tuple[str, ...]:
        for name in forms:
            Form(name)
        return forms


@dataclass(frozen=True)
class Candidate:
    """A text that may be chosen."""

    text: str
    source: str
    """`admm`, `lm`, `writer`, or the name of a file."""
    written: str = field(default="", compare=False)
    """What it was before it took its form."""


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


def most_repeats(text: str) -> int:
    """How often a word stands in a row, at most: 3 in "very, very, very good". Case and punctuation play no part.

    Words are what stands between spaces; a mark alone is none, so that "." between two words parts them.
    """
    words = ("".join(filter(str.isalnum, word)) or word for word in text.casefold().split())
    return max((len(list(run)) for word, run in groupby(words) if word.isalnum()), default=0)


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

    Two texts are alike if they share so many of their `word_pairs`; the same text twice always is. Only texts that
    share one of their rarest pairs are compared at all.

    Args:
        near_duplicate: Jaccard index from which on two texts are alike, in (0, 1].
    """

    def __init__(self, near_duplicate: float = 0.8) -> None:
        self._threshold = near_duplicate
        self._added: list[Candidate] = []
        self._kept: list[Candidate] | None = None

    def add(self, texts: Iterable[str], source: str) -> None:
        """Adds texts; of those that are alike, none more than once."""
        self.add_formed(((text, text) for text in texts), source)

    def add_formed(self, pairs: Iterable[tuple[str, str]], source: str) -> None:
        """Adds texts, each with what it was before it took its form."""
        self._added += [Candidate(text, source, written) for text, written in pairs]
        self._kept = None

    @property
    def candidates(self) -> list[Candidate]:
        """The texts that stay, in the order in which they were added."""
        if self._kept is None:
            self._kept = list(self._first_of_all_alike())
        return self._kept

    @property
    def dropped(self) -> int:
        """Texts that were said before."""
        return len(self._added) - len(self.candidates)

    def _first_of_all_alike(self) -> Iterator[Candidate]:
        places = _rarest_first(one.text for one in self._added)
        kept: list[array[int]] = []
        holders: dict[int, list[int]] = {}
        for one in self._added:
            pairs = array("i", sorted(places[pair] for pair in word_pairs(one.text)))
            telling = pairs[: self._count_telling(len(pairs))]
            met = {i for pair in telling for i in holders.get(pair, ())}
            if self._is_like_any(pairs, (kept[i] for i in met)):
                continue
            for pair in telling:
                holders.setdefault(pair, []).append(len(kept))
            kept.append(pairs)
            yield one

    def _is_like_any(self, pairs: array[int], others: Iterable[array[int]]) -> bool:
        own = frozenset(pairs)
        for other in others:
            few, many = sorted((len(pairs), len(other)))
            if few / many < self._threshold:  # even if all of the few were shared
                continue
            shared = len(own.intersection(other))
            if shared / (few + many - shared) >= self._threshold:
                return True
        return False

    def _count_telling(self, size: int) -> int:
        """So many of the first pairs that texts which are alike share one of them, whatever the order of pairs.

        Two sets with |A & B| >= t |A | B| share one of their first |A| - ceil(t |A|) + 1 (prefix filtering,
        Chaudhuri et al. 2006).
        """
        return size - math.ceil(self._threshold * size - 1e-9) + 1


def _rarest_first(texts: Iterable[str]) -> dict[str, int]:
    """Places of all word pairs in one order, those of fewest texts first: few texts meet at a rare pair."""
    counts = Counter(pair for text in texts for pair in word_pairs(text))
    return {pair: place for place, pair in enumerate(sorted(counts, key=counts.__getitem__))}
