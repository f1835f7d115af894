"""Pre-registration: what a study asks and how it will judge, sealed before its first run; what a stage may claim.

outputs/<study>/registration.json holds the study and its ablations as they were when it was first asked for, their
hash, the commit and the time. What differs later is listed there as a deviation, and no analysis that knows of one
calls itself confirmatory. decision.json is written by the staged runner alone.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gptlib import records
from gptlib.config import flatten
from gptlib.study.hypothesis import Ablation
from gptlib.study.plan import Plan
from gptlib.study.studies import ROLES, Study

# What the study's money is and what a run costs: it decides whether a stage starts, never what is claimed.
MONEY = ("budget_dollars", "reserve_dollars", "minutes_per_run", "dollars_per_run")


def register(study: Study, ablations: Iterable[Ablation], folder: Path) -> list[str]:
    """Seal a study before its first run; returns how it deviates from what was sealed with results there already.

    Another base or other overrides are another study: its registration is moved aside, as its records are.
    """
    path = folder / "registration.json"
    content = {
        "study": study.model_dump(mode="json", exclude={"notebooks_at_once", "profiles"}),
        "ablations": {ablation.variant: ablation.model_dump(mode="json") for ablation in ablations},
    }
    seal = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    first = _read(path) or {}
    if first and any(first["study"][key] != content["study"][key] for key in ("base", "overrides")):
        for old in (path, folder / "decision.json"):
            if old.exists():
                records.move_aside(old)
        first = {}
    if not first or not any(folder.glob("*/*/runs/*/result.json")):
        stamp = {"sha256": seal, "registered": records.utc_now(), "git": records.git_info(), "deviations": []}
        records.write_json(path, stamp | content)
        return []
    deviations = list(dict.fromkeys([*first["deviations"], *_deviations(first, content)]))
    if deviations != first["deviations"]:
        records.write_json(path, first | {"deviations": deviations})
    return deviations


def registration(outputs: Path, study: str) -> dict[str, Any] | None:
    """The registration of a study; None for experiments that belong to none."""
    return _read(outputs / study / "registration.json")


def decision(outputs: Path, study: str) -> dict[str, Any] | None:
    """What a staged study has decided so far; None before its first decision."""
    return _read(outputs / study / "decision.json")


def _read(path: Path) -> dict[str, Any] | None:
    return records.read_json(path) if path.exists() else None


def role(outputs: Path, study: str, stage: str) -> str:
    """`screen`, `check` or `race` for a stage of a staged study, else empty: only the last claims by itself."""
    sealed = registration(outputs, study)
    return ROLES.get(stage, "") if sealed and sealed["study"].get("stages") else ""


def staged_verdict(plan: Plan) -> dict[str, Any] | None:
    """What may be said of an experiment of a staged study, as fields of a Comparison; None where there are no stages.

    Screen and check make no claim; the race makes its own, once it has ended with exactly the seeds of `plan`. Its p is
    one-sided at the study's alpha, so its interval is one of 1 - 2 alpha: `alpha` here is that of the interval.
    """
    part, sealed = role(plan.outputs, plan.study, plan.stage), registration(plan.outputs, plan.study)
    if not part or sealed is None:
        return None
    decided = decision(plan.outputs, plan.study) or {"claims": [], "rule": sealed["study"]["stages"]}
    fields = {"test": part, "alpha": 2 * decided["rule"]["alpha"]}  # one-sided tests; that in use, not the sealed
    for claim in decided["claims"] if part == "race" else ():
        if claim["variant"] == plan.variant and claim["seeds"] == len(plan.seeds):
            return fields | {key: claim[key] for key in ("difference", "low", "high", "p_value", "verdict", "reason")}
    said = "the race goes on" if part == "race" else f"a {part} makes no claim, its seeds only say what goes on"
    return fields | {"verdict": "undecided", "reason": f"{said}; see decision.json"}


def _deviations(first: dict[str, Any], content: dict[str, Any]) -> Iterator[str]:
    """What was sealed and what is asked for now, a line for each that differs; a whole ablation is one line."""
    common = set(first["ablations"]) & set(content["ablations"])
    for name in {**first["ablations"], **content["ablations"]}:
        if name not in common:
            yield f"ablations.{name}: {'added' if name in content['ablations'] else 'left out'}"
    old, new = (
        flatten({"study": values["study"], "ablations": {name: values["ablations"][name] for name in common}})
        for values in (first, content)
    )
    for key in {**old, **new}:
        if old.get(key) != new.get(key) and key.split(".")[-1] not in MONEY:
            yield f"{key}: registered {old.get(key)}, now {new.get(key)}"
