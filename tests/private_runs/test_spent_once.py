"""Private runs spend once, wherever they are interrupted and whatever is lost."""

from __future__ import annotations

import re
import shutil
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from gradmm.errors import PrivacyBudgetError, RunFolderError
from gradmm.gradients.private_sums import PrivateAccumulator
from gradmm.gradients.private_target import STATE
from gradmm.privacy.verification import verify
from gradmm.store import RunFolder
from private_tools import FEW, PRIVACY, ROWS, TILTED, StopAt, make
from run_tools import FILES, Idle, Interrupting, data_bytes, figures, files


@pytest.mark.parametrize(("changes", "spends"), [({}, 1), (TILTED, 2)], ids=["target", "words"])
def test_wherever_a_private_run_is_interrupted_it_ends_the_same_and_spends_once(
    tiny_lm: Any, tmp_path: Path, fixed: None, changes: dict[str, Any], spends: int
) -> None:
    lm = tiny_lm("gpt2")
    make(lm, FEW, tmp_path / "whole", **changes)
    for advances in count(0, 3):
        folder = tmp_path / f"{advances}"
        try:
            make(lm, FEW, folder, Interrupting(advances), **changes)
            break
        except KeyboardInterrupt:
            make(lm, FEW, folder, **changes)
            assert data_bytes(folder) == data_bytes(tmp_path / "whole")
            assert figures(folder) == figures(tmp_path / "whole")
            assert (folder / "privacy.json").read_bytes() == (tmp_path / "whole" / "privacy.json").read_bytes()
            assert files(folder) == FILES | {"privacy.json"}
    assert advances >= 16  # LM texts, rows, the search, measures
    assert len(verify(tmp_path / "whole").spends) == spends
    faults = verify(tmp_path / "whole").faults
    assert faults and all(fault.endswith("NOT PRIVATE") for fault in faults)


def test_a_release_is_drawn_once_and_used_from_then_on(
    tiny_lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the system's noise, of which no two draws are alike."""
    with pytest.raises(KeyboardInterrupt):
        make(tiny_lm("gpt2"), FEW, tmp_path / "a", StopAt("search"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(PrivateAccumulator, "release", None)
    make(tiny_lm("gpt2"), FEW, tmp_path / "a")
    make(tiny_lm("gpt2"), ROWS, tmp_path / "b")  # by the same name: no row is read, and none is compared
    assert data_bytes(tmp_path / "a") == data_bytes(tmp_path / "b")
    assert figures(tmp_path / "a") == figures(tmp_path / "b")
    assert all(verify(tmp_path / name).holds and len(verify(tmp_path / name).spends) == 1 for name in "ab")


@pytest.fixture
def lost(tiny_lm: Any, tmp_path: Path) -> Path:
    """A run that was killed between the draw and the release's writing."""
    save = RunFolder.save_state

    def killed(folder: RunFolder, name: str, *given: Any) -> None:
        if name == STATE:
            raise KeyboardInterrupt
        save(folder, name, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "save_state", killed)
        with pytest.raises(KeyboardInterrupt):
            make(tiny_lm("gpt2"), FEW, tmp_path / "run")
    return tmp_path / "run"


def test_a_release_that_was_lost_is_spent_again_only_if_the_budget_is_raised(tiny_lm: Any, lost: Path) -> None:
    before = (lost / "privacy.json").read_bytes()
    with pytest.raises(PrivacyBudgetError) as caught:
        make(tiny_lm("gpt2"), FEW, lost, Idle())
    assert (lost / "privacy.json").read_bytes() == before
    enough = float(re.search(r"raise target_epsilon to (\d+\.\d+) if", str(caught.value))[1])
    assert 3 < enough < 6
    result = make(tiny_lm("gpt2"), FEW, lost, privacy=PRIVACY | {"target_epsilon": enough})
    found = verify(lost)
    assert found.holds and [line["is_again"] for line in found.spends] == [False, True]
    assert len({line["event"]["noise_multiplier"] for line in found.spends}) == 1, "drawn as it was planned"
    assert enough - 0.01 < result.metrics["privacy"]["epsilon"] <= enough
    assert "it is drawn again, which is spent again" in (lost / "run.log").read_text()
    with pytest.raises(RunFolderError, match=r"settings\.privacy\.target_epsilon: \d\.\d+ -> 3\n"):
        make(tiny_lm("gpt2"), FEW, lost, Idle())


def test_another_budget_has_no_use_once_the_target_is_released(tiny_lm: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(tiny_lm("gpt2"), FEW, tmp_path / "run", StopAt("search"))
    before = (tmp_path / "run" / "privacy.json").read_bytes()
    for changed, refusal, told in (
        (
            {"target_epsilon": 4.0},
            RunFolderError,
            "has target_epsilon 3, and now it is 4: what was released is ther",
        ),
        (
            {"target_epsilon": 2.0},
            PrivacyBudgetError,
            r"epsilon 3 was spent, and target_epsilon is 2; nothing was ",
        ),
        ({"target_delta": 1e-6}, RunFolderError, r"settings\.privacy\.target_delta: 1e-05 -> 1e-06"),
    ):
        with pytest.raises(refusal, match=told):
            make(tiny_lm("gpt2"), FEW, tmp_path / "run", Idle(), privacy=PRIVACY | changed)
        assert (tmp_path / "run" / "privacy.json").read_bytes() == before


def test_before_anything_is_spent_the_budget_may_change(tiny_lm: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(tiny_lm("gpt2"), FEW, tmp_path / "run", StopAt("pool"))
    result = make(tiny_lm("gpt2"), FEW, tmp_path / "run", privacy=PRIVACY | {"target_epsilon": 4.0})
    assert 3.99 < result.metrics["privacy"]["epsilon"] <= 4 == verify(tmp_path / "run").target_epsilon
