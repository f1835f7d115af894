"""What the figures show, read back from their artists; looks are for eyes."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

from gptlib.report import science_plots
from gptlib.stats.planner import StudyPlan, plan_study

WIDTHS = pytest.mark.parametrize("width", [6.4, 3.2])


@pytest.fixture(scope="module")
def plan() -> StudyPlan:
    return plan_study((1.5,) * 3, 1.0, (0.2, 0.6, 1.0), alpha=0.05, studies=1000)


def powers() -> pd.DataFrame:
    effects = np.linspace(0, 4, 9)
    rows = [{"seeds": n, "effect": d, "power": 1 - math.exp(-n * d * d / 10)} for n in (10, 2, 5) for d in effects]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def ranks() -> pd.DataFrame:
    told = {"A": [-0.03, -0.02, -0.01, 0.02], "B": [-0.01, -0.02, -0.03], "C": [-0.01, -0.015, -0.02]}
    rows = [(stage, f"v{i}", value) for stage, values in told.items() for i, value in enumerate(values)]
    return pd.DataFrame(rows, columns=["stage", "variant", "difference"])


def money() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "stage": ["A", "B", "C"],
            "planned": [32.0, 60.0, 84.0],
            "spent": [30.0, 45.0, math.nan],
            "remaining": [170.0, 125.0, math.nan],
        }
    )


def texts(figure: Figure) -> str:
    """Every text of the figure, each on a line, its own line breaks as spaces."""
    found = figure.findobj(match=lambda a: hasattr(a, "get_text"))
    return "\n".join(" ".join(text.get_text().split()) for text in found)  # type: ignore[attr-defined]


def lines(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    found = {str(line.get_label()): line for line in figure.axes[0].get_lines()}
    return {label: (list(line.get_xdata()), list(line.get_ydata())) for label, line in found.items()}


def figures(plan: StudyPlan, width: float) -> dict[str, Figure]:
    return {
        "plan": science_plots.plan_figure(plan, width=width),
        "power": science_plots.power_curve_figure(powers(), width=width),
        "ranks": science_plots.stage_ranks(ranks(), width=width),
        "money": science_plots.burn_down(money(), width=width),
        "p": science_plots.p_values([0.1, 0.5, 0.9], width=width),
    }


@WIDTHS
def test_every_figure_has_title_axes_and_a_legend_and_nothing_is_cut_off(plan: StudyPlan, width: float) -> None:
    for name, figure in figures(plan, width).items():
        axes = figure.axes[0]
        assert axes.get_title(loc="left") and axes.get_xlabel() and axes.get_ylabel(), name
        assert figure.get_figwidth() == width and len(figure.legends) == 1
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        page, shown = figure.bbox, [figure.legends[0], axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for artist in [*shown, axes.title, axes._left_title]:  # type: ignore[attr-defined]
            box = artist.get_window_extent(canvas.get_renderer())
            assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1, (name, artist)
            assert page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1, (name, artist)


def test_plan_has_a_numbered_point_per_design_and_rings_the_chosen_one(plan: StudyPlan) -> None:
    figure = science_plots.plan_figure(plan, target=0.65, unit="dollars")
    found = lines(figure)
    for number, design in enumerate(plan.designs, 1):
        label = f"{number}  {design.name}" + (" (chosen)" if design == plan.chosen else "")
        assert found[label] == ([design.expected_cost], [design.power])
    assert [t.get_text() for t in figure.axes[0].texts] == [str(n + 1) for n in range(len(plan.designs))]
    spans = [line.get_xdata() for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 2]
    for design in plan.designs:
        assert [design.expected_cost, design.worst_cost] in [list(span) for span in spans]
    (ring,) = [line for line in figure.axes[0].get_lines() if line.get_markersize() == 14]
    assert list(ring.get_xdata()) == [plan.chosen.expected_cost]
    assert found["power asked for, 0.65"][1] == [0.65, 0.65]
    assert "cost (dollars)" in texts(figure) and "best effect ≥ 1.5" in texts(figure)
    assert figure.axes[0].get_xlim()[1] > max(design.worst_cost for design in plan.designs)


def test_power_has_a_line_per_number_of_seeds_in_order() -> None:
    figure = science_plots.power_curve_figure(powers(), unit="nats/token")
    found = lines(figure)
    assert [label for label in found if "seeds" in label] == [f"{n} seeds per arm" for n in (2, 5, 10)]
    effects, power = found["5 seeds per arm"]
    assert effects == sorted(effects) and power == pytest.approx([1 - math.exp(-d * d / 2) for d in effects])
    assert figure.axes[0].get_xlabel() == "true difference (nats/token)"
    assert found["power 0.8"][1] == [0.8, 0.8]


def test_ranks_join_the_stages_of_a_variant_and_name_the_correlation() -> None:
    figure = science_plots.stage_ranks(ranks())
    found = lines(figure)
    assert found["v0"] == ([0, 1, 2], [-0.03, -0.01, -0.01])
    assert found["v3"] == ([0], [0.02])
    assert "A–C −1.00 (n = 3), B–C 1.00 (n = 3)" in texts(figure)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["A (screen)", "B (check)", "C (race)"]


def test_ranks_of_two_variants_or_without_a_check_are_drawn_too() -> None:
    frame = ranks()
    few = science_plots.stage_ranks(frame[frame["variant"].isin(["v0", "v1"])])
    assert "Spearman" not in texts(few) and set(lines(few)) >= {"v0", "v1"}
    short = science_plots.stage_ranks(frame[frame["stage"] != "B"])
    assert lines(short)["v1"] == ([0, 1], [-0.02, -0.015])
    assert "A–C −1.00 (n = 3)" in texts(short)


def test_money_is_drawn_against_the_budget() -> None:
    figure = science_plots.burn_down(money())
    bars = [patch.get_height() for patch in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert bars == [32.0, 60.0, 84.0, 30.0, 45.0, 0.0]
    found = lines(figure)
    assert found["left of the budget"][1][:2] == [170.0, 125.0] and math.isnan(found["left of the budget"][1][2])
    assert found["budget, $200.00"][1] == [200.0, 200.0]
    assert [t.get_text() for t in figure.axes[0].texts] == ["$170.00", "$125.00"]
    assert "dollars" in texts(figure) and figure.axes[0].get_ylim()[1] > 200


def test_p_values_are_stepped_beside_the_uniform_and_its_band() -> None:
    values = [0.9, 0.01, 0.3, 0.04, 0.6]
    figure = science_plots.p_values(values)
    x, y = lines(figure)["5 comparisons"]
    assert x[1:-1] == sorted(values) and y[1:-1] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert "40.0 % are at most 0.05" in texts(figure)
    assert lines(figure)["uniform"] == ([0, 1], [0, 1])
    assert "20.0 % are at most 0.01" in texts(science_plots.p_values(values, alpha=0.01))


@pytest.mark.parametrize("n", [1, 7, 100])
def test_the_band_is_that_of_the_binomial(n: int) -> None:
    p = np.linspace(0, 1, 21)
    low, high = science_plots.binomial_band(n, p)
    assert low * n == pytest.approx(stats.binom.ppf(0.025, n, p).clip(0))
    assert high * n == pytest.approx(stats.binom.ppf(0.975, n, p).clip(0))


@pytest.mark.parametrize("values", [[], [0.2, 1.5], [math.nan], [-0.1]])
def test_what_is_no_p_value_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="give one or more between 0 and 1"):
        science_plots.p_values(values)
