"""Simulated studies: worlds, costs, operating characteristics, and the choice of a design."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gptlib.stats import planner
from gptlib.stats.planner import World, candidate_rules, characteristics, plan_study, simulate
from gptlib.stats.staging import Rule

PRICES = (0.2, 0.6, 1.0)
STUDIES = 4_000


def plan(**changes: Any) -> planner.StudyPlan:
    given: dict[str, Any] = {"effects": (1.5,) * 3, "sigma": 1.0, "stage_prices": PRICES, "studies": STUDIES}
    return plan_study(**given | changes)


# --- worlds ---------------------------------------------------------------------------------------------------------


def test_effects_of_the_stages_correlate_as_told() -> None:
    a, b, c = World((2.0,) * 5, correlation=(0.3, 0.9)).draw(20_000, np.random.default_rng(0))
    found = [float(np.corrcoef(stage.ravel(), c.ravel())[0, 1]) for stage in (a, b)]
    assert found == pytest.approx([0.3, 0.9], abs=0.015)
    assert c.std() == pytest.approx(2.0, rel=0.02)


def test_fixed_effects_are_kept_and_a_null_world_has_none_at_full_length() -> None:
    fixed = World((-2.0, 0.0, 1.0), correlation=(1.0, 1.0), fixed=True)
    for stage in fixed.draw(10, np.random.default_rng(0)):
        assert (stage == [-2.0, 0.0, 1.0]).all()
    a, _, c = World((2.0, 2.0), null=True).draw(1000, np.random.default_rng(0))
    assert (c == 0).all() and a.std() > 1


# --- costs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variants", [1, 2, 3, 7])
@pytest.mark.parametrize("reuse", [False, True])
def test_no_study_costs_more_than_its_worst_case(variants: int, reuse: bool) -> None:
    for rule in candidate_rules(variants, 0.05, reuse).values():
        for world in (World((1.5,) * variants), World((-4.0,) * variants, correlation=(1.0, 1.0), fixed=True)):
            cost = simulate(rule, world, PRICES, 500).cost
            assert cost.max() <= np.dot(rule.worst_runs(variants), PRICES) + 1e-9


def test_costs_are_runs_times_prices() -> None:
    world = World((-9.0, 30.0, 30.0), correlation=(1.0, 1.0), fixed=True)
    found = simulate(Rule(0.05, pivots=1), world, PRICES, 200)
    # screen 4 arms x 2; check the winner and the baseline x 3; one look decides on 3 seeds of both
    assert found.cost == pytest.approx(8 * 0.2 + 6 * 0.6 + 6 * 1.0)
    assert (found.claimed == [True, False, False]).all()
    reused = simulate(Rule(0.05, pivots=1, reuse_baseline=True), world, PRICES, 200)
    assert reused.cost == pytest.approx(6 * 0.2 + 3 * 0.6 + 3 * 1.0)


def test_hopeless_studies_end_after_the_screen() -> None:
    found = simulate(Rule(0.05, pivots=2), World((30.0,) * 4, correlation=(1.0, 1.0), fixed=True), PRICES, 200)
    assert found.cost == pytest.approx(10 * 0.2)
    assert not found.raced.any() and not found.claimed.any()


def test_a_pivot_pays_one_variant_more_and_the_baseline_once() -> None:
    # Of the two kept variants neither beats the baseline in the check, nor does the third: 2 + 1 + baseline.
    world = World((0.5,) * 3, noise=(1e-3, 1e-6), correlation=(1.0, 1.0), fixed=True, sigma=1.0)
    rule = replace(Rule(0.05, pivots=1), slack=math.inf)
    assert simulate(rule, world, PRICES, 50).cost == pytest.approx(8 * 0.2 + 4 * 3 * 0.6)


def test_units_do_not_matter() -> None:
    small = simulate(Rule(), World((0.015,) * 3, sigma=0.01), PRICES, 1000)
    large = simulate(Rule(), World((1.5,) * 3), PRICES, 1000)
    assert (small.claimed == large.claimed).all() and (small.cost == large.cost).all()


# --- goals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variants", "reuse", "rule", "cost", "power"),
    [
        (7, False, "screen, check, race", 0.65, 0.68),
        (3, True, "screen more, check, race", 0.55, 0.70),
        (3, False, "screen, check, race", 0.85, 0.70),
    ],
)
def test_staged_rules_are_cheap_and_powerful(variants: int, reuse: bool, rule: str, cost: float, power: float) -> None:
    world, rules = World((1.5,) * variants), candidate_rules(variants, 0.01, reuse)
    staged = characteristics(rule, rules[rule], world, PRICES, 1.5, 10_000)
    plain = candidate_rules(variants, 0.01)["all arms, 5 seeds"]
    naive = characteristics("naive", plain, world, PRICES, 1.5, 10_000)
    assert staged.expected_cost <= cost * naive.expected_cost
    assert staged.power >= power and staged.power >= naive.power - 0.02
    assert staged.false_claims <= 0.012
    assert naive.expected_cost == naive.worst_cost == 5 * (variants + 1)


def test_the_rule_of_the_documents_loses_the_best_more_often() -> None:
    world, rules = World((1.5,) * 7), candidate_rules(7, 0.01)
    top_one, staged = (
        characteristics(name, rules[name], world, PRICES, 1.5, STUDIES)
        for name in ("best of the screen only", "screen, check, race")
    )
    assert top_one.lost > 0.4 > 0.25 > staged.lost
    assert top_one.power < 0.45 and top_one.expected_cost < staged.expected_cost


# --- the choice -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variants", [1, 2, 7])
def test_the_cheapest_design_that_is_powerful_enough_is_chosen(variants: int) -> None:
    found = plan(effects=(1.5,) * variants, alpha=0.05)
    costs = [design.expected_cost for design in found.designs]
    assert costs == sorted(costs) and len(costs) == len(candidate_rules(variants, 0.05))
    enough = [design for design in found.designs if design.power >= 0.7]
    assert found.chosen == enough[0] and "the cheapest of 7 designs with power 0.7" in found.reason
    assert found.worth == 1.5 and all(design.false_claims < 0.065 for design in found.designs)


def test_a_budget_bounds_the_worst_case_of_the_choice() -> None:
    free = plan()
    tight = plan(budget=free.chosen.worst_cost - 0.1)
    assert tight.chosen.worst_cost < free.chosen.worst_cost
    hard = plan(power=0.999)
    assert "no design within the budget reaches power 0.999" in hard.reason
    assert hard.chosen.power == max(design.power for design in hard.designs)


def test_the_same_question_has_the_same_answer_and_in_every_unit() -> None:
    assert plan() == plan()
    cents = plan(effects=(0.015,) * 3, sigma=0.01, stage_prices=[100 * price for price in PRICES])
    assert cents.chosen.name == plan().chosen.name
    assert cents.chosen.power == plan().chosen.power
    assert cents.chosen.expected_cost == pytest.approx(100 * plan().chosen.expected_cost)


def test_stages_that_do_not_earn_their_price_are_named() -> None:
    assert plan().warnings == ()
    dear = plan(stage_prices=(0.2, 1.2, 1.0)).warnings
    assert len(dear) == 1 and "a run of the check costs 1.20 of a full one: leave the check out" in dear[0]
    blind = plan(effects=(1.5,) * 7, correlation=(0.2, 0.2), noise=(4.0, 4.0)).warnings
    assert len(blind) == 1 and "race at full length" in blind[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.0}, "alpha=0.0: give"),
        ({"alpha": 0.5}, "alpha=0.5: give"),
        ({"power": 1.0}, "power=1.0: give the chance"),
        ({"effects": ()}, "effects=.*give the size"),
        ({"effects": (0.0, 0.0)}, "one above 0"),
        ({"effects": (-1.0, 2.0)}, "give the size"),
        ({"effects": (math.nan,)}, "give the size"),
        ({"effects": (0.1, 0.1)}, "try bolder variants"),
        ({"sigma": 0.0}, "sigma=0.0: give .* an earlier study tells it"),
        ({"sigma": math.nan}, "sigma=nan: give"),
        ({"sigma": None}, "sigma=None: give"),
        ({"stage_prices": ()}, r"stage_prices=\[\]: give the price"),
        ({"stage_prices": (1.0, 2.0)}, "of screen, check and race"),
        ({"stage_prices": (0.0, 0.6, 1.0)}, "above 0"),
        ({"correlation": (0.0, 0.9)}, "correlation=.*above 0"),
        ({"correlation": (0.9,)}, "correlation="),
        ({"noise": (1.0, 0.0)}, "noise=.*give sigma of screen"),
        ({"budget": 3.0}, "budget=3: the smallest design .* may cost .*; raise the budget, drop variants"),
        ({"budget": math.nan}, "budget=nan"),
    ],
)
def test_a_plan_that_cannot_be_made_says_what_to_give(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**changes)
