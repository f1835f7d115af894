"""Figures for notebooks, reports and papers: frames and plain values in, matplotlib Figures out, no pyplot state."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from gptlib.data.dataset import Dataset
from gptlib.data.tokenizers import Efficiency
from gptlib.fields import RunConfig
from gptlib.schedules import rates
from gptlib.stats.compare import Comparison
from gptlib.study.arms import Arms, best_point
from gptlib.study.hypothesis import METRICS, Analysis

# Okabe & Ito's palette, distinct under every common colour blindness; its yellow is too faint for lines on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A")
INK, GREY, LIGHT = "#222222", "#6B6B6B", "#E3E7EC"
LINES = ("-", "--", "-.", ":")
VERDICT_COLOURS = {"better": "#00704F", "worse": "#B84A00", "equivalent": "#0063A0", "undecided": GREY}
# loss_curves shows the last two thirds of the run in at least a third of the height: earlier points may be cut.
EARLY, ZOOM = 1 / 3, 3.0
LOSS = Analysis().label
READ_TOKENS = 10_000_000  # of a dataset, at most


def loss_curves(
    frame: pd.DataFrame,
    floor: float | None = None,
    x: Literal["step", "train_time_ms"] = "step",
    title: str = "Validation loss",
    figure: Figure | None = None,
) -> Figure:
    """Validation loss (nats/token) over training: a thin line per seed, a thick one for their mean.

    `frame` columns: variant, seed, step, train_time_ms, val_loss, train_loss (NaN where not measured). The mean is
    taken at steps that all seeds of a variant have reached; the training loss is drawn when there is one variant only.
    `floor`: the entropy of the data, where known. Redraws into `figure` when given.
    """
    seconds, unit = _time_unit(frame["train_time_ms"]) if x == "train_time_ms" else (1.0, "")
    figure, axes = _axes(title, (7.6, 4.2), figure)
    axes.set_xlabel(f"training time ({unit})" if unit else "step")
    axes.set_ylabel("loss (nats/token)")
    frame = frame.assign(x=frame[x] / seconds)
    scored = frame[np.isfinite(frame["val_loss"].astype(float))]
    counts = frame.groupby("variant")["seed"].nunique()
    styles, lowest = _styles(frame["variant"]), floor
    if len(styles) == 1:
        trained = _mean_curve(frame, "train_loss")
        lowest = min(trained["train_loss"].min(), math.inf if floor is None else floor)
        axes.plot(trained["x"], trained["train_loss"], color=GREY, lw=0.8, ls=":", label="training", zorder=1)
    _draw_losses(axes, scored, styles, {} if counts.nunique() == 1 else dict(counts))
    if floor is not None:
        axes.axhline(floor, color=INK, lw=1, ls="--", label=f"entropy of the data, {floor:.4f}", zorder=1)
    if _limit_losses(axes, scored, lowest) and len(styles) > 1:
        _inset_end(axes, scored, styles)
    seeds = f"mean of {counts.max()} seeds" if counts.nunique() == 1 else "mean over seeds"
    _legend(figure, f"thick: {seeds}, thin: one seed" if counts.max() > 1 else None)
    return figure


def differences(comparisons: dict[str, Comparison], metric: str = LOSS) -> Figure:
    """Forest plot, best variant on top: difference to the baseline with its interval, verdict in words and colour.

    The band is the margin declared beforehand, the brackets the minimum detectable effect (80 % power).
    """
    values = {name: math.inf if c.difference is None else c.difference for name, c in comparisons.items()}
    ranked = sorted(comparisons.items(), key=lambda item: -values[item[0]])
    figure, axes = _axes("Difference to the baseline", (8.6, 1.7 + 0.42 * max(1, len(ranked))), None)
    axes.axvline(0, color=INK, lw=1, zorder=1)
    axes.use_sticky_edges = False  # a margin band keeps white beside it
    for y, (_, comparison) in enumerate(ranked):
        _difference_row(axes, y, comparison)
    low, high = axes.get_xlim()  # before the brackets: with two seeds they lie far outside
    for y, (_, c) in enumerate(ranked):
        if c.minimum_detectable is not None:
            ends = [-c.minimum_detectable, c.minimum_detectable]
            axes.plot(ends, [y, y], "|", color=GREY, ms=11, mew=1.3, zorder=2, label="minimum detectable effect")
    axes.set_xlim(low, high)
    axes.set_ylim(-0.5, max(1, len(ranked)) - 0.5)
    axes.set_yticks(range(len(ranked)), [name for name, _ in ranked])
    axes.grid(False, axis="y")
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel(f"{metric}: variant − baseline (left of zero is better)")
    _legend(figure, None, below=True)
    return figure


def seed_losses(frame: pd.DataFrame) -> Figure:
    """What is compared, per seed (columns variant, seed, and an Analysis.metric); a line joins the runs of one seed.

    Parallel lines mean that pairing by seed pays. Runs without a finite loss are counted under the variant's name.
    """
    styles, metric = _styles(frame["variant"]), next(metric for metric in METRICS if metric in frame)
    label = Analysis(metric=metric).label
    table = frame.pivot_table(index="seed", columns="variant", values=metric, dropna=False)
    table = table.reindex(columns=list(styles)).replace([np.inf, -np.inf], np.nan)
    figure, axes = _axes(f"{METRICS[metric][0].capitalize()} by seed", (max(4.5, 1.6 + 0.95 * len(styles)), 4.2), None)
    for _, losses in table.iterrows():
        axes.plot(range(len(styles)), losses, color=GREY, lw=0.8, alpha=0.6, zorder=1, label="one seed")
    labels = []
    for position, (variant, style) in enumerate(styles.items()):
        losses, colour = table[variant].dropna(), style["color"]
        axes.plot([position] * len(losses), losses, "o", color=colour, ms=6, mec="white", mew=0.8, zorder=3)
        if len(losses):
            ends = [position - 0.25, position + 0.25]
            axes.plot(ends, [losses.mean()] * 2, color=colour, lw=2.2, zorder=2, label="mean" if not position else None)
        lost = len(frame[frame["variant"] == variant]) - len(losses)
        labels.append(f"{variant}\n({lost} without a loss)" if lost else variant)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.5, max(1, len(labels)) - 0.5)
    if max(map(len, labels), default=0) > 9 or len(labels) > 6:
        axes.tick_params(axis="x", labelrotation=30)
        for tick in axes.get_xticklabels():
            tick.set_horizontalalignment("right")
            tick.set_rotation_mode("anchor")
    axes.set_ylabel(label)
    _legend(figure, None)
    return figure


def tuning(arms: Arms, metric: str = LOSS) -> Figure:
    """Mean of `metric` over the values of the first tuned key; a square around the best, a cross diverged."""
    figure, axes = _axes("Tuning", (6.8, 3.4), None)
    values: list[Any] = []
    for arm, colour in (("baseline", INK), ("variant", PALETTE[0])):
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
            axes.plot(value, 0.95, "x", ms=8, transform=axes.get_xaxis_transform(), color=colour)
    if all(isinstance(value, int | float) and value > 0 for value in values):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="value of the tuned setting", ylabel=metric)
    _legend(figure, "square: best, cross: diverged", below=True)
    return figure


def effects_by_size(frame: pd.DataFrame, metric: str = LOSS) -> Figure:
    """Difference to the baseline over its non-embedding parameters, with its interval: a line per variant.

    `frame` columns: parameters, variant, difference, low, high (analysis.across_sizes). Points of one size stand a
    little apart, so that their intervals can be told from each other.
    """
    figure, axes = _axes("Effect against model size", (7.6, 4.2), None)
    axes.axhline(0, color=INK, lw=1)
    variants = list(_styles(frame["variant"]).items())
    for number, (variant, style) in enumerate(variants):
        rows = frame[frame["variant"] == variant].sort_values("parameters")
        rows[["difference", "low", "high"]] = rows[["difference", "low", "high"]].astype(float)
        x = rows["parameters"] * 1.05 ** (number - (len(variants) - 1) / 2)
        half = (rows["high"] - rows["low"]) / 2
        axes.errorbar(x, rows["difference"], half, marker="o", ms=5, capsize=3, label=variant, **style)
        lost = x[rows["difference"].isna()]  # the line is broken there
        if len(lost):
            axes.plot(lost, [0.97] * len(lost), "x", ms=8, color=style["color"], transform=axes.get_xaxis_transform())
    axes.set_xscale("log")
    sizes = sorted(set(frame["parameters"]))
    axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
    axes.minorticks_off()
    axes.set(xlabel="non-embedding parameters of the baseline", ylabel=f"variant − baseline\n{metric}")
    _legend(figure, "below zero is better;\nbars: interval of the difference;\ncross: diverged or failed")
    return figure


def interaction(names: Sequence[str], losses: Sequence[Mapping[int, float]], metric: str = LOSS) -> Figure:
    """A 2x2 design: mean final losses of the baseline and a (without b), b and both (with b); parallel: effects add up.

    `losses`: {seed: loss} of baseline, a, b, both. Thin lines join the runs of one seed.
    """
    a, b = names
    figure, axes = _axes("Do two effects add up?", (6.8, 3.8), None)
    for pair, colour, label in ((losses[:2], INK, f"without {b}"), (losses[2:], PALETTE[0], f"with {b}")):
        seeds = [seed for seed in pair[0] if seed in pair[1]]
        for seed in seeds:
            axes.plot([0, 1], [cell[seed] for cell in pair], lw=0.7, alpha=0.5, color=colour)
        if not seeds:
            axes.plot([], [], "o-", color=colour, label=f"{label}: no finished runs")
        else:
            means = [float(np.mean([cell[seed] for seed in seeds])) for cell in pair]
            axes.plot([0, 1], means, "o-", lw=2.2, label=label, color=colour)
    axes.set_xticks([0, 1], [f"without {a}", f"with {a}"])
    axes.set_xlim(-0.3, 1.3)
    axes.set_ylabel(metric)
    _legend(figure, "thick: mean, thin: one seed")
    return figure


def document_lengths(dataset: Dataset, seq_len: int) -> Figure:
    """Histogram of the validation documents' lengths in tokens, with the context; of a sample where there are many."""
    lengths = np.array([len(document) for document in dataset.documents("val", READ_TOKENS)])
    figure, axes = _axes(f"Length of the validation documents{_sampled(dataset, 'val')}", (7.6, 3.2), None)
    if len(lengths):  # tokens from elsewhere may have no document that is whole
        wide = max(1.0, lengths.max() / 40, float(np.ptp(lengths)) / max(5, len(lengths) // 8))
        axes.hist(lengths, bins=np.arange(lengths.min(), lengths.max() + 2 * wide, wide).tolist(), color=PALETTE[0])
    axes.axvline(seq_len, color=INK, ls="--", label=f"context ({seq_len} tokens)")
    axes.set(xlabel="length (tokens)", ylabel="documents", xlim=(0, None))
    _legend(figure, None)
    return figure


def token_frequencies(dataset: Dataset) -> Figure:
    """How often each token occurs in the training text, by rank, both logarithmic, beside Zipf's law."""
    pieces = dataset.tokens("train", READ_TOKENS)
    counts = sum(np.bincount(tokens, minlength=dataset.vocab_size) for tokens in pieces)  # of a sample where it is long
    figure, axes = _axes(f"Token frequencies in the training text{_sampled(dataset, 'train')}", (7.6, 3.2), None)
    ranked = np.sort(np.asarray(counts))[::-1]
    ranks, ranked = np.arange(1, 1 + np.count_nonzero(ranked)), ranked[ranked > 0]
    axes.loglog(ranks, ranked, color=PALETTE[0], lw=2, label="tokens")
    axes.loglog(ranks, ranked[0] / ranks, color=GREY, lw=1, ls="--", label="Zipf: first / rank")
    axes.set(xlabel="rank", ylabel="occurrences", ylim=(0.7, None))
    _legend(figure, None)
    return figure


def _sampled(dataset: Dataset, split: str) -> str:
    """How much of a split was read, where it was not all."""
    read, all_ = (sum(map(len, dataset.tokens(split, limit))) for limit in (READ_TOKENS, None))
    return "" if read == all_ else f" ({read:,} of {all_:,} tokens)"


def tokenizer_efficiency(found: Sequence[Efficiency]) -> Figure:
    """Bytes per token over the size of the vocabulary, a named point per tokenizer: up is shorter, right is larger."""
    figure, axes = _axes("What a vocabulary buys", (7.6, 3.6), None)
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
    _legend(figure, "of the same text")
    return figure


def schedule(config: RunConfig) -> Figure:
    """Factors on learning rates and weight decay over the steps of a run, and Muon's momentum."""
    steps = config.train.steps
    progress = np.linspace(0, 1, 401)
    along = [rates(config, p) for p in progress]
    figure, axes = _axes(f"Schedules ({config.schedule.kind})", (7.6, 3.0), None)
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
    _legend(figure, None)
    return figure


def _styles(variants: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and line of each variant: baseline first and black, the others in order of appearance."""
    names = list(dict.fromkeys(variants))
    others = [name for name in names if name != "baseline"]
    styles: dict[str, dict[str, Any]] = {"baseline": {"color": INK, "ls": "-"}} if "baseline" in names else {}
    for i, name in enumerate(others):
        styles[name] = {"color": PALETTE[i % len(PALETTE)], "ls": LINES[i // len(PALETTE) % len(LINES)]}
    return styles


def _axes(title: str, size: tuple[float, float], figure: Figure | None) -> tuple[Figure, Axes]:
    figure = figure or Figure(figsize=size, layout="constrained", facecolor="white")
    figure.clear()
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color=LIGHT, lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)
    return figure, axes


def _legend(figure: Figure, title: str | None, below: bool = False, columns: int | None = None) -> None:
    """One entry per label, outside the data; below in one row, or in `columns`."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    if entries:
        legend = figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower center" if below else "outside right upper",
            ncols=(columns or len(entries)) if below else 1,
            title=title,
            alignment="left",
            frameon=False,
            fontsize=9,
        )
        legend.get_title().set(fontsize=8, color=GREY)


def _mean_curve(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean over seeds of x and `column`, at the steps that every seed has."""
    rows = rows.dropna(subset=[column])
    steps = rows.groupby("step")[["x", column]].mean()
    return steps[rows.groupby("step")["seed"].nunique() == rows["seed"].nunique()]


def _difference_row(axes: Axes, y: int, c: Comparison) -> None:
    """Margin, interval, estimate, and beside the axes its number and the verdict."""
    colour = VERDICT_COLOURS[c.verdict.split()[0]]
    if c.margin:
        axes.barh(y, 2 * c.margin, left=-c.margin, height=1, color=LIGHT, zorder=0, label="declared margin")
    if c.low is not None and c.high is not None:
        axes.plot([c.low, c.high], [y, y], color=colour, lw=2.2, solid_capstyle="butt", zorder=3)
        axes.plot([], [], color=GREY, lw=2.2, label=f"{100 * (1 - c.alpha):g} % interval")
    size = "no finished runs"
    if c.difference is not None:
        axes.plot(c.difference, y, "o", color=colour, ms=6.5, mec="white", mew=0.8, zorder=4)
        size = f"{c.difference:+.4f}" + ("" if c.percent is None else f" ({c.percent:+.2f} %)")
    style: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "va": "center"}
    axes.annotate(size.replace("-", "−"), (1, y), (12, 0), color=INK, fontsize=9, **style)
    axes.annotate(c.verdict, (1, y), (118, 0), color=colour, fontsize=9, weight="bold", **style)


def _draw_losses(axes: Axes, scored: pd.DataFrame, styles: dict[str, dict[str, Any]], counts: dict[str, int]) -> None:
    """Thin lines for the seeds, a thick one for their mean; `counts` are added to the labels where they differ."""
    for variant, style in styles.items():
        rows = scored[scored["variant"] == variant]
        for _, run in rows.groupby("seed"):
            marker = "o" if len(run) == 1 else ""  # the first evaluation of a live run makes no line yet
            axes.plot(run["x"], run["val_loss"], lw=0.7, alpha=0.5, marker=marker, ms=4, zorder=2, **style)
        mean, label = _mean_curve(rows, "val_loss"), variant
        if variant in counts:
            label += f" ({counts[variant]} seed{'' if counts[variant] == 1 else 's'})"
        axes.plot(mean["x"], mean["val_loss"], lw=2, label=label, zorder=3, **style)


def _time_unit(milliseconds: pd.Series) -> tuple[float, str]:
    longest = milliseconds.max()
    return (1e3, "s") if not longest > 6e5 else (6e4, "min") if longest < 1.08e7 else (3.6e6, "h")


def _limit_losses(axes: Axes, scored: pd.DataFrame, lowest: float | None) -> bool:
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
        axes.set_xlabel(f"{axes.get_xlabel()}  ({cut})")
    return bool(late.max() - bottom < 0.42 * (top - bottom))


def _inset_end(axes: Axes, scored: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> None:
    """The last quarter of the run enlarged, in the empty upper right, where the variants can be told apart."""
    end = scored[scored["x"] >= 0.75 * scored["x"].max()]
    if end.groupby(["variant", "seed"]).size().min() < 2:
        return
    inset = axes.inset_axes((0.47, 0.5, 0.52, 0.45))
    _draw_losses(inset, end, styles, {})
    inset.set_title("last quarter", loc="left", fontsize=8, color=GREY, pad=2)
    inset.tick_params(labelsize=7, length=2)
    inset.grid(True, color=LIGHT, lw=0.5)
    inset.margins(0.02, 0.05)
