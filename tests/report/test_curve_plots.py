"""Loss over training with its seeds and what diverged, gradient norms with their spikes, read back from the figures."""

import math
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from gptlib.report import curve_plots, plots


def norms(n: int = 300, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(1.0, 0.05, n)


def frame(variants: tuple[str, ...] = ("baseline", "gelu"), seeds: int = 3) -> pd.DataFrame:
    rows = []
    for shift, variant in enumerate(variants):
        for seed in range(seeds):
            for step, norm in enumerate(norms(200, seed)):
                row = {"variant": variant, "seed": seed, "step": step, "tokens": 10.0 * step}
                rows.append(row | {"grad_norm": norm + shift if step else math.nan})
    return pd.DataFrame(rows)


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes if axes.axison]


def triangles(figure: Figure, panel: int) -> list[tuple[float, float]]:
    found = [line for line in figure.axes[panel].get_lines() if line.get_marker() == "v"]
    return [(float(x), float(y)) for line in found for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]


# --- spikes -----------------------------------------------------------------------------------------------------


def test_seven_deviations_above_what_came_before_is_a_spike() -> None:
    values = norms()
    assert not curve_plots.spikes(values).any()
    for factor, spike in ((6, False), (8, True)):
        before = values[100 - curve_plots.WINDOW : 100]
        deviation = 1.4826 * np.median(np.abs(before - np.median(before)))
        changed = values.copy()
        changed[100] = np.median(before) + factor * deviation
        assert list(np.flatnonzero(curve_plots.spikes(changed))) == [100] * spike


def test_one_spike_does_not_hide_the_next_and_a_rise_to_stay_is_soon_none() -> None:
    values = norms()
    values[[100, 104, 130]] = 50.0, 30.0, 5.0
    assert list(np.flatnonzero(curve_plots.spikes(values))) == [100, 104, 130]
    values = norms()
    values[150:] += 1
    found = np.flatnonzero(curve_plots.spikes(values))
    assert found[0] == 150 and found[-1] < 150 + curve_plots.WINDOW


def test_the_start_falling_norms_and_constant_ones_have_no_spikes() -> None:
    start = np.r_[[9.0, 1.0], norms(curve_plots.LEAST - 2)]
    assert not curve_plots.spikes(start).any()
    assert not curve_plots.spikes(np.exp(-np.arange(300) / 50.0)).any()
    assert not curve_plots.spikes(np.ones(100)).any()
    assert not curve_plots.spikes(np.array([])).any()


# --- divergence -------------------------------------------------------------------------------------------------


