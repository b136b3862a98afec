"""Which tokens a synthetic text may hold."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from gradmm.data.task import BoundTask
from gradmm.errors import ConfigError

_UNDECODABLE = "\ufffd"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SENTENCE_ENDS = (".", "!", "?")
_APOSTROPHES = str.maketrans("", "", "'\u2019")


class BanConfig(BaseModel):
    """Bans beyond those that always hold: special tokens, control characters, rows without a token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    english_only: bool = False
    """Keep tokens of printable ASCII only."""
    substrings: tuple[str, ...] = ()
    """Ban every token that holds one of these."""


@lru_cache(maxsize=8)
def token_strings(tokenizer: Any) -> tuple[str, ...]:
    """What each token adds to a text that it continues; empty for ids without a token.

    A SentencePiece tokenizer drops the space of a text's first token, so each is decoded after another one.
    """
    anchor = tokenizer("x", add_special_tokens=False).input_ids
    head = tokenizer.decode(anchor)
    known = set(tokenizer.get_vocab().values())
    size = max(known) + 1
    wholes = tokenizer.batch_decode([[*anchor, i] if i in known else anchor for i in range(size)])
    return tuple(whole[len(head) :] for whole in wholes)


def allowed_tokens(tokenizer: Any, vocab_size: int, config: BanConfig = BanConfig()) -> Tensor:
    """Marks the tokens that a text may hold.

    Args:
        tokenizer: a Hugging Face tokenizer.
        vocab_size: rows of the model's head, which may exceed the tokenizer's.
        config: further bans.

    Returns:
        Boolean mask (V,).

    Raises:
        ConfigError: if nothing is left.
    """
    strings = token_strings(tokenizer)[:vocab_size]
    special = {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}
    special |= _spare_bytes(tokenizer, strings)
    mask_V = torch.zeros(vocab_size, dtype=torch.bool)
    for index, string in enumerate(strings):
        mask_V[index] = index not in special and _is_clean(string, config)
    if not mask_V.any():
        raise ConfigError(f"the bans {config.model_dump()} leave no token of {vocab_size}; loosen them")
    return mask_V


def sentence_ends(tokenizer: Any, vocab_size: int) -> Tensor:
    """Marks the tokens that end a sentence: a period, exclamation or question mark (V,)."""
    mask_V = torch.zeros(vocab_size, dtype=torch.bool)
    for index, string in enumerate(token_strings(tokenizer)[:vocab_size]):
        mask_V[index] = string.strip() in _SENTENCE_ENDS
    return mask_V


def text_ends(tokenizer: Any, vocab_size: int) -> Tensor:
    """Marks the token by which an LM says that a text is over (V,); none where the tokenizer has none."""
    mask_V, end = torch.zeros(vocab_size, dtype=torch.bool), tokenizer.eos_token_id
    if end is not None and end < vocab_size:
        mask_V[end] = True
    return mask_V


def word_tokens(tokenizer: Any, vocab_size: int) -> Tensor:
    """Marks the tokens that open a word: a space and letters, or letters of a script without case (V,)."""
    mask_V = torch.zeros(vocab_size, dtype=torch.bool)
    for index, string in enumerate(token_strings(tokenizer)[:vocab_size]):
        letters = string.strip().translate(_APOSTROPHES)
        opens = string.startswith(" ") or unicodedata.category(letters[:1] or " ") == "Lo"
        mask_V[index] = opens and letters.isalpha()
    return mask_V


def bare_starts(tokenizer: Any, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Tokens that can open a text, and for each token the one that stands for it after a space.

    With byte-level BPE the first word of a text ("The") is another token than the same word after a prompt
    (" The"). A projection that is guided by a prompt asks the LM about the second and writes the first.

    Returns:
        mask (V,) of tokens that have such a counterpart; ids (V,) of the counterparts (or the token itself).
    """
    strings = token_strings(tokenizer)[:vocab_size]
    spaced = {string: index for index, string in enumerate(strings) if string.startswith(" ")}
    ids_V = torch.arange(vocab_size)
    mask_V = torch.zeros(vocab_size, dtype=torch.bool)
    for index, string in enumerate(strings):
        if string[:1].isalpha() and " " + string in spaced:
            mask_V[index], ids_V[index] = True, spaced[" " + string]
    return mask_V, ids_V


def text_starts(task: BoundTask, allowed_V: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens that can open a text in its place in the template, and for each the one to ask the LM about.

    A token opens a text if the text that it makes alone is tokenised back to it: no continuation piece ("##ing"),
    nothing without the space that SentencePiece puts before a text. Where a text's first word is another token
    than after a prompt, it also has to have a counterpart there (`bare_starts`).

    Args:
        task: the rendering.
        allowed_V: tokens that a text may hold (V,).

    Returns:
        mask (V,); ids (V,) of the counterparts, or of the tokens themselves.
    """
    size = allowed_V.shape[0]
    mask_V, ids_V = bare_starts(task.tokenizer, size) if task.starts_bare else (None, torch.arange(size))
    candidates_V = allowed_V.cpu() if mask_V is None else allowed_V.cpu() & mask_V
    candidates = candidates_V.nonzero()[:, 0].tolist()
    texts = task.decode_each(candidates)
    different = list(dict.fromkeys(texts))  # "film" and " film" alone make the same text
    ids_of = dict(zip(different, task.texts_ids(different), strict=True))
    kept = [i for i, text in zip(candidates, texts, strict=True) if ids_of[text] == [i]]
    opens_V = torch.zeros(size, dtype=torch.bool)
    opens_V[kept] = True
    return opens_V.to(allowed_V.device), ids_V.to(allowed_V.device)


def _spare_bytes(tokenizer: Any, strings: tuple[str, ...]) -> set[int]:
    """SentencePiece's byte tokens of characters that have a token of their own, and so never come from a text."""
    counts = Counter(strings)
    names = tokenizer.convert_ids_to_tokens(list(range(len(strings))))
    return {
        index
        for index, (name, string) in enumerate(zip(names, strings, strict=True))
        if counts[string] > 1 and name is not None and _BYTE.fullmatch(name)
    }


def _is_clean(string: str, config: BanConfig) -> bool:
    if not string.strip() or _UNDECODABLE in string or any(item in string for item in config.substrings):
        return False
    if config.english_only and not (string.isascii() and string.isprintable()):
        return False
    return not any(unicodedata.category(char).startswith("C") for char in string)
