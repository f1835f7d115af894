"""What is planned: the trials of a tuning beside the experiment, interactions, studies over several bases."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptlib import records
from gptlib.config import ConfigError, diff
from gptlib.fields import RunConfig
from gptlib.study.hypothesis import Ablation, combine
from gptlib.study.plan import Plan, plan_experiment
from gptlib.study.registration import register
from gptlib.study.studies import Study, load_study

Tiny = Callable[..., RunConfig]
RATES = {"optim.muon.lr": [0.01, 0.02, 0.03]}


def ablation(change: dict[str, Any], **fields: Any) -> Ablation:
    texts = {"hypothesis": "The loss is another one.", "why": "To see what is made of it."}
    first = next(iter(change))
    return Ablation.model_validate(
        {"variant": "gelu", "independent_variable": first, "change": change, **texts, **fields}
    )


GELU = {"model.activation": "gelu"}


@pytest.fixture
def planned(outputs: Path, tiny: Tiny) -> Callable[..., Plan]:
    def make(asked: Ablation | None, seeds: tuple[int, ...] = (42, 43), changes: dict[str, Any] | None = None) -> Plan:
        return plan_experiment(outputs, "study", "full", tiny(changes), list(seeds), asked)

    return make


def finish(plan: Plan, *losses: float | str) -> None:
    """Write what the runs of a plan have found: a loss each, or how they ended otherwise."""
    for (index, seed, run), loss in zip(plan.runs(), losses, strict=True):
        status = loss if isinstance(loss, str) else "finished"
        result: dict[str, Any] = {"run_id": index, "seed": seed, "status": status, "fingerprint": plan.fingerprint}
        result["final_val_loss"] = None if isinstance(loss, str) else loss
        records.write_json(run / "result.json", result)


def complete(plan: Plan) -> None:
    """Write the summary of exactly this plan."""
    summary: dict[str, Any] = {"fingerprint": plan.fingerprint, "seeds": list(plan.seeds), "status": "complete"}
    summary["hypothesis"] = plan.ablation.model_dump(mode="json") if plan.ablation else None
    summary["difference"] = plan.difference
    records.write_json(plan.folder / "summary.json", summary)


# --- tuning -----------------------------------------------------------------------------------------------------


def test_the_trials_of_a_tuning_are_experiments_of_their_own(planned: Callable[..., Plan], outputs: Path) -> None:
    plan = planned(ablation(GELU, tune=RATES, tune_seeds=[7, 8, 9]))
    assert plan.arms is not None
    for trial, point in zip(plan.tuning(), plan.arms.grid, strict=True):
        assert trial.folder == outputs / "study" / "full-tuning" / point.name
        assert (trial.seeds, trial.stage, trial.config) == ((7, 8, 9), "full-tuning", point.config)
        assert trial.ablation is None and trial.arms is None and len(trial.pending()) == 3
        assert (
            trial.fingerprint
            == planned(None, changes={**point.values, **(GELU if point.arm == "variant" else {})}).fingerprint
        )
    assert planned(ablation(GELU)).tuning() == [] == planned(None).tuning()


def test_the_best_of_the_trials_is_planned_for_both_arms(planned: Callable[..., Plan]) -> None:
    """By the mean over the tuning's own seeds, whatever the single runs say."""
    asked = ablation(GELU, tune=RATES)
    plan = planned(asked)
    assert len(plan.tuning()) == 6 and plan.config.optim.muon.lr == 0.04
    losses = [(3.0, 3.0), (2.0, 3.8), (2.5, 3.6), (9.0, 1.0), (4.0, 3.0), (3.0, 3.9)]
    for trial, pair in zip(plan.tuning(), losses, strict=True):
        assert planned(asked).config.optim.muon.lr == 0.04, "not before all are done"
        finish(trial, *pair)
    plan = planned(asked)
    assert plan.arms is not None and not plan.arms.pending
    assert [point.loss for point in plan.arms.grid] == pytest.approx([3.0, 2.9, 3.05, 5.0, 3.5, 3.45])
    assert plan.baseline().config.optim.muon.lr == 0.02 and plan.config.optim.muon.lr == 0.03
    assert plan.difference == {"model.activation": ("relu2", "gelu"), "optim.muon.lr": (0.02, 0.03)}
    assert plan.seeds == plan.baseline().seeds == (42, 43)
    assert plan.fingerprint == planned(None, changes=GELU | {"optim.muon.lr": 0.03}).fingerprint


