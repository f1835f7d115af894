"""What is claimed before anything runs: one ablation, its hypothesis, and how it will be judged; a study of several."""

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from gptlib.config import ConfigError, Overrides, flatten, params_file, parse_overrides, validate, with_changes
from gptlib.fields import RunConfig, Section
from gptlib.records import NAME
from gptlib.yaml12 import read_yaml

FACTOR = re.compile(r"x(\d+(?:\.\d+)?)(?:/([1-9]\d*))?")


class Expectation(Section):
    direction: Literal["better", "worse", "none"] = "none"
    percent: tuple[float, float] = (0.0, 100.0)  # range of |change of the mean loss|, per cent of the baseline

    @field_validator("percent")
    @classmethod
    def _percent_is_a_range_of_sizes(cls, percent: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= percent[0] <= percent[1]:
            raise ValueError(f"expect.percent={list(percent)}: give sizes, the smaller first, e.g. [0, 5]")
        return percent

    def text(self) -> str:
        words = "no difference" if self.direction == "none" else self.direction
        return f"{words}, by {self.percent[0]:g} to {self.percent[1]:g} %"

    def outcome(self, verdict: str, percent: float | None) -> Literal["met", "not met", "open"]:
        """Whether verdict and size (per cent of the baseline's mean) are as expected; undecided leaves it open."""
        if verdict == "undecided" or percent is None:
            return "open"
        wanted = "equivalent" if self.direction == "none" else self.direction
        met = verdict.startswith(wanted) and self.percent[0] <= abs(percent) <= self.percent[1]
        return "met" if met else "not met"


class Analysis(Section):
    """How the question will be judged; declared, hashed and stored before the first run."""

    metric: Literal["final_val_loss"] = "final_val_loss"
    test: Literal["paired", "welch"] = "welch"
    alpha: float = Field(0.05, gt=0, lt=0.5)
    margin: float = Field(0.0, ge=0)  # nats/token: the smallest difference that matters; 0: no claim of equivalence


class Ablation(Section):
    """One change against the baseline: the parameters of 20_ablations beside `base`, `seeds` and places."""

    variant: str
    hypothesis: str = Field(min_length=10)
    independent_variable: str
    dependent_variables: list[str] = ["val_loss"]
    controls: list[str] = ["data", "tokenizer", "steps", "batch", "schedule", "seeds"]
    change: dict[str, Any] = Field(min_length=1)
    match: Literal["steps", "tokens", "nothing"] = "steps"
    why: str = Field(min_length=10)
    expect: Expectation = Expectation()
    analysis: Analysis = Analysis()
    source: str = ""

    @field_validator("variant")
    @classmethod
    def _variant_names_a_folder(cls, name: str) -> str:
        if not NAME.fullmatch(name) or name == "baseline":
            raise ValueError(f"variant={name!r}: use letters, digits, '.', '_', '-', and not 'baseline'")
        return name

    @field_validator("change")
    @classmethod
    def _change_names_known_keys(cls, change: dict[str, Any]) -> dict[str, Any]:
        return parse_overrides(change)

    @model_validator(mode="after")
    def _variable_is_among_the_changes(self) -> "Ablation":
        if self.independent_variable not in self.change:
            raise ValueError(
                f"independent_variable={self.independent_variable!r} is not among the changed keys {list(self.change)}"
            )
        return self

    def apply(self, baseline: RunConfig) -> RunConfig:
        """The variant's configuration, factors such as "x2/3" taken of the baseline's values. Raises ConfigError."""
        old = flatten(baseline.model_dump(mode="json"))
        return with_changes(baseline, {key: _scaled(key, value, old[key]) for key, value in self.change.items()})


def _scaled(key: str, value: Any, old: Any) -> Any:
    """`value`, or where it is a factor ("x3", "x1.5", "x2/3") that factor of `old`; whole numbers stay whole."""
    factor = FACTOR.fullmatch(value) if isinstance(value, str) else None
    if factor is None:
        return value
    if isinstance(old, bool) or not isinstance(old, int | float) or not old:
        raise ConfigError(f"change: {key}={value}: a factor needs a number to multiply, the baseline has {old!r}")
    new = Fraction(old) * Fraction(factor[1]) / int(factor[2] or 1)
    return max(1, round(new)) if isinstance(old, int) else float(new)


class Study(Section):
    """A baseline and its ablations, run through the notebooks."""

    name: str
    question: str
    base: str
    overrides: dict[str, Any] = {}
    ablations: list[str] = Field(min_length=1)
    seeds: list[int] = Field([42, 43, 44, 45, 46], min_length=1)
    stage: str = "full"
    notebooks_at_once: int = Field(2, ge=1)

    @field_validator("seeds")
    @classmethod
    def _seeds_are_distinct(cls, seeds: list[int]) -> list[int]:
        return distinct_seeds(seeds)

    @field_validator("name", "stage")
    @classmethod
    def _name_is_a_folder(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r}: use up to 80 letters, digits, '.', '_' or '-'")
        return name


def distinct_seeds(seeds: Sequence[int]) -> list[int]:
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds={list(seeds)}: give at least one, each once, none negative")
    return list(seeds)


def load_ablation(name: str | Path) -> Ablation:
    """Read `params/ablations/<name>.yaml` or a path. Raises ConfigError."""
    path = params_file("ablations", name)
    values, lines = read_yaml(path)
    return validate(Ablation, values, {key: f"{path.name} line {line}" for key, line in lines.items()})


def load_study(name: str | Path, overrides: Overrides = ()) -> Study:
    """Read a study file, add overrides to its own, check that its ablations exist and differ. Raises ConfigError."""
    path = params_file("studies", name)
    values, lines = read_yaml(path)
    study = validate(Study, values, {key: f"{path.name} line {line}" for key, line in lines.items()})
    study = study.model_copy(update={"overrides": parse_overrides(study.overrides) | parse_overrides(overrides)})
    variants = [load_ablation(ablation).variant for ablation in study.ablations]
    if len(set(variants)) != len(variants):
        raise ConfigError(f"{path.name}: a variant is listed twice: {', '.join(variants)}")
    return study
