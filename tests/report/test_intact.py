"""What is not as the run left it is not published."""

from __future__ import annotations

from pathlib import Path

import pytest

import run_folders
from gradmm.errors import RunFolderError
from gradmm.report.publish import push
from run_folders import make_comparison_run, make_texts_run

REPO = "me/reviews"


def test_an_incomplete_run_is_refused(tmp_path: Path) -> None:
    folder = make_texts_run(tmp_path / "run")
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(RunFolderError, match="complete run"):
        push(folder, REPO, dry_run=True)


def test_a_comparison_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RunFolderError, match="comparison, which has no data set; give the folder of `gradmm generate`"
    ):
        push(make_comparison_run(tmp_path / "run"), REPO, dry_run=True)


LISTED = ("config.yaml", "metrics.json", "environment.json", "fingerprint.json", "privacy.json")


@pytest.mark.parametrize(
    ("name", "how"),
    [(name, how) for name in LISTED for how in ("changed", "missing", "unlisted")],
)
def test_a_damaged_run_is_refused(tmp_path: Path, name: str, how: str) -> None:
    folder = make_texts_run(tmp_path / "run", private=True)
    if how == "changed":
        (folder / name).write_text((folder / name).read_text() + "\n")
    elif how == "missing":
        (folder / name).unlink()
    else:
        lines = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
        (folder / "SHA256SUMS").write_text("".join(line for line in lines if name not in line))
    with pytest.raises(RunFolderError, match=r"restore it, or run anew") as caught:
        push(folder, REPO, dry_run=True)
    assert name in str(caught.value)


@pytest.mark.parametrize("line", ["cut", "0" * 64 + "  ../secret\n", "0" * 64 + "  /etc/passwd\n", "x  y\n"])
def test_a_damaged_list_of_checksums_is_refused(tmp_path: Path, line: str) -> None:
    folder = make_texts_run(tmp_path / "run")
    with (folder / "SHA256SUMS").open("a") as file:
        file.write(line)
    with pytest.raises(RunFolderError, match="SHA256SUMS is damaged"):
        push(folder, REPO, dry_run=True)


def test_a_promise_that_was_not_kept_is_not_published(tmp_path: Path) -> None:
    folder = make_texts_run(tmp_path / "run", private=True)
    ledger = folder / "privacy.json"
    ledger.write_text(ledger.read_text().replace('"noise_multiplier": 1.4', '"noise_multiplier": 9.4'))
    (folder / "SHA256SUMS").unlink()
    run_folders.write_sums(folder)
    with pytest.raises(RunFolderError, match=r"privacy\.json does not hold"):
        push(folder, REPO, dry_run=True)
