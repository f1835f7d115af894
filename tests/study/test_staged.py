"""Staged studies with given losses: what goes on and why, what is claimed, paid, repeated and refused. No training."""

import copy
import math
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from scipy import stats

from gptlib import notebook, records
from gptlib.stats import staging
from gptlib.study import runner, staged, steps
from gptlib.study.experiment import Experiment, judge
from gptlib.study.hypothesis import load_ablation
from gptlib.study.plan import plan_experiment

NAMES = ["gelu", "no_qk_norm", "smear", "no_rope"]
STUDY = {
    "name": "race",
    "question": "Which of these is better?",
    "base": "smoke",
    "ablations": NAMES,
    "notebooks_at_once": 1,  # experiments are made in this process
    "stages": {
        "A": {"overrides": {"train.steps": "x1/5"}, "seeds": [42, 43], "dollars_per_run": 1},
        "B": {"overrides": {"train.steps": "x3/5"}, "seeds": [142, 143, 144], "dollars_per_run": 2},
        "C": {"seeds": [242, 243, 244, 245, 246], "dollars_per_run": 4},
        "looks": [2, 3, 5],
        "reuse_baseline": False,
    },
}
NOISE = (0.010, -0.008, 0.003, -0.006, 0.001)
LIMITS = (0.02, 0.03, 0.04)


def loss(better=(), **effects):
    """Baseline at 3; an effect for a variant, or {stage: effect}; other noise for each arm, seed and stage."""

    def of(stage, variant, seed):
        effect = effects.get(variant, -0.2 if variant in better else 0.2 if variant != "baseline" else 0.0)
        effect = effect.get(stage, 0.0) if isinstance(effect, dict) else effect
        if isinstance(effect, str):
            return effect
        index = (seed + 3 * len(variant)) % len(NOISE)
        return 3 + effect + NOISE[index]

    return of


@pytest.fixture
def race(outputs, overrides, shown, do_notebook, tmp_path, monkeypatch):
    """Runs the study with given losses (or "diverged", "failed") through the code of the notebooks."""
    state = SimpleNamespace(runs=[], executions=[], loss=loss(), interrupt=None, git={"commit": "c", "dirty": False})

    def launch(runs, hardware, poll):
        for run in runs:
            spec, (stage, variant) = records.read_json(run / "run.json"), (run.parents[2].name, run.parents[1].name)
            if state.interrupt == (stage, variant, spec["seed"]):
                raise KeyboardInterrupt
            final = state.loss(stage, variant, spec["seed"])
            status = final if isinstance(final, str) else "finished"
            result = {key: spec[key] for key in ("run_id", "seed", "attempt", "fingerprint", "device")}
            result |= {"status": status, "success": status == "finished", "time_seconds": 1.0, "tokens_per_second": 9.0}
            value = None if status != "finished" else final
            result |= {"final_step": spec["config"]["train"]["steps"], "final_val_loss": value, "best_val_loss": value}
            records.write_json(run / "result.json", result | ({"error": "out of memory"} if final == "failed" else {}))
            state.runs.append((stage, variant, spec["seed"]))

    def papermill(notebook_file, executed, parameters, log, ended):
        state.executions.append(executed.stem.removeprefix("."))
        values = do_notebook(notebook_file, executed, parameters)
        if notebook_file.stem == "90_analysis":
            state.asked = notebook.AnalysisParameters(**values)
            notebook.baseline_of(state.asked)
            state.answers = [notebook.ablation_of(state.asked, load_ablation(name)) for name in state.asked.ablations]
        return 0

    monkeypatch.setattr("gptlib.study.experiment.launch", launch)
    known = records.environment()
    monkeypatch.setattr(records, "environment", lambda: dict(known))
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr("gptlib.report.plots.loss_curves", lambda *_, **__: Figure())
    monkeypatch.setattr("gptlib.live.picture", lambda _: None)
    monkeypatch.setattr(steps, "_papermill", papermill)
    monkeypatch.setattr(staged, "boundaries", lambda alpha, looks, variants: LIMITS[: len(looks)])
    monkeypatch.setattr(records, "git_info", lambda: dict(state.git))

    def run(losses=None, stages=None, study=None):
        state.loss = losses or state.loss
        values = copy.deepcopy(STUDY) | {"overrides": overrides | {"train.steps": 10}} | (study or {})
        for key, value in (stages or {}).items():
            values["stages"][key] = {**values["stages"][key], **value} if isinstance(value, dict) else value
        values["stages"] = {key: value for key, value in values["stages"].items() if value is not None}
        path = tmp_path / "race.yaml"
        path.write_text(yaml.safe_dump(values))
        for seen in (state.runs, state.executions):
            seen.clear()
        outcome = runner.run_study(path, outputs)
        found = records.read_json(outputs / values["name"] / "decision.json")
        return SimpleNamespace(failures=outcome.failures, outcome=outcome, **found)

    state.run, state.folder, state.outputs = run, outputs / "race", outputs
    return state


