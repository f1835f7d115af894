"""Operating characteristics of staged studies, as Markdown tables.

    .venv/bin/python benchmarks/staging.py [operating] [stage-noise] [unequal-noise] [plan] [--studies 20000]

operating: false claims, power and cost of every design that the planner compares, for 7 and 3 variants, with the
baseline paid and reused, in the standard world and with a first stage that tells little. stage-noise: the same with the
noise of tiny CPU trainings. unequal-noise: false claims where one arm is noisier than the others. plan: how long a plan
takes. Power is the chance to claim the best variant where its effect is 1.5 sigma or more; cost is relative to all arms
with 5 seeds each. Everything but the last table depends on the seeds alone.
"""

import argparse
import math
import time
from dataclasses import replace

import numpy as np
import scipy

from gptlib import records
from gptlib.stats.planner import World, candidate_rules, plan_study, simulate
from gptlib.stats.staging import Rule, boundaries, look

PRICES = (0.2, 0.6, 1.0)  # of one run of screen, check and race, in runs of full length
NULL_STUDIES = 10_000
SIZE = 1.5  # standard deviation of the effects thought possible, in sigma
TINY = (4.2, 1.6)  # noise of screen and check of tiny CPU trainings over that of the race


def operating(variants: int, studies: int) -> None:
    """False claims, power and cost of each design, at alpha 0.01."""
    worlds = {
        "random": World((SIZE,) * variants),
        "d = 2": one_effect(variants, 2.0),
        "d = 3": one_effect(variants, 3.0),
        "corr. .28": World((SIZE,) * variants, correlation=(0.28, 0.97)),
    }
    print(f"\n### {variants} variants\n")
    head("design", "baseline", "false claims, alpha .01", "alpha .05", *(f"power, {name}" for name in worlds),
         "cost, no effects", "cost, random", "worst case", "best lost")  # fmt: skip
    for name, reuse, rule in designs(variants):
        cells = [f"{false_claims(replace(rule, alpha=alpha), variants):.4f}" for alpha in (0.01, 0.05)]
        found = {key: power(rule, world, studies) for key, world in worlds.items()}
        cells += [f"{found[key][0]:.2f}" for key in worlds]
        null = simulate(rule, World((SIZE,) * variants, null=True), PRICES, NULL_STUDIES, seed=1).cost.mean()
        worst = float(np.dot(rule.worst_runs(variants), PRICES))
        cells += [percent(cost, variants) for cost in (null, found["random"][1], worst)]
        row(name, "reused" if reuse else "paid", *cells, f"{found['random'][2]:.2f}")


def stage_noise(studies: int) -> None:
    """Power and cost where screen and check are as noisy as those of tiny CPU trainings."""
    print(f"\n### Noise of screen and check {TINY[0]} and {TINY[1]} times that of the race\n")
    head("variants", "design", "baseline", "false claims, alpha .01", "power", "cost", "best lost")
    for variants in (7, 3):
        world = World((SIZE,) * variants, noise=TINY)
        for name, reuse, rule in designs(variants):
            found, cost, lost = power(rule, world, studies)
            claims = f"{false_claims(rule, variants, TINY):.4f}"
            cells = (claims, f"{found:.2f}", percent(cost, variants), f"{lost:.2f}")
            row(str(variants), name, "reused" if reuse else "paid", *cells)


def unequal_noise() -> None:
    """False claims of races in which one arm has more or less noise than the others: what pooling rests on."""
    print("\n### One arm with another spread: false claims of a race, 3, 5 and 8 seeds, 100,000 races\n")
    head("racing", "alpha", "all equal", "one variant x2", "one variant x1/2", "baseline x2", "baseline x1/2")
    for variants in (1, 2, 7):
        for alpha in (0.01, 0.05):
            cells = [
                f"{race_claims(alpha, variants, arm, factor):.4f}"
                for arm, factor in ((1, 1.0), (1, 2.0), (1, 0.5), (0, 2.0), (0, 0.5))
            ]
            row(str(variants), str(alpha), *cells)


