"""Configuration: inheritance, one override grammar, every error in one line with its remedy, the difference gate."""

import itertools

import pytest

from gptlib.config import (
    ConfigError,
    diff,
    dotted_keys,
    fingerprint,
    load_config,
    parse_overrides,
    project_root,
    require_only,
    validate,
    with_changes,
)
from gptlib.fields import RunConfig
from gptlib.study.studies import Study
from gptlib.yaml12 import parse_scalar, read_yaml


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_scalars_follow_yaml_1_2(tmp_path):
    text = "a: 3e-4\nb: 010\nc: no\nd: null\ne: 1_000\nf: 2024-01-01\ng: true\nh: -2.5E+3\ni: '7'\n"
    values, lines = read_yaml(write(tmp_path / "x.yaml", text))
    assert values == {
        "a": 0.0003, "b": 10, "c": "no", "d": None, "e": 1000, "f": "2024-01-01", "g": True, "h": -2500.0, "i": "7",
    }  # fmt: skip
    assert lines["f"] == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "line 2: key 'a' is given twice"),
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("- 1\n", "expected `key: value`"),
        ("a: [1\n", "not valid YAML"),
    ],
)
def test_bad_yaml_is_one_line(tmp_path, text, message):
    path = write(tmp_path / "x.yaml", text)
    with pytest.raises(ConfigError) as error:
        read_yaml(path)
    assert message in str(error.value) and "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_missing_file_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'smoke'"):
        load_config("smke")


def test_a_billion_laughs_are_refused(tmp_path):
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 30)]
    with pytest.raises(ConfigError, match="aliases"):
        read_yaml(write(tmp_path / "bomb.yaml", "\n".join(lines)))


def test_inheritance_merges_sections_and_the_file_wins(tmp_path):
    write(tmp_path / "below.yaml", "train: {steps: 7, batch_rows: 4}\nmodel: {num_layers: 3}\n")
    path = write(tmp_path / "above.yaml", "base: below\ntrain: {steps: 9}\n")
    config = load_config(path)
    assert (config.train.steps, config.train.batch_rows, config.model.num_layers) == (9, 4, 3)
    assert load_config(path, ["train.steps=11"]).train.steps == 11


def test_circular_inheritance_is_refused(tmp_path):
    write(tmp_path / "a.yaml", "base: b\n")
    write(tmp_path / "b.yaml", "base: a\n")
    with pytest.raises(ConfigError, match="circle"):
        load_config(tmp_path / "a.yaml")


def test_all_errors_at_once_with_file_line_and_suggestion(tmp_path):
    path = write(tmp_path / "x.yaml", "train:\n  steps: 0\nmodel:\n  num_layer: 3\noptim:\n  muon: {lr: fast}\n")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert any("line 2" in x and "train.steps=0" in x and "greater than or equal to 1" in x for x in lines)
    assert any("line 4" in x and "did you mean 'model.num_layers'" in x for x in lines)
    assert any("line 6" in x and "optim.muon.lr='fast'" in x for x in lines)


@pytest.mark.parametrize("value", ["nan", ".nan", "inf", "-.inf"])
def test_nan_and_inf_are_refused(value):
    with pytest.raises(ConfigError):
        load_config("smoke", [f"optim.muon.lr={value}"])


def test_a_number_that_arrives_as_a_string_is_understood():
    assert load_config("smoke", {"optim.muon.lr": "3e-4"}).optim.muon.lr == 3e-4
    assert load_config("smoke", ["optim.muon.lr=3e-4"]).optim.muon.lr == 3e-4
    assert parse_scalar("[1, 2e1]") == [1, 20.0]


def test_overrides_refuse_unknown_keys_and_sections():
    with pytest.raises(ConfigError, match="did you mean 'optim.muon.lr'"):
        parse_overrides(["optim.mun.lr=1"])
    with pytest.raises(ConfigError, match="unknown key 'optim.muon'"):
        parse_overrides({"optim.muon": {"lr": 1}})
    with pytest.raises(ConfigError, match="section.key=value"):
        parse_overrides(["steps"])


