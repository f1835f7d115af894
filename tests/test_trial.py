"""Steps that are timed in turn and bytes that are measured: against known durations, hand-made schedules, real runs."""

import itertools
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from gptlib import records, trial
from gptlib.accounting import memory_estimate
from gptlib.data.dataset import Dataset
from gptlib.device import Place
from gptlib.fields import RunConfig
from gptlib.train import build as build_arm
from gptlib.train import run_from_folder
from gptlib.trial import MAX_SECONDS, MIN_ROUNDS, PRECISION, Arm, step_bytes, time_steps

PLACE = Place(torch.device("cpu"))
Tiny = Callable[..., RunConfig]

# --- seconds: arms of known durations ---------------------------------------------------------------------------


class Machine:
    """A clock that only the fake arms move; whatever runs on it takes `slowness` times as long as it should."""

    def __init__(self, slowness: Callable[[float], float] = lambda now: 1.0) -> None:
        self.now, self.slowness = 0.0, slowness
        self.log: list[tuple[str, int, int]] = []  # arm, point, steps

    def arm(self, name: str, durations: dict[int, float]) -> Arm:
        def seconds(number: int, times: int) -> float:
            self.log.append((name, number, times))
            start = self.now
            for _ in range(times):
                self.now += durations[number] * self.slowness(self.now)
            return (self.now - start) / times

        return cast(Arm, SimpleNamespace(steps=sorted(durations), seconds=seconds))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """time_steps of two arms, given as {point: seconds}, on a machine."""

    def run(machine: Machine, a: dict[int, float], b: dict[int, float]) -> dict[str, Any]:
        monkeypatch.setattr(trial, "time", SimpleNamespace(perf_counter=lambda: machine.now))
        return time_steps([machine.arm("A", a), machine.arm("B", b)])

    return run


def test_known_durations_give_their_ratio(timed: Callable[..., dict[str, Any]]) -> None:
    answer = timed(Machine(), {9: 0.02}, {9: 0.05})
    assert answer["seconds"] == pytest.approx([0.02, 0.05]) and answer["ratio"] == pytest.approx(2.5)
    assert answer["low"] == pytest.approx(2.5) == answer["high"] and answer["rounds"] == MIN_ROUNDS


@pytest.mark.parametrize("drift", [0.05, 0.2])
def test_a_drift_of_the_machine_cancels(timed: Callable[..., dict[str, Any]], drift: float) -> None:
    """It gets slower by that share every second: the second of two blocks is 1.5 or 6 % slower."""
    answer = timed(Machine(lambda now: 1 + drift * now), {9: 0.02}, {9: 0.05})
    assert answer["ratio"] == pytest.approx(2.5, rel=0.01)
    assert answer["seconds"][1] / answer["seconds"][0] == pytest.approx(answer["ratio"])


@pytest.mark.parametrize("points", [1, 8])
def test_blocks_of_both_arms_alternate_at_every_point(timed: Callable[..., dict[str, Any]], points: int) -> None:
    """A B B A: at each point of a run, either arm goes first in every second round."""
    machine = Machine()
    durations = {k: 0.001 * (k + 1) for k in range(points)}
    rounds = timed(machine, durations, {k: 2 * seconds for k, seconds in durations.items()})["rounds"]
    blocks = machine.log[-2 * points * rounds :]
    pairs = [blocks[i : i + 2] for i in range(0, len(blocks), 2)]
    assert all({name for name, _, _ in pair} == {"A", "B"} and pair[0][1] == pair[1][1] for pair in pairs)
    for point in durations:
        first = [pair[0][0] for pair in pairs if pair[0][1] == point]
        assert len(first) == rounds and all(one != after for one, after in itertools.pairwise(first))
    warm = machine.log[: -2 * points * rounds]
    assert {(name, point) for name, point, _ in warm} == {(name, point) for name in "AB" for point in durations}


def test_a_block_is_long_enough_to_be_timed_and_both_are_alike_long(timed: Callable[..., dict[str, Any]]) -> None:
    machine = Machine()
    timed(machine, {0: 0.001}, {0: 0.004})
    assert set(machine.log[-2:]) == {("A", 0, 300), ("B", 0, 75)}
    machine = Machine()
    timed(machine, {0: 5.0}, {0: 0.004})
    assert set(machine.log[-2:]) == {("A", 0, 2), ("B", 0, 75)}, "at least two steps"


