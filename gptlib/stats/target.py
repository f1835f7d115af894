"""Claims about a target loss, and what a difference of loss is worth in steps.

The rules are those of the modded-nanogpt speedrun: its main track tests mean <= target with a t test at p < .01, its
track 3 (fewest steps) with a z test of known sigma 0.0013. Losses are in nats/token; lower is better.
"""

import itertools
import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from gptlib.stats.checks import (
    finite,
    require_alpha,
    require_positive,
    require_share,
    require_spread,
    several,
)
from gptlib.stats.compare import Values, mean_interval

TRACK_3_SIGMA = 0.0013
# Track 3 asks for (target - mean) * sqrt(n) >= 0.004, which it rounds to p < .001; exactly it is .00105.
TRACK_3_ALPHA = float(special.ndtr(-0.004 / TRACK_3_SIGMA))
TRACK_3_LOSS_PER_100_STEPS = 0.0045
# A mean that meets a limit to the last printed digit meets it.
TOUCH = 1e-9


@dataclass(frozen=True)
class Claim:
    """Outcome of the one-sided test of mean <= target."""

    test: str
    n: int
    mean: float
    std: float | None  # over the runs; for "z" it decides nothing
    target: float
    limit: float  # the highest mean that these runs' number and noise would let pass
    upper: float  # the true mean is below, with confidence 1 - alpha
    alpha: float
    p_value: float
    met: bool
    reason: str


@dataclass(frozen=True)
class PairwiseClaim:
    """Outcome of the one-sided test that b is better than a, once its steps are paid for in loss."""

    n_a: int
    n_b: int
    difference: float  # mean of a - mean of b: what b is lower by
    credit: float  # loss that the steps b saves are worth; below zero where it takes more
    limit: float  # the least difference + credit that passes
    alpha: float
    p_value: float
    met: bool
    reason: str


@dataclass(frozen=True)
class Rate:
    """How fast the loss still falls at the end of the runs, with the t interval of its mean over the runs."""

    n: int
    first_step: int  # the slope is fitted from here
    last_step: int
    per_100_steps: float  # above zero: the loss falls
    standard_error: float
    df: float
    low: float
    high: float
    alpha: float


@dataclass(frozen=True)
class Steps:
    """A difference of loss, converted; without an interval where the rate is not clearly above zero."""

    steps: float
    low: float | None
    high: float | None
    alpha: float
    reason: str


@dataclass(frozen=True)
class Crossing:
    """When runs reach a target: together (the claim) and each on its own (secondary, read after the fact)."""

    target: float
    step: int | None  # first evaluation from which on the mean over the runs stays at or below the target
    mean: float | None  # there
    by_run: dict[Hashable, float | None]  # interpolated step; None: not reached by the end
    reached: str  # "4/5"
    median: float | None  # of by_run, runs that did not reach it counted as later than all; None: it is one of those


def one_sample(
    losses: Values,
    target: float,
    test: Literal["t", "z"] = "t",
    sigma: float | None = None,
    alpha: float = 0.01,
) -> Claim:
    """Is the mean loss of such runs at or below `target`? One-sided, at `alpha`.

    t: the noise comes from the runs themselves, at least two. z: `sigma` is known from elsewhere and one run will do;
    with TRACK_3_SIGMA and TRACK_3_ALPHA it is track 3's rule. The number of runs is to be fixed beforehand.
    Raises ValueError for non-finite losses, for t with one run, no spread or a sigma, and for z without one.
    """
    from scipy import stats

    require_alpha(alpha)
    if test not in ("t", "z"):
        raise ValueError(f"test={test!r}: use 't' or 'z'")
    if not math.isfinite(target):
        raise ValueError(f"target={target}: give a finite loss")
    sample = finite(losses, "losses") if test == "z" else several(losses, "losses")
    n, mean = len(sample), float(sample.mean())
    std = float(sample.std(ddof=1)) if n > 1 else None
    if test == "z":
        if sigma is None:
            raise ValueError("sigma: test='z' needs the known standard deviation over seeds; give it or use test='t'")
        require_positive(sigma, "sigma")
        error = sigma / math.sqrt(n)
        p_value, critical = float(special.ndtr((mean - target) / error)), -float(special.ndtri(alpha))
    else:
        if sigma is not None:
            raise ValueError("sigma: test='t' takes the noise of the runs themselves; leave it out or use test='z'")
        require_spread(sample, "losses")
        error = float(stats.sem(sample))
        p_value = float(stats.ttest_1samp(sample, target, alternative="less").pvalue)
        critical = float(special.stdtrit(n - 1, 1 - alpha))
    limit = target - critical * error
    met = mean <= limit + TOUCH
    reason = f"the mean {mean:.5f} of {n} runs is {'at or below' if met else 'above'} {limit:.5f} (p = {p_value:.2g})"
    return Claim(test, n, mean, std, target, limit, mean + critical * error, alpha, p_value, met, reason)


