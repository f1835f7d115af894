"""Variant against baseline: Student-t intervals, tests, equivalence, verdict.

Differences are variant - baseline of a quantity where lower is better. Every test is two-sided, and which test it is
was declared beforehand. scipy does the tests (imported where they are made: it takes half a second) and statsmodels the
correction for several of them; many.py compares several variants at once.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from scipy import special

from gptlib.stats.checks import (
    finite,
    is_constant,
    require_alpha,
    require_margin,
    require_share,
    require_test,
    several,
)
from gptlib.stats.power import POWER, critical_value, detectable, seeds_needed

Values = Iterable[float] | Mapping[int, float]  # of several runs, or {seed: value}
Test = Literal["welch", "pooled", "paired"]
# The most rearrangements a permutation test goes through one by one; of more it draws as many, from a fixed seed.
REARRANGEMENTS = 20_000
LEVENE = 0.05  # below, variances differ more than a test that takes them as equal should bear


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
    p_permutation: float | None = None  # of the same question; None where it could not reach alpha
    correlation: float | None = None  # paired: of the two arms over their seeds
    standard_error: float | None = None  # of the difference, with its degrees of freedom
    df: float | None = None


@dataclass(frozen=True)
class Equivalence:
    """Outcome of two one-sided tests: whether the arms differ by less than the margin, either way."""

    test: str
    n_baseline: int
    n_variant: int
    difference: float  # variant - baseline
    low: float  # 1 - 2 alpha interval of the difference: inside the margin where the verdict is equivalent
    high: float
    alpha: float
    margin: float
    p_value: float
    verdict: str  # equivalent within <margin> | undecided


def mean_interval(values: Values, level: float = 0.95) -> Interval:
    """Mean of `values` with its Student-t interval. Raises ValueError for no or non-finite values."""
    sample = finite(values, "values")
    require_share(level, "level")
    n, mean = len(sample), float(sample.mean())
    if n < 2:
        return Interval(n, mean, None, None, None, level)
    std = float(sample.std(ddof=1))
    half = float(special.stdtrit(n - 1, (1 + level) / 2)) * std / math.sqrt(n)
    return Interval(n, mean, std, mean - half, mean + half, level)


def two_sample(
    baseline: Values,
    variant: Values,
    test: Test = "welch",
    alpha: float = 0.05,
    margin: float = 0.0,
    permutation: bool = True,
) -> Comparison:
    """Compare the final losses of two sets of runs; for "paired" the seeds stand in the same order in both.

    Where both are {seed: loss}, "paired" pairs by seed. `margin` is the smallest difference that matters, in the unit
    of the values, declared before the runs; 0 for none. `permutation` adds p_permutation, which decides nothing.
    Welch 1947; "pooled" is Student's test with one variance; equivalence by two one-sided tests, Schuirmann 1987, is
    decided before better and worse. One run in an arm, or no spread over seeds, is undecided without any number.
    Raises ValueError for non-finite values (the caller decides what a diverged run counts), for pairs that do not
    match, and for alpha or margin out of range.
    """
    require_alpha(alpha)
    require_margin(margin)
    a, b = both_arms(baseline, variant, test)
    result = untested(a, b, test, alpha, margin)
    if min(len(a), len(b)) < 2:
        return result
    if not _is_noisy(a, b, test):
        return replace(result, reason="the runs do not spread over seeds, so there is no noise to test against")
    result = _tested(result, a, b)
    if permutation:
        result = replace(result, p_permutation=permutation_p(a, b, test == "paired", alpha))
    return decide(result, noise(a, b, test), alpha, caveat=unequal_variances([a, b]) if test == "pooled" else "")


def equivalence(
    baseline: Values, variant: Values, margin: float, test: Test = "welch", alpha: float = 0.05
) -> Equivalence:
    """Do the arms differ by less than `margin`? Two one-sided t tests, each at `alpha` (Schuirmann 1987).

    `margin`: in the unit of the values, declared beforehand. Raises ValueError as two_sample does, and for fewer than
    two runs in an arm, no spread over seeds and a margin of 0.
    """
    require_alpha(alpha)
    require_margin(margin)
    if not margin:
        raise ValueError("margin=0: no two arms are exactly equal; give the smallest difference that matters")
    a, b = both_arms(baseline, variant, test)
    several(a, "baseline"), several(b, "variant")
    if not _is_noisy(a, b, test):
        raise ValueError("no spread over seeds, so no noise to test against; check that the seeds differ")
    c = _tested(untested(a, b, test, 2 * alpha, margin), a, b)
    assert c.difference is not None and c.low is not None and c.high is not None and c.p_equivalence is not None
    verdict = f"equivalent within {margin:g}" if c.p_equivalence < alpha else "undecided"
    found = (c.difference, c.low, c.high, alpha, margin, c.p_equivalence, verdict)
    return Equivalence(test, len(a), len(b), *found)


def rank_test(baseline: Values, variant: Values, alpha: float = 0.05, margin: float = 0.0) -> Comparison:
    """Compare two sets of runs by their ranks alone, where a diverged run is inf: worse than any finished one.

    Exact Mann-Whitney test; among equal values (all diverged runs are) by rearranging their mid-ranks. There is no
    difference and no interval to give. Raises ValueError for no runs and for nan.
    """
    from scipy import stats

    require_alpha(alpha)
    require_margin(margin)
    arms = [np.asarray(list(v.values() if isinstance(v, Mapping) else v), float) for v in (baseline, variant)]
    for name, arm in zip(("baseline", "variant"), arms, strict=True):
        if not len(arm) or np.isnan(arm).any():
            raise ValueError(f"{name}: empty or nan; give the loss of every run, inf where it diverged")
    ranks = stats.rankdata(np.concatenate(arms))
    a, b = np.split(ranks, [len(arms[0])])
    result = no_comparison("mann-whitney", len(a), len(b), alpha, margin)
    if min(len(a), len(b)) < 2:
        return result
    ties = len(set(ranks)) < len(ranks)
    method: Any = stats.PermutationMethod(n_resamples=REARRANGEMENTS, rng=np.random.default_rng(0)) if ties else "exact"
    p_value = float(stats.mannwhitneyu(b, a, method=method).pvalue)
    verdict = _call(p_value, None, float(b.mean() - a.mean()), alpha)
    least = 2 / math.comb(len(ranks), len(a))
    short = f"; {len(a)} and {len(b)} runs cannot give less than p = {least:.2g}" if least >= alpha else ""
    reason = f"by the ranks of the runs p = {p_value:.2g} (Mann-Whitney test){short}"
    return replace(result, p_value=p_value, verdict=verdict, reason=reason)


def permutation_p(baseline: Values, variant: Values, paired: bool = False, alpha: float = 0.05) -> float | None:
    """Two-sided p-value of the difference of means over the exchanges of the runs (paired: of the signs).

    Exact up to REARRANGEMENTS of them, drawn from a fixed seed above. None where even the most extreme arrangement
    cannot fall below `alpha`: at .05 with fewer than 4 runs an arm, 6 pairs. Raises ValueError as two_sample does.
    """
    from scipy import stats

    require_alpha(alpha)
    a, b = both_arms(baseline, variant, "paired" if paired else "welch")
    count = 2 ** len(a) if paired else math.comb(len(a) + len(b), len(a))
    if 2 / count >= alpha:
        return None
    test = partial(stats.permutation_test, n_resamples=REARRANGEMENTS, rng=np.random.default_rng(0), vectorized=True)
    if paired:
        return float(test((b - a,), np.mean, permutation_type="samples").pvalue)
    return float(test((b, a), lambda x, y, axis: np.mean(x, axis) - np.mean(y, axis)).pvalue)


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


def adjusted(p_values: Sequence[float], method: str) -> list[float]:
    """p-values corrected for their number, in the given order; `method` as statsmodels' multipletests names it."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(finite(p_values, "p_values"), method=method)[1]] if len(p_values) else []


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the given order: compare each with alpha to bound the chance of any false claim."""
    return adjusted(p_values, "holm")


def holm_by_name(comparisons: Mapping[str, Comparison]) -> dict[str, float]:
    """Holm-adjusted p-values of those comparisons that could be tested; a race's boundaries correct by themselves."""
    tested = {name: c.p_value for name, c in comparisons.items() if c.p_value is not None and c.test != "race"}
    return dict(zip(tested, holm(list(tested.values())), strict=True))


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


