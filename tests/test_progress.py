"""What is told while a run goes on: lines, bars, the run's log, or nothing."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from gradmm import progress
from gradmm.progress import Reporter, RichReporter, log, logging_to, make_reporter, on_screen_alone, unsaid

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
        work(RichReporter())
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
    for number, reporter in enumerate((make_reporter(), RichReporter())):
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


# ---- bars


def test_a_terminal_gets_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert isinstance(make_reporter(), RichReporter)
    assert not isinstance(make_reporter(quiet=True), RichReporter)
    assert [h.level for h in log.handlers if isinstance(h, logging.StreamHandler)] == [logging.WARNING]


def test_bars_work_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    work(RichReporter())
    out, err = capsys.readouterr()
    assert out == ""
    assert "work" in err and "3/3" in err and "rows" in err and "best so far 1.235e+04" in err


def test_bars_let_failures_through(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        work(RichReporter(), KeyboardInterrupt())
    assert "3/3" in capsys.readouterr().err
