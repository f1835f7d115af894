"""Logs of every known form against numbers written down by hand."""

import csv
import io
import json
import math
import random

import pytest

from gptlib.logs import NOTHING, Row, Trial, parse

RULE = "=" * 100
SOURCE = """import os
import sys
def report(step, val_loss):
    print0(f"step:{step}/{train_steps} val_loss:{val_loss:.4f} train_time:{t:.0f}ms step_avg:{t / step:.2f}ms")
step:9/9 val_loss:1.0000 train_time:1ms step_avg:1.00ms
"""
ENVIRONMENT = "Running Python 3.12 | PyTorch 2.11\n+-----+-----+\n|=====+=====|"
STEPS = """step:0/100 val_loss:10.8258 train_time:0ms step_avg:nanms
step:1/100 train_time:57ms step_avg:57.21ms
step:50/100 val_loss:4.5000 train_time:2860ms step_avg:57.20ms
step:100/100 val_loss:3.2775 train_time:5722ms step_avg:57.22ms
"""
HEAD = f"{SOURCE}{'-' * 40}\n{SOURCE}{RULE}\n{ENVIRONMENT}\n{RULE}\n"
TRACK_1 = f"{HEAD}{STEPS}peak memory allocated: 30220 MiB reserved: 38672 MiB\n"


def log(text: str, loss: str = "val_loss") -> list[Trial]:
    return parse(text, ".txt", loss)


def test_a_log_of_the_short_track_without_its_source() -> None:
    rows = (Row(0, 10.8258, None, 0.0), Row(50, 4.5, None, 2860.0, 57.2), Row(100, 3.2775, None, 5722.0, 57.22))
    assert log(TRACK_1) == [Trial(rows, planned=100)]


def test_a_log_with_train_losses() -> None:
    [trial] = log(
        "step:0/5100 val_loss:10.9742 train_time:251ms step_avg:nanms\n"
        "step:1/5100 train_loss:10.9760 train_time:311ms step_avg:nanms\n"
        "step:2/5100 train_loss:10.5432 train_time:622ms step_avg:77.75ms\n"
    )
    assert trial.rows == (
        Row(0, 10.9742, None, 251.0),
        Row(1, None, 10.976, 311.0),
        Row(2, None, 10.5432, 622.0, 77.75),
    )


def test_trials_of_the_optimization_track_in_seconds() -> None:
    lines = "step:0/3250 val_loss:10.82584 train_time:0.000s step_avg:nanms\n"
    lines += "step:3250/3250 val_loss:3.27722 train_time:503.169s step_avg:155.25ms\n"
    found = log(HEAD + lines + lines.replace("3.27722", "3.27801").replace("503.169", "504"))
    assert [trial.rows[-1] for trial in found] == [
        Row(3250, 3.27722, None, 503169.0, 155.25),
        Row(3250, 3.27801, None, 504000.0, 155.25),
    ]
    assert [len(trial.rows) for trial in found] == [2, 2]


def test_two_logs_in_one_file_are_two_trials() -> None:
    assert len(log(TRACK_1 + TRACK_1.replace("3.2775", "3.2811"))) == 2


def test_trials_that_only_say_their_last_step() -> None:
    line = "step:100/100 val_loss:3.2{} train_time:5722ms step_avg:57.22ms\n"
    assert [t.rows[0].val_loss for t in log(line.format("775") + line.format("811"))] == [3.2775, 3.2811]


def test_the_loss_to_judge_by() -> None:
    line = "step:2690/2900 val_loss:3.28010 val_avg_loss:3.28000 val_ema_loss:3.27830 train_time:9.5s step_avg:3.5ms"
    assert log(line + "\n")[0].rows == (Row(2690, 3.2801, None, 9500.0, 3.5),)
    assert log(line + " ema_beta:0\n", "val_ema_loss")[0].rows == (Row(2690, 3.2783, None, 9500.0, 3.5),)
    with pytest.raises(ValueError, match="No validation loss captured"):
        log(line + "\n", "val_median_loss")


