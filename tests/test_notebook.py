"""Parameters of notebooks: the same in cell and class, and every slip is named before anything runs."""

import ast
import math
from pathlib import Path

import nbformat
import pytest
from matplotlib.figure import Figure

from gptlib import analysis, notebook, records, trial
from gptlib.config import ConfigError, load_config, project_root
from gptlib.report.tables import matched_table
from gptlib.study import arms
from gptlib.study.experiment import compared_costs
from gptlib.study.hypothesis import Ablation, load_ablation
from gptlib.study.plan import plan_experiment

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
    lines = refused({"varient": "x", "seeds": [], "match": "tim"})
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
    said = notebook.planned_cost(variant).data
    assert "2 of 3 of baseline, 3 of 3 of deeper" in said and "A run of the baseline took" not in said
    # by hand, forward and backward: 4 steps of 512 tokens; per token 6 x matrices (blocks, value gate, head of 320
    # rows) and 12 x layers x width x context of attention
    block, head = 4 * 16 * 16 + 2 * 16 * 64, 320 * 16
    flops = [6 * (n * block + 12 * 2 + head) + 12 * n * 16 * 256 for n in (1, 2)]
    assert f"in all {4 * 512 * (2 * flops[0] + 3 * flops[1]):.3g} FLOPs" in said
    assert not (variant.folder).exists()


# --- a comparison from its parameters to its verdict ------------------------------------------------------------


@pytest.fixture
def asked(outputs, overrides, shown):
    """The parameters of an ablation of tiny runs: a file of params/ablations with some of its keys changed."""

    def make(name="gelu", training=None, **changes):
        place = {"outputs": str(outputs), "overrides": overrides | (training or {}), "study": "s"}
        return notebook.AblationParameters(**load_ablation(name).model_dump(), **place).model_copy(update=changes)

    return make


def answered(parameters):
    return notebook.ablation_of(parameters, parameters.ablation())


def experiments(runs):
    return [run.parents[1].name for run in runs]


def test_a_match_by_parameters_changes_one_more_key_and_stands_in_the_record(asked, executed):
    parameters = asked("swiglu", seeds=[42])
    answer = answered(parameters)
    plan = answer.variant.plan
    # two matrices of 16 x 64 against three of 16 x 44: 64 of 18,456 parameters more; the next coarser grid has 40
    assert plan.difference == {"model.activation": ("relu2", "swiglu"), "model.mlp_hidden": (0, 44)}
    assert experiments(executed) == ["baseline", "swiglu"]
    summary, matched = answer.variant.summary(), records.read_json(plan.folder / "matched.json")
    assert summary["match"] == matched and summary["status"] == "complete"
    assert (matched["by"], matched["knobs"], matched["baseline_name"]) == ("params", ["model.mlp_hidden"], "baseline")
    assert (matched["baseline"]["total"], matched["variant"]["total"]) == (18_456, 18_456 + 64)
    assert sum(summary["parameters"].values()) == 18_456 + 64
    assert {key: tuple(pair) for key, pair in summary["difference"].items()} == plan.difference
    config, base = (records.read_json(p.folder / "config.json")["config"] for p in (plan, answer.baseline.plan))
    assert {key for key in config["model"] if config["model"][key] != base["model"][key]} == {
        "activation",
        "mlp_hidden",
    }
    assert {key for key in config if config[key] != base[key]} == {"model"}
    table = matched_table(*compared_costs(answer.baseline, answer.variant), answer.confounders)
    assert table.loc[["parameters", "steps", "tokens"], "fit"].tolist() == ["matched"] * 3
    assert answered(parameters).comparison == answer.comparison and len(executed) == 2, "and is used again"


TUNED = {"optim.muon.lr": ["x1/2", "x2"], "optim.adamw.matrix_lr": ["x1/2", "x2"]}


def test_both_arms_are_tuned_on_seeds_of_their_own_before_they_meet(asked, executed, shown):
    parameters = asked("adamw", tune=TUNED, tune_seeds=[1], seeds=[42])
    answer = answered(parameters)
    lrs = {"baseline": ("muon.lr", "optim.muon.lr", 0.04), "adamw": ("adamw.matrix_lr", "optim.adamw.matrix_lr", 0.006)}
    losses, best = {}, {}
    for arm, (leaf, key, value) in lrs.items():
        for rate in (value / 2, value * 2):
            point = f"full-tuning/{arm}.{leaf}-{rate}/runs"
            (run,) = [run for run in executed if run.parent.as_posix().endswith(point)]
            assert run.name == "run_0_seed_1"
            losses[arm, rate] = records.read_json(run / "result.json")["final_val_loss"]
        best[arm] = key, min((value / 2, value * 2), key=lambda rate, arm=arm: losses[arm, rate])
    assert experiments(executed[4:]) == [f"baseline.muon.lr-{best['baseline'][1]}", "adamw"]
    for experiment, arm in ((answer.baseline, "baseline"), (answer.variant, "adamw")):
        key, rate = best[arm]
        section, leaf = key.removeprefix("optim.").split(".")
        assert getattr(getattr(experiment.plan.config.optim, section), leaf) == rate
    assert set(answer.variant.plan.difference) == {"optim.matrices", "optim.muon.lr", "optim.adamw.matrix_lr"}
    grid = answer.variant.summary()["match"]["tuning_grid"]
    assert [(p["arm"], p["loss"]) for p in grid] == [
        ("variant" if arm == "adamw" else arm, loss) for (arm, _), loss in losses.items()
    ]
    said = notebook.verdict(answer).data
    assert "**Tuning:** tuned alike on 2 points each; the best of the baseline and the variant lies at the edge" in said
    found = analysis.findings(answer.baseline, [answer]).data
    assert "Unequal tuning" not in found and "tuned alike on 2 points each" in found
    assert answered(parameters).comparison == answer.comparison and len(executed) == 6, "and is used again"
    notebook.tuning(answer.variant.plan)
    table, difference = shown[-4:-2]
    assert list(difference.index) == list(answer.variant.plan.difference)
    assert list(table["values"]) == [f"{key} = {v * f:g}" for _, key, v in lrs.values() for f in (0.5, 2)]
    assert list(table[""]).count("best") == 2


