"""Programs of the documentation, run with settings that make them quick."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

import gradmm
from doc_folder import SMALL


def run_quickly(text: str, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs a program; returns its names."""
    generate, train = gradmm.generate, gradmm.train

    def small(
        model: Any,
        task: Any,
        data: Any,
        config: gradmm.GenerateConfig = gradmm.GenerateConfig(),
        *rest: Any,
        **more: Any,
    ) -> gradmm.Result:
        tree = config.model_dump() | {"texts_per_class": 2}
        for item in SMALL["generate"]:
            group, key, value = re.split(r"[.=]", item)
            tree[group][key] = yaml.safe_load(value)
        return generate(model, task, data, gradmm.GenerateConfig.model_validate(tree), *rest, **more)

    def short(model: Any, task: Any, data: Any, config: gradmm.TrainConfig, **more: Any) -> gradmm.TrainResult:
        return train(model, task, data, config.model_copy(update={"max_steps": 2, "eval_steps": 1}), **more)

    monkeypatch.setattr(gradmm, "generate", small)
    monkeypatch.setattr(gradmm, "train", short)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, name, "exec"), names)
    return names
