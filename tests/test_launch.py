"""Runs as processes: results from all of them, side by side over slots, and nothing that outlives its launcher."""

import os
import signal
import subprocess
import sys

import pytest

from gptlib import launch as launch_module
from gptlib import records
from gptlib.config import ConfigError
from gptlib.launch import Slots, launch, resolve_device, slot_names

FOR_EVER = {"train.steps": 1_000_000, "eval.every": 1000}

# --- devices and slots ------------------------------------------------------------------------------------------


@pytest.fixture
def three_cores(own_slots, monkeypatch):
    monkeypatch.setattr(launch_module, "cpu_cores", lambda: 3)


def test_slots_are_taken_all_or_not_at_all(three_cores):
    mine, other = Slots("cpu"), Slots("cpu")
    assert len(mine.take(2)) == 2
    assert other.take(2) == []  # one is free, but half of what is needed is of no use
    third = mine.take(1)  # so the one was not kept
    assert len(third) == 1 and mine.take(1) == other.take(1) == []
    mine.give(third)
    assert other.take(1) == third


def test_more_than_there_are_means_all_of_them(three_cores):
    mine, other = Slots("cpu"), Slots("cpu")
    assert sorted(mine.take(99)) == slot_names("cpu") == ["cpu-0", "cpu-1", "cpu-2"]
    assert other.take(1) == []
    mine.give(slot_names("cpu"))
    assert len(other.take(99)) == 3


