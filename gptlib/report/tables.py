"""Tables for people: numbers as text with units and constant digits; what is missing is an en dash."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from gptlib.data.dataset import Dataset
from gptlib.data.tokenizers import Efficiency
from gptlib.matching import TOLERANCE
from gptlib.stats.compare import Comparison, holm_by_name
from gptlib.study.arms import GridPoint, best_point
from gptlib.study.hypothesis import Ablation
from gptlib.study.stability import Stability

MISSING = "–"
# Row, key, format, and the relative tolerance within which the two experiments count as matched.
MATCHED_ROWS = (
    ("parameters", "total", "{:,.0f}", TOLERANCE["params"]),
    ("non-embedding parameters", "non_embedding", "{:,.0f}", TOLERANCE["params"]),
    ("FLOPs/token", "flops_per_token", "{:.4g}", TOLERANCE["flops"]),
    ("FLOPs/token, PaLM's convention", "flops_per_token_palm", "{:.4g}", TOLERANCE["flops"]),
    ("total FLOPs", "total_flops", "{:.4g}", TOLERANCE["flops"]),
    ("tokens", "tokens", "{:,.0f}", TOLERANCE["tokens"]),
    ("steps", "steps", "{:,.0f}", TOLERANCE["steps"]),
    ("rows per step", "batch_rows", "{:,.0f}", 0.0),
    ("time alone on the machine (s)", "trial_seconds", "{:.1f}", TOLERANCE["time"]),
    ("time as run (s)", "time_seconds", "{:.1f}", None),  # beside other runs: no claim
    ("tensor memory (MiB)", "tensor_mib", "{:.1f}", TOLERANCE["memory"]),
)
# What the runs of an experiment have shown besides.
MEASURED_ROWS = (
    ("MFU", "mfu", "{:.0%}"),
    ("GPU memory, peak (MiB)", "allocated_peak_mib", "{:,.0f}"),
    ("GPU memory reserved, peak (MiB)", "reserved_peak_mib", "{:,.0f}"),
    ("resident set, peak (MiB)", "resident_peak_mib", "{:,.0f}"),
)


def comparison_table(comparisons: Mapping[str, Comparison]) -> pd.DataFrame:
    """One row per variant: verdict, difference to the baseline ± half its 1 - alpha interval, p-values, and so on.

    With several variants, `p (Holm)` is corrected for asking several questions of one baseline.
    """
    adjusted = holm_by_name(comparisons)
    rows = [
        {
            "variant": name,
            "verdict": c.verdict,
            "difference": plus_minus(c.difference, half_width(c.low, c.high), sign=True),
            "percent": number(c.percent, "{:+.2f} %"),
            "p": number(c.p_value, "{:.2g}"),
            **({"p (Holm)": number(adjusted.get(name), "{:.2g}")} if len(comparisons) > 1 else {}),
            "p (equivalence)": number(c.p_equivalence, "{:.2g}"),
            "detectable": number(c.minimum_detectable),
            "runs": f"{c.n_baseline} vs {c.n_variant}",
            "test": c.test,
            "noise cut by pairing": number(c.variance_reduction, "{:.1f}x"),
        }
        for name, c in comparisons.items()
    ]
    return _indexed(rows, "variant")


def matched_table(
    baseline: Mapping[str, Any], variant: Mapping[str, Any], confounded: Iterable[str] = ()
) -> pd.DataFrame:
    """What the two experiments have in common, what was left free, and what of that could explain the verdict.

    Both mappings as study.experiment.compared_costs gives them; quantities that neither has are left out. Matched:
    within matching.TOLERANCE. `confounded`: resources as matching.confounders names them.
    """
    rows = []
    for row, key, form, tolerance in MATCHED_ROWS:
        old, new = (side.get(key) for side in (baseline, variant))
        ratio = new / old if old and new is not None else None
        known = ratio is not None and tolerance is not None
        fit = MISSING if not known else "matched" if abs((ratio or 0) - 1) <= (tolerance or 0) else "free"
        if fit == "free" and any(row.startswith((name, f"total {name}", f"tensor {name}")) for name in confounded):
            fit = "confounded"
        if old is not None or new is not None:
            pair = {"baseline": number(old, form), "variant": number(new, form)}
            rows.append({"quantity": row, **pair, "ratio": number(ratio), "fit": fit})
    return _indexed(rows, "quantity")


def summary_table(summaries: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per experiment, from the contents of summary.json files; mean over seeds ± half the interval.

    HellaSwag has a column where one of them was asked, with the scoring and the tokenizer that its figure goes by.
    """
    summaries = list(summaries)
    asked = any(lookup(s, "statistics", "hellaswag") for s in summaries)
    rows = [
        {
            "experiment": lookup(s, "experiment_name") or MISSING,
            "status": lookup(s, "status") or MISSING,
            "runs": runs_text(s),
            "val loss (nats/token)": mean_text(lookup(s, "statistics", "val_loss")),
            "excess": mean_text(lookup(s, "statistics", "excess")),
            "bits/byte": number(lookup(s, "statistics", "bits_per_byte", "mean")),
            **({"HellaSwag acc_norm": hellaswag_text(lookup(s, "statistics", "hellaswag"))} if asked else {}),
            "time (s)": number(lookup(s, "statistics", "time", "mean"), "{:.1f}"),
            "tokens/s": number(lookup(s, "tokens_per_second"), "{:,.0f}"),
            "verdict": lookup(s, "comparison", "verdict") or MISSING,
        }
        for s in summaries
    ]
    return _indexed(rows, "experiment")


