"""A journal says what the records say, marks what is missing, and leaves room for the person."""

import pytest

from gptlib import records
from gptlib.report.journal import COMPARISON, FOR_THE_PERSON, analysis_text, deliverables, journal
from gptlib.study.experiment import execute, judge, summarise
from gptlib.study.hypothesis import load_ablation
from gptlib.study.plan import plan_experiment
from gptlib.study.registration import register
from gptlib.study.studies import Study


@pytest.fixture
def recorded(executed, outputs, tiny):
    """A registered study of three ablations: one finished, one begun, one without a record."""
    names = ["gelu", "relu", "higher_lr"]
    asked = {name: load_ablation(name) for name in names}
    study = Study(name="s", question="which?", base="smoke", ablations=names, seeds=[42, 43])
    register(study, asked.values(), outputs / "s")
    place = outputs, "s", "full", tiny(), [42, 43]
    baseline = execute(plan_experiment(*place))
    summarise(baseline)
    variant = execute(plan_experiment(*place, asked["gelu"]))
    summarise(variant, judge(baseline, variant, asked["gelu"].analysis), baseline)
    execute(plan_experiment(*place, asked["relu"]))
    return outputs, baseline, variant


def rows(text, heading):
    """{first cell: the others} of the table under a heading."""
    lines = text.split(f"## {heading}\n\n", 1)[1].split("\n\n")[0].splitlines()[2:]
    return {cells[0]: cells[1:] for cells in ([c.strip() for c in line.strip("| ").split(" | ")] for line in lines)}


def test_the_tables_have_every_experiment_with_its_status(recorded):
    outputs, baseline, variant = recorded
    text = journal(outputs, "s")
    search = rows(text, "Hyperparameter search summary")
    assert list(search) == ["baseline", "gelu", "relu", "higher_lr"]
    assert [cells[3] for cells in search.values()] == ["complete", "complete", "in progress", "not run"]
    assert search["gelu"][0] == "model.activation relu2 → gelu" and search["higher_lr"][0] == "optim.lr_scale x3"
    mean = baseline.summary()["statistics"]["val_loss"]["mean"]
    assert search["baseline"][2].startswith(f"{mean:.4f} ± ") and search["baseline"][4] == "reference point"
    assert search["gelu"][4].startswith(variant.summary()["comparison"]["verdict"])
    assert search["higher_lr"][1:3] == ["–", "–"] and search["higher_lr"][4] == "expected: better, by 0 to 15 %"
    size, best, clock, speed = rows(text, "Parameter efficiency")["gelu"]
    assert size == f"{variant.summary()['accounting']['total']:,}"
    assert best == f"{variant.summary()['statistics']['val_loss']['best']:.4f}"
    assert clock.startswith("00:00:0") and float(speed.replace(",", "")) > 0


def test_an_entry_is_filled_from_the_runs(recorded):
    outputs, baseline, _ = recorded
    text = journal(outputs, "s")
    first = text.split("## Experiment 2")[0]
    last = [result["final_train_loss"] for result in baseline.results]
    for line in (
        f"**Date**: {baseline.summary()['start_time'][:10]}",
        "**Status**: complete, 2 of 2 runs",
        f"- Context length: {baseline.plan.config.model.seq_len}",
        "- Iterations: 4",
        f"- Best validation loss of any run: {baseline.summary()['statistics']['val_loss']['best']:.4f}",
        f"- Final training loss: {sum(last) / 2:.4f} ± ",
    ):
        assert line in first
    assert [first.count(f"### {heading}") for heading in FOR_THE_PERSON] == [1, 1, 1]
    assert "Experiment 4" not in text, "what was not run has no entry"


