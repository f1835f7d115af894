"""Figures that weigh the variants of a study: final losses, size, speed, memory, learning rates, what was matched."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox
from scipy import special

from gptlib.report.style import (
    FULL,
    GREY,
    HALO,
    INK,
    LIGHT,
    NARROW,
    broken,
    figure_of,
    legend,
    marks,
    name_points,
    new_axes,
    note_at,
    styles,
    wrapped,
)
from gptlib.stats.compare import mean_interval
from gptlib.study.hypothesis import METRICS, Analysis

LOSS = Analysis().label
LEVEL = 0.95
FIT_COLOURS = {"matched": ("#DDF0E8", "#00704F"), "free": ("#EEF0F3", INK), "confounded": ("#FBE3D3", "#9A3C00")}


def final_losses(frame: pd.DataFrame, width: float = FULL) -> Figure:
    """Final losses of every run, a row per variant, the best on top: seeds, their mean, its interval, the noise band.

    `frame` columns: variant, seed, and an Analysis.metric, NaN or inf where a run has none (they are counted beside the
    name). The interval is Student's of the mean, 95 %. The band is the 95 % prediction interval of a single run of the
    baseline, mean ± t s sqrt(1 + 1/n) with n - 1 degrees of freedom: where the next baseline run will fall. Two
    deviations would be too narrow for few seeds. No interval and no band with one seed. Either may leave the axis,
    which is set by the runs.
    """
    metric = next(metric for metric in METRICS if metric in frame)
    looks, values = (
        styles(frame["variant"]),
        frame.assign(value=frame[metric].astype(float)).replace(math.inf, math.nan),
    )
    runs = {name: values.loc[values["variant"] == name, "value"] for name in looks}
    ranked = sorted(looks, key=lambda name: -np.nan_to_num(runs[name].mean(), nan=math.inf))
    title = f"{METRICS[metric][0].capitalize()} of every run"
    figure, (axes,) = new_axes(title, (width, 1.1 + 0.36 * max(1, len(ranked))), grid=(1, 1))
    if "baseline" in looks and runs["baseline"].count() > 1:
        low, high = prediction_interval(runs["baseline"].dropna().to_numpy())
        label = f"{LEVEL:.0%} prediction interval of one more baseline run".replace("%", " %")
        axes.axvspan(low, high, color=LIGHT, lw=0, zorder=0, label=label)
    marked = marks(looks)
    for y, name in enumerate(ranked):
        found, colour = runs[name].dropna(), looks[name]["color"]
        axes.plot(found, [y - 0.16] * len(found), "o", ms=4, color=colour, alpha=0.6, mew=0, zorder=3)
        if len(found):
            interval = mean_interval(found)
            if interval.low is not None and interval.high is not None:
                axes.plot([interval.low, interval.high], [y + 0.12] * 2, color=colour, lw=2, zorder=3)
            axes.plot(interval.mean, y + 0.12, marked[name], ms=6.5, color=colour, mec="white", mew=0.7, zorder=4)
    axes.plot([], [], "o", ms=4, color=GREY, label="one run")
    axes.plot([], [], "D-", ms=5, color=GREY, lw=2, mec="white", mew=0.7, label="mean, its 95 % t interval")
    _name_rows(axes, [(name, len(runs[name]) - int(runs[name].count())) for name in ranked])
    finite = values["value"].dropna()
    if len(finite):
        span = float(np.ptp(finite)) or 0.01
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, finite.min() - 0.6 * span), min(high, finite.max() + 0.6 * span))
    axes.locator_params(axis="x", nbins=5 if width >= NARROW else 4)
    axes.set_xlabel(Analysis(metric=metric).label)
    legend(figure)
    return figure


def prediction_interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Where one more value of the same normal distribution falls with the chance `level`, from two values or more."""
    n = len(values)
    half = float(special.stdtrit(n - 1, (1 + level) / 2) * values.std(ddof=1) * math.sqrt(1 + 1 / n))
    return float(values.mean()) - half, float(values.mean()) + half


