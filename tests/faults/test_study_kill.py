"""A study whose kernel is killed on the way: it goes on, says what is missing, and finishes it when called again."""

import os
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
import yaml

from gptlib import records

LONG = {
    "variant": "long",
    "hypothesis": "With many more steps the final validation loss is lower.",
    "independent_variable": "train.steps",
    "change": {"train.steps": 300},  # long enough to be killed on the way
    "match": "nothing",
    "why": "The number of steps is the question.",
}


@pytest.fixture(scope="module")
def study(tmp_path_factory, dataset_path, overrides, processes):
    """A study of one ablation and two seeds, and how to start it; what a failed test leaves running is ended."""
    folder = tmp_path_factory.mktemp("study_kill")
    outputs = folder / "outputs"
    outputs.mkdir()
    (outputs / "data").symlink_to(dataset_path.parent)
    (folder / "long.yaml").write_text(yaml.safe_dump(LONG))
    declared = {"name": "tiny", "question": "What are more steps worth?", "base": "smoke", "seeds": [42, 43]}
    declared |= {"overrides": overrides | {"eval.every": 100}, "ablations": [str(folder / "long.yaml")]}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(declared))
    # Kernels name their connection file, so that every process of the study names the folder.
    environment = os.environ | {"TMPDIR": str(folder), "JUPYTER_RUNTIME_DIR": str(folder / "runtime")}
    command = [sys.executable, "-m", "gptlib.cli", "study", str(folder / "tiny.yaml"), "--outputs", str(outputs)]

    def start():
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)

    def finished(process):
        out, error = process.communicate(timeout=300)
        return SimpleNamespace(status=process.returncode, out=out, error=error)

    home = outputs / "tiny"
    yield SimpleNamespace(folder=folder, home=home, long=home / "full" / "long", start=start, finished=finished)
    for process in processes(folder):
        process.kill()


@pytest.fixture(scope="module")
def killed(study, processes, wait_until):
    """The first call, whose ablation loses its kernel; and a call in the meantime."""
    call = study.start()
    wait_until((study.home / ".holder").exists)
    meantime = study.finished(study.start())

    def kernels():
        runs = [p for p in processes(study.long) if "gptlib.launch" in p.info["cmdline"]]
        logged = any(study.long.glob("runs/*/metrics.jsonl"))
        return {p.info["ppid"] for p in runs} if logged else ()

    (kernel,) = wait_until(kernels, seconds=200)
    assert any("ipykernel" in part for part in psutil.Process(kernel).cmdline())
    psutil.Process(kernel).kill()
    done = study.finished(call)
    results = [records.read_json(path) for path in sorted(study.long.glob("runs/*/result.json"))]
    report = (study.home / "report.html").read_text()
    return SimpleNamespace(done=done, meantime=meantime, results=results, report=report, left=processes(study.folder))


@pytest.fixture(scope="module")
def again(study, killed):
    return study.finished(study.start())


def test_a_study_runs_once_at_a_time(killed):
    assert killed.meantime.status == 2 and killed.meantime.out == ""
    (line,) = killed.meantime.error.splitlines()
    assert line.startswith("gptlib: ") and "in use by process" in line


def test_a_killed_kernel_ends_its_experiment_and_not_the_study(study, killed):
    assert killed.done.status == 1
    first, *_ = killed.done.error.splitlines()
    assert first.startswith("gptlib: long did not finish") and "Kernel died" in first and "long.log" in first
    assert "run again to finish" in killed.done.error and "Traceback" not in killed.done.error
    assert killed.results and all(r["status"] == "failed" and r["attempt"] == 1 for r in killed.results)
    assert all("its notebook ended first" in r["error"] for r in killed.results)
    assert killed.left == []


def test_the_report_is_written_and_names_what_is_missing(study, killed):
    assert "missing: long" in killed.report
    assert "report of what is there: " + str(study.home / "report.html") in killed.done.error


def test_calling_again_finishes_the_rest(study, again):
    assert again.status == 0, again.error
    assert "1 of 2 experiments are done already" in again.out and f"report: {study.home / 'report.html'}" in again.out
    told = [(r["seed"], r["attempt"], r["status"]) for r in records.read_jsonl(study.long / "results.jsonl")]
    assert (
        (42, 1, "failed") in told
        and (42, 2, "finished") in told
        and any(t[0] == 43 and t[2] == "finished" for t in told)
    )
    for variant in ("baseline", "long"):
        folder = study.home / "full" / variant
        assert records.read_json(folder / "summary.json")["status"] == "complete"
        assert (folder / "notebook.ipynb").exists() and (folder / "notebook.html").exists()
    report, index = (study.home / "report.html").read_text(), (study.home.parent / "index.html").read_text()
    assert "long" in report and "missing: long" not in report
    assert "tiny/report.html" in index and "full/long" in index


def test_a_finished_study_executes_nothing(study, again):
    def written():
        return {p: p.stat().st_mtime_ns for p in study.home.rglob("*") if p.suffix in (".ipynb", ".json", ".jsonl")}

    before = written()
    third = study.finished(study.start())
    assert third.status == 0 and "2 of 2 experiments are done already" in third.out
    assert written() == before
