"""The two arms of an ablation: what is measured is kept, what differs is declared, what is tuned is tuned alike."""

import dataclasses
import math
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptlib import records
from gptlib.accounting import memory_estimate
from gptlib.config import ConfigError, diff, with_changes
from gptlib.data.dataset import Dataset
from gptlib.fields import RunConfig
from gptlib.launch import KEEP_MEMORY, Slots, slot_names
from gptlib.matching import Match, match
from gptlib.study import arms as arms_module
from gptlib.study.arms import Arms, GridPoint, Trial, arms, best_point, idle
from gptlib.study.hypothesis import Ablation

Tiny = Callable[..., RunConfig]
MIB = 2**20


def ablation(change: dict[str, Any], **fields: Any) -> Ablation:
    texts = {"hypothesis": "The loss is another one.", "why": "To see what is made of it."}
    first = next(iter(change))
    return Ablation.model_validate(
        {"variant": "other", "independent_variable": first, "change": change, **texts, **fields}
    )


GELU = {"model.activation": "gelu"}


def rows_of_a_pass(config: RunConfig) -> int:
    rows = config.train.batch_rows // config.hardware.ranks
    return min(rows, config.hardware.micro_rows or rows)


class Answers:
    """In place of the process that measures: answers at once, and knows what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[RunConfig]]] = []
        self.seconds, self.interval = [0.1, 0.08], 1.001
        self.mib: Callable[[RunConfig], float] = lambda config: 10 + 2 * rows_of_a_pass(config)

    def __call__(self, trial: Trial, what: str, question: Path) -> None:
        configs = [RunConfig.model_validate(config) for config in records.read_json(question)["configs"]]
        self.asked.append((what, configs))
        assert len(self.asked) <= 60, "the search does not end"
        ratio = self.seconds[1] / self.seconds[0]
        answers: dict[str, Any] = {
            "time": {"seconds": self.seconds, "ratio": ratio, "low": ratio / self.interval, "rounds": 10}
            | {"high": ratio * self.interval},
            "memory": {"bytes": [MIB * self.mib(config) for config in configs]},
        }
        records.write_json(question.with_suffix(".answer.json"), answers[what])


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    stand_in = Answers()
    monkeypatch.setattr(Trial, "_run", lambda *args: stand_in(*args))
    return stand_in


@pytest.fixture
def made(outputs: Path, dataset_path: Path) -> Callable[..., Arms]:
    """The arms of an ablation; losses by the name of a point, None where there is none."""

    def make(
        asked: Ablation,
        base: RunConfig,
        losses: Callable[[str, RunConfig], float | None] = lambda name, config: None,
        device: str = "cpu",
        say: Callable[[str], None] = lambda line: None,
    ) -> Arms:
        return arms(asked, base, dataset_path, outputs, device, losses, say)

    return make


# --- applied and matched ----------------------------------------------------------------------------------------


def test_a_change_is_applied_and_nothing_else(made: Callable[..., Arms], tiny: Tiny, answers: Answers) -> None:
    base = tiny()
    for mode in ("steps", "nothing", "tokens", "flops"):
        both = made(ablation(GELU, match=mode), base)
        assert both.baseline == base and diff(base, both.variant) == {"model.activation": ("relu2", "gelu")}
        assert both.match.by == mode and both.match.knobs == () and both.grid == () and both.trial is None
    assert not answers.asked


def test_what_is_matched_differs_too(made: Callable[..., Arms], tiny: Tiny) -> None:
    base = tiny({"train.steps": 100})
    both = made(ablation({"model.activation": "swiglu"}, match="params"), base)
    assert (
        set(diff(base, both.variant))
        == {"model.activation", "model.mlp_hidden"}
        == {
            "model.activation",
            *both.match.knobs,
        }
    )
    both = made(ablation({"train.batch_rows": "x1/2"}, match="tokens"), base)
    assert diff(base, both.variant) == {"train.batch_rows": (2, 1), "train.steps": (100, 200)}


def test_a_knob_that_is_changed_is_left_as_declared(made: Callable[..., Arms], tiny: Tiny) -> None:
    """Twice the steps of half the rows have equal tokens as they are."""
    base = tiny({"train.steps": 100})
    both = made(ablation({"train.batch_rows": "x1/2", "train.steps": "x2"}, match="tokens"), base)
    assert diff(base, both.variant) == {"train.batch_rows": (2, 1), "train.steps": (100, 200)}
    with pytest.raises(ConfigError, match="match: tokens: the variant is \\+50.00 % off"):
        made(ablation({"train.batch_rows": "x1/2", "train.steps": "x3"}, match="tokens"), base)


@pytest.mark.parametrize("width", [40, 100, 200, 300])
def test_a_width_that_is_declared_is_not_what_a_match_is_finished_with(
    made: Callable[..., Arms], tiny: Tiny, width: int
) -> None:
    """It is kept, or there is no match."""
    base = tiny({"model.model_dim": 64, "model.num_layers": 2})
    asked = ablation({"model.mlp_hidden": width}, match="params", free="model.model_dim")
    try:
        both = made(asked, base)
    except ConfigError as error:
        assert "params" in str(error)
    else:
        assert both.variant.model.mlp_hidden == width


def test_an_undeclared_difference_stops_it_with_every_key(
    made: Callable[..., Arms], tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a match turned more than its knob."""

    def careless(variant: RunConfig, *args: Any, **options: Any) -> Match:
        found = match(variant, *args, **options)
        changed = with_changes(found.config, {"eval.every": 1, "optim.muon.lr": 0.5, "model.mlp_hidden": 77})
        return dataclasses.replace(found, config=changed)

    monkeypatch.setattr(arms_module, "match", careless)
    with pytest.raises(ConfigError) as error:
        made(ablation(GELU), tiny())
    said = str(error.value)
    assert "differs outside its declared change" in said and "\n" not in said
    for part in ("eval.every: 2 -> 1", "optim.muon.lr: 0.04 -> 0.5", "model.mlp_hidden: 0 -> 77"):
        assert part in said
    assert "model.activation" not in said


