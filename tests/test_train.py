"""Training: the same run from the same seed, whatever is measured beside it and however its batch is cut."""

import copy
import io
import itertools
import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gptlib import records
from gptlib.data.loader import Batch, TrainingStream, recut, training_batches, training_rows
from gptlib.device import Place
from gptlib.evaluate import evaluate
from gptlib.model import GPT
from gptlib.schedules import window_share
from gptlib.train import (
    accumulate_gradients,
    average_over_ranks,
    build,
    clip_gradients,
    run_from_folder,
    seed_dropout,
    train,
    update,
)

CPU = Place(torch.device("cpu"))


@pytest.fixture(scope="module")
def run(tiny, tiny_dataset):
    """Trains with some keys changed; returns model, result and metrics."""

    def trained(changes=None, seed=1):
        torch.set_num_threads(1)
        rows = []
        return *train(tiny(changes), tiny_dataset, seed, CPU, rows.append), rows

    return trained


@pytest.fixture(scope="module")
def reference(run):
    return run()


def losses(rows, key="train_loss"):
    return {row["step"]: row[key] for row in rows if key in row}


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# --- reproducibility --------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits(run, reference):
    model, result, rows = run()
    assert losses(rows) == losses(reference[2]) and losses(rows, "val_loss") == losses(reference[2], "val_loss")
    assert same_weights(model, reference[0])
    assert result["final_val_loss"] == reference[1]["final_val_loss"]


def test_another_seed_is_another_run(run, reference):
    model, _, rows = run(seed=2)
    assert not same_weights(model, reference[0])
    mine, other = losses(rows), losses(reference[2])
    assert all(mine[step] != other[step] for step in (2, 3, 4))  # the first one is a uniform guess whatever the seed


@pytest.mark.parametrize("changes", [{"eval.every": 0}, {"eval.every": 1, "eval.rows": 7}, {"eval.sample_tokens": 5}])
def test_what_is_evaluated_does_not_change_the_training(run, reference, changes):
    model, _, rows = run(changes)
    assert losses(rows) == losses(reference[2]) and same_weights(model, reference[0])


def test_the_global_generators_are_not_drawn_on_by_evaluation(tiny, tiny_dataset, reference):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    evaluate(reference[0], tiny_dataset, tiny(), CPU)
    assert torch.equal(before, torch.get_rng_state())


# --- gradient accumulation --------------------------------------------------------------------------------------


def test_accumulating_gradients_is_the_whole_batch(run):
    whole, pieces = (run({"train.batch_rows": 4, "hardware.micro_rows": micro}) for micro in (0, 1))
    assert losses(pieces[2]) == pytest.approx(losses(whole[2]), rel=1e-5)
    assert pieces[1]["final_val_loss"] == pytest.approx(whole[1]["final_val_loss"], rel=1e-5)


@pytest.fixture
def uneven(tiny, tiny_dataset):
    """A model that has learned a little, and a batch of rows with few and with many scored targets."""
    torch.set_num_threads(1)
    model = train(tiny({"train.steps": 2}), tiny_dataset, 1, CPU, lambda row: None)[0]
    batch, _ = next(training_batches(tiny_dataset, tiny({"train.batch_rows": 4}), 1))
    targets = batch.targets.copy()
    for row, scored in enumerate((256, 10, 100, 1)):
        targets[row, scored:] = -1
    return model, Batch(batch.inputs, targets, None)


def whole_batch(model, batch):
    """Loss and gradients of the mean over every scored target, from log-softmax in float64."""
    model = copy.deepcopy(model)
    logits = model(torch.from_numpy(batch.inputs)).double()
    targets = torch.from_numpy(batch.targets)
    nll = -logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    loss = nll[targets >= 0].mean()
    loss.backward()
    return loss.item(), gradients(model)


@pytest.mark.parametrize("micro_rows", [1, 3, 4])
def test_every_scored_target_weighs_the_same_in_whatever_pass_it_is(uneven, micro_rows):
    model, batch = uneven
    expected, expected_gradients = whole_batch(model, batch)
    loss, _ = accumulate_gradients(model, batch, micro_rows * 256, CPU)
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-6)


def test_there_are_training_rows_with_fewer_targets(tiny, tiny_dataset):
    lengths = training_rows(tiny_dataset, tiny({"model.seq_len": 288})).lengths
    assert len(np.unique(lengths)) == 2, "the weighing of uneven rows above is about something real"


