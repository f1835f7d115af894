"""The loader against plain Python over the same tokens."""

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptlib.data.dataset import Dataset, open_dataset, prepare_dataset
from gptlib.data.loader import Batch, Rows, training_batches, training_rows, validation_batches, validation_rows
from gptlib.fields import DataConfig, RunConfig
from gptlib.streams import stream_seed


def run_config(rows: str, seq_len: int = 32, batch_rows: int = 8) -> RunConfig:
    return RunConfig.model_validate(
        {"data": {"rows": rows}, "model": {"seq_len": seq_len}, "train": {"batch_rows": batch_rows}}
    )


@pytest.fixture(params=["stream", "documents"])
def config(request: pytest.FixtureRequest) -> RunConfig:
    return run_config(request.param)


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


def test_a_batch_holds_its_rows(lines_dataset: Dataset, config: RunConfig) -> None:
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


def test_the_order_is_of_the_seeds_own_stream(lines_dataset: Dataset, config: RunConfig) -> None:
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


def test_more_rows_in_a_batch_than_in_an_epoch(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(map(chr, range(32, 127))) + "abcdefgh" * 8)
    data = DataConfig(corpus="text", path=str(tmp_path / "a.txt"), tokenizer="byte", rows="stream")
    dataset = open_dataset(prepare_dataset(data, tmp_path))
    config = run_config("stream", batch_rows=16)
    assert len(training_rows(dataset, config).starts) == 4
    (batch, state), *_ = take(training_batches(dataset, config, 1), 1)
    assert Counter(row.tobytes() for row in batch.inputs).most_common(1)[0][1] == 4 and state == 16


def test_the_reading_thread_ends_with_the_generator(lines_dataset: Dataset, config: RunConfig) -> None:
    before = threading.active_count()
    batches = training_batches(lines_dataset, config, seed=1)
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before


def test_an_error_while_reading_reaches_the_caller(lines_dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = training_batches(lines_dataset, run_config("stream"), seed=1)
    monkeypatch.setattr(lines_dataset, "tokens", lambda _: [])
    with pytest.raises(IndexError):
        next(batches)


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
    for batch in validation_batches(dataset, run_config("documents", seq_len=512), batch_rows=4):
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
