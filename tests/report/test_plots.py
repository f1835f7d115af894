"""What the figures show, read back from their artists; looks are for eyes."""

import math
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from gptlib.fields import RunConfig
from gptlib.report import plots
from gptlib.schedules import lr_multiplier
from gptlib.stats.compare import Comparison, two_sample


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


def test_thick_line_is_the_mean_and_thin_lines_are_seeds() -> None:
    figure = plots.loss_curves(curves({"baseline": 0.0, "gelu": 0.1}), floor=1.9)
    mean = thick(figure)["gelu"]
    assert mean.get_xdata() == pytest.approx(np.arange(0, 201, 20))
    assert mean.get_ydata()[-1] == pytest.approx(2.0 + 30 / 220 + 0.1 + 0.002)
    thin = [line for line in figure.axes[0].get_lines() if line.get_linewidth() == 0.7]
    assert len(thin) == 6
    assert len({to_hex(line.get_color()) for line in thin}) == 2
    assert "entropy of the data, 1.9000" in texts(figure)
    assert "mean of 3 seeds" in texts(figure)


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
    assert figure.axes[0].get_ylim()[1] < 6
    assert "highest value 50.00" in texts(figure)


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


def test_differences_are_sorted_and_carry_verdict_and_margin() -> None:
    base = np.array([2.30, 2.31, 2.29, 2.305])
    shifts = {"worst": 0.2, "same": 0.001, "best": -0.1}
    noise = np.array([0.002, -0.001, 0.001, -0.002])
    compared = {name: two_sample(base, base + shift + noise, margin=0.05) for name, shift in shifts.items()}
    compared["single"] = two_sample(base[:1], base[1:2] + 0.02)
    figure = plots.differences(compared)
    figure.draw_without_rendering()
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["worst", "single", "same", "best"]  # from the bottom up
    verdicts = {t.get_text(): to_hex(str(t.get_color())) for t in figure.axes[0].texts}
    assert {"better", "worse", "equivalent within 0.05", "undecided"} <= set(verdicts)
    assert len({verdicts[v] for v in ("better", "worse", "equivalent within 0.05", "undecided")}) == 4
    bands = [(bar.get_x(), bar.get_width()) for bar in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert bands == [pytest.approx((-0.05, 0.1))] * 3
    low, high = figure.axes[0].get_xlim()
    assert low < min(c.low for c in compared.values() if c.low is not None)
    assert high > max(c.high for c in compared.values() if c.high is not None)


def test_no_text_of_the_forest_plot_leaves_the_figure_or_overlaps() -> None:
    one = Comparison("welch", 3, 3, -0.1234, -12.34, -0.2, -0.05, 0.05, 0.01, 0.02, 0.5, 0.1, None, "worse", "")
    figure = plots.differences({"a_variant_with_a_long_name": one, "b": two_sample([1.0, 2], [1.1, 2.2], margin=99)})
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_seed_lines_join_the_runs_of_one_seed() -> None:
    frame = pd.DataFrame(
        [("gelu", 7, 2.2), ("gelu", 8, math.inf), ("baseline", 8, 2.1), ("baseline", 7, 2.0)],
        columns=["variant", "seed", "final_val_loss"],
    )
    figure = plots.seed_losses(frame)
    figure.draw_without_rendering()
    lines = [line.get_ydata() for line in figure.axes[0].get_lines() if line.get_label() == "one seed"]
    assert np.array(lines) == pytest.approx(np.array([[2.0, 2.2], [2.1, math.nan]]), nan_ok=True)
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert ticks == ["baseline", "gelu\n(1 without a loss)"]


def test_schedule_is_the_multiplier_of_the_run() -> None:
    config = RunConfig()
    (line,) = plots.schedule(config).axes[0].get_lines()
    x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    assert x[-1] == config.train.steps
    assert y[::100] == pytest.approx([lr_multiplier(config.schedule, p) for p in (0, 0.25, 0.5, 0.75, 1)])
