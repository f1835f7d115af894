"""ExperimentTracker: the calls of the documents, what is on disk at every moment, and what import-log makes of it."""

import argparse
import errno
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from gptlib import records
from gptlib.config import ConfigError
from gptlib.importers import import_logs
from gptlib.report.compare import comparison_lines, read_arms
from gptlib.study.hypothesis import Analysis
from gptlib.tracker import ExperimentConfig, ExperimentTracker, compare_experiments, load_experiment_log

PAGE = Path(__file__).parents[1] / "docs" / "track_your_own_loop.md"


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """Curves take a second; only the tests that look at them draw them."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(ExperimentTracker, "_draw", lambda self: None)


@pytest.fixture
def pictures():
    """Asks for the curves to be drawn."""


@pytest.fixture
def logs(tmp_path):
    return tmp_path / "project" / "experiment_logs"


def loop(folder, name="baseline", seed=None, offset=0.0, steps=20, until=20, **config):
    """A tracker after `until` of `steps` iterations, evaluated at every fifth; not finished."""
    config = ExperimentConfig(experiment_name=name, seed=seed, max_iters=steps, **config)
    tracker = ExperimentTracker(config, log_dir=folder)
    tracker.start()
    for i in range(until):
        loss = 5 + offset - 0.1 * i
        tracker.log_metrics(iteration=i, train_loss=loss, learning_rate=1e-3, tokens_per_sec=512.0, iter_time_ms=2.0)
        tracker.increment_gradient_step()
        if (i + 1) % 5 == 0:
            tracker.log_eval(iteration=i, train_loss=loss, val_loss=loss + 0.25)
    return tracker


def finished(folder, **arguments):
    tracker = loop(folder, **arguments)
    tracker.finish(train_loss=tracker.log.metrics[-1]["train_loss"], val_loss=tracker.log.evals[-1]["val_loss"])
    tracker.save()
    return tracker


def strict(path):
    """JSON without the nan that JSON does not have."""
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{path} has {name}"))


# --- the documents' calls ---------------------------------------------------------------------------------------


def test_the_recipe_for_a_training_script(logs, capsys) -> None:
    names = "vocab_size context_length d_model num_heads d_ff num_layers batch_size max_iters warmup_iters seed"
    args = argparse.Namespace(**dict.fromkeys(names.split(), 16))
    args.wandb_run_name, args.lr, args.min_lr, args.weight_decay, args.grad_clip = None, 6e-4, 6e-5, 0.1, 1.0
    args.device = "cpu"
    config = ExperimentConfig(
        experiment_name=args.wandb_run_name or "untitled",
        vocab_size=args.vocab_size,
        context_length=args.context_length,
        d_model=args.d_model,
        num_heads=args.num_heads,
        d_ff=args.d_ff,
        num_layers=args.num_layers,
        batch_size=args.batch_size,
        max_iters=args.max_iters,
        max_learning_rate=args.lr,
        min_learning_rate=args.min_lr,
        warmup_iters=args.warmup_iters,
        weight_decay=args.weight_decay,
        grad_clip=args.grad_clip,
        seed=args.seed,
        device=args.device,
    )
    tracker = ExperimentTracker(config, log_dir=str(logs))
    tracker.start()
    for iter_num in range(args.max_iters):
        tracker.log_metrics(
            iteration=iter_num, train_loss=4 - iter_num / 8, learning_rate=6e-4, tokens_per_sec=1600, iter_time_ms=10
        )
        tracker.increment_gradient_step()
        if (iter_num + 1) % 8 == 0:
            tracker.log_eval(iteration=iter_num, train_loss=3, val_loss=4 - (iter_num + 1) / 16)
    tracker.finish(train_loss=2.125, val_loss=3.0, notes="Baseline training with default hyperparameters")
    tracker.save()
    tracker.print_summary()
    shown = capsys.readouterr().out
    assert "### Experiment: untitled" in shown and "**Status**: complete" in shown
    assert re.search(r"\*\*Date\*\*: \d{4}-\d\d-\d\d\n\*\*Duration\*\*: 00:00:\d\d\n", shown)
    assert "- best val loss: 3.0000" in shown and "- final train loss: 2.1250" in shown and "tokens/sec: 1600" in shown
    assert "| 15 | 2.1250 | 3.0000 | 6.00e-04 | 1600 |" in shown and "| 0 | 4.0000 | - | 6.00e-04 | 1600 |" in shown
    assert "#### Observations\n- Baseline training with default hyperparameters" in shown

    [file] = logs.glob("*.json")
    log = load_experiment_log(file)
    assert log.config.experiment_name == "untitled" and log.best_val_loss == 3.0 and 0 < log.duration_seconds < 60
    assert log.gradient_steps == 16 and [row["gradient_step"] for row in log.evals] == [8, 16]
    comparison = compare_experiments(list(logs.glob("*.json")))
    assert [f"{name}: {stats['best_val_loss']:.6f}" for name, stats in comparison.items()] == ["untitled: 3.000000"]
    assert comparison["untitled"]["samples_per_sec"] == 100


def test_the_configuration_of_the_other_document() -> None:
    config = ExperimentConfig(
        **{
            "experiment_name": "baseline",
            "vocab_size": 50257,
            "context_length": 1024,
            "d_model": 512,
            "num_heads": 8,
            "num_layers": 6,
            "d_ff": 2048,
            "dropout": 0.1,
            "batch_size": 16,
            "learning_rate": 1e-4,
            "max_iters": 10000,
        }
    )
    assert config.learning_rate == config.max_learning_rate == 1e-4 and config.dropout == 0.1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab_sise": 3}, "unknown name 'vocab_sise'; did you mean 'vocab_size'?"),
        ({"learning_rat": 3}, "did you mean 'learning_rate'?"),
        ({"learning_rate": 1e-4, "max_learning_rate": 1e-3}, "are one field; give one of them"),
        ({"d_model": 0}, "d_model=0: Input should be greater than 0"),
        ({"seed": "a"}, "seed='a': Input should be a valid integer"),
    ],
)
def test_a_wrong_configuration_is_one_line(values, message) -> None:
    with pytest.raises(ConfigError) as caught:
        ExperimentConfig(**values)
    assert message in str(caught.value) and "\n" not in str(caught.value)


# --- files ------------------------------------------------------------------------------------------------------


def test_a_log_comes_back_as_it_was(logs) -> None:
    tracker = finished(logs, seed=7, d_ff=1024, betas=(0.9, 0.99), rope_theta=None)
    assert load_experiment_log(tracker.path) == tracker.log
    content = strict(tracker.path)
    assert content["config"] == tracker.log.config.model_dump(mode="json") and len(content["metrics"]) == 20
    assert content["summary"]["duration_seconds"] >= content["evals"][-1]["elapsed_seconds"] > 0


def test_files_are_named_after_experiment_and_time_and_never_shared(logs) -> None:
    trackers = [finished(logs, name="lr 3e-4/wide", seed=seed) for seed in range(3)]
    assert len({tracker.path for tracker in trackers}) == 3
    for tracker in trackers:
        assert re.fullmatch(r"experiment_lr_3e-4_wide_\d{8}_\d{6}(-\d)?\.json", tracker.path.name)
    assert sorted(logs.iterdir()) == sorted(tracker.path for tracker in trackers), "the lines are in the log now"
    assert [load_experiment_log(tracker.path).config.seed for tracker in trackers] == [0, 1, 2]


def test_curves_over_steps_and_over_time_lie_beside_the_log(logs, pictures, capsys) -> None:
    tracker = finished(logs)
    for suffix in (".steps.png", ".time.png"):
        assert Image.open(tracker.path.with_suffix(suffix)).width > 500
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("until", [0, 1, 4])
def test_a_log_with_little_in_it_can_be_saved(logs, pictures, capsys, until) -> None:
    tracker = loop(logs, until=until)
    tracker.finish()
    tracker.save()
    tracker.print_summary()
    assert capsys.readouterr().err == ""
    assert f"{compare_experiments([tracker.path])['baseline']['best_val_loss']:.6f}" == "nan"


def test_a_log_that_is_not_finished_is_in_progress_and_knows_everything(logs) -> None:
    tracker = loop(logs, until=13)
    for _ in range(2):
        log = load_experiment_log(tracker.path)
        assert log.status == "in progress" and log.end_time is None and log.best_val_loss == pytest.approx(4.35)
        assert (log.metrics, log.evals) == (tracker.log.metrics, tracker.log.evals)
        assert log.duration_seconds == log.metrics[-1]["elapsed_seconds"] > 0
        tracker.save()


def test_a_loop_that_is_killed_loses_nothing(tmp_path, logs) -> None:
    code = f"""
