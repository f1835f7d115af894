"""Two arms brought together: against the parameters of models on torch's meta device, torch's FLOP counter, counting.

The models of the property test have GPT-2's vocabulary and its sizes; none of them is given memory.
"""

import functools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gptlib.accounting import memory_estimate, planned_costs, run_flops
from gptlib.config import ConfigError, diff, load_config, with_changes
from gptlib.fields import ModelConfig, RunConfig, TrainConfig
from gptlib.matching import KNOBS, TOLERANCE, Knob, Match, Mode, confounders, match
from gptlib.model import GPT
from gptlib.schedules import Pace, rates

GPT2 = 50_257  # entries of the tokenizer
SMALL = 300


def parameters(config: RunConfig, vocab_size: int = GPT2) -> int:
    """Of the model itself."""
    return parameters_of_model(config.model, vocab_size)


@functools.cache
def parameters_of_model(config: ModelConfig, vocab_size: int) -> int:
    with torch.device("meta"):
        model = GPT(config, vocab_size)
    return sum(p.numel() for p in model.parameters())


def run_of(changes: dict[str, Any] | None = None, **model: Any) -> RunConfig:
    """GPT-2 small without biases, or something else; 1,000 steps of 8 rows."""
    sizes: dict[str, Any] = {"num_layers": 12, "model_dim": 768, "num_heads": 12, "seq_len": 1024}
    shape = ModelConfig.model_validate(sizes | {"value_embeds": False} | model)
    return with_changes(RunConfig(model=shape, train=TrainConfig(steps=1000, batch_rows=8)), changes or {})


def small(changes: dict[str, Any] | None = None, **model: Any) -> RunConfig:
    sizes = {"num_layers": 3, "model_dim": 64, "num_heads": 4, "seq_len": 128}
    return run_of(changes, **{**sizes, **model})


def refusal(variant: RunConfig, baseline: RunConfig, by: Mode, free: Knob = "", **options: Any) -> str:
    with pytest.raises(ConfigError) as error:
        match(variant, baseline, by, free, **{"vocab_size": SMALL, **options})
    said = str(error.value)
    assert said.startswith("match: ") and "\n" not in said
    return said


# --- parameters: a property of random variants ------------------------------------------------------------------

SIZES = {384: (8, 9, 10, 12), 512: (8, 10, 12), 640: (8, 10, 12), 768: (8, 12), 1024: (8, 12)}  # width: depths
VALUES: list[dict[str, Any]] = [
    {"value_embeds": False},
    {"value_embeds": True, "value_layers": (0,)},
    {"value_embeds": True, "value_layers": (1, 3), "value_tables": 1, "value_mix": "lambdas"},
    {"value_embeds": True, "value_layers": (0, 2, 4), "value_tables": 2},
]


