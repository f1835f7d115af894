"""What a notebook needs: its parameters checked, experiments run with a live picture, figures shown and kept.

The parameter classes here hold the same names and defaults as the `parameters` cells of the notebooks (a test keeps
them equal): the smoke run, seconds long, in a temporary folder.
"""

import ast
import atexit
import itertools
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pandas as pd
from IPython.display import HTML, Markdown, display
from matplotlib.figure import Figure
from pydantic import field_validator, model_validator

from gptlib.accounting import planned_costs
from gptlib.config import ConfigError, load_config, project_root, validate
from gptlib.data.dataset import open_dataset
from gptlib.fields import RunConfig, Section
from gptlib.live import picture, run
from gptlib.matching import TOLERANCE
from gptlib.report import plots, study_plots, tables
from gptlib.report.style import save
from gptlib.stats.compare import Comparison
from gptlib.stats.power import minimum_detectable_effect, power_curve
from gptlib.study.experiment import Experiment, compared_costs, execute, explanations, judge, summarise
from gptlib.study.hypothesis import Ablation, Analysis, Expectation, distinct_seeds
from gptlib.study.plan import Plan, plan_experiment
from gptlib.study.registration import role
from gptlib.yaml12 import suggestion

INJECTED = "# Parameters"  # how papermill begins the cell it adds
SMOKE_VARIANT = "no_qk_norm"


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
    interactions: list[tuple[str, str]] = []
    ladder: dict[str, str] = {}
    repeats: dict[str, list[int]] = {}
    stable_lr: dict[str, list[float]] = {}
    imported: list[str] = []
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


# --- running ----------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """A variant beside the arm it was compared with."""

    baseline: Experiment
    variant: Experiment
    comparison: Comparison

    @property
    def confounders(self) -> dict[str, float]:
        return explanations(self.baseline, self.variant, self.comparison.verdict)


def baseline_of(parameters: RunParameters, variant: Plan | None = None) -> Experiment:
    """The baseline of the same study and stage, or the arm that `variant` is compared with: reused or trained now.

    Another notebook that is training it is waited for.
    """
    plan = parameters.plan() if variant is None else variant.baseline()
    if not plan.is_complete():
        finish(run(plan, wait=True))
    return Experiment(plan)


def tuned(parameters: RunParameters, plan: Plan) -> Plan:
    """The plan with the best values of each arm's own grid, whose missing runs are made now."""
    if plan.arms is None or not plan.arms.grid:
        display(Markdown("No tuning was declared: both arms have the values of the base."))
        return plan
    status, trials = display(HTML("tuning …"), display_id=True), plan.tuning()
    for number, trial in enumerate(trials):
        status.update(HTML(f"tuning: {number} of {len(trials)} points of the grids are done"))
        if trial.pending():
            finish(execute(trial, wait=True))
    status.update(HTML(f"tuning: {len(trials)} points, seeds {', '.join(map(str, trials[0].seeds))}"))
    return parameters.plan(plan.ablation)


def ablation_of(parameters: RunParameters, ablation: Ablation) -> Answer:
    """An ablation's experiment beside its baseline, reused or else run now, and their comparison."""
    plan = parameters.plan(ablation)
    if plan.arms and plan.arms.pending:
        plan = tuned(parameters, plan)
    baseline, complete = baseline_of(parameters, plan), plan.is_complete()
    experiment = Experiment(plan) if complete else run(plan)
    answer = Answer(baseline, experiment, judge(baseline, experiment, ablation.analysis))
    if not complete:
        finish(experiment, answer)
    return answer


def finish(experiment: Experiment, answer: Answer | None = None) -> dict[str, Any]:
    """Save the curves and what was matched, and write summary.json, which makes the record complete; returns it."""
    floor, plan = next(iter(experiment.finals("floor").values()), None), experiment.plan
    figure = plots.loss_curves(experiment.metrics(), floor=floor, title=f"{plan.variant}: loss curves")
    save(figure, plan.folder / "loss_curves", dpi=110)
    if answer:
        table = tables.matched_table(*compared_costs(answer.baseline, answer.variant), answer.confounders)
        save(study_plots.matched_picture(table, f"{plan.variant}: what was matched"), plan.folder / "matched", dpi=110)
    return summarise(experiment, answer.comparison if answer else None, answer.baseline if answer else None)


# --- showing ----------------------------------------------------------------------------------------------------


