"""What the figures of a study show, read back from their artists; looks are for eyes."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy import stats

from gptlib.report import curve_plots, plots, study_plots, tables
from gptlib.report.style import INK
from gptlib.stats.compare import two_sample

NAMES = ("baseline", "gelu", "learned_positions", "adamw_everywhere_tuned", "deep", "narrow", "relu2_glu", "no_rope")
SHIFTS = dict(zip(NAMES, (0.0, 0.01, 0.1, 0.2, -0.05, 0.03, 0.0, 0.01), strict=True))


def finals(names: tuple[str, ...] = NAMES, seeds: int = 4) -> pd.DataFrame:
    noise = (0.0, 0.01, -0.005, 0.003, 0.004)
    rows = [(name, seed, 2.0 + SHIFTS[name] + noise[seed]) for name in names for seed in range(seeds)]
    return pd.DataFrame(rows, columns=["variant", "seed", "final_val_loss"])


def sized() -> pd.DataFrame:
    rows = [(name, 1e6 * (1 + i // 3), 2 + SHIFTS[name]) for i, name in enumerate(NAMES)]
    return pd.DataFrame(rows, columns=["variant", "parameters", "loss"]).assign(
        low=lambda f: f["loss"] - 0.02, high=lambda f: f["loss"] + 0.02
    )


def weighed() -> pd.DataFrame:
    rows = [(name, SHIFTS[name], 0.8 + 0.1 * i) for i, name in enumerate(NAMES[1:])]
    frame = pd.DataFrame(rows, columns=["variant", "difference", "ratio"])
    return frame.assign(low=frame["difference"] - 0.01, high=frame["difference"] + 0.01)


def swept() -> pd.DataFrame:
    rows = [
        ("baseline", 0.01, 2.2, 0, 3),
        ("baseline", 0.03, 2.0, 0, 3),
        ("baseline", 0.1, 2.1, 0, 3),
        ("baseline", 0.3, 2.4, 1, 3),
        ("no_qk_norm", 0.01, 2.25, 0, 3),
        ("no_qk_norm", 0.03, 1.9, 2, 3),
        ("no_qk_norm", 0.1, math.nan, 3, 3),
        ("no_qk_norm", 0.3, 2.5, 0, 3),
    ]
    return pd.DataFrame(rows, columns=["arm", "lr", "loss", "diverged", "runs"])


def measured() -> pd.DataFrame:
    rows = [(name, 40_000.0 / (1 + SHIFTS[name]), 300.0 + 10 * i) for i, name in enumerate(NAMES)]
    return pd.DataFrame(rows, columns=["variant", "tokens_per_second", "memory_mib"])


def matched() -> pd.DataFrame:
    old = {"total": 1_234_567, "tokens": 32_768_000, "steps": 2000, "trial_seconds": 640.2, "time_seconds": 812.3}
    return tables.matched_table(old, old | {"total": 1_264_567, "trial_seconds": 702.0}, ["parameters"])


def logged() -> pd.DataFrame:
    rows = [
        {"variant": name, "seed": seed, "step": step, "train_time_ms": step, "train_loss": 3.0}
        | {"val_loss": 2 + SHIFTS[name] + 4 / (1 + step), "tokens": 9.0 * step, "grad_norm": 1 + 1 / (1 + step)}
        for name in NAMES
        for seed in range(2)
        for step in range(0, 100, 10)
    ]
    return pd.DataFrame(rows)


def compared(frame: pd.DataFrame) -> dict[str, Any]:
    arms = {name: list(rows["final_val_loss"]) for name, rows in frame.groupby("variant", sort=False)}
    return {name: two_sample(arms["baseline"], arm, margin=0.02) for name, arm in arms.items() if name != "baseline"}


def sizes() -> pd.DataFrame:
    rows = [(n, name, SHIFTS[name]) for n in (210_432, 851_968, 3_407_872) for name in NAMES[1:]]
    frame = pd.DataFrame(rows, columns=["parameters", "variant", "difference"])
    return frame.assign(low=frame["difference"] - 0.01, high=frame["difference"] + 0.01)


FIGURES = {
    "final losses": lambda width: study_plots.final_losses(finals(), width=width),
    "parameters": lambda width: study_plots.loss_against_parameters(sized(), width=width),
    "trade-off": lambda width: study_plots.trade_off(weighed(), width=width),
    "rates": lambda width: study_plots.rate_sweep(swept(), width=width),
    "speed": lambda width: study_plots.throughput_and_memory(measured(), width=width),
    "matched": lambda width: study_plots.matched_picture(matched(), width=width),
    "stability": lambda width: curve_plots.stability(logged(), width=width),
    "curves": lambda width: plots.loss_curves(logged(), floor=1.9, width=width),
    "forest": lambda width: plots.differences(compared(finals()), width=width),
    "seeds": lambda width: plots.seed_losses(finals(), width=width),
    "sizes": lambda width: plots.effects_by_size(sizes(), width=width),
    "interaction": lambda width: plots.interaction(NAMES[2:4], [{1: 3.0, 2: 3.1}] * 4, width=width),
}


def texts(figure: Figure) -> str:
    found = figure.findobj(match=lambda a: hasattr(a, "get_text"))
    return "\n".join(" ".join(text.get_text().split()) for text in found)  # type: ignore[attr-defined]


def points(axes: Axes, marker: str) -> list[tuple[float, float]]:
    found = [line for line in axes.get_lines() if line.get_marker() == marker]
    pairs = [zip(np.atleast_1d(line.get_xdata()), np.atleast_1d(line.get_ydata()), strict=True) for line in found]
    return [(float(x), float(y)) for pair in pairs for x, y in pair]


@pytest.mark.parametrize("width", [3.2, 6.4])
@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_off_at_full_and_at_half_width(name: str, width: float) -> None:
    figure = FIGURES[name](width)
    assert figure.get_figwidth() == width
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = figure.get_tightbbox(canvas.get_renderer())  # of what is drawn, in inches
    assert drawn.x0 >= -0.01 and drawn.x1 <= width + 0.01 and drawn.y0 >= -0.01, drawn
    assert drawn.y1 <= figure.get_figheight() + 0.01, drawn
    assert min(text.get_fontsize() for text in figure.findobj(Text)) >= 6.5  # type: ignore[attr-defined]
    for axes in figure.axes:
        labels = [label for label in axes.get_xticklabels() if label.get_text() and label.get_rotation() in (0, 90)]
        boxes = [label.get_window_extent(canvas.get_renderer()) for label in labels]
        boxes = [box for box in boxes if box.width and axes.bbox.x0 - 1 <= (box.x0 + box.x1) / 2 <= axes.bbox.x1 + 1]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]), "numbers of an axis overlap"
        for legend in figure.legends:
            assert not legend.get_window_extent(canvas.get_renderer()).overlaps(axes.bbox), "the legend covers data"


# --- final losses -----------------------------------------------------------------------------------------------


def test_final_losses_have_runs_interval_and_the_band_of_one_more_run() -> None:
    frame = finals(("baseline", "gelu", "deep"))
    figure = study_plots.final_losses(frame)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["gelu", "baseline", "deep"], "best on top"
    values = frame.loc[frame["variant"] == "baseline", "final_val_loss"]
    band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    half = stats.t.ppf(0.975, 3) * values.std(ddof=1) * math.sqrt(1.25)
    assert (band.x0, band.x1) == pytest.approx((values.mean() - half, values.mean() + half))
    spans = [line.get_xdata() for line in axes.get_lines() if line.get_linewidth() == 2 and len(line.get_xdata()) == 2]
    expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert any(span == pytest.approx(expected) for span in spans) and len(spans) == 3
    runs = [line.get_xdata() for line in axes.get_lines() if line.get_markersize() == 4 and len(line.get_xdata())]
    assert sorted(np.concatenate(runs)) == pytest.approx(sorted(frame["final_val_loss"]))
    assert "95 % prediction interval of one more baseline run" in texts(figure)


def test_the_prediction_interval_holds_one_more_run_as_often_as_it_says() -> None:
    runs = np.random.default_rng(1).normal(size=(4000, 4))
    inside = [low <= row[3] <= high for row in runs for low, high in [study_plots.prediction_interval(row[:3])]]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.012)


def test_runs_without_a_loss_are_counted_and_one_seed_has_no_interval() -> None:
    frame = finals(("baseline", "gelu"), seeds=2)
    frame.loc[[1, 3], "final_val_loss"] = math.nan, math.inf
    figure = study_plots.final_losses(frame)
    (axes,) = figure.axes
    assert {t.get_text() for t in axes.get_yticklabels()} == {f"{n}\n(1 without a loss)" for n in ("baseline", "gelu")}
    assert not axes.patches and "prediction" not in texts(figure)
    frame.loc[frame["variant"] == "gelu", "final_val_loss"] = math.nan
    lowest = study_plots.final_losses(frame).axes[0].get_yticklabels()[0]
    assert lowest.get_text() == "gelu\n(2 without a loss)"


def test_with_two_seeds_the_runs_set_the_axis_and_not_the_interval() -> None:
    figure = study_plots.final_losses(finals(("baseline", "gelu"), seeds=2))
    low, high = figure.axes[0].get_xlim()
    assert 1.98 < low < 2.0 and 2.02 < high < 2.04


# --- size, speed, memory ----------------------------------------------------------------------------------------


def test_loss_stands_over_parameters_and_what_has_none_is_named() -> None:
    frame = sized()
    frame.loc[2, ["loss", "low", "high"]] = math.nan
    figure = study_plots.loss_against_parameters(frame)
    (axes,) = figure.axes
    found = {text.get_text(): tuple(text.xy) for text in axes.texts if text.get_text()}  # type: ignore[attr-defined]
    assert found == {row["variant"]: (row["parameters"], row["loss"]) for row in frame.drop(2).to_dict("records")}
    assert axes.get_xscale() == "log" and "without a loss: learned_positions" in texts(figure)
    line = next(line for line in axes.get_lines() if line.get_label() == "baseline's loss")
    assert line.get_ydata() == [2.0, 2.0]
    low, high = axes.get_xlim()
    assert low < 1e6 and high > 3e6


def test_variants_of_one_size_have_an_axis_too() -> None:
    figure = study_plots.loss_against_parameters(sized().assign(parameters=1e6, low=None, high=None))
    figure.draw_without_rendering()
    assert figure.axes[0].get_xlim() == pytest.approx((0.8e6, 1.25e6))


def test_a_trade_off_has_its_corners_in_words() -> None:
    figure = study_plots.trade_off(weighed())
    (axes,) = figure.axes
    corners = {text.get_text(): tuple(text.xy) for text in axes.texts if text.get_style() == "italic"}  # type: ignore[attr-defined]
    assert corners == {
        "better, fewer FLOPs": (0, 0),
        "worse, fewer FLOPs": (0, 1),
        "better, more FLOPs": (1, 0),
        "worse, more FLOPs": (1, 1),
    }
    places = {text.get_text(): tuple(text.xy) for text in axes.texts if text.get_text() in NAMES}  # type: ignore[attr-defined]
    assert places["baseline"] == (1, 0) and places["deep"] == pytest.approx((1.1, -0.05)) and len(places) == 8
    low, high = axes.get_xlim()
    assert low < 0.8 and high > 1.4


def test_what_a_trade_off_cannot_place_is_named() -> None:
    frame = weighed()
    frame.loc[0, "ratio"], frame.loc[1, "difference"] = math.nan, math.nan
    assert "not drawn: gelu, learned_positions" in texts(study_plots.trade_off(frame))
    nothing = study_plots.trade_off(frame.head(2))
    nothing.draw_without_rendering()
    assert nothing.axes[0].get_xlim()[0] < 1 < nothing.axes[0].get_xlim()[1]


def test_bars_are_means_of_the_runs_and_carry_the_ratio() -> None:
    frame = pd.DataFrame(
        [("baseline", 100.0, 50.0), ("baseline", 200.0, 50.0), ("gelu", 300.0, 60.0), ("deep", math.nan, 45.0)],
        columns=["variant", "tokens_per_second", "memory_mib"],
    )
    figure = study_plots.throughput_and_memory(frame)
    speed, memory = figure.axes
    assert [bar.get_width() for bar in speed.patches] == [300.0, 150.0]  # type: ignore[attr-defined]
    assert [bar.get_width() for bar in memory.patches] == [45.0, 60.0, 50.0]  # type: ignore[attr-defined]
    assert [text.get_text() for text in speed.texts] == ["not measured", "2.00×", "1.00×"]
    assert [text.get_text() for text in memory.texts] == ["0.90×", "1.20×", "1.00×"]
    lines = [list(line.get_xdata()) for line in speed.get_lines()]
    assert [100.0, 200.0] in lines and [150.0, 150.0] in lines
    assert [t.get_text() for t in speed.get_yticklabels()] == ["deep", "gelu", "baseline"]
    alone = study_plots.throughput_and_memory(frame[frame["variant"] == "gelu"])
    assert "300" in texts(alone) and "×" not in "".join(text.get_text() for text in alone.axes[0].texts)


# --- learning rates ---------------------------------------------------------------------------------------------


def test_a_sweep_shows_losses_divergences_and_the_largest_stable_rate() -> None:
    figure = study_plots.rate_sweep(swept())
    (axes,) = figure.axes
    crosses = {(x, t.get_text()) for (x, _), t in zip(points(axes, "x"), axes.texts, strict=True)}
    assert crosses == {(0.3, "1/3"), (0.03, "2/3"), (0.1, "3/3")}
    assert [x for x, _ in points(axes, "|")] == [0.1, 0.01], "0.3 of no_qk_norm lies beyond its first divergence"
    best = [line for line in axes.get_lines() if line.get_marker() == "s" and line.get_markersize() == 11]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in best] == [(0.03, 2.0), (0.01, 2.25)]
    assert "baseline: stable to 0.1" in texts(figure) and "no_qk_norm: stable to 0.01" in texts(figure)
    to_axes = axes.transData + axes.transAxes.inverted()
    highest = max(to_axes.transform((0.3, loss))[1] for loss in swept()["loss"].dropna())
    assert highest < min(y for _, y in points(axes, "x")) - 0.05, "crosses stand above the data"
    assert to_hex(best[0].get_color()) == to_hex(INK)


def test_an_arm_that_always_diverged_has_its_crosses_and_says_so() -> None:
    frame = swept().assign(loss=math.nan, diverged=3)
    figure = study_plots.rate_sweep(frame)
    figure.draw_without_rendering()
    assert len(points(figure.axes[0], "x")) == 8 and "baseline: no stable rate" in texts(figure)


# --- what was matched -------------------------------------------------------------------------------------------


def test_the_picture_of_the_matched_table_has_its_cells_and_colours() -> None:
    table = matched()
    figure = study_plots.matched_picture(table)
    cells = figure.axes[0].tables[0].get_celld()
    assert [cells[0, i].get_text().get_text() for i in range(5)] == ["quantity", *table.columns]
    for row, (name, values) in enumerate(zip(table.index, table.to_numpy(), strict=True), 1):
        assert [cells[row, i].get_text().get_text() for i in range(5)] == [name, *values]
        fit = values[-1]
        expected = study_plots.FIT_COLOURS[fit][0] if fit in study_plots.FIT_COLOURS else None
        assert expected is None or to_hex(cells[row, 4].get_facecolor()) == expected.lower()
    assert {"matched", "free", "confounded"} <= set(table["fit"])