def test_the_output_of_nanogpt() -> None:
    [trial] = log(
        "number of parameters: 10.65M\n"
        "step 0: train loss 4.2874, val loss 4.2823\n"
        "iter 0: loss 4.2599, time 27352.72ms, mfu -100.00%\n"
        "iter 10: loss 3.1404, time 39.11ms, mfu 9.53%\n"
        "step 250: train loss 1.9543, val loss 2.0538\n"
        "saving checkpoint to out\n"
    )
    assert trial.rows == (
        Row(0, 4.2823, 4.2874, None, 27352.72),  # the mean of an evaluation before the loss of one batch
        Row(10, None, 3.1404, None, 39.11),
        Row(250, 2.0538, 1.9543),
    )


def test_the_log_of_llm_c() -> None:
    [trial] = log("s:0 tel:10.968871\ns:0 trl:10.965596\ns:1 trl:10.814037 lr:0.1 norm:1.2\ns:250 tel:6.3097\n")
    assert trial.rows == (Row(0, 10.968871, 10.965596), Row(1, None, 10.814037), Row(250, 6.3097))


def test_a_resumed_run_goes_on() -> None:
    text = "step 0: train loss 4.0, val loss 4.1\nstep 250: train loss 3.0, val loss 3.1\n"
    text += "step 500: train loss 2.0, val loss 2.1\nstep 250: train loss 3.0, val loss 3.2\n"
    [trial] = log(text)
    assert [row.val_loss for row in trial.rows] == [4.1, 3.2, 2.1]


@pytest.mark.parametrize(
    ("end", "steps", "torn"),
    [
        ("step:100/100 val_loss:3.2775 train_time:5722ms step_avg:57.22ms", 3, False),  # whole but for its end
        ("step:100/100 val_loss:3.2775 train_time:5722ms step_avg:57.2", 2, True),
        ("step:100/100 val_loss:3.27", 2, True),
        ("step:100/1", 2, True),
        ("step:", 2, True),
        ("peak memory all", 2, False),
    ],
)
def test_a_torn_log_gives_what_is_whole(end: str, steps: int, torn: bool) -> None:
    [trial] = log(HEAD + "".join(STEPS.splitlines(keepends=True)[:-1]) + end)
    assert len(trial.rows) == steps
    assert trial.broken == ("cut off in the middle of a line" if torn else "")


def test_every_cut_of_a_log_is_read_or_refused() -> None:
    whole = {(row.step, row.val_loss, row.train_time_ms) for row in log(TRACK_1)[0].rows}
    for end in range(len(HEAD), len(TRACK_1)):
        try:
            [trial] = log(TRACK_1[:end])
        except ValueError as error:
            assert str(error) == NOTHING
            assert STEPS.splitlines()[0] + "\n" not in TRACK_1[len(HEAD) : end]
        else:
            found = {(row.step, row.val_loss, row.train_time_ms) for row in trial.rows}
            assert found <= whole or end < len(HEAD) + 80, "within the first line nothing can be compared"


def test_losses_that_are_no_numbers_stay() -> None:
    [trial] = log(
        "step:0/9 val_loss:10.8 train_time:0ms step_avg:nanms\nstep:9/9 val_loss:nan train_time:5ms step_avg:1ms\n"
    )
    assert math.isnan(trial.rows[1].val_loss or 0)


@pytest.mark.parametrize("text", ["", "torch==2.11\nnumpy\n", SOURCE, HEAD, "iter 0: loss 4.2, time 5ms, mfu 1%\n"])
def test_no_validation_loss(text: str) -> None:
    with pytest.raises(ValueError, match="crash before the first validation, or another output format"):
        log(text)


# --- tables and JSON --------------------------------------------------------------------------------------------


def random_trials(seed: int) -> list[Trial]:
    """Trials of three runs with seeds and some values missing."""
    chance = random.Random(seed)

    def value() -> float | None:
        return chance.choice([None, chance.uniform(0, 11), float(chance.randrange(10**6))])

    def trial(number: int) -> Trial:
        rows = [Row(step, value(), value(), value(), value()) for step in sorted(chance.sample(range(10**4), 5))]
        return Trial((*rows, Row(10**4, 3.0)), seed=number)

    return [trial(seed + number) for number in range(3)]


def as_rows(trials: list[Trial]) -> list[dict[str, float]]:
    rows = [{"run_id": i, "seed": t.seed} | vars(row) for i, t in enumerate(trials) for row in t.rows]
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


