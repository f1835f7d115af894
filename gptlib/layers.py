"""The pieces a transformer block is made of: plain functions of tensors, without parameters.

Axes: b batch, t time, d model, h heads, k head dim.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

RotaryLayout = Literal["half", "interleaved"]


def rms_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """x / rms(x) over the last axis, without gain, computed in fp32 (Zhang & Sennrich 2019, arXiv 1910.07467).

    Spelled with vecdot because F.rms_norm's backward is several times slower on CPUs.
    """
    x_fp32 = x.float()
    mean_square = torch.linalg.vecdot(x_fp32, x_fp32).unsqueeze(-1) / x.shape[-1]
    return (x_fp32 * torch.rsqrt(mean_square + eps)).type_as(x)


def rotary_tables(
    positions_t: Tensor, head_dim: int, theta: float = 10_000.0, layout: RotaryLayout = "half"
) -> tuple[Tensor, Tensor]:
    """cos and signed sin, each (t, head_dim) in fp32, for `rotate`; made once per forward pass, not once per layer."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, device=positions_t.device, dtype=torch.float32) / head_dim)
    angles = positions_t.float()[:, None] * frequencies
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


def rotary(x: Tensor, positions_t: Tensor, theta: float = 10_000.0, layout: RotaryLayout = "half") -> Tensor:
    """Rotary position embedding of x (..., t, head_dim) at positions_t (t,) (Su et al. 2021, arXiv 2104.09864).

    Pair i turns by position * theta**(-2i / head_dim). `half` pairs dims (i, i + head_dim/2) as Llama and
    modded-nanogpt do, `interleaved` pairs (2i, 2i + 1) as the paper does.
    """
    return rotate(x, rotary_tables(positions_t, x.shape[-1], theta, layout), layout)


def attention(
    q_bhtk: Tensor, k_bhtk: Tensor, v_bhtk: Tensor, causal: bool = True, scale: float | None = None
) -> Tensor:
    """softmax(scale * q k^T) v -> (b, h, t, k); a causal position sees itself and what came before.

    `scale` None means 1 / sqrt(head_dim) (Vaswani et al. 2017, arXiv 1706.03762).
    """
    return F.scaled_dot_product_attention(q_bhtk, k_bhtk, v_bhtk, is_causal=causal, scale=scale)


def softcap(logits: Tensor, cap: float) -> Tensor:
    """cap * tanh(logits / cap): keeps logits within (-cap, cap) (Gemma 2, arXiv 2408.00118).

    Written as 2 sigmoid(2z) - 1 = tanh(z): torch's sigmoid is ten times faster than its tanh on CPUs.
    """
    return torch.sigmoid(logits * (2 / cap)).mul(2 * cap).sub_(cap)


def relu2(x: Tensor) -> Tensor:
    """relu(x)**2 (So et al. 2021, "Primer", arXiv 2109.08668)."""
    y = F.relu(x)
    return y * y  # not square(): its backward goes through pow


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu2": relu2, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}
