"""One experiment: a configuration, several seeds, and the record they leave.

plan -> execute -> (judge against a baseline) -> summarise. Executing is idempotent: runs that are finished with the
same fingerprint are kept, missing and failed ones are run, and a folder of something else is moved aside.
"""

import dataclasses
import hashlib
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gptlib import records
from gptlib.accounting import parameters_by_part, planned_costs
from gptlib.data.dataset import open_dataset
from gptlib.hellaswag import open_questions
from gptlib.launch import launch, record_failure
from gptlib.matching import confounders
from gptlib.stats.compare import Comparison, mean_interval, no_comparison, rank_test, two_sample
from gptlib.study.hypothesis import Analysis
from gptlib.study.plan import Plan
from gptlib.study.registration import staged_verdict


def execute(plan: Plan, poll: Callable[[], None] = lambda: None, wait: bool = False) -> "Experiment":
    """Run what is missing of `plan`; afterwards every run has a result, failed and diverged ones included.

    `wait` waits for another process that works on the same experiment; otherwise it is refused (RecordError). Raises
    ValueError where HellaSwag cannot be asked.
    """
    _check_hellaswag(plan)
    assert not (plan.arms and plan.arms.pending), "its tuning comes first"
    with records.exclusive(plan.folder.parent / f".{plan.variant}", wait):
        _make_room(plan)
        _declare(plan)
        pending = [_prepare_run(plan, *run) for run in plan.pending()]
        _log(plan, f"{len(pending)} of {len(plan.seeds)} runs to do on {plan.device}")
        if pending:
            (plan.folder / "summary.json").unlink(missing_ok=True)
            launch(pending, plan.config.hardware, poll)
        _collect(plan)
    return Experiment(plan)


def _check_hellaswag(plan: Plan) -> None:
    """What every run would fail on."""
    asked = plan.config.eval
    if asked.hellaswag and not plan.is_complete():
        open_questions(asked, open_dataset(plan.dataset).tokenizer, plan.config.model.seq_len)


def _make_room(plan: Plan) -> None:
    config = plan.folder / "config.json"
    if config.exists() and records.read_json(config).get("fingerprint") != plan.fingerprint:
        moved = records.move_aside(plan.folder)
        _log(plan, f"an experiment with other numbers was here; it is kept as {moved.name}")


def _declare(plan: Plan) -> None:
    """Write what is asked for, and from where, before the first run."""
    config: dict[str, Any] = {"fingerprint": plan.fingerprint, "seeds": list(plan.seeds), "device": plan.device}
    config |= {"dataset": plan.dataset.name, "config": plan.config.model_dump(mode="json")}
    config["difference"] = plan.difference
    config["start_time"] = _start_time(plan) or records.utc_now()
    records.write_json(plan.folder / "config.json", config)
    records.write_json(plan.folder / "environment.json", records.environment() | {"git": records.git_info()})
    patch = records.git_diff()
    if patch:
        records.write_text(plan.folder / "git_diff.patch", patch)
    declared = plan.folder / "hypothesis.json"
    if plan.ablation is not None:
        records.write_json(plan.folder / "matched.json", _match(plan))
        content = plan.ablation.model_dump_json()
        seal = hashlib.sha256(content.encode()).hexdigest()
        if not declared.exists() or records.read_json(declared)["sha256"] != seal:
            late = declared.exists() and any((plan.folder / "runs").glob("*/result.json"))
            values = plan.ablation.model_dump(mode="json")
            stamp = {"sha256": seal, "declared": records.utc_now(), "changed_after_results": late}
            records.write_json(declared, values | stamp)


def _match(plan: Plan) -> dict[str, Any] | None:
    """What was matched with what, and how both arms were tuned; None for a baseline."""
    if plan.arms is None:
        return None
    match, grid = plan.arms.match, plan.arms.grid
    points = [{"arm": p.arm, "values": p.values, "loss": p.loss if p.loss != float("inf") else None} for p in grid]
    return {
        "by": match.by,
        "knobs": list(match.knobs),
        "baseline_name": plan.baseline_name,
        "baseline": match.baseline,
        "variant": match.variant,
        "trial": plan.arms.trial,
        "tuning": plan.arms.tuning(),
        "tuning_grid": points,
    }


def _start_time(plan: Plan) -> str | None:
    """When this experiment was first asked for, from its config.json."""
    path = plan.folder / "config.json"
    return records.read_json(path).get("start_time") if path.exists() else None


