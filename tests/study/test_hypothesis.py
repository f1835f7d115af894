"""Declarations: what is misspelt, missing or listed twice is refused in a line with the nearest remedy."""

import pytest
import yaml

from gptlib.config import ConfigError, diff, load_config, require_only
from gptlib.study.hypothesis import Ablation, Analysis, Expectation, load_ablation, load_study
from gptlib.study.plan import plan_experiment

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
        ({"match": "tim"}, "'steps', 'tokens', 'params', 'flops', 'time', 'memory' or 'nothing'"),
        ({"analysis": {"alpha": 0.7}}, "analysis.alpha=0.7: Input should be less than 0.5"),
        ({"analysis": {"margin": -0.01}}, "analysis.margin=-0.01"),
        ({"analysis": {"test": "anova"}}, "'paired', 'welch' or 'pooled'"),
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
    said = refused(load_ablation, ablation(match="tim", why="because", hypotesis="x"))
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


# --- factors ----------------------------------------------------------------------------------------------------


def changed(change, **model):
    """The configuration that `change` makes of the smoke run with some fields of the model set."""
    base = load_config("smoke", {f"model.{key}": value for key, value in model.items()})
    ablation = Ablation.model_validate(ABLATION | {"change": change, "independent_variable": next(iter(change))})
    return base, ablation.apply(base)


@pytest.mark.parametrize(
    ("key", "old", "factor", "new"),
    [
        ("num_layers", 6, "x2/3", 4),
        ("num_layers", 4, "x2/3", 3),
        ("num_layers", 6, "x1.5", 9),
        ("num_layers", 1, "x3", 3),
        ("num_heads", 2, "x1/2", 1),
        ("num_heads", 1, "x1/2", 1),  # a whole number stays at least 1
        ("num_layers", 2, "x1/100", 1),
        ("mlp_hidden", 96, "x1/3", 32),
        ("mlp_ratio", 4.0, "x2/3", 8 / 3),
        ("mlp_ratio", 3.0, "x1/10", 0.3),
        ("rope_theta", 10_000.0, "x0.1", 1000.0),
        ("logit_softcap", 15.0, "x2", 30.0),
    ],
)
def test_a_factor_is_taken_of_the_baselines_value_and_keeps_its_type(key, old, factor, new):
    base, variant = changed({f"model.{key}": factor}, **{key: old})
    value = getattr(variant.model, key)
    assert value == pytest.approx(new, rel=1e-15) and type(value) is type(new)
    assert set(diff(base, variant)) <= {f"model.{key}"}


def test_several_factors_are_taken_of_the_baseline_each():
    _, variant = changed({"model.model_dim": "x3/2", "model.num_heads": "x3/2", "train.steps": "x10"})
    assert (variant.model.model_dim, variant.model.num_heads, variant.train.steps) == (48, 3, 240)
    _, variant = changed({"optim.muon.lr": "x1/2", "optim.lr_scale": "x1/6"})
    assert (variant.optim.muon.lr, variant.optim.lr_scale) == (0.02, 1 / 6)


@pytest.mark.parametrize(
    ("key", "old"),
    [
        ("model.qk_norm", "True"),
        ("model.activation", "'relu2'"),
        ("model.skip_attention", "[]"),
        ("model.mlp_hidden", "0"),  # 0 is no size: it says that the size follows others
    ],
)
def test_a_factor_of_what_is_no_number_is_refused_in_one_line(key, old):
    with pytest.raises(ConfigError) as error:
        changed({key: "x2"})
    assert str(error.value) == f"change: {key}=x2: a factor needs a number to multiply, the baseline has {old}"


@pytest.mark.parametrize("value", ["x", "x2/0", "x-1", "xx2", "2x", "x2/", "x/2", "x 2", "X2", "x1/2/3", "x2/1.5"])
def test_what_is_no_factor_is_left_to_the_fields_own_error(value):
    with pytest.raises(ConfigError) as error:
        changed({"model.num_layers": value})
    assert f"model.num_layers={value!r}: Input should be a valid integer" in str(error.value)
    assert "\n" not in str(error.value)


def test_words_and_numbers_in_a_change_are_as_they_are_written():
    _, variant = changed({"model.activation": "silu", "model.num_layers": 5, "optim.muon.lr": "3e-2"})
    assert (variant.model.activation, variant.model.num_layers, variant.optim.muon.lr) == ("silu", 5, 0.03)


def test_a_factor_that_does_not_fit_is_refused_by_what_it_became():
    with pytest.raises(ConfigError, match=r"model\.model_dim=16 is not a multiple of num_heads=3"):
        changed({"model.num_heads": "x3/2"}, model_dim=16)
    with pytest.raises(ConfigError, match=r"rope_fraction=2\.0: Input should be less than or equal to 1"):
        changed({"model.rope_fraction": "x2"})


def test_a_factor_survives_the_file(ablation):
    loaded = load_ablation(ablation(change={"model.num_heads": "x1/2"}, independent_variable="model.num_heads"))
    assert loaded.change == {"model.num_heads": "x1/2"}
    assert loaded.apply(load_config("smoke")).model.num_heads == 1


def test_the_difference_gate_sees_what_a_factor_became():
    base, variant = changed({"model.num_layers": "x2/3"}, num_layers=6)
    require_only(base, variant, ["model.num_layers"])
    assert diff(base, variant) == {"model.num_layers": (6, 4)}
    base, variant = changed({"model.num_layers": "x2/3"}, num_layers=1)
    with pytest.raises(ConfigError, match=r"has no effect: the baseline has this model\.num_layers already"):
        require_only(base, variant, ["model.num_layers"])


def test_a_plan_has_what_a_factor_became(outputs, tiny):
    change = {"model.num_layers": "x2/3", "train.steps": "x3/2"}
    asked = ABLATION | {"change": change, "independent_variable": "model.num_layers", "match": "nothing"}
    ablation, base = Ablation.model_validate(asked), tiny({"model.num_layers": 6})
    plan = plan_experiment(outputs, "study", "full", base, [1], ablation)
    assert plan.difference == {"model.num_layers": (6, 4), "train.steps": (4, 6)}
    assert (plan.config.model.num_layers, plan.config.train.steps) == (4, 6) and plan.baseline().config == base
    written = plan_experiment(outputs, "study", "full", plan.config, [1])
    assert written.fingerprint == plan.fingerprint, "the same numbers, however they were given"
    with pytest.raises(ConfigError, match="has no effect"):
        plan_experiment(outputs, "study", "full", tiny({"model.num_layers": 1}), [1], ablation)


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
