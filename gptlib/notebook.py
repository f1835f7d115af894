"""What a notebook needs: its parameters checked, experiments run with a live picture, figures shown and kept.

The parameter classes here hold the same names and defaults as the `parameters` cells of the notebooks (a test keeps
them equal): the smoke run, seconds long, in a temporary folder.
"""

import ast
import atexit
import io
import itertools
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import PIL.Image
from IPython.display import HTML, Image, Markdown, display
from matplotlib.figure import Figure
from pydantic import field_validator, model_validator

from gptlib.config import ConfigError, load_config, project_root, validate
from gptlib.data.dataset import open_dataset
from gptlib.fields import RunConfig, Section
from gptlib.report import plots, tables
from gptlib.stats.compare import Comparison, minimum_detectable_effect
from gptlib.study.experiment import (
    Experiment,
    Plan,
    accounting,
    execute,
    judge,
    metrics_frame,
    plan_experiment,
    summarise,
)
from gptlib.study.hypothesis import Ablation, Analysis, Expectation, distinct_seeds, load_ablation
from gptlib.yaml12 import suggestion

INJECTED = "# Parameters"  # how papermill begins the cell it adds
SMOKE_VARIANT = "no_qk_norm"
PICTURE_DPI = 80
MIN_REDRAW_SECONDS = 1.0
MAX_REDRAW_SHARE = 0.03  # of the time; drawing competes with training for the same cores


# --- parameters -------------------------------------------------------------------------------------------------


class Parameters(Section):
    """What every notebook takes. Training numbers come only from `base` and `overrides`."""

    base: str = "smoke"
    overrides: dict[str, Any] = {}
    outputs: str = ""

    @property
    def config(self) -> RunConfig:
        return load_config(self.base, self.overrides)


class RunParameters(Parameters):
    seeds: list[int] = [42, 43]
    study: str = "adhoc"
    stage: str = "full"

    @field_validator("seeds")
    @classmethod
    def _seeds_are_distinct(cls, seeds: list[int]) -> list[int]:
        return distinct_seeds(seeds)

    def plan(self, ablation: Ablation | None = None) -> Plan:
        """The baseline's plan, or the plan of an ablation of it; prepares the dataset if it is missing."""
        return plan_experiment(Path(self.outputs), self.study, self.stage, self.config, self.seeds, ablation, print)


class DataParameters(Parameters):
    """00_data."""


class BaselineParameters(RunParameters):
    """10_baseline."""


class AblationParameters(RunParameters, Ablation):
    """20_ablations: an ablation file is a set of these."""

    variant: str = SMOKE_VARIANT
    hypothesis: str = "Without QK-norm the final validation loss is higher at the same number of steps."
    independent_variable: str = "model.qk_norm"
    change: dict[str, Any] = {"model.qk_norm": False}
    why: str = "QK-norm adds no parameters and hardly any time, so equal steps is equal everything."
    expect: Expectation = Expectation(direction="worse", percent=(0.0, 5.0))
    analysis: Analysis = Analysis(test="paired", alpha=0.05, margin=0.01)

    @model_validator(mode="after")
    def _another_variant_declares_its_own(self) -> "AblationParameters":
        for name in ("hypothesis", "why"):
            if self.variant != SMOKE_VARIANT and getattr(self, name) == type(self).model_fields[name].default:
                raise ValueError(f"{name} is still that of {SMOKE_VARIANT}: declare it for variant={self.variant!r}")
        return self

    def ablation(self) -> Ablation:
        return Ablation(**{name: getattr(self, name) for name in Ablation.model_fields})


class AnalysisParameters(RunParameters):
    """90_analysis: the ablations to analyse, and those of the study that have no finished record."""

    ablations: list[str] = ["no_qk_norm", "gelu"]
    missing: list[str] = []


P = TypeVar("P", bound=Parameters)


