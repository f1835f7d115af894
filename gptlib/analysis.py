"""What 90_analysis needs beyond one comparison: stages, several sizes, 2x2 designs, repeats, searches, and findings.

A part that not every study has shows its own heading, or nothing.
"""

from collections.abc import Iterable, Sequence
from math import isnan, nan
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pandas as pd
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from gptlib import records
from gptlib.config import ConfigError
from gptlib.notebook import (
    AnalysisParameters,
    Answer,
    RunParameters,
    ablation_of,
    headline,
    sentence,
    shared_analysis,
    show,
)
from gptlib.report import journal, plots, science_plots, study_plots, tables
from gptlib.report.compare import comparison_lines, read_arms
from gptlib.report.style import save
from gptlib.stats.compare import Comparison, contrast, mean_interval
from gptlib.study import stability
from gptlib.study.budget import burn_down, spent, stage_costs
from gptlib.study.experiment import Experiment
from gptlib.study.hypothesis import METRICS, Analysis, combine, load_ablation
from gptlib.study.prices import load_prices, past_runs
from gptlib.study.registration import decision, registration
from gptlib.study.studies import Study


class Interaction(NamedTuple):
    """A 2x2 design: {seed: final loss} of the baseline, each variant and both together, and the contrast of them."""

    variants: tuple[str, str]
    losses: list[dict[int, float]]
    contrast: Comparison
    metric: str  # its label


def across_sizes(parameters: AnalysisParameters, answers: Iterable[Answer]) -> pd.DataFrame:
    """A row for every base and ablation: `base`, `parameters` (non-embedding), `variant`, its difference and verdict.

    `answers` are those of the parameters' own base; those of the ladder are reused, or else run now.
    """
    found = [(parameters.base, answer) for answer in answers]
    for base, stage in parameters.ladder.items():
        there = parameters.model_copy(update={"base": base, "stage": stage})
        found += [(base, ablation_of(there, load_ablation(name))) for name in parameters.ablations]
    rows = [
        {
            "base": Path(base).stem,
            "parameters": answer.baseline.costs()["non_embedding"],
            "variant": answer.variant.plan.variant,
            "baseline's loss": fmean(answer.baseline.finals().values()) if answer.baseline.finals() else nan,
            **{key: getattr(answer.comparison, key) for key in ("difference", "low", "high", "verdict")},
        }
        for base, answer in found
    ]
    return pd.DataFrame(rows)


def interaction_of(parameters: RunParameters, names: Sequence[str]) -> Interaction:
    """Two ablations, each alone and both together, against one baseline: reused or else run now. Raises ConfigError."""
    a, b = (load_ablation(name) for name in names)
    cells = [ablation_of(parameters, ablation) for ablation in (a, b, combine(a, b))]
    if len({cell.baseline.plan.fingerprint for cell in cells}) > 1:
        raise ConfigError(f"interaction of {a.variant} and {b.variant}: their baselines differ, by tuning or batch")
    arms = [cells[0].baseline, *(cell.variant for cell in cells)]
    losses = [arm.finals(a.analysis.metric) for arm in arms]
    return Interaction(
        (a.variant, b.variant), losses, contrast(losses, a.analysis.alpha, a.analysis.margin), a.analysis.label
    )


def stages(parameters: RunParameters) -> None:
    """What a staged study decided, stage by stage, with its figures."""
    decided = decision(Path(parameters.outputs), parameters.study)
    if decided is None:
        return
    _head("Stages", "A staged study screens, checks and races; only the race claims anything, on seeds of its own.")
    lines = [f"**Verdict: {decided['verdict']}.**"]
    for claim in decided["claims"]:
        interval = "" if claim["low"] is None else (
            f" Difference {claim['difference']:+.4f} [{claim['low']:+.4f}, {claim['high']:+.4f}], the interval at the "
            "level of the last boundary."
        )  # fmt: skip
        lines.append(f"- **{claim['variant']}**: {claim['reason']}.{interval}")
    for arm in decided["target"] or ():
        lines.append(f"- {arm['variant']} against the target {arm['target']:g}: {arm['reason']}.")
    display(Markdown("\n".join(lines)))
    _show_stages(decided)
    _show_budget(parameters)


def _head(title: str, text: str) -> None:
    display(Markdown(f"## {title}\n\n{text}"))