def test_out_of_memory_halves_the_rows_of_a_pass_and_keeps_the_batch(uneven, capsys):
    model, batch = uneven
    sizes = []

    class Small:
        zero_grad = model.zero_grad

        def __call__(self, inputs, targets):
            sizes.append(len(inputs))
            if len(inputs) > 1:
                raise torch.OutOfMemoryError("no")
            return model(inputs, targets)

    expected, expected_gradients = whole_batch(model, batch)
    loss, micro_tokens = accumulate_gradients(Small(), batch, 4 * 256, CPU)
    assert sizes == [4, 2, 1, 1, 1, 1] and micro_tokens == 256 and "out of memory: 1 rows" in capsys.readouterr().out
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("unscored", [0, 2])
def test_ranks_weigh_by_their_scored_targets(uneven, monkeypatch, unscored):
    """Also where a rank has none: rows that a curriculum cuts shorter may lie wholly behind the end of a shard."""
    model, batch = uneven
    batch.targets[:unscored] = -1
    expected, expected_gradients = whole_batch(model, batch)
    ranks = []
    for rows in (slice(0, 2), slice(2, 4)):
        part = Batch(batch.inputs[rows], batch.targets[rows], None)
        model.zero_grad()
        ranks.append(
            (accumulate_gradients(model, part, 2 * 256, CPU)[0], int((part.targets >= 0).sum()), gradients(model))
        )
    sent = []

    def all_reduce(flat):  # the first rank only speaks; the second one hears the sum
        sent.append(flat.clone())
        flat.copy_(sum(sent))

    monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
    for loss, scored, own in ranks:
        for name, parameter in model.named_parameters():
            parameter.grad = own.get(name)
        mean = average_over_ranks(model, loss, scored, Place(torch.device("cpu"), world=2))
    assert mean == pytest.approx(expected, rel=1e-5)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-6)


# --- clipping ---------------------------------------------------------------------------------------------------


def total_norm(model):
    return math.sqrt(sum(g.double().square().sum().item() for g in gradients(model).values()))


@pytest.mark.parametrize("limit", [0.0, 0.05, 1e6])
def test_clipping_limits_the_global_norm_and_keeps_the_direction(uneven, limit):
    model, batch = uneven
    accumulate_gradients(model, batch, 4 * 256, CPU)
    before, norm = gradients(model), total_norm(model)
    assert norm > 0.05
    assert clip_gradients(model, limit) == pytest.approx(norm, rel=1e-5)
    factor = min(1.0, limit / norm) if limit else 1.0
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, before[name] * factor, rtol=1e-4, atol=1e-9)


def test_a_clipped_run_logs_the_norm_before_and_trains_otherwise(run, reference):
    model, _, rows = run({"optim.grad_clip": 0.01, "optim.matrices": "adamw", "eval.every": 0})
    assert all(norm > 0.01 for norm in losses(rows, "grad_norm").values())
    assert not same_weights(model, run({"optim.matrices": "adamw", "eval.every": 0})[0])


# --- outcomes ---------------------------------------------------------------------------------------------------


def test_the_final_evaluation_is_the_evaluation_of_the_model_returned(tiny, tiny_dataset, reference):
    model, result, rows = reference
    after = evaluate(model, tiny_dataset, tiny(), CPU)
    assert result["final_val_loss"] == after.loss == rows[-1]["val_loss"]
    assert (result["val_tokens"], result["bits_per_byte"]) == (after.tokens, after.bits_per_byte)
    assert (result["floor"], result["excess"], result["excess_se"]) == (after.floor, after.excess, after.excess_se)


def test_a_finished_run_has_its_fields_and_every_step(reference):
    _, result, rows = reference
    assert result["status"] == "finished" and result["success"] is True and result["final_step"] == 4
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4] and set(losses(rows, "val_loss")) == {0, 2, 4}
    assert result["final_train_loss"] == rows[-1]["train_loss"]
    assert result["best_val_loss"] == min(losses(rows, "val_loss").values())
    assert result["time_seconds"] * 1000 == pytest.approx(rows[-1]["train_time_ms"])
    assert [row["lr_multiplier"] for row in rows[1:]] == pytest.approx([1, 1, 1 - 0.1 / 0.6, 1 - 0.35 / 0.6])


HUGE = {
    "model.logit_softcap": 0,
    "optim.adamw.embed_lr": 1e4,
    "optim.adamw.head_lr": 1e4,
    "optim.adamw.scalar_lr": 1e4,
}


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"optim.muon.lr": 1e4, "eval.every": 0}, 1),  # seen in the next training loss
        ({"optim.muon.lr": 1e4, "eval.every": 0, "train.steps": 1}, 1),  # by the last update: seen in evaluation alone
        ({"optim.muon.lr": 1e38, "optim.adamw.head_lr": 1e38, "eval.every": 1}, 1),  # not a number
    ],
)
def test_an_exploding_run_ends_as_diverged_with_its_curve(run, changes, step):
    _, result, rows = run(HUGE | changes)
    assert result["status"] == "diverged" and result["success"] is False
    assert result["diverged_at"] == result["final_step"] == step
    assert result["final_val_loss"] is None and "best_val_loss" not in result
    assert rows[-1]["step"] == step and losses(rows)[1] == pytest.approx(math.log(320), abs=0.01)


def test_the_loss_falls_towards_the_floor(run):
    _, result, rows = run({"train.steps": 40, "eval.every": 0})
    first = losses(rows)[1]
    assert first == pytest.approx(math.log(320), abs=0.01)  # zero-initialised head: a uniform guess over the padded 300
    assert result["final_val_loss"] < first - 1.5 and result["final_val_loss"] > result["floor"]


