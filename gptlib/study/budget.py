"""The budget of a staged study: what its stages will cost, what its runs have cost, and the guard against overruns."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from gptlib.accounting import memory_estimate
from gptlib.config import diff, load_config, with_changes
from gptlib.fields import RunConfig
from gptlib.stats.planner import DOMINATED, too_dear
from gptlib.study.hypothesis import load_ablation
from gptlib.study.prices import (
    Estimate,
    PastRun,
    Prices,
    device_count,
    dollars,
    estimate,
    load_prices,
    results_of,
    vocabulary,
)
from gptlib.study.studies import StageName, Study

ROUNDING = 1e-6  # dollars
LENGTH_AND_PLACE = ("train.", "hardware.", "eval.")  # what stages of one study may differ in


class BudgetError(ValueError):
    """The money does not suffice: one sentence that says for what, what is left, and what to do."""


# --- what stages will cost ---------------------------------------------------------------------------------------


def staged_config(study: Study, name: StageName | None, base: str = "") -> RunConfig:
    """The baseline of a stage, or of a base of a study without stages (None). Raises ConfigError."""
    config = load_config(base or study.bases[0], study.overrides)
    return with_changes(config, study.stages.overrides(name, config)) if study.stages and name else config


@dataclass(frozen=True)
class StageCost:
    """What a stage costs. Money counts every run at the price of the dearest arm."""

    name: StageName
    config: RunConfig
    estimates: dict[str, Estimate]  # of a run of the baseline, first, and of each variant
    runs: int  # where as many variants go on as may, without a pivot
    worst_runs: int  # with the pivots
    baseline_runs: int  # among them, to be paid
    reused: int  # runs of the baseline taken over from other studies

    @property
    def price(self) -> float:
        return max(estimate.dollars for estimate in self.estimates.values())

    @property
    def dollars(self) -> float:
        return self.runs * self.price

    @property
    def worst_dollars(self) -> float:
        return self.worst_runs * self.price


def stage_costs(study: Study, prices: Prices, past: Iterable[PastRun] = ()) -> list[StageCost]:
    """Of every stage there is, in order, before anything has run. Raises ConfigError."""
    assert study.stages is not None, "a study without stages has no costs of stages"
    past, rule = list(past), replace(study.stages.rule(), reuse_baseline=False)
    variants = {load_ablation(name).variant: load_ablation(name) for name in study.ablations}
    planned = dict(zip("ABC", replace(rule, pivots=0).worst_runs(len(variants)), strict=True))
    worst = dict(zip("ABC", rule.worst_runs(len(variants)), strict=True))
    costs = []
    for name, stage in study.stages.stages().items():
        config = staged_config(study, name)
        arms = {"baseline": config} | {variant: change.apply(config) for variant, change in variants.items()}
        estimates = {arm: estimate(study, name, arm_config, prices, past) for arm, arm_config in arms.items()}
        seeds = stage.seeds[: rule.looks[-1]] if name == "C" else stage.seeds
        there = {run.seed for run in past if _serves(run, study.name, stage.device, config)}
        reused = sum(seed in there for seed in seeds) if study.stages.reuse_baseline else 0
        runs = planned[name] - reused, worst[name] - reused, len(seeds) - reused
        costs.append(StageCost(name, config, estimates, *runs, reused))
    return costs


def _serves(run: PastRun, study: str, device: str, config: RunConfig) -> bool:
    """Whether a run of another study can stand for one of this baseline (the data are not compared here)."""
    elsewhere = run.place.split("/")[0] != study
    return elsewhere and run.current and device in run.devices and run.config == config.model_dump(mode="json")


def concerns(study: Study, costs: Sequence[StageCost], prices: Prices) -> Iterator[str]:
    """What a person should know before the first dollar: a sentence each."""
    assert study.stages is not None, "a study without stages has no costs of stages"
    race, stages = costs[-1], study.stages.stages()
    for cost in costs:
        name, config, stage = cost.name, cost.config, stages[cost.name]
        if cost is not race and cost.price >= DOMINATED * race.price:
            yield too_dear(name, cost.price / race.price)
        if config.tokens_per_step != race.config.tokens_per_step:
            tokens = f"{config.tokens_per_step:,} tokens a step and C {race.config.tokens_per_step:,}"
            yield f"{name} has {tokens}: a second change is mixed into what the stages are compared on"
        if other := [key for key in diff(race.config, config) if not key.startswith(LENGTH_AND_PLACE)]:
            yield f"{name} differs from C in {', '.join(other)} too: it may rank another recipe"
        if stage.device != "here" and stage.devices != config.hardware.ranks:
            rented = f"{stage.devices} x {stage.device}"
            yield f"{name} pays for {rented}, its runs use {config.hardware.ranks}: set hardware.ranks in its overrides"
        needs = memory_estimate(config, vocabulary(config), bf16=True).total / 2**30
        holds, rows = prices.of(stage.device).memory_gib, config.hardware.micro_rows or config.train.batch_rows
        if holds and needs > holds:
            size = f"about {needs:.0f} GiB and one {stage.device} has {holds:g}"
            yield f"{name} needs {size}: set hardware.micro_rows below {rows}"
        if study.stages.reuse_baseline and not cost.reused:
            yield f"{name} finds no finished baseline to take over: its {cost.baseline_runs} runs are paid"
    pivot = sum(cost.worst_dollars - cost.dollars for cost in costs)
    if study.stages.budget_dollars and pivot > study.stages.reserve_dollars + ROUNDING:
        yield f"a pivot costs {dollars(pivot)}, the reserve for it is {dollars(study.stages.reserve_dollars)}"


# --- what was spent, and what may be ----------------------------------------------------------------------------


class Spent(NamedTuple):
    runs: int  # attempts, failed and diverged ones included
    dollars: float


def spent(study: Study, outputs: Path, prices: Prices) -> dict[StageName, Spent]:
    """By stage, from the records of all its runs and attempts, those in folders that were moved aside included.

    A run costs its training time x devices x price; where the study declares the dollars of a run, the share of them
    that its steps are of a whole run; nothing where it was taken over from another study (`reused_from`).
    """
    found = {}
    for name, stage in (study.stages.stages() if study.stages else {}).items():
        config, price = staged_config(study, name), prices.of(stage.device)
        hourly = device_count(stage, config) * price.dollars_per_hour
        rows = [row for path in sorted((outputs / study.name / name).glob("*")) for row in results_of(path)]
        costs = [row["time_seconds"] / 3600 * hourly for row in rows]
        if stage.dollars_per_run is not None:
            costs = [stage.dollars_per_run * min(1, row["final_step"] / config.train.steps) for row in rows]
        found[name] = Spent(len(rows), sum(costs))
    return found


@dataclass(frozen=True)
class Budget:
    """Dollars of a study. The reserve is spent on pivots alone; `pivoted` is what they have taken of it so far."""

    total: float = math.inf
    reserve: float = 0.0
    spent: float = 0.0
    pivoted: float = 0.0

    @classmethod
    def of(cls, study: Study, outputs: Path, prices: Prices | None = None, pivoted: float = 0.0) -> "Budget":
        """As the study declares it (none: without an end), less what its records say was spent. Raises ConfigError."""
        used = sum(stage.dollars for stage in spent(study, outputs, prices or load_prices()).values())
        total = study.stages.budget_dollars if study.stages else None
        reserve = study.stages.reserve_dollars if study.stages and total is not None else 0.0
        return cls(math.inf if total is None else total, reserve, used, pivoted)

    @property
    def remaining(self) -> float:
        return self.total - self.spent

    @property
    def kept(self) -> float:
        """What is left of the reserve."""
        return max(0.0, self.reserve - self.pivoted)

    def allow(self, stage: str, worst_case: float, pivot: bool = False) -> None:
        """Whether a stage, or a pivot in it, may start: its worst case is payable. Raises BudgetError."""
        payable = self.remaining - (0.0 if pivot else self.kept)
        if worst_case <= payable + ROUNDING:
            return
        what = f"a pivot in stage {stage}" if pivot else f"stage {stage}"
        held = ", with the reserve" if pivot else f", {dollars(self.kept)} of them as the reserve for a pivot"
        raise BudgetError(
            f"{what} may cost {dollars(worst_case)}, but {dollars(self.remaining)} of {dollars(self.total)} are left"
            f"{held if self.kept else ''}: raise budget_dollars, or drop ablations, seeds or steps"
        )


class BurnDown(NamedTuple):
    """A row of the table of what was planned and what was spent."""

    stage: StageName
    runs: int  # so far
    planned: float  # dollars, without a pivot
    spent: float  # dollars
    remaining: float  # dollars of the budget after this stage; inf: no budget was declared


def burn_down(costs: Iterable[StageCost], used: Mapping[StageName, Spent], total: float) -> list[BurnDown]:
    """A row for every stage."""
    rows = []
    for cost in costs:
        runs, paid = used.get(cost.name, Spent(0, 0.0))
        total -= paid
        rows.append(BurnDown(cost.name, runs, cost.dollars, paid, total))
    return rows
