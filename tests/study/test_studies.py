"""Study files: what is refused and in which sentence; repeats with their places, seeds, steps and report."""

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from gptlib import records
from gptlib.config import ConfigError, load_config
from gptlib.study import runner
from gptlib.study.hypothesis import load_ablation
from gptlib.study.studies import Staging, Study, load_study

STAGES: dict[str, Any] = {
    "A": {"seeds": [1, 2], "overrides": {"train.steps": "x1/5"}},
    "B": {"seeds": [11, 12, 13], "overrides": {"train.steps": "x1/2", "optim.lr_scale": 2}},
    "C": {"seeds": [21, 22, 23]},
    "looks": [2, 3],
}
STUDY: dict[str, Any] = {"name": "s", "question": "Which?", "base": "smoke", "ablations": ["gelu", "smear"]}


def load(tmp_path, **changes):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(STUDY | changes))
    return load_study(tmp_path / "s.yaml")


# --- stages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"C": {"seeds": [21, 22]}}, "C: 2 seeds for a last look at 3; list as many"),
        ({"C": {"seeds": [1, 11, 12]}}, "seeds [1, 11, 12] stand in two stages; a claim needs seeds that no earlier"),
        ({"A": {"seeds": [1, 1]}}, "seeds=[1, 1]: give at least one, each once"),
        ({"A": {"seeds": [1]}}, "screen_seeds=1: give at least 2, so that noise can be seen, or 0 to leave it out"),
        ({"B": {"seeds": [1]}}, "check_seeds=1: give at least 2"),
        ({"looks": [1, 3]}, "looks=[1, 3]: give growing numbers of seeds, the first at least 2"),
        ({"looks": [3, 2]}, "looks=[3, 2]: give growing numbers"),
        ({"looks": []}, "looks=[]: give growing numbers"),
        ({"alpha": 0.0001}, "alpha=0.0001: give the chance of a false claim, from 0.001"),
        ({"alpha": 0.5}, "Input should be less than 0.5"),
        ({"keep": 0}, "Input should be greater than 0"),
        ({"promote": 0}, "Input should be greater than or equal to 1"),
        ({"futility": 1.5}, "Input should be less than or equal to 1"),
        ({"pivots": -1}, "Input should be greater than or equal to 0"),
        ({"budget_dollars": 5, "reserve_dollars": 5}, "reserve_dollars=5 leaves nothing of 5"),
        ({"C": {"seeds": [21, 22, 23], "overrides": {"train.step": 3}}}, "train.step"),
        ({"C": {"seeds": [21, 22, 23], "devices": 0}}, "Input should be greater than or equal to 1"),
        ({"D": {"seeds": [1]}}, "Extra inputs are not permitted"),
    ],
    ids=str,
)
def test_stages_that_do_not_fit_are_refused_in_a_sentence(changes, message):
    with pytest.raises((ValidationError, ConfigError)) as error:
        Staging.model_validate(STAGES | changes)
    assert message in str(error.value)


def test_a_study_names_the_key_that_does_not_fit(tmp_path):
    with pytest.raises(ConfigError) as error:
        load(tmp_path, stages=STAGES | {"looks": [2, 4]})
    assert "C: 3 seeds for a last look at 4" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"base": ["smoke", "quickstart"]},
            "stages: a staged study has one base, no interactions, repeats or stable_lr",
        ),
        ({"interactions": [["gelu", "smear"]]}, "stages: a staged study has one base"),
        ({"repeats": 2}, "stages: a staged study has one base"),
        ({"stable_lr": {"baseline": [1]}}, "stages: a staged study has one base"),
        ({"ablations": ["gelu", "adamw_tuned"]}, "adamw_tuned: a staged study cannot tune, nor give arms other"),
    ],
    ids=str,
)
def test_what_a_staged_study_cannot_do(tmp_path, changes, message):
    with pytest.raises(ConfigError) as error:
        load(tmp_path, stages=STAGES, **changes)
    assert message in str(error.value)


def test_a_staged_study_has_one_metric(tmp_path):
    values = load_ablation("smear").model_dump(mode="json")
    values["analysis"]["metric"] = "hellaswag_error"
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(values))
    names = ["gelu", str(tmp_path / "other.yaml")]
    assert load(tmp_path, ablations=names)
    with pytest.raises(ConfigError, match="compares by one metric, not by final_val_loss and hellaswag_error$"):
        load(tmp_path, ablations=names, stages=STAGES)


