import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gptlib.layers import (
    ACTIVATIONS,
    MLP,
    GatedMLP,
    LayerNorm,
    RMSNorm,
    SwiGLU,
    attention,
    causal_mask,
    rational_softcap,
    rms_norm,
    rotary,
    rotary_tables,
    rotate,
    softcap,
)

CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fill(module: torch.nn.Module) -> dict[str, Tensor]:
    """Gives each parameter numbers of its own; returns them in fp64."""
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=100 + i))
    return {name: parameter.detach().double() for name, parameter in module.named_parameters()}


# --- norms ------------------------------------------------------------------------------------------------------


def test_rms_norm_equals_torch_in_value_and_gradient() -> None:
    x = normal(3, 5, 16).requires_grad_()
    upstream = normal(3, 5, 16, seed=1)
    (ours,) = torch.autograd.grad(rms_norm(x), x, upstream)
    (theirs,) = torch.autograd.grad(F.rms_norm(x, (16,), eps=1e-5), x, upstream)
    torch.testing.assert_close(rms_norm(x), F.rms_norm(x, (16,), eps=1e-5))
    torch.testing.assert_close(ours, theirs)


def test_rms_norm_of_bf16_is_computed_in_fp32() -> None:
    x = normal(4, 64).bfloat16()
    assert rms_norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(rms_norm(x), rms_norm(x.float()).bfloat16(), rtol=0, atol=0)
    assert torch.isfinite(rms_norm(torch.zeros(2, 8))).all()


@pytest.mark.parametrize("shape", [(16,), (3, 16), (2, 3, 5, 16)], ids=str)
@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize("gain", [True, False])
def test_rms_norm_module_scales_by_its_gain(gain: bool, eps: float, shape: tuple[int, ...]) -> None:
    module, x = RMSNorm(16, eps, gain), normal(*shape)
    assert {name: p.shape for name, p in module.named_parameters()} == ({"weight": (16,)} if gain else {})
    assert torch.equal(module(x), rms_norm(x, eps))  # a gain starts from 1
    weight = fill(module).get("weight", torch.ones(16).double())
    expected = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight
    torch.testing.assert_close(module(x).double(), expected, atol=1e-5, rtol=1e-5)


def test_rms_norm_module_has_a_gain_unless_told_otherwise_and_keeps_the_dtype() -> None:
    module = RMSNorm(8)
    assert module.eps == 1e-5 and module.weight is not None
    assert module(normal(2, 8).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize(("gain", "bias"), list(itertools.product([True, False], repeat=2)))
def test_layer_norm_equals_torch_with_every_gain_and_bias(gain: bool, bias: bool, eps: float) -> None:
    module, x, upstream = LayerNorm(16, eps, gain, bias), 3 * normal(2, 5, 16) + 1, normal(2, 5, 16, seed=1)
    names = {name for name, wanted in (("weight", gain), ("bias", bias)) if wanted}
    assert {name for name, _ in module.named_parameters()} == names
    torch.testing.assert_close(module(x), F.layer_norm(x, (16,), eps=eps))  # gain from 1, bias from 0
    parameters, x = fill(module), x.requires_grad_()
    x_fp64 = x.detach().double().requires_grad_()
    expected = F.layer_norm(x_fp64, (16,), parameters.get("weight"), parameters.get("bias"), eps)
    torch.testing.assert_close(module(x).double(), expected, atol=1e-5, rtol=1e-5)
    (ours,) = torch.autograd.grad(module(x), x, upstream)
    (theirs,) = torch.autograd.grad(expected, x_fp64, upstream.double())
    torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-5)


# --- position ---------------------------------------------------------------------------------------------------

PAIRS = {"half": [0, 4, 1, 5, 2, 6, 3, 7], "interleaved": list(range(8))}  # of 8 dims, side by side


