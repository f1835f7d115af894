"""Targets, exchange rates and crossings against the speedrun's own arithmetic, scipy and closed forms."""

import math

import numpy as np
import pytest
from scipy import stats

from gptlib.stats.target import (
    TRACK_3_ALPHA,
    TRACK_3_SIGMA,
    Rate,
    exchange_rate,
    loss_to_steps,
    one_sample,
    pairwise,
    steps_to_target,
)

# --- mean <= target -------------------------------------------------------------------------------------------------


def test_the_t_claim_is_scipys_on_random_inputs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(1000):
        losses, alpha = rng.normal(3.28, rng.gamma(1), rng.integers(2, 12)), rng.uniform(0.001, 0.4)
        got, want = one_sample(losses, 3.28, alpha=alpha), stats.ttest_1samp(losses, 3.28, alternative="less")
        assert got.p_value == pytest.approx(want.pvalue, rel=1e-9)
        assert got.upper == pytest.approx(want.confidence_interval(1 - alpha).high, rel=1e-9)
        assert got.met == (want.pvalue < alpha)


@pytest.mark.parametrize(("n", "printed"), [(1, "3.276"), (4, "3.278"), (10, "3.27874"), (20, "3.27911")])
def test_track_3_needs_the_means_it_prints(n: int, printed: str) -> None:
    def claim(mean: float):
        return one_sample([mean] * n, 3.28, "z", TRACK_3_SIGMA, TRACK_3_ALPHA)

    limit = claim(3.28).limit
    assert f"{limit:.{len(printed) - 2}f}" == printed
    assert limit == pytest.approx(3.28 - 0.004 / math.sqrt(n), abs=1e-12)
    assert claim(limit).met and claim(3.28 - 0.004 / math.sqrt(n)).met and not claim(limit + 1e-6).met
    assert claim(limit).p_value == pytest.approx(stats.norm.sf(0.004 / 0.0013))


def test_track_3_takes_one_run_and_a_t_test_does_not() -> None:
    assert one_sample([3.276], 3.28, "z", TRACK_3_SIGMA, TRACK_3_ALPHA).met
    with pytest.raises(ValueError, match="losses: one run shows no noise"):
        one_sample([3.276], 3.28)


