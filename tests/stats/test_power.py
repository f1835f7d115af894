"""Planning against statsmodels, known tables and seeded simulation."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestIndPower, TTestPower

from gptlib.stats.power import (
    Noise,
    minimum_detectable_effect,
    moderated_std,
    pooled_noise,
    power_curve,
    power_of,
    seeds_needed,
)

# Known values for one-sided pooled t tests at .05 and .01, 80 % power, in units of the standard deviation.
TABLE = {2: (3.98, 8.96), 3: (2.48, 3.98), 4: (2.00, 2.92), 5: (1.72, 2.43), 7: (1.41, 1.91), 10: (1.16, 1.53)}


@pytest.mark.parametrize("n", TABLE)
def test_detectable_effect_matches_the_table(n: int) -> None:
    # our alpha is two-sided, so a one-sided .05 is asked for as .10
    got = [minimum_detectable_effect(1.0, n, alpha=2 * one_sided) for one_sided in (0.05, 0.01)]
    assert got == pytest.approx(TABLE[n], abs=0.005)


@pytest.mark.parametrize("n", [3, 5, 10, 30])
@pytest.mark.parametrize("power", [0.8, 0.9])
def test_detectable_effect_agrees_with_statsmodels(n: int, power: float) -> None:
    want = TTestIndPower().solve_power(nobs1=n, alpha=0.05, power=power)
    assert minimum_detectable_effect(0.01, n, power=power) == pytest.approx(0.01 * want, rel=1e-5)
    want = TTestPower().solve_power(nobs=n, alpha=0.05, power=power)
    assert minimum_detectable_effect(0.01, n, power=power, paired=True) == pytest.approx(0.01 * want, rel=1e-5)


@pytest.mark.parametrize(("n", "paired"), [(2, False), (4, False), (4, True), (8, True)])
def test_detectable_effect_is_found_8_times_in_10(n: int, paired: bool) -> None:
    effect = minimum_detectable_effect(1.0, n, paired=paired)
    noise = np.random.default_rng(n).normal(size=(2, 20_000, n))
    if paired:  # the differences have the given standard deviation
        found = stats.ttest_1samp(noise[0] + effect, 0, axis=1).pvalue < 0.05
    else:
        found = stats.ttest_ind(noise[0] + effect, noise[1], axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / 20_000))


@pytest.mark.parametrize("change", [{"n": 1}, {"alpha": 0.0}, {"power": 1.0}])
def test_detectable_effect_refuses_impossible_designs(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        minimum_detectable_effect(**({"std": 1.0, "n": 3} | change))  # type: ignore[arg-type]


# --- power and seeds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5, 10, 50])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_power_agrees_with_statsmodels(n: int, alpha: float) -> None:
    for effect in (0.5, 2.0, 4.0):
        want = TTestIndPower().power(effect, n, alpha, alternative="larger")  # one-sided: the same tail at alpha / 2
        assert power_of(effect, 1.0, n, 2 * alpha, "pooled") == pytest.approx(want, rel=1e-8)
        want = TTestPower().power(effect, n, alpha, alternative="larger")
        assert power_of(effect, 1.0, n, 2 * alpha, "paired") == pytest.approx(want, rel=1e-8)


@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_power_of_welch_is_what_it_finds(n: int) -> None:
    noise = np.random.default_rng(n).normal(size=(2, 40_000, n))
    for effect in (1.0, 3.0, 6.0):
        outcome = stats.ttest_ind(noise[0] + effect, noise[1], axis=1, equal_var=False)
        found = float(((outcome.pvalue < 0.05) & (outcome.statistic > 0)).mean())
        assert power_of(effect, 1.0, n) == pytest.approx(found, abs=4 * math.sqrt(0.25 / 40_000))
    assert power_of(3.0, 1.0, n) < power_of(3.0, 1.0, n, test="pooled")


# Published with the simulation: one-sided .05 and .01, effects of 1, 2 and 3 standard deviations.
WELCH = {3: ((0.22, 0.58, 0.87), (0.05, 0.17, 0.39)), 5: ((0.41, 0.88, 0.99), (0.13, 0.57, 0.92))}


@pytest.mark.parametrize("n", WELCH)
def test_power_matches_the_table(n: int) -> None:
    got = [[power_of(effect, 1.0, n, 2 * one_sided) for effect in (1, 2, 3)] for one_sided in (0.05, 0.01)]
    assert np.array(got) == pytest.approx(np.array(WELCH[n]), abs=0.011)


def test_seeds_needed_are_the_fewest_that_have_the_power() -> None:
    for effect in (0.5, 1.0, 3.0):
        n = seeds_needed(effect, 1.0)
        assert n is not None and power_of(effect, 1.0, n) >= 0.8
        assert n == 2 or power_of(effect, 1.0, n - 1) < 0.8
    assert seeds_needed(100.0, 1.0) == 2
    assert seeds_needed(0.01, 1.0, max_n=100) is None


def test_correlation_of_common_seeds_saves_runs() -> None:
    # with rho = .5 the differences spread as one arm does
    assert power_of(1.0, 1.0, 6, test="paired", correlation=0.5) == power_of(1.0, 1.0, 6, test="paired")
    needed = [seeds_needed(1.0, 1.0, paired=True, correlation=rho) for rho in (0.0, 0.5, 0.8)]
    assert needed == [18, 10, 6]
    want = minimum_detectable_effect(math.sqrt(0.4), 6, paired=True)
    assert minimum_detectable_effect(1.0, 6, paired=True, correlation=0.8) == pytest.approx(want)


def test_a_power_curve_has_a_row_for_each_design() -> None:
    curve = power_curve(0.01, [3, 5], [0.01, 0.02, 0.03])
    assert curve.shape == (2, 3) and (curve.index.name, curve.columns.name) == ("n", "effect")
    assert curve.loc[5, 0.02] == power_of(0.02, 0.01, 5)


# --- noise known from before ----------------------------------------------------------------------------------------


def test_a_moderated_std_weights_by_degrees_of_freedom() -> None:
    got = moderated_std(0.002, 2, 0.001, 6)
    assert got == Noise(pytest.approx(math.sqrt((2 * 4 + 6 * 1) / 8) * 1e-3), 8, None)
    assert moderated_std(0.0, 0, 0.001, 6) == Noise(pytest.approx(0.001), 6)


def test_noise_of_several_studies_is_pooled_as_in_one_analysis_of_variance() -> None:
    groups = [np.random.default_rng(i).normal(i, 1.0, n) for i, n in enumerate((3, 5, 9))]
    rows = [
        {"sigma": g.std(ddof=1), "df": len(g) - 1, "correlation": rho}
        for g, rho in zip(groups, (0.5, None, 0.2), strict=True)
    ]
    sigma, df, correlation = pooled_noise(rows)
    within = np.concatenate([g - g.mean() for g in groups])
    assert (sigma, df) == pytest.approx((math.sqrt(within @ within / 14), 14))
    assert correlation == pytest.approx((2 * 0.5 + 8 * 0.2) / 10)
    assert pooled_noise([{"sigma": 0.1, "df": 2}]) == Noise(pytest.approx(0.1), 2, None)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: pooled_noise([]), "rows: empty"),
        (lambda: pooled_noise([{"sigma": 0.0, "df": 2}]), "sigma=0.0"),
        (lambda: pooled_noise([{"sigma": 0.1, "df": 2, "correlation": 2.0}]), "between -1 and 1"),
        (lambda: moderated_std(0.1, 2, math.nan, 2), "prior_std=nan"),
        (lambda: moderated_std(-0.1, 2, 0.1, 2), "std=-0.1"),
        (lambda: power_of(0.0, 1.0, 3), "effect=0.0"),
        (lambda: power_of(1.0, 0.0, 3), "std=0.0"),
        (lambda: power_of(1.0, 1.0, 1), "n=1"),
        (lambda: power_of(1.0, 1.0, 3, test="anova"), "'welch', 'pooled' or 'paired'"),  # type: ignore[arg-type]
        (lambda: power_of(1.0, 1.0, 3, correlation=0.5), "paired by seed"),
        (lambda: seeds_needed(1.0, 1.0, alpha=0.5), "alpha=0.5"),
        (lambda: seeds_needed(1.0, 1.0, power=1.0), "power=1.0"),
    ],
)
def test_plans_of_nothing_are_refused(call, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