def test_a_tuned_baseline_is_an_experiment_of_its_own(planned: Callable[..., Plan]) -> None:
    asked = ablation(GELU, tune={"optim.muon.lr": [0.04, 0.08]})
    assert planned(ablation(GELU)).baseline().variant == "baseline"
    for losses, name in (((2.0, 3.0), "baseline"), ((3.0, 2.0), "baseline.muon.lr-0.08")):
        for trial, loss in zip(planned(asked).tuning(), [*losses, 1.0, 2.0], strict=True):
            finish(trial, loss, loss)
        plan = planned(asked)
        assert (plan.baseline_name, plan.baseline().variant) == (name, name) and plan.variant == "gelu"
        assert plan.baseline().folder.parent == plan.folder.parent


def test_a_trial_of_which_one_run_diverged_is_not_chosen(planned: Callable[..., Plan]) -> None:
    asked = ablation(GELU, tune=RATES)
    outcomes: list[tuple[float | str, ...]] = [(1.0, "diverged"), (3.0, 3.0), (4.0, 4.0)]
    for trial, losses in zip(planned(asked).tuning(), 2 * outcomes, strict=True):
        finish(trial, *losses)
    plan = planned(asked)
    assert plan.arms is not None and [point.loss for point in plan.arms.grid] == [float("inf"), 3.0, 4.0] * 2
    assert plan.config.optim.muon.lr == plan.baseline().config.optim.muon.lr == 0.02


def test_a_trial_of_which_one_run_failed_or_is_of_other_numbers_is_not_done(planned: Callable[..., Plan]) -> None:
    asked = ablation(GELU, tune=RATES)
    trials = planned(asked).tuning()
    for trial in trials:
        finish(trial, 3.0, 3.0)
    finish(trials[4], 3.0, "failed")
    run = next(trials[1].runs())[2]
    records.write_json(run / "result.json", records.read_json(run / "result.json") | {"fingerprint": "0" * 16})
    plan = planned(asked)
    assert plan.arms is not None and plan.arms.pending == [plan.arms.grid[1], plan.arms.grid[4]]


def test_a_record_is_not_complete_while_its_tuning_is_not(planned: Callable[..., Plan]) -> None:
    """Though a summary of the same numbers lies there: the tuning may choose others."""
    asked = ablation(GELU, tune={"optim.muon.lr": [0.04, 0.08]})
    plan = planned(asked)
    complete(plan)
    assert not plan.is_complete()
    for trial, loss in zip(plan.tuning(), (1.0, 2.0, 1.0, 2.0), strict=True):
        finish(trial, loss, loss)
    plan = planned(asked)
    assert plan.config.optim.muon.lr == 0.04 and plan.is_complete()
    finish(plan.tuning()[3], 0.5, 0.5)
    assert not planned(asked).is_complete(), "another rate was chosen"
    finish(plan.tuning()[3], 0.5, "failed")
    assert not planned(asked).is_complete()


def test_a_record_without_a_tuning_is_complete_by_its_summary(planned: Callable[..., Plan]) -> None:
    plan = planned(ablation(GELU))
    assert not plan.is_complete()
    complete(plan)
    assert plan.is_complete() and not planned(ablation(GELU, analysis={"alpha": 0.01})).is_complete()


