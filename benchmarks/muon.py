"""Muon on the block matrices of a GPT-2 of 124M parameters: what a step costs, and what becomes of singular values.

    .venv/bin/python benchmarks/muon.py [--layers 12] [--repeats 3] [--threads 2]

Two tables and docs/figures/muon_singular_values.png. All arms train the same weights with the same gradients, in turn,
forwards and backwards, so that a drift of the machine cancels in the ratio. torch.optim.Muon computes in bf16: on CPUs
with instructions for it (AVX512_BF16, AMX) that is twice as fast as fp32, on others it is emulated and up to seventy
times slower; ONEDNN_MAX_CPU_ISA=AVX512_CORE or AVX2 in the environment makes a newer CPU behave as an older one.
Twelve layers take about 5 GiB.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gptlib import records
from gptlib.device import Place
from gptlib.muon import NEWTON_SCHULZ, Muon, convergent, newton_schulz, polar_express
from gptlib.report.plots import GREY, INK, LIGHT, PALETTE

FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "muon_singular_values.png"
LAYER = [(768, 768)] * 4 + [(3072, 768), (768, 3072)]  # q, k, v, o, up, down
SPECTRUM, ABOVE = 1.1, 1e-3  # singular value i is i^-1.1; the table is of those above this share of the Frobenius norm


class PlainMuon(torch.optim.Optimizer):
    """Muon as one writes it down: matrix by matrix, in the precision of the weights."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        a, b, c = NEWTON_SCHULZ
        for group in self.param_groups:
            for p in group["params"]:
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                buffer = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - 0.95)
                x = p.grad.lerp(buffer, 0.95)
                x = x.T if p.shape[0] > p.shape[1] else x
                x = x / (x.norm() + 1e-7)
                for _ in range(5):
                    gram = x @ x.T
                    x = a * x + (b * gram + c * gram @ gram) @ x
                x = x.T if p.shape[0] > p.shape[1] else x
                p.add_(x, alpha=-group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "torch.optim.Muon (bf16, Newton-Schulz)": partial(torch.optim.Muon, weight_decay=0.0, ns_steps=5),
    "plain loop (fp32, Newton-Schulz)": lambda params, lr: PlainMuon(params, {"lr": lr}),
    "gptlib, Newton-Schulz, fp32": partial(Muon, orthogonalize="newton_schulz", precision="fp32"),
    "gptlib, Polar Express, fp32": partial(Muon, orthogonalize="polar_express", precision="fp32"),
    "gptlib, Polar Express + NorMuon, fp32": partial(Muon, normuon=True, precision="fp32"),
    "gptlib, Polar Express, bf16": partial(Muon, orthogonalize="polar_express", precision="bf16"),
}


def time_steps(layers: int, repeats: int) -> None:
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape).mul_(0.02)) for _ in range(layers) for shape in LAYER]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizers = {name: make(params, lr=1e-4) for name, make in OPTIMIZERS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for turn in range(1 + repeats):  # the first is the warm-up
        for name in list(optimizers)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            optimizers[name].step()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    reference = next(iter(medians.values()))
    print(f"\n{len(params)} matrices, {sum(p.numel() for p in params):,} values, median of {repeats} steps")
    rates = [Place(torch.device("cpu"), bf16=bf16).matmul_peak() / 1e9 for bf16 in (False, True)]
    print("Large matrix products: fp32 {:.0f}, bf16 {:.0f} GFLOP/s".format(*rates))
    print("\n| optimizer | s/step | lowest to highest | times as fast as torch.optim.Muon |\n|---|---:|---:|---:|")
    for name, median in medians.items():
        spread = f"{min(seconds[name][1:]):.2f} to {max(seconds[name][1:]):.2f}"
        print(f"| {name} | {median:.2f} | {spread} | {reference / median:.2f} |")
    print(f"\nPeak memory {Place(torch.device('cpu')).peak_memory()['resident_peak_mib'] / 1024:.1f} GiB.")


# --- singular values --------------------------------------------------------------------------------------------


def torch_muon(g: Tensor) -> Tensor:
    """What torch.optim.Muon makes of a gradient: its first step from zero, without momentum, at rate 1."""
    weight = torch.nn.Parameter(torch.zeros_like(g[0]))
    weight.grad = g[0].clone()
    torch.optim.Muon([weight], lr=1.0, momentum=0.0, weight_decay=0.0).step()
    return -weight.detach()[None]


def exact(g: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(g.double(), full_matrices=False)
    return u @ v


METHODS: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, Any]]] = {
    "exact: SVD, fp64": (exact, dict(color=LIGHT, linewidth=7)),
    "Newton-Schulz, 5 iterations, bf16 (torch)": (torch_muon, dict(color=PALETTE[5], linewidth=4)),
    "Newton-Schulz, 5 iterations, fp32": (newton_schulz, dict(color=PALETTE[0], linestyle="--")),
    "Polar Express, 5 iterations, fp32": (polar_express, dict(color=PALETTE[1])),
    "convergent, 12 iterations, fp32": (convergent, dict(color=PALETTE[2], linestyle="-.")),
}


