"""The smallest staged study: real runs, decided, claimed and reported, the analysis by papermill."""

import yaml
from scipy import stats

from gptlib import records
from gptlib.report.html import notebook_html
from gptlib.study import runner

STUDY = {
    "name": "whole",
    "question": "Do ten times the steps pay?",
    "base": "smoke",
    "ablations": ["train_longer", "gelu"],
    "stages": {
        "A": {"overrides": {"train.steps": "x1/2"}, "seeds": [42, 43]},
        "C": {"seeds": [242, 243]},
        "looks": [2],
        "target": 9.0,
        "futility": 1,
    },
    "notebooks_at_once": 1,  # experiments are executed in this process
}


def test_a_staged_study_from_its_file_to_its_report(
    outputs, overrides, executed, shown, executions, tmp_path, monkeypatch
):
    path = tmp_path / "whole.yaml"
    path.write_text(yaml.safe_dump(STUDY | {"overrides": overrides}))
    monkeypatch.setattr(records, "git_info", lambda: {"commit": "0" * 40, "branch": "main", "dirty": False})
    outcome = runner.run_study(path, outputs)
    assert outcome.failures == []
    decided = records.read_json(outputs / "whole" / "decision.json")
    raced = [arm["variant"] for arm in decided["stages"][0]["arms"] if arm["goes_on"]]
    assert "train_longer" in raced and len(executed) == 3 * 2 + (1 + len(raced)) * 2
    assert executions == ["data", *(f"A.{n}" for n in ("baseline", *STUDY["ablations"])), "C.baseline"] + [
        *(f"C.{name}" for name in raced),
        "analysis",
    ]
    claim = next(claim for claim in decided["claims"] if claim["variant"] == "train_longer")
    assert claim["verdict"] == "better" and decided["verdict"].startswith("train_longer better than the baseline")
    by_name = {arm["variant"]: arm for arm in decided["target"]}
    run = records.read_json(outputs / "whole" / "C" / "train_longer" / "summary.json")
    assert run["comparison"]["verdict"] == "better" and run["comparison"]["p_value"] == claim["p_value"]
    losses = [
        records.read_json(p)["final_val_loss"]
        for p in sorted((outputs / "whole" / "C" / "train_longer" / "runs").glob("*/result.json"))
    ]
    assert by_name["train_longer"]["p_value"] == stats.ttest_1samp(losses, 9.0, alternative="less").pvalue

    notebook_html(outputs / "whole" / "analysis.ipynb", outputs / "report.html")
    page = (outputs / "report.html").read_text()
    for word in ("C (race), look 1", "A (screen)", "against the target 9", "Confirmatory", claim["reason"]):
        assert word in page, word
    assert "missing:" not in page
    stages = {row["stage"]: row for row in records.read_jsonl(outputs / "noise.jsonl")}
    assert set(stages) == {"A", "C"} and stages["A"]["df"] == 3

    executions.clear()
    again = runner.run_study(path, outputs)
    assert (again.failures, executions, again.notebooks) == ([], [], outcome.notebooks)
    assert records.read_json(outputs / "whole" / "decision.json") == decided
