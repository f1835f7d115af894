"""Other people's logs: the text of a file -> the training runs it tells of. importers.py makes records of them.

Understood: run logs of modded-nanogpt (all tracks and ages) and llm.c, the output of nanoGPT's train.py, CSV, JSON of
an experiment tracker, and JSON Lines. Nothing here touches a file.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

NOTHING = "No validation loss captured: crash before the first validation, or another output format; look at the file"


@dataclass(frozen=True)
class Row:
    """What a log says at one step: losses in nats/token, training time so far and per step in milliseconds."""

    step: int
    val_loss: float | None = None
    train_loss: float | None = None
    train_time_ms: float | None = None
    step_avg_ms: float | None = None


@dataclass(frozen=True)
class Trial:
    """One training run of a log. `name` and `seed` where the log says them; `planned` steps, 0 if not said."""

    rows: tuple[Row, ...]  # by step
    name: str = ""
    seed: int | None = None
    planned: int = 0
    broken: str = ""  # why it has no final loss, as far as the log itself shows

    def validations(self) -> list[Row]:
        return [row for row in self.rows if row.val_loss is not None]

    def timed(self) -> set[tuple[int, float | None, float | None]]:
        """Step, loss and time of every validation, which no two runs have alike; empty where a time is missing."""
        found = {(row.step, row.val_loss, row.train_time_ms) for row in self.validations()}
        return found if all(time is not None for _, _, time in found) else set()


FIELDS = ("val_loss", "train_loss", "train_time_ms", "step_avg_ms")
# Normalised headings and keys of others -> ours. Seconds and milliseconds per step are told by their names.
NAMES = {
    "step": "step iter iteration iterations iter_num iteration_num global_step trainer_global_step steps final_step",
    "val_loss": "val_loss valid_loss validation_loss eval_loss loss_val final_val_loss",
    "train_loss": "train_loss training_loss loss loss_train tr_loss final_train_loss",
    "train_time_ms": "train_time_ms time_ms elapsed_ms wall_time_ms wallclock_ms",
    "train_time_s": "train_time_s time_s time_seconds elapsed elapsed_s elapsed_time elapsed_seconds "
    "wall_time wall_time_s wallclock wallclock_time wallclock_seconds duration_seconds",
    "step_avg_ms": "step_avg_ms step_avg iter_time_ms step_time_ms dt_ms",
    "seed": "seed",
    "run": "run_id run trial",
    "name": "variant experiment_name experiment",
    "attempt": "attempt",
    "success": "success",
}
OURS = {name: ours for ours, names in NAMES.items() for name in names.split()}


def parse(text: str, suffix: str, loss: str = "val_loss") -> list[Trial]:
    """Trials of a file's text; `suffix` (".csv", ".json", ".jsonl" or any other for a log) tells its format.

    `loss` names the loss that counts as validation loss where a file has several ("val_ema_loss"). Raises ValueError
    where there is no validation loss or the format is broken.
    """
    reader = {".csv": parse_csv, ".json": parse_json, ".jsonl": parse_jsonl}.get(suffix, parse_log)
    trials = reader(text, loss)
    if not any(trial.validations() for trial in trials):
        raise ValueError(NOTHING)
    return trials


# --- run logs ---------------------------------------------------------------------------------------------------

BANNER = re.compile(r"^[=-]{40,}[ \t]*$", re.MULTILINE)
SOURCE = re.compile(r"^(import \w|from [\w.]+ import |def \w+\(|class \w+[(:])", re.MULTILINE)
LINE = re.compile(
    r"(?:^|\s)(?:"
    r"step:(?P<step>\d+)/(?P<planned>\d+)(?P<pairs>(?: +\w+:\S+)+)"  # modded-nanogpt
    r"|step (?P<eval>\d+): train loss (?P<train>\S+), val loss (?P<val>\S+)"  # nanoGPT, evaluation
    r"|iter (?P<iter>\d+): loss (?P<loss>\S+), time (?P<ms>[\d.]+)ms"  # nanoGPT, training
    r"|s:(?P<s>\d+) (?P<kind>tel|trl):(?P<value>\S+)"  # llm.c
    r")"
)


def parse_log(text: str, loss: str = "val_loss") -> list[Trial]:
    """Trials of a run log, whatever stands around its lines; embedded source is passed over.

    Where the step starts anew, another trial begins; a resumed run (a step that falls back, but not to the start)
    goes on, its later lines replacing the earlier. A last line without an end counts only if it is whole.
    """
    whole = _whole(text)
    lines = (line for line in _log_lines(whole) if "loss" in line or " tel:" in line or " trl:" in line)
    trials = _split(filter(None, (_entry(line, loss) for line in lines)))
    if trials and whole != text:
        trials[-1] = replace(trials[-1], broken="cut off in the middle of a line")
    return trials


def _log_lines(text: str) -> Iterator[str]:
    """Lines of the parts between banners, each up to where source code begins."""
    for part in BANNER.split(text):
        source = SOURCE.search(part)
        yield from (part[: source.start()] if source else part).splitlines()


def _whole(text: str) -> str:
    """`text` without a last line that was cut: no end, and not the form, to the decimals, of any line before it."""

    def form(line: str) -> str:
        return re.sub(r"\d", "0", re.sub(r"(?<![\d.])\d+", "0", line.strip()))

    before, _, last = text.rpartition("\n")
    if not re.match(r"\s*(step|iter|s)[: ]", last):
        return text
    earlier = {form(line) for line in before.rsplit("\n", 400)[-400:]}
    return before + "\n" if before and form(last) not in earlier else text


def _entry(line: str, loss: str) -> dict[str, Any] | None:
    """What a line says: step, planned, and any of FIELDS; None for other lines and numbers that are none."""
    found = LINE.search(line)
    if not found:
        return None
    part = found.groupdict()
    try:
        if part["pairs"]:
            pairs = dict(pair.split(":", 1) for pair in part["pairs"].split())
            values = {"val_loss": pairs.get(loss), "train_loss": pairs.get("train_loss")}
            times = {"train_time_ms": pairs.get("train_time"), "step_avg_ms": pairs.get("step_avg")}
            entry = {"step": int(part["step"]), "planned": int(part["planned"])}
            return entry | _numbers(values) | {key: ms for key, time in times.items() if (ms := _milliseconds(time))}
        if part["eval"]:
            return {"step": int(part["eval"])} | _numbers({"train_loss": part["train"], "val_loss": part["val"]})
        if part["iter"]:
            return {"step": int(part["iter"])} | _numbers({"train_loss": part["loss"], "step_avg_ms": part["ms"]})
        key = "val_loss" if part["kind"] == "tel" else "train_loss"
        return {"step": int(part["s"])} | _numbers({key: part["value"]})
    except ValueError:
        return None


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The values that are there, as numbers; nan and infinities are numbers here. Raises ValueError for others."""
    return {key: float(value) for key, value in values.items() if value is not None and value != ""}


