"""`gradmm.data.vocabulary`: what a text may hold, by what each token adds to a text."""

from __future__ import annotations

import copy
import unicodedata
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gradmm.data.vocabulary import (
    BanConfig,
    allowed_tokens,
    bare_starts,
    sentence_ends,
    token_strings,
    word_tokens,
)
from gradmm.errors import ConfigError
from tiny_models import make_tokenizer
from tiny_tokenizers import TOKENIZERS

HOLE = 30
"""An id that no token has."""
STRINGS = (
    *(
        "<|end|>",
        "x",
        "The",
        " The",
        " film",
        "film",
        " It",
        "it",
        "caf\u00e9",
        " na\u00efve",
        "7",
        " 7",
        " great",
    ),
    *(".", " .", "!", "?", "...", ".\n", ",", "\n", " ", "\t", " a\tb", "\u200b", "\x7f", "\ue000"),
)
CONTROL = {"\n", ".\n", "\t", " a\tb", "\u200b", "\x7f", "\ue000"}
PIECES = (
    "<s>",
    "<unk>",
    "\u2581x",
    "\u2581The",
    "The",
    "\u2581film",
    "film",
    ".",
    "\u2581.",
    "\u2581",
    "x",
    "<0xC3>",
    "<0x0A>",
)


@pytest.fixture(scope="module")
def byte_level() -> Any:
    """A token for each of STRINGS and one for a byte that is no character, in byte-level BPE's writing."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    written = ["<|end|>", *("".join(part for part, _ in level.pre_tokenize_str(s)) for s in STRINGS[1:])]
    vocabulary = {token: index for index, token in enumerate(written)} | {"\u00c3": HOLE + 1}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer, raw.decoder = level, decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>")


@pytest.fixture(scope="module")
def sentence_pieces() -> Any:
    """The SentencePiece sort: a text's first word has a space of its own, which decoding takes away."""
    vocabulary = {piece: index for index, piece in enumerate(PIECES)}
    merges = [("\u2581", "x")]
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    raw.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", unk_token="<unk>")


def marked(tokenizer: Any, mask_V: torch.Tensor) -> set[str]:
    return {token_strings(tokenizer)[index] for index in mask_V.nonzero()[:, 0].tolist()}


# ---- what a token adds


def test_strings_are_what_tokens_add(byte_level):
    found = token_strings(byte_level)
    assert found[: len(STRINGS)] == STRINGS
    assert found[len(STRINGS) : HOLE + 1] == ("",) * (HOLE + 1 - len(STRINGS)) and found[HOLE + 1] == "\ufffd"
    assert len(found) == HOLE + 2


def test_strings_keep_the_space_that_sentencepiece_drops(sentence_pieces):
    assert sentence_pieces.decode([3]) == "The"
    assert token_strings(sentence_pieces)[2:] == (
        *(" x", " The", "The", " film", "film", ".", " .", " ", "x", "\ufffd", "\n"),
    )


def test_strings_of_the_packaged_tokenizer_put_a_text_together(demo_lm):
    strings = token_strings(demo_lm.tokenizer)
    for text in ("A warm, funny film that I'll watch again.", "  Dull!\n\nAnd 3D\u2026 caf\u00e9"):
        ids = demo_lm.tokenizer(text).input_ids
        pieces = [strings[index] for index in ids]
        assert "\ufffd" in "".join(pieces) or "".join(pieces) == text
    assert len(strings) == len(demo_lm.tokenizer) == 8192


# ---- bans


def test_what_always_is_banned(byte_level):
    mask_V = allowed_tokens(byte_level, 40)
    assert mask_V.shape == (40,) and mask_V.dtype == torch.bool
    assert marked(byte_level, mask_V) == set(STRINGS) - CONTROL - {"<|end|>", " "}
    assert not mask_V[len(STRINGS) :].any()  # the hole, half a character, rows of the head without a token


def test_a_head_with_fewer_rows_than_tokens(byte_level):
    mask_V = allowed_tokens(byte_level, 4)
    assert mask_V.tolist() == [False, True, True, True]
    assert sentence_ends(byte_level, 4).shape == (4,)
    assert [part_V.shape for part_V in bare_starts(byte_level, 4)] == [(4,), (4,)]


def test_bytes_that_are_no_character_are_banned(sentence_pieces):
    assert marked(sentence_pieces, allowed_tokens(sentence_pieces, 13)) == {
        *(" x", " The", "The", " film", "film", ".", " .", "x")
    }


