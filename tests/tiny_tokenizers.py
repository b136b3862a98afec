"""Small tokenizers of every manner, trained on the spot.

`TOKENIZERS`   name -> a function that makes one
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from tiny_models import SENTENCES, make_tokenizer

_LINES = (
    *SENTENCES,
    "Review: the film is bad, so sad!",
    "Category: happy\nText: What a story, what an end?",
    "I wasn't surprised. It's a film that I'd see again.",
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789",
)
_SPECIAL = ["<unk>", "<s>", "</s>"]
_NAMES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def _wrapped(tokenizer: Tokenizer) -> Any:
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_NAMES)


def _pieces(scheme: str, model: str = "bpe", byte_fallback: bool = False) -> Any:
    """Of the SentencePiece sort, with a BOS token; `scheme` says before which words a space is put."""
    specials = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))] if byte_fallback else _SPECIAL
    options = {"vocab_size": 110 + len(specials), "special_tokens": specials, "show_progress": False}
    if model == "bpe":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=byte_fallback))
        trainer = trainers.BpeTrainer(**options)
    else:
        tokenizer, trainer = Tokenizer(models.Unigram()), trainers.UnigramTrainer(unk_token="<unk>", **options)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.train_from_iterator(_LINES, trainer)
    if byte_fallback:  # trained as specials to have ids; real ones are plain tokens
        state = tokenizer.to_str()
        tokenizer = Tokenizer.from_str(_without_special_bytes(state))
        parts = [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
        tokenizer.decoder = decoders.Sequence(parts)
    else:
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return _wrapped(tokenizer)


def _without_special_bytes(state: str) -> str:
    settings = json.loads(state)
    settings["added_tokens"] = [t for t in settings["added_tokens"] if not t["content"].startswith("<0x")]
    return json.dumps(settings)


def _llama(legacy: bool) -> Any:
    """transformers' own class, which puts a normalizer or a pre-tokenizer together by `legacy`."""
    trained = json_of(_pieces("first", byte_fallback=True))["model"]
    merges = [tuple(pair) for pair in trained["merges"]]
    return LlamaTokenizer(vocab=trained["vocab"], merges=merges, legacy=legacy)


def json_of(tokenizer: Any) -> Any:
    """All steps of a tokenizer."""
    return json.loads(tokenizer.backend_tokenizer.to_str())


def _wordpiece() -> Any:
    """BERT's: lower case, "##" before continuations, [CLS] and [SEP] around, spaces cleaned up in decoding."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        _LINES, trainers.WordPieceTrainer(vocab_size=130, special_tokens=specials, show_progress=False)
    )
    return BertTokenizer(vocab=tokenizer.get_vocab(), clean_up_tokenization_spaces=True)


TOKENIZERS: dict[str, Callable[[], Any]] = {
    name: cache(make)
    for name, make in {
        "byte-level": lambda: make_tokenizer(False),
        "byte-level with BOS": lambda: make_tokenizer(True),
        "unigram": lambda: _pieces("first", "unigram"),
        "metaspace, first": lambda: _pieces("first"),
        "metaspace, always": lambda: _pieces("always"),
        "byte fallback": lambda: _pieces("first", byte_fallback=True),
        "llama, legacy": lambda: _llama(legacy=True),
        "llama": lambda: _llama(legacy=False),
        "wordpiece": _wordpiece,
    }.items()
}
