"""All blocks of a run: how many texts, from which starts, and the same ones after an interruption."""

import json

import pytest
import torch

from gradmm.blocks import BlockRunner, plan_blocks
from gradmm.config import GenerateConfig
from gradmm.gradients.exact_target import compute_target
from gradmm.seeds import make_generator
from gradmm.solvers.admm import AdmmConfig
from gradmm.solvers.initial import InitialConfig, LengthConfig
from gradmm.solvers.matching import GradientMatching
from gradmm.solvers.projection import ProjectionConfig
from gradmm.store import RunFolder

ROWS = [
    ["A dull and tedious film.", "The plot makes no sense at all.", "I walked out after an hour."],
    ["A warm and funny film.", "The cast is wonderful from start to end.", "I would see it again."],
]
TINY = GenerateConfig(
    texts_per_class=3,
    block_size=2,
    per_device_batch_size=4,
    admm=AdmmConfig(n_outer=2, n_inner=2, learning_rate=0.03, rho=0.1, relative_tolerance=0.0),
    projection=ProjectionConfig(nearness=3.0),
    initial=InitialConfig(candidates=2),
    lengths=LengthConfig(distribution="uniform", min_tokens=4, max_tokens=8),
)


class InterruptedRunError(Exception):
    pass


class FakeStage:
    """Counts block steps; raises at its n-th call."""

    def __init__(self, raise_at=None):
        self.raise_at, self.calls = raise_at, []

    def advance(self, done=1, shown=None, **figures):
        self.calls.append(done)
        if len(self.calls) == self.raise_at:
            raise InterruptedRunError


@pytest.fixture(scope="module")
def lm(tiny_lm):
    return tiny_lm("gpt2")


@pytest.fixture(scope="module")
def task(lm, tiny_task):
    return tiny_task(lm)


@pytest.fixture(scope="module")
def target(lm, task):
    return compute_target(lm, task, [[own] for own in ROWS])


@pytest.fixture(scope="module")
def go(lm, task, target):
    def run(path, config=TINY, stage=None):
        runner = BlockRunner(lm, task, config)
        return runner.run(target, RunFolder(path, {"run": 1}), stage or FakeStage())

    return run


@pytest.fixture(scope="module")
def whole(go, tmp_path_factory):
    """A run that nothing interrupts."""
    return go(tmp_path_factory.mktemp("whole") / "run")


def as_bytes(made):
    return json.dumps([made.texts, made.trace, made.stops, made.retokenised]).encode()


def config(**changes):
    return TINY.model_copy(update=changes)


def admm(**changes):
    return config(admm=TINY.admm.model_copy(update=changes))


def test_writes_as_many_texts_per_class_as_asked_for(whole):
    assert [len(own) for own in whole.texts] == [3, 3]
    assert all(text and text == text.strip() for own in whole.texts for text in own)
    assert [stop["reason"] for stop in whole.stops] == ["max_outer", "max_outer"]
    assert [(stop["first_block"], stop["blocks"]) for stop in whole.stops] == [(0, 2), (2, 2)]
    assert [(row["first_block"], row["outer"]) for row in whole.trace] == [(0, 1), (0, 2), (2, 1), (2, 2)]


@pytest.mark.parametrize(
    ("counts", "block_size", "sizes"),
    [
        ((50, 50), 10, [(10, c) for c in (0, 0, 0, 0, 0, 1, 1, 1, 1, 1)]),
        ((5, 5), 4, [(3, 0), (3, 1), (2, 0), (2, 1)]),
        ((3, 3), 10, [(3, 0), (3, 1)]),
        ((2, 7, 1), 3, [(3, 1), (2, 0), (2, 1), (2, 1), (1, 2)]),
    ],
)
def test_blocks_are_as_few_and_as_equal_as_possible(counts, block_size, sizes):
    assert [(block.size, block.label) for block in plan_blocks(counts, block_size)] == sizes


def test_steps_are_those_of_all_blocks(lm, task):
    runner = BlockRunner(lm, task, config(block_size=3), counts=(7, 2))
    assert runner.steps == (3 + 1) * 3


def test_every_class_gets_its_own_number_of_texts(lm, task, target, tmp_path):
    runner = BlockRunner(lm, task, config(block_size=3), counts=(5, 1))
    made = runner.run(target, RunFolder(tmp_path / "run", {}), FakeStage())
    assert [len(own) for own in made.texts] == [5, 1]
    assert [(stop["first_block"], stop["blocks"]) for stop in made.stops] == [(0, 1), (1, 1), (2, 1)]
    assert [len(own) for own in runner.sample_texts("plain")] == [5, 1]


def test_progress_adds_up_to_all_steps(go, tmp_path, lm, task):
    for name, settings in {"all": TINY, "stalled": admm(n_outer=4, learning_rate=1e-6, patience=1)}.items():
        stage = FakeStage()
        made = go(tmp_path / name, settings, stage)
        assert sum(stage.calls) == BlockRunner(lm, task, settings).steps
        assert {stop["reason"] for stop in made.stops} == {"max_outer" if name == "all" else "stalled"}


@pytest.mark.parametrize("at", [1, 2, 3, 4, 6])
def test_an_interrupted_run_ends_as_if_nothing_had_happened(go, whole, tmp_path, at, lm, task):
    with pytest.raises(InterruptedRunError):
        go(tmp_path / "run", stage=FakeStage(raise_at=at))
    stage = FakeStage()
    assert as_bytes(go(tmp_path / "run", stage=stage)) == as_bytes(whole)
    assert sum(stage.calls) == BlockRunner(lm, task, TINY).steps


