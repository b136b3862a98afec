"""Kills small runs with SIGKILL, goes on with them until they end, and looks whether anything was lost.

    python scripts/kill_runs.py --kills 200 --seed 0

The packaged model is loaded once; every run is a fork of this process, so that a kill costs a second and not
ten. Half of the runs are killed at random moments. The others are killed at operations on files: before every one
that an undisturbed run does in its folder (open, rename, remove, ...), and when half of a file is written.

Each kill is a line of JSON on stdout: in which stage of the run, where, and what was done again although there
was a checkpoint of it. Exit status: 0 if all runs ended like the undisturbed one, 1 if not, 2 misuse.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports a Hugging Face library
os.environ["OMP_NUM_THREADS"] = "1"  # a pool of threads does not survive a fork

import torch
from safetensors import safe_open
from torch import Tensor

import gradmm
from gradmm.checksums import SUMS
from gradmm.config import GenerateConfig
from gradmm.data.sources import load_data
from gradmm.store import FINGERPRINT, STATE, RunFolder

DATA = ("data/synthetic.jsonl", "data/synthetic.parquet")
FILES = {FINGERPRINT, SUMS, "config.yaml", "environment.json", "metrics.json", "run.log", *DATA}
STAGES = ("start", "pool", "target", "admm", "search", "measure", "result", "tidying")
HALF = "half of"
OPERATIONS = ("open", "os.mkdir", "os.chmod", "os.rename", "os.remove", "os.rmdir")
POINTS_PER_RUN, MOMENTS_PER_RUN = 12, 8
SMALL: dict[str, Any] = {
    "texts_per_class": 2,
    "block_size": 1,
    "per_device_batch_size": 2,  # two waves
    "initial": {"candidates": 1},
    "solver": "both",
    "space": {"maps": ["whitened"], "public_texts": 3},
    "pool": {"texts_per_text": 3},
    "writer": {"rounds": 1},  # more would take most of the kills
    "refinement": {"evaluations": 4, "places": 2, "proposals": 2},
    "admm": {"n_outer": 2, "n_inner": 1, "relative_tolerance": 0},
    "lengths": {"distribution": "uniform", "min_tokens": 3, "max_tokens": 5},
}


@dataclass(frozen=True)
class Point:
    """An operation on a file of the run folder."""

    operation: str
    """`HALF`, or the audit event's name."""
    name: str
    """Path within the folder; a file that is still being written is named as it will be, with `~`."""

    def __str__(self) -> str:
        return f"{self.operation} {self.name}"