import os, signal
from gptlib.tracker import ExperimentConfig, ExperimentTracker
tracker = ExperimentTracker(ExperimentConfig(experiment_name="killed", max_iters=100, seed=5), {str(logs)!r})
for i in range(100):
    tracker.log_metrics(i, 5 - i / 100, 1e-3, 1000.0, 1.0)
    if i in (9, 19):
        tracker.log_eval(i, 5 - i / 100, 5.5 - i / 100)
    if i == 24:
        os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], timeout=120)
    [file] = logs.glob("*.json")
    with file.with_suffix(".jsonl").open("a") as lines:
        lines.write('{"iteration": 25, "train_l')
    log = load_experiment_log(file)
    assert [row["iteration"] for row in log.metrics] == list(range(25)) and len(log.evals) == 2
    [folder] = import_logs([logs], tmp_path / "outputs").folders
    [result] = records.read_jsonl(folder / "results.jsonl")
    assert (folder.name, result["seed"], result["status"]) == ("killed", 5, "failed")
    assert result["error"] == "ended at step 19 of 99" and result["final_val_loss"] is None


def test_a_final_loss_that_was_not_logged_becomes_the_last_evaluation(logs) -> None:
    tracker = loop(logs, until=13)
    tracker.finish(train_loss=3.5, val_loss=3.75)
    assert tracker.log.evals[-1]["iteration"] == 12 and tracker.log.evals[-1]["val_loss"] == 3.75
    assert tracker.log.final_val_loss == tracker.log.best_val_loss == 3.75
    assert len(finished(logs).log.evals) == 4, "the last evaluation is not written twice"


