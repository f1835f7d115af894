"""Shards against the format as llm.c writes and modded-nanogpt reads it."""

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from gptlib.data.shards import read_shard, sha256_file, write_shard

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


def test_headerless_and_npy_files_are_read(tmp_path: Path) -> None:
    TOKENS.tofile(tmp_path / "nanogpt.bin")
    np.save(tmp_path / "tokens.npy", TOKENS)
    assert read_shard(tmp_path / "nanogpt.bin", headerless=True).tolist() == TOKENS.tolist()
    assert read_shard(tmp_path / "tokens.npy").tolist() == TOKENS.tolist()


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


def test_other_files_that_are_no_shards_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", TOKENS.astype(np.int64))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object))
    (tmp_path / "torn.npy").write_bytes((tmp_path / "wide.npy").read_bytes()[:40])
    (tmp_path / "odd.bin").write_bytes(b"abc")
    for name in ("wide.npy", "object.npy", "torn.npy"):
        with pytest.raises(ValueError, match=name):
            read_shard(tmp_path / name)
    with pytest.raises(ValueError, match=r"odd\.bin"):
        read_shard(tmp_path / "odd.bin", headerless=True)
    with pytest.raises(ValueError, match=r"absent\.bin"):
        read_shard(tmp_path / "absent.bin")


def test_sha256_file(shard: Path) -> None:
    assert sha256_file(shard) == hashlib.sha256(shard.read_bytes()).hexdigest()
