"""What staged studies cost: prices, estimates and their sources, what was spent, the guard; numbers by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptlib import records
from gptlib.config import ConfigError, load_config, with_changes
from gptlib.study.budget import (
    Budget,
    BudgetError,
    BurnDown,
    Spent,
    burn_down,
    concerns,
    spent,
    stage_costs,
    staged_config,
)
from gptlib.study.prices import Prices, dollars, estimate, load_prices, past_runs
from gptlib.study.studies import Study, load_study

LIST = Prices.model_validate(
    {
        "devices": {
            "here": {"dollars_per_hour": 0.06, "tflops": 0.1},
            "L40": {"dollars_per_hour": 0.5, "tflops": 200, "memory_gib": 48},
            "L40S": {"dollars_per_hour": 1, "tflops": 400, "memory_gib": 48},
            "H100": {"dollars_per_hour": 3, "tflops": 1000, "memory_gib": 80},
        }
    }
)
STAGES: dict[str, Any] = {
    "A": {"overrides": {"train.steps": "x1/4"}, "seeds": [1, 2]},
    "B": {"overrides": {"train.steps": "x1/2"}, "seeds": [11, 12, 13]},
    "C": {"seeds": [21, 22, 23, 24, 25]},
    "looks": [3, 5],
}


@pytest.fixture
def study(tmp_path: Path) -> Any:
    """Makes a study of four ablations of the smoke run; keywords change its stages, {} a stage's fields."""

    def make(**changes: Any) -> Study:
        stages = {**STAGES, **{k: v for k, v in changes.items() if not isinstance(v, dict)}}
        stages |= {k: {**STAGES[k], **v} for k, v in changes.items() if isinstance(v, dict)}
        values = {"name": "four", "question": "Which?", "base": "smoke", "stages": stages}
        values["ablations"] = ["no_rope", "gelu", "layer_norm", "smear"]
        (tmp_path / "four.yaml").write_text(yaml.safe_dump(values))
        return load_study(tmp_path / "four.yaml")

    return make


def record(outputs: Path, place: str, config: Any, *results: dict[str, Any], **there: Any) -> None:
    """An experiment of runs that have ended: what past_runs reads of it."""
    folder, values = outputs / place, {"fingerprint": "f" * 16, "config": config.model_dump(mode="json")}
    here = {"cpu": records.cpu_name(), "gpus": records.gpu_names(), "source_hash": records.numeric_source_hash()}
    records.write_json(folder / "config.json", values)
    records.write_json(folder / "environment.json", here | there)
    for index, result in enumerate(results):
        whole = {"run_id": index, "seed": index, "attempt": 1, "status": "finished", "final_step": config.train.steps}
        row = whole | {"fingerprint": "f" * 16, "time_seconds": 12.0, "device": "cpu"} | result
        records.write_json(records.run_folder(folder, index, row["seed"]) / "result.json", row)


# --- the price list ---------------------------------------------------------------------------------------------


def test_the_shipped_price_list() -> None:
    prices = load_prices()
    assert {"here", "L40", "L40S", "A100", "H100", "H200", "RTX 4090"} <= set(prices.devices)
    assert prices.of("H100").memory_gib == 80 and prices.of("here").memory_gib is None


def test_a_device_without_a_price_is_one_line() -> None:
    with pytest.raises(ConfigError) as error:
        load_prices().of("H10")
    assert str(error.value) == "device 'H10' is not in params/prices.yaml: give it a price there; did you mean 'H100'?"
    with pytest.raises(ConfigError, match="device 'TPU' .*: give it a price there; known: H100, L40, L40S, here$"):
        LIST.of("TPU")


def test_a_wrong_price_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("devices:\n  L4: {dollars_per_hour: -1, tflops: 1}\n")
    with pytest.raises(ConfigError, match="prices.yaml line 2: devices.L4.dollars_per_hour=-1"):
        load_prices(tmp_path / "prices.yaml")


