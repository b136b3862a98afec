"""The label check: which candidates carry their label, in the eyes of a reader, and which are of another class.

Shape suffixes: N candidates, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gradmm.blocks import BlockRunner
from gradmm.gradients.target import ReleasedTarget
from gradmm.gradients.target_reader import TargetReader
from gradmm.labelling import Reader, calibrated, label_log_probs
from gradmm.solvers.pool import Candidate
from gradmm.solvers.relabelling import Checked, relabel, survivors
from gradmm.teaching import Teacher


class LabelCheck:
    """Looks at candidates' labels.

    Args:
        runner: the run's model, task, settings and numbers of texts.
        teacher: of the reader, for `label_check.reader: rows`; None takes the LM as it is.
        told: who reads by a target; see `by`.
    """

    def __init__(
        self, runner: BlockRunner, teacher: Teacher | None = None, told: TargetReader | None = None
    ) -> None:
        self._runner, self._config, self._lm, self._task = runner, runner.config, runner.lm, runner.task
        asked = self._config.label_check
        self._teacher, self._told = teacher if asked.knows_rows else None, told
        # Who has not learnt the classes from rows is not trusted as one who has.
        untaught = asked.knows_rows and self._teacher is None
        self._settings = asked.model_copy(update={"reader": "model"}) if untaught else asked
        self._by: tuple[ReleasedTarget, LabelCheck] | None = None

    def by(self, target: ReleasedTarget) -> LabelCheck:
        """Who looks where there is a target: with `label_check.reader: target` by what it says, else as ever."""
        if self._settings.reader != "target":
            return self
        if self._by is None or self._by[0] is not target:
            told = TargetReader(self._lm, self._task, target, self._config.space.tells_states)
            self._by = target, LabelCheck(self._runner, told=told)
        return self._by[1]

    @property
    def knows_classes(self) -> bool:
        """Whether the reader knows the classes by more than their names: from rows, or by the target."""
        return self._settings.knows_classes

    @property
    def reader(self) -> Reader:
        """Who says what class a text is of."""
        return self._lm if self._teacher is None else self._teacher.reader

    def own(self, pools: Sequence[Sequence[Candidate]]) -> list[Tensor]:
        """Calibrated probability of every candidate's own label, per class (N), to the LM as it is."""
        return [own_NC[:, label] for label, own_NC in enumerate(self._fair_scores(pools))]

    def choosable(self, pools: Sequence[Sequence[Candidate]]) -> list[Checked]:
        """`checked` for a choice on the way: where labels have no say in it, all scores are 1, at no cost."""
        if self._settings.relabels or self._config.selection.label_weight:
            return self.checked(pools)
        return [Checked(list(pool), torch.ones(len(pool))) for pool in pools]

    def checked(self, pools: Sequence[Sequence[Candidate]]) -> list[Checked]:
        """The candidates with the probability of their label, relabelled first where that is asked for."""
        scores = self._known_scores(pools)
        if self._settings.relabels:
            names, alike = self._task.task.label_names, self._config.pool.near_duplicate
            return relabel(pools, scores, self._runner.counts, names, alike)
        return [Checked(list(pools[label]), own_NC[:, label]) for label, own_NC in enumerate(scores)]

    def surest(self, pools: Sequence[Sequence[Candidate]], share: float) -> list[list[Candidate]]:
        """For every class, a share of the candidates: those that are most probably of it, surest first.

        Who knows the classes chooses among all candidates; the LM as it is, which guesses, among those that were
        written for the class.
        """
        scores, classes = self._known_scores(pools), len(pools)
        if self.knows_classes:
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

    def carries(self, label: int, text: str) -> bool:
        """Whether a text that is no candidate is of that class, and surely enough, in the eyes of the reader."""
        scores_C = self._known(self._task.texts_ids([text]))[0].softmax(0)
        return float(scores_C[label]) >= max(float(scores_C.max()), self._settings.min_probability)

    def _known_scores(self, pools: Sequence[Sequence[Candidate]]) -> list[Tensor]:
        """Probability of every class for every candidate, per class (N, C).

        The LM as it is prefers some classes whatever it reads; who knows them is taken at his word.
        """
        if not self.knows_classes:
            return self._fair_scores(pools)
        ids = self._ids(pools)
        return [self._known(own).softmax(1).float() for own in ids]

    def _fair_scores(self, pools: Sequence[Sequence[Candidate]]) -> list[Tensor]:
        """That of the LM as it is, which prefers some classes whatever it reads: calibrated."""
        ids = self._ids(pools)
        found_NC = torch.cat([label_log_probs(self._lm, self._task, own, self._runner.limit) for own in ids])
        sizes = [len(own) for own in ids]
        return list(torch.split(calibrated(found_NC, sizes), sizes))

    def _known(self, texts_ids: Sequence[Sequence[int]]) -> Tensor:
        """What speaks for every class (N, C), nats, to who knows them."""
        limit = self._runner.limit
        if self._settings.reader == "target":
            assert self._told is not None, "by which target?"
            return self._told.evidence(texts_ids, limit)
        return label_log_probs(self.reader, self._task, texts_ids, limit)

    def _ids(self, pools: Sequence[Sequence[Candidate]]) -> list[list[list[int]]]:
        """Tokens of every candidate, per class."""
        return [self._task.texts_ids([candidate.text for candidate in pool]) for pool in pools]
