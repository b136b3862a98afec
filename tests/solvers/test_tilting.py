"""`gradmm.solvers.tilting`: what is added to logits, against closed forms."""

from __future__ import annotations

import torch

from gradmm.data.vocabulary import token_strings
from gradmm.gradients.unigrams import Unigrams
from gradmm.solvers.forms import Form
from gradmm.solvers.tilting import Tilt, written_as
from tiny_models import make_tokenizer

SIZE = 6
WANTED = Unigrams(torch.tensor([0.3, 0.2, 0.1, 0.4, 0.0, 0.0], dtype=torch.float64), 1e-4)


def tilt(step=1.0, words=(0, 1, 2, 3, 4, 5), written=(0, 1, 2, 3, 4, 5), wanted=WANTED):
    return Tilt(wanted, torch.isin(torch.arange(SIZE), torch.tensor(words)), torch.tensor(written), step)


def test_one_step_is_exact_where_tokens_do_not_depend_on_those_before():
    logits_V = torch.tensor([0.5, -1.0, 0.0, 1.0, -2.0, -30.0], dtype=torch.float64)
    one = tilt()
    one.learn(Unigrams(torch.softmax(logits_V, -1), 1e-9))
    found_V = torch.softmax(logits_V + one.bias_V, -1)
    torch.testing.assert_close(found_V, WANTED.share_V, atol=3e-3, rtol=0)


def test_steps_go_half_the_way_and_take_back_what_was_overdone():
    one, found_V = tilt(step=0.5), torch.full((SIZE,), 1 / SIZE, dtype=torch.float64)
    one.learn(Unigrams(found_V, 1e-4))
    half_V = 0.5 * ((WANTED.share_V + 1e-4) / (found_V + 1e-4)).log()
    torch.testing.assert_close(one.bias_V, half_V.clamp(-3, 3).float())
    overdone_V = (WANTED.share_V + 1e-4) ** 2 / (found_V + 1e-4) - 1e-4
    one.learn(Unigrams(overdone_V, 1e-4))
    assert one.bias_V.abs().max() < 1e-5
    one.learn(WANTED)
    assert one.bias_V.abs().max() < 1e-5


def test_no_word_is_tilted_by_more_than_three_nats():
    one = tilt(wanted=Unigrams(torch.tensor([1.0, 0, 0, 0, 0, 0], dtype=torch.float64), 1e-9))
    one.learn(Unigrams(torch.tensor([0.0, 1, 0, 0, 0, 0], dtype=torch.float64), 1e-9))
    assert one.bias_V.tolist() == [3.0, -3.0, 0, 0, 0, 0]


def test_shares_below_the_larger_floor_are_not_told_apart():
    one = tilt()
    one.learn(Unigrams(torch.zeros(SIZE, dtype=torch.float64), floor=1e6))
    assert one.bias_V.abs().max() < 1e-6


def test_a_token_is_tilted_as_the_one_that_it_becomes_and_only_words_are():
    one = tilt(words=(0, 1, 3), written=(1, 1, 2, 3, 4, 5))
    one.learn(Unigrams(torch.full((SIZE,), 1 / SIZE, dtype=torch.float64), 1e-4))
    assert one.bias_V[0] == one.bias_V[1] != 0
    assert one.bias_V[3] > 0 and one.bias_V[[2, 4, 5]].tolist() == [0, 0, 0]


def test_upper_case_becomes_the_token_in_lower_case():
    tokenizer = make_tokenizer()
    strings = token_strings(tokenizer)
    assert written_as(tokenizer, 115, Form("no_punctuation")).tolist() == list(range(115))
    ids = written_as(tokenizer, 115, Form("no_punctuation+lowercase")).tolist()
    assert ids[112:] == [112, 113, 114], "ids without a token"
    (great,), (upper,) = tokenizer(" great").input_ids, tokenizer("A").input_ids
    assert ids[great] == great and strings[ids[upper]] == "a"
    for text, index in zip(strings, ids, strict=False):
        assert strings[index] == (text.lower() if text.lower() in strings else text)