def test_a_killed_holder_holds_nothing(three_cores):
    code = (
        "import sys; from gptlib import launch; launch.cpu_cores = lambda: 3\n"
        "slots = launch.Slots('cpu'); print(len(slots.take(3)), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "3\n" and Slots("cpu").take(1) == []
    holder.kill()
    holder.communicate()
    assert len(Slots("cpu").take(3)) == 3


def test_gpus_are_those_that_may_be_seen(monkeypatch):
    monkeypatch.setattr(records, "gpu_names", lambda: ["NVIDIA H200"] * 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert slot_names("cuda") == ["cuda-0", "cuda-1", "cuda-2", "cuda-3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 1")
    assert slot_names("cuda") == ["cuda-3", "cuda-1"]
    monkeypatch.setattr("importlib.metadata.version", lambda package: "2.13.0")
    assert resolve_device("auto") == resolve_device("cuda") == "cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert resolve_device("auto") != "cuda"


def test_an_absent_gpu_is_one_line(monkeypatch):
    monkeypatch.setattr(records, "gpu_names", list)
    with pytest.raises(ConfigError, match=r"hardware\.device=cuda: no NVIDIA GPU .*use cpu or auto") as error:
        resolve_device("cuda")
    assert "\n" not in str(error.value)
    assert resolve_device("auto") in ("cpu", "mps") and resolve_device("cpu") == "cpu"


# --- results ----------------------------------------------------------------------------------------------------


def killing(run, choose, processes):
    """A poll that kills one process of `run` as soon as the run has logged something."""
    killed = []

    def poll():
        if not killed and (run / "metrics.jsonl").exists():
            victim = choose(processes(run))
            victim.kill()
            killed.append(victim.pid)

    return poll


def the_only(found):
    assert len(found) == 1
    return found[0]


def a_rank(found):
    """Some rank of a run: a child of torchrun."""
    pids = {process.pid for process in found}
    ranks = [process for process in found if process.info["ppid"] in pids]
    assert len(ranks) == 2
    return ranks[1]


def result(run):
    return records.read_json(run / "result.json")


def train_losses(run):
    return {r["step"]: r["train_loss"] for r in records.read_jsonl(run / "metrics.jsonl") if "train_loss" in r}


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory, prepare_run, tiny, processes):
    """Two runs side by side, one of which is killed on the way: (finished, killed)."""
    folder = tmp_path_factory.mktemp("one_rank")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(folder))
        killed, finished = prepare_run(folder, tiny(FOR_EVER), 7, 0), prepare_run(folder, tiny(), 42, 1)
        launch([killed, finished], tiny().hardware, killing(killed, the_only, processes))
    return finished, killed


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, prepare_run, tiny, processes):
    """The same with two processes each."""
    folder = tmp_path_factory.mktemp("two_ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(folder))
        ranks = {"hardware.ranks": 2}
        killed, finished = prepare_run(folder, tiny(FOR_EVER | ranks), 7, 0), prepare_run(folder, tiny(ranks), 42, 1)
        launch([killed, finished], tiny(ranks).hardware, killing(killed, a_rank, processes))
    return finished, killed


def test_a_killed_run_is_failed_by_name_and_the_others_finish(one_rank, processes):
    finished, killed = one_rank
    assert result(finished)["status"] == "finished" and result(finished)["success"] is True
    assert (finished / "checkpoint").is_dir() and (finished / "stdout.log").exists()
    failed = result(killed)
    assert failed["status"] == "failed" and failed["success"] is False and "SIGKILL" in failed["error"]
    assert failed["final_val_loss"] is None and (failed["seed"], failed["run_id"], failed["attempt"]) == (7, 0, 1)
    assert len(records.read_jsonl(killed / "metrics.jsonl")) >= 1 and not (killed / "checkpoint").exists()
    assert processes(killed) == processes(finished) == []


def test_a_run_that_loses_a_rank_has_failed_and_leaves_no_process(two_ranks, processes):
    finished, killed = two_ranks
    assert result(finished)["status"] == "finished"
    assert result(killed)["status"] == "failed" and "rank 1: Signal 9 (SIGKILL)" in result(killed)["error"]
    assert processes(killed) == processes(finished) == []


def test_two_ranks_are_one_run(one_rank, two_ranks):
    one, two = one_rank[0], two_ranks[0]
    assert train_losses(two) == pytest.approx(train_losses(one), rel=1e-5) and len(train_losses(one)) == 4
    for key in ("final_val_loss", "bits_per_byte", "excess", "excess_se", "floor"):
        assert result(two)[key] == pytest.approx(result(one)[key], rel=1e-5)
    assert result(two)["val_tokens"] == result(one)["val_tokens"]
    assert len(records.read_jsonl(two / "metrics.jsonl")) == len(records.read_jsonl(one / "metrics.jsonl"))  # rank 0's


def test_what_a_run_said_last_is_its_error(own_slots, tmp_path, prepare_run, tiny, monkeypatch):
    run, fake = prepare_run(tmp_path, tiny()), tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'Traceback:'\necho 'ValueError: the dataset is gone'\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    launch([run], tiny().hardware)
    assert result(run)["status"] == "failed"
    assert result(run)["error"] == "exit status 3: ValueError: the dataset is gone"


# --- the end of the launcher ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_launcher_takes_its_runs_along(cleared, own_slots, prepare_run, tiny, processes, wait_until, ranks):
    config = tiny(FOR_EVER | {"hardware.ranks": ranks})
    run = prepare_run(cleared, config)
    code = (
        "import sys, pathlib; from gptlib.fields import HardwareConfig; from gptlib.launch import launch\n"
        "launch([pathlib.Path(sys.argv[1])], HardwareConfig.model_validate_json(sys.argv[2]))"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code, str(run), config.hardware.model_dump_json()])
    wait_until((run / "metrics.jsonl").exists)
    assert len(processes(run)) == 1 + (ranks if ranks == 1 else ranks + 1)  # the launcher names the run, too
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    wait_until(lambda: not processes(run), seconds=15)
    assert not (run / "result.json").exists()


def test_an_interrupt_ends_the_runs_first(cleared, own_slots, prepare_run, tiny, processes):
    run = prepare_run(cleared, tiny(FOR_EVER))

    def interrupt():
        assert len(processes(run)) == 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch([run], tiny().hardware, interrupt)
    assert processes(run) == [] and len(Slots("cpu").take(99)) == len(slot_names("cpu"))
    assert not (run / "result.json").exists()  # the next execution records it as interrupted


def test_a_run_that_says_nothing_any_more_is_ended(cleared, own_slots, prepare_run, tiny, processes, monkeypatch):
    run = prepare_run(cleared, tiny({"train.steps": 1_000_000, "eval.every": 0}))
    monkeypatch.setattr(launch_module, "STALL_SECONDS", 0.3)
    launch([run], tiny().hardware)
    assert result(run)["status"] == "failed" and result(run)["error"].startswith("no sign of life for")
    assert processes(run) == []