def _show_stages(decided: dict[str, Any]) -> None:
    """A row for every variant of every stage, and a line for every variant through the stages."""
    rows = [
        {
            "stage": f"{entry['stage']} ({entry['role']})" + (f", look {entry['look']}" if "look" in entry else ""),
            "variant": arm["variant"],
            "difference": arm["difference"],
            "seeds": entry["seeds"],
            "goes on": "yes" if arm["goes_on"] else "no",
            "reason": arm["reason"],
        }
        for entry in decided["stages"]
        for arm in entry["arms"]
    ]
    if not rows:
        return
    with pd.option_context("display.max_colwidth", None):
        display(pd.DataFrame(rows).set_index(["stage", "variant"]))
    ranks = pd.DataFrame([{**row, "stage": row["stage"][0]} for row in rows]).dropna()
    ranks = ranks.drop_duplicates(["stage", "variant"], keep="last")[["stage", "variant", "difference"]]
    if ranks["stage"].nunique() > 1:
        show(
            science_plots.stage_ranks(ranks, unit=METRICS[decided["metric"]][1]),
            "Difference to the stage's own baseline; a line joins one variant.",
        )


def _show_budget(parameters: RunParameters) -> None:
    """Dollars planned, spent and left by stage, where the study declares a budget."""
    sealed = registration(Path(parameters.outputs), parameters.study)
    study = Study.model_validate(sealed["study"]) if sealed else None
    if study is None or study.stages is None or study.stages.budget_dollars is None:
        return
    prices, outputs = load_prices(), Path(parameters.outputs)
    costs = stage_costs(study, prices, past_runs(outputs, prices))
    rows = burn_down(costs, spent(study, outputs, prices), study.stages.budget_dollars)
    frame = pd.DataFrame(rows)
    show(science_plots.burn_down(frame), "Dollars of each stage, planned at worst and spent, and what is left.")


def sizes(parameters: AnalysisParameters, answers: Iterable[Answer]) -> None:
    """Each effect against the size of the baseline, for a study of several bases."""
    if not parameters.ladder:
        return
    answers = list(answers)
    _head("Does the effect hold at other sizes?", "An effect that shrinks with size may be gone at the next.")
    frame = across_sizes(parameters, answers)
    show(plots.effects_by_size(frame, label_of(answers)), "To the baseline of the same size, with its interval.")
    display(tables.sizes_table(frame))


def interactions(parameters: AnalysisParameters) -> None:
    """Two changes, each alone and both together, for the pairs that a study names."""
    found = [interaction_of(parameters, pair) for pair in parameters.interactions]
    if not found:
        return
    _head("Do effects add up?", "The contrast is zero where both together are worth the sum of each.")
    for one in found:
        show(plots.interaction(one.variants, one.losses, one.metric), "Parallel lines: the effects add up.")
    display(tables.comparison_table({" x ".join(one.variants): one.contrast for one in found}))


def repeats(parameters: AnalysisParameters, answers: Iterable[Answer]) -> None:
    """The p-values of the same comparison with fresh seeds each time."""
    answers = list(answers)
    rows = repeated(parameters, answers).dropna(subset=["p_value"])
    if not len(rows):
        return
    alpha = shared_analysis(answer.variant.plan.ablation for answer in answers).alpha
    _head(
        "Again and again",
        "Where both arms are one configuration (A/A), p-values are uniform and fall below alpha in a share alpha of "
        "all repeats, if the whole pipeline keeps its word.",
    )
    for variant, of in rows.groupby("variant"):
        values = list(of["p_value"])
        show(science_plots.p_values(values, alpha), f"{variant}: {share_below(values, alpha)}")


def learning_rates(parameters: AnalysisParameters, answers: Iterable[Answer] = ()) -> None:
    """Losses over the rates that the study has tried, and the largest one that each arm named in `stable_lr` bears.

    Runs of the search that are missing are made now.
    """
    rates = rates_tried(answers)
    found = {}
    for name, grid in parameters.stable_lr.items():
        plan = parameters.plan(None if name == "baseline" else load_ablation(name))
        found[plan.variant] = stability.stable_rates(plan, grid)
    rows = rates if len(rates) > 2 else []
    rows += [{"arm": f"{arm} (search)", **vars(point)} for arm, search in found.items() for point in search.points]
    if not rows:
        return
    _head("Which learning rate?", "Of the block matrices, at its peak. A rate that is stable is not yet a good one.")
    sweep = pd.DataFrame(rows)[["arm", "lr", "loss", "diverged", "runs"]].astype({"loss": float})
    show(study_plots.rate_sweep(sweep), "Mean final loss by rate; a cross stands for runs that diverged.")
    for variant, search in found.items():
        display(Markdown(f"**{variant}**: {search.text()}."), tables.stability_table(search))