def random_pair(seed: int) -> tuple[RunConfig, RunConfig]:
    """A baseline, and a variant of it that differs in up to five switches."""
    chance = random.Random(seed)
    width = chance.choice(list(SIZES))
    heads, depth = width // 64, chance.choice(SIZES[width])
    base: dict[str, Any] = {"model_dim": width, "num_heads": heads, "num_layers": depth, "value_embeds": False}
    base |= {"tied_head": width > 384 and chance.random() < 0.5, "mlp_ratio": chance.choice([2.7, 3.0, 4.0])}
    base |= {"bias": chance.random() < 0.3, "activation": chance.choice(["relu2", "gelu", "swiglu"])}
    changes: list[dict[str, Any]] = [
        {"activation": chance.choice(["relu", "silu", "gelu", "swiglu", "geglu"])},
        {"num_kv_heads": chance.choice([1, heads // 2 if heads % 2 == 0 else heads, heads])},
        {"num_heads": 2 * heads},
        {"bias": not base["bias"]},
        chance.choice(VALUES),
        {"tied_head": not base["tied_head"]},
        {"head_bias": True},
        {"norm": "layer", "norm_gain": True, "norm_bias": chance.random() < 0.5},
        {"norm_gain": True, "norm_placement": chance.choice(["pre", "post"])},
        {"num_layers": chance.choice([depth - 2, depth - 1, depth + 1, depth + 2])},
        {"attention_gate": True, "qk_gain": True},
        {"bigram_embeds": True, "bigram_rows": chance.choice([0, 1_000, 20_000])},
        {"skip_attention": (chance.randrange(4), 5)[: chance.choice([1, 2])]},
        {"position": chance.choice(["learned", "none"])},
        {"parallel_block": True},
        {"smear": True, "unet_skips": True, "x0_lambdas": True, "backout": True},
    ]
    changed = {key: value for change in chance.sample(changes, chance.randint(1, 5)) for key, value in change.items()}
    return run_of(**base), run_of(**(base | changed))


SEEDS = range(250)


@functools.cache
def outcome(seed: int, multiple: int = 0) -> Match | str:
    """The match of a random pair, or why there is none."""
    baseline, variant = random_pair(seed)
    try:
        return match(variant, baseline, "params", vocab_size=GPT2, multiple=multiple)
    except ConfigError as error:
        return str(error)


def matches(multiple: int) -> list[tuple[RunConfig, RunConfig, Match]]:
    found = [(random_pair(seed), outcome(seed, multiple)) for seed in SEEDS]
    return [(*pair, result) for pair, result in found if isinstance(result, Match)]


def test_two_hundred_random_variants_have_the_baselines_parameters() -> None:
    """To 0.5 %, and where any width will do to 0.02 %."""
    found, needed = [*matches(0), *matches(1)], 0
    assert len(found) >= 400
    for number, (baseline, variant, result) in enumerate(found):
        goal, tolerance = parameters(baseline), 0.005 if number < len(found) // 2 else 0.0002
        assert abs(parameters(result.config) / goal - 1) <= tolerance, diff(baseline, variant)
        assert set(diff(variant, result.config)) <= {"model.mlp_hidden"}
        assert result.knobs == tuple(diff(variant, result.config))
        assert (result.baseline["total"], result.variant["total"]) == (goal, parameters(result.config))
        needed += abs(parameters(variant) / goal - 1) > 0.005
    assert needed >= 200, "most of them were not equal before"


def test_no_other_width_is_nearer_where_any_will_do() -> None:
    """Each unit of width has equally many parameters, so the nearest is within half of that."""
    for baseline, variant, result in matches(1)[::4]:
        wider = with_changes(variant, {"model.mlp_hidden": result.config.model.mlp_dim + 1})
        unit = parameters(wider) - parameters(result.config)
        assert 2 * abs(parameters(result.config) - parameters(baseline)) <= unit


def test_a_random_variant_is_refused_only_where_the_rest_of_it_is_too_large() -> None:
    """Tables of values and pairs can outweigh all that the feed-forwards have to give."""
    refused = {seed: said for seed in SEEDS if isinstance(said := outcome(seed), str)}
    assert 10 <= len(refused) <= len(SEEDS) - 200
    assert refused.keys() == {seed for seed in SEEDS if isinstance(outcome(seed, 1), str)}
    for seed, said in refused.items():
        baseline, variant = random_pair(seed)
        assert parameters(with_changes(variant, {"model.mlp_hidden": 1})) > 1.005 * parameters(baseline)
        assert "free model.model_dim or model.num_layers, or take a larger model" in said


def test_the_random_variants_differ_in_all_they_can() -> None:
    changed = {key for b, v, _ in matches(0) for key in diff(b, v)}
    expected = (
        "activation num_kv_heads num_heads bias value_embeds value_layers value_tables value_mix tied_head head_bias"
    )
    expected += " norm norm_gain norm_bias norm_placement num_layers attention_gate qk_gain bigram_embeds bigram_rows"
    expected += " skip_attention position parallel_block smear unet_skips x0_lambdas backout"
    assert changed == {f"model.{key}" for key in expected.split()}
    both = {(b.model.model_dim, b.model.tied_head) for b, _, _ in matches(0)}
    assert {width for width, _ in both} == set(SIZES) and {tied for _, tied in both} == {False, True}


def test_widths_lie_on_the_coarsest_grid_that_is_fine_enough() -> None:
    """Found by trying them all: every matrix of the feed-forward grows by as much with each unit of width."""
    grids = set()
    for width in (16, 32, 64, 96, 128, 192, 256, 512, 1024):
        for change in ({"activation": "swiglu"}, {"num_kv_heads": 1}, {"bias": True, "activation": "geglu"}):
            baseline, variant = small(model_dim=width), small(model_dim=width, **change)
            goal = parameters(baseline, SMALL)
            first, second = (parameters(with_changes(variant, {"model.mlp_hidden": n}), SMALL) for n in (1, 2))
            off = [abs(first + (n - 1) * (second - first) - goal) for n in range(8 * width)]
            best = {grid: min(range(grid, 8 * width, grid), key=off.__getitem__) for grid in (64, 32, 16, 8, 4, 2, 1)}
            enough = [grid for grid, n in best.items() if off[n] <= 0.005 * goal]
            found = match(variant, baseline, "params", vocab_size=SMALL).config.model.mlp_dim
            assert found == best[enough[0]]
            grids.add(enough[0])
    assert grids >= {64, 32, 16, 8, 4, 2}


def test_swiglu_gets_two_thirds_of_the_width() -> None:
    """2 * 768 * 3072 = 3 * 768 * 2048, and no parameter is anywhere else."""
    result = match(run_of(activation="swiglu"), run_of(), "params", vocab_size=GPT2)
    assert result.config.model.mlp_hidden == 2048 and result.knobs == ("model.mlp_hidden",)
    assert parameters(result.config) == parameters(run_of())


def test_equal_arms_stay_as_they_are() -> None:
    variant = run_of(activation="gelu")
    for by in ("params", "flops", "tokens", "steps", "nothing"):
        result = match(variant, run_of(), by, vocab_size=GPT2)
        assert result.knobs == tuple(diff(variant, result.config)) and result.by == by
        assert result.config.model.mlp_dim == 3072 and result.config.train == variant.train
        assert result.baseline == result.variant == planned_costs(run_of(), GPT2)


@pytest.mark.parametrize("multiple", [128, 48, 1])
def test_a_width_is_a_multiple_of_what_is_asked(multiple: int) -> None:
    variant, baseline = run_of(num_kv_heads=3, activation="geglu"), run_of()
    width = match(variant, baseline, "params", vocab_size=GPT2, multiple=multiple).config.model.mlp_hidden
    assert width % multiple == 0
    ideal = 2048 + 2 * 768 * (768 - 192) / (3 * 768)  # what keys and values leave over, for three matrices
    assert abs(width - ideal) <= multiple / 2


@pytest.mark.parametrize("by", ["params", "flops"])
@pytest.mark.parametrize("knob", ["model.model_dim", "model.num_layers"])
@pytest.mark.parametrize(
    "change", [{"activation": "swiglu"}, {"num_kv_heads": 2, "bias": True}, {"head_bias": True}], ids=str
)
def test_width_and_depth_are_finished_by_the_hidden_width(by: Mode, knob: Knob, change: dict[str, Any]) -> None:
    baseline, variant = run_of(), run_of(**change)
    result = match(variant, baseline, by, knob, vocab_size=GPT2)
    turned = diff(variant, result.config)
    assert set(turned) <= {knob, "model.mlp_hidden"} and set(result.knobs) == set(turned)
    measure = parameters if by == "params" else functools.partial(run_flops, vocab_size=GPT2)
    off = measure(result.config) / measure(baseline) - 1
    assert abs(off) <= TOLERANCE[by]
    knobs = {knob: getattr(result.config.model, knob.removeprefix("model."))}
    coarse = with_changes(variant, knobs)
    step = 24 if knob == "model.model_dim" else 1  # two dims of a head, twelve heads
    for neighbour in (-step, step):
        other = with_changes(variant, {knob: knobs[knob] + neighbour})
        assert abs(measure(other) - measure(baseline)) >= abs(measure(coarse) - measure(baseline))
    assert ("model.mlp_hidden" in turned) == (abs(measure(coarse) / measure(baseline) - 1) > TOLERANCE[by])


def test_a_depth_that_fits_is_not_finished() -> None:
    """Twice the depth with a feed-forward of 1 / 8: 4 d^2 + 2 d (d / 2) = 5 d^2 instead of 12 d^2 a layer."""
    baseline, variant = run_of(), run_of(mlp_ratio=1.0)  # 6 d^2
    result = match(variant, baseline, "params", "model.num_layers", vocab_size=GPT2)
    assert diff(variant, result.config) == {"model.num_layers": (12, 24)} and result.knobs == ("model.num_layers",)


def test_a_depth_is_found_though_lists_of_layers_do_not_fit_every_depth() -> None:
    baseline = run_of(value_embeds=True, value_layers=(1, 5), value_tables=1)
    variant = with_changes(baseline, {"model.activation": "swiglu"})
    result = match(variant, baseline, "params", "model.num_layers", vocab_size=GPT2)
    assert 6 <= result.config.model.num_layers < 12
    assert parameters(result.config) == pytest.approx(parameters(baseline), rel=0.005)


def test_a_width_is_found_for_a_single_head() -> None:
    """Whose smallest steps are widths that no model has."""
    baseline = run_of(model_dim=128, num_heads=1)
    variant = with_changes(baseline, {"model.tied_head": True})
    result = match(variant, baseline, "params", "model.model_dim", vocab_size=SMALL)
    assert parameters(result.config, SMALL) == pytest.approx(parameters(baseline, SMALL), rel=0.005)


# --- FLOPs ------------------------------------------------------------------------------------------------------


def counted_flops(config: RunConfig, length: int, layers: tuple[int, ...] = ()) -> float:
    """Of a token of a row of `length`, forward and backward, by torch; the full square of attention, as we count it."""
    model, tokens = GPT(config.model, SMALL), torch.randint(0, SMALL, (1, length))
    model.layers_on = layers or model.layers_on
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens, tokens).backward()
    return float(counter.get_total_flops() / length)


def counted_run(config: RunConfig) -> float:
    """FLOPs of all steps, each with its own rows, their length and the layers that are active."""
    pace, total = Pace(config, 0), 0.0
    count = functools.cache(lambda length, layers: counted_flops(config, length, layers))
    for step in range(config.train.steps):
        rows, length = pace.shape(step)
        total += rows * config.model.seq_len * count(length, pace.layers(step, training=False))
    return total


FLOPS: list[dict[str, Any]] = [
    {"model.activation": "swiglu", "model.mlp_hidden": 300},
    {"model.num_layers": 5, "model.tied_head": True},
    {"model.skip_attention": [1], "model.num_kv_heads": 1},
    {"model.model_dim": 96},
    {"train.batch_rows": 20},
    {"schedule.depth.start": 0.4, "schedule.depth.full": 0.6, "schedule.depth.drop": 0.0},
    {"schedule.curriculum.stages": [0.25, 1.0], "schedule.curriculum.latest": [0.5]},
    {"schedule.batch.stages": [0.5, 1.0], "schedule.batch.latest": [0.3], "model.attention_gate": True},
]


@pytest.mark.parametrize("change", FLOPS, ids=str)
def test_runs_have_equal_flops_by_torchs_count(change: dict[str, Any]) -> None:
    baseline = small()
    variant = with_changes(baseline, change)
    result = match(variant, baseline, "flops", vocab_size=SMALL)
    assert result.knobs == ("train.steps",) and set(diff(variant, result.config)) == {"train.steps"}
    assert abs(counted_run(variant) / counted_run(baseline) - 1) > 0.02, "needs no match"
    assert counted_run(result.config) == pytest.approx(counted_run(baseline), rel=0.01)


def test_two_hundred_random_variants_have_the_baselines_flops() -> None:
    """By whichever knob; of steps there is always a number."""
    chance = random.Random(0)
    for seed in range(200):
        baseline, variant = random_pair(seed)
        result = match(variant, baseline, "flops", vocab_size=GPT2)
        assert run_flops(result.config, GPT2) == pytest.approx(run_flops(baseline, GPT2), rel=0.01)
        assert set(diff(variant, result.config)) <= {"train.steps"}
        knob: Knob = chance.choice(["model.mlp_hidden", "model.num_layers", "model.model_dim"])
        if knob == "model.mlp_hidden":  # attention and head may need more than all; depth and width find their way
            result = match(variant, run_of(num_layers=16, model_dim=1024, num_heads=16), "flops", knob, vocab_size=GPT2)
            goal = run_flops(run_of(num_layers=16, model_dim=1024, num_heads=16), GPT2)
            assert run_flops(result.config, GPT2) == pytest.approx(goal, rel=0.01)
            assert result.config.train == variant.train


def test_flops_that_few_steps_cannot_meet_are_refused_with_a_remedy() -> None:
    baseline = small({"train.steps": 10})
    said = refusal(with_changes(baseline, {"model.num_layers": 4}), baseline, "flops")
    assert "flops" in said and "1 % are allowed" in said and "train.steps=" in said
    assert "free model.mlp_hidden or model.model_dim or model.num_layers, or take a longer run" in said


# --- steps and tokens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        ({"train.batch_rows": 16}, 500),
        ({"train.batch_rows": 4}, 2000),
        ({"train.batch_rows": 5}, 1600),
        ({"model.seq_len": 2048}, 500),
        ({"model.seq_len": 256, "train.batch_rows": 32}, 1000),
        ({"train.steps": 123}, 1000),
        ({"schedule.batch.stages": [0.5, 1.0], "schedule.batch.latest": [0.4]}, 1250),
        ({"schedule.curriculum.stages": [0.25, 1.0], "schedule.curriculum.latest": [0.5]}, 1000),
    ],
    ids=str,
)
def test_tokens_are_equal_to_the_last_one(change: dict[str, Any], steps: int) -> None:
    baseline = run_of()
    variant = with_changes(baseline, change)
    result = match(variant, baseline, "tokens", vocab_size=GPT2)
    assert result.config.train.steps == steps
    assert result.baseline["tokens"] == result.variant["tokens"] == 1000 * 8 * 1024
    pace = Pace(result.config, 0)
    trained = sum(pace.shape(step)[0] for step in range(steps)) * result.config.model.seq_len
    assert trained == 1000 * 8 * 1024, "as the schedule makes the steps"
    assert set(diff(variant, result.config)) == ({"train.steps"} if steps != variant.train.steps else set())


