"""Every file in params/ablations: complete, trainable, and a change that reaches the numbers of a run."""

import math
from functools import lru_cache

import pytest
import torch

from gptlib.accounting import memory_estimate
from gptlib.config import ConfigError, diff, load_config, project_root
from gptlib.device import Place
from gptlib.fields import ModelConfig
from gptlib.study.arms import Trial, arms
from gptlib.study.hypothesis import load_ablation
from gptlib.train import train
from gptlib.yaml12 import read_yaml

FILES = sorted((project_root() / "params" / "ablations").glob("*.yaml"))
KEYS = {
    "variant", "hypothesis", "independent_variable", "dependent_variables", "controls", "change", "match", "why",
    "expect", "analysis", "source",
}  # fmt: skip
MAY = {"free", "memory_mib", "tune", "tune_seeds"}

# What makes a base a run of a second on the tiny dataset of tests/conftest.py. Four layers, so that two have value
# embeddings and one can join late; a batch that can be halved and still grow; a second step that is early in the run,
# since the blocks have no gradient in the first; a multiple of four, so that half a batch can be made up by more steps.
SMALL = {
    "train.steps": 8,
    "train.batch_rows": 4,
    "eval.every": 0,
    "eval.sample_tokens": 0,
    "model.seq_len": 256,
    "hardware.device": "cpu",
    "hardware.compile": False,
}
BASES = {
    "smoke": {"model.num_layers": 4, "model.model_dim": 16, "model.num_heads": 2},
    "speedrun_cpu": {"model.model_dim": 24},
}
NO_ABLATION = {
    "seq_len": "the context belongs to the data of a base",
    "vocab_multiple": "padding, for the speed of a matrix product",
    "mlp_hidden": "mlp_ratio in other words",
    "short_window": "a size of sliding_window",
    "bigram_rows": "a size of bigram_embeds",
}
LOGGED = {"depth": "active_layers", "windows": "window_share", "curriculum": "seq_len", "batch": "batch_rows"}
NOT_LOGGED = {"momentum"}


@lru_cache
def small(base):
    return load_config(base, SMALL | BASES[base])


@pytest.fixture(scope="module")
def both_arms(dataset_path, tiny_dataset, tmp_path_factory):
    """The first base where an ablation's change differs from what is there, and both arms on it.

    Made as in any study, through match, gate and grid, but for what would have to be run: a step of the variant takes
    4/5 of the baseline's, memory is what is estimated, and of each grid the first point is the best.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trial, "time", lambda *_: {"seconds": [0.010, 0.008]})
        patch.setattr(Trial, "bytes", lambda _, config: memory_estimate(config, tiny_dataset.vocab_size).total)

        @lru_cache
        def of(path):
            reasons, outputs = [], tmp_path_factory.getbasetemp()
            for base in BASES:
                try:
                    rest = dataset_path, outputs, "cpu", lambda *_: 0.0, print
                    return base, arms(load_ablation(path), small(base), *rest)
                except ConfigError as error:
                    reasons.append(f"{base}: {error}")
            raise AssertionError("\n".join(reasons))

        yield of


@pytest.fixture(scope="module")
def trained(tiny_dataset):
    """Weights, result and log of a configuration, trained once."""

    @lru_cache
    def runs(text):
        torch.set_num_threads(1)
        rows = []
        config = small("smoke").model_validate_json(text)
        model, result = train(
            config, tiny_dataset, 1 + config.train.seed_offset, Place(torch.device("cpu")), rows.append
        )
        return model.state_dict(), result, rows

    return lambda config: runs(config.model_dump_json())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_ablation_file_says_everything(path):
    values, _ = read_yaml(path)
    assert set(values) - MAY == KEYS and values["variant"] == path.stem
    assert all(values.values())
    assert set(values["analysis"]) >= {"metric", "test", "alpha", "margin"} and set(values["expect"]) >= {"direction"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_ablation_trains_and_its_change_reaches_the_run(path, both_arms, trained):
    base, made = both_arms(path)
    variant = made.variant
    before, after = trained(made.baseline), trained(variant)
    for _, result, _ in (before, after):
        assert result["status"] == "finished" and math.isfinite(result["final_val_loss"])
    assert after[1]["final_step"] == variant.train.steps
    weights = [{name: tuple(weight.shape) for name, weight in run[0].items()} for run in (before, after)]
    changed = weights[0] != weights[1] or any(not torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert changed, f"the weights after {variant.train.steps} steps are those of {base}"
    assert after[1]["final_val_loss"] != before[1]["final_val_loss"]


@pytest.mark.parametrize("path", [p for p in FILES if "schedule." in p.read_text()], ids=lambda path: path.stem)
def test_what_a_schedule_changes_is_in_the_log_and_changes(path, both_arms, trained):
    ablation, (base, made) = load_ablation(path), both_arms(path)
    sections = {key.split(".")[1] for key in ablation.change if key.count(".") == 2 and key.startswith("schedule.")}
    for logged in (LOGGED[section] for section in sections - NOT_LOGGED):
        assert len({row[logged] for row in trained(made.variant)[2] if "train_loss" in row}) > 1
        assert not any(logged in row for row in trained(small(base))[2])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_arms_differ_in_the_change_the_knob_and_what_is_tuned_and_tuning_is_fair(path, both_arms):
    ablation, (_, made) = load_ablation(path), both_arms(path)
    found = set(diff(made.baseline, made.variant))
    assert set(ablation.change) <= found <= {*ablation.change, *made.match.knobs, *ablation.tune}
    assert bool(made.match.knobs) == (ablation.match not in ("steps", "nothing"))
    assert made.tuning().startswith("tuned alike" if ablation.tune else "not tuned")


def test_most_ablations_are_of_the_plainest_base(both_arms):
    elsewhere = [path.stem for path in FILES if both_arms(path)[0] != "smoke"]
    assert len(elsewhere) <= 3, elsewhere


def test_every_base_of_these_tests_is_needed(both_arms):
    assert {both_arms(path)[0] for path in FILES} == set(BASES)


def test_two_files_never_ask_the_same():
    questions = {}
    for path in FILES:
        ablation = load_ablation(path)
        asked = sorted(ablation.change.items(), key=str), ablation.match, ablation.free, ablation.tune
        questions.setdefault(str(asked), []).append(path.stem)
    assert [stems for stems in questions.values() if len(stems) > 1] == []


def test_every_switch_of_the_model_is_in_some_ablation():
    touched = {key for path in FILES for key in load_ablation(path).change}
    switches = {name for name in ModelConfig.model_fields if f"model.{name}" not in touched}
    assert switches - set(NO_ABLATION) == set(), "a switch without a question"
    assert set(NO_ABLATION) - switches == set(), "explained, but there is one"
