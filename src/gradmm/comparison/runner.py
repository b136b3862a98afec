"""The comparison: methods x budgets x seeds, each set of texts trained on and evaluated.

    for every data seed:  material -> texts of every method and budget -> trainings -> evaluations

Learning rates are chosen on the development split, on the first `tuning_seeds` data seeds; the number of steps is
that of the best evaluation on the development split. The test split is looked at once for every training and
chooses nothing. Texts and trainings are checkpoints: a comparison that is killed goes on from the last one.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gradmm.checkpoints import Checkpoints, Within
from gradmm.comparison.config import CompareConfig
from gradmm.comparison.guarantee import PathPoint, follow
from gradmm.comparison.material import Material
from gradmm.comparison.methods import OURS, Method, TextSet, get_method
from gradmm.comparison.sets import Key
from gradmm.data.rows import LabelledData
from gradmm.data.task import BoundTask
from gradmm.domain import Domain
from gradmm.measures import measure
from gradmm.memory import BatchLimit
from gradmm.models import LanguageModel
from gradmm.progress import Stage
from gradmm.resources import peak_memory
from gradmm.training.evaluate import evaluate
from gradmm.training.finetune import FineTuner
from gradmm.training.rows import TokenRows, tokenise, tokenise_data

Record = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A set of texts that is made: one method, budget and data seed."""

    method: Method
    budget: int
    seed: int

    @property
    def key(self) -> Key:
        """What it is known by in records."""
        return self.method.name, self.budget, self.seed

    @property
    def name(self) -> str:
        """Of its checkpoints."""
        name = self.method.name
        if not name.isidentifier():  # a path
            name = "file-" + hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        return f"{name}-{self.budget}"