def _prepare_run(plan: Plan, index: int, seed: int, run: Path) -> Path:
    """Write run.json for a new attempt; an earlier attempt without a result is recorded as failed first."""
    attempt = 1
    if (run / "run.json").exists():
        attempt = records.read_json(run / "run.json")["attempt"] + 1
        if not (run / "result.json").exists():
            record_failure(run, "interrupted: the process that ran it ended first")
        _append_result(plan, run)
        (run / "result.json").unlink()
    spec = {"run_id": index, "seed": seed, "attempt": attempt, "fingerprint": plan.fingerprint}
    spec |= {"device": plan.device, "dataset": str(plan.dataset), "config": plan.config.model_dump(mode="json")}
    records.write_json(run / "run.json", spec)
    return run


def _append_result(plan: Plan, run: Path) -> None:
    path, result = plan.folder / "results.jsonl", records.read_json(run / "result.json")
    known = {(row["run_id"], row["seed"], row["attempt"]) for row in records.read_jsonl(path)}
    if (result["run_id"], result["seed"], result["attempt"]) not in known:
        records.append_jsonl(path, result)
        who = f"run {result['run_id']} seed {result['seed']} attempt {result['attempt']}"
        for row in result.get("switches", ()):
            size = f"{100 * row['share']:.0f} % of its size"
            _log(plan, f"{who}: {row['what']} grew to {size} at step {row['step']} ({row['reason']})")
        at = f" at step {result['diverged_at']}" if "diverged_at" in result else ""
        _log(plan, f"{who}: {result['status']}{at}")


def _collect(plan: Plan) -> None:
    """Gather the results and metrics of all runs into the experiment's own files."""
    for _, _, run in plan.runs():
        _append_result(plan, run)
    frame = Experiment(plan).metrics()
    records.write_text(plan.folder / "metrics.jsonl", frame.to_json(orient="records", lines=True))
    records.write_text(plan.folder / "metrics.csv", frame.to_csv(index=False))


def _log(plan: Plan, line: str) -> None:
    plan.folder.mkdir(parents=True, exist_ok=True)
    with (plan.folder / "experiment.log").open("a", encoding="utf-8") as file:
        file.write(f"{records.utc_now()} {line}\n")


Results = Sequence[Mapping[str, Any]]  # contents of result.json files
MEASURED = ("time_seconds", "mfu", "tensor_mib", "allocated_peak_mib", "reserved_peak_mib", "resident_peak_mib")


class Experiment:
    """The executed runs of a plan, read from their files."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.results = [records.read_json(run / "result.json") for _, _, run in plan.runs()]

    def count(self, status: str) -> int:
        return sum(result["status"] == status for result in self.results)

    def finals(self, metric: str = "final_val_loss") -> dict[int, float]:
        """{seed: value} of the finished runs."""
        return finals(self.results, metric)

    def metrics(self) -> pd.DataFrame:
        """One row per logged step of every run's last attempt, with `variant`."""
        return metrics_frame(self.plan)

    def summary(self) -> dict[str, Any]:
        """The finished record's summary.json. Raises RecordError when the record is not finished."""
        summary: dict[str, Any] = records.read_json(self.plan.folder / "summary.json")
        return summary

    def declaration(self) -> dict[str, Any]:
        """hypothesis.json: what was declared, when, and whether it was changed after results. Raises RecordError."""
        declared: dict[str, Any] = records.read_json(self.plan.folder / "hypothesis.json")
        return declared

    def spread(self, metric: str = "final_val_loss") -> float:
        """Standard deviation over the finished seeds; nan with fewer than two."""
        values = list(self.finals(metric).values())
        return statistics.stdev(values) if len(values) > 1 else float("nan")

    def hellaswag(self) -> dict[str, Any] | None:
        """Statistics of both accuracies over the finished seeds, and what they are named with; None: not asked for."""
        scores = [r["hellaswag"] for r in self.results if r["status"] == "finished" and r.get("hellaswag")]
        if not scores:
            return None
        named = {key: scores[0][key] for key in ("scoring", "tokenizer", "file", "hash", "items", "cut_rows")}
        return named | {key: _spread([score[key] for score in scores]) for key in ("acc", "acc_norm")}

    def costs(self) -> dict[str, float]:
        """Planned costs of one run, and what its runs took on average: seconds, MFU, memory of tensors and process."""
        values = planned_costs(self.plan.config, open_dataset(self.plan.dataset).vocab_size)
        return values | self.measured()

    def measured(self) -> dict[str, float]:
        """Means over the finished runs; `tensor_mib` replaces the estimate of the same name."""
        runs = [r | r.get("memory", {}) for r in self.results if r["status"] == "finished"]
        keys = [key for key in MEASURED if runs and all(run.get(key) is not None for run in runs)]
        return {key: statistics.fmean(run[key] for run in runs) for key in keys}

    def describe(self) -> str:
        """The lines that sum an experiment up: runs, mean loss with its spread, 95 % interval, best, HellaSwag."""
        values = list(self.finals().values())
        lines = [f"Runs: {len(values)}/{len(self.results)}"]
        if values:
            interval = mean_interval(values)
            lines.append(f"Mean validation loss: {interval.mean:.4f} ± {interval.std or 0:.4f} nats/token (std)")
            if interval.low is not None:
                lines.append(f"95% CI (Student t): [{interval.low:.4f}, {interval.high:.4f}]")
            lines.append(f"Best validation loss: {min(self.finals('best_val_loss').values()):.4f}")
        if asked := self.hellaswag():
            named = f"{asked['scoring']} scoring, {asked['tokenizer']} tokens, {asked['items']} items"
            lines.append(f"HellaSwag acc_norm: {asked['acc_norm']['mean']:.4f} ({named})")
        return "\n".join(lines)


