"""Bare papermill does the whole job of an ablation: no runner of ours around it."""

import json
import os
import subprocess
import sys

import nbformat
import pytest

from gptlib import records
from gptlib.config import project_root

NOTEBOOK = project_root() / "notebooks" / "20_ablations.ipynb"
GELU = project_root() / "params" / "ablations" / "gelu.yaml"


@pytest.fixture(scope="module")
def papermill(tmp_path_factory, dataset_path, overrides):
    """Executes the notebook with tiny runs; returns the process, the executed copy and the records."""
    folder = tmp_path_factory.mktemp("papermill")
    (folder / "outputs").mkdir()
    (folder / "outputs" / "data").symlink_to(dataset_path.parent)
    parameters = json.dumps({"overrides": overrides})

    def run(name, *arguments, cwd):
        copy = folder / f"{name}.ipynb"
        command = [sys.executable, "-m", "papermill", str(NOTEBOOK), str(copy), "--kernel", "python3"]
        command += ["-y", parameters, "-p", "outputs", str(folder / "outputs"), *arguments]
        environment = os.environ | {"TMPDIR": str(folder)}
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
        return done, copy, folder / "outputs" / "adhoc" / "full"

    return run


@pytest.fixture(scope="module")
def first(papermill):
    return papermill("first", "-f", str(GELU), cwd=project_root())


def written(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def texts(copy):
    """Everything that the cells of an executed copy have printed or shown as text."""
    outputs = [o for cell in nbformat.read(copy, as_version=4).cells for o in cell.get("outputs", [])]
    assert not [o for o in outputs if o.output_type == "error"]
    return "".join(o.get("text", "") + "".join(o.get("data", {}).get("text/markdown", "")) for o in outputs)


def test_one_call_leaves_the_complete_record(first):
    done, copy, records_of = first
    assert done.returncode == 0, done.stderr
    for variant in ("baseline", "gelu"):
        folder = records_of / variant
        names = ("config.json", "environment.json", "experiment.log", "results.jsonl", "metrics.jsonl", "metrics.csv")
        names += ("summary.json", "loss_curves.png", "runs/run_0_seed_42/stdout.log", "runs/run_1_seed_43/result.json")
        assert [name for name in names if not (folder / name).exists()] == []
        assert (folder / "runs/run_0_seed_42/checkpoint").is_dir()
        summary = records.read_json(folder / "summary.json")
        assert summary["status"] == "complete" and summary["statistics"]["successful_runs"] == 2
    hypothesis = records.read_json(records_of / "gelu" / "hypothesis.json")
    assert summary["hypothesis"]["change"] == hypothesis["change"] == {"model.activation": "gelu"}
    comparison = summary["comparison"]
    assert comparison["n_variant"] == 2 and 0 < comparison["p_value"] < 1
    assert comparison["verdict"].split()[0] in ("better", "worse", "equivalent", "undecided")
    assert summary["difference"] == {"model.activation": ["relu2", "gelu"]}
    assert f"gelu: {comparison['verdict']}" in texts(copy)


def test_the_next_call_finds_the_baseline_from_wherever_it_is_called(first, papermill, tmp_path):
    before = written(first[2])
    done, copy, records_of = papermill("second", "-f", str(GELU), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    baseline = {path: time for path, time in written(records_of).items() if "baseline" in path.parts}
    assert baseline == {path: time for path, time in before.items() if "baseline" in path.parts}
    summary = records.read_json(records_of / "gelu" / "summary.json")
    assert summary["status"] == "complete" and f"gelu: {summary['comparison']['verdict']}" in texts(copy)
    assert len(records.read_jsonl(records_of / "gelu" / "results.jsonl")) == 2 and list(tmp_path.iterdir()) == []


def test_a_misspelt_parameter_stops_it_before_anything_runs(papermill, tmp_path):
    done, _, records_of = papermill("third", "-p", "varient", "x", "-p", "study", "misspelt", cwd=tmp_path)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ConfigError: parameters: unknown parameter 'varient'; did you mean 'variant'?"
    assert not (records_of.parents[1] / "misspelt").exists()
