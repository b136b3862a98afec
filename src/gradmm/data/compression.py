"""Decompress a file, gzip or Zstandard, beside the work at hand."""

from __future__ import annotations

import gzip
import shutil
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from gradmm.data.signatures import check_content
from gradmm.errors import DataError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_BLOCK = 1 << 20


def inner_suffix(path: Path) -> str:
    """Give the extension in lower case, without that of a compression."""
    return (Path(path.stem) if path.suffix.lower() in COMPRESSIONS else path).suffix.lower()


def decompressed(path: Path, folder: Path, name: str) -> Path:
    """Decompress a file into `folder`, a block at a time; a file that is not compressed stays where it is.

    Returns:
        The path of the plain file.

    Raises:
        DataError: The file is damaged, or is not compressed as its name says.
        OSError: It cannot be read, or there is no space for it.
    """
    kind = COMPRESSIONS.get(path.suffix.lower())
    if kind is None:
        return path
    check_content(path, kind, name)
    plain = folder / f"rows{inner_suffix(path)}"
    try:
        with _open(path, kind, name) as stream, plain.open("wb") as out:
            shutil.copyfileobj(stream, out, _BLOCK)
    except (OSError, EOFError, zlib.error) as error:
        if getattr(error, "errno", None) is not None:  # of the file system, not of the format
            raise
        raise DataError(f"{name}: damaged {kind} file ({error}); copy or compress it again") from error
    return plain


def _open(path: Path, kind: str, name: str) -> BinaryIO:
    if kind == "gzip":
        return cast("BinaryIO", gzip.open(path))
    if path.stat().st_size == 0:
        return path.open("rb")
    if not pa.Codec.is_available(kind):
        raise DataError(f"{name}: this pyarrow reads no Zstandard; install pyarrow's own wheel, or decompress it")
    return cast("BinaryIO", pa.CompressedInputStream(str(path), kind))
