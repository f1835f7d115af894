"""The command: one line and a status for everything that can go wrong."""

import sys

import pytest
import torch

from gptlib import cli, records
from gptlib.launch import record_failure
from gptlib.study import experiment as experiment_module
from gptlib.train import run_from_folder


@pytest.fixture
def gptlib(monkeypatch, capsys, outputs, overrides):
    """Calls the command in this process with tiny runs; returns its status and what it has printed."""

    def call(*arguments):
        sets = [word for key, value in overrides.items() for word in ("--set", f"{key}={value}")]
        sets = sets if arguments[0] in ("train", "data") else []
        place = ["--outputs", str(outputs)] if arguments[0] != "sample" else []
        monkeypatch.setattr(sys, "argv", ["gptlib", *arguments, *sets, *place])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return end.value.code or 0, printed.out, printed.err

    return call


@pytest.fixture
def launched(monkeypatch):
    """Gives `launch` another body."""
    return lambda body: monkeypatch.setattr(experiment_module, "launch", lambda runs, *_: [body(run) for run in runs])


def in_process(run):
    torch.set_num_threads(1)
    run_from_folder(run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "smke"], "did you mean 'smoke'"),
        (["train", "smoke", "--set", "train.stps=3"], "did you mean 'train.steps'"),
        (["train", "smoke", "--seeds", "42,x"], "--seeds 42,x: give whole numbers, each once"),
        (["train", "smoke", "--seeds", "42,42"], "--seeds 42,42: give whole numbers, each once"),
        (["train", "smoke", "--study", "a/b"], "study='a/b': use up to 80 letters"),
        (["data", "smoke", "--set", "data.corpus=text"], "needs data.path"),
        (["study", "quikstart"], "did you mean 'quickstart'"),
        (["sample", "nowhere"], "no such record"),
    ],
)
def test_bad_input_is_one_line_and_status_2(gptlib, arguments, message):
    status, out, error = gptlib(*arguments)
    assert status == 2 and out == ""
    assert error.startswith("gptlib: ") and message in error and error.count("\n") == 1


def test_training_sampling_and_reporting(gptlib, launched, outputs):
    launched(in_process)
    status, out, _ = gptlib("train", "smoke", "--seeds", "7,8")
    folder = outputs / "adhoc" / "full" / "baseline"
    assert status == 0 and "Runs: 2/2" in out and f"record: {folder}" in out
    assert records.read_json(folder / "summary.json")["status"] == "complete"
    status, out, _ = gptlib("sample", str(folder / "runs" / "run_0_seed_7"), "--tokens", "9", "--prompt", "Once")
    assert status == 0 and out.strip()
    status, out, _ = gptlib("report")
    assert (
        status == 0
        and out.strip() == str(outputs / "index.html")
        and "baseline" in (outputs / "index.html").read_text()
    )


def test_the_dataset_is_named(gptlib, dataset_path, outputs):
    assert gptlib("data", "smoke")[:2] == (0, f"{outputs / 'data' / dataset_path.name}\n")


def test_failed_runs_are_status_1(gptlib, launched):
    launched(lambda run: record_failure(run, "killed by SIGKILL"))
    status, out, error = gptlib("train", "smoke", "--seeds", "7,8")
    assert status == 1 and "Runs: 0/2" in out and error.startswith("gptlib: 2 of 2 runs failed")


def test_an_interrupt_says_how_to_go_on(gptlib, launched):
    def interrupt(run):
        raise KeyboardInterrupt

    launched(interrupt)
    status, _, error = gptlib("train", "smoke")
    assert status == 130 and error == "gptlib: interrupted; run again to finish what is missing\n"
