"""What comes from outside (data, models, names) is data: never code, a path, markup or a command to a terminal."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import gradmm
from gradmm import yamlfiles
from gradmm.cli import main
from gradmm.config import GenerateConfig, load_config
from gradmm.present import show_result

SOURCE = Path(gradmm.__file__).parent
HOSTILE = (
    "../../../etc/passwd",
    '=HYPERLINK("http://x")',
    "\x1b]0;owned\x07\x1b[2J",
    "</td><script>alert(1)</script>",
    "{a: !!python/object/apply:os.system [id]}",
    "line one\nline two\r\u202e",
)
TINY = {
    "solver": "admm",
    "texts_per_class": 1,
    "block_size": 1,
    "initial": {"candidates": 1},
    "admm": {"n_outer": 1, "n_inner": 1},
    "lengths": {"distribution": "uniform", "min_tokens": 4, "max_tokens": 6},
}


@pytest.fixture(scope="module")
def hostile(tiny_lm: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run over classes with such names."""
    words = (" bad", " great", " fine", " dull", " new", " old")
    task = gradmm.Task(label_names=HOSTILE, verbalisers=words, template="{text} It was")
    rows = [{"text": f"A film {n} of {name}", "label": name} for name in HOSTILE for n in range(2)]
    folder = tmp_path_factory.mktemp("outside") / "run"
    return gradmm.generate(tiny_lm("gpt2"), task, rows, GenerateConfig.model_validate(TINY), folder)


def test_no_module_runs_what_it_reads() -> None:
    """No pickle, no eval, no exec, no torch.load, no unsafe YAML, no shell."""
    banned = {"eval", "exec", "compile", "__import__"}
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            assert not {"pickle", "cloudpickle", "dill", "joblib", "shelve", "subprocess"} & {module, *names}, file
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in banned, (file, called)
                assert called not in {"torch.load", "os.system", "np.load", "pd.read_pickle"}, (file, called)
                assert called != "yaml.load" or ast.unparse(node).endswith("Loader=_Loader)"), file
    assert issubclass(yamlfiles._Loader, yaml.SafeLoader)


def test_names_lead_no_file_out_of_the_run_folder(hostile: Any) -> None:
    around = hostile.run_dir.parent
    assert [path.name for path in around.iterdir()] == ["run"]
    found = {path.relative_to(hostile.run_dir).as_posix() for path in hostile.run_dir.rglob("*") if path.is_file()}
    assert found == {
        *("config.yaml", "environment.json", "fingerprint.json", "metrics.json", "run.log", "SHA256SUMS"),
        *("data/synthetic.jsonl", "data/synthetic.parquet"),
    }


def test_names_come_back_as_they_were(hostile: Any) -> None:
    assert tuple(hostile.dataset.features["label"].names) == tuple(sorted(HOSTILE))
    settings = load_config(hostile.run_dir / "config.yaml")
    assert tuple(settings.task.verbalisers) == tuple(sorted(HOSTILE))  # type: ignore[union-attr]
    yaml.safe_load((hostile.run_dir / "config.yaml").read_text(encoding="utf-8"))
    lines = (hostile.run_dir / "data" / "synthetic.jsonl").read_text(encoding="utf-8").split("\n")
    assert len([json.loads(line) for line in lines if line]) == len(HOSTILE)


def test_names_and_texts_cannot_steer_a_terminal(hostile: Any, capsys: pytest.CaptureFixture[str]) -> None:
    show_result(Console(force_terminal=False, width=200), hostile)
    shown = capsys.readouterr().out
    assert "\\x1b]0;owned\\x07\\x1b[2J" in shown
    assert "line one\\nline two\\r\\u202e" in shown
    assert not {char for char in shown if char != "\n" and not char.isprintable()}


def test_errors_cannot_steer_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a\x1b[2J.jsonl").write_text('{"text": "a", "label": "\\u001b[31m"}\n')
    for args in (["--data", "./a\x1b[2J.jsonl"], ["--data", "./\x1b[2J.csv"], ["--set", "\x1b[2J=1"]):
        monkeypatch.setattr(sys, "argv", ["gradmm", "generate", *args])
        with pytest.raises(SystemExit) as end:
            main()
        told = capsys.readouterr().err
        assert end.value.code in (1, 2)
        assert "\\x1b[2J" in told
        assert not {char for char in told if char != "\n" and not char.isprintable()}


def test_local_model_and_data_need_no_network(tmp_path: Path, tiny_folder: Path) -> None:
    rows = [{"text": f"A film {n}", "label": n % 2} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    program = """
import socket, sys
def refuse(*args, **kwargs):
    print("NETWORK", args, file=sys.stderr)
    raise OSError("no network")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
from gradmm.cli import main
main()
"""
    lengths = ("lengths.distribution=uniform", "lengths.min_tokens=4", "lengths.max_tokens=6")
    sets = ["solver=admm", "admm.n_outer=1", "admm.n_inner=1", "initial.candidates=1", *lengths]
    args = ["--model", str(tiny_folder), "--data", "rows.jsonl", "--task", "sst2", "-n", "1", "-q"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", program, "generate", *args, *(word for item in sets for word in ("-s", item))],
        cwd=tmp_path,
        env=environment | {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
