"""Batches from shards: deterministic, resumable from one number, the same whatever the number of ranks.

A row is a piece of one shard: `length` inputs from `start`, and as targets the same piece one further. How shards are
cut into rows (data.rows):
    stream      consecutive windows of seq_len; in training only whole ones, in validation a shorter last one too
    ordered     as stream, but training takes the windows as they lie, epoch after epoch (modded-nanogpt)
    random      training: seq_len tokens from anywhere, with replacement (nanoGPT); validation: as stream
    documents   training: from a document's start, seq_len long whatever ends there, the next from the next start;
                validation: whole documents packed in order, so that every scored document is scored to its end
With data.max_document, training sees that many tokens of a document and behind them the next document. Validation does
not depend on it.

Any batch is found without those before it: numbers are drawn from the middle of their stream, the windows of a long
epoch are permuted by a formula, 4,096 at once. An epoch of up to 131,072 rows is sorted, in some 15 ms.
Axes: b rows, t positions.
"""

import itertools
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import isqrt

import numpy as np

from gptlib.data.dataset import Dataset, require_batch
from gptlib.fields import RunConfig
from gptlib.streams import stream_seed

NOT_SCORED = -1
SORTED_ROWS = 2**17  # epochs of more rows are permuted by a formula
BLOCK_ROWS = 4096  # and so many at once
FEISTEL_ROUNDS = 6


@dataclass(frozen=True)
class Rows:
    """Row i is `lengths[i]` inputs from token `starts[i]` of shard `shards[i]`."""

    shards: np.ndarray  # (rows,) int64
    starts: np.ndarray  # (rows,) int64
    lengths: np.ndarray  # (rows,) int64, at most seq_len
    left_out: int  # documents longer than seq_len, which rows of whole documents leave out

    def take(self, picked: np.ndarray) -> "Rows":
        return Rows(self.shards[picked], self.starts[picked], self.lengths[picked], self.left_out)


@dataclass(frozen=True)
class Batch:
    inputs: np.ndarray  # (b, t) int64
    targets: np.ndarray  # (b, t) int64; -1: not scored
    documents: np.ndarray | None  # (b, t) int64, validation rows of documents: whose target this is; -1: not scored


class Source:
    """The tokens of one shard as rows see them: each document cut to `max_document` tokens behind its eot; 0: whole.

    `size` of them are left, and places are counted over these. Nothing is copied until it is read.
    """

    def __init__(self, tokens: np.ndarray, eot: int, max_document: int = 0) -> None:
        self._tokens, self._eot, self._cut = np.asarray(tokens), eot, max_document > 0
        self.size = len(tokens)
        if self._cut:
            begins = np.flatnonzero(self._tokens == eot)
            self._begins = begins if len(begins) and not begins[0] else np.concatenate([[0], begins])
            self._kept = np.minimum(np.diff(self._begins, append=self.size), 1 + max_document)
            self._places = np.cumsum(self._kept) - self._kept  # of each beginning among the kept tokens
            self.size = int(self._kept.sum())

    @cached_property
    def documents(self) -> np.ndarray:
        """(documents,) int64 place of the eot before each; the last eot only ends the shard."""
        if not self._cut:
            return np.flatnonzero(self._tokens == self._eot)[:-1]
        return self._places[self._tokens[self._begins] == self._eot][:-1]

    def read(self, start: int, count: int) -> np.ndarray:
        """(count,) uint16 tokens from place `start` on."""
        if not self._cut:
            return self._tokens[start : start + count]
        first, last = np.searchsorted(self._places, [start, start + count - 1], side="right") - 1
        begins, kept = (values[first : last + 1].tolist() for values in (self._begins, self._kept))
        pieces = [self._tokens[begin : begin + size] for begin, size in zip(begins, kept, strict=True)]
        return np.concatenate(pieces)[start - self._places[first] :][:count]


# --- rows -------------------------------------------------------------------------------------------------------

Cut = tuple[np.ndarray, np.ndarray, int]  # starts, lengths and left-out documents of one shard


def open_sources(dataset: Dataset, split: str, config: RunConfig) -> list[Source]:
    """The shards of a split as rows are cut from them."""
    max_document = config.data.max_document if split == "train" else 0
    return [Source(tokens, dataset.eot, max_document) for tokens in dataset.tokens(split)]