def check_parameters(kind: type[P], namespace: Mapping[str, Any]) -> P:
    """Validate what arrived in the notebook's namespace: call it right after the parameters cell with `globals()`.

    papermill only warns about a parameter the notebook does not have, and then runs the baseline under another
    name; here it is an error with the nearest name. Returns the parameters with `outputs` made absolute: empty means
    outputs/ of the checkout, but a temporary folder for the smoke run that nobody touched. Raises ConfigError with
    every problem at once.
    """
    fields, cells = list(kind.model_fields), list(namespace.get("In", []))
    values = {name: namespace[name] for name in fields if name in namespace}
    problems = [
        f"parameters: unknown parameter {name!r}{suggestion(name, fields)}"
        for name in _assigned_names(cells, fields)
        if name not in fields
    ]
    try:
        parameters = validate(kind, values, "parameters")
    except ConfigError as error:
        problems.append(str(error))
    try:
        training = {name: value for name, value in values.items() if name in ("base", "overrides")}
        _ = validate(Parameters, training, "").config
    except ConfigError as error:
        problems += [line for line in str(error).splitlines() if f"parameters: {line}" not in "\n".join(problems)]
    if problems:
        raise ConfigError("\n".join(problems))
    untouched = parameters == kind() and not any(cell.startswith(INJECTED) for cell in cells)
    outputs = _temporary_folder() if untouched else project_root() / (parameters.outputs or "outputs")
    return parameters.model_copy(update={"outputs": str(outputs)})


def _assigned_names(cells: list[str], fields: list[str]) -> list[str]:
    """Names assigned by the parameters cell, as it was run last, and by the cell that papermill injects after it."""
    literals = [_literals(source) for source in cells]
    starts = [
        index
        for index, names in enumerate(literals)
        if len(set(names) & set(fields)) > 1 and not cells[index].startswith(INJECTED)
    ]
    following = itertools.takewhile(bool, literals[starts[-1] :]) if starts else []
    return list(itertools.chain.from_iterable(following))


def _literals(source: str) -> list[str]:
    """The names that a cell of nothing but `name = literal` assigns; else none."""
    names: list[str] = []
    try:
        for statement in ast.parse(source).body:
            match statement:
                case (
                    ast.Assign(targets=[ast.Name(id=name)], value=value)
                    | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
                ):
                    ast.literal_eval(value)
                    names.append(name)
                case _:
                    return []
    except (SyntaxError, ValueError):
        return []
    return names


def _temporary_folder() -> Path:
    global _temporary
    if _temporary is None:
        _temporary = tempfile.TemporaryDirectory(prefix="gptlib-smoke-", ignore_cleanup_errors=True)
        atexit.register(_temporary.cleanup)
    return Path(_temporary.name)


_temporary: tempfile.TemporaryDirectory[str] | None = None  # one per kernel, gone with it


# --- running with a live picture --------------------------------------------------------------------------------


