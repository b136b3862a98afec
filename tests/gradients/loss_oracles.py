"""The verbalisers' loss written out, text by text and token by token, and its gradient by autograd."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gradmm.data.task import BoundTask
from gradmm.gradients.losses import VerbaliserLoss
from gradmm.models import LanguageModel

Start = tuple[int, ...]
Added = Mapping[tuple[Start, int], float]
"""What is added to the logit of a token where a verbaliser has begun like this."""


def starts_of(task: BoundTask) -> list[Start]:
    """All that verbalisers begin with and that some token follows."""
    return sorted({tuple(ids[:place]) for ids in task.label_ids for place in range(len(ids))})


def following(task: BoundTask, start: Start) -> list[int]:
    """Tokens with which some verbaliser that begins like this goes on."""
    place = len(start)
    return sorted({ids[place] for ids in task.label_ids if tuple(ids[:place]) == start})


def random_added(task: BoundTask, seed: int = 0) -> dict[tuple[Start, int], float]:
    """A number for every token at every start."""
    draw = torch.Generator().manual_seed(seed)
    places = [(start, token) for start in starts_of(task) for token in following(task, start)]
    return {place: float(torch.randn((), generator=draw)) for place in places}


def with_added(task: BoundTask, added: Added) -> VerbaliserLoss:
    """The task's loss with these numbers as its bias."""
    loss = VerbaliserLoss.of(task)
    bias_CLM, tokens = loss.bias_CLM.clone(), loss.tokens_M.tolist()
    for label, ids in enumerate(task.label_ids):
        for (start, token), number in added.items():
            if tuple(ids[: len(start)]) == start:
                bias_CLM[label, len(start), tokens.index(token)] = number
    return replace(loss, bias_CLM=bias_CLM)


def label_loss(task: BoundTask, label: int, logits_LV: Tensor, added: Added) -> Tensor:
    """Sum over a verbaliser's tokens of the cross-entropy over the tokens that could stand there."""
    total, own = logits_LV.new_zeros(()), task.label_ids[label]
    for place, token in enumerate(own):
        start = tuple(own[:place])
        tokens = following(task, start)
        shown = logits_LV[place, tokens] + torch.tensor([added.get((start, one), 0.0) for one in tokens])
        total = total + torch.nn.functional.cross_entropy(shown, torch.tensor(tokens.index(token)))
    return total


def verbaliser_gradient(
    lm: LanguageModel, task: BoundTask, texts: Sequence[str], labels: Sequence[int], added: Added
) -> tuple[Tensor, Tensor]:
    """The gradient of the mean loss of texts by the head's weight (V, D) and by its bias (V).

    A head without a bias gets one of zeros, which changes nothing but has a gradient.
    """
    model = copy.deepcopy(lm.model)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # no longer the embedding's
    bias_V = torch.zeros(len(head.weight)) if head.bias is None else head.bias.detach().clone()
    head.bias = torch.nn.Parameter(bias_V)
    losses = []
    for text, label in zip(texts, labels, strict=True):
        row, count = task.render(text, label), len(task.label_ids[label])
        logits_LV = model(input_ids=torch.tensor([row])).logits[0, -count - 1 : -1].float()
        losses.append(label_loss(task, label, logits_LV, added))
    weight_VD, bias_V = torch.autograd.grad(torch.stack(losses).mean(), [head.weight, head.bias])
    return weight_VD, bias_V