def accounting_table(values: Mapping[str, Any]) -> pd.DataFrame:
    """Planned costs of one run, as matched_table names them."""
    rows = [{"quantity": row, "of one run": number(values.get(key), form)} for row, key, form, _ in MATCHED_ROWS]
    return _indexed([row for row in rows if row["of one run"] != MISSING], "quantity")


def parts_table(parts: Mapping[str, int]) -> pd.DataFrame:
    """Parameters by part, as accounting.parameters_by_part counts them."""
    total = sum(parts.values())
    rows = [{"part": name, "parameters": f"{n:,}", "share": f"{n / total:.1%}"} for name, n in parts.items()]
    return _indexed([*rows, {"part": "total", "parameters": f"{total:,}", "share": "100.0%"}], "part")


def cost_table(costs: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """One row per experiment: what a run of it costs, and what its runs took; quantities that none has are left out."""
    columns = [(row, key, form) for row, key, form, _ in MATCHED_ROWS] + list(MEASURED_ROWS)
    known = [column for column in columns if any(values.get(column[1]) is not None for values in costs.values())]
    rows = [
        {"experiment": name} | {row: number(values.get(key), form) for row, key, form in known}
        for name, values in costs.items()
    ]
    return _indexed(rows, "experiment")


def tuning_table(grid: Iterable[GridPoint], metric: str = "val loss (nats/token)") -> pd.DataFrame:
    """Mean final loss, or another metric, of every point of both arms' grids; the best of an arm is marked."""
    points = list(grid)
    best = [best_point([p for p in points if p.arm == arm]) for arm in ("baseline", "variant")]
    rows = [
        {
            "arm": p.arm,
            "values": ", ".join(
                f"{key} = {format(value, 'g') if isinstance(value, float) else value}"
                for key, value in p.values.items()
            ),
            metric: number(p.loss) if p.loss != math.inf else "diverged",
            "": "best" if p in best else "",
        }
        for p in points
    ]
    return _indexed(rows, "arm")


def stability_table(found: Stability) -> pd.DataFrame:
    """A row for every factor tried; the largest stable one is marked."""
    rows = [
        {
            "factor": f"{point.factor:.4g}",
            "learning rate": f"{point.lr:.3g}",
            "diverged": f"{point.diverged} of {point.runs}",
            "first at step": number(point.diverged_at, "{:,}"),
            "val loss (nats/token)": number(point.loss),
            "": "largest stable" if point == found.largest else "",
        }
        for point in found.points
    ]
    return _indexed(rows, "factor")


def sizes_table(sizes: pd.DataFrame) -> pd.DataFrame:
    """One row per base, one column per variant: its difference to the baseline of that base, and the verdict."""
    rows: dict[str, dict[str, str]] = {}
    for r in sizes.to_dict("records"):
        size = {"base": r["base"], "non-embedding parameters": number(r["parameters"], "{:,.0f}")}
        effect = plus_minus(r["difference"], half_width(r["low"], r["high"]), sign=True)
        rows.setdefault(r["base"], size)[r["variant"]] = f"{effect} {r['verdict']}"
    return _indexed(list(rows.values()), "base")


def difference_table(difference: Mapping[str, tuple[Any, Any]]) -> pd.DataFrame:
    """The keys in which a variant's configuration differs from the baseline's."""
    rows = [{"key": key, "baseline": str(old), "variant": str(new)} for key, (old, new) in difference.items()]
    return _indexed(rows, "key")


def dataset_table(dataset: Dataset) -> pd.DataFrame:
    """Documents, tokens and bytes of each split."""
    rows = [
        {
            "split": split,
            "documents": number(counts["documents"], "{:,.0f}"),
            "tokens": number(counts["tokens"], "{:,.0f}"),
            "bytes": number(counts["bytes"], "{:,.0f}"),
            "bytes/token": number(counts["bytes"] / counts["tokens"], "{:.2f}"),
        }
        for split, counts in dataset.manifest["splits"].items()
    ]
    return _indexed(rows, "split")


def shard_table(dataset: Dataset) -> pd.DataFrame:
    """The token files of a dataset: tokens, bytes and the beginning of the checksum."""
    rows = [
        {
            "shard": name,
            "split": split,
            "tokens": f"{len(tokens):,}",
            "bytes": f"{dataset.manifest['files'][name]['bytes']:,}",
            "SHA-256": f"{dataset.manifest['files'][name]['sha256'][:16]}…",
        }
        for split, counts in dataset.manifest["splits"].items()
        for name, tokens in zip(counts["shards"], dataset.tokens(split), strict=True)
    ]
    return _indexed(rows, "shard")


def tokenizer_table(found: Iterable[Efficiency]) -> pd.DataFrame:
    """A row per tokenizer, all built from one sample and measured on one text."""
    rows = [
        {
            "tokenizer": e.name,
            "vocabulary": f"{e.vocab_size:,}",
            "tokens": f"{e.tokens:,}",
            "bytes/token": f"{e.bytes_per_token:.2f}",
            "1 nat/token in bits/byte": f"{e.bits_per_nat:.3f}",
            "bits/byte by frequency": f"{e.unigram_bits:.3f}",
            "built in (s)": f"{e.build_seconds:.2f}",
            "encoded (MB/s)": f"{e.bytes / 1e6 / e.encode_seconds:.1f}",
        }
        for e in found
    ]
    return _indexed(rows, "tokenizer")


def expectation_table(answers: Iterable[tuple[Ablation, Comparison]]) -> pd.DataFrame:
    """What was expected of each ablation before it ran, and what came."""
    rows = [
        {
            "variant": ablation.variant,
            "expected": ablation.expect.text(),
            "found": number(c.percent, "{:+.2f} %"),
            "verdict": c.verdict,
            "expectation": ablation.expect.outcome(c.verdict, c.percent),
        }
        for ablation, c in answers
    ]
    return _indexed(rows, "variant")


def number(value: Any, form: str = "{:.4f}") -> str:
    """`value` formatted, or an en dash where it is no finite number."""
    real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return form.format(value) if real else MISSING


def plus_minus(mean: Any, half: Any, sign: bool = False) -> str:
    """`2.2134 ± 0.0051`; without the interval where there is none."""
    text = number(mean, "{:+.4f}" if sign else "{:.4f}")
    return text if MISSING in (text, number(half)) else f"{text} ± {number(half)}"


def mean_text(statistics: Any) -> str:
    """Mean ± half the width of the interval, from the statistics {"mean", "ci_95": [low, high]} of a summary."""
    return plus_minus(lookup(statistics, "mean"), half_width(*(lookup(statistics, "ci_95") or (None, None))))


def hellaswag_text(scores: Any) -> str:
    """`0.2955 ± 0.0012 (llm.c, gpt2)`: mean over seeds with its interval, scoring, tokenizer."""
    text = mean_text(lookup(scores, "acc_norm"))
    return text if text == MISSING else f"{text} ({lookup(scores, 'scoring')}, {lookup(scores, 'tokenizer')})"


def half_width(low: float | None, high: float | None) -> float | None:
    """Half the width of an interval, where there is one."""
    return None if low is None or high is None else (high - low) / 2


def runs_text(summary: Mapping[str, Any]) -> str:
    """`3`, or `2 of 3 (1 diverged)`: how many runs there are and what became of the others."""
    total, good = (lookup(summary, "statistics", key) for key in ("n_runs", "successful_runs"))
    lost = [(lookup(summary, "statistics", f"{kind}_runs"), kind) for kind in ("diverged", "failed")]
    why = ", ".join(f"{count} {kind}" for count, kind in lost if count)
    if good == total:
        return number(total, "{:.0f}")
    return f"{number(good, '{:.0f}')} of {number(total, '{:.0f}')}" + (f" ({why})" if why else "")


def lookup(mapping: Any, *keys: str) -> Any:
    """The value under nested `keys`, or None where one is missing or not a mapping."""
    for key in keys:
        mapping = mapping.get(key) if isinstance(mapping, Mapping) else None
    return mapping


def _indexed(rows: list[dict[str, str]], index: str) -> pd.DataFrame:
    """The rows under one line of headings, with `index` as the heading of the first column."""
    return pd.DataFrame(rows).set_index(index).rename_axis(index=None, columns=index) if rows else pd.DataFrame()
