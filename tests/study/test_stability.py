"""The search goes down until no run diverges, keeps what it ran, and takes a failed run for no answer."""

import pytest
import yaml

from gptlib import records
from gptlib.config import ConfigError
from gptlib.report.tables import stability_table
from gptlib.study import runner, steps
from gptlib.study.plan import plan_experiment
from gptlib.study.stability import Point, Stability, largest_stable_lr, stable_rates
from gptlib.study.studies import load_study

GRID = [0.1, 10, 1, 100]


@pytest.fixture
def search(outputs, tiny, monkeypatch):
    """Searches with runs that diverge at step 3 where their rates are above a limit by seed; counts the runs."""
    ran = []

    def call(limits, status="diverged", grid=GRID):
        def launch(runs, hardware, poll):
            for run in runs:
                spec = records.read_json(run / "run.json")
                scale = spec["config"]["optim"]["lr_scale"]
                lost = scale > limits[spec["seed"]]
                who = {key: spec[key] for key in ("run_id", "seed", "attempt", "fingerprint")}
                end = {"status": status, "diverged_at": 3} if lost else {"status": "finished"}
                loss = {"final_val_loss": None if lost else 2 + scale, "best_val_loss": None if lost else 2 + scale}
                records.write_json(run / "result.json", who | end | loss | {"time_seconds": 1.0})
                ran.append((scale, spec["seed"]))

        monkeypatch.setattr("gptlib.study.experiment.launch", launch)
        return largest_stable_lr(tiny({"optim.lr_scale": 2.0}), grid, outputs, "s", "no_norm", sorted(limits))

    call.ran = ran
    return call


def test_the_largest_factor_at_which_no_run_diverges(search, outputs):
    found = search({1: 2.0, 2: 20.0})
    assert [(p.factor, p.diverged, p.diverged_at) for p in found.points] == [(100, 2, 3), (10, 1, 3), (1, 0, None)]
    assert found.largest is found.points[2] and found.largest.loss == 4.0 and found.points[1].loss == 22.0
    assert found.points[0].loss is None and found.largest.lr == pytest.approx(0.08)
    folders = sorted(path.name for path in (outputs / "s" / "no_norm-stability").glob("[!.]*"))
    assert folders == ["lr-0.08", "lr-0.8", "lr-8"]
    summary = records.read_json(outputs / "s" / "no_norm-stability" / "lr-8" / "summary.json")
    assert summary["status"] == "complete" and summary["statistics"]["diverged_runs"] == 2


def test_a_second_search_runs_nothing_again(search):
    first = search({1: 2.0, 2: 20.0})
    ran = len(search.ran)
    assert search({1: 2.0, 2: 20.0}) == first and len(search.ran) == ran == 6


def test_a_grid_without_a_stable_factor_has_no_answer(search):
    found = search({1: 0.0, 2: 0.0})
    assert found.largest is None and len(found.points) == 4


def test_a_failed_run_is_no_answer(search):
    with pytest.raises(records.RecordError, match="lr-8: 2 runs failed"):
        search({1: 0.0, 2: 0.0}, status="failed")


@pytest.mark.parametrize("grid", [[], [1, 1], [1, 0]], ids=str)
def test_a_bad_grid_is_one_line(search, grid):
    with pytest.raises(ConfigError, match="give factors above 0, each once"):
        search({1: 1.0}, grid=grid)


def test_the_table_marks_the_answer(search):
    table = stability_table(search({1: 2.0, 2: 20.0}))
    assert list(table["diverged"]) == ["2 of 2", "1 of 2", "0 of 2"]
    assert list(table["first at step"]) == ["3", "3", "–"] and list(table[""]) == ["", "", "largest stable"]
    assert list(table["val loss (nats/token)"]) == ["–", "22.0000", "4.0000"] and list(table.index) == [
        "100",
        "10",
        "1",
    ]


def test_a_study_searches_its_arms_once_they_are_there(
    outputs, overrides, do_notebook, executed, shown, tmp_path, monkeypatch
):
    """The runs are found again by the analysis; a search that failed is reported and left out of it."""
    asked, parameters = [], {}

    def execute(notebook_file, copy, values, log, ended):
        parameters[copy.stem.removeprefix(".")] = do_notebook(notebook_file, copy, values)
        return 0

    def search(plan, grid):
        asked.append((plan.variant, plan.seeds, grid))
        if plan.variant == "gelu":
            raise records.RecordError("lr-1: 1 runs failed")
        return Stability((Point(2, 0.04, 2, 0, None, 3.0),))

    study = {"name": "s", "question": "Which?", "base": "smoke", "ablations": ["gelu"], "seeds": [1, 2, 3]}
    study |= {"overrides": overrides, "stable_lr": {"baseline": [2, 1], "gelu": [4]}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(study))
    monkeypatch.setattr(steps, "_papermill", execute)
    monkeypatch.setattr(runner, "stable_rates", search)
    outcome = runner.run_study(tmp_path / "s.yaml", outputs)
    assert asked == [("baseline", (1, 2, 3), [2, 1]), ("gelu", (1, 2, 3), [4])]
    assert parameters["analysis"]["stable_lr"] == {"baseline": [2, 1]}
    assert outcome.failures == ["stable_lr of gelu did not finish (lr-1: 1 runs failed)"]


def test_a_studys_search_takes_two_seeds_and_a_stage_of_its_own(outputs, tiny, executed):
    plan = plan_experiment(outputs, "s", "full", tiny(), [5, 6, 7])
    found = stable_rates(plan, [1.0])
    assert found.largest and found.largest.runs == 2
    (folder,) = (outputs / "s" / "full-baseline-stability").glob("lr-*")
    assert sorted(path.name for path in folder.glob("runs/*")) == ["run_0_seed_5", "run_1_seed_6"]


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ({"smear": [1]}, "stable_lr: smear is neither baseline nor among the ablations"),
        ({"gelu": [1, -1]}, "stable_lr.gelu=[1.0, -1.0]: give factors above 0"),
    ],
)
def test_a_search_that_does_not_fit_the_study_is_one_line(tmp_path, grids, message):
    study = {"name": "s", "question": "Which?", "base": "smoke", "ablations": ["gelu"], "stable_lr": grids}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(study))
    with pytest.raises(ConfigError) as error:
        load_study(tmp_path / "s.yaml")
    assert message in str(error.value) and "\n" not in str(error.value)
