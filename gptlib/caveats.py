"""What a reader should doubt in the answer of a study, told from its records, and how to run it again."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from IPython.display import Markdown, display

from gptlib.config import ConfigError
from gptlib.data.dataset import open_dataset
from gptlib.matching import RESOURCES
from gptlib.notebook import AnalysisParameters, Answer, compared, shown_path
from gptlib.report.tables import MISSING
from gptlib.stats.compare import holm_by_name
from gptlib.study.experiment import Experiment, compared_costs
from gptlib.study.registration import registration
from gptlib.study.studies import load_study

CHINCHILLA = 20  # tokens a parameter, about: Hoffmann et al. 2022, arXiv 2203.15556


def critical(baseline: Experiment, answers: Sequence[Answer], bases: int = 1) -> Markdown:
    """Shows what was not matched; says what else could explain the verdicts, and where they stop holding.

    `bases`: how many sizes the study compares; the answers are those of one.
    """
    if answers:
        display(unmatched(answers))
    lines = [*_many_questions(answers), *_lost(compared(baseline, answers)), _setting(baseline, bases)]
    said = "those of runs are taken while others share the machine, and support no claim"
    if any(_trial(answer.variant) for answer in answers):
        said += "; where arms were matched by time, a trial timed their steps in turn"
    return Markdown("\n".join(f"- {line}" for line in [*lines, f"**Times**: {said}."]))


def _trial(experiment: Experiment) -> bool:
    arms = experiment.plan.arms
    return bool(arms and arms.trial)


def unmatched(answers: Sequence[Answer]) -> pd.DataFrame:
    """A row per variant: what both arms have in common, what differs all the same, and what of that is a rival cause.

    Ratios are variant over baseline, named where they are off by more than the tolerance of a match.
    """
    rows = {}
    for answer in answers:
        assert answer.variant.plan.arms is not None, "a baseline has no answer"
        old, new = compared_costs(answer.baseline, answer.variant)
        ratios = {name: (new[key] / old[key], off) for name, key, off in RESOURCES if old.get(key) and key in new}
        free = [f"{name} {ratio:.2f}x" for name, (ratio, off) in ratios.items() if abs(ratio - 1) > off]
        rival = [f"{_more(name, ratio)} {name}" for name, ratio in answer.confounders.items()]
        rows[answer.variant.plan.variant] = {
            "matched by": answer.variant.plan.arms.match.by,
            "not matched": ", ".join(free) or MISSING,
            "could explain the verdict": ", ".join(rival) or MISSING,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _more(resource: str, ratio: float) -> str:
    return "more" if ratio > 1 else "less" if resource in ("time", "memory") else "fewer"


def _many_questions(answers: Sequence[Answer]) -> list[str]:
    comparisons = {a.variant.plan.variant: a.comparison for a in answers}
    adjusted = holm_by_name(comparisons)
    claimed = [name for name, c in comparisons.items() if c.verdict in ("better", "worse")]
    if len(adjusted) < 2:
        return []
    gone = [name for name in claimed if (p := adjusted.get(name)) is not None and p >= comparisons[name].alpha]
    false = sum(comparisons[name].alpha for name in adjusted)
    told = f"**Several questions.** The verdicts above are {len(adjusted)}, each at its own level: where nothing "
    told += f"differs, at most {false:.2g} of them are expected to claim something."
    if claimed:
        kept = f"{', '.join(gone)} would not be claimed" if gone else "every claim stands"
        told += f" Corrected for that (Holm), {kept}."
    return [told]


def _lost(experiments: Sequence[Experiment]) -> list[str]:
    counts = [
        f"{experiment.plan.variant} {count} {status}"
        for experiment in experiments
        for status in ("diverged", "failed")
        if (count := experiment.count(status))
    ]
    return [f"**Runs without a loss.** {', '.join(counts)}."] if counts else []


def _setting(baseline: Experiment, bases: int) -> str:
    """The corpus, size and length of the baseline: how small they are."""
    config, costs, dataset = baseline.plan.config, baseline.costs(), open_dataset(baseline.plan.dataset)
    tokens, parameters = costs["tokens"], costs["total"]
    epochs = tokens / dataset.manifest["splits"]["train"]["tokens"]
    scored = next((result["val_tokens"] for result in baseline.results if result.get("val_tokens")), None)
    held_out = f" Losses are those of the same {scored:,} held-out tokens." if scored else ""
    share = tokens / parameters
    said = (
        f"**{'One setting' if bases == 1 else f'{bases} sizes, one corpus'}.** The baseline: {config.data.corpus}, "
        f"{parameters:,.0f} parameters, {tokens:,.0f} tokens, {epochs:.2g} epochs, {share:.2g} tokens a parameter"
    )
    if share < CHINCHILLA:
        said += (
            f", where the least compute would take about {CHINCHILLA}. So early in a training, whatever "
            "speeds up its beginning looks better than it is"
        )
    return f"{said}.{held_out}"


def rerun(parameters: AnalysisParameters, baseline: Experiment, answers: Sequence[Answer] = ()) -> Markdown:
    """The commands that repeat the study, the machine of these numbers, and how closely they will come out again."""
    summary = baseline.summary()
    git, machine = summary["git_info"], summary["environment"]
    lines = [f"git checkout {git['commit'][:10]}"] if git["commit"] else []
    if git["dirty"]:
        lines.append(f"git apply {shown_path(baseline.plan.folder)}/git_diff.patch")
    block = "\n".join(["```sh", *lines, "make install", command(parameters), "```"])
    hardware = ", ".join([machine["cpu"] or machine["platform"], f"{machine['cores']} cores", *machine["gpus"]])
    threads = baseline.plan.config.hardware.threads
    said = f"The numbers here: {hardware}; {threads} thread{'s' * (threads > 1)} a run; Python {machine['python']}, "
    said += f"torch {machine['packages']['torch']}; data {baseline.plan.dataset.name}. "
    if baseline.plan.device != "cpu":
        said += "GPUs sum in changing orders, so losses come out again to a few digits."
    else:
        said += "On such a machine losses come out the same to the last bit; on another, as far as rounding allows."
    if timed := [answer.variant.plan.variant for answer in answers if _trial(answer.variant)]:
        said += f" A new trial of the time may give {', '.join(timed)} another number of steps."
    return Markdown(f"{block}\n\n{said}")


def command(parameters: AnalysisParameters) -> str:
    """What runs the study again: `gptlib study NAME` where params/studies has it, or else this notebook."""
    sealed = registration(Path(parameters.outputs), parameters.study)
    pieces = parameters.study.split("-")
    for end in range(len(pieces), 0, -1):  # a profile is a study of its own, named <study>-<profile>
        name, profile = "-".join(pieces[:end]), "-".join(pieces[end:])
        try:
            asked = load_study(name, profile=profile)
        except ConfigError:
            continue
        if sealed and asked.name == parameters.study:
            given = sealed["study"]["overrides"]
            sets = [
                f"--set {shlex.quote(f'{key}={json.dumps(value)}')}"
                for key, value in given.items()
                if asked.overrides.get(key) != value
            ]
            return " ".join([".venv/bin/gptlib study", name, *([f"--profile {profile}"] if profile else []), *sets])
    default = AnalysisParameters().model_dump(mode="json")
    given = {key: value for key, value in parameters.model_dump(mode="json").items() if value != default[key]}
    given["outputs"] = "outputs"
    return f".venv/bin/papermill notebooks/90_analysis.ipynb out.ipynb -y {shlex.quote(json.dumps(given))}"
