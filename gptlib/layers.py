"""The pieces a transformer block is made of: functions of tensors, and small modules that stand alone.

Axes: b batch, t time, d model, h heads, k head dim, f hidden units of the feed-forward.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RotaryLayout = Literal["half", "interleaved"]
Sublayer = Callable[[Tensor], Tensor]


# --- norms ------------------------------------------------------------------------------------------------------


def rms_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """x / rms(x) over the last axis, without gain, computed in fp32 (Zhang & Sennrich 2019, arXiv 1910.07467).

    Spelled with vecdot because F.rms_norm's backward is several times slower on CPUs.
    """
    x_fp32 = x.float()
    with torch.autocast(x.device.type, enabled=False):  # it would make the sum of squares in bf16
        mean_square = torch.linalg.vecdot(x_fp32, x_fp32).unsqueeze(-1) / x.shape[-1]
    return (x_fp32 * torch.rsqrt(mean_square + eps)).type_as(x)


class RMSNorm(nn.Module):
    """rms_norm over the last axis of x (..., dim), times a learned `weight` (dim,) where `gain` is set."""

    def __init__(self, dim: int, eps: float = 1e-5, gain: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim)) if gain else None

    def forward(self, x: Tensor) -> Tensor:
        y = rms_norm(x, self.eps)
        return y if self.weight is None else y * self.weight.type_as(x)


class LayerNorm(nn.Module):
    """(x - mean) / std over the last axis of x (..., dim), with learned `weight` and `bias` (dim,) where they are set.

    Ba et al. 2016, arXiv 1607.06450. torch.nn.LayerNorm has no bias without a gain.
    """

    def __init__(self, dim: int, eps: float = 1e-5, gain: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.ones(dim)) if gain else None
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.dim,), self.weight, self.bias, self.eps)


# --- position ---------------------------------------------------------------------------------------------------


def rotary_tables(
    positions: Tensor,
    head_dim: int,
    theta: float = 10_000.0,
    layout: RotaryLayout = "half",
    fraction: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """cos and signed sin, each (*positions.shape, head_dim) in fp32, for `rotate`; made once, not once per layer.

    Of the head_dim / 2 pairs the first `fraction` turns, at theta**(-i / their number), and the others stand still
    (half-truncated RoPE: modded-nanogpt, December 2024).
    """
    pairs = head_dim // 2
    turning = max(1, round(fraction * pairs))
    frequencies = theta ** (-torch.arange(turning, device=positions.device, dtype=torch.float32) / turning)
    angles = positions.float().unsqueeze(-1) * F.pad(frequencies, (0, pairs - turning))
    cos, sin = angles.cos(), angles.sin()
    if layout == "half":
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
    return torch.stack((cos, cos), dim=-1).flatten(-2), torch.stack((-sin, sin), dim=-1).flatten(-2)


def rotate(x: Tensor, tables: tuple[Tensor, Tensor], layout: RotaryLayout = "half") -> Tensor:
    """Rotate each pair (a, b) of the last axis of x (..., t, head_dim) to (a cos - b sin, b cos + a sin), in fp32."""
    cos, signed_sin = tables
    half = x.shape[-1] // 2
    swapped = x.roll(half, dims=-1) if layout == "half" else x.unflatten(-1, (half, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x * cos, swapped, signed_sin).type_as(x)


def rotary(x: Tensor, positions: Tensor, theta: float = 10_000.0, layout: RotaryLayout = "half") -> Tensor:
    """Rotary position embedding of x (..., seq, head_dim) (Su et al. 2021, arXiv 2104.09864).

    `positions` is (seq,), or any shape that broadcasts to x.shape[:-1]. Pair i turns by
    position * theta**(-2i / head_dim). `half` pairs dims (i, i + head_dim/2) as Llama and modded-nanogpt do,
    `interleaved` pairs (2i, 2i + 1) as the paper does.
    """
    return rotate(x, rotary_tables(positions, x.shape[-1], theta, layout), layout)


# --- attention --------------------------------------------------------------------------------------------------


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(scale * q k^T) v (Vaswani et al. 2017, arXiv 1706.03762).

    q (..., queries, k), k (..., keys, k), v (..., keys, dim) -> (..., queries, dim), any leading dimensions. `mask` is
    boolean, broadcast to (..., queries, keys): True = attend; a query that may attend to nothing gets zeros. `causal`:
    a query sees its own position and earlier ones; the last query stands at the last key. Both may be given. `scale`
    None means 1 / sqrt(k). `dropout` is the chance that an attention weight is set to zero.

    Four-dimensional k and v (b, h, keys, k) may have fewer heads than q: each serves a group of query heads (Ainslie et
    al. 2023, arXiv 2305.13245).
    """
    grouped = q.ndim == 4 and k.shape[1] != q.shape[1]
    if causal and (mask is not None or q.shape[-2] != k.shape[-2]):
        seen = causal_mask(q.shape[-2], k.shape[-2], q.device)
        mask, causal = seen if mask is None else mask & seen, False
    if grouped and mask is not None and q.is_cuda:  # no fused kernel takes both: without this, all weights in memory
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        grouped = False
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=scale, enable_gqa=grouped)


