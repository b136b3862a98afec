"""All blocks of a run through ADMM, in waves that fit the device, with a checkpoint after every iteration.

Blocks do not depend on each other, nor their starting points on the wave that they are in, so the batch size
changes what is computed only by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradmm.checkpoints import Checkpoints
from gradmm.config import GenerateConfig
from gradmm.data.task import BoundTask
from gradmm.data.vocabulary import allowed_tokens, sentence_ends, text_starts
from gradmm.decoding import PromptCache
from gradmm.errors import ConfigError
from gradmm.gradients.target import ReleasedTarget
from gradmm.memory import BatchLimit
from gradmm.models import LanguageModel
from gradmm.progress import Shown, Stage
from gradmm.seeds import make_generator
from gradmm.solvers.admm import Admm, AdmmState
from gradmm.solvers.initial import SPARE, Start, as_block, join, pick, random_block, write_texts
from gradmm.solvers.matching import GradientMatching
from gradmm.solvers.projection import Projector, Vocabulary


@dataclass
class Made:
    """What ADMM made."""

    texts: list[list[str]]
    """Per class."""
    retokenised: int = 0
    """Texts whose tokens, as a user's trainer sees them, are not those that were optimised."""
    stops: list[dict[str, Any]] = field(default_factory=list)
    """Per wave, why it stopped."""
    trace: list[dict[str, float]] = field(default_factory=list)
    """Per wave and outer iteration, the figures."""


@dataclass(frozen=True)
class Block:
    """Texts of one class whose mean gradient is matched together."""

    label: int
    size: int