class LiveCurves:
    """The loss curves of running plans, redrawn in place, and one status line."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._total = plan.config.train.steps * len(plan.seeds)
        self._start = self._next = time.monotonic()
        self._figure = Figure(figsize=(7, 3.6), layout="constrained")
        self._status = display(HTML("starting …"), display_id=True)
        self._picture = display(_png(self._draw(metrics_frame(plan))), display_id=True)
        self._before = self._done(metrics_frame(plan)), self._tokens(metrics_frame(plan))

    def _draw(self, frame: pd.DataFrame) -> Figure:
        title = f"{self._plan.variant}: validation loss while training"
        return plots.loss_curves(frame, title=title, figure=self._figure)

    @staticmethod
    def _done(frame: pd.DataFrame) -> int:
        return int(frame.groupby("run_id")["step"].max().sum()) if len(frame) else 0

    @staticmethod
    def _tokens(frame: pd.DataFrame) -> float:
        return float(frame.groupby("run_id")["tokens"].max().sum()) if "tokens" in frame else 0.0

    def update(self, last: bool = False) -> None:
        """Redraw if it is time to; never more than a small share of the time."""
        now = time.monotonic()
        if now < self._next and not last:
            return
        frame = metrics_frame(self._plan)
        self._status.update(HTML(self._status_line(frame, now - self._start)))
        self._picture.update(_png(self._draw(frame)))
        spent = time.monotonic() - now
        self._next = now + max(MIN_REDRAW_SECONDS, spent / MAX_REDRAW_SHARE)

    def _status_line(self, frame: pd.DataFrame, elapsed: float) -> str:
        done = self._done(frame)
        rate = (done - self._before[0]) / elapsed if elapsed > 0 else 0.0
        speed = (self._tokens(frame) - self._before[1]) / elapsed if elapsed > 0 else 0.0
        bar = f'<progress value="{done}" max="{self._total}"></progress>'
        if not any((run / "stdout.log").exists() for run in self._plan.started_runs()):
            return f"{bar} waiting for a free core or GPU: other runs of this machine hold them all"
        parts = [f"{bar} {done}/{self._total} steps of {len(self._plan.seeds)} runs"]
        parts.append(f"{speed:,.0f} tokens/s")
        if rate > 0 and done < self._total:
            parts.append(f"about {_clock((self._total - done) / rate)} left")
        return " · ".join(parts)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def run(plan: Plan, wait: bool = False) -> Experiment:
    """Execute a plan with a live picture; a finished record of the same numbers is reused.

    `wait` waits for another process that works on the same experiment, which is otherwise refused (RecordError).
    """
    if plan.is_complete():
        display(HTML(f"{plan.variant}: a finished record with the same fingerprint is reused"))
        return Experiment(plan)
    live = LiveCurves(plan)
    experiment = execute(plan, live.update, wait)
    live.update(last=True)
    return experiment


def baseline_of(parameters: RunParameters) -> Experiment:
    """The baseline of the same study and stage: reused by its fingerprint, or else trained now.

    Another notebook that is training it is waited for.
    """
    plan = parameters.plan()
    if not plan.is_complete():
        finish(run(plan, wait=True))
    return Experiment(plan)


def ablation_of(parameters: RunParameters, name: str, baseline: Experiment) -> tuple[Experiment, Comparison]:
    """An ablation file's experiment beside its baseline, reused or else run now, and its comparison."""
    ablation = load_ablation(name)
    plan = parameters.plan(ablation)
    complete = plan.is_complete()
    experiment = Experiment(plan) if complete else run(plan)
    comparison = judge(baseline, experiment, ablation.analysis)
    if not complete:
        finish(experiment, comparison)
    return experiment, comparison


def finish(experiment: Experiment, comparison: Comparison | None = None) -> dict[str, Any]:
    """Save the curves and write summary.json, which makes the record complete; returns the summary."""
    floor = next(iter(experiment.finals("floor").values()), None)
    figure = plots.loss_curves(experiment.metrics(), floor=floor, title=f"{experiment.plan.variant}: loss curves")
    figure.savefig(experiment.plan.folder / "loss_curves.png", dpi=110)
    return summarise(experiment, comparison)


# --- showing ----------------------------------------------------------------------------------------------------


def _png(figure: Figure) -> Image:
    """The figure as a PNG of 64 colours, a third of the size: a notebook keeps its pictures inside itself."""
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=PICTURE_DPI)
    with PIL.Image.open(full) as picture:
        picture.convert("RGB").quantize(64).save(small, format="png", optimize=True)
    return Image(data=small.getvalue(), format="png")


def show(figure: Figure, sentence: str = "") -> None:
    """Display a figure with a sentence that says what it shows."""
    display(_png(figure))
    if sentence:
        display(Markdown(f"*{sentence}*"))


def declaration(parameters: AblationParameters) -> Markdown:
    """The hypothesis, variables, match and analysis as they stand before the first run."""
    a = parameters
    change = ", ".join(f"`{key}` = `{value}`" for key, value in a.change.items())
    rows = [
        f"**Hypothesis.** {a.hypothesis}",
        f"**Independent variable.** `{a.independent_variable}`: {change}",
        f"**Dependent variables.** {', '.join(a.dependent_variables)}. **Held constant.** {', '.join(a.controls)}.",
        f"**Matched by** {a.match}. {a.why}",
        f"**Expected.** {a.expect.text()}.",
        f"**Analysis.** {a.analysis.test} t-test on `{a.analysis.metric}`, two-sided alpha {a.analysis.alpha:g}, "
        f"smallest difference that matters {a.analysis.margin:g} nats/token, seeds {a.seeds}.",
    ]
    return Markdown("\n\n".join(rows + ([f"**Source.** {a.source}"] if a.source else [])))