def _milliseconds(text: str | None) -> float | None:
    """`79532ms` or `503.169s`; None where it is missing or nan (before the first step there is no mean)."""
    value = float(text.removesuffix("ms").removesuffix("s")) if text else math.nan
    return None if not math.isfinite(value) else value if text and text.endswith("ms") else round(1000 * value, 6)


def _split(entries: Iterable[dict[str, Any]]) -> list[Trial]:
    trials: list[list[dict[str, Any]]] = []
    for entry in entries:
        last = trials[-1][-1] if trials else None
        first = trials[-1][0]["step"] if trials else 0
        again = last is not None and (entry["step"] < last["step"] or ("val_loss" in entry and "val_loss" in last))
        if last is None or (again and entry["step"] <= first):
            trials.append([])
        trials[-1].append(entry)
    return [_trial(entries) for entries in trials]


def _trial(entries: Sequence[dict[str, Any]], **said: Any) -> Trial:
    """Entries joined by step, the later before the earlier, but what a validation says before a training line."""
    steps: dict[int, dict[str, Any]] = {}
    for entry in entries:
        known = steps.get(entry["step"], {})
        steps[entry["step"]] = {**entry, **known} if "val_loss" in known and "val_loss" not in entry else known | entry
    rows = tuple(Row(step, **{k: v for k, v in steps[step].items() if k in FIELDS}) for step in sorted(steps))
    return Trial(rows, planned=max((e.get("planned", 0) for e in entries), default=0), **said)


# --- tables and JSON --------------------------------------------------------------------------------------------


def parse_csv(text: str, loss: str = "val_loss") -> list[Trial]:
    """Trials of a table with a step column and any loss; columns of run, seed or variant tell trials apart.

    Raises ValueError where there is no step column or a number is none; names the line.
    """
    heading = text.split("\n", 1)[0]
    rows = list(csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=heading.count)))
    torn = bool(rows) and None in rows[-1].values()
    return join(rows[:-1] if torn else rows, loss, "line", 2, torn)


def parse_jsonl(text: str, loss: str = "val_loss") -> list[Trial]:
    """Trials of a metrics.jsonl, of 001's form or our own. Raises ValueError for a broken line but the last."""
    rows: list[Any] = []
    lines, torn = [line for line in text.splitlines() if line.strip()], False
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            torn = number == len(lines)
            if not torn:
                raise ValueError(f"line {number}: not JSON; mend or delete the line") from None
    return join(rows, loss, "line", 1, torn)


