"""Slow and obvious versions of what the program computes fast.

The gradient of the head is taken by autograd on the model's own forward pass, one text at a time, without
padding or batches, and is held as the matrix that the program never forms. Distances are taken between such
matrices, flattened to vectors, in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from gradmm.gradients.spaces import Space
from gradmm.models import LanguageModel

Gradient = tuple[Tensor, Tensor | None]
"""Of the head's weight (V, D) and of its bias (V), None where it has none."""


def materialised_head_gradient(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    label_counts: Sequence[int],
    embeds: Sequence[Tensor] | None = None,
) -> Gradient:
    """The gradient of the mean over texts of the summed cross-entropy of each text's label tokens.

    Args:
        lm: the model at whose weights it is taken; of tied matrices, only the head's use counts.
        rows: all tokens of each text, the label tokens last.
        label_counts: label tokens of each text.
        embeds: instead of the tokens' own, input embeddings (S, E) of each text; the gradient is then a function
            of them that can be differentiated again (which needs eager attention).
    """
    model = copy.deepcopy(lm.model)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # no longer the embedding's
    parameters = [head.weight]
    if head.bias is not None:
        head.bias = torch.nn.Parameter(head.bias.detach().clone())
        parameters.append(head.bias)
    losses = []
    for i, (row, count) in enumerate(zip(rows, label_counts, strict=True)):
        ids = torch.tensor([row])
        inputs = {"input_ids": ids} if embeds is None else {"inputs_embeds": embeds[i][None]}
        logits_SV = model(**inputs).logits[0].float()
        for at in range(len(row) - count, len(row)):
            losses.append(torch.nn.functional.cross_entropy(logits_SV[at - 1], ids[0, at]))
    mean_loss = torch.stack(losses).sum() / len(rows)
    found = torch.autograd.grad(mean_loss, parameters, create_graph=embeds is not None)
    return found[0], found[1] if len(found) > 1 else None


def distance(name: str, bias: str, mine: Gradient, theirs: Gradient, tag_factor: float = 0.01) -> Tensor:
    """The distance between two materialised gradients, from its definition, in float64."""
    (a_VD, a_V), (b_VD, b_V) = mine, theirs
    weight = (a_VD.double().flatten(), b_VD.double().flatten())
    if a_V is None or b_V is None or bias == "ignore":
        return _vectors(name, *weight, tag_factor)
    own = (a_V.double(), b_V.double())
    if bias == "joint" or name == "tag":  # a sum of squares and a sum of magnitudes are sums over all entries
        return _vectors(name, *(torch.cat(pair) for pair in zip(weight, own, strict=True)), tag_factor)
    return (_vectors(name, *weight, tag_factor) + _vectors(name, *own, tag_factor)) / 2


def _vectors(name: str, a: Tensor, b: Tensor, tag_factor: float) -> Tensor:
    if name == "cosine":
        return 1 - torch.dot(a, b) / (torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b))
    if name == "relative_l2":
        return torch.linalg.vector_norm(a - b) ** 2 / torch.linalg.vector_norm(b) ** 2
    assert name == "tag"
    return torch.linalg.vector_norm(a - b) ** 2 + tag_factor * torch.linalg.vector_norm(a - b, ord=1)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def mapped(space: Space, weight_VD: Tensor, bias_V: Tensor) -> tuple[Tensor, Tensor]:
    """A materialised gradient as a space sees it, map by map: A (G - grad_b m^T) B^T, and A grad_b."""
    for one in space.maps:
        if one.r_rows_M is not None:
            weight_VD, bias_V = weight_VD[one.r_rows_M], bias_V[one.r_rows_M]
        if one.r_MV is not None:
            weight_VD, bias_V = one.r_MV @ weight_VD, one.r_MV @ bias_V
        if one.h_shift_D is not None:
            weight_VD = weight_VD - torch.outer(bias_V, one.h_shift_D)
        if one.h_PD is not None:
            weight_VD = weight_VD @ one.h_PD.T
    return weight_VD, bias_V
