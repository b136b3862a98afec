"""The settings of a run: the components' own configs, composed; YAML files, overrides, errors that help.

Precedence: flag > file > default. Every key that nobody reads is an error that names the nearest known one.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from gradmm.class_counts import check_listed, share_out
from gradmm.data.presets import get_task
from gradmm.data.sources import DataConfig
from gradmm.data.task import Task
from gradmm.data.vocabulary import BanConfig
from gradmm.errors import ConfigError, closest, nearest
from gradmm.gradients.distances import DistanceConfig
from gradmm.gradients.shrinkage import ShrinkageConfig
from gradmm.gradients.spaces import SpaceConfig
from gradmm.labelling import LabelCheckConfig
from gradmm.models import ModelConfig
from gradmm.privacy.config import PrivacyConfig
from gradmm.private_settings import (
    LM_ALONE,
    refuse_drawn_rows,
    refuse_found_classes,
    refuse_leaks,
    with_private_defaults,
)
from gradmm.solvers.admm import AdmmConfig
from gradmm.solvers.initial import InitialConfig, LengthConfig
from gradmm.solvers.pool import PoolConfig
from gradmm.solvers.projection import ProjectionConfig
from gradmm.solvers.refinement import RefinementConfig
from gradmm.solvers.selection import SelectionConfig
from gradmm.training.writer import WriterConfig
from gradmm.yamlfiles import missing, read_mapping, read_value, to_yaml

_ON_GPU, _ELSEWHERE = 256, 64  # texts at once; more brings nothing on a CPU, and a GPU waits for less

PACKAGED = Path(__file__).parent / "assets" / "configs"
LongForms = dict[str, tuple[type, Callable[[Any], dict[str, Any]]]]
"""Groups that may also be given as one value, of this type, and the group that it stands for."""
OWN_TASK: LongForms = {"task": (str, lambda name: {})}


def _check_counts(given: Any) -> Any:
    counts = given if isinstance(given, dict) else {None: given}
    wrong = [name for name, count in counts.items() if type(count) is not int or count < 1]
    if wrong or not counts:
        odd = f" ({wrong[0]} has {given[wrong[0]]!r})" if isinstance(given, dict) and wrong else ""
        raise ValueError(f"give a whole number of at least 1, or one for each label name{odd}")
    return given


def _check_references(given: Any) -> Any:
    if given == LM_ALONE or isinstance(given, bool):
        return given
    raise ValueError(f"give true, false or {LM_ALONE!r}")


Counts = Annotated[int | dict[str, int], BeforeValidator(_check_counts)]
References = Annotated[bool | Literal["lm"], BeforeValidator(_check_references)]


class TaskConfig(BaseModel):
    """A task of one's own; what is left out comes from the data's label names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    template: str = "{text} It was"
    """What surrounds the text."""
    verbalisers: dict[str, str] | None = None
    """For each label name, the words that follow; by default a space and the label name."""
    instructions: dict[str, str] | None = None
    """For each label name, the prompt after which the LM writes such a text."""

    def resolve(self, label_names: Sequence[str]) -> Task:
        """The task over these classes.

        Raises:
            ConfigError: if verbalisers or instructions name other classes.
        """
        for what, given in (("verbalisers", self.verbalisers), ("instructions", self.instructions)):
            if given is not None and set(given) != set(label_names):
                raise ConfigError(
                    f"task.{what} are for {sorted(given)} but the data's classes are {list(label_names)}; "
                    "give one for each"
                )
        verbalisers = self.verbalisers or {name: f" {name}" for name in label_names}
        return Task(
            label_names=tuple(label_names),
            template=self.template,
            verbalisers=tuple(verbalisers[name] for name in label_names),
            instructions=tuple(self.instructions[name] for name in label_names) if self.instructions else (),
        )


