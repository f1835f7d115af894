"""What a design can find before it runs: detectable effect, power, seeds needed, and the noise known from before.

All of it is for two-sided t tests that find the difference in its right direction, from the noncentral t; noise is
taken as equal in both arms.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from scipy import special

from gptlib.stats.checks import require_alpha, require_positive, require_share, require_test

if TYPE_CHECKING:
    import pandas as pd

POWER = 0.8  # a minimum detectable effect is found this often


class Noise(NamedTuple):
    """Standard deviation over seeds, its degrees of freedom, and the correlation of two arms on common seeds."""

    sigma: float
    df: float
    correlation: float | None = None


def critical_value(df: float, alpha: float) -> float:
    """Student t that a two-sided test at `alpha` has to pass."""
    return float(special.stdtrit(df, 1 - alpha / 2))


def detectable(error: float, df: float, critical: float, power: float = POWER) -> float:
    """True difference whose t passes `critical` with `power`, for a difference of standard error `error`."""
    return float(special.nctdtrinc(df, 1 - power, critical)) * error


def minimum_detectable_effect(
    std: float,
    n: int,
    alpha: float = 0.05,
    power: float = POWER,
    paired: bool = False,
    correlation: float | None = None,
) -> float:
    """Smallest true difference that a two-sided t test at `alpha` finds in the right direction with `power`.

    `std`: over the seeds of one arm, taken as equal in both, with `n` runs per arm; paired: of the n differences, or
    with `correlation` (of the two arms over common seeds) again of one arm. Unpaired it is Student's pooled test; what
    Welch's gives away to be safe against unequal noise tells below five runs (power_of). Raises ValueError for fewer
    than two runs.
    """
    require_alpha(alpha)
    require_share(power, "power")
    error, df = _design(std, n, paired, correlation)
    return detectable(error, df, critical_value(df, alpha), power)


def power_of(
    effect: float,
    std: float,
    n: int,
    alpha: float = 0.05,
    test: Literal["welch", "pooled", "paired"] = "welch",
    correlation: float | None = None,
) -> float:
    """Chance that the test finds a true difference of `effect` in its right direction; `std` as above.

    Exact, Welch included: with equal noise the t of Welch is Student's, and independent of the ratio of the two
    variances, which sets the critical value. Raises ValueError for fewer than two runs, effect or std not above 0.
    """
    require_alpha(alpha)
    require_positive(effect, "effect")
    require_positive(std, "std")
    require_test(test)
    error, df = _design(std, n, test == "paired", correlation)
    if test != "welch":
        return float(1 - special.nctdtr(df, effect / error, critical_value(df, alpha)))
    # The share of the baseline's in the sum of both variances is beta distributed: Gauss-Jacobi quadrature.
    share, weight = special.roots_jacobi(32, (n - 3) / 2, (n - 3) / 2)
    degrees = (n - 1) / ((1 + share**2) / 2)
    passed = 1 - special.nctdtr(df, effect / error, special.stdtrit(degrees, 1 - alpha / 2))
    return float(weight @ passed / weight.sum())


def seeds_needed(
    effect: float,
    sigma: float,
    alpha: float = 0.05,
    power: float = POWER,
    paired: bool = False,
    correlation: float | None = None,
    max_n: int = 1000,
) -> int | None:
    """Fewest runs an arm with which a true difference of `effect` is found with `power`; None: more than `max_n`.

    `sigma` as `std` above; unpaired is Welch's test. Plan with the declared margin, not with an effect that was seen.
    Raises ValueError as power_of does.
    """
    require_share(power, "power")
    test: Literal["paired", "welch"] = "paired" if paired else "welch"
    designs = range(2, max_n + 1)
    found = bisect_left(designs, power, key=lambda n: power_of(effect, sigma, n, alpha, test, correlation))
    return designs[found] if found < len(designs) else None


def power_curve(
    std: float,
    ns: Sequence[int],
    effects: Sequence[float],
    alpha: float = 0.05,
    test: Literal["welch", "pooled", "paired"] = "welch",
    correlation: float | None = None,
) -> "pd.DataFrame":
    """power_of for every number of runs an arm (rows `n`) and every true difference (columns `effect`)."""
    import pandas as pd

    rows = [[power_of(effect, std, n, alpha, test, correlation) for effect in effects] for n in ns]
    return pd.DataFrame(rows, pd.Index(ns, name="n"), pd.Index(effects, name="effect"))


def moderated_std(std: float, df: float, prior_std: float, prior_df: float) -> Noise:
    """`std` of few seeds drawn towards what was known before, each weighted by its degrees of freedom.

    Smyth 2004. For screening and planning only: where the change itself alters the noise, claims from it are false too
    often. Raises ValueError for what is not above 0; `df` may be 0, which leaves what was known.
    """
    for name, value in (("prior_std", prior_std), ("prior_df", prior_df)):
        require_positive(value, name)
    if not (math.isfinite(std) and std >= 0 and math.isfinite(df) and df >= 0):
        raise ValueError(f"std={std}, df={df}: give numbers of 0 or more")
    return Noise(math.sqrt((df * std**2 + prior_df * prior_std**2) / (df + prior_df)), df + prior_df)


def pooled_noise(rows: Iterable[Mapping[str, Any]]) -> Noise:
    """One noise from several studies of one kind: rows with `sigma`, `df` and `correlation` (which may be None).

    Variances, and the correlations that are there, are averaged with weights df. Raises ValueError for no rows, for
    sigma or df not above 0 and for a correlation outside [-1, 1].
    """
    rows = list(rows)
    if not rows:
        raise ValueError("rows: empty; no noise was measured yet, so run a few seeds of the baseline first")
    for row in rows:
        require_positive(row["sigma"], "sigma")
        require_positive(row["df"], "df")
        _require_correlation(row.get("correlation"))
    known = [row for row in rows if row.get("correlation") is not None]
    variance = np.average([row["sigma"] ** 2 for row in rows], weights=[row["df"] for row in rows])
    pairs = [row["correlation"] for row in known], [row["df"] for row in known]
    correlation = float(np.average(pairs[0], weights=pairs[1])) if known else None
    return Noise(math.sqrt(variance), float(sum(row["df"] for row in rows)), correlation)


def _design(std: float, n: int, paired: bool, correlation: float | None) -> tuple[float, float]:
    """Standard error of the difference of two arms of `n` runs, and its degrees of freedom."""
    if n < 2:
        raise ValueError(f"n={n}: a test needs at least 2 runs per arm")
    _require_correlation(correlation)
    if not paired:
        if correlation is not None:
            raise ValueError("correlation: it only counts for arms paired by seed; leave it out or say paired")
        return std * math.sqrt(2 / n), 2 * n - 2
    share = 1.0 if correlation is None else math.sqrt(2 * (1 - correlation))
    return std * share / math.sqrt(n), n - 1


def _require_correlation(correlation: float | None) -> None:
    if correlation is not None and not -1 <= correlation <= 1:
        raise ValueError(f"correlation={correlation}: give a number between -1 and 1")
