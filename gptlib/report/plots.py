"""Figures for notebooks, reports and papers: frames and plain values in, matplotlib Figures out, no pyplot state."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from gptlib.data.dataset import Dataset
from gptlib.data.tokenizers import Efficiency
from gptlib.fields import RunConfig
from gptlib.report import curve_plots, study_plots
from gptlib.report.style import (
    GREY,
    HALO,
    INK,
    LIGHT,
    NARROW,
    PALETTE,
    figure_of,
    legend,
    letters,
    marks,
    new_axes,
    styles,
    wrapped,
)
from gptlib.schedules import rates
from gptlib.stats.compare import Comparison
from gptlib.study.arms import Arms, best_point
from gptlib.study.hypothesis import METRICS, Analysis

VERDICT_COLOURS = {"better": "#00704F", "worse": "#B84A00", "equivalent": "#0063A0", "undecided": GREY}
LOSS = Analysis().label
READ_TOKENS = 10_000_000  # of a dataset, at most


def loss_curves(
    frame: pd.DataFrame,
    floor: float | None = None,
    x: Literal["step", "train_time_ms", "tokens", "flops"] = "step",
    title: str = "Validation loss",
    figure: Figure | None = None,
    width: float = 7.6,
) -> Figure:
    """Validation loss (nats/token) over training: the mean over seeds with their range, a cross where a run diverged.

    `frame` columns: variant, seed, step, train_loss, val_loss (NaN where not measured), and the one that `x` names;
    `flops` are no column of a run's metrics and are for the caller to add. Diverged runs: curve_plots.diverged_runs.
    The mean is of the runs that did not diverge, at steps that all of them have reached; one that did is a thin line.
    Of one variant alone each seed is a thin line, and the training loss is drawn. `floor`: the entropy of the data,
    where known. Redraws into `figure` when given, at the size that it has. Raises ValueError without the column `x`.
    """
    values, label = curve_plots.axis_of(frame, x)
    own = figure is None
    figure, (axes,) = new_axes(title, (width, 4.2 if width >= NARROW else 2.8), figure)
    axes.set(xlabel=label, ylabel="loss (nats/token)")
    frame = frame.assign(x=values)
    counts, lost = frame.groupby("variant")["seed"].nunique(), curve_plots.diverged_runs(frame)
    frame["lost"] = pd.MultiIndex.from_frame(frame[["variant", "seed"]]).isin(lost.index)
    scored = frame[np.isfinite(frame["val_loss"].astype(float)) & frame["x"].notna()]
    looks, lowest = styles(frame["variant"]), floor
    if len(looks) == 1:
        trained = curve_plots.mean_curve(frame[~frame["lost"]], "train_loss")
        lowest = min(trained["train_loss"].min(), math.inf if floor is None else floor)
        axes.plot(trained["x"], trained["train_loss"], color=GREY, lw=0.8, ls=":", label="training", zorder=1)
    curve_plots.draw_losses(axes, scored, looks, _run_labels(counts, lost))
    if floor is not None:
        axes.axhline(floor, color=INK, lw=1, ls=(0, (6, 4)), label=f"entropy of the data, {floor:.4f}", zorder=1)
    if curve_plots.limit_losses(axes, scored, lowest) and len(looks) > 1:
        curve_plots.inset_end(axes, scored, looks)
    curve_plots.mark_diverged(axes, scored, lost, looks)
    note = ["cross: diverged"] if len(lost) else []
    if counts.max() > 1:
        mean = f"mean of {counts.max()} seeds" if counts.nunique() == 1 and not note else "mean over seeds"
        mean += " that did not diverge" if note else ""
        note = [f"thick: {mean}", "thin: one seed" if len(looks) == 1 else "band: their range", *note]
    legend(figure, "; ".join(note) or None, below=False, grow=own)
    return figure


def _run_labels(counts: pd.Series, lost: pd.DataFrame) -> dict[str, str]:
    """Names for the legend with the number of seeds, where the variants differ in it, and how many diverged."""
    labels = {}
    for variant, seeds in counts.items():
        diverged = int((lost.index.get_level_values("variant") == variant).sum())
        how = f"{diverged} of {seeds} diverged" if diverged else f"{seeds} seed{'' if seeds == 1 else 's'}"
        labels[str(variant)] = f"{variant} ({how})" if diverged or counts.nunique() > 1 else str(variant)
    return labels


def differences(comparisons: dict[str, Comparison], metric: str = LOSS, width: float = 8.6) -> Figure:
    """Forest plot, best variant on top: difference to the baseline with its interval, verdict in words and colour.

    The band is the margin declared beforehand, the brackets the minimum detectable effect (80 % power). In less
    than seven inches names and verdicts stand above the intervals.
    """
    values = {name: math.inf if c.difference is None else c.difference for name, c in comparisons.items()}
    ranked = sorted(comparisons.items(), key=lambda item: -values[item[0]])
    narrow = width < 7  # numbers and verdicts beside the axes take four inches
    row = 0.5 if narrow else 0.42
    figure, (axes,) = new_axes("Difference to the baseline", (width, 1.0 + row * max(1, len(ranked))))
    axes.axvline(0, color=INK, lw=1, zorder=1)
    axes.use_sticky_edges = False  # a margin band keeps white beside it
    for y, (name, comparison) in enumerate(ranked):
        _difference_row(axes, y, comparison, name if narrow else None)
    low, high = axes.get_xlim()  # before the brackets: with two seeds they lie far outside
    for y, (_, c) in enumerate(ranked):
        if c.minimum_detectable is not None:
            ends = [-c.minimum_detectable, c.minimum_detectable]
            axes.plot(ends, [y, y], "|", color=GREY, ms=11, mew=1.3, zorder=2, label="minimum detectable effect")
    axes.set_xlim(low, high)
    axes.set_ylim(-0.5, max(1, len(ranked)) - (0.1 if narrow else 0.5))
    axes.set_yticks(range(len(ranked)), ["" if narrow else name for name, _ in ranked])
    axes.grid(False, axis="y")
    axes.locator_params(axis="x", nbins=5 if narrow else 6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(wrapped(f"{metric}: variant − baseline (left of zero is better)", width))
    legend(figure)
    return figure


def _difference_row(axes: Axes, y: int, c: Comparison, above: str | None) -> None:
    """Margin, interval, estimate, and its number and the verdict: beside the axes, or with the name `above` the row."""
    colour = VERDICT_COLOURS[c.verdict.split()[0]]
    if c.margin:
        axes.barh(y, 2 * c.margin, left=-c.margin, height=1, color=LIGHT, zorder=0, label="declared margin")
    if c.low is not None and c.high is not None:
        axes.plot([c.low, c.high], [y, y], color=colour, lw=2.2, solid_capstyle="butt", zorder=3)
        axes.plot([], [], color=GREY, lw=2.2, label=f"{100 * (1 - c.alpha):g} % interval")
    size, short = "no finished runs", figure_of(axes).get_figwidth() < NARROW
    if c.difference is not None:
        axes.plot(c.difference, y, "o", color=colour, ms=6.5, mec="white", mew=0.8, zorder=4)
        percent = "" if c.percent is None or short else f" ({c.percent:+.2f} %)"
        size = f"{c.difference:+.4f}{percent}".replace("-", "−")
    style: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "va": "center"}
    if above is None:
        axes.annotate(size, (1, y), (12, 0), color=INK, fontsize=9, **style)
        axes.annotate(c.verdict, (1, y), (118, 0), color=colour, fontsize=9, weight="bold", **style)
        return
    style |= {"fontsize": letters(figure_of(axes)) - 0.5, "path_effects": HALO}
    axes.annotate(above, (0, y), (2, 11), color=INK, **style)
    verdict = c.verdict.split()[0] if short else c.verdict
    said = f"{size}  {verdict}" if c.difference is not None or not short else size
    axes.annotate(said, (1, y), (-3, 11), color=colour, ha="right", weight="bold", **style)


def seed_losses(frame: pd.DataFrame, width: float | None = None) -> Figure:
    """What is compared, per seed (columns variant, seed, and an Analysis.metric); a line joins the runs of one seed.

    Parallel lines mean that pairing by seed pays. Runs without a finite loss are counted under the variant's name. By
    default the width grows with the number of variants.
    """
    looks, metric = styles(frame["variant"]), next(metric for metric in METRICS if metric in frame)
    label = Analysis(metric=metric).label
    table = frame.pivot_table(index="seed", columns="variant", values=metric, dropna=False)
    table = table.reindex(columns=list(looks)).replace([np.inf, -np.inf], np.nan)
    width = width or max(4.6, 1.6 + 0.95 * len(looks))
    room = 72 * (width - 0.8) / max(1, len(looks))  # points for a name
    longest = 5 * max(map(len, looks), default=0)
    turn = 0 if longest <= room else 35 if room > 30 else 90
    tall = (3.6 if width >= NARROW else 2.6) + (0.9 if turn == 90 else 0.5 if turn else 0) * longest / 72
    figure, (axes,) = new_axes(f"{METRICS[metric][0].capitalize()} by seed", (width, tall))
    for _, losses in table.iterrows():
        axes.plot(range(len(looks)), losses, color=GREY, lw=0.8, alpha=0.6, zorder=1, label="one seed")
    labels = []
    for position, (variant, look) in enumerate(looks.items()):
        losses, colour = table[variant].dropna(), look["color"]
        axes.plot([position] * len(losses), losses, "o", color=colour, ms=6, mec="white", mew=0.8, zorder=3)
        if len(losses):
            ends = [position - 0.25, position + 0.25]
            axes.plot(ends, [losses.mean()] * 2, color=colour, lw=2.2, zorder=2)
        lost = len(frame[frame["variant"] == variant]) - len(losses)
        labels.append(f"{variant}\n({lost} without a loss)" if lost else variant)
    axes.plot([], [], color=GREY, lw=2.2, label="mean")
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.5, max(1, len(labels)) - 0.5)
    if turn:
        axes.tick_params(axis="x", labelrotation=turn)
        for tick in axes.get_xticklabels():
            tick.set(ha="right", va="center" if turn == 90 else "top", rotation_mode="anchor")
    axes.set_ylabel(label)
    legend(figure)
    return figure


def tuning(arms: Arms, metric: str = LOSS, width: float = 6.8) -> Figure:
    """Mean of `metric` over the values of the first tuned key; a square around the best, a cross diverged."""
    figure, (axes,) = new_axes("Tuning", (width, 3.0))
    values: list[Any] = []
    for number, (arm, colour) in enumerate((("baseline", INK), ("variant", PALETTE[0]))):
        points, found, lost = arms.points(arm), dict[Any, float](), list[Any]()
        key = next(iter(points[0].values)) if points else ""
        for point in sorted(points, key=lambda point: point.values[key]):
            if point.loss == math.inf:
                lost.append(point.values[key])
            elif point.loss is not None:  # of several values of a second key the best one counts
                found[point.values[key]] = min(point.loss, found.get(point.values[key], math.inf))
        values += [*found, *lost]
        if points:
            axes.plot(list(found), list(found.values()), "o-", ms=5, color=colour, label=f"{arm}: {key}")
        if best := best_point(points):
            axes.plot(best.values[key], best.loss or 0.0, "s", ms=11, mfc="none", color=colour)
        for value in lost:
            study_plots.cross_on_top(axes, value, number, colour)
    if all(isinstance(value, int | float) and value > 0 for value in values):
        study_plots.rate_axis(axes, [float(value) for value in values])
    axes.set(xlabel="value of the tuned setting", ylabel=metric)
    legend(figure, "square: best, cross: diverged")
    return figure


def effects_by_size(frame: pd.DataFrame, metric: str = LOSS, width: float = 7.6) -> Figure:
    """Difference to the baseline over its non-embedding parameters, with its interval: a line per variant.

    `frame` columns: parameters, variant, difference, low, high (analysis.across_sizes). Points of one size stand a
    little apart, so that their intervals can be told from each other.
    """
    figure, (axes,) = new_axes("Effect against model size", (width, 4.2 if width >= NARROW else 2.8))
    axes.axhline(0, color=INK, lw=1)
    variants, markers = list(styles(frame["variant"]).items()), marks(frame["variant"])
    for number, (variant, style) in enumerate(variants):
        rows = frame[frame["variant"] == variant].sort_values("parameters")
        rows[["difference", "low", "high"]] = rows[["difference", "low", "high"]].astype(float)
        x = rows["parameters"] * 1.05 ** (number - (len(variants) - 1) / 2)
        half = (rows["high"] - rows["low"]) / 2
        axes.errorbar(x, rows["difference"], half, marker=markers[variant], ms=5, capsize=3, label=variant, **style)
        lost = x[rows["difference"].isna()]  # the line is broken there
        if len(lost):
            axes.plot(lost, [0.97] * len(lost), "x", ms=8, color=style["color"], transform=axes.get_xaxis_transform())
    axes.set_xscale("log")
    sizes = sorted(set(frame["parameters"]))
    axes.set_xticks(
        sizes, [f"{size:,.0f}" if width >= NARROW else EngFormatter(places=1, sep="")(size) for size in sizes]
    )
    axes.minorticks_off()
    axes.set(xlabel="non-embedding parameters of the baseline", ylabel=f"variant − baseline\n{metric}")
    note = "below zero is better; bars: interval of the difference; cross: diverged or failed"
    legend(figure, note, below=False)
    return figure


def interaction(
    names: Sequence[str], losses: Sequence[Mapping[int, float]], metric: str = LOSS, width: float = 6.8
) -> Figure:
    """A 2x2 design: mean final losses of the baseline and a (without b), b and both (with b); parallel: effects add up.

    `losses`: {seed: loss} of baseline, a, b, both. Thin lines join the runs of one seed.
    """
    a, b = names
    figure, (axes,) = new_axes("Do two effects add up?", (width, 3.4 if width >= NARROW else 2.8))
    for pair, colour, ls, label in (
        (losses[:2], INK, "-", f"without {b}"),
        (losses[2:], PALETTE[0], "--", f"with {b}"),
    ):
        seeds = [seed for seed in pair[0] if seed in pair[1]]
        for seed in seeds:
            axes.plot([0, 1], [cell[seed] for cell in pair], lw=0.7, alpha=0.5, color=colour, ls=ls)
        if not seeds:
            axes.plot([], [], "o", ls=ls, color=colour, label=f"{label}: no finished runs")
        else:
            means = [float(np.mean([cell[seed] for seed in seeds])) for cell in pair]
            axes.plot([0, 1], means, "os"[ls != "-"], ls=ls, lw=2.2, label=label, color=colour)
    axes.set_xticks([0, 1], [f"{word}{chr(10) if width < NARROW else ' '}{a}" for word in ("without", "with")])
    axes.set_xlim(-0.3, 1.3)
    axes.set_ylabel(metric)
    legend(figure, "thick: mean, thin: one seed")
    return figure


def document_lengths(dataset: Dataset, seq_len: int) -> Figure:
    """Histogram of the validation documents' lengths in tokens, with the context; of a sample where there are many."""
    lengths = np.array([len(document) for document in dataset.documents("val", READ_TOKENS)])
    figure, (axes,) = new_axes(f"Length of the validation documents{_sampled(dataset, 'val')}", (7.6, 3.2))
    if len(lengths):  # tokens from elsewhere may have no document that is whole
        wide = max(1.0, lengths.max() / 40, float(np.ptp(lengths)) / max(5, len(lengths) // 8))
        axes.hist(lengths, bins=np.arange(lengths.min(), lengths.max() + 2 * wide, wide).tolist(), color=PALETTE[0])
    axes.axvline(seq_len, color=INK, ls="--", label=f"context ({seq_len} tokens)")
    axes.set(xlabel="length (tokens)", ylabel="documents", xlim=(0, None))
    legend(figure, below=False)
    return figure


def token_frequencies(dataset: Dataset) -> Figure:
    """How often each token occurs in the training text, by rank, both logarithmic, beside Zipf's law."""
    pieces = dataset.tokens("train", READ_TOKENS)
    counts = sum(np.bincount(tokens, minlength=dataset.vocab_size) for tokens in pieces)  # of a sample where it is long
    figure, (axes,) = new_axes(f"Token frequencies in the training text{_sampled(dataset, 'train')}", (7.6, 3.2))
    ranked = np.sort(np.asarray(counts))[::-1]
    ranks, ranked = np.arange(1, 1 + np.count_nonzero(ranked)), ranked[ranked > 0]
    axes.loglog(ranks, ranked, color=PALETTE[0], lw=2, label="tokens")
    axes.loglog(ranks, ranked[0] / ranks, color=GREY, lw=1, ls="--", label="Zipf: first / rank")
    axes.set(xlabel="rank", ylabel="occurrences", ylim=(0.7, None))
    legend(figure, below=False)
    return figure


def _sampled(dataset: Dataset, split: str) -> str:
    """How much of a split was read, where it was not all."""
    read, all_ = (sum(map(len, dataset.tokens(split, limit))) for limit in (READ_TOKENS, None))
    return "" if read == all_ else f" ({read:,} of {all_:,} tokens)"


def tokenizer_efficiency(found: Sequence[Efficiency]) -> Figure:
    """Bytes per token over the size of the vocabulary, a named point per tokenizer: up is shorter, right is larger."""
    figure, (axes,) = new_axes("What a vocabulary buys", (7.6, 3.6))
    ranked = sorted(found, key=lambda e: e.vocab_size)
    sizes, reach = [e.vocab_size for e in ranked], [e.bytes_per_token for e in ranked]
    axes.plot(sizes, reach, color=GREY, lw=0.8, ls=":", zorder=1)
    for number, (e, colour) in enumerate(zip(ranked, itertools.cycle(PALETTE), strict=False)):
        axes.plot(e.vocab_size, e.bytes_per_token, "o", ms=8, color=colour, label=f"{e.name}: {e.tokens:,} tokens")
        place = (0, 9) if number % 2 == 0 else (0, -16)
        axes.annotate(e.name, (e.vocab_size, e.bytes_per_token), place, textcoords="offset points", ha="center", size=9)
    axes.set_xscale("log")
    axes.margins(0.12, 0.25)
    axes.set_ylim(0, None)
    axes.set(xlabel="vocabulary (entries)", ylabel="bytes per token")
    legend(figure, "of the same text", below=False)
    return figure


def schedule(config: RunConfig) -> Figure:
    """Factors on learning rates and weight decay over the steps of a run, and Muon's momentum."""
    steps = config.train.steps
    progress = np.linspace(0, 1, 401)
    along = [rates(config, p) for p in progress]
    figure, (axes,) = new_axes(f"Schedules ({config.schedule.kind})", (7.6, 3.0))
    axes.plot(progress * steps, [r.lr for r in along], color=PALETTE[0], lw=2, label="learning rates / their peaks")
    decays = config.optim.adamw.weight_decay or (config.optim.matrices == "muon" and config.optim.muon.weight_decay)
    if decays:
        factors = [r.weight_decay for r in along]
        axes.plot(progress * steps, factors, color=PALETTE[1], ls="--", lw=2, label="weight decay / its peak")
    if config.optim.matrices == "muon":
        momenta = [r.momentum for r in along]
        axes.plot(progress * steps, momenta, color=PALETTE[2], ls="-.", lw=2, label="Muon's momentum")
    axes.set_xlim(0, steps)
    axes.set_ylim(0, 1.05)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("step")
    axes.set_ylabel("factor; momentum as it is")
    legend(figure, below=False)
    return figure