def test_dollars_are_written_so_that_one_sees_some() -> None:
    assert [dollars(x) for x in (0, 8.4, 1234.5, 0.0021, 0.45)] == ["$0.00", "$8.40", "$1,234.50", "$0.0021", "$0.45"]


# --- estimates --------------------------------------------------------------------------------------------------


def test_what_is_declared_comes_first(study: Any) -> None:
    """30 minutes of 4 devices at $3 an hour are $6."""
    declared = study(C={"minutes_per_run": 30, "device": "H100", "devices": 4})
    found = estimate(declared, "C", staged_config(declared, "C"), LIST)
    assert (found.minutes, found.dollars, found.source) == (30, 6, "time declared; 4 x H100, $3.00 an hour each")
    declared = study(C={"minutes_per_run": 30, "dollars_per_run": 8.4, "device": "H100", "devices": 4})
    found = estimate(declared, "C", staged_config(declared, "C"), LIST)
    assert (found.minutes, found.dollars, found.source) == (30, 8.4, "dollars declared; time declared")


def test_runs_of_another_length_tell_the_time_of_a_step(study: Any, tmp_path: Path) -> None:
    """24 steps in 12 s and in 36 s: 1 s a step, so 6 steps take 0.1 min and cost $0.06 / 600."""
    asked, config = study(), load_config("smoke")
    record(tmp_path, "other/full/baseline", config, {"time_seconds": 12}, {"time_seconds": 36})
    past = past_runs(tmp_path, LIST)
    found = estimate(asked, "A", staged_config(asked, "A"), LIST, past)
    assert found.minutes == pytest.approx(0.1) and found.dollars == pytest.approx(0.0001)
    assert found.source.startswith("time measured on 2 runs, the last other/full/baseline; 1 x here")
    for other in ({"model.num_layers": 3}, {"train.batch_rows": 4}, {"hardware.threads": 2}, {"data.documents": 900}):
        assert "assumed" in estimate(asked, "A", with_changes(config, other), LIST, past).source
    for same in ({"train.steps": 7}, {"eval.every": 3}):
        assert "measured on" in estimate(asked, "A", with_changes(config, same), LIST, past).source


def test_runs_on_another_machine_tell_nothing_unless_it_is_named(study: Any, tmp_path: Path) -> None:
    config, elsewhere = load_config("smoke"), {"cpu": "another"}
    record(tmp_path, "s/full/baseline", config, {"device": "NVIDIA L40S"}, {"status": "failed"}, **elsewhere)
    past = past_runs(tmp_path, LIST)
    assert [run.devices for run in past] == [{"L40S"}], "not an L40, and not the failed one"
    for device, known in (("here", False), ("L40", False), ("L40S", True)):
        asked = study(C={"device": device})
        assert ("measured on" in estimate(asked, "C", config, LIST, past).source) == known


def test_without_a_measurement_the_time_is_that_of_the_flops_and_says_so() -> None:
    """854,654,976 FLOPs a token x 524,288 x 5,100 steps / (8 x 989e12 x 0.4) = 722.08 s."""
    asked, prices = load_study("speedrun_staged"), load_prices()
    found = estimate(asked, "C", staged_config(asked, "C"), prices)
    assert 60 * found.minutes == pytest.approx(722.08, abs=0.01) and found.dollars == 8.4
    assert found.source == "dollars declared; time assumed, not measured: FLOPs at 0.4 of the peak, 989 TFLOP/s"
    here = load_study("quickstart")
    assert "0.1 TFLOP/s of a CPU core" in estimate(here, None, load_config("quickstart"), prices).source


def test_here_a_run_pays_for_its_cores(study: Any) -> None:
    asked = study(C={"minutes_per_run": 60})
    config = with_changes(load_config("smoke"), {"hardware.threads": 2, "hardware.ranks": 2})
    assert estimate(asked, "C", config, LIST).dollars == pytest.approx(0.24)


# --- stages -----------------------------------------------------------------------------------------------------