@pytest.mark.parametrize(("rows", "steps"), [(16, 999), (7, 1000), (15, 1001)])
def test_tokens_that_cannot_be_equal_are_refused_with_a_remedy(rows: int, steps: int) -> None:
    baseline = run_of({"train.steps": steps})
    said = refusal(with_changes(baseline, {"train.batch_rows": rows}), baseline, "tokens", vocab_size=GPT2)
    assert "match: tokens: the variant is " in said and "0 % are allowed" in said and "take a longer run" in said
    below = 8 * steps // rows  # the last whole number of steps that has no more tokens
    assert f"train.steps={below}" in said or f"train.steps={below + 1}" in said


def test_steps_are_compared_and_never_turned() -> None:
    baseline = run_of()
    assert match(run_of(num_layers=2), baseline, "steps", vocab_size=GPT2).config == run_of(num_layers=2)
    said = refusal(run_of({"train.steps": 10_000}), baseline, "steps")
    assert "10000 steps against 1000" in said
    assert "nothing" in said or "match=" in said or "use " in said, "what to do about it"
    assert match(run_of({"train.steps": 10_000}), baseline, "nothing", vocab_size=GPT2).knobs == ()


# --- time -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [(0.1, 0.1), (0.1, 0.137), (0.2, 0.0613), (1e-3, 9.1e-4)])
def test_runs_take_equal_time(seconds: tuple[float, float]) -> None:
    baseline, variant = run_of(), run_of(activation="swiglu")
    result = match(variant, baseline, "time", vocab_size=GPT2, step_seconds=seconds)
    steps = result.config.train.steps
    assert steps == round(1000 * seconds[0] / seconds[1])
    assert steps * seconds[1] == pytest.approx(1000 * seconds[0], rel=0.02)
    assert result.baseline["trial_seconds"] == pytest.approx(1000 * seconds[0])
    assert result.variant["trial_seconds"] == pytest.approx(steps * seconds[1])


