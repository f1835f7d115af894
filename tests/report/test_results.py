"""The small file behind the numbers of a document: what is finished, nothing of the machine's folders."""

import json

import pytest

from gptlib.records import RecordError, write_json
from gptlib.report.results import KEPT, MACHINE, study_results


def experiment(outputs, variant, folder=None, losses=(2.0, 2.1), place="/home/somebody/books"):
    home = outputs / "s" / "full" / (folder or variant)
    seeds = list(range(len(losses)))
    summary = dict.fromkeys(KEPT) | {"variant": variant, "seeds": seeds, "git_info": {"commit": "abc"}}
    write_json(home / "summary.json", summary | {"environment": dict.fromkeys(MACHINE) | {"command": ["x"]}})
    write_json(home / "config.json", {"config": {"data": {"path": place}, "train": {"steps": 3}}})
    for seed, loss in enumerate(losses):
        write_json(home / "runs" / f"run_{seed}_seed_{seed}" / "result.json", {"seed": seed, "final_val_loss": loss})


def test_losses_by_seed_of_every_finished_experiment(tmp_path):
    experiment(tmp_path, "baseline")
    experiment(tmp_path, "gelu", losses=(2.2, 2.3))
    experiment(tmp_path, "gelu", folder="gelu.20261122T000000", losses=(9.0,))  # moved aside
    results = study_results(tmp_path, "s")
    found = {e["variant"]: e["final_val_loss"] for e in results["experiments"]}
    assert found == {"baseline": {"0": 2.0, "1": 2.1}, "gelu": {"0": 2.2, "1": 2.3}}
    assert results["commit"] == "abc" and results["baseline"]["train"] == {"steps": 3}


def test_no_folder_of_the_machine_is_kept(tmp_path):
    experiment(tmp_path, "baseline")
    text = json.dumps(study_results(tmp_path, "s"))
    assert "somebody" not in text and '"path": "books"' in text and str(tmp_path) not in text


def test_a_study_without_a_finished_experiment_is_one_line(tmp_path):
    with pytest.raises(RecordError, match="no finished experiment"):
        study_results(tmp_path, "s")