def rates_tried(answers: Iterable[Answer]) -> list[dict[str, Any]]:
    """A point for the baseline and for every ablation that changes the rates alone, as study_plots.rate_sweep takes."""
    alone = [answer for answer in answers if set(answer.variant.plan.difference) == {"optim.lr_scale"}]
    return [
        {
            "arm": "baseline",
            "lr": experiment.plan.config.optim.matrix_lr,
            "loss": fmean(experiment.finals().values()) if experiment.finals() else nan,
            "diverged": experiment.count("diverged"),
            "runs": len(experiment.results),
        }
        for experiment in ([alone[0].baseline] if alone else []) + [answer.variant for answer in alone]
    ]


def curves(frame: pd.DataFrame, floor: float | None) -> Figure:
    """Loss by step, by tokens and FLOPs where arms differ in what a step is, and by time; returns the first."""
    shown = [("step", "All experiments, by step")]
    for x, name in (("tokens", "tokens"), ("flops", "training FLOPs")):
        each = (frame[x] / frame["step"].where(frame["step"] > 0)).groupby(frame["variant"]).max()
        if each.max() > 1.005 * each.min():
            shown.append((x, f"All experiments, by {name}"))
    shown.append(("train_time_ms", "All experiments, by time"))
    figures = [plots.loss_curves(frame, floor=floor, x=x, title=title) for x, title in shown]  # type: ignore[arg-type]
    for figure, (x, _) in zip(figures, shown, strict=True):
        also = ": as it was while others shared the machine" if x == "train_time_ms" else ""
        show(figure, f"Mean validation loss, and a band from the lowest to the highest seed{also}.")
    return figures[0]


def trade_offs(experiments: Sequence[Experiment], answers: Sequence[Answer]) -> None:
    """A variant's loss beside its FLOPs and parameters, and its speed and memory."""
    costs = {experiment.plan.variant: experiment.costs() for experiment in experiments}
    label = label_of(answers)
    rows = [
        {
            "variant": answer.variant.plan.variant,
            **{key: getattr(answer.comparison, key) for key in ("difference", "low", "high")},
            "ratio": answer.variant.costs()["total_flops"] / answer.baseline.costs()["total_flops"],
        }
        for answer in answers
        if answer.comparison.difference is not None
    ]
    if len({round(row["ratio"], 3) for row in rows} | {1.0}) > 1:
        show(
            study_plots.trade_off(pd.DataFrame(rows), label),
            "Loss against the FLOPs of a run, in closed form.",
        )
    sized = []
    for experiment in experiments:
        if losses := list(experiment.finals().values()):
            interval = mean_interval(losses)
            size = {"variant": experiment.plan.variant, "parameters": costs[experiment.plan.variant]["total"]}
            sized.append(size | {"loss": interval.mean, "low": interval.low, "high": interval.high})
    if len({row["parameters"] for row in sized}) > 1:
        show(study_plots.loss_against_parameters(pd.DataFrame(sized)), "Mean final loss with its 95 % interval.")
    memory = "allocated_peak_mib" if all("allocated_peak_mib" in of for of in costs.values()) else "resident_peak_mib"
    speeds = [
        {"variant": e.plan.variant, "tokens_per_second": speed, "memory_mib": costs[e.plan.variant].get(memory, nan)}
        for e in experiments
        for speed in e.finals("tokens_per_second").values()
    ]
    if speeds:
        of = "allocated on the GPU" if memory == "allocated_peak_mib" else "of the whole process"
        said = f"Speed as it was, whatever else ran on the machine: no claim. Memory: the mean peak {of}."
        show(study_plots.throughput_and_memory(pd.DataFrame(speeds)), said)


def foreign(parameters: AnalysisParameters) -> None:
    """Records of other programs' runs, the first as the baseline: table, curves and verdicts. Raises RecordError."""
    if not parameters.imported:
        return
    _head("Runs of other programs", "What `gptlib import-log` has brought in, beside the first of them.")
    folders = [Path(parameters.outputs) / "imported" / name for name in parameters.imported]
    arms = read_arms(folders)
    display(tables.summary_table([records.read_json(folder / "summary.json") for folder in folders]))
    frames = [pd.read_csv(f / "metrics.csv").assign(variant=arm.name) for f, arm in zip(folders, arms, strict=True)]
    show(plots.loss_curves(pd.concat(frames, ignore_index=True), title="Runs of other programs"), "As their logs say.")
    display(Markdown("\n\n".join(comparison_lines(arms, Analysis()))))


