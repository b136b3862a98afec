"""`gradmm.training.evaluate`: every figure against its definition, row by row, in plain Python."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradmm.errors import NonFiniteError
from gradmm.memory import BatchLimit
from gradmm.training.evaluate import BINS, evaluate, judge
from gradmm.training.rows import TokenRows, tokenise

TEXTS = ("A film.", "The story is dull and bad, and it makes me sad.", "happy", "A great end.", "A dull story")
MIXED = (" bad", " surprised", " happy", " very bad")  # one, two and more tokens


def slowly(log_probs, labels):
    """All figures, from lists."""
    classes, rows = range(len(log_probs[0])), range(len(labels))
    weights = [[math.exp(value - max(row)) for value in row] for row in log_probs]
    shares = [[value / sum(row) for value in row] for row in weights]
    found = [max(classes, key=lambda c, i=i: (log_probs[i][c], -c)) for i in rows]
    confusion = [[sum(labels[i] == a and found[i] == b for i in rows) for b in classes] for a in classes]
    recalls = [confusion[c][c] / sum(confusion[c]) if sum(confusion[c]) else None for c in classes]
    f1 = []
    for c in classes:
        predicted = sum(found[i] == c for i in rows)
        precision = confusion[c][c] / predicted if predicted else 0
        if recalls[c] is not None or predicted:
            both = precision + (recalls[c] or 0)
            f1.append(2 * precision * (recalls[c] or 0) / both if both else 0)
    error = 0
    for m in range(BINS):
        own = [i for i in rows if m / BINS + 1e-9 < max(shares[i]) <= (m + 1) / BINS + 1e-9]
        if own:
            confidence = sum(max(shares[i]) for i in own) / len(own)
            accuracy = sum(found[i] == labels[i] for i in own) / len(own)
            error += len(own) / len(rows) * abs(confidence - accuracy)
    return {
        "rows": len(labels),
        "accuracy": sum(found[i] == labels[i] for i in rows) / len(rows),
        "macro_f1": sum(f1) / len(f1),
        "class_accuracy": recalls,
        "calibration_error": error,
        "loss": -sum(math.log(shares[i][labels[i]]) for i in rows) / len(rows),
        "confusion": confusion,
    }


def check(found, expected):
    for name in ("accuracy", "macro_f1", "calibration_error", "loss"):
        assert getattr(found, name) == pytest.approx(expected[name], rel=1e-6, abs=1e-6), name
    assert found.rows == expected["rows"]
    assert [list(row) for row in found.confusion] == expected["confusion"]
    for mine, theirs in zip(found.class_accuracy, expected["class_accuracy"], strict=True):
        assert mine == (None if theirs is None else pytest.approx(theirs))


@st.composite
def judged(draw):
    """Log-probabilities, often far from normalised or tied, and labels, often of few classes."""
    classes, rows = draw(st.integers(2, 5)), draw(st.integers(1, 25))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    log_probs_NC = torch.randn(rows, classes, generator=generator) * draw(st.sampled_from([0, 0.3, 2, 8])) - 5
    top = draw(st.integers(0, classes - 1))
    return log_probs_NC, draw(st.lists(st.integers(0, top), min_size=rows, max_size=rows))


# ---- figures


@settings(max_examples=60)
@given(judged())
def test_figures_are_their_definitions(case):
    log_probs_NC, labels = case
    check(judge(log_probs_NC, labels), slowly(log_probs_NC.double().tolist(), labels))


@settings(max_examples=25)
@given(judged())
def test_figures_agree_with_one_another(case):
    log_probs_NC, labels = case
    found = judge(log_probs_NC, labels)
    of_class = [sum(row) for row in found.confusion]
    assert of_class == [labels.count(c) for c in range(log_probs_NC.shape[1])] and found.rows == sum(of_class)
    right = sum((own or 0) * count for own, count in zip(found.class_accuracy, of_class, strict=True))
    assert found.accuracy == pytest.approx(right / found.rows)
    assert 0 <= found.macro_f1 <= 1 and 0 <= found.calibration_error <= 1 and found.loss >= 0
    json.dumps(asdict(found), allow_nan=False)


@settings(max_examples=25)
@given(judged(), st.data())
def test_neither_the_order_of_rows_nor_a_row_s_level_matters(case, data):
    log_probs_NC, labels = case
    order = data.draw(st.permutations(range(len(labels))))
    moved_NC = (log_probs_NC.double() + 3.25)[list(order)]
    moved, found = judge(moved_NC, [labels[i] for i in order]), judge(log_probs_NC, labels)
    check(moved, asdict(found) | {"confusion": [list(row) for row in found.confusion]})


@settings(max_examples=25)
@given(judged())
def test_rows_twice_change_nothing_but_their_number(case):
    log_probs_NC, labels = case
    twice, found = judge(log_probs_NC.repeat(2, 1), labels * 2), judge(log_probs_NC, labels)
    counts = [[2 * count for count in row] for row in found.confusion]
    check(twice, asdict(found) | {"rows": 2 * found.rows, "confusion": counts})


@pytest.mark.parametrize("labels", [[0, 1, 2, 1], [1, 1], [2]], ids=str)
def test_who_is_always_right_and_sure_is_perfect(labels):
    """Also where a class has no rows."""
    found = judge(50 * torch.eye(3)[labels], labels)
    assert (found.accuracy, found.macro_f1) == (1, 1)
    assert (found.loss, found.calibration_error) == pytest.approx((0, 0), abs=1e-9)
    assert found.class_accuracy == tuple(1.0 if c in labels else None for c in range(3))


def test_who_is_always_wrong_and_sure_is_the_worst():
    found = judge(50 * torch.eye(2)[[1, 0, 1]], [0, 1, 0])
    assert (found.accuracy, found.macro_f1) == (0, 0) and found.class_accuracy == (0, 0)
    assert (found.loss, found.calibration_error) == pytest.approx((50, 1))


def test_who_always_says_the_same_recalls_one_class():
    found = judge(torch.tensor([[2.0, 0.0, 0.0]]).expand(6, -1), [0, 0, 0, 1, 1, 2])
    assert found.class_accuracy == (1, 0, 0) and found.accuracy == 0.5
    assert found.macro_f1 == pytest.approx((2 * 0.5 / 1.5) / 3)
    confidence = math.e**2 / (math.e**2 + 2)
    assert found.calibration_error == pytest.approx(abs(confidence - 0.5))


@pytest.mark.parametrize("classes", [2, 3, 5, 15])
def test_who_knows_nothing_is_calibrated_where_classes_are_as_many(classes):
    """The confidence in one of 3, 5 or 15 equal classes lies on the edge of a bin, but for rounding."""
    levels_NC = 30 * torch.randn(40 * classes, 1, generator=torch.Generator().manual_seed(1)).expand(-1, classes)
    found = judge(levels_NC, list(range(classes)) * 40)
    assert found.accuracy == pytest.approx(1 / classes) and found.calibration_error == pytest.approx(0, abs=1e-9)
    assert found.loss == pytest.approx(math.log(classes))


def test_gaps_add_up_within_a_bin_and_not_across_bins():
    """Of 15: confidences of 0.61 and 0.66 share one, 0.69 has its own: |0.61 + 0.66 - 1| + |0.69 - 1|, over 3."""
    log_probs_NC = torch.tensor([[p, 1 - p] for p in (0.61, 0.66, 0.69)]).log()
    found = judge(log_probs_NC, [0, 1, 0])
    assert found.calibration_error == pytest.approx((0.27 + 0.31) / 3, abs=1e-6)


@pytest.mark.parametrize("level", [0, -7.3, -80])
@pytest.mark.parametrize("edge", range(8, 16))
def test_a_bin_holds_its_upper_edge(edge, level):
    """As the bins of Guo et al. do; rounding, which the level of a row changes, takes no row across."""
    shares = (edge / 15, edge / 15 - 0.03)
    log_probs_NC = torch.tensor([[p, 1 - p] for p in shares], dtype=torch.float64).log()
    found = judge(log_probs_NC + level, [0, 1])
    assert found.calibration_error == pytest.approx(abs(sum(shares) - 1) / 2)


def test_a_class_that_is_impossible_is_no_obstacle():
    found = judge(torch.tensor([[-1.0, -torch.inf], [-1.0, -torch.inf]]), [0, 0])
    assert (found.accuracy, found.loss) == (1, 0)


@pytest.mark.parametrize("bad", [[math.nan, -1.0], [-math.inf, -math.inf]])
def test_a_model_that_diverged_has_no_figures(bad):
    """Its largest probability would be whichever comes first, and its accuracy that of chance."""
    with pytest.raises(NonFiniteError, match="1 of 2 rows"):
        judge(torch.tensor([bad, [-1.0, -2.0]]), [0, 0])


@pytest.mark.parametrize("labels", [[], [0], [0, 2], [0, -1]], ids=str)
def test_labels_that_do_not_fit_are_a_mistake(labels):
    with pytest.raises(AssertionError):
        judge(torch.zeros(2, 2), labels)


def test_no_rows_are_a_mistake(demo_lm, demo_task):
    with pytest.raises(AssertionError):
        evaluate(demo_lm, demo_task, TokenRows([], []))


# ---- models


def own_scores(lm, task, text):
    """Log-probability of all tokens of each verbaliser, each whole sequence through the whole model."""
    scores = []
    for label, tokens in enumerate(task.label_ids):
        ids = task.render(text, label)
        with torch.no_grad():
            log_probs_SV = torch.log_softmax(lm.model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
        scores.append(sum(float(log_probs_SV[at - 1, ids[at]]) for at in range(len(ids) - len(tokens), len(ids))))
    return scores


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("verbalisers", [(" bad", " great"), MIXED], ids=str)
@pytest.mark.parametrize("size", [1, 2, 64])
def test_a_model_is_judged_by_its_own_logits(tiny_lm, tiny_task, kind, verbalisers, size):
    """In batches of any size; rows out of the order of their lengths stay with their labels."""
    lm = tiny_lm(kind)
    task = tiny_task(lm, verbalisers)
    texts = [[text for i, text in enumerate(TEXTS) if i % len(verbalisers) == c] for c in range(len(verbalisers))]
    found = evaluate(lm, task, tokenise(task, texts), BatchLimit(size))
    labels = [c for c, own in enumerate(texts) for _ in own]
    check(found, slowly([own_scores(lm, task, text) for own in texts for text in own], labels))


@settings(max_examples=6)
@given(st.permutations(range(10)), st.integers(1, 11))
def test_the_packaged_model_in_any_order_and_batch(demo_lm, demo_task, order, size):
    good = ("A warm, funny film.", "I loved it.", "great", "A wonderful, moving story and a fine end.", "Superb!")
    bad = ("Dull, dull, dull.", "I hated it.", "bad", "A boring, empty story with a stupid end.", "Awful!")
    rows = tokenise(demo_task, [bad, good])
    moved = TokenRows([rows.ids[i] for i in order], [rows.labels[i] for i in order])
    found, plain = evaluate(demo_lm, demo_task, moved, BatchLimit(size)), evaluate(demo_lm, demo_task, rows)
    assert found.confusion == plain.confusion and found.accuracy >= 0.8
    assert found.loss == pytest.approx(plain.loss, abs=1e-4)