@pytest.mark.parametrize("by", ["time", "flops", "tokens"])
def test_a_run_of_other_length_keeps_the_shape_of_its_schedule(by: Mode) -> None:
    schedule = {"schedule.warmup": 0.1, "schedule.cooldown": 0.4, "schedule.final": 0.05}
    growth = {"schedule.depth.start": 0.5, "schedule.depth.drop": 0.0, "schedule.windows.start": 0.25}
    baseline = run_of(schedule | growth | {"optim.muon.weight_decay": 0.1, "schedule.weight_decay": "lr"})
    change = {"model.activation": "swiglu"} | ({"train.batch_rows": 16} if by == "tokens" else {})
    variant = with_changes(baseline, change)
    result = match(variant, baseline, by, vocab_size=GPT2, step_seconds=(0.1, 0.2))
    steps = result.config.train.steps
    assert steps < 900 and result.config.schedule == variant.schedule
    for share in (0.0, 0.05, 0.1, 0.5, 0.6, 0.8, 1.0):
        assert rates(result.config, share) == rates(baseline, share)
    peak = [step for step in range(steps) if rates(result.config, step / steps).lr == 1]
    assert (peak[0] / steps, peak[-1] / steps) == pytest.approx((0.1, 0.6), abs=1 / steps)


def test_time_needs_a_trial_and_enough_steps() -> None:
    baseline = run_of({"train.steps": 4})
    assert "step_seconds from a timing trial" in refusal(baseline, baseline, "time")
    said = refusal(baseline, baseline, "time", step_seconds=(0.1, 0.13))
    assert "2 % are allowed with train.steps=3" in said and "take a longer run" in said