def metrics_frame(plan: Plan) -> pd.DataFrame:
    """What the runs of a plan have logged so far (they may still be running)."""
    rows = []
    for run in plan.started_runs():
        lines = records.read_jsonl(run / "metrics.jsonl")
        attempt = lines[-1]["attempt"] if lines else 0
        rows += [{"variant": plan.variant, **line} for line in lines if line["attempt"] == attempt]
    columns = ["variant", "run_id", "seed", "attempt", "step", "train_time_ms", "tokens", "train_loss", "val_loss"]
    columns.append("grad_norm")
    frame = pd.DataFrame(rows, columns=None if rows else columns)
    for column in set(columns) - set(frame.columns):
        frame[column] = float("nan")
    return frame


def judge(baseline: Experiment, variant: Experiment, analysis: Analysis) -> Comparison:
    """Compare final losses as declared. Paired analysis takes the seeds that finished in both.

    Policy for diverged runs, `analysis.diverged`. undecided: the losses of the rest are a selection. exclude: the rest
    are tested, and the reason counts what was left out. worst: all runs are tested by their ranks, diverged ones last;
    that this replaces the t test depends on both arms together, so it does not make false claims more frequent. But for
    worst, a variant of which every run diverged and none of the baseline's is worse. In a staged study the race alone
    claims anything, by its own tests (stats/staging.py).
    """
    if staged := staged_verdict(variant.plan):
        old, new = baseline.finals(analysis.metric), variant.finals(analysis.metric)
        known = no_comparison(staged["test"], len(old), len(new), staged["alpha"], 0.0)
        whole = len(old) == len(baseline.results) and len(new) == len(variant.results)
        means = (statistics.fmean(old.values()), statistics.fmean(new.values())) if whole else None
        difference = staged.get("difference", means[1] - means[0] if means else None)
        percent = 100 * difference / means[0] if means and difference is not None else None
        return dataclasses.replace(known, **staged | {"difference": difference, "percent": percent})
    return judge_results(baseline.results, variant.results, analysis)


def judge_results(baseline: Results, variant: Results, analysis: Analysis) -> Comparison:
    """`judge` for the contents of result.json files, whoever wrote the records."""
    old, new = finals(baseline, analysis.metric), finals(variant, analysis.metric)
    lost, lost_baseline = (
        {r["seed"]: math.inf for r in results if r["status"] == "diverged"} for results in (variant, baseline)
    )
    by_rank = analysis.diverged == "worst" and (lost or lost_baseline)
    if by_rank:
        old, new = old | lost_baseline, new | lost
    if analysis.test == "paired":
        common = [seed for seed in old if seed in new]
        old, new = {s: old[s] for s in common}, {s: new[s] for s in common}
    if not (old and new):
        result = no_comparison(analysis.test, len(old), len(new), analysis.alpha, analysis.margin)
    elif by_rank:
        result = rank_test(old, new, analysis.alpha, analysis.margin)
    else:
        result = two_sample(old, new, analysis.test, analysis.alpha, analysis.margin)
    if not (lost or lost_baseline):
        return result
    count = f"{len(lost)} of {len(variant)} runs diverged, and {len(lost_baseline)} of the baseline's"
    if by_rank:
        return dataclasses.replace(result, reason=f"{count}, which count as the worst: {result.reason}")
    if len(lost) == len(variant) and not lost_baseline:
        return dataclasses.replace(result, verdict="worse", reason=count)
    if analysis.diverged == "exclude":
        return dataclasses.replace(result, reason=f"{result.reason}; left out as declared: {count}")
    return dataclasses.replace(result, verdict="undecided", reason=count)


