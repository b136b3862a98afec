"""Whether a run folder is as the run left it, asked before anything of it is published. No torch here."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath

from gradmm.errors import RunFolderError
from gradmm.report.read import LEDGER, SUMS, TEXTS, Texts

_LINE = re.compile(r"([0-9a-f]{64})  (\S[^\x00-\x1f]*)")
_NEEDED = ("config.yaml", "environment.json", "fingerprint.json", "metrics.json", TEXTS)


def check_intact(run: Texts) -> None:
    """Whether every file in the run's list of checksums is as it was left.

    Raises:
        RunFolderError: if one was changed or is gone, or the list is damaged or does not have what a run has.
    """
    sums = _read_sums(run.path / SUMS)
    for name in (*_NEEDED, *((LEDGER,) if run.is_private else ())):
        if name not in sums:
            raise _damaged(run.path / SUMS, f"{name} is not in it")
    for name, expected in sums.items():
        path = run.path / name
        try:
            found = _sha256(path)
        except FileNotFoundError:
            raise _damaged(path, "it is missing") from None
        except OSError as err:
            raise RunFolderError(f"{path} cannot be read ({err.strerror}); see to its permissions") from err
        if found != expected:
            raise _damaged(path, f"{SUMS} has {expected[:12]}... and it has {found[:12]}...")


def check_promise(run: Texts) -> None:
    """Whether a private run kept its promise, which its card is going to state.

    Raises:
        RunFolderError: if its ledger does not hold, or a test's noise was taken.
    """
    if not run.is_private:
        return
    from gradmm.privacy.verification import verify

    faults = verify(run.path).faults
    if faults:
        raise RunFolderError(
            f"{run.path / LEDGER} does not hold ({faults[0]}), and its card would promise privacy that nothing "
            "shows; see `gradmm privacy verify`, restore it, or run anew"
        )


def _read_sums(path: Path) -> dict[str, str]:
    """The checksums by name; a list that is cut, changed or leads out of the folder is refused."""
    sums: dict[str, str] = {}
    lines = path.read_bytes().decode("utf-8", "backslashreplace").split("\n")
    for number, line in enumerate(lines[:-1], 1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in sums or not _is_inside(match[2]):
            raise _damaged(path, f"line {number} is {line[:100]!r}")
        sums[match[2]] = match[1]
    if lines[-1]:
        raise _damaged(path, f"it ends with {lines[-1][:100]!r}")
    return sums


def _is_inside(name: str) -> bool:
    """Whether a name is that of a file within the folder, on every system."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and not set(name) & {"\\", ":"}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(path: Path, how: str) -> RunFolderError:
    return RunFolderError(f"{path} is not as the run left it ({how}); restore it, or run anew in another folder")
