"""A tiny model, its losses as closures, and Addax's step with everything stored, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

HALVES = (torch.bfloat16, torch.float16)

DTYPES = (torch.float32, *HALVES)

BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


class TinyLM(torch.nn.Module):
    """Embeddings tied to the head, a layer, one weight that long rows alone use, and one that is frozen."""

    def __init__(self, seed=0, dtype=torch.float64):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed = torch.nn.Embedding(13, 6)
            self.norm = torch.nn.LayerNorm(6)
            self.layer = torch.nn.Linear(6, 6)
            self.far = torch.nn.Parameter(torch.randn(6) / 3)
            self.frozen = torch.nn.Parameter(torch.randn(6), requires_grad=False)
        self.to(dtype)

    def forward(self, ids_NS, is_long=False):
        states = self.embed(ids_NS) + self.frozen + (self.far if is_long else 0)
        states = states + torch.tanh(self.layer(self.norm(states)))
        logits = states @ self.embed.weight.T
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids_NS[:, 1:].flatten())

    def trained(self):
        return {name: weight for name, weight in self.named_parameters() if weight.requires_grad}


def rows(seed, length):
    return torch.randint(13, (3, length), generator=torch.Generator().manual_seed(seed))


class Batch:
    """Closures over a model, and what the weights were when they were called."""

    def __init__(self, model, seed=0, fails=None, value=None):
        self.model, self.fails, self.value = model, fails, value
        self.short_ids, self.long_ids = rows(seed, 5), rows(seed + 1000, 11)
        self.seen = []

    def look(self):
        self.seen.append({name: weight.detach().clone() for name, weight in self.model.named_parameters()})
        if self.fails == len(self.seen):
            if self.value is not None:
                return self.value
            raise RuntimeError("no")
        return 0.0

    def short(self):
        return self.model(self.short_ids) + self.look()

    def long(self):
        return self.model(self.long_ids, is_long=True) + self.look()


def stored_step(model, batch, kinds, groups, eps):
    """One step with everything stored, along the z that was seen: new weights by name, and the mean loss."""
    start, loss, new = {name: w.detach().clone() for name, w in model.named_parameters()}, {}, {}
    gradients = dict.fromkeys(start)
    if "short" in kinds:
        short = model(batch.short_ids)
        found = torch.autograd.grad(short, list(model.trained().values()), allow_unused=True)
        gradients |= dict(zip(model.trained(), found, strict=True))
        loss["short"] = short.item()
    if "long" in kinds:
        plus, minus = batch.seen[:2]
        sides = []
        for weights in (plus, minus):
            model.load_state_dict(weights)
            sides.append(model(batch.long_ids, is_long=True).item())
        model.load_state_dict(start)
        loss["long"] = sum(sides) / 2
        difference = sides[0] - sides[1]
    for name, group in groups.items():
        share = {("short",): 0.0, ("long",): 1.0}.get(kinds, group["alpha"])
        step = torch.zeros_like(start[name])
        if gradients[name] is not None:
            step += (1 - share) * gradients[name]
        if "long" in kinds:
            z = (plus[name] - minus[name]) / (2 * eps[name])
            step += share * difference / (2 * eps[name]) * z
        untouched = gradients[name] is None and "long" not in kinds
        decay = 1.0 if untouched else 1 - group["lr"] * group["weight_decay"]
        new[name] = decay * start[name] - group["lr"] * step
    return new, sum(float(own) for own in loss.values()) / len(loss)


def bits_of(tensors):
    return [tensor.detach().clone().view(BITS[tensor.dtype]) for tensor in tensors]


def zeros(*sizes, dtype=torch.float64):
    return [torch.nn.Parameter(torch.zeros(size, dtype=dtype)) for size in sizes]