def test_the_seeds_of_a_tuning_are_not_those_of_the_comparison(asked):
    with pytest.raises(ConfigError, match=r"tune_seeds: \[42\] are seeds of the comparison too"):
        asked(tune=TUNED, tune_seeds=[41, 42]).plan(asked(tune=TUNED, tune_seeds=[41, 42]).ablation())


def test_a_match_by_time_is_measured_once_and_stored(asked, executed, outputs, own_slots, monkeypatch):
    questions = []

    def measured(self, what, question):
        questions.append(question)
        with arms._machine(self.device):
            trial.main(question)

    monkeypatch.setattr(arms.Trial, "_run", measured)
    for name, value in {"MIN_ROUNDS": 2, "MAX_SECONDS": 0.5, "BLOCK_SECONDS": 0.02}.items():
        monkeypatch.setattr(trial, name, value)
    change = {"independent_variable": "model.num_layers", "change": {"model.num_layers": "x2"}, "match": "time"}
    parameters = asked(training={"train.steps": 60, "eval.every": 0}, seeds=[42], **change)
    answer = answered(parameters)
    matched, steps = answer.variant.summary()["match"], answer.variant.plan.config.train.steps
    assert 25 < steps < 60 and set(answer.variant.plan.difference) == {"model.num_layers", "train.steps"}
    (question,) = questions
    assert question.parent == outputs / "trials" and not question.is_relative_to(answer.variant.plan.folder)
    seconds = records.read_json(question.with_suffix(".answer.json"))["seconds"]
    assert matched["baseline"]["trial_seconds"] == pytest.approx(60 * seconds[0])
    assert matched["variant"]["trial_seconds"] == pytest.approx(steps * seconds[1])
    assert matched["variant"]["trial_seconds"] == pytest.approx(matched["baseline"]["trial_seconds"], rel=0.02)
    table = matched_table(*compared_costs(answer.baseline, answer.variant))
    assert table.loc["time alone on the machine (s)", "fit"] == "matched" and table.loc["steps", "fit"] == "free"
    assert not math.isnan(answer.variant.costs()["time_seconds"])
    again = parameters.model_copy(update={"seeds": [43]}).plan(parameters.ablation())
    assert len(questions) == 1 and again.config == answer.variant.plan.config
    assert experiments(executed) == ["baseline", "gelu"]


# --- what is said of given losses -------------------------------------------------------------------------------


@pytest.fixture
def given(monkeypatch):
    """Runs are not executed: their final loss is a function of configuration and seed."""

    def losses(loss):
        def launch(runs, hardware, poll):
            for run in runs:
                spec = records.read_json(run / "run.json")
                result = {key: spec[key] for key in ("run_id", "seed", "attempt", "fingerprint")}
                final = loss(spec["config"], spec["seed"])
                result |= {"status": "finished", "success": True, "time_seconds": 1.0, "tokens_per_second": 9.0}
                records.write_json(run / "result.json", result | {"final_val_loss": final, "best_val_loss": final})

        monkeypatch.setattr("gptlib.study.experiment.launch", launch)
        monkeypatch.setattr("gptlib.report.plots.loss_curves", lambda *_, **more: more.get("figure") or Figure())

    return losses


def by_rate(config, seed):
    """Best where the rate of the matrices is the baseline's; GELU is 0.1 worse, SwiGLU better."""
    muon, optim = config["optim"]["matrices"] == "muon", config["optim"]
    rate = optim["muon"]["lr"] / 0.04 if muon else optim["adamw"]["matrix_lr"] / 0.006
    return 3 + abs(math.log(rate)) + {"gelu": 0.1, "swiglu": -0.1}.get(config["model"]["activation"], 0) + seed % 7 / 99


