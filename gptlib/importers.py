"""Records of other people's runs: log files grouped into experiments under outputs/imported/<stage>/<variant>/.

They have the form of our own (records.py), so that they are read, compared and drawn alike; config.json holds
`imported_from` instead of a fingerprint, so no plan takes them for its own. logs.py reads the files.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Run:
    """A trial and the file it is from."""

    trial: Trial
    file: str
    sha256: str


@dataclass(frozen=True)
class Imported:
    """What an import has written: folders with their numbers of runs, files that hold runs, files that do not."""

    folders: dict[Path, int]
    files: int
    skipped: list[Skipped]
    notes: list[str]


def import_logs(paths: Sequence[Path], outputs: Path, name: str = "", loss: str = "val_loss") -> Imported:
    """Read the logs among `paths` (files, and folders with everything below) and write a record of each experiment.

    A folder of logs is one experiment and its logs are the runs, but runs planned for different numbers of steps are
    different experiments; a file given by itself, or one that names its experiment, is an experiment of its own.
    `name` ("stage/variant", or a variant) makes one of everything. `loss` is the loss to judge by. An older record in
    the same place is moved aside. Raises ValueError where nothing could be imported, RecordError where the place
    cannot be written.
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    skipped, count = [], 0
    for source in sources(paths):
        try:
            trials = read(source.path, loss)
        except ValueError as error:
            skipped.append(Skipped(source.shown, str(error)))
            continue
        count += 1
        digest = hashlib.sha256(source.path.read_bytes()).hexdigest()
        for trial in trials:
            groups.setdefault(place(source, trial, name), []).append(Run(trial, source.shown, digest))
    if not groups:
        first = "; ".join(f"{s.source}: {s.reason}" for s in skipped[:3]) or f"no file of a known kind: {SUFFIXES}"
        raise ValueError(f"{', '.join(map(str, paths))}: nothing imported ({first})")
    groups = groups if name else by_length(groups)
    places = [records.experiment_folder(outputs, STUDY, *key) for key in groups]  # before anything is written
    experiments, notes = {}, list[str]()
    with records.exclusive(outputs / STUDY):
        for folder, runs in zip(places, groups.values(), strict=True):
            kept, said = without_copies(runs)
            experiments[folder] = results = write(folder, kept, loss)
            notes += [f"{folder.parent.name}/{folder.name}: {note}" for note in said + remarks(results)]
        records.sync_all()  # once: thousands of files, each on its own, are minutes on a busy disk
        for folder, results in experiments.items():
            records.write_json(folder / "summary.json", summary(folder, results))
    return Imported({folder: len(results) for folder, results in experiments.items()}, count, skipped, notes)


def by_length(groups: Mapping[tuple[str, str], list[Run]]) -> dict[tuple[str, str], list[Run]]:
    """`groups` with those parted whose runs were planned for different numbers of steps: `<variant>.<n>-steps`."""
    parted: dict[tuple[str, str], list[Run]] = {}
    for (stage, variant), runs in groups.items():
        several = len({run.trial.planned for run in runs} - {0}) > 1
        for run in runs:
            part = plain(f"{variant}.{run.trial.planned}-steps") if several and run.trial.planned else variant
            parted.setdefault((stage, part), []).append(run)
    return parted


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


