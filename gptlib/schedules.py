"""Learning-rate schedule as a pure function of progress: nothing to save, so nothing to lose on resume."""

import math

from gptlib.fields import ScheduleConfig


def lr_multiplier(config: ScheduleConfig, progress: float) -> float:
    """Factor on every base learning rate at `progress` in [0, 1].

    The update of step s (from 0) of n uses progress = s / n, so the first one of a warmup has rate 0 (the convention of
    Hugging Face's get_linear_schedule_with_warmup), and the last one has not quite reached `final` (modded-nanogpt's).

    * warmup: straight line from 0 at progress 0 to 1 at progress `warmup`.
    * linear: 1, then from progress 1 - `cooldown` a straight line to `final` at progress 1 (Hagele et al. 2024,
      arXiv 2405.18392). Where warmup and cooldown overlap, the smaller of the two holds.
    * cosine: half a cosine from 1 at progress `warmup` to `final` at 1 (Loshchilov & Hutter 2016, arXiv 1608.03983).
    """
    assert 0 <= progress <= 1, f"progress is s / n in [0, 1], not {progress}"
    rising = progress / config.warmup if progress < config.warmup else 1.0
    if config.kind == "cosine":
        if progress <= config.warmup:
            return rising
        done = (progress - config.warmup) / (1 - config.warmup)
        return config.final + (1 - config.final) * (1 + math.cos(math.pi * done)) / 2
    left = (1 - progress) / config.cooldown if progress > 1 - config.cooldown else 1.0
    return min(rising, config.final + (1 - config.final) * left)