def causal_mask(queries: int, keys: int, device: torch.device, window: int | None = None) -> Tensor:
    """(queries, keys) bool: what each position sees, itself and earlier ones, in all `window` positions if given.

    The last query stands at the last key.
    """
    position_q = torch.arange(keys - queries, keys, device=device).unsqueeze(-1)
    position_k = torch.arange(keys, device=device)
    seen = position_k <= position_q
    return seen if window is None else seen & (position_k > position_q - window)


# --- feed-forward and head --------------------------------------------------------------------------------------


def relu2(x: Tensor) -> Tensor:
    """relu(x)**2 (So et al. 2021, "Primer", arXiv 2109.08668)."""
    y = F.relu(x)
    return y * y  # not square(): its backward goes through pow


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by the tanh formula that GPT-2 was trained with (Hendrycks & Gimpel 2016, arXiv 1606.08415)."""
    return F.gelu(x, approximate="tanh")


# `swiglu` and `geglu` are these activations in a gated feed-forward.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu2": relu2,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "silu": F.silu,
    "swiglu": F.silu,
    "geglu": F.gelu,
}


class MLP(nn.Module):
    """Feed-forward down(activation(up(x))) of x (..., dim)."""

    def __init__(self, dim: int, hidden: int, activation: Callable[[Tensor], Tensor], bias: bool = False) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, hidden, bias), nn.Linear(hidden, dim, bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class GatedMLP(nn.Module):
    """Feed-forward w2(activation(w1(x)) * w3(x)) of x (..., dim) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int, activation: Callable[[Tensor], Tensor], bias: bool = False) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(dim, hidden, bias), nn.Linear(dim, hidden, bias)
        self.w2 = nn.Linear(hidden, dim, bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.activation(self.w1(x)) * self.w3(x))


class SwiGLU(GatedMLP):
    """w2(silu(w1(x)) * w3(x)): linears w1 (gate) and w3 (up) dim -> hidden, w2 (down) hidden -> dim, no biases."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(dim, hidden, F.silu)


def softcap(logits: Tensor, cap: float) -> Tensor:
    """cap * tanh(logits / cap): keeps logits within (-cap, cap) (Gemma 2, arXiv 2408.00118).

    Written as 2 sigmoid(2z) - 1 = tanh(z): torch's sigmoid is ten times faster than its tanh on CPUs.
    """
    return torch.sigmoid(logits * (2 / cap)).mul(2 * cap).sub_(cap)


def rational_softcap(logits: Tensor, cap: float) -> Tensor:
    """cap * logits / sqrt(logits^2 + cap^2): the same bounds with slower tails (modded-nanogpt track 3)."""
    return cap * logits * torch.rsqrt(logits * logits + cap * cap)
