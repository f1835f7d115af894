"""Several variants against one baseline: one family of questions, whose p-values and intervals bear its size."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from gptlib.stats.checks import require_alpha, require_margin, require_spread, several
from gptlib.stats.compare import (
    Comparison,
    Test,
    Values,
    adjusted,
    both_arms,
    decide,
    inside_p,
    noise,
    two_sample,
    unequal_variances,
    untested,
)
from gptlib.stats.power import detectable


def many_to_one(
    baseline: Values,
    variants: Mapping[str, Values],
    test: Literal["dunnett", "holm", "bh"] = "dunnett",
    alpha: float = 0.05,
    margin: float = 0.0,
    paired: bool = False,
) -> dict[str, Comparison]:
    """Compare several variants with one baseline; p_value and p_equivalence are adjusted for their number.

    dunnett: all claims of a difference, and all intervals, hold together with 1 - alpha; takes variances as equal, and
    the reason says where Levene's test finds them different (Dunnett 1955; p-values to about 1e-4, widths to 1 in 500).
    holm: the same of Welch's or, `paired`, paired p-values, with Bonferroni's intervals (Holm has none), which may hold
    zero where Holm finds a difference. bh: the share of false claims among all claims is alpha, and each interval is
    one of its own; exploratory (Benjamini, Hochberg 1995). Claims of equivalence are a family of their own, adjusted by
    Holm, for bh by bh. The detectable difference is that of the interval's level.
    Raises ValueError as two_sample does, and for an arm of one run or no spread over seeds.
    """
    require_alpha(alpha)
    require_margin(margin)
    if not variants:
        raise ValueError("variants: empty; give at least one beside the baseline")
    if test == "dunnett":
        if paired:
            raise ValueError("test='dunnett' takes independent arms; for pairs of seeds use test='holm'")
        return _dunnett(baseline, variants, alpha, margin)
    if test not in ("holm", "bh"):
        raise ValueError(f"test={test!r}: use 'dunnett', 'holm' or 'bh'")
    return _one_by_one(baseline, variants, test, "paired" if paired else "welch", alpha, margin)


def _dunnett(baseline: Values, variants: Mapping[str, Values], alpha: float, margin: float) -> dict[str, Comparison]:
    from scipy import stats

    control = several(baseline, "baseline")
    arms = {name: several(values, name) for name, values in variants.items()}
    all_arms = [control, *arms.values()]
    within = np.concatenate([arm - arm.mean() for arm in all_arms])
    require_spread(within, "all arms", max(float(np.abs(arm).max()) for arm in all_arms))
    # Its integrals are sampled: the same seed gives the same digits.
    outcome = stats.dunnett(*arms.values(), control=control, rng=np.random.default_rng(0))
    bounds = outcome.confidence_interval(1 - alpha)
    df = len(within) - len(all_arms)
    std = math.sqrt(float(within @ within) / df)
    found = {}
    for (name, arm), low, high, p_value in zip(arms.items(), bounds.low, bounds.high, outcome.pvalue, strict=True):
        error = std * math.sqrt(1 / len(control) + 1 / len(arm))
        found[name] = replace(
            untested(control, arm, "dunnett", alpha, margin),
            low=float(low),
            high=float(high),
            p_value=min(max(float(p_value), 0.0), 1.0),
            p_equivalence=inside_p(float(arm.mean() - control.mean()), error, df, margin),
            minimum_detectable=detectable(error, df, float(high - low) / 2 / error),
            standard_error=error,
            df=float(df),
        )
    found = _equivalence_adjusted(found, "holm")
    kind, told = f"simultaneous {100 * (1 - alpha):g} % interval", f"by Dunnett's test of {len(arms)} variants"
    caveat, level = unequal_variances(all_arms), alpha / len(arms)
    return {name: decide(c, std, level, kind, told, caveat) for name, c in found.items()}


def _one_by_one(
    baseline: Values, variants: Mapping[str, Values], correction: str, test: Test, alpha: float, margin: float
) -> dict[str, Comparison]:
    """Tests of each variant on its own, their p-values corrected."""
    count, strict = len(variants), correction == "holm"
    level, method = (alpha / count, "holm") if strict else (alpha, "fdr_bh")
    alone = {name: two_sample(baseline, v, test, level, margin, permutation=False) for name, v in variants.items()}
    for name, c in alone.items():
        if c.p_value is None:
            raise ValueError(f"{name}: {c.reason}; leave it out or run more seeds")
    p_values = adjusted([c.p_value for c in alone.values() if c.p_value is not None], method)
    found = {
        name: replace(c, test=f"{correction} ({test})", alpha=alpha, p_value=p_value)
        for (name, c), p_value in zip(alone.items(), p_values, strict=True)
    }
    found = _equivalence_adjusted(found, method)
    percent = f"{100 * (1 - alpha):g} % interval"
    kind = f"simultaneous {percent} (Bonferroni)" if strict else f"{percent} of this variant alone"
    told = f"adjusted by {'Holm' if strict else 'Benjamini and Hochberg'} for {count} variants"
    told += "" if strict else " (exploratory)"
    stds = {name: noise(*both_arms(baseline, values, test), test) for name, values in variants.items()}
    return {name: decide(c, stds[name], level, kind, told) for name, c in found.items()}


def _equivalence_adjusted(found: Mapping[str, Comparison], method: str) -> dict[str, Comparison]:
    p_values = adjusted([c.p_equivalence for c in found.values() if c.p_equivalence is not None], method)
    new: list[float | None] = [*p_values] or [None] * len(found)
    return {name: replace(c, p_equivalence=p) for (name, c), p in zip(found.items(), new, strict=True)}
