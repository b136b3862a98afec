"""What the first bytes of a file say that it is, whatever its name says."""

from __future__ import annotations

from pathlib import Path

from gradmm.errors import DataError

_HEAD = 4096
_MARK = b"\xef\xbb\xbf"
_BINARY: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "Zstandard"),
    (b"PAR1", "Parquet"),
    (b"ARROW1", "Arrow"),
    (b"\xff\xff\xff\xff", "Arrow"),
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x80\x04\x95", "a Python pickle"),
    (b"\x7fELF", "a program"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
    (b"version https://git-lfs", "a Git LFS pointer"),
)
_MARKUP = ((b"<!doctype html", "an HTML page"), (b"<html", "an HTML page"), (b"<?xml", "XML"))
_REMEDIES = {
    "gzip": "add .gz to its name",
    "Zstandard": "add .zst to its name",
    "Parquet": "let its name end in .parquet",
    "Arrow": "let its name end in .arrow",
    "JSON": "let its name end in .json or .jsonl",
    "UTF-16 text": "save it as UTF-8",
    "UTF-16 text or binary data": "save it as UTF-8",
    "a Git LFS pointer": "fetch the file itself with `git lfs pull`",
    "text": "let its name end in .csv, .tsv, .json or .jsonl",
}
_NAMED = {
    "csv": "CSV",
    "json": "JSON",
    "parquet": "Parquet",
    "arrow": "Arrow",
    "gzip": "gzip",
    "zstd": "Zstandard",
}
_IS_TEXT = ("csv", "json")


def check_content(path: Path, kind: str, name: str) -> None:
    """Refuse a file that is for certain not what its name says.

    Args:
        path: The file.
        kind: What it should be: csv, json, parquet, arrow, gzip or zstd.
        name: The file, for the message; of one that was compressed, the name it had then.

    Raises:
        DataError: It is something else; an empty file is left to its reader.
        OSError: It cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    expected, held = _NAMED[kind], _kind_of(head)
    if kind == "csv" and head.removeprefix(_MARK).startswith((b'{"', b"[{")):
        held = "JSON"
    if not head or held == (None if kind in _IS_TEXT else expected):
        return
    if held is None:
        held = "text" if kind in _IS_TEXT or _is_text(head) else f"something else (it begins with {head[:8]!r})"
    remedy = _REMEDIES.get(held, "give a file of rows")
    raise DataError(f"{name} is named as {expected} but holds {held}; {remedy}")


def _kind_of(head: bytes) -> str | None:
    """Name what the first bytes are for certain; None for plain text and for what is not known."""
    for signature, held in _BINARY:
        if head.startswith(signature):
            return held
    start = head.removeprefix(_MARK).lstrip().lower()
    for signature, held in _MARKUP:
        if start.startswith(signature):
            return held
    if head[257:262] == b"ustar":
        return "a tar archive"
    return "UTF-16 text or binary data" if b"\0" in head and not head.startswith(b"PAR") else None


def _is_text(head: bytes) -> bool:
    """Tell whether the bytes are UTF-8, but for a last character that is cut."""
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4
    return True
