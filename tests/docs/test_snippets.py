"""Every block of the documentation is run, or read if it is a file: what stands there works as it stands there.

Commands run in this process, in a folder that holds what they name, with a tiny model for the packaged one and
with fewer texts, steps and candidates. Each block has a folder of its own.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import pyarrow.parquet as pq
import pytest
import yaml
from typer.main import get_command

from command_line import run
from doc_blocks import PAGES, PROGRAMS, ROOT, Block, Command, blocks_of, commands_of, named
from doc_folder import COMPARISON, MODEL, PRIVATE, RUN, SMALL, give_runs, make_files, make_model_folder, make_runs
from doc_programs import run_quickly
from gradmm import cli, loading
from gradmm.comparison.config import CompareConfig
from gradmm.config import PACKAGED, ConfigOfRun, RunConfig, load_settings
from gradmm.training.finetune import TrainConfig
from gradmm.training_config import TrainRunConfig

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
COMMANDS, READ = ("bash", "sh", "console"), ("python", "yaml", "json", "text", "shown")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def of(*kinds: str) -> Any:
    blocks = [block for block in BLOCKS if block.kind in kinds]
    return pytest.mark.parametrize("block", blocks, ids=map(str, blocks))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all that a block may begin with; the packaged model is a tiny one as long as it is there."""
    folder = tmp_path_factory.mktemp("made")
    make_model_folder(folder / MODEL)
    make_files(folder)
    demo = yaml.safe_load((PACKAGED / "demo.yaml").read_text(encoding="utf-8"))
    demo |= {"texts_per_class": 2, "bans": {}}
    for item in SMALL["generate"]:
        group, name, value = re.split(r"[.=]", item)
        demo.setdefault(group, {})[name] = yaml.safe_load(value)
    (folder / "demo.yaml").write_text(yaml.safe_dump(demo), encoding="utf-8")
    real = loading.model_path
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "model_path", lambda name: str(folder / MODEL) if name == "demo" else real(name))
        patch.setattr(cli, "_demo", lambda: str(folder / "demo.yaml"))
        with pytest.MonkeyPatch.context() as inside:
            inside.chdir(folder)
            make_runs(folder)
        yield folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A block's own folder."""
    for path in made.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    (tmp_path / MODEL).symlink_to(made / MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- what there is


def test_every_block_is_of_a_kind_that_is_known() -> None:
    for block in BLOCKS:
        assert block.kind in COMMANDS + READ, f"{block}: a block of kind {block.kind!r}; say how it is tried"
        assert block.reason is None or block.kind in COMMANDS, f"{block}: only commands may be left out"
        if block.kind in ("text", "shown"):
            lines = block.text.splitlines()
            hidden = [line for line in lines if re.match(r"(\$ )?(gradmm|make|pip) |.*\bgradmm\.\w+\(", line)]
            assert not hidden, f"{block}: {hidden[0]!r} is no output; fence it as bash or python"


def test_most_kinds_are_found() -> None:
    assert {block.kind for block in BLOCKS} >= {"bash", "console", "python", "yaml", "json", "shown"}
    assert {block.page.name for block in BLOCKS if block.kind == "bash"} >= {
        "README.md",
        "index.md",
        "training.md",
    }
    assert [block for block in BLOCKS if block.reason]


def test_blocks_are_found_as_markdown_has_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n1. one\n    its second line\n\n"
        "    gradmm a --b \\\n        c  # why\n    make d\n\n    Output\n\n"
        "<!-- not run: a reason -->\n```console\n$ cd e && gradmm f 2> g\nsaid\n```\n```nim\nh\n```\n"
    )
    indented, shown, console, other = blocks_of(page)
    assert (indented.kind, shown.kind, console.kind, other.kind) == ("bash", "shown", "console", "nim")
    assert (indented.line, shown.text, console.reason, other.reason) == (6, "Output\n", "a reason", None)
    assert [command.words for command in commands_of(indented)] == [["gradmm", "a", "--b", "c"], ["make", "d"]]
    assert list(commands_of(console)) == [Command(["cd", "e"]), Command(["gradmm", "f"], errors_to="g")]


# ---- commands


@of(*COMMANDS)
def test_commands_do_what_they_are_there_for(block: Block, made: Path, place: Path) -> None:
    commands = list(commands_of(block))
    assert commands, block
    give_runs(block.text, made, place)
    with pytest.MonkeyPatch.context() as patch:
        for command in commands:
            program, *words = command.words
            assert program in PROGRAMS, f"{block}: no {program!r} is known"
            if program == "gradmm" and block.reason:
                _parse(words)
            elif program == "gradmm":
                _run(block, command)
            elif program == "make":
                _check_targets(words)
            elif program == "pip":
                _check_install(words)
            elif program == "cd":
                patch.chdir(words[0])
            elif program == "sha256sum" and shutil.which(program):
                subprocess.run(command.words, check=True, capture_output=True)
            else:
                assert block.reason or program == "sha256sum", f"{block}: {program} is not run here"


