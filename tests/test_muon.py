"""Muon: against singular values in fp64, one matrix at a time, against torch's own, and over several processes.

Run as a script, `test_muon.py RANK FOLDER` is one process of three.
"""

import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from gptlib.checkpoint import load_checkpoint, save_checkpoint
from gptlib.muon import (
    NEWTON_SCHULZ,
    ORTHOGONALIZE,
    POLAR_EXPRESS,
    Muon,
    balanced,
    convergent,
    newton_schulz,
    polar_express,
)

SHAPES = [(1, 24, 24), (3, 16, 64), (2, 64, 16), (2, 1, 9)]


def matrices(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mapped_singular_values(g: Tensor, triples: list[tuple[float, float, float]], safety: float, eps: float) -> Tensor:
    """U p(S) V^T in fp64 by SVD: what the matrix iteration has to compute."""
    u, s, vt = torch.linalg.svd(g, full_matrices=False)
    s = s / (safety * s.norm(dim=-1, keepdim=True) + eps)
    for a, b, c in triples:
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag_embed(s) @ vt


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_iterations_equal_their_polynomial_of_the_singular_values(shape: tuple[int, ...]) -> None:
    g = matrices(shape)
    polar = mapped_singular_values(g, list(POLAR_EXPRESS), 1.02, 1e-6)
    newton = mapped_singular_values(g, [NEWTON_SCHULZ] * 5, 1.0, 1e-7)
    torch.testing.assert_close(polar_express(g.float()).double(), polar, atol=2e-4, rtol=0)
    torch.testing.assert_close(newton_schulz(g.float()).double(), newton, atol=2e-4, rtol=0)
    for iterations in (3, 12):
        expected = mapped_singular_values(g, [(2.0, -1.5, 0.5)] * iterations, 1.0, 1e-7)
        torch.testing.assert_close(convergent(g.float(), iterations).double(), expected, atol=2e-4, rtol=0)


def spread_out(smallest: float) -> Tensor:
    """A 48 x 48 matrix with singular values from `smallest` times its Frobenius norm up."""
    u, v = (torch.linalg.qr(matrices((48, 48), seed)).Q for seed in (1, 2))
    s = torch.logspace(math.log10(smallest), math.log10(0.3), 48, dtype=torch.float64)
    s[-1] = (1 - s[:-1].square().sum()).sqrt()
    return (u @ torch.diag(s) @ v).float().unsqueeze(0)


def test_singular_values_end_in_the_documented_bands() -> None:
    newton, newton_10 = (torch.linalg.svdvals(newton_schulz(spread_out(0.002), n)) for n in (5, 10))
    polar, polar_4 = (torch.linalg.svdvals(polar_express(spread_out(0.001), n)) for n in (5, 4))
    bands = ((newton, 0.68, 1.21), (newton_10, 0.68, 1.14), (polar, 0.84, 1.15), (polar_4, 0.40, 1.58))
    for values, low, high in bands:
        assert low <= values.min().item() < 0.95 and 1.05 < values.max().item() <= high


@pytest.mark.parametrize("shape", [(1, 32, 32), (1, 32, 96), (1, 96, 32)], ids=str)
def test_polar_express_is_close_to_the_polar_factor(shape: tuple[int, ...]) -> None:
    g = matrices(shape)
    u, _, vt = torch.linalg.svd(g, full_matrices=False)
    result = polar_express(g.float()).double()
    assert (result - u @ vt).norm() / (u @ vt).norm() < 0.15
    assert torch.cosine_similarity(result.flatten(), (u @ vt).flatten(), dim=0) > 0.99


@pytest.mark.parametrize("shape", [(2, 48, 48), (2, 32, 96), (2, 96, 32)], ids=str)
def test_twelve_convergent_iterations_give_the_polar_factor(shape: tuple[int, ...]) -> None:
    """Singular values from 1 % of the Frobenius norm up; Jordan's quintic would stay in a band around 1."""
    u, _, vt = torch.linalg.svd(matrices(shape), full_matrices=False)
    s = torch.logspace(math.log10(0.01), math.log10(0.3), u.shape[-1], dtype=torch.float64)
    s[-1] = (1 - s[:-1].square().sum()).sqrt()
    g = (u * s.unsqueeze(-2)) @ vt
    torch.testing.assert_close(convergent(g.float(), 12).double(), u @ vt, atol=1e-4, rtol=0)
    assert (newton_schulz(g.float(), 12).double() - u @ vt).abs().max() > 0.01
    assert (convergent(g.float(), 5).double() - u @ vt).abs().max() > 0.01  # not there yet


@pytest.mark.parametrize("orthogonalize", [newton_schulz, polar_express, convergent])
def test_batched_equals_one_by_one_and_transposing_commutes(orthogonalize: Callable[[Tensor], Tensor]) -> None:
    g = matrices((4, 16, 48)).float()
    together = orthogonalize(g)
    torch.testing.assert_close(together, torch.cat([orthogonalize(m.unsqueeze(0)) for m in g]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(orthogonalize(g.mT), together.mT, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("orthogonalize", [newton_schulz, polar_express, convergent])
def test_zero_and_tiny_gradients(orthogonalize: Callable[[Tensor], Tensor]) -> None:
    assert torch.equal(orthogonalize(torch.zeros(2, 8, 4)), torch.zeros(2, 8, 4))
    assert torch.isfinite(orthogonalize(torch.full((1, 8, 4), 1e-30))).all()


def test_dtype_can_be_chosen_and_the_result_keeps_that_of_the_input() -> None:
    g = matrices((1, 32, 64)).float()
    low = polar_express(g, dtype=torch.bfloat16)
    assert low.dtype == torch.float32
    assert 1e-4 < (low - polar_express(g)).norm() / g.shape[1] ** 0.5 < 0.1


# --- the optimizer against one matrix at a time -----------------------------------------------------------------

POLYNOMIALS = {
    "newton_schulz": ([NEWTON_SCHULZ] * 5, 1.0, 1e-7),
    "convergent": ([(2.0, -1.5, 0.5)] * 5, 1.0, 1e-7),
    "polar_express": (list(POLAR_EXPRESS), 1.02, 1e-6),
}
DEFAULTS = {"lr": 0.02, "momentum": 0.95, "nesterov": True, "weight_decay": 0.0, "cautious": False}
DEFAULTS |= {"orthogonalize": "polar_express", "normuon": False, "beta2": 0.95}


class Plain:
    """Muon of one matrix in fp64: no batches, no transposing, singular values in place of matrix products."""

    def __init__(self, weight: Tensor, **settings: Any) -> None:
        self.w, self.settings = weight.detach().double().clone(), DEFAULTS | settings
        self.m, self.s = torch.zeros_like(self.w), 0.0

    def step(self, gradient: Tensor) -> None:
        lr, mu, nesterov, decay, cautious, orthogonalize, normuon, beta2 = (self.settings[key] for key in DEFAULTS)
        g, (rows, cols) = gradient.double(), self.w.shape
        self.m = mu * self.m + (1 - mu) * g
        o = mapped_singular_values((1 - mu) * g + mu * self.m if nesterov else self.m, *POLYNOMIALS[orthogonalize])
        if normuon:  # one value for each row if rows >= cols, else for each column
            v = o.square().mean(1 if rows >= cols else 0, keepdim=True)
            self.s = beta2 * self.s + (1 - beta2) * v
            even = o / self.s.clamp(min=1e-10).sqrt()
            o = even * o.norm() / even.norm()
        decayed = torch.where(o * self.w >= 0, self.w, 0.0) if cautious else self.w
        self.w = self.w - lr * decay * decayed - lr * max(1, rows / cols) ** 0.5 * o


def parameters(*shapes: tuple[int, int]) -> list[nn.Parameter]:
    return [nn.Parameter(matrices(shape, i).float()) for i, shape in enumerate(shapes)]


def give_gradients(params: list[nn.Parameter], step: int) -> list[Tensor]:
    """Rows and columns of different sizes, so that it matters along which of them NorMuon divides."""
    gradients = []
    for i, p in enumerate(params):
        rows, cols = (torch.linspace(0.2, 2.0, n, dtype=torch.float64) for n in p.shape)
        gradients.append((matrices(tuple(p.shape), 100 * (step + 1) + i) * rows[:, None] * cols.flip(0)).float())
        p.grad = gradients[-1].clone()
    return gradients


def assert_equal_to_plain(groups: list[tuple[list[tuple[int, int]], dict[str, Any]]], steps: int = 4) -> None:
    """One optimizer over groups of (shapes, settings), against a Plain for each matrix or block of it."""
    params = parameters(*[shape for shapes, _ in groups for shape in shapes])
    own, plain = iter(params), []
    members = [([next(own) for _ in shapes], settings) for shapes, settings in groups]
    for group, settings in members:
        rest = {key: value for key, value in settings.items() if key in DEFAULTS}
        plain += [[Plain(b, **rest) for b in p.detach().split(settings.get("block_rows") or len(p))] for p in group]
    optimizer = Muon([{"params": group, **settings} for group, settings in members])
    for step in range(steps):
        gradients = give_gradients(params, step)
        optimizer.step()
        assert all(p.grad is not None and torch.equal(p.grad, g) for p, g in zip(params, gradients, strict=True))
        for blocks, gradient in zip(plain, gradients, strict=True):
            for block, part in zip(blocks, gradient.split(len(blocks[0].w)), strict=True):
                block.step(part)
    for p, blocks in zip(params, plain, strict=True):
        expected = torch.cat([block.w for block in blocks])
        torch.testing.assert_close(
            p.detach().double(), expected, atol=1e-4, rtol=0, msg=lambda m, p=p: f"{p.shape}: {m}"
        )


TALL_WIDE_SQUARE = [(24, 6), (6, 24), (12, 12), (24, 6), (12, 12), (1, 9), (9, 1)]
HALVES = {"lr": 0.1, "momentum": 0.5}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no_nesterov": {"lr": 0.1, "momentum": 0.9, "nesterov": False},
    "no_momentum": {"lr": 0.1, "momentum": 0.0},
    "decay": HALVES | {"weight_decay": 0.5},
    "cautious": HALVES | {"weight_decay": 0.5, "cautious": True},
    "normuon": HALVES | {"normuon": True},
    "normuon_without_memory": HALVES | {"normuon": True, "beta2": 0.0},
    "everything": HALVES | {"normuon": True, "beta2": 0.9, "weight_decay": 0.5, "cautious": True, "nesterov": False},
}


@pytest.mark.parametrize("orthogonalize", POLYNOMIALS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_equal_those_of_each_matrix_alone(variant: str, orthogonalize: str) -> None:
    assert_equal_to_plain([(TALL_WIDE_SQUARE, VARIANTS[variant] | {"orthogonalize": orthogonalize})])


@pytest.mark.parametrize("orthogonalize", POLYNOMIALS)
@pytest.mark.parametrize("variant", ["default", "decay", "normuon", "everything"])
def test_blocks_of_rows_are_matrices_of_their_own(variant: str, orthogonalize: str) -> None:
    """Wide, tall and square blocks of wide, tall and square matrices; a block may be the whole."""
    shapes = [(12, 24), (24, 12), (12, 12), (24, 3), (6, 6), (24, 6)]
    assert_equal_to_plain([(shapes, VARIANTS[variant] | {"orthogonalize": orthogonalize, "block_rows": 6})])


def test_groups_of_different_settings_share_an_optimizer() -> None:
    """The same shapes in all of them, blocks included: what is batched together keeps its own settings."""
    shapes = [(12, 12), (24, 12), (12, 24)]
    assert_equal_to_plain(
        [
            (shapes, {"lr": 0.1}),
            (shapes, {"lr": 0.05, "momentum": 0.3, "weight_decay": 0.5}),
            (shapes, {"lr": 0.1, "orthogonalize": "newton_schulz", "nesterov": False}),
            (shapes, {"lr": 0.1, "orthogonalize": "convergent", "weight_decay": 0.5, "cautious": True}),
            (shapes, {"lr": 0.1, "normuon": True, "beta2": 0.8}),
            (shapes, {"lr": 0.1, "normuon": True, "beta2": 0.5, "weight_decay": 0.5, "cautious": True}),
            ([(24, 12), (36, 24)], {"lr": 0.1, "block_rows": 12, "normuon": True}),
        ]
    )


def test_the_number_of_iterations_is_the_groups() -> None:
    few, many = parameters((12, 24))[0], parameters((12, 24))[0]
    start = few.detach().double()
    optimizer = Muon([{"params": [few], "iterations": 3}, {"params": [many], "iterations": 12}], 0.1, 0.0, False)
    optimizer.param_groups[0]["orthogonalize"] = optimizer.param_groups[1]["orthogonalize"] = "convergent"
    gradient = give_gradients([few], 0)[0]
    many.grad = gradient.clone()
    optimizer.step()
    for p, iterations in ((few, 3), (many, 12)):
        expected = start - 0.1 * mapped_singular_values(gradient.double(), [(2.0, -1.5, 0.5)] * iterations, 1.0, 1e-7)
        torch.testing.assert_close(p.detach().double(), expected, atol=1e-5, rtol=0)


def test_normuon_brings_rows_to_one_size_and_keeps_the_whole() -> None:
    """By hand: without memory every row of a tall or square update, or column of a wide one, has the same length."""
    for shape, rows in (((24, 6), 24), ((12, 12), 12), ((6, 24), None)):
        p = nn.Parameter(torch.zeros(shape))
        give_gradients([p], 0)
        Muon([p], lr=1.0, orthogonalize="convergent", iterations=20, normuon=True, beta2=0.0).step()
        lengths = p.detach().norm(dim=1 if rows else 0)
        assert lengths.numel() == max(shape)
        scale = max(1, shape[0] / shape[1]) ** 0.5  # an orthogonal matrix has norm sqrt(its smaller side)
        torch.testing.assert_close(lengths, torch.full_like(lengths, scale * (min(shape) / max(shape)) ** 0.5))


def test_a_cautious_weight_decays_only_towards_its_update() -> None:
    """By hand: the update is the identity; the signs of weights agree with it, disagree, or meet a zero."""
    weight = torch.tensor([[2.0, 4.0], [-4.0, -2.0]])
    p = nn.Parameter(weight.clone())
    p.grad = torch.eye(2)
    Muon([p], 0.1, 0.0, weight_decay=0.5, cautious=True, orthogonalize="convergent", iterations=20).step()
    decays = torch.tensor([[1.0, 1.0], [1.0, 0.0]])  # a weight that is not updated decays as well: 0 >= 0
    expected = weight - 0.05 * decays * weight - 0.1 * torch.eye(2)
    torch.testing.assert_close(p.detach(), expected, atol=1e-5, rtol=0)


def test_a_step_takes_the_rates_that_the_group_has_now() -> None:
    """A schedule sets them between two steps: lr, weight decay, momentum."""
    p = parameters((6, 12))[0]
    plain, optimizer = Plain(p), Muon([p], lr=9.0, momentum=0.9)
    for step, (lr, decay, momentum) in enumerate([(0.1, 0.0, 0.5), (0.2, 0.5, 0.9), (0.05, 0.1, 0.0)]):
        rates = {"lr": lr, "weight_decay": decay, "momentum": momentum}
        optimizer.param_groups[0].update(rates)
        plain.settings |= rates
        plain.step(give_gradients([p], step)[0])
        optimizer.step()
    torch.testing.assert_close(p.detach().double(), plain.w, atol=1e-5, rtol=0)


# --- against torch, and precision -------------------------------------------------------------------------------


def way(settings: dict[str, Any], shapes: list[tuple[int, int]], steps: int = 5) -> tuple[Tensor, Tensor]:
    """All weights after some steps of an optimizer (name, settings), one after the other, and where they started."""
    params = parameters(*shapes)
    start = torch.cat([p.detach().double().flatten() for p in params])
    optimizer = settings.pop("optimizer", Muon)(params, lr=0.02, weight_decay=0.1, **settings)
    for step in range(steps):
        give_gradients(params, step)
        optimizer.step()
    return torch.cat([p.detach().double().flatten() for p in params]), start


def exact(shapes: list[tuple[int, int]], orthogonalize: str, steps: int = 5) -> Tensor:
    params = parameters(*shapes)
    plain = [Plain(p, weight_decay=0.1, orthogonalize=orthogonalize) for p in params]
    for step in range(steps):
        for one, gradient in zip(plain, give_gradients(params, step), strict=True):
            one.step(gradient)
    return torch.cat([one.w.flatten() for one in plain])


MANY = [(32, 32), (32, 32), (64, 16), (16, 64)]


def test_agrees_with_torch_muon_and_is_closer_to_exact_arithmetic() -> None:
    """torch.optim.Muon orthogonalises in bf16: some per cent of the way travelled."""
    theirs, start = way({"optimizer": torch.optim.Muon, "momentum": 0.95, "nesterov": True, "ns_steps": 5}, MANY)
    ours, _ = way({"orthogonalize": "newton_schulz", "precision": "fp32"}, MANY)
    low, _ = way({"orthogonalize": "newton_schulz", "precision": "bf16"}, MANY)
    truth = exact(MANY, "newton_schulz")
    travelled = (truth - start).norm()
    assert (ours - theirs).norm() < 0.04 * travelled and (low - theirs).norm() < 0.04 * travelled
    assert 1e-3 * travelled < (theirs - truth).norm() < 0.04 * travelled
    assert (ours - truth).norm() < 1e-2 * (theirs - truth).norm()
    assert (low - truth).norm() < 1.5 * (theirs - truth).norm()


@pytest.mark.parametrize("orthogonalize", POLYNOMIALS)
def test_bf16_differs_from_fp32_by_its_noise_only(orthogonalize: str) -> None:
    fp32, start = way({"orthogonalize": orthogonalize, "precision": "fp32"}, MANY)
    bf16, _ = way({"orthogonalize": orthogonalize, "precision": "bf16"}, MANY)
    auto, _ = way({"orthogonalize": orthogonalize, "precision": "auto"}, MANY)
    assert 1e-4 < (bf16 - fp32).norm() / (fp32 - start).norm() < 0.04
    assert torch.equal(auto, fp32), "auto on a CPU is fp32"


# --- what has no gradient ---------------------------------------------------------------------------------------


def test_a_zero_gradient_moves_nothing() -> None:
    for normuon in (False, True):
        p = parameters((8, 4))[0]
        before, p.grad = p.detach().clone(), torch.zeros_like(p)
        Muon([p], lr=0.1, normuon=normuon).step()
        assert torch.equal(p.detach(), before)


def test_a_parameter_without_gradient_is_left_alone() -> None:
    """Not even decayed; its momentum waits. A layer that has not joined yet has none for a part of the run."""
    settings = {"lr": 0.1, "weight_decay": 0.5, "normuon": True}
    params, never = parameters((8, 4), (8, 4), (4, 8)), parameters((8, 4), (4, 4))
    before = [p.detach().clone() for p in never]
    plain = [Plain(p, **settings) for p in params]
    optimizer = Muon([{"params": [*params, never[0]]}, {"params": never[1:], "block_rows": 2}], **settings)
    for step, absent in enumerate([{1}, set(), {0, 1}, {2}, {0, 1, 2}, set()]):
        for i, gradient in enumerate(give_gradients(params, step)):
            if i in absent:
                params[i].grad = None
            else:
                plain[i].step(gradient)
        optimizer.step()
    for p, one in zip(params, plain, strict=True):
        torch.testing.assert_close(p.detach().double(), one.w, atol=1e-4, rtol=0)
        torch.testing.assert_close(optimizer.state[p]["momentum_buffer"].double(), one.m, atol=1e-6, rtol=0)
    assert all(torch.equal(p.detach(), b) and p not in optimizer.state for p, b in zip(never, before, strict=True))


def test_only_matrices_of_whole_blocks_are_taken() -> None:
    with pytest.raises(AssertionError, match=r"\(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))])
    with pytest.raises(AssertionError, match=r"\(9, 4\)"):
        Muon([{"params": parameters((8, 4), (9, 4)), "block_rows": 4}])


# --- several processes ------------------------------------------------------------------------------------------

# More matrices of a shape than ranks, fewer, and as many; (16, 8) twice in blocks of 4 rows.
MODEL = [(8, 8)] * 5 + [(32, 8)] * 2 + [(8, 32)] * 3 + [(24, 12), (16, 8), (16, 8), (2, 2)]
COUNT = len(MODEL) + 6
SCENARIOS: dict[str, dict[str, Any]] = {
    "default": {},
    "everything": {"normuon": True, "cautious": True, "weight_decay": 0.5, "nesterov": False},
    "newton_schulz": {"orthogonalize": "newton_schulz", "weight_decay": 0.5},
    "bf16": {"precision": "bf16"},
    "missing": {},  # every third matrix has a gradient at every second step only
}
HALFWAY, STEPS = 3, 6


def start_model() -> nn.Module:
    model = nn.Sequential(*[nn.Linear(cols, rows, bias=False) for rows, cols in MODEL])
    with torch.no_grad():
        for p, first in zip(model.parameters(), parameters(*MODEL), strict=True):
            p.copy_(first)
    return model


def start_optimizer(model: nn.Module, scenario: str, rank: int = 0, world: int = 1) -> Muon:
    *whole, first, second, last = model.parameters()
    groups = [{"params": [*whole, last]}, {"params": [first, second], "block_rows": 4}]
    return Muon(groups, lr=0.1, rank=rank, world=world, **SCENARIOS[scenario])


def advance(model: nn.Module, optimizer: Muon, scenario: str, steps: range) -> None:
    params = list(model.parameters())
    for step in steps:
        give_gradients(params, step)
        if scenario == "missing" and step % 2 == 0:
            for p in params[::3]:
                p.grad = None
        optimizer.step()


def everything_of(model: nn.Module, optimizer: Muon) -> dict[str, Tensor]:
    found = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        found |= {f"{name}.{key}": value.clone() for key, value in optimizer.state[p].items()}
    return found


counted = [0]


def counting(method: Any) -> Any:
    def of_matrices(u: Tensor, *rest: Any) -> Tensor:
        counted[0] += len(u)
        return method(u, *rest)

    return of_matrices


def one_rank(rank: int, world: int, folder: Path) -> None:
    """What each of `world` processes does: all scenarios, a checkpoint of each on the way, and the end saved.

    They meet in a file, so there is no port that two tests could both take.
    """
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting_{world}", rank=rank, world_size=world)
    ends: dict[str, dict[str, Tensor]] = {}
    counted[0] = 0
    for scenario in SCENARIOS:
        model = start_model()
        optimizer = start_optimizer(model, scenario, rank, world)
        advance(model, optimizer, scenario, range(HALFWAY))
        if rank == 0:
            save_checkpoint(folder / f"{scenario}_{world}", model, [optimizer], {"step": HALFWAY})
        advance(model, optimizer, scenario, range(HALFWAY, STEPS))
        ends[scenario] = everything_of(model, optimizer)
    ends["orthogonalised"] = {"matrices": torch.tensor(counted[0])}
    torch.save(ends, folder / f"end_{world}_{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which three processes, and two of them once more, have left their ends."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE)
        for rank in range(3)
    ]
    try:
        errors = [process.communicate(timeout=120)[1].decode() for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0, 0], "\n".join(errors)
    return folder


def alone(scenario: str) -> dict[str, Tensor]:
    model = start_model()
    optimizer = start_optimizer(model, scenario)
    advance(model, optimizer, scenario, range(STEPS))
    return everything_of(model, optimizer)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("world", [2, 3])
def test_several_ranks_are_one(ranks: Path, world: int, scenario: str) -> None:
    """Weights and state, on every rank: to rounding, and where the rounding is that of bf16, to that."""
    expected = alone(scenario)
    ends = [torch.load(ranks / f"end_{world}_{rank}.pt")[scenario] for rank in range(world)]
    for end in ends:
        assert_same(end, expected, 1e-2 if scenario == "bf16" else 1e-6)
    for end in ends[1:]:  # and between them to the bit: nothing ever brings them together again
        assert all(torch.equal(end[name], value) for name, value in ends[0].items())


@pytest.mark.parametrize("world", [2, 3])
def test_each_matrix_is_orthogonalised_on_one_rank(ranks: Path, world: int) -> None:
    shares = [int(torch.load(ranks / f"end_{world}_{rank}.pt")["orthogonalised"]["matrices"]) for rank in range(world)]
    absent = len(MODEL[::3]) + 3 * sum(shape == (16, 8) for shape in MODEL[::3])  # matrices in blocks count as four
    assert sum(shares) == STEPS * len(SCENARIOS) * COUNT - STEPS // 2 * absent
    assert min(shares) > 0


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_state_saved_by_two_ranks_continues_on_one(ranks: Path, scenario: str) -> None:
    model = start_model()
    optimizer = start_optimizer(model, scenario)
    assert load_checkpoint(ranks / f"{scenario}_2", model, [optimizer]) == {"step": HALFWAY}
    single = start_model()
    other = start_optimizer(single, scenario)
    advance(single, other, scenario, range(HALFWAY))
    for p, q in zip(model.parameters(), single.parameters(), strict=True):  # momentum sums up the same gradients
        assert torch.equal(optimizer.state[p]["momentum_buffer"], other.state[q]["momentum_buffer"])
    advance(model, optimizer, scenario, range(HALFWAY, STEPS))
    assert_same(everything_of(model, optimizer), alone(scenario), 1e-2 if scenario == "bf16" else 1e-6)


def test_the_state_lies_under_the_names_of_the_parameters(ranks: Path) -> None:
    names = [name for name, _ in start_model().named_parameters()]
    for scenario, keys in (("default", {"momentum_buffer"}), ("everything", {"momentum_buffer", "row_squares"})):
        saved = torch.load(ranks / f"{scenario}_2" / "optim.pt")
        assert list(saved) and set(saved) == set(names)
        for (rows, cols), name in zip(MODEL, names, strict=True):
            state = saved[name]["state"]
            assert saved[name]["optimizer"] == "Muon" and set(state) == keys
            assert state["momentum_buffer"].shape == (rows, cols)
            if "row_squares" in state:  # a number for each row or column along the longer side of a matrix or block
                assert state["row_squares"].numel() == (4 * max(4, 8) if (rows, cols) == (16, 8) else max(rows, cols))


@pytest.mark.parametrize("scenario", ["default", "everything"])
def test_a_resumed_run_is_the_same_to_the_bit(tmp_path: Path, scenario: str) -> None:
    model = start_model()
    optimizer = start_optimizer(model, scenario)
    advance(model, optimizer, scenario, range(HALFWAY))
    save_checkpoint(tmp_path / "checkpoint", model, [optimizer], {})
    resumed = start_model()
    fresh = start_optimizer(resumed, scenario)
    load_checkpoint(tmp_path / "checkpoint", resumed, [fresh])
    advance(resumed, fresh, scenario, range(HALFWAY, STEPS))
    found, expected = everything_of(resumed, fresh), alone(scenario)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


# --- the shares of the ranks ------------------------------------------------------------------------------------


def loads(batches: list[tuple[int, float]], owners: list[list[int]], world: int) -> list[float]:
    costs = [(rank, cost) for (_, cost), ranks in zip(batches, owners, strict=True) for rank in ranks]
    return [sum(cost for owner, cost in costs if owner == rank) for rank in range(world)]


def test_shares_by_hand() -> None:
    owners = balanced([(5, 1.0), (3, 10.0)], 3)
    assert sorted(owners[1]) == [0, 1, 2], "the dear ones apart"
    assert sorted(loads([(5, 1.0), (3, 10.0)], owners, 3)) == [11, 12, 12]
    assert len(set(balanced([(4, 2.0)], 6)[0])) == 4, "more ranks than matrices: one each"
    assert balanced([(4, 2.0), (2, 1.0)], 1) == [[0] * 4, [0] * 2]
    assert loads([(4, 1.0), (1, 4.0)], balanced([(4, 1.0), (1, 4.0)], 2), 2) == [4, 4], "the dearest first"
    # GPT-2 small on eight ranks: 48 square matrices and 24 of four times the size, to the same sum everywhere
    gpt2 = [(48, 768.0**3), (24, 4 * 768.0**3)]
    assert set(loads(gpt2, balanced(gpt2, 8), 8)) == {18 * 768.0**3}


@pytest.mark.parametrize("world", range(1, 9))
def test_no_rank_has_more_than_the_mean_and_one_matrix(world: int) -> None:
    generator = torch.Generator().manual_seed(world)
    for _ in range(50):
        kinds = int(torch.randint(1, 6, (), generator=generator))
        counts = torch.randint(1, 20, (kinds,), generator=generator).tolist()
        costs = torch.randint(1, 100, (kinds,), generator=generator).tolist()
        batches = list(zip(counts, map(float, costs), strict=True))
        owners = balanced(batches, world)
        assert owners == balanced(list(batches), world), "every rank has to come to the same shares"
        assert [len(ranks) for ranks in owners] == counts
        assert all(0 <= rank < world for ranks in owners for rank in ranks)
        shares = loads(batches, owners, world)
        assert max(shares) <= sum(shares) / world + max(costs)


if __name__ == "__main__":
    warnings.simplefilter("error", FutureWarning)  # of a call that torch gives up
    ORTHOGONALIZE.update({name: counting(method) for name, method in ORTHOGONALIZE.items()})
    for number in (3, 2):
        if int(sys.argv[1]) < number:
            one_rank(int(sys.argv[1]), number, Path(sys.argv[2]))