def test_the_runs_of_the_stages(study: Any) -> None:
    """Four variants: 5 arms x 2; the 2 kept and the baseline x 3, another 3 for a pivot; 2 and the baseline x 5."""
    costs = stage_costs(study(A={"dollars_per_run": 2}, pivots=1), LIST)
    assert [(c.name, c.runs, c.worst_runs, c.baseline_runs, c.reused) for c in costs] == [
        ("A", 10, 10, 2, 0),
        ("B", 9, 12, 3, 0),
        ("C", 15, 15, 5, 0),
    ]
    assert (costs[0].price, costs[0].dollars, costs[0].config.train.steps) == (2, 20, 6)
    assert list(costs[0].estimates) == ["baseline", "no_rope", "gelu", "layer_norm", "smear"]


def test_a_stage_is_priced_by_its_dearest_arm(study: Any) -> None:
    cost = stage_costs(study(), LIST)[0]
    each = [one.dollars for one in cost.estimates.values()]
    assert min(each) < max(each) == cost.price and cost.dollars == pytest.approx(10 * cost.price)


def test_a_finished_baseline_of_another_study_is_not_paid_again(study: Any, tmp_path: Path) -> None:
    asked = study()
    config = staged_config(asked, "B")
    record(
        tmp_path,
        "other/full/baseline",
        config,
        {"seed": 11},
        {"seed": 13},
        {"seed": 99},
        {"seed": 12, "status": "failed"},
    )
    record(tmp_path, "four/B/baseline", config, {"seed": 12})
    record(tmp_path, "old/full/baseline", config, {"seed": 12}, source_hash="older code")
    past = past_runs(tmp_path, LIST)
    assert [(c.reused, c.worst_runs, c.baseline_runs) for c in stage_costs(asked, LIST, past)][1] == (2, 10, 1)
    fresh = stage_costs(study(reuse_baseline=False), LIST, past)[1]
    assert (fresh.reused, fresh.baseline_runs) == (0, 3)


def test_the_documents_study_does_not_fit_its_budget() -> None:
    """8 x $2 + 6 x $10 + 10 x $8.40 = $160, a pivot 3 x $10 more; the document counts 16 + 30 + 42 = 88."""
    asked, prices = load_study("speedrun_staged"), load_prices()
    costs = stage_costs(asked, prices)
    assert [c.dollars for c in costs] == pytest.approx([16, 60, 84]) and costs[1].worst_dollars == 90
    assert sum(c.dollars - (c.name != "A") * c.baseline_runs * c.price for c in costs) == pytest.approx(88)
    assert len({c.config.tokens_per_step for c in costs}) == 1
    assert list(concerns(asked, costs, prices)) == [
        "a run of B costs 1.19 of a full one: leave B out, full runs tell more",
        "a pivot costs $30.00, the reserve for it is $7.00",
    ]


def test_what_to_beware_of(study: Any) -> None:
    batch = {"train.batch_rows": 4, "train.steps": 6, "optim.lr_scale": 2}
    asked = study(A={"overrides": batch}, C={"device": "H100", "devices": 8})
    said = list(concerns(asked, stage_costs(asked, LIST), LIST))
    tokens = "A has 1,024 tokens a step and C 512: a second change is mixed into what the stages are compared on"
    assert tokens in said and "A differs from C in optim.lr_scale too: it may rank another recipe" in said
    assert "C pays for 8 x H100, its runs use 1: set hardware.ranks in its overrides" in said
    assert "B finds no finished baseline to take over: its 3 runs are paid" in said
    big = load_study("speedrun_staged", ("hardware.micro_rows=0",))
    said = list(concerns(big, stage_costs(big, load_prices()), load_prices()))
    assert any(line.startswith("A needs about 6") and line.endswith("below 512") for line in said)


# --- what was spent ---------------------------------------------------------------------------------------------


