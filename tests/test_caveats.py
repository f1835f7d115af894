"""What a report doubts of itself, and the commands that repeat it."""

import dataclasses
from types import SimpleNamespace

import pytest

from gptlib import caveats, notebook
from gptlib.notebook import RunParameters
from gptlib.study import registration
from gptlib.study.hypothesis import load_ablation
from gptlib.study.studies import load_study


@pytest.fixture
def answered(outputs, overrides, executed, shown):
    """A baseline and two answers: one arm has a third fewer parameters."""
    asked = RunParameters(base="smoke", overrides=overrides, outputs=str(outputs), study="s", seeds=[1, 2])
    answers = [notebook.ablation_of(asked, load_ablation(name)) for name in ("gelu", "no_value_embeds")]
    return SimpleNamespace(parameters=asked, baseline=answers[0].baseline, answers=answers)


def verdict(answer, word, p=0.01):
    return answer._replace(comparison=dataclasses.replace(answer.comparison, verdict=word, p_value=p))


def test_what_was_not_matched_is_named_with_its_ratio_and_a_rival_cause_only_where_it_can_be_one(answered):
    gelu, plain = answered.answers
    old, new = gelu.baseline.costs()["total"], plain.variant.costs()["total"]
    table = caveats.unmatched([gelu, verdict(plain, "worse")])
    assert list(table["matched by"]) == ["steps", "steps"]
    assert "parameters" not in table.loc["gelu", "not matched"]
    assert f"parameters {new / old:.2f}x" in table.loc["no_value_embeds", "not matched"]
    assert "less parameters" in table.loc["no_value_embeds", "could explain the verdict"]
    better = caveats.unmatched([verdict(plain, "better")])
    assert "parameters" not in better.loc["no_value_embeds", "could explain the verdict"]


def test_several_questions_are_counted_and_corrected(answered, monkeypatch):
    monkeypatch.setattr(caveats, "display", lambda thing: None)
    a, b = answered.answers
    text = caveats.critical(answered.baseline, [verdict(a, "worse", 0.04), verdict(b, "worse", 0.001)]).data
    assert "2 were asked, each at a level of 0.05: where nothing differs, 0.1 of them claim something" in text
    assert "Corrected for that (Holm), every claim stands" in text  # 0.04 alone, 2 x 0.001
    text = caveats.critical(answered.baseline, [verdict(a, "worse", 0.04), verdict(b, "worse", 0.03)]).data
    assert "gelu, no_value_embeds would not be claimed" in text  # 2 x 0.03 > 0.05
    text = caveats.critical(answered.baseline, [verdict(a, "undecided", 0.4)]).data
    assert "Several questions" not in text


def test_the_setting_counts_tokens_epochs_and_tokens_a_parameter(answered, tiny_dataset):
    text = caveats.critical(answered.baseline, []).data
    config, costs = answered.baseline.plan.config, answered.baseline.costs()
    tokens = config.train.steps * config.train.batch_rows * config.model.seq_len
    epochs = tokens / sum(map(len, tiny_dataset.tokens("train")))
    assert f"{tokens:,} tokens, {epochs:.2g} epochs, {tokens / costs['total']:.2g} tokens a parameter" in text
    assert "the least compute would take about 20" in text and "Runs without a loss" not in text


def test_lost_runs_are_counted(answered):
    answered.baseline.results[0] = answered.baseline.results[0] | {"status": "diverged"}
    assert "**Runs without a loss.** baseline 1 diverged." in caveats.critical(answered.baseline, []).data


def test_the_same_numbers_need_the_same_commit_machine_and_data(answered):
    text = caveats.rerun(answered.parameters, answered.baseline).data
    summary = answered.baseline.summary()
    assert f"git checkout {summary['git_info']['commit'][:10]}\nmake install\n" in text
    assert all(word in text for word in ("1 thread a run", "torch 2.", answered.baseline.plan.dataset.name))


@pytest.mark.parametrize(
    ("study", "profile", "overrides", "command"),
    [
        ("quickstart", "", {}, ".venv/bin/gptlib study quickstart"),
        ("capacity", "cpu", {}, ".venv/bin/gptlib study capacity --profile cpu"),
        ("novels", "", {"data.path": "/my books"}, ".venv/bin/gptlib study novels --set 'data.path=/my books'"),
    ],
)
def test_a_study_is_repeated_by_its_name_profile_and_own_overrides(tmp_path, study, profile, overrides, command):
    loaded = load_study(study, overrides, profile)
    ablations = [load_ablation(name) for name in loaded.ablations]
    registration.register(loaded, ablations, tmp_path / loaded.name)
    assert caveats.command(RunParameters(outputs=str(tmp_path), study=loaded.name)) == command


def test_experiments_without_a_study_are_repeated_by_the_notebook(tmp_path):
    command = caveats.command(RunParameters(outputs=str(tmp_path), study="my-own", base="quickstart"))
    assert command == ".venv/bin/papermill notebooks/90_analysis.ipynb out.ipynb -p study my-own -p base quickstart"