def as_csv(trials: list[Trial]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, ["run_id", "seed", *vars(Row(0))])
    writer.writeheader()
    writer.writerows(as_rows(trials))
    return file.getvalue()


@pytest.mark.parametrize("seed", range(30))
def test_what_is_written_is_read_again(seed: int) -> None:
    trials = random_trials(seed)
    assert parse(as_csv(trials), ".csv") == trials
    assert parse("".join(json.dumps(row) + "\n" for row in as_rows(trials)), ".jsonl") == trials
    assert parse(json.dumps(as_rows(trials)), ".json") == trials
    tracker = {"config": {"seed": trials[0].seed}, "metrics": as_rows(trials[:1])}
    assert parse(json.dumps(tracker), ".json") == trials[:1]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("step,val_loss\n0,4.5\n10,2.5\n", (Row(0, 4.5), Row(10, 2.5))),
        ("\ufeffIter;train/loss;val/loss\n5;3.5;\n10;2.5;2.75\n", (Row(5, None, 3.5), Row(10, 2.75, 2.5))),
        ("Global Step\tValidation Loss\tElapsed (s)\n10\t2.75\t1.5\n", (Row(10, 2.75, None, 1500.0),)),
        ("iteration,eval_loss,loss,iter_time_ms,lr\n1e3,2.75,3,20,0.1\n", (Row(1000, 2.75, 3.0, None, 20.0),)),
    ],
)
def test_headings_of_others(text: str, rows: tuple[Row, ...]) -> None:
    assert parse(text, ".csv") == [Trial(rows)]


def test_variants_of_a_table_are_trials() -> None:
    found = parse("variant,seed,step,val_loss\na,1,5,2\nb,1,5,3\na,2,5,4\n", ".csv")
    assert [(t.name, t.seed, t.rows[0].val_loss) for t in found] == [("a", 1, 2.0), ("b", 1, 3.0), ("a", 2, 4.0)]


@pytest.mark.parametrize(
    ("text", "suffix", "message"),
    [
        ("epoch,val_loss\n1,2\n", ".csv", "line 2: no step or iteration among epoch, val_loss; name the column 'step'"),
        ("step,val_loss\n1,2\n2,three\n", ".csv", "line 3: could not convert string to float: 'three'"),
        ("step,loss\n1,2\n", ".csv", "No validation loss captured"),
        ("step,val_loss\ninf,2\n", ".csv", "line 2: cannot convert float infinity"),
        ('{"step": 1}\n{"st\n{"step": 3}\n', ".jsonl", "line 2: not JSON"),
        ("[1, 2]", ".json", "entry 1: not a mapping"),
        ('{"config": {}, "metr', ".json", "not JSON"),
        ("3", ".json", "No validation loss captured"),
        ("{}", ".json", "No validation loss captured"),
    ],
)
def test_broken_tables_are_told(text: str, suffix: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text, suffix)


def test_a_torn_table_gives_its_whole_rows() -> None:
    [trial] = parse("step,val_loss,train_loss\n1,2,3\n2,1.", ".csv")
    assert trial == Trial((Row(1, 2.0, 3.0),), broken="its last row is broken off")
    [trial] = parse('{"step": 1, "val_loss": 2.0}\n{"step": 2, "val_', ".jsonl")
    assert trial == Trial((Row(1, 2.0),), broken="its last row is broken off")


def test_the_file_of_an_experiment_tracker() -> None:
    content = {
        "config": {"experiment_name": "baseline_tinystories", "seed": 7, "max_iters": 101, "d_model": 512},
        "metrics": [
            {"iteration": 0, "train_loss": 9.5, "learning_rate": 0.0, "tokens_per_sec": 1000, "iter_time_ms": 16.0},
            {"iteration": 100, "train_loss": 4.5, "learning_rate": 6e-4, "tokens_per_sec": 1000, "iter_time_ms": 15.0},
        ],
        "evals": {"iteration": [0, 100], "val_loss": [9.75, 4.75]},
        "best_val_loss": 4.75,
        "duration_seconds": 3.5,
        "notes": "standard",
    }
    rows = Row(0, 9.75, 9.5, None, 16.0), Row(100, 4.75, 4.5, 3500.0, 15.0)
    assert parse(json.dumps(content), ".json") == [Trial(rows, "baseline_tinystories", 7, planned=100)]
