"""The list of checksums that a complete run folder has, `SHA256SUMS`. No torch here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from gradmm.errors import RunFolderError

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (\S[^\x00-\x1f]*)")


def check_sums(folder: Path, needed: Iterable[str]) -> None:
    """Whether every artefact of a complete run is as it was left; damage is not mended, for the run is over.

    Args:
        folder: the run folder.
        needed: files that the list has to have.

    Raises:
        RunFolderError: if a file was changed or is gone, or the list is cut, changed, or leads out of the folder.
    """
    for name, expected in _read_sums(folder / SUMS, needed).items():
        path = folder / name
        if not path.is_file() or sha256(path) != expected:
            fault = "is not as the run left it" if path.is_file() else "is missing"
            raise RunFolderError(
                f"{path} {fault} ({SUMS} has {expected[:12]}...); restore it, or run anew in another folder"
            )


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_sums(path: Path, needed: Iterable[str]) -> dict[str, str]:
    sums = dict[str, str]()
    lines = path.read_bytes().decode("utf-8", "backslashreplace").split("\n")
    for number, line in enumerate(lines[:-1], 1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in sums or not _is_inside(match[2]):
            raise _damaged(path, f"line {number} is {line[:100]!r}")
        sums[match[2]] = match[1]
    if lines[-1]:
        raise _damaged(path, f"it ends with {lines[-1][:100]!r}")
    for name in needed:
        if name not in sums:
            raise _damaged(path, f"{name} is not in it")
    return sums


def _is_inside(name: str) -> bool:
    """Whether a name is that of a file within the folder, on every system."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and not set(name) & {"\\", ":"}


def _damaged(path: Path, how: str) -> RunFolderError:
    return RunFolderError(f"{path} is damaged ({how}); restore it, or run anew in another folder")
