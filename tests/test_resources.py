"""The memory that a piece of work takes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from gradmm import resources
from gradmm.resources import peak_memory

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell of a part of a process's life")
def test_memory_that_was_freed_before_does_not_count() -> None:
    with peak_memory(CPU) as large:
        torch.ones(2**26).sum()
    with peak_memory(CPU) as small:
        torch.ones(2**10).sum()
    if large.bytes is None:
        pytest.skip("this system does not let the count be reset")
    assert large.bytes - small.bytes > 2**27


def test_where_the_system_does_not_tell_there_is_no_figure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(resources, "_CLEAR", tmp_path / "no such folder" / "file")
    with peak_memory(CPU) as peak:
        pass
    assert peak.bytes is None
