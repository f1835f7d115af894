"""Ratios against Welch on logarithms, the definition of Fieller's set, and seeded simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from gptlib.stats.ratio import fieller, log_ratio

# 100 and 130 ms, two per cent of noise
ARMS = np.random.default_rng(0).normal((100, 130), (2, 2.6), (6, 2)).T


def test_log_ratio_is_welch_on_logarithms_on_random_inputs() -> None:
    rng = np.random.default_rng(1)
    for _ in range(1000):
        a, b = (rng.gamma(4, rng.gamma(2), rng.integers(2, 12)) for _ in "ab")
        alpha = rng.uniform(0.001, 0.4)
        got, want = log_ratio(a, b, alpha), stats.ttest_ind(np.log(b), np.log(a), equal_var=False)
        bounds = np.exp(want.confidence_interval(1 - alpha))
        assert (got.low, got.high) == pytest.approx(tuple(bounds), rel=1e-9)
        assert (got.ratio, got.p_value) == pytest.approx((stats.gmean(b) / stats.gmean(a), want.pvalue), rel=1e-9)


@pytest.mark.parametrize("paired", [False, True])
def test_at_fiellers_bounds_b_minus_r_times_a_is_just_significant(paired: bool) -> None:
    got = fieller(*ARMS, alpha=0.1, paired=paired)
    assert got.low is not None and got.high is not None and got.low < got.ratio < got.high
    assert got.ratio == pytest.approx(ARMS[1].mean() / ARMS[0].mean())
    for bound in (got.low, got.high):
        if paired:
            p_value = stats.ttest_1samp(ARMS[1] - bound * ARMS[0], 0).pvalue
        else:  # Welch's degrees of freedom are those at the ratio found, so almost
            p_value = stats.ttest_ind(ARMS[1], bound * ARMS[0], equal_var=False).pvalue
        assert p_value == pytest.approx(0.1, rel=1e-9 if paired else 0.01)


def test_fieller_without_bounds_gives_no_numbers() -> None:
    got = fieller([0.1, 9.0, 2.0], [5.0, 6.0, 7.0])
    assert (got.low, got.high, got.p_value) == (None, None, None)
    assert "no bounds" in got.reason and got.ratio == pytest.approx(18 / 11.1)


def test_pairs_that_drift_together_are_told_more_exactly() -> None:
    drift = np.array([1.0, 1.1, 1.2, 1.3])
    a, b = 100 * drift, 120 * drift + np.array([0.1, -0.1, 0.1, -0.1])
    tight, loose = fieller(a, b, paired=True), fieller(a, b)
    assert tight.low is not None and tight.high is not None and loose.low is not None and loose.high is not None
    assert tight.high - tight.low < (loose.high - loose.low) / 50


@pytest.mark.parametrize("ratio", [log_ratio, fieller])
def test_95_in_100_intervals_cover_the_ratio(ratio) -> None:
    found = [ratio(a, b) for a, b in np.random.default_rng(2).normal(1, 0.05, (1500, 2, 5))]
    covered = np.mean([r.low < 1 < r.high for r in found])
    assert 0.935 < covered < 0.975  # Welch is conservative at few runs


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: log_ratio([1.0, 0.0], [1.0, 2.0]), "a: 0 is not above 0"),
        (lambda: fieller([1.0, 2.0], [1.0, -2.0]), "b: -2 is not above 0"),
        (lambda: log_ratio([1.0], [1.0, 2.0]), "a: one run"),
        (lambda: fieller([1.0, math.nan], [1.0, 2.0]), "a: 1 non-finite"),
        (lambda: log_ratio([1.0, 1.0], [2.0, 2.0]), "no spread over runs"),
        (lambda: fieller([1.0, 1.0], [2.0, 2.0]), "no spread over runs"),
        (lambda: fieller([1.0, 1.3], [2.0, 2.6], paired=True), "no spread over runs"),
        (lambda: fieller([1.0, 1.1], [2.0, 2.0, 2.1], paired=True), "same seeds"),
        (lambda: fieller([1.0, 1.1], [2.0, 2.1], 0.5), "alpha=0.5"),
        (lambda: log_ratio([1.0, 1.1], [2.0, 2.1], 0.0), "alpha=0.0"),
    ],
)
def test_what_has_no_ratio_is_refused(call, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
