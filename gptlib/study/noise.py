"""The noise ledger: what every finished study has measured of the spread over seeds, so that the next can be planned.

outputs/noise.jsonl has one line per baseline and stage: the configuration's class, the spread pooled over the arms
(`sigma`), its degrees of freedom, and the mean correlation between a variant's seeds and the baseline's.
"""

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gptlib import records
from gptlib.stats.power import Noise, pooled_noise
from gptlib.study.experiment import Experiment
from gptlib.study.plan import Plan


def note_noise(outputs: Path, plans: Iterable[Plan]) -> None:
    """Add a line for each stage of `plans` whose baseline and at least one more run are finished; each once."""
    ledger = outputs / "noise.jsonl"
    groups: dict[tuple[str, str], list[Plan]] = {}
    for plan in plans:
        if plan.is_complete():
            groups.setdefault((plan.stage, (plan.baseline() if plan.arms else plan).fingerprint), []).append(plan)
    known = [_identity(row) for row in records.read_jsonl(ledger)]
    for (stage, fingerprint), group in groups.items():
        row = _row(group, stage, fingerprint)
        if row and _identity(row) not in known:
            records.append_jsonl(ledger, row)


def known_noise(outputs: Path, like: str = "") -> Noise:
    """The spread of all lines whose class contains `like`, pooled by degrees of freedom. Raises ValueError for none."""
    rows = [row for row in records.read_jsonl(outputs / "noise.jsonl") if like in row["class"]]
    if not rows:
        known = f"no study {f'like {like!r} ' if like else ''}has measured its noise"
        raise ValueError(f"{outputs / 'noise.jsonl'}: {known}; give --sigma, or run a baseline of a few seeds first")
    return pooled_noise(rows)


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("study", "stage", "fingerprint", "runs"))


def _row(plans: list[Plan], stage: str, fingerprint: str) -> dict[str, Any] | None:
    if all(plan.arms for plan in plans):  # of a repeat only the variants are steps of the study
        plans = [baseline for baseline in [plans[0].baseline()] if baseline.is_complete()] + plans
    arms = [Experiment(plan).finals() for plan in plans]
    spread = [values for values in arms if len(values) > 1]
    df = sum(len(values) - 1 for values in spread)
    if not df:
        return None
    variance = sum(statistics.variance(values.values()) * (len(values) - 1) for values in spread) / df
    base = next((Experiment(plan).finals() for plan in plans if plan.arms is None), {})
    found = [_correlation(base, arm) for plan, arm in zip(plans, arms, strict=True) if plan.arms]
    correlations = [r for r in found if r is not None]
    config = plans[0].baseline().config if plans[0].arms else plans[0].config
    return {
        "class": f"{config.model.num_layers}x{config.model.model_dim} {config.data.corpus}, {config.train.steps} steps",
        "sigma": variance**0.5,
        "df": df,
        "correlation": statistics.fmean(correlations) if correlations else None,
        "runs": sum(map(len, arms)),
        "study": plans[0].study,
        "stage": stage,
        "fingerprint": fingerprint,
        "time": records.utc_now(),
    }


def _correlation(a: dict[int, float], b: dict[int, float]) -> float | None:
    seeds = [seed for seed in a if seed in b]
    if len(seeds) < 3:
        return None  # two points always lie on a line
    try:
        return statistics.correlation([a[s] for s in seeds], [b[s] for s in seeds])
    except statistics.StatisticsError:  # no spread
        return None
