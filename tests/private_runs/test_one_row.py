"""What one row can change in what private runs leave behind and say: the ledgered releases, and nothing else."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from command_line import Run
from gradmm import pipeline, private_run, progress
from gradmm.config import RunConfig
from gradmm.data.rows import LabelledData
from gradmm.data.sources import load_data
from gradmm.gradients.private_sums import PrivateAccumulator
from gradmm.gradients.private_target import STATE
from gradmm.gradients.private_unigrams import PrivateUnigrams
from gradmm.locking import LOCK
from gradmm.store import STATE as STATE_FOLDER
from private_tools import COMMAND, PRIVACY, ROWS, TILTED, StopAt, make
from run_tools import DATA_FILES, FILES, files

NEIGHBOURS = {
    "one row is another": [("A great end, happy!", 0), *ROWS[1:]],
    "one row is another, of the other class": [("A great end, happy!", 1), *ROWS[1:]],
    "one row more": [*ROWS, ("A great end, happy!", 0)],
    "one row less": ROWS[1:],
    "one row more, which is too long": [*ROWS, ("A dull story " * 60, 1)],
    "one row more, whose text has the other label too": [*ROWS, (ROWS[0][0], 1)],
}
SAID_OF_RELEASE = re.compile(
    r"  objective \S+|measure: \d sets"  # one more where a form is chosen that is not the writer's own
    r"|.*class \w+: (relabelling would leave|nothing of its mean gradient stands out).*\n"
)
"""What the log says of a run that follows from what was released."""
PUBLIC = ("A warm day, a fine song.", "The plot is dull and sad.", "A happy end, a great cast.")
"""What a writer may read."""


def left(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in sorted(files(folder))}


def public_file(folder: Path) -> Path:
    """What a writer reads first, of no real row."""
    folder.joinpath("public.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in PUBLIC))
    return folder / "public.jsonl"


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time passes."""
    for module in (pipeline, progress):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 0.0))


