"""What changes during a run: against formulas in exact arithmetic, the other projects' code, and counting."""

import itertools
import math
import random
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest

from gptlib.config import ConfigError, load_config
from gptlib.fields import DepthConfig, GrowthConfig, MomentumConfig, RunConfig, ScheduleConfig, WindowConfig
from gptlib.schedules import (
    Growth,
    Pace,
    Rates,
    drop_chances,
    joining_times,
    lr_multiplier,
    momentum,
    rates,
    weight_decay_multiplier,
    window_share,
)

# --- learning rate ----------------------------------------------------------------------------------------------


def curve(steps: int, **fields: object) -> list[float]:
    config = ScheduleConfig.model_validate(fields)
    return [lr_multiplier(config, step / steps, 1 / steps) for step in range(steps + 1)]


def test_linear_is_constant_then_falls_to_final() -> None:
    values = curve(10, warmup=0, cooldown=0.6, final=0.1)
    assert values[:5] == [1.0] * 5
    assert values[4:] == pytest.approx([1 - 0.9 * i / 6 for i in range(7)])
    assert values[-1] == pytest.approx(0.1)


# Of each kind: the multiplier where a quarter, 64 % and all of its fall is over, down to 0.2.
SHAPES: list[tuple[dict[str, object], list[float]]] = [
    ({"kind": "linear"}, [0.8, 0.488, 0.2]),  # 0.2 + 0.8 (1 - t)
    ({"kind": "sqrt"}, [0.6, 0.36, 0.2]),  # 0.2 + 0.8 (1 - sqrt(t))
    ({"kind": "power"}, [0.65, 0.30368, 0.2]),  # 0.2 + 0.8 (1 - t)^2
    ({"kind": "power", "power": 3}, [0.5375, 0.2373248, 0.2]),
    ({"kind": "power", "power": 0.5}, [0.2 + 0.8 * math.sqrt(0.75), 0.68, 0.2]),
    ({"kind": "power", "power": 1}, [0.8, 0.488, 0.2]),
]


@pytest.mark.parametrize(("kind", "points"), SHAPES, ids=lambda value: str(value) if isinstance(value, dict) else "")
@pytest.mark.parametrize("cooldown", [1.0, 0.5, 0.3])
def test_each_cooldown_has_its_shape(kind: dict[str, object], points: list[float], cooldown: float) -> None:
    config = ScheduleConfig.model_validate(kind | {"cooldown": cooldown, "final": 0.2})
    found = [lr_multiplier(config, 1 - cooldown + cooldown * over) for over in (0.25, 0.64, 1)]
    assert found == pytest.approx(points)
    assert all(lr_multiplier(config, (1 - cooldown) * share) == 1 for share in (0, 0.5, 0.99, 1))


def test_cosine_at_its_thirds_and_its_middle() -> None:
    config = ScheduleConfig(kind="cosine", warmup=0.1, final=0.2)
    found = [lr_multiplier(config, 0.1 + 0.9 * share) for share in (0, 1 / 3, 0.5, 2 / 3, 1)]
    assert found == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])  # cos of 0, 60, 90, 120 and 180 degrees


@pytest.mark.parametrize("kind", ["linear", "sqrt", "power", "cosine"])
def test_warmup_rises_from_zero_or_with_the_first_step(kind: str) -> None:
    values = curve(20, kind=kind, warmup=0.25, cooldown=0.5)
    assert values[:6] == pytest.approx([step / 5 for step in range(6)])
    values = curve(20, kind=kind, warmup=0.25, cooldown=0.5, warmup_from="first_step")
    assert values[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])


