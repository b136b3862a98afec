"""The command line as a user meets it: exit codes, what goes to which stream, settings, interruption."""

from __future__ import annotations

import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

import gradmm
from command_line import LINES, SETS, Outcome, Run
from gradmm.config import load_config
from run_tools import DATA_FILES

pytestmark = pytest.mark.usefixtures("own_folder")
VERBS = ("demo", "generate", "preview", "doctor", "train", "evaluate", "compare")
OUTER = 60  # iterations, of which Control-C falls into the first


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten rows, as JSON lines with columns of their own and the classes' names."""
    path = tmp_path_factory.mktemp("small") / "rows.jsonl"
    words = {"negative": "bad", "positive": "great"}
    lines = [
        {"review": f"The film is {word}, a story {n}.", "mood": mood}
        for n in range(5)
        for mood, word in words.items()
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def data(small: Path) -> list[str]:
    return ["--data", str(small), "--text-column", "review", "--label-column", "mood"]


@pytest.fixture
def tiny(tiny_folder: Path) -> list[str]:
    return ["--model", str(tiny_folder)]


def texts_in(folder: str | Path) -> list[str]:
    lines = (Path(folder) / DATA_FILES[0]).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def refused(run: Run, code: int, message: str, *args: str) -> None:
    """One sentence on stderr, no traceback, nothing made."""
    assert run(*args) == Outcome(code, "", f"error: {message}\n")
    assert list(Path().iterdir()) == []


# ---- help and version


def test_help_is_there_and_quick(tmp_path: Path) -> None:
    program = f"""
import sys
from gradmm.cli import main
codes = []
for words in [["--help"], ["--version"], *([verb, "--help"] for verb in {VERBS})]:
    sys.argv = ["gradmm", *words]
    try:
        main()
    except SystemExit as end:
        codes.append(end.code or 0)
heavy = {{"torch", "transformers", "datasets", "pyarrow", "numpy"}} & set(sys.modules)
print(codes, heavy, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == f"{[0] * (2 + len(VERBS))} set()\n"
    for word in (*VERBS, "--text-column", "--verbaliser", "--seed", f"gradmm {gradmm.__version__}\n"):
        assert word in done.stdout


def test_the_installed_command_tells_its_version() -> None:
    command = Path(sys.executable).with_name("gradmm")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"gradmm {gradmm.__version__}\n", "")


def test_a_run_starts_without_what_only_evaluation_needs() -> None:
    program = "import sys, gradmm.pipeline; print({'scipy', 'sklearn', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# ---- misuse and failure


@pytest.mark.parametrize(
    "args",
    [[], ["nonsense"], ["generate", "--bogus"], ["generate", "--resume", "perhaps"], ["generate", "-d"]],
)
def test_what_cannot_be_meant_ends_with_2(args: list[str], run: Run) -> None:
    outcome = run(*args)
    assert outcome.code == 2
    assert re.search("Usage: .*gradmm", outcome.out + outcome.err)
    assert list(Path().iterdir()) == []


def test_settings_that_cannot_be_meant_end_with_2(run: Run, data: list[str]) -> None:
    for verb in ("generate", "preview", "doctor"):
        refused(run, 2, "unknown setting 'admm.roh'; did you mean 'rho'?", verb, "-s", "admm.roh=1")
        refused(run, 2, "--verbaliser 'a' has no '='; write it as 'positive= great'", verb, "--verbaliser", "a")
        both = "--task names a ready-made task; give either it or --template and --verbaliser"
        refused(run, 2, both, verb, "--task", "sst2", "--template", "{text} So")
    refused(run, 2, "no data set is named; set dataset to a Hub id, a path or 'demo'", "generate")
    no_task = "no ready-made task 'sst3' (or give template and verbalisers); did you mean 'sst2'?"
    refused(run, 2, no_task, "generate", "--task", "sst3", *data)


def test_a_set_that_is_not_yaml_ends_with_2(run: Run) -> None:
    outcome = run("generate", "--set", "bans.substrings=[a")
    assert outcome.code == 2
    assert outcome.err.startswith("error: --set 'bans.substrings=[a'")


def test_what_is_not_there_ends_with_1(run: Run, data: list[str]) -> None:
    empty = f"{Path().absolute()}, which is empty; give the path of a file that is there"
    missing = f"./nope.csv: no 'nope.csv' in {empty}"
    refused(run, 1, missing, "generate", "--data", "./nope.csv", "--task", "sst2")
    no_model = "no model folder at './nope'; give a folder with config.json, a Hub id, or 'demo'"
    refused(run, 1, no_model, "generate", "--model", "./nope", "--task", "sst2", *data)


def test_a_folder_of_something_else_ends_with_1(run: Run, data: list[str], tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "thesis.tex").write_text("x")
    outcome = run("generate", "--task", "sst2", *data, "-o", "docs")
    told = "error: docs holds files that are not a run's; give an empty or a new folder\n"
    assert outcome == Outcome(1, "", told)


# ---- generate


def test_generate_from_flags_alone(run: Run, data: list[str], tiny: list[str], tmp_path: Path) -> None:
    flags = [*tiny, "--task", "sst2", "--texts-per-class", "12", "--seed", "3", *data, *SETS]
    outcome = run("generate", *flags, "-o", "a")
    assert outcome.code == 0
    said = [line for line in outcome.err.splitlines() if " done in " not in line]
    assert said[:2] == ["pool: 6 LM texts", "target: 10 rows"]
    assert all(LINES.fullmatch(line) for line in outcome.err.splitlines())
    texts = texts_in("a")
    assert len(texts) == 24
    lines = outcome.out.split("\n")
    assert lines[:12] == ["negative", *[f"  {text}" for text in texts[:10]], "  ... and 2 more"]
    assert lines[12:24] == ["positive", *[f"  {text}" for text in texts[12:22]], "  ... and 2 more"]
    assert lines[-4:] == ["Run folder: a", "Texts:      a/data/synthetic.jsonl", "Report:     a/report.html", ""]
    page, card = (Path("a", name).read_text(encoding="utf-8") for name in ("report.html", "README.md"))
    assert all(
        html.escape(text, quote=False) in page.replace("&#39;", "'").replace("&#34;", '"') for text in texts
    )
    assert card.startswith("---\n")
    assert "\x1b" not in outcome.out + outcome.err
    config = load_config("a/config.yaml")
    assert (config.seed, config.texts_per_class, config.model.model_name_or_path) == (3, 12, tiny[1])

    # The run folder's own settings make the same run again, here without a word on stderr.
    again = run("generate", "--config", "a/config.yaml", "-o", "b", "--quiet")
    assert (again.code, again.err) == (0, "")
    assert again.out == outcome.out.replace("Run folder: a", "Run folder: b").replace(" a/", " b/")
    for name in DATA_FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_generate_from_a_file_flags_and_set(run: Run, small: Path, tiny: list[str]) -> None:
    columns = f"dataset: {small}, text_column: review, label_column: mood"
    lines = [f"data: {{{columns}}}", "seed: 7", "texts_per_class: 9", "references: false", "admm: {n_outer: 50}"]
    Path("run.yaml").write_text("\n".join(lines))
    assert run("generate", "-c", "run.yaml", "-n", "2", "-t", "sst2", *tiny, *SETS, "-o", "a", "-q").code == 0
    config = load_config("a/config.yaml")
    assert (config.seed, config.texts_per_class, config.admm.n_outer) == (7, 2, 2)
    assert len(texts_in("a")) == 4
    assert json.loads(Path("a/metrics.json").read_text())["references"] == {}


def test_generate_with_a_task_of_ones_own(run: Run, data: list[str], tiny: list[str]) -> None:
    words = ["--verbaliser", "positive= wonderful", "--verbaliser", "negative= a = b"]
    template = "Review: {text} All in all:"
    outcome = run("generate", "--template", template, *words, *data, *tiny, "-n", "2", *SETS, "-o", "a", "-q")
    assert (outcome.code, outcome.err) == (0, "")
    task = load_config("a/config.yaml").resolve_task(("negative", "positive"))
    assert (task.template, task.verbalisers) == (template, (" a = b", " wonderful"))
    assert len(texts_in("a")) == 4


def test_generate_with_verbalisers_for_other_classes(run: Run, data: list[str]) -> None:
    told = (
        "task.verbalisers are for ['bad', 'good'] but the data's classes are ['negative', 'positive']; "
        "give one for each"
    )
    refused(run, 2, told, "generate", *data, "--verbaliser", "good= x", "--verbaliser", "bad= y")


# ---- classes, counts, resumption, model


@pytest.fixture
def moods(tiny: list[str], tmp_path: Path) -> list[str]:
    """Three classes of unequal size."""
    counts = {"sadness": 6, "joy": 3, "fear": 3}
    rows = [
        {"text": f"I am full of {mood} {n}.", "label": mood}
        for mood, count in counts.items()
        for n in range(count)
    ]
    (tmp_path / "moods.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ["--data", "moods.jsonl", "--template", "{text} I feel", *tiny, *SETS, "-q"]


@pytest.mark.parametrize(
    ("flags", "counts"),
    [
        (["-n", "2"], {"fear": 2, "joy": 2, "sadness": 2}),
        (["-n", "joy=1, sadness=3,fear=2"], {"fear": 2, "joy": 1, "sadness": 3}),
        (["-n", "4", "--class-balance", "proportional"], {"fear": 3, "joy": 3, "sadness": 6}),
        (["-n", "2", "--classes", "sadness, joy"], {"sadness": 2, "joy": 2}),
    ],
)
def test_every_class_gets_the_texts_that_were_asked_for(
    flags: list[str], counts: dict[str, int], run: Run, moods: list[str]
) -> None:
    outcome = run("generate", *moods, *flags, "-o", "a")
    assert (outcome.code, outcome.err) == (0, "")
    lines = Path("a/data/synthetic.jsonl").read_text().splitlines()
    names = list(counts)  # in the order of the labels
    found = Counter(names[json.loads(line)["label"]] for line in lines)
    assert found == counts


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["-n", "joy=1,sad=3,fear=2"], "texts_per_class lists 'sad', which is no class; did you mean 'sadness'?"),
        (["-n", "joy=1"], "texts_per_class lists no number for fear, sadness; give one for every class"),
        (["-n", "joy=1,fear"], "--texts-per-class 'fear' has no '='; write it as 'sadness=20,joy=80'"),
        (
            ["-n", "joy=1,fear=x,sadness=1"],
            "texts_per_class: give a whole number of at least 1, or one for each label name (fear has 'x')",
        ),
        (["--class-balance", "fair"], "class_balance: Input should be 'equal' or 'proportional' (it is 'fair')"),
        (
            ["--dtype", "float8"],
            "model.dtype: Input should be 'float32', 'bfloat16' or 'float16' (it is 'float8')",
        ),
    ],
)
def test_counts_and_types_that_cannot_be_meant(flags: list[str], told: str, run: Run, moods: list[str]) -> None:
    assert run("generate", *moods, *flags, "-o", "a") == Outcome(2, "", f"error: {told}\n")
    assert not Path("a").exists()


def test_resume_says_whether_a_run_is_gone_on_with(run: Run, data: list[str], tiny: list[str]) -> None:
    flags = ["generate", *data, *tiny, "-n", "1", *SETS, "-o", "a", "-q", "--resume"]
    told = "a holds no run and resume is 'always'; give the folder of one, or resume 'if_possible'"
    refused(run, 1, told, *flags, "always")
    assert run(*flags, "never").code == 0
    told = "a holds a run already and resume is 'never'; give a new folder, or resume it"
    assert run(*flags, "never") == Outcome(1, "", f"error: {told}\n")
    assert run(*flags, "always").out == run(*flags, "if_possible").out != ""
    assert run(*flags, "perhaps").code == 2


def test_type_device_and_attention_are_flags(run: Run, data: list[str], tiny: list[str]) -> None:
    flags = ["--dtype", "bfloat16", "--device", "cpu", "--attn-implementation", "eager"]
    assert run("generate", *data, *tiny, *flags, "-n", "1", *SETS, "-o", "a", "-q").code == 0
    model = load_config("a/config.yaml").model
    assert (model.dtype, model.device, model.attn_implementation) == ("bfloat16", "cpu", "eager")


# ---- processes of their own


class Interrupted(NamedTuple):
    folder: Path
    first: Outcome
    left: set[str]  # kinds of checkpoints after the interruption
    second: Outcome


@pytest.fixture(scope="module")
def interrupted(run: Run, small: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    """A run that gets SIGINT in the middle, and the same command again, that one in this process."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    # The handler explicitly: a shell that starts the tests in the background has SIGINT ignored.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from gradmm.cli import main; main()"
    )
    flags = ["--text-column", "review", "--label-column", "mood", "--task", "sst2", "-n", "2"]
    flags += ["--data", str(small), "--model", str(tiny_folder), "--set", f"admm.n_outer={OUTER}"]
    words = ["generate", *SETS, *flags, "--output-dir", str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while process.poll() is None and not list(folder.glob("state/admm-*.safetensors")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    left = {path.stem.split("-")[0] for path in (folder / "state").glob("*.safetensors")}
    return Interrupted(folder, Outcome(process.returncode, out, err), left, run(*words))


def test_control_c_ends_with_130(interrupted: Interrupted) -> None:
    assert (interrupted.first.code, interrupted.first.out) == (130, "")
    assert "Traceback" not in interrupted.first.err
    assert interrupted.left == {"pool", "space", "target", "admm"}


def test_control_c_tells_how_to_go_on(interrupted: Interrupted) -> None:
    told = "interrupted; the same command goes on from here"
    assert [line for line in interrupted.first.err.splitlines() if line and not LINES.fullmatch(line)] == [told]


def test_the_same_command_goes_on_and_ends(interrupted: Interrupted) -> None:
    code, out, err = interrupted.second
    assert code == 0
    assert "target:" not in err  # that is done already
    assert all(LINES.fullmatch(line) for line in err.splitlines())
    texts = texts_in(interrupted.folder)
    assert out.split("\n")[:6] == [
        "negative",
        *[f"  {t}" for t in texts[:2]],
        "positive",
        *[f"  {t}" for t in texts[2:]],
    ]
    assert json.loads((interrupted.folder / "metrics.json").read_text())["trace"][-1]["outer"] == OUTER
    assert not (interrupted.folder / "state").exists()
    log_lines = (interrupted.folder / "run.log").read_text().splitlines()
    stages = [line.split()[1] for line in log_lines if "done in" in line]
    assert stages == ["pool:", "target:", "pool:", "admm:", "measure:"]  # texts that are there are read


def test_a_process_ends_with_the_codes_of_failure_and_misuse(tmp_path: Path) -> None:
    for args, code in ((["--data", "./nope.csv"], 1), (["--task", "sst2", "--template", "{text}"], 2)):
        command = [sys.executable, "-m", "gradmm", "generate", *args]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (code, "")
        assert re.fullmatch("error: .*\n", done.stderr)
