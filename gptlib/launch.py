"""Runs as subprocesses, side by side over the devices at hand, none of which outlives its launcher.

Every run is a process of its own (under `torch.distributed.run` when it has several ranks), fed by `run.json` and
answering through files. Machine-wide slots - one CPU core, or one GPU - let several notebooks and their seeds share a
machine without overloading it. This module imports no torch: launcher and notebooks stay light, and a child binds
itself to its parent before the seconds that torch takes to import.
"""

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import filelock

from gptlib import records
from gptlib.config import ConfigError
from gptlib.fields import HardwareConfig

POLL_SECONDS = 0.2
STALL_SECONDS = 1800.0  # a run that writes nothing for so long is ended: a lost peer can block a rank for ever
# glibc: keep freed memory instead of returning it to the system and faulting it in again at every step (some 8 %).
KEEP_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TOP_PAD_": "100000000",
}
GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL


# --- devices and slots ------------------------------------------------------------------------------------------


def resolve_device(name: str) -> str:
    """'auto' -> 'cuda', 'mps' or 'cpu', found without importing torch. Raises ConfigError for an absent GPU."""
    cuda = "+cpu" not in importlib.metadata.version("torch") and bool(visible_gpus())
    if name == "cuda" and not cuda:
        raise ConfigError("hardware.device=cuda: no NVIDIA GPU or no CUDA build of torch here; use cpu or auto")
    if name != "auto":
        return name
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    return "cuda" if cuda else "mps" if apple else "cpu"


