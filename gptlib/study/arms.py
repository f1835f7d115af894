"""The two arms of an ablation: the change applied, the match made, the tuned values chosen - in this order.

What was measured for it is stored and used again, so a second run of the same comparison is the same: timing trials
in outputs/trials/, the runs of a tuning in outputs/<study>/<stage>-tuning/.
"""

import contextlib
import itertools
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlib import records
from gptlib.config import ConfigError, diff, fingerprint, flatten, require_only, with_changes
from gptlib.data.dataset import open_dataset
from gptlib.fields import RunConfig
from gptlib.launch import KEEP_MEMORY, Slots, bound_module, slot_names
from gptlib.matching import TOLERANCE, Match, match, nearest, usual_knob
from gptlib.study.hypothesis import Ablation, with_factors

Say = Callable[[str], None]
Loss = Callable[[str, RunConfig], float | None]  # of an arm at one point of its grid; None: not known yet


@dataclass(frozen=True)
class GridPoint:
    """One trial of a tuning: an arm with values of the grid, and the mean final loss over the tuning's seeds."""

    arm: str  # baseline | variant
    name: str  # of its experiment
    values: dict[str, Any]
    config: RunConfig
    loss: float | None = None  # inf: a run diverged; None: not run yet


@dataclass(frozen=True)
class Arms:
    """Both configurations as they will be compared, how they were matched, and the grids they were tuned on."""

    baseline: RunConfig
    variant: RunConfig
    match: Match
    grid: tuple[GridPoint, ...] = ()
    trial: dict[str, Any] | None = None  # match=time: seconds of a step, their ratio with its interval

    @property
    def uncertainty(self) -> float:
        """Half-width of the interval of the ratio of both arms' times, where they are matched by it."""
        return self.trial["high"] / self.trial["ratio"] - 1 if self.trial else 0.0

    @property
    def pending(self) -> list[GridPoint]:
        return [point for point in self.grid if point.loss is None]

    def points(self, arm: str) -> list[GridPoint]:
        return [point for point in self.grid if point.arm == arm]

    def tuning(self) -> str:
        """How fair the tuning was, in words for a headline."""
        if not self.grid:
            return "not tuned: learning rates are the base's"
        sizes = {arm: len(self.points(arm)) for arm in ("baseline", "variant")}
        if sizes["baseline"] != sizes["variant"]:
            return f"tuned unequally: {sizes['baseline']} points for the baseline, {sizes['variant']} for the variant"
        lost = [arm for arm in sizes if best_point(self.points(arm)) is None and not self.pending]
        if lost:
            return f"not tuned: every point of the {' and the '.join(lost)} diverged"
        edges = [arm for arm in sizes if self._at_the_edge(arm)]
        edge = f"; the best of the {' and the '.join(edges)} lies at the edge of the grid" if edges else ""
        return f"tuned alike on {sizes['variant']} points each{edge}"

    def _at_the_edge(self, arm: str) -> bool:
        points = self.points(arm)
        best = best_point(points)
        numbers = {key: [p.values[key] for p in points] for key in best.values} if best else {}
        return best is not None and any(best.values[key] in (min(v), max(v)) for key, v in numbers.items())


def best_point(points: list[GridPoint]) -> GridPoint | None:
    """The point of lowest loss, if any run of the grid has one."""
    finite = [point for point in points if point.loss is not None and point.loss < float("inf")]
    return min(finite, key=lambda point: point.loss or 0.0, default=None)


def arms(ablation: Ablation, base: RunConfig, dataset: Path, outputs: Path, device: str, loss: Loss, say: Say) -> Arms:
    """Apply, match, tune. Measures what a match by time or memory needs, unless it is stored. Raises ConfigError.

    `loss` gives the outcome of a point of the grid; while points are pending both arms have the values of the base.
    """
    trial = Trial(outputs, dataset, device, say)
    baseline, knob = base, ablation.free or usual_knob(ablation.match, base)
    if ablation.memory_mib:
        baseline = trial.largest_batch(base, knob, ablation.memory_mib)
    vocab = open_dataset(dataset).vocab_size
    variant = ablation.apply(baseline)
    timed = trial.time(baseline, variant) if ablation.match == "time" else None
    times = (timed["seconds"][0], timed["seconds"][1]) if timed else None
    turn, memory = knob not in ablation.change, trial.bytes if ablation.match == "memory" else None
    if ablation.memory_mib:
        variant, turn = trial.largest_batch(variant, knob, ablation.memory_mib), False
    matched = match(
        variant, baseline, ablation.match, knob, vocab_size=vocab, step_seconds=times, memory=memory, turn=turn
    )
    if overruled := sorted(set(matched.knobs) & set(ablation.change)):
        raise ConfigError(f"match: {ablation.match} would turn {', '.join(overruled)}, which is declared; free another")
    knobs = {*matched.knobs, knob} if ablation.memory_mib else {*matched.knobs}
    require_only(baseline, matched.config, {*ablation.change, *(knobs & set(diff(baseline, matched.config)))})
    grid = tuple(_grid(ablation, baseline, matched.config, base, loss))
    result = Arms(baseline, matched.config, matched, grid, timed)
    if not grid or result.pending:
        return result
    tuned = [best_point(result.points(arm)) for arm in ("baseline", "variant")]
    chosen = [best.config if best else config for best, config in zip(tuned, (baseline, matched.config), strict=True)]
    return Arms(chosen[0], chosen[1], matched, grid, timed)


