"""What curves over training are drawn of, and the figure of how steady training was: gradient norms and spikes."""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from gptlib.report.style import FULL, GREY, INK, LIGHT, NARROW, broken, figure_of, legend, letters, new_axes, styles

# loss_curves shows the last two thirds of the run in at least a third of the height: earlier points may be cut.
EARLY, ZOOM = 1 / 3, 3.0
WINDOW, LEAST, DEVIATIONS = 64, 10, 7.0  # of a spike: see `spikes`
PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


def axis_of(frame: pd.DataFrame, x: str) -> tuple[pd.Series, str]:
    """The values of column `x` in a readable unit, and the label of their axis. Raises ValueError without the column.

    x: step, train_time_ms, tokens, or flops; the last is no column of a run's metrics.
    """
    if x not in frame:
        how = "frame.assign(flops=frame['tokens'] * FLOPs per token)" if x == "flops" else f"a column {x!r}"
        raise ValueError(f"loss_curves: x={x!r}, and the frame has no such column; give it {how}")
    values, top = frame[x].astype(float), float(frame[x].max())
    if x == "train_time_ms":
        factor, unit = (1e3, "s") if not top > 6e5 else (6e4, "min") if top < 1.08e7 else (3.6e6, "h")
        return values / factor, f"training time ({unit})"
    if x == "tokens":
        factor, unit = next(((f, f" ({w})") for f, w in ((1e9, "billions"), (1e6, "millions")) if top >= f), (1.0, ""))
        return values / factor, f"training tokens{unit}"
    if x == "flops":
        factor, unit = next(((f, p) for f, p in PREFIXES if top >= f), (1.0, ""))
        return values / factor, f"training compute ({unit}FLOP)"
    return values, "step"


def diverged_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """The last row of every run that diverged, indexed by (variant, seed).

    Those are the runs of which a column `diverged` is true. In a frame without it, those with an evaluation that is
    infinite, and those whose last row has no count of tokens: training writes none in the row of a divergence, and in
    all others. (A curve that merely ends early is of a run that goes on, or that failed.)
    """
    last = frame.groupby(["variant", "seed"], sort=False).tail(1).set_index(["variant", "seed"])
    runs = frame.groupby(["variant", "seed"], sort=False)
    if "diverged" in frame:
        return last[runs["diverged"].any().reindex(last.index, fill_value=False)]
    lost = runs["val_loss"].agg(lambda v: bool(np.isinf(v.astype(float)).any())) if "val_loss" in frame else None
    if "tokens" in frame:
        measured = [column for column in ("train_loss", "val_loss", "grad_norm") if column in frame]
        empty = frame.assign(_any=frame[measured].notna().any(axis=1)).groupby(["variant", "seed"], sort=False)["_any"]
        known = (runs["tokens"].count() > 0) | ~empty.any()
        stopped = (
            last["tokens"].isna() & known.reindex(last.index, fill_value=False) & bool(frame["tokens"].notna().any())
        )
        lost = stopped if lost is None else lost | stopped
    return last.iloc[:0] if lost is None else last[lost.reindex(last.index, fill_value=False)]