def test_more_steps_than_are_logged(run, monkeypatch):
    monkeypatch.setattr("gptlib.train.MAX_LOGGED_STEPS", 3)
    _, _, rows = run({"train.steps": 8, "eval.every": 5})
    assert [row["step"] for row in rows] == [0, 3, 5, 6, 8]


# --- schedules: rates, weight decay, momentum -------------------------------------------------------------------


@pytest.fixture
def rates_of(run, monkeypatch):
    """Trains; returns what the optimizers' groups held at each step, and what was logged."""

    def trained(changes):
        seen = []

        def step(optimizers, rates):
            update(optimizers, rates)
            held = {g["name"]: (g["lr"] / g["base_lr"], g["weight_decay"]) for o in optimizers for g in o.param_groups}
            seen.append((held, optimizers[0].param_groups[0].get("momentum")))

        monkeypatch.setattr("gptlib.train.update", step)
        return seen, run({"eval.every": 0} | changes)[2]

    return trained


RATES = {
    "train.steps": 8,
    "schedule.warmup": 0.25,
    "schedule.cooldown": 0.5,
    "schedule.weight_decay": "linear",
    "schedule.momentum.warmup": 0.5,
    "schedule.momentum.cooldown": 0.25,
    "optim.muon.weight_decay": 0.1,
    "optim.adamw.weight_decay": 0.2,
}


def test_every_step_has_the_rates_decays_and_momentum_of_its_progress(rates_of):
    seen, rows = rates_of(RATES)
    rates = [0, 0.5, 1, 1, 1, 0.75, 0.5, 0.25]
    assert [held["matrix"][0] for held, _ in seen] == pytest.approx(rates)
    assert [held["embed"][0] for held, _ in seen] == pytest.approx(rates)
    assert [held["matrix"][1] for held, _ in seen] == pytest.approx([0.1 * (1 - s / 8) for s in range(8)])
    assert [held["head"][1] for held, _ in seen] == pytest.approx([0.2 * (1 - s / 8) for s in range(8)])
    assert [momentum for _, momentum in seen] == pytest.approx([0.85, 0.875, 0.9, 0.925, 0.95, 0.95, 0.95, 0.9])
    assert list(losses(rows, "lr_multiplier").values()) == pytest.approx(rates)
    assert list(losses(rows, "lr").values()) == pytest.approx([0.04 * rate for rate in rates])


def test_a_warmup_from_the_first_step_has_no_update_of_nothing(rates_of):
    seen, rows = rates_of(RATES | {"schedule.warmup_from": "first_step", "schedule.weight_decay": "lr"})
    rates = [1 / 3, 2 / 3, 1, 1, 1, 0.75, 0.5, 0.25]
    assert list(losses(rows, "lr_multiplier").values()) == pytest.approx(rates)
    assert [held["matrix"] for held, _ in seen] == [(pytest.approx(r), pytest.approx(0.1 * r)) for r in rates]


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule.momentum.warmup": 0.5, "schedule.momentum.start": 0.95},  # from the peak to the peak
        {"schedule.momentum.cooldown": 0.5, "schedule.momentum.final": 0.95},
        {"schedule.weight_decay": "lr"},  # there is no weight decay
        {"schedule.warmup_from": "first_step"},  # there is no warmup
        {"schedule.kind": "power", "schedule.power": 1.0},  # a straight line
    ],
)
def test_a_schedule_that_changes_nothing_leaves_the_bits_alone(run, reference, changes):
    model, _, rows = run(changes)
    assert losses(rows) == losses(reference[2]) and same_weights(model, reference[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule.momentum.warmup": 0.9},
        {"schedule.momentum.cooldown": 0.5},
        {"schedule.weight_decay": "lr", "optim.muon.weight_decay": 0.1},
        {"schedule.weight_decay": "linear", "optim.adamw.weight_decay": 0.1},
        {"schedule.kind": "sqrt"},
        {"optim.muon.split_heads": 1},
        {"optim.muon.normuon": True},
        {"optim.muon.weight_decay": 0.1, "optim.muon.cautious": True},
        {"optim.muon.precision": "bf16"},
    ],
)
def test_a_switch_of_rates_or_of_muon_reaches_the_weights(run, changes):
    plain = {key: value for key, value in changes.items() if "weight_decay" in key and key.startswith("optim")}
    model, result, _ = run(changes)
    assert result["success"] and not same_weights(model, run(plain)[0])


# --- schedules: the length and the number of rows ---------------------------------------------------------------

SHORT = {"model.seq_len": 64, "data.rows": "stream", "train.steps": 10, "train.batch_rows": 4, "eval.every": 0}
CURRICULUM = {
    "schedule.curriculum.stages": [0.25, 0.5, 0.75, 1],
    "schedule.curriculum.latest": [0.2, 0.4, 0.6],
    "schedule.curriculum.improvement": 0,
}
GROWING_BATCH = {
    "schedule.batch.stages": [0.5, 1],
    "schedule.batch.latest": [0.5],
    "schedule.batch.improvement": 0,
}
PLATEAU = {  # with windows of one step and an improvement that no loss makes: a plateau as soon as two were seen
    "schedule.curriculum.stages": [0.5, 1],
    "schedule.curriculum.latest": [0.6],
    "schedule.curriculum.improvement": 0.99,
    "schedule.curriculum.window": 0.1,
}


