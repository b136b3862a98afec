"""`gradmm.labelling`: the label's log-probability, against the model's own logits, text by text."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gradmm.labelling import LabelCheckConfig, calibrated, label_log_probs
from gradmm.memory import BatchLimit

TEXTS = (
    "A film.",
    "The story is dull and bad, and the film makes me sad.",
    "happy",
    "A great end. I feel fine",
    "A dull story",
)
MIXED = (" bad", " surprised", " happy", " great", " very bad")  # one, two and more tokens, in any order


def slowly(lm, task, text):
    """Log-probability of all tokens of every verbaliser: each whole sequence through the whole model."""
    values = []
    for label, tokens in enumerate(task.label_ids):
        ids = task.render(text, label)
        with torch.no_grad():
            logits_SV = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
        places = range(len(ids) - len(tokens), len(ids))
        values.append(sum(float(torch.log_softmax(logits_SV[at - 1], -1)[ids[at]]) for at in places))
    return values


def scored(lm, task, texts, size=64):
    return label_log_probs(lm, task, [task.text_ids(text) for text in texts], BatchLimit(size))


# ---- log-probabilities


@pytest.mark.parametrize("kind", ["phi", "llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("verbalisers", [(" bad", " great"), (" surprised", " very bad"), MIXED], ids=str)
def test_scores_are_the_models_own(tiny_lm, tiny_task, kind, verbalisers):
    lm = tiny_lm(kind)
    task = tiny_task(lm, verbalisers)
    if verbalisers == MIXED:
        assert len(task.label_ids[0]) == 1 and len(set(map(len, task.label_ids))) > 2
    found_NC = scored(lm, task, TEXTS)
    assert found_NC.dtype == torch.float32 and found_NC.shape == (len(TEXTS), len(verbalisers))
    expected_NC = torch.tensor([slowly(lm, task, text) for text in TEXTS])
    torch.testing.assert_close(found_NC, expected_NC, rtol=1e-4, atol=1e-4)
    assert expected_NC.std(0).min() > 1e-2, "texts have to differ for this to tell anything"


def test_scores_of_the_packaged_model(demo_lm, demo_task):
    texts = ("A warm, funny film.", "Dull, dull, dull.")
    expected_NC = torch.tensor([slowly(demo_lm, demo_task, text) for text in texts])
    torch.testing.assert_close(scored(demo_lm, demo_task, texts), expected_NC, rtol=1e-4, atol=1e-4)
    assert bool((expected_NC < 0).all()) and bool((expected_NC.exp().sum(1) < 1).all())


@settings(max_examples=12)
@given(st.permutations(range(len(TEXTS))), st.integers(1, len(TEXTS) + 1))
def test_neither_order_nor_batches_matter(demo_lm, demo_task, order, size):
    together_NC = scored(demo_lm, demo_task, TEXTS)
    found_NC = scored(demo_lm, demo_task, [TEXTS[i] for i in order], size)
    torch.testing.assert_close(found_NC, together_NC[list(order)], rtol=1e-4, atol=1e-4)


def test_a_batch_that_is_too_large_is_done_again_in_smaller_ones(tiny_lm, tiny_task, monkeypatch):
    lm = tiny_lm("phi")
    task, limit, plain = tiny_task(lm, MIXED), BatchLimit(4), type(lm).hidden
    expected_NC = scored(lm, task, TEXTS)

    def small(self, embeds_NSE, index_NL):
        if len(embeds_NSE) > 2:
            raise torch.OutOfMemoryError("too many")
        return plain(self, embeds_NSE, index_NL)

    monkeypatch.setattr(type(lm), "hidden", small)
    found_NC = label_log_probs(lm, task, [task.text_ids(text) for text in TEXTS], limit)
    assert limit.size == 2
    torch.testing.assert_close(found_NC, expected_NC, rtol=1e-4, atol=1e-4)


def test_no_text_has_no_scores(tiny_lm, tiny_task):
    lm = tiny_lm("phi")
    assert label_log_probs(lm, tiny_task(lm, MIXED), []).shape == (0, 5)


def test_no_graph_is_kept(tiny_lm, tiny_task):
    lm = tiny_lm("phi")
    assert scored(lm, tiny_task(lm), TEXTS).grad_fn is None


# ---- calibration

scores = st.integers(0, 999).flatmap(
    lambda seed: st.tuples(st.integers(1, 9), st.integers(2, 5)).map(
        lambda size: 4 * torch.randn(*size, generator=torch.Generator().manual_seed(seed)) - 6
    )
)


@given(scores)
def test_rows_add_up_to_one(log_probs_NC):
    fair_NC = calibrated(log_probs_NC)
    assert bool((fair_NC >= 0).all())
    torch.testing.assert_close(fair_NC.sum(1), torch.ones(len(fair_NC)))


@given(scores, st.integers(0, 999))
def test_a_shift_of_a_class_or_of_a_text_changes_nothing(log_probs_NC, seed):
    """What the LM says of every text is a prior; what it says of every class is the text's own probability."""
    draw = torch.Generator().manual_seed(seed)
    shift_C = 5 * torch.randn(log_probs_NC.shape[1], generator=draw)
    shift_N1 = 5 * torch.randn(len(log_probs_NC), 1, generator=draw)
    fair_NC = calibrated(log_probs_NC)
    torch.testing.assert_close(calibrated(log_probs_NC + shift_C), fair_NC, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(calibrated(log_probs_NC + shift_N1), fair_NC, rtol=1e-4, atol=1e-5)


@given(scores, st.integers(2, 5))
def test_classes_that_are_alike_stay_alike(log_probs_NC, classes):
    same_NC = log_probs_NC[:, :1].expand(-1, classes)
    torch.testing.assert_close(calibrated(same_NC), torch.full_like(same_NC, 1 / classes))
    twice_NC = torch.cat([log_probs_NC, log_probs_NC[:, :1] - 3.0], dim=1)
    fair_NC = calibrated(twice_NC)
    torch.testing.assert_close(fair_NC[:, -1], fair_NC[:, 0], rtol=1e-4, atol=1e-5)


@given(scores)
def test_calibration_is_its_definition(log_probs_NC):
    for row, fair in zip(log_probs_NC.double(), calibrated(log_probs_NC), strict=True):
        raised = [float(value - mean) for value, mean in zip(row, log_probs_NC.double().mean(0), strict=True)]
        weights = [2.718281828459045**value for value in raised]
        assert fair.tolist() == pytest.approx([weight / sum(weights) for weight in weights], rel=1e-3, abs=1e-5)


def test_a_preference_for_one_class_is_taken_off():
    """An LM that finds the first class likelier for every text; the second text speaks less for it."""
    log_probs_NC = torch.tensor([[-1.0, -5.0], [-2.0, -4.0]])
    fair_NC = calibrated(log_probs_NC)
    assert fair_NC.argmax(1).tolist() == [0, 1]


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_a_probability_that_is_none_is_refused(wrong):
    with pytest.raises(ValidationError):
        LabelCheckConfig(min_probability=wrong)


def test_classes_count_the_same_however_many_texts_they_have():
    log_probs_NC = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    once = calibrated(log_probs_NC, [2, 2, 2])
    more_NC = torch.cat([log_probs_NC[:2].repeat(5, 1), log_probs_NC[2:]])
    torch.testing.assert_close(calibrated(more_NC, [10, 2, 2])[:2], once[:2])
    torch.testing.assert_close(once, calibrated(log_probs_NC))
    assert not torch.allclose(calibrated(more_NC)[:2], once[:2])
