"""The label check: which candidates carry their label, in the eyes of a reader, and which are of another class.

Shape suffixes: N candidates, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gradmm.blocks import BlockRunner
from gradmm.labelling import Reader, calibrated, label_log_probs
from gradmm.solvers.pool import Candidate
from gradmm.solvers.relabelling import Checked, relabel, survivors
from gradmm.teaching import Teacher


class LabelCheck:
    """Looks at candidates' labels.

    Args:
        runner: the run's model, task, settings and numbers of texts.
        teacher: of the reader; None, and `label_check.reader: model`, take the LM as it is.
    """

    def __init__(self, runner: BlockRunner, teacher: Teacher | None = None) -> None:
        self._runner, self._config, self._lm, self._task = runner, runner.config, runner.lm, runner.task
        asked = self._config.label_check
        self._teacher = teacher if asked.knows_rows else None
        # Who has not learnt the classes from rows is not trusted as one who has.
        self._settings = asked if self._teacher else asked.model_copy(update={"reader": "model"})

    @property
    def is_taught(self) -> bool:
        """Whether the reader has learnt from real rows."""
        return self._teacher is not None

    @property
    def reader(self) -> Reader:
        """Who says what class a text is of."""
        return self._lm if self._teacher is None else self._teacher.reader

    def own(self, pools: Sequence[Sequence[Candidate]]) -> list[Tensor]:
        """Calibrated probability of every candidate's own label, per class (N), to the LM as it is."""
        return [own_NC[:, label] for label, own_NC in enumerate(self._scores(pools, self._lm, True))]

    def choosable(self, pools: Sequence[Sequence[Candidate]]) -> list[Checked]:
        """`checked` for a choice on the way: where labels have no say in it, all scores are 1, at no cost."""
        if self._settings.relabels or self._config.selection.label_weight:
            return self.checked(pools)
        return [Checked(list(pool), torch.ones(len(pool))) for pool in pools]

    def checked(self, pools: Sequence[Sequence[Candidate]]) -> list[Checked]:
        """The candidates with the probability of their label, relabelled first where that is asked for."""
        scores = self._scores(pools, self.reader, not self.is_taught)
        if self._settings.relabels:
            names, alike = self._task.task.label_names, self._config.pool.near_duplicate
            return relabel(pools, scores, self._runner.counts, names, alike)
        return [Checked(list(pools[label]), own_NC[:, label]) for label, own_NC in enumerate(scores)]

    def surest(self, pools: Sequence[Sequence[Candidate]], share: float) -> list[list[Candidate]]:
        """For every class, a share of the candidates: those that are most probably of it, surest first.

        Who has learnt the classes from rows chooses among all candidates; the LM as it is, which guesses, among
        those that were written for the class.
        """
        scores, classes = self._scores(pools, self.reader, not self.is_taught), len(pools)
        if self.is_taught:
            share, scores = share / classes, [torch.cat(scores)] * classes
            pools = [[one for own in pools for one in own]] * classes
        found = list[list[Candidate]]()
        for label, (pool, score_NC) in enumerate(zip(pools, scores, strict=True)):
            best = score_NC[:, label].argsort(descending=True, stable=True)[: max(1, round(share * len(pool)))]
            found.append([pool[i] for i in best.tolist()])
        return found

    def surviving(self, checked: Sequence[Checked]) -> list[Checked]:
        """Those that carry their label; of a class that has too few, the most probable ones."""
        least, found = self._settings.min_probability, list[Checked]()
        for name, own, count in zip(self._task.task.label_names, checked, self._runner.counts, strict=True):
            kept = survivors(name, own.score_N, count, least)
            found.append(replace(own, pool=[own.pool[i] for i in kept], score_N=own.score_N[kept]))
        return found

    def _scores(self, pools: Sequence[Sequence[Candidate]], reader: Reader, calibrate: bool) -> list[Tensor]:
        """Probability of every class for every candidate, per class (N, C).

        The LM as it is prefers some classes whatever it reads; who has learnt them from rows is taken at his word.
        """
        ids = [self._task.texts_ids([candidate.text for candidate in pool]) for pool in pools]
        log_probs_NC = torch.cat([label_log_probs(reader, self._task, own, self._runner.limit) for own in ids])
        sizes = [len(own) for own in ids]
        fair_NC = calibrated(log_probs_NC, sizes) if calibrate else log_probs_NC.softmax(1)
        return list(torch.split(fair_NC, sizes))

    def carries(self, label: int, text: str) -> bool:
        """Whether a text that is no candidate is of that class, and surely enough, in the eyes of the reader."""
        scores_C = label_log_probs(self.reader, self._task, self._task.texts_ids([text]))[0].softmax(0)
        return float(scores_C[label]) >= max(float(scores_C.max()), self._settings.min_probability)
