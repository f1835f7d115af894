"""Makes a variant comparable: turns one knob of it until both arms have equal parameters, FLOPs, tokens, time, memory.

What is not matched stays free, and says so: `confounders` names what could explain a verdict otherwise. Times of the
schedule are fractions of the run, so a run of other length keeps its shape. Formulas: gptlib/accounting.py.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gptlib.accounting import memory_estimate, planned_costs
from gptlib.config import ConfigError, with_changes
from gptlib.fields import RunConfig

Mode = Literal["steps", "tokens", "params", "flops", "time", "memory", "nothing"]
Knob = Literal[
    "",
    "model.mlp_hidden",
    "model.model_dim",
    "model.num_layers",
    "train.steps",
    "train.batch_rows",
    "hardware.micro_rows",
]
# The knobs that can bring each quantity together, the default first.
KNOBS: dict[str, tuple[Knob, ...]] = {
    "steps": ("",),
    "tokens": ("train.steps",),
    "params": ("model.mlp_hidden", "model.model_dim", "model.num_layers"),
    "flops": ("train.steps", "model.mlp_hidden", "model.model_dim", "model.num_layers"),
    "time": ("train.steps",),
    "memory": ("train.batch_rows", "hardware.micro_rows"),
    "nothing": ("",),
}
# Relative tolerance within which two arms count as equal.
TOLERANCE = {"steps": 0.0, "tokens": 0.0, "params": 0.005, "flops": 0.01, "time": 0.02, "memory": 0.05}
MULTIPLES = (64, 32, 16, 8, 4, 2, 1)  # of a hidden width: the widest grid that is fine enough, since GPUs like it
FINISH: Knob = "model.mlp_hidden"  # what a coarse change of the model is finished with


@dataclass(frozen=True)
class Match:
    """The variant after matching, and both arms' planned costs: the arguments of report.tables.matched_table."""

    by: str
    knobs: tuple[str, ...]  # the keys that were turned
    config: RunConfig
    baseline: dict[str, float]
    variant: dict[str, float]


def match(
    variant: RunConfig,
    baseline: RunConfig,
    by: Mode,
    free: Knob = "",
    *,
    vocab_size: int,
    multiple: int = 0,
    step_seconds: tuple[float, float] | None = None,
    memory: Callable[[RunConfig], float] | None = None,
    turn: bool = True,
) -> Match:
    """`variant` with its `free` knob turned until it equals `baseline` by `by`, within TOLERANCE.

    `free` empty: the first of KNOBS. A depth or width of the model that cannot meet the tolerance is finished with the
    hidden width, a multiple of `multiple` (0: of the largest of MULTIPLES that is fine enough). by="time" needs
    `step_seconds`, (baseline's, variant's) of a timing trial. by="memory" takes the largest batch that needs no more
    than the baseline; `memory` measures the bytes of a configuration (default: memory_estimate). `turn` False: nothing
    is turned, only checked. Raises ConfigError, with a remedy, where the tolerance cannot be met.
    """
    if by not in get_args(Mode):
        raise ConfigError(f"match: {by!r}; use one of {', '.join(get_args(Mode))}")
    knob = free or usual_knob(by, variant)
    if knob not in KNOBS[by]:
        usual = ", ".join(filter(None, KNOBS[by])) or "empty"
        raise ConfigError(f"match: {by} cannot be reached by {knob}; free is one of {usual}")
    if by == "time" and step_seconds is None:
        raise ConfigError("match: time needs step_seconds from a timing trial of both arms")
    seconds = step_seconds or (None, None)

    def quantity(config: RunConfig) -> float:
        if by == "memory":
            return memory(config) if memory else float(memory_estimate(config, vocab_size).total)
        key = {"params": "total", "flops": "total_flops", "time": "trial_seconds"}.get(by, by)
        return planned_costs(config, vocab_size, seconds[1])[key]

    turned, target = variant, _target(baseline, by, quantity, seconds[0])
    if knob and turn and by != "nothing":
        changes = _turned(variant, knob, quantity, target, by, multiple)
        turned = with_changes(variant, changes)
    if by != "nothing":
        _check(by, knob, quantity(turned), target, turned, baseline, turn)
    knobs = tuple(key for key in dict.fromkeys((knob, FINISH)) if key and _value(turned, key) != _value(variant, key))
    costs = (planned_costs(c, vocab_size, t) for c, t in zip((baseline, turned), seconds, strict=True))
    return Match(by, knobs, turned, *costs)


def usual_knob(by: str, config: RunConfig) -> Knob:
    """What is turned where nothing is said: the first of KNOBS, but the rows per pass where the batch takes several."""
    return "hardware.micro_rows" if by == "memory" and config.hardware.micro_rows else KNOBS[by][0]


def _target(baseline: RunConfig, by: str, quantity: Callable[[RunConfig], float], seconds: float | None) -> float:
    if by == "nothing":
        return 0.0
    return baseline.train.steps * (seconds or 0.0) if by == "time" else quantity(baseline)