def test_every_attempt_is_paid_but_what_was_taken_over(study: Any, tmp_path: Path) -> None:
    """1 h + 0.5 h failed + 0.25 h diverged + 0.25 h of an earlier attempt, 2 x $3: $12; moved aside 1 h: $6."""
    asked = study(C={"device": "H100", "devices": 2})
    config, aside = staged_config(asked, "C"), "four/C/gelu.20260101T000000"
    record(
        tmp_path, "four/C/gelu", config, {"time_seconds": 3600, "attempt": 2},
        {"status": "failed", "time_seconds": 1800}, {"status": "diverged", "time_seconds": 900},
        {"time_seconds": 3600, "reused_from": "other/full/baseline"},
    )  # fmt: skip
    earlier = {"run_id": 0, "seed": 0, "attempt": 1, "status": "failed", "time_seconds": 900, "final_step": 3}
    records.append_jsonl(tmp_path / "four/C/gelu/results.jsonl", earlier)
    records.append_jsonl(tmp_path / "four/C/gelu/results.jsonl", earlier | {"attempt": 2, "time_seconds": 3600})
    record(tmp_path, aside, config, {"time_seconds": 3600})
    record(tmp_path, "other/C/gelu", config, {"time_seconds": 3600})
    assert spent(asked, tmp_path, LIST) == {"A": (0, 0), "B": (0, 0), "C": (5, pytest.approx(18))}
    assert Budget.of(asked, tmp_path, LIST) == Budget(spent=pytest.approx(18))


def test_declared_dollars_are_paid_by_the_share_of_the_steps(study: Any, tmp_path: Path) -> None:
    """24 steps are $8: a whole run, and 6 steps of one that failed, are $10."""
    asked = study(C={"dollars_per_run": 8}, budget_dollars=96, reserve_dollars=7)
    record(tmp_path, "four/C/baseline", staged_config(asked, "C"), {}, {"status": "failed", "final_step": 6})
    assert spent(asked, tmp_path, LIST)["C"] == (2, 10)
    assert Budget.of(asked, tmp_path, LIST) == Budget(96, 7, 10)


# --- the guard --------------------------------------------------------------------------------------------------


def test_a_stage_starts_only_if_its_worst_case_leaves_the_reserve() -> None:
    budget = Budget(96, 7, 16)
    assert (budget.remaining, budget.kept) == (80, 7)
    budget.allow("B", 73)
    with pytest.raises(BudgetError) as error:
        budget.allow("B", 90)
    assert str(error.value) == (
        "stage B may cost $90.00, but $80.00 of $96.00 are left, $7.00 of them as the reserve for a pivot: raise "
        "budget_dollars, or drop ablations, seeds or steps"
    )


def test_the_reserve_is_for_a_pivot_alone() -> None:
    Budget(96, 7, 66).allow("B", 30, pivot=True)
    with pytest.raises(BudgetError, match="^stage B may cost"):
        Budget(96, 7, 66).allow("B", 30)
    with pytest.raises(
        BudgetError, match=r"^a pivot in stage B may cost \$30.00, but \$29.00 of \$96.00 are left, with the"
    ):
        Budget(96, 7, 67).allow("B", 30, pivot=True)
    Budget(96, 7, 66, pivoted=30).allow("C", 30)


def test_without_a_budget_everything_may_start_and_rounding_stops_nothing() -> None:
    Budget().allow("C", 1e9)
    Budget(0.3, 0.1).allow("A", 0.2)
    with pytest.raises(BudgetError, match="are left: raise"):
        Budget(1).allow("A", math.inf)


def test_the_burn_down(study: Any) -> None:
    costs = stage_costs(
        study(**{name: {"dollars_per_run": price} for name, price in zip("ABC", (2, 3, 4), strict=True)}), LIST
    )
    rows = burn_down(costs, {"A": Spent(10, 19.5), "B": Spent(3, 8.0)}, 100)
    assert rows == [
        BurnDown("A", 10, 20, 19.5, 80.5),
        BurnDown("B", 3, 27, 8.0, 72.5),
        BurnDown("C", 0, 60, 0.0, 72.5),
    ]


def test_a_reserve_without_a_budget_is_refused(study: Any) -> None:
    with pytest.raises(ValueError, match="reserve_dollars=5 is kept of a budget; give budget_dollars too"):
        study(reserve_dollars=5)
