"""Variant against baseline: Student-t intervals, tests, equivalence, minimum detectable effect, verdict.

Differences are variant - baseline of a quantity where lower is better. Every test is two-sided. scipy does the tests
(imported where they are made: it takes half a second) and statsmodels the correction for several of them.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from scipy import special

POWER = 0.8  # a minimum detectable effect is found this often
# A spread below this share of the values themselves is rounding, not noise between seeds.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Interval:
    """Student-t interval of a mean; with one value there is no spread, so std, low and high are None."""

    n: int
    mean: float
    std: float | None
    low: float | None
    high: float | None
    level: float


@dataclass(frozen=True)
class Comparison:
    """Outcome of one test; what cannot be computed (too few runs, no spread, no margin) is None."""

    test: str
    n_baseline: int
    n_variant: int
    difference: float | None  # variant - baseline, lower is better
    percent: float | None  # of the baseline's mean
    low: float | None  # 1 - alpha interval of the difference
    high: float | None
    alpha: float
    p_value: float | None  # two-sided, of no difference
    margin: float  # declared beforehand: the smallest difference that matters; 0: none was declared
    p_equivalence: float | None  # two one-sided tests against the margin
    minimum_detectable: float | None  # difference found with 80 % power at alpha
    variance_reduction: float | None  # paired: unpaired / paired variance of the difference; below 1 pairing hurt
    verdict: str  # better | worse | equivalent within <margin> | undecided
    reason: str


def mean_interval(values: Iterable[float], level: float = 0.95) -> Interval:
    """Mean of `values` with its Student-t interval. Raises ValueError for no or non-finite values."""
    sample = _finite(values, "values")
    _require_share(level, "level")
    n, mean = len(sample), float(sample.mean())
    if n < 2:
        return Interval(n, mean, None, None, None, level)
    std = float(sample.std(ddof=1))
    half = float(special.stdtrit(n - 1, (1 + level) / 2)) * std / math.sqrt(n)
    return Interval(n, mean, std, mean - half, mean + half, level)


def two_sample(
    baseline: Iterable[float],
    variant: Iterable[float],
    test: Literal["welch", "paired"] = "welch",
    alpha: float = 0.05,
    margin: float = 0.0,
) -> Comparison:
    """Compare the final losses of two sets of runs; for "paired" the seeds stand in the same order in both.

    `margin` is the smallest difference that matters, in the unit of the values, declared before the runs; 0 for none.
    Welch 1947; equivalence by two one-sided tests, Schuirmann 1987. Equivalence is decided before better and worse.
    Raises ValueError for non-finite values (the caller decides what a diverged run counts), for pairs that do not
    match, and for alpha or margin out of range.
    """
    a, b = _finite(baseline, "baseline"), _finite(variant, "variant")
    _require_share(alpha, "alpha")
    if not (math.isfinite(margin) and margin >= 0):
        raise ValueError(f"margin={margin}: give the smallest difference that matters, 0 or more")
    if test not in ("welch", "paired"):
        raise ValueError(f"test={test!r}: use 'welch' or 'paired'")
    if test == "paired" and len(a) != len(b):
        raise ValueError(f"test='paired' needs the same seeds: {len(a)} baseline, {len(b)} variant runs; use 'welch'")
    result = _undecided(a, b, test, alpha, margin)
    if min(len(a), len(b)) < 2:
        return result
    spread = (b - a).std() if test == "paired" else max(a.std(), b.std())
    if spread <= ROUNDING * max(np.abs(a).max(), np.abs(b).max()):
        return replace(result, reason="the runs do not spread over seeds, so there is no noise to test against")
    result = _tested(result, a, b)
    verdict, reason = _decide(result)
    return replace(result, verdict=verdict, reason=reason)


def contrast(cells: Sequence[Mapping[int, float]], alpha: float = 0.05, margin: float = 0.0) -> Comparison:
    """Interaction of two changes in a 2x2 design, paired by seed: (both - b) - (a - baseline).

    `cells`: {seed: loss} of baseline, a, b, both. Zero where their effects add up; `better` where both together are
    better than the sum of each alone. Raises ValueError as two_sample does.
    """
    baseline, a, b, both = cells
    seeds = [seed for seed in baseline if all(seed in cell for cell in (a, b, both))]
    if not seeds:
        return no_comparison("paired", 0, 0, alpha, margin)
    alone, beside = [a[s] - baseline[s] for s in seeds], [both[s] - b[s] for s in seeds]
    return replace(two_sample(alone, beside, "paired", alpha, margin), percent=None)


def minimum_detectable_effect(
    std: float, n: int, alpha: float = 0.05, power: float = POWER, paired: bool = False
) -> float:
    """Smallest true difference that a two-sided t test at `alpha` finds in the right direction with `power`.

    `std`: over the seeds of one arm, taken as equal in both, with `n` runs per arm; paired: of the n differences.
    Raises ValueError for fewer than two runs.
    """
    if n < 2:
        raise ValueError(f"n={n}: a test needs at least 2 runs per arm")
    _require_share(alpha, "alpha")
    _require_share(power, "power")
    error, df = (std / math.sqrt(n), n - 1) if paired else (std * math.sqrt(2 / n), 2 * n - 2)
    return _detectable(error, df, alpha, power)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the given order: compare each with alpha to bound the chance of any false claim."""
    from statsmodels.stats.multitest import multipletests

    if not len(p_values):
        return []
    return [float(p) for p in multipletests(_finite(p_values, "p_values"), method="holm")[1]]