# --- what goes wrong in a training ------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["train", "val"])
def test_a_loss_that_is_no_number_is_a_divergence(tmp_path, logs, bad, where) -> None:
    tracker = loop(logs, until=15)
    if where == "train":
        tracker.log_metrics(15, bad, 1e-3, 512.0, 2.0)
    else:
        tracker.log_eval(15, 3.0, bad)
    tracker.finish(train_loss=bad, val_loss=bad)
    tracker.save()
    strict(tracker.path)
    log = load_experiment_log(tracker.path)
    assert (log.status, log.diverged_at) == ("diverged", 15) and log.best_val_loss == pytest.approx(3.85)
    row = (log.metrics if where == "train" else log.evals)[15 if where == "train" else 3]
    assert str(row[f"{where}_loss"]) == str(bad)
    [folder] = import_logs([logs], tmp_path / "outputs").folders
    [result] = records.read_jsonl(folder / "results.jsonl")
    assert (result["status"], result["diverged_at"]) == ("diverged", 15)


def test_a_divergence_that_is_killed_is_in_the_lines(logs) -> None:
    tracker = loop(logs, until=5)
    tracker.log_metrics(5, math.nan)
    assert load_experiment_log(tracker.path).diverged_at == 5


def test_a_full_disk_is_said_once_and_what_it_did_not_take_is_written_later(logs, monkeypatch, capsys) -> None:
    tracker = loop(logs, until=5)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(records, "append_jsonl", full)
        patched.setattr(records, "write_json", full)
        for i in range(5, 10):
            tracker.log_metrics(i, 4.0)
        tracker.log_eval(9, 4.0, 4.0)
        tracker.save()
    [line] = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line and "the training goes on" in line
    tracker.log_metrics(10, 3.0)
    log = load_experiment_log(tracker.path)
    assert [row["iteration"] for row in log.metrics] == list(range(11)) and len(log.evals) == 2
    assert capsys.readouterr().err == ""


