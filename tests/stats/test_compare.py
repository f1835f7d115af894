"""Statistics against scipy, statsmodels, closed forms and seeded simulation."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from scipy import special, stats
from statsmodels.stats.power import TTestIndPower, TTestPower
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW, ttost_ind, ttost_paired

from gptlib.stats.compare import contrast, holm, mean_interval, two_sample
from gptlib.stats.power import minimum_detectable_effect

BASELINE = [2.310, 2.322, 2.305, 2.318, 2.311]


def draws(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(2.3, 0.01, shape)


# --- intervals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5, 10])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_interval_agrees_with_scipy(n: int, level: float) -> None:
    values = draws(n, n)
    got = mean_interval(values, level)
    want = stats.ttest_1samp(values, 0).confidence_interval(level)
    assert (got.low, got.high) == pytest.approx((want.low, want.high), rel=1e-12)
    assert (got.n, got.mean, got.std) == pytest.approx((n, np.mean(values), np.std(values, ddof=1)))


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_interval_covers_the_mean_95_times_in_100(n: int) -> None:
    intervals = [mean_interval(row) for row in draws(100 + n, 4000, n)]
    covered = np.mean([i.low < 2.3 < i.high for i in intervals if i.low is not None and i.high is not None])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


def test_one_value_has_a_mean_and_no_interval() -> None:
    got = mean_interval([2.5])
    assert (got.n, got.mean, got.std, got.low, got.high) == (1, 2.5, None, None, None)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [1.0, math.inf]])
def test_interval_refuses_nothing_and_non_finite_values(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values: "):
        mean_interval(values)


# --- tests against independent implementations ----------------------------------------------------------------------


@pytest.mark.parametrize("n_variant", [2, 3, 8])
def test_welch_agrees_with_its_formula_and_statsmodels(n_variant: int) -> None:
    a, b = draws(1, 5), 1.5 * draws(2, n_variant) - 1.15
    got = two_sample(a, b, alpha=0.1, margin=0.02)
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    t = (b.mean() - a.mean()) / math.sqrt(va + vb)
    assert got.p_value == pytest.approx(2 * special.stdtr(df, -abs(t)), rel=1e-9)
    means = CompareMeans(DescrStatsW(b), DescrStatsW(a))
    assert (got.low, got.high) == pytest.approx(means.tconfint_diff(0.1, usevar="unequal"), rel=1e-9)
    assert got.p_equivalence == pytest.approx(ttost_ind(b, a, -0.02, 0.02, usevar="unequal")[0], rel=1e-9)
    assert got.difference == pytest.approx(b.mean() - a.mean())
    assert got.percent == pytest.approx(100 * (b.mean() / a.mean() - 1))
    assert got.variance_reduction is None


def test_p_values_agree_with_scipy_on_random_inputs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        a, b = (rng.normal(rng.normal(), rng.gamma(1), rng.integers(2, 12)) for _ in "ab")
        want = stats.ttest_ind(b, a, equal_var=False).pvalue
        assert two_sample(a, b).p_value == pytest.approx(want, rel=1e-9)
        n = min(len(a), len(b))
        want = stats.ttest_rel(b[:n], a[:n]).pvalue
        assert two_sample(a[:n], b[:n], "paired").p_value == pytest.approx(want, rel=1e-9)


def test_paired_is_the_one_sample_test_of_the_differences() -> None:
    a = draws(3, 6)
    b = a + 0.003 + 0.2 * draws(4, 6) - 0.46
    got = two_sample(a, b, "paired", margin=0.01)
    one = stats.ttest_1samp(b - a, 0)
    assert got.p_value == pytest.approx(one.pvalue, rel=1e-9)
    assert (got.low, got.high) == pytest.approx(tuple(one.confidence_interval(0.95)), rel=1e-9)
    assert got.p_equivalence == pytest.approx(ttost_paired(b, a, -0.01, 0.01)[0], rel=1e-9)
    correlation = np.corrcoef(a, b)[0, 1]
    unpaired = a.var(ddof=1) + b.var(ddof=1)
    paired = unpaired - 2 * correlation * a.std(ddof=1) * b.std(ddof=1)
    assert got.variance_reduction == pytest.approx(unpaired / paired, rel=1e-9)


def test_a_contrast_is_the_one_sample_test_of_each_seeds_own() -> None:
    cells = [dict(enumerate(row)) for row in draws(6, 4, 7)]
    cells[1] = dict(reversed(cells[1].items()))  # the order of seeds does not matter
    cells[3] = {seed: loss + 0.02 for seed, loss in cells[3].items() if seed != 2} | {99: 5.0}
    common = [0, 1, 3, 4, 5, 6]
    own = [cells[3][s] - cells[2][s] - cells[1][s] + cells[0][s] for s in common]
    got, want = contrast(cells, alpha=0.1, margin=0.05), stats.ttest_1samp(own, 0)
    assert got.difference == pytest.approx(np.mean(own)) and got.p_value == pytest.approx(want.pvalue, rel=1e-9)
    assert (got.low, got.high) == pytest.approx(tuple(want.confidence_interval(0.9)), rel=1e-9)
    sides = stats.ttest_1samp(own, -0.05, alternative="greater"), stats.ttest_1samp(own, 0.05, alternative="less")
    assert got.p_equivalence == pytest.approx(max(side.pvalue for side in sides), rel=1e-9)
    assert (got.n_baseline, got.n_variant, got.percent) == (6, 6, None)


def test_a_contrast_says_which_way_two_changes_miss_their_sum() -> None:
    noise = ((0.0, 0.0), (1e-3, 2e-3), (2e-3, -1e-3), (-1e-3, 1e-3))
    worth = [{s: 2.0 + n[0] + shift + n[1] * (shift > 0) for s, n in enumerate(noise)} for shift in (0, 0.1, 0.2)]
    for both, verdict in ((0.2, "better"), (0.3, "undecided"), (0.4, "worse")):
        cells = [*worth, {s: 2.0 + n[0] + both + 0.5 * n[1] for s, n in enumerate(noise)}]
        assert contrast(cells).verdict == verdict
    assert contrast([{1: 2.0}, {1: 2.1}, {2: 2.1}, {1: 2.1}]).verdict == "undecided"
    assert "there are 0 and 0" in contrast([{}, {}, {}, {}]).reason


@pytest.mark.parametrize("test", ["welch", "paired"])
def test_false_claims_stay_at_alpha(test: str) -> None:
    pairs = draws(5, 3000, 2, 4)
    verdicts = [two_sample(a, b, test, alpha=0.1, permutation=False).verdict for a, b in pairs]  # type: ignore[arg-type]
    claims = np.mean([v in ("better", "worse") for v in verdicts])
    error = math.sqrt(0.1 * 0.9 / len(pairs))
    assert claims < 0.1 + 3 * error
    assert claims > (0.07 if test == "welch" else 0.1 - 3 * error)  # Welch is conservative at four runs


def test_holm_by_hand_and_in_the_given_order() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []


# --- minimum detectable effect --------------------------------------------------------------------------------------

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


def test_comparison_states_the_detectable_effect_of_its_own_test() -> None:
    a = np.array(BASELINE)
    equal = two_sample(a, a[::-1] + 0.001)
    assert equal.minimum_detectable == pytest.approx(minimum_detectable_effect(a.std(ddof=1), 5), rel=1e-6)
    b = a + np.array([0.003, -0.002, 0.004, 0.001, 0.0])
    paired = two_sample(a, b, "paired")
    want = minimum_detectable_effect((b - a).std(ddof=1), 5, paired=True)
    assert paired.minimum_detectable == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("change", [{"n": 1}, {"alpha": 0.0}, {"power": 1.0}])
def test_detectable_effect_refuses_impossible_designs(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        minimum_detectable_effect(**({"std": 1.0, "n": 3} | change))  # type: ignore[arg-type]


# --- verdicts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shift", "margin", "verdict", "says"),
    [
        (-0.05, 0.0, "better", "leaves out zero"),
        (+0.05, 0.0, "worse", "leaves out zero"),
        (+0.05, 0.02, "worse", "leaves out zero"),
        (0.001, 0.0, "undecided", "80 %"),
        (0.001, 0.05, "equivalent within 0.05", "smaller than the margin"),
        (+0.02, 0.1, "equivalent within 0.1", "there is a difference, but"),
        (+0.02, 0.02, "worse", "leaves out zero"),
        (0.005, 0.006, "undecided", "80 %"),
    ],
)
def test_verdicts(shift: float, margin: float, verdict: str, says: str) -> None:
    got = two_sample(BASELINE, [x + shift for x in reversed(BASELINE)], margin=margin)
    assert got.verdict == verdict
    assert says in got.reason


def test_pairing_finds_what_welch_cannot() -> None:
    variant = [x - 0.004 + e for x, e in zip(BASELINE, (0.0005, -0.0005, 0, 0.0002, -0.0002), strict=True)]
    assert two_sample(BASELINE, variant).verdict == "undecided"
    assert two_sample(BASELINE, variant, "paired").verdict == "better"


def test_one_run_is_undecided_and_plain_json() -> None:
    got = two_sample([2.0], [2.1, 2.2], margin=0.01)
    assert got.verdict == "undecided"
    assert "at least 2 runs" in got.reason
    assert got.difference == pytest.approx(0.15)
    assert (got.p_value, got.low, got.p_equivalence, got.minimum_detectable) == (None,) * 4
    assert json.loads(json.dumps(asdict(got), allow_nan=False))["percent"] == pytest.approx(7.5)


@pytest.mark.parametrize("test", ["welch", "paired"])
@pytest.mark.parametrize("shift", [0.0, 0.1])
@pytest.mark.filterwarnings("error")
def test_no_spread_is_undecided(test: str, shift: float) -> None:
    baseline = [2.31, 2.35, 2.29] if test == "paired" else [2.3, 2.3, 2.3]  # + 0.1 spreads by rounding only
    got = two_sample(baseline, [x + shift for x in baseline], test, margin=0.01)  # type: ignore[arg-type]
    assert got.verdict == "undecided"
    assert "do not spread" in got.reason
    assert got.p_value is None


@pytest.mark.filterwarnings("error")
def test_one_arm_without_spread_is_still_tested() -> None:
    got = two_sample([2.3, 2.3, 2.3], [2.4, 2.41, 2.39])
    assert (got.verdict, got.minimum_detectable is not None) == ("worse", True)


@pytest.mark.parametrize(
    ("baseline", "variant", "options", "says"),
    [
        ([], [1.0], {}, "baseline: empty"),
        ([1.0, 2.0], [1.0, math.inf], {}, "variant: 1 non-finite"),
        ([1.0, 2.0], [1.0], {"test": "paired"}, "same seeds"),
        ([1.0, 2.0], [1.0, 2.0], {"alpha": 1.5}, "alpha"),
        ([1.0, 2.0], [1.0, 2.0], {"margin": -0.1}, "margin"),
        ([1.0, 2.0], [1.0, 2.0], {"margin": math.nan}, "margin"),
        ([1.0, 2.0], [1.0, 2.0], {"test": "anova"}, "'welch', 'pooled' or 'paired'"),
    ],
)
def test_bad_input_is_refused(baseline: list[float], variant: list[float], options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        two_sample(baseline, variant, **options)
