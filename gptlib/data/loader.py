"""Batches from shards: deterministic, resumable from one number, the same whatever the number of ranks.

A row is a piece of one shard: `length` inputs from `start`, and as targets the same piece one further. How shards are
cut into rows (data.rows):
    stream      consecutive windows of seq_len; in training only whole ones, in validation a shorter last one too
    random      training: seq_len tokens from anywhere, with replacement (nanoGPT); validation: as stream
    documents   training: from a document's start, seq_len long whatever ends there, the next from the next start;
                validation: whole documents packed in order, so that every scored document is scored to its end
Axes: b rows, t positions.
"""

import itertools
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from gptlib.data.dataset import Dataset
from gptlib.fields import RunConfig
from gptlib.streams import stream_seed

NOT_SCORED = -1


@dataclass(frozen=True)
class Rows:
    """Row i is `lengths[i]` inputs from token `starts[i]` of shard `shards[i]`."""

    shards: np.ndarray  # (rows,) int64
    starts: np.ndarray  # (rows,) int64
    lengths: np.ndarray  # (rows,) int64, at most seq_len
    left_out: int  # documents longer than seq_len, which rows of whole documents leave out


@dataclass(frozen=True)
class Batch:
    inputs: np.ndarray  # (b, t) int64
    targets: np.ndarray  # (b, t) int64; -1: not scored
    documents: np.ndarray | None  # (b, t) int64, validation rows of documents: whose target this is; -1: not scored


# --- rows -------------------------------------------------------------------------------------------------------

Cut = tuple[np.ndarray, np.ndarray, int]  # starts, lengths and left-out documents of one shard


def training_rows(dataset: Dataset, config: RunConfig) -> Rows:
    """Rows of one epoch, in the order of the shards. Raises ValueError when there is none."""
    cut = _from_document_starts if config.data.rows == "documents" else _whole_windows
    return _cut_shards(dataset, "train", config, cut)


def validation_rows(dataset: Dataset, config: RunConfig) -> Rows:
    """Rows that hold every validation position once, long documents aside. Raises ValueError when there is none."""
    cut = _whole_documents if config.data.rows == "documents" else _windows
    return _cut_shards(dataset, "val", config, cut)


def _cut_shards(dataset: Dataset, split: str, config: RunConfig, cut: Callable[[np.ndarray, int, int], Cut]) -> Rows:
    cuts = [cut(tokens, dataset.eot, config.model.seq_len) for tokens in dataset.tokens(split)]
    shards = np.repeat(np.arange(len(cuts)), [len(starts) for starts, _, _ in cuts])
    if not len(shards):
        raise ValueError(
            f"{dataset.path}: no {split} row of model.seq_len={config.model.seq_len} can be cut with "
            f"data.rows={config.data.rows}; set data.rows=stream, or a seq_len that fits the text"
        )
    starts, lengths = (np.concatenate([c[i] for c in cuts]).astype(np.int64) for i in (0, 1))
    return Rows(shards, starts, lengths, sum(left_out for _, _, left_out in cuts))


def _windows(tokens: np.ndarray, eot: int, seq_len: int) -> Cut:
    starts = np.arange(0, len(tokens) - 1, seq_len)
    return starts, np.minimum(seq_len, len(tokens) - 1 - starts), 0


def _whole_windows(tokens: np.ndarray, eot: int, seq_len: int) -> Cut:
    starts, lengths, _ = _windows(tokens, eot, seq_len)
    whole = lengths == seq_len
    return starts[whole], lengths[whole], 0


def _document_starts(tokens: np.ndarray, eot: int) -> np.ndarray:
    return np.flatnonzero(tokens == eot)[:-1]  # the last eot only ends the shard


def _from_document_starts(tokens: np.ndarray, eot: int, seq_len: int) -> Cut:
    documents = _document_starts(tokens, eot)
    following = np.searchsorted(documents, documents + seq_len).tolist()  # first start at or after the row's end
    picked, document = [], 0
    while document < len(documents):
        picked.append(document)
        document = following[document]
    starts = documents[picked]
    return starts, np.minimum(seq_len, len(tokens) - 1 - starts), 0


