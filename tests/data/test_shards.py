"""Shards against the format as llm.c writes and modded-nanogpt reads it."""

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from gptlib.data.shards import read_headerless, read_npy, read_shard, sha256_file, write_npy, write_shard

TOKENS = np.array([0, 1, 511, 50_256, 65_535], dtype=np.uint16)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    write_shard(tmp_path / "train_000000.bin", TOKENS)
    return tmp_path / "train_000000.bin"


def test_the_bytes_are_those_of_the_format(shard: Path) -> None:
    expected = struct.pack("<256i", 20240520, 1, 5, *[0] * 253) + struct.pack("<5H", *TOKENS.tolist())
    assert shard.read_bytes() == expected
    assert [path.name for path in shard.parent.iterdir()] == [shard.name]


def test_what_was_written_is_read_without_loading_it(shard: Path) -> None:
    tokens = read_shard(shard)
    assert isinstance(tokens, np.memmap) and tokens.dtype == np.uint16
    assert tokens.tolist() == TOKENS.tolist()


def test_a_file_of_nanogpt_is_read_without_loading_it(tmp_path: Path) -> None:
    TOKENS.tofile(tmp_path / "nanogpt.bin")
    tokens = read_headerless(tmp_path / "nanogpt.bin")
    assert isinstance(tokens, np.memmap) and tokens.tolist() == TOKENS.tolist()


@pytest.mark.parametrize("kind", ["uint16", "int32", "uint32", "int64"])
def test_npy_files_of_ids_are_read_without_loading_them(tmp_path: Path, kind: str) -> None:
    np.save(tmp_path / "tokens.npy", TOKENS.astype(kind))
    tokens = read_npy(tmp_path / "tokens.npy")
    assert isinstance(tokens, np.memmap) and tokens.dtype == kind and tokens.tolist() == TOKENS.tolist()


def test_npy_files_are_written_as_numpy_writes_them(tmp_path: Path) -> None:
    write_npy(tmp_path / "ours.npy", [TOKENS[:2], TOKENS[2:]], eot=9)
    np.save(tmp_path / "numpys.npy", TOKENS)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "numpys.npy").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["numpys.npy", "ours.npy"]


def test_an_eot_between_two_shards_is_written_once(tmp_path: Path) -> None:
    shards = [np.array(ids, dtype=np.uint16) for ids in ([9, 1, 9], [9, 2, 9], [3, 9], [4], [9, 9])]
    write_npy(tmp_path / "joined.npy", shards, eot=9)
    assert read_npy(tmp_path / "joined.npy").tolist() == [9, 1, 9, 2, 9, 3, 9, 4, 9, 9]


@pytest.mark.parametrize("change", ["shorter", "longer", "half a token", "header only", "empty", "magic", "version"])
def test_a_damaged_shard_is_an_error_that_names_the_file(shard: Path, change: str) -> None:
    whole = shard.read_bytes()
    damaged = {
        "shorter": whole[:-2],
        "longer": whole + b"ab",
        "half a token": whole[:-1],
        "header only": whole[:1000],
        "empty": b"",
        "magic": struct.pack("<i", 20240521) + whole[4:],
        "version": whole[:4] + struct.pack("<i", 2) + whole[8:],
    }[change]
    shard.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"train_000000\.bin: .*again"):
        read_shard(shard)


def test_other_files_that_are_no_tokens_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "floats.npy", TOKENS.astype(np.float32))
    np.save(tmp_path / "square.npy", TOKENS[:4].reshape(2, 2))
    np.save(tmp_path / "none.npy", TOKENS[:0])
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object))
    np.savez(tmp_path / "two.npz", TOKENS, TOKENS)
    (tmp_path / "two.npz").rename(tmp_path / "several.npy")
    (tmp_path / "torn.npy").write_bytes((tmp_path / "floats.npy").read_bytes()[:40])
    (tmp_path / "cut.npy").write_bytes((tmp_path / "square.npy").read_bytes()[:-2])
    for name in ("floats", "square", "none", "object", "several", "torn", "cut", "absent"):
        with pytest.raises(ValueError, match=rf"{name}\.npy: ") as error:
            read_npy(tmp_path / f"{name}.npy")
        assert "\n" not in str(error.value)
    (tmp_path / "odd.bin").write_bytes(b"abc")
    with pytest.raises(ValueError, match=r"odd\.bin"):
        read_headerless(tmp_path / "odd.bin")
    for read in (read_shard, read_headerless):
        with pytest.raises(ValueError, match=r"absent\.bin"):
            read(tmp_path / "absent.bin")


def test_sha256_file(shard: Path) -> None:
    assert sha256_file(shard) == hashlib.sha256(shard.read_bytes()).hexdigest()
