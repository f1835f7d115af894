"""What 90_analysis says of stages, repeats and the registration; the cells of the notebook itself run elsewhere."""

from types import SimpleNamespace

import pandas as pd
import pytest
from scipy import stats

from gptlib import analysis, records


@pytest.fixture
def parameters(tmp_path):
    return SimpleNamespace(outputs=str(tmp_path), study="s", stage="full", seeds=[42], ablations=["gelu"], repeats={})


@pytest.fixture
def displayed(monkeypatch):
    things = []
    monkeypatch.setattr(analysis, "display", things.append)
    monkeypatch.setattr(analysis, "show", lambda figure, sentence="": things.append(sentence))
    return things


def arm(variant, difference, goes_on=True, reason="kept"):
    mean = None if difference is None else 3 + difference
    return {"variant": variant, "mean": mean, "difference": difference, "goes_on": goes_on, "reason": reason}


DECIDED = {
    "metric": "final_val_loss",
    "verdict": "gelu better than the baseline, at a chance of 0.05 for any false claim",
    "target": None,
    "stages": [
        {"stage": "A", "role": "screen", "seeds": 2, "arms": [arm("gelu", -0.1), arm("smear", None, False, "lost")]},
        {"stage": "C", "role": "race", "look": 1, "seeds": 3, "arms": [arm("gelu", -0.2)]},
        {"stage": "C", "role": "race", "look": 2, "seeds": 5, "arms": [arm("gelu", -0.3)]},
    ],
    "claims": [
        {"variant": "gelu", "verdict": "better", "reason": "better: p = 0.01", "seeds": 5, "difference": -0.3,
         "low": -0.4, "high": -0.2, "p_value": 0.01},
        {"variant": "relu", "verdict": "undecided", "reason": "undecided: a run diverged", "seeds": 3,
         "difference": None, "low": None, "high": None, "p_value": None},
    ],
}  # fmt: skip


def decide(parameters, **changes):
    records.write_json(analysis.Path(parameters.outputs) / "s" / "decision.json", DECIDED | changes)


# --- stages -----------------------------------------------------------------------------------------------------


def test_a_study_without_stages_has_no_such_part(parameters, displayed):
    analysis.stages(parameters)
    assert displayed == []


def test_every_stage_and_look_is_a_row_and_every_claim_a_line(parameters, displayed):
    decide(parameters)
    analysis.stages(parameters)
    head, lines, table, sentence = displayed
    assert head.data.startswith("## Stages")
    assert lines.data.splitlines() == [
        "**Verdict: gelu better than the baseline, at a chance of 0.05 for any false claim.**",
        "- **gelu**: better: p = 0.01. Difference -0.3000 [-0.4000, -0.2000], the interval at the level of the last "
        "boundary.",
        "- **relu**: undecided: a run diverged.",
    ]
    assert list(table.index) == [
        ("A (screen)", "gelu"),
        ("A (screen)", "smear"),
        ("C (race), look 1", "gelu"),
        ("C (race), look 2", "gelu"),
    ]
    assert list(table["goes on"]) == ["yes", "no", "yes", "yes"] and list(table["seeds"]) == [2, 2, 3, 5]
    assert "a line joins one variant" in sentence


def test_ranks_are_drawn_of_the_last_look_and_only_over_several_stages(parameters, displayed, monkeypatch):
    drawn = []
    monkeypatch.setattr(analysis.science_plots, "stage_ranks", lambda frame, unit: drawn.append(frame.to_dict("list")))
    decide(parameters)
    analysis.stages(parameters)
    assert drawn == [{"stage": ["A", "C"], "variant": ["gelu", "gelu"], "difference": [-0.1, -0.3]}]
    decide(parameters, stages=DECIDED["stages"][:1])
    analysis.stages(parameters)
    assert len(drawn) == 1


def test_the_target_is_a_line_for_each_arm(parameters, displayed):
    decide(parameters, target=[{"variant": "gelu", "target": 3.28, "reason": "the mean is below"}])
    analysis.stages(parameters)
    assert "- gelu against the target 3.28: the mean is below." in displayed[1].data


def test_a_study_that_stopped_before_its_first_stage_has_one_line(parameters, displayed):
    decide(parameters, stages=[], claims=[], verdict="not finished: stage A: its first run failed")
    analysis.stages(parameters)
    _, lines = displayed
    assert lines.data == "**Verdict: not finished: stage A: its first run failed.**"


# --- repeats ----------------------------------------------------------------------------------------------------


def answer(variant, difference, p):
    compared = SimpleNamespace(difference=difference, p_value=p)
    return SimpleNamespace(variant=SimpleNamespace(plan=SimpleNamespace(variant=variant)), comparison=compared)


def test_without_repeats_the_table_is_empty_and_has_its_columns(parameters):
    found = analysis.repeated(parameters, [answer("gelu", 0.1, 0.2)])
    assert len(found) == 0 and list(found.columns) == ["stage", "variant", "difference", "p_value"]


def test_the_first_repeat_is_the_study_itself(parameters, monkeypatch):
    asked = []

    def copied(update):
        return SimpleNamespace(**{**vars(parameters), **update})

    def ablation_of(there, ablation):
        asked.append((there.stage, there.seeds, ablation.variant))
        return answer(ablation.variant, 0.2, 0.5)

    monkeypatch.setattr(analysis, "ablation_of", ablation_of)
    parameters.model_copy, parameters.repeats = copied, {"full-02": [1042], "full-03": [2042]}
    found = analysis.repeated(parameters, [answer("gelu", 0.1, 0.2)])
    assert asked == [("full-02", [1042], "gelu"), ("full-03", [2042], "gelu")]
    assert list(found["stage"]) == ["full", "full-02", "full-03"] and list(found["p_value"]) == [0.2, 0.5, 0.5]


