"""YAML: what a user wrote, and what is wrong with it in one line; and what is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gradmm.errors import ConfigError, closest, listed

_DEEP = "it is nested too deep"


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping; PyYAML would take the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                told = f"{key.value!r} stands there twice"
                raise yaml.constructor.ConstructorError(None, None, told, key.start_mark)
            seen.add(name or id(key))
        return super().construct_mapping(node, deep)


def read_value(text: str, where: str) -> Any:
    """What a flag's value is in YAML.

    Args:
        text: the value.
        where: the flag and all that was given, for the message.

    Raises:
        ConfigError: if it is not YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as err:
        raise ConfigError(f"{where}: the value is not YAML: {_fault(err)}; put a word in quotes") from err


def read_mapping(path: Path, name: str) -> dict[str, Any]:
    """The settings in a file; an empty one holds none.

    Args:
        path: the file.
        name: what the user called it.

    Raises:
        ConfigError: if it cannot be read, is not YAML or holds something else.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except UnicodeDecodeError as err:
        line = err.object.count(b"\n", 0, err.start) + 1
        raise ConfigError(
            f"{name}: not YAML: line {line} is not UTF-8 ({err.reason}); save the file as UTF-8"
        ) from err
    except (yaml.YAMLError, RecursionError) as err:
        raise ConfigError(f"{name}: not YAML: {_fault(err)}; mend the file") from err
    except OSError as err:
        raise ConfigError(f"{name} cannot be read ({err.strerror}); see to its permissions") from err
    if tree is not None and not isinstance(tree, dict):
        held = type(tree).__name__
        raise ConfigError(f"{name}: holds {held} where a mapping of settings is needed; write it as 'seed: 1'")
    return tree or {}


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


def missing(path: Path, name: str, packaged: list[str]) -> ConfigError:
    """Says that there is no such file, and which there is like it.

    Args:
        path: where it should be.
        name: what the user called it.
        packaged: names that need no path.
    """
    if path.is_dir():
        return ConfigError(f"settings file {name!r} is a folder; give the YAML file in it")
    if path.exists():
        return ConfigError(
            f"settings file {name!r} is neither a file nor a folder; write the settings into a file"
        )
    if not path.parent.is_dir():
        return ConfigError(
            f"no settings file {name!r}, for there is no folder {str(path.parent)!r}; mend the path"
        )
    beside = [file.name for file in path.parent.iterdir() if file.suffix in (".yaml", ".yml")]
    near = closest(path.name, beside) or closest(path.stem, packaged)
    if near is not None:
        return ConfigError(f"no settings file {name!r}; did you mean {near!r}?")
    known = listed([*packaged, *beside])
    return ConfigError(f"no settings file {name!r}; known: {known}; or give the path of a YAML file")


def _fault(err: Exception) -> str:
    """What is wrong and where, on one line."""
    if isinstance(err, yaml.MarkedYAMLError) and err.problem_mark is not None:
        mark = err.problem_mark
        return f"{err.problem or err.context} (line {mark.line + 1}, column {mark.column + 1})"
    if isinstance(err, yaml.reader.ReaderError):
        return f"{err.reason} (character {err.character}, position {err.position})"
    return _DEEP if isinstance(err, RecursionError) else str(err)
