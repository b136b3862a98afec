"""`gradmm.gradients.factors`: the closed form is the gradient that autograd finds.

`test_architectures.py` holds it, and its derivative with respect to the input embeddings, for every kind of model.
"""

from __future__ import annotations

import copy
import dataclasses

import torch
from hypothesis import given
from hypothesis import strategies as st

import oracles
from gradmm.gradients.factors import Factors, inner, inner_dense, label_factors
from gradmm.models import LanguageModel

TEXTS = ("A film.", "The story is dull and bad, and the film makes me sad.", "happy", "A great end. I feel fine")
MIXED = (" bad", " happy", " surprised")
"""Of one, two and eight tokens."""


def batch_of(task, texts, labels):
    return task.collate([task.text_ids(text) for text in texts], labels)


def rows_of(task, texts, labels):
    rows = [task.render(text, label) for text, label in zip(texts, labels, strict=True)]
    return rows, [len(task.label_ids[label]) for label in labels]


def factors_of(lm, task, texts, labels, texts_per_set):
    batch = batch_of(task, texts, labels)
    return label_factors(lm, batch, batch.embed(lm.embeddings_VE), texts_per_set)


def random_factors(seed: int, sets: int, pairs: int, vocabulary: int = 7, hidden: int = 5) -> Factors:
    draw = torch.Generator().manual_seed(seed)
    r, h, weight = (
        torch.randn(*shape, generator=draw)
        for shape in ((sets, pairs, vocabulary), (sets, pairs, hidden), (sets, pairs))
    )
    return Factors(r, h, weight)


# ---- the closed form


def test_each_set_is_the_gradient_of_its_own_texts(tiny_lm, tiny_task):
    lm, labels = tiny_lm("phi"), (2, 0, 1, 1)
    task = tiny_task(lm, MIXED)
    weight_KVD, bias_KV = factors_of(lm, task, TEXTS, labels, 2).dense()
    assert weight_KVD.shape == (2, lm.vocab_size, 32)
    for k in range(2):
        own = slice(2 * k, 2 * k + 2)
        weight_VD, bias_V = oracles.materialised_head_gradient(lm, *rows_of(task, TEXTS[own], labels[own]))
        assert oracles.relative_error(weight_KVD[k], weight_VD) < 1e-5
        assert oracles.relative_error(bias_KV[k], bias_V) < 1e-5


def test_closed_form_is_autograd_on_the_packaged_model(demo_lm, demo_task):
    texts, labels = ("Dull.", "A warm, funny film that I will watch again."), (0, 1)
    weight_VD, _ = oracles.materialised_head_gradient(demo_lm, *rows_of(demo_task, texts, labels))
    found_1VD, _ = factors_of(demo_lm, demo_task, texts, labels, 2).dense()
    assert oracles.relative_error(found_1VD[0], weight_VD) < 1e-5


def test_what_pads_the_shorter_texts_is_never_looked_at(each_tiny_lm, tiny_task):
    labels = (2, 0, 1, 1)
    task = tiny_task(each_tiny_lm, MIXED)
    batch = batch_of(task, TEXTS, labels)
    lengths_N = torch.tensor([len(row) - 1 for row in rows_of(task, TEXTS, labels)[0]])
    padding_NS = torch.arange(batch.ids_NS.shape[1]) >= lengths_N[:, None]
    assert padding_NS.sum() > 50
    other = dataclasses.replace(batch, ids_NS=batch.ids_NS.masked_fill(padding_NS, 50))
    for one, two in zip(
        label_factors(each_tiny_lm, batch, batch.embed(each_tiny_lm.embeddings_VE), 4).dense(),
        label_factors(each_tiny_lm, other, other.embed(each_tiny_lm.embeddings_VE), 4).dense(),
        strict=True,
    ):
        assert torch.equal(one, two)


def test_residuals_sum_to_nothing_but_for_the_slope(tiny_lm, tiny_task):
    sums = {}
    for kind in ("llama", "gemma2"):
        lm = tiny_lm(kind)
        sums[kind] = factors_of(lm, tiny_task(lm), TEXTS, (0, 1, 1, 0), 1).r_KJV.sum(-1).abs().max()
    assert sums["llama"] < 1e-6  # probabilities minus a one
    assert sums["gemma2"] > 1e-2  # times a soft cap's slope: the test's model feels it


def test_factors_of_a_bfloat16_model_are_float32(tiny_lm, tiny_task):
    lm = tiny_lm("phi")
    task = tiny_task(lm)
    half = LanguageModel(copy.deepcopy(lm.model).to(torch.bfloat16), lm.tokenizer)
    exact = factors_of(lm, task, TEXTS, (0, 1, 1, 0), 4)
    found = factors_of(half, task, TEXTS, (0, 1, 1, 0), 4)
    assert {value.dtype for value in vars(found).values()} == {torch.float32}
    assert 0 < oracles.relative_error(found.dense()[0], exact.dense()[0]) < 0.1


# ---- its derivative with respect to the input embeddings


def test_the_backward_pass_makes_no_gradient_of_any_weight(tiny_lm, tiny_task):
    lm = tiny_lm("llama")
    batch = batch_of(tiny_task(lm), TEXTS, (0, 1, 1, 0))
    embeds_NSE = batch.embed(lm.embeddings_VE).requires_grad_(True)
    mine = label_factors(lm, batch, embeds_NSE, 4)
    inner(mine, mine).weight_K.sum().backward()
    assert embeds_NSE.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in lm.model.parameters())


# ---- inner products

sizes = st.integers(1, 4)


@given(st.integers(0, 99), sizes, sizes, sizes, st.booleans())
def test_inner_is_the_inner_product_of_the_matrices(seed, sets, pairs, other_pairs, broadcast):
    a = random_factors(seed, sets, pairs)
    b = random_factors(seed + 100, 1 if broadcast else sets, other_pairs)
    (a_KVD, a_KV), (b_KVD, b_KV) = a.dense(), b.dense()
    found = inner(a, b)
    torch.testing.assert_close(found.weight_K, (a_KVD * b_KVD).sum((1, 2)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.bias_K, (a_KV * b_KV).sum(1), rtol=1e-4, atol=1e-4)
    dense = inner_dense(a, b_KVD[0], b_KV[0])
    torch.testing.assert_close(dense.weight_K, (a_KVD * b_KVD[0]).sum((1, 2)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dense.bias_K, (a_KV * b_KV[0]).sum(1), rtol=1e-4, atol=1e-4)


def test_dense_is_the_sum_of_outer_products():
    factors = random_factors(0, sets=2, pairs=3)
    assert factors.num_sets == 2
    for k in range(2):
        outer = [factors.weight_KJ[k, j] * torch.outer(factors.r_KJV[k, j], factors.h_KJD[k, j]) for j in range(3)]
        torch.testing.assert_close(factors.dense()[0][k], sum(outer))
        torch.testing.assert_close(
            factors.dense()[1][k], (factors.weight_KJ[k, :, None] * factors.r_KJV[k]).sum(0)
        )