def parse_json(text: str, loss: str = "val_loss") -> list[Trial]:
    """The trial of an experiment tracker's file: `config`, lists or columns of metrics, summary values.

    Any list of mappings with a step or iteration, or mapping of equally long lists, counts as a metric history.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not JSON ({error}); cut off, or another format") from None
    if isinstance(content, list):
        return join(content, loss, "entry", 1)
    if not isinstance(content, dict):
        raise ValueError(NOTHING)
    rows = [row for value in content.values() for row in _history(value)]
    config = content["config"] if isinstance(content.get("config"), dict) else {}
    said = {
        "experiment_name": config.get("experiment_name", content.get("experiment_name")),
        "seed": config.get("seed"),
    }
    said = {key: value for key, value in said.items() if value is not None}
    if rows and isinstance(content.get("duration_seconds"), int | float):
        rows[-1] = {"duration_seconds": content["duration_seconds"]} | rows[-1]
    return [replace(trial, planned=_planned(config)) for trial in join([said | r for r in rows], loss, "entry", 1)]


def _planned(config: Mapping[str, Any]) -> int:
    """The last step, counted from 0, that a tracker's configuration asks for; 0 where it does not say."""
    steps = config.get("max_iters")
    return steps - 1 if isinstance(steps, int) and steps > 0 else 0


def _history(value: Any) -> list[dict[str, Any]]:
    """Rows of a metric history inside a tracker's file; empty for anything else."""
    if isinstance(value, dict) and any(isinstance(column, list) for column in value.values()):
        columns = {key: column for key, column in value.items() if isinstance(column, list)}
        if {OURS.get(_plain(key)) for key in columns} >= {"step"}:
            return [dict(zip(columns, row, strict=False)) for row in zip(*columns.values(), strict=False)]
        return [row for column in columns.values() for row in _history(column)]
    rows = value if isinstance(value, list) else []
    return [row for row in rows if isinstance(row, dict) and any(OURS.get(_plain(key)) == "step" for key in row)]


def _plain(heading: Any) -> str:
    return re.sub(r"[^a-z0-9]+", "_", str(heading).strip().lstrip("\ufeff").lower()).strip("_")


def join(
    rows: Sequence[Any], loss: str = "val_loss", place: str = "row", first: int = 1, torn: bool = False
) -> list[Trial]:
    """Trials of rows with foreign headings, told apart by name and run, or seed; the last attempt of each counts.

    Rows of final results and of metrics may stand together. `torn`: a broken row followed. Raises ValueError for a
    row without a step or with a number that is none, as `place` and its number from `first`.
    """
    trials: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for number, row in enumerate(rows, first):
        if not isinstance(row, Mapping):
            raise ValueError(f"{place} {number}: not a mapping of names to values")
        entry = _foreign(row, loss, f"{place} {number}")
        key = str(entry.get("name", "")), str(entry.get("run", entry.get("seed")))
        trials.setdefault(key, []).append(entry)
    found = []
    for entries in trials.values():
        attempt = max(entry.get("attempt", 0) for entry in entries)
        rest = [entry for entry in entries if entry.get("attempt", 0) == attempt]
        said = {str(entry["success"]).lower() for entry in rest if "success" in entry}
        cut = "its last row is broken off" if torn and entry in entries and not said else ""
        broken = "said to have failed" if "false" in said else cut
        seed = next((entry["seed"] for entry in rest if "seed" in entry), None)
        found.append(_trial(rest, broken=broken, name=str(rest[0].get("name", "")), seed=seed))
    return found


def _foreign(row: Mapping[Any, Any], loss: str, place: str) -> dict[str, Any]:
    """One row under our names, blanks left out. Raises ValueError naming `place`."""
    entry: dict[str, Any] = {}
    for key, value in row.items():
        ours = "val_loss" if _plain(key) == _plain(loss) else OURS.get(_plain(key))
        if ours == "val_loss" and loss != "val_loss" and _plain(key) != _plain(loss):
            continue
        if ours and value is not None and value != "" and ours not in entry:
            entry[ours] = value
    if "step" not in entry:
        known = ", ".join(map(str, list(row)[:8]))
        raise ValueError(f"{place}: no step or iteration among {known}; name the column 'step'")
    try:
        numbers = _numbers({key: entry[key] for key in (*FIELDS, "train_time_s") if key in entry})
        whole = {key: int(float(entry[key])) for key in ("step", "seed", "attempt") if key in entry}
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{place}: {error}; losses, times, steps and seeds are numbers") from None
    if "train_time_s" in numbers:
        numbers.setdefault("train_time_ms", 1000 * numbers["train_time_s"])
    kept = {key: entry[key] for key in ("name", "run", "success") if key in entry}
    return kept | whole | {key: numbers[key] for key in FIELDS if key in numbers}
