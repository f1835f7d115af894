"""Parameters of notebooks: the same in cell and class, and every slip is named before anything runs."""

import ast
from pathlib import Path

import nbformat
import pytest

from gptlib import notebook, records
from gptlib.config import ConfigError, load_config, project_root
from gptlib.study.experiment import plan_experiment
from gptlib.study.hypothesis import Ablation

NOTEBOOKS = {
    "00_data": notebook.DataParameters,
    "10_baseline": notebook.BaselineParameters,
    "20_ablations": notebook.AblationParameters,
    "90_analysis": notebook.AnalysisParameters,
}


def parameters_cell(name):
    cells = nbformat.read(project_root() / "notebooks" / f"{name}.ipynb", as_version=4).cells
    (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    return cell.source


def values(source):
    """What a parameters cell assigns, read without running it."""
    body = ast.parse(source).body
    assert all(isinstance(statement, ast.AnnAssign) for statement in body)
    return {statement.target.id: ast.literal_eval(statement.value) for statement in body}


@pytest.fixture
def namespace():
    """The globals of a notebook of which the parameters cell has run, and then a cell that papermill injected."""

    def make(name, injected=None, after=()):
        cell = parameters_cell(name)
        found = values(cell) | (injected or {})
        cells = ["", cell, *after]
        if injected is not None:
            cells.append("\n".join(["# Parameters", *(f"{key} = {value!r}" for key, value in injected.items())]))
        return {"In": cells, **found}

    return make


@pytest.fixture
def refused(namespace):
    def lines(injected, name="20_ablations"):
        with pytest.raises(ConfigError) as error:
            notebook.check_parameters(NOTEBOOKS[name], namespace(name, injected))
        return str(error.value).splitlines()

    return lines


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_and_its_class_have_the_same_parameters(name):
    kind, cell = NOTEBOOKS[name], values(parameters_cell(name))
    assert set(cell) == set(kind.model_fields)
    assert kind.model_validate(cell) == kind()


def test_every_notebook_is_among_them():
    assert sorted(p.stem for p in (project_root() / "notebooks").glob("*.ipynb")) == sorted(NOTEBOOKS)


# --- where records go -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_untouched_smoke_run_leaves_nothing_in_the_checkout(namespace, name):
    outputs = Path(notebook.check_parameters(NOTEBOOKS[name], namespace(name)).outputs)
    assert outputs.is_dir() and outputs.is_absolute() and not outputs.is_relative_to(project_root())


@pytest.mark.parametrize(
    ("injected", "folder"),
    [
        ({}, "outputs"),
        ({"seeds": [42, 43]}, "outputs"),
        ({"seeds": [7]}, "outputs"),
        ({"outputs": "elsewhere"}, "elsewhere"),
    ],
)
def test_what_papermill_runs_is_kept(namespace, monkeypatch, tmp_path, injected, folder):
    monkeypatch.chdir(tmp_path)
    given = notebook.check_parameters(notebook.BaselineParameters, namespace("10_baseline", injected))
    assert given.outputs == str(project_root() / folder)


def test_what_was_changed_by_hand_is_kept(namespace, tmp_path):
    changed = namespace("10_baseline") | {"overrides": {"train.steps": 9}}
    assert notebook.check_parameters(notebook.BaselineParameters, changed).outputs == str(project_root() / "outputs")
    elsewhere = namespace("10_baseline") | {"outputs": str(tmp_path)}
    assert notebook.check_parameters(notebook.BaselineParameters, elsewhere).outputs == str(tmp_path)


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("injected", "message"),
    [
        ({"varient": "x"}, "unknown parameter 'varient'; did you mean 'variant'?"),
        ({"sedes": [1]}, "unknown parameter 'sedes'; did you mean 'seeds'?"),
        ({"seeds": [1, 1]}, "seeds=[1, 1]: give at least one, each once"),
        ({"seeds": "many"}, "seeds='many'"),
        ({"seeds": ["x"]}, "seeds.0='x'"),
        ({"overrides": {"optim.muon.lr": float("nan")}}, "optim.muon.lr=nan"),
        ({"overrides": {"optim.muon.lr": "inf"}}, "optim.muon.lr='inf'"),
        ({"overrides": {"optim.mun.lr": 1}}, "did you mean 'optim.muon.lr'"),
        ({"overrides": {"train.steps": "few"}}, "train.steps='few'"),
        ({"overrides": 3}, "overrides=3"),
        ({"base": "smke"}, "did you mean 'smoke'"),
        ({"variant": "baseline"}, "not 'baseline'"),
        ({"change": {"model.qk_nrm": False}}, "did you mean 'model.qk_norm'"),
        ({"independent_variable": "model.position"}, "not among the changed keys"),
        ({"analysis": {"alpa": 0.05}}, "did you mean 'analysis.alpha'"),
    ],
)
def test_a_slip_is_one_line_with_its_remedy(refused, injected, message):
    (line,) = refused(injected)
    assert message in line