class GenerateConfig(BaseModel):
    """How texts are made."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    texts_per_class: Counts = 50
    """Synthetic texts for every class, or, for each label name, its own number."""
    class_balance: Literal["equal", "proportional"] = "equal"
    """`equal`: `texts_per_class` of each. `proportional`: as many in all, shared out as the real rows are, at
    least one for every class."""
    block_size: int = Field(10, ge=1)
    """Texts whose mean gradient is matched together; blocks are made as equal as possible."""
    per_device_batch_size: int | None = Field(None, ge=1)
    """Texts that go through the model at once; does not change what is computed. None takes 256 on a GPU and 64
    elsewhere."""
    seed: int = Field(0, ge=0)
    """Of everything that is drawn."""
    references: References = True
    """Also measure as many real rows and plain LM samples, to compare with; `lm`: the LM's samples alone, which is
    the default with privacy."""
    nearest_rows: bool = False
    """Also keep, for every text, the real row that shares most word pairs with it. Refused with privacy."""
    solver: Literal["admm", "search", "both"] = "search"
    """`search`: select from a pool of texts that the LM writes, and refine. `admm`: the paper's solver, as it
    ends. `both`: ADMM's texts are candidates too."""
    distance: DistanceConfig = DistanceConfig()
    space: SpaceConfig = SpaceConfig()
    shrinkage: ShrinkageConfig = ShrinkageConfig()
    pool: PoolConfig = PoolConfig()
    writer: WriterConfig = WriterConfig()
    label_check: LabelCheckConfig = LabelCheckConfig()
    selection: SelectionConfig = SelectionConfig()
    refinement: RefinementConfig = RefinementConfig()
    admm: AdmmConfig = AdmmConfig()
    projection: ProjectionConfig = ProjectionConfig()
    initial: InitialConfig = InitialConfig()
    lengths: LengthConfig = LengthConfig()
    bans: BanConfig = BanConfig()
    privacy: PrivacyConfig | None = Field(None, exclude_if=lambda privacy: privacy is None)
    """The target is released with noise, and nothing else looks at real rows; None makes no promise. With it, the
    default of `space.maps` is the verbaliser's rows, whitened."""

    @model_validator(mode="before")
    @classmethod
    def _private(cls, given: Any) -> Any:
        return with_private_defaults(given)

    @model_validator(mode="after")
    def _keeps_the_promise(self) -> GenerateConfig:
        refuse_leaks(self)
        return self

    @model_validator(mode="after")
    def _tells_classes(self) -> GenerateConfig:
        searches = self.solver != "admm"
        if self.label_check.reader == "target" and searches and not (self.tilts or self.space.tells_states):
            raise ValueError(
                "label_check.reader is 'target', and this target says nothing by which a text's class could be "
                "read: that takes words (writer.unigram_step above 0, writer.rounds of 2 or more) or a centred "
                "space with 'whitened' in space.maps; else take label_check.reader: model"
            )
        return self

    @model_validator(mode="after")
    def _balanced(self) -> GenerateConfig:
        if isinstance(self.texts_per_class, dict) and self.class_balance == "proportional":
            raise ValueError(
                "texts_per_class lists every class's texts, so class_balance cannot be proportional; give one "
                "number"
            )
        return self

    @property
    def needs_public(self) -> bool:
        """Whether there has to be public text: to fit a space on, and to clip and to look ahead by."""
        return self.space.needs_public or self.privacy is not None

    @property
    def tilts(self) -> bool:
        """Whether the writer follows the words of the real rows."""
        return self.solver != "admm" and self.writer.follows_words

    def batch_size(self, device: torch.device) -> int:
        """Texts that go through a model on this device at once."""
        return self.per_device_batch_size or (_ON_GPU if device.type == "cuda" else _ELSEWHERE)

    def count_texts(self, label_names: Sequence[str], rows: Sequence[int] | None = None) -> tuple[int, ...]:
        """How many texts every class gets.

        Args:
            label_names: the classes.
            rows: real rows of every class; needed by `proportional` alone, and with privacy not looked at.

        Raises:
            ConfigError: if `texts_per_class` or `privacy.public_counts` list other classes than these.
        """
        if self.privacy is not None:
            public = self.privacy.divisors(label_names)
            rows = [int(count) for count in public] if public else None
        wanted = self.texts_per_class
        if isinstance(wanted, dict):
            check_listed(wanted, label_names)
            return tuple(wanted[name] for name in label_names)
        if self.class_balance == "equal":
            return (wanted,) * len(label_names)
        assert rows is not None, "proportional to what?"
        return share_out(wanted * len(label_names), rows)


class ConfigOfRun(BaseModel):
    """What `load_config` knows of the settings of a run, whatever is run."""

    long_forms: ClassVar[LongForms] = {}
    """Of the groups that may be given as one value, so that a setting in them can be added to it."""
    never_empty: ClassVar[tuple[str, ...]] = ()
    """Groups that are an error, not left out, where there is nothing in them."""
    example: ClassVar[str] = "seed=1"
    """What `--set` is like."""


Config = TypeVar("Config", bound=ConfigOfRun)


class RunConfig(GenerateConfig, ConfigOfRun):
    """A whole run: what is made, from what, with what."""

    long_forms: ClassVar[LongForms] = OWN_TASK
    never_empty: ClassVar[tuple[str, ...]] = ("privacy",)
    example: ClassVar[str] = "admm.rho=0.5"

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    task: str | TaskConfig = "sst2"
    """A ready-made task by name, or one's own."""

    @model_validator(mode="after")
    def _takes_every_row(self) -> RunConfig:
        if self.privacy is not None:
            refuse_drawn_rows(self.data)
            named = isinstance(self.task, str) or self.task.verbalisers or self.task.instructions
            if not (named or self.data.label_names or self.data.classes):
                refuse_found_classes()
        return self

    def resolve_task(self, label_names: Sequence[str]) -> Task:
        """The task over the data's classes.

        Raises:
            ConfigError: if a ready-made task's classes are not the data's.
        """
        if isinstance(self.task, TaskConfig):
            return self.task.resolve(label_names)
        return get_task(self.task)

    def generate_config(self) -> GenerateConfig:
        """The part that says how texts are made."""
        return GenerateConfig(**{name: getattr(self, name) for name in GenerateConfig.model_fields})


def load_config(
    file: str | Path | None = None, overrides: Mapping[str, Any] = {}, sets: Sequence[str] = ()
) -> RunConfig:
    """Reads the settings of a run of `generate`; as `load_settings`."""
    return load_settings(RunConfig, file, overrides, sets)


