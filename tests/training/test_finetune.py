"""Fine-tuning: every step against a loop that is written out, batches, weights, rates, number formats."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import get_constant_schedule_with_warmup, get_linear_schedule_with_warmup

from finetune_tools import FREE, PLAIN, TEXTS, TinyTask, rows_of, same, settings, tuned
from gradmm.data.task import BoundTask
from gradmm.labelling import label_log_probs
from gradmm.training.evaluate import judge
from gradmm.training.finetune import FineTuner
from gradmm.training.rows import TokenRows, tokenise
from gradmm.training.trainable import LoraSettings
from tiny_models import TinyLM

WORDS = {"one token": (" bad", " great"), "several tokens": (" bad, so sad", " great")}


def close(a: FineTuner, b: FineTuner, tolerance: float = 1e-5) -> None:
    weights = b.model.snapshot()
    for name, value in a.model.snapshot().items():
        torch.testing.assert_close(value, weights[name], atol=tolerance, rtol=1e-4, msg=name)


def log_softmax_of(model: Any, task: BoundTask, ids: list[int], label: int) -> Tensor:
    """Log-probabilities (V) at each of a label's tokens, from the whole model and the whole sequence."""
    words = task.label_ids[label]
    whole = torch.tensor([[*task.prefix_ids, *ids, *task.suffix_ids, *words]])
    logits = model(input_ids=whole).logits[0, -len(words) - 1 : -1]
    return torch.log_softmax(logits.float(), -1)


def literal_loss(model: Any, task: BoundTask, ids: list[int], label: int, loss: str) -> Tensor:
    def of(c: int) -> Tensor:
        log_probs = log_softmax_of(model, task, ids, c)
        return sum(log_probs[at, token] for at, token in enumerate(task.label_ids[c]))

    if loss == "vocabulary":
        return -of(label)
    scores = torch.stack([of(c) for c in range(len(task.label_ids))])
    return -torch.log(torch.exp(scores)[label] / torch.exp(scores).sum())


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("loss", ["verbalisers", "vocabulary"])
@pytest.mark.parametrize("kind", [PLAIN, "gemma2", "qwen3"])
def test_a_step_is_adamw_on_the_mean_loss(
    kind: str, loss: str, words: str, tiny_lm: TinyLM, tiny_task: TinyTask
) -> None:
    lm = tiny_lm(kind)
    task = tiny_task(lm, WORDS[words])
    rows = rows_of(task)
    tuner = tuned(lm, task, rows, loss=loss, max_grad_norm=0.5, weight_decay=0.1)
    model = copy.deepcopy(lm.model).requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-4, weight_decay=0.1)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, 3)
    losses = []
    for step in range(3):
        chosen = tuner._rows(step)
        mean = torch.stack([literal_loss(model, task, rows.ids[i], rows.labels[i], loss) for i in chosen]).mean()
        optimizer.zero_grad()
        mean.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        schedule.step()
        losses.append(float(mean.detach()))
    assert [line["train_loss"] for line in tuner.state.history] == pytest.approx(losses, rel=1e-4)
    expected = dict(model.named_parameters())
    for name, value in tuner.model.snapshot().items():
        torch.testing.assert_close(value, expected[name].detach(), atol=1e-4, rtol=1e-3, msg=name)


def test_the_vocabulary_loss_is_the_models_own(tiny_lm: TinyLM, tiny_task: TinyTask) -> None:
    lm = tiny_lm(PLAIN)
    task = tiny_task(lm)
    rows = tokenise(task, [TEXTS[0][:1], TEXTS[1][:1]])
    tuner = tuned(lm, task, rows, loss="vocabulary", max_steps=1, per_device_train_batch_size=2)
    own = []
    for ids, label in zip(rows.ids, rows.labels, strict=True):
        whole = torch.tensor([[*task.prefix_ids, *ids, *task.suffix_ids, *task.label_ids[label]]])
        asked = torch.full_like(whole, -100)
        asked[0, -1] = whole[0, -1]
        own.append(float(lm.model(input_ids=whole, labels=asked).loss))
    assert tuner.state.history[0]["train_loss"] == pytest.approx(sum(own) / 2, rel=1e-5)


def test_every_epoch_has_every_row_once_in_an_order_of_its_own(tiny_lm: TinyLM, tiny_task: TinyTask) -> None:
    lm, task = tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN))
    tuner = FineTuner(lm, task, rows_of(task), settings(per_device_train_batch_size=3))
    drawn = [row for step in range(10) for row in tuner._rows(step)]
    epochs = [tuple(drawn[at : at + 10]) for at in range(0, 30, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(epochs)) == 3
    other = FineTuner(lm, task, rows_of(task), settings(per_device_train_batch_size=3, seed=1))
    assert [other._rows(step) for step in range(10)] != [tuner._rows(step) for step in range(10)]
    large = FineTuner(lm, task, rows_of(task), settings(per_device_train_batch_size=30))
    assert large._rows(0) == drawn  # larger than the data


def test_accumulated_batches_are_one_large_one(tiny_lm: TinyLM, tiny_task: TinyTask) -> None:
    lm, task = tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN), WORDS["several tokens"])
    large = tuned(lm, task, per_device_train_batch_size=6)
    for size, count in ((2, 3), (1, 6)):
        parts = tuned(lm, task, per_device_train_batch_size=size, gradient_accumulation_steps=count)
        close(parts, large)
        assert [line["train_loss"] for line in parts.state.history] == pytest.approx(
            [line["train_loss"] for line in large.state.history], rel=1e-4
        )