def losses_of(race, stage, variants, seeds):
    folder = race.folder / stage
    found = [
        [records.read_json(p)["final_val_loss"] for p in sorted((folder / v / "runs").glob("*/result.json"))][:seeds]
        for v in variants
    ]
    return np.array([row + [math.nan] * (seeds - len(row)) for row in found], float)


def goes_on(entry):
    return [arm["variant"] for arm in entry["arms"] if arm["goes_on"]]


def reasons(entry):
    return {arm["variant"]: arm["reason"] for arm in entry["arms"]}


def places(runs):
    """{(stage, variant): how many runs}."""
    return {place: [run[:2] for run in runs].count(place) for place in [run[:2] for run in runs]}


# --- what goes on -----------------------------------------------------------------------------------------------


def test_screen_check_and_race_decide_as_the_rules_say(race):
    found = race.run(loss(["gelu", "smear"], gelu=-0.3, no_qk_norm=0.005))
    screened, checked, *looks = found.stages
    rule = staging.Rule(alpha=0.05, check_seeds=3, looks=(2, 3, 5), promote=2)
    expected = staging.screen(losses_of(race, "A", ["baseline", *NAMES], 2), rule)
    assert goes_on(screened) == [n for n, kept in zip(NAMES, expected.kept, strict=True) if kept] == ["gelu", "smear"]
    said = reasons(screened)
    assert re.fullmatch(r"kept: rank 1 of 4, \d+\.\d standard errors better than the baseline", said["gelu"])
    assert said["no_qk_norm"] == "dropped: rank 3 of 4, and 2 are kept"
    assert goes_on(checked) == ["gelu"] and "more than one standard error behind the best" in reasons(checked)["smear"]
    assert reasons(checked)["gelu"].startswith("promoted: better than the baseline")
    assert [(e["stage"], e["role"], e["seeds"]) for e in found.stages] == [
        ("A", "screen", 2),
        ("B", "check", 3),
        ("C", "race", 2),
    ]
    assert len(looks) == 1 and looks[0]["look"] == 1 and goes_on(looks[0]) == ["gelu"]
    (claim,) = found.claims
    assert (claim["variant"], claim["verdict"], claim["seeds"]) == ("gelu", "better", 2)
    assert found.verdict == "gelu better than the baseline, at a chance of 0.05 for any false claim"
    assert found.failures == []
    expected = {("A", name): 2 for name in ("baseline", *NAMES)}
    expected |= {("B", name): 3 for name in ("baseline", "gelu", "smear")} | {("C", "baseline"): 2, ("C", "gelu"): 2}
    assert places(race.runs) == expected


def test_a_variant_much_worse_is_dropped_though_there_is_room(race):
    found = race.run(loss(["gelu"]))
    said = reasons(found.stages[0])
    assert goes_on(found.stages[0]) == ["gelu"]
    (second,) = [reason for reason in said.values() if "allowed" in reason]
    assert re.fullmatch(r"dropped: \d+\.\d standard errors worse than the baseline, more than the 1 allowed", second)


def test_a_diverged_variant_is_named_and_does_not_go_on(race):
    found = race.run(loss(["gelu"], smear="diverged"))
    assert reasons(found.stages[0])["smear"] == "diverged" and found.stages[0]["arms"][2]["mean"] is None
    assert goes_on(found.stages[0]) == ["gelu"]


