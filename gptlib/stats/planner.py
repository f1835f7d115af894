"""What a study of some design will cost and find, by simulating it with the very functions that decide in it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gptlib.stats.staging import Rule, Screened, boundaries, check, look, pivot, screen

STUDIES = 20_000
DOMINATED = 0.8  # of the price of a full run: from there on a shorter one is not worth it
LIKELY = 0.01  # of all studies at least, hold an effect that counts: below, power is a matter of few draws


@dataclass(frozen=True)
class World:
    """What a simulated study meets, in the unit of the losses.

    The standard world of the defaults is that of the speedrun's logs and of tiny trainings: effects as large as one
    and a half times the noise between seeds, a noisier and less faithful first stage.
    """

    effects: tuple[float, ...]  # of each variant: the standard deviation of its true effect; 0: certainly none
    sigma: float = 1.0  # between seeds, at full length
    noise: tuple[float, float] = (1.7, 1.05)  # sigma of screen and check over that at full length
    correlation: tuple[float, float] = (0.71, 0.97)  # of the true effects at screen and check with the final ones
    fixed: bool = False  # effects are the true differences themselves, negative is better
    null: bool = False  # none of them is left at full length, whatever the first two stages show

    def draw(self, studies: int, rng: np.random.Generator) -> list[np.ndarray]:
        """True effects `(studies, variants)` at screen, check and full length."""
        size = np.asarray(self.effects, float)
        draws = np.ones((studies, 1)) if self.fixed else rng.standard_normal((studies, len(size)))
        final = draws * size
        spread = float(np.sqrt((size**2).mean()))
        mismatch = [spread * math.sqrt(1 / r**2 - 1) * rng.standard_normal(final.shape) for r in self.correlation]
        final = np.zeros_like(final) if self.null else final
        return [final + mismatch[0], final + mismatch[1], final]


@dataclass(frozen=True)
class Outcomes:
    """Of simulated studies: arrays of one value, or of one per variant, for each."""

    cost: np.ndarray  # (studies,)
    claimed: np.ndarray  # (studies, variants)
    raced: np.ndarray  # (studies, variants)
    effect: np.ndarray  # (studies, variants) at full length


def simulate(rule: Rule, world: World, prices: Sequence[float], studies: int = STUDIES, seed: int = 0) -> Outcomes:
    """Run `studies` studies through the decisions above. `prices` of one run of screen, check and race."""
    rng = np.random.default_rng(seed)
    effects, variants = world.draw(studies, rng), len(world.effects)
    base = 0 if rule.reuse_baseline else 1

    def losses(stage: int, seeds: int) -> np.ndarray:
        means = np.concatenate([np.zeros((studies, 1)), effects[stage]], -1)
        sigma = world.sigma * (*world.noise, 1.0)[stage]
        return means[..., None] + sigma * rng.standard_normal((studies, variants + 1, seeds))

    cost = np.zeros(studies)
    everyone = np.ones((studies, variants), bool)
    screened = Screened(everyone, np.zeros(everyone.shape, int), np.zeros(everyone.shape))
    if rule.screen_seeds:
        screened = screen(losses(0, rule.screen_seeds), rule)
        cost += prices[0] * rule.screen_seeds * (variants + base)
    racing = screened.kept
    if rule.check_seeds:
        checked = losses(1, rule.check_seeds)
        candidates, racing = racing, np.zeros_like(racing)
        for turn in range(1 + rule.pivots):
            asked = candidates.sum(-1)
            cost += prices[1] * rule.check_seeds * (asked + base * (asked > 0) * (turn == 0))
            racing |= check(checked, candidates, rule)
            candidates = pivot(screened, turn, rule) & ~racing.any(-1, keepdims=True)
    claimed, raced, full, seen = np.zeros_like(racing), racing, losses(2, rule.looks[-1]), 0
    full[:, 1:][~racing] = np.nan
    limits = _limits(rule, raced.sum(-1))
    for number, seeds in enumerate(rule.looks):
        arms = racing.sum(-1)
        cost += prices[2] * (seeds - seen) * (arms + base * (arms > 0))
        found = look(full[..., :seeds], racing, limits[:, number], rule)
        claimed, racing, seen = claimed | found.claimed, found.racing, seeds
        full[:, 1:, seeds:][~racing] = np.nan  # an arm that has left runs no more
    return Outcomes(cost, claimed, raced, effects[2])


def _limits(rule: Rule, entered: np.ndarray) -> np.ndarray:
    """The boundaries of each study's looks, by how many variants entered its race."""
    table = np.zeros((entered.max(initial=0) + 1, len(rule.looks)))
    for variants in set(entered.tolist()) - {0}:
        table[variants] = boundaries(rule.alpha, rule.looks, variants)
    limits: np.ndarray = table[entered]
    return limits


