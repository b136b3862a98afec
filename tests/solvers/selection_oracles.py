"""Random pools and targets, with slow and obvious versions of the objective, of greedy choice and of exchange."""

from __future__ import annotations

import copy
import math
from collections import Counter
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import strategies as st

import oracles
from gradmm.gradients.distances import FORMULAS, components
from gradmm.gradients.factors import Factors
from gradmm.gradients.target import ClassTarget
from gradmm.solvers.kernels import FactorKernel, SimilarityKernel
from gradmm.solvers.selection import (
    Candidates,
    select,
)

V, D = 6, 5

FREE = 0.5  # of log-perplexities between 0 and 1

NAMES, BIASES = ("cosine", "relative_l2"), ("joint", "separate", "ignore")

WORDS = ("a", "film", "great", "bad", "story", "the", "end", "fine")

COUNTS = {
    1: [(n,) for n in range(1, 11)],
    2: [(1, 1), (1, 4), (3, 1), (2, 3), (5, 2), (5, 5)],
    3: [(1, 1, 1), (2, 1, 3), (1, 3, 1), (4, 2, 1), (4, 3, 3)],
}
"""Of texts wanted from ten candidates, for so many classes."""

seeds, names, biases = st.integers(0, 9999), st.sampled_from(NAMES), st.sampled_from(BIASES)

every_distance = pytest.mark.parametrize(("name", "bias"), [(a, b) for a in NAMES for b in BIASES])


