"""All blocks of a run through ADMM, in waves that fit the device, with a checkpoint after every iteration.

Blocks do not depend on each other, nor their starting points on the wave that they are in, so the batch size
changes what is computed only by rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradmm.config import GenerateConfig
from gradmm.data.task import BoundTask
from gradmm.data.vocabulary import allowed_tokens, bare_starts, sentence_ends
from gradmm.decoding import PromptCache
from gradmm.errors import ConfigError
from gradmm.gradients.target import ReleasedTarget
from gradmm.models import LanguageModel
from gradmm.progress import Stage
from gradmm.solvers.admm import Admm, AdmmState
from gradmm.solvers.initial import Start, as_block, join, pick, random_block, write_texts
from gradmm.solvers.matching import GradientMatching
from gradmm.solvers.projection import Projector, Vocabulary
from gradmm.store import RunFolder


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


def make_generator(seed: int, *purpose: object) -> torch.Generator:
    """A random generator for one purpose: what is drawn for it depends on nothing that was drawn before."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class BlockRunner:
    """Makes texts for a released target.

    Args:
        lm: the language model.
        task: the rendering.
        config: how texts are made.

    Raises:
        ConfigError: if the texts would not fit the context, or the bans leave no token.
    """

    def __init__(self, lm: LanguageModel, task: BoundTask, config: GenerateConfig) -> None:
        self.lm, self.task, self.config = lm, task, config
        if config.lengths.max_tokens > task.room:
            raise ConfigError(f"lengths.max_tokens {config.lengths.max_tokens} exceeds the room of {task.room}")
        self.allowed_V = allowed_tokens(lm.tokenizer, lm.vocab_size, config.bans).to(lm.device)
        self.prompts = PromptCache(lm, task.instruction_ids)
        ends_V = starts = None
        if config.projection.end_sentence:
            ends_V = sentence_ends(lm.tokenizer, lm.vocab_size).to(lm.device)
        if task.starts_bare:
            mask_V, ids_V = bare_starts(lm.tokenizer, lm.vocab_size)
            starts = (mask_V.to(lm.device), ids_V.to(lm.device))
        vocabulary = Vocabulary(self.allowed_V, ends_V, starts)
        self.projector = Projector(self.prompts, lm.embeddings_VE, vocabulary, config.projection)
        blocks = -(-config.texts_per_class // config.block_size)
        self.block_size = -(-config.texts_per_class // blocks)
        self.labels = [label for label in range(len(task.task.label_names)) for _ in range(blocks)]

    @property
    def steps(self) -> int:
        """Block steps in all: the start and every outer iteration of every block."""
        return len(self.labels) * (self.config.admm.n_outer + 1)

    @property
    def blocks_at_once(self) -> int:
        """Blocks that go through the model together."""
        return max(1, self.config.per_device_batch_size // self.block_size)

    def run(self, target: ReleasedTarget, folder: RunFolder, stage: Stage) -> Made:
        """Solves all blocks."""
        made = Made([[] for _ in target.classes])
        first = 0
        while first < len(self.labels):
            wave = range(first, min(first + self.blocks_at_once, len(self.labels)))
            first += self._wave(target, wave, folder, stage, made)
        made.texts = [own[: self.config.texts_per_class] for own in made.texts]
        return made

    def sample_texts(self, count: int, *purpose: object) -> list[list[str]]:
        """Plain texts of the LM, `count` per class: no gradient has a part in them."""
        config, labels = self.config, sorted(set(self.labels))
        generator = make_generator(config.seed, *purpose)
        own = [label for label in labels for _ in range(count)]
        ids = write_texts(self.task, self.prompts, self.allowed_V, own, config.lengths, config.initial, generator)
        texts = [self.task.decode(row) for row in ids]
        return [texts[label * count : (label + 1) * count] for label in labels]

    def _wave(self, target: ReleasedTarget, wave: range, folder: RunFolder, stage: Stage, made: Made) -> int:
        """Solves some blocks together; returns how many: a checkpoint goes on with the blocks that it has."""
        name = f"admm-{wave.start:06d}"
        kept = folder.load_state(name)
        if kept is None:
            labels = [self.labels[k] for k in wave]
            x, lengths, codes = join([self._start(target, k) for k in wave])
            solver = Admm(self._problem(target, labels, lengths), self.config.admm)
            state, trace = solver.init(x, codes), list[dict[str, float]]()
        else:
            tensors, trace = {k: v.to(self.lm.device) for k, v in kept[0].items()}, kept[1]["trace"]
            lengths = tensors.pop("lengths").cpu()
            wave = range(wave.start, wave.start + len(lengths))
            labels = [self.labels[k] for k in wave]
            solver = Admm(self._problem(target, labels, lengths), self.config.admm)
            state = AdmmState(**tensors)
        stage.advance(len(wave) * (1 + int(state.outer)))
        while (stop := solver.stop(state)) is None:
            state = solver.step(state)
            trace.append(_figures(state, wave.start))
            folder.save_state(name, state.tensors() | {"lengths": lengths}, {"trace": trace})
            stage.advance(len(wave), text=trace[-1]["text"], best=trace[-1]["best"])
        stage.advance(len(wave) * (self.config.admm.n_outer - int(state.outer)))
        made.stops.append({"first_block": wave.start, "blocks": len(wave), **vars(stop)})
        made.trace += trace
        self._collect(state, lengths, labels, made)
        return len(wave)

    def _collect(self, state: AdmmState, lengths_KB: Tensor, labels: Sequence[int], made: Made) -> None:
        for block, lengths, label in zip(state.best_codes.tolist(), lengths_KB.tolist(), labels, strict=True):
            for row, length in zip(block, lengths, strict=True):
                text = self.task.decode(row[:length])
                made.texts[label].append(text)
                made.retokenised += self.task.text_ids(text) != row[:length]

    def _problem(self, target: ReleasedTarget, labels: Sequence[int], lengths_KB: Tensor) -> GradientMatching:
        config = self.config.distance
        return GradientMatching(self.lm, self.task, target, config, self.projector, labels, lengths_KB)

    def _start(self, target: ReleasedTarget, block: int) -> Start:
        """The best of several drawn blocks; depends on the block's number alone."""
        label, best, lowest = self.labels[block], None, float("inf")
        draws = self._draw(make_generator(self.config.seed, "initial", block), label)
        for first in range(0, len(draws), self.blocks_at_once):
            start = join(draws[first : first + self.blocks_at_once])
            problem = self._problem(target, [label] * len(start.x_KBTE), start.lengths_KB)
            with torch.no_grad():
                values_K = problem.objective(start.x_KBTE)
            if best is None or float(values_K.min()) < lowest:
                best, lowest = pick(start, int(values_K.argmin())), float(values_K.min())
        assert best is not None, "candidates >= 1"
        return best

    def _draw(self, generator: torch.Generator, label: int) -> list[Start]:
        initial, lengths = self.config.initial, self.config.lengths
        table_VE, size = self.lm.embeddings_VE, self.block_size
        if initial.source == "random":
            return [random_block(table_VE, size, lengths, initial, generator) for _ in range(initial.candidates)]
        labels = [label] * (size * initial.candidates)
        texts = write_texts(self.task, self.prompts, self.allowed_V, labels, lengths, initial, generator)
        return [as_block(table_VE, texts[i : i + size]) for i in range(0, len(texts), size)]


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
