"""One self-contained page from run folders: no script, picture, font or style from elsewhere, no request.

The page's content security policy allows its own style sheet and script alone, by their hashes, so that a text
that slipped through as markup could still not run. Texts do not slip through: every string that the template
writes is escaped, and its control and bidirectional characters are written out (`_shown`). Nothing of a run stands
inside the script; it works on the table that is there.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from gradmm.errors import ConfigError, RunFolderError, printable, printable_lines
from gradmm.report.comparison_sections import comparison_chapter
from gradmm.report.files import replace_file
from gradmm.report.page import Chapter, Table, table
from gradmm.report.public import with_public_names, without_real_rows
from gradmm.report.read import Comparison, Run, Texts, read_runs
from gradmm.report.sections import are_alike, texts_chapter

REPORT = "report.html"
_LETTERS = 2_500_000  # of texts in all; with everything else, a page stays well under 6 MB


def write_report(
    runs: Sequence[str | Path], output: str | Path | None = None, *, publishable: bool = False
) -> Path:
    """Writes one page about one or several complete runs, from their folders alone.

    Args:
        runs: folders of `gradmm generate`, `gradmm demo` or `gradmm compare`.
        output: the page, whose name ends in .html; None is `report.html` in the first run's folder. One that is
            there is replaced, in one step.
        publishable: leaves out real rows, words, lengths and points of the map that come from them, and paths.
            Means over all real rows, such as distances, stay.

    Returns:
        Where the page is.

    Raises:
        ConfigError: if there is no run, or `output` does not end in .html.
        RunFolderError: if a folder is not that of a complete run, holds what this version does not know, or the
            page cannot be written.
    """
    if not runs:
        raise ConfigError("there is no run to report on; give the folder of one")
    found = read_runs(runs)
    target = found[0].path / REPORT if output is None else Path(output).expanduser()
    if target.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"the report would go to {target}; give a name that ends in .html")
    replace_file(target, render(found, publishable))
    return target


def render(runs: Sequence[Run], publishable: bool = False) -> str:
    """The page.

    Raises:
        RunFolderError: if a run holds what this version does not know.
    """
    texts = [run for run in runs if isinstance(run, Texts)]
    chapters = [_chapter(run, _LETTERS // max(1, len(texts)), publishable) for run in runs]
    style, script = (_asset(name) for name in ("style.css", "script.js"))
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            chapters=chapters,
            overview=_overview(chapters) if len(chapters) > 1 else None,
            warning=_not_alike(texts),
            shows_real=any(section.key == "nearest" for one in chapters for section in one.sections),
            style=Markup(style),
            script=Markup(script),
            policy=_policy(style, script),
            version=version("gradmm"),
        )
    )


def _chapter(run: Run, most_letters: int, publishable: bool) -> Chapter:
    try:
        if publishable:
            run = with_public_names(run)
        if isinstance(run, Comparison):
            return comparison_chapter(run)
        if publishable or run.is_private:  # which has none, unless someone put them there
            run = without_real_rows(run)
        return texts_chapter(run, most_letters)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as err:
        raise RunFolderError(
            f"{run.path} holds figures that cannot be shown ({type(err).__name__}: {err}): another version wrote "
            "it, or it was changed; use that version, or run anew"
        ) from err


def _overview(chapters: Sequence[Chapter]) -> Table:
    """Runs side by side."""
    keys = list(dict.fromkeys(key for one in chapters for key in one.facts))
    rows = [(one.name, one.what, *(one.facts.get(key, "") for key in keys)) for one in chapters]
    return table("The runs side by side", ("run", "what", *keys), rows, (0, 1, 2, 2 + len(keys) - 1))


def _not_alike(runs: Sequence[Texts]) -> str | None:
    if are_alike(runs):
        return None
    return (
        "These runs differ in model, data, rendering, space or privacy, so that their distances are to different "
        "gradients and do not compare."
    )


def _policy(style: str, script: str) -> str:
    """Nothing from elsewhere, and of what is here only what this module put in."""
    allowed = {
        "default-src": "'none'",
        "style-src": f"'sha256-{_hash(style)}'",
        "script-src": f"'sha256-{_hash(script)}'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{kind} {sources}" for kind, sources in allowed.items())


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gradmm.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["lines"] = _lines
    return environment


def _shown(value: Any) -> Any:
    """What the template writes: text without control characters; markup is the package's own."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _lines(text: str) -> Markup:
    """Several lines, whose breaks stay."""
    return Markup("\n").join(printable_lines(text).split("\n"))


def _asset(name: str) -> str:
    return (files("gradmm.report") / "templates" / name).read_text(encoding="utf-8")