def planned_cost(baseline: Plan, variant: Plan) -> HTML:
    """What one run of each arm costs, from closed forms, and how many runs are still to do; shown before training."""
    arms = {"baseline": baseline, variant.variant: variant}
    costs = {name: accounting(plan.config, open_dataset(plan.dataset).vocab_size) for name, plan in arms.items()}
    runs = [f"{len(plan.pending())} of {len(plan.seeds)} of {name}" for name, plan in arms.items()]
    flops = [costs[name]["total_flops"] for name in arms]
    total = sum(len(plan.pending()) * cost for plan, cost in zip(arms.values(), flops, strict=True))
    said = f"Runs still to train: {', '.join(runs)}; in all {total:.3g} FLOPs."
    if baseline.is_complete():
        seconds, ratio = Experiment(baseline).costs()["time_seconds"], flops[1] / flops[0]
        said += f" A run of the baseline took {seconds:.0f} s; by FLOPs one of the variant takes {ratio:.2f} times it."
    table = tables.matched_table(costs["baseline"], costs[variant.variant]).drop(index="time (s)")
    return HTML(f"{table.to_html()}<p>{said}</p>")


def verdict(experiment: Experiment, comparison: Comparison) -> Markdown:
    """The answer in one sentence, whether it was expected, and whether it was declared before the first run."""
    ablation, declared = experiment.plan.ablation, experiment.declaration()
    assert ablation is not None, "a baseline has no verdict"
    lines = [f"**{ablation.variant}: {comparison.verdict}.** {comparison.reason}"]
    outcome = ablation.expect.outcome(comparison.verdict, comparison.percent)
    found = "no finished runs" if comparison.percent is None else f"{comparison.percent:+.2f} %"
    lines.append(f"Expected: {ablation.expect.text()}. Found: {found}. The expectation is {outcome}.")
    if declared["changed_after_results"]:
        lines.append("**Deviation:** hypothesis or analysis were changed after results were there. Exploratory.")
    else:
        lines.append(f"Confirmatory: hypothesis and analysis were declared at {declared['declared']}, before any run.")
    return Markdown("\n\n".join(lines))


def detectable(experiment: Experiment, alpha: float = 0.05) -> str:
    """What a comparison of two arms with this experiment's seeds and noise can be expected to show."""
    seeds, noise = len(experiment.finals()), experiment.spread()
    if seeds < 2:
        return "one seed shows no noise, so no comparison can be made: give at least two"
    effect = minimum_detectable_effect(noise, seeds, alpha)
    return f"{effect:.3f} nats/token with {seeds} seeds an arm (standard deviation over seeds: {noise:.4f})"


def findings(baseline: Experiment, answers: Mapping[str, tuple[Experiment, Comparison]]) -> Markdown:
    """A sentence for every answer, the largest effects first."""
    noise = baseline.spread()
    lines = [
        "**Unequal tuning:** learning rates are the base's, tuned, if at all, for the baseline alone, and every "
        f"verdict holds at these rates. The baseline's seeds have a standard deviation of {noise:.4f} nats/token."
    ]
    for experiment, comparison in sorted(answers.values(), key=lambda answer: -abs(answer[1].difference or 0.0)):
        lines.append(f"- **{experiment.plan.variant}: {comparison.verdict}.** {comparison.reason}")
    return Markdown("\n".join(lines))


def joined(*experiments: Experiment) -> pd.DataFrame:
    """The metrics of several experiments in one frame, told apart by `variant`."""
    return pd.concat([experiment.metrics() for experiment in experiments], ignore_index=True)


def final_losses(*experiments: Experiment) -> pd.DataFrame:
    """Columns variant, seed, final_val_loss, of the finished runs."""
    rows = [(e.plan.variant, seed, loss) for e in experiments for seed, loss in e.finals().items()]
    return pd.DataFrame(rows, columns=["variant", "seed", "final_val_loss"])


def sample_of(experiment: Experiment) -> str:
    """What the first finished model wrote, for a reader's own judgement."""
    return next((r["sample"] for r in experiment.results if r.get("sample")), "(no sample was asked for)")


def record_link(experiment: Experiment) -> Markdown:
    folder = experiment.plan.folder
    root = project_root()
    place = folder.relative_to(root) if folder.is_relative_to(root) else f"a temporary folder, …/{folder.name}"
    return Markdown(f"Record: `{place}`")
