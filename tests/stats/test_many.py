"""Several variants against one baseline, against scipy, statsmodels and seeded simulation."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_ind

from gptlib.stats.compare import two_sample
from gptlib.stats.many import many_to_one


def arms(seed: int, n: int = 6, count: int = 3) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rows = np.random.default_rng(seed).normal(2.3, 0.01, (count + 1, n))
    return rows[0], {f"v{i}": row + 0.01 * i for i, row in enumerate(rows[1:])}


def test_dunnett_is_scipys_and_the_same_each_time() -> None:
    baseline, variants = arms(1)
    got = many_to_one(baseline, variants)
    want = stats.dunnett(*variants.values(), control=baseline, rng=np.random.default_rng(5))
    interval = want.confidence_interval(0.95)
    for i, c in enumerate(got.values()):
        assert c.p_value == pytest.approx(want.pvalue[i], abs=2e-4)
        assert (c.low, c.high) == pytest.approx((interval.low[i], interval.high[i]), abs=1e-4)
        assert "by Dunnett's test of 3 variants" in c.reason
    assert many_to_one(baseline, variants) == got


def test_dunnett_of_one_variant_is_students_test() -> None:
    baseline, variants = arms(2, count=1)
    got, want = (
        many_to_one(baseline, variants, margin=0.01)["v0"],
        two_sample(baseline, variants["v0"], "pooled", 0.05, 0.01),
    )
    for field in ("difference", "low", "high", "p_value", "p_equivalence", "minimum_detectable"):
        assert getattr(got, field) == pytest.approx(getattr(want, field), rel=5e-3)


def test_dunnett_says_that_variances_differ() -> None:
    baseline, variants = arms(3, n=8)
    assert "variances differ" not in many_to_one(baseline, variants)["v0"].reason
    variants["v1"] = 2.3 + 20 * (variants["v1"] - 2.3)
    assert "variances differ (Levene p = " in many_to_one(baseline, variants)["v0"].reason


@pytest.mark.parametrize(("test", "method"), [("holm", "holm"), ("bh", "fdr_bh")])
@pytest.mark.parametrize("paired", [False, True])
def test_corrections_are_statsmodels_of_each_test(test, method: str, paired: bool) -> None:
    baseline, variants = arms(4)
    got = many_to_one(baseline, variants, test, 0.06, margin=0.02, paired=paired)
    t_test = stats.ttest_rel if paired else lambda x, y: stats.ttest_ind(x, y, equal_var=False)
    alone = [t_test(v, baseline) for v in variants.values()]
    level = 0.02 if test == "holm" else 0.06
    assert [c.p_value for c in got.values()] == pytest.approx(
        multipletests([o.pvalue for o in alone], method=method)[1]
    )
    for outcome, c in zip(alone, got.values(), strict=True):
        assert (c.low, c.high) == pytest.approx(tuple(outcome.confidence_interval(1 - level)), rel=1e-9)
        assert c.test == f"{test} ({'paired' if paired else 'welch'})" and c.alpha == 0.06
        assert ("exploratory" in c.reason) == (test == "bh")
        assert ("simultaneous 94 % interval (Bonferroni)" in c.reason) == (test == "holm" and "equiv" not in c.verdict)
    if not paired:
        sides = [ttost_ind(v, baseline, -0.02, 0.02, usevar="unequal")[0] for v in variants.values()]
        assert [c.p_equivalence for c in got.values()] == pytest.approx(multipletests(sides, method=method)[1])


def test_claims_and_intervals_of_dunnett_hold_together() -> None:
    studies, claimed, missed = 60, 0, 0
    for seed in range(studies):
        baseline, *rest = np.random.default_rng(seed).normal(2.3, 0.01, (4, 5))
        found = many_to_one(baseline, dict(zip("abc", rest, strict=True)), alpha=0.2).values()
        claimed += any(c.verdict != "undecided" for c in found)
        missed += any(c.low is None or c.high is None or c.low > 0 or c.high < 0 for c in found)
    assert claimed == missed and claimed / studies == pytest.approx(0.2, abs=3 * math.sqrt(0.16 / studies))


def test_the_critical_value_is_dunnetts() -> None:
    baseline, variants = arms(5, n=5)
    c = many_to_one(baseline, variants)["v0"]
    pooled = np.mean([arm.var(ddof=1) for arm in (baseline, *variants.values())])
    assert c.low is not None and c.high is not None
    # two-sided .05, 3 variants, 16 degrees of freedom: 2.59 in the tables of 1964
    assert (c.high - c.low) / 2 / math.sqrt(pooled * 2 / 5) == pytest.approx(2.59, abs=0.01)


@pytest.mark.parametrize(
    ("variants", "options", "says"),
    [
        ({}, {}, "variants: empty"),
        ({"a": [1.0]}, {}, "a: one run shows no noise"),
        ({"a": [1.0]}, {"test": "holm"}, "a: a test needs at least 2 runs"),
        ({"a": [1.0, math.nan]}, {}, "a: 1 non-finite"),
        ({"a": [1.0, 2.0]}, {"test": "tukey"}, "'dunnett', 'holm' or 'bh'"),
        ({"a": [1.0, 2.0]}, {"paired": True}, "for pairs of seeds use test='holm'"),
        ({"a": [1.0, 2.0, 3.0]}, {"paired": True, "test": "holm"}, "same seeds"),
        ({"a": [1.0, 2.0]}, {"alpha": 0.7}, "alpha=0.7"),
        ({"a": [1.0, 2.0]}, {"margin": -1}, "margin=-1"),
    ],
)
def test_bad_input_is_refused(variants: dict, options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        many_to_one([1.0, 1.1], variants, **options)
    with pytest.raises(ValueError, match="all arms: no spread"):
        many_to_one([1.0, 1.0], {"a": [1.1, 1.1]})