def loss_against_parameters(frame: pd.DataFrame, metric: str = LOSS, width: float = FULL) -> Figure:
    """Mean loss with its interval over the number of parameters (logarithmic), a named point per variant.

    `frame` columns: variant, parameters, loss, low, high (NaN without an interval). The dashed line is the baseline's
    loss. Variants without a loss are named in the note.
    """
    title = "Loss against parameters"
    figure, (axes,) = new_axes(title, (width, 3.6 if width >= NARROW else 3.0))
    looks, marked = styles(frame["variant"]), marks(frame["variant"])
    drawn = frame[np.isfinite(frame["loss"].astype(float))]
    for row in drawn.to_dict("records"):
        _point(axes, (row["parameters"], row["loss"]), (row["low"], row["high"]), looks, marked, row["variant"])
    base = drawn.loc[drawn["variant"] == "baseline", "loss"]
    if len(base):
        axes.axhline(float(base.iloc[0]), color=INK, lw=0.8, ls="--", zorder=1, label="baseline's loss")
    sizes = drawn["parameters"].astype(float)
    axes.set_xscale("log")
    axes.margins(0.14, 0.14)
    if len(sizes):
        middle, reach = math.sqrt(sizes.min() * sizes.max()), max(1.25, (sizes.max() / sizes.min()) ** 0.7)
        axes.set_xlim(middle / reach, middle * reach)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7), numticks=20))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="parameters", ylabel=metric)
    lost = [name for name in looks if name not in set(drawn["variant"])]
    legend(figure, "bars: interval of the mean" + (f"; without a loss: {', '.join(lost)}" if lost else ""))
    left, right = axes.get_xlim()
    _name(axes, drawn, "parameters", "loss", [(left, y, right, y) for y in base.head(1)])
    return figure


def trade_off(frame: pd.DataFrame, metric: str = LOSS, width: float = FULL) -> Figure:
    """Loss bought with computation: difference to the baseline's loss over the ratio to its FLOPs.

    `frame` columns: variant, difference, low, high (NaN without an interval), ratio (variant / baseline). Lower left
    is better on both counts. Variants without a difference or a ratio are named in the note.
    """
    figure, (axes,) = new_axes("Loss against FLOPs", (width, 3.8 if width >= NARROW else 3.2))
    others = frame[frame["variant"] != "baseline"]
    looks, marked = styles(["baseline", *others["variant"]]), marks(["baseline", *others["variant"]])
    drawn = others[np.isfinite(others["difference"].astype(float)) & np.isfinite(others["ratio"].astype(float))]
    axes.axhline(0, color=INK, lw=1, zorder=1)
    axes.axvline(1, color=INK, lw=1, zorder=1)
    for row in drawn.to_dict("records"):
        _point(axes, (row["ratio"], row["difference"]), (row["low"], row["high"]), looks, marked, row["variant"])
    axes.plot(1, 0, "o", ms=7, color=INK, mec="white", mew=0.7, zorder=5)
    low, high = _around(1, drawn["ratio"], 0.6)
    axes.set_xlim(max(0.0, low), high)
    axes.set_ylim(_around(0, drawn[["difference", "low", "high"]], 0.35))
    for right, words in ((0, "fewer FLOPs"), (1, "more FLOPs")):
        for top, word in ((0, "better"), (1, "worse")):
            style: dict[str, Any] = {"xycoords": "axes fraction", "ha": ("left", "right")[right], "style": "italic"}
            offset = (4 - 8 * right, 4 - 8 * top)
            note_at(axes, f"{word}, {words}", (right, top), offset, color=GREY, va=("bottom", "top")[top], **style)
    axes.locator_params(nbins=5)
    axes.set(xlabel="FLOPs of a run: variant / baseline", ylabel=wrapped(f"variant − baseline\n{metric}", 0.8 * 3.8))
    lost = [name for name in others["variant"] if name not in set(drawn["variant"])]
    legend(figure, "bars: interval of the difference" + (f"; not drawn: {', '.join(lost)}" if lost else ""))
    both = pd.concat([pd.DataFrame({"variant": ["baseline"], "ratio": [1.0], "difference": [0.0]}), drawn])
    edges = (*axes.get_xlim(), *axes.get_ylim())
    _name(axes, both, "ratio", "difference", [(edges[0], 0, edges[1], 0), (1, edges[2], 1, edges[3])])
    return figure


def _around(centre: float, values: Any, least: float) -> tuple[float, float]:
    """Ends of an axis with room for names around `values`; either side of `centre` has `least` of the longer one."""
    off = np.asarray(values, dtype=float).ravel() - centre
    off = off[np.isfinite(off)]
    low, high = min(0.0, *off, 0.0), max(0.0, *off, 0.0)
    longer = max(-low, high) or 0.05
    return centre + 1.3 * min(low, -least * longer), centre + 1.3 * max(high, least * longer)


