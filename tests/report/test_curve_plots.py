"""How steady training was: which norms are spikes, which runs diverged, and what the figure shows of it."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from gptlib.report import curve_plots


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
