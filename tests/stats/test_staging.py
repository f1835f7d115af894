"""Staged decisions against a plain re-implementation, published boundaries, scipy's Dunnett test and simulation."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy import stats

from gptlib.stats.planner import World, simulate
from gptlib.stats.staging import Rule, Screened, boundaries, check, look, pivot, race_interval, screen

RULE = Rule()


def draws(seed: int, arms: int, seeds: int, shift: float = 0.0) -> np.ndarray:
    losses = np.random.default_rng(seed).normal(2.3, 0.01, (arms, seeds))
    losses[1:] += shift * np.random.default_rng(seed + 1000).normal(0, 0.01, (arms - 1, 1))
    return losses


# --- one study, written down plainly --------------------------------------------------------------------------------


def in_errors(arms: list[list[float]], spread: list[list[float]]) -> tuple[list[float], int]:
    """Differences to arms[0] in standard errors, with the spread of all runs in `spread`; degrees of freedom."""
    squares, df = 0.0, 0
    for runs in spread:
        good = [x for x in runs if math.isfinite(x)]
        if len(good) > 1:
            squares += float(np.var(good)) * len(good)
            df += len(good) - 1
    error = math.sqrt(squares / df * 2 / len(arms[0]))
    means = [sum(runs) / len(runs) if all(map(math.isfinite, runs)) else math.inf for runs in arms]
    return [(mean - means[0]) / error for mean in means[1:]], df


def plain_screen(losses: list[list[float]], rule: Rule) -> tuple[list[int], list[int], list[float]]:
    excess, _ = in_errors(losses, losses)
    order = sorted(range(len(excess)), key=lambda v: excess[v])
    best = order[: max(rule.keep_at_least, math.ceil(rule.keep * len(excess)))]
    return sorted(v for v in best if math.isfinite(excess[v]) and excess[v] <= rule.slack), order, excess


def plain_check(losses: list[list[float]], candidates: list[int], rule: Rule) -> list[int]:
    if not candidates:
        return []
    arms = [losses[0]] + [losses[1 + v] for v in candidates]
    excess, _ = in_errors(arms, arms)
    ranked = sorted(zip(excess, candidates, strict=True))[: rule.promote]
    return sorted(v for e, v in ranked if e < 0 and e <= ranked[0][0] + 1)


def plain_race(losses: list[list[float]], entered: list[int], rule: Rule) -> tuple[list[int], int]:
    """Variants claimed, and the look after which the race was over."""
    made: dict[int, list[float]] = {}
    racing = list(entered)
    for number, seeds in enumerate(rule.looks):
        for v in racing:
            made[v] = losses[1 + v][:seeds]
        base = losses[0][:seeds]
        if not racing:
            return [], number
        excess, df = in_errors([base] + [made[v] for v in racing], [base, *made.values()])
        p = [float(stats.t.cdf(e, df)) if math.isfinite(e) else 1.0 for e in excess]
        limit = boundaries(rule.alpha, rule.looks, len(entered))[number]
        if claimed := [v for v, p_v in zip(racing, p, strict=True) if p_v <= limit]:
            return claimed, number + 1
        racing = [v for v, p_v in zip(racing, p, strict=True) if p_v <= rule.futility]
    return [], len(rule.looks)


def chosen(mask: np.ndarray) -> list[int]:
    return [int(v) for v in np.flatnonzero(mask)]


def race(losses: np.ndarray, entered: np.ndarray, rule: Rule) -> tuple[list[int], int]:
    """One study through look(), runs that were not made being NaN."""
    racing, losses = entered, np.where(np.append(True, entered)[:, None], losses, np.nan)
    limits = boundaries(rule.alpha, rule.looks, int(entered.sum())) if entered.any() else ()
    for number, seeds in enumerate(rule.looks):
        if not racing.any():
            return [], number
        found = look(losses[:, :seeds], racing, limits[number], rule)
        if found.claimed.any():
            return chosen(found.claimed), number + 1
        racing = found.racing
        losses[1:, seeds:][~racing] = np.nan
    return [], len(rule.looks)


@pytest.mark.parametrize("variants", [1, 2, 3, 7])
def test_decisions_are_those_of_a_plain_implementation(variants: int) -> None:
    rule, claims, ended = Rule(0.05), 0, set()
    for seed in range(120):
        a, b, c = (draws(100 * seed + stage, variants + 1, n, 2) for stage, n in enumerate((2, 3, 8)))
        a[1:] = a[1:] + 0.5 * (c[1:].mean(-1, keepdims=True) - a[1:].mean(-1, keepdims=True))
        if seed % 3 == 0:
            a[-1, 0] = math.inf
        if seed % 4 == 0:
            b[1, 1] = math.nan
        if seed % 5 == 0:
            c[1, 4] = math.inf
        screened = screen(a, rule)
        kept, order, excess = plain_screen(a.tolist(), rule)
        assert chosen(screened.kept) == kept
        assert [order.index(v) for v in range(variants)] == screened.rank.tolist()
        assert screened.excess == pytest.approx(excess)
        promoted = check(b, screened.kept, rule)
        assert chosen(promoted) == plain_check(b.tolist(), kept, rule)
        everyone = np.ones(variants, bool)
        for entered in (promoted, everyone):
            found = race(c, entered, rule)
            assert found == plain_race(c.tolist(), chosen(entered), rule)
            claims, ended = claims + bool(found[0]), ended | {found[1]}
    assert claims > 10 and ended >= {1, 2, 3}


def test_a_leading_axis_of_studies_changes_no_decision() -> None:
    many = np.stack([draws(seed, 4, 8, 2) for seed in range(50)])
    racing = np.random.default_rng(0).random((50, 3)) < 0.7
    limits = np.linspace(0.001, 0.2, 50)
    alone = [look(many[i], racing[i], limits[i], RULE) for i in range(50)]
    for together, one in zip(look(many, racing, limits, RULE), zip(*alone, strict=True), strict=True):
        assert together == pytest.approx(np.stack(one), rel=1e-12)
    assert (check(many, racing, RULE) == [check(many[i], racing[i], RULE) for i in range(50)]).all()
    assert (screen(many, RULE).kept == [screen(many[i], RULE).kept for i in range(50)]).all()
    nested = look(many.reshape(5, 10, 4, 8), racing.reshape(5, 10, 3), limits.reshape(5, 10), RULE)
    assert (nested.p.reshape(50, 3) == look(many, racing, limits, RULE).p).all()


# --- properties -----------------------------------------------------------------------------------------------------

DECISIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "screen": lambda losses: screen(losses, RULE).kept,
    "check": lambda losses: check(losses, np.ones(losses.shape[:-2] + (losses.shape[-2] - 1,), bool), RULE),
    "look": lambda losses: look(losses, np.ones(losses.shape[:-2] + (losses.shape[-2] - 1,), bool), 0.1, RULE).claimed,
    "stays": lambda losses: look(losses, np.ones(losses.shape[:-2] + (losses.shape[-2] - 1,), bool), 0, RULE).racing,
}


@pytest.mark.parametrize("name", DECISIONS)
def test_order_and_offset_do_not_matter_and_the_worse_is_never_preferred(name: str) -> None:
    decide = DECISIONS[name]
    losses = np.stack([draws(seed, 6, 3, 2) for seed in range(300)])
    losses[::7, 2, 0] = math.inf
    before = decide(losses)
    assert 0.02 < before.mean() < 0.98
    order = np.array([3, 0, 4, 2, 1])
    assert (decide(losses[:, np.r_[0, 1 + order]]) == before[:, order]).all()
    assert (decide(losses + 1.25) == before).all()
    assert (decide(3 * losses) == before).all()
    mean = losses.mean(-1)[:, 1:]
    worse = mean[:, :, None] > mean[:, None, :]  # the first than the second
    assert not (worse & before[:, :, None] & ~before[:, None, :]).any()


def test_diverged_variants_never_go_on_and_a_study_may_end_without_candidates() -> None:
    losses = draws(0, 4, 3)
    losses[1:] = [[math.nan] * 3, [math.inf, 2.0, 2.0], [-math.inf, 2.0, 2.0]]
    everyone, nobody = np.ones(3, bool), np.zeros(3, bool)
    assert not screen(losses, Rule(slack=math.inf)).kept.any()
    assert not check(losses, everyone, RULE).any()
    for racing in (everyone, nobody):
        found = look(losses, racing, 0.4, RULE)
        assert (found.p == 1).all() and not found.claimed.any() and not found.racing.any()
        assert all(np.isnan(ends).all() for ends in race_interval(losses, racing, 0.01))
    assert not check(draws(1, 4, 3), nobody, RULE).any()


def test_clearly_worse_variants_are_not_kept_and_pivots_are_neither() -> None:
    losses = np.array([[2.00, 2.01], [2.10, 2.11], [2.20, 2.21], [1.99, 2.0], [2.002, 2.012], [2.003, 2.013]])
    screened = screen(losses, RULE)
    assert chosen(screened.kept) == [2, 3, 4]
    assert not pivot(screened, 0, RULE).any()
    few = replace(RULE, keep=0.2, keep_at_least=1)
    screened = screen(losses, few)
    turns = [chosen(pivot(screened, turn, few)) for turn in range(5)]
    assert chosen(screened.kept) == [2] and turns == [[3], [4], [], [], []]
    lost = Screened(np.zeros(1, bool), np.zeros(1, int), np.array([math.inf]))
    assert not pivot(lost, -1, replace(few, slack=math.inf)).any()


def test_kept_and_worst_runs_are_counted() -> None:
    assert [RULE.kept(k) for k in (1, 2, 3, 4, 7)] == [1, 2, 2, 2, 4]
    assert Rule(keep=0.07).kept(100) == 7
    assert RULE.worst_runs(7) == (16, 15, 24)
    assert Rule(reuse_baseline=True, pivots=2).worst_runs(7) == (14, 18, 16)
    assert Rule(screen_seeds=0, check_seeds=0, pivots=2, promote=3, looks=(5,)).worst_runs(7) == (0, 0, 40)
    assert Rule(check_seeds=0, keep=2 / 3, promote=3).worst_runs(7) == (16, 0, 32)
    assert Rule(screen_seeds=0, keep=0.5).worst_runs(7) == (0, 24, 24)


# --- boundaries -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "looks", "published"),
    [
        (0.01, (3, 5, 8), (0.0036, 0.0031, 0.0047)),
        (0.05, (3, 5, 8), (0.019, 0.018, 0.028)),
        (0.01, (3, 5), (0.0061, 0.0052)),
        (0.05, (3, 5), (0.030, 0.030)),
    ],
)
def test_boundaries_are_the_published_ones(alpha: float, looks: tuple[int, ...], published: tuple[float, ...]) -> None:
    # Published from 60,000 draws and two digits; the error of a boundary is about that of what is spent there.
    tolerance = 3 * math.sqrt(alpha / 60_000) + 0.5 * 10 ** (-4 if alpha == 0.01 else -3)
    assert boundaries(alpha, looks, 1) == pytest.approx(published, abs=tolerance)


def test_the_first_look_spends_its_share_exactly() -> None:
    assert boundaries(0.01, (3, 5, 8), 1)[0] == pytest.approx(0.01 * 3 / 8, abs=4 * math.sqrt(0.00375 / 1e6))
    assert boundaries(0.05, (5,), 1)[0] == pytest.approx(0.05, abs=4 * math.sqrt(0.05 / 1e6))


@pytest.mark.parametrize("variants", [2, 3, 7])
@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_one_look_is_dunnetts_test(variants: int, alpha: float) -> None:
    (boundary,) = boundaries(alpha, (5,), variants)
    df = 4 * (variants + 1)
    # Dunnett's critical value: the maximum of normals correlated 1/2 over a common chi, by quadrature.
    z, weights = np.polynomial.hermite_e.hermegauss(80)
    scale = np.sqrt(stats.chi2.ppf((np.arange(2000) + 0.5) / 2000, df) / df)

    def exceeds(t: float) -> float:
        below = stats.norm.cdf(math.sqrt(2) * t * scale[:, None] + z) ** variants
        return 1 - float((below @ weights).mean()) / math.sqrt(2 * math.pi)

    assert exceeds(-stats.t.ppf(boundary, df)) == pytest.approx(alpha, abs=4 * math.sqrt(alpha / 1e6))
    # scipy's p-value of a study whose smallest p lies on the boundary
    losses = np.random.default_rng(variants).normal(0, 1, (variants + 1, 5))
    losses -= losses.mean(-1, keepdims=True)
    error = math.sqrt(losses.var(-1, ddof=1).mean() * 2 / 5)
    losses[1] += stats.t.ppf(boundary, df) * error
    p = stats.dunnett(*losses[1:], control=losses[0], alternative="less", rng=np.random.default_rng(0)).pvalue
    assert p.min() == pytest.approx(alpha, rel=0.05)


@pytest.mark.parametrize("variants", [1, 2, 7])
def test_looks_spend_alpha_in_proportion_to_the_seeds_in_fresh_draws(variants: int) -> None:
    rule, studies = Rule(0.05, futility=1.0), 40_000
    losses = np.random.default_rng(77).standard_normal((studies, variants + 1, 8))
    racing, spent = np.ones((studies, variants), bool), np.zeros(studies, bool)
    for seeds, limit in zip(rule.looks, boundaries(0.05, rule.looks, variants), strict=True):
        found = look(losses[..., :seeds], racing, limit, rule)
        spent, racing = spent | found.claimed.any(-1), found.racing
        share = 0.05 * seeds / 8
        assert abs(spent.mean() - share) < 4 * math.sqrt(share / studies)


# --- what the rule promises -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variants", [3, 7])
@pytest.mark.parametrize(("alpha", "bound"), [(0.01, 0.012), (0.05, 0.0545)])
def test_staged_studies_without_effects_claim_falsely_with_at_most_alpha(
    variants: int, alpha: float, bound: float
) -> None:
    world = World((1.5,) * variants, null=True)
    outcomes = simulate(Rule(alpha, pivots=1), world, (0.2, 0.6, 1.0), 10_000, seed=3)
    assert outcomes.raced.any(-1).mean() > 0.6
    assert outcomes.claimed.any(-1).mean() <= bound


@pytest.mark.parametrize("futility", [0.35, 0.8])
def test_arms_that_leave_a_race_do_not_raise_false_claims(futility: float) -> None:
    rule, studies = Rule(0.05, 0, 0, promote=7, futility=futility), 30_000
    claimed = simulate(rule, World((1.0,) * 7, null=True), (0.2, 0.6, 1.0), studies, seed=3).claimed.any(-1)
    assert abs(claimed.mean() - 0.05) < 3 * math.sqrt(0.05 / studies)


def test_stages_that_favour_a_variant_do_not_raise_false_claims() -> None:
    world = World((3.0,) * 3, correlation=(0.2, 0.2), null=True)
    outcomes = simulate(Rule(0.05), world, (0.2, 0.6, 1.0), 20_000, seed=4)
    assert outcomes.raced.any(-1).mean() > 0.5
    assert outcomes.claimed.any(-1).mean() <= 0.05 + 3 * math.sqrt(0.05 / 20_000)


@pytest.mark.parametrize("effect", [0.0, -1.0, -3.0, 1.0])
@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_the_interval_of_a_race_covers_wherever_it_ends(effect: float, alpha: float) -> None:
    rule, studies, variants = Rule(alpha), 20_000, 2
    losses = np.random.default_rng(11).standard_normal((studies, variants + 1, 8))
    losses[:, 1] += effect  # the other has none
    racing, ends = np.ones((studies, variants), bool), np.zeros((2, studies, variants))
    limits = boundaries(alpha, rule.looks, variants)
    for seeds, limit in zip(rule.looks, limits, strict=True):
        found = look(losses[..., :seeds], racing, limit, rule)
        difference, low, high = race_interval(losses[..., :seeds], racing, limits[-1])
        assert ((low < difference) & (difference < high))[racing].all() and np.isnan(low[~racing]).all()
        assert (high[found.claimed] < 0).all()  # a claim and its interval agree
        ends = np.where(racing, [low, high], ends)
        racing = found.racing
        losses[:, 1:, seeds:][~racing] = np.nan
    covered = ((ends[0] <= [effect, 0.0]) & ([effect, 0.0] <= ends[1])).all(-1).mean()  # both at once
    assert covered >= 1 - 2 * alpha - 3 * math.sqrt(2 * alpha / studies)


def test_the_interval_is_that_of_a_pooled_t_test() -> None:
    losses = draws(5, 2, 5)
    difference, low, high = race_interval(losses, np.ones(1, bool), 0.025)
    want = stats.ttest_ind(losses[1], losses[0]).confidence_interval(0.95)
    assert (low[0], high[0]) == pytest.approx((want.low, want.high))
    assert difference[0] == pytest.approx(losses[1].mean() - losses[0].mean())


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": 0.5}, "from 0.001 to below 0.5"),
        ({"alpha": 1e-4}, "from 0.001"),
        ({"alpha": math.nan}, "alpha=nan: give"),
        ({"looks": ()}, "growing numbers of seeds"),
        ({"looks": (1, 3)}, "the first at least 2"),
        ({"looks": (3, 3)}, "growing"),
        ({"looks": (5, 3)}, "growing"),
        ({"screen_seeds": 1}, "screen_seeds=1: give at least 2"),
        ({"check_seeds": -1}, "check_seeds=-1: give at least 2"),
        ({"keep": 0}, "keep is a share up to 1"),
        ({"keep": 1.1}, "keep=1.1"),
        ({"keep_at_least": 0}, "keep_at_least=0"),
        ({"promote": 0}, "promote 1 or more"),
        ({"pivots": -1}, "pivots=-1"),
        ({"slack": -0.1}, "slack=-0.1"),
        ({"futility": 0}, "futility=0: give the p-value"),
    ],
)
def test_a_rule_out_of_range_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rule(**values)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda losses: losses[:, :1], "seeds=1: .* run at least 2"),
        (lambda losses: np.where(np.arange(4)[:, None] == 0, np.nan, losses), "the baseline has .* run it again"),
        (lambda losses: np.full_like(losses, 2.3), "check that the seed reaches"),
        (lambda losses: np.repeat(losses[:, :1], 3, 1) * (1 + 1e-15 * np.arange(3)), "do not spread over seeds"),
    ],
)
def test_losses_that_cannot_be_judged_are_refused(spoil: Callable[[np.ndarray], np.ndarray], message: str) -> None:
    losses, everyone = spoil(draws(1, 4, 3)), np.ones(3, bool)
    for decide in (
        partial(screen, losses, RULE),
        partial(check, losses, everyone, RULE),
        partial(look, losses, everyone, 0.01, RULE),
        partial(race_interval, losses, everyone, 0.01),
    ):
        with pytest.raises(ValueError, match=message):
            decide()


def test_a_race_of_nobody_has_no_boundaries() -> None:
    with pytest.raises(ValueError, match="no variant entered the race"):
        boundaries(0.05, (3, 5, 8), 0)
