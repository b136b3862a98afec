"""The commands that look before a run and keep nothing, and the demo, as a user meets them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from command_line import LINES, SETS, Run
from gradmm import cli
from gradmm.config import load_config

pytestmark = pytest.mark.usefixtures("own_folder")


# ---- demo and preview


def test_the_demo_is_not_led_astray_by_files_of_that_name(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(cli, "_generate", lambda settings, output_dir, quiet: seen.append((settings, output_dir)))
    assert run("demo", "--seed", "5").code == 0
    Path("demo").write_text("seed: 1")
    Path("demo.yaml").write_text("seed: 1")
    assert run("demo", "--seed", "5").code == 0
    assert seen[0] == (
        load_config(Path(cli.__file__).parent / "assets/configs/demo.yaml", {"seed": 5}),
        Path("gradmm-demo"),
    )
    assert seen[1] == seen[0]


def test_preview_shows_texts_of_every_class_and_keeps_nothing(run: Run) -> None:
    outcome = run("preview", "--data", "demo", "-n", "2", "--set", "data.max_rows_per_class=4", *SETS)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert [lines[0], lines[3]] == ["negative", "positive"]
    assert len(lines) == 6
    assert all(re.match(r"  \S", lines[at]) for at in (1, 2, 4, 5))
    assert "target: 8 rows" in outcome.err.splitlines()  # quick: not all of the demo's 240
    assert all(LINES.fullmatch(line) for line in outcome.err.splitlines())
    assert list(Path().iterdir()) == []


def test_preview_is_small_whatever_the_file_says(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(cli, "_run", lambda *args, **_: seen.append(args) or sys.exit(0))
    for args in (["-n", "2"], ["--set", "admm.n_outer=40"]):
        assert run("preview", "-d", "demo", "-c", "paper", "--seed", "4", *args).code == 0
    (few, no_folder), (more, _) = [args[:2] for args in seen]
    assert no_folder is None
    assert (few.texts_per_class, few.block_size, few.references, few.seed) == (2, 2, False, 4)
    assert few.data.max_rows_per_class == 50
    assert few.admm.n_outer * few.admm.n_inner < 50
    assert (few.admm.order, few.initial.source) == ("z_first", "random")  # the file's way, in small
    assert more.admm.n_outer == 40


def test_preview_tunes_no_writer_unless_it_is_told_to(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(cli, "_run", lambda config, *_, **__: seen.append(config) or sys.exit(0))
    for args in ([], ["--set", "writer.rounds=3"]):
        assert run("preview", "-d", "demo", *args).code == 0
    assert [(one.writer.rounds, one.tilts) for one in seen] == [(1, False), (3, True)]


# ---- doctor


def test_doctor_finds_the_demo_well(run: Run) -> None:
    outcome = run("doctor", "-c", "demo")
    assert (outcome.code, outcome.err) == (0, "")
    findings = [re.fullmatch(r"( {2}ok) {2}(\w+) +(\S.*)", line) for line in outcome.out.splitlines()]
    names = [match and match[2] for match in findings]
    assert names == ["machine", "model", "vocabulary", "data", "task", "lengths", "rendering", "work"]
    details = {match[2]: match[3] for match in findings if match}
    assert details["data"] == "demo: 240 rows (negative 120, positive 120), texts from 'text', labels from 'label'"
    assert details["task"] == "'{text} It was', label tokens negative = ' bad', positive = ' great'"
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (
            ["-m", "./nope", "-d", "demo"],
            "model        no model folder at './nope'; give a folder with config.json, a Hub id, or 'demo'",
        ),
        (
            ["-d", "./nope.csv"],
            "data         ./nope.csv: no 'nope.csv' in {here}, which is empty; give the path of a file that is "
            "there",
        ),
        (
            ["-d", "demo", "--verbaliser", "negative= great", "--verbaliser", "positive= great"],
            "task         verbaliser ' great' begins with all tokens (\u0120great) of ' great', so the model "
            "cannot tell the classes apart there; choose other words",
        ),
        (
            ["-d", "demo", "-t", "rotten_tomatos"],
            "task         no ready-made task 'rotten_tomatos' (or give template and verbalisers); did you mean "
            "'rotten_tomatoes'?",
        ),
    ],
)
def test_doctor_finds_what_is_wrong(args: list[str], told: str, run: Run) -> None:
    outcome = run("doctor", *args)
    assert (outcome.code, outcome.err) == (1, "")
    failed = [line for line in outcome.out.splitlines() if not line.startswith("  ok  ")]
    assert failed == ["FAIL  " + told.format(here=Path().absolute())]


def test_no_color_is_honoured(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    colour = re.compile(r"\x1b\[[0-9;]*3[0-7][0-9;]*m")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    doctor = ["doctor", "-m", "./nope", "-d", "./nope.csv"]
    assert colour.search(run(*doctor).out)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colour.search(run(*doctor).out)
