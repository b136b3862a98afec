"""What a run will compute, before it is run: FLOP by kind of pass (see `gradmm.arithmetic`).

Texts count as long as they are on average, and stages that may stop early as if they did not. Seconds follow from
the rates of the passes (`gradmm.throughput`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradmm.arithmetic import Arithmetic, arithmetic_of
from gradmm.config import GenerateConfig
from gradmm.data.task import BoundTask
from gradmm.gradients.losses import VOCABULARY, VerbaliserLoss
from gradmm.labelling import BATCH
from gradmm.models import LanguageModel
from gradmm.solvers.initial import SPARE

GRADIENTS, READABILITY, WRITING, TUNING, UPDATE = (
    "gradients",
    "readability",
    "writing",
    "tuning",
    "x-update",
)
PASSES = (GRADIENTS, READABILITY, WRITING, TUNING, UPDATE)


@dataclass(frozen=True)
class Workload:
    """FLOP of one text in every kind of pass, and of how many texts a run asks for."""

    lm: LanguageModel
    task: BoundTask
    config: GenerateConfig

    @property
    def cost(self) -> Arithmetic:
        """Of the model's passes."""
        return arithmetic_of(self.lm)

    @property
    def length(self) -> float:
        """Mean tokens of a text."""
        lengths = self.config.lengths
        if lengths.distribution == "fixed":
            return lengths.max_tokens
        return lengths.mean if lengths.distribution == "normal" else (lengths.min_tokens + lengths.max_tokens) / 2

    def each(self, kind: str, length: float | None = None) -> float:
        """FLOP of one text in a kind of pass.

        Args:
            kind: one of `PASSES`.
            length: tokens of the text; None takes the mean. All are written as long as the longest, and then cut.
        """
        written = self.config.lengths.max_tokens + SPARE if length is None else length
        length = self.length if length is None else length
        label = max(map(len, self.task.label_ids))
        rendered = len(self.task.prefix_ids) + length + len(self.task.suffix_ids) + label - 1
        looked_at = label * self._share  # positions, as if the whole head were multiplied by at each
        start = max(map(len, self.task.instruction_ids))
        return {
            GRADIENTS: lambda: self.cost.forward(1, rendered, looked_at),
            READABILITY: lambda: self.cost.forward(1, length, length),
            WRITING: lambda: self.cost.decode(1, start, written),
            TUNING: lambda: 3 * self.cost.forward(1, start + length, length),
            UPDATE: lambda: self.cost.forward_backward(1, rendered, looked_at),
        }[kind]()

    @property
    def _share(self) -> float:
        """Of the head's rows, those that the loss looks at."""
        if self.config.space.loss == "vocabulary":
            return 1.0
        return VerbaliserLoss.of(self.task).size(self.lm.head) / VOCABULARY.size(self.lm.head)

    def texts(self, counts: Sequence[int], rows: int) -> dict[str, float]:
        """Texts that go through every kind of pass (real rows count as texts of the gradients' pass).

        Args:
            counts: texts of every class that are asked for.
            rows: real rows in the target.
        """
        found = dict.fromkeys(PASSES, 0.0) | {GRADIENTS: float(rows)}
        rounds, public = self.config.writer.rounds, self._public(len(counts))
        each = 0 if self.config.solver == "admm" else self.config.pool.texts_per_text / rounds
        first, more = sum(max(public, count * each) for count in counts), sum(counts) * each
        found[WRITING] += first + more * (rounds - 1)
        found[GRADIENTS] += self._fits * len(counts) * public
        if self.config.solver != "search":
            found[UPDATE] += sum(counts) * self.config.admm.n_outer * self.config.admm.n_inner
            found[WRITING] += sum(counts) * self.config.initial.candidates
        if self.config.solver != "admm":
            self._search(found, sum(counts), first, more)
            check = self.config.label_check
            found[TUNING] += BATCH * check.steps(rows) if check.knows_rows else 0  # about as long as a writer's
        return found

    def _public(self, num_classes: int) -> int:
        """Public texts of every class."""
        return self.config.space.public_count(num_classes) if self.config.needs_public else 0

    @property
    def _fits(self) -> int:
        """How often public text goes through the model: to calibrate, to fit maps, and for the clip."""
        space = self.config.space
        return (space.loss == "verbalisers") + (not space.is_identity) + (self.config.privacy is not None)

    def _search(self, found: dict[str, float], count: int, first: float, more: float) -> None:
        """Of so many candidates after the first round, and so many more after each other one."""
        writer, refinement = self.config.writer, self.config.refinement
        learnt = (writer.rounds - 1) * (first + more * (writer.rounds - 2) / 2)  # each looks at all there is
        candidates = first + more * (writer.rounds - 1)
        looks, judged = learnt + candidates, count * refinement.evaluations
        found[TUNING] += writer.share * writer.num_train_epochs * learnt
        if writer.files:  # at most: how many texts there are is seen when they are read
            found[TUNING] += writer.files_max_steps * writer.per_device_train_batch_size
        checks = looks if self.config.selection.label_weight or self.config.label_check.relabels else candidates
        found[GRADIENTS] += looks + checks + judged * (1 + 1 / refinement.proposals)  # as long as the label's pass
        found[READABILITY] += looks + judged

    def flop(self, counts: Sequence[int], rows: int, row_length: float) -> dict[str, float]:
        """FLOP of a whole run by kind of pass.

        Args:
            counts: texts of every class that are asked for.
            rows: real rows in the target.
            row_length: their mean length in tokens.
        """
        texts = self.texts(counts, rows)
        found = {kind: count * self.each(kind) for kind, count in texts.items()}
        found[GRADIENTS] += rows * (self.each(GRADIENTS, row_length) - self.each(GRADIENTS))
        return found
