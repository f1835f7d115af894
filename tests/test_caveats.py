"""What a report doubts of itself, and the commands that repeat it."""

import dataclasses
import shlex
from types import SimpleNamespace

import pytest
import yaml

from gptlib import caveats, notebook
from gptlib.notebook import AnalysisParameters
from gptlib.study import registration
from gptlib.study.hypothesis import load_ablation
from gptlib.study.studies import load_study


@pytest.fixture
def answered(outputs, overrides, executed, shown):
    """A baseline and two answers: one arm has a third fewer parameters."""
    asked = AnalysisParameters(base="smoke", overrides=overrides, outputs=str(outputs), study="s", seeds=[1, 2])
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
    assert "fewer parameters" in table.loc["no_value_embeds", "could explain the verdict"]
    better = caveats.unmatched([verdict(plain, "better")])
    assert "parameters" not in better.loc["no_value_embeds", "could explain the verdict"]


def test_several_questions_are_counted_and_corrected(answered, monkeypatch):
    monkeypatch.setattr(caveats, "display", lambda thing: None)
    a, b = answered.answers
    text = caveats.critical(answered.baseline, [verdict(a, "worse", 0.04), verdict(b, "worse", 0.001)]).data
    assert "The verdicts above are 2, each at its own level: where nothing differs, at most 0.1 of them" in text
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
    lines = text.splitlines()
    assert lines[1] == f"git checkout {summary['git_info']['commit'][:10]}" and "make install" in lines
    assert ("git apply" in text) == summary["git_info"]["dirty"]
    assert all(word in text for word in ("1 thread a run", "torch 2.", answered.baseline.plan.dataset.name))


@pytest.mark.parametrize(
    ("study", "profile", "overrides", "command"),
    [
        ("quickstart", "", {}, ".venv/bin/gptlib study quickstart"),
        ("capacity", "cpu", {}, ".venv/bin/gptlib study capacity --profile cpu"),
        ("novels", "", {"data.path": "/my books"}, """.venv/bin/gptlib study novels --set 'data.path="/my books"'"""),
        ("robust", "", {"eval.hellaswag": ""}, """.venv/bin/gptlib study robust --set 'eval.hellaswag=""'"""),
    ],
)
def test_a_study_is_repeated_by_its_name_profile_and_own_overrides(tmp_path, study, profile, overrides, command):
    loaded = load_study(study, overrides, profile)
    ablations = [load_ablation(name) for name in loaded.ablations]
    registration.register(loaded, ablations, tmp_path / loaded.name)
    assert caveats.command(AnalysisParameters(outputs=str(tmp_path), study=loaded.name)) == command


def test_a_study_from_elsewhere_is_repeated_by_the_notebook_with_all_its_parameters(tmp_path):
    asked = AnalysisParameters(
        outputs=str(tmp_path), study="my-own", base="quickstart", seeds=[7, 8], ablations=["relu"], stage="half"
    )
    words = shlex.split(caveats.command(asked))
    assert words[:-1] == [".venv/bin/papermill", "notebooks/90_analysis.ipynb", "out.ipynb", "-y"]
    given = yaml.safe_load(words[-1])
    assert AnalysisParameters(**given) == asked.model_copy(update={"outputs": "outputs"})


def test_numbers_that_cannot_come_out_the_same_are_not_promised(answered):
    promise = "the same to the last bit"
    assert promise in caveats.rerun(answered.parameters, answered.baseline, answered.answers).data
    gpu = dataclasses.replace(answered.baseline.plan, device="cuda")
    answered.baseline.plan = gpu
    assert promise not in caveats.rerun(answered.parameters, answered.baseline).data
    timed = answered.answers[0].variant
    timed.plan = dataclasses.replace(timed.plan, arms=dataclasses.replace(timed.plan.arms, trial={"ratio": 1.0}))
    text = caveats.rerun(answered.parameters, answered.baseline, answered.answers).data
    assert "A new trial of the time may give gelu another number" in text
    assert "a trial timed their steps in turn" in caveats.critical(answered.baseline, answered.answers).data


def test_a_baseline_of_its_own_is_among_the_compared_once(answered):
    own = SimpleNamespace(plan=SimpleNamespace(folder="own", variant="gelu.baseline"))
    gelu, plain = answered.answers
    found = notebook.compared(answered.baseline, [gelu._replace(baseline=own), plain])
    assert [e.plan.variant for e in found] == ["baseline", "gelu.baseline", "gelu", "no_value_embeds"]
