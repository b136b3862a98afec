"""`gradmm.gradients.geometry`: how many numbers a target has, before there is one."""

from __future__ import annotations

import pytest
import torch

from gradmm.gradients.geometry import geometry, planned_geometry
from gradmm.gradients.spaces import IDENTITY, LinearMap, SpaceConfig
from release_oracles import MIXED, loss_of, space_of


@pytest.mark.parametrize(("kind", "has_bias"), [("phi", True), ("gpt2", False)])
def test_sizes_need_no_row(tiny_lm, tiny_task, kind, has_bias):
    lm = tiny_lm(kind)
    vocabulary, hidden = lm.head.weight_VD.shape
    whole = geometry(lm, IDENTITY, has_bias)
    assert whole.dimension == vocabulary * hidden + (vocabulary if has_bias else 0)
    task = tiny_task(lm, MIXED)
    labels = {token for words in task.label_ids for token in words}
    rows = geometry(lm, space_of(lm, task, ("verbaliser",)), True)
    assert (rows.rows, rows.columns, rows.dimension) == (len(labels), hidden, len(labels) * (hidden + 1))
    small = geometry(lm, space_of(lm, task, ("verbaliser", "sketch")), False)
    assert (small.rows, small.columns, small.dimension) == (4, 4, 16)


@pytest.mark.parametrize(
    ("loss", "maps"),
    [
        *(
            (loss, maps)
            for loss in ("verbalisers", "vocabulary")
            for maps in [(), ("verbaliser", "whitened"), ("sketch",), ("verbaliser", "sketch"), ("whitened",)]
        ),
        ("verbalisers", ("verbaliser", "contrasts", "whitened")),
        ("verbalisers", ("contrasts", "sketch")),
    ],
)
def test_sizes_are_known_before_the_space_is_fitted(tiny_lm, tiny_task, maps, loss):
    lm = tiny_lm("phi")
    task = tiny_task(lm, MIXED)
    planned = planned_geometry(lm, task, SpaceConfig(loss=loss, maps=maps, rank=4), True)
    space = space_of(lm, task, maps, loss_of(task, loss))
    assert planned == geometry(lm, space, True)
    assert planned == geometry(lm, space.then(LinearMap(h_shift_D=torch.ones(planned.columns))), True)
