"""`gradmm.gradients.unigrams`: shares of tokens, against counting by hand and the gradient that they are of."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from gradmm.data.vocabulary import bare_starts
from gradmm.gradients.exact_target import class_target
from gradmm.gradients.target import ClassTarget, ReleasedTarget
from gradmm.gradients.unigrams import UnigramCounter, Unigrams
from gradmm.memory import BatchLimit

TEXTS = ["The film is great", "The end is bad", "The film", "A dull story and the end", "I feel sad", "The end"]


def counted(task, texts, size=120):
    counter = UnigramCounter(task, size)
    counter.add(task.texts_ids(texts))
    return counter.mean()


def counted_slowly(task, texts, size=120):
    """Of tokens as they are after a space, in rows that are counted one by one."""
    spaced = bare_starts(task.tokenizer, size)[1].tolist() if task.starts_bare else list(range(size))
    rows = [[spaced[ids[0]], *ids[1:]] for ids in task.texts_ids(texts) if ids]
    shares = [0.0] * size
    for token in range(size):
        if sum(token in row for row in rows) >= 3:
            shares[token] = sum(row.count(token) / len(row) for row in rows) / len(rows)
    return shares, 2e-4 + 1 / sum(map(len, rows))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_shares_are_means_over_texts_of_what_three_of_them_hold(tiny_lm, tiny_task, kind):
    task = tiny_task(tiny_lm(kind))
    found = counted(task, TEXTS)
    shares, floor = counted_slowly(task, TEXTS)
    assert found.share_V.tolist() == pytest.approx(shares)
    assert found.floor == pytest.approx(floor)
    assert 0 < sum(found.share_V > 0) < len({token for ids in task.texts_ids(TEXTS) for token in ids})


def test_a_single_text_counts_where_it_may(tiny_lm, tiny_task):
    task = tiny_task(tiny_lm("gpt2"))
    counter = UnigramCounter(task, 120)
    counter.add(task.texts_ids(TEXTS[:1]))
    assert counter.mean().share_V.sum() == 0
    assert counter.mean(fewest_rows=1).share_V.sum() == pytest.approx(1)


def test_shares_are_what_rows_decide_of_the_gradient_by_a_bias_of_the_head(tiny_lm, tiny_task):
    """Of a text's mean next-token loss; the rest is the model's own probabilities."""
    lm = tiny_lm("llama")
    task = tiny_task(lm)
    text = TEXTS[0]
    ids = torch.tensor([lm.tokenizer.bos_token_id, *task.text_ids(text)])
    logits_SV = lm.model(ids[None]).logits[0, :-1].detach()
    bias_V = torch.zeros(logits_SV.shape[1], requires_grad=True)
    torch.nn.functional.cross_entropy(logits_SV + bias_V, ids[1:]).backward()
    found_V = torch.softmax(logits_SV, -1).mean(0) - counted(task, [text] * 3).share_V
    torch.testing.assert_close(found_V.float(), bias_V.grad, atol=1e-6, rtol=1e-5)


def test_a_word_that_opens_a_text_is_the_one_after_a_space(tiny_lm, tiny_task):
    lm = tiny_lm("gpt2")
    task = tiny_task(lm)
    bare = int(bare_starts(lm.tokenizer, 120)[0].nonzero()[0, 0])
    word = lm.tokenizer.decode([bare])
    (spaced,) = lm.tokenizer(" " + word).input_ids
    assert task.starts_bare and task.text_ids(word) == [bare]
    found = counted(task, [word] * 3)
    assert found.share_V[spaced] == 1 and found.share_V[bare] == 0


def test_texts_without_tokens_say_nothing(tiny_lm, tiny_task):
    task = tiny_task(tiny_lm("llama"))
    counter = UnigramCounter(task, 120)
    counter.add([])
    assert counter.mean().share_V.tolist() == [0.0] * 120 and counter.mean().floor == pytest.approx(1.0002)
    counter.add([[], *task.texts_ids(TEXTS)])
    assert counter.mean().share_V.tolist() == counted(task, TEXTS).share_V.tolist()


@pytest.mark.parametrize("rows", [len(TEXTS), 26])
def test_a_target_has_them_if_asked_for_and_keeps_them(tiny_lm, tiny_task, rows):
    """In a checkpoint, and after it is centred; as factors (few rows) or a matrix."""
    lm = tiny_lm("gpt2")
    task = tiny_task(lm)
    texts = (TEXTS * 5)[:rows]
    plain, own = (
        class_target(lm, task, 0, [texts[:4], texts[4:]], BatchLimit(), with_unigrams=asked)
        for asked in (False, True)
    )
    assert plain.unigrams is None and ClassTarget.from_tensors(plain.tensors()).unigrams is None
    assert torch.equal(own.materialised()[0], plain.materialised()[0])
    read = ClassTarget.from_tensors(own.tensors()).unigrams
    (centred,) = ReleasedTarget((own,)).centred().classes
    assert not torch.equal(centred.materialised()[0], own.materialised()[0])
    for found in (own.unigrams, read, centred.unigrams):
        assert isinstance(found, Unigrams)
        assert found.share_V.tolist() == counted(task, texts).share_V.tolist()
        assert found.floor == counted(task, texts).floor
    assert Counter(own.tensors().keys()) - Counter(plain.tensors().keys()) == {"unigrams": 1, "unigrams_floor": 1}