# --- memory -----------------------------------------------------------------------------------------------------


def counted(size: Callable[[RunConfig], float], limit: int = 100) -> Callable[[RunConfig], float]:
    """A measurement that may be asked for so often: a search that does not end fails."""
    asked = [0]

    def measure(config: RunConfig) -> float:
        asked[0] += 1
        assert asked[0] <= limit, "the search does not end"
        return size(config)

    return measure


def rows_size(config: RunConfig) -> float:
    """A model of memory: what is there anyway, and a square for each row of a pass."""
    rows = config.train.batch_rows // config.hardware.ranks
    rows = min(rows, config.hardware.micro_rows or rows)
    return 1000.0 * config.model.num_layers + 10.0 * rows * (1 + config.model.dropout)


def test_memory_takes_the_largest_batch_that_needs_no_more() -> None:
    baseline = small({"train.batch_rows": 40})
    for change in ({"dropout": 0.5}, {"seq_len": 256}, {"activation": "swiglu"}, {"num_layers": 2}):
        variant = small({"train.batch_rows": 40}, **change)
        result = match(variant, baseline, "memory", vocab_size=SMALL)
        rows = result.config.train.batch_rows
        goal = memory_estimate(baseline, SMALL).total
        assert rows != 40 and result.knobs == ("train.batch_rows",)
        assert 0.95 * goal <= memory_estimate(result.config, SMALL).total <= goal
        more = with_changes(variant, {"train.batch_rows": rows + 1})
        assert memory_estimate(more, SMALL).total > goal
        assert result.variant["tensor_mib"] <= result.baseline["tensor_mib"]