@pytest.mark.parametrize(
    ("losses", "options", "says"),
    [
        ([], {}, "losses: empty"),
        ([3.2, math.nan], {}, "losses: 1 non-finite"),
        ([3.2, 3.2], {}, "losses: no spread"),
        ([3.2, 3.3], {"test": "z"}, "give it or use test='t'"),
        ([3.2, 3.3], {"test": "z", "sigma": 0.0}, "sigma=0.0"),
        ([3.2, 3.3], {"sigma": 0.1}, "leave it out or use test='z'"),
        ([3.2, 3.3], {"test": "sign"}, "use 't' or 'z'"),
        ([3.2, 3.3], {"alpha": 0.5}, "alpha=0.5"),
        ([3.2, 3.3], {"target": math.inf}, "target=inf"),
    ],
)
def test_claims_of_nothing_are_refused(losses: list[float], options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        one_sample(losses, **{"target": 3.28} | options)


# --- pairwise -------------------------------------------------------------------------------------------------------


def test_pairwise_is_track_3s_arithmetic() -> None:
    # result 12: 200 steps fewer cost 0.0091, which the exchange rate of 0.0045 per 100 steps all but pays for
    got = pairwise([3.2790] * 20, [3.2881] * 8, TRACK_3_SIGMA, 3325, 3125)
    assert (got.difference, got.credit) == pytest.approx((-0.0091, 0.009))
    assert got.limit == pytest.approx(0.004 * math.sqrt(1 / 20 + 1 / 8)) and not got.met
    assert pairwise([3.2790] * 20, [3.2860] * 8, TRACK_3_SIGMA, 3325, 3125).met


@pytest.mark.parametrize(("shift", "met"), [(0.0, True), (1e-6, False)])
def test_pairwise_passes_at_its_limit(shift: float, met: bool) -> None:
    needed = 0.004 * math.sqrt(1 / 4 + 1 / 4)
    got = pairwise([3.28] * 4, [3.28 - needed + 0.0045 + shift] * 4, TRACK_3_SIGMA, 3000, 2900)
    assert got.met == met
    assert got.p_value == pytest.approx(stats.norm.sf((needed - shift) / 0.0013 / math.sqrt(0.5)))


@pytest.mark.parametrize(
    ("change", "says"), [({"sigma": 0.0}, "sigma"), ({"steps_b": 0}, "steps_b"), ({"b": [math.nan]}, "b: 1 non-finite")]
)
def test_pairwise_refuses_what_it_cannot_weigh(change: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pairwise(**{"a": [3.2], "b": [3.1], "sigma": 0.1, "steps_a": 10, "steps_b": 10} | change)


# --- loss for steps -------------------------------------------------------------------------------------------------

STEPS = [100, 200, 300, 400, 450, 500]


def falling(rates: list[float]) -> dict[int, list[float]]:
    """Straight curves that fall by `rates` per 100 steps from step 400 on."""
    return {i: [9, 8, 7, *(4 - rate * (step - 400) / 100 for step in STEPS[3:])] for i, rate in enumerate(rates)}


def test_the_exchange_rate_is_the_end_slope_with_its_t_interval() -> None:
    rates = [0.004, 0.005, 0.0045, 0.0049]
    got = exchange_rate(STEPS, falling(rates), alpha=0.1)  # type: ignore[arg-type]
    want = stats.ttest_1samp(rates, 0)
    assert got.per_100_steps == pytest.approx(np.mean(rates)) and got.standard_error == pytest.approx(stats.sem(rates))
    assert (got.low, got.high) == pytest.approx(tuple(want.confidence_interval(0.9)))
    assert (got.first_step, got.last_step, got.n, got.df) == (400, 500, 4, 3)


@pytest.mark.parametrize(
    ("steps", "curves", "last", "says"),
    [
        (STEPS, falling([1.0]), 0.2, "one run"),
        (STEPS[:-1], falling([1.0, 2.0]), 0.2, "run 0: 6 losses for 5 steps"),
        (STEPS, falling([1.0, math.nan]), 0.2, "run 1: 3 non-finite"),
        (STEPS, falling([1.0, 2.0]), 0.05, "raise `last`"),
        (STEPS, falling([1.0, 2.0]), 1.0, "last=1.0"),
    ],
)
def test_no_slope_of_too_little(steps: list[int], curves: dict, last: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        exchange_rate(steps, curves, last)


def rate(mean: float, error: float, df: float = 4) -> Rate:
    return Rate(5, 400, 500, mean, error, df, 0.0, 0.0, 0.05)


def test_steps_are_the_difference_over_the_rate_by_the_delta_method() -> None:
    got = loss_to_steps(0.009, 0.001, 8, rate(0.0045, 0.0003))
    relative = math.hypot(0.001 / 0.009, 0.0003 / 0.0045)
    df = relative**4 / ((0.001 / 0.009) ** 4 / 8 + (0.0003 / 0.0045) ** 4 / 4)
    half = stats.t.ppf(0.975, df) * relative * 200
    assert (got.steps, got.low, got.high) == pytest.approx((200, 200 - half, 200 + half))
    exact = loss_to_steps(0.009, 0.0, math.inf, rate(0.0045, 0.0003))
    assert exact.high == pytest.approx(200 + stats.t.ppf(0.975, 4) * 200 / 15)
    sure = loss_to_steps(0.009, 0.001, math.inf, rate(0.0045, 0.0))
    assert sure.high == pytest.approx(200 + stats.norm.ppf(0.975) * 200 / 9)
    assert loss_to_steps(0.0, 0.001, 8, rate(0.0045, 0.0003)).low == pytest.approx(stats.t.ppf(0.025, 8) * 0.1 / 0.0045)


def test_steps_of_an_unsure_rate_have_no_interval() -> None:
    got = loss_to_steps(0.009, 0.001, 8, rate(0.0045, 0.002))
    assert (got.steps, got.low, got.high) == (pytest.approx(200), None, None)
    assert "not clearly above zero" in got.reason
    with pytest.raises(ValueError, match="rate=-0.1"):
        loss_to_steps(0.009, 0.001, 8, rate(-0.1, 0.002))
    with pytest.raises(ValueError, match="difference=nan"):
        loss_to_steps(math.nan, 0.001, 8, rate(0.0045, 0.0001))


def test_the_interval_in_steps_covers_the_truth() -> None:
    rng, reps, held = np.random.default_rng(3), 4000, 0
    for noise, slope in zip(rng.normal(0.009, 0.002, (reps, 5)), rng.normal(0.0045, 0.0004, (reps, 5)), strict=True):
        got = loss_to_steps(noise.mean(), stats.sem(noise), 4, rate(slope.mean(), stats.sem(slope)))
        held += got.low is not None and got.high is not None and got.low < 200 < got.high
    assert held / reps == pytest.approx(0.95, abs=0.015)


# --- crossings ------------------------------------------------------------------------------------------------------


def curve(*losses: float) -> list[tuple[int, float]]:
    return list(zip((0, 100, 200, 400, 800), losses, strict=True))


def test_the_claim_is_the_step_from_which_the_mean_stays() -> None:
    got = steps_to_target({1: curve(9, 4.0, 2.9, 3.3, 2.7), 2: curve(9, 5.0, 2.9, 2.9, 2.9)}, 3.0)
    assert (got.step, got.mean) == (800, pytest.approx(2.8))  # at 200 it was there, at 400 not
    assert steps_to_target({1: curve(9, 4.0, 3.0, 2.9, 2.8)}, 3.0).step == 200
    assert steps_to_target({1: curve(9, 4.0, 3.5, 3.4, 3.1)}, 3.0).step is None


def test_runs_cross_between_evaluations_in_log_step() -> None:
    got = steps_to_target({1: curve(9, 4, 3.5, 2.5, 2.4), 2: curve(9, 2, 2, 2, 2), 3: curve(1, 1, 1, 1, 1)}, 3.0)
    assert got.by_run == {1: pytest.approx(200 * math.sqrt(2)), 2: 100.0, 3: 0.0}
    assert (got.reached, got.median) == ("3/3", 100.0)


@pytest.mark.parametrize(
    ("reaching", "reached", "median"), [(5, "5/5", 100), (3, "3/5", 100), (2, "2/5", None), (0, "0/5", None)]
)
def test_runs_that_do_not_reach_it_are_censored_and_not_dropped(reaching: int, reached: str, median: float) -> None:
    curves = {i: curve(9, *[2.0 if i < reaching else 4.0] * 4) for i in range(5)}
    got = steps_to_target(curves, 3.0)
    assert (got.reached, got.median) == (reached, median)
    assert list(got.by_run.values()).count(None) == 5 - reaching


def test_a_diverged_run_keeps_the_mean_from_the_target() -> None:
    got = steps_to_target({1: curve(9, 2, 2, 2, 2), 2: curve(9, 4, 2, math.inf, math.inf)}, 3.0)
    assert (got.step, got.reached, got.median) == (None, "1/2", None)
    assert steps_to_target({1: curve(9, math.inf, 2, 2, 2)}, 3.0).by_run == {1: 200.0}


@pytest.mark.parametrize(
    ("curves", "says"),
    [
        ({}, "curves: empty"),
        ({1: [(100, 3.0)], 2: [(200, 3.0)]}, "runs 1 and 2 were evaluated at other steps"),
        ({1: [(200, 3.0), (100, 3.0)]}, "steps of a curve have to rise"),
        ({1: []}, "steps of a curve have to rise"),
        ({1: [(100, math.nan)]}, "write inf from where a run diverged"),
    ],
)
def test_curves_that_do_not_fit_are_refused_in_one_line(curves: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says) as refused:
        steps_to_target(curves, 3.0)
    assert "\n" not in str(refused.value)
