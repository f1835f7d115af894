"""nanoGPT's smallest example and this repository's recipe for it, on the same cores: a table in Markdown.

    .venv/bin/python benchmarks/shakespeare_char.py [PATH OF tinyshakespeare.txt]

Two questions. Does the preset nanogpt_shakespeare_char end where nanoGPT itself does? In which share of the preset's
time does shakespeare_char reach the preset's mean loss? Losses are over every validation position. Times are training
wall seconds with two threads, evaluation and start-up left out on both sides, one run at a time, the two arms in turn.
Run it with nothing else running; the machine's speed cancels in the ratio, not in the seconds.
"""

import statistics
import sys
import tempfile
from pathlib import Path

from scipy import stats

from gptlib import records
from gptlib.config import load_config
from gptlib.study.experiment import execute, plan_experiment

# The command of nanoGPT's README for CPUs, at commit 3adf61e, with its seed changed, scored over every validation
# position in windows of 64: on another two-core machine, with torch 2.13.0.
NANOGPT = (1.901, 1.916, 1.912)
SEEDS = {"nanogpt_shakespeare_char": (101, 102, 103), "shakespeare_char": (301, 302, 303, 304, 305)}
TURNS = sorted((seed % 100, base, seed) for base, seeds in SEEDS.items() for seed in seeds)


def run(base: str, seed: int, text: str, outputs: Path) -> dict[str, float]:
    changes = {"eval.every": 0, "eval.sample_tokens": 0}
    config = load_config(base, changes | ({"data.path": str(Path(text).resolve())} if text else {}))
    plan = plan_experiment(outputs, base, str(seed), config, [seed])
    (result,) = execute(plan).results
    if not result["success"]:
        raise SystemExit(f"{base} seed {seed}: {result['status']}; {result.get('error', '')}")
    print(f"{base} seed {seed}: {result['final_val_loss']:.4f} in {result['time_seconds']:.1f} s", flush=True)
    return result


def main(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        results: dict[str, list[dict[str, float]]] = {base: [] for base in SEEDS}
        for _, base, seed in TURNS:
            results[base].append(run(base, seed, text, Path(folder)))
    print(f"\n{records.environment()['cpu']}, two threads\n")
    print("| run | tokens | final loss of each seed | mean (std), nats/character | training time, s |")
    print("|---|---:|---|---:|---:|")
    for base, runs in results.items():
        losses, seconds = ([r[key] for r in runs] for key in ("final_val_loss", "time_seconds"))
        each = ", ".join(f"{loss:.3f}" for loss in losses)
        spread = f"{statistics.fmean(losses):.4f} ({statistics.stdev(losses):.4f})"
        print(f"| {base} | {runs[0]['tokens']:,} | {each} | {spread} | {statistics.fmean(seconds):.1f} |")
    preset, ours = ([r["final_val_loss"] for r in runs] for runs in results.values())
    gap = statistics.fmean(preset) - statistics.fmean(NANOGPT)
    interval = stats.ttest_ind(preset, NANOGPT, equal_var=False).confidence_interval()
    print(f"\nPreset minus nanoGPT itself ({', '.join(f'{loss:.3f}' for loss in NANOGPT)}): {gap:+.4f} nats, ", end="")
    print(f"95 % Welch interval [{interval.low:+.4f}, {interval.high:+.4f}].")
    times = [statistics.fmean(r["time_seconds"] for r in runs) for runs in results.values()]
    reached = "reached" if statistics.fmean(ours) <= statistics.fmean(preset) else "NOT reached"
    print(
        f"The preset's mean loss is {reached} by the mean of five fresh seeds in {times[1] / times[0]:.3f} of its time."
    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
