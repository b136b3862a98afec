"""Private runs: what a row can change in what they leave behind, what they say, and that they spend once."""

from __future__ import annotations

import json
import logging
import re
import shutil
from itertools import count
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
from gradmm.errors import PrivacyBudgetError, RunFolderError
from gradmm.gradients.private_sums import PrivateAccumulator
from gradmm.gradients.private_target import STATE
from gradmm.gradients.private_unigrams import PrivateUnigrams
from gradmm.locking import LOCK
from gradmm.privacy.mechanism import FixedNoise
from gradmm.privacy.verification import verify
from gradmm.result import Result
from gradmm.store import STATE as STATE_FOLDER
from gradmm.store import RunFolder
from private_tools import COMMAND, COUNTS, FEW, PRIVACY, ROWS, StopAt, make
from test_pipeline import DATA_FILES, FILES, Idle, Interrupting, data_bytes, figures, files

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
TILTED = {"writer": {"rounds": 2}}
"""With two releases: shares of words steer the writer."""
PUBLIC = ("A warm day, a fine song.", "The plot is dull and sad.", "A happy end, a great cast.")
"""What a writer may read."""


def left(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in sorted(files(folder))}


def public_file(folder: Path) -> Path:
    """What a writer reads first, of no real row."""
    folder.joinpath("public.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in PUBLIC))
    return folder / "public.jsonl"


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same noise in every run."""
    monkeypatch.setattr(private_run, "make_noise", lambda: FixedNoise(seed=3))


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time passes."""
    for module in (pipeline, progress):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 0.0))


# ---- what one row can change


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


# ---- what is left


