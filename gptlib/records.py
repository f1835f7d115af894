"""The files of a run and of an experiment: where they lie, how they are written and read.

    outputs/<study>/<stage>/<variant>/            one experiment
        config.json hypothesis.json environment.json git_diff.patch experiment.log
        results.jsonl metrics.jsonl metrics.csv summary.json loss_curves.png notebook.ipynb notebook.html
        runs/run_<i>_seed_<seed>/                 one run: run.json stdout.log metrics.jsonl result.json checkpoint/

Plain files are the truth. JSON Lines are appended and flushed line by line (a torn last line is tolerated when
reading); everything else is written beside its place, synced and renamed. An experiment is complete when summary.json
says so, a run when result.json is there: no notebook metadata and no exit code is believed instead.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock
import psutil

from gptlib.config import fingerprint, project_root
from gptlib.fields import EvalConfig, RunConfig

SCHEMA_VERSION = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
# The modules that decide a run's numbers; a change in any of them makes earlier runs another experiment.
NUMERIC_SOURCES = (
    "data/stories.py", "data/corpora.py", "data/tokenizers.py", "data/shards.py", "data/dataset.py", "data/loader.py",
    "data/telling.py", "data/words.py", "data/texts.py", "fields.py", "streams.py", "layers.py", "model.py", "muon.py",
    "optimizers.py", "schedules.py", "device.py", "hellaswag.py", "evaluate.py", "train.py",
)  # fmt: skip


class RecordError(ValueError):
    """A record that cannot be written or used: one line that says which and what to do."""


# --- writing and reading ----------------------------------------------------------------------------------------


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_text(path: Path, text: str, sync: bool = True) -> None:
    """Write `path` whole or not at all: temporary file beside it, fsync, rename. Raises RecordError.

    Without `sync` a power failure may leave it empty: for many files that count only once a later one, written after
    sync_all, is there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RecordError(f"{path}: cannot be written ({error.strerror}); choose another `outputs` folder") from None


def write_json(path: Path, value: Any, sync: bool = True) -> None:
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n", sync)


def sync_all() -> None:
    """Have everything that was written reach the disk, where the system can be asked to."""
    if hasattr(os, "sync"):
        os.sync()


def read_json(path: Path) -> Any:
    """Raises RecordError when the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"{path}: no such record") from None
    except ValueError:
        raise RecordError(f"{path}: not valid JSON; move the folder away and run again") from None


def append_jsonl(path: Path, value: dict[str, Any]) -> None:
    """Append one line and flush it; a line torn off by an earlier crash is closed first, so that it stays alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(value, allow_nan=False).encode() + b"\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All whole lines; lines torn by a crash are left out. An absent file is an empty list."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


# --- places -----------------------------------------------------------------------------------------------------


def experiment_folder(outputs: Path, study: str, stage: str, variant: str) -> Path:
    """outputs/<study>/<stage>/<variant>; raises RecordError for a name that is not a plain file name."""
    for kind, name in (("study", study), ("stage", stage), ("variant", variant)):
        if not NAME.fullmatch(name):
            raise RecordError(f"{kind}={name!r}: use up to 80 letters, digits, '.', '_' or '-'")
    return outputs / study / stage / variant


def run_folder(experiment: Path, index: int, seed: int) -> Path:
    return experiment / "runs" / f"run_{index}_seed_{seed}"


@contextlib.contextmanager
def exclusive(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold `folder` alone. A second taker is refused with the holder's name, or waits if asked to.

    The lock is the operating system's, so it ends with its process, however that ends. Raises RecordError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock")
        lock.acquire(timeout=-1 if wait else 0)
    except filelock.Timeout:
        holder = (folder / ".holder").read_text() if (folder / ".holder").exists() else "another process"
        raise RecordError(f"{folder}: in use by {holder}; wait for it or choose another study or variant") from None
    except OSError as error:
        raise RecordError(f"{folder}: cannot be written ({error.strerror}); choose another `outputs` folder") from None
    try:
        (folder / ".holder").write_text(f"process {os.getpid()} on {socket.gethostname()} since {utc_now()}")
        yield
    finally:
        (folder / ".holder").unlink(missing_ok=True)
        lock.release()


def move_aside(folder: Path) -> Path:
    """Rename `folder` to `<name>.<UTC time>`: an older record is never overwritten."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    target = folder.with_name(f"{folder.name}.{stamp}")
    number = 1
    while target.exists():
        number += 1
        target = folder.with_name(f"{folder.name}.{stamp}-{number}")
    folder.rename(target)
    return target


# --- identity and surroundings ----------------------------------------------------------------------------------


def numeric_source_hash() -> str:
    package = Path(__file__).parent
    return hashlib.sha256(b"".join((package / name).read_bytes() for name in NUMERIC_SOURCES)).hexdigest()[:16]


def hellaswag_path(config: EvalConfig) -> Path:
    if config.hellaswag == "tiny":
        return project_root() / "params" / "data" / "hellaswag_tiny.jsonl"
    return project_root() / Path(config.hellaswag).expanduser()  # an absolute path stays what it is


def experiment_fingerprint(config: RunConfig, dataset_hash: str, device: str) -> str:
    """What decides whether a finished run may be reused, seed aside: numbers, data, numeric code, torch, device.

    Hashes of their content stand for the paths of data and of HellaSwag's file. Raises RecordError where it is missing.
    """
    asked = hellaswag_path(config.eval)
    try:
        questions = hashlib.sha256(asked.read_bytes()).hexdigest()[:16] if config.eval.hellaswag else ""
    except OSError as error:
        raise RecordError(f"{asked}: cannot be read ({error.strerror}); check eval.hellaswag") from None
    return fingerprint(
        {
            "config": config.model_dump(mode="json", exclude={"data": {"path"}, "eval": {"hellaswag"}}),
            "data": dataset_hash,
            "hellaswag": questions,
            "source": numeric_source_hash(),
            "torch": importlib.metadata.version("torch").split("+")[0],
            "device": device,
        }
    )


def environment() -> dict[str, Any]:
    """Machine and package versions; no environment variables, so no secrets."""
    packages = ("torch", "numpy", "scipy", "statsmodels", "pandas", "tokenizers", "tiktoken", "pydantic", "papermill")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpu_names(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "source_hash": numeric_source_hash(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]][:20],
    }


def cpu_name() -> str:
    """The processor's name, as far as the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpu_names() -> list[str]:
    """Names of the NVIDIA GPUs that nvidia-smi sees; no torch, no CUDA context."""
    return _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]).splitlines()


def git_info() -> dict[str, Any]:
    root = str(project_root())
    return {
        "commit": _output(["git", "-C", root, "rev-parse", "HEAD"]).strip() or None,
        "branch": _output(["git", "-C", root, "rev-parse", "--abbrev-ref", "HEAD"]).strip() or None,
        "dirty": bool(_output(["git", "-C", root, "status", "--porcelain"]).strip()),
    }


def git_diff() -> str:
    return _output(["git", "-C", str(project_root()), "diff", "HEAD"])


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