@pytest.fixture
def watched(run, monkeypatch):
    """Trains as `run` does; returns model, result, metrics, and (rows asked for, batch) of every step."""
    taken = []
    take = TrainingStream.take

    def noting(stream, rows, length):
        taken.append((rows, take(stream, rows, length)))
        return taken[-1][1]

    monkeypatch.setattr(TrainingStream, "take", noting)

    def trained(changes):
        taken.clear()
        return *run(changes), list(taken)

    return trained


def test_a_curriculum_logs_its_lengths_and_keeps_the_tokens_of_a_step(watched):
    _, result, rows, taken = watched(SHORT | CURRICULUM)
    lengths = [16] * 2 + [32] * 2 + [48] * 2 + [64] * 4
    assert [batch.inputs.shape[1] for _, batch in taken] == lengths
    assert [row["seq_len"] for row in rows if "train_loss" in row] == lengths
    assert [row["tokens"] for row in rows if "tokens" in row][-10:] == [256 * (step + 1) for step in range(10)]
    assert all(batch.inputs.size >= 256 > batch.inputs.size - batch.inputs.shape[1] for _, batch in taken)
    assert all(math.isfinite(loss) for loss in losses(rows).values()) and len(losses(rows)) == 10
    assert result["status"] == "finished" and result["tokens"] == 2560
    assert [(s["what"], s["step"], s["share"], s["reason"]) for s in result["switches"]] == [
        ("seq_len", 2, 0.5, "latest"),
        ("seq_len", 4, 0.75, "latest"),
        ("seq_len", 6, 1.0, "latest"),
    ]


def test_a_curriculum_trains_on_the_text_in_the_same_order(watched):
    plain, growing = (watched(SHORT | more)[3] for more in ({}, CURRICULUM))
    for (_, whole), (_, cut) in zip(plain, growing, strict=True):
        assert cut.targets[cut.targets >= 0].tolist() == whole.targets.ravel().tolist()


def test_a_growing_batch_counts_the_tokens_that_it_consumed(watched, tiny):
    _, result, rows, taken = watched(SHORT | GROWING_BATCH)
    assert [count for count, _ in taken] == [len(batch.inputs) for _, batch in taken] == [2] * 5 + [4] * 5
    assert [row["batch_rows"] for row in rows if "train_loss" in row] == [2] * 5 + [4] * 5
    consumed = sum(batch.inputs.size for _, batch in taken)
    assert result["tokens"] == rows[-1]["tokens"] == consumed == tiny(SHORT | GROWING_BATCH).planned_tokens == 1920
    assert result["tokens_per_second"] == pytest.approx(consumed / result["time_seconds"])
    assert [(s["what"], s["step"], s["share"], s["reason"]) for s in result["switches"]] == [
        ("batch_rows", 5, 1.0, "latest")
    ]


def test_a_row_of_the_log_has_the_speed_of_its_own_step(watched):
    _, _, rows, _ = watched(SHORT | GROWING_BATCH)
    for before, row in itertools.pairwise(rows):
        seconds = (row["train_time_ms"] - before["train_time_ms"]) / 1000
        assert row["tokens_per_second"] * seconds == pytest.approx(64 * row["batch_rows"], rel=1e-3)


@pytest.mark.parametrize(("what", "first"), [("curriculum", "seq_len"), ("batch", "batch_rows")])
def test_a_plateau_switches_before_the_step_that_it_says_and_the_log_tells_what_was_trained(watched, what, first):
    changes = {key.replace("curriculum", what): value for key, value in PLATEAU.items()}
    _, result, rows, taken = watched(SHORT | changes)
    sizes = [len(batch.inputs) if first == "batch_rows" else batch.inputs.shape[1] for _, batch in taken]
    small, large = (2, 4) if first == "batch_rows" else (32, 64)
    assert sizes == [small] * 2 + [large] * 8, "two windows of one step have to be seen"
    assert [(s["step"], s["reason"]) for s in result["switches"]] == [(sizes.index(large), "plateau")]
    assert [row[first] for row in rows if "train_loss" in row] == sizes


def test_a_run_without_growth_has_no_switches_and_logs_no_lengths(reference):
    _, result, rows = reference
    assert result["switches"] == [] and result["tokens"] == rows[-1]["tokens"] == 4 * 2 * 256
    assert not any(key in row for row in rows for key in ("seq_len", "batch_rows", "active_layers", "window_share"))


@pytest.mark.parametrize("micro_rows", [1, 3])
def test_passes_of_few_rows_change_nothing_where_rows_are_short(run, micro_rows):
    changes = SHORT | CURRICULUM | GROWING_BATCH
    whole, pieces = run(changes), run(changes | {"hardware.micro_rows": micro_rows})
    assert losses(pieces[2]) == pytest.approx(losses(whole[2]), rel=1e-5) and len(losses(whole[2])) == 10
    assert pieces[1]["final_val_loss"] == pytest.approx(whole[1]["final_val_loss"], rel=1e-5)