def _run(block: Block, command: Command) -> None:
    _, verb, *words = command.words
    _parse([verb, *words])
    done = run(verb, *_small(verb, words), *_fewer(verb, words))
    assert done.code == 0, f"{block}: {' '.join(command.words)}\n{done.err}{done.out}"
    if command.errors_to is not None:
        Path(command.errors_to).write_text(done.err, encoding="utf-8")
        assert all("event" in json.loads(line) for line in done.err.splitlines())


def _small(verb: str, words: list[str]) -> list[str]:
    """Settings before the command's own, which go over them."""
    sets = [*SMALL.get(verb, ())]
    if any(word.startswith("writer.lora") for word in words):
        sets.append("writer.rounds=2")  # the last of which nothing is learnt in
    if verb == "generate":
        sets.append("references=false")
    if verb == "generate" and "-n" not in words and not _lists_counts(words):
        sets.append("texts_per_class=2")
    return [word for one in sets for word in ("--set", one)]


def _lists_counts(words: list[str]) -> bool:
    """Whether the command's file has a number of texts for every class."""
    if "--config" not in words:
        return False
    tree = yaml.safe_load(Path(words[words.index("--config") + 1]).read_text(encoding="utf-8"))
    return isinstance(tree.get("texts_per_class"), dict)


def _fewer(verb: str, words: list[str]) -> list[str]:
    """The words, with at most two texts where numbers of them are asked for."""
    if verb != "generate" or "-n" not in words:
        return words
    at = words.index("-n") + 1
    return [*words[:at], re.sub(r"\d+", lambda count: str(min(2, int(count[0]))), words[at]), *words[at + 1 :]]


def _parse(words: list[str]) -> None:
    """That verb and flags are there, without running anything."""
    command: Any = get_command(cli.app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    command.make_context("gradmm", list(words))


def _check_targets(words: list[str]) -> None:
    known = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert words
    assert set(words) <= set(known)


def _check_install(words: list[str]) -> None:
    verb, what = words
    asked = re.fullmatch(r"(?:\.|gradmm)(?:\[([\w,-]+)\])?", what)
    assert verb == "install"
    assert asked, what
    assert set((asked[1] or "").split(",")) <= {"", *PROJECT["optional-dependencies"]}


# ---- files and programs


@of("yaml")
def test_settings_are_those_of_a_verb(block: Block, place: Path) -> None:
    path = place / "block.yaml"
    path.write_text(block.text, encoding="utf-8")
    load_settings(_settings_of(yaml.safe_load(block.text)), path)


def _settings_of(tree: Mapping[str, Any]) -> type[ConfigOfRun]:
    if "methods" in tree or "budgets" in tree:
        return CompareConfig
    of_training = set(TrainConfig.model_fields) - set(RunConfig.model_fields)
    return TrainRunConfig if of_training & set(tree) else RunConfig


@of("json")
def test_json_is_json(block: Block) -> None:
    for line in block.text.splitlines():
        json.loads(line)


@of("python")
def test_programs_run(block: Block, made: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_runs(block.text, made, place)
    run_quickly(block.text, str(block), monkeypatch)


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_notebooks_run(notebook: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line of them; what their last expressions show is computed too."""
    matplotlib.use("agg")
    cells = notebook.read_text(encoding="utf-8").split("# %%\n")
    names = run_quickly("".join(cells), str(notebook), monkeypatch)
    assert "<table>" in names["result"]._repr_html_()
    assert len(cells) >= 4


# ---- what runs leave


@pytest.mark.parametrize("name", [RUN, PRIVATE, COMPARISON])
def test_files_and_fields_are_described(name: str, made: Path) -> None:
    known, folder = named("runs.md"), made / name
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files - known == set()
    assert _keys(json.loads((folder / "metrics.json").read_text(encoding="utf-8"))) - known == set()
    tables = [folder / file for file in files if file.endswith(".parquet")]
    columns = {column for table in tables for column in pq.read_schema(table).names}
    assert columns
    assert columns - known == set()
    lines = (folder / "privacy.json").read_text(encoding="utf-8").splitlines() if name == PRIVATE else []
    ledger = {key for line in lines for key in json.loads(line)}
    assert ledger - known == set()


_NAMES_OF_OTHERS = ("negative", "positive", "sets", "synthetic", "lm", "real")


def _keys(tree: Any) -> set[str]:
    """Names of all fields, those in fields too."""
    if isinstance(tree, list):
        return {key for item in tree for key in _keys(item)}
    if isinstance(tree, dict):
        return {key for key in tree if key not in _NAMES_OF_OTHERS} | _keys(list(tree.values()))
    return set()


def test_events_are_described(made: Path, place: Path) -> None:
    small = [word for one in SMALL["generate"] for word in ("-s", one)]
    done = run("generate", "-d", "train.csv", "-n", "1", *small, "--progress", "json", "-o", "told")
    events = [json.loads(line) for line in done.err.splitlines()]
    examples = [line for block in BLOCKS if block.kind == "json" for line in block.text.splitlines()]
    known = named("runs.md") | {key for line in examples for key in json.loads(line)}
    assert {event["event"] for event in events} >= {"stage", "progress", "done", "result"}
    for event in events:
        assert event["event"] in known
        assert event.get("stage", "pool") in known
        assert set(event) <= known
