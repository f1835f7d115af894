"""What a reader should doubt in the answer of a study, told from its records, and how to run it again."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from IPython.display import Markdown, display

from gptlib.config import ConfigError
from gptlib.data.dataset import open_dataset
from gptlib.matching import RESOURCES
from gptlib.notebook import Answer, RunParameters, shared_analysis
from gptlib.report.tables import MISSING
from gptlib.stats.compare import holm_by_name
from gptlib.study.experiment import Experiment, compared_costs
from gptlib.study.registration import registration
from gptlib.study.studies import load_study

CHINCHILLA = 20  # tokens a parameter, about: Hoffmann et al. 2022, arXiv 2203.15556


def critical(baseline: Experiment, answers: Sequence[Answer]) -> Markdown:
    """Shows what was not matched, then says what else could explain the verdicts and where they end to hold."""
    if answers:
        display(unmatched(answers))
    lines = [*_many_questions(answers), *_lost([baseline, *(a.variant for a in answers)])]
    lines += [
        _setting(baseline),
        "**Times.** Those of runs are taken while others share the machine, and support no claim; those of a match by "
        "time come from trials that had it to themselves.",
    ]
    return Markdown("\n".join(f"- {line}" for line in lines))


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
        rival = [f"more {name}" if ratio > 1 else f"less {name}" for name, ratio in answer.confounders.items()]
        rows[answer.variant.plan.variant] = {
            "verdict": answer.comparison.verdict,
            "matched by": answer.variant.plan.arms.match.by,
            "not matched": ", ".join(free) or MISSING,
            "could explain the verdict": ", ".join(rival) or MISSING,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _many_questions(answers: Sequence[Answer]) -> list[str]:
    comparisons = {a.variant.plan.variant: a.comparison for a in answers}
    adjusted = holm_by_name(comparisons)
    claimed = [name for name, c in comparisons.items() if c.verdict in ("better", "worse")]
    if len(adjusted) < 2:
        return []
    gone = [name for name in claimed if (p := adjusted.get(name)) is not None and p >= comparisons[name].alpha]
    alpha = shared_analysis(a.variant.plan.ablation for a in answers).alpha
    said = f"each at a level of {alpha:g}: where nothing differs, {alpha * len(adjusted):.2g} of them claim something"
    told = f"**Several questions.** {len(adjusted)} were asked, {said}."
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


def _setting(baseline: Experiment) -> str:
    """One corpus, one size, one length: how small they are."""
    config, costs, dataset = baseline.plan.config, baseline.costs(), open_dataset(baseline.plan.dataset)
    tokens, parameters = costs["tokens"], costs["total"]
    epochs = tokens / dataset.manifest["splits"]["train"]["tokens"]
    scored = next((result["val_tokens"] for result in baseline.results if result.get("val_tokens")), None)
    held_out = f" Losses are those of the same {scored:,} held-out tokens." if scored else ""
    share = tokens / parameters
    said = (
        f"**One setting.** One corpus ({config.data.corpus}), one size ({parameters:,.0f} parameters), one length: "
        f"{tokens:,.0f} tokens, {epochs:.2g} epochs, {share:.2g} tokens a parameter"
    )
    if share < CHINCHILLA:
        said += (
            f", where the least compute would take about {CHINCHILLA}. So early in a training, whatever "
            "speeds up its beginning looks better than it is"
        )
    return f"{said}.{held_out}"


def rerun(parameters: RunParameters, baseline: Experiment) -> Markdown:
    """The commands that repeat the study, and the machine on which the numbers came out as they are here."""
    summary = baseline.summary()
    git, machine = summary["git_info"], summary["environment"]
    commit = [f"git checkout {git['commit'][:10]}"] if git["commit"] else []
    lines = [*commit, "make install", command(parameters)]
    block = "\n".join(["```sh", *lines, "```"])
    hardware = ", ".join([machine["cpu"] or machine["platform"], f"{machine['cores']} cores", *machine["gpus"]])
    threads = baseline.plan.config.hardware.threads
    versions = f"Python {machine['python']}, torch {machine['packages']['torch']}"
    said = f"The numbers here: {hardware}; {threads} thread{'s' * (threads > 1)} a run; {versions}; data "
    said += f"{baseline.plan.dataset.name}."
    if git["dirty"]:
        said += " The checkout had uncommitted changes, kept in every experiment's `git_diff.patch`."
    said += (
        " On such a machine losses come out the same to the last bit; on another they agree as far as rounding allows."
    )
    return Markdown(f"{block}\n\n{said}")


def command(parameters: RunParameters) -> str:
    """What runs the study again, `gptlib study NAME` where there is a file of it, or else this notebook."""
    sealed = registration(Path(parameters.outputs), parameters.study)
    name, _, profile = parameters.study.rpartition("-")
    for called, of in ((parameters.study, ""), (name, profile)):
        try:
            asked = load_study(called, profile=of) if called else None
        except ConfigError:
            continue
        if asked and asked.name == parameters.study:
            given = {} if sealed is None else sealed["study"]["overrides"]
            sets = [f"--set {shlex.quote(f'{k}={v}')}" for k, v in given.items() if asked.overrides.get(k) != v]
            return " ".join([".venv/bin/gptlib study", called, *([f"--profile {of}"] if of else []), *sets])
    given = f"-p study {parameters.study} -p base {parameters.base}"
    return f".venv/bin/papermill notebooks/90_analysis.ipynb out.ipynb {given}"
