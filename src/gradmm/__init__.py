"""gradmm: small, readable synthetic text data sets that train a language model like the real data would.

import gradmm

model = gradmm.load_model("demo")
task = gradmm.Task(label_names=("negative", "positive"), verbalisers=(" bad", " great"))
result = gradmm.generate(model, task, "train.csv")
result.dataset            # a datasets.Dataset
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from gradmm.comparison.compare import Comparison, compare
    from gradmm.comparison.config import CompareConfig
    from gradmm.config import GenerateConfig, load_config
    from gradmm.data.presets import get_task
    from gradmm.data.sources import DataConfig, LabelledData, load_data
    from gradmm.data.task import Task
    from gradmm.errors import GradmmError
    from gradmm.models import LanguageModel, ModelConfig, load_model
    from gradmm.pipeline import generate
    from gradmm.privacy.config import PrivacyConfig
    from gradmm.report.card import write_card
    from gradmm.report.html import write_report
    from gradmm.report.publish import push
    from gradmm.result import Result
    from gradmm.training.evaluate import Evaluation
    from gradmm.training.finetune import TrainConfig
    from gradmm.training_run import TrainResult, evaluate, train

# Loaded on first use: `import gradmm` and `gradmm --help` must not wait for torch.
_HOMES = {
    "CompareConfig": "comparison.config",
    "Comparison": "comparison.compare",
    "DataConfig": "data.sources",
    "Evaluation": "training.evaluate",
    "GenerateConfig": "config",
    "GradmmError": "errors",
    "LabelledData": "data.sources",
    "LanguageModel": "models",
    "ModelConfig": "models",
    "PrivacyConfig": "privacy.config",
    "Result": "result",
    "Task": "data.task",
    "TrainConfig": "training.finetune",
    "TrainResult": "training_run",
    "compare": "comparison.compare",
    "evaluate": "training_run",
    "generate": "pipeline",
    "get_task": "data.presets",
    "load_config": "config",
    "load_data": "data.sources",
    "load_model": "models",
    "push": "report.publish",
    "train": "training_run",
    "write_card": "report.card",
    "write_report": "report.html",
}

__all__ = [  # noqa: RUF022 - sorted by use
    "load_model",
    "load_data",
    "Task",
    "get_task",
    "generate",
    "GenerateConfig",
    "PrivacyConfig",
    "Result",
    "train",
    "TrainConfig",
    "TrainResult",
    "evaluate",
    "Evaluation",
    "compare",
    "CompareConfig",
    "Comparison",
    "write_report",
    "write_card",
    "push",
    "load_config",
    "ModelConfig",
    "DataConfig",
    "LanguageModel",
    "LabelledData",
    "GradmmError",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # looking for it is a fifth of the time that `gradmm --help` takes
        from importlib.metadata import version

        return version("gradmm")
    if name in _HOMES:
        return getattr(importlib.import_module(f"gradmm.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'gradmm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, "__version__"])
