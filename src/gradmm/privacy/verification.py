"""`gradmm privacy verify`: reads a run folder's ledger and computes everything in it anew.

It holds if no line was changed, moved or taken out of the middle, every epsilon is what the events cost by the
declared accountant, none was above the target in force at its line, and no release was a test's. It cannot see
that a ledger was cut at its end or written anew.

No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradmm.errors import RunFolderError
from gradmm.privacy.accounting import Accountant, accountant_version, epsilon_of
from gradmm.privacy.ledger import LEDGER
from gradmm.privacy.ledger_lines import SPEND, Line, event_of, promise_of, read_lines, spends_in, target_of

_ROUNDING = 1e-6  # of epsilon, between two machines


@dataclass(frozen=True)
class Verification:
    """What a ledger says, and whether it holds."""

    path: str
    declaration: Line
    """The first line."""
    spends: tuple[Line, ...]
    """The lines of what was spent."""
    target_epsilon: float
    """The one in force at the end."""
    epsilon: float
    """Of all spends, by the declared accountant."""
    epsilon_other: float
    """The same by the other one."""
    accountant_version: str
    """What computed both."""
    faults: tuple[str, ...]
    """Why it does not hold; none if it does."""

    @property
    def holds(self) -> bool:
        """Whether the promise was kept."""
        return not self.faults


def verify(folder: str | Path) -> Verification:
    """Whether a run kept its promise.

    Raises:
        RunFolderError: if the folder has no ledger, or one without a declaration.
    """
    path = Path(folder) / LEDGER
    if not path.is_file():
        raise RunFolderError(f"{folder} has no {LEDGER}; give the folder of a run with settings of privacy")
    try:
        lines, faults = read_lines(path.read_bytes())
    except OSError as err:
        raise RunFolderError(f"{path} cannot be read ({err}); see to its permissions") from err
    if not lines:
        raise RunFolderError(f"{path} has no declaration ({faults[0] if faults else 'it is empty'}); restore it")
    promise, spends = promise_of(lines[0]), spends_in(lines)
    other: Accountant = "rdp" if promise.accountant == "pld" else "pld"
    epsilons = {
        by: epsilon_of([*map(event_of, spends)], promise.delta, promise.neighboring_relation, by)
        for by in (promise.accountant, other)
    }
    return Verification(
        path=str(path),
        declaration=lines[0],
        spends=tuple(spends),
        target_epsilon=target_of(lines),
        epsilon=epsilons[promise.accountant],
        epsilon_other=epsilons[other],
        accountant_version=accountant_version(),
        faults=(*faults, *_false_statements(lines)),
    )


def _false_statements(lines: Sequence[Line]) -> Iterator[str]:
    """What the lines say that is not so."""
    promise, found = promise_of(lines[0]), 0.0
    for number, line in enumerate(lines, 1):
        if line["line"] != SPEND:
            continue
        events = [*map(event_of, spends_in(lines[:number]))]
        found = epsilon_of(events, promise.delta, promise.neighboring_relation, promise.accountant)
        stated, target = float(line["epsilon"]), target_of(lines[:number])
        if abs(found - stated) > _ROUNDING * found:
            yield (
                f"line {number} states epsilon {stated:.6g}, and what was spent by then costs {found:.6g} by "
                f"{accountant_version()} (the ledger is of {lines[0].get('accountant_version')})"
            )
        if found > target * (1 + _ROUNDING):
            yield f"line {number} brings epsilon to {found:.6g}, above the target of {target:g}"
        if not line["is_private"]:
            yield f"line {number} released {line['release']!r} with a test's noise: NOT PRIVATE"
    if found > target_of(lines) * (1 + _ROUNDING):
        yield f"epsilon is {found:.6g}, above the last target of {target_of(lines):g}"