@dataclass
class Bench:
    """What all runs share, and what an undisturbed one is like."""

    output: Path
    generate: Callable[[Path], object]
    seconds: float = 0.0
    points: list[Point] = field(default_factory=list)

    @property
    def whole(self) -> Path:
        """The folder of the undisturbed run."""
        return self.output / "whole"

    def measure(self) -> None:
        """Makes the undisturbed run, and notes what it does to files."""
        began = time.monotonic()
        assert self.attempt(self.whole, self._note) == 0, "the undisturbed run failed"
        self.seconds = time.monotonic() - began
        seen = [Point(*line.split(" ", 1)) for line in self._notes().splitlines()]
        halves = [Point(HALF, p.name.removesuffix("~")) for p in seen if p.operation == "os.rename"]
        opened = {Point("open", f"{p.name}~"): p for p in halves}  # it comes just after that
        self.points = [each for p in dict.fromkeys(seen) for each in (p, opened.get(p)) if each]

    def attempt(
        self, folder: Path, prepare: Callable[[Path], None] | None = None, after: float | None = None
    ) -> int:
        """The command, once: in a child, which `prepare` may rig, and which is killed `after` seconds.

        Returns:
            0 if the run ended, -9 if it was killed, anything else if it failed.
        """
        child = os.fork()
        if child == 0:
            self._run(folder, prepare)
        if after is not None:
            time.sleep(after)
            os.kill(child, signal.SIGKILL)  # it is there, if only as one that has ended
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def _run(self, folder: Path, prepare: Callable[[Path], None] | None) -> None:
        try:
            if prepare is not None:
                prepare(folder)
            self.generate(folder)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def _note(self, folder: Path) -> None:
        journal = os.open(self.output / "points", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        watch(folder, lambda point: os.write(journal, f"{point}\n".encode()))

    def _notes(self) -> str:
        return (self.output / "points").read_text(encoding="utf-8")


def watch(folder: Path, see: Callable[[Point], object]) -> None:
    """Has `see` called before every operation on a file in the folder, from now on."""
    home, state = os.path.join(folder, ""), folder / STATE

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in OPERATIONS or not isinstance(args[0], str | os.PathLike):
            return
        path = os.fspath(args[0])
        if (
            event == "os.remove"
            and args[1] != -1
            and state.exists()
            and os.path.samestat(os.fstat(args[1]), state.stat())
        ):
            path = os.path.join(state, path)  # by rmtree, which names it relative to an open folder
        if isinstance(path, str) and path.startswith(home):
            see(Point(event, re.sub(r"(^|/)\.([^/]+)\.[^./]+\.tmp$", r"\1\2~", path[len(home) :])))

    sys.addaudithook(hook)


def die() -> None:
    """As the kernel's out-of-memory killer would have it."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(point: Point, times: int) -> Callable[[Path], None]:
    """Rigs a child to die at a point, when it comes there for the n-th time."""
    left = iter(range(times - 1, -1, -1))

    def see(seen: Point) -> None:
        if seen == point and next(left) == 0:
            die()

    def halve(folder: Path) -> None:
        write = RunFolder.write

        def cut(self: RunFolder, name: str, writer: Callable[[Path], object]) -> Path:
            def half(path: Path) -> None:
                writer(path)
                if name == point.name and next(left) == 0:
                    os.truncate(path, path.stat().st_size // 2)
                    die()

            return write(self, name, half)

        RunFolder.write = cut  # type: ignore[assignment, method-assign]

    return halve if point.operation == HALF else lambda folder: watch(folder, see)


def noting_work(journal: Path) -> None:
    """Has every checkpoint that is made from now on noted, before it is written."""
    save, file = RunFolder.save_state, os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self: RunFolder, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        os.write(file, f"{name} {progress(facts)}\n".encode())
        save(self, name, tensors, facts)

    RunFolder.save_state = note  # type: ignore[method-assign]


def checkpoints(folder: Path) -> dict[str, int]:
    """By name, how many iterations are in it."""
    held = {}
    for path in (folder / STATE).glob("*.safetensors"):
        if not path.name.startswith("."):
            with safe_open(path, "pt") as file:
                held[path.stem] = progress(json.loads(file.metadata()["facts"]))
    return held


def progress(facts: Mapping[str, Any]) -> int:
    """How many iterations of ADMM, or steps of refinement, are in a checkpoint."""
    return int(facts.get("step", len(facts.get("trace", ()))))


def stage_of(folder: Path) -> str:
    """How far a run had come, by what it left."""
    held = checkpoints(folder)
    targets, waves, sets = ([n for n in held if n.startswith(kind)] for kind in ("target", "admm", "set"))
    admm_is_done = len(waves) == 2 and min(held[wave] for wave in waves) == SMALL["admm"]["n_outer"]
    result = [*DATA, "metrics.json", "data"]
    reached = {
        "tidying": (folder / SUMS).exists(),
        "result": any((folder / name).exists() for name in result),
        "measure": bool(sets),  # one of both classes
        "search": admm_is_done,
        "admm": bool(waves) or len(targets) == 2,
        "target": "space" in held,
        "pool": (folder / "environment.json").exists(),
    }
    return next((stage for stage, there in reached.items() if there), "start")


def faults(folder: Path, whole: Path) -> list[str]:
    """In what a run that has ended differs from the undisturbed one."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    told = [f"{name} is there" for name in sorted(found - FILES)]
    told += [f"{name} is missing" for name in sorted(FILES - found)]
    told += [f"{STATE} is there"] * (folder / STATE).exists()
    for name in sorted({*DATA, FINGERPRINT, "config.yaml"} & found):
        if (folder / name).read_bytes() != (whole / name).read_bytes():
            told.append(f"{name} differs")
    if "metrics.json" in found and figures(folder) != figures(whole):
        told.append("metrics.json differs")
    return told


def figures(folder: Path) -> dict[str, Any]:
    """The metrics, but for how long they took."""
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    del metrics["seconds"]
    return metrics


def plans(bench: Bench, rng: random.Random) -> Iterator[Sequence[Point | float]]:
    """For one run after the other, where to kill it: by turns at points, which all come up, and at moments."""
    while True:
        order = rng.sample(range(len(bench.points)), len(bench.points))
        for first in range(0, len(order), POINTS_PER_RUN):
            yield [bench.points[k] for k in sorted(order[first : first + POINTS_PER_RUN])]
            yield [rng.uniform(0, bench.seconds) for _ in range(MOMENTS_PER_RUN)]


def killed(
    bench: Bench, number: int, plan: Sequence[Point | float], rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Kills one run as planned, lets it end, and tells of every kill, then of the end."""
    folder, journal = bench.output / f"run-{number:03d}", bench.output / f"work-{number:03d}"
    for where in (*plan, None):
        held = checkpoints(folder)
        journal.unlink(missing_ok=True)

        def prepare(place: Path, where: Point | float | None = where) -> None:
            noting_work(journal)
            if isinstance(where, Point):
                die_at(where, rng.choice((1, 1, 2)))(place)

        code = bench.attempt(folder, prepare, where if isinstance(where, float) else None)
        done = [line.split() for line in journal.read_text().splitlines()] if journal.exists() else []
        again = [f"{name} {steps}" for name, steps in done if name in held and int(steps) <= held[name]]
        how = f"after {where:.3f} s" if isinstance(where, float) else str(where)
        facts = {"run": folder.name, "code": code, "held": len(held), "worked": len(done), "repeated": again}
        if code == -signal.SIGKILL:
            yield {"kill": how, "stage": stage_of(folder), **facts}
            continue
        yield {"end": folder.name, **facts, "faults": faults(folder, bench.whole) if code == 0 else ["failed"]}
        return


def make_bench(output: Path) -> Bench:
    """Loads model and rows, for all runs."""
    torch.set_num_threads(1)
    model, rows = gradmm.load_model("demo", device="cpu"), load_data("demo").sample(3, 0)
    config = GenerateConfig.model_validate(SMALL)
    return Bench(output, lambda folder: gradmm.generate(model, "sst2", rows, config, folder))


def run(output: Path, kills: int, seed: int) -> int:
    """Kills until it is enough; returns the exit status."""
    bench, rng = make_bench(output), random.Random(seed)
    bench.measure()
    print(json.dumps({"points": list(map(str, bench.points)), "seconds": bench.seconds}), flush=True)
    stages, wrong, began = Counter[str](), 0, time.monotonic()
    for number, plan in enumerate(plans(bench, rng)):
        for record in killed(bench, number, plan, rng):
            print(json.dumps(record), flush=True)
            stages.update([record["stage"]] if "kill" in record else [])
            wrong += bool(record["repeated"] or record.get("faults"))
        if stages.total() >= kills:
            break
    told = ", ".join(f"{stage} {stages[stage]}" for stage in STAGES)
    log = f"{stages.total()} kills ({told}) in {number + 1} runs, {time.monotonic() - began:.0f} s: {wrong} faults"
    print(log, file=sys.stderr)
    return int(wrong > 0)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="at least so many (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and places (default: 0)")
    parser.add_argument("--output", type=Path, help="new folder for all runs; without it they are not kept")
    args = parser.parse_args(argv)
    if not hasattr(os, "fork"):
        parser.error("this needs fork, which this system does not have")
    logging.getLogger("gradmm").addHandler(logging.NullHandler())
    if args.output is not None:
        args.output.mkdir(parents=True)
        return run(args.output.absolute(), args.kills, args.seed)
    with tempfile.TemporaryDirectory() as output:
        return run(Path(output), args.kills, args.seed)


if __name__ == "__main__":
    sys.exit(main())