def test_where_nothing_is_good_enough_nothing_is_raced(race):
    found = race.run(loss(["gelu"], gelu={"A": -0.3, "B": 0.2}), {"pivots": 0})
    assert found.verdict.startswith("no candidate: no variant was good enough in the check") and found.claims == []
    assert not (race.folder / "C").exists() and found.failures == []
    assert race.asked.stage == "B" and race.asked.ablations == ["gelu"]
    again = race.run(stages={"pivots": 0})
    assert again.verdict == found.verdict and (race.runs, race.executions) == ([], [])


def test_a_screen_that_keeps_none_ends_the_study_and_says_where(race):
    found = race.run(loss())
    assert found.verdict == "no candidate: no variant was good enough in the screen, so nothing was raced"
    assert places(race.runs).keys() == {("A", name) for name in ("baseline", *NAMES)}


PIVOT = {"gelu": {"A": -0.3, "B": 0.2}, "smear": {"A": -0.2, "B": -0.2, "C": -0.2}}


def test_a_pivot_checks_the_next_of_the_screen(race):
    found = race.run(loss(**PIVOT), {"keep": 0.25, "keep_at_least": 1})
    _, first, second, *_ = found.stages
    assert goes_on(first) == [] and reasons(first) == {"gelu": "dropped: not better than the baseline"}
    assert goes_on(second) == ["smear"]
    assert reasons(second)["gelu"] == "dropped: checked before the pivot, and did not beat the baseline"
    assert [claim["variant"] for claim in found.claims] == ["smear"]


def test_without_screen_and_check_all_race(race):
    found = race.run(loss(["gelu"]), {"A": None, "B": None})
    assert {entry["stage"] for entry in found.stages} == {"C"} and len(found.claims) == len(NAMES)
    assert found.rule["screen_seeds"] == found.rule["check_seeds"] == 0


def test_the_stages_have_lengths_and_seeds_of_their_own(race):
    race.run(loss(["gelu"]))
    length = {s: records.read_json(race.folder / s / "gelu" / "config.json")["config"]["train"]["steps"] for s in "ABC"}
    assert length == {"A": 2, "B": 6, "C": 10}
    seeds = {s: {seed for stage, _, seed in race.runs if stage == s} for s in "ABC"}
    assert seeds["A"] == {42, 43} and seeds["B"] == {142, 143, 144} and seeds["C"] == {242, 243}


# --- the race ---------------------------------------------------------------------------------------------------


def scripted(table):
    """Losses of the race by variant and seed index, good enough before it."""

    def of(stage, variant, seed):
        if stage == "C":
            return table[variant][seed - 242]
        return 3 - (0.2 if variant != "baseline" else 0) + NOISE[(seed + 3 * len(variant)) % 5]

    return of


THREE = {
    "baseline": [3.00, 3.02, 2.99, 3.01, 3.00],
    "gelu": [2.99, 3.00, 2.98, 2.95, 2.93],
    "smear": [3.05, 3.04],  # leaves at the first look
    "no_rope": [2.99, 3.01, "diverged"],
}
RACED = {"ablations": ["gelu", "smear", "no_rope"]}


@pytest.fixture
def long_race(race):
    return race.run(scripted(THREE), {"A": None, "B": None}, RACED)


def by_hand(race, looks, index):
    """Difference, pooled error, df of a variant at its last look by scipy and plain sums; NaN: not made."""
    rows = losses_of(race, "C", ["baseline", "gelu", "smear", "no_rope"], looks)
    finite = [row[np.isfinite(row)] for row in rows]
    df = sum(len(row) - 1 for row in finite)
    pooled = sum((len(row) - 1) * np.var(row, ddof=1) for row in finite) / df
    return finite[index].mean() - finite[0].mean(), math.sqrt(2 * pooled / looks), df


