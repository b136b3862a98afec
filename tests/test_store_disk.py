"""Disks that fill up, folders that may not be written or go away: told, and nothing is lost."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gradmm.errors import RunFolderError
from gradmm.store import FINGERPRINT, SUMS, RunFolder
from store_tools import AGAIN, KEPT, PRINT, WRITERS, failing, files, in_forks, made, needs_fork, refusal


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run", PRINT)


# ---- the disk


FULL = "no space is left ({err}); make room, " + AGAIN
CLOSED = "it is read-only or not yours ({err}); see to its permissions, or give another folder"
OTHER = "{err}; mend that, " + AGAIN
CODES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), CLOSED),
    errno.EIO: OTHER,
}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("call", ["mkstemp", "write", "fsync", "chmod", "replace"])
def test_a_disk_that_fails_is_told_of_and_nothing_is_lost(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    folder.write_text("x.txt", "old")
    before = files(folder.path)
    home = {"mkstemp": tempfile, "write": Path}.get(call, os)
    with monkeypatch.context() as patch:
        patch.setattr(home, {"write": "write_text"}.get(call, call), lambda *_, **__: failing(code))
        with pytest.raises(RunFolderError) as caught:
            folder.write_text("x.txt", "new")
    told = CODES[code].format(err=f"[Errno {code}] {os.strerror(code)}")
    assert str(caught.value) == f"the run folder {folder.path} cannot be written to (x.txt): {told}"
    assert isinstance(caught.value.__cause__, OSError)
    assert files(folder.path) == before
    assert (folder.path / "x.txt").read_text() == "old"
    folder.write_text("x.txt", "new")
    assert (folder.path / "x.txt").read_text() == "new"


def test_a_disk_that_fails_again_while_it_is_tidied_tells_of_the_first_failure(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: failing(errno.ENOSPC))
        patch.setattr(os, "unlink", lambda *_: failing(errno.EIO))
        with pytest.raises(RunFolderError, match="no space is left"):
            folder.write_text("x.txt", "new")
    folder.close()
    assert RunFolder(folder.path, PRINT)
    assert files(folder.path) == {FINGERPRINT}  # what lay about was swept up


@pytest.mark.parametrize("call", ["mkdir", "fsync", "replace"])
def test_a_folder_that_cannot_be_made_is_told_of_and_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(os, call, lambda *_, **__: failing(errno.ENOSPC))
        with pytest.raises(RunFolderError, match="no space is left") as caught:
            RunFolder(path, PRINT)
    assert (path / FINGERPRINT).exists() is False
    assert RunFolder(path, PRINT).read_json(FINGERPRINT)  # though `caught` holds the first attempt
    assert caught.value.__traceback__ is not None


def test_a_full_disk_at_the_very_end_does_not_complete_the_folder(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.save_state("admm", {"x": torch.ones(1)}, {})
    for name in KEPT:
        folder.write_text(name, "kept")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: failing(errno.ENOSPC))
        with pytest.raises(RunFolderError, match=r"\(SHA256SUMS\): no space is left"):
            folder.finish()
    assert not folder.is_complete
    assert folder.load_state("admm") is not None
    folder.finish()
    assert RunFolder(folder.path, PRINT).is_complete


@needs_fork
@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_meets_a_real_limit(folder: RunFolder, name: str) -> None:
    import resource

    def limited() -> object:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        return WRITERS[name](RunFolder(folder.path, PRINT))

    folder.close()
    before = files(folder.path)
    (told,) = in_forks(limited)
    assert told.startswith(
        f"refused: the run folder {folder.path} cannot be written to ({name}): no space is left ("
    )
    assert told.endswith(f"); make room, {AGAIN}")
    assert files(folder.path) == before
    WRITERS[name](RunFolder(folder.path, PRINT))
    assert files(folder.path) == {*before, name}


@needs_fork
def test_a_folder_that_may_not_be_written_is_told_of() -> None:
    def unprivileged() -> object:
        if os.geteuid() == 0:
            os.seteuid(65534)
        return RunFolder(path, PRINT).is_complete

    with tempfile.TemporaryDirectory() as home:  # not in `tmp_path`, which is for the user alone
        os.chmod(home, 0o755)
        path = made(Path(home) / "run", "complete")
        os.chmod(path, 0o555)
        assert in_forks(unprivileged) == ["True"]
        path = made(Path(home) / "unfinished", "unfinished")
        os.chmod(path, 0o555)
        os.chmod(path / "state", 0o555)
        os.chmod(path / "state" / "lock", 0o444)
        (told,) = in_forks(unprivileged)
        assert re.fullmatch(
            f"refused: the run folder {path} cannot be made: it is read-only or not yours .*", told
        )
        path = made(Path(home) / "secret", "unfinished")
        os.chmod(path, 0)
        (told,) = in_forks(unprivileged)
        assert re.fullmatch(
            f"refused: the run folder {path} cannot be read: it is read-only or not yours .*", told
        )
        os.chmod(path, 0o755)


# ---- folders in the folder


def two_files(text: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        (path / "deep").mkdir()
        (path / "a.txt").write_text(text)
        (path / "deep" / "b.txt").write_text(text)

    return write


def test_a_folder_is_written_whole_or_not_at_all(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {FINGERPRINT, "model/a.txt", "model/deep/b.txt"}
    assert folder.write_folder("model", two_files("old")) == folder.path / "model"
    assert files(folder.path) == own
    assert stat.S_IMODE((folder.path / "model").stat().st_mode) == 0o755

    def failing_half(path: Path) -> None:
        two_files("new")(path)
        failing(errno.ENOSPC)

    for name, broken in (("fsync", two_files("new")), (None, failing_half), ("replace", two_files("new"))):
        with monkeypatch.context() as patch:
            if name is not None:
                patch.setattr(os, name, lambda *_: failing(errno.ENOSPC))
            with pytest.raises(RunFolderError, match=r"written to \(model\): no space is left"):
                folder.write_folder("model", broken)
        assert not list(folder.path.glob(".model*"))
        if name != "replace":  # the last moment, when the old one has made room
            assert (folder.path / "model" / "deep" / "b.txt").read_text() == "old"
    folder.write_folder("model", two_files("new"))
    assert (folder.path / "model" / "deep" / "b.txt").read_text() == "new"
    assert files(folder.path) == own


def test_what_a_complete_run_has_is_of_its_kind(tmp_path: Path) -> None:
    path, artefacts = tmp_path / "run", ("model/a.txt",)
    with RunFolder(path, PRINT, artefacts=artefacts) as folder:
        for name in ("config.yaml", "environment.json", "metrics.json"):
            folder.write_text(name, "kept")
        folder.write_folder("model", two_files("kept"))
        folder.finish()
    assert RunFolder(path, PRINT, artefacts=artefacts).is_complete
    assert "(data/synthetic.jsonl is not in it)" in refusal(path, PRINT)
    (path / "model" / "deep" / "b.txt").write_text("changed")
    with pytest.raises(RunFolderError, match=r"model/deep/b\.txt is not as the run left it"):
        RunFolder(path, PRINT, artefacts=artefacts)


# ---- the folder goes while it is worked in


def test_a_folder_that_is_gone_stays_gone(folder: RunFolder) -> None:
    shutil.rmtree(folder.path)
    gone = f"it is not there any more or never was ([Errno 2] No such file or directory: '{folder.path}')"
    for work, name in (
        (lambda: folder.write_text("x.txt", "x"), "x.txt"),
        (lambda: folder.save_state("admm", {"x": torch.ones(1)}, {}), "state/admm.safetensors"),
        (lambda: folder.write_text("data/x.txt", "x"), "data/x.txt"),
        (folder.finish, SUMS),
    ):
        with pytest.raises(RunFolderError) as caught:
            work()
        told = f"the run folder {folder.path} cannot be written to ({name}): {gone}"
        assert str(caught.value) == f"{told}; put it back or give another folder"
    assert folder.load_state("admm") is None
    folder.close()
    assert not folder.path.exists()


def test_a_file_in_the_place_of_a_folder_that_is_gone_is_left_alone(folder: RunFolder) -> None:
    shutil.rmtree(folder.path)
    folder.path.write_text("mine")
    for work in (lambda: folder.write_text("data/x.txt", "x"), folder.finish):
        with pytest.raises(RunFolderError, match="it is not there any more or never was"):
            work()
    folder.close()
    assert folder.path.read_text() == "mine"


@pytest.mark.parametrize(("gone", "made_again"), [("", True), ("state", True), ("state", False)])
def test_a_folder_that_may_be_another_process_is_not_written(
    folder: RunFolder, gone: str, made_again: bool
) -> None:
    shutil.rmtree(folder.path / gone)
    other = RunFolder(folder.path, PRINT) if made_again else None
    before = files(folder.path)
    with pytest.raises(RunFolderError) as caught:
        folder.save_state("admm", {"x": torch.ones(1)}, {})
    assert str(caught.value) == (
        f"{folder.path / 'state' / 'lock'} was removed or replaced while this process held it, so another one may "
        f"be at work in {folder.path}; see that none is, {AGAIN}"
    )
    folder.close()
    assert files(folder.path) == before
    if other is not None:
        assert refusal(folder.path, PRINT).startswith(f"{folder.path} is in use by process {os.getpid()} on")


def test_a_closed_folder_is_not_written(folder: RunFolder) -> None:
    folder.close()
    with pytest.raises(AssertionError, match="is closed"):
        folder.write_text("x.txt", "x")
