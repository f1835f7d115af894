"""What a model is worth: validation loss, bits per byte, excess over a known floor, and a sample to read.

Axes: b rows, t positions, v vocabulary.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from gptlib import records
from gptlib.checkpoint import load_checkpoint
from gptlib.config import validate
from gptlib.data.dataset import Dataset, open_dataset
from gptlib.data.loader import validation_batches
from gptlib.device import Place
from gptlib.fields import RunConfig
from gptlib.hellaswag import Questions, answer_batches, count_hits, figures
from gptlib.model import GPT

LEAK_NATS = 20.0  # a proper model beats the realised floor by t nats in total with probability at most e^-t


class LeakError(ValueError):
    """The model beats the entropy of its data: validation text has leaked, or the floor is wrong."""


@dataclass(frozen=True)
class Evaluation:
    """Averages over scored targets, in nats per token unless named otherwise; floor fields only for known sources."""

    loss: float
    tokens: int
    bits_per_byte: float
    floor: float | None = None  # -ln p of exactly the scored documents, per scored token
    excess: float | None = None  # loss - floor
    excess_se: float | None = None  # standard error of the excess over documents


@torch.no_grad()
def evaluate(model: GPT, dataset: Dataset, config: RunConfig, place: Place, rows: int | None = None) -> Evaluation:
    """Score the first `rows` validation rows (all when None), shared out over the ranks. Raises LeakError."""
    model.eval()
    documents = len(dataset.val_nll) if dataset.val_nll is not None and config.data.rows == "documents" else 0
    totals = np.zeros(4 + 2 * documents)  # nats, tokens, nats of byte-carrying tokens, bytes, then per document
    for batch in validation_batches(dataset, config, _batch_rows(config), rows, place.rank, place.world):
        inputs_bt, targets_bt = place.tensor(batch.inputs), place.tensor(batch.targets)
        with place.autocast():
            nll_bt = model(inputs_bt, targets_bt, reduction="none")
        scored = batch.targets >= 0
        nll, targets = nll_bt.float().cpu().numpy()[scored].astype(np.float64), batch.targets[scored]
        size = dataset.token_bytes[targets]
        totals[:4] += nll.sum(), len(nll), nll[size > 0].sum(), size.sum()
        if documents and batch.documents is not None:
            of = batch.documents[scored]
            totals[4 : 4 + documents] += np.bincount(of, weights=nll, minlength=documents)
            totals[4 + documents :] += np.bincount(of, minlength=documents)
    totals = _over_ranks(totals, place)
    model.train()
    nats, tokens, text_nats, size = totals[:4]
    excess = _excess(dataset, totals[4 : 4 + documents], totals[4 + documents :]) if documents else (None, None, None)
    return Evaluation(nats / tokens, int(tokens), text_nats / max(size, 1) / math.log(2), *excess)


def _batch_rows(config: RunConfig) -> int:
    """Rows of seq_len tokens that a rank evaluates at once."""
    return config.hardware.micro_rows or max(1, config.train.batch_rows // config.hardware.ranks)


def _over_ranks(totals: np.ndarray, place: Place) -> np.ndarray:
    """The sum of what every rank has counted."""
    if place.world == 1:
        return totals
    shared = torch.from_numpy(totals).to(place.device)
    dist.all_reduce(shared)
    return shared.cpu().numpy()


@torch.no_grad()
def evaluate_hellaswag(model: GPT, questions: Questions, config: RunConfig, place: Place) -> dict[str, Any]:
    """The accuracies of hellaswag.figures; question i is answered by rank i % world.

    A batch has as many tokens as one of `evaluate`, but never less than one question: four rows.
    """
    model.eval()
    hits, seq_len = np.zeros(2, dtype=np.int64), config.model.seq_len
    mine = questions.questions[place.rank :: place.world]
    for batch, asked in answer_batches(mine, seq_len, _batch_rows(config) * seq_len):
        inputs_bt, targets_bt = place.tensor(batch.inputs), place.tensor(batch.targets)
        with place.autocast():
            nll_bt = model(inputs_bt, targets_bt, reduction="none")
        hits += count_hits(nll_bt.float().cpu().numpy(), batch.targets, asked)
    hits = _over_ranks(hits, place)
    model.train()
    return figures(questions, hits.tolist(), seq_len)


def _excess(dataset: Dataset, nll: np.ndarray, tokens: np.ndarray) -> tuple[float, float, float]:
    """Floor, excess and its standard error, paired by document over the documents that were scored."""
    assert dataset.val_nll is not None
    scored = tokens > 0
    over = nll[scored] - dataset.val_nll[scored]
    total = tokens.sum()
    if over.sum() < -LEAK_NATS:
        raise LeakError(
            f"the model beats the known entropy of the validation documents by {-over.sum():.0f} nats: "
            "validation text has leaked into training or into the input; do not trust this run"
        )
    error = float(over.std(ddof=1) * math.sqrt(len(over)) / total) if len(over) > 1 else 0.0
    return float(dataset.val_nll[scored].sum() / total), float(over.sum() / total), error


@torch.no_grad()
def generate(
    model: GPT, prompt: list[int], count: int, place: Place, vocab_size: int, seed: int, temperature: float = 0.8
) -> list[int]:
    """`count` tokens sampled after `prompt` (token ids); the window slides once the context is full.

    Raises ValueError for a prompt that is empty or longer than the context, and for a temperature not above 0.
    """
    context = model.config.seq_len
    if not 1 <= len(prompt) <= context:
        raise ValueError(f"prompt of {len(prompt)} tokens: give 1 to {context}, the context of this model")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature:g}: give a number above 0 (0.01 takes the likeliest token)")
    chance = torch.Generator().manual_seed(seed)  # on the CPU, so that a sample does not depend on the device
    ids = list(prompt)
    model.eval()
    for _ in range(count):
        with place.autocast():
            logits_v = model(place.tensor(np.array([ids[-context:]])))[0, -1, :vocab_size]
        weights_v = torch.softmax(logits_v.float().cpu() / temperature, dim=-1)
        ids.append(int(torch.multinomial(weights_v, 1, generator=chance)))
    model.train()
    return ids[len(prompt) :]


def _dataset_of(run: Path, spec: dict[str, Any]) -> Path:
    """The dataset of a run, also after its outputs folder was moved: <outputs>/<study>/<stage>/<variant>/runs/<run>."""
    path = Path(spec["dataset"])
    return path if path.exists() else run.resolve().parents[4] / "data" / path.name


def sample_from_run(run: Path, prompt: str, count: int, seed: int = 0, temperature: float = 0.8) -> str:
    """What the model of a finished run writes after `prompt`. Raises ValueError (no checkpoint, prompt too long)."""
    spec = records.read_json(run / "run.json")
    config, dataset = validate(RunConfig, spec["config"], str(run / "run.json")), open_dataset(_dataset_of(run, spec))
    place = Place(torch.device("cpu"))
    model = GPT(config.model, dataset.vocab_size)
    load_checkpoint(run / "checkpoint", model)
    ids = [dataset.eot, *map(int, dataset.tokenizer.encode(prompt))]
    return dataset.tokenizer.decode(generate(model, ids, count, place, dataset.vocab_size, seed, temperature))