def test_a_race_goes_on_until_all_have_left(race, long_race):
    claims = {claim["variant"]: claim for claim in long_race.claims}
    assert [(name, claim["seeds"], claim["verdict"]) for name, claim in claims.items()] == [
        ("gelu", 5, "better"),
        ("smear", 2, "undecided"),
        ("no_rope", 3, "undecided"),
    ]
    first, second, third = long_race.stages
    assert [entry["look"] for entry in long_race.stages] == [1, 2, 3]
    assert goes_on(first) == ["gelu", "no_rope"] and goes_on(second) == ["gelu"] == goes_on(third)
    assert re.fullmatch(r"goes on: p = [\d.]+ at look 1 of 3 \(2 seeds\), boundary 0\.02", reasons(first)["gelu"])
    assert claims["smear"]["reason"].endswith("; above 0.35, so it leaves the race")
    assert claims["no_rope"]["reason"] == "undecided: a run diverged at look 2 of 3 (3 seeds), so it leaves the race"
    assert all(claims["no_rope"][key] is None for key in ("difference", "low", "high", "p_value"))
    expected = {"baseline": 5, "gelu": 5, "smear": 2, "no_rope": 3}
    assert places(race.runs) == {("C", name): count for name, count in expected.items()}


@pytest.mark.parametrize(("name", "seeds", "index"), [("gelu", 5, 1), ("smear", 2, 2)])
def test_claims_agree_with_scipy(race, long_race, name, seeds, index):
    """The spread is pooled over all that was run, those of arms that have left included."""
    (claim,) = [claim for claim in long_race.claims if claim["variant"] == name]
    difference, error, df = by_hand(race, seeds, index)
    assert claim["difference"] == pytest.approx(difference)
    assert claim["p_value"] == pytest.approx(stats.t.cdf(difference / error, df))
    half = stats.t.isf(LIMITS[-1], df) * error
    assert (claim["low"], claim["high"]) == pytest.approx((difference - half, difference + half))


def test_the_summaries_and_the_report_say_what_the_race_said(race, long_race):
    claims = {claim["variant"]: claim for claim in long_race.claims}
    for name, claim in claims.items():
        summary = records.read_json(race.folder / "C" / name / "summary.json")
        said = summary["comparison"]
        for key in ("verdict", "reason", "difference", "low", "high", "p_value"):
            assert said[key] == claim[key], (name, key)
        assert said["test"] == "race" and said["alpha"] == 0.1, "a one-sided 5 % has an interval of 90 %"
        assert len(summary["seeds"]) == claim["seeds"]
    means = losses_of(race, "C", ["baseline", "gelu"], 5).mean(-1)
    assert summary["comparison"]["percent"] is None, "no_rope lost a run"
    (answer,) = race.answers
    assert answer.comparison.percent == pytest.approx(100 * (means[1] / means[0] - 1))
    assert answer.comparison.verdict == "better" and race.asked.missing == []


def test_the_report_trains_nothing_for_what_left_early(race, long_race):
    assert race.asked.ablations == ["gelu"] and race.asked.seeds == [242, 243, 244, 245, 246]
    assert not [run for run in race.runs if run[1] == "smear" and run[2] > 243]


def test_a_second_call_decides_alike_and_makes_nothing(race, long_race):
    def written():
        return {p: p.stat().st_mtime_ns for p in race.folder.rglob("*") if p.is_file() and p.suffix != ".log"}

    before, executions = written(), [*race.executions]
    again = race.run(stages={"A": None, "B": None}, study=RACED)
    assert (race.runs, race.executions) == ([], []) and "analysis" in executions
    assert (again.claims, again.stages, again.verdict) == (long_race.claims, long_race.stages, long_race.verdict)
    assert {p.name for p, time in written().items() if before.get(p) != time} == set()


def test_a_changed_checkout_does_not_undo_a_finished_race(race, long_race):
    race.git["dirty"] = True
    again = race.run(stages={"A": None, "B": None}, study=RACED)
    assert again.failures == [] and again.claims == long_race.claims


