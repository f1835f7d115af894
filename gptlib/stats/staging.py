"""Screen - check - race: which variants go on to the next stage, when to stop, what may be claimed.

    screen   a complete short schedule, few seeds, every variant: keep the best, but none that is clearly worse
    check    a longer one, fresh seeds: promote what beats the baseline and is within one standard error of the best
    race     full length, fresh seeds, looks at growing numbers of them: one-sided tests, stop for efficacy or futility

Only the race makes claims, on seeds that no earlier stage has seen, so whatever the first two do, a study without any
true effect makes a false claim with probability at most alpha. Its boundaries spend alpha in proportion to the seeds
(Lan and DeMets 1983) and are calibrated for t statistics of few seeds by simulation. The same functions decide in a
real study and, on arrays with a leading axis of studies, in the simulations of planner.py.

Losses are arrays `(..., arms, seeds)`, lower is better, arm 0 the baseline; masks `(..., variants)` leave the baseline
out. A variant with a non-finite loss has diverged and never goes on.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import special

NULL_DRAWS, CHUNK = 200_000, 10_000


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
    promote: int = 2  # variants that may race
    futility: float = 0.35  # a variant whose p is larger at a look leaves the race; 1: none does
    pivots: int = 0  # times that the next variant of the screen is checked where the check promotes none
    reuse_baseline: bool = False  # its runs were paid by an earlier study

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 0.5:
            raise ValueError(f"alpha={self.alpha}: give the chance of a false claim, between 0 and 0.5")
        if not self.looks or self.looks[0] < 2 or list(self.looks) != sorted(set(self.looks)):
            raise ValueError(f"looks={list(self.looks)}: give growing numbers of seeds, the first at least 2")
        for name in ("screen_seeds", "check_seeds"):
            if getattr(self, name) == 1:
                raise ValueError(f"{name}=1: one seed shows no noise; give at least 2, or 0 to leave the stage out")
        if not 0 < self.keep <= 1 or min(self.keep_at_least, self.promote) < 1 or self.pivots < 0:
            raise ValueError("keep is a share up to 1; keep_at_least and promote are 1 or more, pivots 0 or more")
        if not 0 < self.futility <= 1:
            raise ValueError(f"futility={self.futility}: give the p-value above which a variant leaves, up to 1")

    def kept(self, variants: int) -> int:
        """How many of `variants` the screen keeps at most."""
        if not self.screen_seeds:
            return variants
        return min(variants, max(self.keep_at_least, math.ceil(self.keep * variants)))

    def promoted(self, variants: int) -> int:
        """How many race at most."""
        return min(self.promote, self.kept(variants))

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
    difference, error, finite = _differences(losses, np.isfinite(losses[..., 1:, :]).all(-1))
    excess = np.where(finite, difference / error, np.inf)
    rank = np.argsort(np.argsort(excess, -1), -1)
    kept = (rank < rule.kept(finite.shape[-1])) & (excess <= rule.slack) & finite
    return Screened(kept, rank, excess)


def check(losses: np.ndarray, candidates: np.ndarray, rule: Rule) -> np.ndarray:
    """`candidates` that beat the baseline and lie within one standard error of the best: `(..., variants)` bool."""
    difference, error, finite = _differences(losses, candidates)
    excess = np.where(finite, difference / error, np.inf)
    best = excess.min(-1, keepdims=True)
    rank = np.argsort(np.argsort(excess, -1), -1)
    promoted: np.ndarray = finite & (excess < 0) & (excess <= best + 1) & (rank < rule.promote)
    return promoted


def look(losses: np.ndarray, racing: np.ndarray, boundary: np.ndarray | float, rule: Rule) -> Look:
    """One look at the race: tests with the spread pooled over the baseline and the variants that are still racing.

    `boundary`: that of this look and of the number of variants that entered, see boundaries(); `(...)` or one number.
    """
    difference, error, finite = _differences(losses, racing)
    df = (finite.sum(-1, keepdims=True) + 1) * (losses.shape[-1] - 1)
    p = np.where(finite, special.stdtr(df, np.where(finite, difference, 0) / error), 1.0)
    claimed = finite & (p <= np.asarray(boundary)[..., None])
    ended = claimed.any(-1, keepdims=True)
    return Look(p, claimed, finite & (p <= rule.futility) & ~ended)


@cache
def boundaries(alpha: float, looks: tuple[int, ...], variants: int) -> tuple[float, ...]:
    """The p-value at each look that ends a race of `variants`, so that all looks together claim falsely with `alpha`.

    Calibrated on the smallest p of races without effects (so jointly over the variants, as Dunnett 1955), futility not
    counted on. Standard error of what is spent: sqrt(alpha / 200,000).
    """
    rng = np.random.default_rng([2026, variants, *looks])
    everyone = np.ones((CHUNK, variants), bool)
    smallest = np.empty((NULL_DRAWS, len(looks)))
    for start in range(0, NULL_DRAWS, CHUNK):
        losses = rng.standard_normal((CHUNK, variants + 1, looks[-1]))
        for index, seeds in enumerate(looks):
            difference, error, _ = _differences(losses[..., :seeds], everyone)
            df = (variants + 1) * (seeds - 1)
            smallest[start : start + CHUNK, index] = special.stdtr(df, (difference / error).min(-1))
    going, found = np.ones(NULL_DRAWS, bool), []
    for index, seeds in enumerate(looks):
        spend = round(alpha * seeds / looks[-1] * NULL_DRAWS) - (NULL_DRAWS - going.sum())
        candidates = np.sort(smallest[going, index])
        found.append(float(candidates[max(0, spend - 1)]))
        going &= smallest[:, index] > found[-1]
    return tuple(found)


def _differences(losses: np.ndarray, variants: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variant - baseline, its standard error with the pooled spread `(..., 1)`, and which variants have finite losses.

    The spread is pooled over the baseline and those of `variants` that did not diverge. Raises ValueError where the
    baseline diverged or no run differs from another.
    """
    if not np.isfinite(losses[..., 0, :]).all():
        raise ValueError("the baseline has a diverged or missing run: a stage cannot be judged without it")
    finite = variants & np.isfinite(losses[..., 1:, :]).all(-1)
    arms = np.concatenate([np.ones_like(finite[..., :1]), finite], -1)
    safe = np.where(arms[..., None], losses, 0.0)
    variance = (safe.var(-1, ddof=1) * arms).sum(-1, keepdims=True) / arms.sum(-1, keepdims=True)
    if not (variance > 0).all():
        raise ValueError("the runs of a stage do not spread over seeds, so there is no noise to judge against")
    mean = safe.mean(-1)
    return mean[..., 1:] - mean[..., :1], np.sqrt(2 * variance / losses.shape[-1]), finite