@dataclass
class Arena:
    """What all cells share."""

    config: CompareConfig
    lm: LanguageModel
    """Writes."""
    task: BoundTask
    student: LanguageModel
    """Is trained."""
    student_task: BoundTask
    rows: LabelledData
    dev: TokenRows
    """In the student's tokens."""
    test: TokenRows
    folder: Checkpoints
    domain: Domain | None = None
    """Who writes first; None takes the LM as it is. One for all data seeds: what it reads is the same."""
    given: Mapping[Key, Record] = field(default_factory=dict)
    """What another comparison knows of its sets, the texts of some among it: they are not made again."""

    def run(self, stage: Stage) -> list[Record]:
        """All records, one for every training that counts: with the learning rate that was chosen."""
        records: list[Record] = []
        rates: dict[tuple[str, int], float] = {}
        for tuning in (True, False):
            for seed in range(self.config.seeds):
                if (seed < self.config.tuning_seeds) == tuning:
                    records += self._run_seed(seed, rates, stage)
            if tuning:
                rates |= choose_rates(records)
        return [one for one in records if one["learning_rate"] == rates[one["method"], one["budget"]]]

    def follow(self, records: list[Record]) -> list[PathPoint]:
        """Gradients on our texts and on real rows, at quarters of the training on the former.

        At the learning rate that was chosen for our texts; if they were not compared, at the first one.
        """
        kept = self.folder.load_state("path")
        if kept is not None:
            return [PathPoint(**point) for point in kept[1]["points"]]
        material = self._material(0)
        cell = Cell(get_method(OURS), max(self.config.budgets), 0)
        made = self._texts(cell, material)
        counts = [min(self.config.path_rows, count) for count in material.rows.counts()]
        real = tokenise_data(self.student_task, material.rows.sample(counts, 0))
        rows = tokenise(self.student_task, made["texts"], made["weights"])
        own = [one["learning_rate"] for one in records if (one["method"], one["budget"]) == (OURS, cell.budget)]
        rate = own[0] if own else self.config.learning_rates[0]
        config = self.config.train.model_copy(update={"learning_rate": rate})
        steps = [config.max_steps * quarter // 4 for quarter in range(5)]
        found = follow(self.student, self.student_task, rows, real, config, steps)
        self.folder.save_state("path", {}, {"points": [asdict(point) for point in found]})
        return found

    @property
    def trainings(self) -> int:
        """How many there are to run."""
        tuned = min(self.config.tuning_seeds, self.config.seeds)
        counts = [0, 0]
        for seed in range(self.config.seeds):
            counts[seed >= tuned] += len(list(self._cells(seed)))
        return (counts[0] * len(self.config.learning_rates) + counts[1]) * self.config.training_seeds

    def _cells(self, seed: int) -> Iterator[Cell]:
        few = self.config.real_rows_per_class is not None
        for name in self.config.methods:
            method = get_method(name)
            budgets = self.config.budgets if name != "real_all" else (0,)
            if name == "real_all" and not few and seed:
                continue  # all rows are the same rows for every data seed
            yield from (Cell(method, budget, seed) for budget in budgets)

    def _run_seed(self, seed: int, rates: dict[tuple[str, int], float], stage: Stage) -> list[Record]:
        material, records = self._material(seed), list[Record]()
        for cell in self._cells(seed):
            made = self._texts(cell, material)
            chosen = rates.get((cell.method.name, cell.budget))
            for rate in self.config.learning_rates if chosen is None else (chosen,):
                for training_seed in range(self.config.training_seeds):
                    records.append(self._train(cell, made, rate, training_seed))
                    stage.advance(1, accuracy=records[-1]["accuracy"])
        return records

    def _material(self, seed: int) -> Material:
        rows = self.rows
        if self.config.real_rows_per_class is not None:
            rows = rows.sample([min(self.config.real_rows_per_class, own) for own in rows.counts()], seed)
        folder = Within(self.folder, f"seed-{seed:03d}")
        largest = max(self.config.budgets)
        return Material(self.lm, self.task, rows, self.config.generate, seed, folder, largest, self.domain)

    def _texts(self, cell: Cell, material: Material) -> Record:
        """The cell's texts and what they measure, made once."""
        kept, known = material.folder.load_state(f"texts-{cell.name}"), self.given.get(cell.key, {})
        if kept is not None:
            return kept[1]
        facts = known if "texts" in known else self._make(cell, material, known)
        material.folder.save_state(f"texts-{cell.name}", {}, facts)
        return facts

    def _make(self, cell: Cell, material: Material, known: Record) -> Record:
        """Makes and measures texts; what is known of them is not measured again."""
        with peak_memory(self.lm.device) as peak:
            seconds = material.prepare(cell.method.needs)
            began = time.monotonic()
            made = cell.method.make(material, cell.budget)
            seconds += time.monotonic() - began
        facts = {"texts": made.texts, "weights": made.weights, "seconds": seconds, "peak_bytes": peak.bytes}
        measured = known or self._measured(cell, made, material)
        return facts | {name: measured[name] for name in ("distance", "log_perplexity")}

    def written(self) -> Iterator[tuple[Key, Record]]:
        """All sets but those of real rows, once the comparison has run."""
        for seed in range(self.config.seeds):
            folder = Within(self.folder, f"seed-{seed:03d}")
            for cell in self._cells(seed):
                kept = folder.load_state(f"texts-{cell.name}")
                assert kept is not None, "every set has been made"
                if cell.method.kind != "real":
                    yield cell.key, kept[1]

    def _measured(self, cell: Cell, made: TextSet, material: Material) -> Record:
        if cell.method.name == "real_all":
            return {"distance": 0.0, "log_perplexity": None}
        # Timed, for what measures has need of may be what a later method has need of.
        fitted = not self.config.generate.space.is_identity
        material.prepare(("lm_texts", "space", "target") if fitted else ("target",))
        found, *_ = measure(
            self.lm, self.task, material.target, self.config.generate.distance, made.texts, material.limit
        )
        return {"distance": found.distance, "log_perplexity": found.log_perplexity}

    def _train(self, cell: Cell, made: Record, rate: float, training_seed: int) -> Record:
        """One training and its evaluation."""
        folder = Within(self.folder, f"seed-{cell.seed:03d}")
        name = f"trained-{cell.name}-{rate}-{training_seed}"
        kept = folder.load_state(name)
        if kept is not None:
            return kept[1]
        config = self.config.train.model_copy(
            update={"learning_rate": rate, "seed": training_seed, "max_steps": self._steps(cell)}
        )
        began = time.monotonic()
        with peak_memory(self.student.device) as peak:
            rows = tokenise(self.student_task, made["texts"], made["weights"])
            tuner = FineTuner(self.student, self.student_task, rows, config, self.dev)
            state = tuner.run()
        seconds = time.monotonic() - began
        limit = BatchLimit(config.per_device_eval_batch_size)
        found = evaluate(tuner.model, self.student_task, self.test, limit)
        record = {
            "method": cell.method.name,
            "kind": cell.method.kind,
            "budget": cell.budget,
            "data_seed": cell.seed,
            "training_seed": training_seed,
            "learning_rate": rate,
            "steps": state.best_step,
            "dev_accuracy": state.best[0],
            "dev_loss": -state.best[1],
            "accuracy": found.accuracy,
            "macro_f1": found.macro_f1,
            "class_accuracy": list(found.class_accuracy),
            "calibration_error": found.calibration_error,
            "texts": len(rows),
            "distance": made["distance"],
            "log_perplexity": made["log_perplexity"],
            "seconds_texts": made["seconds"],
            "peak_bytes_texts": made["peak_bytes"],
            "seconds_training": seconds,
            "peak_bytes_training": peak.bytes,
        }
        folder.save_state(name, {}, record)
        return record

    def _steps(self, cell: Cell) -> int:
        unlimited = cell.method.name == "real_all" and self.config.real_rows_per_class is None
        return self.config.ceiling_steps if unlimited else self.config.train.max_steps


def choose_rates(records: list[Record]) -> dict[tuple[str, int], float]:
    """For every method and budget, the learning rate with the best mean accuracy on the development split.

    Of rates that are equally accurate, the one with the lower mean loss there.
    """
    found: dict[tuple[str, int], dict[float, list[tuple[float, float]]]] = {}
    for one in records:
        rates = found.setdefault((one["method"], one["budget"]), {})
        rates.setdefault(one["learning_rate"], []).append((one["dev_accuracy"], -one["dev_loss"]))

    def worth(values: list[tuple[float, float]]) -> tuple[float, ...]:
        return tuple(sum(part) / len(values) for part in zip(*values, strict=True))

    return {key: max(rates, key=lambda rate: worth(rates[rate])) for key, rates in found.items()}
