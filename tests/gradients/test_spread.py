"""`gradmm.gradients.spread` against every row's gradient as a matrix, hidden states shifted or not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradmm.gradients.exact_target import class_target
from gradmm.gradients.losses import VerbaliserLoss
from gradmm.gradients.spaces import LinearMap, Space
from gradmm.gradients.spread import Spread
from gradmm.gradients.target import ReleasedTarget
from gradmm.memory import BatchLimit

ROWS = [
    f"A {what} film, {how}." for what in ("dull", "great", "long") for how in ("bad", "fine and happy", "slow")
]


@pytest.fixture(params=["vocabulary", "verbalisers"])
def material(request, tiny_lm, tiny_task):
    lm = tiny_lm("gpt2")
    task = tiny_task(lm)
    return lm, task, Space() if request.param == "vocabulary" else Space((), VerbaliserLoss.of(task))


def of(material, rows, label=1):
    lm, task, space = material
    return class_target(lm, task, label, [rows], BatchLimit(4), space=space)


def singles(material, shift_D=None):
    """Every row's gradient, materialised in float64: of the weight, and of the bias."""
    found = []
    for row in ROWS:
        weight_VD, bias_V = (value.double() for value in of(material, [row]).materialised())
        found.append((weight_VD if shift_D is None else weight_VD - bias_V[:, None] * shift_D.double(), bias_V))
    return found


@pytest.mark.parametrize("is_shifted", [False, True])
def test_it_is_the_mean_of_every_rows_squared_norm(material, is_shifted):
    shift_D = 0.5 * torch.randn(material[0].embeddings_VE.shape[1], generator=torch.Generator().manual_seed(2))
    own = of(material, ROWS)
    found = own.mapped(LinearMap(h_shift_D=shift_D)).spread if is_shifted else own.spread
    each = singles(material, shift_D if is_shifted else None)
    assert found.rows == len(ROWS)
    for value, at in ((found.square_norm().weight_K, 0), (found.square_norm().bias_K, 1)):
        expected = np.mean([float(one[at].square().sum()) for one in each])
        assert float(value) == pytest.approx(expected, rel=1e-5)


def test_two_shifts_are_the_shift_by_their_sum(material):
    one, other = torch.randn(2, material[0].embeddings_VE.shape[1], generator=torch.Generator().manual_seed(3))
    spread = of(material, ROWS).spread
    twice, once = spread.shifted(one).shifted(other), spread.shifted(one + other)
    assert twice.square_weight == pytest.approx(once.square_weight, rel=1e-6)
    torch.testing.assert_close(twice.pull_D, once.pull_D)


def test_it_stays_with_a_target_that_is_kept_and_centred(material):
    own = of(material, ROWS)
    kept = type(own).from_tensors(own.tensors())
    assert kept.spread.tensors().keys() == own.spread.tensors().keys()
    assert all(torch.equal(kept.spread.tensors()[name], value) for name, value in own.spread.tensors().items())
    centred = ReleasedTarget((own, of(material, ROWS[:4], 0))).centred()
    assert centred.classes[0].spread.square_weight < own.spread.square_weight, "what all have in common is gone"
    assert Spread.from_tensors({}) is None
