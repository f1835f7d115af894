"""Training: the same run from the same seed, whatever is measured beside it and however its batch is cut."""

import copy
import math

import numpy as np
import pytest
import torch

from gptlib.data.loader import Batch, training_batches, training_rows
from gptlib.device import Place
from gptlib.evaluate import evaluate
from gptlib.train import accumulate_gradients, average_over_ranks, clip_gradients, train

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
    lengths = training_rows(tiny_dataset, tiny({"model.seq_len": 224})).lengths
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


def test_ranks_weigh_by_their_scored_targets(uneven, monkeypatch):
    model, batch = uneven
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