def load_settings(
    model: type[Config],
    file: str | Path | None = None,
    overrides: Mapping[str, Any] = {},
    sets: Sequence[str] = (),
) -> Config:
    """Reads a run's settings.

    Args:
        model: what is run.
        file: a YAML file, or the name of one that ships in the package (`paper`).
        overrides: dotted keys with values, from flags; None means not given.
        sets: `key=value` strings, values in YAML.

    Raises:
        ConfigError: if a key or value is not what it should be, naming it.
    """
    tree = _read(file) if file is not None else {}
    for key, value in overrides.items():
        if value is not None:
            _put(tree, key, value, model.long_forms)
    for item in sets:
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"--set {item!r} has no '='; write it as {model.example}")
        _put(tree, key.strip(), read_value(text, f"--set {item!r}"), model.long_forms)
    return parse_settings(model, tree)


def parse_config(tree: Mapping[str, Any]) -> RunConfig:
    """Settings of a run of `generate` from nested mappings; as `parse_settings`."""
    return parse_settings(RunConfig, tree)


def parse_settings(model: type[Config], tree: Mapping[str, Any]) -> Config:
    """Settings from nested mappings, unknown keys named with the nearest known one.

    Raises:
        ConfigError: as above.
    """
    tree = _without_empty(model, tree)
    _check_keys(model, tree, "", model)
    try:
        return model.model_validate(tree)
    except ValidationError as err:
        # `task` is a name or a group; that what was given is no name is no news.
        errors = [error for error in err.errors() if error["loc"] != ("task", "str")]
        raise ConfigError("\n".join(_sentence(error) for error in errors)) from err


def dump_config(config: BaseModel) -> str:
    """YAML that `load_config` reads back to the same settings."""
    return to_yaml(config.model_dump(mode="json"))


def _read(file: str | Path) -> dict[str, Any]:
    path = Path(os.path.expanduser(file))
    packaged = PACKAGED / f"{path.name.removesuffix('.yaml')}.yaml"
    if not path.is_file() and path.parent == Path(".") and packaged.is_file():
        path = packaged
    if not path.is_file():
        raise missing(path, str(file), [item.stem for item in PACKAGED.glob("*.yaml")])
    return read_mapping(path, str(file))


def _put(tree: dict[str, Any], key: str, value: Any, long_forms: LongForms) -> None:
    *parents, last = key.split(".")
    kind, group_of = long_forms.get(key.partition(".")[0], (None, None))
    if parents and kind is not None and group_of is not None and isinstance(tree.get(parents[0]), kind):
        tree[parents[0]] = group_of(tree[parents[0]])
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise ConfigError(f"{key!r}: {parent!r} is a value, not a group of settings")
    if value is True and isinstance(tree.get(last), dict):
        return  # a group that is there is on already
    tree[last] = value


def _without_empty(model: type[ConfigOfRun], tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree without groups that stand there with nothing in them, which YAML reads as null."""
    for key in model.never_empty:
        if key in tree and tree[key] is None:
            raise ConfigError(
                f"{key} has nothing in it; give its settings, or leave it out, and then there is no {key}"
            )
    groups = {key for key, field in model.model_fields.items() if _group(field.annotation) is not None}
    return {key: value for key, value in tree.items() if value is not None or key not in groups}


def _check_keys(model: type[BaseModel], tree: Mapping[str, Any], where: str, whole: type[BaseModel]) -> None:
    for key, value in tree.items():
        if key not in model.model_fields:
            raise ConfigError(f"unknown setting {where + str(key)!r}{_meant(str(key), model, whole)}")
        inner = _group(model.model_fields[key].annotation)
        if inner is not None and isinstance(value, dict):
            _check_keys(inner, value, f"{where}{key}.", whole)


def _meant(key: str, model: type[BaseModel], whole: type[BaseModel]) -> str:
    """What a key may have meant: one that is near in its group, else one of that name in another."""
    if closest(key, model.model_fields) is None:
        groups = {name: _group(field.annotation) for name, field in whole.model_fields.items()}
        owners = {name: whole if name == key else inner for name, inner in groups.items()}
        places = [
            name if name == key else f"{name}.{key}"
            for name, owner in owners.items()
            if owner is not None and key in owner.model_fields
        ]
        if places:
            return f"; did you mean {' or '.join(map(repr, places))}?"
    return nearest(key, model.model_fields)


def _group(annotation: Any) -> type[BaseModel] | None:
    options = getattr(annotation, "__args__", (annotation,))
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _sentence(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"] if part != "TaskConfig") or "settings"
    message, value = str(error["msg"]).removeprefix("Value error, "), error.get("input")
    if error["type"] == "model_type":
        message = "Input should be a group of settings by name"
    of_group = error["type"] == "value_error" and isinstance(value, dict)  # which the message is about already
    for python, yaml_ in (("tuple", "list"), ("dictionary", "mapping")):
        message = message.replace(f"a valid {python}", f"a {yaml_}")
    return f"{where}: {message}" + ("" if of_group else f" (it is {reprlib.repr(value)})")
