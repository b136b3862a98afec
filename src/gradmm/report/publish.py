"""`gradmm push`: a run's data set, with its card, to a repository on the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gradmm.report.card import read_texts
from gradmm.report.hub import address, check_reachable, check_repo_id, send
from gradmm.report.intact import check_intact, check_promise
from gradmm.report.uploads import Upload, make_uploads


@dataclass(frozen=True)
class Pushed:
    """What was published, or would be."""

    uploads: tuple[Upload, ...]
    """The files, with their content."""
    url: str
    """Of the repository."""
    private: bool
    """Whether nobody else sees the repository."""
    commit_url: str | None
    """Of the commit; None where nothing was sent."""


def push(
    run_dir: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    dry_run: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
) -> Pushed:
    """Publishes a run's data set with card, report, settings and figures; no real row and no local path.

    Args:
        run_dir: of `gradmm generate`; it is read alone, and what goes up is made from it in memory.
        repo_id: the data set repository, as NAMESPACE/NAME; made if it is not there.
        private: whether nobody else sees a new repository. One that is there and is public is then refused.
        dry_run: sends nothing and asks nobody.
        token: None takes HF_TOKEN, or that of who is logged in.
        endpoint: the Hub; None takes HF_ENDPOINT, or the public one.

    Raises:
        ConfigError: if the repository cannot be called so, is public where a private one is asked for, or the
            Hub's client is offline.
        RunFolderError: if that is no folder of a complete run with texts, its files are not as the run left
            them, or its ledger does not hold.
        HubError: if the Hub refuses or is not reached.
    """
    check_repo_id(repo_id)
    hub = address(endpoint)
    if not dry_run:
        check_reachable(repo_id, hub)
    run = read_texts(run_dir)
    check_intact(run)
    check_promise(run)
    uploads, url = make_uploads(run, repo_id), f"{hub}/datasets/{repo_id}"
    if dry_run:
        return Pushed(uploads, url, private, None)
    is_private, commit_url = send(repo_id, uploads, private, token, hub)
    return Pushed(uploads, url, is_private, commit_url)
