"""What `gradmm privacy` prints: a plan before it is spent, a ledger afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradmm.errors import printable
from gradmm.privacy.config import UNIT
from gradmm.privacy.planning import Outlook
from gradmm.privacy.verification import Verification
from gradmm.privacy.words import NAMES, advice_lines, cost_line, promise_line, signal_line


def show_outlook(console: Console, found: Outlook) -> None:
    """Budget, noise multipliers, and what is left of the target."""
    plan = found.plan
    _say(console, promise_line(plan.target_epsilon, plan.delta, plan.neighboring_relation))
    table = Table()
    for column in ("release", "share of the budget", "noise multiplier"):
        table.add_column(column, justify="left" if column == "release" else "right")
    for one in plan.releases:
        times = f" x {one.event.count}" if one.event.count > 1 else ""
        table.add_row(Text(one.name + times), f"{100 * one.share:.3g}%", f"{one.event.noise_multiplier:.4f}")
    console.print(table)
    _say(console, cost_line(plan))
    signal = signal_line(found)
    for sentence in (*([] if signal is None else [signal]), *advice_lines(found)):
        _say(console, sentence)


def outlook_as_json(found: Outlook) -> dict[str, Any]:
    """The same as values, in full precision."""
    return {
        **asdict(found),
        "unit": UNIT,
        "epsilon": found.plan.epsilon,
        "noise_multiplier": found.plan.noise_multiplier,
    }


def show_verification(console: Console, found: Verification) -> None:
    """What was promised, what was spent, and whether that holds."""
    declared = found.declaration
    _say(console, promise_line(found.target_epsilon, declared["target_delta"], declared["neighboring_relation"]))
    if found.target_epsilon != declared["target_epsilon"]:
        _say(console, f"The target was {declared['target_epsilon']:g} when the run began.")
    console.print(_spends_table(found.spends))
    by, other = (NAMES[name] for name in (("pld", "rdp") if declared["accountant"] == "pld" else ("rdp", "pld")))
    _say(
        console,
        f"Spent: epsilon {found.epsilon:.4f} by {by}, {found.epsilon_other:.4f} by {other} "
        f"({found.accountant_version}).",
    )
    for fault in found.faults:
        console.print(Text.assemble(("FAIL", "bold red"), f"  {printable(fault)}"), soft_wrap=True)
    if found.holds:
        console.print(
            Text.assemble(("ok", "green"), "  the ledger is whole, and what was spent is within the target")
        )


def _spends_table(spends: Sequence[dict[str, Any]]) -> Table:
    table = Table()
    for column in ("release", "numbers", "bound", "noise multiplier", "epsilon so far", "noise"):
        table.add_column(column, justify="left" if column in ("release", "noise") else "right")
    for line in spends:
        again = " (again)" if line.get("is_again") else ""
        table.add_row(
            Text(printable(str(line["release"])) + again),
            str(line.get("dimension")),
            str(line.get("bound")),
            f"{line['event']['noise_multiplier']:.4f}",
            f"{line['epsilon']:.4f}",
            Text(printable(str(line.get("noise")))),
        )
    return table


def _say(console: Console, sentence: str) -> None:
    console.print(Text(sentence), soft_wrap=True)
