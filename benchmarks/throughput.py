"""How fast a preset trains on this machine, eager and compiled, and where the time of its step goes: Markdown tables.

    .venv/bin/python benchmarks/throughput.py [PRESET ...] [--set section.key=value ...] [--compile both|no|yes]
        [--steps 40] [--nanogpt PATH OF A CHECKOUT OF karpathy/nanoGPT]

Medians over full steps of one process (so no gradient exchange), after a warm-up, in the memory settings of a run. The
arms take turns in blocks, forwards and backwards, so that a drift of the machine cancels. Half of the blocks wait for
the device at the two ends of a step only and give the speeds; the others wait after every part and give the parts.
MFU is the closed form's FLOPs (the full square of attention) over what a large matrix product reaches here. nanoGPT is
its own model of the preset's shape with its own AdamW, on the same batches; its code is run, so give a path you trust.
tinyshakespeare is downloaded without --set data.path=FILE. Compare only numbers of one call.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gptlib import records
from gptlib.accounting import flops_per_token
from gptlib.config import load_config
from gptlib.data.dataset import Dataset, open_dataset, prepare_dataset
from gptlib.data.loader import TrainingStream
from gptlib.device import Place, take_place
from gptlib.fields import RunConfig
from gptlib.launch import KEEP_MEMORY, resolve_device
from gptlib.train import build, clip_gradients, compiled

PRESETS = ["nanogpt_shakespeare_char", "shakespeare_char", "quickstart"]
WARMUP, BLOCKS = 5, 8


@dataclass
class Arm:
    """One way to train: a model, what gives its loss, what updates it; and the milliseconds its steps took, by part."""

    model: Any
    loss: Callable[..., torch.Tensor]
    optimizers: list[torch.optim.Optimizer]
    batches: TrainingStream
    first: float = 0.0  # seconds of the first step, which compiles
    whole: list[dict[str, float]] = field(default_factory=list)  # only "step" is to be believed
    fenced: list[dict[str, float]] = field(default_factory=list)

    def step(self, config: RunConfig, place: Place, fenced: bool = False) -> dict[str, float]:
        """One optimizer step as in gptlib/train.py."""
        spent: dict[str, float] = defaultdict(float)

        def timed(part: str, work: Callable[..., Any], *inputs: Any, fence: bool = fenced) -> Any:
            if fence:
                place.synchronize()
            start = time.perf_counter()
            result = work(*inputs)
            if fence:
                place.synchronize()
            spent[part] += 1000 * (time.perf_counter() - start)
            return result

        def pieces() -> list[list[torch.Tensor]]:
            batch = self.batches.take(rows, config.model.seq_len)
            parts = [slice(first, first + micro_rows) for first in range(0, rows, micro_rows)]
            return [[place.tensor(array[part]) for array in (batch.inputs, batch.targets)] for part in parts]

        def whole() -> None:
            for inputs_bt, targets_bt in timed("data", pieces):
                with place.autocast():
                    loss = timed("forward", self.loss, inputs_bt, targets_bt)
                timed("backward", loss.backward)
            timed("clip", clip_gradients, self.model, config.optim.grad_clip)
            for optimizer in self.optimizers:
                timed(type(optimizer).__name__, optimizer.step)
                optimizer.zero_grad(set_to_none=True)

        rows = config.train.batch_rows
        micro_rows = config.hardware.micro_rows or rows
        timed("step", whole, fence=True)
        return spent


def make_arms(config: RunConfig, dataset: Dataset, place: Place, compile: str, nanogpt: str) -> dict[str, Arm]:
    arms = {}
    for name in {"both": ["eager", "compiled"], "no": ["eager"], "yes": ["compiled"]}[compile]:
        model, optimizers = build(config, dataset, 0, place)
        loss = compiled(model) if name == "compiled" else model
        arms[name] = Arm(model, loss, optimizers, TrainingStream(dataset, config, 0))
        if nanogpt:
            model, optimizers = build_nanogpt(Path(nanogpt), config, dataset, place)
            pair = torch.compile(model) if name == "compiled" else model
            loss = partial(lambda pair, *inputs: pair(*inputs)[1], pair)  # it gives logits and loss
            arms[f"nanoGPT, {name}"] = Arm(model, loss, optimizers, TrainingStream(dataset, config, 0))
    return arms


def build_nanogpt(folder: Path, config: RunConfig, dataset: Dataset, place: Place) -> tuple[Any, list[Any]]:
    """nanoGPT's model at the preset's depth, width, heads, context and vocabulary, and the optimizer it makes."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec and spec.loader, f"{folder} has no model.py"
    module = sys.modules.setdefault("nanogpt_model", importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    m = config.model
    sizes: dict[str, Any] = dict(vocab_size=m.padded_vocab(dataset.vocab_size), dropout=m.dropout, bias=m.bias)
    sizes |= dict(n_layer=m.num_layers, n_head=m.num_heads, n_embd=m.model_dim, block_size=m.seq_len)
    with contextlib.redirect_stdout(io.StringIO()):
        model = module.GPT(module.GPTConfig(**sizes)).to(place.device)
        return model, [model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), place.device.type)]


