"""The noise ledger: spread, degrees of freedom and correlation by hand; every stage of a study once."""

from types import SimpleNamespace

import pytest

from gptlib import records
from gptlib.study.hypothesis import load_ablation
from gptlib.study.noise import note_noise
from gptlib.study.plan import plan_experiment


@pytest.fixture
def ledger(outputs, tiny):
    """Writes finished experiments of the given losses, notes them; the lines of the ledger."""

    def plan(stage, variant, losses, done=True, study="s", seed=42):
        seeds = list(range(seed, seed + len(losses)))
        asked = load_ablation(variant) if variant != "baseline" else None
        made = plan_experiment(outputs, study, stage, tiny(), seeds, asked)
        for (index, seed_, run), loss in zip(made.runs(), losses, strict=True):
            result = {"run_id": index, "seed": seed_, "fingerprint": made.fingerprint, "final_val_loss": loss}
            records.write_json(run / "result.json", result | {"status": "finished" if loss else "diverged"})
        if done:
            summary = {"fingerprint": made.fingerprint, "seeds": seeds, "status": "complete"}
            summary["hypothesis"] = asked.model_dump(mode="json") if asked else None
            summary["difference"] = {key: list(pair) for key, pair in made.difference.items()}
            records.write_json(made.folder / "summary.json", summary)
        return made

    def note(*plans):
        note_noise(outputs, plans)
        return records.read_jsonl(outputs / "noise.jsonl")

    return SimpleNamespace(plan=plan, note=note)


def test_spread_and_correlation_by_hand(ledger):
    """Variances 1, 4 and 1 (df 2 each): 12 / 6; correlations 1 and -1 with the baseline's seeds."""
    plans = [
        ledger.plan("full", "baseline", [1.0, 2.0, 3.0]),
        ledger.plan("full", "gelu", [2.0, 4.0, 6.0]),
        ledger.plan("full", "smear", [5.0, 4.0, 3.0]),
    ]
    (row,) = ledger.note(*plans)
    assert row["df"] == 6 and row["sigma"] == pytest.approx(2**0.5) and row["runs"] == 9
    assert row["correlation"] == pytest.approx(0.0) and row["fingerprint"] == plans[0].fingerprint
    assert (row["study"], row["stage"]) == ("s", "full") and row["class"] == "1x16 stories, 4 steps"


def test_a_diverged_run_is_no_noise(ledger):
    plans = [ledger.plan("full", "baseline", [1.0, 2.0, 3.0]), ledger.plan("full", "gelu", [2.0, None, 6.0])]
    (row,) = ledger.note(*plans)
    assert (row["df"], row["runs"]) == (3, 5) and row["sigma"] == pytest.approx((10 / 3) ** 0.5)
    assert row["correlation"] is None, "two points always lie on a line"


def test_every_stage_of_every_study_once(ledger):
    def plans(study, *stages):
        named = [(stage, name) for stage in stages for name in ("baseline", "gelu")]
        return [ledger.plan(stage, name, [1.0, 2.0 + len(name)], study=study) for stage, name in named]

    assert len(ledger.note(*plans("s", "full"))) == 1
    assert len(ledger.note(*plans("s", "full", "full-02"))) == 2, "a repeat has losses of its own"
    assert len(ledger.note(*plans("s", "full", "full-02"))) == 2
    assert len(ledger.note(*plans("t", "full"))) == 3


def test_a_study_that_grew_is_a_line_more(ledger):
    two, three = ([ledger.plan("full", "baseline", [1.0, 2.0, 5.0][:n])] for n in (2, 3))
    ledger.plan("full", "baseline", [1.0, 2.0])
    assert [row["df"] for row in ledger.note(*two)] == [1]
    ledger.plan("full", "baseline", [1.0, 2.0, 5.0])
    assert [row["df"] for row in ledger.note(*three)] == [1, 2]


def test_what_is_unfinished_is_left_out(ledger):
    plans = [ledger.plan("full", "baseline", [1.0, 2.0]), ledger.plan("full", "gelu", [1.0, 9.0], done=False)]
    (row,) = ledger.note(*plans)
    assert row["sigma"] == pytest.approx(0.5**0.5) and row["correlation"] is None
    assert ledger.note(ledger.plan("B", "gelu", [1.0, 9.0], done=False)) == [row]


def test_one_seed_shows_no_noise(ledger):
    assert ledger.note(ledger.plan("full", "baseline", [1.0]), ledger.plan("full", "gelu", [2.0])) == []


def test_of_a_repeat_the_baseline_counts_though_no_step_made_it(ledger):
    ledger.plan("full-02", "baseline", [1.0, 2.0, 3.0])
    (row,) = ledger.note(ledger.plan("full-02", "gelu", [2.0, 4.0, 6.0]))
    assert (row["df"], row["runs"]) == (4, 6) and row["correlation"] == pytest.approx(1)
