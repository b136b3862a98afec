"""Fine-tuning, held against loops written out, and against itself interrupted at every step."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import get_constant_schedule_with_warmup, get_linear_schedule_with_warmup

from gradmm.data.task import BoundTask
from gradmm.errors import ConfigError, NonFiniteError, OutOfMemoryError
from gradmm.labelling import label_log_probs
from gradmm.models import LanguageModel
from gradmm.store import RunFolder
from gradmm.training import finetune
from gradmm.training.evaluate import judge
from gradmm.training.finetune import FineTuner, TrainConfig, TrainState
from gradmm.training.rows import TokenRows, tokenise
from gradmm.training.trainable import LoraSettings
from tiny_models import TinyLM

TinyTask = Callable[..., BoundTask]
TEXTS = (
    ("A dull story.", "The film is bad", "sad, so sad", "What a dull end. It makes me feel bad.", "no"),
    ("A fine story.", "The film is great", "happy end", "This makes me feel great. I feel happy!", "yes"),
)
WORDS = {"one token": (" bad", " great"), "several tokens": (" bad, so sad", " great")}
PLAIN = "llama"  # without dropout
FREE = "gpt2"  # with dropout; tied


def rows_of(task: BoundTask, each: int = 5, weights: Sequence[Sequence[float]] | None = None) -> TokenRows:
    return tokenise(task, [own[:each] for own in TEXTS], weights)


def settings(**given: Any) -> TrainConfig:
    small = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "eval_steps": 1}
    return TrainConfig(**small | {"adam_epsilon": 1e-4} | given)


def tuned(lm: LanguageModel, task: BoundTask, rows: TokenRows | None = None, **given: Any) -> FineTuner:
    """A training that has ended."""
    tuner = FineTuner(lm, task, rows or rows_of(task), settings(**given))
    tuner.run()
    return tuner


def close(a: FineTuner, b: FineTuner, tolerance: float = 1e-5) -> None:
    weights = b.model.snapshot()
    for name, value in a.model.snapshot().items():
        torch.testing.assert_close(value, weights[name], atol=tolerance, rtol=1e-4, msg=name)


def same(a: FineTuner, b: FineTuner) -> bool:
    weights = b.model.snapshot()
    return all(torch.equal(value, weights[name]) for name, value in a.model.snapshot().items())


# ---- against a loop written out


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


# ---- batches


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


def test_a_row_that_does_not_fit_into_memory_ends_a_training(
    tiny_lm: TinyLM, tiny_task: TinyTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(tuner: FineTuner, rows: Sequence[int]) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(FineTuner, "_loss", loss)
    with pytest.raises(OutOfMemoryError) as caught:
        tuned(tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN)))
    assert str(caught.value) == (
        "a single text does not fit into memory while training (no memory); what would: rows with fewer tokens, "
        "adapters (lora), bf16, optim addax, a smaller model, or a device with more memory (model.device)"
    )


def test_other_errors_are_not_taken_for_want_of_memory(
    tiny_lm: TinyLM, tiny_task: TinyTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(tuner: FineTuner, rows: Sequence[int]) -> Tensor:
        raise RuntimeError("a bug")

    monkeypatch.setattr(FineTuner, "_loss", loss)
    for optim in ("adamw", "addax"):
        with pytest.raises(RuntimeError, match=r"^a bug$"):
            tuned(tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN)), optim=optim)


# ---- row weights


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


# ---- learning rate, seed, number formats


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


# ---- what the development split decides


def scripted(monkeypatch: pytest.MonkeyPatch, scores: Sequence[tuple[float, float]]) -> None:
    """Evaluations that find these accuracies and losses, in turn."""
    left, real = list(scores), finetune.evaluate

    def found(*args: Any) -> Any:
        accuracy, loss = left.pop(0)
        return type(real(*args))(4, accuracy, 0.0, (), 0.0, loss, ())

    monkeypatch.setattr(finetune, "evaluate", found)


@pytest.mark.parametrize(
    ("scores", "best", "last"),
    [
        ([(0.5, 1.0), (0.7, 0.9), (0.6, 0.5), (0.7, 1.0), (0.7, 0.9)], 4, 10),  # what is no better changes nothing
        ([(0.5, 1.0), (0.5, 0.9), (0.5, 0.8), (0.5, 0.7), (0.5, 0.6)], 10, 10),
        ([(0.9, 1.0), (0.5, 0.9), (0.8, 0.8), (0.8, 0.7)], 2, 8),  # three without a better one
    ],
)
def test_the_best_weights_come_out(
    scores: list[tuple[float, float]],
    best: int,
    last: int,
    tiny_lm: TinyLM,
    tiny_task: TinyTask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm, task, kept = tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN)), {}
    config = settings(max_steps=10, eval_steps=2, early_stopping_patience=3)
    tuner = FineTuner(lm, task, rows_of(task), config, rows_of(task, 2))
    scripted(monkeypatch, scores)
    state = tuner.run(lambda state: kept.update({state.step: tuner.model.snapshot()}))
    assert (state.best_step, state.step) == (best, last)
    assert [(line["step"], line["accuracy"], line["loss"]) for line in state.history] == [
        (2 * at, *score) for at, score in enumerate(scores, 1)
    ]
    assert all(torch.equal(value, kept[best][name]) for name, value in tuner.model.snapshot().items())
    assert best == last or not all(torch.equal(kept[best][name], kept[last][name]) for name in kept[best])


def test_figures_of_the_development_split_are_those_of_the_weights_then(
    tiny_lm: TinyLM, tiny_task: TinyTask
) -> None:
    lm, task = tiny_lm(FREE), tiny_task(tiny_lm(FREE))
    rows, dev = rows_of(task), rows_of(task, 2)
    tuner = FineTuner(lm, task, rows, settings(max_steps=5, eval_steps=2, optim="sgd"), dev)
    found = []
    tuner.run(lambda state: found.append(judge(label_log_probs(tuner.model, task, dev.ids), dev.labels)))
    assert [line["step"] for line in tuner.state.history] == [2, 4, 5]  # the last step is always looked at
    for line in tuner.state.history:
        then = found[int(line["step"]) - 1]
        assert (line["accuracy"], line["loss"]) == (then.accuracy, then.loss)


def test_without_a_development_split_the_last_weights_are_kept(tiny_lm: TinyLM, tiny_task: TinyTask) -> None:
    lm, task, kept = tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN)), []
    tuner = FineTuner(lm, task, rows_of(task), settings(eval_steps=2))
    state = tuner.run(lambda state: kept.append(tuner.model.snapshot()))
    assert state.best_step is None
    assert [list(line) for line in state.history] == [["step", "train_loss"]] * 2
    assert all(torch.equal(value, kept[-1][name]) for name, value in tuner.model.snapshot().items())


def test_no_steps_leave_the_model_as_it_was(tiny_lm: TinyLM, tiny_task: TinyTask) -> None:
    lm, task = tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN))
    tuner = FineTuner(lm, task, rows_of(task), settings(max_steps=0), rows_of(task, 2))
    assert tuner.run() == TrainState()
    assert tuner.model.language_model().fingerprint() == lm.fingerprint()


# ---- checkpoints

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


# ---- what cannot be


def test_numbers_that_are_not_finite_end_a_training(tiny_lm: TinyLM, tiny_task: TinyTask) -> None:
    lm, task = tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN))
    with pytest.raises(NonFiniteError) as caught:
        tuned(lm, task, optim="sgd", learning_rate=1e30, max_grad_norm=0)
    told = "the loss is nan in step 2 of the training; lower learning_rate (it is 1e+30), or set bf16 to false"
    assert str(caught.value) == told


def test_a_gradient_that_is_not_finite_moves_no_weight(
    tiny_lm: TinyLM, tiny_task: TinyTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, task, own = tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN)), FineTuner._loss
    monkeypatch.setattr(FineTuner, "_loss", lambda *args: own(*args) * 1e38)
    for norm in (0, 1):
        tuner = FineTuner(lm, task, rows_of(task), settings(max_grad_norm=norm))
        with pytest.raises(NonFiniteError, match=r"^the (loss|gradient's norm) is (inf|nan) in step 1 of the "):
            tuner.run()
        start = dict(lm.model.named_parameters())
        assert all(torch.equal(value, start[name]) for name, value in tuner.model.snapshot().items())


def test_addax_says_what_would_fit_into_memory(
    tiny_lm: TinyLM, tiny_task: TinyTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(tuner: FineTuner, rows: Sequence[int]) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(FineTuner, "_loss", loss)
    with pytest.raises(OutOfMemoryError) as caught:
        tuned(tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN)), optim="addax")
    assert str(caught.value) == (
        "step 1 of addax does not fit into memory; lower per_device_train_batch_size (it is 4), or "
        "addax_long_tokens (it is 170), so that fewer rows are backpropagated through"
    )


def test_early_stopping_needs_a_development_split(tiny_lm: TinyLM, tiny_task: TinyTask) -> None:
    with pytest.raises(ConfigError) as caught:
        tuned(tiny_lm(PLAIN), tiny_task(tiny_lm(PLAIN)), early_stopping_patience=3)
    assert str(caught.value) == (
        "early_stopping_patience is 3 but there is no development split to stop by; give one (dev, or "
        "dev_fraction), or leave it out"
    )


def test_addax_accumulates_nothing() -> None:
    with pytest.raises(
        ValidationError, match="addax applies gradients while they are computed and can accumulate"
    ):
        settings(optim="addax", gradient_accumulation_steps=2)