def lost(rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    found = curve_plots.diverged_runs(pd.DataFrame(rows))
    return list(found.index)


def run(seed: int, *rows: tuple[int, float, float, float]) -> list[dict[str, Any]]:
    keys = ("step", "tokens", "train_loss", "val_loss")
    return [{"variant": "gelu", "seed": seed, **dict(zip(keys, row, strict=True))} for row in rows]


nan = math.nan
WHOLE = run(1, (0, 0, nan, 4.0), (1, 64, 3.5, nan), (2, 128, 3.4, 3.3))


@pytest.mark.parametrize(
    "rows, diverged",
    [
        (run(2, (0, 0, nan, 4.0), (1, 64, 3.9, nan), (1, nan, nan, nan)), True),  # in a training step
        (run(2, (0, 0, nan, 4.0), (1, nan, 3.9, nan)), True),  # in an evaluation
        (run(2, (0, nan, nan, nan)), True),  # at once
        (run(2, (0, 0, nan, 4.0), (1, 64, 3.9, nan)), False),  # still running
        (run(2, (0, 0, nan, 4.0), (1, 64, nan, math.inf), (2, 128, 3, 3)), True),  # a log of someone else
        (run(2, (0, nan, nan, 4.0), (1, nan, 3.9, nan)), False),  # one that counts no tokens
    ],
)
def test_a_run_has_diverged_where_its_record_says_so(rows: list[dict[str, Any]], diverged: bool) -> None:
    assert lost(WHOLE + rows) == [("gelu", 2)] * diverged


def test_a_column_of_its_own_decides() -> None:
    rows = WHOLE + run(2, (0, nan, nan, nan))
    assert lost([row | {"diverged": row["seed"] == 1} for row in rows]) == [("gelu", 1)]


# --- the figure -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variants, panels", [(1, 1), (2, 2), (4, 4), (8, 9)])
def test_every_variant_has_a_panel_with_its_median_and_range(variants: int, panels: int) -> None:
    names = ("baseline", *(f"v{i}" for i in range(1, variants)))
    figure = curve_plots.stability(frame(names))
    figure.draw_without_rendering()
    assert len(figure.axes) == panels and len(titles(figure)) == variants
    stacked = np.stack([norms(200, seed)[1:] for seed in range(3)]) + variants - 1
    axes = figure.axes[variants - 1]
    (median,) = [line for line in axes.get_lines() if line.get_linewidth() == 1.3]
    assert median.get_ydata() == pytest.approx(np.median(stacked, 0)) and axes.get_yscale() == "log"
    ends = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (ends.min(), ends.max()) == pytest.approx((stacked.min(), stacked.max()))
    assert len({axes.get_ylim() for axes in figure.axes[:variants]}) == 1


def test_spikes_are_found_run_by_run_and_counted() -> None:
    rows = frame()
    for seed, step in ((0, 90), (0, 120), (2, 60)):
        rows.loc[(rows["variant"] == "gelu") & (rows["seed"] == seed) & (rows["step"] == step), "grad_norm"] = 9.0
    figure = curve_plots.stability(rows)
    assert titles(figure) == ["baseline\nno spikes", "gelu\n3 spikes in 2 of 3 runs"]
    assert triangles(figure, 1) == [(90, 9.0), (120, 9.0), (60, 9.0)] and triangles(figure, 0) == []
    note = " ".join(figure.legends[0].get_title().get_text().split())
    assert note == "spike: more than 7 deviations (1.4826 MAD) above the median of the 64 logged norms before"


def test_a_divergence_is_a_cross_at_its_step() -> None:
    rows = frame()
    gone = (rows["variant"] == "gelu") & (rows["seed"] == 1)
    rows.loc[gone & (rows["step"] == 80), ["grad_norm", "tokens"]] = math.nan
    figure = curve_plots.stability(rows[~(gone & (rows["step"] > 80))])
    assert titles(figure)[1].endswith("1 diverged") and "diverged" not in titles(figure)[0]
    found = [line.get_xdata()[0] for line in figure.axes[1].get_lines() if line.get_marker() == "x"]
    assert found == [80]


def test_runs_without_norms_are_drawn_as_nothing() -> None:
    figure = curve_plots.stability(frame().assign(grad_norm=math.nan))
    figure.draw_without_rendering()
    assert titles(figure) == ["baseline\nno spikes", "gelu\nno spikes"]


# --- loss curves ------------------------------------------------------------------------------------------------


def curves(variants: dict[str, float], seeds: tuple[int, ...] = (1, 2, 3), first: float = 6.2) -> pd.DataFrame:
    rows = []
    for variant, shift in variants.items():
        for seed in seeds:
            for step in range(0, 201, 10):
                val = (first if step == 0 else 2.0 + 30 / (step + 20)) + shift + 0.001 * seed
                row = {"variant": variant, "seed": seed, "step": step, "train_time_ms": 50.0 * step}
                rows.append(row | {"val_loss": val if step % 20 == 0 else math.nan, "train_loss": val + 0.05})
    return pd.DataFrame(rows)


def texts(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(match=lambda a: hasattr(a, "get_text")))  # type: ignore[attr-defined]


def thick(figure: Figure) -> dict[str, Any]:
    return {str(line.get_label()): line for line in figure.axes[0].get_lines() if line.get_linewidth() == 2}


def thin(figure: Figure) -> list[Any]:
    return [line for line in figure.axes[0].get_lines() if line.get_linewidth() == 0.7]


def crosses(figure: Figure) -> list[tuple[float, float]]:
    found = [line for line in figure.axes[0].get_lines() if line.get_marker() == "x"]
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in found]


