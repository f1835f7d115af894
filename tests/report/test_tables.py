"""Tables hold the numbers they were given, rounded and with units."""

import math

import pandas as pd
import pytest

from gptlib.data.dataset import Dataset
from gptlib.data.tokenizers import Efficiency
from gptlib.fields import RunConfig
from gptlib.report.tables import (
    accounting_table,
    comparison_table,
    cost_table,
    matched_table,
    number,
    parts_table,
    shard_table,
    sizes_table,
    summary_table,
    tokenizer_table,
    tuning_table,
)
from gptlib.stats.compare import two_sample
from gptlib.study.arms import GridPoint

ACCOUNTING = {
    "total": 1_000_000,
    "non_embedding": 800_000,
    "flops_per_token": 6e6,
    "total_flops": 1.2e12,
    "tokens": 200_000,
    "steps": 100,
    "tensor_mib": 40.0,
}


def test_comparison_table_shows_difference_and_half_interval() -> None:
    compared = two_sample([2.30, 2.31, 2.29], [2.40, 2.42, 2.41], margin=0.01)
    assert compared.high is not None and compared.low is not None
    row = comparison_table({"gelu": compared, "one": two_sample([2.3], [2.4])}).loc["gelu"]
    assert row["difference"] == f"+0.1100 ± {(compared.high - compared.low) / 2:.4f}"
    assert (row["percent"], row["runs"], row["verdict"]) == ("+4.78 %", "3 vs 3", "worse")


def test_what_cannot_be_computed_is_a_dash() -> None:
    row = comparison_table({"one": two_sample([2.3], [2.4])}).loc["one"]
    assert row["difference"] == "+0.1000"
    assert (row["p"], row["detectable"], row["p (equivalence)"]) == ("–", "–", "–")


@pytest.mark.parametrize(
    ("key", "factor", "row", "fit"),
    [
        ("total", 1.004, "parameters", "matched"),
        ("total", 1.006, "parameters", "free"),
        ("flops_per_token", 0.991, "FLOPs/token", "matched"),
        ("flops_per_token", 1.02, "FLOPs/token", "free"),
        ("total_flops", 1.02, "total FLOPs", "free"),
        ("tokens", 1.00001, "tokens", "free"),
        ("time_seconds", 1.5, "time as run (s)", "–"),  # it shared the machine
        ("trial_seconds", 1.015, "time alone on the machine (s)", "matched"),
        ("trial_seconds", 1.03, "time alone on the machine (s)", "free"),
        ("tensor_mib", 0.96, "tensor memory (MiB)", "matched"),
        ("tensor_mib", 0.94, "tensor memory (MiB)", "free"),
    ],
)
def test_matched_within_tolerance(key: str, factor: float, row: str, fit: str) -> None:
    baseline = ACCOUNTING | {"time_seconds": 20.0, "trial_seconds": 10.0}
    table = matched_table(baseline, baseline | {key: baseline[key] * factor})
    assert table.loc[row, "fit"] == fit
    assert table.loc[row, "ratio"] == f"{factor:.4f}"
    assert table.loc["steps", "fit"] == "matched"
    assert table.loc["total FLOPs", "baseline"] == "1.2e+12"


def test_what_explains_a_verdict_otherwise_is_marked_and_what_only_differs_is_free() -> None:
    baseline = ACCOUNTING | {"time_seconds": 20.0}
    variant = {key: 1.5 * value for key, value in baseline.items()} | {"steps": 100}
    table = matched_table(baseline, variant, {"parameters": 1.5, "FLOPs": 1.5, "memory": 1.5})
    fit = dict(zip(table.index, table["fit"], strict=True))
    assert fit.pop("steps") == "matched"
    confounded = {name for name, word in fit.items() if word == "confounded"}
    assert confounded == {"parameters", "FLOPs/token", "total FLOPs", "tensor memory (MiB)"}
    assert fit.pop("time as run (s)") == "–"
    assert {word for name, word in fit.items() if name not in confounded} == {"free"}
    assert "confounded" not in set(matched_table(baseline, baseline, {"parameters": 1.5})["fit"]), "equal is matched"


def test_unknown_quantities_are_neither_matched_nor_free() -> None:
    table = matched_table(ACCOUNTING, {"total": 1_000_000})
    assert table.loc["parameters", "fit"] == "matched" and table.loc["steps", "baseline"] == "100"
    assert list(table.loc["steps", ["variant", "ratio", "fit"]]) == ["–"] * 3
    assert "time as run (s)" not in table.index, "what neither has is left out"


def test_accounting_table_has_what_is_known() -> None:
    table = accounting_table(ACCOUNTING)
    assert table.loc["tokens", "of one run"] == "200,000" and table.loc["total FLOPs", "of one run"] == "1.2e+12"
    assert len(table) == len(ACCOUNTING)


def test_parts_add_up() -> None:
    table = parts_table({"token embedding": 30_000, "attention": 10_000})
    assert list(table.index) == ["token embedding", "attention", "total"]
    assert list(table["parameters"]) == ["30,000", "10,000", "40,000"]
    assert list(table["share"]) == ["75.0%", "25.0%", "100.0%"]