def test_the_best_claim_ends_the_race_for_all(race):
    table = {"baseline": [3.0, 3.02], "gelu": [2.8, 2.81], "smear": [2.99, 3.0]}
    found = race.run(scripted(table), {"A": None, "B": None}, {"ablations": ["gelu", "smear"]})
    claims = {claim["variant"]: claim for claim in found.claims}
    assert claims["gelu"]["verdict"] == "better" and claims["smear"]["reason"].endswith("; the race is over")
    assert len(found.stages) == 1 and race.asked.ablations == ["gelu", "smear"]


def test_the_real_boundaries_are_those_of_the_looks_and_of_what_entered(race, monkeypatch):
    monkeypatch.setattr(staging, "NULL_DRAWS", staging.CHUNK)
    limits = staging.boundaries.__wrapped__(0.05, (2, 3), 1)
    monkeypatch.setattr(staged, "boundaries", staging.boundaries.__wrapped__)
    found = race.run(loss(["gelu"]), {"A": None, "B": None, "looks": [2, 3]}, {"ablations": ["gelu"]})
    assert f"boundary {limits[0]:.3g}" in found.claims[0]["reason"]


# --- the target -------------------------------------------------------------------------------------------------


def test_the_target_is_tested_by_one_sample_at_the_share_of_a_look(race):
    found = race.run(scripted(THREE), {"A": None, "B": None, "target": 3.0}, RACED)
    by_name = {arm["variant"]: arm for arm in found.target}
    assert set(by_name) == {"baseline", "gelu", "smear"}, "no_rope lost a run: the others are a selection"
    for name, arm in by_name.items():
        values = [value for value in losses_of(race, "C", [name], 5)[0] if np.isfinite(value)]
        assert arm["p_value"] == pytest.approx(stats.ttest_1samp(values, 3.0, alternative="less").pvalue)
        assert arm["alpha"] == pytest.approx(0.05 / 3) and arm["met"] == (arm["p_value"] <= arm["alpha"])
        assert arm["n"] == len(values)


def test_without_a_race_no_target_is_claimed(race):
    found = race.run(loss(), {"target": 9.0})
    assert found.target is None


# --- stopped, and taken up again --------------------------------------------------------------------------------


def test_an_interruption_between_stages_changes_no_decision(race):
    losses = loss(["gelu", "smear"], gelu=-0.3)
    race.interrupt = ("C", "baseline", 242)
    with pytest.raises(KeyboardInterrupt):
        race.run(losses)
    half = records.read_json(race.folder / "decision.json")
    assert half["verdict"] == "not finished" and [entry["stage"] for entry in half["stages"]] == ["A", "B"]
    race.interrupt = None
    found = race.run(losses)
    assert {run[0] for run in race.runs} == {"C"} and found.stages[:2] == half["stages"]
    assert [claim["variant"] for claim in found.claims] == ["gelu"]


def test_an_interruption_within_the_race_repeats_no_run(race, long_race):
    once = [*race.runs]
    shutil.rmtree(race.folder)
    race.interrupt = ("C", "gelu", 245)  # at the last look
    with pytest.raises(KeyboardInterrupt):
        race.run(scripted(THREE), {"A": None, "B": None}, RACED)
    first, race.interrupt = [*race.runs], None
    found = race.run(scripted(THREE), {"A": None, "B": None}, RACED)
    assert sorted(first + race.runs) == sorted(once) and len(set(once)) == len(once)
    assert found.claims == long_race.claims and found.stages == long_race.stages


@pytest.mark.parametrize("stage", "ABC")
def test_the_first_run_is_a_canary(race, stage):
    sick = loss(["gelu"], baseline={stage: "failed"})
    found = race.run(sick)
    (line,) = found.failures
    assert line.startswith(f"stage {stage}: its first run failed (out of memory), the rest was not started; see ")
    assert line.endswith("stdout.log") and f"race/{stage}/baseline/runs/run_0_seed_" in line
    assert [run for run in race.runs if run[0] == stage] == [(stage, "baseline", STUDY["stages"][stage]["seeds"][0])]
    assert found.verdict == f"not finished: {line}" and found.claims == []
    assert ("analysis" in race.executions) == (stage != "A"), "there is nothing to report on before the first stage"
    assert not list(race.folder.glob(f"{stage}/[!.b]*")), "nor does the report train anything"
    assert race.run(sick).failures == [line]
    well = race.run(loss(["gelu"]))
    assert well.failures == [] and [claim["variant"] for claim in well.claims] == ["gelu"]


