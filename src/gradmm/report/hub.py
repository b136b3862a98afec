"""The way to the Hugging Face Hub: one repository, one commit, and what its refusals mean."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from gradmm.errors import ConfigError, HubError, printable
from gradmm.report.uploads import PUBLISHED, Upload

_PART = r"[A-Za-z0-9_](?:(?!--|\.\.)[A-Za-z0-9._-])*(?<![.-])"
_REPO_ID = re.compile(f"{_PART}/{_PART}")
_LONGEST_NAME = 96
_URL = re.compile(r"https?://[^/\s]+")
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token with write access"
_AGAIN = "give the same command again"
_LONGEST = 300  # letters that are shown of what a server says


def check_repo_id(repo_id: str) -> None:
    """Whether a repository can be called so.

    Raises:
        ConfigError: if not.
    """
    name = repo_id.rpartition("/")[2]
    if _REPO_ID.fullmatch(repo_id) and len(name) <= _LONGEST_NAME and not name.endswith(".git"):
        return
    raise ConfigError(
        f"{repo_id!r} is no name of a data set repository; give NAMESPACE/NAME, as in me/reviews, without a host "
        "and without 'datasets/': letters, digits, and between them single '-', '.' and '_'"
    )


def check_reachable(repo_id: str, endpoint: str) -> None:
    """Whether the Hub may be asked at all.

    Raises:
        ConfigError: if HF_HUB_OFFLINE is set, or the endpoint is no address.
    """
    from huggingface_hub import is_offline_mode

    if not _URL.match(endpoint):
        raise ConfigError(
            f"the Hub's address is {endpoint!r}; set HF_ENDPOINT to one that begins with https://, or unset it"
        )
    if is_offline_mode():
        raise ConfigError(
            f"HF_HUB_OFFLINE is set, so nothing can be pushed to {repo_id}; unset it, or see with --dry-run what "
            "would go up"
        )


def address(endpoint: str | None) -> str:
    """The Hub's: what is given, else that of HF_ENDPOINT, else the public one."""
    from huggingface_hub import constants

    return (constants.ENDPOINT if endpoint is None else endpoint).rstrip("/")


def send(
    repo_id: str, uploads: Sequence[Upload], private: bool, token: str | None, endpoint: str
) -> tuple[bool, str]:
    """Makes the repository if there is none, and puts all files up in one commit.

    Args:
        repo_id: NAMESPACE/NAME.
        uploads: the files.
        private: whether a new repository is one that nobody else sees.
        token: None takes HF_TOKEN, or that of who is logged in.
        endpoint: the Hub.

    Returns:
        Whether the repository is private, and the address of the commit.

    Raises:
        ConfigError: if the repository is public and `private` is asked for; nothing was sent.
        HubError: if the Hub refuses or is not reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    hub = HfApi(endpoint=endpoint, token=token, library_name="gradmm", library_version=version("gradmm"))
    with _explained(repo_id, endpoint):
        hub.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        about = hub.dataset_info(repo_id)
    if private and not about.private:  # `create_repo` leaves one that is there as it is
        raise ConfigError(
            f"{repo_id} is there already and is public; give --public if the texts may be public too, make it "
            "private in its settings on the Hub, or give another name. No file was sent"
        )
    there = {file.rfilename for file in about.siblings or ()}
    stale = there & set(PUBLISHED) - {upload.name for upload in uploads}  # such as another run's ledger
    operations: list[Any] = [
        *(CommitOperationAdd(upload.name, upload.content) for upload in uploads),
        *(CommitOperationDelete(name, is_folder=False) for name in sorted(stale)),
    ]
    with _explained(repo_id, endpoint):
        done = hub.create_commit(
            repo_id, operations, repo_type="dataset", commit_message=f"Data set by gradmm {version('gradmm')}"
        )
    return bool(about.private), str(done.commit_url)


@contextmanager
def _explained(repo_id: str, endpoint: str) -> Iterator[None]:
    """Says what went wrong, for which repository, and what helps.

    The client lets through what its HTTP library and its upload library raise, and both have changed before.
    """
    try:
        yield
    except Exception as err:
        raise HubError(_message(err, repo_id, endpoint)) from err


def _message(err: Exception, repo_id: str, endpoint: str) -> str:
    from huggingface_hub.errors import HfHubHTTPError

    transport = HfHubHTTPError.__bases__[0]  # of the HTTP library, whose name depends on the client's version
    chain = list(_causes(err))
    refusal = next((one for one in chain if isinstance(one, HfHubHTTPError)), None)
    if refusal is not None:
        status, words = refusal.response.status_code, refusal.server_message or ""
        told = f" ({_short(words)})" if words else ""
        return f"{repo_id} cannot be pushed: {endpoint} answered {status}{told}; {_remedy(status, repo_id)}"
    if any(isinstance(one, transport | OSError) for one in chain):
        return (
            f"{repo_id} cannot be pushed: {endpoint} is not reached ({_short(str(err))}); see to the network, to "
            f"HF_ENDPOINT and to the proxy's settings, then {_AGAIN}"
        )
    return (
        f"{repo_id} cannot be pushed: the Hub's client ended with {type(err).__name__} ({_short(str(err))}); see "
        f"that {endpoint} is a Hub and that the head of README.md is valid, then {_AGAIN}"
    )


def _causes(err: BaseException | None) -> Iterator[BaseException]:
    while err is not None:
        yield err
        err = err.__cause__


def _remedy(status: int, repo_id: str) -> str:
    namespace = repo_id.partition("/")[0]
    if status == 401:
        known = "the token in HF_TOKEN is not accepted, or not here; " if os.environ.get("HF_TOKEN") else ""
        return known + _LOG_IN
    if status == 403:
        return (
            f"your token may not write to {namespace!r}: give one with write access to it, or a name of your own"
        )
    if status == 404:
        return (
            "there is no such repository, or it is not yours to see: mind its spelling, your token and HF_ENDPOINT"
        )
    if status == 429:
        return f"that was too often: wait a while, then {_AGAIN}"
    if status >= 500:
        return f"that is a fault of the Hub: wait a while, then {_AGAIN}"
    return f"mend what it names, then {_AGAIN}"


def _short(words: Any) -> str:
    line = printable(" ".join(str(words).split()))
    return line if len(line) <= _LONGEST else line[:_LONGEST] + "..."
