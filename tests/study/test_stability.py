"""The search goes down until no run diverges, keeps what it ran, and takes a failed run for no answer."""

import pytest

from gptlib import records
from gptlib.config import ConfigError
from gptlib.report.tables import stability_table
from gptlib.study.stability import largest_stable_lr

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