def without_copies(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """`runs` without logs that repeat another's (a script's log and its standard output), and a note of how many.

    A log repeats another file's if all its validations stand there with their times to the digit (equal losses alone
    may be chance, or the same seed again); of equals the one with a seed stays.
    """
    order = sorted(runs, key=lambda run: (len(run.trial.validations()), run.trial.seed is not None), reverse=True)
    kept: list[Run] = []
    holders: dict[Any, list[Run]] = {}  # a validation: the runs that have it
    for run in order:
        timed = run.trial.timed()
        alike = holders.get(next(iter(timed)), []) if timed else []
        if any(timed <= other.trial.timed() and other.file != run.file for other in alike):
            continue
        for validation in timed:
            holders.setdefault(validation, []).append(run)
        kept.append(run)
    copies = len(runs) - len(kept)
    notes = [f"{copies} logs repeat the run of another and are left out"] if copies else []
    stay = set(map(id, kept))
    return [run for run in runs if id(run) in stay], notes


# --- records ----------------------------------------------------------------------------------------------------


def write(folder: Path, runs: Sequence[Run], loss: str) -> list[dict[str, Any]]:
    """Write the record of an experiment but its summary.json, and return the results of its runs.

    A finished record of exactly these runs stays; another one in the place is moved aside. Raises RecordError.
    """
    seeds, known = numbered([run.trial for run in runs])
    runs = [run for _, run in sorted(zip(seeds, runs, strict=True), key=lambda pair: pair[0])]
    longest = max(run.trial.rows[-1].step for run in runs)
    results = [
        {"schema_version": records.SCHEMA_VERSION, "run_id": index, "seed": seed, "attempt": 1, "file": run.file}
        | outcome(run.trial, longest)
        for index, (seed, run) in enumerate(zip(sorted(seeds), runs, strict=True))
    ]
    files = {run.file: run.sha256 for run in runs}
    config: dict[str, Any] = {
        "imported_from": [{"file": file, "sha256": digest} for file, digest in files.items()],
        "loss": loss,
        "seeds": sorted(seeds),
        "seeds_known": known,
        "notes": remarks(results),
        "config": {},
    }
    if not (folder / "summary.json").exists() or records.read_json(folder / "config.json") != config:
        if folder.exists():
            records.move_aside(folder)
        records.write_json(folder / "config.json", config, sync=False)
        _write_runs(folder, results, [run.trial for run in runs])
    return results


def numbered(trials: Sequence[Trial]) -> tuple[list[int], bool]:
    """A seed for each trial, and whether they are those of the logs: numbers from 0 unless each log says its own."""
    said = [trial.seed for trial in trials if trial.seed is not None]
    known = len(said) == len(trials) == len(set(said))
    return (said if known else list(range(len(trials)))), known


def remarks(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the statistics of the runs do not show: runs without a final loss, and runs that end at different steps."""
    lost = [f"{r['file']}: {r['status']}, {r['error']}" for r in results if r.get("error")]
    ends = Counter(result["final_step"] for result in results if result["success"])
    steps = ", ".join(f"{step} ({count} runs)" for step, count in sorted(ends.items()))
    return lost + (
        [f"final losses at steps {steps}; `gptlib compare --step` takes all at one"] if len(ends) > 1 else []
    )


def outcome(trial: Trial, longest: int) -> dict[str, Any]:
    """What result.json says of a run: finished, diverged (at its first loss that is no number), or failed, and why.

    A run ends with its last validation. It has failed if its log was cut or tells of a failure, or if it ended before
    FULL_LENGTH of its steps: those it planned, else those of the `longest` run beside it.
    """
    wrong = next((row.step for row in trial.rows if _is_wrong(row.val_loss) or _is_wrong(row.train_loss)), None)
    seen = [(row.step, row.val_loss) for row in trial.rows if row.val_loss is not None and math.isfinite(row.val_loss)]
    trained = [row.train_loss for row in trial.rows if row.train_loss is not None and math.isfinite(row.train_loss)]
    times = [row.train_time_ms for row in trial.rows if row.train_time_ms is not None]
    end, steps = (seen[-1][0] if seen and wrong is None else trial.rows[-1].step), trial.planned or longest
    if wrong is not None:
        error = f"at step {wrong} the loss is not a number"
    elif not seen:
        error = trial.broken or NOTHING
    else:
        error = trial.broken or (f"ended at step {end} of {steps}" if end < FULL_LENGTH * steps else "")
    result: dict[str, Any] = {
        "status": "finished" if not error else "failed" if wrong is None else "diverged",
        "success": not error,
        "final_step": end,
        "planned_steps": trial.planned or None,
        "final_val_loss": None if error else seen[-1][1],
        "final_train_loss": trained[-1] if trained else None,
        "best_val_loss": min((loss for _, loss in seen), default=None),
        "time_seconds": max(times) / 1000 if times else None,
    }
    return result | ({"error": error} if error else {}) | ({} if wrong is None else {"diverged_at": wrong})


def _is_wrong(loss: float | None) -> bool:
    return loss is not None and not math.isfinite(loss)


def _write_runs(folder: Path, results: Sequence[dict[str, Any]], trials: Sequence[Trial]) -> None:
    """Files of the runs and those that gather them."""
    rows = []
    for result, trial in zip(results, trials, strict=True):
        run = records.run_folder(folder, result["run_id"], result["seed"])
        lines = [{key: result[key] for key in ("run_id", "seed", "attempt")} | _finite(row) for row in trial.rows]
        records.write_text(run / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines), sync=False)
        records.write_json(run / "result.json", result, sync=False)
        rows += [{"variant": folder.name} | line for line in lines]
    frame = pd.DataFrame(rows, columns=["variant", "run_id", "seed", "attempt", "step", *FIELDS])
    records.write_text(folder / "results.jsonl", "".join(json.dumps(result) + "\n" for result in results), sync=False)
    records.write_text(folder / "metrics.jsonl", frame.to_json(orient="records", lines=True), sync=False)
    records.write_text(folder / "metrics.csv", frame.to_csv(index=False), sync=False)


def _finite(row: Row) -> dict[str, Any]:
    """The row's values that are numbers, JSON's."""
    values = {key: getattr(row, key) for key in ("step", *FIELDS)}
    return {key: value for key, value in values.items() if value is not None and math.isfinite(value)}


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
        "end_time": None,
        "imported": records.utc_now(),
        "fingerprint": None,
        "seeds": [result["seed"] for result in results],
        "difference": {},
        "hypothesis": None,
        "statistics": run_statistics(results),
        "comparison": None,
        "git_info": {},
        "gpu_info": {},
    }
