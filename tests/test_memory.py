"""When memory runs out: the batch is halved, said once, and the run ends with the same texts."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gradmm.config import GenerateConfig
from gradmm.errors import OutOfMemoryError
from gradmm.gradients.factors import label_factors
from gradmm.gradients.losses import VOCABULARY, VerbaliserLoss
from gradmm.memory import BatchLimit, is_out_of_memory
from gradmm.models import LanguageModel
from gradmm.pipeline import generate
from gradmm.progress import Reporter

ROWS = [
    *[(f"The film is bad, a dull story {n}.", 0) for n in range(5)],
    *[(f"A great film is fine, happy {n}.", 1) for n in range(7)],
]
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd more.")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you")


def room_for(most: int, error: BaseException = CUDA) -> Callable[[Any], list[Any]]:
    """Work that fails on more than so many items."""

    def work(part: Any) -> list[Any]:
        if len(part) > most:
            raise error
        return list(part)

    return work


class LittleMemory(Reporter):
    """From a stage on (None: the first), a model's body holds at most so many texts, but for its first calls."""

    def __init__(self, lm: LanguageModel, most: int, calls: int = 0, since: str | None = None) -> None:
        self.most, self.calls, self.since, self.begun = most, calls, since, False
        self.hook = lm.body.register_forward_pre_hook(self.check, with_kwargs=True)

    def __enter__(self) -> LittleMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def stage(self, name: str, total: float, unit: str) -> Any:
        self.begun = self.begun or self.since in (None, name)
        return super().stage(name, total, unit)

    def check(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.begun:
            return
        self.calls -= 1
        inputs = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        if self.calls < 0 and len(inputs) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")


def config(**changes: Any) -> GenerateConfig:
    small = {
        "solver": "admm",
        "texts_per_class": 6,
        "block_size": 3,
        "initial": {"candidates": 2},
        "per_device_batch_size": 16,
        "space": {"public_texts": 20},
    }
    admm = {"n_outer": 3, "n_inner": 2, "relative_tolerance": 0}
    lengths = {"distribution": "uniform", "min_tokens": 4, "max_tokens": 8}
    return GenerateConfig.model_validate({**small, "admm": admm, "lengths": lengths, **changes})


# ---- the limit


@pytest.mark.parametrize("error", [CUDA, CPU, MemoryError()])
@pytest.mark.parametrize(("most", "ends_at"), [(16, 16), (15, 8), (5, 4), (1, 1)])
def test_work_goes_on_in_halves(error: BaseException, most: int, ends_at: int) -> None:
    limit, items = BatchLimit(16), list(range(37))
    done = list(limit.map(room_for(most, error), items, "counting"))
    assert [item for part in done for item in part] == items
    assert limit.size == ends_at
    assert {len(part) for part in done[:-1]} == {ends_at}


def test_a_short_part_is_halved_itself() -> None:
    limit = BatchLimit(1000)
    assert list(limit.map(room_for(3), range(7), "counting")) == [[0, 1, 2], [3, 4, 5], [6]]
    assert limit.size == 3


def test_every_halving_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    limit = BatchLimit(8)
    for _ in range(3):
        list(limit.map(room_for(2), range(20), "computing the target"))
    assert caplog.messages == [
        "out of memory with 8 texts at once while computing the target: from here on 4",
        "out of memory with 4 texts at once while computing the target: from here on 2",
    ]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_where_one_text_does_not_fit_the_error_says_what_would() -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        list(BatchLimit(4).map(room_for(0), range(9), "decoding"))
    assert str(caught.value) == (
        "a single text does not fit into memory while decoding (CUDA out of memory. Tried to allocate 2.00 GiB.); "
        "what would: texts with fewer tokens (lengths.max_tokens, a shorter template or instruction), a body in "
        "half the bytes (model.dtype bfloat16), a smaller model, or a device with more memory (model.device)"
    )


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("x"), KeyboardInterrupt()])
def test_other_errors_pass(error: BaseException) -> None:
    limit = BatchLimit(4)
    with pytest.raises(type(error)) as caught:
        list(limit.map(room_for(1, error), range(9), "decoding"))
    assert caught.value is error
    assert limit.size == 4


