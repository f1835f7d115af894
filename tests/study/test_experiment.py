"""Experiments: executed once, taken up where they broke off, never overwritten, judged as scipy would."""

import json
import statistics
import subprocess
import sys

import pytest
from scipy import stats

from gptlib import records
from gptlib.config import ConfigError
from gptlib.launch import record_failure
from gptlib.records import RecordError
from gptlib.study import experiment as experiment_module
from gptlib.study.experiment import Experiment, execute, judge, summarise
from gptlib.study.hypothesis import Ablation, Analysis
from gptlib.study.plan import plan_experiment

ABLATION = Ablation(
    variant="gelu",
    hypothesis="With GELU the loss is higher.",
    independent_variable="model.activation",
    change={"model.activation": "gelu"},
    why="Neither has parameters.",
)


@pytest.fixture
def plan(outputs, tiny):
    """Makes plans of one place: same study, stage and outputs."""

    def make(seeds=(42, 43), changes=None, ablation=None):
        return plan_experiment(outputs, "study", "full", tiny(changes), list(seeds), ablation)

    return make


def files(folder):
    """What lies in a folder, with contents that tell when it was written anew."""
    return {p.relative_to(folder): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def names(runs):
    return [run.name for run in runs]


def log(plan):
    return (plan.folder / "experiment.log").read_text()


# --- executing --------------------------------------------------------------------------------------------------


def test_the_log_says_at_which_step_a_run_diverged(executed, plan):
    asked = plan(seeds=[42], changes={"optim.lr_scale": 1e12, "model.logit_softcap": 0.0})
    result = execute(asked).results[0]
    assert result["status"] == "diverged"
    assert log(asked).rstrip().endswith(f"run 0 seed 42 attempt 1: diverged at step {result['diverged_at']}")


def test_an_experiment_leaves_its_record(executed, plan):
    asked = plan()
    assert not asked.is_complete()
    execute(asked)
    assert names(executed) == ["run_0_seed_42", "run_1_seed_43"] and not asked.is_complete()
    results = records.read_jsonl(asked.folder / "results.jsonl")
    assert [(r["run_id"], r["seed"], r["success"], r["final_step"]) for r in results] == [
        (0, 42, True, 4),
        (1, 43, True, 4),
    ]
    needed = {"run_id", "seed", "final_val_loss", "final_train_loss", "time_seconds", "final_step", "success"}
    assert all(needed <= set(r) for r in results)
    rows = records.read_jsonl(asked.folder / "metrics.jsonl")
    assert {(r["run_id"], r["step"]) for r in rows} == {(i, step) for i in (0, 1) for step in range(5)}
    assert {"val_loss", "train_loss", "train_time_ms", "step_avg_ms", "grad_norm", "attempt"} <= set().union(*rows)
    assert (asked.folder / "metrics.csv").read_text().count("\n") == 1 + len(rows)
    for name in ("config.json", "environment.json", "runs/run_0_seed_42/result.json"):
        assert records.read_json(asked.folder / name)
    assert (asked.folder / "runs/run_1_seed_43/checkpoint").is_dir()
    assert (asked.folder / "git_diff.patch").exists() == bool(records.git_diff())


def test_a_finished_experiment_is_executed_again_without_running_anything(executed, plan):
    asked = plan()
    summarise(execute(asked))
    assert asked.is_complete() and not plan(changes={"train.steps": 5}).is_complete()
    before = files(asked.folder / "runs")
    again = execute(plan())
    assert len(executed) == 2 and files(asked.folder / "runs") == before and asked.is_complete()
    assert len(again.finals()) == 2 and "0 of 2 runs to do" in log(asked)


def test_every_switch_of_a_stage_is_in_the_record(executed, plan):
    stages = {"schedule.curriculum.stages": [0.5, 1.0], "schedule.curriculum.latest": [0.5]}
    grown = plan(seeds=[42], changes=stages)
    (result,) = execute(grown).results
    assert result["switches"] == [{"what": "seq_len", "step": 2, "share": 1.0, "reason": "latest"}]
    assert "run 0 seed 42 attempt 1: seq_len grew to 100 % of its size at step 2 (latest)" in log(grown)


def test_one_more_seed_runs_that_one_alone(executed, plan):
    summarise(execute(plan([42])))
    before = files(plan([42]).folder / "runs")
    wider = plan([42, 43])
    assert not wider.is_complete()
    experiment = execute(wider)
    assert names(executed) == ["run_0_seed_42", "run_1_seed_43"] and list(experiment.finals()) == [42, 43]
    assert before.items() <= files(wider.folder / "runs").items()
    assert not plan([42]).is_complete(), "the summary of one seed does not stand for results of two"
    summarise(experiment)
    assert wider.is_complete()


def test_other_numbers_move_the_older_record_aside(executed, plan):
    first = plan([42])
    summarise(execute(first))
    old = {name: (first.folder / name).read_text() for name in ("summary.json", "results.jsonl", "config.json")}
    second = plan([42], {"optim.muon.lr": 0.011})
    assert second.fingerprint != first.fingerprint and second.folder == first.folder
    execute(second)
    (aside,) = [p for p in second.folder.parent.iterdir() if p.name.startswith("baseline.")]
    assert {name: (aside / name).read_text() for name in old} == old
    assert len(executed) == 2 and len(records.read_jsonl(second.folder / "results.jsonl")) == 1
    assert f"kept as {aside.name}" in log(second)


def test_a_failed_run_is_tried_again_and_both_attempts_are_told(executed, plan, monkeypatch):
    in_process = experiment_module.launch

    def failing(runs, hardware, poll):
        in_process(runs[:1], hardware, poll)
        record_failure(runs[1], "killed by SIGKILL")

    asked = plan()
    with monkeypatch.context() as patch:
        patch.setattr(experiment_module, "launch", failing)
        experiment = execute(asked)
    summary = summarise(experiment)
    assert summary["status"] == "failed" and not asked.is_complete()
    counts = {key: summary["statistics"][key] for key in ("n_runs", "successful_runs", "failed_runs")}
    assert counts == {"n_runs": 2, "successful_runs": 1, "failed_runs": 1}
    assert summary["statistics"]["val_loss"]["mean"] == experiment.finals()[42]
    assert summarise(execute(asked))["status"] == "complete" and names(executed) == ["run_0_seed_42", "run_1_seed_43"]
    told = [
        (r["seed"], r["attempt"], r["status"], r.get("error"))
        for r in records.read_jsonl(asked.folder / "results.jsonl")
    ]
    assert told == [
        (42, 1, "finished", None),
        (43, 1, "failed", "killed by SIGKILL"),
        (43, 2, "finished", None),
    ]


def test_an_interrupted_run_counts_as_failed_and_is_run_anew(executed, plan, monkeypatch):
    in_process = experiment_module.launch

    def interrupted(runs, hardware, poll):
        in_process(runs[:1], hardware, poll)
        spec = records.read_json(runs[1] / "run.json")
        for step in (0, 1):
            row = {"run_id": 1, "seed": 43, "attempt": spec["attempt"], "step": step, "train_time_ms": 10.0 * step}
            records.append_jsonl(runs[1] / "metrics.jsonl", row)
        raise KeyboardInterrupt

    asked = plan()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(experiment_module, "launch", interrupted)
        execute(asked)
    experiment = execute(asked)
    assert names(executed) == ["run_0_seed_42", "run_1_seed_43"] and experiment.count("finished") == 2
    told = {(r["seed"], r["attempt"]): r for r in records.read_jsonl(asked.folder / "results.jsonl")}
    assert set(told) == {(42, 1), (43, 1), (43, 2)}
    assert told[43, 1]["status"] == "failed" and told[43, 1]["error"].startswith("interrupted")
    assert (told[43, 1]["final_step"], told[43, 1]["time_seconds"]) == (1, 0.01)
    frame = experiment.metrics()
    assert set(frame[frame["seed"] == 43]["attempt"]) == {2} and set(frame["step"]) == {0, 1, 2, 3, 4}


def test_an_experiment_is_executed_by_one_process_at_a_time(executed, plan):
    asked = plan([42])
    code = (
        "import sys, pathlib; from gptlib import records\n"
        "with records.exclusive(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(asked.folder.parent / ".baseline")]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RecordError, match=f"in use by process {holder.pid} .*choose another study") as error:
        execute(asked)
    assert "\n" not in str(error.value) and executed == [] and not asked.folder.exists()
    holder.kill()
    holder.communicate()
    assert execute(asked).count("finished") == 1


# --- declarations -----------------------------------------------------------------------------------------------


def test_the_hypothesis_is_stored_before_the_first_run_and_changes_later_are_told(executed, plan, monkeypatch):
    in_process, asked = experiment_module.launch, plan([42], ablation=ABLATION)
    path, before_runs = asked.folder / "hypothesis.json", []

    def looking(runs, hardware, poll):
        before_runs.append(records.read_json(path))
        in_process(runs, hardware, poll)

    monkeypatch.setattr(experiment_module, "launch", looking)
    summarise(execute(asked))
    declared = records.read_json(path)
    assert before_runs == [declared] and declared["changed_after_results"] is False
    assert Ablation(**{key: declared[key] for key in Ablation.model_fields}) == ABLATION
    assert records.read_json(asked.folder / "config.json")["difference"] == {"model.activation": ["relu2", "gelu"]}
    execute(asked)
    assert records.read_json(path) == declared
    other = plan([42], ablation=ABLATION.model_copy(update={"analysis": Analysis(margin=0.1)}))
    assert asked.is_complete() and not other.is_complete(), "a verdict belongs to the analysis it was declared with"
    summarise(execute(other))
    changed = records.read_json(path)
    assert changed["changed_after_results"] is True and changed["sha256"] != declared["sha256"]
    assert len(executed) == 1 and other.is_complete()


def test_a_change_without_effect_is_refused(plan):
    with pytest.raises(ConfigError, match="has no effect"):
        plan(changes={"model.activation": "gelu"}, ablation=ABLATION)


@pytest.mark.parametrize("name", ["../x", "a b"])
def test_a_bad_place_is_refused_before_anything_is_written(outputs, tiny, name):
    with pytest.raises(RecordError, match="letters, digits"):
        plan_experiment(outputs, name, "full", tiny(), [42])
    assert [p.name for p in outputs.iterdir()] == ["data"]


# --- judging ----------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(plan):
    """An experiment whose results are given: {seed: final loss, or "diverged" or "failed"}."""

    def make(outcomes, ablation=None):
        asked = plan(list(outcomes), ablation=ablation)
        for index, seed, run in asked.runs():
            loss = outcomes[seed]
            status = loss if isinstance(loss, str) else "finished"
            result = {"run_id": index, "seed": seed, "attempt": 1, "fingerprint": asked.fingerprint, "status": status}
            result |= {"success": status == "finished", "time_seconds": 2.0 + index, "tokens_per_second": 100.0}
            result["final_val_loss"] = loss if status == "finished" else None
            if status == "finished":
                result |= {"best_val_loss": loss - 0.25, "bits_per_byte": loss / 2, "floor": 3.0, "excess": loss - 3.0}
            records.write_json(run / "result.json", result)
        return Experiment(asked)

    return make


BASELINE = {42: 4.01, 43: 4.12, 44: 3.95, 45: 4.30}
VARIANT = {42: 4.05, 43: 4.15, 44: 4.01, 45: 4.33}


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_paired_by_seed_whatever_the_order(recorded, alpha):
    backwards = dict(reversed(VARIANT.items()))
    analysis = Analysis(test="paired", alpha=alpha)
    comparison = judge(recorded(BASELINE), recorded(backwards, ABLATION), analysis)
    expected = stats.ttest_rel(list(VARIANT.values()), list(BASELINE.values()))
    interval = expected.confidence_interval(1 - alpha)
    assert comparison.p_value == pytest.approx(expected.pvalue)
    assert (comparison.low, comparison.high) == pytest.approx((interval.low, interval.high))
    assert comparison.difference == pytest.approx(0.04) and comparison.n_baseline == comparison.n_variant == 4
    assert comparison.verdict == ("worse" if alpha == 0.05 else "undecided")  # p = 0.013


def test_pairs_are_the_seeds_that_finished_in_both(recorded):
    comparison = judge(
        recorded(BASELINE | {43: "failed"}), recorded(VARIANT | {46: 9.0}, ABLATION), Analysis(test="paired")
    )
    common = (42, 44, 45)
    expected = stats.ttest_rel([VARIANT[s] for s in common], [BASELINE[s] for s in common])
    assert comparison.n_variant == 3 and comparison.p_value == pytest.approx(expected.pvalue)


def test_welch_takes_all_that_finished(recorded):
    comparison = judge(recorded(BASELINE | {43: "failed"}), recorded(VARIANT, ABLATION), Analysis(test="welch"))
    expected = stats.ttest_ind(list(VARIANT.values()), [BASELINE[s] for s in (42, 44, 45)], equal_var=False)
    assert (comparison.n_baseline, comparison.n_variant) == (3, 4)
    assert comparison.p_value == pytest.approx(expected.pvalue) and comparison.verdict == "undecided"


@pytest.mark.parametrize(
    ("baseline", "variant", "verdict", "reason"),
    [
        (BASELINE, dict.fromkeys(BASELINE, "diverged"), "worse", "4 of 4 runs diverged, and 0 of the baseline's"),
        (BASELINE, VARIANT | {45: "diverged"}, "undecided", "1 of 4 runs diverged"),
        (BASELINE | {45: "diverged"}, VARIANT, "undecided", "0 of 4 runs diverged, and 1 of the baseline's"),
        (dict.fromkeys(BASELINE, "diverged"), dict.fromkeys(BASELINE, "diverged"), "undecided", "4 of the baseline's"),
        (BASELINE, dict.fromkeys(BASELINE, "failed"), "undecided", "at least 2 runs per arm, there are 4 and 0"),
        ({42: 4.0}, {42: 4.1}, "undecided", "at least 2 runs per arm, there are 1 and 1"),
    ],
)
@pytest.mark.parametrize("test", ["welch", "paired"])
def test_runs_without_a_loss_are_neither_dropped_nor_made_up(recorded, baseline, variant, verdict, reason, test):
    comparison = judge(recorded(baseline), recorded(variant, ABLATION), Analysis(test=test))
    assert comparison.verdict == verdict
    if test == "welch" or "failed" not in variant.values():  # pairs leave no run of the baseline, either
        assert reason in comparison.reason


LOST = BASELINE | {44: "diverged"}


def test_diverged_runs_are_left_out_where_declared_and_counted(recorded):
    comparison = judge(recorded(BASELINE), recorded(LOST, ABLATION), Analysis(diverged="exclude"))
    rest = [BASELINE[s] for s in (42, 43, 45)]
    assert comparison.p_value == pytest.approx(stats.ttest_ind(rest, list(BASELINE.values()), equal_var=False).pvalue)
    assert comparison.reason.endswith("left out as declared: 1 of 4 runs diverged, and 0 of the baseline's")
    paired = judge(recorded(BASELINE), recorded(LOST, ABLATION), Analysis(test="paired", diverged="exclude"))
    assert paired.n_baseline == paired.n_variant == 3
    none = recorded(dict.fromkeys(BASELINE, "diverged"), ABLATION)
    assert judge(recorded(BASELINE), none, Analysis(diverged="exclude")).verdict == "worse"


def test_diverged_runs_rank_last_where_declared(recorded):
    analysis = Analysis(diverged="worst")
    beyond = {42: 5.0, 43: 5.1, 44: "diverged", 45: 5.2}
    comparison = judge(recorded(BASELINE), recorded(beyond, ABLATION), analysis)
    assert comparison.p_value == pytest.approx(2 / 70) and comparison.verdict == "worse"
    assert (comparison.test, comparison.low, comparison.difference) == ("mann-whitney", None, None)
    assert comparison.reason.startswith("1 of 4 runs diverged, and 0 of the baseline's, which count as the worst")
    assert judge(recorded(LOST), recorded(BASELINE, ABLATION), analysis).verdict == "undecided"
    assert judge(recorded(BASELINE), recorded(VARIANT, ABLATION), analysis).test == "welch"  # none diverged
    failed = judge(recorded(BASELINE | {43: "failed"}), recorded(beyond, ABLATION), analysis)
    assert (failed.n_baseline, failed.n_variant) == (3, 4)


# --- summaries --------------------------------------------------------------------------------------------------


def test_the_summary_holds_the_statistics_of_the_final_losses(recorded):
    baseline, experiment = recorded(BASELINE), recorded(VARIANT, ABLATION)
    comparison = judge(baseline, experiment, ABLATION.analysis)
    returned = summarise(experiment, comparison)
    summary = json.loads((experiment.plan.folder / "summary.json").read_text())
    assert summary == json.loads(json.dumps(returned)) == experiment.summary()
    assert summary["experiment_name"] == "study/full/gelu" and summary["status"] == "complete"
    assert {"end_time", "git_info", "gpu_info", "environment", "fingerprint", "seeds", "hypothesis"} <= set(summary)
    assert summary["difference"] == {"model.activation": ["relu2", "gelu"]}
    values, found = list(VARIANT.values()), summary["statistics"]
    interval = stats.t.interval(0.95, 3, statistics.fmean(values), stats.sem(values))
    assert found["val_loss"].pop("ci_95") == pytest.approx(list(interval))
    assert found["val_loss"] == pytest.approx(
        {
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values),
            "min": 4.01,
            "max": 4.33,
            "median": statistics.median(values),
            "best": 4.01 - 0.25,
        }
    )
    assert found["time"] == pytest.approx({"mean": 3.5, "std": statistics.stdev([2, 3, 4, 5]), "total": 14.0})
    assert (found["n_runs"], found["successful_runs"], found["floor"]) == (4, 4, 3.0)
    assert found["excess"]["mean"] == pytest.approx(statistics.fmean(values) - 3)
    assert summary["comparison"]["metric"] == "final_val_loss" and summary["tokens_per_second"] == 100
    for key in ("p_value", "low", "high", "verdict", "reason", "minimum_detectable"):
        assert summary["comparison"][key] == getattr(comparison, key)


def test_a_summary_of_one_or_of_no_finished_run_has_no_invented_numbers(recorded):
    one = summarise(recorded({42: 4.0}))["statistics"]
    assert one["val_loss"]["std"] is None and one["val_loss"]["ci_95"] == [None, None] and one["time"]["std"] is None
    none = summarise(recorded({42: "diverged", 43: "diverged"}))
    assert none["status"] == "complete" and none["statistics"]["diverged_runs"] == 2
    assert none["statistics"]["val_loss"] == {"best": None} and none["statistics"]["excess"] is None


def test_the_description_is_four_lines(recorded):
    lines = recorded(BASELINE).describe().splitlines()
    values = list(BASELINE.values())
    interval = stats.t.interval(0.95, 3, statistics.fmean(values), stats.sem(values))
    assert lines == [
        "Runs: 4/4",
        f"Mean validation loss: {statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f} nats/token (std)",
        f"95% CI (Student t): [{interval[0]:.4f}, {interval[1]:.4f}]",
        "Best validation loss: 3.7000",
    ]
    assert recorded({42: "failed", 43: "diverged"}).describe() == "Runs: 0/2"
