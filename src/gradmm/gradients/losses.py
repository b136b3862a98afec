"""The loss whose gradient is matched: how wrong the model is about a text's label.

    vocabulary    cross-entropy of the label's tokens over the whole vocabulary
    verbalisers   over the tokens that some verbaliser goes on with at that place, calibrated: what fine-tuning a
                  classifier lowers once it no longer prefers one class whatever the text says

At the pretrained weights a model's preference among the verbalisers is most of the first gradient, and every text
of a class pulls at it alike. A few steps undo it, and what a set teaches from then on is the rest. Calibration
takes the preference away beforehand: a number for every token that is added to its logit, such that over public
texts every class is as probable as every other (as contextual calibration, Zhao et al. 2021, in logits).

Shape suffixes: N texts, C classes, L label tokens, V vocabulary, M label tokens of all classes, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from gradmm.data.task import Batch, BoundTask
from gradmm.heads import Head

_ROUNDS = 1000  # of calibration; a handful are usual
_CALIBRATED = 1e-10  # of a probability that is off


class Loss(Protocol):
    """A loss, by its derivative."""

    def residual(self, head: Head, h_NLD: Tensor, batch: Batch) -> Tensor:
        """Derivative of every label token's loss with respect to `W h + b` (N, L, V), float32."""

    def size(self, head: Head) -> int:
        """V: tokens that it looks at."""

    def index(self, token: int) -> int:
        """Where one of them stands among them."""


@dataclass(frozen=True)
class VocabularyLoss:
    """Cross-entropy over the whole vocabulary: the paper's."""

    def residual(self, head: Head, h_NLD: Tensor, batch: Batch) -> Tensor:
        """As of `Loss`; one entry for every token of the vocabulary."""
        return _residual(head, h_NLD, batch.label_ids_NL)

    def size(self, head: Head) -> int:
        """The vocabulary."""
        return len(head.weight_VD)

    def index(self, token: int) -> int:
        """Itself."""
        return token


VOCABULARY = VocabularyLoss()


