"""The pool: what cleaning leaves, where texts are cut, and near duplicates against all pairs compared."""

import itertools
import random
import unicodedata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradmm.solvers.pool import Pool, clean, fit, most_repeats, word_pairs

UNTOUCHED = [
    'I didn\'t like it... "really", she said; (50% off) — it\u2019s “fine” & <b>!',
    "Ça va? Größe, œuvre, naïve façade.",
    "Фильм был отличный! \u0397 ταινία ήταν καλή.",
    "这部电影很好。映画は最高だった\uff01영화가 좋았다.",
    "हिन्दी में अच्छी फ़िल्म। क्‍ष",  # a joiner keeps the half form
    "می‌خواهم این فیلم را ببینم",  # a zero-width non-joiner stands inside a word
    "كان الفيلم رائعا\u200f!",  # a mark of direction
    "ภาพยนตร์ดีมาก",
    "👨‍👩‍👧‍👦 ❤️ 👍🏽 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "\U0001fae8",  # an emoji that is newer than Python 3.11's tables
    "#1 @home http://a.b/c?d=e&f=1 3.5/5 :-) ¯\\_(ツ)_/¯",
]


@pytest.mark.parametrize("text", UNTOUCHED)
def test_cleaning_leaves_words_of_every_script_emoji_and_quotes(text):
    assert clean(text) == text


@pytest.mark.parametrize(
    ("dirty", "cleaned"),
    [
        (" a\t b\r\n\n c\u00a0d\u3000e\u2028f ", "a b c d e f"),
        ("a\x00b\x07c\x1b[0m\x7f", "a b c [0m"),
        ("won\u00adder\u200bful\ufeff", "wonderful"),
        ("a\ud800b\ue000c\uffff", "a b c"),  # a lone surrogate breaks tokenizers
        ("\x00\n \u200b", ""),
    ],
)
def test_cleaning_removes_control_characters_and_surplus_space(dirty, cleaned):
    assert clean(dirty) == cleaned


@given(st.text(st.characters(codec=None), max_size=40))
def test_cleaning_twice_is_cleaning_once_and_no_visible_character_is_lost(text):
    once = clean(text)
    assert clean(once) == once
    assert not any(char.isspace() and char != " " for char in once) and "  " not in once and once == once.strip()
    assert not any(unicodedata.category(char) in ("Cc", "Cs") for char in once)
    once.encode()

    def visible(string):
        return [char for char in string if unicodedata.category(char)[0] not in "CZ"]

    assert visible(once) == visible(text)


# ---- fit

SENTENCES = ["The film is bad.", "It was great!", "A fine story?", "I feel sad..."]


def ordinary(lm):
    """All tokens but the special ones."""
    allowed_V = torch.ones(lm.vocab_size, dtype=torch.bool)
    allowed_V[lm.tokenizer.all_special_ids] = False
    return allowed_V


@pytest.fixture
def fitting(tiny_lm, tiny_task):
    lm = tiny_lm("gpt2")
    return tiny_task(lm, template="Review: {text} It was"), ordinary(lm)


@given(data=st.data())
def test_a_long_text_is_cut_at_the_last_sentence_end_within_the_limit(data, tiny_lm, tiny_task):
    lm = tiny_lm("gpt2")
    task, allowed_V = tiny_task(lm), ordinary(lm)
    parts = data.draw(st.lists(st.sampled_from([*SENTENCES, "and a bad", "story"]), min_size=1, max_size=6))
    limit = data.draw(st.integers(1, 30))
    text = " ".join(parts)
    found = fit(task, text, allowed_V, limit)
    whole = [" ".join(parts[: k + 1]) for k, part in enumerate(parts) if part in SENTENCES]
    expected = [text, *reversed(whole)]
    assert found == next((one for one in expected if len(task.text_ids(one)) <= limit), None)


def test_short_texts_stay_whole_even_without_a_sentence_end(fitting):
    task, allowed_V = fitting
    text = "The film is bad. It was"
    size = len(task.text_ids(text))
    assert fit(task, f"  {text}\n", allowed_V, size) == text
    assert fit(task, text, allowed_V, size - 1) == "The film is bad."
    assert fit(task, "", allowed_V, 9) is None
    assert fit(task, " \n\x00", allowed_V, 9) is None, "the template's own space is no text"


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ('He said "no." Then', ['He said "no."']),
        ("What?! (Yes.) It\u2019s “so.” Why", ["What?!", "What?! (Yes.)", "What?! (Yes.) It\u2019s “so.”"]),
        ("Mr. T. met Dr. No for 3.5 hours. Yes", ["Mr. T. met Dr. No for 3.5 hours."]),
        ("好。「是\uff01」行", ["好。", "好。「是\uff01」"]),
        ("नमस्ते। है", ["नमस्ते।"]),
    ],
)
def test_sentence_ends_of_several_scripts_and_no_abbreviations(text, ends, demo_task):
    found = []
    for limit in range(1, len(demo_task.text_ids(text))):
        cut = fit(demo_task, text, torch.ones(8192, dtype=torch.bool), limit)
        if cut is not None and cut not in found:
            found.append(cut)
    assert found == ends