def _turned(
    variant: RunConfig, knob: Knob, quantity: Callable[[RunConfig], float], target: float, by: str, multiple: int
) -> dict[str, Any]:
    """The changes that bring the variant's quantity nearest to the target."""
    if knob == FINISH:
        return {FINISH: _hidden_width(variant, quantity, target, TOLERANCE[by], multiple)}
    step = _step(variant, knob)
    value = nearest(lambda x: quantity(with_changes(variant, {knob: x})), target, step, below=by == "memory")
    changes: dict[str, Any] = {knob: value}
    turned = with_changes(variant, changes)
    if knob.startswith("model.") and abs(quantity(turned) / target - 1) > TOLERANCE[by]:
        changes[FINISH] = _hidden_width(turned, quantity, target, TOLERANCE[by], multiple)
    return changes


def _hidden_width(
    config: RunConfig, quantity: Callable[[RunConfig], float], target: float, tolerance: float, multiple: int
) -> int:
    width = 1
    for step in (multiple,) if multiple else MULTIPLES:
        width = nearest(lambda x: quantity(with_changes(config, {FINISH: x})), target, step)
        if abs(quantity(with_changes(config, {FINISH: width})) / target - 1) <= tolerance:
            break
    return width


def nearest(quantity: Callable[[int], float], target: float, step: int, below: bool = False) -> int:
    """The multiple of `step` whose quantity, which rises with it, is nearest to the target (`below`: not above it).

    Values that are too small to be legal count as too little; where more of it changes nothing, the search ends.
    """

    @functools.cache
    def size(n: int) -> float:
        try:
            return quantity(n * step)
        except ConfigError:
            return -math.inf

    low, high = 1, 2
    while size(high) < target:
        if size(high) == size(low) > -math.inf:
            return low * step
        low, high = high, 2 * high
        if high > 2**40:
            quantity(high * step)  # raises: no value of it is legal
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= target else (low, middle)
    if size(low) == -math.inf or size(high) <= target:
        return high * step
    closer = abs(size(high) - target) < abs(size(low) - target)
    return (high if closer and not below else low) * step


def _step(config: RunConfig, knob: Knob) -> int:
    """The grid of a knob's legal values."""
    if knob == "model.model_dim":
        return config.model.num_heads * (2 if config.model.position == "rope" else 1)
    return config.hardware.ranks if knob == "train.batch_rows" else 1


def _value(config: RunConfig, key: str) -> Any:
    section, leaf = key.split(".")
    return getattr(getattr(config, section), leaf)


def _check(by: str, knob: str, found: float, target: float, turned: RunConfig, baseline: RunConfig, turn: bool) -> None:
    if by == "memory" and turn and found > target:
        raise ConfigError(
            f"match: memory: one row of the variant needs {found / 2**20:,.0f} MiB, the baseline in all "
            f"{target / 2**20:,.0f}; give the baseline a larger train.batch_rows"
        )
    off = found / target - 1
    if abs(off) <= TOLERANCE[by]:
        return
    reached = f"match: {by}: the variant is {100 * off:+.2f} % off, {100 * TOLERANCE[by]:g} % are allowed"
    if not knob:
        raise ConfigError(
            f"{reached}: {_value(turned, 'train.steps')} steps against "
            f"{_value(baseline, 'train.steps')}; use match=tokens, or nothing"
        )
    others = [other for other in KNOBS[by] if other != knob]
    finer = "a longer run" if knob == "train.steps" else "a larger batch" if by == "memory" else "a larger model"
    remedy = f"free {' or '.join(others)}, or take {finer}" if others else f"take {finer}"
    raise ConfigError(f"{reached} with {knob}={_value(turned, knob)}, the nearest there is; {remedy}")


# What can be an explanation of a verdict: name, key, tolerance. Steps are not: a step has the size one gives it. Nor is
# the time that runs took beside others on one machine, which varies by more than arms do.
RESOURCES = (
    ("parameters", "total", TOLERANCE["params"]),
    ("FLOPs", "total_flops", TOLERANCE["flops"]),
    ("tokens", "tokens", TOLERANCE["tokens"]),
    ("time", "trial_seconds", TOLERANCE["time"]),
    ("memory", "tensor_mib", TOLERANCE["memory"]),
)


# What a knob takes with it: free by declaration, so no hidden explanation.
FOLLOWERS = dict.fromkeys(("train.steps", "train.batch_rows"), ("FLOPs", "tokens"))


def confounders(
    baseline: Mapping[str, Any], variant: Mapping[str, Any], verdict: str, knobs: Iterable[str] = ()
) -> dict[str, float]:
    """{resource: ratio} of what could explain the verdict otherwise: more of it in a better arm, less in a worse one.

    Both mappings as Match has them, `knobs` as it was turned: what follows from them is left out. A resource that
    differs the other way makes the verdict only stronger.
    """
    sign = {"better": 1, "worse": -1}.get(verdict, 0)
    found: dict[str, float] = {}
    free = {follower for knob in knobs for follower in FOLLOWERS.get(knob, ())}
    for name, key, tolerance in RESOURCES:
        old, new = baseline.get(key), variant.get(key)
        if name in free or not old or not new or not math.isfinite(old) or not math.isfinite(new):
            continue
        if sign * (new / old - 1) > tolerance:
            found[name] = new / old
    return found