def both_arms(baseline: Values, variant: Values, test: str) -> tuple[np.ndarray, np.ndarray]:
    """Both arms as arrays, for "paired" in the same order of seeds."""
    require_test(test)
    if test == "paired" and isinstance(baseline, Mapping) and isinstance(variant, Mapping):
        if unpaired := sorted(set(baseline) ^ set(variant)):
            raise ValueError(f"test='paired' needs the same seeds: {unpaired} stand in one arm only; leave them out")
        variant = {seed: variant[seed] for seed in baseline}
    a, b = finite(baseline, "baseline"), finite(variant, "variant")
    if test == "paired" and len(a) != len(b):
        raise ValueError(f"test='paired' needs the same seeds: {len(a)} baseline, {len(b)} variant runs; use 'welch'")
    return a, b


def _is_noisy(a: np.ndarray, b: np.ndarray, test: str) -> bool:
    scale = max(float(np.abs(a).max()), float(np.abs(b).max()))
    if test == "paired":
        return not is_constant(b - a, scale)
    return not (is_constant(a, scale) and is_constant(b, scale))


def untested(a: np.ndarray, b: np.ndarray, test: str, alpha: float, margin: float) -> Comparison:
    difference, mean = float(b.mean() - a.mean()), float(a.mean())
    result = no_comparison(test, len(a), len(b), alpha, margin)
    return replace(result, difference=difference, percent=100 * difference / abs(mean) if mean else None)