# --- tuning -----------------------------------------------------------------------------------------------------


def _grid(
    ablation: Ablation, baseline: RunConfig, variant: RunConfig, base: RunConfig, loss: Loss
) -> Iterator[GridPoint]:
    names = "baseline" if baseline == base else f"{ablation.variant}.baseline", ablation.variant
    for arm, name, config in zip(("baseline", "variant"), names, (baseline, variant), strict=True):
        keys = [key for key in ablation.tune if not idle(key, config)]
        for values in itertools.product(*(ablation.tune[key] for key in keys)) if keys else ():
            point = with_factors(config, dict(zip(keys, values, strict=True)))
            flat = flatten(point.model_dump(mode="json"))
            set_to = {key: flat[key] for key in keys}
            label = _label(name, set_to)
            yield GridPoint(arm, label, set_to, point, loss(label, point))


def _label(name: str, values: dict[str, Any]) -> str:
    """The name of a point, of the arm's and its values; of a fingerprint of these where no folder can be named so."""
    label = ".".join([name, *(f"{'.'.join(key.split('.')[-2:])}-{value}" for key, value in values.items())])
    return label if records.NAME.fullmatch(label) else f"{name[:60]}.{fingerprint(values)}"


def idle(key: str, config: RunConfig) -> bool:
    """Whether a setting of an optimizer is not used, because the other one trains the matrices."""
    muon = config.optim.matrices == "muon"
    return key.startswith("optim.muon.") if not muon else key == "optim.adamw.matrix_lr"


# --- measuring --------------------------------------------------------------------------------------------------


class Trial:
    """Measurements of steps on this machine, stored under what was measured."""

    def __init__(self, outputs: Path, dataset: Path, device: str, say: Say) -> None:
        self.folder, self.dataset, self.device, self.say = outputs / "trials", dataset, device, say

    def time(self, baseline: RunConfig, variant: RunConfig) -> dict[str, Any]:
        """`seconds` per step of both arms and their `ratio`, from an interleaved trial that holds every core or GPU."""
        answer: dict[str, Any] = self._ask("time", [baseline, variant])
        off = answer["high"] / answer["ratio"] - 1
        known = "" if off <= TOLERANCE["time"] else ": not known to 2 %, something else keeps the machine busy"
        self.say(f"a step of the variant takes {answer['ratio']:.3f} times the baseline's, ±{100 * off:.1f} %{known}")
        return answer

    def bytes(self, config: RunConfig) -> float:
        """Peak bytes of training steps of a configuration."""
        return float(self._ask("memory", [config])["bytes"][0] or float("inf"))

    def largest_batch(self, config: RunConfig, knob: str, mib: float) -> RunConfig:
        """`config` with the largest batch, or rows per pass, that fits into `mib`. Raises ConfigError."""
        ranks = config.hardware.ranks if knob == "train.batch_rows" else 1
        budget = mib * 2**20
        rows = nearest(lambda n: self.bytes(with_changes(config, {knob: n})), budget, ranks, below=True)
        largest = with_changes(config, {knob: rows})
        if self.bytes(largest) > budget:
            raise ConfigError(f"memory_mib={mib:g}: not even one row fits; give more")
        return largest

    def _ask(self, what: str, configs: list[RunConfig]) -> Any:
        machine = records.gpu_names() if self.device == "cuda" else records.cpu_name()
        identity: list[Any] = [
            what,
            self.device,
            machine,
            open_dataset(self.dataset).hash,
            records.numeric_source_hash(),
        ]
        identity += [_timeless(config) if what == "time" else config.model_dump(mode="json") for config in configs]
        question = self.folder / f"{what}-{fingerprint(identity)}.json"
        answer = question.with_suffix(".answer.json")
        if not answer.exists():
            spec: dict[str, Any] = {"what": what, "device": self.device, "dataset": str(self.dataset)}
            spec["configs"] = [config.model_dump(mode="json") for config in configs]
            self.folder.mkdir(parents=True, exist_ok=True)
            with records.exclusive(self.folder / f".{question.stem}", wait=True):
                if not answer.exists():
                    records.write_json(question, spec)
                    self._run(what, question)
        return records.read_json(answer)

    def _run(self, what: str, question: Path) -> None:
        if what == "time":
            self.say("timing a step of both arms, in turn, with the machine to itself")
        with _machine(self.device):
            command = [*bound_module("gptlib.trial"), str(question)]
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                env=os.environ | KEEP_MEMORY,
            )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ConfigError(f"the {what} trial failed ({said}); its question is {question}")


def _timeless(config: RunConfig) -> Any:
    """What decides the time of a step: not how many there are."""
    return config.model_dump(mode="json", exclude={"train": {"steps"}, "eval": True})


@contextlib.contextmanager
def _machine(device: str) -> Iterator[None]:
    """Hold every slot of a device class, once the runs that have them are done."""
    slots, wanted = Slots(device), len(slot_names(device))
    while not (held := slots.take(wanted)):
        time.sleep(1.0)
    try:
        yield
    finally:
        slots.give(held)