@pytest.mark.parametrize(("dropout", "rows"), [(0.0, 300), (0.5, 200), (0.25, 240), (0.9, 157)])
def test_measured_memory_decides_where_it_is_given(dropout: float, rows: int) -> None:
    baseline, variant = small({"train.batch_rows": 300}), small(dropout=dropout)
    result = match(variant, baseline, "memory", vocab_size=SMALL, memory=counted(rows_size))
    assert result.config.train.batch_rows == rows
    assert rows_size(result.config) <= rows_size(baseline)


def test_a_batch_is_a_multiple_of_the_ranks() -> None:
    baseline = small({"train.batch_rows": 400, "hardware.ranks": 4})
    variant = with_changes(baseline, {"model.dropout": 0.25})
    result = match(variant, baseline, "memory", vocab_size=SMALL, memory=counted(rows_size))
    assert result.config.train.batch_rows == 320 and rows_size(result.config) == rows_size(baseline)
    variant = with_changes(baseline, {"model.dropout": 0.3})
    result = match(variant, baseline, "memory", vocab_size=SMALL, memory=counted(rows_size))
    assert result.config.train.batch_rows == 304, "not the 307 rows that fit"


def test_rows_of_a_pass_can_be_turned_and_the_batch_stays() -> None:
    changes = {"train.batch_rows": 600, "hardware.micro_rows": 150}
    baseline, variant = small(changes), small(changes, dropout=0.5)
    options: dict[str, Any] = {"vocab_size": SMALL, "memory": counted(rows_size)}
    result = match(variant, baseline, "memory", "hardware.micro_rows", **options)
    assert diff(variant, result.config) == {"hardware.micro_rows": (150, 100)}
    assert result.knobs == ("hardware.micro_rows",)


@pytest.mark.parametrize("knob", ["hardware.micro_rows", "train.batch_rows"])
def test_a_pass_that_cannot_grow_any_more_ends_the_search(knob: Knob) -> None:
    """More rows a pass than the batch has change nothing, nor does a larger batch in the same passes."""
    changes = {"train.batch_rows": 64, "hardware.micro_rows": 64}
    baseline, variant = small(changes, num_layers=4), small(changes)
    said = refusal(variant, baseline, "memory", knob, memory=counted(rows_size))
    assert "5 % are allowed" in said


def test_a_growing_batch_can_be_matched_by_memory() -> None:
    """Though a batch of two rows cannot begin with a quarter of them."""
    baseline = small({"train.batch_rows": 300})
    growth = {"schedule.batch.stages": [0.25, 1.0], "schedule.batch.latest": [0.3], "model.dropout": 0.5}
    variant = with_changes(baseline, growth)
    result = match(variant, baseline, "memory", vocab_size=SMALL, memory=counted(rows_size))
    assert result.config.train.batch_rows == 200


def test_memory_that_one_row_exceeds_is_refused_with_a_remedy() -> None:
    baseline = small({"train.batch_rows": 1})
    said = refusal(small(num_layers=6), baseline, "memory")
    assert "one row of the variant needs" in said and "give the baseline a larger train.batch_rows" in said