def test_every_misspelt_key_gets_the_right_suggestion():
    keys = dotted_keys(RunConfig, leaves_only=True)
    missed = []
    for key in keys:
        broken = key[:-2] + key[-1] if len(key.rsplit(".", 1)[1]) > 3 else key + "x"
        with pytest.raises(ConfigError) as error:
            parse_overrides({broken: 1})
        if f"did you mean {key!r}" not in str(error.value):
            missed.append(key)
    assert len(missed) <= 0.05 * len(keys), missed


def test_cross_field_rules():
    with pytest.raises(ConfigError, match="not a multiple of num_heads"):
        load_config("smoke", ["model.num_heads=3"])
    with pytest.raises(ConfigError, match="not a multiple of hardware.ranks"):
        load_config("smoke", ["hardware.ranks=3"])
    with pytest.raises(ConfigError, match=r"needs data\.path"):
        load_config("smoke", ["data.corpus=text"])


def test_a_config_is_frozen_and_survives_json():
    config = load_config("quickstart")
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 3
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_the_difference_gate():
    base = load_config("smoke")
    variant = with_changes(base, {"model.qk_norm": False})
    assert diff(base, variant) == {"model.qk_norm": (True, False)}
    require_only(base, variant, ["model.qk_norm"])
    with pytest.raises(ConfigError, match=r"outside its declared change: train\.steps"):
        require_only(base, with_changes(variant, {"train.steps": 99}), ["model.qk_norm"])
    with pytest.raises(ConfigError, match="has no effect"):
        require_only(base, base, ["model.qk_norm"])


def test_fingerprints_depend_on_values_and_not_on_order():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_all_shipped_parameter_files_load():
    root = project_root() / "params"
    from gptlib.study.hypothesis import load_ablation
    from gptlib.study.studies import load_study

    bases = [load_config(path) for path in (root / "base").glob("*.yaml")]
    ablations = [load_ablation(path) for path in (root / "ablations").glob("*.yaml")]
    studies = [load_study(path) for path in (root / "studies").glob("*.yaml")]
    assert len(bases) >= 3 and len(ablations) >= 6 and len(studies) >= 2


def test_every_shipped_study_passes_the_difference_gate_on_its_own_base_in_every_profile():
    from gptlib.matching import match, usual_knob
    from gptlib.study.hypothesis import load_ablation
    from gptlib.study.prices import vocabulary
    from gptlib.study.studies import load_study

    for path in (project_root() / "params" / "studies").glob("*.yaml"):
        for profile in ("", *load_study(path).profiles):
            study = load_study(path, profile=profile)
            for base, name in itertools.product(study.bases, study.ablations):
                config, ablation = load_config(base, study.overrides), load_ablation(name)
                variant = ablation.apply(config)
                require_only(config, variant, ablation.change)
                assert diff(config, variant).keys() == ablation.change.keys()
                if ablation.match in ("steps", "nothing", "params", "flops", "tokens"):  # no measurement is needed
                    knob = ablation.free or usual_knob(ablation.match, config)
                    turn, vocab = knob not in ablation.change, vocabulary(config)
                    matched = match(variant, config, ablation.match, knob, vocab_size=vocab, turn=turn)
                    assert set(matched.knobs).isdisjoint(ablation.change)


@pytest.mark.parametrize("name", ["staged_quick", "speedrun_staged", "aa"])
def test_every_arm_of_every_stage_and_repeat_of_a_shipped_study_resolves(name):
    from gptlib.study.budget import staged_config
    from gptlib.study.hypothesis import load_ablation
    from gptlib.study.studies import load_study

    study = load_study(name)
    stages = list(study.stages.stages()) if study.stages else [None]
    assert (len(stages) > 1) != (study.repeats > 1)
    for stage, ablation in itertools.product(stages, study.ablations):
        config, change = staged_config(study, stage), load_ablation(ablation)
        require_only(config, change.apply(config), change.change)


