"""The command: one line and a status for everything that can go wrong."""

import shutil
import sys

import numpy as np
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
        on_files = arguments[0] == "sample" or arguments[:2] in (("data", "verify"), ("data", "export"))
        sets = sets if arguments[0] in ("train", "data") and not on_files else []
        place = [] if on_files else ["--outputs", str(outputs)]
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
        (
            ["study", "capacity", "--profile", "cpus", "--dry-run"],
            "capacity.yaml: no profile 'cpus'; did you mean",
        ),
        (["study", "quickstart", "--profile", "cpu"], "quickstart.yaml: no profile 'cpu'"),
        (["study", "cs336", "--dry-run", "--device", "H10"], "device 'H10' is not in params/prices.yaml"),
        (["study", "cs336", "--device", "H100"], "--device H100 only prices a --dry-run"),
        (["study", "staged_quick", "--dry-run", "--device", "H100"], "each stage of staged_quick declares its own"),
        (["journal", "nothing"], "no record, and params/studies has no nothing"),
        (
            ["plan", "--variants", "2", "--effect", "1", "--outputs", "nowhere"],
            "give --sigma, or run a baseline of a few seeds first",
        ),
        (["plan", "--variants", "2", "--effect", "1", "--sigma", "1", "--prices", "1,x"], "--prices 1,x: give three"),
        (["data", "prepare", "smke"], "did you mean 'smoke'"),
        (["data", "verify", "nowhere"], "nowhere: no such file or folder; name a dataset's folder"),
        (["data", "export", "nowhere", "here"], "manifest.json: missing or unreadable"),
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
    printed = f"{outputs / 'data' / dataset_path.name}\n"
    assert gptlib("data", "smoke")[:2] == (0, printed)
    assert gptlib("data", "prepare", "smoke")[:2] == (0, printed)
    assert gptlib("data", "--set", "data.rows=stream", "smoke")[:2] == (0, printed), "options may come first"


def test_a_dataset_is_verified(gptlib, dataset_path, tmp_path):
    status, out, error = gptlib("data", "verify", str(dataset_path))
    assert (status, error) == (0, "") and out.count("\n") >= 10
    assert all(line.startswith("OK ") for line in out.splitlines())
    copy = shutil.copytree(dataset_path, tmp_path / "copy")
    (copy / "val_000000.bin").write_bytes((copy / "val_000000.bin").read_bytes()[:-2])
    status, out, error = gptlib("data", "verify", str(copy))
    assert status == 2 and "WRONG val_000000.bin: truncated or altered" in out and "OK    train: 1 of 1 shards" in out
    wrong = sum(line.startswith("WRONG ") for line in out.splitlines())
    assert error == f"gptlib: {copy}: {wrong} of {len(out.splitlines())} checks found something wrong\n"


def test_a_file_of_nanogpts_is_verified_against_a_vocabulary(gptlib, tmp_path):
    np.arange(9, dtype="<u2").tofile(tmp_path / "val.bin")
    assert gptlib("data", "verify", str(tmp_path / "val.bin"))[0] == 2
    assert gptlib("data", "verify", str(tmp_path / "val.bin"), "--headerless", "--vocab-size", "9")[0] == 0
    assert gptlib("data", "verify", str(tmp_path / "val.bin"), "--headerless", "--vocab-size", "8")[0] == 2


def test_a_dataset_is_exported(gptlib, dataset_path, tiny_dataset, tmp_path):
    status, out, _ = gptlib("data", "export", str(dataset_path), str(tmp_path / "npy"))
    names = [tmp_path / "npy" / f"{split}_tokens.npy" for split in ("train", "val")]
    assert status == 0 and out.split() == [str(name) for name in names]
    for split, name in zip(("train", "val"), names, strict=True):
        assert np.array_equal(np.load(name), np.concatenate(tiny_dataset.tokens(split)))
    (tmp_path / "file").write_text("x")
    status, _, error = gptlib("data", "export", str(dataset_path), str(tmp_path / "file"))
    assert status == 2 and "choose another folder" in error and error.count("\n") == 1


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
