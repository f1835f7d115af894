"""What a study would run, and what that would cost, said before anything runs: nothing is written or prepared here."""

import json
import math
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gptlib.config import ConfigError, from_anywhere, load_config, params_file, project_root
from gptlib.fields import RunConfig
from gptlib.stats.planner import STUDIES, Design, World, characteristics, plan_study
from gptlib.study.budget import Budget, StageCost, concerns, stage_costs, staged_config
from gptlib.study.hypothesis import Ablation, combine, load_ablation
from gptlib.study.prices import Estimate, PastRun, Prices, dollars, estimate, load_prices, past_runs
from gptlib.study.stability import SEARCH_SEEDS
from gptlib.study.studies import ROLES, Study, load_study


def dry_run(name: str | Path, outputs: Path, overrides: tuple[str, ...] = (), studies: int = STUDIES,
            profile: str = "", device: str = "here") -> Iterator[str]:  # fmt: skip
    """The lines that `gptlib study NAME --dry-run` prints; `studies`: simulated of each design. Raises ConfigError.

    `device`, a name in the price list, is where a study without stages would run; stages declare their own.
    """
    study, prices = load_study(name, overrides, profile), load_prices()
    past = past_runs(outputs, prices)
    costs = stage_costs(study, prices, past) if study.stages else []  # bad input is refused before the first line
    prices.of(device)
    if study.stages and device != "here":
        raise ConfigError(f"--device {device}: each stage of {study.name} declares its own; leave it out")
    yield f"study {study.name}: {study.question}"
    yield "Nothing is run, written or downloaded. The commands work one by one, in this folder:"
    yield f"  cd {shlex.quote(str(project_root()))}"
    if study.stages is None:
        yield from _unstaged(study, outputs, prices, past, device)
        return
    for cost in costs:
        yield from _stage(study, cost, outputs, prices)
    yield from _money(study, costs, outputs, prices)
    if found := list(concerns(study, costs, prices)):
        yield from ["\nbeware:", *(f"  {concern}" for concern in found)]
    yield from _planner(study, costs, studies)


# --- commands ---------------------------------------------------------------------------------------------------


def command(study: Study, stage: str, base: str, overrides: dict[str, Any], seeds: list[int], outputs: Path,
            ablation: str | Ablation | None = None) -> str:  # fmt: skip
    """A line for a shell that executes the notebook of one experiment; `ablation`: a name, a file, or what to do."""
    values: dict[str, Any] = {"base": from_anywhere("base", base), "overrides": overrides, "seeds": seeds}
    values |= {"study": study.name, "stage": stage, "outputs": _shown(outputs)}
    variant, file = "baseline", []
    if isinstance(ablation, Ablation):
        variant, values = ablation.variant, ablation.model_dump(mode="json") | values
    elif ablation is not None:
        variant, file = load_ablation(ablation).variant, ["-f", _shown(params_file("ablations", ablation).resolve())]
    notebook = "notebooks/10_baseline.ipynb" if ablation is None else "notebooks/20_ablations.ipynb"
    folder, tool = _shown(outputs / study.name), Path(sys.executable).with_name("papermill")
    call = [_shown(tool), notebook, f"{folder}/{stage}.{variant}.ipynb", *file, "-y", json.dumps(values)]
    return f"mkdir -p {shlex.quote(folder)} && {shlex.join([*call, '-k', 'python3', '--cwd', 'notebooks'])}"


def _shown(path: Path) -> str:
    root = project_root()
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _unstaged(study: Study, outputs: Path, prices: Prices, past: list[PastRun], device: str) -> Iterator[str]:
    loaded = {name: load_ablation(name) for name in study.ablations}
    pairs = [combine(loaded[a], loaded[b]) for a, b in study.interactions]
    asked: list[str | Ablation | None] = [None, *loaded, *pairs]
    runs, minutes, cost, said = 0, 0.0, 0.0, ""
    first: dict[str | None, Estimate] = {}  # of the first base
    for base in study.bases:
        config, stage = load_config(base, study.overrides), study.stage_of(base)
        yield f"\nbase {base}, stage {stage}: {_size(config)}, seeds {_listed(study.seeds)}"
        for one in asked:
            ablation = loaded[one] if isinstance(one, str) else one
            each = estimate(study, None, ablation.apply(config) if ablation else config, prices, past, device)
            trials = _trials(ablation) if ablation else 0
            count = len(study.seeds) + trials
            tuning = f", {trials} of them to tune both arms" if trials else ""
            yield f"  {ablation.variant if ablation else 'baseline'}: {count} runs{tuning}, each {_each(each, said)}"
            yield f"    {command(study, stage, base, study.overrides, study.seeds, outputs, one)}"
            first.setdefault(one if isinstance(one, str) else None, each)
            again = base == study.bases[0] and not isinstance(one, Ablation)  # of a repeat: no pairs
            count += (study.repeats - 1) * count if again else 0
            runs, minutes, cost = runs + count, minutes + count * each.minutes, cost + count * each.dollars
            said = each.source
    for name, grid in study.stable_lr.items():
        most, each = min(SEARCH_SEEDS, len(study.seeds)) * len(grid), first[None if name == "baseline" else name]
        yield f"\nlargest stable rate of {name}: at most {most} runs, factors {_listed(sorted(grid, reverse=True))}"
        runs, minutes, cost = runs + most, minutes + most * each.minutes, cost + most * each.dollars
    told = f" ({study.repeats} repeats, each with fresh seeds)" if study.repeats > 1 else ""
    yield f"\nin all: {runs} runs{told}, {_time(minutes)} one after the other, {dollars(cost)}"


def _trials(ablation: Ablation) -> int:
    points = math.prod(len(values) for values in ablation.tune.values()) if ablation.tune else 0
    return 2 * points * len(ablation.tune_seeds)