def test_memory_that_whole_rows_cannot_meet_is_refused_with_a_remedy() -> None:
    """Two rows for three: a third of the activations is left over."""
    variant, baseline = small(dropout=0.5, num_layers=1), small({"train.batch_rows": 5}, num_layers=1)
    said = refusal(variant, baseline, "memory", memory=counted(lambda config: rows_size(config) - 1000))
    assert "-10.00 % off, 5 % are allowed with train.batch_rows=3" in said and "take a larger batch" in said


# --- only checked -----------------------------------------------------------------------------------------------


def test_nothing_is_turned_where_it_is_only_checked() -> None:
    baseline = run_of()
    near, far = run_of(head_bias=True), run_of(activation="swiglu")
    assert match(near, baseline, "params", vocab_size=GPT2, turn=False).config == near
    assert "5 % are allowed" in refusal(far, baseline, "params", vocab_size=GPT2, turn=False)
    assert match(near, baseline, "flops", vocab_size=GPT2, turn=False).knobs == ()
    assert "1 % are allowed" in refusal(far, baseline, "flops", vocab_size=GPT2, turn=False)
    assert "2 % are allowed" in refusal(near, baseline, "time", step_seconds=(1.0, 1.03), turn=False)
    assert match(near, baseline, "time", vocab_size=GPT2, step_seconds=(1.0, 1.015), turn=False).config == near


@pytest.mark.parametrize("megabytes", [95.5, 100.0, 104.5])
def test_memory_that_is_only_checked_may_differ_either_way(megabytes: float) -> None:
    """Both arms have their own largest batch in a declared memory: either may leave more of it over."""
    baseline, variant = small(), small(dropout=0.5)
    sizes = {baseline: 100.0, variant: megabytes}
    options: dict[str, Any] = {"vocab_size": SMALL, "memory": lambda config: sizes[config], "turn": False}
    assert match(variant, baseline, "memory", **options).config == variant


@pytest.mark.parametrize("megabytes", [94.0, 106.0])
def test_memory_that_is_only_checked_is_refused_beyond_its_tolerance(megabytes: float) -> None:
    baseline, variant = small(), small(dropout=0.5)
    sizes = {baseline: 100.0, variant: megabytes}
    refusal(variant, baseline, "memory", memory=lambda config: sizes[config], turn=False)


# --- what is asked ----------------------------------------------------------------------------------------------


def test_unknown_modes_and_knobs_are_refused_with_what_there_is() -> None:
    config = run_of()
    mode: Any = "parameters"
    assert refusal(config, config, mode).endswith(
        "match: 'parameters'; use one of steps, tokens, params, flops, time, memory, nothing"
    )
    assert refusal(config, config, "params", "train.steps").endswith(
        "params cannot be reached by train.steps; free is one of model.mlp_hidden, model.model_dim, model.num_layers"
    )
    assert "free is one of empty" in refusal(config, config, "steps", "train.steps")


@pytest.mark.parametrize(("by", "knob"), [(by, knob) for by, knobs in KNOBS.items() for knob in knobs])
def test_every_knob_is_a_key_that_can_be_turned(by: Mode, knob: Knob) -> None:
    """Where the variant has too much of something: the knob is turned, and nothing but it and the hidden width."""
    changes = {"train.batch_rows": 400, "hardware.micro_rows": 100 if knob == "hardware.micro_rows" else 0}
    baseline = small({"train.steps": 4000, **changes})
    fault = {"train.batch_rows": 800} if by == "tokens" else {"model.activation": "swiglu", "model.mlp_hidden": 300}
    variant = with_changes(baseline, {} if not knob else fault)
    result = match(variant, baseline, by, knob, vocab_size=SMALL, step_seconds=(0.1, 0.13))
    turned = set(diff(variant, result.config))
    assert turned <= {knob, "model.mlp_hidden"} and set(result.knobs) == turned
    assert len(result.knobs) == len(turned) and (knob in turned) == bool(knob)


def test_the_costs_are_those_of_both_arms() -> None:
    baseline, variant = run_of(), run_of(activation="swiglu")
    result = match(variant, baseline, "params", vocab_size=GPT2, step_seconds=(0.1, 0.2))
    assert result.baseline == planned_costs(baseline, GPT2, 0.1)
    assert result.variant == planned_costs(result.config, GPT2, 0.2)


