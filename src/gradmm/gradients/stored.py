"""Factors of more sets than memory holds: up to a limit in memory, the others in a file without a name.

The file is in the temporary folder (TMPDIR), mapped into memory, and gone with whoever reads it or with the
process, however that ends. A block's pages are handed back as soon as the next block is asked for, so that a pass
over all factors takes no more memory than a block does.
"""

from __future__ import annotations

import io
import mmap
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO

import torch

from gradmm.errors import OutOfMemoryError
from gradmm.gradients.factors import Factors


class StoredFactors:
    """Blocks of factors that can be read again and again: the same to the bit, wherever each is kept.

    Args:
        blocks: consecutive sets, float32; taken, and stored, one after the other.
        held_bytes: factors up to so many bytes stay in memory, where they are.

    Raises:
        OutOfMemoryError: if the temporary folder has no room for the others.
    """

    def __init__(self, blocks: Iterable[Factors], held_bytes: int) -> None:
        self._blocks: list[Factors | _Written] = []
        self._mapped: mmap.mmap | None = None
        with ExitStack() as stack:
            file: IO[bytes] | None = None
            for block in blocks:
                size = sum(part.nbytes for part in block.tensors())
                if size <= held_bytes:
                    held_bytes -= size
                    self._blocks.append(block)
                    continue
                with _no_room_told():
                    file = file or stack.enter_context(tempfile.TemporaryFile(buffering=0, prefix="gradmm-"))
                    self._blocks.append(_write(file, block))
            if file is not None:
                with _no_room_told():
                    self._mapped = mmap.mmap(file.fileno(), 0)

    def __len__(self) -> int:
        """How many blocks there are."""
        return len(self._blocks)

    def __getitem__(self, at: int) -> Factors:
        """A block; of one in the file only what is looked at is read."""
        block = self._blocks[at]
        if isinstance(block, Factors):
            return block
        assert self._mapped is not None, "what was written has been mapped"
        return block.read(self._mapped)

    def __iter__(self) -> Iterator[Factors]:
        """All blocks in turn."""
        for at, block in enumerate(self._blocks):
            yield self[at]
            if isinstance(block, _Written) and self._mapped is not None:
                block.leave(self._mapped)


@dataclass(frozen=True)
class _Written:
    """Where a block is in the file: where r, h and weight begin, each on a page of its own, and where it ends."""

    starts: tuple[int, ...]
    shapes: tuple[torch.Size, ...]
    end: int
    device: torch.device

    def read(self, mapped: mmap.mmap) -> Factors:
        """The block, on the device that it came from."""
        flat = (
            torch.frombuffer(mapped, dtype=torch.float32, count=shape.numel(), offset=start)
            for start, shape in zip(self.starts, self.shapes, strict=True)
        )
        parts = (part.view(shape) for part, shape in zip(flat, self.shapes, strict=True))
        return Factors(*(part.to(self.device) for part in parts))

    def leave(self, mapped: mmap.mmap) -> None:
        """Hands its pages back; they are read again when they are looked at again."""
        if hasattr(mmap, "MADV_DONTNEED"):  # elsewhere the system takes them when it needs them
            mapped.madvise(mmap.MADV_DONTNEED, self.starts[0], self.end - self.starts[0])


def _write(file: IO[bytes], block: Factors) -> _Written:
    starts = []
    for part in block.tensors():
        starts.append(file.seek(-file.tell() % mmap.PAGESIZE, io.SEEK_CUR))
        left = part.contiguous().cpu().numpy().data.cast("B")
        while left:  # a system may take less than it is given
            left = left[file.write(left) :]
    shapes = tuple(part.shape for part in block.tensors())
    return _Written(tuple(starts), shapes, file.tell(), block.r_KJV.device)


@contextmanager
def _no_room_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutOfMemoryError(
            "the candidates' gradients are more than memory should hold, and cannot be kept in the temporary "
            f"folder {tempfile.tempdir or ''} ({error}); set TMPDIR to a folder with more room, lower "
            "pool.texts_per_text, or match in a smaller space (space.maps)"
        ) from error