def test_a_step_that_changes_counts_as_its_mean_over_the_run(timed: Callable[..., dict[str, Any]]) -> None:
    growing = {5: 0.01, 15: 0.02, 25: 0.03, 35: 0.04}
    answer = timed(Machine(), {39: 0.05}, growing)
    assert answer["seconds"] == pytest.approx([0.05, 0.025]) and answer["ratio"] == pytest.approx(0.5)
    answer = timed(Machine(), growing, {k: 3 * seconds for k, seconds in growing.items()})
    assert answer["seconds"] == pytest.approx([0.025, 0.075])


@pytest.mark.parametrize("noise", [0.001, 0.02])
def test_a_trial_goes_on_until_the_ratio_is_known(timed: Callable[..., dict[str, Any]], noise: float) -> None:
    chance = random.Random(1)
    answer = timed(Machine(lambda now: math.exp(chance.gauss(0, noise))), {0: 0.1}, {0: 0.12})
    assert (answer["rounds"] > MIN_ROUNDS) == (noise > 0.01)
    assert answer["high"] / answer["ratio"] - 1 <= 1.01 * PRECISION
    assert answer["low"] <= answer["ratio"] <= answer["high"] and answer["ratio"] == pytest.approx(1.2, rel=0.01)


def test_a_hopeless_trial_ends_and_says_how_little_it_knows(timed: Callable[..., dict[str, Any]]) -> None:
    chance = random.Random(1)
    machine = Machine(lambda now: math.exp(chance.gauss(0, 1.0)))
    answer = timed(machine, {0: 0.1}, {0: 0.12})
    assert MAX_SECONDS < machine.now < 1.5 * MAX_SECONDS
    assert answer["high"] / answer["low"] - 1 > 4 * PRECISION
    assert answer["low"] < 1.2 < answer["high"]


def test_steps_of_a_minute_are_timed_twice(timed: Callable[..., dict[str, Any]]) -> None:
    """One round has no interval."""
    answer = timed(Machine(), {0: 100.0}, {0: 200.0})
    assert answer["rounds"] == 2 and answer["high"] == pytest.approx(2.0)


# --- arms: real steps -------------------------------------------------------------------------------------------

LONG = {"train.steps": 80, "train.batch_rows": 4, "model.num_layers": 4}


@pytest.fixture
def arm(tiny: Tiny, tiny_dataset: Dataset) -> Callable[..., Arm]:
    torch.set_num_threads(1)
    return lambda changes=None: Arm(tiny(LONG | (changes or {})), tiny_dataset, PLACE)


def test_an_arm_that_does_not_change_is_timed_at_one_point(arm: Callable[..., Arm]) -> None:
    only = arm({"schedule.warmup": 0.2, "schedule.momentum.warmup": 0.3})  # rates, but no shapes
    assert only.steps == [75] and only.batches[75].inputs.shape == (4, 256)


def stages(what: str, shares: list[float], latest: float) -> dict[str, Any]:
    return {f"schedule.{what}.stages": shares, f"schedule.{what}.latest": [latest]}


