"""Do the statistics do what they print? Seeded simulations, as Markdown tables.

    .venv/bin/python benchmarks/science.py [TABLE ...] [--reps 10000]

Without a TABLE all of them. Simulated runs are normal; every number goes through gptlib's own functions.
"""

import argparse
from collections.abc import Callable

import numpy as np

from gptlib.stats.compare import mean_interval, two_sample
from gptlib.stats.ratio import fieller, log_ratio

SEED = 2026
# What an interval of the baseline and the variant has for bounds; the true values are in `coverage`.
Bounds = Callable[[np.ndarray, np.ndarray], tuple[float | None, float | None]]


def main() -> None:
    tables = {"coverage": coverage}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=[*tables, []], metavar="TABLE", help=f"of {', '.join(tables)}")
    parser.add_argument("--reps", type=int, default=10_000, help="simulated studies for each cell")
    args = parser.parse_args()
    for name in args.tables or tables:
        print(tables[name](args.reps), flush=True)


def coverage(reps: int) -> str:
    """How often each printed 95 % interval holds the true value, for n runs an arm.

    The baseline is 1 with a standard deviation of 2 %, the variant 1.3 with the given multiple of that. Paired: common
    seeds give half of the baseline's variance. Monte-Carlo error at 10,000: 0.2 points.
    """
    intervals: dict[str, tuple[float, float, Bounds]] = {  # true value, share of the variance that is common
        "mean": (1.3, 0.0, lambda a, b: _bounds(mean_interval(b))),
        "difference, Welch": (0.3, 0.0, lambda a, b: _bounds(two_sample(a, b, "welch", permutation=False))),
        "difference, pooled": (0.3, 0.0, lambda a, b: _bounds(two_sample(a, b, "pooled", permutation=False))),
        "difference, paired": (0.3, 0.5, lambda a, b: _bounds(two_sample(a, b, "paired", permutation=False))),
        "ratio, logarithms": (1.3, 0.0, lambda a, b: _bounds(log_ratio(a, b))),
        "ratio, Fieller": (1.3, 0.0, lambda a, b: _bounds(fieller(a, b))),
        "ratio, Fieller paired": (1.3, 0.5, lambda a, b: _bounds(fieller(a, b, paired=True))),
    }
    sizes, spreads = (3, 5, 10), (1, 2)
    lines = [
        f"Coverage of the 95 % intervals in per cent, {reps:,} studies a cell.\n",
        f"| interval | {' | '.join(f'n = {n}, sd ratio {s}' for s in spreads for n in sizes)} |",
        "| --- |" + " ---: |" * (len(sizes) * len(spreads)),
    ]
    for name, (true, common, bounds) in intervals.items():
        shares = []
        for spread in spreads:
            for n in sizes:
                rng = np.random.default_rng([SEED, n, spread])
                own, shared = np.sqrt(1 - common), np.sqrt(common)
                noise = 0.02 * (own * rng.normal(size=(2, reps, n)) + shared * rng.normal(size=(reps, n)))
                found = [bounds(1 + a, 1.3 + spread * b) for a, b in zip(*noise, strict=True)]
                held = sum(low is not None and high is not None and low < true < high for low, high in found)
                shares.append(f"{100 * held / reps:.1f}")
        lines.append(f"| {name} | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


def _bounds(found: object) -> tuple[float | None, float | None]:
    return found.low, found.high  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
