"""How far gradients on a set are from those on real rows: against plain autograd, and along a training."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from gradmm.comparison.guarantee import PathPoint, follow, mean_gradient
from gradmm.data.task import BoundTask
from gradmm.gradients.exact_target import compute_target
from gradmm.models import LanguageModel
from gradmm.training.finetune import FineTuner, TrainConfig
from gradmm.training.rows import TokenRows, tokenise
from gradmm.training.trainable import TrainableModel

TEXTS = (
    ["The film is bad", "A dull story, no end.", "So sad"],
    ["A great film and a happy end", "Fine."],
)
WEIGHTS = ([0.5, 2.0, 0.5], [1.5, 0.25])
WORDS = (" bad", " very great")  # of one token and of several
TIED, UNTIED = ("gpt2", "gemma2"), ("llama", "phi")  # gemma2 caps its logits, phi's head has a bias
SMALL = TrainConfig(max_steps=4, per_device_train_batch_size=4, learning_rate=1e-2)


def plain_gradient(lm: LanguageModel, task: BoundTask, weights: Sequence[Sequence[float]]) -> dict[str, Tensor]:
    """By transformers' model alone, text by text: gradient by name of weight."""
    model = copy.deepcopy(lm.model).eval().requires_grad_(True)
    loss = torch.zeros(())
    for label, (own, shares) in enumerate(zip(TEXTS, weights, strict=True)):
        words = task.label_ids[label]
        for text, share in zip(own, shares, strict=True):
            ids = torch.tensor([task.render(text, label)])
            log_probs = torch.log_softmax(model(input_ids=ids).logits[0].float(), -1)
            first = ids.shape[1] - len(words) - 1
            own_loss = -sum(log_probs[first + n, token] for n, token in enumerate(words))
            loss = loss + own_loss * share / sum(shares) / len(TEXTS)
    loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("kind", [*TIED, *UNTIED])
