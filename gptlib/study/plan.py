"""What is asked for: one configuration, its seeds, its place, and for an ablation the arm it is compared with."""

import dataclasses
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlib import records
from gptlib.config import ConfigError, diff
from gptlib.data.dataset import open_dataset, prepare_dataset
from gptlib.fields import RunConfig
from gptlib.launch import resolve_device
from gptlib.study.arms import Arms, Say, arms, best_point
from gptlib.study.hypothesis import Ablation


@dataclass(frozen=True)
class Plan:
    """What is asked for. `ablation` and `arms` are None for a baseline itself."""

    outputs: Path
    study: str
    stage: str
    variant: str
    config: RunConfig
    seeds: tuple[int, ...]
    dataset: Path
    device: str
    fingerprint: str
    ablation: Ablation | None = None
    arms: Arms | None = None
    baseline_name: str = "baseline"  # of the experiment that this one is compared with

    @property
    def folder(self) -> Path:
        return records.experiment_folder(self.outputs, self.study, self.stage, self.variant)

    @property
    def difference(self) -> dict[str, tuple[Any, Any]]:
        """{dotted key: (baseline's value, variant's value)}; empty for a baseline."""
        return diff(self.arms.baseline, self.config) if self.arms else {}

    def runs(self) -> Iterator[tuple[int, int, Path]]:
        """(run id, seed, folder) of every run."""
        for index, seed in enumerate(self.seeds):
            yield index, seed, records.run_folder(self.folder, index, seed)

    def started_runs(self) -> Iterator[Path]:
        """Folders of the runs begun so far; not those of an older experiment in their place, to be moved aside."""
        for _, _, run in self.runs():
            if (run / "run.json").exists() and records.read_json(run / "run.json")["fingerprint"] == self.fingerprint:
                yield run

    def pending(self) -> list[tuple[int, int, Path]]:
        """The runs that have no result of exactly this plan yet, or a failed one."""

        def done(run: Path) -> bool:
            result = records.read_json(run / "result.json") if (run / "result.json").exists() else {}
            return result.get("fingerprint") == self.fingerprint and result["status"] != "failed"

        return [(index, seed, run) for index, seed, run in self.runs() if not done(run)]

    def is_complete(self) -> bool:
        """Whether a finished record of exactly this plan, with its hypothesis and analysis, lies in its place."""
        path = self.folder / "summary.json"
        if not path.exists() or (self.arms and self.arms.pending):
            return False
        summary = records.read_json(path)
        asked: dict[str, Any] = {"fingerprint": self.fingerprint, "seeds": list(self.seeds), "status": "complete"}
        asked["hypothesis"] = self.ablation.model_dump(mode="json") if self.ablation else None
        asked["difference"] = {key: list(pair) for key, pair in self.difference.items()}
        return all(summary.get(key) == value for key, value in asked.items())

    def of(self, name: str, config: RunConfig, stage: str = "", seeds: tuple[int, ...] = ()) -> "Plan":
        """The plan of another configuration on the same data and device, beside this one."""
        identity = records.experiment_fingerprint(config, open_dataset(self.dataset).hash, self.device)
        place = self.outputs, self.study, stage or self.stage
        return Plan(*place, name, config, seeds or self.seeds, self.dataset, self.device, identity)

    def baseline(self) -> "Plan":
        """The plan of the arm that this one is compared with."""
        assert self.arms is not None, "a baseline has no baseline"
        return self.of(self.baseline_name, self.arms.baseline)

    def tuning(self) -> list["Plan"]:
        """A plan for every point of the grids of both arms, with the seeds of the tuning."""
        return [self._trial(point.name, point.config) for point in (self.arms.grid if self.arms else ())]

    def _trial(self, name: str, config: RunConfig) -> "Plan":
        assert self.ablation is not None
        return self.of(name, config, f"{self.stage}-tuning", tuple(self.ablation.tune_seeds))


def plan_experiment(
    outputs: Path,
    study: str,
    stage: str,
    config: RunConfig,
    seeds: list[int],
    ablation: Ablation | None = None,
    say: Say = lambda _: None,
) -> Plan:
    """Resolve the device, prepare the dataset if it is missing, and fingerprint what is asked for.

    With an ablation both arms are made of `config` (study/arms.py), through the difference gate; where it asks for a
    match by time or memory, steps are measured here, once. Raises ConfigError.
    """
    device = resolve_device(config.hardware.device)
    dataset = prepare_dataset(config.data, outputs, say)
    records.experiment_folder(outputs, study, stage, "baseline")  # refuses a bad name before anything is written
    identity = records.experiment_fingerprint(config, open_dataset(dataset).hash, device)
    plan = Plan(outputs, study, stage, "baseline", config, tuple(seeds), dataset, device, identity)
    if ablation is None:
        return plan
    if ablation.tune and (shared := sorted(set(seeds) & set(ablation.tune_seeds))):
        raise ConfigError(f"tune_seeds: {shared} are seeds of the comparison too; a tuning needs seeds of its own")
    metric = ablation.analysis.metric
    if metric == "hellaswag_error" and not config.eval.hellaswag:
        raise ConfigError(
            "analysis.metric=hellaswag_error is not measured while eval.hellaswag is empty; give it a file among the "
            "overrides, for both arms"
        )
    plan = dataclasses.replace(plan, ablation=ablation)
    both = arms(ablation, config, dataset, outputs, device, lambda *point: _mean_loss(plan._trial(*point), metric), say)
    name = _baseline_name(both, config, ablation)
    variant = plan.of(ablation.variant, both.variant)
    return dataclasses.replace(variant, ablation=ablation, arms=both, baseline_name=name)


def _baseline_name(both: Arms, base: RunConfig, ablation: Ablation) -> str:
    """Ablations that tune their baselines to the same values share one."""
    best = best_point(both.points("baseline"))
    if both.baseline == base:
        return "baseline"
    return best.name if best and best.config == both.baseline else f"{ablation.variant}.baseline"


def _mean_loss(plan: Plan, metric: str) -> float | None:
    """What is compared, of a trial of a tuning: None while it is not done, infinite where a run diverged."""
    if plan.pending():
        return None
    results = [records.read_json(run / "result.json") for _, _, run in plan.runs()]
    losses = [result.get(metric) for result in results]
    return float("inf") if None in losses else statistics.fmean(losses)
