"""How much memory a piece of work takes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """Filled in when the work is done."""

    bytes: int | None = None
    """Most memory that was held: on a GPU the allocator's, else the process's resident set; None where the system
    does not tell of a part of a process's life."""


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Watches the memory of the work within."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device)
    elif sys.platform == "linux" and _reset():
        yield peak
        peak.bytes = _high_water()
    else:
        yield peak


def _reset() -> bool:
    """Lets the kernel count the highest resident set from now on; not every container may."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _high_water() -> int | None:
    lines = _STATUS.read_text().splitlines()
    found = next((line for line in lines if line.startswith("VmHWM:")), None)
    return None if found is None else int(found.split()[1]) * 1024
