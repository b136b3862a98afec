"""The settings of `gradmm train`: how is trained, what, on what, and what it is judged by."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator

from gradmm.config import OWN_TASK, ConfigOfRun, LongForms, TaskConfig
from gradmm.data.presets import get_task
from gradmm.data.sources import DataConfig
from gradmm.data.task import Task
from gradmm.models import ModelConfig
from gradmm.training.finetune import TrainConfig
from gradmm.training.trainable import LoraSettings

Role = Literal["dev", "test"]
_SPLIT = re.compile(r"\w+(\[[^\]]*\])?(\+\w+(\[[^\]]*\])?)*")
_INHERITED = ("text_column", "label_column", "label_names", "classes")
_USUAL_SPLIT = {"dev": "validation", "test": "test"}


def split_or_source(given: Any) -> Any:
    """`validation` or `train[80%:]` is a split of the data; all else, such as `dev.csv`, is another source."""
    if not isinstance(given, str):
        return given
    return {"split": given} if _SPLIT.fullmatch(given) and given != "demo" else {"dataset": given}


def _adapters(given: Any) -> Any:
    return ({} if given else None) if isinstance(given, bool) else given


OTHER_SPLITS: LongForms = OWN_TASK | {"dev": (str, split_or_source), "test": (str, split_or_source)}
OtherData = Annotated[DataConfig | None, BeforeValidator(split_or_source)]


class SplitsConfig(ConfigOfRun):
    """What is trained on and judged by."""

    data: DataConfig = DataConfig()
    """The rows to train on; for `train`, `dataset` may also be the folder of a run of `gradmm generate`."""
    dev: OtherData = None
    """The development split, which chooses the weights: a split or slice of the data, or another source."""
    test: OtherData = None
    """The test split, which chooses nothing; likewise."""
    task: str | TaskConfig | None = None
    """A ready-made task by name, or one's own; by default that of the run whose texts are trained on, or sst2."""

    def resolve_task(self, label_names: tuple[str, ...]) -> Task:
        """The task over the data's classes.

        Raises:
            ConfigError: if a task of one's own is for other classes.
            TaskError: if there is no such ready-made task.
        """
        if isinstance(self.task, TaskConfig):
            return self.task.resolve(label_names)
        return get_task(self.task or "sst2")

    def data_of(self, role: Role) -> DataConfig | None:
        """Where the rows of another split are; columns and classes are those of `data` unless it names its own."""
        given: DataConfig | None = getattr(self, role)
        if given is None:
            return None
        shared = self.data.model_dump(include={*_INHERITED} | (set() if given.dataset else {"dataset", "name"}))
        own = given.model_dump(exclude_unset=True, exclude_none=True)
        return DataConfig(**{"split": _USUAL_SPLIT[role]} | shared | own)


class TrainRunConfig(TrainConfig, SplitsConfig):
    """A whole training: how, of what, on what."""

    long_forms: ClassVar[LongForms] = OTHER_SPLITS | {"lora": (bool, lambda on: {})}
    example: ClassVar[str] = "learning_rate=1e-4"

    lora: Annotated[LoraSettings | None, BeforeValidator(_adapters)] = None
    """Adapters to train instead of all weights; `true` takes the usual ones."""
    model: ModelConfig = ModelConfig()

    def train_config(self) -> TrainConfig:
        """The part that says how is trained."""
        return TrainConfig(**{name: getattr(self, name) for name in TrainConfig.model_fields})