def noise(a: np.ndarray, b: np.ndarray, test: str) -> float:
    """Standard deviation over seeds: paired of the differences, else of an arm, from both variances."""
    return float((b - a).std(ddof=1)) if test == "paired" else math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)


def _tested(c: Comparison, a: np.ndarray, b: np.ndarray) -> Comparison:
    """`c` with the interval, p-values and detectable effect of its test."""
    from scipy import stats

    test = stats.ttest_rel if c.test == "paired" else partial(stats.ttest_ind, equal_var=c.test == "pooled")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one arm may be all but constant; the other carries the noise
        outcome = test(b, a)
    low, high = outcome.confidence_interval(1 - c.alpha)
    df, difference = float(outcome.df), float(b.mean() - a.mean())
    critical, unpaired = critical_value(df, c.alpha), a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)
    error = float((high - low) / 2 / critical)
    paired = c.test == "paired"
    return replace(
        c,
        low=float(low),
        high=float(high),
        p_value=float(outcome.pvalue),
        p_equivalence=inside_p(difference, error, df, c.margin),
        minimum_detectable=detectable(error, df, critical),
        variance_reduction=float(unpaired / error**2) if paired else None,
        correlation=_correlation(a, b) if paired else None,
        standard_error=error,
        df=df,
    )


def inside_p(difference: float, error: float, df: float, margin: float) -> float | None:
    """p-value of two one-sided t tests that the true difference is within the margin; None without a margin."""
    return float(special.stdtr(df, (abs(difference) - margin) / error)) if margin else None


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """None where it says nothing: two pairs always lie on a line."""
    if len(a) < 3 or is_constant(a) or is_constant(b):
        return None
    return float(np.corrcoef(a, b)[0, 1])


def unequal_variances(arms: Sequence[np.ndarray]) -> str:
    """What is added to the reason of a test that takes variances as equal where Levene's test finds that they differ.

    Two runs always lie equally far from their median, so arms of two are not looked at.
    """
    from scipy import stats

    looked_at = [arm for arm in arms if len(arm) > 2]
    if len(looked_at) < 2:
        return ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nan for arms without any spread, which differ in nothing
        p_value = float(stats.levene(*looked_at).pvalue)
    if not p_value < LEVENE:
        return ""
    return f"; the variances differ (Levene p = {p_value:.2g}), which this test takes as equal: do not rely on it"


def decide(c: Comparison, std: float, level: float, kind: str = "", told: str = "", caveat: str = "") -> Comparison:
    """`c` with its verdict and the reason in one sentence, for a comparison that could be tested.

    `std`: over seeds, paired of the differences; `level`: alpha of this comparison alone, for which seeds are planned;
    of several variants `told` is how p-values were adjusted, and `kind` what the interval is.
    """
    assert c.p_value is not None and c.difference is not None and c.minimum_detectable is not None
    verdict = _call(c.p_value, c.p_equivalence, c.difference, c.alpha)
    if verdict == "equivalent":
        subject = "there is a difference, but it" if c.p_value < c.alpha else "the difference"
        reason = f"{subject} is smaller than the margin (p = {c.p_equivalence:.2g}{told and f' {told}'})"
        return replace(c, verdict=f"equivalent within {c.margin:g}", reason=reason + caveat)
    holds = "leaves out" if verdict != "undecided" else "holds"
    bounds = f"[{c.low:+.4f}, {c.high:+.4f}]"
    reason = f"the {100 * (1 - c.alpha):g} % interval {bounds} {holds} zero (p = {c.p_value:.2g})"
    if told:  # an adjusted p-value and an interval may disagree
        reason = f"p = {c.p_value:.2g} {told}; the {kind} is {bounds}"
    if verdict == "undecided":
        runs, power = min(c.n_baseline, c.n_variant), f"{100 * POWER:g} % of all cases"
        reason += f"; {runs} runs per arm find a true difference of {c.minimum_detectable:.4f} in {power}"
        reason += _needs(c, std, level)
    if c.p_permutation is not None and (c.p_permutation < c.alpha) != (c.p_value < c.alpha):
        reason += f"; a permutation test disagrees (p = {c.p_permutation:.2g})"
    return replace(c, verdict=verdict, reason=reason + caveat)


def _call(p_value: float, p_equivalence: float | None, difference: float, alpha: float) -> str:
    if p_equivalence is not None and p_equivalence < alpha:
        return "equivalent"
    if p_value < alpha:
        return "better" if difference < 0 else "worse"
    return "undecided"


def _needs(c: Comparison, std: float, level: float) -> str:
    """How many more seeds would find a difference of the declared margin, whatever was seen."""
    if not c.margin:
        return ""
    runs, most = min(c.n_baseline, c.n_variant), 1000
    needed = seeds_needed(c.margin, std, level, paired="paired" in c.test, max_n=most)
    aim = f"an arm to find a difference of the margin {c.margin:g}"
    if needed is None:
        return f"; needs more than {most} seeds {aim}"
    return f"; needs {needed - runs} more seeds {aim}" if needed > runs else ""
