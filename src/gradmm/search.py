"""Search: of candidates from several sources, the set is selected and refined whose mean gradient is nearest.

    pool -> label check -> select -> refine          a checkpoint for all classes, or one for each

Classes are matched together or apart, as `distance.classes` says: what follows is written for a group of classes,
which is all of them or one.

The LM's own texts also serve as the public text that spaces are fitted on. Whatever is drawn comes from a
generator of its own, so that a search that is interrupted goes on to the same end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor

from gradmm.blocks import BlockRunner
from gradmm.checkpoints import Checkpoints
from gradmm.decoding import PromptCache
from gradmm.domain import Domain
from gradmm.errors import ConfigError, DataError
from gradmm.found import Found, Seen, Written, split
from gradmm.gradients.distances import FORMULAS, components, matched_together
from gradmm.gradients.spaces import Space
from gradmm.gradients.target import ReleasedTarget
from gradmm.label_check import LabelCheck
from gradmm.progress import Stage
from gradmm.public_text import PublicText
from gradmm.seeds import make_generator
from gradmm.solvers.forms import Form
from gradmm.solvers.initial import write_texts
from gradmm.solvers.judging import Judge
from gradmm.solvers.kernels import FactorKernel, SimilarityKernel
from gradmm.solvers.pool import Candidate, Pool, fit, most_repeats
from gradmm.solvers.refinement import FRESH, RefinementState, Refiner
from gradmm.solvers.relabelling import Checked
from gradmm.solvers.selection import Candidates, Selected, fit_weights, select
from gradmm.teaching import Teacher
from gradmm.training.trainable import require_trainable

_CHUNK = 256  # LM texts that are drawn, and kept in the run folder, together
Sources = Sequence[tuple[str, Sequence[Sequence[str]]]]
"""Candidates beside the LM's: name and texts per class of each source."""