def training_rows(dataset: Dataset, config: RunConfig) -> Rows:
    """Rows of one epoch, in the order of the shards. Raises ValueError when there is none."""
    cut = _from_document_starts if config.data.rows == "documents" else _whole_windows
    return _cut_shards(dataset, "train", config, cut)


def validation_rows(dataset: Dataset, config: RunConfig) -> Rows:
    """Rows that hold every validation position once, long documents aside. Raises ValueError when there is none."""
    cut = _whole_documents if config.data.rows == "documents" else _windows
    return _cut_shards(dataset, "val", config, cut)


def _cut_shards(dataset: Dataset, split: str, config: RunConfig, cut: Callable[[Source, int], Cut]) -> Rows:
    cuts = [cut(source, config.model.seq_len) for source in open_sources(dataset, split, config)]
    shards = np.repeat(np.arange(len(cuts)), [len(starts) for starts, _, _ in cuts])
    if not len(shards):
        raise ValueError(
            f"{dataset.path}: no {split} row of model.seq_len={config.model.seq_len} can be cut with "
            f"data.rows={config.data.rows}; set data.rows=stream, or a seq_len that fits the text"
        )
    starts, lengths = (np.concatenate([c[i] for c in cuts]).astype(np.int64) for i in (0, 1))
    return Rows(shards, starts, lengths, sum(left_out for _, _, left_out in cuts))


def _windows(source: Source, seq_len: int) -> Cut:
    starts = np.arange(0, source.size - 1, seq_len)
    return starts, np.minimum(seq_len, source.size - 1 - starts), 0


def _whole_windows(source: Source, seq_len: int) -> Cut:
    starts, lengths, _ = _windows(source, seq_len)
    whole = lengths == seq_len
    return starts[whole], lengths[whole], 0


def _from_document_starts(source: Source, seq_len: int) -> Cut:
    documents = source.documents
    following = np.searchsorted(documents, documents + seq_len).tolist()  # first start at or after the row's end
    picked, document = [], 0
    while document < len(documents):
        picked.append(document)
        document = following[document]
    starts = documents[picked]
    return starts, np.minimum(seq_len, source.size - 1 - starts), 0


def _whole_documents(source: Source, seq_len: int) -> Cut:
    documents = source.documents
    ends = np.append(documents[1:], source.size - 1)
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
    g is row g % n of epoch g // n, each epoch with its own permutation of the n rows, with its own n random ones, or
    (rows=ordered) with the rows as they lie. The next batch is read by a thread, which ends when the generator is
    closed.
    """
    rows = training_rows(dataset, config)
    count, total = len(rows.starts), config.train.batch_rows
    require_batch(dataset, count, total, config.model.seq_len)
    share, remainder = divmod(total, world)
    assert not remainder and 0 <= rank < world and start >= 0
    sources = open_sources(dataset, "train", config)
    places_of = _random_places([source.size for source in sources], config.model.seq_len)
    drawn = {"random": places_of, "ordered": _ordered}.get(config.data.rows, _permuted)

    def read(state: int) -> Batch:
        epochs, places = np.divmod(np.arange(share) + state + rank * share, count)
        parts = [drawn(rows, seed, int(epoch), places[epochs == epoch]) for epoch in np.unique(epochs)]
        return _concatenated([_read_rows(sources, part, dataset.eot, config.model.seq_len) for part in parts])

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
    sources = open_sources(dataset, "val", config)
    mine = np.arange(len(rows.starts))[:limit][rank::world]
    for first in range(0, len(mine), batch_rows):
        picked = rows.take(mine[first : first + batch_rows])
        batch = _read_rows(sources, picked, dataset.eot, config.model.seq_len)
        if config.data.rows == "documents":
            batch = replace(batch, documents=_documents_of(sources, picked, batch.targets))
        yield batch


# --- the order of training --------------------------------------------------------------------------------------


def _ordered(rows: Rows, seed: int, epoch: int, places: np.ndarray) -> Rows:
    return rows.take(places)


def _permuted(rows: Rows, seed: int, epoch: int, places: np.ndarray) -> Rows:
    count = len(rows.starts)
    size = count if count <= SORTED_ROWS else BLOCK_ROWS
    blocks, inside = np.divmod(places, size)
    orders = [_order(seed, epoch, count, int(block), size)[inside[blocks == block]] for block in np.unique(blocks)]
    return rows.take(np.concatenate(orders))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int, block: int, size: int) -> np.ndarray:
    """Which rows stand in places block * size, ... of the epoch.

    NumPy keeps its bit generators the same over versions, but not its shuffles: raw PCG64 numbers are sorted.
    """
    if size == count:
        return np.argsort(_raw_numbers(seed, epoch, 0, count), kind="stable")
    places = np.arange(block * size, min(count, (block + 1) * size))
    return permuted(places, count, _raw_numbers(seed, epoch, 0, FEISTEL_ROUNDS))


def permuted(places: np.ndarray, count: int, keys: np.ndarray) -> np.ndarray:
    """Where each of `places` (n,) int64 in [0, count) goes in the permutation that `keys` (rounds,) uint64 choose.

    A Feistel network over pairs (left, right) with just over `count` of them; what falls outside goes through it again
    (Black & Rogaway 2002, cycle walking). Every place costs the same, whichever it is.
    """
    lefts = isqrt(count - 1) + 1
    rights = -(-count // lefts)

    def once(numbers: np.ndarray) -> np.ndarray:
        left, right = np.divmod(numbers, np.uint64(rights))
        for number, key in enumerate(keys):
            if number % 2:
                left = (left + _mixed(right, key)) % np.uint64(lefts)
            else:
                right = (right + _mixed(left, key)) % np.uint64(rights)
        return left * np.uint64(rights) + right

    numbers = once(places.astype(np.uint64))
    while len(outside := np.flatnonzero(numbers >= count)):
        numbers[outside] = once(numbers[outside])
    return numbers.astype(np.int64)


def _mixed(numbers: np.ndarray, key: np.uint64) -> np.ndarray:
    """A 32-bit hash of each number under `key`: splitmix64's finaliser (Steele, Lea & Flood 2014)."""
    mixed = numbers ^ key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) >> np.uint64(32)


