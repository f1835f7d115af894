import itertools
import math

import pytest

from gptlib.fields import ScheduleConfig
from gptlib.schedules import lr_multiplier


def curve(steps: int, **fields: object) -> list[float]:
    config = ScheduleConfig.model_validate(fields)
    return [lr_multiplier(config, step / steps) for step in range(steps + 1)]


def test_linear_is_constant_then_falls_to_final() -> None:
    values = curve(10, warmup=0, cooldown=0.6, final=0.1)
    assert values[:5] == [1.0] * 5
    assert values[4:] == pytest.approx([1 - 0.9 * i / 6 for i in range(7)])
    assert values[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_warmup_rises_from_zero_as_in_hugging_face(kind: str) -> None:
    values = curve(20, kind=kind, warmup=0.25, cooldown=0.5)
    assert values[:6] == pytest.approx([step / 5 for step in range(6)])


def test_linear_equals_the_formula_of_modded_nanogpt() -> None:
    for step, value in enumerate(curve(100, cooldown=0.7, final=0)):
        x = step / 100
        assert value == pytest.approx(1.0 if x < 0.3 else (1 - x) / 0.7)


def test_cosine_equals_torch() -> None:
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.2)
    for value in curve(50, kind="cosine", warmup=0, final=0.2):
        assert value == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()


def test_overlapping_warmup_and_cooldown_take_the_smaller() -> None:
    values = curve(4, warmup=1, cooldown=1)
    assert values == pytest.approx([0, 0.25, 0.5, 0.25, 0])


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("cooldown", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("final", [0.0, 0.5, 1.0])
def test_multipliers_stay_between_zero_and_one(kind: str, warmup: float, cooldown: float, final: float) -> None:
    values = curve(30, kind=kind, warmup=warmup, cooldown=cooldown, final=final)
    assert all(math.isfinite(v) and 0 <= v <= 1 for v in values)
    jumps = [abs(a - b) for a, b in itertools.pairwise(values)]
    assert max(jumps) < 0.3  # continuous


def test_progress_outside_the_run_is_a_programming_error() -> None:
    with pytest.raises(AssertionError):
        lr_multiplier(ScheduleConfig(), 1.01)