def test_cost_table_has_a_column_for_what_any_experiment_knows() -> None:
    measured = {"mfu": 0.234, "time_seconds": 12.34, "resident_peak_mib": 1234.5}
    table = cost_table({"baseline": ACCOUNTING, "gelu": ACCOUNTING | measured})
    assert list(table.index) == ["baseline", "gelu"]
    assert list(table["MFU"]) == ["–", "23%"] and list(table["time as run (s)"]) == ["–", "12.3"]
    assert table.loc["gelu", "resident set, peak (MiB)"] == "1,234" and "GPU memory, peak (MiB)" not in table


def test_tuning_table_marks_the_best_of_each_arm_and_what_diverged() -> None:
    losses = {"baseline": {0.01: 3.2, 0.02: 3.1}, "variant": {0.01: math.inf, 0.02: 3.4, 0.04: None}}
    grid = [
        GridPoint(arm, "", {"optim.muon.lr": lr, "optim.muon.weight_decay": 0.1}, RunConfig(), loss)
        for arm, points in losses.items()
        for lr, loss in points.items()
    ]
    table = tuning_table(grid)
    assert list(table.index) == ["baseline"] * 2 + ["variant"] * 3
    assert table["values"].iloc[0] == "optim.muon.lr = 0.01, optim.muon.weight_decay = 0.1"
    assert list(table["val loss (nats/token)"]) == ["3.2000", "3.1000", "diverged", "3.4000", "–"]
    assert list(table[""]) == ["", "best", "", "best", ""]


@pytest.mark.parametrize("value", ["cosine", True, [0.9, 0.95], 3])
def test_whatever_can_be_tuned_can_be_shown(value: object) -> None:
    table = tuning_table([GridPoint("baseline", "", {"schedule.kind": value}, RunConfig(), 3.0)])
    assert table["values"].iloc[0] == f"schedule.kind = {value}"


def test_sizes_table_has_a_row_for_every_base_and_a_column_for_every_variant() -> None:
    rows = [
        {"base": base, "parameters": n, "variant": v, "difference": d, "low": d - 0.01, "high": d + 0.01, "verdict": w}
        for base, n in (("small", 200_000), ("large", 3_000_000))
        for v, d, w in (("gelu", 0.1, "worse"), ("no_rope", -0.1, "better"))
    ]
    rows[3] |= {"difference": None, "low": None, "high": None, "verdict": "worse"}
    table = sizes_table(pd.DataFrame(rows))
    assert list(table.index) == ["small", "large"]
    assert list(table["non-embedding parameters"]) == ["200,000", "3,000,000"]
    assert list(table["gelu"]) == ["+0.1000 ± 0.0100 worse"] * 2
    assert list(table["no_rope"]) == ["-0.1000 ± 0.0100 better", "– worse"]


def test_tokenizer_table_has_what_makes_losses_comparable() -> None:
    row = tokenizer_table([Efficiency("BPE 512", 512, 500_000, 2_000_000, 2.4567, 1.5, 0.5)]).loc["BPE 512"]
    assert (row["vocabulary"], row["tokens"], row["bytes/token"]) == ("512", "500,000", "4.00")
    assert row["1 nat/token in bits/byte"] == "0.361" and row["bits/byte by frequency"] == "2.457"
    assert (row["built in (s)"], row["encoded (MB/s)"]) == ("1.50", "4.0")


def test_shard_table_has_every_shard_with_its_checksum(tiny_dataset: Dataset) -> None:
    table, files = shard_table(tiny_dataset), tiny_dataset.manifest["files"]
    assert list(table.index) == ["train_000000.bin", "val_000000.bin"] and list(table["split"]) == ["train", "val"]
    assert table["tokens"].iloc[1] == f"{len(tiny_dataset.tokens('val')[0]):,}"
    assert table["SHA-256"].iloc[0] == f"{files['train_000000.bin']['sha256'][:16]}…"


def test_summary_table_counts_lost_runs_and_tolerates_nulls() -> None:
    good = {
        "experiment_name": "s/full/a",
        "status": "complete",
        "tokens_per_second": 12345.6,
        "statistics": {"n_runs": 3, "successful_runs": 3, "val_loss": {"mean": 2.5, "ci_95": [2.4, 2.6]}},
    }
    lost = {"statistics": {"n_runs": 3, "successful_runs": 1, "diverged_runs": 2, "val_loss": {"mean": None}}}
    table = summary_table([good, lost])
    assert table.iloc[0]["val loss (nats/token)"] == "2.5000 ± 0.1000"
    assert table.iloc[0]["tokens/s"] == "12,346"
    assert table.iloc[1]["runs"] == "1 of 3 (2 diverged)"
    assert table.iloc[1]["val loss (nats/token)"] == "–"
    assert summary_table([]).empty


@pytest.mark.parametrize("value", [None, "3", math.nan, math.inf, True, [1]])
def test_only_finite_numbers_are_formatted(value: object) -> None:
    assert number(value) == "–"