def test_a_canary_that_diverged_stops_every_call(race):
    sick = loss(["gelu"], baseline="diverged")
    found, again = race.run(sick), race.run(sick)
    assert found.failures == again.failures and "its first run diverged" in found.failures[0]
    assert race.runs == []


def test_a_baseline_that_diverges_later_stops_the_stage_in_one_line(race):
    def sick(stage, variant, seed):
        return "diverged" if (variant, seed) == ("baseline", 43) else loss(["gelu"])(stage, variant, seed)

    (line,) = race.run(sick).failures
    assert line.startswith("stage A: the baseline has a diverged or missing run") and "\n" not in line


def test_losses_that_do_not_spread_stop_the_stage_in_one_line(race):
    (line,) = race.run(lambda *_: 3.0).failures
    assert line.startswith("stage A: the runs of a stage do not spread over seeds")


def test_a_failing_notebook_stops_the_stage_and_is_named(race):
    found = race.run(loss(["gelu"], smear={"A": "failed"}))
    assert len(found.failures) == 2 and found.failures[0].startswith("A.smear did not finish")
    assert found.failures[1] == "stage A: A.smear did not finish; run again to go on"
    assert found.verdict.startswith("not finished: stage A") and found.stages == []


def test_uncommitted_changes_may_screen_but_not_race(race):
    race.git["dirty"] = True
    found = race.run(loss(["gelu"]))
    (line,) = found.failures
    assert line == "stage C: the checkout has changes that no commit holds; commit them, then run again"
    assert {run[0] for run in race.runs} == {"A", "B"} and race.asked.stage == "B"
    race.git["dirty"] = False
    assert race.run(loss(["gelu"])).failures == [] and {run[0] for run in race.runs} == {"C"}


# --- money ------------------------------------------------------------------------------------------------------


def test_a_stage_that_may_cost_too_much_does_not_start(race):
    """A: 5 x 2 runs x $1, B: 2 x 3 x $2, C: 2 x 5 x $4 to the last look = $40."""
    found = race.run(loss(["gelu"]), {"budget_dollars": 61})
    (line,) = found.failures
    assert line.startswith("stage C may cost $40.00, but $39.00 of $61.00 are left: raise budget_dollars")
    assert {run[0] for run in race.runs} == {"A", "B"} and "\n" not in line
    found = race.run(loss(["gelu"]), {"budget_dollars": 62})
    assert found.failures == [] and found.claims


def test_a_dropped_variant_sets_no_price(race, tmp_path, monkeypatch):
    values = {key: value for key, value in load_ablation("gelu").model_dump(mode="json").items() if key != "expect"}
    wide = values | {"variant": "wide", "independent_variable": "model.mlp_hidden", "match": "nothing"}
    (tmp_path / "wide.yaml").write_text(yaml.safe_dump(wide | {"change": {"model.mlp_hidden": 40_000}}))
    study = {"ablations": ["gelu", str(tmp_path / "wide.yaml")]}
    race.run(loss(["gelu"]), {"A": None, "B": None, "C": {"dollars_per_run": None}}, study)
    asked = runner.load_study(tmp_path / "race.yaml")
    monkeypatch.setattr(staged, "past_runs", lambda *_: [])  # the times here are invented
    stages = staged._Stages(SimpleNamespace(study=asked, outputs=race.outputs, ablations={}))
    assert stages._price("C", ["gelu"]) < stages._price("C", ["gelu", "wide"]) / 2


def test_a_pivot_is_paid_from_the_reserve_alone(race):
    """A 10 + B (1 + 1) x 3 x 2 = 12, the pivot 3 x 2 = 6, C 2 x 5 x 4 = 40: 68."""
    stages = {"keep": 0.25, "keep_at_least": 1, "budget_dollars": 68, "reserve_dollars": 6}
    found = race.run(loss(**PIVOT), stages)
    assert found.failures == [] and [claim["variant"] for claim in found.claims] == ["smear"]


