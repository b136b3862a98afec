"""Gradients and readability in one pass, against the two passes that they are apart."""

from itertools import pairwise

import pytest
import torch

from gradmm.decoding import log_perplexity
from gradmm.gradients.losses import VOCABULARY, VerbaliserLoss
from gradmm.gradients.spaces import LinearMap, Space
from gradmm.memory import BatchLimit
from gradmm.solvers.judging import Judge

TEXTS = [
    "A film.",
    "The story is dull and bad, and the film makes me sad.",
    "happy",
    "I",
    "A great end. I feel fine",
]
LABELS = [1, 0, 1, 0, 0]
WORDS = (" bad", " very great")


def looked_at(judge, labelled):
    parts = list(judge(labelled, "looking"))
    return [factors for factors, _ in parts], [value for _, nll in parts for value in nll]


def passes(lm, look):
    """How many times the body ran."""
    count = []
    handle = lm.body.register_forward_hook(lambda *_: count.append(1))
    look()
    handle.remove()
    return len(count)


@pytest.mark.parametrize("template", ["{text} It was", "Review: {text} It was"])
@pytest.mark.parametrize("mapped", [False, True])
def test_one_pass_gives_what_two_give(each_tiny_lm, tiny_task, template, mapped):
    lm = each_tiny_lm
    task = tiny_task(lm, WORDS, template)
    loss = VerbaliserLoss.of(task) if mapped else VOCABULARY
    shrunk = LinearMap(h_shift_D=torch.full((lm.head.weight_VD.shape[1],), 0.1))
    space = Space([shrunk] if mapped else [], loss)
    ids = [task.text_ids(text) for text in TEXTS]
    judge = Judge(lm, task, space, BatchLimit(3))
    found, nll = looked_at(judge, list(zip(LABELS, ids, strict=True)))
    for part, (start, stop) in zip(found, pairwise([0, 3, 5]), strict=True):
        batch = task.collate(ids[start:stop], LABELS[start:stop])
        with torch.no_grad():
            expected = space.factors(lm, batch, batch.embed(lm.embeddings_VE), 1)
        for mine, theirs in zip(part.tensors(), expected.tensors(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    assert nll == pytest.approx(log_perplexity(lm, ids), rel=1e-4, nan_ok=True)


@pytest.mark.parametrize(
    ("kind", "template", "expected"),
    [
        ("llama", "{text} It was", 1),
        ("llama", "Review: {text} It was", 2),
        ("gpt2", "{text} It was", 2),  # it has a BOS token, which its tokenizer does not put before texts
    ],
)
def test_one_pass_is_made_where_it_will_do(tiny_lm, tiny_task, kind, template, expected):
    lm = tiny_lm(kind)
    task = tiny_task(lm, WORDS, template)
    labelled = [(label, task.text_ids(text)) for label, text in zip(LABELS, TEXTS, strict=True)]
    judge = Judge(lm, task, Space(), BatchLimit())
    assert passes(lm, lambda: looked_at(judge, labelled)) == expected


def test_without_a_bos_token_the_first_token_does_not_count(tiny_lm, tiny_task, monkeypatch):
    lm = tiny_lm("gpt2")
    monkeypatch.setitem(lm.tokenizer._special_tokens_map, "bos_token", None)
    task = tiny_task(lm, WORDS, "{text} It was")
    labelled = [(label, task.text_ids(text)) for label, text in zip(LABELS, TEXTS, strict=True)]
    judge = Judge(lm, task, Space(), BatchLimit())
    assert passes(lm, lambda: looked_at(judge, labelled)) == 1
    expected = log_perplexity(lm, [ids for _, ids in labelled])
    assert looked_at(judge, labelled)[1] == pytest.approx(expected, rel=1e-4, nan_ok=True)
    assert len(labelled[3][1]) == 1
    assert expected[3] != expected[3]


def test_readability_that_is_not_wanted_is_not_computed(tiny_lm, tiny_task):
    lm = tiny_lm("gpt2")
    task = tiny_task(lm, WORDS, "Review: {text} It was")
    labelled = [(label, task.text_ids(text)) for label, text in zip(LABELS, TEXTS, strict=True)]
    judge = Judge(lm, task, Space(), BatchLimit(), reads=False)
    assert passes(lm, lambda: looked_at(judge, labelled)) == 1
    assert looked_at(judge, labelled)[1] == [0.0] * 5


def test_a_text_that_begins_with_the_bos_token_is_read_apart(tiny_lm, tiny_task):
    """In its place that token comes twice, and log-perplexity takes it for the one that stands before."""
    lm = tiny_lm("llama")
    task = tiny_task(lm, WORDS, "{text} It was")
    ids = [[lm.tokenizer.bos_token_id, *task.text_ids("A film.")], task.text_ids("A dull film.")]
    _, nll = looked_at(Judge(lm, task, Space(), BatchLimit()), [(0, ids[0]), (1, ids[1])])
    assert nll == pytest.approx(log_perplexity(lm, ids), rel=1e-4)