@pytest.mark.parametrize("named", [True, False])
def test_every_special_token_is_banned(demo_lm, named):
    """Many models reserve tokens that no attribute of the tokenizer names; decoding would drop them."""
    tokenizer = copy.deepcopy(demo_lm.tokenizer)
    reserved = AddedToken("<|reserved_0|>", special=True, normalized=False)
    tokenizer.add_special_tokens({"extra_special_tokens": [reserved]}) if named else tokenizer.add_tokens(
        [reserved]
    )
    (index,) = tokenizer("<|reserved_0|>", add_special_tokens=False).input_ids
    assert tokenizer.decode([300, index], skip_special_tokens=True) == tokenizer.decode([300])
    assert not allowed_tokens(tokenizer, index + 1)[index]


def test_substrings_are_banned(byte_level):
    bans = BanConfig(substrings=("he", "."))
    assert marked(byte_level, allowed_tokens(byte_level, 40)) - marked(
        byte_level, allowed_tokens(byte_level, 40, bans)
    ) == {"The", " The", ".", " .", "..."}


def test_english_only_keeps_printable_ascii(byte_level, demo_lm):
    bans = BanConfig(english_only=True)
    assert marked(byte_level, allowed_tokens(byte_level, 40)) - marked(
        byte_level, allowed_tokens(byte_level, 40, bans)
    ) == {"caf\u00e9", " na\u00efve"}
    kept = "".join(marked(demo_lm.tokenizer, allowed_tokens(demo_lm.tokenizer, 8192, bans)))
    assert set(kept) <= set(map(chr, range(32, 127))) and len(kept) > 10_000


def test_the_packaged_vocabulary_loses_only_what_it_must(demo_lm):
    mask_V = allowed_tokens(demo_lm.tokenizer, demo_lm.vocab_size)
    assert not mask_V[demo_lm.tokenizer.all_special_ids].any()
    for index, string in enumerate(token_strings(demo_lm.tokenizer)):
        if mask_V[index]:
            assert string.strip() and all(unicodedata.category(char)[0] != "C" for char in string)
            assert demo_lm.tokenizer.decode([index]) == string
        elif index not in demo_lm.tokenizer.all_special_ids:
            assert not string.isprintable() or not string.strip() or "\ufffd" in string


def test_bans_that_leave_nothing_are_refused(byte_level):
    with pytest.raises(ConfigError) as caught:
        allowed_tokens(byte_level, 40, BanConfig(substrings=("",)))
    assert str(caught.value) == (
        "the bans {'english_only': False, 'substrings': ('',)} leave no token of 40; loosen them"
    )
    with pytest.raises(ValidationError, match="ascii_only"):
        BanConfig(ascii_only=True)


# ---- places in a text


def test_sentence_ends(byte_level, sentence_pieces, demo_lm):
    assert marked(byte_level, sentence_ends(byte_level, 40)) == {".", " .", "!", "?", ".\n"}
    assert marked(sentence_pieces, sentence_ends(sentence_pieces, 13)) == {".", " ."}
    assert {".", "!", "?"} <= marked(demo_lm.tokenizer, sentence_ends(demo_lm.tokenizer, 8192))


def test_a_word_that_opens_a_text_stands_for_the_one_after_a_space(byte_level):
    mask_V, ids_V = bare_starts(byte_level, 40)
    assert {STRINGS[i]: STRINGS[ids_V[i]] for i in mask_V.nonzero()[:, 0]} == {"The": " The", "film": " film"}
    elsewhere_V = torch.arange(40)[~mask_V]  # " 7" is a counterpart, but a digit opens no text; "it" has none
    assert torch.equal(ids_V[elsewhere_V], elsewhere_V)


def test_counterparts_of_the_packaged_tokenizer(demo_lm):
    tokenizer, strings = demo_lm.tokenizer, token_strings(demo_lm.tokenizer)
    mask_V, ids_V = bare_starts(tokenizer, 8192)
    the, spaced = tokenizer("The").input_ids[0], tokenizer(" The").input_ids[0]
    assert mask_V[the] and ids_V[the] == spaced != the and not mask_V[spaced]
    assert mask_V.sum() > 500
    for index in mask_V.nonzero()[:, 0].tolist():
        assert strings[ids_V[index]] == " " + strings[index] and strings[index][0].isalpha()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_words_are_what_opens_with_a_space_and_letters(name):
    tokenizer = TOKENIZERS[name]()
    strings = token_strings(tokenizer)
    marked = {strings[i] for i in word_tokens(tokenizer, len(strings) + 5).nonzero()[:, 0].tolist()}
    assert marked == {text for text in strings if text[:1] == " " and text[1:].replace("'", "").isalpha()}


def test_letters_without_case_are_words_wherever_they_stand():
    tokenizer = make_tokenizer(sentences=("電影很好", "電影很壞", "電影"), tokens=160)
    strings = token_strings(tokenizer)
    marked = {strings[i] for i in word_tokens(tokenizer, len(strings)).nonzero()[:, 0].tolist()}
    assert "電影" in marked and not any(text[-1].isascii() for text in marked if not text.startswith(" "))