def by_phases(x: Tensor, positions: Tensor, theta: float, layout: str) -> Tensor:
    """Rotary position embedding of 8 dims in fp64: complex numbers times phases."""
    angles = positions.double().unsqueeze(-1) * theta ** (-torch.arange(4).double() / 4)
    numbers = torch.view_as_complex(x.double()[..., PAIRS[layout]].unflatten(-1, (4, 2)))
    turned = torch.view_as_real(numbers * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    return torch.empty_like(turned).index_copy_(-1, torch.tensor(PAIRS[layout]), turned)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("theta", [100.0, 10_000.0])
@pytest.mark.parametrize("shape", [(7, 8), (3, 7, 8), (2, 3, 7, 8)], ids=str)
def test_rotary_is_multiplication_by_complex_phases(shape: tuple[int, ...], theta: float, layout: str) -> None:
    x, positions = normal(*shape), torch.tensor([0, 3, 4, 50, 5, 1, 2])
    expected = by_phases(x, positions, theta, layout)
    torch.testing.assert_close(rotary(x, positions, theta, layout).double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("shape", [(2, 1, 7), (2, 3, 7), (1, 3, 7), (2, 3, 1)], ids=str)
def test_rotary_takes_positions_that_broadcast(shape: tuple[int, ...], layout: str) -> None:
    positions = torch.randint(0, 50, shape, generator=torch.Generator().manual_seed(1))
    x = normal(2, 3, 7, 8)
    expected = by_phases(x, positions, 100.0, layout)
    torch.testing.assert_close(rotary(x, positions, 100.0, layout).double(), expected, atol=1e-4, rtol=0)


def test_rotary_pairs_distant_dims_at_ten_thousand_unless_told_otherwise() -> None:
    x, positions = normal(2, 7, 8), torch.arange(7)
    assert torch.equal(rotary(x, positions), rotary(x, positions, 10_000.0, "half"))


def test_half_rotary_is_interleaved_rotary_of_permuted_dims() -> None:
    x, positions = normal(2, 7, 8), torch.tensor([0, 3, 4, 100, 5, 1, 2])
    pairs = torch.tensor(PAIRS["half"])
    torch.testing.assert_close(rotary(x, positions)[..., pairs], rotary(x[..., pairs], positions, layout="interleaved"))


def test_rotary_scores_depend_on_distance_only_and_keep_lengths() -> None:
    q, k = normal(1, 16).expand(10, 16), normal(1, 16, seed=1).expand(10, 16)
    near, far = torch.arange(10), torch.arange(10) + 50
    scores_near, scores_far = (rotary(q, p) @ rotary(k, p).T for p in (near, far))
    torch.testing.assert_close(scores_near, scores_far, atol=1e-4, rtol=0)
    torch.testing.assert_close(rotary(q, far).norm(dim=-1), q.norm(dim=-1))
    assert (scores_near[0, 0] - scores_near[0, 5]).abs() > 1e-3


def test_rotary_of_bf16_is_computed_in_fp32() -> None:
    x, positions = normal(3, 7, 8).bfloat16(), torch.arange(7) + 40
    assert rotary(x, positions).dtype == torch.bfloat16
    torch.testing.assert_close(rotary(x, positions), rotary(x.float(), positions).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize(("fraction", "turning"), [(1.0, 8), (0.5, 4), (0.4, 3), (0.001, 1)])
def test_the_turning_pairs_span_all_frequencies_and_the_others_stand_still(
    fraction: float, turning: int, layout: str
) -> None:
    positions, x = torch.tensor([[0, 1, 17], [2, 30, 5]]), normal(2, 3, 16)
    tables = rotary_tables(positions, 16, 50.0, layout, fraction)
    assert all(table.shape == (2, 3, 16) and table.dtype == torch.float32 for table in tables)
    turned = rotate(x, tables, layout)
    for pair in range(8):
        a, b = (pair, pair + 8) if layout == "half" else (2 * pair, 2 * pair + 1)
        angle = positions.double() * (50.0 ** (-pair / turning) if pair < turning else 0.0)
        before, after = (torch.complex(y[..., a].double(), y[..., b].double()) for y in (x, turned))
        torch.testing.assert_close(after, before * torch.polar(torch.ones_like(angle), angle), atol=1e-5, rtol=0)
        if pair >= turning:
            assert torch.equal(turned[..., [a, b]], x[..., [a, b]])


# --- attention --------------------------------------------------------------------------------------------------


def written_out(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v in fp64 over the keys that are seen; zeros for a query that sees none."""
    scores = q.double() @ k.double().mT * (scale or 1 / math.sqrt(q.shape[-1]))
    if seen is None:
        return scores.softmax(-1) @ v.double()
    weights = (scores - scores.amax(-1, keepdim=True)).exp() * seen
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-300) @ v.double()


def lower(queries: int, keys: int) -> Tensor:
    """[query, key]: key by key, when the last query stands at the last key."""
    return torch.tensor([[key - keys <= query - queries for key in range(keys)] for query in range(queries)])


def random_mask(*shape: int) -> Tensor:
    mask = normal(*shape, seed=9) > 0
    mask[..., 0] = True  # each query sees something
    return mask


def assert_attends(result: Tensor, expected: Tensor) -> None:
    assert result.shape == expected.shape
    torch.testing.assert_close(result.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scale", [None, 0.12])
def test_attention_equals_the_written_out_formula(causal: bool, scale: float | None) -> None:
    q, k, v = (normal(2, 3, 6, 8, seed=i) for i in range(3))
    scores = (q @ k.mT) * (scale or 1 / math.sqrt(8))
    if causal:
        scores = scores.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), -math.inf)
    torch.testing.assert_close(attention(q, k, v, causal=causal, scale=scale), scores.softmax(-1) @ v)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 1, 3, 2)], ids=str)
@pytest.mark.parametrize("lengths", [(6, 6), (4, 6), (6, 4), (1, 5)], ids=str)
@pytest.mark.parametrize(("masked", "causal"), list(itertools.product([True, False], repeat=2)))
def test_attention_takes_any_leading_dimensions_lengths_and_masks(
    leading: tuple[int, ...], lengths: tuple[int, int], masked: bool, causal: bool
) -> None:
    queries, keys = lengths
    q, k, v = normal(*leading, queries, 8), normal(*leading, keys, 8, seed=1), normal(*leading, keys, 8, seed=2)
    seen = torch.ones(queries, keys, dtype=torch.bool)
    mask = random_mask(queries, keys) if masked else None
    if causal:
        seen &= lower(queries, keys)
    if mask is not None:
        seen &= mask
    assert_attends(attention(q, k, v, mask, causal), written_out(q, k, v, seen))


@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (2, 1, 5, 6), (1, 3, 5, 6), (1, 1, 1, 6), (5, 6)], ids=str)
@pytest.mark.parametrize("causal", [True, False])
def test_attention_masks_broadcast(shape: tuple[int, ...], causal: bool) -> None:
    q, k, v, mask = normal(2, 3, 5, 8), normal(2, 3, 6, 8, seed=1), normal(2, 3, 6, 8, seed=2), random_mask(*shape)
    seen = mask & (lower(5, 6) if causal else True)
    assert_attends(attention(q, k, v, mask, causal), written_out(q, k, v, seen))


@pytest.mark.parametrize("leading", [(), (2, 3)], ids=str)
@pytest.mark.parametrize("causal", [True, False])
def test_a_query_that_sees_nothing_gets_zeros_and_no_gradient(leading: tuple[int, ...], causal: bool) -> None:
    q, k, v = (normal(*leading, 5, 8, seed=i).requires_grad_() for i in range(3))
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[2] = False
    mask[0, 0] = not causal  # nothing is left of it by the mask and the order together
    result = attention(q, k, v, mask, causal)
    assert not result[..., 2, :].any() and bool(result[..., 0, :].any()) != causal
    assert_attends(result, written_out(q, k, v, mask & (lower(5, 5) if causal else True)))
    gradients = torch.autograd.grad(result.sum(), (q, k, v))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert not gradients[0][..., 2, :].any()


@pytest.mark.parametrize("width", [1, 5, 16])
def test_values_may_have_another_width_than_keys(width: int) -> None:
    for leading, masked in itertools.product([(), (3,), (2, 3)], [True, False]):
        q, k, v = normal(*leading, 5, 8), normal(*leading, 6, 8, seed=1), normal(*leading, 6, width, seed=2)
        mask = random_mask(5, 6) if masked else None
        assert_attends(attention(q, k, v, mask), written_out(q, k, v, mask))
        assert_attends(attention(q, k, v, mask, True), written_out(q, k, v, lower(5, 6) & (mask if masked else True)))


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_grouped_heads_equal_repeated_heads(groups: int) -> None:
    q, k, v = normal(2, 6, 5, 8), normal(2, groups, 5, 8, seed=1), normal(2, groups, 5, 8, seed=2)
    repeated = [x.repeat_interleave(6 // groups, dim=1) for x in (k, v)]
    for mask, causal in itertools.product([None, random_mask(2, 1, 5, 5)], [True, False]):
        seen = torch.ones(5, 5, dtype=torch.bool) if mask is None else mask
        expected = written_out(q, *repeated, seen & (lower(5, 5) if causal else True))
        assert_attends(attention(q, k, v, mask, causal), expected)


def test_attention_dropout_leaves_out_weights_and_doubles_the_others() -> None:
    torch.manual_seed(0)
    q, k, one_hot = normal(4, 8, 6, 8), normal(4, 8, 6, 8, seed=1), torch.eye(6).expand(4, 8, 6, 6)
    weights, dropped = attention(q, k, one_hot), attention(q, k, one_hot, dropout=0.5)
    out = dropped == 0
    assert 0.4 < out.float().mean() < 0.6
    torch.testing.assert_close(dropped[~out], 2 * weights[~out])


@pytest.mark.parametrize("window", [None, 1, 2, 5, 9])
@pytest.mark.parametrize("lengths", [(6, 6), (3, 6), (6, 3), (1, 4)], ids=str)
def test_causal_mask_shows_the_last_positions_up_to_the_own_one(lengths: tuple[int, int], window: int | None) -> None:
    queries, keys = lengths
    mask = causal_mask(queries, keys, CPU, window)
    assert mask.shape == lengths and mask.dtype == torch.bool
    for query, key in itertools.product(range(queries), range(keys)):
        distance = query + keys - queries - key
        assert mask[query, key].item() == (0 <= distance < (window or keys))


# --- feed-forward and head --------------------------------------------------------------------------------------


def test_activations_at_known_points() -> None:
    def gelu(z: float) -> float:
        return z * (1 + math.erf(z / math.sqrt(2))) / 2

    def gelu_tanh(z: float) -> float:
        return z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2

    def silu(z: float) -> float:
        return z / (1 + math.exp(-z))

    points = (-2.0, -0.5, 0.0, 3.0)
    known: dict[str, Callable[[float], float]] = {
        "relu2": lambda z: max(z, 0) ** 2,
        "relu": lambda z: max(z, 0),
        "gelu": gelu,
        "gelu_tanh": gelu_tanh,
        "silu": silu,
        "swiglu": silu,
        "geglu": gelu,
    }
    assert known.keys() == ACTIVATIONS.keys()
    for name, function in known.items():
        expected = torch.tensor([float(function(z)) for z in points])
        torch.testing.assert_close(ACTIVATIONS[name](torch.tensor(points)), expected, atol=1e-6, rtol=1e-5)


def linear(x: Tensor, parameters: dict[str, Tensor], name: str) -> Tensor:
    return x @ parameters[f"{name}.weight"].T + parameters.get(f"{name}.bias", 0.0)


@pytest.mark.parametrize("bias", [True, False])
def test_mlp_is_two_linear_maps_around_an_activation(bias: bool) -> None:
    module, x = MLP(6, 20, torch.tanh, bias), normal(2, 3, 6)
    w = fill(module)
    shapes = {"up.weight": (20, 6), "down.weight": (6, 20)} | ({"up.bias": (20,), "down.bias": (6,)} if bias else {})
    assert {name: tuple(p.shape) for name, p in w.items()} == shapes
    expected = linear(linear(x.double(), w, "up").tanh(), w, "down")
    torch.testing.assert_close(module(x).double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_gated_mlp_multiplies_the_activated_w1_and_w3(bias: bool) -> None:
    module, x = GatedMLP(6, 20, torch.tanh, bias), normal(2, 3, 6)
    w = fill(module)
    assert {f"{name}.bias" in w for name in ("w1", "w2", "w3")} == {bias}
    expected = linear(linear(x.double(), w, "w1").tanh() * linear(x.double(), w, "w3"), w, "w2")
    torch.testing.assert_close(module(x).double(), expected, atol=1e-4, rtol=1e-4)


def test_swiglu_has_three_matrices_and_no_biases() -> None:
    module, x = SwiGLU(6, 20), normal(2, 3, 6)
    assert {name: tuple(p.shape) for name, p in module.state_dict().items()} == {
        "w1.weight": (20, 6),
        "w2.weight": (6, 20),
        "w3.weight": (20, 6),
    }
    w = fill(module)
    gate = x.double() @ w["w1.weight"].T
    expected = (gate / (1 + (-gate).exp()) * (x.double() @ w["w3.weight"].T)) @ w["w2.weight"].T
    torch.testing.assert_close(module(x).double(), expected, atol=1e-4, rtol=1e-4)


CAPS: dict[str, tuple[Callable[[Tensor, float], Tensor], Callable[[Tensor, float], Tensor]]] = {
    "tanh": (softcap, lambda z, cap: cap * torch.tanh(z / cap)),
    "rational": (rational_softcap, lambda z, cap: cap * z / (z**2 + cap**2).sqrt()),
}


@pytest.mark.parametrize("cap", [2.0, 15.0])
@pytest.mark.parametrize("kind", CAPS)
def test_softcap_equals_its_formula_in_value_and_gradient_and_leaves_its_input_alone(kind: str, cap: float) -> None:
    ours, formula = CAPS[kind]
    logits = torch.linspace(-100, 100, 2001, requires_grad=True)
    before = logits.detach().double().requires_grad_()
    capped, expected = ours(logits, cap), formula(before, cap)
    torch.testing.assert_close(capped.double(), expected, atol=1e-5, rtol=1e-5)
    (slope,), (expected_slope,) = (torch.autograd.grad(y.sum(), x) for y, x in ((capped, logits), (expected, before)))
    torch.testing.assert_close(slope.double(), expected_slope, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.detach().double(), before.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", CAPS)
def test_softcap_is_the_identity_near_zero_and_bounded_far_away(kind: str) -> None:
    ours, _ = CAPS[kind]
    near = torch.linspace(-0.1, 0.1, 21)
    torch.testing.assert_close(ours(near, 15.0), near, atol=1e-5, rtol=0)
    ends = ours(torch.tensor([-1e6, 1e6]), 15.0)
    torch.testing.assert_close(ends, torch.tensor([-15.0, 15.0]))
    assert (ends.abs() <= 15.0 + 2e-6).all()
    rising = ours(torch.linspace(-40, 40, 801), 15.0)
    assert (rising.diff() > 0).all() and (rising.abs() < 15.0).all()