class Problem:
    """A random pool of some classes and a target; slow and obvious versions of everything, in float64."""

    def __init__(self, seed, name="cosine", bias="joint", size=10, pairs=2, alpha=0.0, diversity=0.0, classes=1):
        draw, rows = torch.Generator().manual_seed(seed), 3 * classes
        self.name, self.bias, self.alpha, self.diversity = name, bias, alpha, diversity
        # As labels pull at the logits, a class has its own r, and texts are texts: h knows no class.
        r_common_CV, h_common = torch.randn(classes, V, generator=draw), torch.randn(D, generator=draw)
        of_N = torch.cat([torch.arange(size) * classes // size, torch.arange(rows) % classes])
        r_NJV = torch.randn(size + rows, pairs, V, generator=draw) + r_common_CV[of_N][:, None]
        h_NJD = torch.randn(size + rows, pairs, D, generator=draw) + h_common
        every = Factors(r_NJV, h_NJD, torch.ones(size + rows, pairs))
        self.factors, self.of_N = every.sets(slice(0, size)), of_N[:size]
        real = every.sets(slice(size, size + rows))  # the target: mean of three rows a class, none of the pool
        self.target = ClassTarget(
            Factors(
                real.r_KJV.flatten(0, 1)[None],
                real.h_KJD.flatten(0, 1)[None],
                torch.full((1, rows * pairs), 1 / rows),
            ),
            None,
        )
        self.penalty_N = torch.rand(size, generator=draw, dtype=torch.float64)
        places = torch.randint(len(WORDS), (size, 6), generator=draw)
        self.texts = [" ".join(WORDS[k] for k in row) for row in places.tolist()]
        self.nll_N = torch.rand(size, generator=draw, dtype=torch.float64)

    def moved(self, order):
        """The same candidates in another order, or some of them, or some more than once."""
        other = copy.copy(self)
        other.factors, other.penalty_N = self.factors.sets(list(order)), self.penalty_N[list(order)]
        other.texts, other.nll_N = [self.texts[i] for i in order], self.nll_N[list(order)]
        other.of_N = self.of_N[list(order)]
        return other

    def of_class(self, label):
        """Its candidates."""
        return [i for i, own in enumerate(self.of_N.tolist()) if own == label]

    def candidates(self):
        """As the program makes them."""
        fast = FactorKernel([self.factors], self.bias)
        return Candidates(
            fast,
            fast.align(self.target),
            components(self.target.square_norm(), self.bias).double()[:, 0],
            self.alpha * self.penalty_N,
            self.of_N,
            SimilarityKernel(self.texts, self.diversity, size=2**16) if self.diversity else None,
            *self.readability(),
        )

    def exact(self):
        """The same from dense gradients in float64: nothing is rounded, so nothing has to be tolerated."""
        gg_QNN, (t_QM, g_QNM) = self.gram(), self.vectors()
        alignment_QN = torch.stack([g @ t for g, t in zip(g_QNM, t_QM, strict=True)])
        target_Q = torch.stack([t @ t for t in t_QM])
        similarity = DenseKernel(self.similarities()[None] * self.diversity) if self.diversity else None
        return Candidates(
            DenseKernel(gg_QNN),
            alignment_QN,
            target_Q,
            self.alpha * self.penalty_N,
            self.of_N,
            similarity,
            *self.readability(),
        )

    def readability(self):
        """Weighted log-perplexities, and what of their mean costs nothing: some sets are above it, some below."""
        return (self.alpha * self.nll_N, self.alpha * FREE) if self.alpha else (None, 0.0)

    def vectors(self):
        """Target and gradients as vectors, per component of the distance."""
        found = []
        for own in (self.target.factors, self.factors):
            double = Factors(*(part.double() for part in own.tensors()))
            weight_KVD, bias_KV = double.dense()
            weight_KM = weight_KVD.flatten(1)
            kinds = {"ignore": [weight_KM], "separate": [weight_KM, bias_KV]}
            found.append(kinds.get(self.bias, [torch.cat([weight_KM, bias_KV], 1)]))
        return [own[0] for own in found[0]], found[1]

    def gram(self):
        return torch.stack([g @ g.T for g in self.vectors()[1]])

    def similarities(self):
        """Cosine of counted word pairs."""
        bags = [Counter(pairwise(["", *text.split(), ""])) for text in self.texts]

        def product(a, b):
            return float(sum(count * b[pair] for pair, count in a.items()))

        values = [[product(a, b) / (product(a, a) * product(b, b)) ** 0.5 for b in bags] for a in bags]
        return torch.tensor(values, dtype=torch.float64)

    def distance(self, members, weights=None):
        weights = torch.ones(len(members), dtype=torch.float64) if weights is None else weights
        weight_KVD, bias_KV = Factors(*(part.double() for part in self.factors.tensors())).dense()
        share_n = weights / len(members)
        mine = tuple(torch.tensordot(share_n, own[members], 1) for own in (weight_KVD, bias_KV))
        theirs = Factors(*(part.double() for part in self.target.factors.tensors())).dense()
        return oracles.distance(self.name, self.bias, mine, (theirs[0][0], theirs[1][0]))

    def objective(self, members):
        """From its definition."""
        members = list(members)
        value = math.log(max(float(self.distance(members)), 1e-9))
        value += self.alpha * float(self.penalty_N[members].mean())
        value += self.alpha * max(0.0, float(self.nll_N[members].mean()) - FREE)
        if self.diversity and len(members) > 1:
            similar = self.similarities()
            pairs = [float(similar[i, j]) for i in members for j in members if i != j]
            value += self.diversity * sum(pairs) / len(pairs)
        return value

    def select(self, *counts, exact=True, exchange=True):
        return select(self.exact() if exact else self.candidates(), list(counts), FORMULAS[self.name], exchange)

    def greedily(self, counts):
        """From its definition: members in the order in which they are taken."""
        members = []
        for label in shared_out(counts):
            others = [j for j in self.of_class(label) if j not in members]
            members.append(min(others, key=lambda j: self.objective([*members, j])))
        return members

    def exchanged(self, members):
        """From its definition: members after all exchanges, and the objective before and after each."""
        members, place, idle = list(members), 0, 0
        trace = [self.objective(members)]
        while idle < len(members):
            same = self.of_class(int(self.of_N[members[place]]))
            others = [j for j in same if j not in members]
            sets = [[*members[:place], j, *members[place + 1 :]] for j in others]
            best = min(sets, key=self.objective, default=members)
            idle += 1
            if self.objective(best) < trace[-1] - 1e-9 * max(1.0, abs(trace[-1])):
                members, idle = best, 0
                trace.append(self.objective(best))
            place = (place + 1) % len(members)
        return members, trace


class DenseKernel:
    """The whole kernel, and which of its rows were asked for."""

    def __init__(self, gram_QNN):
        self.gram_QNN, self.asked = gram_QNN, []
        self.diagonal_QN = gram_QNN.diagonal(dim1=1, dim2=2).clone()

    def row(self, j):
        self.asked.append(j)
        return self.gram_QNN[:, j].clone()


def shared_out(counts):
    """The class of every place: each goes to the class with most texts for one that it has and half of the next
    (Sainte-Laguë)."""
    places = []
    for _ in range(sum(counts)):
        places.append(max(range(len(counts)), key=lambda c: (Fraction(counts[c], 2 * places.count(c) + 1), -c)))
    return places


@st.composite
def problems(draw, size=10, classes=1):
    alpha, diversity = draw(st.sampled_from([0.0, 0.05, 1.0])), draw(st.sampled_from([0.0, 0.3]))
    numbers = draw(seeds), draw(names), draw(biases), size, draw(st.integers(1, 3)), alpha, diversity
    return Problem(*numbers, classes)


@st.composite
def tasks(draw, size=10, most=10):
    """A problem of one to three classes, and how many texts of each are wanted."""
    problem = draw(problems(size, draw(st.integers(1, 3))))
    own = problem.of_N.bincount().tolist()
    return problem, [draw(st.integers(1, min(there, max(1, most // len(own))))) for there in own]
