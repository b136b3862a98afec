"""What is told while a run goes on: lines, bars, the run's log, or nothing."""

from __future__ import annotations

import io
import json
import logging
import math
import re
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gradmm import events as events_module
from gradmm import live, progress
from gradmm.live import LiveReporter
from gradmm.progress import Reporter, log, logging_to, on_screen_alone, unsaid
from gradmm.reporters import make_reporter

DONE = re.compile(r"work: done in \d+\.\d s")


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    level, handlers = log.level, list(log.handlers)
    yield
    log.setLevel(level)
    log.handlers[:] = handlers


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is four seconds later."""
    ticks = count(0, 4)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))


def work(reporter: Reporter, failure: BaseException | None = None) -> None:
    with reporter.stage("work", 3, "rows") as stage:
        for step in range(3):
            stage.advance(1, text=1 / (step + 1), best_so_far=12345.678)
        if failure:
            raise failure


# ---- lines


def test_a_stage_is_told_at_its_start_and_end(capsys: pytest.CaptureFixture[str]) -> None:
    work(make_reporter())
    out, err = capsys.readouterr()
    assert out == ""
    first, last = err.splitlines()
    assert first == "work: 3 rows"
    assert re.fullmatch(DONE.pattern + r"  text 0\.3333  best so far 1\.235e\+04", last)


def test_a_line_now_and_then_tells_how_far_it_is(clock: None, capsys: pytest.CaptureFixture[str]) -> None:
    with make_reporter().stage("work", 40, "rows") as stage:  # began at 0
        stage.advance(2)  # at 4, 8, 12
        stage.advance(2)
        stage.advance(4, text=0.5)
        stage.advance(0)  # at 16, 20, 24
        stage.advance(2)
        stage.advance(10)
    assert capsys.readouterr().err.splitlines() == [
        "work: 40 rows",
        "work: 8 of 40 rows  text 0.5, 48 s left",
        "work: 20 of 40 rows, 24 s left",
        "work: done in 28.0 s",
    ]


def test_a_stage_that_has_done_nothing_yet_can_be_told(clock: None, capsys: pytest.CaptureFixture[str]) -> None:
    with make_reporter().stage("work", 1, "rows") as stage:
        for _ in range(3):
            stage.advance(0)
    assert "work: 0 of 1 rows\n" in capsys.readouterr().err


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ValueError()])
def test_a_stage_that_fails_is_not_told_as_done(
    failure: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(type(failure)):
        work(make_reporter(), failure)
    assert capsys.readouterr().err == "work: 3 rows\n"


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    make_reporter()  # an earlier command's
    work(make_reporter(quiet=True))
    assert capsys.readouterr() == ("", "")


def test_every_line_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    make_reporter()
    work(make_reporter())
    assert capsys.readouterr().err.splitlines()[0] == "work: 3 rows"
    make_reporter(quiet=True)
    make_reporter()
    work(make_reporter())
    assert len(capsys.readouterr().err.splitlines()) == 2


# ---- the run's log


@pytest.mark.parametrize("quiet", [False, True])
def test_the_log_gets_the_lines_whatever_the_screen_gets(quiet: bool, tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    path.write_text("before\n")
    reporter = make_reporter(quiet)
    handlers = list(log.handlers)
    with logging_to(path):
        work(reporter)
        work(LiveReporter())
    work(reporter)
    before, *lines = path.read_text(encoding="utf-8").splitlines()
    assert before == "before"  # a run that goes on keeps what it has told
    told = [re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d (.*)", line) for line in lines]
    assert [match and DONE.sub("done", match[1]).split("  ")[0] for match in told] == ["work: 3 rows", "done"] * 2
    assert log.handlers == handlers


def test_the_log_is_let_go_of_after_a_failure(tmp_path: Path) -> None:
    before = list(log.handlers)
    with pytest.raises(KeyboardInterrupt), logging_to(tmp_path / "é.log"):
        work(Reporter(), KeyboardInterrupt())
    assert log.handlers == before
    assert (tmp_path / "é.log").read_text().endswith(" work: 3 rows\n")


def test_a_log_that_cannot_be_written_is_left_and_the_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_reporter(quiet=True)
    with logging_to(tmp_path / "run.log"):
        handler = log.handlers[-1]
        monkeypatch.setattr(handler.stream, "write", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
        work(Reporter())
        assert handler not in log.handlers
    path = tmp_path / "run.log"
    assert capsys.readouterr().err == f"cannot write {path} ([Errno 28] No space left); going on without it\n"


def test_lines_hold_no_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_reporter()
    with logging_to(tmp_path / "run.log"):
        log.warning("a class named %s\nand one more", "\x1b[2Jx\r\u202e")
    told = "a class named \\x1b[2Jx\\r\\u202e\nand one more\n"
    assert capsys.readouterr().err == told
    assert (tmp_path / "run.log").read_text().endswith(f" {told}")


def test_what_is_told_is_shown_and_logged_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, reporter in enumerate((make_reporter(), LiveReporter())):
        if number:
            make_reporter(quiet=True)  # as on a terminal, where the log's lines would come between the bars
        with logging_to(tmp_path / f"{number}.log", times=False):
            reporter.tell("epsilon 4%s \x1b[2J")
        assert capsys.readouterr().err == "epsilon 4%s \\x1b[2J\n"
        assert (tmp_path / f"{number}.log").read_text() == "epsilon 4%s \\x1b[2J\n"


def test_lines_can_be_kept_out_of_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_reporter()
    with logging_to(tmp_path / "run.log", times=False):
        with on_screen_alone():
            work(Reporter())
            log.warning("a warning")
        log.info("after")
    assert (tmp_path / "run.log").read_text() == "a warning\nafter\n"
    assert capsys.readouterr().err.startswith("work: 3 rows\nwork: done in ")


def test_what_is_unsaid_is_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    make_reporter()
    with unsaid():
        log.warning("row 3")
    with unsaid(False):
        log.warning("row 4")
    assert capsys.readouterr().err == "row 4\n"


# ---- a terminal


def test_a_terminal_gets_a_live_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert isinstance(make_reporter(), LiveReporter)
    assert not isinstance(make_reporter(quiet=True), LiveReporter)
    assert not isinstance(make_reporter(style="lines"), LiveReporter)
    assert [h.level for h in log.handlers if isinstance(h, logging.StreamHandler)] == [logging.INFO]


def test_the_view_works_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    work(LiveReporter())
    out, err = capsys.readouterr()
    assert out == ""
    assert "work" in err and "3/3" in err and "rows" in err and "best so far 1.235e+04" in err


def test_the_view_lets_failures_through(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        work(LiveReporter(), KeyboardInterrupt())
    assert "3/3" in capsys.readouterr().err


def test_course_memory_and_newest_text_are_shown_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal of 60 columns; what a text brings along to steer it is written out."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(live, "_EVERY", 0.0)
    with LiveReporter().stage("work", 2, "rows") as stage:
        for value in (3.0, 1.0):
            stage.advance(1, lambda: "A dull\x1b[2J film. " + "x" * 99, objective=value)
        stage.live.refresh()  # type: ignore[attr-defined]
    shown = terminal.getvalue()
    assert "█▁" in shown and "peak memory" in shown
    assert "A dull\\x1b[2J film. xxx" in shown and "x…" in shown and "\x1b[2J film" not in shown
    assert "peak memory" not in shown.rsplit("2/2", 1)[1], "the bar alone stays"


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 2, 3, 4, 5, 6, 7, 8], "▁▂▃▄▅▆▇█"), ([2, 2], "▁▁"), ([8] * 60 + [1] * 60, "█" * 20 + "▁" * 20)],
)
def test_a_sparkline_is_the_course_in_little(values: list[float], expected: str) -> None:
    assert live.sparkline(values) == expected


# ---- programs


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_programs_get_objects_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reporter = make_reporter(style="json")
    with logging_to(tmp_path / "run.log", times=False):
        reporter.tell("epsilon 4")
        work(reporter)
        log.warning("a class named %s", "\x1b\n")
        reporter.result({"run_dir": "a"})
    out, err = capsys.readouterr()
    found = events(err)
    assert out == ""
    kinds = [one["event"] for one in found]
    assert kinds == ["message", "stage", "progress", "progress", "done", "message", "result"]
    assert found[0] == {"event": "message", "level": "info", "message": "epsilon 4"}
    assert found[1] == {"event": "stage", "stage": "work", "total": 3, "unit": "rows"}
    assert found[-2] == {"event": "message", "level": "warning", "message": "a class named \x1b\n"}
    assert found[-1] == {"event": "result", "run_dir": "a"}
    assert (tmp_path / "run.log").read_text().startswith("epsilon 4\nwork: 3 rows\nwork: done in ")


def test_progress_says_where_a_stage_is_and_ends_with_its_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = count(0, 0.2)
    monkeypatch.setattr(events_module, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    with make_reporter(style="json").stage("work", 40, "rows") as stage:
        for step in range(40):
            stage.advance(1, lambda step=step: f"text {step}", objective=math.nan if step else 1.0)  # type: ignore[misc]
    told = [one for one in events(capsys.readouterr().err) if one["event"] == "progress"]
    assert 8 < len(told) < 21, "less often than advances"
    assert [one["done"] for one in told] == sorted({one["done"] for one in told})
    assert all(one["text"] == f"text {one['done'] - 1:.0f}" for one in told)
    assert told[0]["figures"] == {"objective": 1.0} and told[-1]["figures"] == {"objective": None}
    assert told[-1]["done"] == 40 and told[-1]["seconds_left"] == 0
    for one in told:
        assert one["seconds_left"] == pytest.approx(one["seconds"] / one["done"] * (40 - one["done"]), abs=0.06)


def test_a_failed_stage_is_not_told_to_programs_as_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        work(make_reporter(style="json"), KeyboardInterrupt())
    assert "done" not in [one["event"] for one in events(capsys.readouterr().err)]


def test_quiet_tells_programs_of_warnings_alone(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = make_reporter(quiet=True, style="json")
    work(reporter)
    reporter.result({})
    log.warning("beware")
    assert events(capsys.readouterr().err) == [{"event": "message", "level": "warning", "message": "beware"}]
