"""The ledger: what was promised and what was spent, in a run folder, added to and never changed.

`privacy.json` is JSON lines. The first declares the promise; each of the others is a spend, or another target:

    {"line": "declaration", "neighboring_relation": ..., "unit": "row", "target_epsilon": ..., ...}
    {"line": "spend", "release": "target", "event": {"noise_multiplier": ...}, "epsilon": composed so far, ...}
    {"line": "target_epsilon", "target_epsilon": another one, ...}

There are no times and no number that depends on a row: the same settings write the same bytes, whatever the rows.

Order, so that a kill at any moment never hides a draw:

    check the budget -> read the rows -> write the spend, on the disk -> draw -> write the release -> use it

A run that is continued uses the release that it finds. Where there is a spend and no release, the noise may have
been drawn and seen: a new draw is a new spend, beside the lost one. What exceeds the target is refused.

No torch here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from gradmm.errors import PrivacyBudgetError, RunFolderError
from gradmm.privacy.accounting import epsilon_of
from gradmm.privacy.config import Promise
from gradmm.privacy.ledger_lines import (
    SPEND,
    Line,
    Spend,
    chained,
    declaration_line,
    encoded,
    event_of,
    raised_line,
    read_lines,
    spend_line,
    spends_in,
    target_of,
)

log = logging.getLogger("gradmm")
LEDGER = "privacy.json"
_FIXED = ("neighboring_relation", "unit", "target_delta", "accountant")
Released = TypeVar("Released")
Prepared = TypeVar("Prepared")


class Ledger:
    """A run folder's ledger, open for spending.

    Args:
        folder: the run folder, which this process alone works in.
        promise: what is declared, or was.
        target_epsilon: the budget; one that is not the declared one is added to the ledger, and holds from there
            on.
        is_released: whether what was spent for is there, so that no other budget has a use.

    Raises:
        PrivacyBudgetError: if more was spent than the budget.
        RunFolderError: if the ledger there was altered, promises something else, or cannot be read or written.
    """

    def __init__(
        self, folder: str | Path, promise: Promise, target_epsilon: float, is_released: bool = False
    ) -> None:
        self.path = Path(folder) / LEDGER
        self.target_epsilon = target_epsilon
        self._promise = promise
        self._lines, faults = read_lines(_without_cut_line(self.path))
        if faults:
            raise RunFolderError(f"{self.path} was altered ({faults[0]}); restore it, or give another folder")
        declaration = declaration_line(promise, target_epsilon)
        if not self._lines:
            self._append([declaration])
            return
        self._compare(self._lines[0], declaration)
        if target_of(self._lines) != target_epsilon:
            self._check_target(is_released)
            self._append([raised_line(target_epsilon)])

    def _check_target(self, is_released: bool) -> None:
        if self.epsilon > self.target_epsilon:
            raise PrivacyBudgetError(
                f"{self.path} says that epsilon {self.epsilon:.4g} was spent, and target_epsilon is "
                f"{self.target_epsilon:g}; nothing was drawn. Give at least what was spent, or another folder"
            )
        if is_released:
            raise RunFolderError(
                f"{self.path} has target_epsilon {target_of(self._lines):g}, and now it is "
                f"{self.target_epsilon:g}: what was released is there, and another target would not change it; "
                "keep it, or give another folder"
            )

    def _compare(self, old: Line, new: Line) -> None:
        for key in _FIXED:
            if old[key] != new[key]:
                raise RunFolderError(
                    f"{self.path} promises {key} {old[key]!r}, and now it is {new[key]!r}: what was spent under "
                    "the one says nothing under the other; keep it, or give another folder"
                )

    @property
    def spent(self) -> tuple[Line, ...]:
        """The lines of all spends so far."""
        return tuple(spends_in(self._lines))

    @property
    def epsilon(self) -> float:
        """Of all spends so far, composed."""
        return self._composed(())

    @property
    def planned_epsilon(self) -> float:
        """The target that the first spend was planned for; today's where there is none. A draw that was lost is
        drawn again as it was planned: a plan of the raised target would spend all of that once more.
        """
        first = next((at for at, line in enumerate(self._lines) if line["line"] == SPEND), len(self._lines))
        return target_of(self._lines[:first])

    @property
    def is_private(self) -> bool:
        """Whether no spend was a test's."""
        return all(line["is_private"] for line in self.spent)

    def has_spent(self, release: str) -> bool:
        """Whether there is a spend for it already."""
        return any(line["release"] == release for line in self.spent)

    def check(self, spends: Sequence[Spend]) -> None:
        """Whether the budget holds these spends too.

        Raises:
            PrivacyBudgetError: if it does not; nothing is written.
        """
        epsilon = self._composed(spends)
        if epsilon <= self.target_epsilon:
            return
        again = [spend.release for spend in spends if self.has_spent(spend.release)]
        why = f"it is {self.epsilon:.4g} so far"
        if again:
            why += f"; {', '.join(again)} was spent before and is lost, and another draw costs as much again"
        raise PrivacyBudgetError(
            f"releasing {', '.join(spend.release for spend in spends)} would bring epsilon to {epsilon:.4g} at "
            f"delta {self._promise.delta:g}, and the budget is {self.target_epsilon:g} ({why}); nothing was "
            f"drawn. Restore the release, or raise target_epsilon to {epsilon + 5e-4:.3f} if that is what you can "
            "promise"
        )

    def spend(self, spends: Sequence[Spend]) -> None:
        """Writes that these releases are about to be drawn; when it returns, that is on the disk.

        Raises:
            PrivacyBudgetError: as `check`.
            RunFolderError: if it cannot be written; nothing may be drawn then.
        """
        self.check(spends)
        lines: list[Line] = []
        for number, spend in enumerate(spends, 1):
            is_again = self.has_spent(spend.release)
            if is_again:
                log.warning("%r was spent and is lost: it is drawn again, which is spent again", spend.release)
            lines.append(spend_line(spend, self._composed(spends[:number]), is_again))
        self._append(lines)

    def _composed(self, spends: Sequence[Spend]) -> float:
        events = [*map(event_of, self.spent), *(spend.event for spend in spends)]
        promise = self._promise
        return epsilon_of(events, promise.delta, promise.neighboring_relation, promise.accountant)

    def _append(self, lines: Sequence[Line]) -> None:
        lines = chained(lines, self._lines[-1] if self._lines else None)
        is_new = not self.path.exists()
        try:
            with self.path.open("ab") as file:
                file.write(b"".join(encoded(line) + b"\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
            if is_new and os.name == "posix":
                _settle_folder(self.path.parent)
        except OSError as err:
            raise _closed(self.path, "written", err) from err
        self._lines = [*self._lines, *lines]


def release_once(
    ledger: Ledger,
    spends: Sequence[Spend],
    load: Callable[[], Released | None],
    prepare: Callable[[], Prepared],
    draw: Callable[[Prepared], Released],
    save: Callable[[Released], object],
) -> Released:
    """What was released, from the run folder; drawn, and paid for, where it is not there.

    Args:
        ledger: of the run.
        spends: what drawing it costs.
        load: reads the release; None if there is none.
        prepare: reads the rows; what it gives has no noise yet.
        draw: adds the noise.
        save: writes the release; when it returns, that is on the disk.

    Raises:
        PrivacyBudgetError: if the budget does not hold the spends; no row was read and nothing was drawn.
        RunFolderError: if there is a release that no spend is for.
    """
    found = load()
    if found is not None:
        unpaid = [spend.release for spend in spends if not ledger.has_spent(spend.release)]
        if unpaid:
            raise RunFolderError(
                f"there is a release of {', '.join(unpaid)}, and {ledger.path} has no spend for it: the ledger "
                "was cut, or the release is another run's; restore both, or give another folder"
            )
        return found
    ledger.check(spends)
    prepared = prepare()
    ledger.spend(spends)
    drawn = draw(prepared)
    save(drawn)
    return drawn


def _without_cut_line(path: Path) -> bytes:
    """The ledger's whole lines. A last one that a kill cut is taken off: nothing is drawn before it is whole."""
    try:
        if not path.exists():
            return b""
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if whole != raw:
            log.warning("%s ends in the middle of a line, for which nothing was drawn; it is taken off", path)
            os.truncate(path, len(whole))
        return whole
    except OSError as err:
        raise _closed(path, "read", err) from err


def _closed(path: Path, done: str, err: OSError) -> RunFolderError:
    return RunFolderError(
        f"{path} cannot be {done} ({err}), and without it nothing may be drawn; mend that, then the same command "
        "goes on"
    )


def _settle_folder(folder: Path) -> None:
    """Flushes to the disk that there is a new file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