def test_an_interrupted_run_does_not_repeat_what_was_done(go, tmp_path):
    with pytest.raises(InterruptedRunError):
        go(tmp_path / "run", stage=FakeStage(raise_at=6))  # in the second block pair's first iteration
    stage = FakeStage()
    go(tmp_path / "run", stage=stage)
    assert stage.calls == [6, 0, 4, 2, 0]


def test_an_interrupted_run_may_go_on_with_another_batch_size(go, whole, tmp_path):
    """`per_device_batch_size` is no part of a run's fingerprint: it does not change what is computed."""
    with pytest.raises(InterruptedRunError):
        go(tmp_path / "run", stage=FakeStage(raise_at=2))
    assert go(tmp_path / "run", config(per_device_batch_size=2)).texts == whole.texts


@pytest.mark.parametrize("size", [1, 2, 6, 64])
def test_the_batch_size_does_not_change_what_is_made(go, whole, tmp_path, size):
    made = go(tmp_path / "run", config(per_device_batch_size=size))
    assert made.texts == whole.texts

    def mean(trace, name):
        rows = [row for row in trace if row["outer"] == 2]
        counts = [stop["blocks"] for stop in (made if trace is made.trace else whole).stops]
        return sum(row[name] * count for row, count in zip(rows, counts, strict=True)) / sum(counts)

    for name in ("vectors", "text", "best"):
        assert mean(made.trace, name) == pytest.approx(mean(whole.trace, name), abs=1e-4)


def test_the_texts_are_those_of_the_best_iterate(go, tmp_path, lm, task, target, monkeypatch):
    calls = iter(range(100))
    score = lambda self, codes: torch.full((len(codes),), float(next(calls)))  # noqa: E731
    monkeypatch.setattr(GradientMatching, "score", score)  # the start is the best that there will be
    made = go(tmp_path / "run", config(texts_per_class=2))
    runner = BlockRunner(lm, task, config(texts_per_class=2))
    starts = [runner._start(target, block) for block in range(2)]
    rows = [zip(s.codes_KBT[0].tolist(), s.lengths_KB[0].tolist(), strict=True) for s in starts]
    assert made.texts == [[task.decode(row[:length]) for row, length in block] for block in rows]
    assert made.trace[-1]["text"] > made.trace[-1]["best"] == 0


def test_when_a_block_stops_does_not_depend_on_the_batch_size(go, tmp_path):
    settings = admm(n_outer=5, patience=1, learning_rate=0.1)
    alone = go(tmp_path / "alone", settings.model_copy(update={"per_device_batch_size": 2}))
    together = go(tmp_path / "together", settings.model_copy(update={"per_device_batch_size": 64}))
    assert alone.texts == together.texts


def starts_of(lm, task, target, settings):
    runner = BlockRunner(lm, task, settings)
    return [runner._start(target, block) for block in range(len(runner.plan))]


@pytest.mark.parametrize("source", ["lm", "random"])
def test_a_starting_point_depends_on_the_blocks_number_alone(lm, task, target, source):
    initial = InitialConfig(source=source, candidates=3)
    found = [starts_of(lm, task, target, config(initial=initial, per_device_batch_size=size)) for size in (2, 64)]
    for mine, other in zip(*found, strict=True):
        assert torch.equal(mine.x_KBTE, other.x_KBTE)
        assert torch.equal(mine.lengths_KB, other.lengths_KB)
    runner = BlockRunner(lm, task, config(initial=initial))
    assert torch.equal(runner._start(target, 2).x_KBTE, found[0][2].x_KBTE), "nothing was drawn before it"
    assert len({tuple(start.x_KBTE.flatten().tolist()) for start in found[0]}) == 4


@pytest.mark.parametrize("source", ["lm", "random"])
def test_the_best_of_several_blocks_is_kept(lm, task, target, source):
    settings = config(initial=InitialConfig(source=source, candidates=5))
    runner = BlockRunner(lm, task, settings)
    for block in (0, 3):
        label, draws = runner.plan[block].label, runner._draw(block)
        values = []
        for draw in draws:
            problem = GradientMatching(lm, task, target, settings.distance, None, [label], draw.lengths_KB)
            values.append(float(problem.objective(draw.x_KBTE)))
        lowest = min(range(5), key=values.__getitem__)
        start = runner._start(target, block)
        assert torch.equal(start.x_KBTE, draws[lowest].x_KBTE)
        assert torch.equal(start.lengths_KB, draws[lowest].lengths_KB)
        assert sorted(values)[1] - values[lowest] > 1e-4, "a close race would show nothing"


def test_generators_differ_by_seed_and_purpose_alone():
    def first(*arguments):
        return float(torch.rand((), generator=make_generator(*arguments)))

    assert first(0, "initial", 1) == first(0, "initial", 1)
    assert len({first(0, "initial", 1), first(0, "initial", 2), first(1, "initial", 1), first(0, "other", 1)}) == 4


def test_plain_samples_are_per_class_and_reproducible(lm, task):
    runner = BlockRunner(lm, task, TINY, counts=(4, 2))
    texts = runner.sample_texts("reference")
    assert [len(own) for own in texts] == [4, 2]
    assert len({text for own in texts for text in own}) == 6
    assert runner.sample_texts("reference") == texts
    assert runner.sample_texts("other") != texts