def pairwise(
    a: Values,
    b: Values,
    sigma: float,
    steps_a: int,
    steps_b: int,
    loss_per_100_steps: float = TRACK_3_LOSS_PER_100_STEPS,
    alpha: float = TRACK_3_ALPHA,
) -> PairwiseClaim:
    """Is b better than a, where it also takes another number of steps? Track 3's rule: a z test with known `sigma`.

    (mean a - mean b + (steps_a - steps_b) / 100 * loss_per_100_steps) / sqrt(1/n_a + 1/n_b) has to reach 0.004 at its
    sigma and alpha. The rate is taken as known: loss_to_steps is for one that is not. Raises ValueError for non-finite
    losses, and for sigma, steps or rate not above 0.
    """
    require_alpha(alpha)
    for name, value in (("sigma", sigma), ("steps_a", steps_a), ("steps_b", steps_b)):
        require_positive(value, name)
    require_positive(loss_per_100_steps, "loss_per_100_steps")
    old, new = finite(a, "a"), finite(b, "b")
    difference = float(old.mean() - new.mean())
    credit = (steps_a - steps_b) / 100 * loss_per_100_steps
    error = sigma * math.sqrt(1 / len(old) + 1 / len(new))
    p_value, limit = float(special.ndtr(-(difference + credit) / error)), -float(special.ndtri(alpha)) * error
    met = difference + credit >= limit - TOUCH
    reason = (
        f"{difference:+.5f} of loss and {credit:+.5f} for {steps_a - steps_b:+d} steps "
        f"{'reach' if met else 'do not reach'} {limit:.5f} (p = {p_value:.2g})"
    )
    return PairwiseClaim(len(old), len(new), difference, credit, limit, alpha, p_value, met, reason)


def exchange_rate(
    steps: Sequence[int],
    losses_by_run: Mapping[Hashable, Sequence[float]],
    last: float = 0.2,
    alpha: float = 0.05,
) -> Rate:
    """What 100 more steps are worth in loss, from the end slope of the baseline's own curves.

    `steps` of the evaluations; `losses_by_run`: {run: losses there}. A line is fitted to each run over the evaluations
    in the `last` share of the steps; the runs are the sample. A schedule that ends makes this the slope *within* a run,
    not between runs of different lengths. Raises ValueError for fewer than two runs, or evaluations in that share, for
    curves that do not fit `steps` and for non-finite losses.
    """
    require_alpha(alpha)
    require_share(last, "last")
    grid = finite(steps, "steps")
    if len(losses_by_run) < 2:
        raise ValueError("losses_by_run: one run shows no noise; give at least two seeds")
    curves = {run: finite(losses, f"run {run}") for run, losses in losses_by_run.items()}
    if wrong := [run for run, losses in curves.items() if len(losses) != len(grid)]:
        raise ValueError(f"run {wrong[0]}: {len(curves[wrong[0]])} losses for {len(grid)} steps; give one for each")
    end = grid >= (1 - last) * grid[-1]
    if end.sum() < 2 or (np.diff(grid) <= 0).any():
        raise ValueError(f"steps: a slope needs two rising evaluations in the last {last:g} of the steps; raise `last`")
    slopes = np.polyfit(grid[end], np.array([losses[end] for losses in curves.values()]).T, 1)[0]
    interval = mean_interval(-100 * slopes, 1 - alpha)
    assert interval.std is not None and interval.low is not None and interval.high is not None
    n, error = interval.n, interval.std / math.sqrt(interval.n)
    first = int(grid[end][0])
    return Rate(n, first, int(grid[-1]), interval.mean, error, n - 1, interval.low, interval.high, alpha)


