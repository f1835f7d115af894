"""Statistics against scipy, statsmodels, closed forms and seeded simulation."""

import itertools
import json
import math
from dataclasses import asdict
from typing import Literal

import numpy as np
import pytest
from scipy import special, stats
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW, ttost_ind, ttost_paired

from gptlib.stats.compare import contrast, equivalence, holm, mean_interval, permutation_p, rank_test, two_sample
from gptlib.stats.power import minimum_detectable_effect, seeds_needed

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


@pytest.mark.parametrize("test", ["welch", "pooled", "paired"])
def test_p_values_and_intervals_agree_with_statsmodels_on_random_inputs(
    test: Literal["welch", "pooled", "paired"],
) -> None:
    rng, usevar = np.random.default_rng(0), "unequal" if test == "welch" else "pooled"
    for _ in range(350):
        a, b = (rng.normal(rng.normal(), rng.gamma(1), rng.integers(2, 12)) for _ in "ab")
        alpha, margin = rng.uniform(0.001, 0.4), rng.gamma(1)
        if test == "paired":
            n = min(len(a), len(b))
            a, b = a[:n], b[:n]
            want, inside = DescrStatsW(b - a), ttost_paired(b, a, -margin, margin)[0]
            p_value, interval = want.ttest_mean(0)[1], want.tconfint_mean(alpha)
        else:
            means = CompareMeans(DescrStatsW(b), DescrStatsW(a))
            p_value, interval = means.ttest_ind(usevar=usevar)[1], means.tconfint_diff(alpha, usevar=usevar)
            inside = ttost_ind(b, a, -margin, margin, usevar=usevar)[0]
        got = two_sample(a, b, test, alpha, margin, permutation=False)
        assert (got.p_value, got.p_equivalence) == pytest.approx((p_value, inside), rel=1e-9, abs=0)
        assert (got.low, got.high) == pytest.approx(interval, rel=1e-9, abs=1e-12)


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


@pytest.mark.parametrize("test", ["welch", "paired"])
def test_equivalence_agrees_with_statsmodels_and_its_interval(test: Literal["welch", "paired"]) -> None:
    for seed in range(50):
        a, b = draws(300 + seed, 2, 6)
        got = equivalence(a, b, 0.012, test)
        reference = (
            ttost_paired(b, a, -0.012, 0.012) if test == "paired" else ttost_ind(b, a, -0.012, 0.012, usevar="unequal")
        )
        assert got.p_value == pytest.approx(reference[0], rel=1e-9)
        assert got.verdict == ("equivalent within 0.012" if got.low > -0.012 and got.high < 0.012 else "undecided")


