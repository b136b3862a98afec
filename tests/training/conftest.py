"""Fixtures of the optimisers' tests."""

from __future__ import annotations

import pytest

from gradmm.training import addax


@pytest.fixture(params=[5, 2**18])
def piece(request, monkeypatch):
    """Parameters in many pieces, and each in one."""
    monkeypatch.setitem(addax._PIECE, "cpu", request.param)