def test_a_pivot_that_cannot_be_paid_stops_the_study(race):
    stages = {"keep": 0.25, "keep_at_least": 1, "budget_dollars": 27, "reserve_dollars": 5}
    found = race.run(loss(**PIVOT), stages)
    (line,) = found.failures
    assert line.startswith("a pivot in stage B may cost $6.00, but $5.00 of $27.00 are left, with the reserve: raise")
    assert ("B", "smear") not in places(race.runs) and found.verdict == f"not finished: {line}"
    assert found.stages[-1]["stage"] == "B" and goes_on(found.stages[-1]) == []


def test_what_a_pivot_has_taken_is_remembered_by_the_next_call(race):
    stages = {"keep": 0.25, "keep_at_least": 1, "budget_dollars": 68, "reserve_dollars": 6}
    race.interrupt = ("C", "baseline", 242)
    with pytest.raises(KeyboardInterrupt):
        race.run(loss(**PIVOT), stages)
    race.interrupt = None
    assert race.run(loss(**PIVOT), stages).failures == []


# --- baselines that are there already ---------------------------------------------------------------------------


@pytest.fixture
def elsewhere(race, overrides, tiny):
    """Makes a finished baseline of stage C's numbers, or others, in another study."""

    def make(seeds=(242, 243, 244), status="finished", study="older", **changes):
        config = tiny({"train.steps": 10, **changes})
        plan = plan_experiment(race.outputs, study, "full", config, list(seeds))
        for index, seed, run in plan.runs():
            spec = {"run_id": index + 3, "seed": seed, "attempt": 1, "fingerprint": plan.fingerprint, "device": "cpu"}
            result = spec | {"status": status, "success": True, "time_seconds": 1.0, "final_step": 10}
            values = {"final_val_loss": 3 + NOISE[(seed + 24) % 5], "best_val_loss": 3.0, "tokens_per_second": 9.0}
            records.write_json(run / "run.json", spec | {"config": config.model_dump(mode="json")})
            records.append_jsonl(run / "metrics.jsonl", {"run_id": index + 3, "seed": seed, "attempt": 1, "step": 10})
            records.write_json(run / "result.json", result | values)
        return plan

    return make


REUSE = {"reuse_baseline": True}


def test_runs_of_a_baseline_are_taken_over_and_cost_nothing(race, elsewhere):
    older = elsewhere()
    found = race.run(loss(["gelu"]), REUSE | {"budget_dollars": 50})  # 62 without them
    assert found.failures == [] and ("C", "baseline") not in places(race.runs)
    for index, seed in enumerate((242, 243, 244)):
        run = race.folder / "C" / "baseline" / "runs" / f"run_{index}_seed_{seed}"
        result = records.read_json(run / "result.json")
        assert result["reused_from"] == f"older/full/baseline/runs/run_{index}_seed_{seed}"
        assert (result["run_id"], result["fingerprint"]) == (index, older.fingerprint)
        assert [row["run_id"] for row in records.read_jsonl(run / "metrics.jsonl")] == [index]
    assert not list((race.folder / "C" / "baseline" / "runs").glob(".reuse*"))
    rows = records.read_jsonl(race.folder / "C" / "baseline" / "results.jsonl")
    assert [row["reused_from"].split("/")[0] for row in rows] == ["older"] * 2
    assert elsewhere().fingerprint and race.run(loss(["gelu"]), REUSE | {"budget_dollars": 50}).claims == found.claims
    assert race.runs == []


def test_a_copy_of_a_copy_names_the_first(race, elsewhere):
    elsewhere()
    race.run(loss(["gelu"]), REUSE)
    shutil.rmtree(race.outputs / "older")
    race.run(loss(["gelu"]), REUSE, {"name": "later"})
    run = race.outputs / "later" / "C" / "baseline" / "runs" / "run_0_seed_242"
    assert records.read_json(run / "result.json")["reused_from"] == "older/full/baseline/runs/run_0_seed_242"


