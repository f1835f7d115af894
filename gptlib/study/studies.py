"""A study: a baseline and its ablations over one or several bases, all at once or in stages, from params/studies."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from gptlib.config import ConfigError, Overrides, flatten, params_file, parse_overrides, validate
from gptlib.fields import RunConfig, Section
from gptlib.records import NAME
from gptlib.stats.staging import Rule
from gptlib.study.hypothesis import combine, distinct_factors, distinct_seeds, load_ablation, with_factors
from gptlib.yaml12 import read_yaml, suggestion

StageName = Literal["A", "B", "C"]
REPEAT_SEEDS = 1000  # between the seeds of a repeat and those of the next
ROLES: dict[str, str] = {"A": "screen", "B": "check", "C": "race"}


class Stage(Section):
    """One stage of a staged study: a complete schedule of its own, on seeds of its own."""

    overrides: dict[str, Any] = {}  # of the study's base; a number may be a factor of its value, e.g. train.steps: x1/5
    seeds: list[int]
    device: str = "here"  # a name in the price list, params/prices.yaml
    devices: int = Field(1, ge=1)  # rented for one run
    minutes_per_run: float | None = Field(None, gt=0)  # declared; else estimated from earlier runs or from the FLOPs
    dollars_per_run: float | None = Field(None, ge=0)  # declared; else minutes x devices x price

    @field_validator("overrides")
    @classmethod
    def _overrides_name_known_keys(cls, overrides: dict[str, Any]) -> dict[str, Any]:
        return parse_overrides(overrides)

    @field_validator("seeds")
    @classmethod
    def _seeds_are_distinct(cls, seeds: list[int]) -> list[int]:
        return distinct_seeds(seeds)


class Staging(Section):
    """Screen (A), check (B) and race (C), the rule that decides between them, and what they may cost."""

    A: Stage | None = None
    B: Stage | None = None
    C: Stage
    looks: list[int] = [3, 5, 8]  # seeds of C at each look
    alpha: float = Field(0.05, gt=0, lt=0.5)  # chance that the study claims anything false, one-sided
    keep: float = Field(0.5, gt=0, le=1)
    keep_at_least: int = Field(2, ge=1)
    promote: int = Field(2, ge=1)
    futility: float = Field(0.35, gt=0, le=1)
    pivots: int = Field(1, ge=0)  # paid from the reserve
    reuse_baseline: bool = True  # take runs of the same fingerprint and seed from other studies
    target: float | None = None  # also asked at the end: is the mean loss at most this?
    budget_dollars: float | None = Field(None, gt=0)
    reserve_dollars: float = Field(0.0, ge=0)  # spent on a pivot alone

    @model_validator(mode="after")
    def _stages_fit_the_rule(self) -> "Staging":
        self.rule()
        if len(self.C.seeds) < self.looks[-1]:
            raise ValueError(f"C: {len(self.C.seeds)} seeds for a last look at {self.looks[-1]}; list as many")
        used = [seed for stage in self.stages().values() for seed in stage.seeds]
        if shared := sorted({seed for seed in used if used.count(seed) > 1}):
            raise ValueError(f"seeds {shared} stand in two stages; a claim needs seeds that no earlier stage has seen")
        if self.reserve_dollars and self.budget_dollars is None:
            raise ValueError(f"reserve_dollars={self.reserve_dollars:g} is kept of a budget; give budget_dollars too")
        if self.budget_dollars is not None and self.reserve_dollars >= self.budget_dollars:
            raise ValueError(f"reserve_dollars={self.reserve_dollars:g} leaves nothing of {self.budget_dollars:g}")
        return self

    def stages(self) -> dict[StageName, Stage]:
        """The stages there are, in order."""
        named: dict[StageName, Stage | None] = {"A": self.A, "B": self.B, "C": self.C}
        return {name: stage for name, stage in named.items() if stage is not None}

    def rule(self) -> Rule:
        """What decides. Raises ValueError."""
        return Rule(
            self.alpha, len(self.A.seeds) if self.A else 0, len(self.B.seeds) if self.B else 0, tuple(self.looks),
            keep=self.keep, keep_at_least=self.keep_at_least, promote=self.promote, futility=self.futility,
            pivots=self.pivots, reuse_baseline=self.reuse_baseline,
        )  # fmt: skip

    def overrides(self, name: StageName, base: RunConfig) -> dict[str, Any]:
        """The overrides of a stage as plain values, factors taken of `base`. Raises ConfigError."""
        asked = self.stages()[name].overrides
        values = flatten(with_factors(base, asked).model_dump(mode="json"))
        return {key: values[key] for key in asked}


class Profile(Section):
    """The same study for another machine: what is given here stands in place of the study's own."""

    base: str | list[str] | None = None
    overrides: dict[str, Any] | None = None
    ablations: list[str] | None = None
    seeds: list[int] | None = None
    stages: Staging | None = None
    stable_lr: dict[str, list[float]] | None = None


