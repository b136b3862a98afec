"""Targets of several classes: together, and centred."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracles
from gradmm.gradients.exact_target import compute_target
from gradmm.gradients.factors import Factors
from gradmm.gradients.losses import VerbaliserLoss
from gradmm.gradients.spaces import IDENTITY, LinearMap, Space
from gradmm.gradients.target import ClassTarget, ReleasedTarget, weighted_sum
from target_tools import MIXED, SPLIT, assert_same, batches, random_sum

held_as = st.lists(st.booleans(), min_size=1, max_size=4)


def held(own: Factors, dense: bool) -> ClassTarget:
    weight_1VD, bias_1V = own.dense()
    return ClassTarget(None, (weight_1VD[0], bias_1V[0])) if dense else ClassTarget(own, None)


def released(held_densely: list[bool], seed: int = 0, space: Space = IDENTITY) -> ReleasedTarget:
    """Random means of unlike sizes; the hidden states have much in common."""
    classes = []
    for label, dense in enumerate(held_densely):
        r_KJV, h_KJD, weight_KJ = random_sum(seed + 1000 * label, 1 + (seed + label) % 4).tensors()
        classes.append(held(space(Factors(r_KJV, h_KJD + 2.0, weight_KJ)), dense))
    return ReleasedTarget(tuple(classes), space)


@given(st.data(), held_as, st.integers(0, 999))
def test_classes_together_have_the_mean_gradient_of_all_their_texts(data, held_densely, seed):
    """As a sum of matrices; factors where all are, and then those of every class."""
    target = released(held_densely, seed)
    classes = data.draw(st.lists(st.sampled_from(range(len(held_densely))), min_size=1, unique=True))
    size = st.integers(1, 50) | st.floats(0.1, 50)
    counts = data.draw(st.lists(size, min_size=len(classes), max_size=len(classes)))
    found, members = target.together(classes, counts), [target.classes[label] for label in classes]
    for at, part in enumerate(found.materialised()):
        sums = torch.zeros_like(part)
        for count, own in zip(counts, members, strict=True):
            sums += count * own.materialised()[at]
        torch.testing.assert_close(part, sums / sum(counts), rtol=1e-4, atol=1e-5)
    if any(held_densely[label] for label in classes):
        assert found.factors is None
    else:
        assert found.dense is None
        assert found.factors.weight_KJ.shape[1] == sum(own.factors.weight_KJ.shape[1] for own in members)


@pytest.mark.parametrize("dense", [False, True])
def test_a_class_alone_is_itself(dense):
    target = released([dense, not dense])
    assert target.together([0], [7]) is target.classes[0]
    doubled = weighted_sum(target.classes[:1], [2.0])
    for found, expected in zip(doubled.materialised(), target.classes[0].materialised(), strict=True):
        torch.testing.assert_close(found, 2 * expected)


def test_together_they_are_the_target_of_one_class_with_all_the_rows(tiny_lm, tiny_task):
    """Some of these classes are held as factors and one densely."""
    lm = tiny_lm("phi")
    task = tiny_task(lm, MIXED)
    target, counts = compute_target(lm, task, batches(SPLIT, 4)), [len(own) for own in SPLIT]
    found = target.together(range(3), counts).materialised()
    rows = [(task.render(text, label), label) for label, own in enumerate(SPLIT) for text in own]
    expected = oracles.materialised_head_gradient(
        lm, [row for row, _ in rows], [len(task.label_ids[label]) for _, label in rows]
    )
    for one, other in zip(found, expected, strict=True):
        assert oracles.relative_error(one, other) < 1e-5


def centre_of(target: ReleasedTarget) -> torch.Tensor:
    """The m for which G = g m^T holds best for all classes, entry by entry, by least squares."""
    dense = [own.materialised() for own in target.classes]
    gradients_RD, biases_R1 = torch.cat([g for g, _ in dense]), torch.cat([b for _, b in dense]).unsqueeze(1)
    return torch.linalg.lstsq(biases_R1.double(), gradients_RD.double()).solution[0].float()


@given(held_as, st.integers(0, 999))
def test_centred_no_class_has_anything_left_of_what_all_have_in_common(held_densely, seed):
    target = released(held_densely, seed)
    found = target.centred()
    left, before = torch.zeros(5), 0.0
    for mine, own in zip(found.classes, target.classes, strict=True):
        (weight_VD, bias_V), (own_VD, own_V) = mine.materialised(), own.materialised()
        assert torch.equal(bias_V, own_V) and (mine.factors is None) == (own.factors is None)
        left, before = left + weight_VD.T @ bias_V, before + float((own_VD.T @ own_V).norm())
    assert float(left.norm()) < 1e-5 * before


@given(held_as, st.integers(0, 999))
def test_the_centre_leaves_least(held_densely, seed):
    """Each class is G - g m^T, with the m of least squares; any other m leaves more."""
    target = released(held_densely, seed)
    found, m_D = target.centred(), centre_of(target)
    torch.testing.assert_close(found.space.maps[-1].h_shift_D, m_D, rtol=1e-3, atol=1e-3)
    left, otherwise = 0.0, 0.0
    off_D = m_D + 0.1 * torch.randn(5, generator=torch.Generator().manual_seed(seed))
    for mine, own in zip(found.classes, target.classes, strict=True):
        weight_VD, bias_V = own.materialised()
        expected_VD = weight_VD - torch.outer(bias_V, m_D)
        torch.testing.assert_close(mine.materialised()[0], expected_VD, rtol=1e-3, atol=2e-3)
        left += float(mine.materialised()[0].square().sum())
        otherwise += float((weight_VD - torch.outer(bias_V, off_D)).square().sum())
    assert left < otherwise


@given(st.integers(1, 4), st.integers(0, 999))
def test_factors_and_matrices_are_centred_alike(classes, seed):
    factors, dense = released([False] * classes, seed).centred(), released([True] * classes, seed).centred()
    for one, other in zip(factors.classes, dense.classes, strict=True):
        assert_same(one, other)
    torch.testing.assert_close(factors.space.maps[0].h_shift_D, dense.space.maps[0].h_shift_D)


@given(held_as, st.integers(0, 999))
def test_once_centred_a_target_is_centred(held_densely, seed):
    once = released(held_densely, seed).centred()
    twice, own = once.centred(), random_sum(seed + 5, 3)
    for one, other in zip(twice.classes, once.classes, strict=True):
        assert_same(one, other)
    torch.testing.assert_close(twice.space(own).h_KJD, once.space(own).h_KJD, rtol=1e-4, atol=1e-4)


@given(held_as, st.integers(0, 999), st.booleans())
def test_the_space_of_a_centred_target_maps_sets_as_the_target_was(held_densely, seed, whitened):
    """After the maps that were there before; the loss stays. A gradient is at no distance from itself."""
    maps = [LinearMap(h_PD=torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))] if whitened else []
    space = Space(maps, VerbaliserLoss(*(torch.zeros(1),) * 3))
    plain = released(held_densely, seed, space)
    target, m_D, sets = plain.centred(), centre_of(plain), random_sum(seed + 5, 3)
    assert target.space.loss is space.loss and target.space.maps[:-1] == space.maps and plain.space is space
    (found_1VD, found_1V), (weight_1VD, bias_1V) = target.space(sets).dense(), space(sets).dense()
    expected_VD = weight_1VD[0] - torch.outer(bias_1V[0], m_D)
    torch.testing.assert_close(found_1VD[0], expected_VD, rtol=1e-3, atol=5e-3)
    assert torch.equal(found_1V, bias_1V)


def test_where_no_class_has_a_gradient_of_the_bias_there_is_nothing_to_take_off():
    own = random_sum(3, 4)
    zero = Factors(torch.zeros_like(own.r_KJV), own.h_KJD, own.weight_KJ)
    target = ReleasedTarget((held(zero, False), held(zero, True)))
    assert target.centred() is target


BINARY = (" very bad", " very great")
"""They part at their last token."""


@pytest.mark.parametrize("verbalisers", [(" bad", " great"), BINARY])
@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "phi"])
def test_the_centre_of_two_classes_is_the_mean_of_their_mean_hidden_states(
    tiny_lm, tiny_task, kind, verbalisers, calibrated
):
    """Texts count by |r|, how wrong the model is about them. The classes count alike where it is as wrong about
    the one as about the other, as it is on what it is calibrated on; else by the square of how wrong it is."""
    lm = tiny_lm(kind)
    task = tiny_task(lm, verbalisers)
    split, loss = [SPLIT[0], SPLIT[2]], VerbaliserLoss.of(task)
    tokens = loss.tokens_M.tolist()
    pair, place = [tokens.index(ids[-1]) for ids in task.label_ids], len(task.label_ids[0]) - 1
    hidden, logits = [list[torch.Tensor]() for _ in split], [list[torch.Tensor]() for _ in split]
    for label, texts in enumerate(split):
        for text in texts:
            ids = torch.tensor([task.render(text, label)])
            states_LD = lm.body(input_ids=ids).last_hidden_state[0, -place - 2 : -1].detach()
            hidden[label].append(states_LD[-1])
            logits[label].append(lm.model(input_ids=ids).logits[0, -place - 2 : -1, tokens].detach())
    if calibrated:
        loss = loss.calibrated(task, [torch.stack(own) for own in logits])
    means, wrong = [], []
    for label in range(2):
        bias_M, texts_h, texts_z = loss.bias_CLM[label, place], hidden[label], logits[label]
        r_N = torch.stack([torch.softmax((z_LM[-1] + bias_M)[pair], 0)[1 - label] for z_LM in texts_z])
        means.append((r_N[:, None] * torch.stack(texts_h)).sum(0) / r_N.sum())
        wrong.append(float(r_N.mean()))
    weights = [0.5, 0.5] if calibrated else [own**2 / sum(one**2 for one in wrong) for own in wrong]
    expected_D = weights[0] * means[0] + weights[1] * means[1]
    target = compute_target(lm, task, batches(split, 4), space=Space((), loss)).centred()
    assert oracles.relative_error(target.space.maps[-1].h_shift_D, expected_D) < 1e-4
    if calibrated:
        assert wrong[0] == pytest.approx(wrong[1], rel=1e-5)
    else:
        assert abs(weights[0] - 0.5) > 0.01, "the classes are not alike"
