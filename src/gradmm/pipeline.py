"""The page to read first: how a data set is made.

    load -> pool -> space -> target -> admm | form, write on, select and refine -> measure -> write

Only `_release`, `_aim` and `_references` see real rows; the solvers get a `ReleasedTarget`. With privacy it is the
release alone, with noise (`private_run`): every other look at the rows is refused or left out. A run that is
interrupted continues from its folder: each class's target and every outer iteration are checkpointed, and whatever
is drawn comes from a generator of its own, seeded by what it is for.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradmm import figures
from gradmm.blocks import BlockRunner, Made
from gradmm.config import GenerateConfig
from gradmm.data.checks import check_fits, match_labels
from gradmm.data.presets import get_task
from gradmm.data.sources import DataSource, LabelledData, load_data
from gradmm.data.task import BoundTask, Task
from gradmm.environment import describe_environment
from gradmm.forming import choose_form
from gradmm.found import Found, as_found
from gradmm.given import draw_rows, fingerprint_of, load_brought, load_domain, load_teacher, settings_of
from gradmm.gradients.denoising import denoised, drowned
from gradmm.gradients.exact_target import WINDOW, Unfinished, class_target
from gradmm.gradients.spaces import IDENTITY, Space
from gradmm.gradients.target import ClassTarget, ReleasedTarget
from gradmm.measures import Measured, measure, set_distance
from gradmm.memory import BatchLimit
from gradmm.models import LanguageModel, load_model
from gradmm.privacy.ledger import LEDGER
from gradmm.private_run import PrivateRelease, Public, check_complete, refuse
from gradmm.progress import Reporter, Stage, log, logging_to, unsaid
from gradmm.result import Result, make_dataset, read_result, write_result
from gradmm.rounds import WRITER, write_rounds
from gradmm.search import Search, Sources
from gradmm.shrinking import Shift, find_shift, shift_target
from gradmm.solvers.forms import Form
from gradmm.store import LOG, TEXT_FILES, Resume, RunFolder, as_json
from gradmm.yamlfiles import to_yaml

_COMPARED = 500  # real rows per class, at least, that words and lengths are held against


def generate(
    model: str | Path | LanguageModel,
    task: str | Task,
    data: DataSource,
    config: GenerateConfig = GenerateConfig(),
    output_dir: str | Path | None = None,
    reporter: Reporter | None = None,
    resume: Resume = "if_possible",
) -> Result:
    """Writes a synthetic data set whose gradients match those of real data.

    Args:
        model: a causal LM: Hub id, local folder, `demo`, or a loaded `LanguageModel`.
        task: a `Task`, or the name of a ready-made one.
        data: the real rows: Hub id, file, `demo`, `Dataset`, DataFrame, list, or `LabelledData`.
        config: how texts are made; a `RunConfig` is kept whole in the run folder, but its model, data and task
            are not read here.
        output_dir: the run folder; a run that was interrupted there is continued. None keeps nothing on disk.
        reporter: what shows progress; None logs it.
        resume: whether to go on with a run that is in `output_dir` already: `never` takes a new or empty folder
            alone, `always` the folder of a run alone.

    Raises:
        GradmmError: if model, task, data and config do not fit together, before any work is done; if the run
            folder is another run's, in use, damaged or cannot be written; if numbers stop being finite or a single
            text does not fit into memory. What was done by then is kept, and the same call goes on from there.
        PrivacyBudgetError: if a private run would spend more than its budget; nothing was drawn.
    """
    is_private = config.privacy is not None
    refuse(config, output_dir)
    lm = load_model(model)
    with unsaid(is_private):
        rows = load_data(data)
    bound = _bind(lm, task, rows, is_private)
    limit = BatchLimit(config.batch_size(lm.device))
    counts = config.count_texts(bound.task.label_names, None if is_private else rows.counts())
    runner = BlockRunner(lm, bound, config, counts, limit)
    brought, domain = load_brought(config, bound.task, rows), load_domain(lm, bound, config, rows)
    teacher = load_teacher(domain, config, rows)
    search = Search(runner, domain, teacher)  # refuses what it cannot work with, before there is a run folder
    fingerprint = fingerprint_of(lm, bound.task, rows, config, brought) | domain.fingerprint()
    with ExitStack() as stack:
        place = output_dir or stack.enter_context(tempfile.TemporaryDirectory())
        artefacts = (*TEXT_FILES, LEDGER) if is_private else TEXT_FILES
        folder = stack.enter_context(RunFolder(place, fingerprint, resume, artefacts))
        if folder.is_complete:
            check_complete(folder, config)
            log.info("%s is complete; nothing is left to do", folder.path)
            folder.finish()
            return read_result(folder)
        with logging_to(folder.path / LOG, times=not is_private):
            settings = settings_of(lm, bound.task, rows, config)
            folder.write_text("config.yaml", to_yaml(settings))
            folder.write_json("environment.json", describe_environment(lm.device))
            private = PrivateRelease(lm, bound, config, folder) if is_private else None
            told = reporter or Reporter()
            run = _Run(lm, bound, rows, brought, config, runner, search, limit, folder, told, private)
            result = run.go()
        folder.finish()
    return result if output_dir else Result(result.dataset, result.metrics, None)


@dataclass
class _Run:
    """What the stages share."""

    lm: LanguageModel
    task: BoundTask
    rows: LabelledData
    brought: dict[str, LabelledData]
    config: GenerateConfig
    runner: BlockRunner
    search: Search
    limit: BatchLimit
    folder: RunFolder
    reporter: Reporter
    private: PrivateRelease | None
    seconds: dict[str, float] = field(default_factory=dict)

    def go(self) -> Result:
        """All stages."""
        if self.private is not None:
            self.private.announce(self.reporter)
        lm_texts = self._write()
        target = self._release(self._space(lm_texts), lm_texts)
        shift = find_shift(self.search, target)
        aim = self._aim(target, shift, lm_texts)
        made = None if self.config.solver == "search" else self._admm(aim)
        if made is not None and self.config.solver == "admm":
            found = as_found(made)
        else:
            found = self._search(aim, lm_texts, made)
        texts = [[one.text for one in own] for own in found.texts]
        others = {True: 2, "lm": 1, False: 0}[self.config.references]
        with self._stage("measure", len(found.before) + 1 + others, "sets") as stage:
            own = self._measured(target, texts, stage)
            steps = {name: self._measured(target, before, stage) for name, before in found.before.items()}
            references = {
                name: (some, self._measured(target, some, stage)) for name, some in self._references().items()
            }
            drawn = self._figures(target, texts, own, references, found, made)
        metrics: dict[str, Any] = as_json(
            {
                "solver": self.config.solver,
                "synthetic": asdict(own.measures) | {"retokenised_differently": found.retokenised},
                "steps": {name: asdict(one.measures) for name, one in steps.items()},
                "references": {name: asdict(one.measures) for name, (_, one) in references.items()},
                "form": found.form,
                "shrinkage": self._shrinkage(shift, aim, own),
                "search": found.figures,
                "stops": made.stops if made else [],
                "seconds": self.seconds,
                "trace": made.trace if made else [],
                "figures": drawn,
                **({} if self.private is None else {"privacy": self.private.figures()}),
            }
        )
        names, distances = self.task.task.label_names, own.measures.class_distances
        dataset = make_dataset(names, found.texts, distances, own.log_perplexities)
        write_result(self.folder, dataset, metrics)
        if self.private is not None:
            self.private.settle()
        return Result(dataset, metrics, self.folder.path)

    def _write(self) -> list[list[str]]:
        """The LM's own texts: candidates, and public text that spaces are fitted on."""
        total = sum(self.search.lm_counts)
        if not total:
            return [[] for _ in self.runner.counts]
        with self._stage("pool", total, "LM texts") as stage:
            return self.search.write(self.folder, stage)

    def _space(self, lm_texts: list[list[str]]) -> Space:
        """Always as the run folder has it: tensors laid out in another way in memory round in another way."""
        if self.config.space.is_identity:
            return IDENTITY
        if self.folder.load_state("space") is None:
            self.folder.save_state("space", self.search.public.fit_space(lm_texts).tensors(), {})
        kept = self.folder.load_state("space")
        assert kept is not None, "it has just been written"
        return Space.from_tensors(_on(kept[0], self.lm.device))

    def _aim(self, target: ReleasedTarget, shift: Shift | None, lm_texts: list[list[str]]) -> ReleasedTarget:
        """What solvers follow: without noise as far as can be told; where rows are few, partly what the LM's own
        texts say.
        """
        for name in drowned(target, self.task.task.label_names):
            log.warning("class %s: nothing of its mean gradient stands out of the noise", name)
        if shift is None:
            return denoised(target)
        with self._stage("prior", 1, "targets") as stage:
            aim = shift_target(self.search, target, shift, lm_texts, self.folder)
            stage.advance()
        return aim

    def _shrinkage(self, shift: Shift | None, aim: ReleasedTarget, own: Measured) -> dict[str, Any] | None:
        """What is said of a target that is not the rows' alone: the set's distance from it, too."""
        if shift is None:
            return None
        about = own.gradients, aim, self.runner.counts, self.lm.head.bias_V is not None
        return asdict(shift) | {"distance": set_distance(self.config.distance, *about)}

    def _admm(self, target: ReleasedTarget) -> Made:
        with self._stage("admm", self.runner.steps, "block steps") as stage:
            return self.runner.run(target, self.folder, stage)

    def _search(self, target: ReleasedTarget, lm_texts: list[list[str]], made: Made | None) -> Found:
        """ADMM's texts come first: of two that are alike, the first is kept."""
        sources = [("admm", made.texts)] if made else []
        labels = range(len(self.runner.counts))
        sources += [(name, [own.texts_of(label) for label in labels]) for name, own in self.brought.items()]
        with self._stage("form", len(self.config.pool.forms), "forms") as stage:
            chosen = choose_form(self.search, target, lm_texts, self.folder, stage)
        sources.append((WRITER, self._more(target, lm_texts, sources, chosen.form)))
        with self._stage("search", sum(self.runner.counts), "texts") as stage:
            pools = self.search.pool(lm_texts, sources, chosen.form)
            found = self.search.run(target, pools, chosen.form, self.folder, stage)
        before = ({"admm": made.texts} if made else {}) | self._formed(chosen.form, lm_texts) | found.before
        return replace(found, before=before, form=asdict(chosen))

    def _formed(self, form: Form, lm_texts: list[list[str]]) -> dict[str, list[list[str]]]:
        """As many of the LM's texts as are asked for, in their form, to show what that alone is worth."""
        if form == Form():
            return {}
        formed = []
        for own, count in zip(lm_texts, self.runner.counts, strict=True):
            fitted = (self.search.fitted(text, form) for text in own)
            formed.append(list(islice((text for text in fitted if text is not None), count)))
        return {"formed": formed}

    def _more(
        self, target: ReleasedTarget, lm_texts: list[list[str]], sources: Sources, form: Form
    ) -> list[list[str]]:
        """What the writer adds to the pool, tuned round by round on what was chosen."""
        total = sum(self.search.round_counts) * (self.config.writer.rounds - 1)
        if not total:
            return [[] for _ in lm_texts]
        with self._stage("writer", total, "texts") as stage:
            return write_rounds(self.search, target, lm_texts, sources, form, self.folder, stage)

    def _release(self, space: Space, lm_texts: list[list[str]]) -> ReleasedTarget:
        """The mean gradients of the real rows, each computed once per run and read from the run folder."""
        if self.private is not None:
            public = self.search.public
            look = Public(partial(public.factors, lm_texts, space), partial(public.ids, lm_texts))
            return self._centred(self.private.release(self.rows, space, look, self.reporter))
        targets = [self._released(label) for label in range(self.rows.num_classes)]
        if None in targets:
            with self._stage("target", len(self.rows), "rows") as stage:
                for label, count in enumerate(self.rows.counts()):
                    if targets[label] is None:
                        self._release_class(label, space, stage)
                        targets[label] = self._released(label)
                    else:
                        stage.advance(count)
        return self._centred(ReleasedTarget(tuple(target for target in targets if target is not None), space))

    def _centred(self, target: ReleasedTarget) -> ReleasedTarget:
        return target.centred() if self.config.space.centred else target

    def _released(self, label: int) -> ClassTarget | None:
        kept = self.folder.load_state(_target_name(label))
        return None if kept is None else ClassTarget.from_tensors(_on(kept[0], self.lm.device))

    def _release_class(self, label: int, space: Space, stage: Stage) -> None:
        batches = self.rows.iter_batches(label, WINDOW * self.config.batch_size(self.lm.device))
        unfinished = Unfinished(self.folder, f"unfinished-{_target_name(label)}")
        about = (self.lm, self.task, label, batches, self.limit, stage.advance, space)
        target = class_target(*about, with_unigrams=self.config.tilts, unfinished=unfinished)
        self.folder.save_state(_target_name(label), target.tensors(), {})

    def _references(self) -> dict[str, list[list[str]]]:
        """As many real rows, drawn at random, and as many texts that the LM writes unguided."""
        found = {}
        if self.config.references is True:
            found["real"] = self._real(self.runner.counts)
        if self.config.references:
            found["lm"] = self.runner.sample_texts("lm reference")
        return found

    def _real(self, counts: Sequence[int]) -> list[list[str]]:
        assert self.private is None, "refused"
        return draw_rows(self.rows, counts, self.config.seed)

    def _figures(
        self,
        target: ReleasedTarget,
        texts: list[list[str]],
        own: Measured,
        references: dict[str, tuple[list[list[str]], Measured]],
        found: Found,
        made: Made | None,
    ) -> dict[str, Any]:
        """What a report draws."""
        sets = {"target": target, "synthetic set": own.gradients}
        tokens = {"synthetic": own.tokens} | {name: one.tokens for name, (_, one) in references.items()}
        compared = {name: some for name, (some, _) in references.items()}
        if "real" in compared:  # so few rows as there are texts would say little of the words of all
            compared["real"] = self._real([max(_COMPARED, count) for count in self.runner.counts])
            tokens["real"] = [len(ids) for some in compared["real"] for ids in self.task.texts_ids(some)]
        drawn: dict[str, Any] = {
            "map": figures.gradient_map(
                sets | {f"{name} set": one.gradients for name, (_, one) in references.items()}, self.search.bias
            ),
            "history": figures.history(made.trace if made else [], found.history),
            "lengths": figures.lengths(tokens),
        }
        if compared:
            name = next(iter(compared))  # real rows where they may be looked at
            drawn["words"] = figures.words(texts, compared[name], name)
        if self.config.nearest_rows:
            batches = [self.rows.iter_batches(label, _COMPARED) for label in range(self.rows.num_classes)]
            drawn["nearest"] = figures.nearest_rows(texts, batches)
        return drawn

    def _measured(self, target: ReleasedTarget, texts: list[list[str]], stage: Stage) -> Measured:
        found = measure(self.lm, self.task, target, self.config.distance, texts, self.limit)
        stage.advance()
        return found

    @contextmanager
    def _stage(self, name: str, total: float, unit: str) -> Iterator[Stage]:
        began = time.monotonic()
        with self.reporter.stage(name, total, unit) as stage:
            yield stage
        self.seconds[name] = round(time.monotonic() - began, 2)


def _bind(lm: LanguageModel, task: str | Task, rows: LabelledData, is_private: bool) -> BoundTask:
    """The task in the model's tokens, in which every row fits; a private run cuts those that do not."""
    bound = BoundTask(match_labels(get_task(task), rows), lm.tokenizer, lm.max_length)
    if not is_private:
        check_fits(bound, rows)
    return bound


def _target_name(label: int) -> str:
    return f"target-{label:06d}"


def _on(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in tensors.items()}
