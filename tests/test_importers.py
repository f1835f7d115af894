"""Foreign logs become records like our own: places, runs, what became of them, and nothing half-written that counts."""

import hashlib
import json
import statistics
import sys
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from gptlib import cli, importers, records
from gptlib.importers import import_logs
from gptlib.records import RecordError
from gptlib.report.html import write_index
from gptlib.report.results import study_results
from gptlib.study.plan import plan_experiment

NAN = float("nan")


def track_1(final: float, steps: int = 100, end: int = 0, time: float = 57.0) -> str:
    """A log of one run: three validations, the last at `end` (default: the last step)."""
    end = end or steps
    points = ((0, 10.8258), (end // 2, 4.5), (end, final))
    lines = [f"step:{s}/{steps} val_loss:{x:.4f} train_time:{s * time:.0f}ms step_avg:{time}ms" for s, x in points]
    return "import torch\n" + "=" * 100 + "\n" + "\n".join(lines) + "\n"


@pytest.fixture
def logs(tmp_path):
    """Writes files below a folder and returns it."""

    def write(files: dict[str, str], folder: str = "logs") -> Path:
        for name, text in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / folder

    return write


@pytest.fixture
def place(tmp_path):
    return tmp_path / "outputs"


def results(folder: Path) -> list[dict]:
    return [records.read_json(path) for path in sorted(folder.glob("runs/*/result.json"))]


# --- the record -------------------------------------------------------------------------------------------------


def test_a_folder_of_logs_is_an_experiment(logs, place) -> None:
    finals = [3.277, 3.281, 3.279]
    top = logs({f"{x}.txt": track_1(x, time=50 + 10 * i) for i, x in enumerate(finals)}, "2025-01-04_SoftCap")
    found = import_logs([top], place)
    folder = place / "imported" / top.parent.name / "2025-01-04_SoftCap"
    assert found.folders == {folder: 3} and (found.files, found.skipped, found.notes) == (3, [], [])
    summary, config = (records.read_json(folder / name) for name in ("summary.json", "config.json"))
    assert summary["status"] == "complete" and summary["fingerprint"] is None and "fingerprint" not in config
    assert summary["experiment_name"] == f"imported/{top.parent.name}/2025-01-04_SoftCap"
    loss = summary["statistics"]["val_loss"]
    assert loss["mean"] == pytest.approx(3.279) and loss["std"] == pytest.approx(0.002) and loss["best"] == 3.277
    assert loss["ci_95"] == pytest.approx(stats.t.interval(0.95, 2, 3.279, 0.002 / 3**0.5))
    times = summary["statistics"]["time"]
    assert (times["mean"], times["total"]) == (pytest.approx(6.0), pytest.approx(18.0))
    assert config["seeds"] == [0, 1, 2] and config["seeds_known"] is False
    digest = hashlib.sha256((top / "3.277.txt").read_bytes()).hexdigest()
    assert config["imported_from"][0] == {"file": "2025-01-04_SoftCap/3.277.txt", "sha256": digest}
    assert str(top.parent) not in (folder / "config.json").read_text(), "a place of the machine is nobody's business"


def test_a_record_has_the_files_of_our_own(logs, place) -> None:
    [folder] = import_logs([logs({"seed_4.log": track_1(3.28), "seed_3.log": track_1(3.29)})], place).folders
    assert [path.name for path in sorted((folder / "runs").iterdir())] == ["run_0_seed_3", "run_1_seed_4"]
    result = records.read_json(folder / "runs" / "run_1_seed_4" / "result.json")
    assert {key: result[key] for key in ("run_id", "seed", "attempt", "status", "success")} == {
        "run_id": 1, "seed": 4, "attempt": 1, "status": "finished", "success": True,
    }  # fmt: skip
    assert (result["final_val_loss"], result["final_step"], result["time_seconds"]) == (3.28, 100, 5.7)
    assert records.read_jsonl(folder / "results.jsonl")[1] == result
    rows = records.read_jsonl(folder / "runs" / "run_1_seed_4" / "metrics.jsonl")
    who = {"run_id": 1, "seed": 4, "attempt": 1}
    assert rows[1] == who | {"step": 50, "val_loss": 4.5, "train_time_ms": 2850.0, "step_avg_ms": 57.0}
    frame = pd.read_csv(folder / "metrics.csv")
    assert len(frame) == 6 and list(frame["val_loss"][3:]) == [10.8258, 4.5, 3.28]
    assert list(frame.columns[:5]) == ["variant", "run_id", "seed", "attempt", "step"]
    assert len(records.read_jsonl(folder / "metrics.jsonl")) == 6
    with pytest.raises(RecordError, match="no finished experiment"):
        study_results(place, "imported", folder.parent.name)  # a study's numbers are those of our own runs
    index = write_index(place).read_text()
    assert folder.name in index and "not of the form" not in index


def test_no_plan_takes_it_for_its_own(logs, outputs, tiny) -> None:
    import_logs([logs({"a.log": track_1(3.28)})], outputs, name="full/baseline")
    plan = plan_experiment(outputs, "imported", "full", tiny(), [0])
    assert (plan.folder / "summary.json").exists() and not plan.is_complete()
    assert len(plan.pending()) == 1 and list(plan.started_runs()) == []


def test_a_break_leaves_no_summary(logs, place, monkeypatch) -> None:
    def fail(*_):
        raise OSError("the disk is full")

    top = logs({"a.log": track_1(3.28)})
    monkeypatch.setattr(importers, "_write_runs", fail)
    with pytest.raises(OSError):
        import_logs([top], place)
    assert not list(place.rglob("summary.json"))
    monkeypatch.undo()
    [folder] = import_logs([top], place).folders
    assert (folder / "summary.json").exists() and len(results(folder)) == 1


def test_the_same_again_stays_and_another_moves_it_aside(logs, place) -> None:
    top = logs({"a.log": track_1(3.28)})
    [folder] = import_logs([top], place).folders
    written = (folder / "metrics.csv").stat().st_mtime_ns
    import_logs([top], place)
    assert (folder / "metrics.csv").stat().st_mtime_ns == written and len(list(folder.parent.glob("[!.]*"))) == 1
    import_logs([logs({"a.log": track_1(3.27)})], place)
    assert len(list(folder.parent.glob("[!.]*"))) == 2
    assert records.read_json(folder / "summary.json")["statistics"]["val_loss"]["mean"] == 3.27


# --- what becomes of runs ---------------------------------------------------------------------------------------


def test_runs_without_a_final_loss_are_counted(logs, place) -> None:
    top = logs(
        {
            "a.log": track_1(3.28),
            "b.log": track_1(3.27, time=56.5)[:-20],
            "c.log": track_1(NAN, time=55.5),
            "d.log": track_1(3.6, end=60),
            "e.log": track_1(3.3, end=95),
        }
    )
    found = import_logs([top], place)
    [folder] = found.folders
    assert [(r["status"], r["success"], r["final_val_loss"]) for r in results(folder)] == [
        ("finished", True, 3.28),
        ("failed", False, None),
        ("diverged", False, None),
        ("failed", False, None),
        ("finished", True, 3.3),  # judged a little before its planned end, as the speedrun's third track does
    ]
    counts = records.read_json(folder / "summary.json")["statistics"]
    assert [counts[f"{kind}_runs"] for kind in ("successful", "failed", "diverged")] == [2, 2, 1]
    assert results(folder)[2]["diverged_at"] == 100 and "NaN" not in (folder / "metrics.jsonl").read_text()
    notes = "\n".join(found.notes)
    assert "logs/b.log: failed, cut off in the middle of a line" in notes
    assert "logs/c.log: diverged, at step 100 the loss is not a number" in notes
    assert "logs/d.log: failed, ended at step 60 of 100" in notes
    assert "final losses at steps 95 (1 runs), 100 (1 runs)" in notes


def test_without_a_plan_the_longest_run_tells_what_is_whole(logs, place) -> None:
    line = "step {}: train loss 2.0, val loss 2.5\n"
    found = import_logs([logs({"a.txt": line.format(500), "b.txt": line.format(100)})], place)
    assert [r["status"] for r in results(next(iter(found.folders)))] == ["finished", "failed"]
    assert any("ended at step 100 of 500" in note for note in found.notes)


def test_runs_of_other_lengths_are_other_experiments(logs, place) -> None:
    top = logs({"a.txt": track_1(3.28, 100), "b.txt": track_1(3.29, 80), "c.txt": track_1(3.27, 100)})
    assert {f.name: n for f, n in import_logs([top], place).folders.items()} == {
        "logs.100-steps": 2, "logs.80-steps": 1,
    }  # fmt: skip
    assert [f.name for f in import_logs([top], place, name="mixed").folders] == ["mixed"]


def test_a_run_logged_twice_counts_once(logs, place) -> None:
    top = logs(
        {
            "0f3a.txt": track_1(3.28, time=57.5),
            "stdout/seed7.out": track_1(3.28, time=57.5),
            "again.txt": track_1(3.28, time=58.5),  # the same losses at other times: another run
        }
    )
    found = import_logs([top], place)
    [folder] = found.folders
    assert [r["file"] for r in results(folder)] == ["logs/again.txt", "logs/stdout/seed7.out"]
    assert found.notes == [f"{top.parent.name}/logs: 1 logs repeat the run of another and are left out"]


def test_equal_losses_of_a_table_are_no_copies(logs, place) -> None:
    top = logs({"list.csv": "run,step,val_loss\n0,9,3.28\n1,9,3.28\n2,9,3.27\n"})
    assert list(import_logs([top], place).folders.values()) == [3]


# --- places -----------------------------------------------------------------------------------------------------


def test_folders_below_are_experiments_but_those_of_runs_are_not(logs, place) -> None:
    files = {
        "short/a/x.txt": 1, "short/a/y.txt": 2, "short/b/seed_0/stdout.txt": 3, "short/b/seed_1/stdout.txt": 4,
        "z.log": 5, "short/.hidden/x.txt": 6, "short/a/notes.md": 7,
    }  # fmt: skip
    top = logs({name: track_1(3 + n / 100) for name, n in files.items()}, "records")
    found = {f"{f.parent.name}/{f.name}": n for f, n in import_logs([top], place).folders.items()}
    assert found == {"records/short.a": 2, "records/short.b": 2, f"{top.parent.name}/records": 1}
    seeds = records.read_json(place / "imported" / "records" / "short.b" / "config.json")
    assert (seeds["seeds"], seeds["seeds_known"]) == ([0, 1], True)


def test_files_by_themselves_are_experiments_unless_named(logs, place) -> None:
    top = logs({"a.txt": track_1(3.28), "b b.txt": track_1(3.29)})
    files = sorted(top.iterdir())
    found = import_logs(files, place)
    assert [f"{f.parent.name}/{f.name}" for f in found.folders] == ["logs/a", "logs/b_b"]
    assert import_logs(files, place, name="seeds/both").folders == {place / "imported" / "seeds" / "both": 2}


def test_a_long_name_is_cut_to_one_of_its_own(logs, place) -> None:
    top = logs({f"{'x' * 90}{n}/a.txt": track_1(3.28) for n in "12"})
    names = [f.name for f in import_logs([top], place).folders]
    assert len(set(names)) == 2 and all(len(name) == 80 for name in names)


def test_an_experiment_folder_of_001(logs, place) -> None:
    result = {"final_train_loss": 2.891, "time_seconds": 420.5, "final_step": 250, "success": True}
    finals = [
        {"run_id": 0, "seed": 42, "final_val_loss": 3.275} | result,
        {"run_id": 1, "seed": 43, "final_val_loss": None} | result | {"success": False, "final_step": 125},
    ]
    metrics = [
        {"run_id": run, "step": step, "val_loss": 10.125 - step / 50, "train_time_ms": step * 120, "step_avg_ms": 120.0}
        for run, steps in ((0, (0, 125)), (1, (0, 125)))
        for step in steps
    ]
    top = logs(
        {
            "results.jsonl": "".join(json.dumps(row) + "\n" for row in finals),
            "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in metrics) + '{"run_id": 1, "st',
            "summary.json": '{"experiment_name": "nanogpt_baseline", "statistics": {}}',
            "config.json": "{}",
            "runs/run_0_seed_42/stdout.log": track_1(9.0),
        },
        "nanogpt_baseline_20241207_143022",
    )
    found = import_logs([top], place)
    [folder] = found.folders
    assert folder.name == "nanogpt_baseline_20241207_143022" and found.skipped == []
    first, second = results(folder)
    assert (first["seed"], first["final_val_loss"], first["final_train_loss"]) == (42, 3.275, 2.891)
    assert (first["final_step"], first["time_seconds"]) == (250, 420.5)
    assert (second["seed"], second["status"], second["error"]) == (43, "failed", "said to have failed")
    rows = records.read_jsonl(folder / "runs" / "run_0_seed_42" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 125, 250] and rows[1]["val_loss"] == 7.625


def test_files_of_a_tracker_are_named_by_themselves(logs, place) -> None:
    def tracker(name: str, final: float) -> str:
        history = [{"iteration": 99, "val_loss": final, "train_loss": 2.0}]
        return json.dumps({"config": {"experiment_name": name, "max_iters": 100}, "metrics": history})

    top = logs(
        {
            "experiment_baseline_20250222_140530.json": tracker("baseline", 2.5),
            "experiment_baseline_20250223_140530.json": tracker("baseline", 2.6),
            "experiment_fewer heads_20250222_150530.json": tracker("fewer heads", 2.75),
        },
        "experiment_logs",
    )
    found = import_logs([top], place)
    assert {f.name: n for f, n in found.folders.items()} == {"baseline": 2, "fewer_heads": 1}


def test_a_log_from_powershell(tmp_path, place) -> None:
    (tmp_path / "a.log").write_bytes(track_1(3.28).replace("\n", "\r\n").encode("utf-16"))
    [folder] = import_logs([tmp_path / "a.log"], place).folders
    assert results(folder)[0]["final_val_loss"] == 3.28


# --- bad input --------------------------------------------------------------------------------------------------


def test_what_is_no_log_is_listed_with_its_reason(logs, place) -> None:
    top = logs({"a.txt": track_1(3.28), "requirements.txt": "torch\n", "epochs.csv": "epoch,loss\n1,2\n"})
    found = import_logs([top], place)
    assert found.files == 1
    assert [(s.source, s.reason.split(":")[0]) for s in found.skipped] == [
        ("logs/epochs.csv", "line 2"),
        ("logs/requirements.txt", "No validation loss captured"),
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere: no such file or folder; name logs, or folders that hold them"),
        ("crash.log", "nothing imported .*crash.log: No validation loss captured: crash before the first validation"),
        ("empty", "nothing imported .no file of a known kind: "),
    ],
)
def test_nothing_to_import_is_an_error(logs, place, name: str, message: str) -> None:
    top = logs({"crash.log": "Traceback (most recent call last):\n", "empty/README.md": "logs\n"})
    with pytest.raises(ValueError, match=message):
        import_logs([top / name], place)
    assert not place.exists()


def test_a_name_is_checked_before_anything_is_written(logs, place) -> None:
    with pytest.raises(RecordError, match="use up to 80 letters"):
        import_logs([logs({"a.txt": track_1(3.28)})], place, name="a/b/../c")
    assert not place.exists()


# --- the commands -----------------------------------------------------------------------------------------------


@pytest.fixture
def gptlib(monkeypatch, capsys):
    """Calls the command in this process; returns its status and what it has printed."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["gptlib", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return end.value.code or 0, printed.out, printed.err

    return call


def test_import_and_compare_from_a_shell(gptlib, logs, place) -> None:
    old, new = [3.279, 3.281, 3.280, 3.282], [3.276, 3.275, 3.277, 3.2765]
    top = logs(
        {
            f"{arm}/{i}.txt": track_1(x, time=50 + i)
            for arm, xs in (("old", old), ("new", new))
            for i, x in enumerate(xs)
        }
        | {"new/requirements.txt": "torch\n"}
    )
    status, out, error = gptlib("import-log", top, "--outputs", place)
    stage = place / "imported" / "logs"
    assert (status, error) == (0, "")
    assert out.splitlines()[0].startswith("not imported: logs/new/requirements.txt: No validation loss captured")
    assert out.splitlines()[1:] == [
        f"{stage / 'new'}: 4 runs",
        f"{stage / 'old'}: 4 runs",
        "imported 8 of 9 files: 8 runs in 2 experiments",
    ]
    status, out, error = gptlib("compare", stage / "old", stage / "new", "--target", "3.28", "--alpha", "0.05")
    assert (status, error) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "| experiment | runs | mean | std | 95 % interval | best | time (s) |"
    low, high = stats.t.interval(0.95, 3, statistics.fmean(new), stats.sem(new))
    spread = f"{statistics.fmean(new):.5f} | {statistics.stdev(new):.5f} | {low:.5f} to {high:.5f}"
    assert lines[3] == f"| new | 4 | {spread} | 3.27500 | 5.2 |"
    test = stats.ttest_ind(new, old, equal_var=False)
    assert f"new against old: better (-0.00438 nats/token, 95 % interval [{test.confidence_interval().low:+.5f}" in out
    assert f"p = {test.pvalue:.2g}; welch)" in out
    p_values = [stats.ttest_1samp(arm, 3.28, alternative="less").pvalue for arm in (old, new)]
    assert f"old: mean <= 3.28 not shown at 0.05: p = {p_values[0]:.3g} (t test)" in out
    assert f"new: mean <= 3.28 shown at 0.05: p = {p_values[1]:.3g} (t test)" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import-log", "nowhere"], "nowhere: no such file or folder"),
        (["compare", "nowhere"], "no finished record (no summary.json); name folders such as outputs/"),
        (["compare", "nowhere", "--sigma", "0.001"], "--sigma belongs to --target"),
        (["compare", "nowhere", "--alpha", "1"], "--alpha 1.0 --margin 0.0: give alpha between 0 and 0.5"),
    ],
)
def test_bad_input_is_one_line_and_status_2(gptlib, arguments, message) -> None:
    status, out, error = gptlib(*arguments)
    assert (status, out) == (2, "")
    assert error.startswith("gptlib: ") and message in error and error.count("\n") == 1
