"""Muon: momentum whose matrix-shaped update is orthogonalised (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

The orthogonal polar factor U V^T of an update G = U S V^T is approximated by odd matrix polynomials
X <- a X + (b A + c A^2) X with A = X X^T, which map each singular value s to a s + b s^3 + c s^5.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Triple = tuple[float, float, float]

NEWTON_SCHULZ: Triple = (3.4445, -4.7750, 2.0315)
CONVERGENT: Triple = (2.0, -1.5, 0.5)
POLAR_EXPRESS: tuple[Triple, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def newton_schulz(g: Tensor, iterations: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """Near-orthogonal factor of each matrix of g (n, rows, cols), by Jordan's fixed quintic.

    It trades convergence for speed: after 5 iterations every singular value that was above 0.2 % of the Frobenius norm
    lies in [0.68, 1.21], and more iterations only narrow that to [0.68, 1.14]. `dtype` None: bf16 on CUDA, else fp32.
    """
    return _iterate(g, [NEWTON_SCHULZ] * iterations, 1.0, 1e-7, dtype)


def convergent(g: Tensor, iterations: int = 12, dtype: torch.dtype | None = None) -> Tensor:
    """Orthogonal factor of each matrix of g (n, rows, cols), by a quintic that converges: slower, and exact in the end.

    modded-nanogpt track 3 takes 12 iterations. `dtype` None: bf16 on CUDA, else fp32.
    """
    return _iterate(g, [CONVERGENT] * iterations, 1.0, 1e-7, dtype)


def polar_express(g: Tensor, iterations: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """Near-orthogonal factor of each matrix of g (n, rows, cols), by the Polar Express (Amsel et al. 2025,
    arXiv 2505.16932), coefficients as in modded-nanogpt.

    After 5 iterations every singular value that was above 0.1 % of the Frobenius norm lies in [0.84, 1.15]. Each
    iteration has its own triple, made for five: there are no more, and fewer leave a wide band (4: [0.40, 1.58]).
    `dtype` None: bf16 on CUDA, else fp32.
    """
    assert 1 <= iterations <= len(POLAR_EXPRESS), "Polar Express has five coefficient triples"
    return _iterate(g, POLAR_EXPRESS[:iterations], 1.02, 1e-6, dtype)


def _iterate(g: Tensor, triples: Iterable[Triple], safety: float, eps: float, dtype: torch.dtype | None) -> Tensor:
    assert g.ndim == 3, f"a batch of matrices (n, rows, cols) is needed, not {tuple(g.shape)}"
    x = g.to(dtype or (torch.bfloat16 if g.is_cuda else torch.float32))
    tall = g.shape[1] > g.shape[2]
    if tall:  # the Gram matrix is the smaller one
        x = x.mT.contiguous()
    x = x / (safety * torch.linalg.matrix_norm(x, keepdim=True) + eps)
    for a, b, c in triples:
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(g.dtype)


ORTHOGONALIZE: dict[str, Callable[[Tensor, int], Tensor]] = {
    "newton_schulz": newton_schulz,
    "convergent": convergent,
    "polar_express": polar_express,
}


class Muon(torch.optim.Optimizer):
    """Muon for 2-D parameters: m = mu m + (1 - mu) g; W <- (1 - lr wd) W - lr sqrt(max(1, rows / cols)) orth(u).

    u is m, or with `nesterov` (1 - mu) g + mu m. Matrices of one shape are orthogonalised as one batch. The only state
    is `momentum_buffer`, one per parameter. `orthogonalize` names an entry of ORTHOGONALIZE.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        orthogonalize: str = "polar_express",
        iterations: int = 5,
    ) -> None:
        defaults = dict(
            lr=lr,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            orthogonalize=orthogonalize,
            iterations=iterations,
        )
        super().__init__(params, defaults)
        shapes = [tuple(p.shape) for group in self.param_groups for p in group["params"] if p.ndim != 2]
        assert not shapes, f"Muon takes matrices only, not {shapes}"

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. Gradients are left as they are."""
        assert closure is None, "closures are not supported"
        for group in self.param_groups:
            by_shape: dict[Any, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault((p.shape, p.device, p.dtype), []).append(p)
            for params in by_shape.values():
                self._update(params, group)

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads: list[Tensor] = [p.grad for p in params if p.grad is not None]
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, buffers, group["momentum"]) if group["nesterov"] else buffers
        orthogonal = ORTHOGONALIZE[group["orthogonalize"]](torch.stack(updates), group["iterations"])
        rows, cols = params[0].shape
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, orthogonal.unbind(), alpha=-group["lr"] * max(1.0, rows / cols) ** 0.5)