def rate_sweep(frame: pd.DataFrame, metric: str = LOSS, width: float = FULL) -> Figure:
    """Final loss over the learning rate (logarithmic), a line per arm, with what diverged.

    `frame` columns: arm, lr, loss (mean of the runs that finished, NaN where none did), diverged and runs (counts). A
    cross at the top edge stands for a rate at which runs diverged, with how many of how many; the square is an arm's
    best rate among those at which none did, the bar at the lower edge the largest of those below its first divergence.
    """
    figure, (axes,) = new_axes("Learning rates", (width, 3.2 if width >= NARROW else 2.9))
    looks, marked = styles(frame["arm"]), marks(frame["arm"])
    for number, (arm, look) in enumerate(looks.items()):
        rows = frame[frame["arm"] == arm].astype({"lr": float, "loss": float}).sort_values("lr")
        _draw_arm(axes, arm, number, rows, {"marker": marked[arm], **look})
    low, high = axes.get_ylim()
    under = 0.04 + 0.08 * len(looks)  # room for the bars, and above the data for the crosses
    above = (1 + under) * (1 / max(0.3, 0.9 - 0.08 * len(looks)) - 1) if frame["diverged"].any() else 0
    axes.set_ylim(low - (high - low) * under, high + (high - low) * above)
    axes.margins(x=0.09)
    rate_axis(axes, list(frame["lr"].astype(float)))
    axes.set(xlabel="learning rate", ylabel=metric)
    legend(figure, "square: best rate; bar at the lower edge: largest stable rate; cross: diverged, of how many runs")
    return figure


def _draw_arm(axes: Axes, arm: str, number: int, rows: pd.DataFrame, look: Mapping[str, Any]) -> None:
    """Losses of one arm over its rates, the best and the largest stable one, and what diverged."""
    lost, stable = rows[rows["diverged"] > 0], rows[(rows["diverged"] == 0) & rows["loss"].notna()]
    below = stable[stable["lr"] < (lost["lr"].min() if len(lost) else math.inf)]
    label = f"{arm}: " + (f"stable to {below['lr'].max():.3g}" if len(below) else "no stable rate")
    axes.plot(rows["lr"], rows["loss"], ms=5, lw=1.6, label=label, **look)
    best, colour = stable.nsmallest(1, "loss"), look["color"]
    axes.plot(best["lr"], best["loss"], "s", ms=11, mfc="none", color=colour)
    at = [0.03 + 0.06 * number] * min(1, len(below))
    axes.plot(below["lr"].tail(1), at, "|", ms=9, mew=3, color=colour, transform=axes.get_xaxis_transform())
    for row in lost.to_dict("records"):
        cross_on_top(axes, row["lr"], number, colour, f"{row['diverged']:.0f}/{row['runs']:.0f}")


def cross_on_top(axes: Axes, value: Any, row: int, colour: str, count: str = "") -> None:
    """A cross at the top edge above `value`, each arm's in a `row` of its own, with a count beside it."""
    y = 0.95 - 0.08 * row
    axes.plot(value, y, "x", ms=8, mew=2, transform=axes.get_xaxis_transform(), color=colour, clip_on=False)
    if count:
        note_at(axes, count, (value, y), (7, 0), xycoords=axes.get_xaxis_transform(), va="center", color=colour)


