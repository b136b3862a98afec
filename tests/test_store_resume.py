"""Whether a run in a folder is gone on with, and what happens when several come at once."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gradmm import store
from gradmm.errors import RunFolderError
from gradmm.locking import RunLock
from gradmm.store import FINGERPRINT, SUMS, Resume, RunFolder
from store_tools import KEPT, PRINT, completed, files, in_forks, made, needs_fork, refusal

# ---- resume


@pytest.mark.parametrize("what", ["new", "empty", "killed at once", "unfinished", "complete"])
@pytest.mark.parametrize("resume", ["never", "always", "if_possible"])
def test_resume_decides_what_is_gone_on_with(tmp_path: Path, what: str, resume: Resume) -> None:
    path = made(tmp_path / "run", what)
    holds_run, before = what in ("unfinished", "complete"), files(path)
    refused = {
        "never": f"{path} holds a run already and resume is 'never'; give a new folder, or resume it",
        "always": f"{path} holds no run and resume is 'always'; give the folder of one, or resume 'if_possible'",
    }
    if resume != "if_possible" and holds_run == (resume == "never"):
        with pytest.raises(RunFolderError) as caught:
            RunFolder(path, PRINT, resume)
        assert str(caught.value) == refused[resume]
        assert files(path) == before
        assert path.exists() == (what != "new")
        assert what == "killed at once" or not (path / "state" / "owner.json").exists()
    else:
        with RunFolder(path, PRINT, resume) as opened:
            assert opened.is_complete == (what == "complete")
        assert files(path) == (before if holds_run else {FINGERPRINT})


@pytest.mark.parametrize("resume", ["never", "always", "if_possible"])
def test_other_settings_are_refused_however_it_is_resumed(tmp_path: Path, resume: Resume) -> None:
    for what in ("unfinished", "complete"):
        path = made(tmp_path / what, what)
        with pytest.raises(RunFolderError) as caught:
            RunFolder(path, {**PRINT, "data": "def"}, resume)
        assert ("data: abc -> def" in str(caught.value)) == (resume != "never")


# ---- races


def racing(monkeypatch: pytest.MonkeyPatch, before: Callable[[Path], object]) -> None:
    """Has something happen in the folder just before the lock is asked for."""

    def late(home: Path, run: Path) -> RunLock:
        monkeypatch.undo()
        before(run)
        return RunLock(home, run)

    monkeypatch.setattr(store, "RunLock", late)


@pytest.mark.parametrize("what", ["ended", "tidying", "holding"])
def test_a_run_that_ends_at_this_moment_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    held = []

    def before(path: Path) -> None:
        completed(path)
        if what != "ended":
            (path / "state").mkdir()
        if what == "holding":
            held.append(RunLock(path / "state", path))

    racing(monkeypatch, before)
    folder = RunFolder(tmp_path / "run", PRINT)
    assert folder.is_complete
    folder.finish()
    assert len(held) == (what == "holding")
    assert files(folder.path) == {FINGERPRINT, SUMS, *KEPT}


def test_a_run_that_comes_at_this_moment_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run"
    racing(monkeypatch, lambda run: (run / FINGERPRINT).write_text('{"data": "def"}'))
    assert "data: def -> abc" in refusal(path, PRINT)
    (path / FINGERPRINT).unlink()
    racing(monkeypatch, lambda run: (run / FINGERPRINT).write_text(json.dumps(PRINT)))
    with pytest.raises(RunFolderError, match="resume is 'never'"):
        RunFolder(path, PRINT, "never")
    RunFolder(path, PRINT, "always")  # what was refused has let go


def test_damage_that_comes_at_this_moment_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    racing(monkeypatch, lambda run: (completed(run) / KEPT[0]).write_text("forged"))
    assert "is not as the run left it" in refusal(tmp_path / "run", PRINT)


@needs_fork
def test_of_two_that_start_at_once_one_is_refused_or_both_end_the_same(tmp_path: Path) -> None:
    outcomes = list[int]()
    for number in range(200):
        if number >= 20 and 1 in outcomes:
            break
        path, begin = tmp_path / f"{number}", time.monotonic() + 0.02
        pause = 0.002 * number if number >= 20 else 0.0  # on a busy machine one is done before the other begins

        def start(path: Path = path, begin: float = begin, pause: float = pause) -> str:
            while time.monotonic() < begin:
                pass
            return f"{os.getpid()} {completed(path, pause)}"

        told = in_forks(start, start)
        winners = [text.split()[0] for text in told if text.endswith(f" {path}")]
        for text in told:
            if text.split()[0] not in winners:
                in_use = re.fullmatch(f"refused: {path} is in use by process (\\d+) on .*", text)
                assert in_use, text
                assert in_use[1] in winners
        assert winners
        assert files(path) == {FINGERPRINT, SUMS, *KEPT}
        assert not (path / "state").exists()
        assert RunFolder(path, PRINT).is_complete
        outcomes.append(len(winners))
    assert 1 in outcomes, "they never met"
