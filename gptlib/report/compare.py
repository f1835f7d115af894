"""Records side by side, our own or imported: one table, a verdict against the first, and claims about a target loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlib import records
from gptlib.report.tables import MISSING, number, runs_text
from gptlib.stats.compare import Comparison, holm_by_name
from gptlib.stats.target import Claim, one_sample
from gptlib.study.experiment import finals, judge_results, run_statistics
from gptlib.study.hypothesis import Analysis
from gptlib.study.registration import role


@dataclass(frozen=True)
class Arm:
    """A finished record: its name and the contents of its runs' result.json files."""

    name: str
    results: list[dict[str, Any]]
    seeds_known: bool  # False for imported logs that do not say theirs: such runs cannot be paired

    def count(self, status: str) -> int:
        return sum(result["status"] == status for result in self.results)


def read_arms(folders: Sequence[Path], step: int | None = None) -> list[Arm]:
    """The records in `folders`, judged at `step` if given; named as short as they can be told apart.

    Raises RecordError for a folder without a finished record or given twice, and a run without evaluation at `step`.
    """
    places = [folder.resolve() for folder in folders]
    if twice := [str(place) for place in places if places.count(place) > 1]:
        raise records.RecordError(f"{twice[0]}: given twice; compare different experiments")
    names, depth = [place.name for place in places], 1
    while len(set(names)) < len(names):
        depth += 1
        names = ["/".join(place.parts[-depth:]) for place in places]
    return [_read_arm(place, name, step) for place, name in zip(places, names, strict=True)]


def _read_arm(folder: Path, name: str, step: int | None) -> Arm:
    if not (folder / "summary.json").exists():
        raise records.RecordError(
            f"{folder}: no finished record (no summary.json); name folders such as outputs/<study>/<stage>/<variant>, "
            "and bring the logs of others in with `gptlib import-log`"
        )
    outputs, study, stage = folder.parents[2], folder.parents[1].name, folder.parent.name
    if (part := role(outputs, study, stage)) in ("screen", "check"):
        raise records.RecordError(
            f"{folder}: a {part} of a staged study only chooses what goes on, a claim on its seeds would be biased; "
            "compare the race (stage C)"
        )
    config, summary = (records.read_json(folder / file) for file in ("config.json", "summary.json"))
    try:
        runs = [records.run_folder(folder, index, seed) for index, seed in enumerate(summary["seeds"])]
    except KeyError:
        raise records.RecordError(f"{folder}: not a record of gptlib; use `gptlib import-log` on it first") from None
    results = [_at_step(run, step) for run in runs]
    return Arm(name, results, config.get("seeds_known", True))


def _at_step(run: Path, step: int | None) -> dict[str, Any]:
    """The result of a run as if it had ended at `step`, with the best loss and the time until there."""
    result: dict[str, Any] = records.read_json(run / "result.json")
    if step is None or result["status"] != "finished":
        return result
    rows = [row for row in records.read_jsonl(run / "metrics.jsonl") if row["attempt"] == result["attempt"]]
    losses = {row["step"]: row["val_loss"] for row in rows if row.get("val_loss") is not None and row["step"] <= step}
    if step not in losses:
        seen = ", ".join(str(s) for s in sorted(losses)[-3:]) or "none up to there"
        raise records.RecordError(f"{run}: no evaluation at step {step} (the last before: {seen}); choose another")
    times = [row["train_time_ms"] for row in rows if row["step"] <= step and row.get("train_time_ms") is not None]
    seconds = max(times) / 1000 if times else None
    best = min(losses.values())
    return result | {"final_val_loss": losses[step], "best_val_loss": best, "final_step": step, "time_seconds": seconds}


def comparison_lines(arms: Sequence[Arm], analysis: Analysis) -> list[str]:
    """A verdict on each arm after the first, which is the baseline. Raises ValueError for pairs that cannot be made."""
    unknown = [arm.name for arm in arms if not arm.seeds_known]
    if analysis.test == "paired" and unknown:
        raise ValueError(f"test=paired: the logs of {', '.join(unknown)} do not say their seeds; use --test welch")
    found = {arm.name: judge_results(arms[0].results, arm.results, analysis) for arm in arms[1:]}
    adjusted = holm_by_name(found)
    several = len(adjusted) > 1
    return [_verdict(name, arms[0].name, c, adjusted.get(name) if several else None) for name, c in found.items()]


def _verdict(name: str, baseline: str, c: Comparison, adjusted: float | None) -> str:
    numbers = [f"{number(c.difference, '{:+.5f}')} nats/token"] if c.difference is not None else []
    if c.low is not None and c.high is not None:
        numbers.append(f"{100 * (1 - c.alpha):g} % interval [{c.low:+.5f}, {c.high:+.5f}]")
    numbers += [f"p = {c.p_value:.2g}"] if c.p_value is not None else []
    numbers += [f"p (Holm) = {adjusted:.2g}"] if adjusted is not None else []
    figures = f" ({', '.join(numbers)}; {c.test})" if numbers else ""
    return f"{name} against {baseline}: {c.verdict}{figures}. {c.reason}"


def target_lines(arms: Sequence[Arm], target: float, sigma: float | None, alpha: float) -> list[str]:
    """Whether the mean of each arm is at or below `target`: t test, or z test where `sigma` is given."""
    return [f"{arm.name}: {_claim(arm, target, sigma, alpha)}" for arm in arms]


def _claim(arm: Arm, target: float, sigma: float | None, alpha: float) -> str:
    """One-sided test of an arm; without a number where its losses are a selection, too few, or all the same."""
    if lost := arm.count("diverged"):
        return f"mean <= {target:g} undecided: {lost} of {len(arm.results)} runs diverged"
    try:
        claim: Claim = one_sample(finals(arm.results).values(), target, "t" if sigma is None else "z", sigma, alpha)
    except ValueError as error:
        return f"mean <= {target:g} undecided: {error}"
    answer = "shown" if claim.met else "not shown"
    return f"mean <= {target:g} {answer} at {alpha:g}: p = {claim.p_value:.3g} ({claim.test} test). {claim.reason}"


def summary_lines(arms: Sequence[Arm]) -> list[str]:
    """A Markdown table: runs, mean, std and 95 % t interval of the final losses in nats/token, best, time of a run."""
    lines = ["| experiment | runs | mean | std | 95 % interval | best | time (s) |", "|---|---|---|---|---|---|---|"]
    for arm in arms:
        statistics = run_statistics(arm.results)
        loss: Mapping[str, Any] = statistics["val_loss"]
        low, high = loss.get("ci_95") or (None, None)
        interval = MISSING if low is None else f"{number(low, '{:.5f}')} to {number(high, '{:.5f}')}"
        cells = [arm.name, runs_text({"statistics": statistics})]
        cells += [number(loss.get(key), "{:.5f}") for key in ("mean", "std")]
        cells += [interval, number(loss["best"], "{:.5f}"), number(statistics["time"]["mean"], "{:.1f}")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