@pytest.mark.parametrize(
    ("schedule", "layers", "shares", "shapes"),
    [
        (
            {"schedule.depth.start": 0.5, "schedule.depth.full": 0.5, "schedule.depth.drop": 0.0},
            [2, 2, 3, 3, 4, 4, 4, 4],  # a third one at a quarter of the run, the last at half of it
            [1.0] * 8,
            [(4, 256)] * 8,
        ),
        (
            {"schedule.windows.start": 0.2, "schedule.windows.full": 0.8},
            [4] * 8,
            [0.2625, 0.3875, 0.5125, 0.6375, 0.7625, 0.8875, 1.0, 1.0],  # 0.2 at 0, 1 at 0.8: a straight line
            [(4, 256)] * 8,
        ),
        (stages("curriculum", [0.25, 1.0], 0.5), [4] * 8, [1.0] * 8, [(16, 64)] * 4 + [(4, 256)] * 4),
        (stages("batch", [0.5, 1.0], 0.25), [4] * 8, [1.0] * 8, [(2, 256)] * 2 + [(4, 256)] * 6),
    ],
    ids=["depth", "windows", "curriculum", "batch"],
)
def test_an_arm_that_changes_is_timed_along_its_run(
    arm: Callable[..., Arm],
    schedule: dict[str, Any],
    layers: list[int],
    shares: list[float],
    shapes: list[tuple[int, int]],
) -> None:
    """In the middle of each eighth, with the layers, windows, lengths and rows that it has there."""
    changing = arm(schedule)
    assert changing.steps == [5, 15, 25, 35, 45, 55, 65, 75]
    found = []
    for step in changing.steps:
        changing.step(step)
        found.append((len(changing.model.layers_on), changing.model.window_share, changing.batches[step].inputs.shape))
    assert [row[0] for row in found] == layers and [row[2] for row in found] == shapes
    assert [row[1] for row in found] == pytest.approx(shares)


def test_a_short_run_is_timed_at_each_of_its_steps(arm: Callable[..., Arm]) -> None:
    assert arm({"train.steps": 3, "schedule.windows.start": 0.5}).steps == [0, 1, 2]
    assert arm({"train.steps": 1}).steps == [0]


def test_what_is_timed_is_a_whole_step(arm: Callable[..., Arm]) -> None:
    """Every pass over the rows, the gradients, the update; afterwards no gradient is left."""
    whole = arm({"hardware.micro_rows": 1, "optim.grad_clip": 1.0})
    rows: list[int] = []
    whole.model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    before = {name: p.detach().clone() for name, p in whole.model.named_parameters()}
    assert whole.seconds(75, 2) > 0
    assert rows == [1] * 8
    changed = [name for name, p in whole.model.named_parameters() if not torch.equal(p, before[name])]
    assert {"embed.weight", "head.weight"} < set(changed) and all(p.grad is None for p in whole.model.parameters())
    assert any(name.startswith("blocks.3.") for name in changed)


# --- bytes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train.batch_rows": 8, "model.num_layers": 2},
        {"train.batch_rows": 8, "hardware.micro_rows": 2},
        {"optim.matrices": "adamw", "model.model_dim": 64, "model.activation": "swiglu"},
        {"optim.muon.normuon": True, "model.value_embeds": False},
    ],
    ids=str,
)
def test_bytes_are_those_of_the_estimate(tiny: Tiny, tiny_dataset: Dataset, changes: dict[str, Any]) -> None:
    config = tiny(changes)
    measured = step_bytes(config, tiny_dataset, PLACE)
    assert measured == pytest.approx(memory_estimate(config, tiny_dataset.vocab_size).total, rel=0.05)


def test_bytes_are_those_that_a_run_has_measured(
    tiny: Tiny, tiny_dataset: Dataset, tmp_path: Path, prepare_run: Callable[..., Path]
) -> None:
    config = tiny({"train.batch_rows": 3, "model.num_layers": 2})
    torch.set_num_threads(1)
    run = prepare_run(tmp_path, config)
    run_from_folder(run)
    mib = records.read_json(run / "result.json")["memory"]["tensor_mib"]
    assert step_bytes(config, tiny_dataset, PLACE) == pytest.approx(mib * 2**20, rel=0.001)


def test_more_than_the_device_has_is_no_number(
    tiny: Tiny, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trial, "build", fails)
    assert step_bytes(tiny(), tiny_dataset, PLACE) is None