def test_a_pass_has_as_many_tokens_however_short_its_rows_are(uneven):
    model, batch = uneven
    sizes = []

    def noting(inputs, targets):
        sizes.append(tuple(inputs.shape))
        return model(inputs, targets)

    accumulate_gradients(noting, recut(Batch(batch.inputs, np.abs(batch.targets), None), 64), 2 * 256, CPU)
    assert sizes == [(8, 64)] * 2


def test_a_pass_without_a_scored_target_adds_nothing(uneven):
    """Rows that a curriculum cuts shorter may lie wholly behind the end of a shard, or of the batch."""
    model, batch = uneven
    short = recut(batch, 64)
    assert any(not (row >= 0).any() for row in short.targets)
    expected, expected_gradients = whole_batch(model, short)
    model.zero_grad()
    loss, _ = accumulate_gradients(model, short, 64, CPU)
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-6)


# --- schedules: depth and windows -------------------------------------------------------------------------------


@pytest.fixture
def states(run, monkeypatch):
    """Trains as `run` does, evaluating at every step; returns result, metrics, and what each evaluation saw."""
    seen = []

    def noting(model, *args):
        weights = {name: weight.clone() for name, weight in model.state_dict().items()}
        seen.append((model.layers_on, model.window_share, weights))
        return evaluate(model, *args)

    monkeypatch.setattr("gptlib.train.evaluate", noting)

    def trained(changes):
        seen.clear()
        _, result, rows = run(SHORT | {"train.steps": 4, "model.num_layers": 2} | changes | EVERY_STEP)
        return result, rows, list(seen)

    return trained


EVERY_STEP = {"eval.every": 1, "eval.rows": 1}
DEPTH = {"schedule.depth.start": 0.5, "schedule.depth.full": 0.5, "schedule.depth.drop": 0}
ADAMW = {"optim.matrices": "adamw", "optim.adamw.weight_decay": 0.5, "optim.muon.weight_decay": 0.5}


def of_the_top(weights):
    """Weights that only the second layer uses: its own, and its value table."""
    found = {name: w for name, w in weights.items() if name.startswith(("blocks.1.", "value_tables."))}
    assert len(found) > 6
    return found


@pytest.mark.parametrize("optimizer", [{"optim.muon.weight_decay": 0.5}, ADAMW])
def test_a_layer_keeps_its_start_until_it_joins_and_learns_from_then_on(states, tiny, tiny_dataset, optimizer):
    result, rows, seen = states(DEPTH | optimizer)
    start = GPT(tiny({"model.num_layers": 2, "model.seq_len": 64}).model, tiny_dataset.vocab_size)
    start.init_weights(1)
    for step, (layers, _, weights) in enumerate(seen):
        top = of_the_top(weights)
        same_as_start = [torch.equal(weight, start.state_dict()[name]) for name, weight in top.items()]
        assert all(same_as_start) == (step <= 2), f"the second layer joins at step 2 of 4; step {step}"
        assert layers == ((0,) if step < 2 else (0, 1))
    for (_, _, before), (_, _, after) in itertools.pairwise(seen):
        bottom = [name for name in before if name.startswith("blocks.0.")]
        assert any(not torch.equal(before[name], after[name]) for name in bottom)
    moved = [not torch.equal(seen[-1][2][name], start.state_dict()[name]) for name in of_the_top(seen[-1][2])]
    assert sum(moved) > len(moved) / 2
    assert [row["active_layers"] for row in rows if "train_loss" in row] == [1, 1, 2, 2]
    assert all(math.isfinite(loss) for key in ("train_loss", "val_loss") for loss in losses(rows, key).values())
    assert [(s["what"], s["step"], s["share"], s["reason"]) for s in result["switches"]] == [
        ("depth", 2, 1.0, "schedule")
    ]


def test_a_layer_that_never_joins_in_training_is_as_it_began(run, tiny, tiny_dataset):
    changes = {"model.num_layers": 2, "schedule.depth.start": 0.5, "schedule.depth.full": 0.999}
    model, _, _ = run(changes)
    start = GPT(tiny(changes).model, tiny_dataset.vocab_size)
    start.init_weights(1)
    for name, weight in of_the_top(model.state_dict()).items():
        assert torch.equal(weight, start.state_dict()[name]), name
    assert model.layers_on == (0, 1), "what is returned has all its layers"


def test_a_step_that_leaves_a_layer_out_does_not_train_it_and_evaluation_has_it(states):
    _, _, seen = states(DEPTH | {"schedule.depth.full": 0.999, "train.steps": 12, "schedule.depth.drop": 0.9})
    assert [layers for layers, _, _ in seen] == [(0,)] * 12 + [(0, 1)]  # joins at the end: nothing to leave out
    three = DEPTH | {
        "model.num_layers": 3,
        "schedule.depth.start": 0.3,
        "schedule.depth.full": 0.999,
        "train.steps": 12,
    }
    _, _, seen = states(three | {"schedule.depth.drop": 0.9})  # the second joins at 6 with a chance of 0.9
    assert [layers for layers, _, _ in seen] == [(0,)] * 6 + [(0, 1)] * 6 + [(0, 1, 2)]
    moved = [
        any(not torch.equal(before[name], after[name]) for name in before if name.startswith("blocks.1."))
        for (_, _, before), (_, _, after) in itertools.pairwise(seen)
    ]
    assert not any(moved[:6]) and True in moved[6:] and False in moved[6:]


