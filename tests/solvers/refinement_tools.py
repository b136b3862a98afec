"""What refinement is held against: gradients that are materialised, one text at a time."""

import json
import math
from dataclasses import asdict, replace

import torch

from gradmm.gradients.distances import DistanceConfig
from gradmm.gradients.spaces import IDENTITY
from gradmm.solvers.refinement import RefinementState
from solver_oracles import distance_slowly, log_perplexity_slowly, mean_gradient, text_gradient

LABEL = 1
ONE, TWO, UNEVEN = (1, 1, 1, 1), (0, 0, 1, 1), (1, 0, 1, 1)
"""Classes of the four texts below."""
KNOWN = {}
"""Gradients of texts, which the states of a run share nearly all of; the small random models never change."""
FREE = 4.8  # nats per token, about what random models give
ROWS = [
    ["The film is bad.", "A dull story with a bad end"],
    ["The film is great.", "A fine story", "This makes me feel happy. I feel happy", "What a great end!"],
]
TEXTS = ["The film is a story.", "I feel it was a dull end", "It makes me sad.", "Fine!"]
DISTANCES = [
    DistanceConfig(name=name, bias=bias)
    for name in ("cosine", "relative_l2")
    for bias in ("joint", "separate", "ignore")
]


def followed(refiner, texts=TEXTS, state=None):
    """The states between steps, each as JSON, the first one before all steps."""
    state = refiner.init(texts) if state is None else state
    states = [json.dumps(asdict(state), allow_nan=False)]
    refiner.run(state, lambda now: states.append(json.dumps(asdict(now), allow_nan=False)))
    return states


def read(kept):
    return RefinementState(**json.loads(kept))


def gradient_of(lm, task, text, label, loss=None):
    key = (lm.name, task.task.verbalisers, text, label, None if loss is None else str(loss.bias_CLM))
    if key not in KNOWN:
        own = (lm, task, task.text_ids(text), label)
        KNOWN[key] = text_gradient(*own) if loss is None else verbaliser_gradient(*own, loss)
    return KNOWN[key]


def verbaliser_gradient(lm, task, text_ids, label, loss):
    """Of the cross-entropy among the tokens that verbalisers go on with, with the loss's bias added to logits."""
    own, tokens = task.label_ids[label], loss.tokens_M.tolist()
    before = [*task.prefix_ids, *text_ids, *task.suffix_ids]
    weight_VD = lm.head.weight_VD.clone().requires_grad_()
    bias_V = (torch.zeros(len(weight_VD)) if lm.head.bias_V is None else lm.head.bias_V.clone()).requires_grad_()
    head, total = replace(lm.head, weight_VD=weight_VD, bias_V=bias_V), 0.0
    for place, token in enumerate(own):
        with torch.no_grad():
            seen = lm.body(input_ids=torch.tensor([[*before, *own[:place]]]), use_cache=False)
        logits_V = head(seen.last_hidden_state[0, -1])[0]
        following = sorted({ids[place] for ids in task.label_ids if ids[:place] == own[:place]})
        added = torch.stack([loss.bias_CLM[label, place, tokens.index(one)] for one in following])
        total = total - torch.log_softmax(logits_V[following] + added, -1)[following.index(token)]
    return torch.autograd.grad(total, (weight_VD, bias_V))


def nll_slowly(lm, task, texts):
    nll = [log_perplexity_slowly(lm, task.text_ids(text), lm.tokenizer.bos_token_id) for text in texts]
    return sum(nll) / len(nll)


def objective_slowly(
    lm, task, distance, texts, nll_weight, space=IDENTITY, start=TEXTS, free=FREE, labels=ONE, loss=None
):
    """The target is the mean, over the texts, of the mean gradient of the rows of a text's class."""

    def gradient(labelled):
        weight_VD, bias_V = mean_gradient([gradient_of(lm, task, text, label, loss) for text, label in labelled])
        for one in space.maps:
            weight_VD, bias_V = one.r_MV @ weight_VD @ one.h_PD.T, one.r_MV @ bias_V
        return weight_VD, bias_V

    target = mean_gradient([gradient([(row, label) for row in ROWS[label]]) for label in labels])
    mine = gradient(list(zip(texts, labels, strict=True)))
    value = distance_slowly(distance, mine, target, lm.head.bias_V is not None)
    excess = nll_slowly(lm, task, texts) - min(free, nll_slowly(lm, task, start))
    return math.log(max(float(value), 1e-9)) + nll_weight * max(0.0, excess)
