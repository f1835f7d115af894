"""What a step of a configuration takes, measured: seconds of two arms in turn, bytes of one.

`python -m gptlib.trial FILE` answers the question in FILE (JSON) beside it, as FILE with the suffix .answer.json: a
process of its own, so that a notebook needs no torch and a failure costs no more than the trial. Both arms are timed
in one process in short blocks, A B B A, so that a drift of the machine cancels in their ratio.
"""

import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gptlib import records
from gptlib.config import with_changes
from gptlib.data.dataset import Dataset, open_dataset
from gptlib.data.loader import TrainingStream
from gptlib.device import Place, take_place
from gptlib.fields import RunConfig
from gptlib.memory import memory_report
from gptlib.schedules import Pace
from gptlib.stats.compare import mean_interval
from gptlib.train import accumulate_gradients, build, clip_gradients, compiled, update

POINTS = 8  # of a run, at which the steps of an arm are timed where they change on the way
BLOCK_SECONDS = 0.3  # a block holds as many steps as fit, at least two
MIN_ROUNDS, MAX_SECONDS = 10, 60.0  # of one trial; it ends earlier when the ratio is known
PRECISION = 0.01  # half-width of the 95 % interval of the ratio that is enough


class Arm:
    """A model that can be stepped at any point of its run."""

    def __init__(self, config: RunConfig, dataset: Dataset, place: Place) -> None:
        self.config, self.place = config, place
        self.model, self.optimizers = build(config, dataset, 0, place)
        self.compute = compiled(self.model) if config.hardware.compile else self.model
        self.pace = Pace(config, 0)
        stream = TrainingStream(dataset, config, 0, place.rank, place.world)
        shapes = [self.pace.shape(step) for step in range(config.train.steps)]
        self.steps = sorted({int((k + 0.5) / POINTS * config.train.steps) for k in range(POINTS)})
        if not self._changes():
            self.steps = self.steps[-1:]
        self.batches = {step: stream.take(*shapes[step]) for step in self.steps}
        stream.close()

    def _changes(self) -> bool:
        schedule = self.config.schedule
        late = schedule.depth.start < 1 or schedule.windows.start < 1
        return late or bool(schedule.curriculum.latest or schedule.batch.latest)

    def step(self, number: int) -> bool:
        """One training step as that of `number`, whose rates do not matter to its time; whether its passes fitted."""
        self.model.layers_on = self.pace.layers(number, training=True)
        self.model.window_share = self.pace.window_share(number)
        micro_rows = self.config.hardware.micro_rows or self.config.train.batch_rows // self.place.world
        micro_tokens = self.config.model.seq_len * micro_rows
        _, fitted = accumulate_gradients(self.compute, self.batches[number], micro_tokens, self.place)
        clip_gradients(self.model, self.config.optim.grad_clip)
        update(self.optimizers, self.pace.rates(number))
        return fitted == micro_tokens

    def seconds(self, number: int, times: int) -> float:
        """Of one step, mean of `times`.

        One thread on a CPU is timed by its own clock, which stands still while another process has the core.
        """
        alone = self.place.device.type == "cpu" and self.config.hardware.threads == 1
        clock = time.process_time if alone else time.perf_counter
        torch.set_num_threads(self.config.hardware.threads)
        self.place.synchronize()
        start = clock()
        for _ in range(times):
            self.step(number)
        self.place.synchronize()
        return (clock() - start) / times


def time_steps(arms: list[Arm]) -> dict[str, Any]:
    """Seconds per step of two arms, their ratio (second / first) with its 95 % interval, and the rounds it took."""
    count = max(len(arm.steps) for arm in arms)
    points = [list(itertools.islice(itertools.cycle(arm.steps), count)) for arm in arms]
    times = [_steps_in_a_block(arm, count) for arm in arms]
    seconds: list[list[float]] = [[], []]
    began, rounds = time.perf_counter(), 0
    while True:
        taken = [0.0, 0.0]
        for k in range(count):
            for i in (0, 1) if (k + rounds) % 2 else (1, 0):
                taken[i] += arms[i].seconds(points[i][k], times[i]) / count
        rounds += 1
        for i in (0, 1):
            seconds[i].append(taken[i])
        ratios = mean_interval([math.log(b / a) for a, b in zip(*seconds, strict=True)])
        known = rounds >= MIN_ROUNDS and ratios.high is not None and (ratios.high - ratios.mean) < PRECISION
        if known or (rounds > 1 and time.perf_counter() - began > MAX_SECONDS):
            break
    first = statistics.median(seconds[0])
    low, high = (math.exp(x) if x is not None else None for x in (ratios.low, ratios.high))
    ratio = math.exp(ratios.mean)
    return {"seconds": [first, first * ratio], "ratio": ratio, "low": low, "high": high, "rounds": rounds}


def _steps_in_a_block(arm: Arm, points: int) -> int:
    """Warms an arm up at every point that is timed."""
    for number in arm.steps:
        arm.seconds(number, 2)
    return max(2, round(BLOCK_SECONDS / points / arm.seconds(arm.steps[-1], 2)))


def step_bytes(config: RunConfig, dataset: Dataset, place: Place) -> float | None:
    """Peak bytes of training steps: allocated on a GPU; on a CPU weights, gradients, optimizer and activations.

    None when a GPU has not as many.
    """
    try:
        arm = Arm(config, dataset, place)
        for _ in range(2):  # the first one makes the optimizer's state
            if not arm.step(arm.steps[-1]):
                return None
    except torch.OutOfMemoryError:
        return None
    if place.device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(place.device))
    batch = arm.batches[arm.steps[-1]]
    report = memory_report(arm.model, arm.optimizers, batch, config.hardware.micro_rows or len(batch.inputs), place)
    return report["tensor_mib"] * 2**20


def _of_one_rank(config: RunConfig) -> RunConfig:
    """The share of one rank; what ranks have to say to each other is not timed."""
    ranks = config.hardware.ranks
    return with_changes(config, {"train.batch_rows": config.train.batch_rows // ranks, "hardware.ranks": 1})


def main(file: Path) -> None:
    question = records.read_json(file)
    dataset = open_dataset(Path(question["dataset"]))
    configs = [_of_one_rank(RunConfig.model_validate(config)) for config in question["configs"]]
    places = [take_place(config.hardware, question["device"]) for config in configs]
    answers: dict[str, Callable[[], Any]] = {
        "time": lambda: time_steps([Arm(c, dataset, p) for c, p in zip(configs, places, strict=True)]),
        "memory": lambda: {"bytes": [step_bytes(c, dataset, p) for c, p in zip(configs, places, strict=True)]},
    }
    records.write_json(file.with_suffix(".answer.json"), answers[question["what"]]())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
