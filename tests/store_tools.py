"""What the tests of the run folder share."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from gradmm.errors import RunFolderError
from gradmm.store import RunFolder

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="another process is a fork here")
KEPT = ("config.yaml", "data/synthetic.jsonl", "data/synthetic.parquet", "environment.json", "metrics.json")
AGAIN = "then the same command goes on from the last checkpoint"
PRINT: dict[str, Any] = {"settings": {"seed": 0, "admm": {"rho": 0.1}, "bans": ("a", "b")}, "data": "abc"}


def files(root: Path) -> set[str]:
    """What is in a folder, apart from its lock."""
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    return found - {"state/lock", "state/owner.json"}


def refusal(path: Path, fingerprint: dict[str, Any]) -> str:
    with pytest.raises(RunFolderError) as caught:
        RunFolder(path, fingerprint)
    return str(caught.value)


def completed(path: Path, pause: float = 0.0) -> Path:
    """A folder whose run has ended; it is held for some seconds more."""
    with RunFolder(path, PRINT) as folder:
        time.sleep(pause)
        if not folder.is_complete:
            for name in KEPT:
                folder.write_text(name, f"what {name} holds\n")
            folder.save_state("admm", {"x": torch.ones(1)}, {})
        folder.finish()
    return path


def in_forks(*works: Callable[[], object]) -> list[str]:
    """What functions give, or the errors that they raise, as text; each in a process that may be spoilt."""
    children = []
    for work in works:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                told = str(work())
            except RunFolderError as error:
                told = f"refused: {error}"
            except BaseException:
                told = traceback.format_exc()
            os.write(writer, told.encode())
            os._exit(0)
        os.close(writer)
        children.append((pid, reader))
    told = []
    for pid, reader in children:
        with open(reader, encoding="utf-8") as pipe:
            told.append(pipe.read())
        os.waitpid(pid, 0)
    return told


def failing(code: int) -> Any:
    raise OSError(code, os.strerror(code))


WRITERS: dict[str, Callable[[RunFolder], object]] = {
    "x.txt": lambda folder: folder.write_text("x.txt", "x" * 100_000),
    "state/x.safetensors": lambda folder: folder.save_state("x", {"x": torch.ones(50_000)}, {}),
    "x.parquet": lambda folder: folder.write(
        "x.parquet", lambda path: pq.write_table(pa.table({"x": list(range(50_000))}), path)
    ),
}


def made(path: Path, what: str) -> Path:
    if what == "empty":
        path.mkdir()
    elif what == "unfinished":
        RunFolder(path, PRINT).close()
    elif what == "complete":
        completed(path)
    elif what == "killed at once":
        (path / "state").mkdir(parents=True)
        (path / "state" / "lock").touch()
        (path / ".fingerprint.json.x.tmp").touch()
    return path


class Kept:
    """Checkpoints in memory."""

    def __init__(self) -> None:
        self.states: dict[str, tuple[dict[str, Tensor], dict[str, Any]]] = {}

    def save_state(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        self.states[name] = {key: value.clone() for key, value in tensors.items()}, dict(facts)

    def load_state(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return self.states.get(name)
