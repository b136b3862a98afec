"""Verification: a ledger that holds, and every way in which one was changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradmm.errors import RunFolderError
from gradmm.privacy.accounting import Gaussian, epsilon_of
from gradmm.privacy.ledger import LEDGER, Ledger
from gradmm.privacy.ledger_lines import chained, encoded
from gradmm.privacy.verification import verify
from ledger_tools import PROMISE, spend, written


@pytest.fixture
def spent(tmp_path) -> Path:
    Ledger(tmp_path, PROMISE, 1.0).spend([spend("counts", Gaussian(20.0)), spend(event=Gaussian(4.0))])
    return tmp_path


def test_a_ledger_that_holds(spent):
    found = verify(spent)
    assert found.holds and found.faults == ()
    events = [Gaussian(20.0), Gaussian(4.0)]
    assert found.epsilon == epsilon_of(events, 1e-5, "add_or_remove_one")
    assert found.epsilon_other == epsilon_of(events, 1e-5, "add_or_remove_one", "rdp")
    assert [line["release"] for line in found.spends] == ["counts", "target"]


def test_a_ledger_without_spends_holds(tmp_path):
    Ledger(tmp_path, PROMISE, 1.0)
    assert verify(tmp_path).holds and verify(tmp_path).epsilon == 0


def test_every_changed_byte_is_found(spent):
    path = spent / LEDGER
    whole = path.read_bytes()
    for at in range(0, len(whole), 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            assert not verify(spent).holds, at
        except RunFolderError:
            assert at <= whole.index(b"\n"), "without a declaration there is nothing to verify"
        if whole[at : at + 1] != b"\n" or at < len(whole) - 1:
            with pytest.raises(RunFolderError, match="was altered"):
                Ledger(spent, PROMISE, 1.0)


def test_a_line_says_how_it_was_changed(spent):
    path = spent / LEDGER
    whole = path.read_text()
    path.write_text(whole.replace('"noise_multiplier": 4.0', '"noise_multiplier": 9.0'))
    assert verify(spent).faults == ("line 3 was changed: its sha256 is another",)
    path.write_text(whole.replace('"release": "counts"', '"release":  "counts"'))
    assert verify(spent).faults == ("line 2 was changed: its sha256 is another",)
    path.write_text(whole.replace('"mechanism"', '"mechanism'))
    assert verify(spent).faults == ("line 2 is not JSON",)


@pytest.mark.parametrize(
    ("at", "changes", "words"),
    [
        (2, {"epsilon": 0.5}, "line 3 states epsilon 0.5, and what was spent by then costs 0.946"),
        (
            2,
            {"event": {"noise_multiplier": 9.0}},
            "line 3 states epsilon 0.946486, and what was spent by then costs",
        ),
        (2, {"event": {"noise_multiplier": -1.0}}, "line 3 has values that this version does not know"),
        (1, {"event": {"often": 1}}, "line 2 has values that this version does not know"),
        (1, {"event": 5}, "line 2 has values that this version does not know"),
        (1, {"is_private": "yes"}, "line 2 has values that this version does not know"),
        (1, {"line": "note"}, "line 2 is no spend"),
        (1, {"line": "target_epsilon"}, "line 2 has no 'target_epsilon'"),
        (1, {"line": "declaration"}, "line 2 is no spend"),
        (0, {"target_epsilon": 0.5}, "line 3 brings epsilon to 0.946486, above the target of 0.5"),
        (0, {"target_delta": 1e-9}, "line 2 states epsilon"),
    ],
)
def test_ledgers_that_were_written_anew_are_computed_anew(spent, at, changes, words):
    lines = [
        {key: value for key, value in line.items() if key not in ("previous", "sha256")} for line in written(spent)
    ]
    lines[at] |= changes
    (spent / LEDGER).write_bytes(b"".join(encoded(line) + b"\n" for line in chained(lines, None)))
    assert any(fault.startswith(words) for fault in verify(spent).faults)


@pytest.mark.parametrize("changes", [{"format": 2}, {"unit": "user"}, {"accountant": "gdp"}, {"target_delta": 2}])
def test_declarations_that_are_not_known_are_refused(spent, changes):
    (spent / LEDGER).write_bytes(
        b"".join(encoded(line) + b"\n" for line in chained([written(spent)[0] | changes], None))
    )
    with pytest.raises(RunFolderError, match="has values that this version does not know"):
        verify(spent)


@pytest.mark.parametrize("order", [[0, 2], [0, 2, 1], [1, 2], [0, 1, 1, 2]])
def test_lines_that_were_taken_out_moved_or_doubled_are_found(spent, order):
    lines = (spent / LEDGER).read_bytes().splitlines(keepends=True)
    (spent / LEDGER).write_bytes(b"".join(lines[at] for at in order))
    if order[0] == 0:
        assert "does not follow from the line before it" in verify(spent).faults[0]
    else:
        with pytest.raises(RunFolderError, match="has no declaration \\(line 1 does not follow from"):
            verify(spent)


def test_costs_above_the_target_are_found(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path, PROMISE, 1.0)
    monkeypatch.setattr(ledger, "check", lambda spends: None)
    ledger.spend([spend(event=Gaussian(1.0))])
    assert any("brings epsilon to 4.37" in fault and "target of 1" in fault for fault in verify(tmp_path).faults)


def test_folders_without_a_ledger_are_refused(tmp_path):
    with pytest.raises(
        RunFolderError, match=r"has no privacy.json; give the folder of a run with settings of priv"
    ):
        verify(tmp_path)
    (tmp_path / LEDGER).write_text("")
    with pytest.raises(RunFolderError, match="has no declaration \\(it is empty\\); restore it"):
        verify(tmp_path)
