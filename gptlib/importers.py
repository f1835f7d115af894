"""Records of other people's runs: log files grouped into experiments under outputs/imported/<stage>/<variant>/.

They have the form of our own (records.py), so that they are read, compared and drawn alike; config.json holds
`imported_from` instead of a fingerprint, so no plan takes them for its own. logs.py reads the files.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from gptlib import records
from gptlib.logs import FIELDS, NOTHING, Row, Trial, join, parse
from gptlib.study.experiment import run_statistics

STUDY = "imported"
SUFFIXES = (".txt", ".log", ".out", ".stdout", ".csv", ".json", ".jsonl")
FULL_LENGTH = 0.9  # a run that ended before this share of its steps has no final loss
# Folders that hold runs of the experiment above them, one each or all together.
RUN_FOLDER = re.compile(r"(seed|run|trial)[-_]?\d.*|(code[-_]?)?logs?|stdout|runs", re.IGNORECASE)
SEED = re.compile(r"seed[-_ =:]{0,2}(\d{1,9})(?!\d)", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """A file that may be a log, and the experiment it belongs to unless it names one itself."""

    path: Path
    shown: str  # from the folder that was given, so without the machine's part of the path
    stage: str
    variant: str


@dataclass(frozen=True)
class Skipped:
    source: str
    reason: str


@dataclass
class Group:
    """The runs of one experiment and the files they are from."""

    trials: list[Trial] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)  # name: sha256
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Imported:
    """What an import has written: folders with their numbers of runs, files that hold runs, files that do not."""

    folders: dict[Path, int]
    files: int
    skipped: list[Skipped]
    notes: list[str]


def import_logs(paths: Sequence[Path], outputs: Path, name: str = "", loss: str = "val_loss") -> Imported:
    """Read the logs among `paths` (files, and folders with everything below) and write a record of each experiment.

    A folder of logs is one experiment and its logs are the runs; a file given by itself, or one that names its
    experiment, is an experiment of its own. `name` ("stage/variant", or a variant) makes one of everything. `loss` is
    the loss to judge by. An older record in the same place is moved aside. Raises ValueError where nothing could be
    imported, RecordError where the place cannot be written.
    """
    groups: dict[tuple[str, str], Group] = {}
    skipped, count = [], 0
    for source in sources(paths):
        try:
            trials = read(source.path, loss)
        except ValueError as error:
            skipped.append(Skipped(source.shown, str(error)))
            continue
        count += 1
        for trial in trials:
            group = groups.setdefault(place(source, trial, name), Group())
            group.trials.append(trial)
            group.files[source.shown] = hashlib.sha256(source.path.read_bytes()).hexdigest()
    if not groups:
        first = "; ".join(f"{s.source}: {s.reason}" for s in skipped[:3]) or "no file of a known kind"
        raise ValueError(f"nothing imported from {', '.join(map(str, paths))} ({first}); kinds: {' '.join(SUFFIXES)}")
    folders, notes = {}, list[str]()
    for (stage, variant), group in groups.items():
        folder = records.experiment_folder(outputs, STUDY, stage, variant)
        prepared = without_copies(group)
        write(folder, prepared, loss)
        folders[folder] = len(prepared.trials)
        notes += [f"{stage}/{variant}: {note}" for note in prepared.notes]
    return Imported(folders, count, skipped, notes)


# --- files ------------------------------------------------------------------------------------------------------


def sources(paths: Iterable[Path]) -> Iterator[Source]:
    """Files to read, in a fixed order. Raises ValueError for a path that is not there."""
    for given in paths:
        if given.is_file():
            top = given.resolve().parent
            variant = given.stem if given.name != "results.jsonl" else top.name
            yield Source(given, f"{top.name}/{given.name}", plain(top.name), plain(variant))
        elif given.is_dir():
            yield from _below(given.resolve())
        else:
            raise ValueError(f"{given}: no such file or folder; name logs, or folders that hold them")


def _below(top: Path) -> Iterator[Source]:
    whole = {path.parent for path in top.rglob("results.jsonl")}  # experiments: results.jsonl says all that is below
    for path in sorted(top.rglob("*")):
        inside = path.relative_to(top)
        if not path.is_file() or path.suffix.lower() not in SUFFIXES or any(p.startswith(".") for p in inside.parts):
            continue
        if path.name != "results.jsonl" and whole & {path.parent, *path.parents}:
            continue
        folder = list(inside.parent.parts)
        while folder and RUN_FOLDER.fullmatch(folder[-1]):
            folder.pop()
        stage, variant = (top.name, ".".join(folder)) if folder else (top.parent.name, top.name)
        yield Source(path, f"{top.name}/{inside.as_posix()}", plain(stage), plain(variant))


def plain(name: str) -> str:
    """`name` as the name of a folder of records: at most 80 letters, digits, '.', '_' and '-'."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip("._-") or "logs"
    return name if len(name) <= 80 else f"{name[:71]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def place(source: Source, trial: Trial, name: str) -> tuple[str, str]:
    """Stage and variant of a trial's experiment. RecordError of a bad `name` comes from experiment_folder."""
    stage, _, variant = name.rpartition("/")
    return stage or source.stage, variant or (plain(trial.name) if trial.name else source.variant)


