"""The repository as a whole: imports, parameter files, links, the form of notebooks, the installation."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from normalise_notebooks import normalised, problems

from gptlib.config import load_config, parse_overrides, read_yaml
from gptlib.fields import RunConfig

ROOT = Path(__file__).parents[1]
USE_TORCH = {
    "checkpoint", "device", "evaluate", "layers", "memory", "model", "muon", "optimizers", "pretrained", "train",
    "trial",
}  # fmt: skip


def in_fresh_python(code: str) -> None:
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


# --- the package ------------------------------------------------------------------------------------------------


def test_only_modules_that_compute_with_tensors_import_torch() -> None:
    in_fresh_python(f"""
import importlib, pkgutil, sys
import gptlib
for module in pkgutil.walk_packages(gptlib.__path__, "gptlib."):
    if module.name.split(".")[1] not in {USE_TORCH}:
        importlib.import_module(module.name)
        assert "torch" not in sys.modules, f"importing {{module.name}} imports torch"
""")


def test_importing_the_package_starts_nothing() -> None:
    in_fresh_python("""
import importlib, pkgutil, sys, threading
import psutil
import gptlib
for module in pkgutil.walk_packages(gptlib.__path__, "gptlib."):
    importlib.import_module(module.name)
    assert threading.active_count() == 1, f"importing {module.name} starts a thread"
    assert not psutil.Process().children(), f"importing {module.name} starts a process"
if "torch" in sys.modules:
    import torch
    assert not torch.cuda.is_initialized()
    assert not (torch.distributed.is_available() and torch.distributed.is_initialized())
""")


# --- parameter files and pages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "params").rglob("*.yaml")), ids=lambda path: path.stem)
def test_parameter_file_loads(path: Path) -> None:
    if path.parent.name == "base":
        assert isinstance(load_config(path), RunConfig)
    else:
        values, lines = read_yaml(path)
        assert values and lines
        assert parse_overrides(values.get("change", {})) == values.get("change", {})


def pages() -> list[Path]:
    listed = [p for p in ROOT.rglob("*.md") if not any(part.startswith(".") for part in p.relative_to(ROOT).parts)]
    return sorted(p for p in listed if ROOT / "outputs" not in p.parents or p == ROOT / "outputs" / "README.md")


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(<?([^)>\s#]+)", text)
    broken = [t for t in targets if not re.match(r"[a-z]+:", t) and not (page.parent / t).exists()]
    assert not broken


# --- the form of notebooks --------------------------------------------------------------------------------------


def good_notebook() -> NotebookNode:
    shown = [new_output("stream", name="stdout", text="loss 2.22\n")]
    return new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}},
        cells=[
            new_markdown_cell("Question, inputs, outputs, expected time"),
            new_code_cell("seeds = [42]", metadata={"tags": ["parameters"]}, execution_count=1),
            new_code_cell("print(loss)", metadata={"tags": ["nbval-check-output"]}, outputs=shown, execution_count=2),
            new_code_cell(""),
        ],
    )


def findings(notebook: NotebookNode) -> str:
    return "\n".join(problems(normalised(nbformat.writes(notebook))))


def test_normalising_keeps_what_is_compared_and_drops_the_noise_of_a_run() -> None:
    notebook = good_notebook()
    expected = normalised(nbformat.writes(notebook))
    notebook.metadata["papermill"] = {"duration": 1.5}
    notebook.metadata["widgets"] = {"state": {}}
    notebook.metadata["language_info"]["version"] = "3.12.1"
    for cell in notebook.cells:
        cell.metadata["execution"] = {"iopub.status.busy": "2026-01-01T00:00:00Z"}
        cell.metadata["papermill"] = {"status": "completed"}
    pieces = [new_output("stream", name="stdout", text=text) for text in ("loss ", "2.22\n")]
    notebook.cells[2].outputs = pieces
    assert normalised(nbformat.writes(notebook)) == expected
    kept = nbformat.reads(expected, as_version=4)
    assert [cell.id for cell in kept.cells] == [cell.id for cell in notebook.cells]
    assert kept.cells[2].outputs[0].text == "loss 2.22\n" and kept.cells[2].execution_count == 2
    assert kept.cells[1].metadata.tags == ["parameters"]
    assert normalised(expected) == expected and expected.endswith("}\n")


def test_a_good_notebook_passes() -> None:
    assert findings(good_notebook()) == ""


def broken(case: str) -> NotebookNode:
    notebook = good_notebook()
    parameters, checked = notebook.cells[1:3]
    if case == "parameters":
        parameters.metadata.tags = []
    elif case == "stored output":
        checked.outputs = []
    elif case == "top to bottom":
        checked.execution_count = 3
    elif case == "path of one machine":
        checked.outputs[0].text = "saved to /home/someone/run.json"
    elif case == "stores an error":
        checked.outputs = [new_output("error", ename="ValueError", evalue="no", traceback=[])]
    elif case == "lines of code":
        checked.source = "\n".join(f"a{i} = {i}" for i in range(16))
    elif case == "kB":
        checked.outputs = [new_output("display_data", data={"image/png": "A" * 200_000})]
    elif case == "not a valid notebook":
        checked.cell_type = "poem"
    return notebook


@pytest.mark.parametrize(
    "case",
    ["parameters", "stored output", "top to bottom", "path of one machine", "stores an error", "lines of code", "kB"],
)
def test_each_broken_rule_is_found_and_nothing_else(case: str) -> None:
    found = findings(broken(case)).splitlines()
    assert len(found) == 1 and case in found[0]


@pytest.mark.parametrize(
    ("text", "is_path"),
    [
        ("/Users/a/x", True),
        ("'/tmp/x'", True),
        (r"C:\Users\a", True),
        (str(ROOT.resolve() / "x"), True),
        ("https://example.org/home/x", False),
        ("outputs/home/x", False),
        ("a / tmp / b", False),
    ],
)
def test_paths_of_one_machine_are_told_from_others(text: str, is_path: bool) -> None:
    notebook = good_notebook()
    notebook.cells[0].source = text
    assert ("path of one machine" in findings(notebook)) is is_path


def test_check_changes_nothing_and_fails_until_normalised(tmp_path: Path) -> None:
    notebook = good_notebook()
    notebook.metadata["papermill"] = {"duration": 1.5}
    path = tmp_path / "noisy.ipynb"
    nbformat.write(notebook, path)
    before = path.read_bytes()
    tool = [sys.executable, str(ROOT / "tools" / "normalise_notebooks.py")]
    check = subprocess.run([*tool, "--check", str(path)], capture_output=True, text=True)
    assert check.returncode == 1 and "noisy.ipynb: not normalised" in check.stderr and path.read_bytes() == before
    subprocess.run([*tool, str(path)], check=True)
    assert subprocess.run([*tool, "--check", str(path)]).returncode == 0
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_notebook_is_reported() -> None:
    assert "not a valid notebook" in "\n".join(problems("{}"))
    assert "not a valid notebook" in "\n".join(problems("<html>"))
    assert "not a valid notebook" in "\n".join(problems(nbformat.writes(broken("not a valid notebook"))))


# --- installation -----------------------------------------------------------------------------------------------

FAKE_PYTHON = """#!/bin/sh
case "$*" in
  *version_info*) exit "${TOO_OLD:-0}" ;;
  *ensurepip*) exit "${NO_VENV:-0}" ;;
  *"-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python && exit 0 ;;