def cpu_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use, by the numbers or names that CUDA_VISIBLE_DEVICES has for them."""
    every, allowed = [str(i) for i in range(len(records.gpu_names()))], os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None or not every:
        return every
    return [gpu for gpu in map(str.strip, allowed.split(",")) if gpu and not gpu.startswith("-")]


def slot_names(device: str) -> list[str]:
    """The slots of this machine for a device class: one per CPU core, per GPU, one for MPS."""
    if device == "cuda":
        return [f"cuda-{gpu}" for gpu in visible_gpus() or ["0"]]
    return [f"{device}-{i}" for i in range(cpu_cores() if device == "cpu" else 1)]


class Slots:
    """Machine-wide places to run, held by file locks: they end with the process that holds them."""

    def __init__(self, device: str) -> None:
        folder = Path(tempfile.gettempdir()) / f"gptlib-slots-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
        folder.mkdir(parents=True, exist_ok=True)
        self._locks = {name: filelock.FileLock(folder / f"{name}.lock") for name in slot_names(device)}

    def take(self, wanted: int) -> list[str]:
        """`wanted` free slots (at most all there are), or none at all: never a part, so nobody waits in a circle."""
        taken: list[str] = []
        for name, lock in self._locks.items():
            if len(taken) == min(wanted, len(self._locks)):
                break
            if lock.is_locked:  # held by this process already; the lock is re-entrant
                continue
            with contextlib.suppress(filelock.Timeout):
                lock.acquire(timeout=0)
                taken.append(name)
        if len(taken) < min(wanted, len(self._locks)):
            self.give(taken)
            return []
        return taken

    def give(self, names: Sequence[str]) -> None:
        for name in names:
            self._locks[name].release()


# --- one child process ------------------------------------------------------------------------------------------


@dataclass
class _Child:
    run: Path
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    slots: list[str]
    killed: str = ""
    last_sign: float = field(default_factory=time.monotonic)
    _seen: tuple[int, int] = (0, 0)

    def watch(self) -> None:
        """End a run that has stopped writing."""
        seen = (_size(self.run / "metrics.jsonl"), _size(self.run / "stdout.log"))
        if seen != self._seen:
            self._seen, self.last_sign = seen, time.monotonic()
        elif time.monotonic() - self.last_sign > STALL_SECONDS:
            self.killed = f"no sign of life for {STALL_SECONDS:.0f} s"
            self.stop()

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
            try:
                self.process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _start(run: Path, hardware: HardwareConfig, device: str, slots: list[str]) -> _Child:
    log = (run / "stdout.log").open("ab")
    threads = {"OMP_NUM_THREADS": str(hardware.threads), "MKL_NUM_THREADS": str(hardware.threads)}
    environment = os.environ | threads | KEEP_MEMORY | {"PYTHONUNBUFFERED": "1"}
    if device == "cuda":
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(name.removeprefix("cuda-") for name in slots)
    process = subprocess.Popen(
        [sys.executable, "-m", "gptlib.launch", str(run), "--parent", str(os.getpid()), "--ranks", str(hardware.ranks)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,  # Ctrl-C reaches the launcher alone, which then ends its children in order
    )
    return _Child(run, process, log, slots)


def _finish(child: _Child) -> None:
    """Close a child that has ended; without a result it is recorded as failed, with the last line it said."""
    child.log.close()
    if (child.run / "result.json").exists():
        return
    code = child.process.returncode
    reason = child.killed or (f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}")
    lines = (child.run / "stdout.log").read_text(errors="replace").strip().splitlines()
    record_failure(child.run, f"{reason}{': ' + lines[-1].strip() if lines else ''}")


def record_failure(run: Path, error: str) -> None:
    """Write the result of a run that could not write its own."""
    spec, rows = records.read_json(run / "run.json"), records.read_jsonl(run / "metrics.jsonl")
    rows = [row for row in rows if row["attempt"] == spec["attempt"]]
    result = {
        "schema_version": records.SCHEMA_VERSION,
        **{key: spec[key] for key in ("run_id", "seed", "attempt", "fingerprint")},
        "status": "failed",
        "success": False,
        "final_step": rows[-1]["step"] if rows else 0,
        "final_val_loss": None,
        "final_train_loss": None,
        "time_seconds": rows[-1]["train_time_ms"] / 1000 if rows else 0.0,
        "error": error,
    }
    records.write_json(run / "result.json", result)


def launch(runs: Sequence[Path], hardware: HardwareConfig, poll: Callable[[], None] = lambda: None) -> None:
    """Execute prepared run folders (each holds run.json), as many side by side as slots are free.

    Returns when every run has a result.json, failed ones included. `poll` is called about five times a second.
    Whatever ends this function early (an interrupt, an error) ends the children too.
    """
    device = resolve_device(hardware.device)
    slots, waiting, children = Slots(device), list(runs), list[_Child]()
    wanted = hardware.ranks * (hardware.threads if device == "cpu" else 1)
    try:
        while waiting or children:
            while waiting and (held := slots.take(wanted)):
                children.append(_start(waiting.pop(0), hardware, device, held))
            time.sleep(POLL_SECONDS)
            for child in [c for c in children if c.process.poll() is not None]:
                _finish(child)
                slots.give(child.slots)
                children.remove(child)
            for child in children:
                child.watch()
            poll()
    finally:
        for child in children:
            child.stop()
            child.log.close()
            slots.give(child.slots)


# --- inside the child -------------------------------------------------------------------------------------------


def die_with_parent(parent: int | None) -> None:
    """End this process when its parent ends, however that ends. Called before torch is imported.

    Linux: the kernel's parent-death signal, plus a check for a parent that is already gone. Elsewhere: a thread that
    watches the parent's process id.
    """
    if platform.system() == "Linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    else:
        threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
    if os.getppid() != parent if parent is not None else os.getppid() == 1:
        os._exit(1)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def bound_module(module: str) -> list[str]:
    """The start of a command that runs `python -m module` as a process that ends with this one."""
    return [sys.executable, "-m", "gptlib.launch", "--module", str(os.getpid()), module]


def main(arguments: Sequence[str]) -> None:
    """`python -m gptlib.launch RUN --parent PID --ranks N`: the run itself, or torchrun around N of them.

    `python -m gptlib.launch --module PID NAME ...`: any module, bound to its parent.
    """
    if arguments[0] == "--module":
        die_with_parent(int(arguments[1]))
        sys.argv = list(arguments[2:])
        runpy.run_module(arguments[2], run_name="__main__", alter_sys=True)
        return
    run, ranks = Path(arguments[0]), int(arguments[4])
    if ranks == 1:
        die_with_parent(int(arguments[2]))
        from gptlib.train import run_from_folder

        run_from_folder(run)
    elif "RANK" in os.environ and "TORCHELASTIC_RUN_ID" in os.environ:  # a worker; its parent is the agent
        die_with_parent(None)
        from torch.distributed.elastic.multiprocessing.errors import record

        from gptlib.train import run_from_folder

        record(run_from_folder)(run)  # tells the agent why it failed
    else:
        die_with_parent(int(arguments[2]))
        _torchrun(ranks, arguments)


def _torchrun(ranks: int, arguments: Sequence[str]) -> None:
    """Start the ranks of a run; where one fails, exit with its reason as the last line."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(
            ["--standalone", f"--nproc-per-node={ranks}", "--max-restarts=0", "--monitor-interval=0.5", "--module"]
            + ["gptlib.launch", *arguments]
        )
    except ChildFailedError as error:
        # A rank that was killed comes first: the others may have said earlier that they lost it.
        killed = [f for f in error.failures.items() if f[1].exitcode < 0 and f[1].exitcode != -signal.SIGTERM]
        rank, failure = (killed or [error.get_first_failure()])[0]
        said: Any = failure.message  # what `record` has written is a dictionary
        raise SystemExit(f"rank {rank}: {said['message'] if isinstance(said, dict) else said}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
