"""Trainings that go on from a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from finetune_tools import FREE, PLAIN, TinyTask, rows_of, same, settings
from gradmm.store import RunFolder
from gradmm.training.finetune import FineTuner
from gradmm.training.trainable import LoraSettings
from tiny_models import TinyLM

OPTIMIZERS = {
    "adamw": {"weight_decay": 0.1},
    "sgd": {"momentum": 0.9},
    "addax": {"addax_long_tokens": 12, "learning_rate": 1e-3},
    "adapters": {"lora": LoraSettings(r=2), "optim": "adamw"},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_training_goes_on_from_every_step_bit_for_bit(
    name: str, tiny_lm: TinyLM, tiny_task: TinyTask, tmp_path: Path
) -> None:
    lm, task = tiny_lm(FREE), tiny_task(tiny_lm(FREE))
    rows = rows_of(task, weights=[[1, 2, 1, 1, 0.5], [1] * 5])
    given = {"max_steps": 5, "eval_steps": 2, "warmup_steps": 2, "optim": name} | OPTIMIZERS[name]

    def tuner() -> FineTuner:
        return FineTuner(lm, task, rows, settings(**given), rows_of(task, 2))

    whole, moving = tuner(), tuner()
    with RunFolder(tmp_path / "run", {}) as folder:
        folder.save_state("0", moving.tensors(), moving.facts())
        whole.run()
        moving.run(lambda state: folder.save_state(str(state.step), moving.tensors(), moving.facts()))
        assert same(whole, moving)  # to be looked at changes nothing
        for step in range(6):
            torch.manual_seed(step)  # whatever was drawn elsewhere
            later, kept = tuner(), folder.load_state(str(step))
            assert kept is not None
            later.load(*kept)
            assert later.state.step == step
            later.run()
            assert same(later, whole), step
            assert later.state == whole.state
            assert later.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]
    assert whole.state.best_step is not None
    assert not all(
        torch.equal(value, start)
        for value, start in zip(whole.model.snapshot().values(), tuner().model.snapshot().values(), strict=True)
    )


def test_a_checkpoint_tells_how_much_fits_into_memory(tiny_lm: TinyLM, tiny_task: TinyTask) -> None:
    lm, task = tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN))
    first, later = (FineTuner(lm, task, rows_of(task), settings()) for _ in range(2))
    first.limit.size, first.eval_limit.size = 1, 3
    later.load(first.tensors(), json.loads(json.dumps(first.facts())))
    assert (later.limit.size, later.eval_limit.size) == (1, 3)