def compared_costs(baseline: Experiment, variant: Experiment) -> tuple[dict[str, float], dict[str, float]]:
    """What a run of each arm costs, as matched before and as measured: the arguments of tables.matched_table."""
    assert variant.plan.arms is not None, "a baseline is compared with nothing"
    match = variant.plan.arms.match
    return match.baseline | baseline.measured(), match.variant | variant.measured()


def explanations(baseline: Experiment, variant: Experiment, verdict: str) -> dict[str, float]:
    """matching.confounders of two experiments."""
    knobs = variant.plan.arms.match.knobs if variant.plan.arms else ()
    return confounders(*compared_costs(baseline, variant), verdict, knobs)


def summarise(
    experiment: Experiment, comparison: Comparison | None = None, baseline: Experiment | None = None
) -> dict[str, Any]:
    """Write summary.json, the last file of an experiment; `complete` only when no run has failed."""
    plan, results = experiment.plan, experiment.results
    speeds = list(experiment.finals("tokens_per_second").values())
    dataset, environment = open_dataset(plan.dataset), records.environment()
    summary = {
        "schema_version": records.SCHEMA_VERSION,
        "experiment_name": f"{plan.study}/{plan.stage}/{plan.variant}",
        "study": plan.study,
        "stage": plan.stage,
        "variant": plan.variant,
        "status": "failed" if experiment.count("failed") else "complete",
        "start_time": _start_time(plan),
        "end_time": records.utc_now(),
        "fingerprint": plan.fingerprint,
        "seeds": list(plan.seeds),
        "difference": plan.difference,
        "hypothesis": plan.ablation.model_dump(mode="json") if plan.ablation else None,
        "statistics": run_statistics(results)
        | {
            "excess": _spread(experiment.finals("excess").values()) or None,
            "floor": next(iter(experiment.finals("floor").values()), None),
            "bits_per_byte": _spread(experiment.finals("bits_per_byte").values()),
            "hellaswag": experiment.hellaswag(),
        },
        "comparison": dataclasses.asdict(comparison) | {"metric": plan.ablation.analysis.metric}
        if comparison and plan.ablation
        else None,
        "confounders": explanations(baseline, experiment, comparison.verdict) if comparison and baseline else None,
        "match": _match(plan),
        "accounting": experiment.costs(),
        "parameters": parameters_by_part(plan.config.model, dataset.vocab_size),
        "tokens_per_second": statistics.fmean(speeds) if speeds else None,
        "git_info": records.git_info(),
        "gpu_info": {"names": environment["gpus"]},
        "environment": environment,
    }
    records.write_json(plan.folder / "summary.json", summary)
    _log(plan, f"summary written: {summary['status']}")
    return summary


def run_statistics(results: Results) -> dict[str, Any]:
    """`statistics` of a summary that every record has: what became of the runs, their final losses and times.

    `best` is the lowest evaluation of any finished run; times are in seconds, of the runs that have one.
    """
    counts = Counter(result["status"] for result in results)
    seconds = [r["time_seconds"] for r in results if r["time_seconds"] is not None]
    return {
        "n_runs": len(results),
        "successful_runs": counts["finished"],
        "diverged_runs": counts["diverged"],
        "failed_runs": counts["failed"],
        "val_loss": _spread(finals(results).values())
        | {"best": min(finals(results, "best_val_loss").values(), default=None)},
        "time": {
            "mean": statistics.fmean(seconds) if seconds else None,
            "std": statistics.stdev(seconds) if len(seconds) > 1 else None,
            "total": sum(seconds) if seconds else None,
        },
    }


def finals(results: Results, metric: str = "final_val_loss") -> dict[int, float]:
    """{seed: value} of the finished runs among the contents of result.json files."""
    return {r["seed"]: r[metric] for r in results if r["status"] == "finished" and r.get(metric) is not None}


def _spread(values: Iterable[float]) -> dict[str, Any]:
    """Statistics of a final value over the finished seeds; `ci_95` is the Student-t interval of the mean."""
    values = list(values)
    if not values:
        return {}
    interval = mean_interval(values)
    return {
        "mean": interval.mean,
        "std": interval.std,
        "min": min(values),
        "max": max(values),
        "median": statistics.median(values),
        "ci_95": [interval.low, interval.high],
    }
