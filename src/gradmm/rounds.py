"""Rounds of writing: what was chosen so far is what the writer learns before it writes again.

    the LM's texts -> choose -> tune the writer -> its texts -> choose -> ...        all of them are candidates

Where the target says how often words stand in the rows, what each round brought also tilts the next one's draws.

What is chosen from is everything that there is by then. A round's choice is kept in the run folder before the
writer is tuned on it, and every chunk of texts as it is written; a run that is interrupted tunes the writer of
the round that it was in again, from the same choice with the same seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from gradmm.checkpoints import Checkpoints
from gradmm.data.task import continuation_ids
from gradmm.data.vocabulary import word_tokens
from gradmm.decoding import PromptCache
from gradmm.gradients.target import ReleasedTarget
from gradmm.gradients.unigrams import UnigramCounter, Unigrams
from gradmm.progress import Stage
from gradmm.search import Search, Sources
from gradmm.seeds import make_generator
from gradmm.solvers.forms import Form
from gradmm.solvers.tilting import Tilt, written_as
from gradmm.training.writer import Example, tune_writer

WRITER = "writer"  # how its texts are marked
_FEWEST = 10  # texts per class that a writer learns: it would copy fewer
_MOST = 512  # texts per class that a writer learns, at most: selection's time grows with the number chosen


def write_rounds(
    search: Search,
    target: ReleasedTarget,
    lm_texts: Sequence[Sequence[str]],
    sources: Sources,
    form: Form,
    folder: Checkpoints,
    stage: Stage,
) -> list[list[str]]:
    """What the writer writes in all rounds after the first, per class.

    Args:
        search: chooses, and knows the settings.
        target: what to come near to.
        lm_texts: the first round's, which the LM wrote as it is.
        sources: other candidates.
        form: what candidates take before they are chosen; the writer learns them as they were written.
        folder: keeps what is written.
        stage: is told of every text.

    Raises:
        DataError: if a class has fewer candidates than texts are asked for.
        GradmmError: if the writer writes no usable text, or its tuning diverges.
    """
    written: list[list[str]] = [[] for _ in lm_texts]
    last, tilts = [list(own) for own in lm_texts], _tilts(search, target, form)
    for number in range(1, search.config.writer.rounds):
        for own, tilt in zip(last, tilts, strict=True):
            if tilt is not None:
                tilt.learn(_count(search, own, form, tilt.clip))
        candidates = [*sources, (WRITER, written)]
        one = _Round(search, target, lm_texts, candidates, form, number, folder)
        last = [one.write(label, tilt, stage) for label, tilt in enumerate(tilts)]
        written = [[*own, *more] for own, more in zip(written, last, strict=True)]
    return written


def _tilts(search: Search, target: ReleasedTarget, form: Form) -> list[Tilt | None]:
    """One for each class whose words the target knows."""
    size, step = len(search.runner.allowed_V), search.config.writer.unigram_step
    if step == 0 or all(own.unigrams is None for own in target.classes):
        return [None] * len(target.classes)
    words_V = word_tokens(search.task.tokenizer, size)
    written_as_V = written_as(search.task.tokenizer, size, form)
    return [
        None if own.unigrams is None else Tilt(own.unigrams, words_V, written_as_V, step) for own in target.classes
    ]


def _count(search: Search, texts: Sequence[str], form: Form, clip: float | None) -> Unigrams:
    """Shares of tokens in texts as they are as candidates, clipped as the rows' were."""
    counter = UnigramCounter(search.task, len(search.runner.allowed_V), clip)
    fitted = (search.fitted(text, form) for text in texts)
    counter.add(search.task.texts_ids([text for text in fitted if text is not None]))
    return counter.mean(fewest_rows=1)  # what the writer wrote is nobody's row


class _Round:
    """One round after the first."""

    def __init__(
        self,
        search: Search,
        target: ReleasedTarget,
        lm_texts: Sequence[Sequence[str]],
        sources: Sources,
        form: Form,
        number: int,
        folder: Checkpoints,
    ) -> None:
        self.search, self.target, self.lm_texts, self.sources = search, target, lm_texts, sources
        self.form, self.number, self.folder = form, number, folder

    def write(self, label: int, tilt: Tilt | None, stage: Stage) -> list[str]:
        """A class's texts, chunk by chunk."""
        count, purpose = self.search.round_counts[label], (WRITER, self.number)
        bias_V = None if tilt is None else tilt.bias_V.to(self.search.lm.device)
        return self.search.write_class(lambda: self.prompts, label, count, purpose, self.folder, stage, bias_V)

    @cached_property
    def prompts(self) -> PromptCache:
        """The class prompts, as the tuned writer has read them: computed where a chunk is missing."""
        search, generator = self.search, make_generator(self.search.config.seed, "writer", self.number)
        writer = tune_writer(search.domain.writer, self._examples(), search.config.writer, generator)
        return PromptCache(writer, search.task.instruction_ids, search.runner.limit)

    def _examples(self) -> list[Example]:
        name = f"chosen-{self.number:03d}"
        kept = self.folder.load_state(name)
        if kept is None:
            kept = {}, {"texts": self._choose()}
            self.folder.save_state(name, *kept)
        task, texts = self.search.task, kept[1]["texts"]
        # As the writer writes them: behind prompt and space. Who has read where texts end is to remember it.
        ending = self.search.domain.ending
        return [
            (prompt, [*continuation_ids(task.tokenizer, task.task.instruction(label), f" {text}"), *ending])
            for label, (prompt, own) in enumerate(zip(task.instruction_ids, texts, strict=True))
            for text in own
        ]

    def _choose(self) -> list[list[str]]:
        """Per class, the candidates whose mean gradient is nearest to the target.

        To each class's own, with what all rows have in common: what they are like is what the writer has to learn.
        """
        search, target, found = self.search, self.target.whole or self.target, list[list[str]]()
        pools = search.pool(self.lm_texts, self.sources, self.form, fewest=1)
        for label, checked in enumerate(search.labels.by(self.target).choosable(pools)):
            count = max(_FEWEST, min(_MOST, round(search.config.writer.share * len(checked.pool))))
            seen = search.look_at([label], [checked.pool], [checked.score_N], target.space)
            chosen = search.select(seen, target, [min(count, len(checked.pool))])
            found.append([seen.pool[i].written for i in sorted(chosen.indices)])
        return found
