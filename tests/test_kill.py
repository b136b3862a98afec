"""SIGKILL at fifty moments and places: the same command goes on, and ends as if nothing had happened.

The kills are those of `scripts/kill_runs.py`, which forks its runs from one process that has loaded the model;
`small_kills` gives it a model that is faster.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import small_kills
from small_kills import kill_runs

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forks here, which this system has not")
KILLS = 50
DATA = ("data/synthetic.jsonl", "data/synthetic.parquet")
WRITTEN = ("fingerprint.json", "config.yaml", "environment.json", "metrics.json", "SHA256SUMS", *DATA)


class Kills(NamedTuple):
    output: Path
    points: list[str]
    kills: list[dict[str, Any]]
    ends: list[dict[str, Any]]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Kills:
    output = tmp_path_factory.mktemp("kills") / "runs"
    command = [sys.executable, small_kills.__file__, "--kills", str(KILLS), "--output", output]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    first, *records = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 0, [record for record in records if record.get("faults") or record["repeated"]]
    kills, ends = ([r for r in records if key in r] for key in ("kill", "end"))
    return Kills(output, first["points"], kills, ends)


def figures(folder: Path) -> dict[str, Any]:
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics.pop("seconds")) <= {"pool", "target", "form", "writer", "admm", "search", "measure"}
    return metrics


def test_runs_were_killed_often_and_in_every_stage(killed: Kills) -> None:
    assert len(killed.kills) >= KILLS
    assert all(kill["code"] == -9 for kill in killed.kills)
    stages = Counter(kill["stage"] for kill in killed.kills)
    assert set(stages) == set(kill_runs.STAGES)
    at_moments = [kill for kill in killed.kills if kill["kill"].startswith("after ")]
    assert len(at_moments) >= 3  # a moment that comes after the end kills nothing
    assert len({kill["kill"] for kill in killed.kills}) > 0.8 * len(killed.kills)
    assert max(Counter(kill["run"] for kill in killed.kills).values()) >= 4  # one run, again and again


def test_runs_were_killed_while_files_were_written(killed: Kills) -> None:
    states = [
        f"state/{name}.safetensors"
        for name in ("pool-000000-000000", "space", "target-000001", "admm-000000", "set-000000")
    ]
    for name in (*WRITTEN, *states):
        assert {f"open {name}~", f"half of {name}", f"os.rename {name}~"} <= set(killed.points)
    kinds = Counter(kill["kill"].split(" ")[0] for kill in killed.kills)
    assert min(kinds[kind] for kind in ("half", "open", "os.rename", "os.remove")) >= 2
    assert len({kill["kill"] for kill in killed.kills} & set(killed.points)) >= 20


def test_every_run_ended_like_the_undisturbed_one(killed: Kills) -> None:
    whole = killed.output / "whole"
    assert len(killed.ends) >= 5
    for end in killed.ends:
        folder = killed.output / end["end"]
        assert end["code"] == 0
        for name in (*DATA, "config.yaml", "fingerprint.json"):
            assert (folder / name).read_bytes() == (whole / name).read_bytes()
        assert figures(folder) == figures(whole)
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
        assert found == {*WRITTEN, "data", "run.log"}


def test_nothing_was_done_again_that_a_checkpoint_held(killed: Kills) -> None:
    gone_on = [record for record in (*killed.kills, *killed.ends) if record["held"]]
    assert len(gone_on) >= 10
    assert sum(record["worked"] for record in gone_on) >= 10  # it would have been noted
    assert all(record["repeated"] == [] for record in gone_on)


def test_the_script_notices_what_was_lost(killed: Kills, tmp_path: Path) -> None:
    whole, folder = killed.output / "whole", killed.output / killed.ends[0]["end"]
    assert kill_runs.faults(folder, whole) == []
    (folder / "state").mkdir()
    (folder / "data/.synthetic.jsonl.abc.tmp").write_text("x")
    (folder / "environment.json").rename(tmp_path / "environment.json")
    (folder / DATA[0]).write_text((folder / DATA[0]).read_text().replace("label", "lable"))
    (folder / "metrics.json").write_text('{"seconds": {}}')
    assert kill_runs.faults(folder, whole) == [
        "data/.synthetic.jsonl.abc.tmp is there",
        "environment.json is missing",
        "state is there",
        f"{DATA[0]} differs",
        "metrics.json differs",
    ]
