"""Every file in params/ablations: complete, trainable, and a change that reaches the numbers of a run."""

import math
from functools import lru_cache

import pytest
import torch

from gptlib.config import ConfigError, load_config, project_root, require_only
from gptlib.device import Place
from gptlib.fields import ModelConfig
from gptlib.study.hypothesis import load_ablation
from gptlib.train import train
from gptlib.yaml12 import read_yaml

FILES = sorted((project_root() / "params" / "ablations").glob("*.yaml"))
KEYS = {
    "variant", "hypothesis", "independent_variable", "dependent_variables", "controls", "change", "match", "why",
    "expect", "analysis", "source",
}  # fmt: skip

# What makes a base a run of a second on the tiny dataset of tests/conftest.py. Four layers, so that two have value
# embeddings and one can join late; a batch that can be halved and still grow; a second step that is early in the run,
# since the blocks have no gradient in the first.
SMALL = {
    "train.steps": 6,
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


def variant_of(ablation):
    """The first base where the change differs from what is there, and the variant of it."""
    reasons = []
    for base in BASES:
        try:
            variant = ablation.apply(small(base))
            require_only(small(base), variant, ablation.change)
            return base, variant
        except ConfigError as error:
            reasons.append(f"{base}: {error}")
    raise AssertionError("\n".join(reasons))


@pytest.fixture(scope="module")
def trained(tiny_dataset):
    """Weights, result and log of a configuration, trained once."""

    @lru_cache
    def runs(text):
        torch.set_num_threads(1)
        rows = []
        config = small("smoke").model_validate_json(text)
        model, result = train(config, tiny_dataset, 1, Place(torch.device("cpu")), rows.append)
        return model.state_dict(), result, rows

    return lambda config: runs(config.model_dump_json())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_ablation_file_says_everything(path):
    values, _ = read_yaml(path)
    assert set(values) == KEYS and values["variant"] == path.stem
    assert all(values[key] for key in KEYS)
    assert set(values["analysis"]) >= {"metric", "test", "alpha", "margin"} and set(values["expect"]) >= {"direction"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_ablation_trains_and_its_change_reaches_the_run(path, trained):
    ablation = load_ablation(path)
    base, variant = variant_of(ablation)
    before, after = trained(small(base)), trained(variant)
    for _, result, _ in (before, after):
        assert result["status"] == "finished" and math.isfinite(result["final_val_loss"])
    assert after[1]["final_step"] == variant.train.steps
    weights = [{name: tuple(weight.shape) for name, weight in run[0].items()} for run in (before, after)]
    changed = weights[0] != weights[1] or any(not torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert changed, f"the weights after {variant.train.steps} steps are those of {base}"
    assert after[1]["final_val_loss"] != before[1]["final_val_loss"]


@pytest.mark.parametrize("path", [p for p in FILES if "schedule." in p.read_text()], ids=lambda path: path.stem)
def test_what_a_schedule_changes_is_in_the_log_and_changes(path, trained):
    ablation = load_ablation(path)
    base, variant = variant_of(ablation)
    sections = {key.split(".")[1] for key in ablation.change if key.count(".") == 2 and key.startswith("schedule.")}
    for logged in (LOGGED[section] for section in sections - NOT_LOGGED):
        assert len({row[logged] for row in trained(variant)[2] if "train_loss" in row}) > 1
        assert not any(logged in row for row in trained(small(base))[2])


def test_most_ablations_are_of_the_plainest_base():
    elsewhere = [path.stem for path in FILES if variant_of(load_ablation(path))[0] != "smoke"]
    assert len(elsewhere) <= 3, elsewhere


def test_every_base_of_these_tests_is_needed():
    assert {variant_of(load_ablation(path))[0] for path in FILES} == set(BASES)


def test_two_files_never_ask_the_same():
    changes = {}
    for path in FILES:
        changes.setdefault(str(sorted(load_ablation(path).change.items(), key=str)), []).append(path.stem)
    assert [stems for stems in changes.values() if len(stems) > 1] == []


def test_every_switch_of_the_model_is_in_some_ablation():
    touched = {key for path in FILES for key in load_ablation(path).change}
    switches = {name for name in ModelConfig.model_fields if f"model.{name}" not in touched}
    assert switches - set(NO_ABLATION) == set(), "a switch without a question"
    assert set(NO_ABLATION) - switches == set(), "explained, but there is one"