def _finite(values: Iterable[float], name: str) -> np.ndarray:
    sample = np.asarray(list(values), dtype=np.float64)
    if not len(sample):
        raise ValueError(f"{name}: empty; at least one finished run is needed")
    if not np.isfinite(sample).all():
        raise ValueError(f"{name}: {(~np.isfinite(sample)).sum()} non-finite; decide first what a diverged run counts")
    return sample


def _require_share(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name}={value}: give a number between 0 and 1")


def _undecided(a: np.ndarray, b: np.ndarray, test: str, alpha: float, margin: float) -> Comparison:
    difference, mean = float(b.mean() - a.mean()), float(a.mean())
    result = no_comparison(test, len(a), len(b), alpha, margin)
    return replace(result, difference=difference, percent=100 * difference / abs(mean) if mean else None)


def no_comparison(test: str, n_baseline: int, n_variant: int, alpha: float, margin: float) -> Comparison:
    """The undecided outcome where an arm has too few finished runs for any test."""
    return Comparison(
        test=test,
        n_baseline=n_baseline,
        n_variant=n_variant,
        difference=None,
        percent=None,
        low=None,
        high=None,
        alpha=alpha,
        p_value=None,
        margin=margin,
        p_equivalence=None,
        minimum_detectable=None,
        variance_reduction=None,
        verdict="undecided",
        reason=f"a test needs at least 2 runs per arm, there are {n_baseline} and {n_variant}",
    )


def _tested(c: Comparison, a: np.ndarray, b: np.ndarray) -> Comparison:
    """`c` with the interval, p-values and detectable effect of its test."""
    from scipy import stats

    test = stats.ttest_rel if c.test == "paired" else partial(stats.ttest_ind, equal_var=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one arm may be all but constant; the other carries the noise
        outcome = test(b, a)
        # Two one-sided tests: the difference is below the margin, and above minus the margin.
        sides = test(b, a + c.margin, alternative="less"), test(b, a - c.margin, alternative="greater")
    low, high = outcome.confidence_interval(1 - c.alpha)
    error = abs((high - low) / 2 / special.stdtrit(outcome.df, 1 - c.alpha / 2))
    unpaired = a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)
    return replace(
        c,
        low=float(low),
        high=float(high),
        p_value=float(outcome.pvalue),
        p_equivalence=float(max(side.pvalue for side in sides)) if c.margin else None,
        minimum_detectable=_detectable(error, float(outcome.df), c.alpha),
        variance_reduction=float(unpaired / error**2) if c.test == "paired" else None,
    )


def _detectable(error: float, df: float, alpha: float, power: float = POWER) -> float:
    """The noncentral t gives the shift, in standard errors, whose chance to pass the critical value is `power`."""
    return float(special.nctdtrinc(df, 1 - power, special.stdtrit(df, 1 - alpha / 2))) * error


def _decide(c: Comparison) -> tuple[str, str]:
    """Verdict and its reason, in one sentence, for a comparison that could be tested."""
    interval = f"the {100 * (1 - c.alpha):g} % interval [{c.low:+.4f}, {c.high:+.4f}]"
    if c.p_equivalence is not None and c.p_equivalence < c.alpha:
        real = c.p_value is not None and c.p_value < c.alpha
        subject = "there is a difference, but it" if real else "the difference"
        return f"equivalent within {c.margin:g}", f"{subject} is smaller than the margin (p = {c.p_equivalence:.2g})"
    if c.p_value is not None and c.p_value < c.alpha:
        return "better" if (c.difference or 0) < 0 else "worse", f"{interval} leaves out zero (p = {c.p_value:.2g})"
    seeds = min(c.n_baseline, c.n_variant)
    return "undecided", (
        f"{interval} holds zero (p = {c.p_value:.2g}); "
        f"{seeds} runs per arm find a true difference of {c.minimum_detectable:.4f} in {100 * POWER:g} % of all cases"
    )