def test_torch_s_own_error_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)


# ---- less memory, the same gradient


@pytest.mark.parametrize("loss", ["verbalisers", "vocabulary"])
def test_a_gradient_in_parts_is_the_whole_one(demo_lm: LanguageModel, demo_task: Any, loss: str) -> None:
    ids = [demo_task.text_ids(text) for text, _ in ROWS[:6]]
    batch = demo_task.collate(ids, [0, 1, 1, 0, 1, 0])
    of = VOCABULARY if loss == "vocabulary" else VerbaliserLoss.of(demo_task)

    def gradient(limit: BatchLimit | None) -> list[torch.Tensor]:
        embeds_NSE = batch.embed(demo_lm.embeddings_VE).requires_grad_()
        factors = label_factors(demo_lm, batch, embeds_NSE, 3, limit, of)
        value = (factors.r_KJV.square().sum() + factors.h_KJD.square().sum()) * factors.weight_KJ.sum()
        return [factors.r_KJV, factors.h_KJD, factors.weight_KJ, *torch.autograd.grad(value, embeds_NSE)]

    whole = gradient(None)
    for size in (1, 4, 5, 6, 100):
        for mine, expected in zip(gradient(BatchLimit(size)), whole, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_a_gradient_in_parts_holds_the_activations_of_one_part(demo_lm: LanguageModel, demo_task: Any) -> None:
    batch = demo_task.collate([demo_task.text_ids(text) for text, _ in ROWS[:6]], [0] * 6)

    def saved(limit: BatchLimit | None) -> int:
        """Bytes that the graph holds on to."""
        held: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        embeds_NSE = batch.embed(demo_lm.embeddings_VE).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            label_factors(demo_lm, batch, embeds_NSE, 3, limit)
        weights = {p.untyped_storage().data_ptr() for p in demo_lm.model.parameters()}
        return sum(size for place, size in held.items() if place not in weights)

    assert saved(BatchLimit(2)) < 0.2 * saved(None)


# ---- a whole run


@pytest.fixture(scope="module")
def roomy(tiny_lm: Any) -> list[str]:
    return list(generate(tiny_lm("gpt2"), "sst2", ROWS, config()).dataset["text"])


@pytest.mark.parametrize(
    ("most", "since"), [*((most, "target") for most in (11, 6, 3, 2, 1)), (6, None), (1, None)]
)
def test_a_run_with_little_memory_ends_with_the_same_texts(
    most: int, since: str | None, roomy: list[str], tiny_lm: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """So many texts, and a block has three; public text is written with all of the memory, or with as little."""
    lm = tiny_lm("gpt2")
    with LittleMemory(lm, most, since=since) as memory:
        result = generate(lm, "sst2", ROWS, config(), reporter=memory)
    assert list(result.dataset["text"]) == roomy
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings
    assert len(set(warnings)) == len(warnings) <= 4


@pytest.mark.parametrize("calls", [20, 40, 60, 80])
def test_memory_that_runs_out_later_splits_what_was_begun(
    calls: int, roomy: list[str], tiny_lm: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Later than when public text was written: ADMM is at work by then."""
    lm = tiny_lm("gpt2")
    with LittleMemory(lm, 4, calls, since="target") as memory:
        result = generate(lm, "sst2", ROWS, config(references=False), tmp_path / "run", memory)
    assert list(result.dataset["text"]) == roomy
    assert any(
        re.match(r"out of memory with 12 texts at once while \w+( texts)?: from", m) for m in caplog.messages
    )
    outer = [row["outer"] for row in result.metrics["trace"] if row["first_block"] == 0]
    assert outer == [1, 2, 3]  # nothing that was done is done again
    assert sum(stop["blocks"] for stop in result.metrics["stops"]) == 4


def test_a_run_that_does_not_fit_at_all_says_so(tiny_lm: Any, tmp_path: Path) -> None:
    lm = tiny_lm("gpt2")
    with LittleMemory(lm, 0, 3) as memory, pytest.raises(OutOfMemoryError, match="a single text does not fit"):
        generate(lm, "sst2", ROWS, config(), tmp_path / "run", memory)