@pytest.mark.parametrize("preset", ["quickstart", "shakespeare_char", "nanogpt_gpt2_124m", "speedrun_2025"])
@pytest.mark.parametrize("change", [{"model.activation": "swiglu"}, {"model.num_kv_heads": 1}], ids=str)
def test_presets_can_be_matched(preset: str, change: dict[str, Any]) -> None:
    baseline = load_config(preset)
    variant = with_changes(baseline, change)
    vocab_size = GPT2 if baseline.data.tokenizer == "gpt2" else 65
    result = match(variant, baseline, "params", vocab_size=vocab_size)
    assert parameters(result.config, vocab_size) == pytest.approx(parameters(baseline, vocab_size), rel=0.005)


# --- confounders ------------------------------------------------------------------------------------------------

EQUAL = {"total": 100.0, "total_flops": 100.0, "tokens": 100.0, "trial_seconds": 100.0, "tensor_mib": 100.0}


@pytest.mark.parametrize(
    ("key", "name", "within", "beyond"),
    [
        ("total", "parameters", 0.4, 0.6),
        ("total_flops", "FLOPs", 0.9, 1.1),
        ("tokens", "tokens", 0.0, 0.001),
        ("trial_seconds", "time", 1.9, 2.1),
        ("tensor_mib", "memory", 4.9, 5.1),
    ],
)
def test_more_explains_a_better_arm_and_less_a_worse_one(key: str, name: str, within: float, beyond: float) -> None:
    for verdict, sign in (("better", 1), ("worse", -1)):
        assert confounders(EQUAL, EQUAL | {key: 100 + sign * within}, verdict) == {}
        ratio = 1 + sign * beyond / 100
        assert confounders(EQUAL, EQUAL | {key: 100 * ratio}, verdict) == {name: pytest.approx(ratio)}
        assert confounders(EQUAL, EQUAL | {key: 100 * (1 - sign * 0.5)}, verdict) == {}, "makes it only stronger"
    for verdict in ("equivalent within 0.01", "undecided"):
        assert (
            confounders(EQUAL, EQUAL | {key: 200.0}, verdict) == confounders(EQUAL, EQUAL | {key: 50.0}, verdict) == {}
        )


def test_every_explanation_is_named_with_its_ratio() -> None:
    variant = {"total": 150.0, "total_flops": 300.0, "tokens": 200.0, "trial_seconds": 90.0, "tensor_mib": 110.0}
    found = confounders(EQUAL, variant, "better")
    assert found == pytest.approx({"parameters": 1.5, "FLOPs": 3.0, "tokens": 2.0, "memory": 1.1})
    assert confounders(EQUAL, variant, "worse") == {"time": 0.9}


def test_what_the_knob_takes_with_it_is_free_by_declaration() -> None:
    longer = EQUAL | {"total_flops": 1.2 * EQUAL["total_flops"], "tokens": 1.2 * EQUAL["tokens"], "total": 130.0}
    assert confounders(EQUAL, longer, "better", ["train.steps"]) == {"parameters": pytest.approx(1.3)}
    assert set(confounders(EQUAL, longer, "better", ["model.mlp_hidden"])) == {"parameters", "FLOPs", "tokens"}


def test_times_count_only_from_a_trial() -> None:
    shared, trial = {"time_seconds": 100.0}, {"trial_seconds": 100.0}
    assert confounders(shared, {"time_seconds": 150.0}, "better") == {}
    assert confounders(shared | trial, {"time_seconds": 150.0, "trial_seconds": 101.0}, "better") == {}
    found = confounders(shared | trial, {"time_seconds": 80.0, "trial_seconds": 110.0}, "better")
    assert found == {"time": pytest.approx(1.1)}


@pytest.mark.parametrize("unknown", [None, 0.0, float("nan"), float("inf")])
def test_what_is_not_known_explains_nothing(unknown: float | None) -> None:
    assert confounders({"total": unknown, "tokens": 1.0}, {"total": 5.0, "tokens": 2.0}, "better") == {"tokens": 2.0}
    assert confounders({"total": 5.0}, {"total": unknown}, "worse") == {}
    assert confounders({}, {"total": 5.0}, "better") == {}


def test_a_match_leaves_its_own_quantity_out_of_the_explanations() -> None:
    """And what equal parameters leave free is named: a gated feed-forward of equal size has as many FLOPs."""
    result = match(run_of(num_layers=6), run_of(), "flops", vocab_size=GPT2)
    assert set(confounders(result.baseline, result.variant, "better")) == {"tokens"}
    assert set(confounders(result.baseline, result.variant, "worse")) == {"parameters", "memory"}
    result = match(run_of(activation="swiglu"), run_of(), "params", vocab_size=GPT2)
    assert set(confounders(result.baseline, result.variant, "better")) == {"memory"}
