"""Runs of a baseline that another study has made already: the same fingerprint and seed, so the same numbers."""

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from gptlib import records
from gptlib.study.plan import Plan


def reuse_runs(plan: Plan) -> dict[int, str]:
    """Copy finished runs of `plan`'s fingerprint from elsewhere in its outputs; returns {seed: where it came from}.

    A copy says in its result where it comes from (`reused_from`) and appears under its name only when it is whole. An
    older experiment of other numbers in the plan's place is moved aside first, as it would be before a run.
    """
    wanted = {seed: (index, run) for index, seed, run in plan.pending()}
    taken: dict[int, str] = {}
    for result in sorted(plan.outputs.glob("*/*/*/runs/*/result.json")):
        found, source = _read(result), result.parent
        fits = found.get("fingerprint") == plan.fingerprint and found.get("status") in ("finished", "diverged")
        if not fits or found["seed"] not in wanted or plan.folder in source.parents:
            continue
        if not taken:
            _make_room(plan)
        index, target = wanted.pop(found["seed"])
        if not target.exists():
            origin = str(source.relative_to(plan.outputs))
            _copy(source, target, index, found.get("reused_from", origin))
            taken[found["seed"]] = origin
    return taken


def _read(path: Path) -> dict[str, Any]:
    """A result, empty where another study's cannot be read."""
    with contextlib.suppress(records.RecordError):
        return dict(records.read_json(path))
    return {}


def _make_room(plan: Plan) -> None:
    config = plan.folder / "config.json"
    if config.exists() and records.read_json(config).get("fingerprint") != plan.fingerprint:
        records.move_aside(plan.folder)


def _copy(source: Path, target: Path, index: int, origin: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".reuse-") as scratch:
        copy = Path(scratch) / target.name
        shutil.copytree(source, copy)
        for name in ("run.json", "result.json"):
            records.write_json(copy / name, records.read_json(copy / name) | {"run_id": index, "reused_from": origin})
        rows = [row | {"run_id": index} for row in records.read_jsonl(copy / "metrics.jsonl")]
        records.write_text(copy / "metrics.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
        os.replace(copy, target)
