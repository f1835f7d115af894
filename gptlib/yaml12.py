"""YAML files read with YAML 1.2's scalars, line numbers, and one-line errors.

PyYAML follows YAML 1.1, where 3e-4 is a string, 010 is eight and `no` is false: traps in a file of learning rates.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

MAX_YAML_BYTES = 1_000_000


class ConfigError(ValueError):
    """Bad user input: one line per problem, each naming the place and the remedy."""


class _Yaml12Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's scalars: 3e-4 is a number, 010 is ten, `no` and `on` are words, no dates."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1}: aliases (*name) are not supported")
        return super().compose_node(parent, index)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("int", r"[-+]?[0-9]+(?:_[0-9]+)*", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
):
    _Yaml12Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), [*_first, ""])
_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value.replace("_", "")))


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Read a mapping; returns it with the line number of every dotted key. Raises ConfigError."""
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_YAML_BYTES} bytes; this is not a parameter file")
        text = path.read_text(encoding="utf-8")
        loader = _Yaml12Loader(text)
        node = loader.get_single_node()
        if node is None:
            return {}, {}
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path}: expected `key: value` lines at the top level")
        lines = dict(_key_lines(path, node))
        return loader.construct_document(node), lines
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{_nearby(path)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def _key_lines(path: Path, node: yaml.MappingNode, prefix: str = "") -> Iterator[tuple[str, int]]:
    seen: set[str] = set()
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        line = key.start_mark.line + 1
        if name in seen:
            raise ConfigError(f"{path} line {line}: key {name!r} is given twice")
        seen.add(name)
        yield name, line
        if isinstance(value, yaml.MappingNode):
            yield from _key_lines(path, value, f"{name}.")


def _nearby(path: Path) -> str:
    names = [p.stem for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    return suggestion(path.stem, names)


def parse_scalar(text: str) -> Any:
    """The value of one YAML scalar or flow expression: '3e-4' -> 0.0003, '[1, 2]' -> [1, 2]. Raises ConfigError."""
    try:
        return yaml.load(text, _Yaml12Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"value {text!r}: not valid YAML: {' '.join(str(error).split())}") from None


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known name, by the whole dotted name or by its last part, or ''."""
    names = list(known)
    by_leaf = {n.rsplit(".", 1)[-1]: n for n in names}
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not near:
        near = [by_leaf[m] for m in difflib.get_close_matches(name.rsplit(".", 1)[-1], list(by_leaf), n=1, cutoff=0.6)]
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(names)[:24])}" if names else ""
