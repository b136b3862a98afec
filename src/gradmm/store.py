"""The run folder: what a run leaves behind, written so that a kill at any moment loses nothing.

    fingerprint.json  config.yaml  environment.json  metrics.json  run.log
    data/synthetic.parquet  data/synthetic.jsonl    of `generate`, and privacy.json if it is private
    model/                                          of `train`
    SHA256SUMS   of all of these but the log; written last, so a folder that has it is complete
    state/       lock and checkpoints of an unfinished run; removed when it is done

Every file, and `model/`, is written beside its place and moved there whole. Checkpoints carry a checksum of their
own. A run belongs to its fingerprint (settings, data, model): another run does not continue in its folder, and no
second process works in it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gradmm.checksums import SUMS, check_sums, sha256
from gradmm.errors import RunFolderError
from gradmm.locking import LOCK, OWNER, RunLock

log = logging.getLogger("gradmm")
FINGERPRINT, LOG, STATE = "fingerprint.json", "run.log", "state"
_ALWAYS = ("config.yaml", "environment.json", "metrics.json")
TEXT_FILES = ("data/synthetic.jsonl", "data/synthetic.parquet")
_TEMPORARY = ".tmp"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_CODE = re.compile(r"\bcode: (\d+)|\bos error (\d+)")
Resume = Literal["never", "always", "if_possible"]


class RunFolder:
    """A folder for one run, held by this process until it is closed.

    Args:
        path: made if it does not exist.
        fingerprint: what the run's results depend on.
        resume: whether a run that is there already is gone on with. `never` takes a new or empty folder alone,
            `always` one that holds a run alone.
        artefacts: what a complete run of this kind has beside its settings, environment and metrics.

    Raises:
        RunFolderError: if the folder holds another run, a damaged one or something else, is in use by another
            process, cannot be written, or is not what `resume` asks for.
    """

    def __init__(
        self,
        path: str | Path,
        fingerprint: Mapping[str, Any],
        resume: Resume = "if_possible",
        artefacts: Sequence[str] = TEXT_FILES,
    ) -> None:
        self.path = Path(os.path.expanduser(path))
        self._present = (*_ALWAYS, *artefacts, FINGERPRINT)
        self._lock: RunLock | None = None
        self._sums: dict[str, str] = {}
        wanted = json.loads(json.dumps(fingerprint))
        self._run = json.dumps(wanted, sort_keys=True)
        self._check_place(resume)
        if self._is_done(wanted):
            return
        try:
            self._take(wanted, resume)
        except BaseException:
            self.close()  # what holds the exception would hold the lock as well
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets other processes in."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _check_place(self, resume: Resume) -> None:
        with _explained(self.path, "read"):
            if self.path.exists() and not self.path.is_dir():
                raise RunFolderError(f"{self.path} is a file; give a folder for the run")
            foreign = self.path.is_dir() and not all(map(_is_ours, self.path.iterdir()))
            holds_run = (self.path / FINGERPRINT).exists()  # asked last: it comes before all that is foreign
        if resume == "never" and holds_run:
            raise RunFolderError(
                f"{self.path} holds a run already and resume is 'never'; give a new folder, or resume it"
            )
        if resume == "always" and not holds_run:
            raise RunFolderError(
                f"{self.path} holds no run and resume is 'always'; give the folder of one, or resume 'if_possible'"
            )
        if foreign and not holds_run:
            raise RunFolderError(f"{self.path} holds files that are not a run's; give an empty or a new folder")

    def _is_done(self, fingerprint: dict[str, Any]) -> bool:
        """Whether this run has ended here, and all that it left is as it was."""
        with _explained(self.path, "read"):
            if not (self.path / FINGERPRINT).is_file():
                return False
            self._compare(self._marked(), fingerprint)
            if self.is_complete:
                check_sums(self.path, self._present)
            return self.is_complete

    def _take(self, fingerprint: dict[str, Any], resume: Resume) -> None:
        try:
            with _explained(self.path, "made"):
                (self.path / STATE).mkdir(parents=True, exist_ok=True)
                self._lock = RunLock(self.path / STATE, self.path)
                for left in list(self.path.rglob(f".*{_TEMPORARY}")):  # by a process that was killed
                    _remove(left)
        except RunFolderError:
            if not self.is_complete:  # if it is, whoever held it has ended the run and is tidying up
                raise
        self._check_place(resume)  # a run may have come, and ended, while the lock was another's
        if self._is_done(fingerprint):
            self.close()
        elif (self.path / FINGERPRINT).is_file():
            self._sums[FINGERPRINT] = sha256(self.path / FINGERPRINT)
        else:
            self.write_json(FINGERPRINT, fingerprint)

    def _marked(self) -> dict[str, Any]:
        marker = self.path / FINGERPRINT
        try:
            found = json.loads(marker.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise RunFolderError(f"{marker} is damaged; restore it, or give another folder")
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
        return (self.path / SUMS).is_file()

    def write(self, name: str, write: Callable[[Path], object]) -> Path:
        """Calls `write` with a temporary path, then moves the file to its place in one step.

        Raises:
            RunFolderError: if the disk is full, the folder cannot be written or is gone; what was there before
                stays as it was.
        """
        target = self.path / name
        with _explained(self.path, f"written to ({name})"):
            self._check_held()
            if target.parent != self.path:  # a run folder that is gone stays gone
                target.parent.mkdir(exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=_TEMPORARY)
            os.close(handle)
            try:
                write(Path(temporary))
                digest = _settled(Path(temporary))
                os.replace(temporary, target)
                self._sums[name] = digest
            except BaseException:
                with suppress(OSError):  # why it failed is what counts
                    os.unlink(temporary)
                raise
        return target

    def write_folder(self, name: str, write: Callable[[Path], object]) -> Path:
        """Calls `write` with the path of an empty folder, then moves the folder to its place in one step.

        Raises:
            RunFolderError: as `write`.
        """
        target = self.path / name
        with _explained(self.path, f"written to ({name})"):
            self._check_held()
            temporary = Path(tempfile.mkdtemp(dir=self.path, prefix=f".{name}.", suffix=_TEMPORARY))
            try:
                write(temporary)
                files = sorted(path for path in temporary.rglob("*") if path.is_file())
                sums = {(Path(name) / path.relative_to(temporary)).as_posix(): _settled(path) for path in files}
                os.chmod(temporary, 0o755)
                _remove(target)  # of a process that was killed just after this
                os.replace(temporary, target)
                self._sums |= sums
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)  # why it failed is what counts
                raise
        return target

    def _check_held(self) -> None:
        assert self._lock is not None, f"{self.path} is closed"
        lock = self.path / STATE / LOCK
        if not self.path.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
        if not self._lock.is_intact:
            raise RunFolderError(
                f"{lock} was removed or replaced while this process held it, so another one may be at work in "
                f"{self.path}; see that none is, then the same command goes on from the last checkpoint"
            )

    def write_text(self, name: str, text: str) -> Path:
        """Writes UTF-8 text."""
        return self.write(name, lambda path: path.write_text(text, encoding="utf-8", newline="\n"))

    def write_json(self, name: str, value: Any) -> Path:
        """Writes JSON, indented."""
        return self.write_text(
            name, json.dumps(as_json(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        )

    def read_json(self, name: str) -> Any:
        """Reads JSON."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def save_state(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Writes a checkpoint: tensors, and facts that JSON can hold, in one file with its checksum."""
        cpu = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        about = json.dumps(dict(facts))
        metadata = {"facts": about, "sha256": _digest(self._run, name, about, cpu)}
        self.write(f"{STATE}/{name}.safetensors", lambda path: save_file(cpu, path, metadata=metadata))

    def load_state(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Reads a checkpoint; None if there is none, or if it is damaged, which is logged: it is made again."""
        path = self.path / STATE / f"{name}.safetensors"
        with _explained(self.path, f"read ({STATE}/{path.name})"):
            if not path.is_file():
                return None
            try:
                return self._read_state(name, path)
            except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as err:
                log.warning("%s is damaged (%s); that part of the run is done again", path, err)
                path.unlink(missing_ok=True)
                return None

    def _read_state(self, name: str, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors, facts = load_file(path), json.loads(metadata["facts"])
        if _digest(self._run, name, metadata["facts"], tensors) != metadata["sha256"]:
            raise ValueError("its checksum is another")
        return tensors, facts

    def finish(self) -> None:
        """Completes the folder: checksums of what was written, no checkpoints, no lock."""
        if not self.is_complete:
            stays = sorted(name for name in self._sums if not name.startswith(f"{STATE}/"))
            self.write_text(SUMS, "".join(f"{self._sums[name]}  {name}\n" for name in stays))
        self.close()
        state = self.path / STATE
        shutil.rmtree(state, ignore_errors=True)  # another process may be tidying too
        if state.is_dir():
            log.warning("%s cannot be removed; the run is complete and needs it no more", state)


def _is_ours(path: Path) -> bool:
    """Whether a file may be there before the fingerprint is: left by a process that was killed at once."""
    if path.name == STATE and path.is_dir():
        return all(item.name in (LOCK, OWNER) for item in path.iterdir())
    return path.name.startswith(f".{FINGERPRINT}.") and path.name.endswith(_TEMPORARY)


@contextmanager
def _explained(path: Path, done: str) -> Iterator[None]:
    """Says what an error of the operating system means for a run, and how the run can go on."""
    try:
        yield
    except (OSError, SafetensorError) as err:
        raise RunFolderError(f"the run folder {path} cannot be {done}: {_remedy(err, path)}") from err


def _remedy(err: Exception, path: Path) -> str:
    found = _CODE.search(str(err))  # safetensors tells the number in its text alone
    code = getattr(err, "errno", None) or (int(found[1] or found[2]) if found else None)
    again = "the same command goes on from the last checkpoint"
    if code in _FULL:
        return f"no space is left ({err}); make room, then {again}"
    if code in _CLOSED:
        return f"it is read-only or not yours ({err}); see to its permissions, or give another folder"
    if not os.path.isdir(path):  # `Path.is_dir` raises for a name that is too long
        return f"it is not there any more or never was ({err}); put it back or give another folder"
    return f"{err}; mend that, then {again}"


def _digest(run: str, name: str, about: str, tensors: Mapping[str, Tensor]) -> str:
    """sha256 of a checkpoint's content, its name and its run: one that was copied from elsewhere is none."""
    digest = hashlib.sha256(json.dumps([run, name, about]).encode())
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _remove(path: Path) -> None:
    """A file, or a folder with all in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _settled(path: Path) -> str:
    """Flushes a file to the disk, lets everybody read it, and gives its checksum."""
    with path.open("rb+") as file:  # Windows flushes what is open for writing alone
        os.fsync(file.fileno())
    os.chmod(path, 0o644)
    return sha256(path)


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
