import math

import pytest
import torch
import torch.nn.functional as F

from gptlib.layers import ACTIVATIONS, attention, rms_norm, rotary, softcap


def test_rms_norm_equals_torch_in_value_and_gradient() -> None:
    x = torch.randn(3, 5, 16, requires_grad=True)
    upstream = torch.randn(3, 5, 16)
    (ours,) = torch.autograd.grad(rms_norm(x), x, upstream)
    (theirs,) = torch.autograd.grad(F.rms_norm(x, (16,), eps=1e-5), x, upstream)
    torch.testing.assert_close(rms_norm(x), F.rms_norm(x, (16,), eps=1e-5))
    torch.testing.assert_close(ours, theirs)


def test_rms_norm_of_bf16_is_computed_in_fp32() -> None:
    x = torch.randn(4, 64).bfloat16()
    assert rms_norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(rms_norm(x), rms_norm(x.float()).bfloat16(), rtol=0, atol=0)
    assert torch.isfinite(rms_norm(torch.zeros(2, 8))).all()


def test_interleaved_rotary_is_multiplication_by_complex_phases() -> None:
    x, positions = torch.randn(2, 3, 7, 8, dtype=torch.float64).float(), torch.arange(7)
    frequencies = 100.0 ** (-torch.arange(4).double() / 4)
    phases = torch.polar(torch.ones(7, 4, dtype=torch.float64), positions[:, None] * frequencies)
    expected = torch.view_as_real(torch.view_as_complex(x.double().unflatten(-1, (4, 2))) * phases).flatten(-2)
    torch.testing.assert_close(
        rotary(x, positions, theta=100.0, layout="interleaved").double(), expected, atol=1e-5, rtol=0
    )


def test_half_rotary_is_interleaved_rotary_of_permuted_dims() -> None:
    x, positions = torch.randn(2, 7, 8), torch.tensor([0, 3, 4, 100, 5, 1, 2])
    pairs = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])  # (i, i + 4) side by side
    torch.testing.assert_close(rotary(x, positions)[..., pairs], rotary(x[..., pairs], positions, layout="interleaved"))


def test_rotary_scores_depend_on_distance_only_and_keep_lengths() -> None:
    q, k = torch.randn(1, 16).expand(10, 16), torch.randn(1, 16).expand(10, 16)
    near, far = torch.arange(10), torch.arange(10) + 50
    scores_near, scores_far = (rotary(q, p) @ rotary(k, p).T for p in (near, far))
    torch.testing.assert_close(scores_near, scores_far, atol=1e-4, rtol=0)
    torch.testing.assert_close(rotary(q, far).norm(dim=-1), q.norm(dim=-1))
    assert (scores_near[0, 0] - scores_near[0, 5]).abs() > 1e-3


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scale", [None, 0.12])
def test_attention_equals_the_written_out_formula(causal: bool, scale: float | None) -> None:
    q, k, v = (torch.randn(2, 3, 6, 8) for _ in range(3))
    scores = (q @ k.mT) * (scale or 1 / math.sqrt(8))
    if causal:
        scores = scores.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), -math.inf)
    torch.testing.assert_close(attention(q, k, v, causal, scale), scores.softmax(-1) @ v)


def test_softcap_is_a_scaled_tanh_and_leaves_its_input_alone() -> None:
    logits = torch.linspace(-100, 100, 2001, requires_grad=True)
    before = logits.detach().clone()
    capped = softcap(logits, 15.0)
    torch.testing.assert_close(capped, 15 * torch.tanh(logits / 15), atol=1e-5, rtol=1e-5)
    (slope,) = torch.autograd.grad(capped.sum(), logits)
    torch.testing.assert_close(slope, 1 - torch.tanh(before / 15) ** 2, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.detach(), before, rtol=0, atol=0)


def test_activations_at_known_points() -> None:
    x = torch.tensor([-2.0, 0.0, 3.0])
    known = {
        "relu2": [0.0, 0.0, 9.0],
        "relu": [0.0, 0.0, 3.0],
        "gelu": [z * (1 + math.erf(z / math.sqrt(2))) / 2 for z in (-2.0, 0.0, 3.0)],
        "silu": [z / (1 + math.exp(-z)) for z in (-2.0, 0.0, 3.0)],
    }
    assert known.keys() == ACTIVATIONS.keys()
    for name, values in known.items():
        torch.testing.assert_close(ACTIVATIONS[name](x), torch.tensor(values))