def _whole_documents(tokens: np.ndarray, eot: int, seq_len: int) -> Cut:
    documents = _document_starts(tokens, eot)
    ends = np.append(documents[1:], len(tokens) - 1)
    following = np.searchsorted(ends, documents + seq_len, side="right").tolist()  # first that no longer fits
    picked, document = [], 0
    while document < len(documents):
        if following[document] > document:
            picked.append(document)
        document = max(following[document], document + 1)
    last = [following[document] - 1 for document in picked]
    long = int(np.sum(ends - documents > seq_len))
    return documents[picked], ends[last] - documents[picked], long


# --- batches ----------------------------------------------------------------------------------------------------


def training_batches(
    dataset: Dataset, config: RunConfig, seed: int, rank: int = 0, world: int = 1, start: int = 0
) -> Generator[tuple[Batch, int], None, None]:
    """Endless (batch, state); `state` rows are consumed by all ranks after this batch, and `start=state` goes on there.

    A step takes train.batch_rows global rows, a rank its contiguous share of them (b = batch_rows / world). Global row
    g is row g % n of epoch g // n, each epoch with its own permutation of the n rows, or with its own n random ones.
    The next batch is read by a thread, which ends when the generator is closed.
    """
    rows = training_rows(dataset, config)
    count, total = len(rows.starts), config.train.batch_rows
    share, remainder = divmod(total, world)
    assert not remainder and 0 <= rank < world and start >= 0
    drawn = _random_rows if config.data.rows == "random" else _permuted_rows
    epoch_rows = lru_cache(maxsize=2)(lambda epoch: drawn(dataset, rows, seed, epoch))

    def read(state: int) -> Batch:
        epochs, places = np.divmod(np.arange(share) + state + rank * share, count)
        parts = [
            _read_rows(dataset, "train", epoch_rows(int(epoch)), places[epochs == epoch], config.model.seq_len)
            for epoch in np.unique(epochs)
        ]
        return _concatenated(parts)

    return _prefetched(read, start, total)


class TrainingStream:
    """Training batches whose rows may grow in number and length; tokens come in the order of training_batches.

    Rows that are cut shorter are cut in order and packed, so that no token is lost: the end of one row and the start of
    the next may share a shorter row. Rank r of a changing batch has rows r, r + world, ...
    """

    def __init__(self, dataset: Dataset, config: RunConfig, seed: int, rank: int = 0, world: int = 1) -> None:
        schedule = config.schedule
        self._grows = bool(schedule.curriculum.latest or schedule.batch.latest)
        self._rank, self._world = rank, world
        self._batches = training_batches(dataset, config, seed, *((0, 1) if self._grows else (rank, world)))
        self._waiting: Batch | None = None

    def take(self, rows: int, length: int) -> Batch:
        """This rank's share of the next `rows` global rows, cut to `length` tokens."""
        if not self._grows:
            return next(self._batches)[0]
        waiting = [] if self._waiting is None else [self._waiting]
        while sum(len(batch.inputs) for batch in waiting) < rows:
            waiting.append(next(self._batches)[0])
        all_rows = _concatenated(waiting)
        self._waiting = _part(all_rows, slice(rows, None))
        return _part(recut(_part(all_rows, slice(rows)), length), slice(self._rank, None, self._world))

    def close(self) -> None:
        self._batches.close()


def recut(batch: Batch, length: int) -> Batch:
    """The tokens of `batch` in rows of `length`; what is missing in the last row is not scored."""
    inputs, targets = batch.inputs.ravel(), batch.targets.ravel()
    missing = -len(inputs) % length
    inputs = np.append(inputs, np.zeros(missing, inputs.dtype))
    targets = np.append(targets, np.full(missing, NOT_SCORED, targets.dtype))
    return Batch(inputs.reshape(-1, length), targets.reshape(-1, length), None)


def _concatenated(batches: list[Batch]) -> Batch:
    inputs, targets = (np.concatenate([getattr(b, name) for b in batches]) for name in ("inputs", "targets"))
    return Batch(inputs, targets, None)