@pytest.mark.parametrize(("seeds", "shared"), [((1, 42), "[1]"), ((42, 2), "[2]"), ((2, 1, 3), "[1, 2]")])
def test_a_tuning_needs_seeds_of_its_own(planned: Callable[..., Plan], seeds: tuple[int, ...], shared: str) -> None:
    with pytest.raises(ConfigError) as error:
        planned(ablation(GELU, tune=RATES), seeds)
    assert str(error.value).startswith(f"tune_seeds: {shared} are seeds of the comparison too") and "own" in str(
        error.value
    )
    assert planned(ablation(GELU), seeds).seeds == seeds, "where nothing is tuned they matter to nobody"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tune": {"optim.muon.lr": [0.1]}}, "tune: give optim.muon.lr at least two values, each once"),
        ({"tune": {"optim.muon.lr": [0.1, 0.1]}}, "at least two values, each once"),
        ({"tune": {"optim.muon.rate": [0.1, 0.2]}}, "unknown key 'optim.muon.rate'"),
        ({"tune": {"train.steps": [10, 20]}}, "train.steps changes what is matched; only settings of optim"),
        ({"tune_seeds": [3, 3]}, "seeds=[3, 3]"),
        ({"memory_mib": 100.0}, "memory_mib=100 is for match=memory, not steps"),
        ({"memory_mib": 100.0, "match": "flops"}, "memory_mib=100 is for match=memory, not flops"),
        ({"free": "train.steps", "match": "params"}, "free='train.steps' cannot match by params; use model.mlp_hidden"),
        ({"free": "model.width", "match": "params"}, "free"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, ConfigError)) as error:
        ablation(GELU, **fields)
    assert message in str(error.value)


def test_what_is_changed_cannot_be_tuned_too() -> None:
    with pytest.raises(ValueError, match="optim.muon.lr is changed already"):
        ablation({"optim.muon.lr": 0.1}, tune={"optim.muon.lr": [0.1, 0.2]})


# --- interactions -----------------------------------------------------------------------------------------------


def test_two_changes_are_made_at_once(planned: Callable[..., Plan], tiny: Tiny) -> None:
    shared: dict[str, Any] = {"match": "params", "tune": RATES, "tune_seeds": [5, 6], "analysis": {"margin": 0.02}}
    expectation = {"direction": "better", "percent": [1, 2]}
    a = ablation(GELU, **shared, expect=expectation, source="A. B.")
    b = ablation({"model.qk_norm": False, "train.batch_rows": "x2"}, **shared | {"variant": "no_qk_norm"})
    both = combine(a, b)
    assert both.change == {"model.activation": "gelu", "model.qk_norm": False, "train.batch_rows": "x2"}
    assert both.variant == "gelu_x_no_qk_norm" and records.NAME.fullmatch(both.variant)
    for name in ("match", "free", "memory_mib", "tune", "tune_seeds", "analysis"):
        assert getattr(both, name) == getattr(a, name) == getattr(b, name)
    assert both.expect.direction == "none" and both.source == "", "it claims nothing of its own"
    assert Ablation.model_validate(both.model_dump()) == both, "it could stand in a file"
    plan = planned(combine(ablation(GELU), ablation({"model.qk_norm": False}, variant="no_qk_norm")))
    assert set(plan.difference) == {"model.activation", "model.qk_norm"} and plan.variant == "gelu_x_no_qk_norm"
    assert diff(plan.baseline().config, tiny()) == {}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"change": {"model.activation": "silu"}}, "model.activation"),
        ({"match": "params"}, "match"),
        ({"match": "flops", "free": "train.steps"}, "match, free"),
        ({"match": "memory", "memory_mib": 9.0}, "match, memory_mib"),
        ({"tune": RATES}, "tune"),
        ({"tune_seeds": [8]}, "tune_seeds"),
        ({"analysis": {"alpha": 0.01}}, "analysis"),
    ],
)
def test_changes_that_do_not_go_together_are_refused(fields: dict[str, Any], named: str) -> None:
    a = ablation(GELU)
    change = {"change": fields.get("change", {"model.qk_norm": False})}
    b = ablation(**{"variant": "second", **fields, **change})
    for first, second in ((a, b), (b, a)):
        with pytest.raises(ConfigError) as error:
            combine(first, second)
        said = str(error.value)
        assert f"interaction of {first.variant} and {second.variant}: both decide {named}, not alike" in said


# --- studies ----------------------------------------------------------------------------------------------------

STUDY = {"name": "tiny", "question": "What?", "base": "smoke", "ablations": ["gelu", "no_qk_norm"], "seeds": [1, 2]}


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Study]:
    def load(**changes: Any) -> Study:
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(STUDY | changes, sort_keys=False))
        return load_study(path)

    return load


