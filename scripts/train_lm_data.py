"""Text files -> documents -> a byte-level BPE tokenizer -> two flat files of token ids -> training windows.

Everything is streamed: neither the text nor its tokens are ever in memory as a whole. This half of
`train_lm.py` knows nothing of models, devices or optimizers.

Shape suffixes: B windows in a batch, T tokens in a window.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import random
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SEPARATOR, PAD = "<|endoftext|>", "<|pad|>"
SEPARATOR_ID, PAD_ID = 0, 1
SMALLEST_VOCABULARY = 258  # 256 bytes and the two special tokens
SUFFIXES = (".txt", ".jsonl")
SIDES = ("train", "validation")
ENCODED_AT_ONCE = 512  # documents; enough to keep every core busy
FORMS = (  # {word} is positive/negative, {verdict} great/bad; the prompts a sentiment task will use later
    "A {word} movie review: {text}",
    "Sentiment: {word}\nReview: {text}",
    "Review: {text}\nSentiment: {word}",
    "{text} It was {verdict}",
)
WORDS = ({"word": "negative", "verdict": "bad"}, {"word": "positive", "verdict": "great"})


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, its value and the remedy."""


@dataclass(frozen=True)
class Row:
    """One document as it stands in a file; `place` is FILE:LINE, for error messages."""

    text: str
    label: Any
    place: str


@dataclass(frozen=True)
class Corpus:
    """Which files, and how their rows become documents."""

    paths: tuple[Path, ...]
    text_column: str = "text"
    label_column: str = "label"
    forms: str = "none"
    """`sentiment` adds, for every row labelled 0 or 1, one document in one of `FORMS`."""
    validation: float = 0.01
    """Share of the rows that is held out."""
    seed: int = 0

    def documents(self) -> Iterator[tuple[str, bool]]:
        """Yields (text, is it held out) in file order; every pass yields the same."""
        rng = random.Random(self.seed)
        for row in chain.from_iterable(self._rows(path) for path in self.paths):
            held_out = is_held_out(row.text, self.validation)
            yield row.text, held_out
            if self.forms == "sentiment" and row.label not in (None, -1):
                yield sentiment_form(row, rng), held_out

    def _rows(self, path: Path) -> Iterator[Row]:
        if plain_suffix(path) == ".txt":
            return read_paragraphs(path)
        return read_jsonl(path, self.text_column, self.label_column)


def is_held_out(text: str, share: float) -> bool:
    """Decides by the text's own hash, so that copies of a text never lie on both sides."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def sentiment_form(row: Row, rng: random.Random) -> str:
    """Returns the row's text in one of `FORMS`, drawn uniformly. Raises InputError for labels but 0 and 1."""
    if type(row.label) is not int or row.label not in (0, 1):
        raise InputError(
            f"{row.place}: --forms sentiment knows labels 0 (negative) and 1 (positive), got {row.label!r}; "
            "relabel the row, give null for none, or drop --forms"
        )
    return rng.choice(FORMS).format(text=row.text, **WORDS[row.label])


def plain_suffix(path: Path) -> str:
    """Returns `.txt` or `.jsonl`, looking behind a compression suffix. Raises InputError for others."""
    name = path.name.lower()
    for packed in (".gz", ".xz", ".zst"):
        name = name.removesuffix(packed)
    suffix = Path(name).suffix
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: not a known kind of file; give .txt or .jsonl, plain or .gz, .xz, .zst")
    return suffix