@pytest.mark.parametrize(
    ("baseline", "variant", "margin", "says"),
    [
        ([1.0], [1.0, 1.1], 0.1, "baseline: one run shows no noise"),
        ([1.0, 1.0], [2.0, 2.0], 0.1, "no spread over seeds"),
        ([1.0, 1.1], [1.0, 1.2], 0.0, "margin=0"),
        ([1.0, math.nan], [1.0, 1.2], 0.1, "baseline: 1 non-finite"),
    ],
)
def test_equivalence_refuses_what_cannot_be_tested(
    baseline: list[float], variant: list[float], margin: float, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        equivalence(baseline, variant, margin)


# --- rearrangements and ranks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("paired", [False, True])
def test_permutation_p_counts_the_rearrangements(paired: bool) -> None:
    a, b = draws(8, 2, 6)
    if paired:
        signs = np.array(list(itertools.product((1, -1), repeat=6)))
        means, seen = (signs * (b - a)).mean(axis=1), (b - a).mean()
    else:
        both = np.concatenate([a, b])
        chosen = [list(rows) for rows in itertools.combinations(range(12), 6)]
        means, seen = both[chosen].mean(axis=1) * 2 - both.mean() * 2, b.mean() - a.mean()
    wanted = 2 * min((means <= seen + 1e-12).mean(), (means >= seen - 1e-12).mean())
    assert permutation_p(a, b, paired) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(
    ("n", "paired", "alpha", "reaches"),
    [(3, False, 0.05, False), (4, False, 0.05, True), (4, False, 0.01, False), (5, False, 0.01, True)]
    + [(5, True, 0.05, False), (6, True, 0.05, True), (7, True, 0.01, False), (8, True, 0.01, True)],
)
def test_permutation_p_is_given_only_where_it_can_reach_alpha(
    n: int, paired: bool, alpha: float, reaches: bool
) -> None:
    a = draws(9, n)
    assert (permutation_p(a, a + 0.1 + 1e-4 * np.arange(n), paired, alpha) is not None) == reaches
    assert two_sample(a, a + 0.1, "welch", 0.01).p_permutation == permutation_p(a, a + 0.1, False, 0.01)


def test_many_runs_are_rearranged_at_random_the_same_way_each_time() -> None:
    a, b = draws(10, 2, 30)
    got = permutation_p(a, b)
    assert got == permutation_p(a, b) == pytest.approx(stats.ttest_ind(a, b).pvalue, abs=0.02)


def test_a_permutation_test_is_told_of_where_it_disagrees_and_decides_nothing() -> None:
    outlier = [2.30, 2.31, 2.32, 2.33, 2.34], [2.36, 2.35, 2.37, 2.38, 2.9]
    got = two_sample(*outlier)
    assert got.verdict == "undecided" and got.p_permutation == pytest.approx(2 / math.comb(10, 5))
    assert "a permutation test disagrees (p = 0.0079)" in got.reason
    assert "permutation" not in two_sample(outlier[0], [x + 1 for x in outlier[0]]).reason


def test_ranks_decide_where_runs_diverged() -> None:
    finished = [2.1, 2.2, 2.3, 2.4, 2.5]
    got = rank_test(finished, [2.6, 2.7, 2.8, 2.9, math.inf])
    assert got.p_value == pytest.approx(2 / math.comb(10, 5)) and got.verdict == "worse"
    assert (got.low, got.high, got.difference, got.minimum_detectable) == (None,) * 4
    assert rank_test([*finished[:4], math.inf], [1.0, 1.1, 1.2, 1.3, 1.4]).verdict == "better"
    few = rank_test([2.1, 2.2], [math.inf, math.inf])
    assert few.verdict == "undecided" and "cannot give less than p = 0.33" in few.reason
    assert "at least 2 runs" in rank_test([2.1], [2.2, 2.3]).reason
    with pytest.raises(ValueError, match="variant: empty or nan"):
        rank_test([1.0, 2.0], [1.0, math.nan])


def test_ranks_with_ties_are_exact() -> None:
    a, b = [2.1, 2.2, 2.3, 2.4, math.inf], [2.25, 2.6, math.inf, math.inf, math.inf]
    ranks = stats.rankdata(a + b)
    sums = np.array([ranks[list(rows)].sum() for rows in itertools.combinations(range(10), 5)])
    wanted = 2 * min((sums >= ranks[5:].sum()).mean(), (sums <= ranks[5:].sum()).mean())
    assert rank_test(a, b).p_value == pytest.approx(wanted, rel=1e-9)


def test_ranks_agree_with_scipy_without_ties() -> None:
    for seed in range(50):
        a, b = draws(400 + seed, 2, 7)
        assert rank_test(a, b).p_value == pytest.approx(stats.mannwhitneyu(b, a, method="exact").pvalue, rel=1e-9)


def test_holm_by_hand_and_in_the_given_order() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []


def test_comparison_states_the_detectable_effect_of_its_own_test() -> None:
    a = np.array(BASELINE)
    equal = two_sample(a, a[::-1] + 0.001)
    assert equal.minimum_detectable == pytest.approx(minimum_detectable_effect(a.std(ddof=1), 5), rel=1e-6)
    b = a + np.array([0.003, -0.002, 0.004, 0.001, 0.0])
    paired = two_sample(a, b, "paired")
    want = minimum_detectable_effect((b - a).std(ddof=1), 5, paired=True)
    assert paired.minimum_detectable == pytest.approx(want, rel=1e-6)


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


def test_seeds_are_planned_from_the_margin_and_not_from_what_was_seen() -> None:
    rise = [x + 0.004 for x in reversed(BASELINE)]
    got, noise = two_sample(BASELINE, rise, margin=0.002), float(np.std(BASELINE, ddof=1))
    needed = seeds_needed(0.002, noise)
    assert needed is not None
    assert f"needs {needed - 5} more seeds an arm to find a difference of the margin 0.002" in got.reason
    assert "needs more than 1000 seeds" in two_sample(BASELINE, rise, margin=1e-5).reason
    assert "needs" not in two_sample(BASELINE, rise).reason


def test_the_reason_of_a_pooled_test_says_that_variances_differ() -> None:
    wide = [2.1, 2.2, 2.3, 2.4, 2.5, 2.6, 2.7, 2.8]
    narrow = [2.45 + 0.001 * x for x in range(8)]
    assert "variances differ (Levene p = " in two_sample(narrow, wide, "pooled").reason
    assert "variances" not in two_sample(narrow, wide).reason
    assert "variances" not in two_sample(narrow[:2], wide[:2], "pooled").reason


def test_seeds_are_paired_by_name_and_their_correlation_is_told() -> None:
    a, b = draws(11, 2, 5)
    named = dict(enumerate(a)), dict(reversed(list(enumerate(b))))
    got = two_sample(*named, test="paired")
    assert got == two_sample(a, b, "paired")
    assert got.correlation == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert two_sample(*named) == two_sample(a, b[::-1]) and two_sample(a, b).correlation is None
    assert two_sample(a[:2], b[:2], "paired").correlation is None
    with pytest.raises(ValueError, match=r"\[4, 9\] stand in one arm only"):
        two_sample(named[0], {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0, 9: 5.0}, "paired")


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
        ([1.0, 2.0], [1.0, 2.0], {"alpha": 0.5}, "alpha"),
        ([1.0, 2.0], [1.0, 2.0], {"margin": -0.1}, "margin"),
        ([1.0, 2.0], [1.0, 2.0], {"margin": math.nan}, "margin"),
        ([1.0, 2.0], [1.0, 2.0], {"test": "anova"}, "'welch', 'pooled' or 'paired'"),
    ],
)
def test_bad_input_is_refused(baseline: list[float], variant: list[float], options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        two_sample(baseline, variant, **options)
