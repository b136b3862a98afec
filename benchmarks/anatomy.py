"""Why ADMM as published hardly improves on its starting point: two tables, on blocks of ten LM texts.

First, what one x-update does for each rho, starting from a text: how far the objective of the *vectors* falls,
how far they move, and how many of them are still nearest to the token they started from.
Second, what each projection makes of vectors that already are a text.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table

from gradmm.blocks import BlockRunner
from gradmm.config import load_config
from gradmm.data.presets import get_task
from gradmm.data.sources import DataConfig, load_data
from gradmm.data.task import BoundTask
from gradmm.decoding import log_perplexity
from gradmm.gradients.exact_target import compute_target
from gradmm.gradients.target import ReleasedTarget
from gradmm.models import LanguageModel, load_model
from gradmm.solvers.admm import Admm, AdmmConfig
from gradmm.solvers.initial import Start, as_block, join
from gradmm.solvers.matching import GradientMatching
from gradmm.solvers.projection import ProjectionConfig, Projector


class Bench:
    """One block of ten LM texts per class and what belongs to it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.lm: LanguageModel = load_model("demo")
        data = load_data(arguments.data, DataConfig(max_rows_per_class=arguments.rows))
        self.task = BoundTask(get_task(arguments.task), self.lm.tokenizer, self.lm.max_length)
        batches = [data.iter_batches(label, 64) for label in range(data.num_classes)]
        self.target: ReleasedTarget = compute_target(self.lm, self.task, batches)
        self.config = load_config().generate_config()
        self.runner = BlockRunner(self.lm, self.task, self.config)
        texts = self.runner.sample_texts(10, "anatomy")
        blocks = [as_block(self.lm.embeddings_VE, [self.task.text_ids(t) for t in own]) for own in texts]
        self.start: Start = join(blocks)
        self.labels = list(range(data.num_classes))

    def problem(self, projector: Projector) -> GradientMatching:
        """The blocks' matching problem with this projection."""
        lengths = self.start.lengths_KB
        return GradientMatching(
            self.lm, self.task, self.target, self.config.distance, projector, self.labels, lengths
        )


def table(console: Console, arguments: argparse.Namespace) -> None:
    """Prints both tables."""
    bench = Bench(arguments)
    _x_updates(console, bench)
    _projections(console, bench)


def _x_updates(console: Console, bench: Bench) -> None:
    out = Table(title="One x-update of 50 Adam steps (lr 0.008) from LM texts")
    for column in ("rho", "distance before", "after", "|x - z| / |z|", "still nearest to their token"):
        out.add_column(column, justify="right")
    problem = bench.problem(bench.runner.projector)
    for rho in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        settings = AdmmConfig(n_inner=50, learning_rate=0.008, rho=rho, rho_unit="absolute", clip="block")
        solver = Admm(problem, settings)
        state = solver.init(bench.start.x_KBTE, bench.start.codes_KBT)
        moved = solver._x_update(state)
        gap = float((moved.x - state.x).norm() / state.x.norm())
        figures = (float(state.objective_K.mean()), float(moved.objective_K.mean()), gap)
        same = _still_nearest(bench, moved.x)
        out.add_row(f"{rho:g}", *(f"{figure:.4f}" for figure in figures), f"{same:.1%}")
    console.print(out)


def _still_nearest(bench: Bench, x_KBTE: torch.Tensor) -> float:
    table_VE, lengths = bench.lm.embeddings_VE, bench.start.lengths_KB
    inside = torch.arange(x_KBTE.shape[2]) < lengths.unsqueeze(-1)
    assert bench.start.codes_KBT is not None, "the start is text"
    nearest = torch.cdist(x_KBTE[inside], table_VE).argmin(-1)
    return float((nearest == bench.start.codes_KBT[inside]).float().mean())


def _projections(console: Console, bench: Bench) -> None:
    out = Table(title="Projecting vectors that already are a text")
    for column in ("projection", "tokens kept", "distance before", "after", "log-perplexity before", "after"):
        out.add_column(column, justify="left" if column == "projection" else "right")
    kinds = {
        "proximal, nearness 10": ProjectionConfig(order="proximal", nearness=10),
        "proximal, nearness 1": ProjectionConfig(order="proximal", nearness=1),
        **{
            f"nearest {k}, then most probable": ProjectionConfig(
                order="nearest_then_probable", k=k, metric="cosine"
            )
            for k in (1, 20, 200)
        },
        "most probable 200, then nearest": ProjectionConfig(order="probable_then_nearest", k=200, metric="cosine"),
    }
    codes = bench.start.codes_KBT
    assert codes is not None, "the start is text"
    inside = torch.arange(codes.shape[2]) < bench.start.lengths_KB.unsqueeze(-1)
    for name, config in kinds.items():
        vocabulary = bench.runner.projector.vocabulary
        problem = bench.problem(Projector(bench.runner.prompts, bench.lm.embeddings_VE, vocabulary, config))
        _, found = problem.project(bench.start.x_KBTE)
        kept = float((found[inside] == codes[inside]).float().mean())
        distances = [float(problem.score(c).mean()) for c in (codes, found)]
        nll = [_mean_nll(bench, problem.texts(c)) for c in (codes, found)]
        out.add_row(name, f"{kept:.1%}", *(f"{d:.4f}" for d in distances), *(f"{p:.2f}" for p in nll))
    console.print(out)


def _mean_nll(bench: Bench, texts: list[str]) -> float:
    values = log_perplexity(bench.lm, [bench.task.text_ids(text) for text in texts])
    return sum(values) / len(values)
