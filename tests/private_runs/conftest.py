"""A small private run, and noise that is the same in every run."""

from __future__ import annotations

from typing import Any

import pytest

from gradmm import private_run
from gradmm.privacy.mechanism import FixedNoise
from gradmm.result import Result
from private_tools import FEW, make


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same noise in every run."""
    monkeypatch.setattr(private_run, "make_noise", lambda: FixedNoise(seed=3))


@pytest.fixture(scope="session")
def whole(tiny_lm: Any, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return make(tiny_lm("gpt2"), FEW, tmp_path_factory.mktemp("private") / "run")