def mean_curve(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean, `low` and `high` over seeds of `column`, and the mean of x, at the steps that every seed has."""
    rows = rows.dropna(subset=[column])
    steps = rows.groupby("step")
    found = steps[["x", column]].mean().assign(low=steps[column].min(), high=steps[column].max())
    return found[steps["seed"].nunique() == rows["seed"].nunique()]


def draw_losses(axes: Axes, scored: pd.DataFrame, looks: dict[str, dict[str, Any]], labels: dict[str, str]) -> None:
    """A thick line for the mean over seeds; beside it a thin line per seed of one variant, or else a band, their range.

    A run that diverged (`lost`) is a thin line by itself: it would drag mean and band along. Where a band ends because
    a seed has no more evaluations, thin lines go on for the seeds that have.
    """
    for variant, look in looks.items():
        rows = scored[scored["variant"] == variant]
        mean = mean_curve(rows[~rows["lost"]], "val_loss")
        banded = len(looks) > 1 and len(mean) > 1
        if banded and rows["seed"].nunique() > 1:
            axes.fill_between(mean["x"], mean["low"], mean["high"], color=look["color"], alpha=0.16, lw=0, zorder=2)
        for _, run in rows.groupby("seed"):
            whole = not banded or run["lost"].any()
            rest = run if whole else run[run["step"] >= mean.index.max()]
            if len(rest) > 1 or whole:
                marker = "o" if len(run) == 1 else ""  # the first evaluation of a live run makes no line yet
                axes.plot(rest["x"], rest["val_loss"], lw=0.7, alpha=0.6, marker=marker, ms=4, zorder=2, **look)
        axes.plot(mean["x"], mean["val_loss"], lw=2, label=labels.get(variant, variant), zorder=3, **look)


def mark_diverged(axes: Axes, scored: pd.DataFrame, lost: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> None:
    """A cross where the curve of a diverged run ends or leaves the axes, at the top edge where it has no evaluation."""
    low, high = axes.get_ylim()
    top = high - 0.025 * (high - low)
    for row in lost.reset_index().to_dict("records"):
        run = scored[(scored["variant"] == row["variant"]) & (scored["seed"] == row["seed"])]
        xs, ys = run["x"].to_numpy(), run["val_loss"].to_numpy(dtype=float)
        x, y = (xs[-1], ys[-1]) if len(run) else (row["x"], math.inf)
        inside = np.flatnonzero(ys <= top)
        if y > top and len(inside):
            leaving = slice(inside[-1], inside[-1] + 2)
            x = np.interp(top, ys[leaving], xs[leaving])
        look = {"color": looks[row["variant"]]["color"], "ms": 8, "mew": 2, "clip_on": False, "zorder": 6}
        axes.plot(0.0 if math.isnan(x) else x, min(y, top), "x", **look)
    axes.set_ylim(low, high)


def limit_losses(axes: Axes, scored: pd.DataFrame, lowest: float | None) -> bool:
    """Let the interesting end be seen, and say so where that cuts values off; True if the upper right stays empty."""
    if scored.empty:
        axes.set_title("no evaluation yet", loc="right", fontsize=8, color=GREY)
        return False
    late = scored.loc[scored["x"] >= EARLY * scored["x"].max(), "val_loss"]
    bottom = min(scored["val_loss"].min(), math.inf if lowest is None else lowest)
    span, highest = late.quantile(0.95) - bottom, scored["val_loss"].max()  # a diverged run must not set the scale
    top = highest if span <= 0 else min(highest, bottom + ZOOM * span)
    pad = 0.05 * (top - bottom) or 0.01
    axes.set_ylim(bottom - pad, top + pad)
    if top < highest:
        cut = f"axis cut at {top:.2f}, highest value {highest:.2f}"
        narrow = figure_of(axes).get_figwidth() < NARROW
        axes.set_xlabel(f"{axes.get_xlabel()}{chr(10) if narrow else '  '}({cut})")
    return bool(late.max() - bottom < 0.42 * (top - bottom))


def inset_end(axes: Axes, scored: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> None:
    """The last quarter of the run enlarged, in the empty upper right, where the variants can be told apart."""
    end = scored[scored["x"] >= 0.75 * scored["x"].max()]
    if set(end["variant"]) != set(scored["variant"]) or end.groupby(["variant", "seed"]).size().min() < 2:
        return  # over time or FLOPs a cheap variant has ended before
    inset = axes.inset_axes((0.47, 0.5, 0.52, 0.45))
    draw_losses(inset, end, looks, {})
    inset.set_title("last quarter", loc="left", fontsize=7.5, color=GREY, pad=2)
    inset.tick_params(labelsize=7, length=2)
    inset.locator_params(nbins=4)
    inset.grid(True, color=LIGHT, lw=0.5)
    inset.margins(0.02, 0.05)


def spikes(norms: np.ndarray) -> np.ndarray:
    """Which of a run's logged gradient norms are spikes: DEVIATIONS above the median of up to WINDOW norms before.

    A deviation is 1.4826 times the median absolute deviation of the same norms, which is a standard deviation where
    they are normal, and at least 1 % of their median. The first LEAST norms are none. The count of seven deviations
    from a running mean is OLMo 2's spike score (arXiv 2501.00656); median and MAD in place of mean and standard
    deviation (Hampel 1974) keep one spike from hiding the next.
    """
    values = np.asarray(norms, dtype=float)
    found = np.zeros(len(values), dtype=bool)
    for i in range(LEAST, len(values)):
        before = values[max(0, i - WINDOW) : i]
        middle = np.median(before)
        deviation = 1.4826 * np.median(np.abs(before - middle))
        found[i] = values[i] > middle + DEVIATIONS * max(deviation, 0.01 * middle)
    return found


def stability(frame: pd.DataFrame, title: str = "Gradient norm before clipping", width: float = FULL) -> Figure:
    """Gradient norm over the steps, a panel per variant on common logarithmic axes: median over seeds, range as a band.

    `frame` columns: variant, seed, step, grad_norm (NaN where not measured), and what `diverged_runs` goes by.
    Triangles are `spikes`, found in each run by itself; a cross is where a run diverged. The baseline's median is
    repeated, thin, in every panel.
    """
    looks, lost = styles(frame["variant"]), diverged_runs(frame)
    rows = frame.dropna(subset=["grad_norm"]).assign(x=lambda f: f["step"])
    columns = min(len(looks), 2 if width < NARROW or len(looks) == 4 else 3)
    grid = (max(1, -(-len(looks) // max(1, columns))), max(1, columns))
    tall = 2.8 if len(looks) < 2 else 1.1 + grid[0] * (1.35 if width < NARROW else 1.6)
    figure, panels = new_axes(title, (width, tall), grid=grid)
    base = rows[rows["variant"] == "baseline"].groupby("step")["grad_norm"].median()
    for axes, (variant, look) in zip(panels, looks.items(), strict=False):
        if variant != "baseline" and len(base):
            axes.plot(base.index, base, color=INK, lw=0.8, alpha=0.7, zorder=2, label="baseline's median")
        said = _draw_norms(axes, rows[rows["variant"] == variant], look["color"])
        ends = lost[lost.index.get_level_values("variant") == variant]
        for step in ends["step"]:
            axes.plot(step, 0.94, "x", color=look["color"], ms=8, mew=2, transform=axes.get_xaxis_transform(), zorder=6)
        said += f"\n{len(ends)} diverged" if len(ends) else ""
        axes.set_title(
            f"{broken(variant, 18 if width < NARROW else 24)}\n{said}",
            loc="left",
            fontsize=letters(figure),
            color=INK,
            pad=3,
        )
    _share(panels, len(looks), grid[1], rows)
    panels[0].plot([], [], color=GREY, lw=1.6, label="median over seeds")
    panels[0].fill_between([], [], [], color=GREY, alpha=0.25, lw=0, label="range over seeds")
    panels[0].plot([], [], "v", color=GREY, ms=5, label="spike")
    if len(lost):
        panels[0].plot([], [], "x", color=GREY, ms=7, mew=2, label="diverged")
    rule = (
        f"spike: more than {DEVIATIONS:g} deviations (1.4826 MAD) above the median of the {WINDOW} logged norms before"
    )
    legend(figure, rule)
    return figure


def _draw_norms(axes: Axes, rows: pd.DataFrame, colour: str) -> str:
    """Median and range of one variant's norms, its spikes as triangles; returns how many those are."""
    steps = rows.groupby("step")["grad_norm"]
    middle = steps.median()
    axes.plot(middle.index, middle, color=colour, lw=1.3, zorder=3)
    if rows["seed"].nunique() > 1:
        axes.fill_between(middle.index, steps.min(), steps.max(), color=colour, alpha=0.25, lw=0, zorder=1)
    count, runs = 0, 0
    for _, run in rows.groupby("seed"):
        at = run[spikes(run["grad_norm"].to_numpy())]
        count, runs = count + len(at), runs + bool(len(at))
        axes.plot(at["step"], at["grad_norm"], "v", color=colour, ms=4.5, mec="white", mew=0.5, zorder=5)
    if not count:
        return "no spikes"
    return f"{count} spike{'s' if count > 1 else ''} in {runs} of {rows['seed'].nunique()} runs"


def _share(panels: list[Axes], used: int, columns: int, rows: pd.DataFrame) -> None:
    """Common logarithmic axes, with numbers at the left and lower edge only; unused panels are blank."""
    above = rows.loc[rows["grad_norm"] > 0, "grad_norm"]
    for number, axes in enumerate(panels):
        if number >= used:
            axes.set_axis_off()
            continue
        axes.set_yscale("log")
        if len(above):
            axes.set_ylim(above.min() / 1.3, above.max() * 1.8)
            axes.set_xlim(0, max(1, rows["step"].max()) * 1.02)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if above.max() < 60 * above.min() else (1,)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.locator_params(axis="x", nbins=4)
        below = number + columns < used
        axes.tick_params(labelbottom=not below, labelleft=number % columns == 0)
        lowest = number // columns == (used - 1) // columns
        axes.set(xlabel="step" if lowest else "", ylabel="gradient norm" if number % columns == 0 else "")