def _stage(study: Study, cost: StageCost, outputs: Path, prices: Prices) -> Iterator[str]:
    assert study.stages is not None
    stage, config = study.stages.stages()[cost.name], cost.config
    place = f"{stage.devices} x {stage.device}" if stage.device != "here" else "this machine"
    yield f"\nstage {cost.name}, {ROLES[cost.name]}: {_size(config)}, seeds {_listed(stage.seeds)}, on {place}"
    if config.hardware.ranks > 1:
        yield f"  each run has {config.hardware.ranks} ranks, which gptlib starts by itself (torch.distributed.run)"
    if stage.dollars_per_run is not None and stage.device != "here":
        each, listed = cost.estimates["baseline"], prices.of(stage.device).dollars_per_hour
        hourly = each.dollars / (each.minutes / 60 * stage.devices)
        rate = f"{dollars(each.dollars)} in {_time(each.minutes)} are {dollars(hourly)} an hour for each {stage.device}"
        yield f"  {rate}; the price list has {dollars(listed)}"
    overrides = study.overrides | study.stages.overrides(cost.name, staged_config(study, None))
    said = ""
    for name, (variant, each) in zip([None, *study.ablations], cost.estimates.items(), strict=True):
        yield f"  {variant}: {len(stage.seeds)} runs, each {_each(each, said)}"
        yield f"    {command(study, cost.name, study.bases[0], overrides, stage.seeds, outputs, name)}"
        said = each.source
    taken = f"; {cost.reused} of the baseline's are taken over from other studies" if cost.reused else ""
    worst = f"at worst {cost.worst_runs} runs, {dollars(cost.worst_dollars)}"
    yield f"  of these at most {cost.runs} runs without a pivot, {dollars(cost.dollars)}; {worst}{taken}"


def _size(config: RunConfig) -> str:
    return f"{config.train.steps:,} steps of {config.tokens_per_step:,} tokens"


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _each(cost: Estimate, said: str) -> str:
    """Time and money of a run; their source where it is not that of the run before."""
    source = "" if cost.source == said else f" ({cost.source})"
    return f"{_time(cost.minutes)}, {dollars(cost.dollars)}{source}"


def _time(minutes: float) -> str:
    if minutes < 2:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


# --- money ------------------------------------------------------------------------------------------------------


def _money(study: Study, costs: list[StageCost], outputs: Path, prices: Prices) -> Iterator[str]:
    assert study.stages is not None
    budget, seeds, arms = Budget.of(study, outputs, prices), study.stages.looks[-1], len(study.ablations) + 1
    planned, worst = sum(cost.dollars for cost in costs), sum(cost.worst_dollars for cost in costs)
    naive = arms * seeds * costs[-1].price
    yield "\nmoney:"
    yield f"  all {arms} arms at full length with {seeds} seeds: {dollars(naive)}"
    parts = " + ".join(dollars(cost.dollars) for cost in costs)
    yield f"  these stages: {parts} = {dollars(planned)}, {_saved(planned, naive)}; at worst {dollars(worst)}"
    if later := [cost for cost in costs if cost.name != "A" and cost.baseline_runs]:
        bare = planned - sum(cost.baseline_runs * cost.price for cost in later) + budget.reserve
        names, held = " and ".join(cost.name for cost in later), ", with the reserve" if budget.reserve else ""
        less = f"without baselines in {names} it would be {dollars(bare)}{held}, {_saved(bare, naive)}"
        yield f"  {less}; but then nothing is compared there"
    if budget.spent:
        yield f"  spent so far: {dollars(budget.spent)}"
    if math.isinf(budget.total):
        yield "  no budget is declared"
        return
    yield f"  budget: {dollars(budget.total)}, of which {dollars(budget.reserve)} are a reserve for a pivot"
    for what, amount, free in (("plan", planned, budget.total - budget.reserve), ("worst case", worst, budget.total)):
        short = f"does not suffice for the {what}: {dollars(amount - free)} are missing"
        yield f"  it {short if amount > free else f'suffices for the {what}'}"


def _saved(planned: float, naive: float) -> str:
    share = 100 * (1 - planned / naive) if naive else 0.0
    return f"{share:.0f} % saved" if share >= 0 else f"{-share:.0f} % more"


# --- the design -------------------------------------------------------------------------------------------------


def _planner(study: Study, costs: list[StageCost], studies: int) -> Iterator[str]:
    """How this rule and the planner's do in the standard world, effects of 1.5 times the noise between seeds."""
    assert study.stages is not None
    priced: dict[str, float] = {cost.name: cost.price for cost in costs}
    prices = [priced.get(name, 0.0) for name in ROLES]
    paid = not all(cost.reused for cost in costs)
    rule, effects = replace(study.stages.rule(), reuse_baseline=not paid), (1.5,) * len(study.ablations)
    own = characteristics("this study", rule, World(effects), prices, 1.5, studies)
    yield f"\nsimulated, with effects as large as 1.5 times the noise between seeds, alpha {rule.alpha:g}:"
    yield f"  {_design(own)}"
    if not all(prices):
        return
    ask = partial(plan_study, effects, 1.0, prices, alpha=rule.alpha, reuse_baseline=not paid, studies=studies)
    try:
        plan = ask(budget=study.stages.budget_dollars or math.inf)
    except ValueError as error:
        yield f"  {error}; with enough:"
        plan = ask()
    yield f"  {_design(plan.chosen)}"
    yield f"  The planner would take the last: {plan.reason}."


def _design(design: Design) -> str:
    return (
        f"{design.name}: {dollars(design.expected_cost)} on average, at most {dollars(design.worst_cost)}; finds the "
        f"best variant with power {design.power:.2f}; false claims in {100 * design.false_claims:.1f} % of studies"
    )