# --- planning ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Design:
    """A rule and how it does in a world."""

    name: str
    rule: Rule
    expected_cost: float
    worst_cost: float
    power: float  # chance to claim the best variant where its effect is worth it; nan: it never is
    false_claims: float  # share of studies without any effect that claim something
    lost: float  # chance that the best variant, where worth it, does not reach the race


@dataclass(frozen=True)
class StudyPlan:
    """The designs that were simulated, cheapest first, the one to take, why, and what to beware of."""

    designs: tuple[Design, ...]
    chosen: Design
    reason: str
    warnings: tuple[str, ...]
    worth: float  # the effect from which on the best variant counts


def candidate_rules(variants: int, alpha: float, reuse_baseline: bool = False) -> dict[str, Rule]:
    """The designs that the planner compares."""
    staged = Rule(alpha, reuse_baseline=reuse_baseline)
    race = replace(staged, screen_seeds=0, check_seeds=0, promote=variants)
    document = replace(staged, keep=1 / variants, keep_at_least=1, slack=math.inf, promote=1, futility=1.0, pivots=1)
    return {
        "all arms, 5 seeds": replace(race, looks=(5,), futility=1.0),
        "all arms, 8 seeds": replace(race, looks=(8,), futility=1.0),
        "race at full length": race,
        "screen, check, race": staged,
        "screen more, check, race": replace(staged, keep=2 / 3, futility=0.5),
        "screen, race": replace(staged, check_seeds=0, keep=2 / 3, promote=max(2, math.ceil(variants / 2))),
        "best of the screen only": replace(document, looks=(5,)),
    }


def characteristics(
    name: str, rule: Rule, world: World, prices: Sequence[float], worth: float, studies: int = STUDIES
) -> Design:
    """Operating characteristics of a rule in `world`, and in the same world without any effect."""
    outcomes = simulate(rule, world, prices, studies)
    null = replace(world, null=True)
    best = outcomes.effect.argmin(-1)[:, None]
    counts = outcomes.effect.min(-1) <= -worth
    found, raced = (np.take_along_axis(mask, best, -1)[counts, 0] for mask in (outcomes.claimed, outcomes.raced))
    return Design(
        name,
        rule,
        float(outcomes.cost.mean()),
        float(np.dot(rule.worst_runs(len(world.effects)), prices)),
        float(found.mean()) if counts.any() else math.nan,
        float(simulate(rule, null, prices, studies, seed=1).claimed.any(-1).mean()),
        float(1 - raced.mean()) if counts.any() else math.nan,
    )