@pytest.mark.parametrize("mode", ["steps", "params", "nothing"])
def test_a_change_without_effect_stops_it(made: Callable[..., Arms], tiny: Tiny, mode: str) -> None:
    with pytest.raises(ConfigError, match=r"has no effect: the baseline has this model\.activation already"):
        made(ablation({"model.activation": "relu2"}, match=mode), tiny())


# --- time -------------------------------------------------------------------------------------------------------


def test_the_steps_that_a_trial_gives_are_kept(made: Callable[..., Arms], tiny: Tiny, answers: Answers) -> None:
    """A rerun is the same, though the machine is not."""
    base, asked = tiny({"train.steps": 100}), ablation(GELU, match="time")
    both = made(asked, base)
    assert diff(base, both.variant) == {"model.activation": ("relu2", "gelu"), "train.steps": (100, 125)}
    assert [what for what, _ in answers.asked] == ["time"]
    assert answers.asked[0][1] == [base, asked.apply(base)], "both arms as they are before the match"
    assert both.trial is not None and both.trial["ratio"] == pytest.approx(0.8)
    assert both.match.baseline["trial_seconds"] == pytest.approx(10) == both.match.variant["trial_seconds"]
    answers.seconds = [0.1, 0.3]
    assert made(asked, base) == both and len(answers.asked) == 1


def test_a_trial_serves_every_length_of_a_run_and_no_other_change(
    made: Callable[..., Arms], tiny: Tiny, answers: Answers
) -> None:
    asked, base = ablation(GELU, match="time"), tiny({"train.steps": 100})
    made(asked, base)
    longer = made(asked, tiny({"train.steps": 400, "eval.every": 7}))
    assert longer.variant.train.steps == 500 and len(answers.asked) == 1
    others: list[tuple[Ablation, RunConfig, str]] = [
        (asked, tiny({"train.steps": 100, "train.batch_rows": 4}), "cpu"),
        (asked, tiny({"train.steps": 100, "model.num_layers": 2}), "cpu"),
        (asked, tiny({"train.steps": 100, "hardware.threads": 2}), "cpu"),
        (ablation({"model.activation": "silu"}, match="time"), base, "cpu"),
        (asked, base, "mps"),
    ]
    for count, (other, config, device) in enumerate(others, start=2):
        made(other, config, device=device)
        assert len(answers.asked) == count