def gradient_like(rows: int, cols: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random orthonormal U (rows, rows) and V (cols, rows), and falling singular values of Frobenius norm 1; fp64."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, rows, generator=generator).double())[0] for n in (rows, cols))
    s = torch.arange(1, rows + 1).double() ** -SPECTRUM
    return u, s / s.norm(), v


def singular_values(path: Path) -> None:
    figure = Figure((9.6, 5.8), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(2, 1))
    print(
        f"\nSingular values after, of those above {ABOVE:.1%} of the Frobenius norm before; relative distance to exact"
    )
    print("\n| matrix | method | smallest | median | largest | distance |\n|---|---|---:|---:|---:|---:|")
    for (upper, lower), shape in zip(axes.T, [(768, 768), (768, 3072)], strict=True):
        u, s, v = gradient_like(*shape)
        index, high = torch.arange(1, len(s) + 1), s > ABOVE
        for method, (orthogonal, style) in METHODS.items():
            o = orthogonal(((u * s) @ v.T).float()[None])[0].double()
            after = ((u.T @ o) * v.T).sum(1)  # u_i . O v_i in the order of before: a polynomial keeps the directions
            figures = (after[high].min(), after[high].median(), after[high].max(), (o - u @ v.T).norm() / len(s) ** 0.5)
            print(f"| {shape[0]} x {shape[1]} | {method} | {' | '.join(f'{x:.3f}' for x in figures)} |")
            upper.semilogx(index, after, label=method, **style)
        lower.loglog(index, s, color=INK)
        lower.axhline(ABOVE, color=GREY, linestyle=":")
        upper.set_title(f"{shape[0]} x {shape[1]}", fontsize=10)
        lower.set_xlabel("index of the singular value, largest first")
        for axis in (upper, lower):
            axis.axvline(int(high.sum()), color=GREY, linestyle=":")
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set(ylabel="singular value after\n(1 is exact)", ylim=(0, None))
    axes[1, 0].set_ylabel("before\n(share of the norm)")
    axes[1, 0].text(1, 1.2 * ABOVE, f"{ABOVE:.1%} of the Frobenius norm", color=GREY, fontsize=9)
    figure.suptitle(
        f"Singular values of a gradient-like matrix (the i-th is i^-{SPECTRUM}) before and after Muon's step"
    )
    entries = axes[0, 0].get_legend_handles_labels()
    figure.legend(*entries, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    full = io.BytesIO()
    figure.savefig(full, dpi=110)
    with PIL.Image.open(full) as picture:  # 64 colours are a third of the size
        picture.convert("RGB").quantize(64).save(path, optimize=True)
    print(f"\n{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = records.environment()
    print(f"{machine['cpu']}, {machine['platform']}, torch {torch.__version__}, ", end="")
    print(f"{arguments.threads} thread(s), {records.utc_now()[:10]}")
    time_steps(arguments.layers, arguments.repeats)
    singular_values(FIGURE)