def test_a_factor_is_one_of_the_studys_own_value():
    base = load_config("smoke", {"train.steps": 200})
    staging = Staging.model_validate(STAGES)
    assert [staging.overrides(name, base) for name in "ABC"] == [
        {"train.steps": 40},
        {"train.steps": 100, "optim.lr_scale": 2},
        {},
    ]
    assert list(staging.stages()) == ["A", "B", "C"]
    without = Staging.model_validate({key: value for key, value in STAGES.items() if key != "A"})
    assert list(without.stages()) == ["B", "C"] and without.rule().screen_seeds == 0
    rule = staging.rule()
    assert (rule.alpha, rule.screen_seeds, rule.check_seeds, rule.looks) == (0.05, 2, 3, (2, 3))


# --- repeats ----------------------------------------------------------------------------------------------------


def test_repeats_need_seeds_that_do_not_meet():
    assert Study.model_validate(STUDY | {"seeds": [1, 1000], "repeats": 2}).seeds_of(2) == [1001, 2000]
    with pytest.raises(ValidationError, match="repeats: the seeds .* would overlap; keep them within 1000"):
        Study.model_validate(STUDY | {"seeds": [1, 1001], "repeats": 2})
    for repeats in (0, 100):
        with pytest.raises(ValidationError, match="repeats"):
            Study.model_validate(STUDY | {"repeats": repeats})


def test_the_seeds_of_forty_repeats_are_all_different():
    study = load_study("aa")
    seeds = [seed for n in range(1, study.repeats + 1) for seed in study.seeds_of(n)]
    assert len(set(seeds)) == len(seeds) == 200 and study.seeds_of(1) == study.seeds


@pytest.fixture
def repeated(tmp_path, outputs, overrides):
    values = {"seeds": [42, 43], "repeats": 3, "overrides": overrides}
    return runner._Run(load(tmp_path, **values), outputs)


def finish(step):
    summary = {"fingerprint": step.plan.fingerprint, "seeds": list(step.plan.seeds), "status": "complete"}
    summary["hypothesis"] = step.plan.ablation.model_dump(mode="json") if step.plan.ablation else None
    difference = {key: list(pair) for key, pair in step.plan.difference.items()}
    records.write_json(step.plan.folder / "summary.json", summary | {"difference": difference, "end_time": "now"})
    records.write_text(step.copy, "{}")


def test_places_and_steps_of_repeats(repeated):
    assert [(place.stage, place.seeds, place.label) for place in repeated.repeats] == [
        ("full-02", [1042, 1043], "repeat-02"),
        ("full-03", [2042, 2043], "repeat-03"),
    ]
    steps = repeated.planned(repeated.repeats[0], list(repeated.ablations.values()))
    assert [step.name for step in steps] == ["repeat-02.gelu", "repeat-02.smear"]
    for step in steps:
        given = step.parameters
        assert (given["stage"], given["seeds"], given["study"]) == ("full-02", [1042, 1043], "s")
        assert step.copy == repeated.folder / "full-02" / step.plan.variant / "notebook.ipynb"
    assert steps[0].plan.baseline().folder == repeated.folder / "full-02" / "baseline"


def test_the_report_has_the_repeats_that_are_finished(repeated):
    main, asked = repeated.places[0], list(repeated.ablations.values())
    steps = {main.stage: repeated.planned(main, [None, *asked])}
    steps |= {place.stage: repeated.planned(place, asked) for place in repeated.repeats}
    for step in [*steps["full"], *steps["full-02"], steps["full-03"][0]]:
        finish(step)
    analysis = repeated.analysis_step(main, steps, repeated._reported(main, steps))
    given = analysis.parameters
    assert given["repeats"] == {"full-02": [1042, 1043]} and given["missing"] == ["repeat-03.smear"]
    assert given["ablations"] == ["gelu", "smear"] and given["ladder"] == {} and given["stage"] == "full"
    finish(steps["full-03"][1])
    again = repeated.analysis_step(main, steps, repeated._reported(main, steps))
    assert list(again.parameters["repeats"]) == ["full-02", "full-03"] and again.key != analysis.key


def test_the_report_is_made_again_where_its_registration_or_decision_says_something_else(repeated):
    main = repeated.places[0]
    steps = {main.stage: [], "full-02": [], "full-03": []}

    def key():
        return repeated.analysis_step(main, steps, []).key

    first = key()
    records.write_json(repeated.folder / "decision.json", {"verdict": "a", "written": 1})
    decided = key()
    records.write_json(repeated.folder / "decision.json", {"verdict": "a", "written": 2})
    assert first != decided == key()
    records.write_json(repeated.folder / "registration.json", {"deviations": ["x"]})
    assert key() != decided