def show(figure: Figure, sentence: str = "") -> None:
    """Display a figure with a sentence that says what it shows."""
    display(picture(figure))
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
        f"**Matched by** {a.match}{f' with {a.free}' if a.free else ''}"
        f"{f', within {a.memory_mib:g} MiB' if a.memory_mib else ''}. {a.why}",
        f"**Tuned**, both arms, on seeds {a.tune_seeds}: {', '.join(f'`{k}` {v}' for k, v in a.tune.items())}."
        if a.tune
        else "**Not tuned:** both arms keep the settings of the base.",
        f"**Expected.** {a.expect.text()}.",
        f"**Analysis.** {a.analysis.test} t-test on `{a.analysis.metric}`, two-sided alpha {a.analysis.alpha:g}, "
        f"smallest difference that matters {a.analysis.margin:g} {a.analysis.unit}, seeds {a.seeds}.",
    ]
    return Markdown("\n\n".join(rows + ([f"**Source.** {a.source}"] if a.source else [])))


def planned_cost(variant: Plan) -> HTML:
    """What was matched, what one run of each arm costs, and how many runs are to do; shown before training."""
    assert variant.arms is not None and variant.ablation is not None
    baseline, match = variant.baseline(), variant.arms.match
    knobs = ", ".join(f"{key} = {value}" for key, (_, value) in variant.difference.items() if key in match.knobs)
    said = f"Matched by {match.by}{': ' + knobs if knobs else ''}. "
    plans = [*variant.tuning(), baseline, variant]
    if (off := variant.arms.uncertainty) > TOLERANCE["time"]:
        said += f"The trial knows the ratio of the times only to ±{100 * off:.1f} %: something kept the machine busy. "
    runs = [f"{len(plan.pending())} of {len(plan.seeds)} of {plan.variant}" for plan in (baseline, variant)]
    if grid := variant.tuning():
        trials = sum(len(plan.pending()) for plan in grid)
        runs.insert(0, f"{trials} of {sum(len(plan.seeds) for plan in grid)} of {len(grid)} points of the tuning")
    total = sum(len(plan.pending()) * run_cost(plan) for plan in plans)
    said += f"Runs still to train: {', '.join(runs)}; in all {total:.3g} FLOPs."
    if baseline.is_complete():
        seconds = Experiment(baseline).costs().get("time_seconds", float("nan"))
        ratio = match.variant["total_flops"] / match.baseline["total_flops"]
        said += f" A run of the baseline took {seconds:.0f} s; by FLOPs one of the variant takes {ratio:.2f} times it."
    return HTML(f"{tables.matched_table(match.baseline, match.variant).to_html()}<p>{said}</p>")


def run_cost(plan: Plan) -> float:
    """Training FLOPs of one run of a plan."""
    return planned_costs(plan.config, open_dataset(plan.dataset).vocab_size)["total_flops"]


def tuning(plan: Plan) -> None:
    """The losses of both grids as a table and a picture, where there are any."""
    if plan.arms and plan.arms.grid and plan.ablation:
        label = plan.ablation.analysis.label
        display(tables.tuning_table(plan.arms.grid, label))
        display(tables.difference_table(plan.difference))
        show(plots.tuning(plan.arms, label), f"Mean over the tuning's own seeds; {plan.arms.tuning()}.")


def verdict(answer: Answer) -> Markdown:
    """The answer in one sentence, what could explain it otherwise, whether it was expected, when it was declared."""
    experiment, comparison = answer.variant, answer.comparison
    ablation, arms, declared = experiment.plan.ablation, experiment.plan.arms, experiment.declaration()
    assert ablation is not None and arms is not None, "a baseline has no verdict"
    lines = [f"{headline(answer)} {sentence(comparison.reason)}.", f"**Tuning:** {arms.tuning()}."]
    if arms.uncertainty > TOLERANCE["time"]:
        lines.append(
            f"**Matched by time** only to ±{100 * arms.uncertainty:.1f} %: the machine was busy during the trial."
        )
    outcome = ablation.expect.outcome(comparison.verdict, comparison.percent)
    found = "no finished runs" if comparison.percent is None else f"{comparison.percent:+.2f} %"
    lines.append(f"Expected: {ablation.expect.text()}. Found: {found}. The expectation is {outcome}.")
    plan = experiment.plan
    if part := role(plan.outputs, plan.study, plan.stage):
        lines.append(f"The {part} of a staged study: its registration and decision.json say what is claimed.")
    elif declared["changed_after_results"]:
        lines.append("**Deviation:** hypothesis or analysis were changed after results were there. Exploratory.")
    else:
        lines.append(f"Confirmatory: hypothesis and analysis were declared at {declared['declared']}, before any run.")
    return Markdown("\n\n".join(lines))


