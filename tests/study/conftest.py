"""Notebooks of a study done in this process: what their cells call, without a kernel."""

import shutil

import pytest

from gptlib import notebook, records
from gptlib.study import steps


@pytest.fixture(scope="session")
def do_notebook():
    """Does what 10_baseline or 20_ablations does with a parameter file, leaves a copy; returns the parameters."""

    def do(notebook_file, copy, parameters):
        shutil.copy(notebook_file, copy)
        values = records.read_json(parameters)
        if notebook_file.stem == "10_baseline":
            notebook.baseline_of(notebook.BaselineParameters(**values))
        elif notebook_file.stem == "20_ablations":
            asked = notebook.AblationParameters(**values)
            notebook.ablation_of(asked, asked.ablation())
        return values

    return do


@pytest.fixture
def executions(do_notebook, monkeypatch):
    """Names of the notebooks that a study executes: experiments in this process, the analysis by papermill."""
    papermill, names = steps._papermill, []

    def execute(notebook_file, copy, parameters, log, ended):
        names.append(copy.stem.removeprefix("."))
        if notebook_file.stem == "90_analysis":
            return papermill(notebook_file, copy, parameters, log, ended)
        do_notebook(notebook_file, copy, parameters)
        return 0

    monkeypatch.setattr(steps, "_papermill", execute)
    return names