def test_a_trial_belongs_to_the_numeric_code(
    made: Callable[..., Arms], tiny: Tiny, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, base = ablation(GELU, match="time"), tiny({"train.steps": 100})
    made(asked, base)
    monkeypatch.setattr(records, "numeric_source_hash", lambda: "another")
    made(asked, base)
    assert len(answers.asked) == 2


@pytest.mark.parametrize(("interval", "known"), [(1.001, True), (1.05, False)])
def test_it_is_said_how_well_the_ratio_is_known(
    made: Callable[..., Arms], tiny: Tiny, answers: Answers, interval: float, known: bool
) -> None:
    said: list[str] = []
    answers.interval = interval
    made(ablation(GELU, match="time"), tiny({"train.steps": 100}), say=said.append)
    (line,) = said
    assert "0.800 times the baseline's" in line and f"{100 * (interval - 1):.1f} %" in line
    assert ("not known to 2 %" in line) == (not known)


# --- memory -----------------------------------------------------------------------------------------------------


def per_row(gelu: float, other: float) -> Callable[[RunConfig], float]:
    """A model of memory, MiB: 10 of weights, and what each row of a pass takes with GELU and with something else."""
    return lambda config: 10 + rows_of_a_pass(config) * (gelu if config.model.activation == "gelu" else other)


@pytest.mark.parametrize(
    ("gelu", "other", "rows"),
    [(3.0, 2.0, (45, 30)), (1.0, 2.0, (45, 90)), (2.9, 2.0, (45, 31)), (3.0, 2.1, (42, 30)), (2.0, 2.15, (41, 45))],
)
def test_both_arms_take_their_largest_batch_in_a_declared_memory(
    made: Callable[..., Arms], tiny: Tiny, answers: Answers, gelu: float, other: float, rows: tuple[int, int]
) -> None:
    """100 MiB hold 45 rows of 2 and 30 of 3; which arm leaves less of it over does not matter."""
    answers.mib = per_row(gelu, other)
    both = made(ablation(GELU, match="memory", memory_mib=100.0), tiny())
    assert (both.baseline.train.batch_rows, both.variant.train.batch_rows) == rows
    assert diff(tiny(), both.baseline) == {"train.batch_rows": (2, rows[0])}
    assert set(diff(both.baseline, both.variant)) == {"model.activation", "train.batch_rows"}
    count = len(answers.asked)
    assert made(ablation(GELU, match="memory", memory_mib=100.0), tiny()) == both and len(answers.asked) == count


def test_largest_batches_are_shared_evenly_by_the_ranks(
    made: Callable[..., Arms], tiny: Tiny, answers: Answers
) -> None:
    answers.mib = per_row(3.0, 2.0)
    base = tiny({"train.batch_rows": 8, "hardware.ranks": 4})
    both = made(ablation(GELU, match="memory", memory_mib=100.0), base)
    assert (both.baseline.train.batch_rows, both.variant.train.batch_rows) == (180, 120)


def test_without_a_declared_memory_the_baselines_counts(
    made: Callable[..., Arms], tiny: Tiny, answers: Answers
) -> None:
    answers.mib = per_row(3.0, 2.0)
    base = tiny({"train.batch_rows": 60})
    both = made(ablation(GELU, match="memory"), base)
    assert both.baseline == base and diff(base, both.variant)["train.batch_rows"] == (60, 40)
    assert both.match.knobs == ("train.batch_rows",)
    assert {what for what, _ in answers.asked} == {"memory"} and all(len(c) == 1 for _, c in answers.asked)


def test_rows_of_a_pass_are_turned_where_a_batch_has_several_passes(
    made: Callable[..., Arms], tiny: Tiny, answers: Answers
) -> None:
    answers.mib = per_row(3.0, 2.0)
    base = tiny({"train.batch_rows": 600, "hardware.micro_rows": 10})
    both = made(ablation(GELU, match="memory", memory_mib=100.0), base)
    assert (both.baseline.hardware.micro_rows, both.variant.hardware.micro_rows) == (45, 30)
    assert both.baseline.train == base.train == both.variant.train


def test_a_memory_that_holds_the_whole_batch_ends_the_search(
    made: Callable[..., Arms], tiny: Tiny, answers: Answers
) -> None:
    """All 8 rows of the batch in one pass: more of them are asked for by nobody."""
    answers.mib = per_row(2.05, 2.0)
    base = tiny({"train.batch_rows": 8, "hardware.micro_rows": 4})
    both = made(ablation(GELU, match="memory", memory_mib=100.0), base)
    assert rows_of_a_pass(both.baseline) == rows_of_a_pass(both.variant) == 8


def test_a_growing_batch_gets_its_largest_too(made: Callable[..., Arms], tiny: Tiny, answers: Answers) -> None:
    """Though one row cannot begin with half of it."""
    change = {"schedule.batch.stages": [0.5, 1.0], "schedule.batch.latest": [0.4]}
    both = made(ablation(change, match="memory", memory_mib=100.0), tiny())
    assert (both.baseline.train.batch_rows, both.variant.train.batch_rows) == (45, 45)


def test_rows_of_a_pass_that_are_declared_are_kept(made: Callable[..., Arms], tiny: Tiny, answers: Answers) -> None:
    """Or there is no match: passes of 2 rows cannot fill the memory of 8."""
    try:
        both = made(ablation({"hardware.micro_rows": 2}, match="memory"), tiny({"train.batch_rows": 8}))
    except ConfigError as error:
        assert "memory" in str(error)
    else:
        assert both.variant.hardware.micro_rows == 2


def test_a_memory_that_holds_nothing_is_refused(made: Callable[..., Arms], tiny: Tiny, answers: Answers) -> None:
    with pytest.raises(ConfigError, match=r"memory_mib=11: not even one row fits"):
        made(ablation(GELU, match="memory", memory_mib=11.0), tiny())


# --- the process that measures ----------------------------------------------------------------------------------


def test_a_process_measures_or_says_why_not(
    outputs: Path, dataset_path: Path, tiny: Tiny, tiny_dataset: Dataset, own_slots: None
) -> None:
    """It holds the machine while it does, and gives it back."""
    trial = Trial(outputs, dataset_path, "cpu", lambda line: None)
    estimate = memory_estimate(tiny(), tiny_dataset.vocab_size).total
    assert trial.bytes(tiny()) == pytest.approx(estimate, rel=0.05)
    with pytest.raises(ConfigError) as error:
        trial.bytes(tiny({"data.rows": "stream", "model.seq_len": 300_000, "model.position": "none"}))
    said = str(error.value)
    assert "the memory trial failed (" in said and "no train row of model.seq_len=300000" in said and "\n" not in said
    question = Path(said.rpartition("its question is ")[2])
    assert records.read_json(question)["what"] == "memory" and not question.with_suffix(".answer.json").exists()
    slots = Slots("cpu")
    held = slots.take(len(slot_names("cpu")))
    assert held == slot_names("cpu")
    slots.give(held)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What processes are started with; none is. Each answers that a step takes a second."""
    calls: list[dict[str, Any]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        free = Slots("cpu").take(1)
        calls.append({"command": command, "free": free, **options})
        answer = {"seconds": [1.0, 1.0], "ratio": 1.0, "low": 1.0, "high": 1.0, "rounds": 10}
        records.write_json(Path(command[-1]).with_suffix(".answer.json"), answer)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_the_machine_is_its_own_while_it_is_timed(
    made: Callable[..., Arms], tiny: Tiny, own_slots: None, started: list[dict[str, Any]]
) -> None:
    made(ablation(GELU, match="time"), tiny())
    assert [call["free"] for call in started] == [[]]
    assert "gptlib.trial" in started[0]["command"]


def test_steps_are_timed_with_the_allocator_that_runs_have(
    made: Callable[..., Arms], tiny: Tiny, own_slots: None, started: list[dict[str, Any]]
) -> None:
    """Which is given by the environment (launch.py: some 8 % of a step); with another one, other steps are timed."""
    made(ablation(GELU, match="time"), tiny())
    environment = started[0].get("env") or os.environ
    assert KEEP_MEMORY.items() <= dict(environment).items()


# --- tuning: the grid -------------------------------------------------------------------------------------------

RATES = {"optim.muon.lr": ["x1/2", "x1", "x2"], "optim.adamw.matrix_lr": [0.001, 0.003, 0.009]}
ADAMW = {"optim.matrices": "adamw"}


def test_each_arm_has_its_own_grid_of_what_it_uses(made: Callable[..., Arms], tiny: Tiny) -> None:
    base = tiny({"optim.muon.lr": 0.06})
    asked: list[tuple[str, RunConfig]] = []
    both = made(ablation(ADAMW, variant="adamw", tune=RATES), base, lambda *point: asked.append(point))
    assert [(point.name, point.config) for point in both.grid] == asked
    begun = [("baseline", rate) for rate in ("0.03", "0.06", "0.12")]
    begun += [("adamw", rate) for rate in ("0.001", "0.003", "0.009")]
    for (name, _), (first, last) in zip(asked, begun, strict=True):
        assert name.startswith(f"{first}.") and name.endswith(f"lr-{last}")
    assert [point.values for point in both.points("baseline")] == [{"optim.muon.lr": lr} for lr in (0.03, 0.06, 0.12)]
    assert [point.values for point in both.points("variant")] == [
        {"optim.adamw.matrix_lr": lr} for lr in (0.001, 0.003, 0.009)
    ]
    for point in both.grid:
        arm = both.baseline if point.arm == "baseline" else both.variant
        assert point.config == with_changes(arm, point.values)
    assert both.pending == list(both.grid) and both.baseline == base, "nothing is chosen before all are known"


def test_several_keys_are_tried_in_every_combination(made: Callable[..., Arms], tiny: Tiny) -> None:
    tune = {"optim.lr_scale": [0.5, 1.0, 2.0], "optim.muon.weight_decay": [0.0, 0.1]}
    both = made(ablation(GELU, tune=tune), tiny())
    for arm in ("baseline", "variant"):
        values = [tuple(point.values.values()) for point in both.points(arm)]
        assert values == [(s, w) for s in (0.5, 1.0, 2.0) for w in (0.0, 0.1)]
    assert len({point.name for point in both.grid}) == 12
    assert len({point.config for point in both.grid}) == 12


@pytest.mark.parametrize(
    "tune",
    [
        {"optim.lr_scale": ["x1/3", "x2/3", "x1"]},
        {"optim.muon.orthogonalize": ["convergent", "newton_schulz"], "optim.muon.nesterov": [True, False]},
        {"optim.adamw.eps": [1e-10, 1e-8]},
        {"optim.adamw.betas": [[0.9, 0.95], [0.8, 0.95]]},
        {key: ["x1/3", "x1"] for key in ("optim.adamw.embed_lr", "optim.adamw.head_lr", "optim.adamw.scalar_lr")},
    ],
    ids=lambda tune: " ".join(tune),
)
def test_points_are_named_as_folders_can_be(made: Callable[..., Arms], tiny: Tiny, tune: dict[str, Any]) -> None:
    names = [
        point.name for point in made(ablation(GELU, variant="a_variant_of_30_letters_or_so", tune=tune), tiny()).grid
    ]
    assert len(set(names)) == len(names) >= 4
    assert [name for name in names if not records.NAME.fullmatch(name)] == []


def test_points_of_other_settings_have_other_names(made: Callable[..., Arms], tiny: Tiny) -> None:
    """Else two ablations of a study would move the trials of each other's baseline aside, for ever."""
    first = made(ablation(GELU, tune={"optim.muon.weight_decay": [0.0, 0.1]}), tiny()).points("baseline")
    second = made(ablation(GELU, tune={"optim.adamw.weight_decay": [0.0, 0.1]}), tiny()).points("baseline")
    named: dict[str, RunConfig] = {}
    for point in (*first, *second):
        assert named.setdefault(point.name, point.config) == point.config, point.name


def test_ablations_with_one_grid_share_the_trials_of_the_baseline(made: Callable[..., Arms], tiny: Tiny) -> None:
    tune = {"optim.muon.lr": ["x1/2", "x1"]}
    gelu = made(ablation(GELU, variant="gelu", tune=tune), tiny())
    silu = made(ablation({"model.activation": "silu"}, variant="silu", tune=tune), tiny())
    assert gelu.points("baseline") == silu.points("baseline")
    assert {p.name for p in gelu.points("variant")}.isdisjoint({p.name for p in silu.points("variant")})


def test_a_baseline_of_other_memory_has_trials_of_its_own(
    made: Callable[..., Arms], tiny: Tiny, answers: Answers
) -> None:
    tune = {"optim.muon.lr": ["x1/2", "x1"]}
    both = made(ablation(GELU, variant="gelu", match="memory", memory_mib=100.0, tune=tune), tiny())
    own = [point.name.startswith("gelu.baseline.") for point in both.grid]
    assert own == [True, True, False, False] and all(point.name.startswith("gelu.") for point in both.grid)
    assert {point.config.train.batch_rows for point in both.grid} == {45}


def test_a_tuning_has_the_matched_model(made: Callable[..., Arms], tiny: Tiny) -> None:
    asked = ablation({"model.activation": "swiglu"}, match="params", tune={"optim.muon.lr": ["x1/2", "x1"]})
    both = made(asked, tiny())
    widths = {point.config.model.mlp_hidden for point in both.points("variant")}
    assert widths == {both.variant.model.mlp_hidden} != {0}


@pytest.mark.parametrize(
    ("key", "muon", "adamw"),
    [
        ("optim.muon.lr", False, True),
        ("optim.muon.weight_decay", False, True),
        ("optim.adamw.matrix_lr", True, False),
        ("optim.adamw.embed_lr", False, False),
        ("optim.lr_scale", False, False),
        ("schedule.warmup", False, False),
    ],
)
def test_what_the_other_optimizer_has_is_idle(tiny: Tiny, key: str, muon: bool, adamw: bool) -> None:
    assert (idle(key, tiny()), idle(key, tiny(ADAMW))) == (muon, adamw)


# --- tuning: the choice -----------------------------------------------------------------------------------------

THREE = {"optim.muon.lr": [0.01, 0.02, 0.03]}


def tuned(made: Callable[..., Arms], tiny: Tiny, baseline: list[float | None], variant: list[float | None]) -> Arms:
    """The arms where three rates have these losses."""
    losses = dict(zip((0.01, 0.02, 0.03), zip(baseline, variant, strict=True), strict=True))

    def loss(name: str, config: RunConfig) -> float | None:
        return losses[config.optim.muon.lr][not name.startswith("baseline.")]

    return made(ablation(GELU, tune=THREE), tiny(), loss)


def rates(both: Arms) -> tuple[float, float]:
    return both.baseline.optim.muon.lr, both.variant.optim.muon.lr


def test_each_arm_takes_its_best_point(made: Callable[..., Arms], tiny: Tiny) -> None:
    both = tuned(made, tiny, [5.0, 4.0, 4.5], [4.0, 3.0, 2.0])
    assert rates(both) == (0.02, 0.03) and both.pending == []
    assert set(diff(both.baseline, both.variant)) == {"model.activation", "optim.muon.lr"}
    assert diff(tiny(), both.baseline) == {"optim.muon.lr": (0.04, 0.02)}
    assert [point.loss for point in both.grid] == [5.0, 4.0, 4.5, 4.0, 3.0, 2.0]


@pytest.mark.parametrize("missing", range(6))
def test_nothing_is_chosen_while_a_point_is_missing(made: Callable[..., Arms], tiny: Tiny, missing: int) -> None:
    losses: list[float | None] = [5.0, 4.0, 4.5, 4.0, 3.0, 2.0]
    losses[missing] = None
    both = tuned(made, tiny, losses[:3], losses[3:])
    assert [point.loss for point in both.pending] == [None] and both.pending == [both.grid[missing]]
    assert rates(both) == (0.04, 0.04) and both.baseline == tiny()


def test_a_rate_that_diverges_is_never_chosen(made: Callable[..., Arms], tiny: Tiny) -> None:
    both = tuned(made, tiny, [math.inf, 9.0, math.inf], [math.inf, math.inf, 8.0])
    assert rates(both) == (0.02, 0.03)


def test_an_arm_that_always_diverges_keeps_its_values(made: Callable[..., Arms], tiny: Tiny) -> None:
    both = tuned(made, tiny, [math.inf] * 3, [3.0, 2.0, 3.0])
    assert rates(both) == (0.04, 0.02) and both.pending == []
    assert "diverged" in both.tuning(), "this arm was not tuned, and the headline is to say so"


def test_the_best_point_is_the_one_of_lowest_loss(tiny: Tiny) -> None:
    points = [GridPoint("variant", str(loss), {}, tiny(), loss) for loss in (3.0, math.inf, 0.0, None, 2.0)]
    assert best_point(points) == points[2] and best_point(points[3:]) == points[4]
    assert best_point([points[1], points[3]]) is None and best_point([]) is None


# --- tuning: in words -------------------------------------------------------------------------------------------


def test_the_headline_says_that_nothing_was_tuned(made: Callable[..., Arms], tiny: Tiny) -> None:
    assert made(ablation(GELU), tiny()).tuning() == "not tuned: learning rates are the base's"
    unused = made(ablation(GELU, tune={"optim.adamw.matrix_lr": [0.1, 0.2]}), tiny())
    assert unused.grid == () and unused.tuning().startswith("not tuned")


@pytest.mark.parametrize(
    ("baseline", "variant", "words"),
    [
        ([5.0, 4.0, 5.0], [5.0, 4.0, 5.0], "tuned alike on 3 points each"),
        ([4.0, 5.0, 5.0], [5.0, 4.0, 5.0], "each; the best of the baseline lies at the edge of the grid"),
        ([5.0, 4.0, 5.0], [5.0, 5.0, 4.0], "each; the best of the variant lies at the edge of the grid"),
        (
            [5.0, 5.0, 4.0],
            [4.0, 5.0, 5.0],
            "each; the best of the baseline and the variant lies at the edge of the grid",
        ),
    ],
)
def test_the_headline_says_whether_the_grid_was_wide_enough(
    made: Callable[..., Arms], tiny: Tiny, baseline: list[float | None], variant: list[float | None], words: str
) -> None:
    said = tuned(made, tiny, baseline, variant).tuning()
    assert said.startswith("tuned alike on 3 points each") and said.endswith(words)


def test_the_headline_says_that_one_arm_was_tuned_more(made: Callable[..., Arms], tiny: Tiny) -> None:
    tune = {"optim.muon.lr": [0.01, 0.02, 0.03], "optim.adamw.matrix_lr": [0.01, 0.02]}
    both = made(ablation(ADAMW, tune=tune), tiny(), lambda *point: 1.0)
    assert both.tuning() == "tuned unequally: 3 points for the baseline, 2 for the variant"
    both = made(ablation(ADAMW, tune={"optim.muon.lr": [0.01, 0.02]}), tiny(), lambda *point: 1.0)
    assert both.tuning() == "tuned unequally: 2 points for the baseline, 0 for the variant"


def test_an_edge_is_one_of_any_key_that_was_tuned(made: Callable[..., Arms], tiny: Tiny) -> None:
    tune = {"optim.muon.lr": [0.01, 0.02, 0.03], "optim.muon.weight_decay": [0.0, 0.1, 0.2]}

    def loss(name: str, config: RunConfig) -> float:
        return abs(config.optim.muon.lr - 0.02) + abs(config.optim.muon.weight_decay - best)

    for best, edge in ((0.1, False), (0.2, True)):
        both = made(ablation(GELU, tune=tune), tiny(), loss)
        assert both.baseline.optim.muon.lr == 0.02 and both.baseline.optim.muon.weight_decay == best
        assert ("at the edge" in both.tuning()) == edge
