"""What the statistics ask of the numbers they are given; every refusal is one sentence that says what to do."""

import math
from collections.abc import Iterable, Mapping

import numpy as np

# A spread below this share of the values themselves is rounding, not noise between seeds.
ROUNDING = 1e-12


def finite(values: Iterable[float] | Mapping[int, float], name: str) -> np.ndarray:
    """`values` (of {seed: value} the values) as float64. Raises ValueError for none and for non-finite ones."""
    sample = np.asarray(list(values.values() if isinstance(values, Mapping) else values), dtype=np.float64)
    if not len(sample):
        raise ValueError(f"{name}: empty; at least one finished run is needed")
    if not np.isfinite(sample).all():
        raise ValueError(f"{name}: {(~np.isfinite(sample)).sum()} non-finite; decide first what a diverged run counts")
    return sample


def several(values: Iterable[float] | Mapping[int, float], name: str) -> np.ndarray:
    """`finite`, and at least two. Raises ValueError."""
    sample = finite(values, name)
    if len(sample) < 2:
        raise ValueError(f"{name}: one run shows no noise; give at least two seeds")
    return sample


def is_constant(sample: np.ndarray, scale: float = 0.0) -> bool:
    """Whether `sample` spreads by no more than rounding of its own values, or of values as large as `scale`."""
    return bool(sample.std() <= ROUNDING * max(scale, float(np.abs(sample).max())))


def require_spread(sample: np.ndarray, name: str, scale: float = 0.0) -> None:
    """Raises ValueError where is_constant."""
    if is_constant(sample, scale):
        raise ValueError(f"{name}: no spread over seeds, so no noise to test against; check that the seeds differ")


def require_share(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name}={value}: give a number between 0 and 1")


def require_test(test: str) -> None:
    if test not in ("welch", "pooled", "paired"):
        raise ValueError(f"test={test!r}: use 'welch', 'pooled' or 'paired'")


def require_alpha(alpha: float) -> None:
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha={alpha}: give the share of false claims, between 0 and 0.5, such as 0.05")


def require_margin(margin: float) -> None:
    if not (math.isfinite(margin) and margin >= 0):
        raise ValueError(f"margin={margin}: give the smallest difference that matters, 0 or more")


def require_positive(value: float, name: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value}: give a number above 0")
