"""Rows, spaces and a noiseless noise for tests of releases, and a row's gradient by autograd."""

from __future__ import annotations

import torch

import oracles
from gradmm.gradients.factors import label_factors
from gradmm.gradients.losses import VOCABULARY, VerbaliserLoss
from gradmm.gradients.spaces import SpaceConfig, fit_space
from gradmm.privacy.mechanism import FixedNoise
from loss_oracles import random_added, verbaliser_gradient, with_added

MIXED = (" bad", " happy", " surprised")
SPLIT = [["The film is great.", "A dull story"], ["It was bad and long"], ["I", "A fine end", "The end is great"]]
GIVEN = {
    "neighboring_relation": "add_or_remove_one",
    "target_epsilon": 2.0,
    "target_delta": 1e-5,
    "accountant": "rdp",
    "num_rows": 6,
}


class NoNoise(FixedNoise):
    """What a release would be without its noise."""

    def added(self, values_M, std, quantum):
        return values_M


NONE = NoNoise(seed=0)


def space_of(lm, task, maps, loss=VOCABULARY):
    ids = [task.text_ids(text) for own in SPLIT for text in own]
    batch = task.collate(ids, [0] * len(ids))
    public = label_factors(lm, batch, batch.embed(lm.embeddings_VE), 1, loss=loss)
    labels = [token for words in task.label_ids for token in words]
    if isinstance(loss, VerbaliserLoss):
        labels = range(len(loss.tokens_M))
    generator = torch.Generator().manual_seed(0)
    return fit_space(SpaceConfig(maps=maps, rank=4), public, labels, generator, loss)


def loss_of(task, name):
    return VOCABULARY if name == "vocabulary" else with_added(task, random_added(task))


def row_gradient(lm, task, text, label, space):
    """One row's gradient of the space's loss by autograd, mapped as matrices."""
    if isinstance(space.loss, VerbaliserLoss):
        weight_VD, bias_V = verbaliser_gradient(lm, task, [text], [label], random_added(task))
        weight_VD, bias_V = weight_VD[space.loss.tokens_M], bias_V[space.loss.tokens_M]
    else:
        weight_VD, bias_V = oracles.materialised_head_gradient(
            lm, [task.render(text, label)], [len(task.label_ids[label])]
        )
    weight_VD, bias_V = oracles.mapped(space, weight_VD.detach(), bias_V.detach())
    return weight_VD.double(), bias_V.double()
