"""`gradmm.privacy.ledger`: nothing is drawn that is not written, and what was written stays."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from gradmm.errors import PrivacyBudgetError, RunFolderError
from gradmm.privacy.accounting import Gaussian, accountant_version, epsilon_of
from gradmm.privacy.config import Promise
from gradmm.privacy.ledger import LEDGER, Ledger, release_once
from gradmm.privacy.ledger_lines import chained, encoded
from gradmm.privacy.verification import verify
from ledger_tools import COUNTS, PROMISE, spend, written

RDP = Promise(neighboring_relation="add_or_remove_one", target_delta=1e-5, num_rows=500, accountant="rdp")
"""The faster accountant, where it does not matter which."""
BOTH = [spend("counts", COUNTS, bound=1.0, dimension=2), spend()]


class Run:
    """A run that releases a number of its rows, and may be killed at any step."""

    def __init__(self, folder: Path, epsilon: float = 1.0, killed_at: str | None = None) -> None:
        self.folder, self.killed_at, self.done = folder, killed_at, []
        self.ledger = Ledger(folder, RDP, epsilon)

    def step(self, name: str) -> None:
        if name == self.killed_at:
            raise KeyboardInterrupt(name)
        self.done.append(name)

    def load(self) -> str | None:
        path = self.folder / "release"
        return path.read_text() if path.exists() else None

    def prepare(self) -> str:
        self.step("read")
        return "rows"

    def draw(self, prepared: str) -> str:
        assert prepared == "rows" and self.ledger.has_spent("target")
        assert "target" in (self.folder / LEDGER).read_text(), "it is on the disk before anything is drawn"
        self.step("draw")
        return f"noisy {len(self.ledger.spent)}"

    def save(self, drawn: str) -> None:
        self.step("save")
        (self.folder / "release").write_text(drawn)

    def go(self) -> str:
        return release_once(self.ledger, BOTH, self.load, self.prepare, self.draw, self.save)


def test_the_lines_of_a_ledger(tmp_path):
    ledger = Ledger(tmp_path, PROMISE, 1.25)
    ledger.spend([spend("counts", Gaussian(20.0), bound=1.0, dimension=2), spend(event=Gaussian(4.0))])
    declaration, counts, target = written(tmp_path)
    assert {key: value for key, value in declaration.items() if key not in ("previous", "sha256")} == {
        "line": "declaration",
        "format": 1,
        "neighboring_relation": "add_or_remove_one",
        "unit": "row",
        "target_epsilon": 1.25,
        "target_delta": 1e-5,
        "accountant": "pld",
        "accountant_version": accountant_version(),
        "num_rows": 500,
        "public_counts": None,
    }
    assert counts["epsilon"] == epsilon_of([Gaussian(20.0)], 1e-5, "add_or_remove_one")
    assert target["epsilon"] == epsilon_of([Gaussian(20.0), Gaussian(4.0)], 1e-5, "add_or_remove_one")
    assert target["epsilon"] == ledger.epsilon
    assert target["event"] == {"noise_multiplier": 4.0, "count": 1, "sampling_probability": 1.0}
    assert (target["bound"], target["dimension"], target["noise"]) == (0.5, 64, "a test's words")
    assert (target["mechanism"], target["is_private"], target["is_again"]) == ("gaussian", True, False)
    assert declaration["previous"] is None
    assert (counts["previous"], target["previous"]) == (declaration["sha256"], counts["sha256"])


def test_the_same_settings_write_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Ledger(tmp_path / name, RDP, 1.0).spend(BOTH)
    assert (tmp_path / "a" / LEDGER).read_bytes() == (tmp_path / "b" / LEDGER).read_bytes()


def test_a_spend_is_on_the_disk_when_it_returns(tmp_path, monkeypatch):
    settled = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: settled.append(real(handle)))
    ledger = Ledger(tmp_path, RDP, 1.0)
    assert len(settled) == 2, "the file, and that it is there"
    ledger.spend([spend()])
    assert len(settled) == 3


def test_the_whole_budget_can_be_spent_in_any_order(tmp_path):
    for number, order in enumerate((BOTH, BOTH[::-1])):
        (tmp_path / str(number)).mkdir()
        ledger = Ledger(tmp_path / str(number), RDP, 1.0)
        for one in order:
            ledger.spend([one])
        assert 0.9999 < ledger.epsilon <= 1


def test_a_spend_above_the_budget_is_refused_and_leaves_no_trace(tmp_path):
    ledger = Ledger(tmp_path, RDP, 1.0)
    before = (tmp_path / LEDGER).read_bytes()
    with pytest.raises(PrivacyBudgetError) as caught:
        ledger.spend([spend(event=Gaussian(2.0))])
    epsilon = epsilon_of([Gaussian(2.0)], 1e-5, "add_or_remove_one", "rdp")
    assert str(caught.value) == (
        f"releasing target would bring epsilon to {epsilon:.4g} at delta 1e-05, and the budget is 1 (it is 0 so "
        f"far); nothing was drawn. Restore the release, or raise target_epsilon to {epsilon + 5e-4:.3f} if that "
        "is what you can promise"
    )
    assert caught.value.exit_code == 3
    assert (tmp_path / LEDGER).read_bytes() == before and ledger.spent == ()


def test_a_run_above_the_budget_reads_no_row(tmp_path):
    run = Run(tmp_path, epsilon=0.5)
    with pytest.raises(PrivacyBudgetError):
        run.go()
    assert run.done == [] and run.ledger.spent == ()


def test_a_raised_target_is_written_and_holds(tmp_path):
    Run(tmp_path).go()
    (tmp_path / "release").unlink()
    with pytest.raises(PrivacyBudgetError) as caught:
        Run(tmp_path).go()
    assert "counts, target was spent before and is lost, and another draw costs as much again" in str(caught.value)
    run = Run(tmp_path, epsilon=2.0)
    assert run.go() == "noisy 4"
    assert 1.3 < run.ledger.epsilon < 1.6, "two of epsilon 1 compose to less than 2"
    kinds = ["declaration", "spend", "spend", "target_epsilon", "spend", "spend"]
    assert [line["line"] for line in written(tmp_path)] == kinds
    assert [line["is_again"] for line in run.ledger.spent] == [False, False, True, True]
    assert verify(tmp_path).holds and verify(tmp_path).target_epsilon == 2


def test_a_target_below_what_was_spent_is_refused_and_leaves_no_trace(tmp_path):
    Run(tmp_path).go()
    before = (tmp_path / LEDGER).read_bytes()
    with pytest.raises(PrivacyBudgetError, match=r"says that epsilon 1 was spent, and target_epsilon is 0\.5; "):
        Run(tmp_path, epsilon=0.5)
    assert (tmp_path / LEDGER).read_bytes() == before


def test_a_last_target_below_what_was_spent_is_found(tmp_path):
    run = Run(tmp_path)
    run.go()
    lines = [{key: line[key] for key in line if key not in ("previous", "sha256")} for line in written(tmp_path)]
    lines.append({"line": "target_epsilon", "target_epsilon": 0.5})
    (tmp_path / LEDGER).write_bytes(b"".join(encoded(line) + b"\n" for line in chained(lines, None)))
    assert verify(tmp_path).faults == (f"epsilon is {run.ledger.epsilon:.6g}, above the last target of 0.5",)


def test_another_target_has_no_use_where_the_release_is_there(tmp_path):
    Ledger(tmp_path, RDP, 1.0, is_released=True)
    before = (tmp_path / LEDGER).read_bytes()
    with pytest.raises(RunFolderError, match="has target_epsilon 1, and now it is 2: what was released is there"):
        Ledger(tmp_path, RDP, 2.0, is_released=True)
    assert (tmp_path / LEDGER).read_bytes() == before
    Ledger(tmp_path, RDP, 1.0, is_released=True)


def test_a_draw_that_was_lost_is_drawn_again_as_it_was_planned(tmp_path):
    assert Ledger(tmp_path, RDP, 1.0).planned_epsilon == 1
    ledger = Ledger(tmp_path, RDP, 1.5)
    assert ledger.planned_epsilon == 1.5, "nothing was spent yet"
    ledger.spend(BOTH)
    assert Ledger(tmp_path, RDP, 4.0).planned_epsilon == 1.5


@pytest.mark.parametrize("step", ["read", "draw", "save"])
def test_a_run_that_is_killed_never_draws_what_it_did_not_write(tmp_path, step):
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path, killed_at=step).go()
    again = Run(tmp_path)
    if step == "read":
        assert again.ledger.spent == ()
        assert again.go() == "noisy 2" and again.ledger.epsilon <= 1
    else:
        assert len(again.ledger.spent) == 2 and again.load() is None
        with pytest.raises(PrivacyBudgetError):
            again.go()
        assert again.done == []


def test_a_release_that_is_there_is_used_and_costs_nothing(tmp_path):
    first = Run(tmp_path).go()
    again = Run(tmp_path)
    assert again.go() == first and again.done == []
    assert len(again.ledger.spent) == 2


def test_a_second_draw_says_so(tmp_path, caplog):
    Run(tmp_path, epsilon=5.0).go()
    (tmp_path / "release").unlink()
    with caplog.at_level(logging.WARNING, "gradmm"):
        assert Run(tmp_path, epsilon=5.0).go() == "noisy 4"
    assert "'target' was spent and is lost: it is drawn again, which is spent again" in caplog.text


def test_a_release_that_no_spend_is_for_is_refused(tmp_path):
    (tmp_path / "release").write_text("from elsewhere")
    with pytest.raises(RunFolderError, match=r"there is a release of counts, target, and .* has no spend for it"):
        Run(tmp_path).go()


def test_a_ledger_that_was_cut_at_any_byte_keeps_every_whole_line(tmp_path):
    Ledger(tmp_path, RDP, 1.0).spend(BOTH)
    whole = (tmp_path / LEDGER).read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / LEDGER).write_bytes(whole[:length])
        ledger = Ledger(tmp_path, RDP, 1.0)
        lines = whole[:length].count(b"\n")
        assert len(ledger.spent) == max(0, lines - 1)
        expected = whole[: whole[:length].rfind(b"\n") + 1] or whole[: whole.index(b"\n") + 1]
        assert (tmp_path / LEDGER).read_bytes() == expected


def test_a_cut_line_is_said_and_a_new_one_follows_it(tmp_path, caplog):
    Ledger(tmp_path, RDP, 1.0).spend(BOTH[:1])
    with (tmp_path / LEDGER).open("ab") as file:
        file.write(b'{"line": "spend", "rel')
    assert verify(tmp_path).faults == ("it ends in the middle of line 3",)
    with caplog.at_level(logging.WARNING, "gradmm"):
        Ledger(tmp_path, RDP, 1.0).spend(BOTH[1:])
    assert "ends in the middle of a line, for which nothing was drawn; it is taken off" in caplog.text
    assert verify(tmp_path).holds


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"neighboring_relation": "replace_one"},
            "neighboring_relation 'add_or_remove_one', and now it is 'replace_",
        ),
        ({"target_delta": 1e-6}, "target_delta 1e-05, and now it is 1e-06"),
        ({"accountant": "pld"}, "accountant 'rdp', and now it is 'pld'"),
    ],
)
def test_another_promise_does_not_go_on_with_a_ledger(tmp_path, changed, words):
    Ledger(tmp_path, RDP, 1.0)
    with pytest.raises(RunFolderError, match=words):
        Ledger(tmp_path, RDP.model_copy(update=changed), 1.0)


def test_a_ledger_that_cannot_be_written_stops_the_draw(tmp_path, monkeypatch):
    run = Run(tmp_path)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match="and without it nothing may be drawn"):
        run.go()
    assert run.done == ["read"]


def test_a_ledger_that_cannot_be_read_is_no_empty_one(tmp_path, monkeypatch):
    Ledger(tmp_path, RDP, 1.0)

    def closed(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", closed)
    with pytest.raises(RunFolderError, match=r"privacy\.json cannot be read .* nothing may be drawn"):
        Ledger(tmp_path, RDP, 1.0)
    with pytest.raises(RunFolderError, match=r"privacy\.json cannot be read .* see to its permissions"):
        verify(tmp_path)


def test_a_tests_noise_is_marked(tmp_path):
    ledger = Ledger(tmp_path, RDP, 1.0)
    assert ledger.is_private
    ledger.spend([spend(is_private=False, noise="fixed")])
    assert not ledger.is_private
    assert verify(tmp_path).faults == ("line 2 released 'target' with a test's noise: NOT PRIVATE",)
