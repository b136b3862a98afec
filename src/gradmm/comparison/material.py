"""What the methods of a comparison work on: real rows, their target, and what the language model writes.

One `Material` per data seed. Everything is computed when a method first asks for it, and shared by all: methods
differ in what they do with the same rows and the same texts, not in luck.

Shape suffixes: N candidates, D features.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from gradmm.blocks import BlockRunner
from gradmm.checkpoints import Checkpoints, Within
from gradmm.comparison.coresets import features
from gradmm.config import GenerateConfig
from gradmm.data.rows import LabelledData
from gradmm.data.task import BoundTask
from gradmm.decoding import PromptCache
from gradmm.domain import Domain
from gradmm.forming import choose_form
from gradmm.found import Seen, split
from gradmm.given import draw_rows
from gradmm.gradients.exact_target import WINDOW, Unfinished, class_target
from gradmm.gradients.spaces import IDENTITY, Space
from gradmm.gradients.target import ClassTarget, ReleasedTarget
from gradmm.memory import BatchLimit
from gradmm.models import LanguageModel
from gradmm.progress import Shown, Stage
from gradmm.rounds import WRITER, write_rounds
from gradmm.search import Search
from gradmm.seeds import make_generator
from gradmm.shrinking import find_shift, shift_target
from gradmm.solvers.forms import Form
from gradmm.solvers.pool import Candidate
from gradmm.teaching import Teacher

Need = Literal[
    "lm_texts",
    "pools",
    "space",
    "target",
    "aim",
    "scores",
    "lm_more",
    "taught",
    "real_texts",
    "features",
    "grown",
    "seen_grown",
    "seen_real",
]
"""What methods may share, in an order in which each builds on those before it."""


class Silent:
    """A stage that nobody watches."""

    def advance(self, done: float = 1, shown: Shown | None = None, **figures: float) -> None:
        """Tells nobody."""


@dataclass
class Material:
    """Rows, target, texts and features of one data seed."""

    lm: LanguageModel
    task: BoundTask
    rows: LabelledData
    """All real rows that there are."""
    config: GenerateConfig
    seed: int
    folder: Checkpoints
    """Its own part of the run folder."""
    budget: int
    """The most texts per class that a method will be asked for; the pool has candidates for so many."""
    domain: Domain | None = None
    """Who writes first; None takes the LM as it is."""
    stage: Stage = field(default_factory=Silent)
    max_real: int = 2000
    """Real rows per class that coresets choose from, drawn at random where there are more."""
    seconds: dict[str, float] = field(default_factory=dict)
    """What each shared part took to compute."""
    _seen: dict[str, list[Seen]] = field(default_factory=dict)
    _pools: dict[str, list[list[Candidate]]] = field(default_factory=dict)
    _forms: dict[str, Form] = field(default_factory=dict)
    _scores: dict[str, list[Tensor]] = field(default_factory=dict)

    def prepare(self, needs: Sequence[Need]) -> float:
        """Computes what a method needs of what is shared; returns the seconds that it took, now or before."""
        for need in needs:
            if need not in self.seconds:
                began = time.monotonic()
                getattr(self, need)
                self.seconds[need] = time.monotonic() - began
        return sum(self.seconds[need] for need in needs)

    @cached_property
    def limit(self) -> BatchLimit:
        """Texts that go through the model at once."""
        return BatchLimit(self.config.batch_size(self.lm.device))

    def search(self, count: int, **settings: Any) -> Search:
        """The search for `count` texts per class, with this seed."""
        update = {"texts_per_class": count, "seed": self.seed, "solver": "search"}
        config = self.config.model_copy(update=update | {"class_balance": "equal"} | settings)
        runner = BlockRunner(self.lm, self.task, config, limit=self.limit, prompts=self._prompts)
        return Search(runner, self.domain, self.teacher)

    @cached_property
    def _prompts(self) -> PromptCache:
        """The class prompts, read once for all searches."""
        return PromptCache(self.lm, self.task.instruction_ids, self.limit)

    @cached_property
    def teacher(self) -> Teacher:
        """Of who says what class a text is of, for all searches."""
        config = self.config.model_copy(update={"seed": self.seed})
        return Teacher(self.domain or Domain(self.lm, self.task, config), config, self.draw_rows)

    @cached_property
    def lm_texts(self) -> list[list[str]]:
        """What the LM writes after each class's instruction."""
        return self.search(self.budget).write(self.folder, self.stage)

    @cached_property
    def space(self) -> Space:
        """Where gradients are matched, fitted on the LM's texts."""
        if self.config.space.is_identity:
            return IDENTITY
        if self.folder.load_state("space") is None:
            self.folder.save_state("space", self.search(self.budget).public.fit_space(self.lm_texts).tensors(), {})
        return Space.from_tensors(self._loaded("space"))

    @cached_property
    def target(self) -> ReleasedTarget:
        """Mean gradients of the real rows."""
        return self.labelled_as(0)

    @cached_property
    def aim(self) -> ReleasedTarget:
        """What ours follow: the real rows' target; where they are few, between it and what the LM's texts say."""
        search = self.search(self.budget)
        shift = find_shift(search, self.target)
        if shift is None:
            return self.target
        return shift_target(search, self.target, shift, self.lm_texts, self.folder)

    def labelled_as(self, shift: int) -> ReleasedTarget:
        """Mean gradients of the real rows as if each were of a later class by so many; by none, of their own."""
        classes, name = [], "target" if not shift else f"target-as-{shift}"
        for label in range(self.rows.num_classes):
            state = f"{name}-{label:06d}"
            if self.folder.load_state(state) is None:
                source = (label - shift) % self.rows.num_classes
                batches = self.rows.iter_batches(source, WINDOW * self.config.batch_size(self.lm.device))
                own = class_target(
                    self.lm,
                    self.task,
                    label,
                    batches,
                    self.limit,
                    space=self.space,
                    with_unigrams=self.config.tilts,
                    unfinished=Unfinished(self.folder, f"unfinished-{state}"),
                )
                self.folder.save_state(state, own.tensors(), {})
            classes.append(ClassTarget.from_tensors(self._loaded(state)))
        target = ReleasedTarget(tuple(classes), self.space)
        return target.centred() if self.config.space.centred else target

    @cached_property
    def real_texts(self) -> list[list[str]]:
        """Real rows to choose from, per class."""
        return self.draw_rows([self.max_real] * self.rows.num_classes)

    def draw_rows(self, counts: Sequence[int]) -> list[list[str]]:
        """So many real rows of every class, at random; all of a class that has fewer."""
        return draw_rows(self.rows, counts, self.seed)

    @cached_property
    def pools(self) -> list[list[Candidate]]:
        """The LM's texts, cleaned, each said once."""
        return self.search(self.budget).pool(self.lm_texts, [])

    @cached_property
    def scores(self) -> list[Tensor]:
        """Calibrated probability of their label, of each of `pools`."""
        return self.search(self.budget).labels.own(self.pools)

    @cached_property
    def lm_more(self) -> tuple[list[list[Candidate]], list[Tensor]]:
        """As many of the LM's texts as ours are chosen from in all rounds, and the probability of their label."""
        search, rounds = self.search(self.budget), self.config.writer.rounds
        if rounds == 1:
            return self.pools, self.scores
        more = [
            search.write_class(
                lambda: search.first_prompts, c, n * (rounds - 1), ("more",), self.folder, self.stage
            )
            for c, n in enumerate(search.round_counts)
        ]
        pools = search.pool([[*first, *later] for first, later in zip(self.lm_texts, more, strict=True)], [])
        return pools, search.labels.own(pools)

    @cached_property
    def taught(self) -> list[list[Candidate]]:
        """Of as many of the LM's texts, those that carry their label for who has learnt it from rows."""
        labels = self.search(self.budget).labels
        return [own.pool for own in labels.surviving(labels.checked(self.lm_more[0]))]

    @cached_property
    def grown(self) -> list[list[Candidate]]:
        """`pools`, and what the writer wrote towards what ours follow."""
        return self.grow("grown", self.aim)

    def grow(self, kind: str, target: ReleasedTarget) -> list[list[Candidate]]:
        """`pools`, and what the writer wrote towards a target; from now on `kind` of `seen` and `select`."""
        if kind not in self._pools:
            search, folder = self.search(self.budget), Within(self.folder, kind)
            form = choose_form(search, target, self.lm_texts, folder, self.stage).form
            written = write_rounds(search, target, self.lm_texts, [], form, folder, self.stage)
            pools = search.pool(self.lm_texts, [(WRITER, written)], form)
            checked = search.checked(target, pools)
            self._pools[kind], self._forms[kind] = [own.pool for own in checked], form
            self._scores[kind] = [own.score_N for own in checked]
        return self._pools[kind]

    def seen(self, kind: str, target: ReleasedTarget) -> list[Seen]:
        """What selection needs to know of candidates, those of `grow` or real rows (`real`), group by group."""
        if kind not in self._seen:
            if kind == "real":
                pools = [[Candidate(text, kind) for text in own] for own in self.real_texts]
                scores = [torch.ones(len(own)) for own in pools]
            else:
                pools = self.grown if kind == "grown" else self._pools[kind]
                scores = self._scores[kind]
            search = self.search(self.budget)
            self._seen[kind] = [
                search.look_at(group, [pools[c] for c in group], [scores[c] for c in group], target.space)
                for group in search.groups
            ]
        return self._seen[kind]

    @cached_property
    def seen_grown(self) -> list[Seen]:
        """`seen` of the pool that grew towards what ours follow."""
        return self.seen("grown", self.aim)

    @cached_property
    def seen_real(self) -> list[Seen]:
        """`seen` of real rows."""
        return self.seen("real", self.target)

    def select(self, kind: str, target: ReleasedTarget, count: int) -> list[list[str]]:
        """The set per class that is nearest to a target, of one kind of candidates (all if few)."""
        search, found = self.search(count), []
        for seen in self.seen(kind, target):
            there = torch.bincount(seen.of_N, minlength=len(seen.classes)).tolist()
            chosen = search.select(seen, target, [min(count, own) for own in there])
            found += [[seen.pool[i].text for i in own] for own in seen.by_class(chosen.indices)]
        return found

    def refine(
        self, target: ReleasedTarget, texts: Sequence[Sequence[str]], name: str, kind: str = "grown"
    ) -> list[list[str]]:
        """Sets of one kind of candidates with tokens changed for a target; `name` keeps it apart from others."""
        search, folder = self.search(len(texts[0])), Within(self.folder, name)
        found, form = [], self._forms[kind]
        for seen in self.seen(kind, target):
            own = [texts[label] for label in seen.classes]
            counts = [len(some) for some in own]
            state = search.refine(target, seen.classes, own, seen.free(counts), form, folder, self.stage)
            found += split(state.texts, counts)
        return found

    @cached_property
    def features(self) -> list[Tensor]:
        """Last hidden states of `real_texts` (N, D), for every class."""
        return [features(self.lm, self.task, c, texts, self.limit) for c, texts in enumerate(self.real_texts)]

    def generator(self, *purpose: object) -> torch.Generator:
        """A random generator of this data seed."""
        return make_generator(self.seed, *purpose)

    def with_target(self, classes: Sequence[ClassTarget]) -> ReleasedTarget:
        """Another target in the same space."""
        return ReleasedTarget(tuple(classes), self.target.space)

    def _loaded(self, name: str) -> dict[str, Tensor]:
        kept = self.folder.load_state(name)
        assert kept is not None, "it has just been written"
        return {key: value.to(self.lm.device) for key, value in kept[0].items()}
