"""Whether a run folder is as the run left it, asked before anything of it is published. No torch here."""

from __future__ import annotations

from gradmm.checksums import check_sums
from gradmm.errors import RunFolderError
from gradmm.report.read import LEDGER, TEXTS, Texts

_NEEDED = ("config.yaml", "environment.json", "fingerprint.json", "metrics.json", TEXTS)


def check_intact(run: Texts) -> None:
    """Whether every file in the run's list of checksums is as it was left.

    Raises:
        RunFolderError: if one was changed or is gone, or the list is damaged or does not have what a run has.
    """
    try:
        check_sums(run.path, (*_NEEDED, *((LEDGER,) if run.is_private else ())))
    except OSError as err:
        raise RunFolderError(f"{err.filename} cannot be read ({err.strerror}); see to its permissions") from err


def check_promise(run: Texts) -> None:
    """Whether a private run kept its promise, which its card is going to state.

    Raises:
        RunFolderError: if its ledger does not hold, or a test's noise was taken.
    """
    if not run.is_private:
        return
    from gradmm.privacy.verification import verify

    faults = verify(run.path).faults
    if faults:
        raise RunFolderError(
            f"{run.path / LEDGER} does not hold ({faults[0]}), and its card would promise privacy that nothing "
            "shows; see `gradmm privacy verify`, restore it, or run anew"
        )
