"""One process at a time in a run folder.

The lock is the operating system's, on an open file: it ends with the process that holds it, however that ends.
What is written beside it says who holds it, for the message alone.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gradmm.errors import RunFolderError

log = logging.getLogger("gradmm")
LOCK, OWNER = "lock", "owner.json"
_TRIES, _PAUSE = 25, 0.02  # half a second for a holder that is just coming or going


class RunLock:
    """Holds a folder for this process until it is released, collected or the process ends.

    Args:
        home: existing folder for the lock's files.
        run: the run folder, for messages.

    Raises:
        RunFolderError: if another process holds the lock; names it.
        OSError: if the folder cannot be written.
    """

    def __init__(self, home: Path, run: Path) -> None:
        self._path, self._owner = home / LOCK, home / OWNER
        lock = FileLock(self._path, thread_local=False)  # any thread may be the one that closes the run
        self._acquire(lock, run)
        self._file = _identity(self._path)
        self._release = weakref.finalize(self, _give_back, lock, self._path, self._owner, self._file, os.getpid())
        try:
            if self._owner.exists():
                log.info("the lock of %s, which is gone, is taken over", _described(_read(self._owner)))
            mine = {"pid": os.getpid(), "host": socket.gethostname()}
            self._owner.write_text(json.dumps(mine), encoding="utf-8")
        except BaseException:
            self.release()
            raise

    @property
    def is_intact(self) -> bool:
        """Whether the locked file is where it was: if not, the folder was removed, and another may be there."""
        return self._file is not None and _identity(self._path) == self._file

    def release(self) -> None:
        """Lets the next process in; does nothing the second time."""
        self._release()

    def _acquire(self, lock: FileLock, run: Path) -> None:
        owner = None
        for _ in range(_TRIES):
            try:
                lock.acquire(blocking=False)
                return
            except Timeout:
                owner = _read(self._owner)
            if _may_live(owner):
                break
            time.sleep(_PAUSE)  # the name of the last holder, or none yet
        raise RunFolderError(
            f"{run} is in use by {_described(owner)}; wait until that has ended, or give another folder"
        )


def _give_back(lock: FileLock, path: Path, owner: Path, file: tuple[int, int] | None, pid: int) -> None:
    """Ends the hold. Whatever fails here is no reason to hide why the run ended: the next one takes it over."""
    if os.getpid() != pid:
        return  # in a fork, whose parent goes on
    with suppress(OSError):
        if _identity(path) == file:  # or it is another's name, in a folder that was removed and made again
            owner.unlink(missing_ok=True)
    with suppress(OSError):
        lock.release()


def _read(owner: Path) -> Any:
    try:
        return json.loads(owner.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # being written or removed at this moment
        return None


def _pid(owner: Any) -> int | None:
    pid = owner.get("pid") if isinstance(owner, dict) else None
    return pid if isinstance(pid, int) and pid > 0 else None


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _may_live(owner: Any) -> bool:
    """Whether an owner can be the holder: not if it is known to have ended."""
    pid = _pid(owner)
    if pid is None:
        return False
    if os.name != "posix" or owner.get("host") != socket.gethostname():
        return True  # it cannot be asked
    try:
        os.kill(pid, 0)
    except OSError as err:
        return not isinstance(err, ProcessLookupError)
    return True


def _described(owner: Any) -> str:
    pid = _pid(owner)
    return "another process" if pid is None else f"process {pid} on {owner.get('host')}"
