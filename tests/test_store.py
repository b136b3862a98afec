"""The run folder: writes are whole or not at all, folders belong to one run, checkpoints come back."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gradmm import checksums, store
from gradmm.checksums import SUMS
from gradmm.errors import RunFolderError
from gradmm.store import FINGERPRINT, RunFolder, flatten
from store_tools import KEPT, PRINT, WRITERS, completed, failing, files, refusal


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run", PRINT)


# ---- writing


@pytest.mark.parametrize(("failure", "raised"), [(OSError, RunFolderError), (KeyboardInterrupt,) * 2])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_writer_that_fails_changes_nothing(
    folder: RunFolder, failure: type[BaseException], raised: type[BaseException], before: str | None
) -> None:
    if before is not None:
        folder.write_text("data/x.txt", before)
    present = files(folder.path)

    def write(path: Path) -> None:
        path.write_text("half")
        raise failure

    with pytest.raises(raised):
        folder.write("data/x.txt", write)
    assert files(folder.path) == present
    assert before is None or (folder.path / "data/x.txt").read_text() == before


def test_the_old_file_is_there_until_the_new_one_is_whole(folder: RunFolder) -> None:
    target = folder.write_text("x.txt", "old")

    def write(path: Path) -> None:
        path.write_text("new")
        assert path.parent == target.parent  # a move between file systems would not be one step
        assert target.read_text() == "old"

    assert folder.write("x.txt", write) == target
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o644
    assert files(folder.path) == {FINGERPRINT, "x.txt"}


def test_json_reads_back(folder: RunFolder) -> None:
    value = {"text": "é ☕ \u2028 \n", "figures": [0.1, 1e-300, None, True]}
    path = folder.write_json("a/b.json", value)
    assert folder.read_json("a/b.json") == value
    assert "é ☕" in path.read_text(encoding="utf-8")


# ---- whose folder it is


def test_a_new_or_empty_folder_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (tmp_path / "empty", tmp_path / "deep" / "new", Path("~/home")):
        assert (RunFolder(path, PRINT).path / FINGERPRINT).is_file()
    assert (tmp_path / "home").is_dir()


def test_the_same_run_goes_on(folder: RunFolder) -> None:
    folder.write_text("x.txt", "kept")
    folder.close()
    again = RunFolder(folder.path, json.loads(json.dumps(PRINT)))
    assert (again.path / "x.txt").read_text() == "kept"


def test_another_run_is_refused_with_the_difference(folder: RunFolder) -> None:
    other = {"settings": {"seed": 1, "admm": {}, "bans": ["a"], "new": None}, "data": "abc"}
    before = (folder.path / FINGERPRINT).read_bytes()
    assert refusal(folder.path, other) == (
        f"{folder.path} holds a run with other settings:\n"
        "  settings.admm.rho: 0.1 -> not set\n"
        "  settings.bans: ['a', 'b'] -> ['a']\n"
        "  settings.seed: 0 -> 1\n"
        "continue it with the old ones, or give another folder"
    )
    assert (folder.path / FINGERPRINT).read_bytes() == before


def test_foreign_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    told = f"{tmp_path} holds files that are not a run's; give an empty or a new folder"
    assert refusal(tmp_path, PRINT) == told
    assert files(tmp_path) == {"thesis.tex"}
    assert not (tmp_path / "state").exists()


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_text("x")
    assert refusal(path, PRINT) == f"{path} is a file; give a folder for the run"
    assert path.read_text() == "x"


def test_a_file_above_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    assert str(tmp_path / "notes.txt") in refusal(tmp_path / "notes.txt" / "run", PRINT)


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_fingerprint_is_named(folder: RunFolder, content: str) -> None:
    (folder.path / FINGERPRINT).write_text(content)
    assert str(folder.path / FINGERPRINT) in refusal(folder.path, PRINT)


def test_a_kill_while_the_folder_is_made_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # the dead clean nothing up
        with pytest.raises(KeyboardInterrupt):
            RunFolder(tmp_path / "run", PRINT)
    assert RunFolder(tmp_path / "run", PRINT).read_json(FINGERPRINT)["data"] == "abc"


# ---- checkpoints


def test_state_comes_back(folder: RunFolder) -> None:
    tensors = {
        "x": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).T.requires_grad_(),
        "count": torch.tensor(7),
        "half": torch.tensor([0.1, float("inf")], dtype=torch.bfloat16),
        "mask": torch.tensor([True, False]),
    }
    facts = {"trace": [{"text": 0.1 + 0.2, "outer": 1}], "none": None}
    folder.save_state("admm", {"x": torch.zeros(1)}, {"old": True})
    folder.save_state("admm", tensors, facts)
    kept = folder.load_state("admm")
    assert kept is not None
    assert kept[1] == facts
    assert kept[0].keys() == tensors.keys()
    for name, value in tensors.items():
        assert kept[0][name].dtype == value.dtype
        assert torch.equal(kept[0][name], value)
    assert folder.load_state("other") is None


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_cut_checkpoint_is_named_and_made_again(
    folder: RunFolder, keep: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder.save_state("admm", {"x": torch.ones(10)}, {})
    path = folder.path / "state" / "admm.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert folder.load_state("admm") is None
    (told,) = caplog.messages
    assert told.startswith(f"{path} is damaged (")
    assert told.endswith("); that part of the run is done again")
    assert not path.exists()


@pytest.mark.parametrize("metadata", [None, {}, {"other": "1"}, {"facts": "{"}, {"facts": "{}"}])
def test_a_checkpoint_without_facts_or_checksum_is_named(
    folder: RunFolder, metadata: dict[str, str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder.path / "state" / "admm.safetensors"
    save_file({"x": torch.ones(1)}, path, metadata=metadata)
    assert folder.load_state("admm") is None
    assert caplog.messages[0].startswith(f"{path} is damaged (")


def test_a_checkpoint_that_was_changed_is_made_again(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    folder.save_state("admm", {"x": torch.ones(10)}, {"trace": [1]})
    path = folder.path / "state" / "admm.safetensors"
    content = path.read_bytes()
    for changed in (content.replace(b"[1]", b"[2]"), content[:-1] + b"\x01"):
        assert changed != content
        path.write_bytes(changed)
        caplog.clear()
        assert folder.load_state("admm") is None
        assert caplog.messages == [
            f"{path} is damaged (its checksum is another); that part of the run is done again"
        ]
        path.write_bytes(content)
    assert folder.load_state("admm") is not None


@pytest.mark.parametrize("seed", range(3))
def test_no_changed_byte_of_a_checkpoint_goes_unnoticed(folder: RunFolder, seed: int) -> None:
    tensors = {"x": torch.ones(3, dtype=torch.bfloat16), "empty": torch.zeros(0), "n": torch.tensor(7)}
    folder.save_state("admm", tensors, {"trace": [1.5]})
    path = folder.path / "state" / "admm.safetensors"
    content, rng = path.read_bytes(), random.Random(seed)
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        kept = folder.load_state("admm")
        if kept is not None:  # blanks and the order of the header carry nothing
            assert kept[1] == {"trace": [1.5]}
            assert kept[0].keys() == tensors.keys()
            assert all(torch.equal(kept[0][name], value) for name, value in tensors.items())
    path.write_bytes(content)
    assert folder.load_state("admm") is not None


def test_a_checkpoint_from_elsewhere_is_none(
    folder: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = RunFolder(tmp_path / "other", {**PRINT, "data": "def"})
    for run, name in ((folder, "admm-000000"), (other, "admm-000002")):
        run.save_state(name, {"x": torch.ones(1)}, {})
        shutil.copy(run.path / f"state/{name}.safetensors", folder.path / "state/admm-000002.safetensors")
        assert folder.load_state("admm-000002") is None
    told = f"{folder.path / 'state/admm-000002.safetensors'} is damaged (its checksum is another)"
    assert caplog.messages == [f"{told}; that part of the run is done again"] * 2
    assert folder.load_state("admm-000000") is not None


# ---- the end


def test_the_end_removes_checkpoints_only(folder: RunFolder) -> None:
    folder.save_state("admm", {"x": torch.ones(1)}, {})
    for name in KEPT:
        folder.write_text(name, "kept")
    assert not folder.is_complete
    for _ in range(2):
        folder.finish()
        assert files(folder.path) == {FINGERPRINT, SUMS, *KEPT}
        assert not (folder.path / "state").exists()
    assert RunFolder(folder.path, PRINT).is_complete


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum")
def test_sha256sum_agrees(tmp_path: Path) -> None:
    path = completed(tmp_path / "run")
    done = subprocess.run(["sha256sum", "-c", SUMS], cwd=path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "".join(f"{name}: OK\n" for name in sorted((FINGERPRINT, *KEPT)))


def test_what_others_put_there_is_not_the_runs(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", PRINT) as folder:
        (folder.path / "notes.txt").write_text("mine")
        folder.close()
    path = completed(tmp_path / "run")
    (path / "notes.txt").write_text("changed")
    (path / "run.log").write_text("changed")
    assert RunFolder(path, PRINT).is_complete
    assert "notes.txt" not in (path / SUMS).read_text()


@pytest.mark.parametrize("name", [FINGERPRINT, *KEPT])
@pytest.mark.parametrize("how", ["changed", "cut", "emptied", "removed", "a folder"])
def test_damage_to_a_complete_run_is_refused_by_name(tmp_path: Path, name: str, how: str) -> None:
    path = completed(tmp_path / "run")
    content, fault = (path / name).read_bytes(), "is not as the run left it"
    if how in ("removed", "a folder"):
        (path / name).unlink()
        fault = "is missing"
    else:
        (path / name).write_bytes({"changed": content[:-1] + b" ", "cut": content[:-1], "emptied": b""}[how])
    if how == "a folder":
        (path / name).mkdir()
    before = files(path)
    told = refusal(path, PRINT)
    if name != FINGERPRINT:
        line = next(row for row in (path / SUMS).read_text().splitlines() if row.endswith(name))
        told_of = f"({SUMS} has {line[:12]}...); restore it, or run anew in another folder"
        assert told == f"{path / name} {fault} {told_of}"
    assert str(path / name) in told or (how in ("removed", "a folder") and name == FINGERPRINT)
    assert files(path) == before
    if how == "a folder":
        (path / name).rmdir()
    (path / name).write_bytes(content)
    assert RunFolder(path, PRINT).is_complete


ZEROS = "0" * 64


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: "", "config.yaml is not in it"),
        (lambda text: text[:-1], "it ends with '"),
        (lambda text: "\n" + text, "line 1 is ''"),
        (lambda text: text + "garbage\n", "line 7 is 'garbage'"),
        (lambda text: text.replace("\n", "\r\n"), "line 1 is '"),
        (lambda text: "\xff" + text, "line 1 is '"),
        (lambda text: text + text.splitlines()[0] + "\n", "line 7 is '"),
        (lambda text: "".join(text.splitlines(keepends=True)[:-1]), "metrics.json is not in it"),
        (lambda text: "".join(line for line in text.splitlines(True) if FINGERPRINT not in line), FINGERPRINT),
        (lambda text: text + f"{ZEROS}  ../../etc/passwd\n", f"line 7 is '{ZEROS}  ../../etc/passwd'"),
        (lambda text: text + f"{ZEROS}  data/../../x\n", f"line 7 is '{ZEROS}  data/../../x'"),
        (lambda text: text + f"{ZEROS}  /etc/passwd\n", f"line 7 is '{ZEROS}  /etc/passwd'"),
        (lambda text: text + f"{ZEROS}  C:\\x\n", f"line 7 is '{ZEROS}  C:\\\\x'"),
    ],
)
def test_damaged_checksums_are_refused(
    tmp_path: Path, change: Callable[[str], str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = completed(tmp_path / "run")
    (path / SUMS).write_bytes(change((path / SUMS).read_text()).encode("latin-1"))
    monkeypatch.setattr(checksums, "sha256", lambda file: pytest.fail(f"{file} was read"))
    refused = refusal(path, PRINT)
    assert refused.startswith(f"{path / SUMS} is damaged ({told}")
    assert refused.endswith("); restore it, or run anew in another folder")


def test_a_run_whose_checksums_are_gone_is_done_again(tmp_path: Path) -> None:
    path = completed(tmp_path / "run")
    sums = (path / SUMS).read_bytes()
    (path / SUMS).unlink()
    (path / KEPT[1]).write_text("forged")
    assert not RunFolder(path, PRINT).is_complete
    assert (completed(path) / SUMS).read_bytes() == sums


def test_a_complete_run_needs_no_lock_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = completed(tmp_path / "run")
    monkeypatch.setattr(store, "RunLock", lambda *_: pytest.fail("a lock is taken"))
    for module, name in ((os, "mkdir"), (os, "replace"), (os, "unlink"), (tempfile, "mkstemp")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("something is written"))
    with RunFolder(path, PRINT) as one, RunFolder(path, PRINT) as two:
        assert one.read_json(FINGERPRINT) == two.read_json(FINGERPRINT)
        one.finish()


def test_what_is_left_of_the_state_of_a_complete_run_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = completed(tmp_path / "run")
    (path / "state").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", lambda *_, **__: failing(errno.EROFS))
        RunFolder(path, PRINT).finish()
    told = f"{path / 'state'} cannot be removed; the run is complete and needs it no more"
    assert caplog.messages == [told]
    RunFolder(path, PRINT).finish()
    assert not (path / "state").exists()


# ---- names


@pytest.mark.parametrize(
    "name", ["a run", "-run", "é ☕ 運", "new\nline", "#%&'\"$(x)", "~nobody-has-this/run", "x" * 200]
)
def test_a_folder_may_have_any_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with RunFolder(name, PRINT) as folder:
        for each, write in WRITERS.items():
            write(folder)
            assert (tmp_path / name / each).is_file()
        assert folder.load_state("x") is not None
    completed(Path(name))
    assert RunFolder(tmp_path / name, PRINT).is_complete


def test_a_name_that_no_system_takes_is_refused(tmp_path: Path) -> None:
    told = refusal(tmp_path / ("x" * 300), PRINT)
    assert told.startswith(f"the run folder {tmp_path / ('x' * 300)} cannot be read: it is not there any more or")
    assert "too long" in told


def test_flatten_gives_dotted_keys() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [{"e": 2}]}, "f": None}) == {
        "a.b.c": 1,
        "a.d": [{"e": 2}],
        "f": None,
    }