def open_text(path: Path) -> IO[str]:
    """Opens a plain or compressed UTF-8 file; a byte-order mark is dropped."""
    match path.suffix.lower():
        case ".gz":
            return gzip.open(path, "rt", encoding="utf-8-sig")
        case ".xz":
            return lzma.open(path, "rt", encoding="utf-8-sig")
        case ".zst":
            try:
                import zstandard
            except ImportError:
                raise InputError(f"{path}: no zstandard; pip install zstandard, or unpack it") from None
            opened: IO[str] = zstandard.open(path, "rt", encoding="utf-8-sig")
            return opened
    return path.open(encoding="utf-8-sig")


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (FILE:LINE, line without its end). Raises InputError for missing, damaged, non-UTF-8 files."""
    damage: tuple[type[Exception], ...] = (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error)
    if "zstandard" in sys.modules:
        damage = (*damage, sys.modules["zstandard"].ZstdError)
    try:
        with open_text(path) as file:
            for number, line in enumerate(file, 1):
                yield f"{path}:{number}", line.rstrip("\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except damage as error:
        raise InputError(f"{path}: cannot be read as UTF-8 ({error}); convert it, or fetch it again") from None


def read_paragraphs(path: Path) -> Iterator[Row]:
    """Yields the blocks between blank lines."""
    lines = read_lines(path)
    for place, first in lines:
        if first.strip():
            rest = takewhile(str.strip, (line for _, line in lines))
            yield Row("\n".join((first, *rest)).strip(), None, place)


def read_jsonl(path: Path, text_column: str, label_column: str) -> Iterator[Row]:
    """Yields the rows that have text; half surrogate pairs (`\\ud800`) in it become question marks."""
    for place, line in read_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{place}: not JSON ({error}); every line must be one JSON object") from None
        if not isinstance(row, dict):
            raise InputError(f"{place}: not a JSON object ({line[:40]}); every line must be one JSON object")
        if text_column not in row:
            raise InputError(f"{place}: no column {text_column!r} in {sorted(row)}; give --text-column")
        text = row[text_column]
        if not isinstance(text, str):
            raise InputError(f"{place}: {text_column!r} must be text, got {text!r}; give --text-column")
        if text := text.encode("utf-8", "replace").decode().strip():
            yield Row(text, row.get(label_column), place)


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE that can write any text; ids 0 and 1 are the separator and the padding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def as_transformers(tokenizer: Tokenizer, context: int) -> PreTrainedTokenizerFast:
    """The same tokenizer in the form that `AutoTokenizer` loads."""
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=SEPARATOR,
        eos_token=SEPARATOR,
        unk_token=SEPARATOR,
        pad_token=PAD,
        model_max_length=context,
    )


def write_tokens(corpus: Corpus, tokenizer: Tokenizer, folder: Path) -> dict[str, int]:
    """Writes `train.bin` and `validation.bin`: documents back to back, a separator after each.

    Returns:
        How many documents, characters and tokens either file holds.
    """
    tokenizer.encode_special_tokens = True  # a text that spells "<|endoftext|>" must not end a document
    dtype = token_dtype(tokenizer.get_vocab_size())
    counts = {f"{side}_{what}": 0 for side in SIDES for what in ("documents", "characters", "tokens")}
    documents = corpus.documents()
    with open(folder / "train.bin", "wb") as train, open(folder / "validation.bin", "wb") as validation:
        while batch := list(islice(documents, ENCODED_AT_ONCE)):
            encodings = tokenizer.encode_batch_fast([text for text, _ in batch])
            for (text, held_out), encoding in zip(batch, encodings, strict=True):
                ids = np.array([*encoding.ids, SEPARATOR_ID], dtype)
                (validation if held_out else train).write(ids.tobytes())
                for what, number in (("documents", 1), ("characters", len(text)), ("tokens", len(ids))):
                    counts[f"{SIDES[held_out]}_{what}"] += number
    return counts


def token_dtype(vocab_size: int) -> type[np.uint16 | np.uint32]:
    """The smallest type that holds every id."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


class Windows:
    """A token file as contiguous windows, in an order of which no state needs to be kept.

    Window n of a run is number n mod N of epoch n div N, and every epoch has its own permutation, drawn from
    (seed, epoch): a resumed run needs no more than the step number to continue with the same data.

    Args:
        path: what `write_tokens` wrote.
        vocab_size: of the tokenizer; it decides the type of the ids.
        length: T, tokens in a window.
        seed: of the permutations; None keeps the order of the file.
    """

    def __init__(self, path: Path, vocab_size: int, length: int, seed: int | None = None) -> None:
        dtype = token_dtype(vocab_size)
        size = path.stat().st_size // np.dtype(dtype).itemsize
        self.count = max(0, (size - 1) // length)  # the last target needs one token more
        if self.count == 0:
            raise InputError(
                f"{path.stem}: {size} tokens are fewer than one window of {length}; "
                "give more text, a smaller --window, or another --validation"
            )
        self._ids = np.memmap(path, dtype, mode="r")
        self._length, self._seed = length, seed
        self._epoch, self._order = 0, self._permutation(0)

    def _permutation(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        if self._seed is None:
            return np.arange(self.count)
        return np.random.default_rng([self._seed, epoch]).permutation(self.count)

    def _window(self, n: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        epoch, index = divmod(n, self.count)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._permutation(epoch)
        start = int(self._order[index]) * self._length
        return self._ids[start : start + self._length + 1].astype(np.int64)

    def batch(self, first: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns inputs and the tokens that follow them, (B, T) each, for windows first, first + 1, ..."""
        ids = torch.from_numpy(np.stack([self._window(n) for n in range(first, first + size)]))
        return ids[:, :-1], ids[:, 1:]
