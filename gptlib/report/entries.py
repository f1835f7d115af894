"""The experiments of a study as their files have them now: finished, begun, or only asked for."""

from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from gptlib import records
from gptlib.config import ConfigError
from gptlib.report.html import MOVED_ASIDE
from gptlib.report.tables import MISSING, half_width, plus_minus
from gptlib.stats.compare import mean_interval
from gptlib.study.hypothesis import Ablation, load_ablation
from gptlib.study.registration import registration
from gptlib.study.studies import load_study


@dataclass(frozen=True)
class Entry:
    """One experiment as its files have it; all is empty where it has none."""

    name: str
    ablation: Ablation | None = None
    status: str = "not run"  # in progress | complete | failed: some runs are
    record: dict[str, Any] = field(default_factory=dict)  # config.json
    summary: dict[str, Any] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[list[dict[str, Any]]] = field(default_factory=list)  # of each run's last attempt

    def change(self) -> str:
        """What was changed, `key old → new`; of an experiment that was not run, what is asked for."""
        found: dict[str, Any] = self.record.get("difference") or {}
        if not found and self.ablation and self.status == "not run":
            return ", ".join(f"{key} {value}" for key, value in self.ablation.change.items())
        return ", ".join(f"{key} {old} → {new}" for key, (old, new) in found.items()) or "none"

    def values(self, key: str) -> list[float]:
        """Of the finished runs that have it."""
        return [run[key] for run in self.results if run["status"] == "finished" and run.get(key) is not None]

    def mean(self, key: str) -> float | None:
        return fmean(self.values(key)) if self.values(key) else None

    def mean_text(self, key: str) -> str:
        """Mean ± half its 95 % interval."""
        interval = mean_interval(self.values(key)) if self.values(key) else None
        return plus_minus(interval.mean, half_width(interval.low, interval.high)) if interval else MISSING


def entries(outputs: Path, study: str, stage: str = "full") -> list[Entry]:
    """The experiments of a study: the baseline, what is asked for, what else has a record. Raises RecordError."""
    place = records.experiment_folder(outputs, study, stage, "baseline").parent
    asked = _asked(outputs, study)
    found = [
        path.parent for path in sorted(place.glob("[!.]*/config.json")) if not MOVED_ASIDE.search(path.parent.name)
    ]
    there = {folder.name: folder for folder in found}
    if not (asked or there):
        raise records.RecordError(f"{place}: no record, and params/studies has no {study}; give a study that there is")
    first = ["baseline"] if asked or "baseline" in there else []
    return [_entry(name, there.get(name), asked.get(name)) for name in dict.fromkeys([*first, *asked, *there])]


def _asked(outputs: Path, study: str) -> dict[str, Ablation]:
    """Ablations by variant, as registered before the first run, else as the file of the study has them."""
    if sealed := registration(outputs, study):
        return {variant: Ablation.model_validate(values) for variant, values in sealed["ablations"].items()}
    try:
        loaded = [load_ablation(name) for name in load_study(study).ablations]
    except ConfigError:
        return {}
    return {ablation.variant: ablation for ablation in loaded}


def _entry(name: str, folder: Path | None, ablation: Ablation | None) -> Entry:
    if folder is None:
        return Entry(name, ablation)
    record, summary = records.read_json(folder / "config.json"), folder / "summary.json"
    runs = [path.parent for path in sorted(folder.glob("runs/*/run.json"))]
    runs = [run for run in runs if records.read_json(run / "run.json").get("fingerprint") == record["fingerprint"]]
    logs = [records.read_jsonl(run / "metrics.jsonl") for run in runs]
    known = records.read_json(summary) if summary.exists() else {}
    results = [records.read_json(run / "result.json") for run in runs if (run / "result.json").exists()]
    last = [[row for row in log if row["attempt"] == log[-1]["attempt"]] for log in logs if log]
    return Entry(name, ablation, str(known.get("status") or "in progress"), record, known, results, last)
