"""Screen - check - race: which variants go on to the next stage, when to stop, what may be claimed.

    screen   a complete short schedule, few seeds, every variant: keep the best, but none that is clearly worse
    check    a longer one, fresh seeds: promote what beats the baseline and is within one standard error of the best
    race     full length, fresh seeds, looks at growing numbers of them: one-sided tests, stop for efficacy or futility

Only the race makes claims, on seeds that no earlier stage has seen, so whatever the first two do, a study without any
true effect makes a false claim with probability at most alpha. Its boundaries spend alpha in proportion to the seeds
(Lan and DeMets 1983) and are calibrated for t statistics of few seeds by simulation. The same functions decide in a
real study and, on arrays with a leading axis of studies, in the simulations of planner.py. They take the noise between
seeds as normal and of one size in all arms of a stage.

Losses are arrays `(..., arms, seeds)`, lower is better, arm 0 the baseline; masks `(..., variants)` leave the baseline
out. A run that diverged or was not made is NaN or infinite; a variant with such a run never goes on.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import special

from gptlib.stats.checks import ROUNDING

NULL_DRAWS, CHUNK = 1_000_000, 20_000


@dataclass(frozen=True)
class Rule:
    """One design of a study; a stage with 0 seeds is left out. The defaults are screen - check - race."""

    alpha: float = 0.01  # chance of any false claim, one-sided
    screen_seeds: int = 2
    check_seeds: int = 3
    looks: tuple[int, ...] = (3, 5, 8)  # seeds per arm at each look of the race
    keep: float = 0.5  # share of the variants that the screen keeps
    keep_at_least: int = 2
    slack: float = 1.0  # standard errors that a variant may be worse than the baseline and still be kept
    promote: int = 2  # variants that screen or check let race
    futility: float = 0.35  # a variant whose p is larger at a look leaves the race; 1: none does
    pivots: int = 0  # times that the next variant of the screen is checked where the check promotes none
    reuse_baseline: bool = False  # its runs were paid by an earlier study

    def __post_init__(self) -> None:
        if not 0.001 <= self.alpha < 0.5:  # boundaries of smaller ones would need more draws
            raise ValueError(f"alpha={self.alpha}: give the chance of a false claim, from 0.001 to below 0.5")
        if not self.looks or self.looks[0] < 2 or list(self.looks) != sorted(set(self.looks)):
            raise ValueError(f"looks={list(self.looks)}: give growing numbers of seeds, the first at least 2")
        for name in ("screen_seeds", "check_seeds"):
            if (seeds := getattr(self, name)) < 2 and seeds != 0:
                raise ValueError(f"{name}={seeds}: give at least 2, so that noise can be seen, or 0 to leave it out")
        if not 0 < self.keep <= 1 or min(self.keep_at_least, self.promote) < 1 or min(self.pivots, self.slack) < 0:
            raise ValueError(
                f"keep={self.keep}, keep_at_least={self.keep_at_least}, promote={self.promote}, pivots={self.pivots}, "
                f"slack={self.slack}: keep is a share up to 1, keep_at_least and promote 1 or more, the rest 0 or more"
            )
        if not 0 < self.futility <= 1:
            raise ValueError(f"futility={self.futility}: give the p-value above which a variant leaves, up to 1")

    def kept(self, variants: int) -> int:
        """How many of `variants` the screen keeps at most."""
        if not self.screen_seeds:
            return variants
        most = max(self.keep_at_least, math.ceil(self.keep * variants - 1e-9))
        return min(variants, most if self.check_seeds else min(most, self.promote))  # without a check, straight to race

    def promoted(self, variants: int) -> int:
        """How many race at most: where neither screen nor check chooses, all."""
        return min(self.promote, self.kept(variants)) if self.check_seeds else self.kept(variants)

    def worst_runs(self, variants: int) -> tuple[int, int, int]:
        """Runs of screen, check and race if everything goes on to the end, baseline included where it is paid."""
        base = 0 if self.reuse_baseline else 1
        spare = min(self.pivots, variants - self.kept(variants)) if self.check_seeds else 0
        checked = (self.kept(variants) + base + spare) * self.check_seeds
        return (variants + base) * self.screen_seeds, checked, (self.promoted(variants) + base) * self.looks[-1]


# --- decisions --------------------------------------------------------------------------------------------------


class Screened(NamedTuple):
    kept: np.ndarray  # (..., variants) bool
    rank: np.ndarray  # (..., variants), 0 the best; diverged ones last
    excess: np.ndarray  # (..., variants) difference to the baseline in standard errors; inf: diverged


class Look(NamedTuple):
    p: np.ndarray  # (..., variants) one-sided, of "not better than the baseline"; 1 outside the race
    claimed: np.ndarray  # (..., variants) bool: better, at the study's alpha
    racing: np.ndarray  # (..., variants) bool: goes on to the next look


def screen(losses: np.ndarray, rule: Rule) -> Screened:
    """The variants worth a longer run. No claim is made and no p-value is computed here."""
    excess = _excess(losses, True)
    rank = _rank(excess)
    kept = (rank < rule.kept(excess.shape[-1])) & (excess <= rule.slack) & np.isfinite(excess)
    return Screened(kept, rank, excess)


def pivot(screened: Screened, turn: int, rule: Rule) -> np.ndarray:
    """The variant to check at `turn` 0, 1, ... where all before were turned down, if it is not clearly worse."""
    next_one = screened.rank == rule.kept(screened.rank.shape[-1]) + turn
    good: np.ndarray = next_one & (screened.excess <= rule.slack) & np.isfinite(screened.excess)
    return good


def check(losses: np.ndarray, candidates: np.ndarray, rule: Rule) -> np.ndarray:
    """`candidates` that beat the baseline and lie within one standard error of the best: `(..., variants)` bool."""
    asked = np.concatenate([np.ones_like(candidates[..., :1]), candidates], -1)
    excess = _excess(np.where(asked[..., None], losses, np.nan), candidates)
    near_best = excess <= excess.min(-1, keepdims=True) + 1
    promoted: np.ndarray = (excess < 0) & near_best & (_rank(excess) < rule.promote)
    return promoted


def look(losses: np.ndarray, racing: np.ndarray, boundary: np.ndarray | float, rule: Rule) -> Look:
    """One look at the race: tests with the spread pooled over all arms that entered.

    An arm that has left lends the runs that it made, the others being NaN: were the spread pooled over the racing arms
    only, a race of seven would claim falsely in 1.06 % of all cases where 1 % is meant. `boundary`: that of this look
    and of the number of variants that entered, see boundaries(); `(...)` or one number.
    """
    difference, error, df, finite = _differences(losses, racing)
    p = np.where(finite, special.stdtr(df, difference / error), 1.0)
    claimed = finite & (p <= np.asarray(boundary)[..., None])
    ended = claimed.any(-1, keepdims=True)
    return Look(p, claimed, finite & (p <= rule.futility) & ~ended)


def race_interval(
    losses: np.ndarray, racing: np.ndarray, boundary: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variant - baseline with the ends of its interval, each `(..., variants)`; NaN for variants outside the race.

    `losses` and `racing` are those of the look after which a variant stopped, `boundary` the p-value that either end
    leaves out: with that of the last look the interval covers the true difference with at least 1 - 2 alpha, wherever
    the race ended (repeated intervals: Jennison and Turnbull 1989).
    """
    difference, error, df, finite = _differences(losses, racing)
    half = -special.stdtrit(df, np.asarray(boundary)[..., None]) * error
    middle = np.where(finite, difference, np.nan)
    return middle, middle - half, middle + half


