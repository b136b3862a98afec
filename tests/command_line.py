"""The command line, in this process: what it says and how it ends."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from typer.main import get_command

from gradmm import cli
from gradmm.progress import log

LINES = re.compile(r"(pool|target|admm|measure): .*")  # all that stderr may hold
SMALL = {
    "solver": "admm",
    **{"admm.n_outer": 2, "admm.n_inner": 2, "admm.relative_tolerance": 0},
    **{"initial.candidates": 1, "space.public_texts": 3},
    "lengths.distribution": "uniform",
    "lengths.min_tokens": 4,
    "lengths.max_tokens": 7,
}
SETS = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


def run(*words: str | Path) -> Outcome:
    """The entry point with these arguments; how the package logs is afterwards as it was."""
    out, err = StringIO(), StringIO()
    level, handlers = log.level, list(log.handlers)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["gradmm", *map(str, words)])
        patch.setattr(typer.main, "get_command", _command)
        patch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as caught:
            cli.main()
    log.setLevel(level)
    log.handlers[:] = handlers
    return Outcome(int(caught.value.code or 0), out.getvalue(), err.getvalue())


@cache
def _command(app: typer.Typer) -> Any:
    """All verbs with their flags, which typer would put together anew at every call."""
    return get_command(app)