def test_windows_grow_in_training_and_in_evaluation(states):
    windows = {"schedule.windows.start": 0.25, "schedule.windows.full": 0.5}
    result, rows, seen = states(windows)
    shares = [0.25, 0.625, 1.0, 1.0, 1.0]
    assert [share for _, share, _ in seen] == pytest.approx(shares)
    assert [row["window_share"] for row in rows if "train_loss" in row] == pytest.approx(shares[:4])
    assert all(math.isfinite(loss) for loss in losses(rows).values()) and result["status"] == "finished"


def test_a_window_that_grows_is_seen_by_the_model(run, tiny, tiny_dataset):
    windows = {"schedule.windows.start": 0.02, "schedule.windows.full": 1.0}
    narrow, wide = run(windows | {"train.steps": 12}), run({"train.steps": 12})
    assert losses(narrow[2])[1] == pytest.approx(losses(wide[2])[1]) and losses(narrow[2])[12] != losses(wide[2])[12]
    model, config = narrow[0], tiny(windows)
    assert model.window_share == window_share(config.schedule.windows, 1.0) == 1.0
    assert evaluate(model, tiny_dataset, config, CPU).loss == narrow[1]["final_val_loss"]
    model.window_share = 0.02
    assert evaluate(model, tiny_dataset, config, CPU).loss != narrow[1]["final_val_loss"]


def test_everything_may_change_at_once(watched):
    changes = SHORT | CURRICULUM | GROWING_BATCH | DEPTH
    changes |= {"model.num_layers": 4, "schedule.depth.drop": 0.5, "schedule.windows.start": 0.25, "eval.every": 3}
    changes |= dict.fromkeys(
        ("unet_skips", "residual_lambdas", "x0_lambdas", "backout", "smear", "bigram_embeds"), True
    )
    changes = {key if "." in key else f"model.{key}": value for key, value in changes.items()}
    _, result, rows, _ = watched(changes)
    assert result["status"] == "finished" and math.isfinite(result["final_val_loss"])
    assert all(math.isfinite(loss) for loss in losses(rows).values()) and len(losses(rows)) == 10
    assert [s["step"] for s in result["switches"]] == sorted(s["step"] for s in result["switches"])
    assert {s["what"] for s in result["switches"]} == {"seq_len", "batch_rows", "depth"}


# --- schedules: ranks -------------------------------------------------------------------------------------------