def test_a_study_over_several_bases_has_a_stage_for_each(study: Callable[..., Study]) -> None:
    one = study()
    assert one.bases == ["smoke"] and one.stage_of("smoke") == "full"
    several = study(base=["smoke", "quickstart", "params/base/novels.yaml"], stage="pilot")
    stages = [several.stage_of(base) for base in several.bases]
    assert stages == ["pilot", "pilot-quickstart", "pilot-novels"] and all(map(records.NAME.fullmatch, stages))


@pytest.mark.parametrize("base", [[], ["smoke", "smoke"], ["smoke", "quickstart", "smoke"]])
def test_a_study_takes_each_base_once(study: Callable[..., Study], base: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"give one name, or several, each once"):
        study(base=base)


def test_bases_of_one_name_do_not_share_a_stage(study: Callable[..., Study]) -> None:
    """Their experiments would move each other aside."""
    try:
        several = study(base=["smoke", "mine/large.yaml", "yours/large.yaml"])
    except ConfigError as error:
        assert "base" in str(error)
    else:
        assert len({several.stage_of(base) for base in several.bases}) == 3


def test_interactions_are_of_the_ablations_of_a_study(study: Callable[..., Study]) -> None:
    assert study(interactions=[["gelu", "no_qk_norm"]]).interactions == [("gelu", "no_qk_norm")]
    for pairs, message in (
        ([["gelu", "silu"]], "interactions: silu is not among the ablations"),
        ([["gelu", "gelu"]], "both decide model.activation"),
        ([["gelu"]], "interactions"),
        ([["gelu", "no_qk_norm", "gelu"]], "interactions"),
    ):
        with pytest.raises(ConfigError) as error:
            study(interactions=pairs)
        assert message in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(
        ConfigError, match="interaction of gelu and swiglu: both decide model.activation, match, not alike"
    ):
        study(ablations=["gelu", "swiglu"], interactions=[["gelu", "swiglu"]])


def test_a_profile_is_a_study_of_its_own_with_what_it_gives_in_place_of_the_studys(tmp_path: Path) -> None:
    text = {"name": "s", "question": "which?", "base": "smoke", "ablations": ["gelu"], "overrides": {"train.steps": 9}}
    small = {"overrides": {"train.steps": 3}, "seeds": [7], "ablations": ["relu", "gelu"]}
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump({**text, "profiles": {"cpu": small, "tiny": {"base": "quickstart"}}}))
    cpu, tiny_one = (load_study(file, {"train.batch_rows": 2}, profile) for profile in ("cpu", "tiny"))
    assert (cpu.name, cpu.base, cpu.seeds, cpu.ablations) == ("s-cpu", "smoke", [7], ["relu", "gelu"])
    assert cpu.overrides == {"train.steps": 3, "train.batch_rows": 2}
    assert (tiny_one.name, tiny_one.base, tiny_one.overrides["train.steps"]) == ("s-tiny", "quickstart", 9)
    assert load_study(file).name == "s" and not cpu.profiles


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({"seeds": [1, 1]}, "s.yaml line 7: seeds=[1, 1]: give at least one, each once"),
        ({"seed": [1]}, "s.yaml line 7: unknown key 'profiles.cpu.seed'"),
        ({"ablations": ["glu"]}, "glu.yaml: no such file"),
        ({"overrides": {"train.stps": 1}}, "did you mean 'train.steps'"),
        (None, "profiles.cpu=None: "),
    ],
    ids=str,
)
def test_a_profile_that_does_not_fit_is_one_line(tmp_path: Path, profile: Any, message: str) -> None:
    text = {"name": "s", "question": "which?", "base": "smoke", "ablations": ["gelu"], "profiles": {"cpu": profile}}
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(text, sort_keys=False, default_flow_style=None))
    with pytest.raises(ConfigError) as error:
        load_study(file, profile="cpu")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_registration_does_not_hold_the_profiles(outputs: Path) -> None:
    register(load_study("capacity"), [], outputs / "capacity")
    assert "profiles" not in records.read_json(outputs / "capacity" / "registration.json")["study"]