def test_thick_line_is_the_mean_and_thin_lines_are_the_seeds_of_one_variant() -> None:
    figure = plots.loss_curves(curves({"gelu": 0.1}), floor=1.9)
    mean = thick(figure)["gelu"]
    assert mean.get_xdata() == pytest.approx(np.arange(0, 201, 20))
    assert mean.get_ydata()[-1] == pytest.approx(2.0 + 30 / 220 + 0.1 + 0.002)
    assert len(thin(figure)) == 3 and not figure.axes[0].collections
    assert "entropy of the data, 1.9000" in texts(figure)
    assert "mean of 3 seeds" in texts(figure) and "thin: one seed" in texts(figure)


def test_of_several_variants_the_band_is_the_range_over_seeds() -> None:
    figure = plots.loss_curves(curves({"baseline": 0.0, "gelu": 0.1}))
    bands = figure.axes[0].collections
    assert len(bands) == 2 and not thin(figure)
    low, high = bands[1].get_paths()[0].get_extents().get_points()
    end = 2.0 + 30 / 220 + 0.1
    assert low[1] == pytest.approx(end + 0.001) and high[0] == 200
    last = bands[1].get_paths()[0].vertices
    assert max(last[last[:, 0] == 200][:, 1]) == pytest.approx(end + 0.003)
    assert "band: their range" in texts(figure) and "mean of 3 seeds" in texts(figure)


def test_where_a_seed_is_behind_thin_lines_go_on_for_the_others() -> None:
    frame = curves({"baseline": 0.0, "gelu": 0.1})
    frame = frame[(frame["variant"] != "gelu") | (frame["seed"] != 2) | (frame["step"] <= 100)]
    figure = plots.loss_curves(frame)
    assert thick(figure)["gelu"].get_xdata()[-1] == 100
    assert [list(line.get_xdata()) for line in thin(figure)] == [[100, 120, 140, 160, 180, 200]] * 2
    assert crosses(figure) == [], "it may still be running"


def diverging(tokens: bool = True) -> pd.DataFrame:
    """Seed 3 of gelu diverges at step 110 with its last evaluation at 100, as train.py logs it."""
    frame = curves({"baseline": 0.0, "gelu": 0.1}).assign(tokens=lambda f: 64.0 * f["step"])
    lost = (frame["variant"] == "gelu") & (frame["seed"] == 3)
    frame.loc[lost & (frame["step"] == 110), ["train_loss", "val_loss", "tokens"]] = math.nan
    return frame[~(lost & (frame["step"] > 110))]


@pytest.mark.parametrize("mark", ["tokens", "column"])
def test_a_diverged_run_is_a_thin_line_that_ends_in_a_cross(mark: str) -> None:
    frame = diverging()
    if mark == "column":
        frame = frame.drop(columns="tokens")
        frame["diverged"] = (frame["variant"] == "gelu") & (frame["seed"] == 3)
    figure = plots.loss_curves(frame)
    assert crosses(figure) == [(100, pytest.approx(2.0 + 30 / 120 + 0.103))]
    assert thick(figure)["gelu (1 of 3 diverged)"].get_xdata()[-1] == 200
    assert thick(figure)["gelu (1 of 3 diverged)"].get_ydata()[-1] == pytest.approx(2.0 + 30 / 220 + 0.1015)
    assert [line.get_xdata()[-1] for line in thin(figure)] == [100]
    said = " ".join(texts(figure).split())
    assert "mean over seeds that did not diverge" in said and "cross: diverged" in said


def test_a_run_that_diverged_before_any_evaluation_has_a_cross_and_a_name() -> None:
    frame = diverging()
    lost = (frame["variant"] == "gelu") & (frame["seed"] == 3)
    first = frame[lost].head(1).assign(train_loss=math.nan, val_loss=math.nan, tokens=math.nan)
    figure = plots.loss_curves(pd.concat([frame[frame["variant"] != "gelu"], first]))
    ((x, y),) = crosses(figure)
    low, high = figure.axes[0].get_ylim()
    assert x == 0 and low + 0.9 * (high - low) < y < high
    assert "gelu (1 of 1 diverged)" in texts(figure)


def test_mean_keeps_to_steps_that_all_seeds_reached() -> None:
    frame = curves({"baseline": 0.0})
    frame = frame[(frame["seed"] != 2) | (frame["step"] <= 100)]
    assert thick(plots.loss_curves(frame))["baseline"].get_xdata()[-1] == 100


