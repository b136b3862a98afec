"""What is compared: methods, budgets, seeds, and how models are trained on what the methods make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from gradmm.comparison.methods import METHODS, get_method
from gradmm.config import GenerateConfig, LongForms
from gradmm.data.sources import DataConfig
from gradmm.errors import ConfigError
from gradmm.models import ModelConfig
from gradmm.training.finetune import TrainConfig
from gradmm.training_config import OTHER_SPLITS, Role, SplitsConfig, split_or_source


def _check_method(name: Any) -> Any:
    try:
        return get_method(str(name)).name
    except ConfigError as err:
        raise ValueError(str(err)) from err


MethodName = Annotated[str, BeforeValidator(_check_method)]


Split = Annotated[DataConfig, BeforeValidator(split_or_source)]


class CompareConfig(SplitsConfig):
    """A comparison."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    long_forms: ClassVar[LongForms] = OTHER_SPLITS
    example: ClassVar[str] = "budgets=[10,50]"

    model: ModelConfig = ModelConfig()
    """Writes the texts, and is trained on them."""
    train_model: ModelConfig | None = None
    """Another model to train on the texts (transfer); None trains the one that wrote them."""
    dev: Split
    """The development split, on which learning rates and numbers of steps are chosen: a split or slice of the
    data, or another source."""
    test: Split
    """The test split, looked at once for every model; nothing is chosen on it. Likewise."""
    methods: tuple[MethodName, ...] = tuple(METHODS)
    """What is compared; `file:PATH` is a file or run of one's own."""
    budgets: tuple[Annotated[int, Field(ge=1)], ...] = (10, 50)
    """Texts per class."""
    texts_from: str | None = None
    """Run folder of a comparison that has ended, of the same rows, writing model and settings of texts: the sets
    there are not made again, so that another model can be trained on them (`train_model`), or otherwise."""
    real_rows_per_class: int | None = Field(None, ge=1)
    """So few real rows are all there is, other ones for every data seed; None takes all."""
    seeds: int = Field(5, ge=1)
    """Data seeds: each has its own real rows, LM samples and sets."""
    training_seeds: int = Field(1, ge=1)
    """Trainings on every set."""
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = (1e-4, 3e-4)
    """To choose from, for every method and budget, on the development split."""
    tuning_seeds: int = Field(2, ge=1)
    """Data seeds on whose mean development accuracy the learning rate is chosen; the others take it over."""
    ceiling_steps: int = Field(600, ge=1)
    """Steps of the training on all real rows, where they are not few."""
    train: TrainConfig = TrainConfig(max_steps=60, eval_steps=20)
    """How models are trained; its learning rate is not used, and the best evaluation's weights are kept."""
    path: bool = False
    """Also compare the gradients on our texts with those on real rows, along the training on them: of the largest
    budget and the first data seed."""
    path_rows: int = Field(500, ge=1)
    """Real rows per class that the gradients and the training on real rows are taken over there, at most."""
    generate: GenerateConfig = GenerateConfig()
    """How texts are made; numbers of texts, seed and solver are the comparison's."""

    def other(self, role: Role) -> DataConfig:
        """Where the rows of the development or the test split are."""
        found = self.data_of(role)
        assert found is not None, "both are required"
        return found

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        for role, use in (("dev", "to choose by"), ("test", "to judge by")):
            if isinstance(given, Mapping) and given.get(role) is None:
                raise ValueError(
                    f"no split {use} is named; set {role} to a split or slice of the data, as in "
                    f"{role}=train[:10%], or to another source"
                )
        return given

    @model_validator(mode="after")
    def _whole(self) -> CompareConfig:
        for name in ("methods", "budgets", "learning_rates"):
            given = getattr(self, name)
            if not given:
                raise ValueError(f"{name} is empty; name one at least")
            if len(set(given)) < len(given):
                raise ValueError(f"{name} {list(given)} holds one twice; name each once")
        made = self.generate
        unused = {
            "pool.files": made.pool.files,
            "selection.weights": made.selection.weights,
            "privacy": made.privacy,
        }
        for name, setting in unused.items():
            if setting:
                raise ValueError(
                    f"generate.{name} is not used by a comparison; leave it out, or make the texts with `gradmm "
                    "generate` and name the run as a method, file:RUN"
                )
        if "lm_taught" in self.methods and not made.label_check.knows_rows:
            raise ValueError(
                "methods has lm_taught, whose labels are learnt from rows, and generate.label_check.reader is "
                "'model'; leave out either"
            )
        return self