def read(path: Path, loss: str = "val_loss") -> list[Trial]:
    """Trials of a file, with the seed that its name or its folder's says; results.jsonl brings metrics.jsonl along.

    Raises ValueError where it holds no validation loss or cannot be read.
    """
    try:
        if path.name == "results.jsonl":
            rows = records.read_jsonl(path) + records.read_jsonl(path.with_name("metrics.jsonl"))
            trials = join(rows, loss)
            if not any(trial.validations() for trial in trials):
                raise ValueError(NOTHING)
            return trials
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))  # what PowerShell's > writes
    text = (
        content.decode("utf-16" if utf16 else "utf-8-sig", errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    )
    trials = parse(text, path.suffix.lower(), loss)
    said = SEED.search(path.stem) or SEED.search(path.parent.name)
    if said and len(trials) == 1 and trials[0].seed is None:
        trials = [replace(trials[0], seed=int(said[1]))]
    return trials


def without_copies(group: Group) -> Group:
    """`group` without logs that repeat another's run (a script's log and its standard output), which would count twice.

    A log repeats another if all its validations, with their times, stand there; of equals the one with a seed stays.
    """
    kept: list[Trial] = []
    order = sorted(group.trials, key=lambda t: (len(t.validations()), t.seed is not None), reverse=True)
    known: dict[Any, list[set[Any]]] = {}
    for trial in order:
        identity = trial.identity()
        if identity and any(identity <= other for other in known.get(max(identity, key=str), [])):
            continue
        for point in identity:
            known.setdefault(point, []).append(identity)
        kept.append(trial)
    copies = len(group.trials) - len(kept)
    kept = [trial for trial in group.trials if any(trial is other for other in kept)]  # in the order of the files
    notes = group.notes + ([f"{copies} logs repeat the run of another and are left out"] if copies else [])
    return Group(kept, group.files, notes)


# --- records ----------------------------------------------------------------------------------------------------


def write(folder: Path, group: Group, loss: str) -> None:
    """Write the record of an experiment, summary.json last.

    A record of exactly these files stays; another one in the place is moved aside. Raises RecordError.
    """
    trials, known = numbered(group.trials)
    longest = max(trial.rows[-1].step for trial in trials.values())
    results = [
        {"schema_version": records.SCHEMA_VERSION, "run_id": index, "seed": seed, "attempt": 1}
        | outcome(trial, longest)
        for index, (seed, trial) in enumerate(trials.items())
    ]
    ends = Counter(result["final_step"] for result in results if result["success"])
    if len(ends) > 1:
        steps = ", ".join(f"{step} ({runs})" for step, runs in sorted(ends.items()))
        group.notes.append(f"the runs end at different steps: {steps}; `gptlib compare --step` takes all at one")
    group.notes.extend(f"run of seed {r['seed']} {r['status']}: {r['error']}" for r in results if r.get("error"))
    config: dict[str, Any] = {
        "imported_from": [{"file": file, "sha256": digest} for file, digest in group.files.items()],
        "loss": loss,
        "seeds": list(trials),
        "seeds_known": known,
        "notes": group.notes,
        "config": {},
    }
    with records.exclusive(folder.parent / f".{folder.name}"):
        if (folder / "summary.json").exists() and records.read_json(folder / "config.json") == config:
            return
        if folder.exists():
            records.move_aside(folder)
        records.write_json(folder / "config.json", config)
        _write_runs(folder, results, list(trials.values()))
        records.write_json(folder / "summary.json", summary(folder, results))


def numbered(trials: Sequence[Trial]) -> tuple[dict[int, Trial], bool]:
    """{seed: trial}, and whether the seeds are those of the logs; numbers from 0 unless every log has its own."""
    seeds = [trial.seed for trial in trials]
    if None in seeds or len(set(seeds)) < len(seeds):
        return dict(enumerate(trials)), False
    return {trial.seed: trial for trial in sorted(trials, key=lambda t: t.seed or 0) if trial.seed is not None}, True


def outcome(trial: Trial, longest: int) -> dict[str, Any]:
    """What result.json says of a run: finished, diverged (at its first loss that is no number), or failed, and why.

    A run ends with its last validation. It has failed if its log was cut or tells of a failure, or if it ended before
    FULL_LENGTH of its steps: those it planned, else those of the `longest` run beside it.
    """
    wrong = [
        r.step for r in trial.rows if any(x is not None and not math.isfinite(x) for x in (r.val_loss, r.train_loss))
    ]
    seen = [row for row in trial.validations() if row.val_loss is not None and math.isfinite(row.val_loss)]
    last, times = trial.rows[-1], [row.train_time_ms for row in trial.rows if row.train_time_ms is not None]
    end = seen[-1].step if seen and not wrong else last.step
    error = trial.broken
    if not error and not wrong and end < FULL_LENGTH * (trial.planned or longest):
        error = f"ended at step {end} of {trial.planned or longest}"
    status = "diverged" if wrong else "failed" if error else "finished"
    losses = [row.train_loss for row in trial.rows if row.train_loss is not None and math.isfinite(row.train_loss)]
    result = {
        "status": status,
        "success": status == "finished",
        "final_step": end,
        "planned_steps": trial.planned or None,
        "final_val_loss": seen[-1].val_loss if status == "finished" else None,
        "final_train_loss": losses[-1] if losses else None,
        "best_val_loss": min((row.val_loss for row in seen if row.val_loss is not None), default=None),
        "time_seconds": max(times) / 1000 if times else None,
    }
    return result | ({"diverged_at": wrong[0]} if wrong else {}) | ({"error": error} if error else {})


def _write_runs(folder: Path, results: Sequence[dict[str, Any]], trials: Sequence[Trial]) -> None:
    """Files of the runs and those that gather them."""
    rows = []
    for result, trial in zip(results, trials, strict=True):
        run = records.run_folder(folder, result["run_id"], result["seed"])
        lines = [{key: result[key] for key in ("run_id", "seed", "attempt")} | _finite(row) for row in trial.rows]
        records.write_text(run / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        records.write_json(run / "result.json", result)
        rows += [{"variant": folder.name} | line for line in lines]
    frame = pd.DataFrame(rows, columns=["variant", "run_id", "seed", "attempt", "step", *FIELDS])
    records.write_text(folder / "results.jsonl", "".join(json.dumps(result) + "\n" for result in results))
    records.write_text(folder / "metrics.jsonl", frame.to_json(orient="records", lines=True))
    records.write_text(folder / "metrics.csv", frame.to_csv(index=False))


def _finite(row: Row) -> dict[str, Any]:
    """The row's values that are numbers, JSON's."""
    return {key: value for key, value in asdict(row).items() if value is not None and math.isfinite(value)}


def summary(folder: Path, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What summary.json says: the statistics of our own records; what only our own runs know is empty."""
    stage, variant = folder.parent.name, folder.name
    return {
        "schema_version": records.SCHEMA_VERSION,
        "experiment_name": f"{STUDY}/{stage}/{variant}",
        "study": STUDY,
        "stage": stage,
        "variant": variant,
        "status": "failed" if any(result["status"] == "failed" for result in results) else "complete",
        "start_time": None,
        "end_time": records.utc_now(),
        "fingerprint": None,
        "seeds": [result["seed"] for result in results],
        "difference": {},
        "hypothesis": None,
        "statistics": run_statistics(results),
        "comparison": None,
        "git_info": {},
        "gpu_info": {},
    }
