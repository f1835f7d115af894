"""Runs of a second on one prepared dataset, and how to wait for, find and clear away processes."""

import contextlib
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from gptlib import records
from gptlib.config import load_config
from gptlib.data.dataset import open_dataset, prepare_dataset

TINY = {
    "data.documents": 300,
    "data.val_documents": 20,
    "data.vocab_size": 300,
    "model.num_layers": 1,
    "model.model_dim": 16,
    "train.steps": 4,
    "eval.every": 2,
    "eval.rows": 2,
    "eval.sample_tokens": 0,
}


@pytest.fixture(scope="session")
def overrides():
    """What makes the smoke run tiny; to be copied, not changed."""
    return dict(TINY)


@pytest.fixture(scope="session")
def tiny():
    """Makes a tiny configuration; dotted keys are given as a dictionary."""
    return lambda changes=None: load_config("smoke", TINY | (changes or {}))


@pytest.fixture(scope="session")
def dataset_path(tmp_path_factory, tiny):
    """The dataset of every tiny configuration; do not write to it."""
    return prepare_dataset(tiny().data, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_dataset(dataset_path):
    return open_dataset(dataset_path)


@pytest.fixture
def outputs(dataset_path, tmp_path):
    """A folder of records that has the tiny dataset already."""
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "data").symlink_to(dataset_path.parent)
    return tmp_path / "outputs"


@pytest.fixture(scope="session")
def prepare_run(dataset_path):
    """Writes run.json as the launcher expects it; returns the run's folder."""

    def prepare(folder, config, seed=42, index=0):
        run = records.run_folder(folder, index, seed)
        spec = {"run_id": index, "seed": seed, "attempt": 1, "fingerprint": "0" * 16, "device": "cpu"}
        spec |= {"dataset": str(dataset_path), "config": config.model_dump(mode="json")}
        records.write_json(run / "run.json", spec)
        return run

    return prepare


@pytest.fixture
def executed(monkeypatch):
    """Runs are executed in this process (the launcher has tests of its own); the folders of those that were."""
    import torch

    from gptlib.train import run_from_folder

    runs = []

    def launch(pending, hardware, poll):
        torch.set_num_threads(1)
        for run in pending:
            runs.append(run)
            with (run / "stdout.log").open("w") as log, contextlib.redirect_stdout(log):
                run_from_folder(run)
            poll()

    monkeypatch.setattr("gptlib.study.experiment.launch", launch)
    return runs


@pytest.fixture
def shown(monkeypatch):
    """What a notebook displays, in order, with whatever it was updated to."""
    things = []

    def display(thing, display_id=False):
        things.append(thing)
        return SimpleNamespace(update=things.append)

    for module in ("gptlib.notebook", "gptlib.live"):
        monkeypatch.setattr(f"{module}.display", display)
    return things


@pytest.fixture
def own_slots(tmp_path, monkeypatch):
    """Slots of this test alone: it neither waits for others' runs on this machine nor keeps them waiting."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture(scope="session")
def processes():
    """The living processes that name `word` in their command line, but not this one; `info` has their parents."""

    def find(word):
        me, found = psutil.Process().pid, []
        for process in psutil.process_iter(["cmdline", "ppid", "status"]):
            named = any(str(word) in part for part in process.info["cmdline"] or ())
            if named and process.pid != me and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    return find


@pytest.fixture(scope="session")
def wait_until():
    """Waits for a condition and returns its value; fails where it does not come true."""

    def wait(condition, seconds=60.0):
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, f"waited {seconds} s in vain"
            time.sleep(0.05)
        return value

    return wait


@pytest.fixture
def cleared(tmp_path, processes):
    """The test's folder; whatever a failed test leaves running in it is ended."""
    yield Path(tmp_path)
    for process in processes(tmp_path):
        process.kill()
