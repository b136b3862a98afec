"""`gradmm.gradients.private_unigrams`: shares of words that are released, against counting by hand."""

from __future__ import annotations

import pytest
import torch

from gradmm.data.vocabulary import bare_starts, token_strings
from gradmm.errors import ConfigError
from gradmm.gradients.private_unigrams import PrivateUnigrams, public_words_clip, released_unigrams
from gradmm.gradients.unigrams import FLOOR, TokenShares, UnigramCounter
from gradmm.privacy.config import PrivacyConfig
from gradmm.privacy.mechanism import FixedNoise
from gradmm.privacy.planning import make_plan

SIZE = 120
SPLIT = [
    ["The film is great", "The end is bad, the end"],
    ["I feel sad"],
    ["A dull story", "A great great film", "!"],
]
CLIP = 0.4


class NoNoise(FixedNoise):
    """What a release would be without its noise."""

    def added(self, values_M, std, quantum):
        return values_M


@pytest.fixture
def task(tiny_lm, tiny_task):
    return tiny_task(tiny_lm("gpt2"))


@pytest.fixture
def shares(task):
    return TokenShares(task, SIZE)


@pytest.fixture
def plan():
    given = {"neighboring_relation": "add_or_remove_one", "target_epsilon": 2.0, "target_delta": 1e-5}
    return make_plan(PrivacyConfig(**given, num_rows=6, accountant="rdp"), {"words": 0.5})


def words_slowly(task, text):
    """Shares of the text's words in all of its tokens, by string."""
    spaced = bare_starts(task.tokenizer, SIZE)[1].tolist() if task.starts_bare else list(range(SIZE))
    ids, strings = task.text_ids(text), token_strings(task.tokenizer)
    own = [spaced[ids[0]], *ids[1:]]
    are_words = {i for i in own if strings[i].startswith(" ") and strings[i].strip().isalpha()}
    return {i: own.count(i) / len(own) for i in are_words}


def clipped_slowly(task, text):
    found = words_slowly(task, text)
    norm = sum(share**2 for share in found.values()) ** 0.5
    return {i: share * min(1, CLIP / norm) for i, share in found.items()}


def mean_slowly(task, texts):
    mean_V = torch.zeros(SIZE, dtype=torch.float64)
    for text in texts:
        for token, share in clipped_slowly(task, text).items():
            mean_V[token] += share / len(texts)
    return mean_V


def test_a_rows_shares_are_those_of_its_words(task, shares):
    for text in (text for own in SPLIT for text in own):
        found_W = shares.of_words(task.text_ids(text))
        expected_V = torch.zeros(SIZE, dtype=torch.float64)
        for token, share in words_slowly(task, text).items():
            expected_V[token] = share
        torch.testing.assert_close(found_W, expected_V[shares.words_V])
        assert float(expected_V.sum()) == pytest.approx(float(found_W.sum())) and float(found_W.norm()) <= 1
    assert not shares.of_words([]).any()


def test_without_noise_they_are_means_of_clipped_rows(task, shares, plan):
    total = PrivateUnigrams(shares, 3, CLIP)
    for label, own in enumerate(SPLIT):
        for text in own:
            total.add(label, task.text_ids(text))
    total.add(1, [])
    means_CW, std_C = total.release(plan, [2.0, 1.0, 3.0], NoNoise(seed=0))
    multiplier = plan.event("words").noise_multiplier
    assert std_C.tolist() == pytest.approx([multiplier * CLIP / 2, multiplier * CLIP, multiplier * CLIP / 3])
    is_clipped = set()
    for label, own in enumerate(SPLIT):
        torch.testing.assert_close(means_CW[label], mean_slowly(task, own)[shares.words_V], rtol=1e-5, atol=1e-8)
        is_clipped |= {sum(s**2 for s in words_slowly(task, text).values()) ** 0.5 > CLIP for text in own}
    assert is_clipped == {True, False}


def test_noise_has_the_deviation_that_is_told(shares, plan):
    total = PrivateUnigrams(shares, 400, CLIP)
    means_CW, std_C = total.release(plan, [2.0] * 400, FixedNoise(seed=0))
    assert float(means_CW.std()) == pytest.approx(float(std_C[0]), rel=0.03)


def test_texts_that_are_held_against_them_are_clipped_alike(task, shares):
    """So a writer that writes the rows themselves is not tilted."""
    counter = UnigramCounter(task, SIZE, clip=CLIP)
    counter.add(task.texts_ids(SPLIT[0]))
    found = counter.mean(fewest_rows=1)
    torch.testing.assert_close(found.share_V, mean_slowly(task, SPLIT[0]))
    wanted = released_unigrams(shares, mean_slowly(task, SPLIT[0])[shares.words_V], 0.0, CLIP)
    torch.testing.assert_close(found.share_V, wanted.share_V)
    assert found.clip == wanted.clip == CLIP


def test_what_noise_leaves_is_not_told_apart_below_its_deviation(shares):
    mean_W = torch.linspace(-1, 1, int(shares.words_V.sum()), dtype=torch.float64)
    found = released_unigrams(shares, mean_W, 0.25, CLIP)
    assert found.floor == 0.25 + FLOOR and found.noise_std == 0.25
    assert torch.equal(found.share_V[shares.words_V], mean_W), "below 0, too: cut off, noise would add up"
    assert not found.share_V[~shares.words_V].any()


def test_the_public_clip_is_the_median_norm(task, shares):
    texts = [task.text_ids(text) for own in SPLIT for text in own]
    norms = sorted(float(shares.of_words(ids).norm()) for ids in texts)
    assert public_words_clip(shares, texts) == norms[(len(norms) - 1) // 2] > 0
    with pytest.raises(ConfigError, match=r"no word whose share could be released; set writer\.unigram_step to 0"):
        public_words_clip(shares, [task.text_ids("!"), task.text_ids("!"), *texts[:1]])