esac
echo "$*" >>log
case "$*" in *"-r requirements.lock") exit "${PIP_FAILS:-0}" ;; esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    fake = tmp_path / "python"
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)
    return tmp_path


def make_install(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "TORCH"))}
    command = ["make", "install", "PYTHON=./python", *arguments]
    return subprocess.run(command, cwd=folder, env=clean | environment, capture_output=True, text=True)


def test_an_installation_that_breaks_off_is_taken_up_again_and_a_finished_one_is_left_alone(checkout: Path) -> None:
    assert make_install(checkout, PIP_FAILS="1").returncode != 0
    assert not (checkout / ".venv/.installed").exists()
    assert make_install(checkout).returncode == 0
    log = (checkout / "log").read_text().splitlines()
    assert [line.split(" install ")[1] for line in log] == ["-r requirements.lock"] * 2 + ["--no-deps -e ."]
    assert make_install(checkout).returncode == 0
    assert (checkout / "log").read_text().splitlines() == log


def test_cpu_only_torch_is_installed_before_the_lock(checkout: Path) -> None:
    assert make_install(checkout, "TORCH=cpu").returncode == 0
    first, second, _ = (checkout / "log").read_text().splitlines()
    assert first.endswith("--index-url https://download.pytorch.org/whl/cpu torch==2.13.0")
    assert second.endswith("-r requirements.lock")


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], {"TOO_OLD": "1"}, "older than Python 3.11"),
        (["PYTHON=./absent"], {}, "older than Python 3.11"),
        ([], {"NO_VENV": "1"}, "apt-get install python3-venv"),
        (["TORCH=gpu"], {}, "write TORCH=cpu"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    checkout: Path, arguments: list[str], environment: dict[str, str], message: str
) -> None:
    result = make_install(checkout, *arguments, **environment)
    first, *rest = result.stderr.splitlines()
    assert result.returncode != 0 and message in first
    assert all(line.startswith("make") for line in rest) and not (checkout / ".venv").exists()


def test_continuous_integration_script_is_executable_and_valid() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