@pytest.mark.parametrize(
    "other", [{"status": "failed"}, {"train.steps": 9}, {"optim.muon.lr": 0.01}, {"seeds": (1, 2)}], ids=str
)
def test_nothing_else_is_taken_over(race, elsewhere, other):
    elsewhere(**other)
    race.run(loss(["gelu"]), REUSE)
    assert places(race.runs)[("C", "baseline")] == 2


def test_nothing_is_taken_over_where_the_study_says_so(race, elsewhere):
    elsewhere()
    race.run(loss(["gelu"]))
    assert places(race.runs)[("C", "baseline")] == 2


def test_a_record_of_other_numbers_in_the_place_is_moved_aside_first(race, elsewhere, overrides):
    race.run(loss(["gelu"]), REUSE, {"overrides": overrides | {"train.steps": 10, "optim.muon.lr": 0.01}})
    elsewhere()
    race.run(loss(["gelu"]), REUSE)
    assert ("C", "baseline") not in places(race.runs)
    (aside,) = (race.folder / "C").glob("baseline.*")
    assert all("reused_from" not in records.read_json(p) for p in aside.glob("runs/*/result.json"))


def test_a_broken_result_of_another_study_is_passed_over(race, elsewhere):
    elsewhere()
    broken = race.outputs / "broken" / "full" / "baseline" / "runs" / "run_0_seed_242" / "result.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    assert staged.reuse_runs(elsewhere(study="new", seeds=(242,))) == {}, "it has its own"
    plan = plan_experiment(race.outputs, "newer", "full", elsewhere(study="new", seeds=(1,)).config, [242])
    assert staged.reuse_runs(plan) == {242: "new/full/baseline/runs/run_0_seed_242"}


# --- what a stage may say ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "role"), [("A", "screen"), ("B", "check")])
def test_screen_and_check_make_no_claim(race, stage, role):
    race.run(loss(["gelu", "smear"], smear={"A": -0.2, "B": 0.2}))
    summary = records.read_json(race.folder / stage / "gelu" / "summary.json")
    said = summary["comparison"]
    assert said["verdict"] == "undecided" and said["test"] == role and said["p_value"] is said["low"] is None
    assert f"a {role} makes no claim" in said["reason"]
    means = losses_of(race, stage, ["baseline", "gelu"], 3 if stage == "B" else 2).mean(-1)
    assert said["difference"] == pytest.approx(means[1] - means[0])


def test_the_same_names_of_stages_claim_in_a_study_without_them(race, tiny):
    """A folder named A is no screen where the study has no stages."""
    race.run(loss(["gelu"]))
    plan = plan_experiment(race.outputs, "race", "A", tiny({"train.steps": 2}), [42, 43], load_ablation("gelu"))
    baseline, variant = Experiment(plan.baseline()), Experiment(plan)
    assert judge(baseline, variant, plan.ablation.analysis).p_value is None
    sealed = records.read_json(race.folder / "registration.json")
    sealed["study"]["stages"] = None
    records.write_json(race.folder / "registration.json", sealed)
    assert judge(baseline, variant, plan.ablation.analysis).p_value is not None


def test_the_alpha_of_a_verdict_is_that_it_was_reached_with(race):
    race.run(loss(["gelu"]))
    race.run(loss(["gelu"]), {"alpha": 0.1})  # a deviation from what was registered
    assert records.read_json(race.folder / "registration.json")["deviations"]
    said = records.read_json(race.folder / "C" / "gelu" / "summary.json")["comparison"]
    assert said["verdict"] == "better" and said["alpha"] == 0.2, "one-sided, so an interval of 80 %"


def test_an_arm_that_cannot_be_made_in_a_later_stage_is_found_before_the_first(race):
    with pytest.raises(ValueError, match="train.steps"):
        race.run(loss(["gelu"]), {"C": {"overrides": {"train.steps": 0}}})
    assert race.runs == [] and not (race.folder / "A").exists()


def test_a_device_without_a_price_is_found_before_the_first_run(race):
    with pytest.raises(ValueError, match="device 'H10' is not in"):
        race.run(loss(["gelu"]), {"C": {"device": "H10"}})
    assert race.runs == []
