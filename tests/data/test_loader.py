"""The loader against plain Python over the same tokens."""

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from gptlib.data import loader as module
from gptlib.data.dataset import Dataset, open_dataset, prepare_dataset
from gptlib.data.loader import (
    Batch,
    Rows,
    TrainingStream,
    permuted,
    recut,
    training_batches,
    training_rows,
    validation_batches,
    validation_rows,
)
from gptlib.fields import DataConfig, RunConfig
from gptlib.streams import stream_seed


def run_config(rows: str, seq_len: int = 32, batch_rows: int = 8, max_document: int = 0) -> RunConfig:
    data = {"rows": rows, "max_document": max_document}
    return RunConfig.model_validate({"data": data, "model": {"seq_len": seq_len}, "train": {"batch_rows": batch_rows}})


@pytest.fixture(params=["stream", "documents", "random", "ordered", "long epochs", "cut documents"])
def config(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Every way to train: "long epochs" permutes a stream by the formula, "cut documents" random windows of them."""
    if request.param == "long epochs":
        monkeypatch.setattr(module, "SORTED_ROWS", 0)
        monkeypatch.setattr(module, "BLOCK_ROWS", 11)
        return run_config("stream")
    return run_config("random", max_document=11) if request.param == "cut documents" else run_config(request.param)


def take(batches: Any, count: int) -> list[tuple[Batch, int]]:
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def same(a: Batch, b: Batch) -> bool:
    return np.array_equal(a.inputs, b.inputs) and np.array_equal(a.targets, b.targets)


def row_keys(rows: Rows) -> list[tuple[int, int, int]]:
    return [(int(s), int(a), int(n)) for s, a, n in zip(rows.shards, rows.starts, rows.lengths, strict=True)]


def document_spans(tokens: np.ndarray, eot: int) -> list[tuple[int, int]]:
    """[eot, next eot) of each document."""
    cuts = [i for i, token in enumerate(tokens.tolist()) if token == eot]
    return list(itertools.pairwise(cuts))


# --- which rows -------------------------------------------------------------------------------------------------


def test_training_rows_of_a_stream_are_whole_consecutive_windows(lines_dataset: Dataset) -> None:
    expected = [
        (shard, start, 32)
        for shard, tokens in enumerate(lines_dataset.tokens("train"))
        for start in range(0, len(tokens), 32)
        if start + 32 < len(tokens)
    ]
    assert row_keys(training_rows(lines_dataset, run_config("stream"))) == expected


def test_training_rows_of_documents_begin_at_the_first_document_after_the_last_row(lines_dataset: Dataset) -> None:
    expected = []
    for shard, tokens in enumerate(lines_dataset.tokens("train")):
        free = 0
        for start, _ in document_spans(tokens, lines_dataset.eot):
            if start >= free:
                free = start + 32
                expected.append((shard, start, min(32, len(tokens) - 1 - start)))
    assert row_keys(training_rows(lines_dataset, run_config("documents"))) == expected


def test_validation_rows_of_documents_pack_whole_documents_in_order(lines_dataset: Dataset) -> None:
    expected, left_out = [], 0
    for shard, tokens in enumerate(lines_dataset.tokens("val")):
        row: list[int] = []  # start and end of the row that is being filled
        for start, end in document_spans(tokens, lines_dataset.eot):
            if end - start > 32:
                left_out += 1
                row = []
            elif row and end - row[0] <= 32:
                row[1] = end
            else:
                row = [start, end]
                expected.append((shard, row))
    rows = validation_rows(lines_dataset, run_config("documents"))
    assert row_keys(rows) == [(shard, start, end - start) for shard, (start, end) in expected]
    assert rows.left_out == left_out > 0


@pytest.mark.parametrize("kind", ["stream", "documents"])
def test_a_batch_holds_its_rows(lines_dataset: Dataset, kind: str) -> None:
    config = run_config(kind)
    rows = training_rows(lines_dataset, config)
    known = {}
    for shard, start, length in row_keys(rows):
        piece = lines_dataset.tokens("train")[shard][start : start + length + 1].tolist()
        padding = 32 - length
        known[tuple(piece[:-1] + [lines_dataset.eot] * padding)] = piece[1:] + [-1] * padding
    for batch, _ in take(training_batches(lines_dataset, config, seed=1), 5):
        assert batch.inputs.shape == batch.targets.shape == (8, 32)
        assert batch.inputs.dtype == batch.targets.dtype == np.int64 and batch.documents is None
        for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
            assert known[tuple(inputs)] == targets
            assert config.data.rows == "stream" or inputs[0] == lines_dataset.eot


# --- the order of training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 4, 8])
def test_the_global_batches_do_not_depend_on_the_number_of_ranks(
    lines_dataset: Dataset, config: RunConfig, world: int
) -> None:
    alone = take(training_batches(lines_dataset, config, seed=3), 60)
    ranks = [take(training_batches(lines_dataset, config, 3, rank, world), 60) for rank in range(world)]
    for (batch, state), *shares in zip(alone, *ranks, strict=True):
        assert all(share.inputs.shape == (8 // world, 32) and its_state == state for share, its_state in shares)
        assert np.array_equal(np.concatenate([share.inputs for share, _ in shares]), batch.inputs)
        assert np.array_equal(np.concatenate([share.targets for share, _ in shares]), batch.targets)


def test_resuming_at_any_state_is_going_on(lines_dataset: Dataset, config: RunConfig) -> None:
    whole = take(training_batches(lines_dataset, config, seed=3), 50)
    assert [state for _, state in whole] == [8 * (step + 1) for step in range(50)]
    for step, (_, state) in enumerate(whole[:-1]):
        (batch, next_state), *_ = take(training_batches(lines_dataset, config, seed=3, start=state), 1)
        assert same(batch, whole[step + 1][0]) and next_state == whole[step + 1][1]


def test_resuming_at_another_world_size_is_going_on(lines_dataset: Dataset, config: RunConfig) -> None:
    whole = take(training_batches(lines_dataset, config, seed=3), 12)
    halves = [take(training_batches(lines_dataset, config, 3, rank, 2, start=whole[5][1]), 6) for rank in (0, 1)]
    for (batch, _), (first, _), (second, _) in zip(whole[6:], *halves, strict=True):
        assert np.array_equal(np.concatenate([first.inputs, second.inputs]), batch.inputs)


@pytest.mark.parametrize("batch_rows", [1, 7])
def test_an_epoch_visits_each_row_once(lines_dataset: Dataset, batch_rows: int) -> None:
    config = run_config("stream", batch_rows=batch_rows)
    count = len(training_rows(lines_dataset, config).starts)
    batches = take(training_batches(lines_dataset, config, seed=3), -(-3 * count // batch_rows))
    visited = [row.tobytes() for batch, _ in batches for row in batch.inputs]
    epochs = [visited[i * count : (i + 1) * count] for i in range(3)]
    everything = Counter(
        lines_dataset.tokens("train")[shard][start : start + 32].astype(np.int64).tobytes()
        for shard, start, _ in row_keys(training_rows(lines_dataset, config))
    )
    assert all(Counter(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("kind", ["stream", "documents"])
def test_the_order_is_of_the_seeds_own_stream(lines_dataset: Dataset, kind: str) -> None:
    config = run_config(kind)
    one, two = (take(training_batches(lines_dataset, config, seed), 3) for seed in (1, 2))
    assert not same(one[0][0], two[0][0])
    assert same(one[0][0], take(training_batches(lines_dataset, config, 1), 1)[0][0])
    rows = training_rows(lines_dataset, config)
    raw = np.random.PCG64(stream_seed(1, "data_order", 0)).random_raw(len(rows.starts)).tolist()
    first = [row_keys(rows)[i] for i in sorted(range(len(raw)), key=raw.__getitem__)[:8]]
    shards = lines_dataset.tokens("train")
    assert [shards[s][a : a + n].tolist() for s, a, n in first] == [
        row[:n].tolist() for row, (_, _, n) in zip(one[0][0].inputs, first, strict=True)
    ]


def test_more_rows_in_a_batch_than_in_an_epoch_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(map(chr, range(32, 127))) + "abcdefgh" * 8)
    data = DataConfig(corpus="text", path=str(tmp_path / "a.txt"), tokenizer="byte", rows="stream")
    dataset = open_dataset(prepare_dataset(data, tmp_path))
    config = run_config("stream", batch_rows=16)
    assert len(training_rows(dataset, config).starts) == 4
    with pytest.raises(ValueError, match="4 training rows of model.seq_len=32, fewer than the 16 of one batch"):
        next(training_batches(dataset, config, 1))


def test_the_reading_thread_ends_with_the_generator(lines_dataset: Dataset, config: RunConfig) -> None:
    before = threading.active_count()
    batches = training_batches(lines_dataset, config, seed=1)
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before


def test_an_error_while_reading_reaches_the_caller(lines_dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: object) -> None:
        raise OSError("disk on fire")

    batches = training_batches(lines_dataset, run_config("stream"), seed=1)
    monkeypatch.setattr(module.Source, "read", unreadable)
    with pytest.raises(OSError, match="disk on fire"):
        next(batches)


def test_ordered_rows_are_those_of_a_stream_as_they_lie_epoch_after_epoch(lines_dataset: Dataset) -> None:
    config = run_config("ordered", batch_rows=7)
    rows = row_keys(training_rows(lines_dataset, config))
    assert rows == row_keys(training_rows(lines_dataset, run_config("stream")))
    shards = lines_dataset.tokens("train")
    expected = [shards[s][a : a + 33].tolist() for s, a, _ in rows * 2]
    for seed in (1, 2):
        taken = take(training_batches(lines_dataset, config, seed), 2 * len(rows) // 7)
        found = [[*i, t[-1]] for b, _ in taken for i, t in zip(b.inputs.tolist(), b.targets.tolist(), strict=True)]
        assert found == expected[: len(found)]


# --- long epochs ------------------------------------------------------------------------------------------------


def keys(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, module.FEISTEL_ROUNDS, dtype=np.uint64)


def test_the_formula_is_a_permutation_of_any_number_of_rows() -> None:
    for count in [*range(1, 200), 1023, 1024, 1025, 9999, 131_073]:
        found = permuted(np.arange(count), count, keys(count))
        assert np.array_equal(np.sort(found), np.arange(count)), count


def test_the_formula_finds_a_row_of_a_huge_epoch_alone() -> None:
    for count in (10**7, 10**10, 2**40):
        places = np.random.default_rng(1).integers(0, count, 1000)
        together = permuted(places, count, keys(3))
        assert together.min() >= 0 and together.max() < count
        assert len(set(together.tolist())) == len(set(places.tolist()))
        assert [int(permuted(places[i : i + 1], count, keys(3))[0]) for i in range(20)] == together[:20].tolist()


def chi_square(values: np.ndarray, cells: int) -> float:
    """p-value of `values` in [0, 1) being uniform."""
    return float(stats.chisquare(np.bincount((values * cells).astype(int), minlength=cells)).pvalue)


def looks(one: np.ndarray, two: np.ndarray) -> list[float]:
    """p-values of what two random permutations, as shares of [0, 1), would show: steps, pairs, triples, beginnings."""
    p_values = []
    for lag in (1, 2, 447, 448, 449):  # the network's sides are 448 and 447
        p_values.append(chi_square((one[lag:] - one[:-lag]) % 1, 100))
        p_values.append(chi_square((np.floor(one[lag:] * 16) + one[:-lag]) / 16, 256))
    triples = np.floor(one[:-2] * 8) * 64 + np.floor(one[1:-1] * 8) * 8 + np.floor(one[2:] * 8)
    place = stats.pearsonr(np.arange(len(one)), one).pvalue
    return [
        *p_values,
        chi_square(triples / 512, 512),
        chi_square((one - two) % 1, 100),
        chi_square(one[:5000], 50),
        place,
    ]


def test_the_formula_shuffles_well() -> None:
    """Nothing tells it from NumPy's permutations. (Of a permutation not every p-value is uniform.)"""
    count, draw = 200_003, np.random.default_rng(1)
    ours, theirs = [], []
    for seed in range(8):
        ours += looks(*(permuted(np.arange(count), count, keys(2 * seed + i)) / count for i in (0, 1)))
        theirs += looks(*(draw.permutation(count) / count for _ in range(2)))
    assert min(ours) > 1e-5 and stats.ks_2samp(ours, theirs).pvalue > 1e-3
    fixed = [int(np.sum(permuted(np.arange(500), 500, keys(seed)) == np.arange(500))) for seed in range(2000)]
    assert abs(np.mean(fixed) - 1) < 5 / 2000**0.5, "one place in an epoch stays where it is"


def test_every_order_of_few_rows_comes_alike() -> None:
    found = Counter(tuple(permuted(np.arange(4), 4, keys(seed)).tolist()) for seed in range(6000))
    assert len(found) == 24 and stats.chisquare(list(found.values())).pvalue > 1e-5


def test_a_long_epoch_is_another_order_of_the_same_rows(
    lines_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(seed: int, sort_up_to: int) -> list[bytes]:
        monkeypatch.setattr(module, "SORTED_ROWS", sort_up_to)
        monkeypatch.setattr(module, "BLOCK_ROWS", 10)
        count = len(training_rows(lines_dataset, run_config("stream")).starts)
        taken = take(training_batches(lines_dataset, run_config("stream", batch_rows=1), seed), 3 * count)
        return [batch.inputs.tobytes() for batch, _ in taken]

    long, other, short = rows(1, 0), rows(2, 0), rows(1, 10**6)
    count = len(long) // 3
    epochs = [long[:count], long[count : 2 * count], long[2 * count :]]
    assert all(Counter(epoch) == Counter(short[:count]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, other[:count], short[:count]]}) == 5
    assert long == rows(1, 0)


def test_the_middle_of_a_huge_epoch_is_reached_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten million rows: neither the order of the epoch nor the numbers before a batch are ever made."""
    asked: list[int] = []
    raw = module._raw_numbers
    monkeypatch.setattr(module, "_raw_numbers", lambda *a: asked.append(a[3]) or raw(*a))
    rows = Rows(*(np.broadcast_to(np.int64(n), 10**7) for n in (0, 0, 32)), 0)
    for place in (0, 5_000_000, 9_999_992):
        places = np.arange(place, place + 8)
        assert len(module._permuted(rows, 1, 7, places).starts) == 8
        assert len(module._order(1, 7, 10**7, place // 4096, 4096)) <= 4096
        drawn = module._random_places([10**9], 32)(rows, 1, 7, places)
        assert drawn.starts.tolist() == (raw(1, 7, 0, place + 8)[place:] % np.uint64(10**9 - 32)).tolist()
    assert max(asked) <= 8


# --- documents that are cut -------------------------------------------------------------------------------------


def cut_by_hand(tokens: np.ndarray, eot: int, longest: int) -> list[int]:
    found = []
    for start, end in [*document_spans(tokens, eot), (len(tokens) - 1, len(tokens))]:
        found += tokens[start : min(end, start + 1 + longest)].tolist()
    return found


@pytest.mark.parametrize("longest", [1, 11, 40, 1000])
def test_documents_are_cut_and_the_next_follows(lines_dataset: Dataset, longest: int) -> None:
    for tokens in lines_dataset.tokens("train"):
        expected = cut_by_hand(tokens, lines_dataset.eot, longest)
        source = module.Source(tokens, lines_dataset.eot, longest)
        assert source.size == len(expected)
        assert source.documents.tolist() == [i for i, token in enumerate(expected) if token == lines_dataset.eot][:-1]
        for start, count in itertools.product(range(0, len(expected), 7), (1, 2, 33, 100)):
            found = source.read(start, min(count, len(expected) - start))
            assert found.tolist() == expected[start : start + count]


def test_a_shard_that_begins_and_ends_inside_documents_is_cut_too() -> None:
    tokens = np.array([7, 7, 7, 7, 0, 1, 2, 3, 0, 4, 0, 5, 6, 7, 8], dtype=np.uint16)
    source = module.Source(tokens, 0, 2)
    assert source.read(0, source.size).tolist() == [7, 7, 7, 0, 1, 2, 0, 4, 0, 5, 6]
    assert source.documents.tolist() == [3, 6], "as in a shard that is not cut, the last eot begins nothing"


def test_rows_of_cut_documents_hold_more_of_them(lines_dataset: Dataset) -> None:
    """Cut to 5 tokens, every row of 32 has the beginnings of at least five documents; validation stays as it is."""
    for kind in ("documents", "stream", "ordered", "random"):
        config = run_config(kind, max_document=5)
        for batch, _ in take(training_batches(lines_dataset, config, seed=1), 5):
            assert np.all(np.sum(batch.inputs == lines_dataset.eot, axis=1) >= 5)
            assert kind != "documents" or np.all(batch.inputs[:, 0] == lines_dataset.eot)
        uncut = run_config(kind)
        assert row_keys(validation_rows(lines_dataset, config)) == row_keys(validation_rows(lines_dataset, uncut))
        both = zip(*(validation_batches(lines_dataset, c, 3) for c in (config, uncut)), strict=True)
        assert all(same(a, b) for a, b in both)


# --- random windows ---------------------------------------------------------------------------------------------


def places(dataset: Dataset, length: int = 32) -> list[tuple[int, int]]:
    """(shard, start) of every window that has its last target in its own shard."""
    shards = dataset.tokens("train")
    return [(shard, start) for shard, tokens in enumerate(shards) for start in range(len(tokens) - length)]


def drawn_places(dataset: Dataset, seed: int, epochs: int, first_epoch: int = 0) -> list[list[tuple[int, int]]]:
    """Where each row of each epoch comes from; a row that crosses a shard's end is in no place and raises KeyError."""
    config = run_config("random")
    tokens = dataset.tokens("train")
    known = {tokens[s][a : a + 33].astype(np.int64).tobytes(): (s, a) for s, a in places(dataset)}
    assert len(known) == len(places(dataset)), "windows of this text are all different"
    count = len(training_rows(dataset, config).starts)
    batches = training_batches(dataset, config, seed, start=first_epoch * count)
    taken = take(batches, -(-epochs * count // 8))
    rows = [np.append(i, t[-1]) for b, _ in taken for i, t in zip(b.inputs, b.targets, strict=True)]
    assert all(np.array_equal(b.inputs[:, 1:], b.targets[:, :-1]) for b, _ in taken)
    found = [known[row.tobytes()] for row in rows]
    return [found[epoch * count : (epoch + 1) * count] for epoch in range(epochs)]


def test_random_rows_are_the_raw_numbers_of_the_seed_over_all_places(lines_dataset: Dataset) -> None:
    everywhere = places(lines_dataset)
    count = len(training_rows(lines_dataset, run_config("stream")).starts)
    for epoch, found in enumerate(drawn_places(lines_dataset, seed=5, epochs=3)):
        raw = np.random.PCG64(stream_seed(5, "data_order", epoch)).random_raw(count).tolist()
        assert found == [everywhere[number % len(everywhere)] for number in raw]


def test_random_rows_begin_anywhere_alike(lines_dataset: Dataset) -> None:
    """Chi-square over the places of 40 epochs: by shard, by where in it, by the distance from a stream's rows."""
    everywhere = places(lines_dataset)
    found = [place for epoch in drawn_places(lines_dataset, seed=1, epochs=40) for place in epoch]
    assert len(found) > 5000 and len(set(shard for shard, _ in everywhere)) > 10
    keys: list[Callable[[tuple[int, int]], int]] = [lambda p: p[0], lambda p: p[1] // 25, lambda p: p[1] % 32]
    for key in keys:
        expected, observed = Counter(map(key, everywhere)), Counter(map(key, found))
        cells = [(observed[k], expected[k] * len(found) / len(everywhere)) for k in expected]
        cells = [(o, e) for o, e in cells if e >= 5]
        statistic = sum((o - e) ** 2 / e for o, e in cells)
        assert statistic < stats.chi2.ppf(0.9999, len(cells) - 1)
    firsts, lasts = {(shard, 0) for shard, _ in everywhere}, set(dict(everywhere).items())
    assert firsts & set(found) and lasts & set(found), "both ends of a shard belong to it"


def test_random_rows_come_again_within_an_epoch(lines_dataset: Dataset) -> None:
    everywhere, epochs = places(lines_dataset), drawn_places(lines_dataset, seed=1, epochs=40)
    again = sum(len(epoch) - len(set(epoch)) for epoch in epochs)
    expected = 40 * len(epochs[0]) ** 2 / 2 / len(everywhere)  # birthdays
    assert abs(again - expected) < 4 * expected**0.5 + 0.1 * expected


def test_random_rows_differ_between_epochs_and_seeds(lines_dataset: Dataset) -> None:
    one, two = (drawn_places(lines_dataset, seed, epochs=2) for seed in (1, 2))
    assert one[0] != one[1] and one[0] != two[0] and one[1] != two[0]
    assert one == drawn_places(lines_dataset, seed=1, epochs=2)
    assert drawn_places(lines_dataset, seed=1, epochs=1, first_epoch=1)[0] == one[1]


def test_random_training_is_validated_as_a_stream_is(lines_dataset: Dataset) -> None:
    random_rows, stream = (validation_rows(lines_dataset, run_config(kind)) for kind in ("random", "stream"))
    assert row_keys(random_rows) == row_keys(stream)
    both = [list(validation_batches(lines_dataset, run_config(kind), 3)) for kind in ("random", "stream")]
    assert all(same(a, b) and a.documents is b.documents is None for a, b in zip(*both, strict=True))


# --- rows that grow ---------------------------------------------------------------------------------------------


def growing(config: RunConfig) -> RunConfig:
    """The configuration with a curriculum, so that a stream packs; which rows it takes is up to the test."""
    values = config.model_dump()
    values["schedule"]["curriculum"] |= {"stages": (0.5, 1.0), "latest": (0.5,)}
    return RunConfig.model_validate(values)


def pairs(batches: Iterable[Batch]) -> list[tuple[int, int]]:
    """Every (input, target) in order, without what is not scored."""
    found: list[tuple[int, int]] = []
    for batch in batches:
        both = zip(batch.inputs.ravel().tolist(), batch.targets.ravel().tolist(), strict=True)
        found += [(i, t) for i, t in both if t >= 0]
    return found


def cut_stream(dataset: Dataset, config: RunConfig, cuts: list[tuple[int, int]], rank: int, world: int) -> list[Batch]:
    stream = TrainingStream(dataset, config, 3, rank, world)
    taken = [stream.take(rows, length) for rows, length in cuts]
    stream.close()
    return taken


CUTS = [(8, 8), (8, 16), (8, 24), (8, 32), (3, 24), (5, 8), (1, 24), (7, 32), (8, 24), (20, 16), (8, 8), (8, 32)]


@pytest.mark.parametrize("length", [8, 16, 24, 32])
def test_rows_cut_shorter_lose_and_repeat_no_token(lines_dataset: Dataset, config: RunConfig, length: int) -> None:
    whole = [batch for batch, _ in take(training_batches(lines_dataset, config, 3), 60)]
    cut = cut_stream(lines_dataset, growing(config), [(8, length)] * 60, 0, 1)
    assert pairs(cut) == pairs(whole)
    for batch, before in zip(cut, whole, strict=True):
        assert batch.inputs.shape == batch.targets.shape == (-(-8 * 32 // length), length)
        assert batch.inputs.dtype == batch.targets.dtype == np.int64
        assert pairs([batch]) == pairs([before]), "a step has the same tokens at every length"


def test_numbers_of_rows_that_change_lose_and_repeat_no_token(lines_dataset: Dataset, config: RunConfig) -> None:
    cut = cut_stream(lines_dataset, growing(config), CUTS * 4, 0, 1)
    rows = sum(rows for rows, _ in CUTS * 4)
    whole = [batch for batch, _ in take(training_batches(lines_dataset, config, 3), -(-rows // 8))]
    flat = Batch(*(np.concatenate([getattr(b, n) for b in whole])[:rows] for n in ("inputs", "targets")), None)
    assert pairs(cut) == pairs([flat])
    for batch, (count, length) in zip(cut, CUTS * 4, strict=True):
        assert batch.inputs.shape == (-(-count * 32 // length), length)
    taken = 0
    for batch, (count, _) in zip(cut, CUTS * 4, strict=True):
        part = slice(taken, taken + count)
        assert pairs([batch]) == pairs([Batch(flat.inputs[part], flat.targets[part], None)])
        taken += count


def test_a_row_that_is_cut_goes_on_in_the_next_with_the_same_targets(lines_dataset: Dataset) -> None:
    (whole, _), *_ = take(training_batches(lines_dataset, run_config("stream"), 3), 1)
    (cut,) = cut_stream(lines_dataset, growing(run_config("stream")), [(8, 24)], 0, 1)
    assert cut.inputs[0].tolist() == whole.inputs[0, :24].tolist()
    assert cut.inputs[1].tolist() == whole.inputs[0, 24:].tolist() + whole.inputs[1, :16].tolist()
    assert cut.targets[1].tolist() == whole.targets[0, 24:].tolist() + whole.targets[1, :16].tolist()


def test_what_is_missing_in_the_last_row_is_not_scored() -> None:
    batch = Batch(np.arange(1, 13).reshape(2, 6), np.array([[2, 3, 4, 5, 6, 7], [8, 9, 10, -1, -1, -1]]), None)
    cut = recut(batch, 5)
    assert cut.inputs[:2].tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]] and cut.inputs[2, :2].tolist() == [11, 12]
    assert cut.targets.tolist() == [[2, 3, 4, 5, 6], [7, 8, 9, 10, -1], [-1] * 5]
    assert np.all(cut.inputs >= 0), "every input is a row of the table"
    assert same(recut(batch, 6), batch)
    assert recut(batch, 4).targets.ravel().tolist() == batch.targets.ravel().tolist()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_have_the_rows_of_one_that_is_alone(
    lines_dataset: Dataset, config: RunConfig, world: int
) -> None:
    config = growing(config.model_copy(update={"train": config.train.model_copy(update={"batch_rows": 6})}))
    cuts = [(rows, length) for rows, length in CUTS * 3 if rows * 32 // length >= world]
    alone = cut_stream(lines_dataset, config, cuts, 0, 1)
    ranks = [cut_stream(lines_dataset, config, cuts, rank, world) for rank in range(world)]
    for batch, *shares in zip(alone, *ranks, strict=True):
        assert max(len(share.inputs) for share in shares) - min(len(share.inputs) for share in shares) <= 1
        for row in range(len(batch.inputs)):
            share, place = shares[row % world], row // world
            assert np.array_equal(share.inputs[place], batch.inputs[row])
            assert np.array_equal(share.targets[place], batch.targets[row])
        assert sum(len(share.inputs) for share in shares) == len(batch.inputs)


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (0, 2), (1, 2)])
def test_without_growth_the_stream_is_the_training_batches(
    lines_dataset: Dataset, config: RunConfig, rank: int, world: int
) -> None:
    plain = [batch for batch, _ in take(training_batches(lines_dataset, config, 3, rank, world), 20)]
    stream = cut_stream(lines_dataset, config, [(8, 32)] * 20, rank, world)
    assert all(same(a, b) for a, b in zip(stream, plain, strict=True))


def test_a_growing_stream_at_its_full_size_has_the_same_batches(lines_dataset: Dataset, config: RunConfig) -> None:
    plain = [batch for batch, _ in take(training_batches(lines_dataset, config, 3), 20)]
    stream = cut_stream(lines_dataset, growing(config), [(8, 32)] * 20, 0, 1)
    assert all(same(a, b) for a, b in zip(stream, plain, strict=True))


def test_a_closed_stream_leaves_no_thread(lines_dataset: Dataset, config: RunConfig) -> None:
    before = threading.active_count()
    stream = TrainingStream(lines_dataset, growing(config), 1)
    stream.take(3, 8)
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before


# --- validation -------------------------------------------------------------------------------------------------


def scored(batches: Iterable[Batch]) -> Counter[tuple[bytes, int]]:
    """Each scored target with all that stands before it in its row."""
    found: Counter[tuple[bytes, int]] = Counter()
    for batch in batches:
        for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
            found.update((inputs[: t + 1].tobytes(), int(targets[t])) for t in np.flatnonzero(targets >= 0))
    return found


def test_a_stream_is_validated_at_every_position_once(lines_dataset: Dataset) -> None:
    batches = list(validation_batches(lines_dataset, run_config("stream"), batch_rows=3))
    seen = [batch.targets[batch.targets >= 0] for batch in batches]
    expected = [tokens[1:] for tokens in lines_dataset.tokens("val")]
    assert np.array_equal(np.concatenate(seen), np.concatenate(expected))
    assert all(batch.documents is None and len(batch.inputs) <= 3 for batch in batches)


def test_documents_are_validated_whole_and_told_apart(lines_dataset: Dataset) -> None:
    config = run_config("documents")
    spans = [
        tokens[start + 1 : end + 1].tolist()  # the document and the eot behind it
        for tokens in lines_dataset.tokens("val")
        for start, end in document_spans(tokens, lines_dataset.eot)
    ]
    found: dict[int, list[int]] = {}
    for batch in validation_batches(lines_dataset, config, batch_rows=3):
        assert batch.documents is not None and np.array_equal(batch.documents >= 0, batch.targets >= 0)
        assert np.all(batch.inputs[batch.targets < 0] == lines_dataset.eot)
        for document, target in zip(batch.documents.ravel().tolist(), batch.targets.ravel().tolist(), strict=True):
            if document >= 0:
                found.setdefault(document, []).append(target)
    assert found == {i: span for i, span in enumerate(spans) if len(span) <= 32}
    assert len(spans) - len(found) == validation_rows(lines_dataset, config).left_out


def test_stories_are_scored_whole_with_their_probability_beside_them(stories_path: Path) -> None:
    dataset = open_dataset(stories_path)
    assert dataset.val_nll is not None
    sums = np.zeros(len(dataset.val_nll))
    for batch in validation_batches(dataset, run_config("documents", seq_len=1024), batch_rows=4):
        assert batch.documents is not None
        scored_bt = batch.targets >= 0
        np.add.at(sums, batch.documents[scored_bt], dataset.token_bytes[batch.targets[scored_bt]])
    corpus_bytes = dataset.manifest["splits"]["val"]["bytes"]
    assert sums.min() > 100 and sums.sum() == corpus_bytes


@pytest.mark.parametrize("limit", [None, 1, 5])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_together_validate_the_whole(
    lines_dataset: Dataset, config: RunConfig, world: int, limit: int | None
) -> None:
    whole = scored(validation_batches(lines_dataset, config, 3, limit))
    ranks = [list(validation_batches(lines_dataset, config, 3, limit, rank, world)) for rank in range(world)]
    assert scored(itertools.chain(*ranks)) == whole
    rows = sum(len(batch.inputs) for batches in ranks for batch in batches)
    assert rows == min(limit or 10**9, len(validation_rows(lines_dataset, config).starts))


def test_the_size_of_batches_changes_nothing(lines_dataset: Dataset, config: RunConfig) -> None:
    small, large = (list(validation_batches(lines_dataset, config, size, limit=7)) for size in (2, 100))
    for name in ("inputs", "targets", *(["documents"] if config.data.rows == "documents" else [])):
        (whole,) = (getattr(batch, name) for batch in large)
        assert np.array_equal(np.concatenate([getattr(batch, name) for batch in small]), whole)


def test_too_little_text_is_refused(lines_dataset: Dataset) -> None:
    calls: list[tuple[Callable[..., Rows], str, int]] = [
        (training_rows, "stream", 600),
        (validation_rows, "documents", 2),
    ]
    for rows, kind, seq_len in calls:
        with pytest.raises(ValueError, match=f"seq_len={seq_len}.*rows={kind}"):
            rows(lines_dataset, run_config(kind, seq_len))
