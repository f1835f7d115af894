"""Figures of how sure a study can be: plans, power, what stages tell, money, and p-values without an effect."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gptlib.report.style import (
    FULL,
    GREY,
    INK,
    LIGHT,
    LINES,
    MARKS,
    PALETTE,
    legend,
    marks,
    new_axes,
    note_at,
    styles,
    wrapped,
)
from gptlib.stats.planner import StudyPlan
from gptlib.study.studies import ROLES


def plan_figure(plan: StudyPlan, target: float = 0.7, unit: str = "full runs", width: float = FULL) -> Figure:
    """Power of each design over what it is expected to cost, a whisker to its worst case; the chosen one is ringed.

    `unit` is that of the plan's prices, `target` the power that was asked for.
    """
    figure, (axes,) = new_axes("What a design costs and finds", (width, 2.9))
    axes.axhline(target, color=INK, lw=1, ls="--", label=f"power asked for, {target:g}", zorder=1)
    for number, design in enumerate(plan.designs):
        colour, chosen = PALETTE[number % len(PALETTE)], design == plan.chosen
        axes.plot([design.expected_cost, design.worst_cost], [design.power] * 2, color=colour, lw=1, zorder=2)
        axes.plot(design.worst_cost, design.power, "|", color=colour, ms=9, zorder=2)
        mark: dict[str, Any] = {"marker": MARKS[number % len(MARKS)], "ms": 6.5, "mec": "white", "mew": 0.6}
        label = f"{number + 1}  {design.name}" + (" (chosen)" if chosen else "")
        axes.plot(design.expected_cost, design.power, ls="", color=colour, label=label, zorder=4, **mark)
        if chosen:
            axes.plot(design.expected_cost, design.power, "o", ms=14, mfc="none", mec=INK, mew=1.2, zorder=3)
        weight = "bold" if chosen else "normal"
        note_at(axes, str(number + 1), (design.worst_cost, design.power), (6, 0), va="center", weight=weight)
    axes.set_xlim(0, 1.08 * max(design.worst_cost for design in plan.designs))
    axes.set_ylim(max(0.0, min([target, *(d.power for d in plan.designs)]) - 0.15), 1)
    power = f"power (best effect ≥ {plan.worth:.3g})"
    axes.set(xlabel=wrapped(f"cost ({unit})", width), ylabel=power)
    legend(figure, "point: expected, bar: worst case, ring: chosen")
    return figure


def power_curve_figure(
    frame: pd.DataFrame, unit: str = "standard deviations over seeds", width: float = FULL
) -> Figure:
    """Power over the true difference, a line per number of seeds; columns seeds (per arm), effect, power."""
    figure, (axes,) = new_axes("Power of a comparison", (width, 2.9))
    axes.axhline(0.8, color=GREY, lw=1, label="power 0.8", zorder=1)
    for number, (seeds, rows) in enumerate(frame.groupby("seeds")):
        rows = rows.sort_values("effect")
        style: dict[str, Any] = {"color": PALETTE[number % len(PALETTE)], "ls": LINES[number % len(LINES)]}
        axes.plot(rows["effect"], rows["power"], lw=2, label=f"{seeds} seeds per arm", **style)
    axes.set_ylim(0, 1.02)
    axes.margins(x=0)
    axes.set(xlabel=wrapped(f"true difference ({unit})", width), ylabel="power")
    legend(figure)
    return figure


def stage_ranks(frame: pd.DataFrame, width: float = FULL, unit: str = "nats/token") -> Figure:
    """Difference of each variant to the baseline at stages A, B and C, a line per variant; columns stage, variant,
    difference.

    The title has Spearman's rank correlation of each earlier stage with the last, over the variants that are in both.
    """
    table = frame.pivot_table(index="variant", columns="stage", values="difference", sort=False)
    stages = [stage for stage in ROLES if stage in table.columns]
    told = []
    for stage in stages[:-1]:
        both = table[[stage, stages[-1]]].dropna()
        if len(both) > 2:
            rho = float(both[stage].corr(both[stages[-1]], method="spearman"))
            told.append(
                f"{stage}–{stages[-1]} {rho:.2f} (n = {len(both)})".replace("-", "−").replace(" ", "\N{NO-BREAK SPACE}")
            )
    title = "What short runs told" + (f": Spearman {', '.join(told)}" if told else "")
    figure, (axes,) = new_axes(title, (width, 2.9))
    axes.axhline(0, color=INK, lw=1, zorder=1)
    looks, markers = styles(table.index), marks(table.index)
    for variant, row in table[stages].iterrows():
        values = row.dropna()
        places = [stages.index(stage) for stage in values.index]
        look: dict[str, Any] = {"marker": markers[str(variant)], **looks[str(variant)]}
        axes.plot(places, values, lw=1.8, ms=6, mec="white", mew=0.6, label=str(variant), **look)
    axes.set_xticks(range(len(stages)), [f"{stage} ({ROLES[stage]})" for stage in stages])
    axes.set_xlim(-0.15, len(stages) - 0.85)
    axes.grid(False, axis="x")
    note = "below zero is better; a line ends where its variant was dropped"
    axes.set(xlabel="stage", ylabel=f"variant − baseline ({unit})")
    legend(figure, note)
    return figure


def burn_down(frame: pd.DataFrame, width: float = FULL) -> Figure:
    """Dollars planned and spent by stage, and what is left of the budget; columns stage, planned, spent, remaining.

    `spent` is NaN for a stage that has not run.
    """
    figure, (axes,) = new_axes("Budget", (width, 2.9))
    places = np.arange(len(frame))
    spent, left = frame["spent"].astype(float), frame["remaining"].astype(float)
    axes.bar(places - 0.19, frame["planned"], 0.36, color=LIGHT, edgecolor=GREY, lw=0.8, label="planned, worst case")
    axes.bar(places + 0.19, spent.fillna(0), 0.36, color=PALETTE[0], label="spent")
    axes.plot(places, left, "o-", color=PALETTE[1], lw=2, ms=6, mec="white", mew=0.6, label="left of the budget")
    budget = float(left.iloc[0] + spent.fillna(0).iloc[0]) if len(frame) else math.nan
    if math.isfinite(budget):
        axes.axhline(budget, color=INK, lw=1, ls="--", label=f"budget, ${budget:,.2f}")
    for place, value in zip(places, left, strict=True):
        if math.isfinite(value):
            note_at(axes, f"${value:,.2f}", (float(place), value), (3, 5))
    axes.set_xticks(places, list(frame["stage"]))
    axes.set_xlim(-0.6, len(frame) - 0.25)
    axes.set_ylim(0, None)
    axes.margins(y=0.12)
    axes.grid(False, axis="x")
    axes.set(xlabel="stage", ylabel="dollars")
    legend(figure)
    return figure


def p_values(values: Sequence[float], alpha: float = 0.05, width: float = FULL) -> Figure:
    """Cumulative share of p-values of tests without an effect, with the uniform one and its pointwise 95 % band.

    Where the tests are right the steps stay in the band at all but about one in twenty points. Raises ValueError for no
    values or values that are no p-values.
    """
    found = np.sort(np.asarray(values, dtype=float))
    if not len(found) or not ((found >= 0) & (found <= 1)).all():
        raise ValueError(f"p_values: {len(found)} values; give one or more between 0 and 1")
    below, n = float((found <= alpha).mean()), len(found)
    low, high = binomial_band(n, np.array([alpha]))
    title = f"p-values without an effect: {100 * below:.1f} % are at most {alpha:g}"
    figure, (axes,) = new_axes(title, (width, 2.9))
    grid = np.linspace(0, 1, 401)
    axes.fill_between(grid, *binomial_band(n, grid), color=LIGHT, lw=0, label="its 95 % binomial band", zorder=0)
    axes.plot([0, 1], [0, 1], color=INK, lw=1, ls="--", label="uniform", zorder=1)
    axes.step(np.r_[0, found, 1], np.r_[0, np.arange(1, n + 1) / n, 1], where="post", color=PALETTE[0], lw=1.8,
              label=f"{n} comparisons", zorder=3)  # fmt: skip
    axes.axvline(alpha, color=PALETTE[1], lw=1, ls=":", zorder=2,
                 label=f"expected at {alpha:g}: {100 * low[0]:.1f} to {100 * high[0]:.1f} %")  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set(xlabel="p-value", ylabel="share of comparisons at or below")
    legend(figure)
    return figure


def binomial_band(n: int, p: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Shares of `n` between which a binomial count falls with at least `level`, for each chance in `p`."""
    from scipy import stats

    low, high = stats.binom.interval(level, n, p)
    return low / n, high / n
