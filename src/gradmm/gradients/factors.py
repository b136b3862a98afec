"""The gradient of the output head, as factors, never as a matrix.

With `h_j` (D) the hidden state that predicts label token j and `r_j` (V) the derivative of the loss with respect
to `W h_j + b` (`gradients.losses`; for the whole vocabulary `softmax - onehot`),

    grad_W = sum_j w_j r_j h_j^T        grad_b = sum_j w_j r_j
    <G, G'> = sum_jk w_j w'_k (r_j . r'_k) (h_j . h'_k + [bias])

so everything about a gradient follows from pairs (r, h), and one ordinary backward pass through the body
differentiates it with respect to the input embeddings: no V x D matrix, no double backward.

Shape suffixes: K sets (blocks of texts, each with a gradient of its own), J factors of a set, V vocabulary,
D hidden size, N texts, L label tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gradmm.data.task import Batch
from gradmm.gradients.losses import VOCABULARY, Loss
from gradmm.memory import BatchLimit
from gradmm.models import LanguageModel


@dataclass(frozen=True)
class Factors:
    """K gradients, each a weighted sum of J outer products; all float32."""

    r_KJV: Tensor
    """Derivative of the loss with respect to `W h + b`."""
    h_KJD: Tensor
    """Hidden state at the same position."""
    weight_KJ: Tensor
    """Weight of the pair: 1/n for the mean over n texts, 0 for padding."""

    @property
    def num_sets(self) -> int:
        """K."""
        return self.r_KJV.shape[0]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """r, h and weight."""
        return self.r_KJV, self.h_KJD, self.weight_KJ

    def sets(self, which: slice | Sequence[int] | Tensor) -> Factors:
        """Some of the sets."""
        return Factors(self.r_KJV[which], self.h_KJD[which], self.weight_KJ[which])

    def dense(self) -> tuple[Tensor, Tensor]:
        """The materialised gradients (K, V, D) and (K, V): for small problems and for the TAG distance."""
        weighted_KJV = self.r_KJV * self.weight_KJ.unsqueeze(-1)
        return weighted_KJV.transpose(1, 2) @ self.h_KJD, weighted_KJV.sum(1)


def join_sets(parts: Sequence[Factors]) -> Factors:
    """Sets of several, one after the other; all with the same J."""
    r_KJV, h_KJD, weight_KJ = (torch.cat(pieces) for pieces in zip(*(p.tensors() for p in parts), strict=True))
    return Factors(r_KJV, h_KJD, weight_KJ)


def padded(factors: Factors, pairs: int) -> Factors:
    """The same gradients with J = `pairs`: pairs of weight 0 are added."""
    more = pairs - factors.weight_KJ.shape[1]
    assert more >= 0, (pairs, factors.weight_KJ.shape)
    if more == 0:
        return factors
    r_KJV, h_KJD, weight_KJ = factors.tensors()
    pad = torch.nn.functional.pad
    return Factors(pad(r_KJV, (0, 0, 0, more)), pad(h_KJD, (0, 0, 0, more)), pad(weight_KJ, (0, more)))


def as_one_set(parts: Sequence[Factors]) -> Factors:
    """All pairs of all sets of several as one set; the parts may differ in J."""
    flat = [[value.flatten(0, 1) for value in part.tensors()] for part in parts]
    r_JV, h_JD, weight_J = (torch.cat(pieces) for pieces in zip(*flat, strict=True))
    return Factors(r_JV[None], h_JD[None], weight_J[None])


@dataclass(frozen=True)
class Inner:
    """Inner products of K pairs of gradients: of the head's weight and, apart, of its bias."""

    weight_K: Tensor
    bias_K: Tensor


def label_factors(
    lm: LanguageModel,
    batch: Batch,
    embeds_NSE: Tensor,
    texts_per_set: int,
    limit: BatchLimit | None = None,
    loss: Loss = VOCABULARY,
) -> Factors:
    """Factors of the mean gradient of each set of consecutive texts.

    Args:
        lm: the model at whose weights the gradient is taken.
        batch: N rendered texts, `texts_per_set` for every set in turn.
        embeds_NSE: their input embeddings, from `batch.embed`; gradients flow back to them.
        texts_per_set: texts in each set.
        limit: texts whose activations are held at once. More texts go through the body in parts, and once more
            in the backward pass, which then holds one part's activations (gradient checkpointing).
        loss: whose gradient it is; V is the number of tokens that it looks at.

    Returns:
        Factors with K = N / texts_per_set sets of J = texts_per_set * L pairs.
    """
    count, size = len(embeds_NSE), len(embeds_NSE) if limit is None else limit.size
    if count <= size:
        pairs = _pairs(lm, batch, embeds_NSE, loss)
    else:
        parts = [
            checkpoint(
                *(_pairs, lm, batch.part(i, i + size), embeds_NSE[i : i + size], loss),
                use_reentrant=False,
                preserve_rng_state=False,  # nothing is drawn
            )
            for i in range(0, count, size)
        ]
        pairs = torch.cat([r_NLV for r_NLV, _ in parts]), torch.cat([h_NLD for _, h_NLD in parts])
    return _in_sets(pairs, batch, texts_per_set)


def as_factors(
    lm: LanguageModel, batch: Batch, h_NLD: Tensor, texts_per_set: int, loss: Loss = VOCABULARY
) -> Factors:
    """`label_factors` from the hidden states at `batch.predict_at_NL`, where they are known already."""
    return _in_sets((loss.residual(lm.head, h_NLD, batch), h_NLD.float()), batch, texts_per_set)


def _in_sets(pairs: tuple[Tensor, Tensor], batch: Batch, texts_per_set: int) -> Factors:
    r_NLV, h_NLD = pairs
    sets = len(r_NLV) // texts_per_set
    return Factors(
        r_NLV.reshape(sets, -1, r_NLV.shape[-1]),
        h_NLD.reshape(sets, -1, h_NLD.shape[-1]),
        batch.label_mask_NL.reshape(sets, -1) / texts_per_set,
    )


def _pairs(lm: LanguageModel, batch: Batch, embeds_NSE: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """(r, h) at every label position (N, L, V) and (N, L, D)."""
    h_NLD = lm.hidden(embeds_NSE, batch.predict_at_NL)
    return loss.residual(lm.head, h_NLD, batch), h_NLD.float()


def inner(a: Factors, b: Factors) -> Inner:
    """<G_k, G'_k> for every k; a `b` of one set is held against all of `a`.

    Cost: K J J' (V + D) multiply-adds, V x D never formed.
    """
    rr_KJI = a.r_KJV @ b.r_KJV.transpose(1, 2)
    rr_KJI = rr_KJI * a.weight_KJ.unsqueeze(-1) * b.weight_KJ.unsqueeze(1)
    hh_KJI = a.h_KJD @ b.h_KJD.transpose(1, 2)
    return Inner((rr_KJI * hh_KJI).sum((1, 2)), rr_KJI.sum((1, 2)))


def inner_dense(a: Factors, weight_VD: Tensor, bias_V: Tensor) -> Inner:
    """<G_k, T> = sum_j w_j r_j^T T h_j with a materialised T.

    Cost: K J V D multiply-adds.
    """
    r_MV = a.r_KJV.flatten(0, 1)
    rt_KJD = (r_MV @ weight_VD).view_as(a.h_KJD)
    on_weight_KJ = (rt_KJD * a.h_KJD).sum(-1)
    on_bias_KJ = (r_MV @ bias_V).view_as(a.weight_KJ)
    return Inner((on_weight_KJ * a.weight_KJ).sum(-1), (on_bias_KJ * a.weight_KJ).sum(-1))