def rate_axis(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis for `values` with a few plain numbers."""
    axes.set_xscale("log")
    wide = max(values, default=1) > 60 * min(values, default=1)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if wide else (1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def throughput_and_memory(frame: pd.DataFrame, width: float = FULL) -> Figure:
    """Tokens per second and peak memory of each variant, with its ratio to the baseline's, whose value is a line.

    `frame` columns: variant, tokens_per_second, memory_mib (MiB; NaN where not measured), a row per variant or per run:
    of several runs the bar is the mean and the whisker the range. Side by side, one above the other where narrow.
    """
    looks, narrow = styles(frame["variant"]), width < NARROW
    names = list(looks)[::-1]
    size = (width, (2 if narrow else 1) * (0.75 + 0.3 * max(1, len(names))))
    figure, panels = new_axes("Throughput and memory", size, grid=(2, 1) if narrow else (1, 2))
    for number, (axes, column, label) in enumerate(
        zip(
            panels,
            ("tokens_per_second", "memory_mib"),
            ("tokens/s (higher is better)", "peak memory (MiB)"),
            strict=True,
        )
    ):
        runs = frame.astype({column: float}).groupby("variant")[column]
        base = float(runs.mean().get("baseline", math.nan))
        for y, name in enumerate(names):
            _bar(axes, y, runs.get_group(name).dropna().to_numpy(), base, looks[name]["color"])
        if math.isfinite(base):
            axes.axvline(base, color=INK, lw=1, ls="--", zorder=3, label="baseline")
        _name_rows(axes, [(name, 0) for name in names], named=narrow or number == 0)
        top = frame[column].astype(float).max()
        axes.set_xlim(0, 1.32 * top if top > 0 else 1)
        axes.locator_params(axis="x", nbins=4)
        axes.xaxis.set_major_formatter(EngFormatter(sep="") if top >= 1e4 else "{x:,g}")
        axes.set_xlabel(label)
    several = frame["variant"].duplicated().any()
    legend(
        figure, "number: ratio to the baseline" + ("; bar: mean of the runs, whisker: their range" if several else "")
    )
    return figure


def matched_picture(
    table: pd.DataFrame, title: str = "What the two arms have in common", width: float = FULL
) -> Figure:
    """The frame of tables.matched_table as a picture, its column `fit` coloured: matched, free, confounded."""
    narrow = width < NARROW
    cells = [
        [broken(str(name), 15) if narrow else str(name), *map(str, row)]
        for name, row in zip(table.index, table.values, strict=True)
    ]
    head = [str(table.columns.name or "quantity"), *map(str, table.columns)]
    lines = [max(cell.count("\n") + 1 for cell in row) for row in [head, *cells]]
    heights = [0.16 * n + 0.1 for n in lines]
    figure, (axes,) = new_axes(title, (width, sum(heights) + 0.45))
    axes.set_axis_off()
    size = 6.6 if narrow else 9
    wide = [
        max((len(line) for row in [head, *cells] for line in row[i].split("\n")), default=1) + 2.5
        for i in range(len(head))
    ]
    wide[0], wide[-1] = 0.9 * wide[0], 1.2 * wide[-1]  # small letters are narrower than digits, bold ones wider
    drawn = axes.table(
        [head, *cells], colWidths=[w / sum(wide) for w in wide], loc="upper left", cellLoc="right", edges="horizontal"
    )
    drawn.auto_set_font_size(False)
    for (row, column), cell in drawn.get_celld().items():
        cell.set(height=heights[row] / sum(heights), edgecolor=LIGHT, linewidth=0.8)
        cell.get_text().set(fontsize=size, color=INK, ha="left" if column == 0 else "right", linespacing=1.05)
        cell.PAD = 0.01 if column == 0 else 0.06
        if row == 0:
            cell.get_text().set(fontweight="bold")
        elif column == len(head) - 1 and (tint := FIT_COLOURS.get(cells[row - 1][column])):
            cell.visible_edges = "closed"
            cell.set(facecolor=tint[0], edgecolor="white", fill=True)
            cell.get_text().set(
                color=tint[1], fontweight="bold" if cells[row - 1][column] == "confounded" else "normal"
            )
    return figure


def _bar(axes: Axes, y: int, values: np.ndarray, base: float, colour: str) -> None:
    """Mean of a variant's runs with their range, and at its end the ratio to the baseline."""
    if not len(values):
        note_at(axes, "not measured", (0, y), (4, 0), va="center", color=GREY)
        return
    mean = float(values.mean())
    axes.barh(y, mean, 0.62, color=colour, alpha=0.85, lw=0, zorder=2)
    if len(values) > 1:
        axes.plot([values.min(), values.max()], [y, y], color=INK, lw=1.2, zorder=4, path_effects=HALO)
    said = f"{mean / base:.2f}×" if math.isfinite(base) and base > 0 else f"{mean:,.0f}"
    note_at(axes, said, (1, y), (0, 0), xycoords=axes.get_yaxis_transform(), ha="right", va="center", zorder=5)


def _name_rows(axes: Axes, rows: Sequence[tuple[str, int]], named: bool = True) -> None:
    """Names of the rows from the bottom up, each with the number of runs that have no value."""
    narrow = figure_of(axes).get_figwidth() < NARROW
    labels = [
        broken(name, 16 if narrow else 26) + (f"\n({lost} without a loss)" if lost else "") for name, lost in rows
    ]
    axes.set_yticks(range(len(rows)), labels if named else [""] * len(rows))
    axes.set_ylim(-0.55, max(1, len(rows)) - 0.45)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def _point(
    axes: Axes,
    at: tuple[float, float],
    ends: tuple[float, float],
    looks: Mapping[str, Mapping[str, Any]],
    marked: Mapping[str, str],
    name: str,
) -> None:
    colour = looks[name]["color"]
    if None not in ends and all(map(math.isfinite, ends)):
        axes.plot([at[0]] * 2, ends, color=colour, lw=1.4, solid_capstyle="butt", zorder=3)
    axes.plot(*at, marked[name], ms=7, color=colour, mec="white", mew=0.7, zorder=4)


def _name(axes: Axes, rows: pd.DataFrame, x: str, y: str, lines: Sequence[tuple[float, float, float, float]]) -> None:
    """Each row's variant beside its point, clear of the intervals and of `lines` (x0, y0, x1, y1)."""
    known = rows.dropna(subset=["low", "high"]).to_dict("records")
    spans = [Bbox.from_extents(row[x], row["low"], row[x], row["high"]) for row in known]
    spans += [Bbox.from_extents(*line) for line in lines]
    points = [(float(a), float(b)) for a, b in zip(rows[x], rows[y], strict=True)]
    if points:
        name_points(axes, points, list(rows["variant"]), spans)
