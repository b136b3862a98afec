"""`gradmm train`: a training that is interrupted ends as one that is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from command_line import Outcome, Run
from gradmm import training_run
from gradmm.models import LanguageModel
from gradmm.store import RunFolder
from gradmm.training.finetune import FineTuner
from gradmm.training_run import TrainResult
from train_tools import (
    assert_like,
    metrics_in,
    train,
    weights_in,
)


def test_control_c_ends_with_130_and_the_same_command_goes_on(
    run: Run, base: list[str], splits: list[str], made: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = FineTuner.step
    for stops in (1, 4):

        def step(tuner: FineTuner, at: int = stops) -> None:
            if tuner.state.step == at:
                raise KeyboardInterrupt
            own(tuner)

        with monkeypatch.context() as patch:
            patch.setattr(FineTuner, "step", step)
            outcome = run(*base, *splits, "-o", "a", "-q")
        assert outcome == Outcome(130, "", "interrupted; the same command goes on from here\n")
        assert not Path("a/model").exists()
    taken: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(FineTuner, "step", lambda tuner: taken.append(tuner.state.step) or own(tuner))
        assert run(*base, *splits, "-o", "a", "-q").code == 0
    assert taken == [4, 5]  # and none that was made
    assert_like("a", made)


@pytest.mark.parametrize("moment", ["model", "metrics.json", "SHA256SUMS"])
def test_a_run_that_stops_while_it_writes_its_end_goes_on(
    moment: str, files: Path, lm: LanguageModel, made: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"dev": str(files / "dev.jsonl"), "test": str(files / "test.jsonl"), "output_dir": "a"}
    write, write_folder = RunFolder.write, RunFolder.write_folder

    def stopping(folder: RunFolder, name: str, *args: Any) -> Path:
        if name == moment:
            raise KeyboardInterrupt
        return (write_folder if name == "model" else write)(folder, name, *args)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write", stopping)
        patch.setattr(RunFolder, "write_folder", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(lm, files, **given)
    assert Path("a/model").exists() == (moment != "model")
    left = Path("a/.model.killed.tmp")  # as SIGKILL leaves it in the middle of a model
    (left / "deeper").mkdir(parents=True)
    (left / "deeper" / "model.safetensors").write_text("half")
    train(lm, files, **given)
    assert_like("a", made)
    assert not left.exists()


def test_a_disk_that_is_full_is_told(
    run: Run, base: list[str], monkeypatch: pytest.MonkeyPatch, files: Path
) -> None:
    def full(model: Any, tokenizer: Any, folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "save_pretrained", full)
        outcome = run(*base, "-o", "a", "-q")
    assert outcome.code == 1
    assert "cannot be written to (model): no space is left" in outcome.err
    assert not list(Path("a").glob(".model*")) + list(Path("a").glob("model"))
    assert run(*base, "-o", "a", "-q").code == 0


def test_a_process_that_is_killed_goes_on(run: Run, base: list[str], splits: list[str]) -> None:
    command = [*base, *splits, "--max-steps", "24", "-q"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "gradmm", *command, "-o", "a"], env=environment)
    while process.poll() is None and not Path("a/state/training.safetensors").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert Path("a/state/training.safetensors").exists()
    assert not Path("a/SHA256SUMS").exists()
    first = run(*command, "-o", "a")
    whole = run(*command, "-o", "b")
    assert first.code == whole.code == 0
    assert first.out == whole.out.replace("Model: b/model", "Model: a/model")
    assert weights_in("a") == weights_in("b")
    assert metrics_in("a") == metrics_in("b")
    assert not Path("a/state").exists()
