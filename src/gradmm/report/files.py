"""Writing what a run is shown by: whole, or not at all."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from gradmm.errors import RunFolderError


def replace_file(target: Path, text: str) -> None:
    """Writes a file in one step, as UTF-8; one that was there stays whole until then.

    Raises:
        RunFolderError: if it cannot be written.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as err:
        with suppress(OSError):  # why it failed is what counts
            temporary.unlink()
        if isinstance(err, OSError):
            raise RunFolderError(
                f"{target} cannot be written ({err}); see to its folder's permissions and space, or give another "
                "place"
            ) from err
        raise