def test_values_over_training_are_the_last_ones_since_the_row_above(recorded):
    """4 steps, evaluated at 0, 2 and 4: 0, 10, 20, 50, 90 and 100 per cent are steps 0, 0, 1, 2, 4 and 4, each once."""
    outputs, baseline, _ = recorded
    section = journal(outputs, "s").split("### Key metrics over training\n\n")[1].split("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()[2:]]
    frame = baseline.metrics()
    mean = frame.groupby("step")[["train_loss", "val_loss"]].mean()
    assert [row[0] for row in cells] == ["0", "1", "2", "4"]
    assert cells[0][1:3] == ["–", f"{mean.loc[0, 'val_loss']:.4f}"]
    assert cells[1][1:3] == [f"{mean.loc[1, 'train_loss']:.4f}", "–"]
    assert cells[3][1:3] == [f"{mean.loc[step, key]:.4f}" for step, key in ((4, "train_loss"), (4, "val_loss"))]


def test_a_diverged_run_is_counted(recorded):
    outputs, baseline, _ = recorded
    run = next(baseline.plan.folder.glob("runs/*/result.json"))
    lost = {"status": "diverged", "final_val_loss": None, "final_train_loss": None}
    records.write_json(run, records.read_json(run) | lost)
    assert "- Runs without a final loss: 1 diverged" in journal(outputs, "s")


def test_a_study_that_was_not_run_is_listed_from_its_file_and_an_unknown_one_is_one_line(outputs):
    text = journal(outputs, "quickstart")
    assert {cells[3] for cells in rows(text, "Hyperparameter search summary").values()} == {"not run"}
    with pytest.raises(records.RecordError, match="no record, and params/studies has no nothing"):
        journal(outputs, "nothing")


def test_the_analysis_says_what_was_expected_and_what_came(recorded):
    outputs, _, variant = recorded
    found = {part.split(":")[0]: part for part in analysis_text(outputs, "s").split("\n\n")}
    comparison = variant.summary()["comparison"]
    outcome = load_ablation("gelu").expect.outcome(comparison["verdict"], comparison["percent"])
    assert f"  found {comparison['percent']:+.2f} %, {comparison['verdict']}" in found["gelu"]
    assert found["gelu"].endswith(f"expectation {outcome}") and "expected worse, by 0 to 3 %" in found["gelu"]
    assert found["higher_lr"].endswith("not run\n  expected better, by 0 to 15 %\n") and "in progress" in found["relu"]
    assert deliverables(outputs, "s") == "" and "Deliverables" not in journal(outputs, "s")


def test_a_box_is_ticked_by_what_is_there(tmp_path):
    assert deliverables(tmp_path, "cs336").count("[ ]") == 9
    place = tmp_path / "cs336" / "full"
    for name, status in (
        ("baseline", "finished"),
        ("no_norm", "diverged"),
        ("no_norm_low_lr", "finished"),
        ("post_norm", "finished"),
    ):
        records.write_json(place / name / "config.json", {"fingerprint": "f", "seeds": [1]})
        records.write_json(place / name / "runs" / "a" / "run.json", {"fingerprint": "f"})
        records.write_json(place / name / "runs" / "a" / "result.json", {"status": status})
        (place / name / "loss_curves.png").touch()
    assert deliverables(tmp_path, "cs336").count("[x]") == 2, "no comparison was drawn or judged"
    (tmp_path / "cs336" / COMPARISON).touch()
    records.write_json(place / "post_norm" / "summary.json", {"comparison": {"reason": "why"}})
    ticked = [line for line in deliverables(tmp_path, "cs336").splitlines() if "[x]" in line]
    assert [line.split("] ")[1].split(":")[0] for line in ticked] == [
        "learning curve at the full rate", "learning curve at a rate at which no run diverges",
        "comparative learning curves", "commentary",
    ]  # fmt: skip


def test_a_variant_that_a_stage_dropped_is_said_with_its_reason(recorded):
    outputs, *_ = recorded
    arms = [{"variant": name, "reason": f"dropped: rank of {name}"} for name in ("higher_lr", "gelu")]
    records.write_json(outputs / "s" / "decision.json", {"stages": [{"stage": "A", "arms": arms}]})
    found = {part.split(":")[0]: part for part in analysis_text(outputs, "s").split("\n\n")}
    assert "  stage A: dropped: rank of higher_lr\n" in found["higher_lr"] and "not run" not in found["higher_lr"]
    assert "rank of gelu" not in found["gelu"], "it has a record here"
