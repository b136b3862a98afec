"""`gradmm privacy` as a user meets it: the plan, the explanation, the way back, the ledger; and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import Run
from gradmm.privacy.accounting import Gaussian
from gradmm.privacy.config import Promise
from gradmm.privacy.ledger import LEDGER, Ledger
from gradmm.privacy.ledger_lines import Spend

pytestmark = pytest.mark.usefixtures("own_folder")
BUDGET = ("privacy", "--epsilon", "1", "--delta", "1e-5")
ADD = ("--neighboring-relation", "add_or_remove_one")
PROMISE = Promise(neighboring_relation="replace_one", target_delta=1e-6, accountant="rdp")


@pytest.fixture
def spent() -> Path:
    Ledger(".", PROMISE, 3.0).spend([Spend("target", Gaussian(9.0), 0.5, 64, "exactly")])
    return Path(LEDGER)


# ---- the plan


def test_the_plan_of_a_budget(run: Run):
    found = run(*BUDGET, *ADD)
    assert (found.code, found.err) == (0, "")
    assert found.out.startswith(
        "Promise: epsilon 1, delta 1e-05, per row, add_or_remove_one: the data and the same"
    )
    cells = [cell.strip() for cell in next(line for line in found.out.splitlines() if "│" in line).split("│")]
    assert cells == ["", "target", "100%", "3.7306", ""]
    assert "Cost: epsilon 1.0000 by PLD, which is held to the target; 1.0926 by RDP, to compare" in found.out
    assert "Signal" not in found.out


def test_without_the_relation_the_choice_is_explained(run: Run):
    found = run(*BUDGET)
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith("error: neighboring_relation is missing, and what epsilon promises depends on it;")
    assert "  add_or_remove_one: the data" in found.err and "  replace_one: the data" in found.err


def test_signal_to_noise_and_advice(run: Run):
    fine = run(*BUDGET, *ADD, "--num-rows", "4000", "--dimension", "4096")
    assert (
        "Signal to noise: at most 16.8. With 4,000 rows per class, the noise on a class's mean gradient"
        in fine.out
    )
    assert "has norm 0.0597, in units of the clip" in fine.out and "drown" not in fine.out
    shared = run(*BUDGET, *ADD, "--num-rows", "400", "--num-classes", "4", "--dimension", "4096")
    assert "With 100 rows per class" in shared.out
    assert "The target drowns in the noise; what brings the ratio to 4:\n  - a space of at most" in shared.out


def test_shares_and_rounds(run: Run):
    found = run(*BUDGET, *ADD, "--count-fraction", "0.1", "--words-fraction", "0.3", "--rounds", "2")
    rows = [line.split("│")[1:4] for line in found.out.splitlines() if "│" in line]
    assert [[cell.strip() for cell in row][:2] for row in rows] == [
        ["counts", "10%"],
        ["words", "30%"],
        ["target 1", "30%"],
        ["target 2", "30%"],
    ]


def test_json_has_full_precision_and_reads_back(run: Run):
    found = json.loads(run(*BUDGET, *ADD, "--num-rows", "4000", "--dimension", "512", "--json").out)
    noise = found["noise_multiplier"]
    assert noise == pytest.approx(3.730635, abs=1e-5) and found["epsilon"] <= 1
    assert found["expected_snr"] == pytest.approx(1 / found["noise_norm"])
    back = json.loads(run("privacy", "--noise-multiplier", noise, "--delta", "1e-5", *ADD, "--json").out)
    assert back["epsilon"] == found["epsilon"]


def test_delta_auto_is_stated(run: Run):
    found = run("privacy", "--epsilon", "1", "--delta", "auto", "--num-rows", "8530", *ADD)
    assert "delta 1.92e-05" in found.out
    assert run("privacy", "--epsilon", "1", "--delta", "auto", *ADD).code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--epsilon", "1"), "neighboring_relation is missing"),
        (("--epsilon", "1", *ADD), "target_delta is missing: the probability with which"),
        (("--delta", "1e-5", *ADD), "target_epsilon is missing: the whole budget"),
        (("--epsilon", "0", "--delta", "1e-5", *ADD), "target_epsilon: Input should be greater than or equal"),
        (
            ("--epsilon", "1", "--delta", "auto", *ADD, "--num-rows", "1.5"),
            "num_rows: Input should be a valid integer",
        ),
        (("--noise-multiplier", "0", "--delta", "1e-5", *ADD), "'--noise-multiplier'"),
        (("--epsilon", "1", "--delta", "2", *ADD), "target_delta is 2; give one from 1e-12 to below 1"),
        (
            ("--epsilon", "1", "--noise-multiplier", "2", "--delta", "1e-5", *ADD),
            "--noise-multiplier asks what noise costs, and --epsilon is given too; give one of both",
        ),
        (
            ("--epsilon", "1", "--delta", "1e-5", *ADD, "--count-fraction", "1"),
            "--count-fraction is 1; give a share of the budget, above 0 and below 1",
        ),
        (
            ("--epsilon", "1", "--delta", "1e-5", *ADD, "--count-fraction", "0.5", "--words-fraction", "0.5"),
            "50% of the budget for counts and 50% of the budget for words leave nothing to the target; lower a ",
        ),
        (("--epsilon", "1", "--delta", "1e-5", *ADD, "--dimension", "9"), "takes a number of rows too"),
        (
            ("--epsilon", "one", "--delta", "1e-5", *ADD),
            "target_epsilon: Input should be a valid number, unable to parse string as a number (it is 'one')",
        ),
    ],
)
def test_misuse(run: Run, words, said):
    found = run("privacy", *words)
    assert (found.code, found.out) == (2, "")
    assert said in found.err


def test_unknown_words_are_answered_with_the_verb(run: Run):
    found = run("privacy", "--epsillon", "1")
    assert found.code == 2 and "Usage: gradmm privacy [OPTIONS]" in found.err
    assert "privacy" in run("privat").err


# ---- the ledger


def test_a_ledger_that_holds(run: Run, spent: Path):
    found = run("privacy", "verify", ".")
    assert (found.code, found.err) == (0, "")
    assert found.out.startswith("Promise: epsilon 3, delta 1e-06, per row, replace_one: ")
    assert "Spent: epsilon 1.0074 by RDP, 0.9342 by PLD (dp-accounting " in found.out
    assert "ok  the ledger is whole, and what was spent is within the target" in found.out
    assert json.loads(run("privacy", "verify", ".", "--json").out)["holds"] is True


def test_a_ledger_that_does_not(run: Run, spent: Path):
    spent.write_text(spent.read_text().replace('"noise_multiplier": 9.0', '"noise_multiplier": 99.0'))
    found = run("privacy", "verify", ".")
    assert found.code == 1 and "FAIL  line 2 was changed: its sha256 is another" in found.out
    as_json = run("privacy", "verify", ".", "--json")
    assert as_json.code == 1 and json.loads(as_json.out)["holds"] is False


def test_a_raised_target_is_said(run: Run, spent: Path):
    Ledger(".", PROMISE, 5.0)
    assert "Promise: epsilon 5" in run("privacy", "verify", ".").out
    assert "The target was 3 when the run began." in run("privacy", "verify", ".").out


def test_no_ledger(run: Run):
    found = run("privacy", "verify", ".")
    assert (found.code, found.err) == (
        1,
        "error: . has no privacy.json; give the folder of a run with settings of privacy\n",
    )


# ---- what it waits for


def test_torch_is_never_imported_and_help_waits_for_no_library():
    """Planning and verifying work where there is no torch."""
    script = (
        "import sys; from gradmm.cli import app\n"
        "heavy = {'torch', 'dp_accounting', 'opendp', 'scipy', 'pydantic'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "app(['privacy', '--epsilon', '1', '--delta', '1e-5', *sys.argv[1:]], standalone_mode=False)\n"
        "assert not {'torch', 'opendp', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *ADD], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
