"""The data set card: a README.md for people on the Hub, with what the Hub reads of it at its head.

It holds no text of the real data: of them their name and the names of the classes, and what was measured on all of
them together. Prompts are left out, for a user may have put rows into them.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from gradmm.errors import RunFolderError
from gradmm.report.card_cautions import limits, privacy
from gradmm.report.card_sections import achieved, cite, columns, how, intro, load, repeat
from gradmm.report.files import replace_file
from gradmm.report.metadata import front_matter
from gradmm.report.read import Comparison, Texts, read_run

README = "README.md"
_SEAL = "<!-- gradmm wrote this card; sha256 of the lines above: "
log = logging.getLogger("gradmm")


def card(run: Texts, repo_id: str | None = None) -> str:
    """The card of a run's data set.

    Args:
        run: of `gradmm generate`.
        repo_id: where on the Hub the data set is going to be, for the lines that load it.

    Returns:
        Markdown with YAML at its head. Its last line is a checksum, by which a card that somebody edited is known.
    """
    sections = (
        *(intro(run), how(run), achieved(run), columns()),
        *(privacy(run), limits(run), repeat(run), load(repo_id), cite()),
    )
    told = "\n".join([front_matter(run), *("\n".join(lines) + "\n" for lines in sections)])
    return f"{told}\n{_SEAL}{_digest(told)} -->\n"


def write_card(run_dir: str | Path) -> Path:
    """Writes `README.md` into a run folder, in one step; one that somebody edited stays as it is.

    Args:
        run_dir: of `gradmm generate`.

    Returns:
        Its path.

    Raises:
        RunFolderError: if that is no folder of a complete run with texts, or cannot be written.
    """
    run = read_texts(run_dir)
    path = run.path / README
    if edited_card(run) is not None:
        log.info("%s was edited; it stays as it is", path)
        return path
    replace_file(path, card(run))
    return path


def read_texts(run_dir: str | Path) -> Texts:
    """A complete run of `gradmm generate`.

    Raises:
        RunFolderError: if that is another folder.
    """
    run = read_run(run_dir)
    if isinstance(run, Comparison):
        raise RunFolderError(
            f"{run.path} holds a comparison, which has no data set; give the folder of `gradmm generate`"
        )
    return run


def edited_card(run: Texts) -> str | None:
    """The card in a run folder if it is not as `write_card` left it; None if it is, or there is none.

    Raises:
        RunFolderError: if it cannot be read.
    """
    path = run.path / README
    try:
        told = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as err:
        raise RunFolderError(f"{path} cannot be read ({err}); save it as UTF-8, or remove it") from err
    above, mark, below = told.rpartition("\n" + _SEAL)
    return None if mark and below == f"{_digest(above)} -->\n" else told


def _digest(told: str) -> str:
    return hashlib.sha256(told.encode()).hexdigest()