def test_lists_and_words_of_a_file_are_overrides_too():
    config = load_config("smoke", ["model.skip_attention=[0, 1]", "model.window_pattern=SL", "model.value_layers=[]"])
    assert config.model.skip_attention == (0, 1) and config.model.window_pattern == "SL"
    assert with_changes(config, {"model.skip_attention": []}).model.skip_attention == ()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.skip_attention=[2]"], "model.skip_attention=[2]: give layers from 0 to 1, each once"),
        (["model.value_layers=[1, 1]"], "model.value_layers=[1, 1]: give layers from 0 to 1, each once"),
        (["model.value_layers=[-1]"], "model.value_layers=[-1]: give layers from 0 to 1"),
        (["model.num_kv_heads=3"], "model.num_heads=2 is not a multiple of num_kv_heads=3"),
        (["model.model_dim=34"], "model.position=rope needs an even head size, not 17"),
        (["model.norm_bias=true"], "model.norm_bias=true needs norm=layer"),
        (["model.window_pattern=SX"], "model.window_pattern='SX': String should match pattern"),
        (["model.dropout=1"], "model.dropout=1: Input should be less than 1"),
        (["data.rows=shuffled"], "data.rows='shuffled': Input should be 'documents', 'stream', 'ordered' or 'random'"),
    ],
)
def test_a_switch_that_does_not_fit_is_one_line_with_its_remedy(overrides, message):
    with pytest.raises(ConfigError) as error:
        load_config("smoke", overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_lists_survive_json_and_compare_by_value():
    lists = {"model.skip_attention": [0], "schedule.batch.stages": [0.5, 1], "schedule.batch.latest": [0.5]}
    config = load_config("smoke", lists)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    assert diff(config, RunConfig.model_validate_json(config.model_dump_json())) == {}
    assert diff(load_config("smoke"), config) == {
        "model.skip_attention": ([], [0]),
        "schedule.batch.stages": ([1.0], [0.5, 1.0]),
        "schedule.batch.latest": ([], [0.5]),
    }


@pytest.mark.parametrize("changes", [{"schedule.windows.start": 0.5}, {"schedule.depth.start": 0.5}], ids=str)
def test_what_would_compile_at_every_step_is_refused(changes):
    compiled = {"hardware.compile": True}
    with pytest.raises(ConfigError, match="set hardware.compile=false") as error:
        load_config("smoke", changes | compiled)
    assert "\n" not in str(error.value)
    assert load_config("smoke", changes) and load_config("smoke", compiled)
    assert load_config("smoke", {"schedule.depth.start": 0.5, "schedule.depth.drop": 0} | compiled)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule.curriculum.stages=[0.5, 0.7]"], "override: schedule.curriculum: stages=[0.5, 0.7]: give shares"),
        (["model.num_heads=3"], "override: model.model_dim=32 is not a multiple of num_heads=3"),
        (["model.skip_attention=1"], "override: model.skip_attention=1: give a list, e.g. [1]"),
    ],
)
def test_a_rule_over_several_keys_names_the_place_that_broke_it_and_the_key(overrides, message):
    with pytest.raises(ConfigError) as error:
        load_config("smoke", overrides)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(("wrong", "meant"), [("alhpa", "stages.alpha"), ("A.seads", "stages.A.seeds")])
def test_a_key_of_a_section_that_may_be_left_out_is_suggested(wrong: str, meant: str) -> None:
    key, _, leaf = wrong.rpartition(".")
    stages = {"C": {"seeds": [1, 2, 3]}, "looks": [2, 3]} | ({key: {"seeds": [4, 5], leaf: 1}} if key else {wrong: 1})
    values = {"name": "x", "question": "?", "base": "smoke", "ablations": ["gelu"], "stages": stages}
    with pytest.raises(ConfigError, match=f"unknown key 'stages.{wrong}'; did you mean '{meant}'"):
        validate(Study, values, "x.yaml")
