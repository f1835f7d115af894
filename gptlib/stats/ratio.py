"""How many times as long, as many or as large: intervals of the ratio of two means, b / a, of positive measurements.

A percentile bootstrap of the ratio covers far too little at few runs; these two do not. Times support a claim only from
interleaved trials with the machine to themselves.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from gptlib.stats.checks import is_constant, require_alpha, several
from gptlib.stats.compare import Values, both_arms, two_sample

NO_NOISE = "a, b: no spread over runs, so no noise to test against; time each run on its own"


@dataclass(frozen=True)
class Ratio:
    """b / a with its 1 - alpha interval; None where there is none, and `reason` says why."""

    method: str
    n_a: int
    n_b: int
    ratio: float
    low: float | None
    high: float | None
    alpha: float
    p_value: float | None  # two-sided, of a ratio of 1
    reason: str


def log_ratio(a: Values, b: Values, alpha: float = 0.05) -> Ratio:
    """Ratio of the geometric means, by Welch's test on the logarithms.

    For measurements that vary by a few per cent it is the ratio of the means, to half of the difference of the two
    squared relative deviations. Raises ValueError for values not above 0, one run in an arm and no spread in both.
    """
    first, second = _positive(a, "a"), _positive(b, "b")
    found = two_sample(np.log(first), np.log(second), "welch", alpha, permutation=False)
    if found.low is None or found.high is None or found.difference is None:
        raise ValueError(NO_NOISE)
    bounds = math.exp(found.difference), math.exp(found.low), math.exp(found.high)
    return Ratio("log ratio", len(first), len(second), *bounds, alpha, found.p_value, _reason(*bounds, alpha))


def fieller(a: Values, b: Values, alpha: float = 0.05, paired: bool = False) -> Ratio:
    """Ratio of the arithmetic means: every ratio r for which b - r a could have mean 0 (Fieller 1954).

    Unpaired with Welch and Satterthwaite's degrees of freedom at the ratio found. Where a's mean is not clearly above 0
    the interval is not bounded, and none is given. `paired`: the trials stand in the same order in both. Raises
    ValueError as log_ratio does, and for pairs that do not match.
    """
    require_alpha(alpha)
    first, second = both_arms(_positive(a, "a"), _positive(b, "b"), "paired" if paired else "welch")
    n_a, n_b, mean_a, mean_b = len(first), len(second), float(first.mean()), float(second.mean())
    ratio, var_a, var_b = mean_b / mean_a, float(first.var(ddof=1)) / n_a, float(second.var(ddof=1)) / n_b
    if is_constant(second - ratio * first, mean_b) if paired else is_constant(first) and is_constant(second):
        raise ValueError(NO_NOISE)
    covariance = float(np.cov(first, second)[0, 1]) / n_a if paired else 0.0
    df = _satterthwaite(ratio**2 * var_a, n_a, var_b, n_b) if not paired else n_a - 1
    t_squared = float(special.stdtrit(df, 1 - alpha / 2)) ** 2
    # The bounds solve (mean_b - r mean_a)^2 = t^2 (var_b - 2 r covariance + r^2 var_a).
    square, linear = mean_a**2 - t_squared * var_a, mean_a * mean_b - t_squared * covariance
    root = math.sqrt(max(0.0, linear**2 - square * (mean_b**2 - t_squared * var_b)))
    found = "Fieller, paired" if paired else "Fieller", n_a, n_b, ratio
    if square <= 0:
        reason = "the mean of a is not clearly above zero, so the ratio has no bounds; measure more runs"
        return Ratio(*found, None, None, alpha, None, reason)
    low, high = (linear - root) / square, (linear + root) / square
    p_value = two_sample(first, second, "paired" if paired else "welch", alpha, permutation=False).p_value
    return Ratio(*found, low, high, alpha, p_value, _reason(ratio, low, high, alpha))


def _positive(values: Values, name: str) -> np.ndarray:
    sample = several(values, name)
    if (sample <= 0).any():
        raise ValueError(f"{name}: {sample.min():g} is not above 0; a ratio is for times, sizes and counts")
    return sample


def _satterthwaite(var_a: float, n_a: int, var_b: float, n_b: int) -> float:
    return (var_a + var_b) ** 2 / (var_a**2 / (n_a - 1) + var_b**2 / (n_b - 1))


def _reason(ratio: float, low: float, high: float, alpha: float) -> str:
    return f"{ratio:.4g} times, {100 * (1 - alpha):g} % interval [{low:.4g}, {high:.4g}]"