def test_a_batch_that_fits_only_in_smaller_passes_does_not_fit(
    tiny: Tiny, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run would go on with half the rows a pass; what is asked for here is what all of them need at once."""

    def refuse(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def build(*args: Any) -> Any:
        model, optimizers = build_arm(*args)
        model.register_forward_pre_hook(refuse)
        return model, optimizers

    monkeypatch.setattr(trial, "build", build)
    assert step_bytes(tiny({"train.batch_rows": 2}), tiny_dataset, PLACE) is not None
    assert step_bytes(tiny({"train.batch_rows": 4, "hardware.micro_rows": 2}), tiny_dataset, PLACE) is not None
    assert step_bytes(tiny({"train.batch_rows": 4}), tiny_dataset, PLACE) is None


# --- questions and answers --------------------------------------------------------------------------------------


@pytest.fixture
def asked(tmp_path: Path, dataset_path: Path) -> Callable[..., Path]:
    """Writes a question."""

    def ask(what: str, *configs: RunConfig) -> Path:
        question: dict[str, Any] = {"what": what, "device": "cpu", "dataset": str(dataset_path)}
        question["configs"] = [config.model_dump(mode="json") for config in configs]
        records.write_json(tmp_path / f"{what}-question.json", question)
        return tmp_path / f"{what}-question.json"

    return ask


def answer_of(question: Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(question.with_name(question.stem + ".answer.json").read_text())
    return answer


def test_a_process_answers_how_many_bytes(asked: Callable[..., Path], tiny: Tiny, tiny_dataset: Dataset) -> None:
    config = tiny({"model.num_layers": 2, "model.model_dim": 32})
    question = asked("memory", config)
    subprocess.run([sys.executable, "-m", "gptlib.trial", str(question)], check=True, stdin=subprocess.DEVNULL)
    assert answer_of(question) == {"bytes": [step_bytes(config, tiny_dataset, PLACE)]}


def test_a_process_answers_how_many_seconds(asked: Callable[..., Path], tiny: Tiny) -> None:
    """The smoke run and one of four times the depth, in blocks and a trial that are shorter than usual."""
    smoke = {"model.num_layers": 2, "model.model_dim": 32, "train.steps": 24}
    question = asked("time", tiny(smoke), tiny(smoke | {"model.num_layers": 8}))
    code = "import pathlib, sys; from gptlib import trial; trial.BLOCK_SECONDS, trial.MAX_SECONDS = 0.05, 3; "
    code += "trial.main(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(question)], check=True, stdin=subprocess.DEVNULL)
    answer = answer_of(question)
    assert set(answer) == {"seconds", "ratio", "low", "high", "rounds"} and answer["rounds"] >= 2
    assert 0 < answer["low"] < answer["ratio"] < answer["high"]
    assert 1.5 < answer["ratio"] < 4, "four times the layers, the same head"
    first, second = answer["seconds"]
    assert 0 < first < second < 2 and second / first == pytest.approx(answer["ratio"])


def test_equal_arms_take_equal_time(asked: Callable[..., Path], tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "BLOCK_SECONDS", 0.02)
    monkeypatch.setattr(trial, "MAX_SECONDS", 2.0)
    question = asked("time", tiny(), tiny())
    trial.main(question)
    assert answer_of(question)["ratio"] == pytest.approx(1, rel=0.15)


def test_ranks_are_measured_by_the_share_of_one(asked: Callable[..., Path], tiny: Tiny, tiny_dataset: Dataset) -> None:
    """Two ranks of two rows each are as one of two, and not as one of four."""
    two, one = tiny({"train.batch_rows": 4, "hardware.ranks": 2}), tiny({"train.batch_rows": 2})
    question = asked("memory", two, one, tiny({"train.batch_rows": 4}))
    trial.main(question)
    both, alone, all_rows = answer_of(question)["bytes"]
    assert both == alone == step_bytes(one, tiny_dataset, PLACE) and all_rows > 1.5 * alone
    assert both == pytest.approx(memory_estimate(two, tiny_dataset.vocab_size).total, rel=0.05)


def test_ranks_with_a_growing_batch_have_their_share_of_it(
    asked: Callable[..., Path], tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []

    def timed(arms: list[Arm]) -> dict[str, Any]:
        shapes.append([{batch.inputs.shape for batch in arm.batches.values()} for arm in arms])
        return {"seconds": [1.0, 1.0]}

    monkeypatch.setattr(trial, "time_steps", timed)
    ranks = {"train.batch_rows": 8, "hardware.ranks": 2, "train.steps": 16}
    trial.main(asked("time", tiny(ranks), tiny(ranks | stages("batch", [0.25, 1.0], 0.5))))
    assert shapes == [[{(4, 256)}, {(1, 256), (4, 256)}]]
