"""Tokenizers and loader against what they are made of: Markdown tables.

    .venv/bin/python benchmarks/data.py FOLDER [--vocab-size 10000] [--threads 1 2] [--repeats 3]

FOLDER holds .txt files, one document each. The arms take turns, forwards and backwards, so that a drift of the machine
cancels in the ratio; each ratio is the median over the repeats of neighbours in time, and CPU seconds stand beside the
wall clock's for machines that are busy with other things. The BPE that was trained is checked against the bare
library's: the same ids for the whole folder. The loader reads random ids from a file that was just written, so from the
page cache, on one core; its share of a training step is what a batch takes alone, with nothing hidden behind the step.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import tiktoken
import tokenizers
import torch

from gptlib import records
from gptlib.config import load_config
from gptlib.data import loader
from gptlib.data.dataset import Dataset, open_dataset, prepare_dataset
from gptlib.data.shards import read_shard, write_shard
from gptlib.data.tokenizers import SPLIT_PATTERN, Tokenizer, build_tokenizer, encode_stream
from gptlib.device import take_place
from gptlib.fields import DataConfig, RunConfig
from gptlib.train import train

SHARD_TOKENS, VOCABULARY, EOT = 50_000_000, 50_257, 50_256
BATCHES = 300


def compare(arms: dict[str, Callable[[], Any]], repeats: int, reference: str, megabytes: float) -> dict[str, Any]:
    """Time the arms in turn and print a table; returns what each has returned last."""
    seconds: dict[str, list[float]] = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)
    results = {}
    for turn in range(repeats):
        for name in list(arms)[:: 1 if turn % 2 else -1]:
            wall, process = time.perf_counter(), time.process_time()
            results[name] = arms[name]()
            seconds[name].append(time.perf_counter() - wall)
            cpu[name].append(time.process_time() - process)
    print("\n| | s | MB/s | CPU s | time / reference's | CPU time / reference's |\n|---|---:|---:|---:|---:|---:|")
    for name in arms:
        wall, process = statistics.median(seconds[name]), statistics.median(cpu[name])
        ratios = (
            statistics.median(own / base for own, base in zip(found[name], found[reference], strict=True))
            for found in (seconds, cpu)
        )
        cells = [f"{wall:.2f}", f"{megabytes / wall:.1f}", f"{process:.2f}", *map("{:.2f}".format, ratios)]
        print(f"| {name} | {' | '.join(cells)} |")
    return results


# --- tokenizers -------------------------------------------------------------------------------------------------


def bare_training(texts: list[str], size: int) -> tokenizers.ByteLevelBPETokenizer:
    bare = tokenizers.ByteLevelBPETokenizer()
    bare.train_from_iterator(texts, vocab_size=size - 1, min_frequency=2, show_progress=False)
    return bare


def time_training(texts: list[str], size: int, repeats: int, megabytes: float) -> Tokenizer:
    print(f"\n**Training** a BPE of {size:,} on {megabytes:.1f} MB")
    bare, ours = "bare `tokenizers`, ByteLevelBPETokenizer", "gptlib, build_tokenizer"
    arms = {bare: lambda: bare_training(texts, size), ours: lambda: build_tokenizer(DataConfig(vocab_size=size), texts)}
    results = compare(arms, repeats, bare, megabytes)
    tokenizer: Tokenizer = results[ours]
    encoded = zip(encode_stream(tokenizer, texts), texts, strict=True)
    same = all(ids.tolist() == results[bare].encode(text).ids for ids, text in encoded)
    print(f"\nThe ids of all {megabytes:.1f} MB are the bare library's: {'yes' if same else 'NO'}.")
    return tokenizer


def write(tokenizer: Tokenizer, texts: list[str], threads: int, path: Path) -> None:
    """Encode to a shard, as a dataset is made."""
    separator = np.array([tokenizer.eot], dtype=np.uint16)
    parts = itertools.chain.from_iterable((separator, ids) for ids in encode_stream(tokenizer, texts, threads))
    write_shard(path, np.concatenate([*parts, separator]))


def time_encoding(tokenizer: Tokenizer, texts: list[str], threads: int, repeats: int, megabytes: float) -> None:
    ranks = {bytes.fromhex(token): rank for rank, token in enumerate(tokenizer.definition["tokens"])}

    encoding = tiktoken.Encoding("bare", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})
    print(f"\n**Encoding** {megabytes:.1f} MB in {len(texts):,} documents, {threads} thread(s)")
    with tempfile.TemporaryDirectory() as folder:
        arms = {
            "bare `tiktoken`, encode_ordinary_batch": lambda: encoding.encode_ordinary_batch(
                texts, num_threads=threads
            ),
            "gptlib, shard written": lambda: write(tokenizer, texts, threads, Path(folder) / "shard.bin"),
        }
        compare(arms, repeats, next(iter(arms)), megabytes)


# --- loader -----------------------------------------------------------------------------------------------------


def made_up_dataset(folder: Path) -> Dataset:
    """Random ids in documents of 500 tokens or so."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, EOT, SHARD_TOKENS).astype(np.uint16)
    tokens[draw.integers(0, SHARD_TOKENS, SHARD_TOKENS // 500)] = tokens[0] = tokens[-1] = EOT
    write_shard(folder / "shard.bin", tokens)
    shards = [read_shard(folder / "shard.bin")]
    return cast(Dataset, SimpleNamespace(tokens=lambda split: shards, eot=EOT, path=folder))


def milliseconds(dataset: Dataset, config: RunConfig) -> tuple[float, float]:
    """Of one batch, by the wall clock and of the CPU: medians of ten blocks of batches."""
    batches = loader.TrainingStream(dataset, config, seed=1)
    blocks = []
    for _ in range(10):
        wall, process = time.perf_counter(), time.process_time()
        for _ in range(BATCHES // 10):
            batches.take(config.train.batch_rows, config.model.seq_len)
        ends = time.perf_counter() - wall, time.process_time() - process
        blocks.append([1e4 * seconds / BATCHES for seconds in ends])
    batches.close()
    return statistics.median(b[0] for b in blocks), statistics.median(b[1] for b in blocks)


def time_loader() -> None:
    print(f"\n**Loader**, 32 rows of 1,024 tokens, {SHARD_TOKENS:,} tokens, one core")
    print("\n| data.rows | M tokens/s | M tokens per CPU second |\n|---|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        dataset = made_up_dataset(Path(folder))
        sorted_rows = loader.SORTED_ROWS
        for label, rows, long, longest in (
            ("stream: permuted windows", "stream", False, 0),
            ("stream, permuted as in a long epoch", "stream", True, 0),
            ("ordered", "ordered", False, 0),
            ("random", "random", False, 0),
            ("documents", "documents", False, 0),
            ("stream, max_document=400", "stream", False, 400),
        ):
            loader.SORTED_ROWS = 0 if long else sorted_rows
            data = {"rows": rows, "max_document": longest}
            config = RunConfig.model_validate({"data": data, "model": {"seq_len": 1024}, "train": {"batch_rows": 32}})
            print("| {} | {:.0f} | {:.0f} |".format(label, *(32.768 / ms for ms in milliseconds(dataset, config))))
        loader.SORTED_ROWS = sorted_rows
    for count in (100_000, 1_000_000, 10_000_000, 10_000_000_000):
        size = count if count <= loader.SORTED_ROWS else loader.BLOCK_ROWS
        start = time.perf_counter()
        loader._order(1, 0, count, count // 2 // size, size)
        print(f"\nThe middle of an epoch of {count:,} rows is found in {1000 * (time.perf_counter() - start):.1f} ms.")


def time_step(preset: str) -> None:
    config = load_config(preset, ["eval.every=0", "train.steps=20"])
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_dataset(prepare_dataset(config.data, Path(folder)))
        train(config, dataset, 1, take_place(config.hardware, "cpu"), rows.append)
        batch, _ = milliseconds(dataset, config)
    step = rows[-1]["step_avg_ms"]
    print(f"\nA batch of `{preset}` takes {batch:.3f} ms, {batch / step:.2%} of a step of {step:.1f} ms.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vocab-size", type=int, default=10_000)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    texts = [path.read_text(encoding="utf-8") for path in sorted(arguments.folder.rglob("*.txt"))]
    if not texts:
        parser.error(f"{arguments.folder}: no .txt files in this folder")
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    machine = records.environment()
    versions = f"tokenizers {tokenizers.__version__}, tiktoken {tiktoken.__version__}, numpy {np.__version__}"
    print(f"{machine['cpu']}, {machine['platform']}, {versions}, torch {torch.__version__}, {records.utc_now()[:10]}")
    tokenizer = time_training(texts, arguments.vocab_size, arguments.repeats, megabytes)
    for threads in arguments.threads:
        time_encoding(tokenizer, texts, threads, arguments.repeats, megabytes)
    time_loader()
    time_step("quickstart")