def test_what_could_explain_a_verdict_otherwise_is_in_the_record_and_in_the_headline(asked, given):
    given(lambda config, seed: by_rate(config, seed) + (config["model"]["activation"] == "swiglu") * seed % 3 / 999)
    answer = answered(asked("swiglu_wide", seeds=[42, 43, 44]))
    assert answer.comparison.verdict == "better" and answer.variant.summary()["confounders"] == answer.confounders
    # a third matrix of 16 x 64, multiplied for each of 256 places
    flops = [6 * (4 * 256 + n * 1024 + 12 * 2 + 320 * 16) + 12 * 16 * 256 for n in (2, 3)]
    assert answer.confounders["parameters"] == pytest.approx((18_456 + 1024) / 18_456)
    assert answer.confounders["FLOPs"] == pytest.approx(flops[1] / flops[0])
    assert notebook.verdict(answer).data.startswith(
        "**swiglu_wide: better (confounded: parameters 1.06x, FLOPs 1.06x, "
    )
    assert "(confounded: parameters 1.06x" in analysis.findings(answer.baseline, [answer]).data


def test_the_base_stays_the_baseline_where_its_rate_is_the_best(asked, given):
    given(by_rate)
    tune = {"optim.muon.lr": ["x1/2", "x1", "x2"]}
    answer = answered(asked(tune=tune, tune_seeds=[1, 2], seeds=[42, 43]))
    assert answer.baseline.plan.variant == "baseline" and set(answer.variant.plan.difference) == {"model.activation"}
    assert answer.variant.plan.arms.tuning() == "tuned alike on 3 points each"
    assert sorted(p.name for p in answer.variant.plan.folder.parent.glob("[!.]*")) == ["baseline", "gelu"]


def test_what_is_not_tuned_alike_says_so(asked, given):
    given(by_rate)
    tune = {"optim.muon.lr": ["x1/2", "x1", "x2"]}
    untuned, tuned, unequal = (
        answered(asked(name, seeds=[42], tune=tune))
        for name, tune in (("gelu", {}), ("relu", tune), ("adamw", tune | {"optim.adamw.matrix_lr": ["x1", "x2"]}))
    )
    said = [notebook.verdict(answer).data for answer in (untuned, tuned, unequal)]
    assert "**Tuning:** not tuned: learning rates are the base's." in said[0]
    assert "**Tuning:** tuned alike on 3 points each." in said[1]
    assert "**Tuning:** tuned unequally: 3 points for the baseline, 2 for the variant" in said[2]
    for answers, start, end in (
        ([untuned], True, False),
        ([untuned, tuned], True, True),
        ([tuned, unequal], True, True),
        ([tuned], False, False),
    ):
        found = analysis.findings(untuned.baseline, answers).data
        assert found.startswith("**Unequal tuning:**") == start and ("; relu tuned alike" in found) == end


def test_effects_at_several_sizes_are_those_against_the_baseline_of_the_size(
    asked, given, outputs, overrides, tmp_path
):
    (tmp_path / "wide.yaml").write_text("base: smoke\nmodel: {num_layers: 3}\n")
    given(lambda config, seed: by_rate(config, seed) * config["model"]["num_layers"])
    ladder = {str(tmp_path / "wide.yaml"): "full-wide"}
    overrides = {key: value for key, value in overrides.items() if key != "model.num_layers"} | {"optim.muon.lr": 0.04}
    place = {"outputs": str(outputs), "overrides": overrides, "study": "s", "seeds": [42, 43]}
    parameters = notebook.AnalysisParameters(**place, ablations=["gelu"], ladder=ladder)
    answers = [notebook.ablation_of(parameters, load_ablation("gelu"))]
    rows = analysis.across_sizes(parameters, answers).to_dict("records")
    assert [(row["base"], row["variant"]) for row in rows] == [("smoke", "gelu"), ("wide", "gelu")]
    assert [row["difference"] for row in rows] == pytest.approx([0.2, 0.3])
    # a layer: attention and feed-forward; every other one has a gate for its values
    assert [row["parameters"] for row in rows] == [2 * 3072 + 24, 3 * 3072 + 2 * 24]
    assert (outputs / "s" / "full-wide" / "gelu" / "summary.json").exists()


def test_two_changes_that_add_up_have_a_contrast_of_zero(asked, given, outputs, overrides):
    given(by_rate)
    place = {"outputs": str(outputs), "overrides": overrides, "study": "s", "seeds": [42, 43]}
    parameters = notebook.AnalysisParameters(**place, ablations=["gelu", "higher_lr"])
    found = analysis.interaction_of(parameters, ["gelu", "higher_lr"])
    assert found.variants == ("gelu", "higher_lr") and found.contrast.difference == pytest.approx(0)
    given(
        lambda config, seed: (
            by_rate(config, seed) + (config["model"]["activation"] == "gelu") * config["optim"]["lr_scale"]
        )
    )
    place["study"] = "t"
    found = analysis.interaction_of(notebook.AnalysisParameters(**place), ["gelu", "higher_lr"])
    assert found.contrast.difference == pytest.approx(2), "a rate three times as high is worth 2 with GELU alone"
    assert (outputs / "t" / "full" / "gelu_x_higher_lr" / "summary.json").exists()
