"""One process in a run folder: others are refused by name, and whoever ended leaves it to the next."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gradmm import locking
from gradmm.errors import RunFolderError
from gradmm.locking import LOCK, OWNER, RunLock

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="another process is a fork here")
HOST = socket.gethostname()
Fork = Callable[[Callable[[], object]], "Child"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "_PAUSE", 0.001)


def lock(home: Path) -> RunLock:
    return RunLock(home, Path("the/run"))


def refusal(home: Path) -> str:
    with pytest.raises(RunFolderError) as caught:
        lock(home)
    return str(caught.value)


def in_use_by(whom: str) -> str:
    return f"the/run is in use by {whom}; wait until that has ended, or give another folder"


class Child:
    """A fork that does something, says so, and waits for its end."""

    def __init__(self, work: Callable[[], object]) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                kept = work()
                os.write(writer, b"ready")
                signal.pause()
                del kept
            finally:
                os._exit(1)
        os.close(writer)
        assert os.read(reader, 5) == b"ready"
        os.close(reader)

    def kill(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0


@pytest.fixture
def fork() -> Iterator[Fork]:
    """`fork(work)`: a child that does it; none outlives the test."""
    children: list[Child] = []

    def start(work: Callable[[], object]) -> Child:
        children.append(Child(work))
        return children[-1]

    yield start
    for child in children:
        child.kill()


@pytest.fixture
def child(fork: Fork, tmp_path: Path) -> Child:
    return fork(lambda: lock(tmp_path))


# ---- held


@needs_fork
def test_a_second_process_is_refused_by_the_name_of_the_first(tmp_path: Path, child: Child) -> None:
    assert child.pid != os.getpid()
    assert refusal(tmp_path) == in_use_by(f"process {child.pid} on {HOST}")
    assert json.loads((tmp_path / OWNER).read_text()) == {"pid": child.pid, "host": HOST}


def test_a_second_lock_in_one_process_is_refused(tmp_path: Path) -> None:
    first = lock(tmp_path)
    assert refusal(tmp_path) == in_use_by(f"process {os.getpid()} on {HOST}")
    assert first.is_intact  # the refusal took nothing from it
    assert refusal(tmp_path) == in_use_by(f"process {os.getpid()} on {HOST}")


@pytest.mark.parametrize("owner", [None, "", "{", "[]", '{"pid": "1"}', '{"pid": -1}', '{"host": "x"}'])
def test_a_holder_whose_name_cannot_be_read_is_another_process(tmp_path: Path, owner: str | None) -> None:
    first = lock(tmp_path)
    if owner is None:
        (tmp_path / OWNER).unlink()
    else:
        (tmp_path / OWNER).write_text(owner)
    assert refusal(tmp_path) == in_use_by("another process")
    first.release()


def test_a_holder_that_has_not_yet_written_its_name_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, mine = lock(tmp_path), (tmp_path / OWNER).read_text()
    gone = {"pid": 2**22 + 1, "host": HOST}  # beyond the largest process id of Linux
    (tmp_path / OWNER).write_text(json.dumps(gone))
    monkeypatch.setattr(locking.time, "sleep", lambda seconds: (tmp_path / OWNER).write_text(mine))
    assert refusal(tmp_path) == in_use_by(f"process {os.getpid()} on {HOST}")
    first.release()


def test_a_holder_on_another_machine_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = lock(tmp_path)
    (tmp_path / OWNER).write_text(json.dumps({"pid": 2**22 + 1, "host": "elsewhere"}))
    monkeypatch.setattr(locking.time, "sleep", lambda seconds: pytest.fail("there is nothing to wait for"))
    assert refusal(tmp_path) == in_use_by(f"process {2**22 + 1} on elsewhere")
    first.release()


def test_a_holder_that_goes_while_another_comes_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = lock(tmp_path)
    (tmp_path / OWNER).unlink()
    monkeypatch.setattr(locking.time, "sleep", lambda seconds: first.release())
    assert lock(tmp_path).is_intact


# ---- let go


def test_release_lets_the_next_one_in(tmp_path: Path) -> None:
    first = lock(tmp_path)
    first.release()
    assert not (tmp_path / OWNER).exists()
    second = lock(tmp_path)
    first.release()  # the second time it is nobody's business any more
    assert (tmp_path / OWNER).exists()
    assert refusal(tmp_path) == in_use_by(f"process {os.getpid()} on {HOST}")
    second.release()


def test_what_is_collected_is_let_go(tmp_path: Path) -> None:
    first = lock(tmp_path)
    del first
    gc.collect()
    assert not (tmp_path / OWNER).exists()
    lock(tmp_path)


def test_another_thread_may_let_go(tmp_path: Path) -> None:
    first = lock(tmp_path)
    thread = threading.Thread(target=first.release)
    thread.start()
    thread.join()
    lock(tmp_path)


@needs_fork
def test_a_fork_does_not_let_go_for_its_parent(tmp_path: Path, fork: Fork) -> None:
    first = lock(tmp_path)
    child = fork(first.release)
    assert (tmp_path / OWNER).exists()
    assert refusal(tmp_path) == in_use_by(f"process {os.getpid()} on {HOST}")
    child.kill()
    assert first.is_intact


@needs_fork
def test_a_killed_holder_leaves_the_folder_to_the_next(
    tmp_path: Path, fork: Fork, caplog: pytest.LogCaptureFixture
) -> None:
    child = fork(lambda: lock(tmp_path))
    pid = child.pid
    child.kill()
    assert {path.name for path in tmp_path.iterdir()} == {LOCK, OWNER}
    with caplog.at_level(logging.INFO, "gradmm"):
        second = lock(tmp_path)
    assert caplog.messages == [f"the lock of process {pid} on {HOST}, which is gone, is taken over"]
    assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
    caplog.clear()
    second.release()
    with caplog.at_level(logging.INFO, "gradmm"):
        lock(tmp_path)
    assert caplog.messages == []  # that one said goodbye


def test_a_torn_name_is_no_hindrance(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / OWNER).write_text('{"pi')
    with caplog.at_level(logging.INFO, "gradmm"):
        lock(tmp_path)
    assert caplog.messages == ["the lock of another process, which is gone, is taken over"]


# ---- the folder goes, or cannot be written


def test_a_lock_that_fails_half_way_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left") as caught:
            lock(tmp_path)
    lock(tmp_path)
    del caught


def test_letting_go_hides_no_other_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    first = lock(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", closed)
        first.release()
    lock(tmp_path)


@pytest.mark.parametrize("made_again", [False, True])
def test_a_lock_whose_file_is_gone_is_not_intact(tmp_path: Path, made_again: bool) -> None:
    first = lock(tmp_path)
    assert first.is_intact
    (tmp_path / LOCK).unlink()
    if made_again:
        second = lock(tmp_path)
        assert second.is_intact
        (tmp_path / OWNER).write_text(json.dumps({"pid": os.getppid(), "host": HOST}))
    assert not first.is_intact
    first.release()
    assert (tmp_path / OWNER).exists()  # it may be another's name