def measure(config: RunConfig, arms: dict[str, Arm], place: Place, steps: int) -> float:
    """Fill the arms; returns FLOP/s of a large matrix product, the median over the same time."""
    for arm in arms.values():
        arm.first = arm.step(config, place)["step"] / 1000
        for _ in range(WARMUP):
            arm.step(config, place)
    peaks = []
    for block in range(BLOCKS):
        fenced = block // 2 % 2 == 1
        peaks.append(place.matmul_peak())
        for arm in list(arms.values())[:: 1 if block % 2 else -1]:
            seen = [arm.step(config, place, fenced) for _ in range(-(-2 * steps // BLOCKS))]
            (arm.fenced if fenced else arm.whole).extend(seen)
    return statistics.median(peaks)


def report(name: str, config: RunConfig, dataset: Dataset, arms: dict[str, Arm], peak: float) -> None:
    flops = flops_per_token(config.model, dataset.vocab_size)
    rows, tokens = config.train.batch_rows, config.tokens_per_step
    parameters = sum(p.numel() for p in next(iter(arms.values())).model.parameters())
    print(f"\n**{name}**: {parameters:,} parameters, {flops / 1e6:.2f} MFLOP a token, {tokens} tokens a step, ", end="")
    print(f"{config.hardware.threads} thread(s), matrix products at {peak / 1e9:,.0f} GFLOP/s")
    print("\n| arm | tokens/s | rows/s | ms/step | MFU | first step, s |\n|---|---:|---:|---:|---:|---:|")
    for arm_name, arm in arms.items():
        ms = statistics.median(spent["step"] for spent in arm.whole)
        mfu = "" if arm_name.startswith("nanoGPT") else f"{1000 * flops * tokens / ms / peak:.1%}"
        speeds = f"{1000 * tokens / ms:,.0f} | {1000 * rows / ms:,.0f} | {ms:.2f}"
        print(f"| {arm_name} | {speeds} | {mfu} | {arm.first:.2f} |")
    print(f"\n| part, ms | {' | '.join(arms)} |\n|---|{'---:|' * len(arms)}")
    for part in dict.fromkeys(part for arm in arms.values() for part in arm.fenced[0]):
        cells = []
        for arm in arms.values():
            ms, step = (statistics.median(spent.get(key, 0.0) for spent in arm.fenced) for key in (part, "step"))
            cells.append(f"{ms:.2f} ({ms / step:.0%})")
        print(f"| {part} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=PRESETS)
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value")
    parser.add_argument("--compile", choices=("both", "no", "yes"), default="both")
    parser.add_argument("--steps", type=int, default=40, help="of each kind, timed")
    parser.add_argument("--nanogpt", default="", metavar="PATH")
    arguments = parser.parse_args()
    if not KEEP_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)
    machine = records.environment()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # an empty one: the first step shows the whole time to compile
        for preset in arguments.presets:
            config = load_config(preset, arguments.set)
            place = take_place(config.hardware, resolve_device(config.hardware.device))
            torch.compiler.reset()
            dataset = open_dataset(prepare_dataset(config.data, Path(folder)))
            arms = make_arms(config, dataset, place, arguments.compile, arguments.nanogpt)
            peak = measure(config, arms, place, arguments.steps)
            report(preset, config, dataset, arms, peak)
            for arm in arms.values():
                arm.batches.close()
    gpu = f", {torch.cuda.get_device_name()}" if place.device.type == "cuda" else ""
    print(f"\n{machine['cpu']}{gpu}, {machine['platform']}, torch {torch.__version__}, {records.utc_now()[:10]}")