def plan(studies: int) -> None:
    """Seconds of one core for the first plan for seven variants and for the next, whose boundaries are known."""
    seconds = []
    for _ in range(2):
        start = time.process_time()
        found = plan_study((SIZE,) * 7, 1.0, PRICES, studies=studies)
        seconds.append(time.process_time() - start)
    print(f"\n### A plan for 7 variants, {studies:,} studies of each of {len(found.designs)} designs\n")
    head("first (s)", "again (s)", "chosen", "power", "expected cost", "worst case")
    chosen, costs = found.chosen, (found.chosen.expected_cost, found.chosen.worst_cost)
    cells = [f"{seconds[0]:.1f}", f"{seconds[1]:.1f}", chosen.name, f"{chosen.power:.2f}"]
    row(*cells, *(percent(cost, 7) for cost in costs))


def designs(variants: int) -> list[tuple[str, bool, Rule]]:
    """Name, whether the baseline is reused, and rule."""
    return [
        (name, reuse, rule) for reuse in (False, True) for name, rule in candidate_rules(variants, 0.01, reuse).items()
    ]


def one_effect(variants: int, size: float) -> World:
    """One variant is better by `size`, the others are as the baseline; the stages mislead as in the random world."""
    spread = size / math.sqrt(variants)  # World's root mean square of the effects
    mislead = [SIZE * math.sqrt(1 / r**2 - 1) for r in World(()).correlation]
    return World(
        (-size,) + (0.0,) * (variants - 1),
        correlation=(1 / math.hypot(1, mislead[0] / spread), 1 / math.hypot(1, mislead[1] / spread)),
        fixed=True,
    )


def power(rule: Rule, world: World, studies: int) -> tuple[float, float, float]:
    """Chance to claim the best where it is worth it, mean cost, chance that such a best variant never races."""
    found = simulate(rule, world, PRICES, studies)
    counts, best = found.effect.min(-1) <= -1.5 * world.sigma, found.effect.argmin(-1)[:, None]
    claimed, raced = (np.take_along_axis(mask, best, -1)[counts].mean() for mask in (found.claimed, found.raced))
    return float(claimed), float(found.cost.mean()), float(1 - raced)


def false_claims(rule: Rule, variants: int, noise: tuple[float, float] = World(()).noise) -> float:
    world = World((SIZE,) * variants, noise=noise, null=True)
    return float(simulate(rule, world, PRICES, NULL_STUDIES, seed=1).claimed.any(-1).mean())


def race_claims(alpha: float, variants: int, arm: int, factor: float, races: int = 100_000) -> float:
    """Share of races that claim something where `arm` has `factor` times the noise of the others and no effect."""
    rule, rng, claims = Rule(alpha), np.random.default_rng(5), 0
    limits = boundaries(alpha, rule.looks, variants)
    for _ in range(races // 10_000):
        losses = rng.standard_normal((10_000, variants + 1, rule.looks[-1]))
        losses[:, arm] *= factor
        racing = np.ones((10_000, variants), bool)
        for seeds, limit in zip(rule.looks, limits, strict=True):
            found = look(losses[..., :seeds], racing, limit, rule)
            claims, racing = claims + int(found.claimed.any(-1).sum()), found.racing
            losses[:, 1:, seeds:][~racing] = np.nan
    return claims / races


def percent(cost: float, variants: int) -> str:
    return f"{100 * cost / (5 * (variants + 1)):.0f} %"


def head(*cells: str) -> None:
    row(*cells)
    print("|" + "---|" * len(cells))


def row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("operating", "stage-noise", "unequal-noise", "plan")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"{', '.join(names)}; default: all")
    parser.add_argument("--studies", type=int, default=20_000, help="simulated studies with effects, per design")
    args = parser.parse_args()
    if unknown := set(args.tables) - set(names):
        parser.error(f"{', '.join(sorted(unknown))}: the tables are {', '.join(names)}")
    asked = args.tables or names
    machine = records.environment()
    versions = f"Python {machine['python']}, numpy {np.__version__}, scipy {scipy.__version__}"
    print(f"{machine['cpu']}, {machine['platform']}, {versions}, {records.utc_now()[:10]}")
    if "operating" in asked:
        for variants in (7, 3):
            operating(variants, args.studies)
    if "stage-noise" in asked:
        stage_noise(args.studies)
    if "unequal-noise" in asked:
        unequal_noise()
    if "plan" in asked:
        plan(args.studies)


if __name__ == "__main__":
    main()