class Watched:
    """Runs whose releases are noted, or exchanged for given ones."""

    def __init__(self, lm: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
        self.lm, self.folder, self.monkeypatch, self.caplog = lm, folder, monkeypatch, caplog
        self.released: list[Any] = []
        """Of the last run: what was drawn of the target, and of words."""

    def go(self, name: str, rows: Any, released: Any = None, **changes: Any) -> tuple[dict[str, bytes], str]:
        """All files, and all that was logged."""
        self.released = []
        self.caplog.clear()
        with self.monkeypatch.context() as patch, self.caplog.at_level(logging.INFO, "gradmm"):
            for at, kind in enumerate((PrivateAccumulator, PrivateUnigrams)):
                patch.setattr(kind, "release", self._noted(kind.release, (*(released or ()), None, None)[at]))
            make(self.lm, rows, self.folder / name, **changes)
        return left(self.folder / name), self.caplog.text

    def _noted(self, real: Any, instead: Any) -> Any:
        def drawn(*given: Any) -> Any:
            self.released.append(real(*given))
            return instead or self.released[-1]

        return drawn


@pytest.fixture
def watched(
    tiny_lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, fixed: None, still: None
) -> Watched:
    return Watched(tiny_lm("gpt2"), tmp_path, monkeypatch, caplog)


@pytest.mark.parametrize("more", [False, True], ids=["target", "target and words, of a writer who has read"])
def test_a_row_changes_the_release_and_what_follows_from_it_and_nothing_else(watched: Watched, more: bool) -> None:
    """Byte for byte, over every file of the run folder and all that was logged."""
    changes: dict[str, Any] = {}
    if more:
        reads = {"files": [str(public_file(watched.folder))], "files_max_steps": 1}
        changes = {"writer": TILTED["writer"] | reads, "privacy": PRIVACY | {"files_are_public": True}}
    before, said = watched.go("before", ROWS, **changes)
    releases = watched.released
    assert set(before) == FILES | {"privacy.json"} and len(releases) == 1 + more
    follows = {*DATA_FILES, "metrics.json", "run.log", "SHA256SUMS"}
    for number, rows in enumerate(NEIGHBOURS.values()):
        after, _ = watched.go(f"after {number}", rows, **changes)
        for (means, divisors), (others, of_others) in zip(releases, watched.released, strict=True):
            assert 0 < float((others - means).norm()) < 0.1 and list(of_others) == list(divisors)
        differ = {name for name in before if before[name] != after[name]}
        assert {"metrics.json", "SHA256SUMS"} <= differ <= follows, "only the release differs"
        figures_, others_ = (json.loads(found["metrics.json"]) for found in (before, after))
        assert figures_["privacy"] == others_["privacy"] and set(figures_) == set(others_)
        told = [SAID_OF_RELEASE.sub("", found["run.log"].decode()) for found in (before, after)]
        assert told[0] == told[1]

        replayed = watched.go(f"replayed {number}", rows, releases, **changes)
        assert replayed == (before, said), "all else follows from it"


def held(folder: Path) -> dict[str, Any]:
    """What the files of a run that is not over say; safetensors puts its header's keys in any order."""
    found: dict[str, Any] = {}
    for name, raw in left(folder).items():
        if name.endswith(".safetensors"):
            with safe_open(folder / name, "pt") as file:
                found[name] = file.metadata(), {key: file.get_tensor(key).tolist() for key in file.keys()}  # noqa: SIM118
        elif name != f"{STATE_FOLDER}/{LOCK}":
            found[name] = raw
    return found


@pytest.mark.parametrize("stage", ["search", "measure"])
def test_a_run_that_is_not_over_holds_no_more(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    watched.go("whole", ROWS)
    (release,) = watched.released
    monkeypatch.setattr(PrivateAccumulator, "release", lambda *given: release)
    for name, rows in (("before", ROWS), ("after", NEIGHBOURS["one row more"])):
        with pytest.raises(KeyboardInterrupt):
            make(watched.lm, rows, watched.folder / name, StopAt(stage))
    found = held(watched.folder / "before")
    assert {f"state/{STATE}.safetensors", "state/public.safetensors"} < set(found)
    assert found == held(watched.folder / "after")


def test_nothing_but_the_release_looks_at_rows(
    tiny_lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, may_read = load_data(ROWS), list[bool]()
    release, batches = private_run.private_target, LabelledData.iter_batches

    def private_target(*given: Any) -> Any:
        may_read.append(True)
        try:
            return release(*given)
        finally:
            may_read.pop()

    def iter_batches(self: LabelledData, *given: Any) -> Any:
        for batch in batches(self, *given):
            assert may_read
            yield batch

    monkeypatch.setattr(private_run, "private_target", private_target)
    monkeypatch.setattr(LabelledData, "iter_batches", iter_batches)
    for name in ("counts", "fingerprint", "number_of", "sample", "texts_of"):
        monkeypatch.setattr(LabelledData, name, None)
    assert make(tiny_lm("gpt2"), rows, tmp_path / "run").dataset.num_rows == 4


def test_no_word_and_no_number_of_rows_is_left_or_said(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    texts = [
        (f"Zq{n}w is Vx{n}k Qj{n}z.", n % 2) for n in range(2137)
    ]  # numbers of four digits: those of two are in a chart by chance
    texts += [("Wk501z " * 300, 0), ("Kz502x", 0), ("Kz502x", 1), ("Jv503q " * 9, 1)]
    names = ("negative", "positive")
    lines = [json.dumps({"sentence": text, "mood": names[label]}) for text, label in texts]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    columns = ("--text-column", "sentence", "--label-column", "mood")
    reads = (
        f"writer.files=['{public_file(tmp_path)}']",
        "writer.files_max_steps=1",
        "privacy.files_are_public=true",
    )
    done = run(
        "generate",
        *COMMAND,
        *(word for one in ("writer.rounds=2", *reads) for word in ("--set", one)),
        "-m",
        tiny_folder,
        "-d",
        tmp_path / "mine.jsonl",
        *columns,
        "-o",
        tmp_path / "run",
    )
    assert done.code == 0, done.err
    assert "the writer reads 3 texts" in done.err
    rows = str(pq.read_table(tmp_path / "run" / DATA_FILES[1]).to_pylist()).encode()
    where = {"out": done.out.encode(), "err": done.err.encode(), "rows": rows, **left(tmp_path / "run")}
    words = {word.strip(".") for text, _ in texts for word in text.split()} - {"is"}
    sizes = [sum(label == c for _, label in texts) for c in range(2)]
    number = re.compile(rb"(?<![\w.])(%d|%d|%d)(\.0+)?(?![\w.])" % (*sizes, len(texts)))
    for name, raw in where.items():
        assert [word for word in words if word.encode() in raw] == [], name
        assert name == DATA_FILES[1] or number.search(raw) is None, name  # that is binary; its rows are searched
    source = load_data(tmp_path / "mine.jsonl", config_of(*columns).data)
    assert (len(source), source.counts()) == (len(texts), sizes), "it would have been there"
    assert all(source.fingerprint().encode() not in raw for raw in where.values())
    assert "more than one label" not in done.err
    assert "stage" not in where["run.log"].decode() and not re.search(rb"\d\d:\d\d", where["run.log"])
    assert "target: " not in where["run.log"].decode(), "how long the release took"
    assert "target" not in json.loads(where["metrics.json"])["seconds"]


def config_of(*flags: str) -> RunConfig:
    return RunConfig(data=dict(zip((flag[2:].replace("-", "_") for flag in flags[::2]), flags[1::2], strict=True)))