def test_the_mean_gradient_is_that_of_plain_autograd(
    kind: str, weights: Any, tiny_lm: Any, tiny_task: Any
) -> None:
    lm = tiny_lm(kind)
    task = tiny_task(lm, WORDS)
    model = TrainableModel(lm)
    head = model.head
    expected = plain_gradient(lm, task, weights or [[1.0] * len(own) for own in TEXTS])
    assert list(expected) == list(model.parameters())
    for batch_size in (1, 2, 8):
        found = mean_gradient(model, task, tokenise(task, TEXTS, weights), batch_size)
        parts = torch.split(found["all"], [value.numel() for value in expected.values()])
        for (name, value), part in zip(expected.items(), parts, strict=True):
            torch.testing.assert_close(part, value.flatten(), rtol=1e-3, atol=1e-5, msg=name)
    assert model.head is head and all(weight.grad is None for weight in model.parameters().values())
    if kind in UNTIED:
        torch.testing.assert_close(found["head"], expected["lm_head.weight"].flatten(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", [*TIED, *UNTIED])
def test_the_head_part_is_what_is_matched(kind: str, tiny_lm: Any, tiny_task: Any) -> None:
    lm = tiny_lm(kind)
    task = tiny_task(lm, WORDS)
    found = mean_gradient(TrainableModel(lm), task, tokenise(task, TEXTS), 8)
    target = compute_target(lm, task, [[own] for own in TEXTS])
    expected = torch.stack([own.materialised()[0] for own in target.classes]).mean(0)
    torch.testing.assert_close(found["head"], expected.flatten(), rtol=1e-3, atol=1e-6)
    assert found["head"].norm() > 0.01


def test_a_weight_of_two_is_a_row_that_stands_there_twice(tiny_lm: Any, tiny_task: Any) -> None:
    lm = tiny_lm("gpt2")
    task, model = tiny_task(lm), TrainableModel(lm)
    weighted = tokenise(task, TEXTS, [[2.0, 1.0, 1.0], [1.0, 1.0]])
    twice = tokenise(task, [[TEXTS[0][0], *TEXTS[0]], TEXTS[1]])
    ours, theirs = (mean_gradient(model, task, rows, 8)["all"] for rows in (weighted, twice))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_adapters_are_all_that_counts_where_they_are_all_that_is_trained(tiny_lm: Any, tiny_task: Any) -> None:
    pytest.importorskip("peft")
    lm = tiny_lm("gpt2")
    task, config = tiny_task(lm), TrainConfig(lora={"r": 2}, max_steps=2, learning_rate=1e-2)
    tuner = FineTuner(lm, task, tokenise(task, TEXTS), config)
    found = mean_gradient(tuner.model, task, tuner.train, 8)
    assert len(found["all"]) == sum(weight.numel() for weight in tuner.model.parameters().values())
    plain = mean_gradient(TrainableModel(lm), task, tuner.train, 8)
    torch.testing.assert_close(found["head"], plain["head"])  # adapters begin at no change
    points = follow(lm, task, tuner.train, tokenise(task, TEXTS[::-1]), config, [0, 2])
    assert points[1].weights_apart is not None and points[1].weights_apart > 0


# ---- along a training


@pytest.fixture(scope="module")
def lm(tiny_lm: Any) -> LanguageModel:
    found: LanguageModel = tiny_lm("gpt2")
    return found


@pytest.fixture(scope="module")
def task(lm: LanguageModel, tiny_task: Any) -> BoundTask:
    found: BoundTask = tiny_task(lm)
    return found


@pytest.fixture(scope="module")
def real(task: BoundTask) -> TokenRows:
    return tokenise(task, [[f"{text} {n}" for text in own for n in range(3)] for own in TEXTS])


def test_the_real_rows_themselves_have_no_error(lm: LanguageModel, task: BoundTask, real: TokenRows) -> None:
    before = lm.fingerprint()
    points = follow(lm, task, real, real, SMALL, [0, 1, 4])
    assert [point.step for point in points] == [0, 1, 4]
    assert [point.weights_apart for point in points] == [None, 0.0, 0.0]
    for point in points:
        assert (point.error_all, point.error_head) == (0.0, 0.0)
        assert point.cosine_all == pytest.approx(1, abs=1e-5)
    assert lm.fingerprint() == before


def test_the_other_classs_labels_have_the_larger_error(
    lm: LanguageModel, task: BoundTask, real: TokenRows
) -> None:
    part = tokenise(task, TEXTS)
    wrong = TokenRows(part.ids, [1 - label for label in part.labels])
    right, swapped = (follow(lm, task, made, real, SMALL, [0, 2, 4]) for made in (part, wrong))
    for mine, other in zip(right, swapped, strict=True):
        assert mine.error_all < other.error_all and mine.error_head < other.error_head
        assert mine.cosine_all > other.cosine_all
    assert 0 < right[0].error_head < 1
    last = [points[-1].weights_apart for points in (right, swapped)]
    assert last[0] is not None and last[1] is not None and 0 < last[0] < last[1]


def test_errors_are_those_of_the_two_gradients_at_the_weights_on_the_path(
    lm: LanguageModel, task: BoundTask, real: TokenRows
) -> None:
    made = tokenise(task, TEXTS)
    points = follow(lm, task, made, real, SMALL, [0, 3], batch_size=2)
    here, there = (FineTuner(lm, task, rows, SMALL) for rows in (made, real))
    start = torch.cat([value.flatten() for value in here.model.snapshot().values()])
    for point in points:
        while here.state.step < point.step:
            here.step(), there.step()
        ours, theirs = (mean_gradient(here.model, task, rows, 64) for rows in (made, real))
        for part, error in (("all", point.error_all), ("head", point.error_head)):
            assert error == pytest.approx(
                float((ours[part] - theirs[part]).norm() / theirs[part].norm()), rel=1e-3
            )
        cosine = float(torch.cosine_similarity(ours["all"], theirs["all"], dim=0))
        assert point.cosine_all == pytest.approx(cosine, rel=1e-3)
    a, b = (torch.cat([v.flatten() for v in tuner.model.snapshot().values()]) for tuner in (here, there))
    assert points[1].weights_apart == pytest.approx(float((a - b).norm() / (b - start).norm()), rel=1e-3)


def test_weights_that_have_not_moved_are_no_measure(lm: LanguageModel, task: BoundTask, real: TokenRows) -> None:
    config = SMALL.model_copy(update={"warmup_steps": 2})  # the first step's rate is 0
    points: list[PathPoint] = follow(lm, task, tokenise(task, TEXTS), real, config, [0, 1, 2])
    assert [point.weights_apart is None for point in points] == [True, True, False]
    assert points[0].error_all == points[1].error_all != points[2].error_all
    assert all(math.isfinite(point.error_head) for point in points)