def test_parts_hold_every_row_once_and_are_alike_in_length(tiny_lm: TinyLM, tiny_task: TinyTask) -> None:
    lm, task = tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN))
    lengths = [20, 30, 21, 22, 31, 32, 23, 21, 90, 33]
    rows = TokenRows([[5] * length for length in lengths], [0, 1] * 5)
    tuner = FineTuner(lm, task, rows, settings(per_device_train_batch_size=10))
    parts = list(tuner._parts(range(10)))
    assert sorted(row for part in parts for row in part) == list(range(10))
    by_length = [sorted(lengths[i] for i in part) for part in parts]
    assert by_length == [[20, 21, 21, 22, 23], [30, 31, 32, 33], [90]]
    tuner.limit.size = 2
    assert [len(part) for part in tuner._parts(range(10))] == [2] * 5


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), MemoryError()])
def test_where_memory_runs_out_smaller_batches_make_the_same_step(
    error: Exception, tiny_lm: TinyLM, tiny_task: TinyTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, task = tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN))
    whole = tuned(lm, task, per_device_train_batch_size=8)
    own, sizes = FineTuner._loss, []
    monkeypatch.setattr("gradmm.training.finetune._LIKE", math.inf)  # parts of any lengths

    def loss(tuner: FineTuner, rows: Sequence[int]) -> Tensor:
        sizes.append(len(rows))
        if len(rows) > 4 or len(sizes) == 3:  # the third when a part of the step has been added up
            raise error
        return own(tuner, rows)

    monkeypatch.setattr(FineTuner, "_loss", loss)
    parts = tuned(lm, task, per_device_train_batch_size=8)
    assert sizes == [8, 4, 4] + 3 * [2] * 4
    assert parts.limit.size == 2
    close(parts, whole)


def test_a_row_of_weight_2_is_that_row_twice(tiny_lm: TinyLM, tiny_task: TinyTask) -> None:
    lm, task = tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN))
    texts = [own[:2] for own in TEXTS]
    weighted = [tokenise(task, texts, [[2 * scale, scale], [scale, scale]]) for scale in (1, 0.01)]
    twice = tokenise(task, [[texts[0][0], *texts[0]], texts[1]])
    expected = tuned(lm, task, twice, per_device_train_batch_size=5)
    for rows in weighted:  # only ratios count
        close(tuned(lm, task, rows, per_device_train_batch_size=4), expected)
    plain = tuned(lm, task, tokenise(task, texts), per_device_train_batch_size=4)
    alike = tuned(lm, task, tokenise(task, texts, [[3, 3], [3, 3]]), per_device_train_batch_size=4)
    assert same(alike, plain)
    assert not same(alike, expected)


@pytest.mark.parametrize("kind", ["linear", "constant"])
def test_the_learning_rate_is_that_of_transformers(kind: str, tiny_lm: TinyLM, tiny_task: TinyTask) -> None:
    lm, task, rates = tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN)), []
    config = settings(max_steps=6, warmup_steps=2, lr_scheduler_type=kind)
    tuner = FineTuner(lm, task, rows_of(task), config)
    rates.append(tuner.optimizer.param_groups[0]["lr"])
    tuner.run(lambda state: rates.append(tuner.optimizer.param_groups[0]["lr"]))
    other = torch.optim.SGD([torch.zeros(1)], lr=1e-2)
    schedule = (
        get_linear_schedule_with_warmup(other, 2, 6)
        if kind == "linear"
        else get_constant_schedule_with_warmup(other, 2)
    )
    expected = []
    for _ in range(7):
        expected.append(other.param_groups[0]["lr"])
        other.step()
        schedule.step()
    assert rates == pytest.approx(expected)


def test_dropout_is_of_the_seed_and_of_training_alone(tiny_lm: TinyLM, tiny_task: TinyTask) -> None:
    lm, task = tiny_lm(FREE), tiny_task(tiny_lm(FREE))
    rows = tokenise(task, [TEXTS[0][:1], TEXTS[1][:1]])
    before = torch.get_rng_state()
    runs = [tuned(lm, task, rows, per_device_train_batch_size=2, seed=seed, max_steps=2) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert same(runs[0], runs[1])
    losses = [[line["train_loss"] for line in run.state.history] for run in runs]
    plain = judge(label_log_probs(lm, task, rows.ids), rows.labels).loss
    assert len({losses[0][0], losses[2][0], plain}) == 3
    assert not any(module.training for module in runs[0].model.model.modules())


def test_bfloat16_computes_nearly_the_same_with_weights_in_float32(tiny_lm: TinyLM, tiny_task: TinyTask) -> None:
    lm, task = tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN))
    plain, half = tuned(lm, task, optim="sgd"), tuned(lm, task, optim="sgd", bf16=True)
    assert not same(half, plain)
    assert {weight.dtype for weight in half.model.parameters().values()} == {torch.float32}
    moved = half.model.snapshot()
    start = dict(lm.model.named_parameters())
    for name, value in plain.model.snapshot().items():
        step, other = value - start[name], moved[name] - start[name]
        assert (step - other).norm() <= 0.1 * step.norm() + 1e-5, name


@pytest.mark.parametrize("optim", ["adamw", "addax"])
def test_adapters_alone_are_trained(optim: str, tiny_lm: TinyLM, tiny_task: TinyTask) -> None:
    lm, task = tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN))
    tuner = tuned(lm, task, lora=LoraSettings(r=2), optim=optim, addax_long_tokens=10)
    assert all("lora_" in name for name in tuner.model.parameters())
    base = {name.replace(".base_layer", ""): value for name, value in tuner.model.model.named_parameters()}
    for name, value in lm.model.named_parameters():
        assert torch.equal(base[name], value)
    made, rows = tuner.model.language_model(), rows_of(task)
    found = label_log_probs(made, task, rows.ids)
    torch.testing.assert_close(found, label_log_probs(tuner.model, task, rows.ids), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, label_log_probs(lm, task, rows.ids), atol=1e-3)