def write_comparison(parameters: RunParameters, curves: Figure, verdicts: Figure) -> None:
    """Write into the study's folder: ablation_comparison (the curves) and verdicts, each as .png and .svg;
    ablation_analysis.txt; and its journal as appendix.md."""
    asked = Path(parameters.outputs), parameters.study, parameters.stage
    folder = asked[0] / asked[1]
    save(curves, folder / Path(journal.COMPARISON).stem)
    save(verdicts, folder / "verdicts")
    records.write_text(folder / "ablation_analysis.txt", journal.analysis_text(*asked))
    records.write_text(folder / "appendix.md", journal.journal(*asked))


def label_of(answers: Iterable[Answer]) -> str:
    """What the answers compare, with its unit."""
    return shared_analysis(a.variant.plan.ablation for a in answers).label


def repeated(parameters: AnalysisParameters, answers: Iterable[Answer]) -> pd.DataFrame:
    """A row for every repeat and ablation: stage, variant, difference, p_value; the first repeat is `answers`."""
    found = [(parameters.stage, answer) for answer in answers] if parameters.repeats else []
    for stage, seeds in parameters.repeats.items():
        there = parameters.model_copy(update={"stage": stage, "seeds": seeds})
        found += [(stage, ablation_of(there, load_ablation(name))) for name in parameters.ablations]
    rows: list[dict[str, Any]] = [
        {"stage": stage, "variant": answer.variant.plan.variant}
        | {key: getattr(answer.comparison, key) for key in ("difference", "p_value")}
        for stage, answer in found
    ]
    return pd.DataFrame(rows, columns=["stage", "variant", "difference", "p_value"])


def share_below(p_values: Sequence[float | None], alpha: float = 0.05) -> str:
    """How many p-values lie below alpha, beside the 95 % band of as many where nothing differs (binomial).

    Comparisons that could not be tested (None or nan) are not counted.
    """
    from scipy import stats

    known = [p for p in p_values if p is not None and not isnan(p)]
    if not known:
        return "No comparison could be tested."
    low, high = stats.binom.interval(0.95, len(known), alpha)
    count = sum(p < alpha for p in known)
    inside, percent = "inside" if low <= count <= high else "OUTSIDE", 100 * count / len(known)
    band = f"{inside} the 95 % band of {low:.0f} to {high:.0f} that holds where nothing differs"
    return f"{count} of {len(known)} comparisons have p < {alpha:g} ({percent:.1f} %), {band}."


def registered(parameters: RunParameters) -> Markdown:
    """When the study was registered, with which commit, and what has changed since: confirmatory or exploratory."""
    sealed = registration(Path(parameters.outputs), parameters.study)
    if sealed is None:
        return Markdown("Not registered as a study: each ablation's own page says when it was declared.")
    commit = (sealed["git"]["commit"] or "no commit")[:10]
    commit += " with uncommitted changes" if sealed["git"]["dirty"] else ""
    said = f"Registered at {sealed['registered']}, {commit}, seal {sealed['sha256'][:12]}."
    if not sealed["deviations"]:
        return Markdown(f"{said} **Confirmatory**: nothing was changed since.")
    lines = "\n".join(f"- {deviation}" for deviation in sealed["deviations"])
    return Markdown(f"{said} **Exploratory**: these were changed when results were there already:\n\n{lines}")


def findings(baseline: Experiment, answers: Iterable[Answer]) -> Markdown:
    """A sentence for every answer, the largest effects first, under a line about how the arms were tuned."""
    answers = sorted(answers, key=lambda answer: -abs(answer.comparison.difference or 0.0))
    tuning = {a.variant.plan.variant: a.variant.plan.arms.tuning() for a in answers if a.variant.plan.arms}
    alike = [name for name, how in tuning.items() if how.startswith("tuned alike")]
    lines, analysis = [], shared_analysis(a.variant.plan.ablation for a in answers)
    if len(alike) < len(tuning):
        but = f"; {', '.join(alike)} tuned alike" if alike else ""
        lines.append(
            "**Unequal tuning:** learning rates are the base's, tuned, if at all, for the baseline alone, and every "
            f"verdict holds at these rates{but}."
        )
    if len(baseline.finals(analysis.metric)) > 1:
        spread = f"{baseline.spread(analysis.metric):.4f} {analysis.unit}"
        lines.append(f"**Noise:** the baseline's seeds have a standard deviation of {spread}.")
    for answer in answers:
        how = tuning.get(answer.variant.plan.variant, "")
        also = f"; {how}" if how.startswith("tuned ") else ""
        lines.append(f"- {headline(answer)} {sentence(answer.comparison.reason)}{also}.")
    return Markdown("\n".join(lines))
