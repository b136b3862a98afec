"""What of a run folder is published, and as what. An allow-list: what is not named here stays where it is.

    README.md               the card; one that somebody edited as it is
    data/synthetic.parquet  the data set; in `source`, of files their names alone
    report.html             the report without real rows and what is read off them, and without texts on the way
    config.yaml             the settings, paths cut to their last component, prompts left out
    metrics.json            the figures that the card states, none of the texts on the way
    privacy.json            the ledger of a private run, byte for byte: it is public, and whoever likes verifies it

Not published: run.log (times of day, warnings about rows, paths), fingerprint.json (a hash of the rows, by which a
guess of them can be checked), environment.json (the machine; what counts of it stands in the card),
synthetic.jsonl (the same rows again), SHA256SUMS (of other files).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from gradmm.checksums import SUMS
from gradmm.errors import RunFolderError
from gradmm.report.card import README, card, edited_card
from gradmm.report.names import public_name, public_source
from gradmm.report.read import LEDGER, TEXTS, Texts

CONFIG, METRICS, REPORT = "config.yaml", "metrics.json", "report.html"
PUBLISHED = (README, TEXTS, REPORT, CONFIG, METRICS, LEDGER)
SETTINGS = (
    *("model", "data", "task", "texts_per_class", "class_balance", "block_size", "per_device_batch_size", "seed"),
    *("references", "nearest_rows", "solver", "distance", "space", "shrinkage", "pool", "writer", "label_check"),
    *("selection", "refinement", "admm", "projection", "initial", "lengths", "bans", "privacy"),
)
"""Settings of `generate` that are published; a new one has to be looked at first."""
_SET = (
    *("texts", "distance", "class_distances", "log_perplexity", "distinct_2", "tokens"),
    "retokenised_differently",
)
_PRIVACY = (
    *("target", "is_private", "unit", "neighboring_relation", "target_epsilon", "epsilon", "delta", "accountant"),
    *("accountant_version", "noise_multiplier", "clip", "dimension", "divisors", "noise_norm", "most_snr"),
    *("expected_signal", "expected_snr"),
)
_CUT = "# Paths are cut to their last component.\n"
_NO_PROMPTS = (
    "# task.instructions is left out, for prompts may quote rows; without it others are taken, and other texts\n"
    "# come out.\n"
)


@dataclass(frozen=True)
class Upload:
    """A file as it is published."""

    name: str
    """In the repository."""
    what: str
    """In a few words."""
    content: bytes


def make_uploads(run: Texts, repo_id: str) -> tuple[Upload, ...]:
    """All that is published of a run.

    Args:
        run: intact, of `gradmm generate`.
        repo_id: where it goes; the report is named after it, and the card says how to load it.

    Raises:
        RunFolderError: if card, report or files cannot be read or made.
    """
    edited = edited_card(run)
    settings, data = _settings(run).encode(), _data(run.path / TEXTS)
    report = _report(run, repo_id, settings, data)
    return (
        Upload(
            README,
            "data set card" + (", as it was edited" if edited is not None else ""),
            _card(run, repo_id, edited),
        ),
        Upload(TEXTS, f"the data set, {len(run.rows):,} texts", data),
        Upload(REPORT, "report, without real rows", report),
        Upload(CONFIG, "settings, without paths and prompts", settings),
        Upload(METRICS, "figures, without texts", _figures(run.metrics).encode()),
        *(
            (Upload(LEDGER, "ledger of what privacy cost", (run.path / LEDGER).read_bytes()),)
            if run.is_private
            else ()
        ),
    )


def _card(run: Texts, repo_id: str, edited: str | None) -> bytes:
    return (card(run, repo_id) if edited is None else edited).encode()


def _data(path: Path) -> bytes:
    """The file as it is, unless its column `source` has paths."""
    table = pq.read_table(path)
    sources = table.column("source").to_pylist()
    public = [None if source is None else public_source(source) for source in sources]
    if public == sources:
        return path.read_bytes()
    at = table.schema.get_field_index("source")
    written = BytesIO()
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(public, pa.string())), written)
    return written.getvalue()


def _settings(run: Texts) -> str:
    """YAML that `gradmm generate --config` reads."""
    kept = {key: _copy(run.config[key]) for key in SETTINGS if key in run.config}
    for group, key in (("model", "model_name_or_path"), ("data", "dataset")):
        if isinstance(kept[group].get(key), str):
            kept[group][key] = public_name(kept[group][key])
    for group in ("pool", "writer"):
        if isinstance(kept.get(group), dict):
            kept[group]["files"] = [public_name(str(file)) for file in kept[group].get("files") or ()]
    task = kept["task"]
    has_prompts = isinstance(task, dict) and task.pop("instructions", None) is not None
    return _CUT + _NO_PROMPTS * has_prompts + yaml.safe_dump(kept, sort_keys=False, allow_unicode=False)


def _copy(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else value


def _figures(metrics: Mapping[str, Any]) -> str:
    kept: dict[str, Any] = {"solver": str(metrics["solver"]), "synthetic": _only(_SET, metrics["synthetic"])}
    for group, names in (("steps", ("admm", "formed", "selected")), ("references", ("real", "lm"))):
        kept[group] = {name: _only(_SET, metrics[group][name]) for name in names if name in metrics[group]}
    if metrics.get("form"):
        kept["form"] = {"name": str(metrics["form"]["name"])}
    if metrics.get("shrinkage"):
        kept["shrinkage"] = _only(("weight", "noise_share", "distance"), metrics["shrinkage"])
    if "privacy" in metrics:
        kept["privacy"] = _only(_PRIVACY, metrics["privacy"])
    return json.dumps(kept, indent=2, allow_nan=False) + "\n"


def _only(keys: tuple[str, ...], given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: given[key] for key in keys if key in given}


def _without_texts(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """So that every text in the report is one of the data set; others may stand in the user's files."""
    return {**metrics, "search": [own | {"selected_texts": []} for own in metrics.get("search") or ()]}


def _report(run: Texts, repo_id: str, settings: bytes, data: bytes) -> bytes:
    """The report of a copy of the run without paths and texts on the way, under the repository's name."""
    from gradmm.report.html import write_report

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / repo_id.rpartition("/")[2]
        (copy / TEXTS).parent.mkdir(parents=True)
        (copy / TEXTS).write_bytes(data)
        (copy / CONFIG).write_bytes(settings)
        (copy / METRICS).write_text(json.dumps(_without_texts(run.metrics)), encoding="utf-8")
        system = str(run.environment.get("platform", "")).partition("-")[0]  # the rest names the very kernel
        told = {**run.environment, "platform": system}
        (copy / "environment.json").write_text(json.dumps(told), encoding="utf-8")
        for name in (SUMS, LEDGER):
            if (run.path / name).is_file():
                shutil.copyfile(run.path / name, copy / name)
        try:
            return write_report([copy], Path(folder) / REPORT, publishable=True).read_bytes()
        except RunFolderError as err:
            raise RunFolderError(str(err).replace(str(copy), str(run.path))) from err
