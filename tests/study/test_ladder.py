"""A study over two sizes with a pair of changes made together: ladder and interaction stand in its report."""

from types import SimpleNamespace

import nbformat
import pytest
import yaml

from gptlib import records
from gptlib.config import flatten
from gptlib.report.html import notebook_html
from gptlib.study import runner, steps
from gptlib.study.plan import plan_experiment

STUDY = {
    "name": "ladder",
    "question": "Do effects hold as the model grows, and do they add up?",
    "ablations": ["gelu", "no_qk_norm"],
    "interactions": [["gelu", "no_qk_norm"]],
    "seeds": [42, 43],
    "notebooks_at_once": 1,  # experiments are executed in this process
}
VARIANTS = ("baseline", "gelu", "no_qk_norm", "gelu_x_no_qk_norm")


@pytest.fixture
def study(outputs, overrides, executed, shown, executions, tmp_path):
    """Runs the study; experiments by the functions of their notebooks, in this process, the analysis by papermill."""
    small = {key: value for key, value in overrides.items() if key != "model.num_layers"}
    for name, layers in (("one", 1), ("two", 2)):
        (tmp_path / f"{name}.yaml").write_text(f"base: smoke\nmodel: {{num_layers: {layers}}}\n")
    path = tmp_path / "ladder.yaml"
    bases = [str(tmp_path / f"{name}.yaml") for name in ("one", "two")]
    path.write_text(yaml.safe_dump(STUDY | {"base": bases, "overrides": small}))

    def run():
        executions.clear()
        executed.clear()
        outcome = runner.run_study(path, outputs)
        return SimpleNamespace(outcome=outcome, executions=[*executions], runs=[*executed])

    return run


def cell(copy, word):
    """The outputs of the first cell with `word` in it: tables and text as HTML, and how many pictures."""
    (found,) = [c for c in nbformat.read(copy, as_version=4).cells if c.cell_type == "code" and word in c.source]
    shown = [output.get("data", {}) for output in found.outputs]
    return "".join(data.get("text/html", "") for data in shown), sum("image/png" in data for data in shown)


def test_sizes_and_pairs_are_reported_once_and_for_all(study, outputs):
    first = study()
    assert first.outcome.failures == []
    named = ["data", "data-two", "baseline", "two.baseline"]
    named += [f"{size}{variant}" for size in ("", "two.") for variant in VARIANTS[1:]] + ["analysis"]
    assert first.executions == named and len(first.runs) == 2 * 2 * len(VARIANTS)
    for stage in ("full", "full-two"):
        summaries = {v: records.read_json(outputs / "ladder" / stage / v / "summary.json") for v in VARIANTS}
        changed = {v: {key: new for key, (_, new) in s["difference"].items()} for v, s in summaries.items()}
        assert changed == {
            "baseline": {},
            "gelu": {"model.activation": "gelu"},
            "no_qk_norm": {"model.qk_norm": False},
            "gelu_x_no_qk_norm": {"model.activation": "gelu", "model.qk_norm": False},
        }
        layers = flatten(records.read_json(outputs / "ladder" / stage / "gelu" / "config.json"))[
            "config.model.num_layers"
        ]
        assert layers == (1 if stage == "full" else 2)

    analysis = outputs / "ladder" / "analysis.ipynb"
    table, pictures = cell(analysis, "analysis.sizes")
    assert pictures == 1 and all(word in table for word in ("one", "two", "3,096", "6,168", "gelu", "no_qk_norm"))
    losses = {
        variant: [
            records.read_json(run)["final_val_loss"]
            for run in sorted((outputs / "ladder" / "full" / variant / "runs").glob("*/result.json"))
        ]
        for variant in VARIANTS
    }
    a, b, c, d = (sum(losses[variant]) / 2 for variant in VARIANTS)
    table, pictures = cell(analysis, "analysis.interactions")
    assert pictures == 1 and "gelu x no_qk_norm" in table and f"{d - b - c + a:+.4f}" in table
    notebook_html(analysis, outputs / "report.html")
    page = (outputs / "report.html").read_text()
    assert "6,168" in page and "gelu x no_qk_norm" in page and "missing:" not in page

    again = study()
    assert (again.executions, again.runs, again.outcome.failures) == ([], [], [])
    assert again.outcome.notebooks == first.outcome.notebooks and len(again.outcome.notebooks) == len(named)


def test_the_bar_counts_the_steps_of_every_base(outputs, tiny, monkeypatch, wait_until, tmp_path):
    plans = [plan_experiment(outputs, "ladder", stage, tiny(), [42]) for stage in ("full", "full-two")]
    asked = [steps.Step(plan.variant, tmp_path, {}, tmp_path, plan) for plan in plans]
    bar = SimpleNamespace(n=0, set_postfix_str=lambda *_, **__: None, refresh=lambda: None, close=lambda: None)
    monkeypatch.setattr(steps, "tqdm", lambda **given: vars(bar).update(given) or bar)
    monkeypatch.setattr(steps, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(steps, "_steps_done", lambda plan: 3)
    with steps.progress(asked):
        assert wait_until(lambda: bar.n, 5) == 6 and bar.total == 8