@pytest.fixture(scope="module")
def whole(tiny_lm: Any, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return make(tiny_lm("gpt2"), FEW, tmp_path_factory.mktemp("private") / "run")


def test_the_ledger_is_an_artefact(whole: Result, tiny_lm: Any, tmp_path: Path) -> None:
    assert files(whole.run_dir) == FILES | {"privacy.json"}
    found = verify(whole.run_dir)
    assert found.holds and len(found.spends) == 1
    assert "  privacy.json\n" in (whole.run_dir / "SHA256SUMS").read_text()
    again = make(tiny_lm("gpt2"), FEW, whole.run_dir, Idle())
    assert list(again.dataset) == list(whole.dataset)
    shutil.copytree(whole.run_dir, tmp_path / "cut")
    lines = (tmp_path / "cut" / "privacy.json").read_text().splitlines(keepends=True)
    (tmp_path / "cut" / "privacy.json").write_text(lines[0])
    with pytest.raises(RunFolderError, match=r"privacy\.json is not as the run left it"):
        make(tiny_lm("gpt2"), FEW, tmp_path / "cut", Idle())


def test_the_metrics_say_what_was_spent_and_that_distances_are_to_a_noisy_target(whole: Result) -> None:
    private, (spend,) = whole.metrics["privacy"], verify(whole.run_dir).spends
    assert private["target"] == "released with noise; distances are to it, not to the real rows"
    assert private["is_private"] and 2.99 < private["epsilon"] <= 3 == private["target_epsilon"]
    assert (private["delta"], private["neighboring_relation"], private["unit"]) == (
        1e-5,
        "add_or_remove_one",
        "row",
    )
    assert private["noise_multiplier"] == spend["event"]["noise_multiplier"] and private["clip"] == spend["bound"]
    numbers = 32 + 1  # of one contrast of two verbalisers, with the bias that the centre is made of
    assert private["divisors"] == [1000, 1000] and private["dimension"] == numbers
    assert spend["dimension"] == 2 * numbers
    assert private["noise_norm"] == pytest.approx(private["noise_multiplier"] * numbers**0.5 / 1000)
    assert private["expected_snr"] == pytest.approx(private["expected_signal"] * private["most_snr"])
    assert 0 < private["expected_signal"] <= 1
    assert set(whole.metrics["references"]) == {"lm"}


def test_words_are_said_and_steer_the_writer(
    tiny_lm: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "gradmm"):
        result = make(tiny_lm("gpt2"), ROWS, tmp_path / "run", **TILTED)
    words, spend = result.metrics["privacy"]["words"], verify(tmp_path / "run").spends[0]
    assert (spend["release"], spend["bound"]) == ("words", words["clip"]) and 0 < words["clip"] <= 1
    assert spend["dimension"] == 2 * words["dimension"]
    assert words["noise_std"] == pytest.approx(words["noise_multiplier"] * words["clip"] / 1000)
    assert f"noise of standard deviation {words['noise_std']:.2g}: a word that is more than" in caplog.text
    assert "Hardly any word" not in caplog.text
    drowned = make(tiny_lm("gpt2"), ROWS, tmp_path / "few", **TILTED, privacy=PRIVACY | {"num_rows": 42})
    told = (
        "Hardly any word stands out of the noise; writer.unigram_step=0 leaves their part of the budget, 50%, to"
    )
    assert told in caplog.text and drowned.dataset.num_rows == 4
    plain = make(tiny_lm("gpt2"), ROWS, tmp_path / "plain", writer={"rounds": 2, "unigram_step": 0})
    assert "words" not in plain.metrics["privacy"] and len(verify(tmp_path / "plain").spends) == 1


def test_the_plan_is_said_before_anything_is_spent(
    tiny_lm: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "gradmm"), pytest.raises(KeyboardInterrupt):
        make(tiny_lm("gpt2"), FEW, tmp_path / "run", StopAt("pool"), privacy=PRIVACY | {"num_rows": 14})
    assert verify(tmp_path / "run").spends == ()
    told = (tmp_path / "run" / "run.log").read_text()
    assert told.startswith("Promise: epsilon 3, delta 1e-05, per row, add_or_remove_one: ")
    assert "\nPlan: target with noise multiplier " in told and "\nCost: epsilon " in told
    assert "\nSignal to noise: at most 0.8" in told and "of 33 numbers" in told
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warned[0] == "The target drowns in the noise; what brings the ratio to 4:"
    assert any("rows per class instead of 7" in line for line in warned)


def test_where_the_lms_own_texts_disagree_the_ratio_that_is_told_is_lower(
    tiny_lm: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "gradmm"):
        result = make(tiny_lm("gpt2"), FEW, tmp_path / "run", privacy=PRIVACY | {"num_rows": 120})
    private = result.metrics["privacy"]
    assert private["most_snr"] > 4 > private["expected_snr"]
    assert f"expect a signal-to-noise ratio of {private['expected_snr']:.3g}" in caplog.text
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warned[0] == "The target may drown in the noise; what brings the ratio to 4:"


def test_numbers_of_rows_may_be_released_too(tiny_lm: Any, tmp_path: Path, fixed: None) -> None:
    noisy = {key: value for key, value in PRIVACY.items() if key != "num_rows"} | {"count": "noisy"}
    result = make(tiny_lm("gpt2"), ROWS, tmp_path / "run", privacy=noisy)
    assert [line["release"] for line in verify(tmp_path / "run").spends] == ["counts", "target"]
    found = result.metrics["privacy"]["divisors"]
    assert all(own >= 1 and own % 1 and abs(own - real) < 60 for own, real in zip(found, COUNTS, strict=True))
    assert "which are released too" in (tmp_path / "run" / "run.log").read_text()


@pytest.mark.parametrize(
    "changes", [{"solver": "both"}, {"solver": "admm", "space": {"maps": ["sketch"], "rank": 4}}]
)
def test_every_solver_takes_the_released_target(tiny_lm: Any, tmp_path: Path, changes: Any) -> None:
    admm = {"admm": {"n_outer": 1, "n_inner": 1}, "initial": {"candidates": 1}, "block_size": 2}
    result = make(tiny_lm("phi"), FEW, tmp_path / "run", **admm | changes)  # whose head has a bias
    assert result.dataset.num_rows == 4 and verify(tmp_path / "run").holds


def test_a_clip_of_ones_own_needs_no_median(tiny_lm: Any, tmp_path: Path) -> None:
    result = make(tiny_lm("gpt2"), FEW, tmp_path / "run", privacy=PRIVACY | {"max_grad_norm": 0.25})
    assert result.metrics["privacy"]["clip"] == 0.25


# ---- once


@pytest.mark.parametrize(("changes", "spends"), [({}, 1), (TILTED, 2)], ids=["target", "words"])
def test_wherever_a_private_run_is_interrupted_it_ends_the_same_and_spends_once(
    tiny_lm: Any, tmp_path: Path, fixed: None, changes: dict[str, Any], spends: int
) -> None:
    lm = tiny_lm("gpt2")
    make(lm, FEW, tmp_path / "whole", **changes)
    for advances in count(0, 3):
        folder = tmp_path / f"{advances}"
        try:
            make(lm, FEW, folder, Interrupting(advances), **changes)
            break
        except KeyboardInterrupt:
            make(lm, FEW, folder, **changes)
            assert data_bytes(folder) == data_bytes(tmp_path / "whole")
            assert figures(folder) == figures(tmp_path / "whole")
            assert (folder / "privacy.json").read_bytes() == (tmp_path / "whole" / "privacy.json").read_bytes()
            assert files(folder) == FILES | {"privacy.json"}
    assert advances >= 16  # LM texts, rows, the search, measures
    assert len(verify(tmp_path / "whole").spends) == spends
    faults = verify(tmp_path / "whole").faults
    assert faults and all(fault.endswith("NOT PRIVATE") for fault in faults)


def test_a_release_is_drawn_once_and_used_from_then_on(
    tiny_lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the system's noise, of which no two draws are alike."""
    with pytest.raises(KeyboardInterrupt):
        make(tiny_lm("gpt2"), FEW, tmp_path / "a", StopAt("search"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(PrivateAccumulator, "release", None)
    make(tiny_lm("gpt2"), FEW, tmp_path / "a")
    make(tiny_lm("gpt2"), ROWS, tmp_path / "b")  # by the same name: no row is read, and none is compared
    assert data_bytes(tmp_path / "a") == data_bytes(tmp_path / "b")
    assert figures(tmp_path / "a") == figures(tmp_path / "b")
    assert all(verify(tmp_path / name).holds and len(verify(tmp_path / name).spends) == 1 for name in "ab")


@pytest.fixture
def lost(tiny_lm: Any, tmp_path: Path) -> Path:
    """A run that was killed between the draw and the release's writing."""
    save = RunFolder.save_state

    def killed(folder: RunFolder, name: str, *given: Any) -> None:
        if name == STATE:
            raise KeyboardInterrupt
        save(folder, name, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "save_state", killed)
        with pytest.raises(KeyboardInterrupt):
            make(tiny_lm("gpt2"), FEW, tmp_path / "run")
    return tmp_path / "run"


def test_a_release_that_was_lost_is_spent_again_only_if_the_budget_is_raised(tiny_lm: Any, lost: Path) -> None:
    before = (lost / "privacy.json").read_bytes()
    with pytest.raises(PrivacyBudgetError) as caught:
        make(tiny_lm("gpt2"), FEW, lost, Idle())
    assert (lost / "privacy.json").read_bytes() == before
    enough = float(re.search(r"raise target_epsilon to (\d+\.\d+) if", str(caught.value))[1])
    assert 3 < enough < 6
    result = make(tiny_lm("gpt2"), FEW, lost, privacy=PRIVACY | {"target_epsilon": enough})
    found = verify(lost)
    assert found.holds and [line["is_again"] for line in found.spends] == [False, True]
    assert len({line["event"]["noise_multiplier"] for line in found.spends}) == 1, "drawn as it was planned"
    assert enough - 0.01 < result.metrics["privacy"]["epsilon"] <= enough
    assert "it is drawn again, which is spent again" in (lost / "run.log").read_text()
    with pytest.raises(RunFolderError, match=r"settings\.privacy\.target_epsilon: \d\.\d+ -> 3\n"):
        make(tiny_lm("gpt2"), FEW, lost, Idle())


def test_another_budget_has_no_use_once_the_target_is_released(tiny_lm: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(tiny_lm("gpt2"), FEW, tmp_path / "run", StopAt("search"))
    before = (tmp_path / "run" / "privacy.json").read_bytes()
    for changed, refusal, told in (
        (
            {"target_epsilon": 4.0},
            RunFolderError,
            "has target_epsilon 3, and now it is 4: what was released is ther",
        ),
        (
            {"target_epsilon": 2.0},
            PrivacyBudgetError,
            r"epsilon 3 was spent, and target_epsilon is 2; nothing was ",
        ),
        ({"target_delta": 1e-6}, RunFolderError, r"settings\.privacy\.target_delta: 1e-05 -> 1e-06"),
    ):
        with pytest.raises(refusal, match=told):
            make(tiny_lm("gpt2"), FEW, tmp_path / "run", Idle(), privacy=PRIVACY | changed)
        assert (tmp_path / "run" / "privacy.json").read_bytes() == before


def test_before_anything_is_spent_the_budget_may_change(tiny_lm: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(tiny_lm("gpt2"), FEW, tmp_path / "run", StopAt("pool"))
    result = make(tiny_lm("gpt2"), FEW, tmp_path / "run", privacy=PRIVACY | {"target_epsilon": 4.0})
    assert 3.99 < result.metrics["privacy"]["epsilon"] <= 4 == verify(tmp_path / "run").target_epsilon