def train_as_ranks(config, dataset, world, monkeypatch):
    """The ranks of one run as threads that meet in every exchange; returns result and metrics of each."""
    barrier, sent, shares, results = threading.Barrier(world, timeout=60), [], {}, {}

    def all_reduce(tensor):
        sent.append(tensor.clone())
        barrier.wait()
        total = sum(sent)
        if barrier.wait() == 0:
            sent.clear()
        barrier.wait()
        tensor.copy_(total)

    def all_gather_single(everything, share, async_op):
        shares[threading.current_thread().name] = share
        barrier.wait()
        everything.copy_(torch.cat([shares[str(number)] for number in range(world)]))
        barrier.wait()
        return SimpleNamespace(wait=lambda: None)

    def rank(number):
        rows = []
        try:
            results[number] = *train(config, dataset, 1, Place(CPU.device, number, world), rows.append), rows
        except BaseException:
            barrier.abort()
            raise

    with monkeypatch.context() as patch:
        patch.setattr("torch.distributed.all_reduce", all_reduce)
        patch.setattr("torch.distributed.all_gather_single", all_gather_single)
        threads = [threading.Thread(target=rank, args=(number,), name=str(number)) for number in range(world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return [results[number] for number in range(world)]


MUON = {"optim.muon.split_heads": 1, "optim.muon.normuon": True, "schedule.momentum.warmup": 0.5}


@pytest.mark.parametrize("changes", [CURRICULUM, CURRICULUM | GROWING_BATCH, PLATEAU, MUON])
def test_two_ranks_with_growing_rows_are_one_run(run, tiny, tiny_dataset, monkeypatch, changes):
    one = run(SHORT | changes)
    config = tiny(SHORT | changes | {"hardware.ranks": 2})
    for _, result, rows in train_as_ranks(config, tiny_dataset, 2, monkeypatch):
        assert losses(rows) == pytest.approx(losses(one[2]), rel=1e-5) and len(losses(rows)) == 10
        for key in ("seq_len", "batch_rows", "tokens"):
            assert losses(rows, key) == losses(one[2], key)
        assert result["final_val_loss"] == pytest.approx(one[1]["final_val_loss"], rel=1e-5)
        assert (result["tokens"], result["switches"]) == (one[1]["tokens"], one[1]["switches"])


def test_two_ranks_with_layers_left_out_are_one_run(run, tiny, tiny_dataset, monkeypatch):
    changes = SHORT | {"model.num_layers": 3, "schedule.depth.start": 0.3, "schedule.depth.full": 0.999}
    changes |= {"schedule.depth.drop": 0.5}
    one = run(changes)
    for _, _, rows in train_as_ranks(tiny(changes | {"hardware.ranks": 2}), tiny_dataset, 2, monkeypatch):
        assert losses(rows) == pytest.approx(losses(one[2]), rel=1e-5) and len(losses(rows)) == 10


# --- dropout ----------------------------------------------------------------------------------------------------

DROPOUT = {"model.dropout": 0.3}


@pytest.fixture(scope="module")
def with_dropout(run):
    return run(DROPOUT)


@pytest.mark.parametrize("changes", [{}, {"eval.every": 0}, {"eval.every": 1, "eval.rows": 7}])
def test_dropout_is_the_same_bits_from_the_same_seed_whatever_is_evaluated(run, with_dropout, changes, monkeypatch):
    def drawing(*args):
        torch.rand(7)  # whoever draws between two steps does not shift what they drop
        return evaluate(*args)

    monkeypatch.setattr("gptlib.train.evaluate", drawing)
    model, result, rows = run(DROPOUT | changes)
    assert losses(rows) == losses(with_dropout[2]) and same_weights(model, with_dropout[0])
    assert result["final_val_loss"] == with_dropout[1]["final_val_loss"]


def test_dropout_is_of_the_seed_and_of_the_step(run, with_dropout, reference):
    assert losses(with_dropout[2])[4] != losses(reference[2])[4]
    assert not same_weights(with_dropout[0], run(DROPOUT, seed=2)[0])


def test_dropout_draws_anew_at_every_step_and_rank(tiny, tiny_dataset, uneven):
    model, batch = uneven
    config = tiny(DROPOUT)
    dropping = GPT(config.model, tiny_dataset.vocab_size)
    dropping.load_state_dict(model.state_dict())

    def loss(seed, step, rank):
        seed_dropout(config, seed, step, Place(CPU.device, rank, 2))
        return accumulate_gradients(dropping, batch, 4 * 256, CPU)[0]

    draws = {which: loss(*which) for which in itertools.product((1, 2), (0, 1), (0, 1))}
    assert len(set(draws.values())) == 8
    assert loss(1, 0, 0) == draws[1, 0, 0] and loss(2, 1, 1) == draws[2, 1, 1]


def test_evaluation_drops_nothing(tiny, tiny_dataset, with_dropout):
    model, result, _ = with_dropout
    plain = GPT(tiny().model, tiny_dataset.vocab_size)
    plain.load_state_dict(model.state_dict())
    assert evaluate(plain, tiny_dataset, tiny(), CPU).loss == result["final_val_loss"]
    assert model.training, "and training goes on with it"


# --- schedules: a run that explodes -----------------------------------------------------------------------------


@pytest.mark.parametrize("every", [0, 1])
def test_an_untrained_model_with_a_large_loss_has_not_diverged(run, monkeypatch, every):
    """Its first loss is far above three times that of a uniform guess; whether it learns, training shows."""

    def loud(*given):
        model, optimizers = build(*given)
        assert model.head is not None
        with torch.no_grad():
            model.head.weight.mul_(1000)
        return model, optimizers

    monkeypatch.setattr("gptlib.train.build", loud)
    changes = {"model.logit_softcap": 0.0, "model.init": "gpt2", "model.projection_init": "plain", "eval.every": every}
    _, result, rows = run(changes)
    assert losses(rows)[1] > 3 * math.log(320) and result["status"] == "finished"
    _, result, rows = run(changes | HUGE | {"optim.muon.lr": 1e4})
    assert result["status"] == "diverged" and result["diverged_at"] > 0


def test_a_diverged_run_has_its_tokens_and_switches(run):
    changes = {"optim.muon.lr": 1e4, "eval.every": 0, "train.steps": 10, "train.batch_rows": 4, "model.seq_len": 64}
    growth = {"stages": [0.25, 0.5, 1], "latest": [0.1, 0.5], "improvement": 0}
    changes |= {f"schedule.{what}.{key}": value for what in ("curriculum", "batch") for key, value in growth.items()}
    _, result, rows = run(HUGE | changes)
    assert result["status"] == "diverged" and result["diverged_at"] == 1
    assert result["tokens"] == 64 == rows[-2]["tokens"], "one step of one row; the second one has not been made"
    assert sorted((s["what"], s["step"], s["share"], s["reason"]) for s in result["switches"]) == [
        ("batch_rows", 1, 0.5, "latest"),
        ("seq_len", 1, 0.5, "latest"),
    ]


def test_a_run_that_diverges_in_evaluation_has_its_tokens_and_only_the_switches_before(run):
    changes = {"optim.muon.lr": 1e4, "eval.every": 1, "train.steps": 4, "model.num_layers": 2, **DEPTH}
    _, result, _ = run(HUGE | changes)
    assert (result["status"], result["diverged_at"]) == ("diverged", 1)
    assert result["tokens"] == 2 * 256 and result["switches"] == [], "the second layer would have joined at step 2"


# --- what a run has cost ----------------------------------------------------------------------------------------

# By hand: a layer of width 16 with two heads, its feed-forward four times as wide, a value table, a gate of 12
# inputs for each head, embedding and head of 300 words, padded to 320.
TABLE, MATRICES, GATE = 320 * 16, 4 * 16 * 16 + 2 * 16 * 64, 12 * 2
PARAMETERS = 3 * TABLE + MATRICES + GATE
MIB = 2**20


@pytest.fixture(scope="module")
def recorded_run(tiny, prepare_run, tmp_path_factory):
    """A run as the launcher makes it: its result.json, and what it said."""
    run = prepare_run(tmp_path_factory.mktemp("costs"), tiny())
    with pytest.MonkeyPatch.context() as patch, io.StringIO() as said:
        patch.setattr("sys.stdout", said)
        run_from_folder(run)
        return records.read_json(run / "result.json"), said.getvalue()


def test_a_seed_offset_makes_the_run_that_this_seed_makes(tiny, prepare_run, tmp_path):
    asked = (("a", 0, 47), ("b", 5, 42), ("c", 0, 42))
    runs = [prepare_run(tmp_path / name, tiny({"train.seed_offset": more}), seed) for name, more, seed in asked]
    for run in runs:
        run_from_folder(run)
    losses = [records.read_json(run / "result.json")["final_val_loss"] for run in runs]
    assert losses[0] == losses[1] != losses[2]


def test_the_speed_of_a_run_is_its_rows_and_its_arithmetic_by_its_time(recorded_run):
    result, _ = recorded_run
    seconds, rows = result["time_seconds"], 4 * 2
    assert result["samples_per_second"] == pytest.approx(rows / seconds)
    assert result["tokens_per_second"] == pytest.approx(rows * 256 / seconds)
    # forward and backward: 6 for each value that is multiplied, 12 x width x context of attention
    flops = rows * 256 * (6 * (MATRICES + GATE + TABLE) + 12 * 16 * 256)
    assert result["flops_per_second"] == pytest.approx(flops / seconds)
    assert result["mfu"] == pytest.approx(flops / seconds / result["matmul_peak"]) and 0 < result["mfu"] < 1


def test_the_peak_is_that_of_the_fastest_large_matrix_product(monkeypatch):
    ticks = iter([0, 0, 0, 0.03, 0.03, 0.03, 0.05, 0.05, 0.05, 0.08, 0.2])  # began; goes on, starts, ends; ...
    monkeypatch.setattr("gptlib.device.time.perf_counter", lambda: next(ticks))
    assert CPU.matmul_peak() == pytest.approx(2 * 512**3 / 0.02)


def test_the_memory_of_a_run_is_that_of_its_tensors(recorded_run):
    memory = recorded_run[0]["memory"]
    assert memory["parameters_mib"] == memory["gradients_mib"] == 4 * PARAMETERS / MIB
    # Muon: a momentum for each value; AdamW: two, and a count of steps for each of its four parameters
    state = 4 * (MATRICES + 2 * (PARAMETERS - MATRICES)) + 4 * 4
    assert memory["optimizer_mib"] == state / MIB
    parts = [memory[f"{part}_mib"] for part in ("parameters", "gradients", "optimizer", "activations")]
    assert memory["tensor_mib"] == pytest.approx(sum(parts)) and min(parts) > 0
    # the head's logits alone: a value for each word at each of 2 x 256 places
    assert parts[3] > 2 * 256 * 320 * 4 / MIB and memory["resident_peak_mib"] > memory["tensor_mib"]
    # Linux counts a process's pages per thread and adds them up in batches: a peak may lie some of them too low
    assert memory["resident_peak_mib"] >= recorded_run[0]["memory_mib"] - 1


def test_the_log_of_a_run_begins_with_what_it_costs(recorded_run):
    parameters, flops, memory, peak, *_ = recorded_run[1].splitlines()
    inside = MATRICES + GATE
    assert parameters.startswith(
        f"{PARAMETERS:,} parameters, {inside:,} of them non-embedding (token embedding 5,120, "
    )
    per_token = 6 * (MATRICES + GATE + TABLE) + 12 * 16 * 256
    assert flops.startswith(f"{per_token:,} training FLOPs/token ") and "2,048 tokens in 4 steps" in flops
    assert memory.startswith("tensor memory, estimated: ") and "activations" in memory
    assert peak == f"matrix products: {recorded_run[0]['matmul_peak'] / 1e9:,.0f} GFLOP/s here"


def test_a_diverged_run_has_no_speed_that_somebody_could_compare(tiny, prepare_run, tmp_path):
    run = prepare_run(tmp_path, tiny(HUGE | {"optim.muon.lr": 1e4}))
    run_from_folder(run)
    result = records.read_json(run / "result.json")
    assert result["status"] == "diverged" and result["muon_precision"] == "float32"
    assert not {"mfu", "samples_per_second", "memory"} & set(result)