@cache
def boundaries(alpha: float, looks: tuple[int, ...], variants: int) -> tuple[float, ...]:
    """The p-value at each look that ends a race of `variants`, so that all looks together claim falsely with `alpha`.

    Calibrated on the smallest p of races without effects (so jointly over the variants, as Dunnett 1955), futility not
    counted on. Standard error of what is spent: sqrt(alpha / 1,000,000).
    """
    if variants < 1:
        raise ValueError("no variant entered the race, so nothing can be tested: the study ends without a claim")
    rng = np.random.default_rng([2026, variants, *looks])
    lowest = np.concatenate([_null_race(looks, variants, rng) for _ in range(NULL_DRAWS // CHUNK)])
    going, found = np.ones(len(lowest), bool), []
    for index, seeds in enumerate(looks):
        spend = round(alpha * seeds / looks[-1] * len(lowest)) - int((~going).sum())
        limit = np.partition(lowest[going, index], spend - 1)[spend - 1]
        found.append(float(special.stdtr((variants + 1) * (seeds - 1), limit)))
        going &= lowest[:, index] > limit
    return tuple(found)


def _null_race(looks: tuple[int, ...], variants: int, rng: np.random.Generator) -> np.ndarray:
    """The lowest t statistic at each look of races without effects, `(CHUNK, looks)`, from sums and sums of squares."""
    arms, seen, lowest = variants + 1, 0, np.empty((CHUNK, len(looks)))
    total, squares = np.zeros((CHUNK, arms)), np.zeros(CHUNK)
    for index, seeds in enumerate(looks):
        new = seeds - seen
        part = math.sqrt(new) * rng.standard_normal((CHUNK, arms))
        total += part
        squares += (part**2).sum(-1) / new + 2 * rng.standard_gamma(arms * (new - 1) / 2, CHUNK)
        variance = (squares - (total**2).sum(-1) / seeds) / (arms * (seeds - 1))
        lowest[:, index] = (total[:, 1:].min(-1) - total[:, 0]) / np.sqrt(2 * variance * seeds)
        seen = seeds
    return lowest


def _excess(losses: np.ndarray, variants: np.ndarray | bool) -> np.ndarray:
    """Variant - baseline in standard errors, `(..., variants)`; inf for diverged variants and those not asked for."""
    difference, error, _, finite = _differences(losses, variants)
    return np.where(finite, difference / error, np.inf)


def _rank(excess: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(excess, -1, kind="stable"), -1, kind="stable")


def _differences(
    losses: np.ndarray, variants: np.ndarray | bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Variant - baseline, its standard error and degrees of freedom `(..., 1)`, and which `variants` ran completely.

    The spread is pooled over every finite run in `losses`, whether or not its arm is one of `variants`. Raises
    ValueError for a single seed, for a baseline with a missing run, and where no run differs but by rounding.
    """
    seeds, made = losses.shape[-1], np.isfinite(losses)
    if seeds < 2:
        raise ValueError(f"seeds={seeds}: a stage shows no noise to judge against; run at least 2")
    if not made[..., 0, :].all():
        raise ValueError(
            "the baseline has a diverged or missing run, and a stage cannot be judged without it: run it again, or "
            "choose a baseline that trains stably"
        )
    finite = np.logical_and(variants, made[..., 1:, :].all(-1))
    safe, counts = np.where(made, losses, 0.0), made.sum(-1)
    mean = safe.sum(-1) / np.maximum(counts, 1)
    squares = (np.where(made, safe - mean[..., None], 0.0) ** 2).sum((-1, -2))[..., None]
    df = np.maximum(counts - 1, 0).sum(-1, keepdims=True)
    if (np.sqrt(squares / df) <= ROUNDING * np.abs(safe).max((-1, -2))[..., None]).any():
        raise ValueError(
            "the runs of a stage do not spread over seeds, so there is no noise to judge against: check that the seed "
            "reaches the initialisation and the order of the data"
        )
    return mean[..., 1:] - mean[..., :1], np.sqrt(2 * squares / df / seeds), df, finite