@pytest.mark.parametrize(("below", "of", "alpha"), [(2, 40, 0.05), (9, 40, 0.05), (0, 10, 0.05), (0, 400, 0.01)])
def test_the_share_of_small_p_values_beside_its_band(below, of, alpha):
    said = analysis.share_below([alpha / 2] * below + [0.5] * (of - below), alpha)
    low, high = stats.binom.ppf([0.025, 0.975], of, alpha)
    word = "inside" if low <= below <= high else "OUTSIDE"
    assert said == (
        f"{below} of {of} comparisons have p < {alpha:g} ({100 * below / of:.1f} %), {word} the 95 % band of "
        f"{low:.0f} to {high:.0f} that holds where nothing differs."
    )
    assert stats.binom.cdf(high, of, alpha) - stats.binom.cdf(low - 1, of, alpha) >= 0.95


def test_comparisons_that_could_not_be_tested_are_not_counted():
    assert analysis.share_below([None, float("nan"), 0.5, 0.01]).startswith("1 of 2 comparisons")
    assert analysis.share_below([]) == analysis.share_below([None]) == "No comparison could be tested."


def test_parts_that_a_study_does_not_have_show_nothing(parameters, displayed, monkeypatch):
    vars(parameters).update(ladder={}, interactions=[], stable_lr={}, imported=[])
    analysis.sizes(parameters, [])
    analysis.interactions(parameters)
    analysis.repeats(parameters, [])
    parameters.repeats = {"full-02": [1042]}
    monkeypatch.setattr(analysis, "repeated", lambda *_: pd.DataFrame({"variant": ["gelu"], "p_value": [None]}))
    analysis.repeats(parameters, [])  # a pair of which one run diverged
    analysis.learning_rates(parameters)
    analysis.foreign(parameters)
    assert displayed == []


def test_the_search_of_every_arm_is_a_line_and_a_table(parameters, displayed, monkeypatch):
    point = analysis.stability.Point
    found = {
        "baseline": analysis.stability.Stability((point(8, 0.048, 2, 0, None, 2.3),)),
        "no_norm": analysis.stability.Stability((point(8, 0.048, 2, 2, 3, None), point(1, 0.006, 2, 0, None, 1.5))),
    }
    parameters.stable_lr = {"baseline": [8, 1], "no_norm": [8, 1]}
    parameters.plan = lambda ablation: SimpleNamespace(variant=ablation.variant if ablation else "baseline")
    monkeypatch.setattr(analysis.stability, "stable_rates", lambda plan, grid: found[plan.variant])
    monkeypatch.setattr(analysis, "display", lambda *things: displayed.extend(things))
    analysis.learning_rates(parameters)
    _, figure, first, _, second, table = displayed
    assert figure.startswith("Mean final loss by rate")
    assert first.data == (
        "**baseline**: the largest stable rate tried is 0.048 (x8); the grid has none above it that diverged."
    )
    assert second.data == "**no_norm**: the largest stable rate tried is 0.006 (x1); diverged: 0.048 (2 of 2 runs)."
    assert list(table["diverged"]) == ["2 of 2", "0 of 2"]


def rated(scale, losses, difference=None, diverged=0):
    """An experiment at a rate of 0.01 times `scale`."""
    config = SimpleNamespace(optim=SimpleNamespace(matrix_lr=0.01 * scale))
    plan = SimpleNamespace(config=config, difference=difference or {}, variant=f"x{scale}")
    return SimpleNamespace(
        plan=plan, finals=lambda: losses, count=lambda status: diverged, results=[None] * (len(losses) + diverged)
    )


def test_ablations_of_the_rate_alone_are_a_curve_with_the_baseline():
    baseline, scaled = rated(1, {1: 3.0, 2: 3.2}), {"optim.lr_scale": (1, 4)}
    answers = [
        SimpleNamespace(baseline=baseline, variant=rated(4, {1: 2.5}, scaled, diverged=1)),
        SimpleNamespace(baseline=baseline, variant=rated(8, {}, scaled, diverged=2)),
        SimpleNamespace(baseline=baseline, variant=rated(4, {1: 2.5}, scaled | {"train.steps": (1, 2)})),
    ]
    rows = analysis.rates_tried(answers)
    assert [(r["lr"], r["diverged"], r["runs"]) for r in rows] == [(0.01, 0, 2), (0.04, 1, 2), (0.08, 2, 2)]
    assert [r["loss"] for r in rows[:2]] == [pytest.approx(3.1), 2.5] and rows[2]["loss"] != rows[2]["loss"]
    assert analysis.rates_tried([]) == []


def test_curves_are_also_over_what_a_step_of_one_arm_costs_more(displayed):
    rows = [
        {"variant": variant, "seed": 1, "step": step, "train_time_ms": 9.0 * step, "val_loss": 3.0 - step / 10,
         "train_loss": 3.0, "tokens": 64 * step, "flops": flops * step}
        for variant, flops in (("baseline", 10.0), ("wide", 13.0))
        for step in range(5)
    ]  # fmt: skip
    first = analysis.curves(pd.DataFrame(rows), None)
    assert first.axes[0].get_xlabel().startswith("step") and len(displayed) == 3
    assert "machine" in displayed[2] and "machine" not in displayed[1]
    analysis.curves(pd.DataFrame(rows).assign(flops=lambda frame: frame["tokens"]), None)
    assert len(displayed) == 5
