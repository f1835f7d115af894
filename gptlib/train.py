"""The training loop that every rank runs.

A run is fed by `run.json` and answers through files: `metrics.jsonl` while it runs, `result.json` and `checkpoint/`
at its end. Its numbers depend on the configuration and the seed alone: any world size gives the same run up to the
order of summation (dropout aside), evaluation draws on no random stream of training, and the clock stands still while
it evaluates.
"""

import dataclasses
import math
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from gptlib import records
from gptlib.accounting import describe_costs, run_flops
from gptlib.checkpoint import save_checkpoint
from gptlib.data.dataset import Dataset, open_dataset
from gptlib.data.loader import Batch, TrainingStream
from gptlib.device import Place, take_place
from gptlib.evaluate import Evaluation, evaluate, evaluate_hellaswag, generate
from gptlib.fields import RunConfig
from gptlib.hellaswag import open_questions
from gptlib.memory import memory_report
from gptlib.model import GPT
from gptlib.muon import muon_precision
from gptlib.optimizers import build_optimizers, set_rates
from gptlib.schedules import Pace, Rates
from gptlib.streams import stream_seed

Log = Callable[[dict[str, Any]], None]
MAX_LOGGED_STEPS = 1000
MAX_GRAPHS = 64
# A loss above this multiple of ln(vocabulary), the loss of a uniform guess, or of the untrained model's where that is
# higher (without norms it can be several times as high), has exploded.
DIVERGED_FACTOR = 3.0


