"""Run configurations: read from YAML, inherited, overridden, validated, compared, fingerprinted.

A configuration is a YAML file that may name a `base:` file; dotted overrides (`optim.muon.lr=3e-4`) change single
keys. Nothing else feeds a run: no environment variables, no second precedence. Every problem is reported at once,
each as one line that says where, what and the nearest remedy.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from gptlib.fields import RunConfig
from gptlib.yaml12 import ConfigError, parse_scalar, read_yaml, suggestion

__all__ = ["ConfigError", "load_config"]

Overrides = Mapping[str, Any] | Iterable[str]
Model = TypeVar("Model", bound=BaseModel)
MAX_BASE_DEPTH = 8


# --- validation -------------------------------------------------------------------------------------------------


def dotted_keys(model: type[BaseModel], prefix: str = "", leaves_only: bool = False) -> list[str]:
    """Every dotted key a configuration model accepts."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        union = isinstance(field.annotation, UnionType)  # a section that may be left out: Section | None
        kinds = get_args(field.annotation) if union else (field.annotation,)
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not (sections and leaves_only):
            keys.append(f"{prefix}{name}")
        for section in sections:
            keys += dotted_keys(section, f"{prefix}{name}.", leaves_only)
    return keys


def validate(model: type[Model], values: Mapping[str, Any], where: Mapping[str, str] | str) -> Model:
    """Build `model` from nested `values`; `where` says which file and line each dotted key came from.

    Raises ConfigError with one line per problem, all problems at once.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(model, e, where) for e in error.errors())) from None


def _describe(model: type[BaseModel], error: Any, where: Mapping[str, str] | str) -> str:
    key = ".".join(str(part) for part in error["loc"])
    place = where if isinstance(where, str) else _place(key, where)
    place = f"{place}: " if place else ""
    if error["type"] == "extra_forbidden":
        return f"{place}unknown key {key!r}{suggestion(key, dotted_keys(model))}"
    if error["type"] == "missing":
        return f"{place}key {key!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "tuple_type":
        message = "give a list, e.g. [1]"
    if error["type"] != "value_error":
        return f"{place}{key}={error['input']!r}: {message}"
    named = not key or key.split(".")[-1] in message
    return f"{place}{message}" if named else f"{place}{key}: {message}"


def _place(key: str, where: Mapping[str, str]) -> str:
    """Where a key came from; for a rule over several keys, where the last of them was set, overrides before files."""
    inside = [place for name, place in where.items() if not key or name == key or name.startswith(f"{key}.")]
    overridden = [place for place in inside if place in ("override", "change")]
    if key in where and not overridden:
        return where[key]
    known = overridden or inside
    return known[-1] if known else next(iter(where.values()), "")


# --- building a RunConfig ---------------------------------------------------------------------------------------


def project_root() -> Path:
    """The checkout that holds params/ and notebooks/: around this package, else above the working directory."""
    here = Path(__file__).resolve().parent.parent
    for folder in (here, Path.cwd(), *Path.cwd().parents):
        if (folder / "params" / "base").is_dir():
            return folder
    raise ConfigError(f"no params/base found beside {here} or above {Path.cwd()}; run inside a checkout of the project")


def params_file(kind: Literal["base", "ablations", "studies"], name: str | Path) -> Path:
    """`smoke` -> params/base/smoke.yaml; anything with a suffix or a slash is taken as a path."""
    path = Path(name)
    if path.suffix or len(path.parts) > 1:
        return path if path.is_absolute() or path.exists() else project_root() / path
    return project_root() / "params" / kind / f"{name}.yaml"


def from_anywhere(kind: Literal["base", "ablations"], name: str) -> str:
    """A name of params/ as it is, a path made absolute: notebooks run in a folder of their own."""
    return name if Path(name).name == name and not Path(name).suffix else str(params_file(kind, name).resolve())


def load_config(base: str | Path, overrides: Overrides = ()) -> RunConfig:
    """Read `base` (a name in params/base, or a path), apply dotted overrides, validate. Raises ConfigError."""
    values, where = _read_with_bases(params_file("base", base), ())
    values.pop("description", None)
    for key, value in parse_overrides(overrides).items():
        _set_dotted(values, key, value)
        where[key] = "override"
    return validate(RunConfig, values, where)


def with_changes(config: RunConfig, changes: Overrides) -> RunConfig:
    """A copy of `config` with dotted keys changed, validated again. Raises ConfigError."""
    values = config.model_dump(mode="json")
    parsed = parse_overrides(changes)
    for key, value in parsed.items():
        _set_dotted(values, key, value)
    return validate(RunConfig, values, {key: "change" for key in parsed} or "change")


def parse_overrides(overrides: Overrides) -> dict[str, Any]:
    """{'optim.muon.lr': 0.02} or ['optim.muon.lr=0.02'] -> checked {dotted key: value}. Raises ConfigError."""
    if isinstance(overrides, str):
        overrides = [overrides]
    if not isinstance(overrides, Mapping):
        pairs = {}
        for item in overrides:
            key, equals, value = str(item).partition("=")
            if not equals:
                raise ConfigError(f"override {item!r}: write it as section.key=value")
            pairs[key.strip()] = parse_scalar(value)
        overrides = pairs
    known = dotted_keys(RunConfig, leaves_only=True)
    unknown = [key for key in overrides if key not in known]
    if unknown:
        raise ConfigError("\n".join(f"override: unknown key {key!r}{suggestion(key, known)}" for key in unknown))
    return dict(overrides)


def _read_with_bases(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    path = path.resolve()
    if path in seen or len(seen) >= MAX_BASE_DEPTH:
        raise ConfigError(f"{path}: `base:` goes in a circle or deeper than {MAX_BASE_DEPTH} files")
    values, lines = read_yaml(path)
    where = {key: f"{_short(path)} line {line}" for key, line in lines.items()}
    base = values.pop("base", None)
    if base is None:
        return values, where
    beside = path.parent / f"{base}.yaml"
    inherited, inherited_where = _read_with_bases(
        beside if beside.exists() else params_file("base", base), (*seen, path)
    )
    return _merge(inherited, values), inherited_where | where


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(project_root()))
    except ValueError:
        return str(path)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _set_dotted(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[leaf] = value


# --- comparing --------------------------------------------------------------------------------------------------


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as {dotted key: value}; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def diff(baseline: RunConfig, variant: RunConfig) -> dict[str, tuple[Any, Any]]:
    """{dotted key: (baseline value, variant value)} wherever the two differ."""
    old, new = (flatten(c.model_dump(mode="json")) for c in (baseline, variant))
    return {key: (old[key], new[key]) for key in old if old[key] != new[key]}


def require_only(baseline: RunConfig, variant: RunConfig, declared: Iterable[str]) -> None:
    """The difference gate: the variant differs in exactly the declared keys. Raises ConfigError otherwise."""
    found, allowed = diff(baseline, variant), set(declared)
    undeclared = [f"{k}: {a!r} -> {b!r}" for k, (a, b) in found.items() if k not in allowed]
    if undeclared:
        raise ConfigError("the variant differs outside its declared change: " + "; ".join(undeclared))
    idle = sorted(allowed - set(found))
    if idle:
        raise ConfigError(f"the declared change has no effect: the baseline has this {', '.join(idle)} already")


def fingerprint(values: Any) -> str:
    """16 hex digits over canonical JSON: equal inputs, equal fingerprint, on every platform."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