def _part(batch: Batch, rows: slice) -> Batch:
    return Batch(np.ascontiguousarray(batch.inputs[rows]), np.ascontiguousarray(batch.targets[rows]), None)


def validation_batches(
    dataset: Dataset, config: RunConfig, batch_rows: int, limit: int | None = None, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """The first `limit` validation rows (or all), each once, `batch_rows` at a time; rank r has rows r, r + world, ...

    Rows of documents come with the document that each target belongs to; a document is scored from its first token to
    the eot behind it. Left out are documents longer than seq_len: `validation_rows(...).left_out` counts them.
    """
    rows = validation_rows(dataset, config)
    documents = [_document_starts(tokens, dataset.eot) for tokens in dataset.tokens("val")]
    mine = np.arange(len(rows.starts))[:limit][rank::world]
    for first in range(0, len(mine), batch_rows):
        picked = mine[first : first + batch_rows]
        batch = _read_rows(dataset, "val", rows, picked, config.model.seq_len)
        if config.data.rows == "documents":
            batch = replace(batch, documents=_documents_of(documents, rows, picked, batch.targets))
        yield batch


def _permuted_rows(dataset: Dataset, rows: Rows, seed: int, epoch: int) -> Rows:
    """Ordered by raw PCG64 numbers: NumPy keeps its bit generators the same over versions, but not its shuffles."""
    order = np.argsort(_raw_numbers(seed, epoch, len(rows.starts)), kind="stable")
    return Rows(rows.shards[order], rows.starts[order], rows.lengths[order], rows.left_out)


def _random_rows(dataset: Dataset, rows: Rows, seed: int, epoch: int) -> Rows:
    """As many whole windows, each beginning at any token of any shard that has a window's length behind it."""
    length = int(rows.lengths[0])
    choices = np.array([max(0, len(tokens) - length) for tokens in dataset.tokens("train")])
    before = np.cumsum(choices) - choices
    drawn = (_raw_numbers(seed, epoch, len(rows.starts)) % np.uint64(choices.sum())).astype(np.int64)
    shards = np.searchsorted(before + choices, drawn, side="right")
    return Rows(shards, drawn - before[shards], rows.lengths, rows.left_out)


def _raw_numbers(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.PCG64(stream_seed(seed, "data_order", epoch)).random_raw(count)


def _read_rows(dataset: Dataset, split: str, rows: Rows, picked: np.ndarray, seq_len: int) -> Batch:
    shards = dataset.tokens(split)
    inputs_bt = np.full((len(picked), seq_len), dataset.eot, dtype=np.int64)
    targets_bt = np.full_like(inputs_bt, NOT_SCORED)
    for b, row in enumerate(picked):
        start, length = rows.starts[row], rows.lengths[row]
        piece = shards[rows.shards[row]][start : start + length + 1]
        inputs_bt[b, :length] = piece[:-1]
        targets_bt[b, :length] = piece[1:]
    return Batch(inputs_bt, targets_bt, None)


def _documents_of(starts: list[np.ndarray], rows: Rows, picked: np.ndarray, targets_bt: np.ndarray) -> np.ndarray:
    """(b, t) index, over the whole split, of the document that each target belongs to; -1 where not scored."""
    before = np.cumsum([0, *map(len, starts)])
    documents_bt = np.full_like(targets_bt, NOT_SCORED)
    for b, row in enumerate(picked):
        shard, start, length = rows.shards[row], rows.starts[row], rows.lengths[row]
        inside = np.searchsorted(starts[shard], np.arange(start, start + length), side="right") - 1
        documents_bt[b, :length] = before[shard] + inside
    return documents_bt


def _prefetched(read: Callable[[int], Batch], start: int, step: int) -> Generator[tuple[Batch, int], None, None]:
    with ThreadPoolExecutor(max_workers=1) as reader:
        upcoming = reader.submit(read, start)
        for state in itertools.count(start + step, step):
            batch = upcoming.result()
            upcoming = reader.submit(read, state)
            yield batch, state