@dataclass(frozen=True)
class VerbaliserLoss:
    """Cross-entropy over the tokens that verbalisers go on with; no other row of the head is looked at."""

    tokens_M: Tensor
    """Tokens of all verbalisers, each once, rising."""
    allowed_CLM: Tensor
    """Whether some verbaliser that begins as the class's own goes on with this token at this place."""
    bias_CLM: Tensor
    """Is added to the logits; 0 does not calibrate."""

    @staticmethod
    def of(task: BoundTask, device: torch.device | str = "cpu") -> VerbaliserLoss:
        """The loss of a task, not calibrated."""
        tokens = sorted({token for ids in task.label_ids for token in ids})
        longest = max(map(len, task.label_ids))
        allowed_CLM = torch.zeros(len(task.label_ids), longest, len(tokens), dtype=torch.bool)
        for label, own in enumerate(task.label_ids):
            allowed_CLM[label, len(own) :] = True  # padding: nothing is learnt there, whatever is allowed
            for place in range(len(own)):
                following = {ids[place] for ids in task.label_ids if ids[:place] == own[:place]}
                allowed_CLM[label, place, [tokens.index(token) for token in following]] = True
        return VerbaliserLoss(
            torch.tensor(tokens, device=device),
            allowed_CLM.to(device),
            torch.zeros(allowed_CLM.shape, device=device),
        )

    def residual(self, head: Head, h_NLD: Tensor, batch: Batch) -> Tensor:
        """As of `Loss`, with one entry for each of `tokens_M` instead of each of the vocabulary."""
        labels_N, places = batch.labels_N, batch.label_ids_NL.shape[1]
        label_at_NL = torch.searchsorted(self.tokens_M, batch.label_ids_NL).clamp_max(len(self.tokens_M) - 1)
        return _residual(
            head.rows(self.tokens_M),
            h_NLD,
            label_at_NL,
            self.bias_CLM[labels_N, :places].masked_fill(~self.allowed_CLM[labels_N, :places], -torch.inf),
        )

    def size(self, head: Head) -> int:
        """M."""
        return len(self.tokens_M)

    def index(self, token: int) -> int:
        """Among `tokens_M`."""
        return self.tokens_M.tolist().index(token)

    def calibrated(self, task: BoundTask, logits: Sequence[Tensor]) -> VerbaliserLoss:
        """The loss with the bias that makes every class as probable as every other.

        Args:
            task: whose classes they are.
            logits: per class, those of `tokens_M` at the label places of public texts (N, L, M).
        """
        bias_CLM = torch.zeros_like(self.bias_CLM, dtype=torch.float64, device="cpu")
        starts = {tuple(ids[:place]) for ids in task.label_ids for place in range(len(ids))}
        for start in sorted(starts):
            place = len(start)
            under = [c for c, ids in enumerate(task.label_ids) if tuple(ids[:place]) == start]
            own_M = self.allowed_CLM[under[0], place].cpu()
            following = [self.tokens_M[own_M].tolist().index(task.label_ids[c][place]) for c in under]
            there_M = torch.bincount(torch.tensor(following), minlength=int(own_M.sum())).double()
            seen = [logits[c][:, place].cpu().double()[:, own_M] for c in under]
            bias_CLM[torch.tensor(under)[:, None], place, own_M.nonzero()[:, 0]] = _even(
                seen, there_M / len(under)
            )
        return replace(self, bias_CLM=bias_CLM.to(self.bias_CLM))

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint; the arguments of the constructor."""
        return {name: value.contiguous() for name, value in vars(self).items()}


def _residual(head: Head, h_NLD: Tensor, label_at_NL: Tensor, bias_NLV: Tensor | None = None) -> Tensor:
    logits_NLV, slope = head(h_NLD)
    onehot_NLV = torch.zeros_like(logits_NLV).scatter_(-1, label_at_NL.unsqueeze(-1), 1.0)
    shifted_NLV = logits_NLV if bias_NLV is None else logits_NLV + bias_NLV
    residual_NLV = torch.softmax(shifted_NLV, dim=-1) - onehot_NLV
    return residual_NLV if isinstance(slope, float) and slope == 1.0 else residual_NLV * slope


def _even(logits: Sequence[Tensor], share_M: Tensor) -> Tensor:
    """What has to be added to logits (N, M) of every class so that the mean probability is `share_M`.

    It minimises the convex `mean logsumexp(logits + bias) - share . bias`: by Newton's steps, and where one is too
    long by that of iterative scaling, which never is.
    """
    z_NM = torch.cat(list(logits))
    weight_N = torch.cat([own.new_full((len(own),), 1 / (len(own) * len(logits))) for own in logits])
    bias_M = torch.zeros_like(share_M)
    for _ in range(_ROUNDS):
        p_NM = torch.softmax(z_NM + bias_M, -1)
        mean_M = weight_N @ p_NM
        if float((mean_M - share_M).abs().max()) < _CALIBRATED:
            break
        value = _misfit(z_NM, weight_N, share_M, bias_M)
        curved_MM = torch.diag(mean_M) - (p_NM * weight_N.unsqueeze(1)).T @ p_NM
        newton_M = torch.linalg.lstsq(curved_MM, (share_M - mean_M).unsqueeze(1), driver="gelsd").solution[:, 0]
        if not (newton_M.isfinite().all() and _misfit(z_NM, weight_N, share_M, bias_M + newton_M) < value):
            newton_M = share_M.log() - mean_M.clamp_min(1e-300).log()
        bias_M = bias_M + newton_M
    return bias_M - bias_M.mean()


def _misfit(z_NM: Tensor, weight_N: Tensor, share_M: Tensor, bias_M: Tensor) -> float:
    return float(weight_N @ torch.logsumexp(z_NM + bias_M, -1) - share_M @ bias_M)
