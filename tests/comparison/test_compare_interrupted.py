"""A comparison that is interrupted goes on where it was, and ends the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import gradmm
from compare_tools import settings, told
from gradmm.comparison.compare import Comparison
from gradmm.store import RunFolder
from run_tools import KEPT


def assert_alike(found: Comparison, whole: Comparison) -> None:
    assert told(found.records) == told(whole.records)
    assert found.path == whole.path
    for mine, other in zip(found.rows, whole.rows, strict=True):
        assert asdict(mine) | {"costs": None} == asdict(other) | {"costs": None}


def interrupt_after(saves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control-C at the next checkpoint but so many."""
    left = [saves]

    def save(self: RunFolder, *args: Any) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        own(self, *args)

    own = RunFolder.save_state
    monkeypatch.setattr(RunFolder, "save_state", save)


def test_wherever_a_comparison_is_interrupted_it_ends_the_same(files: Path, tmp_path: Path) -> None:
    generate = settings(files).generate.model_dump() | {"space": {"maps": ["whitened"], "public_texts": 5}}
    config = settings(files, methods=["search", "admm"], path=True, generate=generate)
    undisturbed = gradmm.compare(config, tmp_path / "whole")
    attempts, saves = 0, 1
    while True:  # killed at every checkpoint of the first seed, then at every fifth: the second has the same kinds
        with pytest.MonkeyPatch.context() as patch:
            interrupt_after(saves, patch)
            try:
                found = gradmm.compare(config, tmp_path / "often")
                break
            except KeyboardInterrupt:
                attempts += 1
        saves = 5 if list((tmp_path / "often" / "state").glob("seed-001-*")) else 1
        assert not (tmp_path / "often" / "results.parquet").exists()
    assert attempts >= 19
    assert_alike(found, undisturbed)
    left = [{path.name for path in (tmp_path / name).iterdir()} for name in ("whole", "often")]
    assert left[0] == left[1] == KEPT | {"results.parquet", "texts.parquet"}


@pytest.mark.parametrize("saves", [3, 12])
def test_what_was_done_is_not_done_again(
    saves: int, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    own = RunFolder.save_state
    monkeypatch.setattr(
        RunFolder, "save_state", lambda self, name, *more: made.append(name) or own(self, name, *more)
    )
    config = settings(files, methods=["search", "real_coreset"])
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(saves, patch)
        with pytest.raises(KeyboardInterrupt):
            gradmm.compare(config, tmp_path / "run")
    assert len(made) == saves
    gradmm.compare(config, tmp_path / "run")
    repeated = [name for name, count in Counter(made).items() if count > 1 and "refined" not in name]
    assert repeated == []
