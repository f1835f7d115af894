"""Muon: momentum whose matrix-shaped update is orthogonalised (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

The orthogonal polar factor U V^T of an update G = U S V^T is approximated by odd matrix polynomials
X <- a X + (b A + c A^2) X with A = X X^T, which map each singular value s to a s + b s^3 + c s^5.

Over several ranks every rank keeps the momentum of all matrices, orthogonalises its share of them, and one all-gather
a shape spreads the updates: the state is the same everywhere, so rank 0 saves it for any number of ranks.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
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

# A holds squares of singular values: what rounding adds to the smallest must not grow to one. fp32 only, so many times.
GRAM_ITERATIONS = 5


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
    triples = list(triples)
    wide = 2 * x.shape[1] <= x.shape[2]
    if wide and x.dtype == torch.float32 and len(triples) <= GRAM_ITERATIONS:
        x = _by_gram(x, triples)
    else:
        for a, b, c in triples:
            gram = torch.bmm(x, x.mT)
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(g.dtype)


def _by_gram(x: Tensor, triples: list[Triple]) -> Tensor:
    """The same iterations on the small square A alone: X_k = Q_k X_0 with Q_k = P_k ... P_1, P = a + b A + c A^2.

    All of it is polynomials of A, so they commute: A <- P A P. For n iterations of matrices r times as long as short
    2 r + 4 n - 3 products of small squares instead of n (2 r + 1): 25 for 45 where r = 4.
    """
    gram, q = torch.bmm(x, x.mT), x
    for number, (a, b, c) in enumerate(triples):
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=-2, dim2=-1).add_(a)
        q = torch.bmm(p, q) if number else p
        if number < len(triples) - 1:
            gram = torch.bmm(torch.bmm(p, gram), p)
    return torch.bmm(q, x)


Orthogonalize = Callable[[Tensor, int, torch.dtype | None], Tensor]
ORTHOGONALIZE: dict[str, Orthogonalize] = {
    "newton_schulz": newton_schulz,
    "convergent": convergent,
    "polar_express": polar_express,
}
PRECISION = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class _Matrices:
    """What one parameter gives to a batch: its update as blocks (n, short, long), and where they go."""

    parameter: Tensor
    group: dict[str, Any]
    blocks: Tensor
    tall: bool  # the blocks are transposed

    def set_update(self, orthogonal: Tensor) -> None:
        """W <- (1 - lr wd) W - lr sqrt(max(1, rows / cols)) O, by blocks."""
        group, w = self.group, self.parameter
        short, long = orthogonal.shape[1:]
        update = (orthogonal.mT if self.tall else orthogonal).reshape(w.shape)
        if decay := group["lr"] * group["weight_decay"]:
            if group["cautious"]:
                w.sub_(w * (update * w >= 0), alpha=decay)
            else:
                w.mul_(1 - decay)
        w.add_(update, alpha=-group["lr"] * ((long / short) ** 0.5 if self.tall else 1.0))


class Muon(torch.optim.Optimizer):
    """Muon for 2-D parameters: m = mu m + (1 - mu) g; W <- (1 - lr wd) W - lr sqrt(max(1, rows / cols)) orth(u).

    u is m, or with `nesterov` (1 - mu) g + mu m. Matrices of one shape, transposed or not, are orthogonalised as one
    batch. `orthogonalize` names an entry of ORTHOGONALIZE, `precision` one of PRECISION. A group may set `block_rows`:
    each of its parameters is then so many rows by so many as matrices of their own (heads of an attention).

    * cautious: a weight decays only where the update has its sign (Chen et al. 2025, arXiv 2510.12402, and
      modded-nanogpt).
    * normuon: the rows of a tall or square update, or the columns of a wide one, are divided by the root of the running
      mean (`beta2`, from 0, uncorrected) of their mean square, at an unchanged Frobenius norm (Li et al. 2025, arXiv
      2510.05491, in the form of modded-nanogpt).

    State, alike on all of `world` ranks: `momentum_buffer` (as the parameter), with NorMuon `row_squares`,
    (blocks, 1, long), of square blocks (blocks, rows, 1).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        cautious: bool = False,
        orthogonalize: str = "polar_express",
        iterations: int = 5,
        precision: str = "auto",
        normuon: bool = False,
        beta2: float = 0.95,
        block_rows: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        settings: dict[str, Any] = dict(
            lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, cautious=cautious
        )
        settings |= dict(orthogonalize=orthogonalize, iterations=iterations, precision=precision)
        super().__init__(params, settings | dict(normuon=normuon, beta2=beta2, block_rows=block_rows))
        self.rank, self.world = rank, world
        for group in self.param_groups:
            shapes = [tuple(p.shape) for p in group["params"] if p.ndim != 2 or p.shape[0] % (group["block_rows"] or 1)]
            assert not shapes, f"Muon takes matrices, of whole blocks of rows, not {shapes}"

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. Gradients are left as they are."""
        assert closure is None, "closures are not supported"
        batches: dict[Any, list[_Matrices]] = {}
        for group in self.param_groups:
            method = group["orthogonalize"], group["iterations"], group["precision"]
            for matrices in self._updates(group):
                blocks = matrices.blocks
                key = (*blocks.shape[1:], blocks.device, blocks.dtype, *method)
                batches.setdefault(key, []).append(matrices)
        for members, orthogonal in zip(batches.values(), self._orthogonalized(list(batches.values())), strict=True):
            parts = orthogonal.split([len(matrices.blocks) for matrices in members])
            for matrices, part in zip(members, parts, strict=True):
                matrices.set_update(self._evened(matrices, part) if matrices.group["normuon"] else part)

    def _updates(self, group: dict[str, Any]) -> Iterable[_Matrices]:
        """Advance the momentum of a group; u of each parameter, in blocks."""
        params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        grads: list[Tensor] = [p.grad for p in params if p.grad is not None]
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, buffers, group["momentum"]) if group["nesterov"] else buffers
        for p, u in zip(params, updates, strict=True):
            blocks = u.view(-1, group["block_rows"] or len(u), u.shape[1])
            tall = blocks.shape[1] > blocks.shape[2]
            yield _Matrices(p, group, blocks.mT if tall else blocks, tall)

    def _orthogonalized(self, batches: list[list[_Matrices]]) -> list[Tensor]:
        """For each batch its matrices (n, short, long) orthogonalised: all here, or each rank its share."""
        stacks = [torch.cat([matrices.blocks for matrices in members]) for members in batches]
        if self.world == 1:
            return [_orthogonal(u, members[0].group) for u, members in zip(stacks, batches, strict=True)]
        owners = balanced([(len(u), u.shape[1] ** 2 * u.shape[2]) for u in stacks], self.world)
        sent = [self._share(*of_batch) for of_batch in zip(stacks, batches, owners, strict=True)]
        return [gathered() for gathered in sent]

    def _share(self, u: Tensor, members: list[_Matrices], owners: list[int]) -> Callable[[], Tensor]:
        """Orthogonalise this rank's matrices of u and begin to exchange them; the call it returns waits for all."""
        places = [owners[:i].count(owner) for i, owner in enumerate(owners)]  # of a matrix among those of its owner
        width = max(places) + 1
        mine = [i for i, owner in enumerate(owners) if owner == self.rank]
        dtype = muon_precision(members[0].group["precision"], u.device)
        padded = u.new_zeros((width, *u.shape[1:]), dtype=dtype)
        if mine:
            padded[: len(mine)] = _orthogonal(u[mine], members[0].group)
        everything = padded.new_empty((self.world * width, *u.shape[1:]))
        gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # its name before torch 2.13
        exchange = gather(everything, padded, async_op=True)
        order = [owner * width + place for owner, place in zip(owners, places, strict=True)]

        def gathered() -> Tensor:
            exchange.wait()
            return everything[order].to(u.dtype)

        return gathered

    def _evened(self, matrices: _Matrices, orthogonal: Tensor) -> Tensor:
        """NorMuon: every line along the longer side at the same size, the whole as large as before."""
        state, (short, long) = self.state[matrices.parameter], orthogonal.shape[1:]
        squares = orthogonal.square().mean(dim=2 if short == long else 1, keepdim=True)
        if "row_squares" not in state:
            state["row_squares"] = torch.zeros_like(squares)
        running = state["row_squares"].lerp_(squares, 1 - matrices.group["beta2"])
        evened = orthogonal * running.clamp_min(1e-10).rsqrt()
        norms = [torch.linalg.matrix_norm(x, keepdim=True) for x in (orthogonal, evened)]
        return evened * (norms[0] / norms[1].clamp_min(1e-10))


def balanced(batches: Sequence[tuple[int, float]], world: int) -> list[list[int]]:
    """The rank of each matrix of each batch, given (count, cost of one): the dearest first, to the least loaded."""
    loads = [(0.0, rank) for rank in range(world)]
    owners: list[list[int]] = [[] for _ in batches]
    for batch in sorted(range(len(batches)), key=lambda i: -batches[i][1]):
        count, cost = batches[batch]
        for _ in range(count):
            load, rank = heapq.heappop(loads)
            heapq.heappush(loads, (load + cost, rank))
            owners[batch].append(rank)
    return owners


def muon_precision(name: str, device: torch.device) -> torch.dtype:
    """What `auto`, `fp32` or `bf16` means on a device."""
    return PRECISION[name] or (torch.bfloat16 if device.type == "cuda" else torch.float32)


def _orthogonal(u: Tensor, group: dict[str, Any]) -> Tensor:
    return ORTHOGONALIZE[group["orthogonalize"]](u, group["iterations"], muon_precision(group["precision"], u.device))