class Search:
    """Selects and refines the texts of a run.

    Args:
        runner: the run's model, task, settings, prompts and bans.
        domain: who writes first; None takes the LM as it is.
        teacher: of who says what class a text is of; None takes the LM as it is.
    """

    def __init__(self, runner: BlockRunner, domain: Domain | None = None, teacher: Teacher | None = None) -> None:
        config = runner.config
        if config.solver != "admm" and config.distance.name not in FORMULAS:
            raise ConfigError(
                f"distance.name {config.distance.name!r} needs whole matrices, so no search is possible with it; "
                f"choose one of {sorted(FORMULAS)}, or solver=admm"
            )
        taught = teacher is not None and config.label_check.knows_rows
        learns = config.writer.rounds > 1 or taught
        if (learns and config.solver != "admm") or config.writer.files:  # said before the first round, not after
            require_trainable(runner.lm, config.writer.lora, "writer.lora")
        self.domain = domain or Domain(runner.lm, runner.task, config)
        self.runner, self.config, self.lm, self.task = runner, config, runner.lm, runner.task
        self.bias = config.distance.bias if self.lm.head.bias_V is not None else "ignore"
        self.groups = matched_together(config.distance, len(runner.counts))
        self.public = PublicText(runner)
        self.labels = LabelCheck(runner, teacher)

    # ---- what the LM writes

    @property
    def lm_counts(self) -> list[int]:
        """Texts that the LM writes for every class, as it is."""
        public = self.public.count if self.config.needs_public else 0
        return [max(public, count) for count in self.round_counts]

    @property
    def round_counts(self) -> list[int]:
        """Texts that are written for every class in each round: an equal share of the pool."""
        wanted = [0 if self.config.solver == "admm" else n for n in self.runner.counts]
        return [-(-n * self.config.pool.texts_per_text // self.config.writer.rounds) for n in wanted]

    @cached_property
    def first_prompts(self) -> PromptCache:
        """The class prompts, as who writes first has read them."""
        runner, writer = self.runner, self.domain.writer
        return (
            runner.prompts if writer is self.lm else PromptCache(writer, self.task.instruction_ids, runner.limit)
        )

    def write(self, folder: Checkpoints, stage: Stage) -> list[list[str]]:
        """The first texts per class, chunk by chunk."""
        return [
            self.write_class(lambda: self.first_prompts, label, count, ("pool",), folder, stage)
            for label, count in enumerate(self.lm_counts)
        ]

    def write_class(
        self,
        prompts: Callable[[], PromptCache],
        label: int,
        count: int,
        purpose: tuple[str | int, ...],
        folder: Checkpoints,
        stage: Stage,
        bias_V: Tensor | None = None,
    ) -> list[str]:
        """Texts for one class, chunk by chunk, each kept in the run folder.

        Args:
            prompts: who writes; asked only where a chunk is missing.
            label: the class.
            count: how many texts.
            purpose: names the chunks and seeds what is drawn.
            folder: keeps the chunks.
            stage: is told of every text.
            bias_V: is added to the writer's logits.
        """
        found: list[str] = []
        for at in range(0, count, _CHUNK):
            size, lengths, initial = min(_CHUNK, count - at), self.config.lengths, self.config.initial
            name = "-".join([str(purpose[0]), *(f"{number:06d}" for number in (*purpose[1:], label, at))])
            kept = folder.load_state(name)
            if kept is None:
                generator = make_generator(self.config.seed, *purpose, label, at)
                writer, allowed_V, labels = prompts(), self.runner.allowed_V, [label] * size
                about = (self.task, writer, allowed_V, labels, lengths, initial, generator)
                ids = write_texts(*about, bias_V=bias_V, fewer=True)
                kept = {}, {"texts": [self.task.decode(row) for row in ids]}
                folder.save_state(name, *kept)
            found += kept[1]["texts"]
            stage.advance(size, partial(str, found[-1]))
        return found

    # ---- the pool

    def pool(
        self,
        lm_texts: Sequence[Sequence[str]],
        sources: Sources,
        form: Form = Form(),
        fewest: int | None = None,
    ) -> list[list[Candidate]]:
        """Candidates per class: of each source in turn, then of the LM.

        Args:
            lm_texts: per class, what the LM wrote.
            sources: other candidates.
            form: what all of them take.
            fewest: candidates that a class must have; None means as many as texts are asked for.

        Raises:
            DataError: if a class has fewer.
        """
        found = []
        for label, (count, name) in enumerate(zip(self.runner.counts, self.task.task.label_names, strict=True)):
            pool = Pool(self.config.pool.near_duplicate)
            for source, texts in [*sources, ("lm", lm_texts)]:
                formed = ((self.fitted(text, form), text) for text in texts[label])
                pool.add_formed(((text, written) for text, written in formed if text is not None), source)
            if len(pool.candidates) < (count if fewest is None else fewest):
                raise DataError(
                    f"class {name!r} has {len(pool.candidates)} different candidates for {count} texts; raise "
                    "pool.texts_per_text or initial.temperature, loosen bans, or bring texts with pool.files"
                )
            found.append(sorted(pool.candidates, key=lambda candidate: candidate.text))
        return found

    def fitted(self, text: str, form: Form) -> str | None:
        """The text in a form, as a candidate; None if it cannot be one."""
        kept = fit(self.task, text, self.runner.allowed_V, self.config.lengths.max_tokens)
        most = self.config.pool.max_repeats
        if kept is not None and most is not None and most_repeats(kept) > most:
            return None
        formed = "" if kept is None else form(kept)
        # Once more where the form changed it: it may have more tokens now, and end in a full stop where it is cut.
        return kept if kept is None or formed == kept else self.fitted(formed, form)

    def checked(self, target: ReleasedTarget, pools: Sequence[Sequence[Candidate]]) -> list[Checked]:
        """The candidates that the set is chosen from: those that carry their label, after the label check."""
        labels = self.labels.by(target)
        return labels.surviving(labels.checked(pools))

    # ---- the set

    def run(
        self,
        target: ReleasedTarget,
        pools: Sequence[Sequence[Candidate]],
        form: Form,
        folder: Checkpoints,
        stage: Stage,
    ) -> Found:
        """Selects and refines every class's set, whose texts keep their form."""
        made, checked = list[dict[str, Any]](), list[Checked]()
        for group in self.groups:
            name = f"set-{group[0]:06d}"
            kept = folder.load_state(name)
            if kept is None:
                checked = checked or self.checked(target, pools)
                kept = {}, self._make(target, group, [checked[label] for label in group], form, folder, stage)
                folder.save_state(name, *kept)
            stage.advance(sum(self.runner.counts[label] for label in group))
            made.append(kept[1])
        texts = [[Written(**one) for one in own] for group in made for own in group["texts"]]
        selected = [own for group in made for own in group["figures"]["selected_texts"]]
        before = {"selected": selected} if self.config.refinement.evaluations else {}
        return Found(texts, before, [own["figures"] for own in made], [own["history"] for own in made])

    def _make(
        self,
        target: ReleasedTarget,
        group: Sequence[int],
        checked: Sequence[Checked],
        form: Form,
        folder: Checkpoints,
        stage: Stage,
    ) -> dict[str, Any]:
        """A group: selection and refinement of what survived; what the run folder keeps of it."""
        counts, settings = [self.runner.counts[label] for label in group], self.config.selection
        pools, scores = [own.pool for own in checked], [own.score_N for own in checked]
        seen = self.look_at(group, pools, scores, target.space)
        chosen = self.select(seen, target, counts)
        members = seen.by_class(chosen.indices)
        selected = [[seen.pool[i].text for i in own] for own in members]
        state = self.refine(target, group, selected, seen.free(counts), form, folder, stage)
        refined = split(state.texts, counts)
        weights = self._weights(target, group, refined) if settings.weights else [1.0] * sum(counts)
        order = [i for own in members for i in own]
        texts = [
            Written(
                text,
                seen.pool[i].source + ("+refined" if text != seen.pool[i].text else ""),
                float(seen.score_N[i]) if text == seen.pool[i].text else None,
                weight,
            )
            for i, text, weight in zip(order, state.texts, weights, strict=True)
        ]
        figures = {
            "classes": list(group),
            "relabelled_in": [own.relabelled_in for own in checked],
            "relabelled_out": [own.relabelled_out for own in checked],
            "candidates": [len(own) for own in pools],
            "carry_their_label": [int((own_N > 1 / len(self.runner.counts)).sum()) for own_N in scores],
            "objective_greedy": chosen.trace[0],
            "objective_selected": chosen.objective,
            "exchanges": len(chosen.trace) - 1,
            "objective_before_refinement": state.start,
            "objective_refined": state.objective,
            "evaluations": state.evaluations,
            "changes": state.accepted,
            "selected_texts": selected,
        }
        history = {"classes": list(group), "exchanges": chosen.trace, "refinement": state.trace}
        return {"texts": split([asdict(text) for text in texts], counts), "figures": figures, "history": history}

    def look_at(
        self,
        group: Sequence[int],
        pools: Sequence[Sequence[Candidate]],
        scores: Sequence[Tensor],
        space: Space,
    ) -> Seen:
        """Computes what selection needs to know of candidates of some classes, whatever the target."""
        pool = [candidate for own in pools for candidate in own]
        of_N = torch.tensor([at for at, own in enumerate(pools) for _ in own])
        texts = [candidate.text for candidate in pool]
        reads = bool(self.config.selection.nll_weight or self.config.refinement.nll_weight)
        kernel, nll_N = self.kernel([group[at] for at in of_N.tolist()], texts, space, reads)
        free = []
        for own, own_N in zip(pools, torch.split(nll_N, [len(own) for own in pools]), strict=True):
            samples = [i for i, candidate in enumerate(own) if candidate.source == "lm"]
            free.append(float((own_N[samples] if samples else own_N).mean()))
        return Seen(tuple(group), pool, of_N, torch.cat(list(scores)), nll_N, kernel, tuple(free))

    def kernel(
        self, labels: Sequence[int], texts: Sequence[str], space: Space, reads: bool = False
    ) -> tuple[FactorKernel, Tensor]:
        """Inner products of the gradients of texts of these classes, in a space, and log-perplexities (N).

        Args:
            labels: class of each text.
            texts: the texts.
            space: where.
            reads: whether log-perplexities are wanted; zeros otherwise.
        """
        labelled = list(zip(labels, self.task.texts_ids(list(texts)), strict=True))
        look = Judge(self.lm, self.task, space, self.runner.limit, reads)
        return look.kernel(labelled, self.bias, "computing the candidates' gradients")

    def select(self, seen: Seen, target: ReleasedTarget, counts: Sequence[int]) -> Selected:
        """The set, of so many candidates of every class, that is best for a target in the candidates' space."""
        formula = FORMULAS[self.config.distance.name]
        return select(self._candidates(seen, target, counts), counts, formula, self.config.selection.exchange)

    def _candidates(self, seen: Seen, target: ReleasedTarget, counts: Sequence[int]) -> Candidates:
        settings, own = self.config.selection, target.together(seen.classes, counts)
        log_score_N = seen.score_N.double().clamp_min(1e-12).log()
        texts = [candidate.text for candidate in seen.pool]
        return Candidates(
            seen.kernel,
            seen.kernel.align(own),
            components(own.square_norm(), self.bias).cpu().double()[:, 0],
            -settings.label_weight * log_score_N,
            seen.of_N,
            SimilarityKernel(texts, settings.diversity_weight) if settings.diversity_weight else None,
            settings.nll_weight * seen.nll_N if settings.nll_weight else None,
            settings.nll_weight * seen.free(counts),
        )

    def refine(
        self,
        target: ReleasedTarget,
        group: Sequence[int],
        texts: Sequence[Sequence[str]],
        nll_free: float,
        form: Form,
        folder: Checkpoints,
        stage: Stage,
    ) -> RefinementState:
        """Changes tokens of a group's texts, given per class, for a target; goes on from a checkpoint."""
        config, runner, labels = self.config, self.runner, self.labels.by(target)
        counts = [len(own) for own in texts]
        refiner = Refiner(
            self.lm,
            self.task,
            [label for label, count in zip(group, counts, strict=True) for _ in range(count)],
            target.together(group, counts),
            target.space,
            config.distance,
            runner.allowed_V,
            config.refinement,
            runner.limit,
            lambda *purpose: make_generator(config.seed, "refine", group[0], *purpose),
            nll_free,
            form,
            config.pool.max_repeats,
            labels.carries if labels.knows_classes else None,
        )
        name = f"refined-{group[0]:06d}"
        kept = folder.load_state(name)
        given = [text for own in texts for text in own]
        state = refiner.init(given) if kept is None else RefinementState(**kept[1])

        def told(state: RefinementState) -> None:
            if state.step % FRESH == 0:
                folder.save_state(name, {}, asdict(state))
            stage.advance(0, lambda: state.texts[state.accepted % len(state.texts)], objective=state.objective)

        return refiner.run(state, told)

    def _weights(
        self, target: ReleasedTarget, group: Sequence[int], texts: Sequence[Sequence[str]]
    ) -> list[float]:
        pools = [[Candidate(text, "") for text in own] for own in texts]
        seen = self.look_at(group, pools, [torch.ones(len(own)) for own in texts], target.space)
        candidates = self._candidates(seen, target, [len(own) for own in texts])
        named = self.config.distance.name
        name: Literal["cosine", "relative_l2"] = "relative_l2" if named == "relative_l2" else "cosine"
        weights: list[float] = fit_weights(candidates, range(len(seen.pool)), name).tolist()
        return weights
