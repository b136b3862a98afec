"""Whole runs on a disk that fails, in a folder that goes or is tampered with: told of, and nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from gradmm.config import RunConfig
from gradmm.data.sources import load_data
from gradmm.errors import RunFolderError
from gradmm.pipeline import generate
from gradmm.progress import Reporter, Stage
from gradmm.result import Result
from run_tools import DATA_FILES, FILES, files

ROWS = [
    (f"The film is {word}, a story {n}.", label) for n in range(3) for label, word in enumerate(("bad", "fine"))
]
SMALL = {
    "texts_per_class": 2,
    "block_size": 1,
    "per_device_batch_size": 2,
    "initial": {"candidates": 1},
    "space": {"public_texts": 2},
    "solver": "admm",
    "admm": {"n_outer": 2, "n_inner": 1, "relative_tolerance": 0},
    "lengths": {"distribution": "uniform", "min_tokens": 3, "max_tokens": 5},
    "references": False,
}

Go = Callable[..., Result]
Begun = Callable[[int], Path]


class Meddling(Reporter):
    """Does something after so many advances."""

    def __init__(self, left: int, meddle: Callable[[], object]) -> None:
        self.left, self.meddle = left, meddle

    @contextmanager
    def stage(self, name: str, total: float, unit: str) -> Iterator[Stage]:
        yield self  # type: ignore[misc]

    def advance(self, done: float = 1, shown: object = None, **figures: float) -> None:
        self.left -= 1
        if self.left == 0:
            self.meddle()


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def go(tiny_lm: Any) -> Go:
    data = load_data(ROWS)

    def run(
        folder: Path, reporter: Reporter | None = None, rows: Any = data, kind: str = "gpt2", **changes: Any
    ) -> Result:
        config = RunConfig.model_validate({**SMALL, **changes})
        return generate(tiny_lm(kind), "sst2", rows, config, folder, reporter)

    return run


@pytest.fixture(scope="module")
def whole(go: Go, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    go(folder)
    return folder


@pytest.fixture
def begun(unfinished: Begun, tmp_path: Path) -> Begun:
    """`begun(advances)`: the folder of a run that was interrupted then."""
    return lambda advances: shutil.copytree(unfinished(advances), tmp_path / "run")


@pytest.fixture(scope="module")
def unfinished(go: Go, tmp_path_factory: pytest.TempPathFactory) -> Begun:
    @cache
    def make(advances: int) -> Path:
        folder = tmp_path_factory.mktemp("unfinished") / "run"
        with pytest.raises(KeyboardInterrupt):
            go(folder, Meddling(advances, interrupt))
        return folder

    return make


@pytest.fixture(params=["interrupted", "ended"])
def run_folder(request: pytest.FixtureRequest, begun: Begun, whole: Path, tmp_path: Path) -> Path:
    return begun(7) if request.param == "interrupted" else shutil.copytree(whole, tmp_path / "run")


def same(folder: Path, whole: Path) -> bool:
    assert files(folder) == files(whole) == FILES
    metrics = [json.loads((each / "metrics.json").read_text()) for each in (folder, whole)]
    for each in metrics:
        del each["seconds"]
    return metrics[0] == metrics[1] and all(
        (folder / name).read_bytes() == (whole / name).read_bytes() for name in DATA_FILES
    )


# ---- the disk


WRITES = 16
"""Fingerprint, config, environment, LM texts of two classes, the space, two targets, two waves of two iterations,
data twice, metrics, checksums."""
ONCE = [(os, "replace", nth) for nth in range(1, WRITES + 1)]
ONCE += [(module, call, nth) for module, call in ((tempfile, "mkstemp"), (os, "fsync")) for nth in (1, 9, WRITES)]


@pytest.mark.parametrize(("module", "call", "nth"), ONCE)
def test_a_disk_that_is_full_once_loses_nothing(
    go: Go, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, call: str, nth: int
) -> None:
    folder, real, calls = tmp_path / "run", getattr(module, call), []

    def full(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, call, full)
        with pytest.raises(RunFolderError) as caught:
            go(folder)
    told = "no space is left ([Errno 28] No space left on device); make room, then the same command goes on"
    assert str(caught.value).startswith(f"the run folder {folder} cannot be written to (")
    assert str(caught.value).endswith(f"): {told} from the last checkpoint")
    assert len(calls) == nth
    assert not [name for name in files(folder) if name.endswith(".tmp")]
    go(folder)
    assert same(folder, whole)


def test_that_was_every_file_of_a_run(go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.replace, list[str]()
    monkeypatch.setattr(os, "replace", lambda *args: (calls.append(Path(args[1]).name), real(*args)))
    go(tmp_path / "run")
    assert len(calls) == WRITES
    kinds = {name.split("-")[0] for name in calls}
    assert kinds >= {"pool", "space.safetensors", "target", "admm", "metrics.json", "SHA256SUMS"}


@pytest.mark.parametrize("instead", ["folder", "full"])
def test_a_log_that_cannot_be_written_does_not_end_a_run(
    go: Go, whole: Path, begun: Begun, instead: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = begun(1)
    log = folder / "run.log"
    log.unlink()
    if instead == "folder":
        log.mkdir()
    elif Path("/dev/full").exists():
        log.symlink_to("/dev/full")  # opens, but has no room for a line
    else:
        pytest.skip("there is no /dev/full")
    go(folder)
    told = [line for line in caplog.messages if line.startswith("cannot write ")]
    assert len(told) == 1
    assert "/dev/full" in told[0] or str(log) in told[0]
    assert told[0].endswith("); going on without it")
    log.rmdir() if instead == "folder" else log.unlink()
    log.touch()
    assert same(folder, whole)


# ---- the folder


@pytest.mark.parametrize("advances", [1, 3, 4, 6, 9, 11])
def test_a_folder_that_is_removed_ends_the_run_and_stays_away(go: Go, tmp_path: Path, advances: int) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RunFolderError, match="it is not there any more or never was") as caught:
        go(folder, Meddling(advances, lambda: shutil.rmtree(folder)))
    assert str(caught.value).endswith("; put it back or give another folder")
    assert not folder.exists()


def test_a_folder_that_is_in_use_is_refused_and_the_first_run_goes_on(go: Go, whole: Path, tmp_path: Path) -> None:
    folder, told = tmp_path / "run", list[str]()

    def another() -> None:
        with pytest.raises(RunFolderError) as caught:
            go(folder)
        told.append(str(caught.value))

    go(folder, Meddling(3, another))
    assert told[0].startswith(f"{folder} is in use by process {os.getpid()} on ")
    assert same(folder, whole)


# ---- what is there already


@pytest.mark.parametrize(
    ("advances", "count", "how"),
    [
        *((12, 7, how) for how in ("changed", "cut", "emptied", "removed")),
        *((advances, count, "changed") for advances, count in ((1, 1), (3, 3), (5, 4), (7, 5), (9, 6))),
    ],
)
def test_damaged_checkpoints_are_named_and_made_again(
    go: Go, whole: Path, begun: Begun, advances: int, count: int, how: str
) -> None:
    folder = begun(advances)
    checkpoints = sorted((folder / "state").glob("*.safetensors"))
    assert len(checkpoints) == count
    for path in checkpoints:
        content = path.read_bytes()
        path.write_bytes({"changed": content[:-1] + bytes([content[-1] ^ 1]), "cut": content[:-9]}.get(how, b""))
        if how == "removed":
            path.unlink()
    go(folder)
    assert same(folder, whole)
    log = (folder / "run.log").read_text()
    assert all((f"{path} is damaged (" in log) == (how != "removed") for path in checkpoints)


@pytest.mark.parametrize("name", sorted(FILES - {"run.log", "SHA256SUMS"}))
def test_a_complete_run_that_was_tampered_with_is_refused(go: Go, whole: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    content = (folder / name).read_bytes()
    middle = len(content) // 2
    (folder / name).write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    before = {each: (folder / each).read_bytes() for each in files(folder)}
    with pytest.raises(RunFolderError) as caught:
        go(folder)
    assert str(folder / name) in str(caught.value) or name == "fingerprint.json"
    assert {each: (folder / each).read_bytes() for each in files(folder)} == before


def test_what_does_not_affect_results_may_change(go: Go, whole: Path, run_folder: Path) -> None:
    go(
        run_folder,
        per_device_batch_size=2,
        model={"device": "cpu", "torch_compile": True},
        data={"dataset": "elsewhere.csv"},
    )
    assert same(run_folder, whole)
    go(run_folder, per_device_batch_size=64)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"seed": 1}, "  settings.seed: 0 -> 1"),
        ({"admm": {**SMALL["admm"], "n_outer": 3}}, "  settings.admm.n_outer: 2 -> 3"),
        ({"rows": ROWS[1:]}, "  data: "),
        ({"rows": [(ROWS[0][0] + " ", 0), *ROWS[1:]]}, "  data: "),
        ({"kind": "neox"}, "  model: "),
    ],
)
def test_what_affects_results_is_refused_with_the_difference(
    go: Go, run_folder: Path, change: dict[str, Any], line: str
) -> None:
    before = {each: (run_folder / each).read_bytes() for each in files(run_folder)}
    with pytest.raises(RunFolderError) as caught:
        go(run_folder, **change)
    head, difference, remedy = str(caught.value).splitlines()
    assert head == f"{run_folder} holds a run with other settings:"
    assert difference.startswith(line)
    assert remedy == "continue it with the old ones, or give another folder"
    assert {each: (run_folder / each).read_bytes() for each in files(run_folder)} == before