def plan_blocks(counts: Sequence[int], block_size: int) -> list[Block]:
    """As few blocks as hold `counts[c]` texts of every class c, as equal as possible, larger ones first.

    Blocks of one size stand together, since those can be solved together.
    """
    plan = []
    for label, count in enumerate(counts):
        blocks = -(-count // block_size)
        plan += [Block(label, count // blocks + (i < count % blocks)) for i in range(blocks)]
    return sorted(plan, key=lambda block: (-block.size, block.label))


class BlockRunner:
    """Makes texts for a released target.

    Args:
        lm: the language model.
        task: the rendering.
        config: how texts are made.
        counts: texts of every class; None makes `config.texts_per_class` of each.
        limit: texts that go through the model at once; None takes `config.per_device_batch_size`.
        prompts: the class prompts, where the LM has read them before.

    Raises:
        ConfigError: if the texts would not fit the context, or the bans leave no token.
    """

    def __init__(
        self,
        lm: LanguageModel,
        task: BoundTask,
        config: GenerateConfig,
        counts: Sequence[int] | None = None,
        limit: BatchLimit | None = None,
        prompts: PromptCache | None = None,
    ) -> None:
        self.lm, self.task, self.config = lm, task, config
        self.limit = limit or BatchLimit(config.batch_size(lm.device))
        if config.lengths.max_tokens > task.room:
            raise ConfigError(
                f"lengths.max_tokens {config.lengths.max_tokens} exceeds the room of {task.room}; "
                "give at most that"
            )
        self.counts = tuple(counts or config.count_texts(task.task.label_names))
        self.plan = plan_blocks(self.counts, config.block_size)
        self.allowed_V = allowed_tokens(lm.tokenizer, lm.vocab_size, config.bans).to(lm.device)
        self.prompts = prompts or PromptCache(lm, task.instruction_ids, self.limit)
        self.prompts.check_room(config.lengths.max_tokens + SPARE)  # as many as `write_texts` samples
        ends_V = None
        if config.projection.end_sentence:
            ends_V = sentence_ends(lm.tokenizer, lm.vocab_size).to(lm.device)
        vocabulary = Vocabulary(self.allowed_V, ends_V, text_starts(task, self.allowed_V))
        self.projector = Projector(self.prompts, lm.embeddings_VE, vocabulary, config.projection)

    @property
    def steps(self) -> int:
        """Block steps in all: the start and every outer iteration of every block."""
        return len(self.plan) * (self.config.admm.n_outer + 1)

    def run(self, target: ReleasedTarget, folder: Checkpoints, stage: Stage) -> Made:
        """Solves all blocks; when memory runs out, in smaller waves.

        Raises:
            OutOfMemoryError: if one text is more than the memory holds.
            NonFiniteError: if an objective stops being finite.
        """
        made, progress = Made([[] for _ in target.classes]), _Progress(stage)
        first = 0
        while first < len(self.plan):
            wave = self._wave_at(first)
            try:
                first += self._solve(target, wave, folder, progress, made)
            except (RuntimeError, MemoryError) as error:
                self.limit.lower(error, "making texts", len(wave) * self.plan[first].size)
        return made

    def sample_texts(self, *purpose: object) -> list[list[str]]:
        """As many plain texts of the LM per class as are made: no gradient has a part in them."""
        config = self.config
        generator = make_generator(config.seed, *purpose)
        own = [label for label, count in enumerate(self.counts) for _ in range(count)]
        ids = write_texts(self.task, self.prompts, self.allowed_V, own, config.lengths, config.initial, generator)
        texts: list[list[str]] = [[] for _ in self.counts]
        for label, row in zip(own, ids, strict=True):
            texts[label].append(self.task.decode(row))
        return texts

    def _wave_at(self, first: int) -> range:
        """Blocks from here on that go through the model together: of one size, within the limit."""
        size, at_once = self.plan[first].size, self._blocks_at_once(first)
        alike = next((k for k in range(first, len(self.plan)) if self.plan[k].size != size), len(self.plan))
        return range(first, min(first + at_once, alike))

    def _blocks_at_once(self, block: int) -> int:
        return max(1, self.limit.size // self.plan[block].size)

    def _solve(
        self, target: ReleasedTarget, wave: range, folder: Checkpoints, progress: _Progress, made: Made
    ) -> int:
        """Solves some blocks together; returns how many: a checkpoint goes on with the blocks that it has."""
        kept = _fitted(folder, wave.start, self._blocks_at_once(wave.start))
        if kept is None:
            x, lengths, codes = join([self._start(target, k) for k in wave])
            solver = Admm(self._problem(target, wave, lengths), self.config.admm)
            state, trace = solver.init(x, codes), list[dict[str, float]]()
        else:
            tensors, trace = {k: v.to(self.lm.device) for k, v in kept[0].items()}, kept[1]["trace"]
            lengths = tensors.pop("lengths").cpu()
            wave = range(wave.start, wave.start + len(lengths))
            solver = Admm(self._problem(target, wave, lengths), self.config.admm)
            state = AdmmState(**tensors)
        progress.reach(wave, 1 + int(state.outer))
        while (stop := solver.stop(state)) is None:
            state = solver.step(state)
            trace.append(_figures(state, wave.start))
            folder.save_state(_name(wave.start), state.tensors() | {"lengths": lengths}, {"trace": trace})
            newest = partial(self._first_text, state, lengths)
            progress.reach(wave, 1 + int(state.outer), newest, best=trace[-1]["best"], text=trace[-1]["text"])
        progress.reach(wave, 1 + self.config.admm.n_outer)
        made.stops.append({"first_block": wave.start, "blocks": len(wave), **vars(stop)})
        made.trace += trace
        self._collect(state, lengths, [self.plan[k].label for k in wave], made)
        return len(wave)

    def _collect(self, state: AdmmState, lengths_KB: Tensor, labels: Sequence[int], made: Made) -> None:
        for block, lengths, label in zip(state.best_codes.tolist(), lengths_KB.tolist(), labels, strict=True):
            for row, length in zip(block, lengths, strict=True):
                text = self.task.decode(row[:length])
                made.texts[label].append(text)
                made.retokenised += self.task.text_ids(text) != row[:length]

    def _first_text(self, state: AdmmState, lengths_KB: Tensor) -> str:
        return self.task.decode(state.best_codes[0, 0, : int(lengths_KB[0, 0])].tolist())

    def _problem(self, target: ReleasedTarget, blocks: Sequence[int], lengths_KB: Tensor) -> GradientMatching:
        labels, config = [self.plan[k].label for k in blocks], self.config.distance
        return GradientMatching(self.lm, self.task, target, config, self.projector, labels, lengths_KB, self.limit)

    def _start(self, target: ReleasedTarget, block: int) -> Start:
        """The best of several drawn blocks; depends on the block's number alone."""
        best, lowest = None, float("inf")
        draws, at_once = self._draw(block), self._blocks_at_once(block)
        for first in range(0, len(draws), at_once):
            start = join(draws[first : first + at_once])
            problem = self._problem(target, [block] * len(start.x_KBTE), start.lengths_KB)
            with torch.no_grad():
                values_K = problem.objective(start.x_KBTE)
            if best is None or float(values_K.min()) < lowest:
                best, lowest = pick(start, int(values_K.argmin())), float(values_K.min())
        assert best is not None, "candidates >= 1"
        return best

    def _draw(self, block: int) -> list[Start]:
        initial, lengths = self.config.initial, self.config.lengths
        label, size = self.plan[block].label, self.plan[block].size
        generator, table_VE = make_generator(self.config.seed, "initial", block), self.lm.embeddings_VE
        if initial.source == "random":
            return [random_block(table_VE, size, lengths, initial, generator) for _ in range(initial.candidates)]
        labels = [label] * (size * initial.candidates)
        texts = write_texts(self.task, self.prompts, self.allowed_V, labels, lengths, initial, generator)
        return [as_block(table_VE, texts[i : i + size]) for i in range(0, len(texts), size)]


class _Progress:
    """Tells a stage of block steps, each once, however often a block is begun."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._told: dict[int, int] = {}

    def reach(self, wave: range, steps: int, shown: Shown | None = None, **figures: float) -> None:
        """The wave's blocks have come so far."""
        before = [self._told.get(block, 0) for block in wave]
        self._told |= {block: max(steps, told) for block, told in zip(wave, before, strict=True)}
        self.stage.advance(sum(max(0, steps - told) for told in before), shown, **figures)


def _name(first_block: int) -> str:
    return f"admm-{first_block:06d}"


def _fitted(folder: Checkpoints, first: int, at_once: int) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """A wave's checkpoint, or None; one with more blocks than fit is first split into several.

    The first part, which takes the place of the whole, is written last: a kill in between loses nothing.
    """
    kept = folder.load_state(_name(first))
    count = len(kept[0]["lengths"]) if kept is not None else 0
    if kept is None or count <= at_once:
        return kept
    for start in reversed(range(0, count, at_once)):
        facts = kept[1] if start == 0 else {"trace": []}
        folder.save_state(_name(first + start), _part(kept[0], start, start + at_once), facts)
    return folder.load_state(_name(first))


def _part(tensors: dict[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    """Some blocks of a checkpoint, without the padding that the others needed."""
    width = int(tensors["lengths"][start:stop].max())
    cut = {name: value[start:stop] if value.dim() else value for name, value in tensors.items()}
    return {name: value[:, :, :width] if value.dim() > 2 else value for name, value in cut.items()}


def _figures(state: AdmmState, first_block: int) -> dict[str, float]:
    """Means over the wave's blocks."""
    return {
        "first_block": first_block,
        "outer": int(state.outer),
        "vectors": float(state.objective_K.mean()),
        "text": float(state.score_K.mean()),
        "best": float(state.best_score_K.mean()),
        "primal_residual": float(state.primal_K.mean()),
        "dual_residual": float(state.dual_residual_K.mean()),
        "rho": float(state.rho_K.mean()),
    }
