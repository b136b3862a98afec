"""What a released target says of a text's class: a reader of labels who costs no privacy.

Evidence for every class, in nats, is the sum of two things that are known of it:

    words    sum over the text's words w of log(f_cw / f_w)      naive Bayes (McCallum and Nigam 1998)
    states   h . m_c - |m_c|^2 / 2                               Fisher's discriminant, in a whitened space

f_c are the class's shares of words, f what all classes have in common. m_c is the mean hidden state that the model
reads its label from: a row's gradient is r h^T, and that of the bias r, so with u the label's first token

    m_c = G_c^T u / (u . grad_b)

is the mean of the rows' h, weighted by how wrong the model is about each. Noise has to be taken off a release
beforehand (`denoising`).

All of it follows from the release and the text, and is post-processing.

Shape suffixes: N texts, C classes, D entries of h in the space, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradmm.data.task import BoundTask
from gradmm.gradients.target import ReleasedTarget
from gradmm.gradients.unigrams import FLOOR, TokenShares
from gradmm.heads import Head
from gradmm.memory import BatchLimit, by_length
from gradmm.models import LanguageModel


class TargetReader:
    """Reads texts' classes by a target.

    Args:
        lm: at whose weights the target's gradients were taken.
        task: the rendering.
        target: says what is known of the classes; noise has been taken off it.
        reads_states: whether hidden states have a part in it: where the space is whitened, and the gradient of the
            bias was released.
    """

    def __init__(self, lm: LanguageModel, task: BoundTask, target: ReleasedTarget, reads_states: bool) -> None:
        self._lm, self._task = lm, task
        known = target.whole or target  # what all classes have in common cancels
        self._space = known.space
        self._shares = TokenShares(task, len(lm.embeddings_VE))
        self._words_CV = _words(known, self._shares.words_V)
        self._means_CD = _means(known, task, lm.head) if reads_states else None
        assert self._words_CV is not None or reads_states, "the target says nothing of the classes"

    def evidence(self, texts_ids: Sequence[Sequence[int]], limit: BatchLimit | None = None) -> Tensor:
        """How much speaks for every class (N, C), nats up to a number of the text's own; float64, on the CPU.

        Args:
            texts_ids: tokens of each text, from `task.text_ids`.
            limit: texts that go through the model at once; texts of like length go together.
        """
        found_NC = torch.zeros(len(texts_ids), len(self._task.label_ids), dtype=torch.float64)
        if self._words_CV is not None:
            for text, ids in enumerate(texts_ids):
                tokens, share = self._shares.of_all(ids)
                found_NC[text] += self._words_CV[:, tokens] @ (share * len(ids))
        if self._means_CD is not None:
            means_CD, order = self._means_CD, by_length(texts_ids)
            parts = (limit or BatchLimit()).map(
                lambda part: self._states([texts_ids[i] for i in part]), order, "reading labels by the target"
            )
            h_ND = torch.cat(list(parts)) if order else means_CD.new_zeros(0, means_CD.shape[1])
            found_NC[order] += h_ND @ means_CD.T - means_CD.square().sum(1) / 2
        return found_NC

    @torch.no_grad()
    def _states(self, texts_ids: Sequence[Sequence[int]]) -> Tensor:
        """What the first token of the label is read from, in the space (N, D), float64."""
        batch = self._task.collate(texts_ids, [0] * len(texts_ids)).to(self._lm.device)
        h_NLD = self._lm.hidden(batch.embed(self._lm.embeddings_VE), batch.predict_at_NL[:, :1])
        return self._space.map_h(h_NLD[:, 0].float()).cpu().double()


def _words(target: ReleasedTarget, words_V: Tensor) -> Tensor | None:
    """log(f_c / f) of every token (C, V), 0 of those that open no word; None where shares were not released."""
    known = [own.unigrams for own in target.classes]
    if any(own is None for own in known):
        return None
    shares = [own for own in known if own is not None]
    share_CW = torch.stack([own.share_V for own in shares])[:, words_V]
    own_CW, all_W = share_CW + FLOOR, share_CW.mean(0) + FLOOR
    ratio_CV = torch.zeros(len(shares), len(words_V), dtype=torch.float64)
    ratio_CV[:, words_V] = (own_CW / own_CW.sum(1, keepdim=True)).log() - (all_W / all_W.sum()).log()
    return ratio_CV


def _means(target: ReleasedTarget, task: BoundTask, head: Head) -> Tensor:
    """m_c of every class (C, D), float64, on the CPU."""
    found = []
    for own, ids in zip(target.classes, task.label_ids, strict=True):
        u_V = target.space.token(ids[0], head)
        found.append((own.transposed(u_V) / (u_V @ own.bias())).cpu().double())
    return torch.stack(found)