def loss_to_steps(
    difference: float,
    standard_error: float,
    df: float,
    rate: Rate,
    alpha: float = 0.05,
) -> Steps:
    """How many steps a difference of loss is worth: both have noise, so the interval is by the delta method.

    `difference` with its `standard_error` and degrees of freedom `df` (inf where it is known). The variances of both
    relative errors add up, with Welch and Satterthwaite's degrees of freedom. Where the rate's own interval reaches
    zero the number of steps has no upper end, and no interval is given. Raises ValueError for a rate that is not above
    zero (the loss no longer falls), non-finite numbers and a standard error below 0.
    """
    require_alpha(alpha)
    require_positive(rate.per_100_steps, "rate")
    if not (math.isfinite(difference) and math.isfinite(standard_error) and standard_error >= 0 and df > 0):
        raise ValueError(f"difference={difference} ± {standard_error} (df {df}): give finite numbers, df above 0")
    worth = 100 / rate.per_100_steps
    steps = difference * worth
    if rate.per_100_steps <= float(special.stdtrit(rate.df, 1 - alpha / 2)) * rate.standard_error:
        return Steps(steps, None, None, alpha, "the rate is not clearly above zero, so there is no upper end in steps")
    parts = (worth * standard_error) ** 2, (steps * rate.standard_error / rate.per_100_steps) ** 2
    variance = sum(parts)
    if not variance:
        return Steps(steps, steps, steps, alpha, "neither the difference nor the rate has noise")
    share = (parts[0] / variance) ** 2 / df + (parts[1] / variance) ** 2 / rate.df  # 1 / degrees of freedom
    half = float(special.stdtrit(1 / max(share, 1e-9), 1 - alpha / 2)) * math.sqrt(variance)
    percent = f"{100 * (1 - alpha):g} % interval"
    return Steps(steps, steps - half, steps + half, alpha, f"{steps:.0f} steps, {percent} ± {half:.0f} (delta method)")


def steps_to_target(curves: Mapping[Hashable, Sequence[tuple[int, float]]], target: float) -> Crossing:
    """When the runs {run: [(step, loss)]} reach `target`, all with evaluations at the same steps.

    The claim is one step for all runs: the first evaluation from which on their mean stays at or below the target. Per
    run it is a linear interpolation in log-step between that evaluation and the one before (the evaluation itself where
    there is none, or step 0); a run that ends above is censored, not dropped. A diverged run has inf from where it
    diverged. Raises ValueError for no runs, unequal evaluations, steps that do not rise, and nan.
    """
    if not curves:
        raise ValueError("curves: empty; give at least one run")
    grids = {run: [step for step, _ in curve] for run, curve in curves.items()}
    first, grid = next(iter(grids.items()))
    if other := [run for run, steps in grids.items() if steps != grid]:
        raise ValueError(f"curves: runs {first} and {other[0]} were evaluated at other steps; keep those in common")
    if not grid or any(b <= a for a, b in itertools.pairwise(grid)) or grid[0] < 0:
        raise ValueError("curves: the steps of a curve have to rise from 0 or more; sort them, each once")
    losses = np.array([[loss for _, loss in curve] for curve in curves.values()], dtype=np.float64)
    if np.isnan(losses).any() or not math.isfinite(target):
        raise ValueError("curves: a loss or the target is nan; write inf from where a run diverged")
    mean = losses.mean(axis=0)
    joint = _from_here_on(mean <= target)
    by_run = {run: _crossing(grid, curve, target) for run, curve in zip(curves, losses, strict=True)}
    median = statistics.median(math.inf if step is None else step for step in by_run.values())
    reached = sum(step is not None for step in by_run.values())
    return Crossing(
        target=target,
        step=None if joint is None else grid[joint],
        mean=None if joint is None else float(mean[joint]),
        by_run=by_run,
        reached=f"{reached}/{len(by_run)}",
        median=median if math.isfinite(median) else None,
    )


def _from_here_on(reached: np.ndarray) -> int | None:
    """Index from which on all are true."""
    missed = np.flatnonzero(~reached)
    start = int(missed[-1]) + 1 if len(missed) else 0
    return start if start < len(reached) else None


def _crossing(grid: Sequence[int], losses: np.ndarray, target: float) -> float | None:
    at = _from_here_on(losses <= target)
    if at is None:
        return None
    if at == 0 or grid[at - 1] == 0 or not np.isfinite(losses[at - 1]):
        return float(grid[at])
    share = (losses[at - 1] - target) / (losses[at - 1] - losses[at])
    return float(grid[at - 1] * (grid[at] / grid[at - 1]) ** share)