def test_all_slips_are_told_at_once(refused):
    lines = refused({"varient": "x", "seeds": [], "match": "time"})
    assert len(lines) == 3
    for word in ("varient", "seeds", "match"):
        assert any(word in line for line in lines)


def test_numbers_as_papermill_writes_them_are_understood(namespace):
    injected = {"overrides": {"optim.muon.lr": "3e-4", "train.steps": "10"}, "seeds": ["7"]}
    given = notebook.check_parameters(notebook.BaselineParameters, namespace("10_baseline", injected))
    assert given.config == load_config("smoke", {"optim.muon.lr": 3e-4, "train.steps": 10}) and given.seeds == [7]


def test_a_parameter_of_another_notebook_is_unknown(refused):
    (line,) = refused({"variant": "x"}, "10_baseline")
    assert "unknown parameter 'variant'" in line


def test_cells_that_do_something_are_no_parameters(namespace):
    given = namespace("10_baseline", after=["x = 3\nprint(x)", "import os\npath = 'x'", "%matplotlib inline"])
    assert notebook.check_parameters(notebook.BaselineParameters, given).seeds == [42, 43]


def test_an_ablation_file_is_a_set_of_parameters(namespace):
    from gptlib.study.hypothesis import load_ablation

    for path in (project_root() / "params" / "ablations").glob("*.yaml"):
        ablation = load_ablation(path)
        injected = ablation.model_dump(mode="json")
        given = notebook.check_parameters(notebook.AblationParameters, namespace("20_ablations", injected))
        assert given.ablation() == ablation


def test_a_corrected_parameters_cell_is_accepted_in_the_same_kernel(namespace):
    corrected = namespace("10_baseline")
    wrong = corrected["In"][1].replace("seeds:", "sedes:")
    check = "from gptlib import notebook\n\np = notebook.check_parameters(notebook.BaselineParameters, globals())"
    corrected["In"] = ["", wrong, check, corrected["In"][1], check]
    assert notebook.check_parameters(notebook.BaselineParameters, corrected).seeds == [42, 43]


def test_another_variant_must_declare_its_own_hypothesis(namespace):
    arrived = namespace("20_ablations") | {"variant": "silu", "change": {"model.activation": "silu"}}
    with pytest.raises(ConfigError, match="hypothesis is still that of no_qk_norm: declare it for variant='silu'"):
        notebook.check_parameters(notebook.AblationParameters, arrived | {"independent_variable": "model.activation"})


def test_the_cost_of_what_is_planned_is_told_before_anything_runs(outputs, tiny):
    ablation = Ablation(
        variant="deeper",
        hypothesis="Another layer lowers the loss.",
        independent_variable="model.num_layers",
        change={"model.num_layers": "x2"},
        why="Depth is the question.",
    )
    place = outputs, "study", "full", tiny(), [42, 43, 44]
    baseline, variant = plan_experiment(*place), plan_experiment(*place, ablation)
    records.write_json(
        next(baseline.runs())[2] / "result.json", {"fingerprint": baseline.fingerprint, "status": "finished"}
    )
    said = notebook.planned_cost(baseline, variant).data
    assert "2 of 3 of baseline, 3 of 3 of deeper" in said and "time (s)" not in said
    # by hand, forward and backward: 4 steps of 512 tokens; per token 6 x matrices (blocks, value gate, head of 320
    # rows) and 12 x layers x width x context of attention
    block, head = 4 * 16 * 16 + 2 * 16 * 64, 320 * 16
    flops = [6 * (n * block + 12 * 2 + head) + 12 * n * 16 * 256 for n in (1, 2)]
    assert f"in all {4 * 512 * (2 * flops[0] + 3 * flops[1]):.3g} FLOPs" in said
    assert not (variant.folder).exists()
