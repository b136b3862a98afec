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
from gradmm.models import LanguageModel
from gradmm.solvers.initial import SPARE

GRADIENTS, READABILITY, WRITING, TUNING, UPDATE = (
    "gradients",
    "readability",
    "writing",
    "tuning the writer",
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
        start = max(map(len, self.task.instruction_ids))
        return {
            GRADIENTS: lambda: self.cost.forward(1, rendered, label),
            READABILITY: lambda: self.cost.forward(1, length, length),
            WRITING: lambda: self.cost.decode(1, start, written),
            TUNING: lambda: 3 * self.cost.forward(1, start + length, length),
            UPDATE: lambda: self.cost.forward_backward(1, rendered, label),
        }[kind]()

    def texts(self, counts: Sequence[int], rows: int) -> dict[str, float]:
        """Texts that go through every kind of pass (real rows count as texts of the gradients' pass).

        Args:
            counts: texts of every class that are asked for.
            rows: real rows in the target.
        """
        found = dict.fromkeys(PASSES, 0.0) | {GRADIENTS: float(rows)}
        if self.config.solver != "search":
            found[UPDATE] += sum(counts) * self.config.admm.n_outer * self.config.admm.n_inner
            found[WRITING] += sum(counts) * self.config.initial.candidates
        if self.config.solver != "admm":
            self._search(found, sum(counts))
        return found

    def _search(self, found: dict[str, float], count: int) -> None:
        writer, refinement = self.config.writer, self.config.refinement
        candidates = count * self.config.pool.texts_per_text
        looks = candidates * (writer.rounds + 1) / 2  # each round looks at all that there is
        learnt = writer.share * writer.num_train_epochs * candidates * (writer.rounds - 1) / 2
        judged = count * refinement.evaluations
        found[WRITING] += candidates
        found[TUNING] += learnt
        checks = looks if self.config.selection.label_weight or self.config.label_check.relabel else candidates
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
