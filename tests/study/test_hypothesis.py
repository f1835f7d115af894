"""Declarations: what is misspelt, missing or listed twice is refused in a line with the nearest remedy."""

import pytest
import yaml

from gptlib.config import ConfigError, diff, load_config
from gptlib.study.hypothesis import Analysis, Expectation, load_ablation, load_study

ABLATION = {
    "variant": "no_qk_norm",
    "hypothesis": "Without QK-norm the loss is higher.",
    "independent_variable": "model.qk_norm",
    "change": {"model.qk_norm": False},
    "why": "It has no parameters.",
}
STUDY = {"name": "tiny", "question": "What?", "base": "smoke", "ablations": ["gelu"], "seeds": [1, 2]}


@pytest.fixture
def ablation(tmp_path):
    """Writes an ablation file with some keys changed (None: left out)."""

    def write(**changes):
        path = tmp_path / f"{changes.get('variant', 'ablation')}.yaml"
        values = {key: value for key, value in (ABLATION | changes).items() if value is not None}
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return write


@pytest.fixture
def study(tmp_path):
    def write(**changes):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(STUDY | changes, sort_keys=False))
        return path

    return write


def refused(load, path):
    with pytest.raises(ConfigError) as error:
        load(path)
    return str(error.value)


# --- ablations --------------------------------------------------------------------------------------------------


def test_an_ablation_changes_what_it_says(ablation):
    base = load_config("smoke")
    loaded = load_ablation(ablation())
    assert diff(base, loaded.apply(base)) == {"model.qk_norm": (True, False)}
    assert loaded.analysis == Analysis() and loaded.match == "steps"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "baseline"}, "baseline.yaml line 1: variant='baseline': use letters"),
        ({"variant": "../up"}, "variant='../up'"),
        ({"change": {"model.qk_nrm": False}}, "unknown key 'model.qk_nrm'; did you mean 'model.qk_norm'?"),
        ({"change": {}}, "change={}"),
        ({"independent_variable": "model.position"}, "'model.position' is not among the changed keys"),
        ({"hypotesis": "x"}, "unknown key 'hypotesis'; did you mean 'hypothesis'?"),
        ({"hypothesis": None}, "key 'hypothesis' is missing"),
        ({"why": "because"}, "at least 10 characters"),
        ({"match": "time"}, "'steps' or 'tokens'"),
        ({"analysis": {"alpha": 0.7}}, "analysis.alpha=0.7: Input should be less than 0.5"),
        ({"analysis": {"margin": -0.01}}, "analysis.margin=-0.01"),
        ({"analysis": {"test": "anova"}}, "'paired' or 'welch'"),
        ({"expect": {"percent": [5, 0]}}, "expect.percent=[5.0, 0.0]: give sizes, the smaller first"),
        ({"expect": {"directon": "worse"}}, "did you mean 'expect.direction'"),
    ],
)
def test_a_bad_ablation_is_refused_in_one_line(ablation, changes, message):
    path = ablation(**changes) if changes.get("variant") != "../up" else ablation()
    if changes.get("variant") == "../up":
        path.write_text(path.read_text().replace("variant: no_qk_norm", "variant: ../up"))
    said = refused(load_ablation, path)
    assert message in said and "\n" not in said and path.name in said


def test_every_problem_of_an_ablation_is_said_at_once(ablation):
    said = refused(load_ablation, ablation(match="time", why="because", hypotesis="x"))
    assert len(said.splitlines()) == 3


def test_a_change_that_the_value_does_not_allow_is_refused_when_it_is_applied(ablation):
    loaded = load_ablation(ablation(change={"model.qk_norm": "perhaps"}))
    with pytest.raises(ConfigError, match=r"model\.qk_norm='perhaps'"):
        loaded.apply(load_config("smoke"))


@pytest.mark.parametrize(
    ("load", "name", "nearest"), [(load_ablation, "no_qknorm", "no_qk_norm"), (load_study, "quikstart", "quickstart")]
)
def test_a_misspelt_file_gets_the_nearest(load, name, nearest):
    said = refused(load, name)
    assert f"did you mean {nearest!r}" in said and "\n" not in said


# --- studies ----------------------------------------------------------------------------------------------------


def test_a_study_takes_files_and_names_and_overrides(study, ablation):
    path = study(ablations=["gelu", str(ablation())], overrides={"train.steps": 5, "model.num_layers": 1})
    loaded = load_study(path, ["train.steps=7"])
    assert loaded.overrides == {"train.steps": 7, "model.num_layers": 1}
    assert load_config(loaded.base, loaded.overrides).train.steps == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [42, 42]}, "study.yaml line 6: seeds=[42, 42]: give at least one, each once"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [-1]}, "none negative"),
        ({"ablations": ["gelu", "gelu"]}, "a variant is listed twice: gelu"),
        ({"ablations": ["gleu"]}, "did you mean 'gelu'"),
        ({"ablations": []}, "ablations=[]"),
        ({"overrides": {"train.step": 3}}, "did you mean 'train.steps'"),
        ({"name": "a/b"}, "'a/b': use up to 80 letters"),
        ({"ablatons": []}, "unknown key 'ablatons'; did you mean 'ablations'?"),
        ({"notebooks_at_once": 0}, "notebooks_at_once=0"),
    ],
)
def test_a_bad_study_is_refused_in_one_line(study, changes, message):
    said = refused(load_study, study(**changes))
    assert message in said and "\n" not in said


def test_a_variant_may_not_come_from_two_files(study, ablation, tmp_path):
    first = ablation()
    second = tmp_path / "copy.yaml"
    second.write_text(first.read_text())
    assert "listed twice: no_qk_norm, no_qk_norm" in refused(load_study, study(ablations=[str(first), str(second)]))


# --- expectations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "verdict", "percent", "outcome"),
    [
        ("worse", "worse", 3.0, "met"),
        ("worse", "worse", 5.1, "not met"),
        ("worse", "better", -3.0, "not met"),
        ("worse", "equivalent within 0.01", 0.1, "not met"),
        ("better", "better", -3.0, "met"),
        ("better", "worse", 3.0, "not met"),
        ("none", "equivalent within 0.01", -0.3, "met"),
        ("none", "worse", 0.3, "not met"),
        ("worse", "undecided", 3.0, "open"),
        ("none", "undecided", 0.0, "open"),
        ("worse", "worse", None, "open"),
    ],
)
def test_an_expectation_is_met_by_a_verdict_of_its_direction_and_range(direction, verdict, percent, outcome):
    assert Expectation(direction=direction, percent=(0.0, 5.0)).outcome(verdict, percent) == outcome


@pytest.mark.parametrize("percent", [(5.0, 0.0), (-5.0, 5.0)])
def test_an_expected_range_is_one_of_sizes(percent):
    with pytest.raises(ValueError, match="percent"):
        Expectation(direction="worse", percent=percent)
