"""The run folder: writes are whole or not at all, folders belong to one run, checkpoints come back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gradmm.errors import RunFolderError
from gradmm.store import FINGERPRINT, RunFolder, flatten

PRINT: dict[str, Any] = {"settings": {"seed": 0, "admm": {"rho": 0.1}, "bans": ("a", "b")}, "data": "abc"}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run", PRINT)


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def refusal(path: Path, fingerprint: dict[str, Any]) -> str:
    with pytest.raises(RunFolderError) as caught:
        RunFolder(path, fingerprint)
    return str(caught.value)


# ---- writing


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_writer_that_fails_changes_nothing(
    folder: RunFolder, failure: type[BaseException], before: str | None
) -> None:
    if before is not None:
        folder.write_text("data/x.txt", before)
    present = files(folder.path)

    def write(path: Path) -> None:
        path.write_text("half")
        raise failure

    with pytest.raises(failure):
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
def test_a_cut_checkpoint_is_named(folder: RunFolder, keep: int) -> None:
    folder.save_state("admm", {"x": torch.ones(10)}, {})
    path = folder.path / "state" / "admm.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunFolderError) as caught:
        folder.load_state("admm")
    told = str(caught.value)
    assert told.startswith(f"{path} is damaged (")
    assert told.endswith("); delete it, and its part of the run is done again")


@pytest.mark.parametrize("metadata", [None, {}, {"other": "1"}, {"facts": "{"}])
def test_a_checkpoint_without_facts_is_named(folder: RunFolder, metadata: dict[str, str] | None) -> None:
    path = folder.path / "state" / "admm.safetensors"
    save_file({"x": torch.ones(1)}, path, metadata=metadata)
    with pytest.raises(RunFolderError) as caught:
        folder.load_state("admm")
    assert str(caught.value).startswith(f"{path} is damaged (")


def test_the_end_removes_checkpoints_only(folder: RunFolder) -> None:
    folder.save_state("admm", {"x": torch.ones(1)}, {})
    folder.write_text("data/x.txt", "kept")
    assert not folder.is_complete
    folder.write_json("metrics.json", {})
    assert folder.is_complete
    for _ in range(2):
        folder.finish()
        assert files(folder.path) == {FINGERPRINT, "data/x.txt", "metrics.json"}
        assert not (folder.path / "state").exists()
    assert RunFolder(folder.path, PRINT).is_complete


def test_flatten_gives_dotted_keys() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [{"e": 2}]}, "f": None}) == {
        "a.b.c": 1,
        "a.d": [{"e": 2}],
        "f": None,
    }
