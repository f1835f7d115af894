"""Where the time of one training step goes, on this machine: a table in Markdown.

    .venv/bin/python benchmarks/step.py quickstart [section.key=value ...]

Median over steps after a warm-up, with nothing else running. Compare only numbers of one call: the same machine can
be twice as fast an hour later.
"""

import platform
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from gptlib.accounting import flops_per_token
from gptlib.config import load_config
from gptlib.device import take_place
from gptlib.launch import resolve_device
from gptlib.model import GPT
from gptlib.optimizers import build_optimizers

VOCAB, WARMUP, STEPS = 512, 5, 30


def main(base: str, overrides: list[str]) -> None:
    config = load_config(base, overrides)
    place = take_place(config.hardware, resolve_device(config.hardware.device))
    model = GPT(config.model, VOCAB)
    model.init_weights(0)
    model.to(place.device)
    optimizers = build_optimizers(model, config.optim)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (config.train.batch_rows, config.model.seq_len + 1))
    inputs_bt, targets_bt = place.tensor(tokens[:, :-1].copy()), place.tensor(tokens[:, 1:].copy())
    times: dict[str, list[float]] = {"forward": [], "backward": []} | {type(o).__name__: [] for o in optimizers}

    def timed(name: str, work: Callable[[], object]) -> object:
        place.synchronize()
        start = time.perf_counter()
        result = work()
        place.synchronize()
        times[name].append(1000 * (time.perf_counter() - start))
        return result

    for _ in range(WARMUP + STEPS):
        with place.autocast():
            loss = timed("forward", lambda: model(inputs_bt, targets_bt))
        assert isinstance(loss, torch.Tensor)
        timed("backward", loss.backward)
        for optimizer in optimizers:
            timed(type(optimizer).__name__, optimizer.step)
            optimizer.zero_grad(set_to_none=True)

    medians = {name: statistics.median(values[WARMUP:]) for name, values in times.items()}
    total = sum(medians.values())
    print(
        f"{base} {' '.join(overrides)}: {model.get_num_params():,} parameters, {config.tokens_per_step} tokens a step"
    )
    print(f"{platform.machine()}, torch {torch.__version__}, {place.device}, {config.hardware.threads} thread(s)\n")
    print("| part | ms | share |\n|---|---:|---:|")
    for name, median in [*medians.items(), ("step", total)]:
        print(f"| {name} | {median:.1f} | {100 * median / total:.0f} % |")
    flops = flops_per_token(config.model, VOCAB) * config.tokens_per_step
    speed = 1000 * config.tokens_per_step / total
    print(f"\n{speed:,.0f} tokens/s, {flops / total / 1e6:.1f} GFLOP/s (attention counted as the full square)")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(sys.argv[1], sys.argv[2:])
