"""What a path leads to, and what to say of one that leads nowhere."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from gradmm.errors import DataError, nearest

_NO_FILES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def kind_of(path: Path, name: str) -> str | None:
    """Tell what is there, without opening it: "file", "folder", or None for nothing.

    Raises:
        DataError: It is neither, a link to nothing, or in a folder that may not be looked into.
    """
    try:
        mode = os.stat(path).st_mode
    except PermissionError as error:
        raise DataError(f"{name} cannot be looked at ({error.strerror}); see to the permissions") from error
    except (OSError, ValueError):  # none there, or no name that a path could have
        if not os.path.islink(path):
            return None
        target = os.readlink(path)
        raise DataError(f"{name} is a link to {target!r}, which is not there; mend the link") from None
    if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
        return "folder" if stat.S_ISDIR(mode) else "file"
    held = _NO_FILES.get(stat.S_IFMT(mode), "no file")
    raise DataError(f"{name} is {held}, which is not read from; write the rows into a file first")


def expanded(source: str | Path) -> Path:
    """Take `~` for the user's folder; that of a user who does not exist stays as it is."""
    return Path(os.path.expanduser(source))


def names_in(folder: Path, name: str) -> list[str]:
    """List the names in a folder.

    Raises:
        DataError: It cannot be listed.
    """
    try:
        return os.listdir(folder)
    except OSError as error:
        raise DataError(f"{name}: {folder} cannot be listed ({error.strerror}); see to its permissions") from error


def missing(path: Path, name: str) -> DataError:
    """Say where a path ends, and what there is like it."""
    gone = next(part for part in (path, *path.parents) if os.path.isdir(part.parent))
    if os.path.exists(gone):
        return DataError(f"{name}: {gone} is a file, not a folder; name a file in a folder")
    others = [other for other in names_in(gone.parent, name) if not other.startswith(".")]
    hint = nearest(gone.name, others) or ", which is empty; give the path of a file that is there"
    return DataError(f"{name}: no {gone.name!r} in {gone.parent.absolute()}{hint}")
