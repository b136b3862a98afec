"""Every architecture, every part of a run: one matrix.

`tiny_models.KINDS` has the architectures and says what sets each apart; `matrix` has what must hold, which
`python -m benchmarks architectures` also prints for real tokenizers.
"""

from __future__ import annotations

import copy
import logging
from functools import cache

import pytest
import torch

import matrix
import oracles
from gradmm.continuation import Continuation, find_cache
from gradmm.decoding import PromptCache, sample
from gradmm.models import LanguageModel
from gradmm.solvers.projection import ProjectionConfig, Projector, Vocabulary
from solver_oracles import decode_slowly, draw_by_rejection_slowly, project_slowly
from tiny_models import KINDS, WITH_BIAS, WITHOUT_CACHE, WITHOUT_DOUBLE_BACKWARD

PROMPTS = [[40, 7, 9, 30], [5, 6, 7, 8, 9, 10, 11], [3], [30, 9, 7, 40]]  # lengths 4, 7, 1 and 4: three groups


TEMPLATE = "A story: {text}\nIt"


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def prompts(tiny_lm):
    """`prompts(kind)`: the prompts, as a model has read them."""
    return cache(lambda kind: PromptCache(tiny_lm(kind), PROMPTS))


# ---- the gradient of the head


@pytest.mark.parametrize(
    ("kind", "template"),
    [*((kind, TEMPLATE) for kind in KINDS), ("gpt2", "{text} It was"), ("llama", "{text} It was")],
)
def test_closed_form_is_autograd(tiny_lm, tiny_task, kind, template):
    lm = tiny_lm(kind)
    task = tiny_task(lm, matrix.MIXED, template)
    assert len({len(ids) for ids in task.label_ids}) == 3  # the case is the one it is meant to be
    assert (lm.head.bias_V is not None) == (kind in WITH_BIAS)
    assert matrix.closed_form_error(lm, task) < 2e-5


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in WITHOUT_DOUBLE_BACKWARD])
def test_one_backward_pass_is_the_double_backward_pass(tiny_lm, tiny_task, kind):
    lm = tiny_lm(kind, "eager")
    found_NTE, expected_NTE, inside_NT = matrix.input_gradients(lm, tiny_task(lm, matrix.MIXED))
    assert oracles.relative_error(found_NTE, expected_NTE) < 1e-4
    assert not found_NTE[~inside_NT].any() and found_NTE[inside_NT].any()
    if kind != "mistral":  # whose label does not see the beginning of the text
        assert found_NTE[inside_NT].any(-1).all()


@pytest.mark.parametrize("kind", [*WITHOUT_DOUBLE_BACKWARD, "gpt2", "mamba"])
def test_one_backward_pass_is_the_slope_of_the_oracle(tiny_lm, tiny_task, kind):
    lm = tiny_lm(kind)
    found, expected = matrix.directional_derivatives(lm, tiny_task(lm, matrix.MIXED))
    assert oracles.relative_error(found, expected) < 1e-3


# ---- decoding


def test_cached_projection_is_uncached_projection(tiny_lm, prompts, kind):
    lm, lengths, labels = tiny_lm(kind), [5, 2, 4, 5], [1, 0, 2, 3]
    noise = torch.randn(4, 5, lm.embeddings_VE.shape[1], generator=torch.Generator().manual_seed(0))
    vectors = noise * lm.embeddings_VE.std()
    allowed_V = torch.arange(lm.vocab_size) % 3 > 0
    config = ProjectionConfig(nearness=0.5)
    projector = Projector(prompts(kind), lm.embeddings_VE, Vocabulary(allowed_V, None, None), config)
    fast = projector(vectors, torch.tensor(lengths), torch.tensor(labels))
    slow = project_slowly(lm, PROMPTS, vectors, lengths, labels, config, allowed_V)
    assert [row[:length] for row, length in zip(fast.tolist(), lengths, strict=True)] == slow


def test_cached_sampling_is_uncached_sampling(tiny_lm, prompts, kind):
    lm, labels = tiny_lm(kind), [2, 1, 0, 3, 0]
    allowed_V = torch.arange(lm.vocab_size) % 3 > 0
    draw = torch.Generator().manual_seed(0)
    fast = sample(prompts(kind), torch.tensor(labels), 4, allowed_V, draw, 0.7, 0.8)
    uniform_NTR = torch.rand(5, 4, 4, generator=torch.Generator().manual_seed(0)).tolist()

    def slowly(t, row, logits):
        weights = torch.softmax(logits.double() / 0.7, -1) * allowed_V
        token = draw_by_rejection_slowly((weights / weights.sum()).tolist(), uniform_NTR[row][t], 0.8)
        return token, token

    assert fast.tolist() == decode_slowly(lm, PROMPTS, labels, 4, slowly)


def test_a_cache_is_used_where_it_is_right_and_its_absence_is_said_once(tiny_lm, kind, caplog):
    with caplog.at_level(logging.INFO, "gradmm"):
        PromptCache(tiny_lm(kind), PROMPTS)
    said = [record.message for record in caplog.records if "without a cache" in record.message]
    assert len(said) == (kind in WITHOUT_CACHE)
    if said:
        assert said[0].startswith(f"'tiny {kind}' (")
        assert said[0].endswith("): whole sequences are read again, which takes longer")


REASONS = {
    "openai-gpt": "it returns none",
    "recurrent_gemma": "it returns none",
    "bamba": "from those of the whole sequence",
}


@pytest.mark.parametrize(("kind", "reason"), REASONS.items())
def test_why_a_cache_is_of_no_use(tiny_lm, kind, reason):
    argument, why = find_cache(tiny_lm(kind).body, torch.tensor(PROMPTS[:1]))
    assert argument is None and reason in why


def test_a_cache_that_cannot_be_copied_or_sorted_is_of_no_use(tiny_lm, monkeypatch):
    def fail(self, rows_N):
        raise RuntimeError("no such row")

    monkeypatch.setattr(Continuation, "chosen", fail)
    assert find_cache(tiny_lm("gpt2").body, torch.tensor(PROMPTS[:1])) == (
        None,
        "it cannot be continued from (RuntimeError: no such row)",
    )


def test_a_cache_that_the_copies_share_is_of_no_use(tiny_lm, monkeypatch):
    monkeypatch.setattr("gradmm.continuation.copy.deepcopy", lambda cache: cache)
    argument, why = find_cache(tiny_lm("gpt2").body, torch.tensor([PROMPTS[0], PROMPTS[3]]))
    assert argument is None and "differ" in why


# ---- whole runs


def test_generates(tiny_lm, kind):
    result = matrix.generate(tiny_lm(kind))
    assert result.dataset.num_rows == 6 and all(text.strip() for text in result.dataset["text"])
    synthetic = result.metrics["synthetic"]
    assert 0 <= synthetic["distance"] < 2 and 0 <= synthetic["retokenised_differently"] <= 6


def test_comes_back_from_a_folder(tiny_lm, kind, tmp_path):
    assert matrix.comes_back(tiny_lm(kind), tmp_path)


def test_padding_on_the_left_as_the_tokenizer_has_it_makes_no_difference(tiny_lm):
    lm = tiny_lm("llama")
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.padding_side = "left"
    tokenizer.truncation_side = "left"
    other = LanguageModel(lm.model, tokenizer)
    results = [matrix.generate(model) for model in (lm, other)]
    assert results[0].dataset["text"] == results[1].dataset["text"]
    assert results[0].metrics["synthetic"] == results[1].metrics["synthetic"]
    assert other.fingerprint() == lm.fingerprint()