def sentence(reason: str) -> str:
    return reason[:1].upper() + reason[1:]


def headline(answer: Answer) -> str:
    """`**gelu: worse (confounded: time 0.90x).**`"""
    also = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in answer.confounders.items())
    return f"**{answer.variant.plan.variant}: {answer.comparison.verdict}{f' (confounded: {also})' if also else ''}.**"


def detectable(experiment: Experiment, analysis: Analysis | None = None) -> str:
    """What a comparison of two arms with this experiment's seeds and noise can be expected to show."""
    analysis = analysis or Analysis()
    seeds, noise = len(experiment.finals(analysis.metric)), experiment.spread(analysis.metric)
    if seeds < 2:
        return "one seed shows no noise, so no comparison can be made: give at least two"
    effect = minimum_detectable_effect(noise, seeds, analysis.alpha)
    return f"{effect:.3f} {analysis.unit} with {seeds} seeds an arm (standard deviation over seeds: {noise:.4f})"


def power_table(experiment: Experiment, alpha: float = 0.05) -> pd.DataFrame:
    """Columns seeds, effect, power: of a Welch test with this experiment's noise, for effects of up to 4 times that.

    Empty where one seed alone shows no noise.
    """
    noise = experiment.spread() if len(experiment.finals()) > 1 else 0.0
    effects = [noise * step / 10 for step in range(1, 41)] if noise else []
    frame = power_curve(noise, [2, 3, 5, 8, 10], effects, alpha)
    return (
        frame.reset_index(names="seeds").melt("seeds", var_name="effect", value_name="power").astype({"effect": float})
    )


def joined(*experiments: Experiment) -> pd.DataFrame:
    """The metrics of several experiments in one frame, told apart by `variant`, with the training `flops` so far.

    Those are the run's planned FLOPs in equal shares to its tokens, also where early steps are cheaper.
    """
    costs = [experiment.costs() for experiment in experiments]
    frames = [
        (frame := experiment.metrics()).assign(flops=cost["total_flops"] / cost["tokens"] * frame["tokens"])
        for experiment, cost in zip(experiments, costs, strict=True)
    ]
    return pd.concat(frames, ignore_index=True)


def compared(baseline: Experiment, answers: Iterable[Answer]) -> list[Experiment]:
    """Both arms of all answers, each experiment once: a tuned or larger-batch baseline is one of its own."""
    arms = [baseline, *(arm for answer in answers for arm in (answer.baseline, answer.variant))]
    return list({arm.plan.folder: arm for arm in arms}.values())


def shared_analysis(ablations: Iterable[Ablation | None]) -> Analysis:
    """Of whose metric a picture of several ablations can be; where they declare different ones, the loss."""
    declared = {ablation.analysis.metric: ablation.analysis for ablation in ablations if ablation}
    return next(iter(declared.values())) if len(declared) == 1 else Analysis()


def final_losses(*experiments: Experiment) -> pd.DataFrame:
    """Columns variant, seed, and the metric that is compared (final_val_loss), nan for runs that have none."""
    metric = shared_analysis(e.plan.ablation for e in experiments).metric
    rows = [(e.plan.variant, seed, e.finals(metric).get(seed)) for e in experiments for seed in e.plan.seeds]
    return pd.DataFrame(rows, columns=["variant", "seed", metric])


def sample_of(experiment: Experiment) -> str:
    """What the first finished model wrote, for a reader's own judgement."""
    return next((r["sample"] for r in experiment.results if r.get("sample")), "(no sample was asked for)")


def record_link(experiment: Experiment) -> Markdown:
    return Markdown(f"Record: `{shown_path(experiment.plan.folder)}`")


def shown_path(folder: Path) -> str:
    """A record's folder as seen from the checkout; of one elsewhere its end: no page names a machine's paths."""
    root = project_root()
    return str(folder.relative_to(root)) if folder.is_relative_to(root) else "/".join(["…", *folder.parts[-3:]])
