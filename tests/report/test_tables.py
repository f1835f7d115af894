"""Tables hold the numbers they were given, rounded and with units."""

import math

import pytest

from gptlib.report.tables import comparison_table, matched_table, number, summary_table
from gptlib.stats.compare import two_sample

ACCOUNTING = {"total": 1_000_000, "non_embedding": 800_000, "flops_per_token": 6e6, "tokens": 200_000, "steps": 100}


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
        ("flops_per_token", 1.02, "total FLOPs", "free"),
        ("tokens", 1.00001, "tokens", "free"),
        ("time_seconds", 0.985, "time (s)", "matched"),
        ("time_seconds", 1.5, "time (s)", "free"),
    ],
)
def test_matched_within_tolerance(key: str, factor: float, row: str, fit: str) -> None:
    baseline = ACCOUNTING | {"time_seconds": 20.0}
    table = matched_table(baseline, baseline | {key: baseline[key] * factor})
    assert table.loc[row, "fit"] == fit
    assert table.loc[row, "ratio"] == f"{factor:.4f}"
    assert table.loc["steps", "fit"] == "matched"
    assert table.loc["total FLOPs", "baseline"] == "1.2e+12"


def test_unknown_quantities_are_neither_matched_nor_free() -> None:
    table = matched_table(ACCOUNTING, {"total": 1_000_000})
    assert table.loc["parameters", "fit"] == "matched"
    assert list(table.loc["time (s)"]) == list(table.loc["total FLOPs", ["ratio"]]) * 4 == ["–"] * 4


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