def test_a_high_first_loss_does_not_hide_the_end_and_the_cut_is_named() -> None:
    figure = plots.loss_curves(curves({"baseline": 0.0, "gelu": 0.01}))
    low, high = figure.axes[0].get_ylim()
    assert low < 2.0 + 30 / 220 < 2.0 + 30 / 90 < high < 6
    assert "highest value 6.21" in texts(figure)
    frame = curves({"baseline": 0.0})
    frame["val_loss"] = frame["val_loss"].where(frame["val_loss"].isna(), 2.5 - frame["step"] / 1000)
    gentle = plots.loss_curves(frame)
    assert gentle.axes[0].get_ylim()[1] > 2.5
    assert "cut" not in texts(gentle)


def test_a_diverged_seed_does_not_set_the_scale() -> None:
    frame = curves({"baseline": 0.0, "gelu": 0.01})
    lost = (frame["seed"] == 3) & (frame["variant"] == "gelu") & frame["val_loss"].notna()
    frame.loc[lost & (frame["step"] == 100), "val_loss"] = 50.0
    frame.loc[lost & (frame["step"] > 100), "val_loss"] = math.inf
    figure = plots.loss_curves(frame)
    low, high = figure.axes[0].get_ylim()
    assert high < 6
    assert "highest value 50.00" in texts(figure)
    ((x, y),) = crosses(figure)  # where its line leaves the axes
    assert 80 < x < 81 and low < y < high


def test_tokens_and_flops_have_readable_units() -> None:
    frame = curves({"baseline": 0.0}).assign(tokens=lambda f: 16_384.0 * f["step"])
    figure = plots.loss_curves(frame, x="tokens")
    assert figure.axes[0].get_xlabel().startswith("training tokens (millions)")
    assert thick(figure)["baseline"].get_xdata()[-1] == pytest.approx(200 * 16_384 / 1e6)
    figure = plots.loss_curves(frame.assign(flops=frame["tokens"] * 7e6), x="flops")
    assert figure.axes[0].get_xlabel().startswith("training compute (TFLOP)")
    assert thick(figure)["baseline"].get_xdata()[-1] == pytest.approx(200 * 16_384 * 7e6 / 1e12)
    with pytest.raises(ValueError, match="flops=frame"):
        plots.loss_curves(frame, x="flops")


def test_time_axis_has_a_readable_unit() -> None:
    frame = curves({"baseline": 0.0})
    figure = plots.loss_curves(frame, x="train_time_ms")
    assert figure.axes[0].get_xlabel().startswith("training time (s)")
    assert thick(figure)["baseline"].get_xdata()[-1] == pytest.approx(10.0)
    slow = plots.loss_curves(frame.assign(train_time_ms=frame["train_time_ms"] * 1000), x="train_time_ms")
    assert slow.axes[0].get_xlabel().startswith("training time (min)")


def test_redraws_into_the_same_figure_quickly() -> None:
    frame = curves({"baseline": 0.0, "gelu": 0.1})
    figure = plots.loss_curves(frame[frame["step"] == 0])
    seconds = []
    for _ in range(3):
        start = time.process_time()
        assert plots.loss_curves(frame, figure=figure) is figure
        seconds.append(time.process_time() - start)
    assert len(thick(figure)) == 2
    assert min(seconds) < 0.5  # about 0.03; the bound only catches a change of kind


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_draws_before_the_first_evaluation(rows: int) -> None:
    frame = curves({"baseline": 0.0}).assign(val_loss=math.nan).head(rows)
    figure = plots.loss_curves(frame, title="live")
    figure.draw_without_rendering()
    assert "no evaluation yet" in texts(figure)


def test_the_end_is_enlarged_only_where_every_variant_is_in_it() -> None:
    frame = curves({"baseline": 0.0, "gelu": 0.1})
    assert plots.loss_curves(frame).axes[0].child_axes
    slow = frame.assign(train_time_ms=frame["train_time_ms"] * np.where(frame["variant"] == "gelu", 2.0, 1.0))
    assert not plots.loss_curves(slow, x="train_time_ms").axes[0].child_axes