def train(config: RunConfig, dataset: Dataset, seed: int, place: Place, log: Log) -> tuple[GPT, dict[str, Any]]:
    """Train one model; returns it with the fields of its result. `log` gets a metrics row per logged step."""
    model, optimizers = build(config, dataset, seed, place)
    compute = compiled(model) if config.hardware.compile else model
    batches, pace = TrainingStream(dataset, config, seed, place.rank, place.world), Pace(config, seed)
    micro_tokens = config.model.seq_len * (config.hardware.micro_rows or config.train.batch_rows // place.world)
    steps, every, log_every = config.train.steps, config.eval.every, -(-config.train.steps // MAX_LOGGED_STEPS)
    questions = open_questions(config.eval, dataset.tokenizer, config.model.seq_len) if config.eval.hellaswag else None
    seconds, tokens, loss, row, best = 0.0, 0, math.nan, dict[str, Any](), math.inf
    limit = sys.float_info.max  # until the first batch has shown the loss of the untrained model

    def outcome(status: str, step: int) -> dict[str, Any]:
        batches.close()
        return _outcome(status, step, seconds, loss, place) | {"tokens": tokens, "switches": pace.switches(step)}

    for step in range(steps + 1):
        last = step == steps

        # ---- evaluation: the clock stands still; the last one takes every validation position
        model.layers_on, model.window_share = pace.layers(step, training=False), pace.window_share(step)
        if last or (every and step % every == 0):
            evaluation = evaluate(model, dataset, config, place, None if last else config.eval.rows)
            if not evaluation.loss <= limit:  # nan is not
                log({"step": step, "train_time_ms": 1000 * seconds, **row})
                return model, outcome("diverged", step)
            best = min(best, evaluation.loss)
            row |= {"val_loss": evaluation.loss, "val_excess": evaluation.excess}
        if row and (last or step % log_every == 0 or "val_loss" in row):
            log({"step": step, "train_time_ms": 1000 * seconds, "tokens": tokens, **row})
        if last:
            break

        # ---- one step
        place.synchronize()
        start = time.perf_counter()
        rows, length = pace.shape(step)
        model.layers_on, batch = pace.layers(step, training=True), batches.take(rows, length)
        seed_dropout(config, seed, step, place)
        loss, micro_tokens = accumulate_gradients(compute, batch, micro_tokens, place)
        if place.world > 1:
            loss = average_over_ranks(model, loss, int((batch.targets >= 0).sum()), place)
        limit = limit if step else DIVERGED_FACTOR * max(math.log(dataset.vocab_size), loss)
        if not math.isfinite(loss) or loss > limit:
            log({"step": step, "train_time_ms": 1000 * seconds})
            return model, outcome("diverged", step)
        pace.observe(loss)
        norm = clip_gradients(model, config.optim.grad_clip)
        rates = pace.rates(step)
        update(optimizers, rates)
        place.synchronize()
        step_seconds, step_tokens = time.perf_counter() - start, rows * config.model.seq_len
        seconds, tokens = seconds + step_seconds, tokens + step_tokens

        # ---- what is logged with the next step's number: the state after this one
        row = {
            "train_loss": loss,
            "lr": config.optim.matrix_lr * rates.lr,  # of the block matrices
            "lr_multiplier": rates.lr,
            "grad_norm": norm,
            "step_avg_ms": 1000 * seconds / (step + 1),
            "tokens_per_second": step_tokens / step_seconds,
            "memory_mib": place.memory_mib(),
            **pace.state(step, rows, length),
        }
    finals = _finals(evaluation, best, seconds, tokens, config)
    finals["memory"] = memory_report(model, optimizers, batch, max(1, micro_tokens // length), place)
    if questions:
        scores = evaluate_hellaswag(model, questions, config, place)
        finals |= {"hellaswag": scores, "hellaswag_error": 1 - scores["acc_norm"]}  # lower is better, as of a loss
    return model, outcome("finished", steps) | finals


def build(config: RunConfig, dataset: Dataset, seed: int, place: Place) -> tuple[GPT, list[torch.optim.Optimizer]]:
    """The model at its start, on the device, and what trains it."""
    seed_everything(seed)
    model = GPT(config.model, dataset.vocab_size)
    model.init_weights(seed)
    model.to(place.device)
    return model, build_optimizers(model, config.optim, config.model.head_dim, place.rank, place.world)


def seed_dropout(config: RunConfig, seed: int, step: int, place: Place) -> None:
    """Dropout draws on torch's own generator: seeded anew for every step, it needs no state to resume from."""
    if config.model.dropout:
        torch.manual_seed(stream_seed(seed, "dropout", step, place.rank))


def update(optimizers: list[torch.optim.Optimizer], rates: Rates) -> None:
    """One step of every optimizer at its scheduled rates; gradients are gone afterwards."""
    set_rates(optimizers, rates)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def compiled(model: GPT) -> Any:
    """The model as one compiled graph for each depth, window and row length that a schedule goes through."""
    torch._dynamo.config.recompile_limit = MAX_GRAPHS  # the default of 8 leaves the last ones eager, with a warning
    return torch.compile(model)


def seed_everything(seed: int) -> None:
    """Seed the global generators; the run itself draws only on named streams, which these do not touch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(stream_seed(seed, "torch"))


def accumulate_gradients(compute: Any, batch: Batch, micro_tokens: int, place: Place) -> tuple[float, int]:
    """Mean loss of this rank's scored targets with gradients left in place; out of memory halves the rows per pass.

    Returns the loss in nats/token and the tokens per pass that fitted.
    """
    (rows, length), scored = batch.inputs.shape, batch.targets >= 0
    micro_rows = max(1, micro_tokens // length)
    while True:
        try:
            loss = torch.zeros((), device=place.device)
            for first in range(0, rows, micro_rows):
                part = slice(first, first + micro_rows)
                inputs_bt, targets_bt = place.tensor(batch.inputs[part]), place.tensor(batch.targets[part])
                with place.autocast():
                    part_loss = compute(inputs_bt, targets_bt) * float(scored[part].sum() / max(1, scored.sum()))
                part_loss.backward()
                loss += part_loss.detach()
            return float(loss), micro_tokens
        except torch.OutOfMemoryError:
            if micro_rows == 1:
                raise
            micro_rows = -(-micro_rows // 2)
            micro_tokens = micro_rows * length
            compute.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            print(f"out of memory: {micro_rows} rows per pass from here on, the same global batch", flush=True)


def average_over_ranks(model: GPT, loss: float, scored: int, place: Place) -> float:
    """Replace every gradient by its mean over the ranks, in one flat all-reduce that carries the loss as well.

    A rank weighs as many targets as it has scored: a row that ends with its shard has fewer.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients] + [torch.tensor([loss, 1.0], device=place.device)]) * scored
    dist.all_reduce(flat)
    flat = flat / flat[-1]
    for gradient, mean in zip(gradients, flat[:-2].split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
    return float(flat[-2])


def clip_gradients(model: GPT, limit: float) -> float:
    """Scale all gradients to a global norm of at most `limit` (0: leave them); returns the norm before."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if limit:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), limit, norm)
    return float(norm)


def _outcome(status: str, step: int, seconds: float, loss: float, place: Place) -> dict[str, Any]:
    return ({"diverged_at": step} if status == "diverged" else {}) | {
        "status": status,
        "success": status == "finished",
        "final_step": step,
        "final_val_loss": None,
        "final_train_loss": loss if math.isfinite(loss) else None,
        "time_seconds": seconds,
        "memory_mib": place.memory_mib(),
    }


def _finals(evaluation: Evaluation, best: float, seconds: float, tokens: int, config: RunConfig) -> dict[str, Any]:
    values = dataclasses.asdict(evaluation)
    return {
        "final_val_loss": values.pop("loss"),
        "best_val_loss": best,
        "val_tokens": values.pop("tokens"),
        **values,
        "step_avg_ms": 1000 * seconds / config.train.steps,
        "tokens_per_second": tokens / seconds,
        "samples_per_second": tokens / config.model.seq_len / seconds,  # rows of full length
    }


def run_from_folder(run: Path) -> None:
    """Execute the run that `run/run.json` describes; rank 0 writes its files. The last file is result.json."""
    spec = records.read_json(run / "run.json")
    config = RunConfig.model_validate(spec["config"])
    place = take_place(config.hardware, spec["device"])
    try:
        dataset = open_dataset(Path(spec["dataset"]))
        peak = place.matmul_peak() * place.world
        if place.rank == 0:
            print(describe_costs(config, dataset.vocab_size))
            print(f"matrix products: {peak / 1e9:,.0f} GFLOP/s here", flush=True)
        who = {key: spec[key] for key in ("run_id", "seed", "attempt")}

        def log(row: dict[str, Any]) -> None:
            if place.rank == 0:
                finite = {k: v for k, v in row.items() if not isinstance(v, float) or math.isfinite(v)}
                records.append_jsonl(run / "metrics.jsonl", {**who, **finite})

        model, result = train(config, dataset, spec["seed"] + config.train.seed_offset, place, log)
        if result["success"]:
            speed = run_flops(config, dataset.vocab_size) / result["time_seconds"]
            result |= {"flops_per_second": speed, "matmul_peak": peak, "mfu": speed / peak}
        if place.rank == 0:
            _leave_records(run, spec, config, dataset, place, model, result)
    finally:
        if place.world > 1:
            dist.destroy_process_group()


def _leave_records(
    run: Path,
    spec: dict[str, Any],
    config: RunConfig,
    dataset: Dataset,
    place: Place,
    model: GPT,
    result: dict[str, Any],
) -> None:
    who = {key: spec[key] for key in ("run_id", "seed", "attempt", "fingerprint")}
    if result["success"] and config.eval.sample_tokens:
        chance = stream_seed(spec["seed"], "sample")
        ids = generate(model, [dataset.eot], config.eval.sample_tokens, place, dataset.vocab_size, chance)
        result["sample"] = dataset.tokenizer.decode(ids)
    state = {"step": result["final_step"], "config": spec["config"], "dataset": spec["dataset"], **who}
    save_checkpoint(run / "checkpoint", model, (), state)
    result["device"] = torch.cuda.get_device_name() if place.device.type == "cuda" else place.device.type
    result["torch"] = torch.__version__
    if config.optim.matrices == "muon":
        result["muon_precision"] = str(muon_precision(config.optim.muon.precision, place.device)).removeprefix("torch.")
    records.write_json(run / "result.json", {"schema_version": records.SCHEMA_VERSION, **who, **result})
