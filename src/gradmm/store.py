"""The run folder: what a run leaves behind, written so that a kill at any moment loses nothing.

    config.yaml  environment.json  metrics.json  run.log
    data/synthetic.parquet  data/synthetic.jsonl
    state/       checkpoints of an unfinished run; removed when it is done

Every file is written beside its place and moved there whole. A run belongs to its fingerprint (settings,
data, model): another run does not continue in its folder.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gradmm.errors import RunFolderError

FINGERPRINT = "fingerprint.json"


class RunFolder:
    """A folder for one run.

    Args:
        path: made if it does not exist.
        fingerprint: what the run's results depend on.

    Raises:
        RunFolderError: if the folder holds another run or something else.
    """

    def __init__(self, path: str | Path, fingerprint: Mapping[str, Any]) -> None:
        self.path = Path(path).expanduser()
        self._claim(json.loads(json.dumps(fingerprint)))

    def _claim(self, fingerprint: dict[str, Any]) -> None:
        marker = self.path / FINGERPRINT
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file; give a folder for the run")
        if marker.is_file():
            self._compare(self._marked(marker), fingerprint)
        elif self.path.is_dir() and any(not p.name.startswith(f".{FINGERPRINT}.") for p in self.path.iterdir()):
            raise RunFolderError(f"{self.path} holds files that are not a run's; give an empty or a new folder")
        else:
            try:
                self.write_json(FINGERPRINT, fingerprint)
            except OSError as err:
                raise RunFolderError(f"cannot make the run folder {self.path} ({err}); give another") from err
        (self.path / "state").mkdir(exist_ok=True)

    def _marked(self, marker: Path) -> dict[str, Any]:
        try:
            found = json.loads(marker.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise RunFolderError(f"{marker} is damaged; give another folder")
        return found

    def _compare(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        before, now = flatten(old), flatten(new)
        changed = [
            f"  {key}: {before.get(key, 'not set')} -> {now.get(key, 'not set')}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        if changed:
            raise RunFolderError(
                f"{self.path} holds a run with other settings:\n" + "\n".join(changed) + "\n"
                "continue it with the old ones, or give another folder"
            )

    @property
    def is_complete(self) -> bool:
        """Whether the run has ended."""
        return (self.path / "metrics.json").is_file()

    def write(self, name: str, write: Callable[[Path], object]) -> Path:
        """Calls `write` with a temporary path, then moves the file to its place in one step."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(handle)
        try:
            write(Path(temporary))
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return target

    def write_text(self, name: str, text: str) -> Path:
        """Writes UTF-8 text."""
        return self.write(name, lambda path: path.write_text(text, encoding="utf-8"))

    def write_json(self, name: str, value: Any) -> Path:
        """Writes JSON, indented."""
        return self.write_text(
            name, json.dumps(as_json(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        )

    def read_json(self, name: str) -> Any:
        """Reads JSON."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def save_state(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Writes a checkpoint: tensors, and facts that JSON can hold, in one file."""
        cpu = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        self.write(
            f"state/{name}.safetensors",
            lambda path: save_file(cpu, path, metadata={"facts": json.dumps(dict(facts))}),
        )

    def load_state(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Reads a checkpoint; None if there is none.

        Raises:
            RunFolderError: if the file is damaged.
        """
        path = self.path / "state" / f"{name}.safetensors"
        if not path.is_file():
            return None
        from safetensors import safe_open

        try:
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["facts"])
            return load_file(path), facts
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as err:
            raise RunFolderError(
                f"{path} is damaged ({err}); delete it, and its part of the run is done again"
            ) from err

    def finish(self) -> None:
        """Removes the checkpoints."""
        if (self.path / "state").is_dir():
            shutil.rmtree(self.path / "state")


def as_json(value: Any) -> Any:
    """The value as JSON reads it back: tuples are lists, and what is not a number is null."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
