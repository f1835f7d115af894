"""The largest learning rate that a configuration bears: tried from the top of a grid down until no run diverges.

Every rate is an experiment of its own, outputs/<study>/<stage>-stability/lr-<rate>, so it is kept, found again by the
next search, and its curve can be drawn. A diverged run is a result like any other.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptlib import records
from gptlib.config import with_changes
from gptlib.fields import RunConfig
from gptlib.study.experiment import Experiment, execute, summarise
from gptlib.study.hypothesis import distinct_factors
from gptlib.study.plan import Plan, plan_experiment

SEARCH_SEEDS = 2  # of a study's search


@dataclass(frozen=True)
class Point:
    """One factor on all learning rates, and what became of its runs."""

    factor: float
    lr: float  # peak rate of the block matrices
    runs: int
    diverged: int
    diverged_at: int | None  # the first step at which one of them did
    loss: float | None  # mean final loss of the runs that finished, nats/token


@dataclass(frozen=True)
class Stability:
    """The points tried, the largest first; smaller ones than the first stable one are left out."""

    points: tuple[Point, ...]

    @property
    def largest(self) -> Point | None:
        """The largest factor at which no run diverged; None: none of the grid is small enough."""
        return next((point for point in self.points if not point.diverged), None)

    def text(self) -> str:
        """`the largest stable rate tried is 0.003 (x1); diverged: 0.03 (2 of 2 runs)`"""
        best, lost = self.largest, [point for point in self.points if point.diverged]
        stable = f"the largest stable rate tried is {best.lr:.3g} (x{best.factor:g})" if best else "none is stable"
        runs = ", ".join(f"{point.lr:.3g} ({point.diverged} of {point.runs} runs)" for point in lost)
        return stable + (f"; diverged: {runs}" if lost else "; the grid has none above it that diverged")


def largest_stable_lr(
    config: RunConfig,
    grid: Sequence[float],
    outputs: Path,
    study: str,
    stage: str = "full",
    seeds: Sequence[int] = (42, 43, 44),
    poll: Callable[[], None] = lambda: None,
) -> Stability:
    """Run `config` with its rates times each factor of `grid`, downwards, until no run of a factor diverges.

    Downwards and not by halves: so nothing is assumed of the factors between. `stage` tells searches of one study
    apart, e.g. by the name of the ablation. Raises ConfigError for a bad grid, RecordError where a run fails.
    """
    points: list[Point] = []
    for factor in sorted(distinct_factors("grid", grid), reverse=True):
        tried = with_changes(config, {"optim.lr_scale": factor * config.optim.lr_scale})
        name = f"lr-{tried.optim.matrix_lr:.6g}"
        plan = plan_experiment(outputs, study, f"{stage}-stability", tried, list(seeds)).of(name, tried)
        experiment = execute(plan, poll)
        if not plan.is_complete():
            summarise(experiment)
        points.append(_point(factor, experiment))
        if not points[-1].diverged:
            break
    return Stability(tuple(points))


def stable_rates(plan: Plan, grid: Sequence[float]) -> Stability:
    """The search for an arm of a study, with its first two seeds: many rates and few seeds find the edge soonest.

    It lies in stages of its own, `<stage>-<variant>-stability`. Raises as largest_stable_lr.
    """
    where = plan.outputs, plan.study, f"{plan.stage}-{plan.variant}"
    return largest_stable_lr(plan.config, grid, *where, plan.seeds[:SEARCH_SEEDS])


def _point(factor: float, experiment: Experiment) -> Point:
    if failed := experiment.count("failed"):
        place = experiment.plan.folder
        raise records.RecordError(f"{place}: {failed} runs failed, which says nothing of stability; run again")
    losses = list(experiment.finals().values())
    steps = [result["diverged_at"] for result in experiment.results if result["status"] == "diverged"]
    loss = statistics.fmean(losses) if losses else None
    lr = experiment.plan.config.optim.matrix_lr
    return Point(factor, lr, len(experiment.results), len(steps), min(steps, default=None), loss)