def nanogpt_lr(it: int, warmup_iters: int, lr_decay_iters: int, learning_rate: float, min_lr: float) -> float:
    """get_lr of karpathy/nanoGPT, train.py."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    decay_ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    return min_lr + 0.5 * (1 + math.cos(math.pi * decay_ratio)) * (learning_rate - min_lr)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 30), (1, 30), (7, 30), (100, 2000), (2000, 600_000)])
def test_cosine_from_the_first_step_equals_nanogpt(warmup: int, steps: int) -> None:
    config = ScheduleConfig(kind="cosine", warmup=warmup / steps, warmup_from="first_step", final=0.1)
    for it in {0, 1, warmup - 1, warmup, warmup + 1, steps // 2, steps - 1, steps, *range(0, steps, steps // 30)} - {
        -1
    }:
        ours = 6e-4 * lr_multiplier(config, it / steps, 1 / steps)
        assert ours == pytest.approx(nanogpt_lr(it, warmup, steps, 6e-4, 6e-5), rel=1e-12), it


@pytest.mark.parametrize(("warmup", "steps"), [(1, 30), (7, 30), (15, 30), (100, 2000)])
def test_warmup_from_zero_equals_hugging_face(warmup: int, steps: int) -> None:
    """get_linear_schedule_with_warmup and get_cosine_schedule_with_warmup of transformers."""
    linear = curve(steps, warmup=warmup / steps, cooldown=(steps - warmup) / steps)
    cosine = curve(steps, kind="cosine", warmup=warmup / steps)
    for step in range(steps + 1):
        over = (step - warmup) / (steps - warmup)
        rising = step / warmup
        assert linear[step] == pytest.approx(rising if step < warmup else 1 - over, abs=1e-12)
        assert cosine[step] == pytest.approx(
            rising if step < warmup else 0.5 * (1 + math.cos(math.pi * 0.5 * 2 * over)), abs=1e-12
        )


def test_linear_equals_the_formula_of_modded_nanogpt() -> None:
    for step, value in enumerate(curve(100, cooldown=0.7, final=0)):
        x = step / 100
        assert value == pytest.approx(1.0 if x < 0.3 else (1 - x) / 0.7)


def test_cosine_equals_torch() -> None:
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.2)
    for value in curve(50, kind="cosine", warmup=0, final=0.2):
        assert value == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()


def test_overlapping_warmup_and_cooldown_take_the_smaller() -> None:
    values = curve(4, warmup=1, cooldown=1)
    assert values == pytest.approx([0, 0.25, 0.5, 0.25, 0])


@pytest.mark.parametrize("kind", ["linear", "sqrt", "power", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("cooldown", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("final", [0.0, 0.5, 1.0])
def test_multipliers_stay_between_zero_and_one(kind: str, warmup: float, cooldown: float, final: float) -> None:
    values = curve(30, kind=kind, warmup=warmup, cooldown=cooldown, final=final)
    assert all(math.isfinite(v) and 0 <= v <= 1 for v in values)
    jumps = [abs(a - b) for a, b in itertools.pairwise(values)]
    assert max(jumps) < 0.3  # continuous


def test_progress_outside_the_run_is_a_programming_error() -> None:
    with pytest.raises(AssertionError):
        lr_multiplier(ScheduleConfig(), 1.01)


@pytest.mark.parametrize(
    "setting",
    ["kind=step", "warmup_from=one", "weight_decay=cosine", "power=0", "momentum.start=1", "momentum.warmup=2"],
)
def test_what_is_no_schedule_is_refused(setting: str) -> None:
    key, value = setting.split("=")
    with pytest.raises(ConfigError, match=f"schedule.{key}='?{value}'?: Input should be"):
        load_config("smoke", [f"schedule.{setting}"])


# --- weight decay -----------------------------------------------------------------------------------------------


def test_weight_decay_is_constant_or_goes_with_the_rate_or_straight_to_zero() -> None:
    def decays(weight_decay: str) -> list[float]:
        config = ScheduleConfig.model_validate({"warmup": 0.2, "cooldown": 0.4, "weight_decay": weight_decay})
        return [weight_decay_multiplier(config, tenth / 10) for tenth in range(11)]

    assert decays("constant") == [1.0] * 11
    assert decays("lr") == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])
    assert decays("linear") == pytest.approx([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0])


@pytest.mark.parametrize("kind", ["linear", "sqrt", "power", "cosine"])
@pytest.mark.parametrize("start", ["zero", "first_step"])
def test_decay_that_goes_with_the_rate_makes_the_decay_of_a_step_its_square(kind: str, start: str) -> None:
    """modded-nanogpt: a step takes off lr^2 wd, lr being the scheduled rate."""
    schedule = {"kind": kind, "warmup": 0.3, "cooldown": 0.5, "warmup_from": start, "weight_decay": "lr"}
    config = run_config(steps=20, **schedule)
    for step in range(20):
        found = rates(config, step / 20)
        assert found.lr * found.weight_decay == pytest.approx(curve(20, **schedule)[step] ** 2)


# --- momentum ---------------------------------------------------------------------------------------------------


def test_momentum_rises_from_start_to_its_peak_and_falls_to_final() -> None:
    config = MomentumConfig(warmup=0.2, start=0.85, cooldown=0.4, final=0.75)
    found = [momentum(config, 0.95, tenth / 10) for tenth in range(11)]
    assert found == pytest.approx([0.85, 0.9, 0.95, 0.95, 0.95, 0.95, 0.95, 0.9, 0.85, 0.8, 0.75])


def test_momentum_is_constant_unless_asked() -> None:
    assert [momentum(MomentumConfig(), 0.9, tenth / 10) for tenth in range(11)] == [0.9] * 11
    assert rates(run_config(), 0.3).momentum == rates(run_config(), 1.0).momentum == 0.95  # optim.muon.momentum


def test_overlapping_rise_and_fall_of_momentum_take_the_smaller() -> None:
    config = MomentumConfig(warmup=1, start=0.5, cooldown=1, final=0.7)
    found = [momentum(config, 0.9, quarter / 4) for quarter in range(5)]
    assert found == pytest.approx([0.5, 0.6, 0.7, 0.75, 0.7])


# --- the numbers of modded-nanogpt ------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "cooldown"), [(1285, 50), (1750, 0)], ids=["2026", "2025"])
def test_momentum_of_modded_nanogpt(steps: int, cooldown: int) -> None:
    """0.85 to 0.95 in 300 steps; the script of 2026 goes back in its last 50."""
    config = MomentumConfig(warmup=300 / steps, start=0.85, cooldown=cooldown / steps, final=0.85)
    for step in range(steps):
        if step < 300:
            expected = 0.85 + step / 300 * 0.1
        elif step > steps - cooldown:
            expected = 0.95 - (step - (steps - cooldown)) / 50 * 0.1
        else:
            expected = 0.95
        assert momentum(config, 0.95, step / steps) == pytest.approx(expected, abs=1e-12), step


def test_rate_of_modded_nanogpt() -> None:
    """Within a stage of its batch: constant, over the last 60 % of 1,270 steps down to 0.15."""
    values = curve(1270, cooldown=0.6, final=0.15)
    assert values[:509] == [1.0] * 509  # cooldown from int(1270 * 0.4) = 508
    for step in range(508, 1271):
        over = (step - 508) / (1270 - 508)
        assert values[step] == pytest.approx((1 - over) + 0.15 * over)


def test_rate_of_track_3_and_its_power_cooldown() -> None:
    values = curve(3250, cooldown=0.7)
    assert values[:976] == [1.0] * 976 and values[3249] == pytest.approx(1 / 2275)
    assert values[976] == pytest.approx(2274 / 2275) and values[975 + 1137] == pytest.approx(1138 / 2275)
    power = curve(2900, kind="power", power=1.2, cooldown=0.7)
    assert power[870 + 1015] == pytest.approx(0.5**1.2)


# --- of rates, decays and momenta alike -------------------------------------------------------------------------

VARIED: list[dict[str, Any]] = [
    {},
    {"kind": "cosine", "warmup": 0.1, "final": 0.1, "weight_decay": "linear"},
    {"kind": "sqrt", "warmup": 0.2, "cooldown": 0.4, "weight_decay": "lr"},
    {"kind": "power", "power": 1.2, "cooldown": 0.7, "momentum": {"warmup": 0.3, "cooldown": 0.1}},
    {"warmup": 0.5, "cooldown": 0.8, "weight_decay": "lr", "momentum": {"warmup": 0.6, "start": 0.2, "cooldown": 0.6}},
]


@pytest.mark.parametrize("schedule", VARIED)
@pytest.mark.parametrize("start", ["zero", "first_step"])
def test_rates_are_of_the_step_alone(schedule: dict[str, Any], start: str) -> None:
    """The same whatever was asked before, by whichever object and seed: a resumed run has them as they were."""
    config = run_config(steps=40, **schedule | {"warmup_from": start})
    forwards, shuffled = list(range(40)), random.Random(1).sample(range(40), 40)
    pace = Pace(config, seed=1)
    course = {step: pace.rates(step) for step in forwards}
    assert course == {step: pace.rates(step) for step in shuffled}
    assert course == {step: Pace(config, seed=2).rates(step) for step in reversed(forwards)}
    assert course == {step: rates(config, step / 40) for step in forwards}


@pytest.mark.parametrize("schedule", VARIED)
@pytest.mark.parametrize("times", [2, 3, 10])
def test_a_longer_run_has_the_same_rates_at_equal_progress(schedule: dict[str, Any], times: int) -> None:
    short, long = (run_config(steps=steps, **schedule) for steps in (40, 40 * times))
    for step in range(40):
        assert rates(short, step / 40) == pytest.approx(rates(long, times * step / (40 * times)), abs=1e-12)


def test_a_longer_run_begins_lower_where_the_first_update_has_a_step_of_the_way() -> None:
    for steps in (40, 80, 400):
        config = run_config(steps=steps, warmup=0.25, warmup_from="first_step", weight_decay="lr")
        ours = [rates(config, step / steps) for step in range(steps)]
        warmup = steps // 4
        assert [r.lr for r in ours[:warmup]] == pytest.approx([(step + 1) / (warmup + 1) for step in range(warmup)])
        assert [r.lr for r in ours] == [r.weight_decay for r in ours]
        assert ours[warmup:] == [
            rates(run_config(steps=steps, weight_decay="lr"), s / steps) for s in range(warmup, steps)
        ]


def test_rates_are_those_of_rate_decay_and_momentum() -> None:
    schedule = {"warmup": 0.5, "cooldown": 0.5, "weight_decay": "linear", "momentum": {"warmup": 0.5, "start": 0.75}}
    assert rates(run_config(steps=8, **schedule), 0.25) == pytest.approx(Rates(0.5, 0.75, 0.85))
    assert rates(run_config(steps=8, **schedule), 0.75) == pytest.approx(Rates(0.5, 0.25, 0.95))
    config = run_config(steps=8, **schedule)
    muon = config.optim.muon.model_copy(update={"momentum": 0.8})
    config = config.model_copy(update={"optim": config.optim.model_copy(update={"muon": muon})})
    assert rates(config, 0.75).momentum == 0.8, "the peak is the optimizer's own"


# --- depth ------------------------------------------------------------------------------------------------------


def run_config(steps: int = 10, layers: int = 2, seq_len: int = 64, batch_rows: int = 8, **schedule: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {"num_layers": layers, "model_dim": 8, "num_heads": 1, "seq_len": seq_len},
            "train": {"steps": steps, "batch_rows": batch_rows},
            "schedule": schedule,
        }
    )


def test_a_third_of_twelve_layers_is_there_at_once_and_the_others_join_evenly() -> None:
    times = joining_times(DepthConfig(start=1 / 3, full=0.3), 12)
    assert times[:4] == [0.0] * 4 and times[-1] == 0.3
    assert times[4:] == pytest.approx([0.0375, 0.075, 0.1125, 0.15, 0.1875, 0.225, 0.2625, 0.3])


@pytest.mark.parametrize(("start", "first"), [(1e-3, 1), (0.25, 2), (0.5, 3), (0.99, 6), (1.0, 6)])
def test_the_first_share_is_rounded_to_layers_and_at_least_one(start: float, first: int) -> None:
    times = joining_times(DepthConfig(start=start, full=0.5), 6)
    assert times.count(0.0) == first and len(times) == 6


def test_the_last_layer_joins_exactly_at_full_whatever_the_numbers() -> None:
    missed = []
    for percent, layers in itertools.product(range(1, 100), range(2, 25)):
        pace = Pace(run_config(steps=100, layers=layers, depth={"start": 1e-3, "full": percent / 100}), seed=1)
        if len(pace.layers(percent, training=False)) != layers or len(pace.layers(percent - 1, False)) == layers:
            missed.append((percent, layers))
    assert not missed, f"{len(missed)} pairs of full (per cent) and layers, e.g. {missed[:5]}"


def test_layers_join_from_the_bottom_at_their_times() -> None:
    pace = Pace(run_config(steps=40, layers=12, depth={"start": 1 / 3, "full": 0.3}), seed=1)
    for step in range(41):  # eight layers in twelve steps: two every three
        joined = min(8, math.floor(Fraction(step, 40) / Fraction(3, 10) * 8))
        assert pace.layers(step, training=False) == tuple(range(4 + joined))
    assert pace.layers(12, training=True) == pace.layers(40, training=True) == tuple(range(12))


def test_the_chance_to_be_left_out_falls_in_a_straight_line_from_joining_to_full() -> None:
    config = DepthConfig(start=0.5, full=0.5, drop=0.2)  # joining at 1/8, 1/4, 3/8 and 1/2
    for eighth, chances in {
        0: [0, 0, 0, 0, 0, 0, 0, 0],
        1: [0, 0, 0, 0, 0.2, 0, 0, 0],
        2: [0, 0, 0, 0, 0.2 * 2 / 3, 0.2, 0, 0],
        3: [0, 0, 0, 0, 0.2 / 3, 0.1, 0.2, 0],
        4: [0, 0, 0, 0, 0, 0, 0, 0],
        8: [0, 0, 0, 0, 0, 0, 0, 0],
    }.items():
        assert drop_chances(config, 8, eighth / 8) == pytest.approx(chances)
    halfway = drop_chances(config, 8, 5 / 16)  # of the fifth layer's way from 1/8 to 1/2
    assert halfway[4] == pytest.approx(0.1) and halfway[:4] == [0.0] * 4


def test_layers_are_left_out_as_often_as_their_chance_says() -> None:
    config = run_config(steps=4, layers=4, depth={"start": 0.5, "full": 0.999, "drop": 0.4})
    counts: Counter[int] = Counter()
    trials = 2000
    for seed in range(trials):  # layer 2 has joined at step 2, halfway, with a chance of 0.4; at step 3 it is 0.2
        pace = Pace(config, seed)
        assert pace.layers(2, training=False) == pace.layers(3, training=False) == (0, 1, 2)
        for step in (2, 3):
            layers = pace.layers(step, training=True)
            assert layers in ((0, 1, 2), (0, 1))
            counts[step] += 2 not in layers
    for step, chance in ((2, 0.4), (3, 0.2)):
        deviation = math.sqrt(trials * chance * (1 - chance))
        assert abs(counts[step] - trials * chance) < 4 * deviation, counts


def test_layers_are_left_out_independently_over_the_steps_of_one_run() -> None:
    pace = Pace(run_config(steps=4000, layers=3, depth={"start": 0.4, "full": 0.999, "drop": 0.5}), seed=3)
    steps = range(2000, 4000)  # layer 1 joined at 2,000; the expected count is the sum of its chances
    left_out = [1 not in pace.layers(step, training=True) for step in steps]
    chances = [0.5 * (4000 - step) / 2000 for step in steps]
    assert abs(sum(left_out) - sum(chances)) < 4 * math.sqrt(sum(c * (1 - c) for c in chances))
    twice = sum(a and b for a, b in itertools.pairwise(left_out))
    expected = sum(a * b for a, b in itertools.pairwise(chances))
    assert abs(twice - expected) < 4 * math.sqrt(expected)


def test_what_is_left_out_depends_on_the_seed_alone() -> None:
    config = run_config(steps=200, layers=8, depth={"start": 0.25, "full": 0.999, "drop": 0.5})

    def course(seed: int, steps: list[int]) -> dict[int, tuple[int, ...]]:
        pace = Pace(config, seed)
        return {step: pace.layers(step, training=True) for step in steps}

    forwards, backwards = list(range(200)), list(reversed(range(200)))
    assert course(1, forwards) == course(1, backwards) != course(2, forwards)


def test_without_drop_or_growth_training_has_every_active_layer() -> None:
    warm = Pace(run_config(layers=4, depth={"start": 0.25, "full": 0.9, "drop": 0.0}), seed=1)
    for step in range(11):
        assert warm.layers(step, training=True) == warm.layers(step, training=False)
        assert Pace(run_config(layers=4, depth={"drop": 0.9}), seed=1).layers(step, training=True) == (0, 1, 2, 3)


# --- windows ----------------------------------------------------------------------------------------------------


def test_windows_grow_in_a_straight_line_and_stay_whole() -> None:
    config = WindowConfig(start=0.2, full=0.4)
    assert [window_share(config, tenth / 10) for tenth in range(11)] == pytest.approx([0.2, 0.4, 0.6, 0.8] + [1.0] * 7)
    assert [window_share(WindowConfig(), tenth / 10) for tenth in range(11)] == [1.0] * 11


def test_a_window_is_that_share_of_its_final_size() -> None:
    config = run_config(steps=8, seq_len=64, windows={"start": 0.25, "full": 0.5})
    model = config.model.model_copy(update={"window_pattern": "S", "short_window": 0.5, "num_layers": 2})
    shares = [Pace(config, 1).window_share(step) for step in range(9)]
    assert [model.window(0, share) for share in shares] == [8, 14, 20, 26, 32, 32, 32, 32, 32]
    assert [model.window(1, share) for share in shares] == [16, 28, 40, 52, 64, 64, 64, 64, 64]  # the last sees all


# --- growth -----------------------------------------------------------------------------------------------------


def stages_of(config: GrowthConfig, losses: list[float]) -> tuple[list[float], list[dict[str, Any]]]:
    """Share of every step of a run that loses `losses`, and the switches."""
    growth, shares = Growth(config, len(losses)), []
    for step, loss in enumerate(losses):
        shares.append(growth.advance(step))
        growth.observe(loss)
    return shares, growth.switches


HALVES = {"stages": (0.5, 1.0), "latest": (0.6,), "window": 0.05}  # of 100 steps: 60, and windows of 5


def test_a_flat_loss_is_a_plateau_after_two_windows() -> None:
    shares, switches = stages_of(GrowthConfig(**HALVES), [3.0] * 100)
    assert shares == [0.5] * 10 + [1.0] * 90
    assert switches == [{"step": 10, "share": 1.0, "reason": "plateau"}]


def test_a_falling_loss_is_none_and_the_stage_begins_at_the_latest() -> None:
    shares, switches = stages_of(GrowthConfig(**HALVES), [3.0 * 0.99**step for step in range(100)])
    assert shares == [0.5] * 60 + [1.0] * 40
    assert switches == [{"step": 60, "share": 1.0, "reason": "latest"}]


@pytest.mark.parametrize(("fall", "first"), [(0.0101, 60), (0.0099, 10)])
def test_the_plateau_begins_where_windows_fall_by_less_than_the_improvement(fall: float, first: int) -> None:
    """A loss that falls by `fall` over five steps, at every pace the same from one window of five to the next."""
    shares, _ = stages_of(GrowthConfig(**HALVES, improvement=0.01), [(1 - fall) ** (step / 5) for step in range(100)])
    assert shares.index(1.0) == first


def test_windows_average_so_that_a_noisy_but_falling_loss_is_no_plateau() -> None:
    noisy = [3.0 - 0.02 * step + (0.5 if step % 2 else -0.5) for step in range(100)]
    even = GrowthConfig(stages=(0.5, 1.0), latest=(0.6,), window=0.1)
    assert stages_of(even, noisy)[0].index(1.0) == 60
    single = GrowthConfig(stages=(0.5, 1.0), latest=(0.6,), window=0.001)  # at least one step
    assert stages_of(single, noisy)[0].index(1.0) == 2


@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_without_an_asked_improvement_nothing_is_a_plateau(slope: float) -> None:
    losses = [3.0 + slope * step for step in range(100)]
    shares, switches = stages_of(GrowthConfig(**HALVES, improvement=0.0), losses)
    assert shares == [0.5] * 60 + [1.0] * 40 and [row["reason"] for row in switches] == ["latest"]


def test_both_windows_lie_within_the_present_stage() -> None:
    config = GrowthConfig(stages=(0.25, 0.5, 1.0), latest=(0.5, 0.6), window=0.05)
    shares, switches = stages_of(config, [1.0] * 10 + [2.0] * 90)  # longer rows are harder: no plateau by itself
    assert shares == [0.25] * 10 + [0.5] * 10 + [1.0] * 80
    assert switches == [
        {"step": 10, "share": 0.5, "reason": "plateau"},
        {"step": 20, "share": 1.0, "reason": "plateau"},
    ]


def test_a_loss_that_falls_after_a_plateau_waits_for_its_latest_time() -> None:
    config = GrowthConfig(stages=(0.25, 0.5, 1.0), latest=(0.3, 0.6), window=0.05)
    _, switches = stages_of(config, [3.0] * 10 + [3.0 * 0.98**step for step in range(90)])
    assert [(row["step"], row["reason"]) for row in switches] == [(10, "plateau"), (60, "latest")]


def test_stages_that_are_due_at_once_are_all_recorded() -> None:
    shares, switches = stages_of(GrowthConfig(stages=(0.2, 0.4, 1.0), latest=(0.3, 0.4), improvement=0), [3.0] * 4)
    assert shares == [0.2, 0.2, 1.0, 1.0]
    assert switches == [
        {"step": 2, "share": 0.4, "reason": "latest"},
        {"step": 2, "share": 1.0, "reason": "latest"},
    ]


@pytest.mark.parametrize("steps", [100, 1000])
def test_the_latest_time_is_the_step_that_the_decimal_fraction_names(steps: int) -> None:
    late = {}
    for percent in range(1, 100):
        growth = Growth(GrowthConfig(stages=(0.5, 1.0), latest=(percent / 100,), improvement=0), steps)
        first = next(step for step in range(steps) if growth.advance(step) == 1)
        if first != percent * steps // 100:
            late[percent / 100] = first
    assert not late, f"latest: first step of {steps}"


def test_one_stage_never_switches() -> None:
    shares, switches = stages_of(GrowthConfig(), [3.0] * 30)
    assert shares == [1.0] * 30 and switches == []


# --- the pace of a run ------------------------------------------------------------------------------------------

LENGTHS = {"stages": [0.25, 0.5, 0.75, 1.0], "latest": [0.2, 0.4, 0.6], "improvement": 0.0}
ROWS = {"stages": [0.25, 1.0], "latest": [0.5], "improvement": 0.0}


def test_rows_and_lengths_are_cut_by_their_own_stages() -> None:
    pace = Pace(run_config(curriculum=LENGTHS, batch=ROWS), seed=1)
    cuts = []
    for step in range(10):
        cuts.append(pace.shape(step))
        pace.observe(3.0)
    assert cuts == [(2, 16), (2, 16), (2, 32), (2, 32), (2, 48), (8, 48)] + [(8, 64)] * 4
    assert Pace(run_config(), seed=1).shape(0) == (8, 64)


def test_a_plateau_moves_lengths_and_rows_alike_but_is_not_seen_across_a_switch_of_length() -> None:
    curriculum, batch = {"latest": [0.6], "window": 0.1}, {"latest": [0.9], "window": 0.2}
    stages = {"stages": [0.5, 1.0]}
    pace = Pace(run_config(curriculum=stages | curriculum, batch=stages | batch), seed=1)
    cuts = []
    for step in range(7):
        cuts.append(pace.shape(step))
        pace.observe(3.0)
    assert cuts == [(4, 32), (4, 32), (4, 64), (4, 64), (4, 64), (4, 64), (8, 64)]
    assert [(row["what"], row["step"], row["reason"]) for row in pace.switches(10)] == [
        ("seq_len", 2, "plateau"),
        ("batch_rows", 6, "plateau"),  # four steps at the new length, not four in all
    ]


def test_switches_are_told_up_to_a_step_in_order_with_share_and_reason() -> None:
    depth = {"start": 0.5, "full": 0.3}  # of four layers: 0.15 and 0.3, first reached at steps 2 and 3
    pace = Pace(run_config(layers=4, curriculum=LENGTHS, batch=ROWS, depth=depth), seed=1)
    for step in range(10):
        pace.shape(step)
        pace.observe(3.0)
    expected = [
        ("depth", 2, 0.75, "schedule"),
        ("seq_len", 2, 0.5, "latest"),
        ("depth", 3, 1.0, "schedule"),
        ("seq_len", 4, 0.75, "latest"),
        ("batch_rows", 5, 1.0, "latest"),
        ("seq_len", 6, 1.0, "latest"),
    ]
    for until in (0, 1, 2, 3, 5, 10):
        told = [(row["what"], row["step"], row["share"], row["reason"]) for row in pace.switches(until)]
        assert [step for _, step, *_ in told] == sorted(step for _, step, *_ in told)
        assert sorted(told) == sorted(row for row in expected if row[1] <= until)
    assert Pace(run_config(), seed=1).switches(10) == []


def test_only_what_changes_is_in_the_log() -> None:
    assert Pace(run_config(), seed=1).state(3, 8, 64) == {}
    depth, windows = {"start": 0.5, "full": 0.5}, {"start": 0.5, "full": 0.5}
    pace = Pace(run_config(curriculum=LENGTHS, batch=ROWS, depth=depth, windows=windows), seed=1)
    assert pace.state(0, *pace.shape(0)) == {"seq_len": 16, "batch_rows": 2, "active_layers": 1, "window_share": 0.5}
    assert pace.state(9, *pace.shape(9)) == {"seq_len": 64, "batch_rows": 8, "active_layers": 2, "window_share": 1.0}


def test_planned_tokens_are_those_of_stages_that_begin_at_the_latest() -> None:
    config = run_config(batch={"stages": [0.25, 0.5, 1.0], "latest": [0.2, 0.5], "improvement": 0.0})
    pace = Pace(config, seed=1)
    assert sum(pace.shape(step)[0] * 64 for step in range(10)) == config.planned_tokens == (2 * 2 + 3 * 4 + 5 * 8) * 64
    assert run_config(curriculum=LENGTHS).planned_tokens == run_config().planned_tokens == 10 * 8 * 64


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "stages", "latest", "message"),
    [
        ("curriculum", "[0.5, 0.25, 1]", "[0.2, 0.4]", "stages=[0.5, 0.25, 1.0]: give shares above 0 that rise to 1"),
        ("curriculum", "[0.5, 0.5, 1]", "[0.2, 0.4]", "stages=[0.5, 0.5, 1.0]: give shares above 0"),
        ("batch", "[0.25, 0.5]", "[0.2]", "stages=[0.25, 0.5]: give shares above 0"),
        ("batch", "[0, 1]", "[0.2]", "stages=[0.0, 1.0]: give shares above 0"),
        ("batch", "[]", "[]", "stages=[]: give shares above 0"),
        ("batch", "[0.5, 2]", "[0.2]", "stages=[0.5, 2.0]: give shares above 0"),
        ("curriculum", "[0.5, 1]", "[]", "latest=[]: give 1 rising fractions"),
        ("curriculum", "[1]", "[0.5]", "latest=[0.5]: give 0 rising fractions"),
        ("batch", "[0.25, 0.5, 1]", "[0.4, 0.2]", "latest=[0.4, 0.2]: give 2 rising fractions"),
        ("batch", "[0.5, 1]", "[0]", "latest=[0.0]: give 1 rising fractions"),
        ("batch", "[0.5, 1]", "[1]", "latest=[1.0]: give 1 rising fractions"),
        ("curriculum", "[0.5, 1]", "[0.61]", "the full length needs 40 % of the run, so start it by 0.6"),
    ],
)
def test_bad_stages_are_refused_in_one_line(section: str, stages: str, latest: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("smoke", [f"schedule.{section}.stages={stages}", f"schedule.{section}.latest={latest}"])
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("section", "latest"), [("curriculum", 0.6), ("batch", 0.99)])
def test_stages_may_begin_as_late_as_is_said(section: str, latest: float) -> None:
    config = load_config("smoke", [f"schedule.{section}.stages=[0.5, 1]", f"schedule.{section}.latest=[{latest}]"])
    assert getattr(config.schedule, section).latest == (latest,)


@pytest.mark.parametrize(
    ("ranks", "batch_rows", "first", "fits"),
    [(1, 2, 0.25, False), (1, 2, 0.5, True), (2, 4, 0.25, False), (2, 4, 0.5, True), (3, 6, 0.4, False)],
)
def test_the_first_rows_have_to_be_enough_for_every_rank(ranks: int, batch_rows: int, first: float, fits: bool) -> None:
    overrides = {
        "schedule.batch.stages": [first, 1],
        "schedule.batch.latest": [0.5],
        "train.batch_rows": batch_rows,
        "hardware.ranks": ranks,
    }
    if fits:
        assert load_config("smoke", overrides).schedule.batch.stages[0] == first
        return
    with pytest.raises(ConfigError, match=f"begins with {first}.*batch_rows={batch_rows}.*ranks={ranks}") as error:
        load_config("smoke", overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "setting",
    [
        "depth.start=0",
        "depth.full=0",
        "depth.drop=1",
        "windows.start=0",
        "windows.full=1.1",
        "batch.window=0",
        "batch.window=0.6",
        "batch.improvement=1",
    ],
)
def test_shares_outside_their_range_are_refused(setting: str) -> None:
    key, value = setting.split("=")
    with pytest.raises(ConfigError, match=f"schedule.{key}={value}: Input should be"):
        load_config("smoke", [f"schedule.{setting}"])