def test_a_folder_that_cannot_be_made_stops_nothing(tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    finished(tmp_path / "file").print_summary()
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) == 1 and "- best val loss: 3.3500" in shown.out


def test_a_value_that_is_no_number_is_left_out(logs, capsys) -> None:
    tracker = loop(logs, until=1)
    tracker.log_metrics(1, "oops", None, 100.0)
    assert tracker.log.metrics[-1]["train_loss"] is None and len(capsys.readouterr().err.splitlines()) == 1


# --- comparing and importing ------------------------------------------------------------------------------------


def test_every_run_has_its_place_in_a_comparison(logs) -> None:
    runs = [finished(logs, name=n, seed=s) for n, s in (("baseline", 1), ("baseline", 2), ("fewer_heads", 1))]
    found = compare_experiments(run.path for run in runs)
    assert list(found) == [run.path.stem.removeprefix("experiment_") for run in runs[:2]] + ["fewer_heads"]
    keys = {"best_val_loss", "final_train_loss", "final_val_loss", "duration_seconds", "samples_per_sec", "status"}
    assert keys <= set(found["fewer_heads"]) and found["fewer_heads"]["final_val_loss"] == pytest.approx(3.35)


def test_what_is_no_log_is_named(tmp_path) -> None:
    for name, text in (("a.json", "{}"), ("b.json", '{"config": {"x": 1}, "metrics": []}'), ("c.json", "{"), ("d", "")):
        (tmp_path / name).write_text(text)
        with pytest.raises(records.RecordError, match=re.escape(str(tmp_path / name))):
            load_experiment_log(tmp_path / name)


def test_import_log_makes_experiments_of_the_logs(tmp_path, logs) -> None:
    for seed, noise in ((42, 0.0), (43, 0.02), (44, 0.01)):
        finished(logs, name="baseline", seed=seed, offset=noise)
        finished(logs, name="higher_lr", seed=seed, offset=noise - 0.5 + noise / 10)
    found = import_logs([logs], tmp_path / "outputs")
    stage = tmp_path / "outputs" / "imported" / "project"
    assert found.folders == {stage / "baseline": 3, stage / "higher_lr": 3} and not (found.skipped or found.notes)
    result = records.read_json(stage / "baseline" / "runs" / "run_1_seed_43" / "result.json")
    assert (result["final_val_loss"], result["final_step"]) == (pytest.approx(3.37), 19)
    assert result["final_train_loss"] == pytest.approx(3.12) and result["time_seconds"] > 0
    rows = records.read_jsonl(stage / "baseline" / "runs" / "run_1_seed_43" / "metrics.jsonl")
    assert len(rows) == 20 and rows[4]["val_loss"] == pytest.approx(4.87) and rows[4]["step_avg_ms"] == 2.0
    arms = read_arms([stage / "baseline", stage / "higher_lr"])
    [line] = comparison_lines(arms, Analysis(test="paired", alpha=0.05, margin=0.01))
    assert line.startswith("higher_lr against baseline: better (-0.49900 nats/token")


# --- the package and the page -----------------------------------------------------------------------------------


def test_the_tracker_is_light() -> None:
    code = (
        "import sys, gptlib.tracker; print([m for m in ('torch', 'matplotlib', 'pandas', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr


def test_the_page_says_what_works(tmp_path, monkeypatch, pictures, capsys) -> None:
    project = tmp_path / "my_project"
    project.mkdir()
    monkeypatch.chdir(project)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    exec(blocks[0], names)
    assert len(list(Path("experiment_logs").glob("*.png"))) == 12
    folders = import_logs([Path("experiment_logs")], Path("outputs")).folders
    exec(blocks[1], names)
    assert set(names["folders"]) == set(folders) and list(names["table"]["runs"]) == ["3", "3"]
    exec(blocks[2], names)
    shown = capsys.readouterr()
    assert shown.out.count("narrow: complete, best") == 3 and len(names["comparison"]) == 6 and not shown.err
    [line] = comparison_lines(read_arms(names["folders"]), Analysis(test="paired", alpha=0.05, margin=0.01))
    assert line.startswith("wide against narrow: better")
