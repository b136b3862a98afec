"""The settings of a run: the components' own configs, composed; YAML files, overrides, errors that help.

Precedence: flag > file > default. Every key that nobody reads is an error that names the nearest known one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gradmm.data.presets import get_task
from gradmm.data.sources import DataConfig
from gradmm.data.task import Task
from gradmm.data.vocabulary import BanConfig
from gradmm.errors import ConfigError, nearest
from gradmm.gradients.distances import DistanceConfig
from gradmm.models import ModelConfig
from gradmm.solvers.admm import AdmmConfig
from gradmm.solvers.initial import InitialConfig, LengthConfig
from gradmm.solvers.projection import ProjectionConfig

PACKAGED = Path(__file__).parent / "assets" / "configs"


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

    texts_per_class: int = Field(50, ge=1)
    """Synthetic texts for every class."""
    block_size: int = Field(10, ge=1)
    """Texts whose mean gradient is matched together; blocks are made as equal as possible."""
    per_device_batch_size: int = Field(64, ge=1)
    """Texts that go through the model at once; does not change what is computed."""
    seed: int = Field(0, ge=0)
    """Of everything that is drawn."""
    references: bool = True
    """Also measure as many real rows and plain LM samples, to compare with."""
    distance: DistanceConfig = DistanceConfig()
    admm: AdmmConfig = AdmmConfig()
    projection: ProjectionConfig = ProjectionConfig()
    initial: InitialConfig = InitialConfig()
    lengths: LengthConfig = LengthConfig()
    bans: BanConfig = BanConfig()


class RunConfig(GenerateConfig):
    """A whole run: what is made, from what, with what."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    task: str | TaskConfig = "sst2"
    """A ready-made task by name, or one's own."""

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
    """Reads a run's settings.

    Args:
        file: a YAML file, or the name of one that ships in the package (`paper`).
        overrides: dotted keys with values, from flags; None means not given.
        sets: `key=value` strings, values in YAML.

    Raises:
        ConfigError: if a key or value is not what it should be, naming it.
    """
    tree = _read(file) if file is not None else {}
    for key, value in overrides.items():
        if value is not None:
            _put(tree, key, value)
    for item in sets:
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"--set {item!r} has no '='; write it as admm.rho=0.5")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as err:
            raise ConfigError(f"--set {item!r}: the value is not YAML: {err}") from err
        _put(tree, key.strip(), value)
    return parse_config(tree)


def parse_config(tree: Mapping[str, Any], model: type[RunConfig] = RunConfig) -> RunConfig:
    """Settings from nested mappings, unknown keys named with the nearest known one.

    Raises:
        ConfigError: as above.
    """
    _check_keys(model, tree, "")
    try:
        return model.model_validate(tree)
    except ValidationError as err:
        # `task` is a name or a group; where a group was given, that it is no name is no news.
        named = not isinstance(tree.get("task"), dict)
        errors = [error for error in err.errors() if named or error["loc"] != ("task", "str")]
        raise ConfigError("\n".join(_sentence(error) for error in errors)) from err


def dump_config(config: BaseModel) -> str:
    """YAML that `load_config` reads back to the same settings."""
    return to_yaml(config.model_dump(mode="json"))


def to_yaml(tree: Mapping[str, Any]) -> str:
    """YAML in the order of the mapping, with every character kept."""
    return yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    pass


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML folds these line breaks into spaces unless they are quoted.
    style = '"' if {"\x85", "\u2028", "\u2029"} & set(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _quoted)


def _read(file: str | Path) -> dict[str, Any]:
    path = Path(file).expanduser()
    packaged = PACKAGED / f"{path.name.removesuffix('.yaml')}.yaml"
    if not path.is_file() and path.parent == Path(".") and packaged.is_file():
        path = packaged
    if not path.is_file():
        known = [item.stem for item in PACKAGED.glob("*.yaml")]
        raise ConfigError(
            f"no settings file {str(file)!r}{nearest(path.stem, known)}; or give a path to a YAML file"
        )
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise ConfigError(f"{file}: not YAML: {err}") from err
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(f"{file}: holds {type(tree).__name__} where a mapping of settings is needed")
    return tree or {}


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    if parents == ["task"] and isinstance(tree.get("task"), str):
        tree["task"] = {}
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{key!r}: {parent!r} is a value, not a group of settings")
    tree[last] = value


def _check_keys(model: type[BaseModel], tree: Mapping[str, Any], where: str) -> None:
    for key, value in tree.items():
        if key not in model.model_fields:
            raise ConfigError(f"unknown setting {where + str(key)!r}{nearest(str(key), model.model_fields)}")
        inner = _group(model.model_fields[key].annotation)
        if inner is not None and isinstance(value, dict):
            _check_keys(inner, value, f"{where}{key}.")


def _group(annotation: Any) -> type[BaseModel] | None:
    options = getattr(annotation, "__args__", (annotation,))
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _sentence(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"] if part != "TaskConfig") or "settings"
    message = str(error["msg"]).removeprefix("Value error, ")
    value = error.get("input")
    shown = "" if isinstance(value, dict) else f" (it is {value!r})"
    return f"{where}: {message}{shown}"