def test_banned_tokens_are_refused_unless_they_are_cut_off(fitting):
    task, allowed_V = fitting
    kept = "The film is bad."
    banned = task.text_ids("A great")[-1]
    allowed_V[banned] = False
    assert banned not in task.text_ids(kept)
    assert fit(task, f"{kept} It was great", allowed_V, 99) is None
    assert fit(task, f"{kept} It was great", allowed_V, len(task.text_ids(kept))) == kept
    assert fit(task, "So<|endoftext|>", allowed_V, 99) is None


# ---- duplicates


def kept_slowly(texts, threshold):
    kept = []
    for text in texts:
        pairs = word_pairs(text)
        if all(len(pairs & other) / len(pairs | other) < threshold for other in map(word_pairs, kept)):
            kept.append(text)
    return kept


def kept_fast(texts, threshold):
    pool = Pool(threshold)
    pool.add(texts, "x")
    kept = [candidate.text for candidate in pool.candidates]
    assert pool.dropped == len(texts) - len(kept)
    return kept


WORDS = st.text(st.sampled_from("ab .!好电👍"), max_size=12)
THRESHOLDS = st.one_of(st.sampled_from([0.5, 0.55, 0.6, 0.7, 0.8, 0.9, 1.0]), st.floats(0.5, 1.0))


@given(st.lists(WORDS, max_size=20), THRESHOLDS)
def test_near_duplicates_are_those_of_all_pairs_compared(texts, threshold):
    assert kept_fast(texts, threshold) == kept_slowly(texts, threshold)


@pytest.mark.parametrize("threshold", [0.5, 0.55, 0.7, 0.8, 0.9, 1.0])
def test_near_duplicates_among_edited_word_soups(threshold):
    draw = random.Random(0)
    words = ["the", "a", "film", "story", "is", "was", "bad", "great", *(f"word{k}" for k in range(40))]
    texts = []
    for _ in range(60):
        text = draw.choices(words, k=draw.randint(1, 20))
        for _ in range(4):
            texts.append(" ".join(text))
            if draw.random() < 0.8:
                text[draw.randrange(len(text))] = draw.choice(words)
    draw.shuffle(texts)
    kept = kept_slowly(texts, threshold)
    assert 60 <= len(kept) < len(texts) - 10, "both must happen"
    assert kept_fast(texts, threshold) == kept


def test_a_pair_exactly_at_the_threshold_is_one_too_many():
    words = [f"word{k}" for k in range(23)]
    a, b = " ".join(words[:14]), " ".join(words)
    assert (len(word_pairs(a) & word_pairs(b)), len(word_pairs(a) | word_pairs(b))) == (14, 25)
    assert 14 / 25 * 25 > 14, "compared by a product, rounding would keep both"
    assert kept_fast([a, b], 14 / 25) == [a]
    assert kept_fast([a, b], 14 / 25 + 1e-9) == [a, b]


@pytest.mark.parametrize(
    ("a", "b", "alike"),
    [
        ("The film!", "the  FILM", True),
        ("...", "...", True),
        ("...", "!?", False),
        ("👍", "👎", False),
        ("Great 👍", "Great 👎", False),
        ("❤️", "❤", True),
        ("Good", "good.", True),
        ("Good", "Bad", False),
        ("这部电影很好看我很喜欢", "这部电影很好看我很喜爱", True),  # one of eleven characters
        ("这部电影很好看我很喜欢", "她昨天去了北京的大学校", False),
        ("ภาพยนตร์เรื่องนี้ดีมากจริงๆ", "ภาพยนตร์เรื่องนี้ดีมากจริงๆ นะ", True),
        ("कि", "की", False),  # the vowel is a mark
        ("café", "cafe\u0301", True),
        ("\uff46\uff49\uff4c\uff4d", "film", True),
        ("a b", "b a", False),
    ],
)
def test_what_counts_as_alike(a, b, alike):
    assert len(kept_fast([a, b], 0.7)) == 2 - alike


@given(st.text(max_size=30))
def test_the_same_text_twice_is_one_candidate(text):
    assert kept_fast([text, text], 1.0) == [text]


def test_of_two_alike_the_first_source_is_kept():
    pool = Pool()
    pool.add(["The film is great.", "A story"], "admm")
    pool.add(["the film is great", "Another one"], "lm")
    pool.add(["another one!"], "mine.csv")
    marked = [(candidate.text, candidate.source) for candidate in pool.candidates]
    assert marked == [("The film is great.", "admm"), ("A story", "admm"), ("Another one", "lm")]
    assert pool.dropped == 2


def test_no_two_of_the_kept_are_alike():
    draw = random.Random(1)
    kept = kept_fast([" ".join(draw.choices("abcd", k=6)) for _ in range(300)], 0.6)
    pairs = list(map(word_pairs, kept))
    assert len(kept) > 10
    assert all(len(a & b) / len(a | b) < 0.6 for a, b in itertools.combinations(pairs, 2))


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("very good", 1),
        ("It was bad bad bad.", 3),
        ("Very, very (VERY) good", 3),
        ("no . no . no .", 1),
        ("it was it was it was", 1),
        ("... ! !", 0),
        ("", 0),
        ("очень Очень плохо", 2),
    ],
)
def test_how_often_a_word_stands_in_a_row(text, most):
    assert most_repeats(text) == most
