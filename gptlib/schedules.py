"""What changes during a run: learning rate, weight decay, momentum, depth, windows, sequence length, batch.

All but growth are pure functions of progress, the finished fraction of the run (and of the seed, where layers are
dropped): nothing to save, so nothing to lose on resume. Growth (sequence length, batch) listens to the training loss.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from gptlib.fields import DepthConfig, GrowthConfig, MomentumConfig, RunConfig, ScheduleConfig, WindowConfig
from gptlib.streams import stream_seed


class Rates(NamedTuple):
    """What the optimizers take for one update."""

    lr: float  # factor on every base learning rate
    weight_decay: float  # factor on every weight decay
    momentum: float  # Muon's


def lr_multiplier(config: ScheduleConfig, progress: float, step: float = 0.0) -> float:
    """Factor on every base learning rate at `progress` in [0, 1]; `step` is the progress that one step makes.

    The update of step s (from 0) of n uses progress = s / n, so the last one has not quite reached `final`.

    * warmup: straight line to 1 at progress `warmup`. From `zero` it begins at 0 (Hugging Face's
      get_linear_schedule_with_warmup), from `first_step` at 1 / (w + 1) for a warmup of w steps (nanoGPT).
    * linear, sqrt, power: 1, then from progress 1 - `cooldown` down to `final` at progress 1, along 1 - t, 1 - sqrt(t)
      (Hagele et al. 2024, arXiv 2405.18392) or (1 - t)^power, t being the share of the cooldown that is over. Where
      warmup and cooldown overlap, the smaller of the two holds.
    * cosine: half a cosine from 1 at progress `warmup` to `final` at 1 (Loshchilov & Hutter 2016, arXiv 1608.03983).
    """
    assert 0 <= progress <= 1, f"progress is s / n in [0, 1], not {progress}"
    ahead = step if config.warmup_from == "first_step" else 0.0
    rising = (progress + ahead) / (config.warmup + ahead) if progress < config.warmup else 1.0
    if config.kind == "cosine":
        if progress <= config.warmup:
            return rising
        done = (progress - config.warmup) / (1 - config.warmup)
        return config.final + (1 - config.final) * (1 + math.cos(math.pi * done)) / 2
    left = (1 - progress) / config.cooldown if progress > 1 - config.cooldown else 1.0
    if config.kind == "sqrt":
        left = 1 - math.sqrt(1 - left)
    elif config.kind == "power":
        left **= config.power
    return min(rising, config.final + (1 - config.final) * left)


def weight_decay_multiplier(config: ScheduleConfig, progress: float, step: float = 0.0) -> float:
    """Factor on every weight decay, beside the learning rate that multiplies it anyway.

    `lr` makes the decay of a step go with the square of the rate (modded-nanogpt, 2025), `linear` goes straight from 1
    to 0 (nanochat).
    """
    if config.weight_decay == "lr":
        return lr_multiplier(config, progress, step)
    return 1 - progress if config.weight_decay == "linear" else 1.0


def momentum(config: MomentumConfig, peak: float, progress: float) -> float:
    """Muon's momentum: a straight line from `start` to `peak`, and at the end one to `final` (modded-nanogpt, 2024-25).

    Where the two overlap, the smaller one holds.
    """
    rising = config.start + (peak - config.start) * progress / config.warmup if progress < config.warmup else peak
    left = (1 - progress) / config.cooldown if progress > 1 - config.cooldown else 1.0
    return min(rising, config.final + (peak - config.final) * left)


def rates(config: RunConfig, progress: float) -> Rates:
    """Those of the update that begins at `progress`."""
    schedule, step = config.schedule, 1 / config.train.steps
    return Rates(
        lr_multiplier(schedule, progress, step),
        weight_decay_multiplier(schedule, progress, step),
        momentum(schedule.momentum, config.optim.muon.momentum, progress),
    )


def window_share(config: WindowConfig, progress: float) -> float:
    """Share of its final size that every attention window has: a straight line from `start` to 1 at `full`."""
    return min(1.0, config.start + (1 - config.start) * progress / config.full)


def joining_times(config: DepthConfig, num_layers: int) -> list[float]:
    """Progress at which each layer becomes active: 0 for the first share, then evenly spaced, the last at `full`."""
    first = max(1, round(config.start * num_layers))
    later = num_layers - first
    return [0.0] * first + [config.full * ((j + 1) / later) for j in range(later)]


def drop_chances(config: DepthConfig, num_layers: int, progress: float) -> list[float]:
    """Chance that each active layer is left out of a step: `drop` when it joins, falling to 0 at `full`.

    Stochastic depth (Huang et al. 2016, arXiv 1603.09382) for the layers that were added (progressive stacking: Gong et
    al. 2019). 0 for layers that were there from the start.
    """

    def chance(joined: float) -> float:
        newly = 0 < joined <= progress < config.full
        return config.drop * (config.full - progress) / (config.full - joined) if newly else 0.0

    return [chance(joined) for joined in joining_times(config, num_layers)]


class Growth:
    """The stages of a GrowthConfig: the next one begins on a plateau of the training loss, or at its latest time.

    Plateau: over the last `window` steps the mean loss was less than `improvement` below that of the window before;
    both lie within the present stage. `switches` has a row for every stage that was begun.
    """

    def __init__(self, config: GrowthConfig, steps: int) -> None:
        self.config, self.steps, self.stage = config, steps, 0
        self.window = max(1, round(config.window * steps))
        self.losses: list[float] = []
        self.switches: list[dict[str, Any]] = []

    def advance(self, step: int) -> float:
        """Begin the stage that `step` is of; returns its share of the final size. Call it for every step, in order."""
        while self.stage < len(self.config.latest) and (reason := self._reason(step)):
            self.stage += 1
            self.losses = []
            self.switches.append({"step": step, "share": self.share, "reason": reason})
        return self.share

    @property
    def share(self) -> float:
        return self.config.stages[self.stage]

    def observe(self, loss: float) -> None:
        """The training loss of a step that was made at the present stage."""
        self.losses.append(loss)

    def _reason(self, step: int) -> str:
        if step / self.steps >= self.config.latest[self.stage]:
            return "latest"
        if len(self.losses) < 2 * self.window or not self.config.improvement:
            return ""
        before = sum(self.losses[-2 * self.window : -self.window])
        now = sum(self.losses[-self.window :])
        return "plateau" if now > (1 - self.config.improvement) * before else ""


class Pace:
    """The schedules of one run, asked before every step: which layers, which windows, how many rows how long."""

    def __init__(self, config: RunConfig, seed: int) -> None:
        self.config, self.seed, schedule = config, seed, config.schedule
        self.lengths = Growth(schedule.curriculum, config.train.steps)
        self.batches = Growth(schedule.batch, config.train.steps)
        self._joining = joining_times(schedule.depth, config.model.num_layers)

    def progress(self, step: int) -> float:
        return step / self.config.train.steps

    def rates(self, step: int) -> Rates:
        return rates(self.config, self.progress(step))

    def layers(self, step: int, training: bool) -> tuple[int, ...]:
        """The layers that are computed: the active ones, in training without those that this step leaves out."""
        progress, count = self.progress(step), len(self._joining)
        active = [layer for layer in range(count) if self._joining[layer] <= progress]
        if training and any(chances := drop_chances(self.config.schedule.depth, count, progress)):
            draws = np.random.PCG64(stream_seed(self.seed, "depth", step)).random_raw(count) / 2.0**64
            active = [layer for layer in active if draws[layer] >= chances[layer]]
        return tuple(active)

    def window_share(self, step: int) -> float:
        return window_share(self.config.schedule.windows, self.progress(step))

    def shape(self, step: int) -> tuple[int, int]:
        """(rows of full length, tokens a row is cut to) of the global batch; call it for every step, in order."""
        stage = self.lengths.stage
        length = max(1, round(self.lengths.advance(step) * self.config.model.seq_len))
        if self.lengths.stage != stage:
            self.batches.losses = []  # another length is another loss: no plateau is seen across it
        return max(1, round(self.batches.advance(step) * self.config.train.batch_rows)), length

    def observe(self, loss: float) -> None:
        self.lengths.observe(loss)
        self.batches.observe(loss)

    def state(self, step: int, rows: int, length: int) -> dict[str, Any]:
        """What of it is not constant in this run, for the log; `rows` and `length` are the shape of this step."""
        schedule, state = self.config.schedule, dict[str, Any]()
        if schedule.curriculum.latest:
            state["seq_len"] = length
        if schedule.batch.latest:
            state["batch_rows"] = rows
        if schedule.depth.start < 1:
            state["active_layers"] = len(self.layers(step, training=False))
        if schedule.windows.start < 1:
            state["window_share"] = self.window_share(step)
        if schedule.momentum.warmup or schedule.momentum.cooldown:
            state["momentum"] = self.rates(step).momentum
        return state

    def switches(self, until: int) -> list[dict[str, Any]]:
        """Every switch of a stage up to step `until`: what, when, to which share of its final size, and why."""
        grown = [{"what": "seq_len", **row} for row in self.lengths.switches]
        grown += [{"what": "batch_rows", **row} for row in self.batches.switches]
        for layer, joined in enumerate(self._joining):
            if joined:
                step = next(s for s in range(self.config.train.steps + 1) if joined <= self.progress(s))
                share = (layer + 1) / len(self._joining)
                grown.append({"what": "depth", "step": step, "share": share, "reason": "schedule"})
        return sorted((row for row in grown if row["step"] <= until), key=lambda row: row["step"])
