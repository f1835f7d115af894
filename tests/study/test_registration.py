"""What is sealed before the first run, what is a deviation afterwards, and what the report calls it."""

import hashlib
import json
import shutil
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from gptlib import analysis, records
from gptlib.study.hypothesis import load_ablation
from gptlib.study.registration import decision, register, registration
from gptlib.study.studies import Study

STAGES = {
    "A": {"seeds": [1, 2]},
    "C": {"seeds": [11, 12, 13], "dollars_per_run": 1.0},
    "looks": [2, 3],
    "budget_dollars": 50.0,
}


@pytest.fixture
def asked(tmp_path):
    """Registers a study of some ablations; keywords change the study, `stages` its stages, `analysis` the analysis."""
    folder = tmp_path / "s"

    def make(names=("gelu", "smear"), stages=None, analysis=None, **changes):
        values = {"name": "s", "question": "Which?", "base": "smoke", "ablations": list(names)}
        study = Study.model_validate(values | {"stages": STAGES | (stages or {})} | changes)
        loaded = [load_ablation(name) for name in names]
        loaded = [one.model_copy(update={"analysis": one.analysis.model_copy(update=analysis or {})}) for one in loaded]
        return register(study, loaded, folder)

    def results():
        records.write_json(folder / "A" / "gelu" / "runs" / "run_0_seed_1" / "result.json", {})

    def said():
        return analysis.registered(SimpleNamespace(outputs=str(tmp_path), study="s")).data

    return SimpleNamespace(
        register=make, results=results, said=said, folder=folder, sealed=lambda: registration(tmp_path, "s")
    )


def test_seal_time_and_commit(asked, monkeypatch):
    monkeypatch.setattr(records, "git_info", lambda: {"commit": "0123456789abcdef", "branch": "b", "dirty": False})
    before = datetime.now(UTC).replace(microsecond=0)
    assert asked.register() == []
    sealed = asked.sealed()
    content = {key: sealed[key] for key in ("study", "ablations")}
    assert sealed["sha256"] == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    assert before <= datetime.fromisoformat(sealed["registered"]) <= datetime.now(UTC)
    assert sealed["git"]["commit"].startswith("0123") and sealed["deviations"] == []
    assert content["study"]["stages"]["looks"] == [2, 3] and set(content["ablations"]) == {"gelu", "smear"}
    assert asked.said() == (
        f"Registered at {sealed['registered']}, 0123456789, seal {sealed['sha256'][:12]}. "
        "**Confirmatory**: nothing was changed since."
    )


def test_uncommitted_changes_are_said(asked, monkeypatch):
    monkeypatch.setattr(records, "git_info", lambda: {"commit": None, "dirty": True})
    asked.register()
    assert "no commit with uncommitted changes" in asked.said()


def test_the_seal_does_not_depend_on_the_order_of_keys_nor_on_how_many_run_at_once(asked):
    asked.register()
    first = asked.sealed()["sha256"]
    asked.register(stages=dict(reversed(STAGES.items())), notebooks_at_once=7)
    assert asked.sealed()["sha256"] == first
    asked.results()
    assert asked.register(stages=dict(reversed(STAGES.items())), notebooks_at_once=7) == []


def test_what_is_changed_before_any_result_is_sealed_anew(asked):
    asked.register()
    first = asked.sealed()["sha256"]
    assert asked.register(stages={"alpha": 0.01}) == []
    assert asked.sealed()["sha256"] != first and "Confirmatory" in asked.said()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"stages": {"alpha": 0.01}}, "study.stages.alpha: registered 0.05, now 0.01"),
        ({"stages": {"looks": [2]}}, "study.stages.looks: registered [2, 3], now [2]"),
        ({"stages": {"A": {"seeds": [1, 3]}}}, "study.stages.A.seeds: registered [1, 2], now [1, 3]"),
        ({"stages": {"futility": 1}}, "study.stages.futility: registered 0.35, now 1.0"),
        ({"names": ["gelu"], "analysis": {"metric": "hellaswag_error"}}, "ablations.gelu.analysis.metric: registered"),
        ({"names": ["gelu"], "analysis": {"margin": 0.5}}, "ablations.gelu.analysis.margin: registered"),
        ({"question": "Another?"}, "study.question: registered Which?, now Another?"),
    ],
    ids=str,
)
def test_what_is_changed_after_a_result_is_a_deviation(asked, change, line):
    first = {"names": change["names"]} if "names" in change else {}
    asked.register(**first)
    before = asked.sealed()
    asked.results()
    (found,) = asked.register(**change)
    assert found.startswith(line)
    after = asked.sealed()
    assert after == before | {"deviations": [found]}, "what was sealed stays"
    assert "**Exploratory**" in asked.said() and f"- {found}" in asked.said() and "Confirmatory" not in asked.said()
    assert asked.register(**first) == [found], "a change that was taken back stays on the list"
    assert asked.register(**change) == [found]


def test_an_ablation_added_or_left_out_is_one_line(asked):
    asked.register()
    asked.results()
    found = asked.register(names=["gelu", "no_rope"])
    assert "ablations.smear: left out" in found and "ablations.no_rope: added" in found
    assert [line for line in found if line.startswith("study.")] == [
        "study.ablations: registered ['gelu', 'smear'], now ['gelu', 'no_rope']"
    ]
    assert len(found) == 3


def test_money_decides_nothing_that_is_claimed(asked):
    """A study that stopped for its budget tells the reader to raise it."""
    asked.register()
    asked.results()
    dear = {"budget_dollars": 90.0, "reserve_dollars": 9.0, "C": STAGES["C"] | {"dollars_per_run": 2.0}}
    assert asked.register(stages=dear) == [] and "Confirmatory" in asked.said()


@pytest.mark.parametrize("change", [{"overrides": {"train.steps": 9}}, {"base": "quickstart"}], ids=str)
def test_other_numbers_are_another_study(asked, change):
    asked.register()
    asked.results()
    first = asked.sealed()
    records.write_json(asked.folder / "decision.json", {"claims": ["old"]})
    assert asked.register(**change) == []
    (aside,) = asked.folder.glob("registration.json.*")
    assert records.read_json(aside) == first and asked.sealed()["sha256"] != first["sha256"]
    assert decision(asked.folder.parent, "s") is None, "nor do its claims stand for the new one"
    assert asked.register(**change, stages={"alpha": 0.01}) != [], "there are results, if only older ones"


def test_experiments_of_no_study_are_not_registered(asked):
    assert asked.sealed() is None and "Not registered as a study" in asked.said()
    asked.register()
    shutil.rmtree(asked.folder)
    assert asked.sealed() is None
