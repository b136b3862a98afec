"""`gradmm.gradients.public_clip`: what public text says of a release, against clipping by hand."""

from __future__ import annotations

import math

import pytest
import torch

from gradmm.errors import ConfigError, NonFiniteError
from gradmm.gradients.factors import Factors, label_factors
from gradmm.gradients.public_clip import public_clip, public_signal
from release_oracles import MIXED, SPLIT, row_gradient, space_of


def test_the_public_clip_is_the_median_norm():
    factors = Factors(
        torch.tensor([[[3.0, 0]], [[1, 0]], [[2, 0]], [[0, 5]]]), torch.ones(4, 1, 1), torch.ones(4, 1)
    )
    assert public_clip([factors], False) == 2
    assert public_clip([factors.sets([0, 1]), factors.sets([2, 3])], False, 0.5) == 1
    assert public_clip([factors], True) == pytest.approx(2 * math.sqrt(2))
    with pytest.raises(NonFiniteError, match=r"of a text that the LM wrote is not finite; set model\.dtype"):
        public_clip([Factors(factors.r_KJV / 0, factors.h_KJD, factors.weight_KJ)], False)
    with pytest.raises(ConfigError, match="the median gradient of the LM's texts is zero in this space"):
        public_clip([Factors(factors.r_KJV * 0, factors.h_KJD, factors.weight_KJ)], False)


@pytest.mark.parametrize("with_bias", [True, False])
def test_the_public_signal_is_the_norm_of_the_mean_of_clipped_gradients(tiny_lm, tiny_task, with_bias):
    lm = tiny_lm("phi")
    task = tiny_task(lm, MIXED)
    space = space_of(lm, task, ("verbaliser",))
    rows = [[row_gradient(lm, task, text, label, space) for text in own] for label, own in enumerate(SPLIT)]
    flat = [[torch.cat([w.flatten(), b * with_bias]) for w, b in own] for own in rows]
    clip = float(torch.stack([row for own in flat for row in own]).norm(dim=1).median())
    expected = min(
        float(torch.stack([row * min(1, clip / float(row.norm())) for row in own]).mean(0).norm()) / clip
        for own in flat
    )
    public = []
    for label, own in enumerate(SPLIT):
        batch = task.collate([task.text_ids(text) for text in own], [label] * len(own))
        found = space(label_factors(lm, batch, batch.embed(lm.embeddings_VE), 1))
        public.append([found.sets(slice(0, 1)), found.sets(slice(1, None))] if len(own) > 1 else [found])
    assert public_signal(public, with_bias, clip) == pytest.approx(expected, rel=1e-5)
    assert 0 < expected < 1