class Study(Section):
    """A baseline and its ablations, run through the notebooks; over several bases, the first one reported in full."""

    name: str
    question: str
    base: str | list[str]
    overrides: dict[str, Any] = {}
    ablations: list[str] = Field(min_length=1)
    interactions: list[tuple[str, str]] = []  # pairs of the ablations that are also made together
    seeds: list[int] = Field([42, 43, 44, 45, 46], min_length=1)
    stage: str = "full"
    stages: Staging | None = None  # None: all ablations at once, with `seeds`
    repeats: int = Field(1, ge=1, le=99)  # the whole study again and again, each time with fresh seeds
    # of the baseline or an ablation: factors on its rates, tried from the largest down until no run diverges
    stable_lr: dict[str, list[float]] = {}
    notebooks_at_once: int = Field(2, ge=1)
    profiles: dict[str, Profile] = {}

    @field_validator("seeds")
    @classmethod
    def _seeds_are_distinct(cls, seeds: list[int]) -> list[int]:
        return distinct_seeds(seeds)

    @model_validator(mode="after")
    def _interactions_are_of_ablations(self) -> "Study":
        unknown = sorted({name for pair in self.interactions for name in pair} - set(self.ablations))
        if unknown:
            raise ValueError(f"interactions: {', '.join(unknown)} is not among the ablations")
        if self.stages and (self.interactions or len(self.bases) > 1 or self.repeats > 1 or self.stable_lr):
            raise ValueError("stages: a staged study has one base, no interactions, repeats or stable_lr")
        if self.repeats > 1 and max(self.seeds) - min(self.seeds) >= REPEAT_SEEDS:
            raise ValueError(f"repeats: the seeds {self.seeds} would overlap; keep them within {REPEAT_SEEDS}")
        if not self.bases or len({Path(base).stem for base in self.bases}) < len(self.bases):
            raise ValueError(f"base={self.base}: give one name, or several, each once")
        return self

    @field_validator("stable_lr")
    @classmethod
    def _factors_are_a_grid(cls, grids: dict[str, list[float]]) -> dict[str, list[float]]:
        return {name: distinct_factors(f"stable_lr.{name}", factors) for name, factors in grids.items()}

    @model_validator(mode="after")
    def _stable_rates_are_of_its_arms(self) -> "Study":
        if unknown := sorted(set(self.stable_lr) - {"baseline", *self.ablations}):
            raise ValueError(f"stable_lr: {', '.join(unknown)} is neither baseline nor among the ablations")
        return self

    @property
    def bases(self) -> list[str]:
        return [self.base] if isinstance(self.base, str) else self.base

    def stage_of(self, base: str) -> str:
        """The stage whose folder has the experiments of a base: that of the study, for all but the first `-<base>`."""
        return self.stage if base == self.bases[0] else f"{self.stage}-{Path(base).stem}"

    def seeds_of(self, repeat: int) -> list[int]:
        """Fresh seeds for each repeat, the first has the study's own."""
        return [seed + REPEAT_SEEDS * (repeat - 1) for seed in self.seeds]

    @field_validator("name", "stage")
    @classmethod
    def _name_is_a_folder(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r}: use up to 80 letters, digits, '.', '_' or '-'")
        return name


def load_study(name: str | Path, overrides: Overrides = (), profile: str = "") -> Study:
    """Read a study file, add overrides to its own, check that its ablations exist and differ. Raises ConfigError.

    With a profile it is another study, `<name>-<profile>`, so that records of both never lie in one folder.
    """
    path = params_file("studies", name)
    values, lines = read_yaml(path)
    where = {key: f"{path.name} line {line}" for key, line in lines.items()}
    study = validate(Study, values, where)
    if profile:
        if profile not in study.profiles:
            raise ConfigError(f"{path.name}: no profile {profile!r}{suggestion(profile, study.profiles)}")
        instead = values["profiles"][profile]
        values = {**values, **instead, "name": f"{study.name}-{profile}", "profiles": {}}
        study = validate(Study, values, where | {key: where[f"profiles.{profile}.{key}"] for key in instead})
    study = study.model_copy(update={"overrides": parse_overrides(study.overrides) | parse_overrides(overrides)})
    loaded = {ablation: load_ablation(ablation) for ablation in study.ablations}
    variants = [loaded[name].variant for name in study.ablations]
    for a, b in study.interactions:
        combine(loaded[a], loaded[b])
    if study.stages and (loose := [name for name in study.ablations if loaded[name].tune or loaded[name].memory_mib]):
        raise ConfigError(f"{path.name}: {', '.join(loose)}: a staged study cannot tune, nor give arms other baselines")
    metrics = {ablation.analysis.metric for ablation in loaded.values()}
    if study.stages and len(metrics) > 1:
        raise ConfigError(f"{path.name}: a staged study compares by one metric, not by {' and '.join(sorted(metrics))}")
    if len(set(variants)) != len(variants):
        raise ConfigError(f"{path.name}: a variant is listed twice: {', '.join(variants)}")
    return study
