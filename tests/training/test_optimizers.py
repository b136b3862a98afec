"""`gradmm.training.optimizers`: against torch and transformers."""

from __future__ import annotations

import warnings

import pytest
import torch
from pydantic import ValidationError

from gradmm.errors import ConfigError
from gradmm.training.addax import Addax
from gradmm.training.optimizers import OptimizerConfig, make_optimizer, make_schedule
from optimizer_tools import zeros

# ---- optimisers as torch knows them


def test_a_schedule_sets_the_size_of_steps():
    weight = torch.nn.Parameter(torch.zeros(1))
    config = OptimizerConfig(optim="addax", learning_rate=1.0, warmup_steps=2)
    optimizer = make_optimizer([weight], config)
    schedule, moved = make_schedule(optimizer, config, 6), []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of a schedule that thinks there was no step
        for _ in range(6):
            before = float(weight.detach())
            optimizer.step(weight.sum)
            schedule.step()
            moved.append(before - float(weight.detach()))
    assert moved == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("kind", ["linear", "constant"])
@pytest.mark.parametrize(("warmup", "max_steps"), [(0, 7), (3, 7), (7, 7), (0, 1)])
def test_schedules_are_those_of_transformers(kind, warmup, max_steps):
    from transformers import get_constant_schedule_with_warmup, get_linear_schedule_with_warmup

    config = OptimizerConfig(lr_scheduler_type=kind, warmup_steps=warmup, learning_rate=0.3)
    ours, theirs = (make_optimizer(zeros(1), config) for _ in range(2))
    own = make_schedule(ours, config, max_steps)
    if kind == "linear":
        reference = get_linear_schedule_with_warmup(theirs, warmup, max_steps)
    else:
        reference = get_constant_schedule_with_warmup(theirs, warmup)
    for _ in range(max_steps + 1):
        assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
        for optimizer, schedule in ((ours, own), (theirs, reference)):
            optimizer.step(lambda: torch.zeros(()))
            schedule.step()


def test_settings_reach_the_optimiser_that_they_name():
    shared = {"learning_rate": 0.3, "weight_decay": 0.2}
    adamw = make_optimizer(zeros(2), OptimizerConfig(adam_beta1=0.5, adam_beta2=0.6, adam_epsilon=0.1, **shared))
    sgd = make_optimizer(zeros(2), OptimizerConfig(optim="sgd", momentum=0.7, **shared))
    settings_of = {"addax_alpha": 0.4, "addax_perturbation": 0.01}
    addax = make_optimizer(iter(zeros(2)), OptimizerConfig(optim="addax", **settings_of, **shared), 9)
    for optimizer, kind, expected in (
        (adamw, torch.optim.AdamW, {"betas": (0.5, 0.6), "eps": 0.1}),
        (sgd, torch.optim.SGD, {"momentum": 0.7, "nesterov": False}),
        (addax, Addax, {"alpha": 0.4, "perturbation": 0.01, "seed": 9}),
    ):
        assert type(optimizer) is kind
        assert optimizer.param_groups[0].items() >= ({"lr": 0.3, "weight_decay": 0.2} | expected).items()


def test_defaults_are_those_of_transformers():
    from dataclasses import fields

    from transformers import TrainingArguments

    theirs = {field.name: field.default for field in fields(TrainingArguments)}
    names = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "warmup_steps")
    for name in (*names, "lr_scheduler_type"):
        assert getattr(OptimizerConfig(), name) == theirs[name], name


# ---- settings


def test_a_warm_up_that_never_ends_is_refused():
    config = OptimizerConfig(warmup_steps=30)
    with pytest.raises(ConfigError) as caught:
        make_schedule(make_optimizer(zeros(1), config), config, 20)
    assert str(caught.value) == (
        "warmup_steps is 30 but training ends after 20 steps; lower warmup_steps, or train longer"
    )
    make_schedule(make_optimizer(zeros(1), config), config, 0)  # a training of no steps has no warm-up to fit in


@pytest.mark.parametrize(
    "wrong",
    [
        {"optim": "adam"},
        {"learning_rate": 0},
        {"learning_rate": float("inf")},
        {"weight_decay": -1},
        {"adam_beta2": 1.0},
        {"addax_alpha": 1.1},
        {"addax_perturbation": 0},
        {"addax_long_tokens": -1},
        {"lr_scheduler_type": "cosine"},
        {"warmup_steps": -1},
        {"lr": 1e-3},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValidationError):
        OptimizerConfig(**wrong)
