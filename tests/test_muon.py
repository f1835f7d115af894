import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gptlib.muon import NEWTON_SCHULZ, POLAR_EXPRESS, Muon, convergent, newton_schulz, polar_express

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


def test_muon_takes_the_convergent_iteration_by_name() -> None:
    params = parameters((24, 8), (8, 24))
    gradients, before = give_gradients(params, 0), [p.detach().clone() for p in params]
    Muon(params, lr=0.1, orthogonalize="convergent", iterations=12).step()
    for p, gradient, start in zip(params, gradients, before, strict=True):
        u, _, vt = torch.linalg.svd(gradient.double(), full_matrices=False)
        expected = -0.1 * max(1, p.shape[0] / p.shape[1]) ** 0.5 * u @ vt
        torch.testing.assert_close((p.detach() - start).double(), expected, atol=1e-5, rtol=0)


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


def parameters(*shapes: tuple[int, int]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(matrices(shape, i).float()) for i, shape in enumerate(shapes)]


def give_gradients(params: list[torch.nn.Parameter], step: int) -> list[Tensor]:
    gradients = [matrices(tuple(p.shape), 100 * step + i).float() for i, p in enumerate(params)]
    for p, gradient in zip(params, gradients, strict=True):
        p.grad = gradient.clone()
    return gradients


def test_agrees_with_torch_muon() -> None:
    """torch.optim.Muon orthogonalises in bf16, hence the tolerance: 4 % of the length of the way travelled."""
    ours = parameters((32, 32), (32, 32), (64, 16), (16, 64))
    theirs, start = copy.deepcopy(ours), copy.deepcopy(ours)
    mine = Muon(ours, lr=0.02, weight_decay=0.1, orthogonalize="newton_schulz")
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True, ns_steps=5)
    for step in range(5):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        mine.step()
        reference.step()
    for p, q, origin in zip(ours, theirs, start, strict=True):
        assert (p - q).norm() < 0.04 * (q - origin).norm()


@pytest.mark.parametrize("nesterov", [True, False])
def test_update_equals_a_naive_loop(nesterov: bool) -> None:
    shapes = [(12, 12), (24, 6), (12, 12), (6, 24)]
    params = parameters(*shapes)
    optimizer = Muon(params, lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.5)
    weights = [p.detach().double().clone() for p in params]
    momenta = [torch.zeros_like(w) for w in weights]
    for step in range(3):
        gradients = give_gradients(params, step)
        optimizer.step()
        assert all(p.grad is not None and torch.equal(p.grad, g) for p, g in zip(params, gradients, strict=True))
        for i, (rows, cols) in enumerate(shapes):
            g = gradients[i].double()
            momenta[i] = 0.9 * momenta[i] + 0.1 * g
            u = 0.1 * g + 0.9 * momenta[i] if nesterov else momenta[i]
            direction = mapped_singular_values(u, list(POLAR_EXPRESS), 1.02, 1e-6)
            weights[i] = weights[i] * (1 - 0.1 * 0.5) - 0.1 * max(1, rows / cols) ** 0.5 * direction
    for p, w in zip(params, weights, strict=True):
        torch.testing.assert_close(p.detach().double(), w, atol=2e-4, rtol=0)


def test_zero_gradient_moves_nothing_and_missing_gradient_is_skipped() -> None:
    params = parameters((8, 4), (8, 4))
    before = [p.detach().clone() for p in params]
    params[0].grad = torch.zeros_like(params[0])
    optimizer = Muon(params, lr=0.1)
    optimizer.step()
    assert all(torch.equal(p.detach(), b) for p, b in zip(params, before, strict=True))
    assert params[1] not in optimizer.state


def test_state_survives_state_dict() -> None:
    straight, resumed = parameters((8, 8), (8, 16)), parameters((8, 8), (8, 16))
    optimizer, first = Muon(straight), Muon(resumed)
    for step in range(2):
        for params, o in ((straight, optimizer), (resumed, first)):
            give_gradients(params, step)
            o.step()
    second = Muon(resumed)
    second.load_state_dict(first.state_dict())
    for params, o in ((straight, optimizer), (resumed, second)):
        give_gradients(params, 2)
        o.step()
    assert all(torch.equal(p, q) for p, q in zip(straight, resumed, strict=True))


def test_only_matrices_are_taken() -> None:
    with pytest.raises(AssertionError, match="matrices only"):
        Muon([torch.nn.Parameter(torch.zeros(3))])
