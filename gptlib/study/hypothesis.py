"""What is claimed before anything runs: one ablation, its hypothesis, and how it will be judged."""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from gptlib.config import ConfigError, flatten, params_file, parse_overrides, validate, with_changes
from gptlib.fields import RunConfig, Section
from gptlib.matching import KNOBS, Knob, Mode
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


METRICS = {
    "final_val_loss": ("final validation loss", "nats/token"),
    "hellaswag_error": ("error on HellaSwag", "share of items wrong"),
}


class Analysis(Section):
    """How the question will be judged; declared, hashed and stored before the first run."""

    # of the finished runs, lower is better; hellaswag_error is 1 - acc_norm and needs eval.hellaswag in both arms
    metric: Literal["final_val_loss", "hellaswag_error"] = "final_val_loss"
    test: Literal["paired", "welch", "pooled"] = "welch"
    alpha: float = Field(0.05, gt=0, lt=0.5)
    # the smallest difference that matters, in nats/token or as a share of the items; 0: no claim of equivalence
    margin: float = Field(0.0, ge=0)
    # undecided, or tested without them, or by ranks with them last; where one arm diverged whole it is the worse one
    diverged: Literal["undecided", "exclude", "worst"] = "undecided"

    @property
    def unit(self) -> str:
        return METRICS[self.metric][1]

    @property
    def label(self) -> str:
        """`final validation loss (nats/token)`"""
        return f"{METRICS[self.metric][0]} ({self.unit})"


class Ablation(Section):
    """One change against the baseline: the parameters of 20_ablations beside `base`, `seeds` and places."""

    variant: str
    hypothesis: str = Field(min_length=10)
    independent_variable: str
    dependent_variables: list[str] = ["val_loss"]
    controls: list[str] = ["data", "tokenizer", "steps", "batch", "schedule", "seeds"]
    change: dict[str, Any] = Field(min_length=1)
    match: Mode = "steps"  # what both arms have in common
    free: Knob = ""  # the knob that is turned to get there; empty: the usual one
    memory_mib: float = Field(0.0, ge=0)  # match=memory: both arms take their largest batch; 0: the baseline's memory
    tune: dict[str, list[Any]] = {}  # key: values (or factors) that are tried in both arms before they are compared
    tune_seeds: list[int] = [1, 2]
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

    @field_validator("tune")
    @classmethod
    def _tune_names_known_keys(cls, tune: dict[str, list[Any]]) -> dict[str, list[Any]]:
        parse_overrides(tune)
        other = [key for key in tune if not key.startswith("optim.")]
        if other:
            raise ValueError(f"tune: {', '.join(other)} changes what is matched; only settings of optim can be tuned")
        short = [key for key, values in tune.items() if len(values) < 2 or len(set(map(str, values))) < len(values)]
        if short:
            raise ValueError(f"tune: give {', '.join(short)} at least two values, each once")
        return tune

    @field_validator("tune_seeds")
    @classmethod
    def _tune_seeds_are_distinct(cls, seeds: list[int]) -> list[int]:
        return distinct_seeds(seeds)

    @model_validator(mode="after")
    def _knob_fits(self) -> "Ablation":
        if self.free not in ("", *KNOBS[self.match]):
            usual = ", ".join(KNOBS[self.match]) or "nothing"
            raise ValueError(f"free={self.free!r} cannot match by {self.match}; use {usual}")
        if self.memory_mib and self.match != "memory":
            raise ValueError(f"memory_mib={self.memory_mib:g} is for match=memory, not {self.match}")
        both = sorted(set(self.tune) & set(self.change))
        if both:
            raise ValueError(f"tune: {', '.join(both)} is changed already; what is changed cannot be tuned too")
        return self

    @model_validator(mode="after")
    def _variable_is_among_the_changes(self) -> "Ablation":
        if self.independent_variable not in self.change:
            raise ValueError(
                f"independent_variable={self.independent_variable!r} is not among the changed keys {list(self.change)}"
            )
        return self

    def apply(self, baseline: RunConfig) -> RunConfig:
        """The variant's configuration, factors such as "x2/3" taken of the baseline's values. Raises ConfigError."""
        return with_factors(baseline, self.change)


def with_factors(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """`config` with dotted keys changed, factors such as "x2/3" taken of its own values. Raises ConfigError."""
    old = flatten(config.model_dump(mode="json"))
    return with_changes(config, {key: _scaled(key, value, old[key]) for key, value in changes.items()})


def combine(a: Ablation, b: Ablation) -> Ablation:
    """Both changes at once, to ask whether their effects add up. Raises ConfigError where they do not go together."""
    alike = ("match", "free", "memory_mib", "tune", "tune_seeds", "analysis")
    clash = [*sorted(set(a.change) & set(b.change)), *(name for name in alike if getattr(a, name) != getattr(b, name))]
    if clash:
        raise ConfigError(f"interaction of {a.variant} and {b.variant}: both decide {', '.join(clash)}, not alike")
    return a.model_copy(
        update={
            "variant": f"{a.variant}_x_{b.variant}",
            "hypothesis": f"The effects of {a.variant} and {b.variant} add up.",
            "change": a.change | b.change,
            "why": f"The fourth cell of a 2x2 design beside the baseline, {a.variant} and {b.variant}.",
            "expect": Expectation(),
            "source": "",
        }
    )


def _scaled(key: str, value: Any, old: Any) -> Any:
    """`value`, or where it is a factor ("x3", "x1.5", "x2/3") that factor of `old`; whole numbers stay whole."""
    factor = FACTOR.fullmatch(value) if isinstance(value, str) else None
    if factor is None:
        return value
    if isinstance(old, bool) or not isinstance(old, int | float) or not old:
        raise ConfigError(f"change: {key}={value}: a factor needs a number to multiply, the baseline has {old!r}")
    new = Fraction(old) * Fraction(factor[1]) / int(factor[2] or 1)
    return max(1, round(new)) if isinstance(old, int) else float(new)


def distinct_seeds(seeds: Sequence[int]) -> list[int]:
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds={list(seeds)}: give at least one, each once, none negative")
    return list(seeds)


def distinct_factors(name: str, factors: Sequence[float]) -> list[float]:
    if not factors or len(set(factors)) != len(factors) or min(factors) <= 0:
        raise ConfigError(f"{name}={list(factors)}: give factors above 0, each once, e.g. [1, 0.3, 0.1]")
    return list(factors)


def load_ablation(name: str | Path) -> Ablation:
    """Read `params/ablations/<name>.yaml` or a path. Raises ConfigError."""
    path = params_file("ablations", name)
    values, lines = read_yaml(path)
    return validate(Ablation, values, {key: f"{path.name} line {line}" for key, line in lines.items()})