def _random_places(sizes: list[int], seq_len: int) -> Callable[[Rows, int, int, np.ndarray], Rows]:
    """Whole windows, each beginning at any token of any shard that has a window's length behind it."""
    choices = np.maximum(0, np.array(sizes) - seq_len)
    after = np.cumsum(choices)

    def drawn(rows: Rows, seed: int, epoch: int, places: np.ndarray) -> Rows:
        numbers = _raw_numbers(seed, epoch, int(places[0]), len(places)) % np.uint64(after[-1])
        shards = np.searchsorted(after, numbers.astype(np.int64), side="right")
        starts = numbers.astype(np.int64) - (after - choices)[shards]
        return Rows(shards, starts, np.full(len(places), seq_len), rows.left_out)

    return drawn


def _raw_numbers(seed: int, epoch: int, first: int, count: int) -> np.ndarray:
    """(count,) uint64 numbers of the epoch's stream from number `first` on, without drawing those before."""
    return np.random.PCG64(stream_seed(seed, "data_order", epoch)).advance(first).random_raw(count)


# --- reading ----------------------------------------------------------------------------------------------------


def _read_rows(sources: list[Source], rows: Rows, eot: int, seq_len: int) -> Batch:
    tokens_bt = np.empty((len(rows.starts), seq_len + 1), dtype=np.uint16)
    places = zip(rows.shards.tolist(), rows.starts.tolist(), rows.lengths.tolist(), strict=True)
    for row, (shard, start, length) in enumerate(places):
        tokens_bt[row, : length + 1] = sources[shard].read(start, length + 1)
    inputs_bt, targets_bt = tokens_bt[:, :-1].astype(np.int64), tokens_bt[:, 1:].astype(np.int64)
    if rows.lengths.min(initial=seq_len) < seq_len:
        beyond_bt = np.arange(seq_len) >= rows.lengths[:, None]
        inputs_bt[beyond_bt], targets_bt[beyond_bt] = eot, NOT_SCORED
    return Batch(inputs_bt, targets_bt, None)


def _documents_of(sources: list[Source], rows: Rows, targets_bt: np.ndarray) -> np.ndarray:
    """(b, t) index, over the whole split, of the document that each target belongs to; -1 where not scored."""
    starts = [source.documents for source in sources]
    before = np.cumsum([0, *map(len, starts)])
    documents_bt = np.full_like(targets_bt, NOT_SCORED)
    for b, (shard, start, length) in enumerate(zip(rows.shards, rows.starts, rows.lengths, strict=True)):
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