def plan_study(
    effects: Sequence[float],
    sigma: float,
    stage_prices: Sequence[float],
    correlation: tuple[float, float] = (0.71, 0.97),
    budget: float = math.inf,
    alpha: float = 0.01,
    power: float = 0.7,
    noise: tuple[float, float] = (1.7, 1.05),
    reuse_baseline: bool = False,
    studies: int = STUDIES,
) -> StudyPlan:
    """The cheapest design, on average, that finds the best variant with `power` and never costs more than `budget`.

    `effects`: for each variant, how large its effect may be (standard deviation of what is thought possible, in the
    unit of `sigma`, the standard deviation over seeds at full length); `stage_prices`: of one run of screen, check and
    race; `correlation` and `noise` of the first two stages with the third: measured by an earlier study, else the
    defaults. An effect counts from 1.5 sigma on. Where no design is powerful enough the most powerful one is taken.
    Raises ValueError for values out of range, for effects that hardly ever count, and for a budget below every
    design's worst case.
    """
    _require_plan(effects, sigma, stage_prices, correlation, noise, power)
    world, worth = World(tuple(effects), sigma, noise, correlation), 1.5 * sigma
    likely = float((world.draw(studies, np.random.default_rng(0))[-1].min(-1) <= -worth).mean())
    if likely < LIKELY:
        raise ValueError(
            f"effects={list(effects)}: only {likely:.2%} of such studies hold an effect of {worth:g} (1.5 sigma), no "
            "race can be planned for that: try bolder variants, or plan the seeds of a single comparison"
        )
    designs = [
        characteristics(name, rule, world, stage_prices, worth, studies)
        for name, rule in candidate_rules(len(effects), alpha, reuse_baseline).items()
    ]
    designs.sort(key=lambda design: design.expected_cost)
    payable = [design for design in designs if design.worst_cost <= budget]
    if not payable:
        least = min(designs, key=lambda design: design.worst_cost)
        raise ValueError(
            f"budget={budget:g}: the smallest design ({least.name}) may cost {least.worst_cost:.4g}; raise the budget, "
            "drop variants, or shorten the runs"
        )
    powerful = [design for design in payable if design.power >= power]
    chosen = powerful[0] if powerful else max(payable, key=lambda design: design.power)
    reason = f"the cheapest of {len(designs)} designs with power {power:g} or more" if powerful else (
        f"no design within the budget reaches power {power:g}; this one comes closest"
    )  # fmt: skip
    return StudyPlan(tuple(designs), chosen, reason, _warnings(designs, stage_prices), worth)


def too_dear(stage: str, ratio: float) -> str:
    """The warning about a stage whose runs cost `ratio` of a full one, DOMINATED or more."""
    return f"a run of {stage} costs {ratio:.2f} of a full one: leave {stage} out, full runs tell more"


def _warnings(designs: list[Design], prices: Sequence[float]) -> tuple[str, ...]:
    """What a person should know about stages that do not earn their price."""
    warnings = [
        too_dear(f"the {stage}", price / prices[2])
        for stage, price in zip(("screen", "check"), prices, strict=False)
        if price >= DOMINATED * prices[2]
    ]
    named = {design.name: design for design in designs}
    race, staged = named["race at full length"], named["screen, check, race"]
    if race.power - staged.power > 0.15:
        warnings.append(
            f"screening is not informative here: it loses the best variant in {100 * staged.lost:.0f} % of all "
            f"studies (power {staged.power:.2f}, without it {race.power:.2f}); race at full length"
        )
    return tuple(warnings)


def _require_plan(
    effects: Sequence[float],
    sigma: float,
    prices: Sequence[float],
    correlation: Sequence[float],
    noise: Sequence[float],
    power: float,
) -> None:
    if not effects or not all(math.isfinite(e) and e >= 0 for e in effects) or not any(effects):
        raise ValueError(f"effects={list(effects)}: give the size thought possible of each variant, one above 0")
    if not (sigma and math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma={sigma}: give the standard deviation over seeds, above 0; an earlier study tells it")
    if len(prices) != 3 or not all(math.isfinite(p) and p > 0 for p in prices):
        raise ValueError(
            f"stage_prices={list(prices)}: give the price of one run of screen, check and race, above 0, or its minutes"
        )
    if len(correlation) != 2 or not all(0 < r <= 1 for r in correlation):
        raise ValueError(f"correlation={list(correlation)}: of screen and check with the full run, above 0, at most 1")
    if len(noise) != 2 or not all(math.isfinite(n) and n > 0 for n in noise):
        raise ValueError(f"noise={list(noise)}: give sigma of screen and of check over that of the full run, above 0")
    if not 0 < power < 1:
        raise ValueError(f"power={power}: give the chance to find what is worth it, between 0 and 1")
