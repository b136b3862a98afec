"""A complete run folder, read for showing: what was asked, what was achieved, the texts.

Everything in a run folder is data: names and texts may hold markup, control characters and words to a terminal.
They are read as they are here; whoever shows them escapes them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from gradmm.checksums import SUMS
from gradmm.errors import RunFolderError

TEXTS, RESULTS = "data/synthetic.parquet", "results.parquet"
LEDGER = "privacy.json"


@dataclass(frozen=True)
class Texts:
    """A complete run of `gradmm generate`."""

    path: Path
    """The run folder."""
    config: dict[str, Any]
    """`config.yaml`."""
    environment: dict[str, Any]
    """`environment.json`."""
    metrics: dict[str, Any]
    """`metrics.json`."""
    figures: dict[str, Any]
    """What `gradmm.figures` made; empty for runs of versions that made none."""
    label_names: tuple[str, ...]
    """Of the classes, by index."""
    rows: tuple[dict[str, Any], ...]
    """The data set: text, label (index), gradient_distance, log_perplexity, label_score, weight, source."""
    ledger: tuple[dict[str, Any], ...]
    """Lines of `privacy.json`; none for runs that are not private."""

    @property
    def is_private(self) -> bool:
        """Whether the run promises differential privacy."""
        return self.config.get("privacy") is not None


@dataclass(frozen=True)
class Comparison:
    """A complete run of `gradmm compare`."""

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: dict[str, Any]
    """`metrics.json`: `rows`, one for every method and budget, and `path`."""
    records: tuple[dict[str, Any], ...]
    """`results.parquet`: one for every training that counts."""


Run = Texts | Comparison


def read_run(folder: str | Path) -> Run:
    """Reads a run folder.

    Args:
        folder: of `gradmm generate`, `gradmm demo` or `gradmm compare`.

    Raises:
        RunFolderError: if it is no folder of such a run, or its run is not complete.
    """
    path = Path(folder).expanduser()
    kind = TEXTS if (path / TEXTS).is_file() else RESULTS if (path / RESULTS).is_file() else None
    if kind is None or not (path / SUMS).is_file():
        raise RunFolderError(
            f"{path} is not the folder of a complete run ({f'{SUMS} is missing' if kind else 'it has no texts'}); "
            "give that of `gradmm generate` or `gradmm compare`, and let an interrupted one end by its own command"
        )
    try:
        shared = path, _yaml(path / "config.yaml"), _json(path / "environment.json"), _json(path / "metrics.json")
        table = pq.read_table(path / kind)
        if kind == RESULTS:
            return Comparison(*shared, tuple(table.to_pylist()))
        figures = shared[-1].get("figures") or {}
        return Texts(*shared, figures, _label_names(table), tuple(table.to_pylist()), _lines(path / LEDGER))
    except (OSError, ValueError, KeyError, TypeError) as err:  # Arrow's and JSON's are ValueErrors
        raise RunFolderError(
            f"{path} cannot be read ({type(err).__name__}: {err}); restore it, or run anew"
        ) from err


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Reads several; errors as of `read_run`."""
    return [read_run(folder) for folder in folders]


def _label_names(table: Any) -> tuple[str, ...]:
    """As `datasets` keeps them in the schema."""
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    return tuple(features["label"]["names"])


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _yaml(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def _lines(path: Path) -> tuple[dict[str, Any], ...]:
    if not path.is_file():
        return ()
    return tuple(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line)
