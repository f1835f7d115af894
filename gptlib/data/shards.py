"""Token shards: flat files of uint16 ids, in the format of llm.c and modded-nanogpt.

A header of 256 little-endian int32 (magic 20240520, version 1, number of tokens, zeros), then the tokens. Read too are
nanoGPT's files, which are nothing but tokens, and one-dimensional .npy files, which are written as well.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np

MAGIC, VERSION = 20240520, 1
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
MAX_TOKENS = 2**31 - 1  # the count is an int32
AGAIN = "make or fetch it again"
NPY_TYPES = ("uint16", "int32", "uint32", "int64")


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """Write `tokens` (n,) uint16 to `path`, whole or not at all."""
    assert tokens.dtype == np.uint16 and tokens.ndim == 1 and 0 < len(tokens) <= MAX_TOKENS
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:3] = MAGIC, VERSION, len(tokens)

    def write(file: IO[bytes]) -> None:
        file.write(header.tobytes())
        tokens.astype("<u2", copy=False).tofile(file)

    _write_whole(path, write)


def write_npy(path: Path, shards: Sequence[np.ndarray], eot: int) -> None:
    """Write the tokens of `shards`, one after the other, as one uint16 .npy file, whole or not at all.

    An eot that ends a shard is left out where the next shard begins with one.
    """
    following = [*(int(tokens[0]) for tokens in shards[1:]), None]
    shards = [
        tokens[:-1] if tokens[-1] == first == eot else tokens for tokens, first in zip(shards, following, strict=True)
    ]
    header = {"descr": "<u2", "fortran_order": False, "shape": (sum(map(len, shards)),)}

    def write(file: IO[bytes]) -> None:
        np.lib.format.write_array_header_1_0(file, header)
        for tokens in shards:
            assert tokens.dtype == np.uint16 and tokens.ndim == 1
            tokens.astype("<u2", copy=False).tofile(file)

    _write_whole(path, write)


def _write_whole(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_shard(path: Path) -> np.ndarray:
    """Memory-map the (n,) uint16 tokens of a shard. Raises ValueError naming a file that is not what it should be."""
    size = _size(path)
    header = np.fromfile(path, dtype="<i4", count=HEADER_INTS)
    if len(header) < HEADER_INTS or header[0] != MAGIC or header[1] != VERSION:
        raise ValueError(f"{path}: no shard header (magic {MAGIC}, version {VERSION}); {AGAIN}")
    count = int(header[2])
    if count < 1 or size != HEADER_BYTES + 2 * count:
        raise ValueError(
            f"{path}: truncated or altered: {size} bytes where {count} tokens need {HEADER_BYTES + 2 * count}; {AGAIN}"
        )
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES)


def has_header(path: Path) -> bool:
    """Whether a file begins as a shard does. GPT-2's ids do not: two of them never make the magic."""
    return path.suffix == ".bin" and np.fromfile(path, dtype="<i4", count=1).tolist() == [MAGIC]


def read_headerless(path: Path) -> np.ndarray:
    """Memory-map the (n,) uint16 tokens of a file of nanoGPT's. Raises ValueError naming the file.

    Nothing in such a file says that it is one: whatever has an even number of bytes is read.
    """
    size = _size(path)
    if size % 2:
        raise ValueError(f"{path}: {size} bytes are no whole number of uint16 tokens; {AGAIN}")
    return np.memmap(path, dtype="<u2", mode="r")


def read_npy(path: Path) -> np.ndarray:
    """Memory-map the (n,) tokens of an .npy file: uint16, int32, uint32 or int64. Raises ValueError naming the file.

    Whether the ids of a wider type fit a vocabulary is not looked at.
    """
    _size(path)
    try:
        tokens: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a readable .npy file ({str(error).splitlines()[0]}); {AGAIN}") from None
    if not isinstance(tokens, np.ndarray) or tokens.dtype not in NPY_TYPES or tokens.ndim != 1 or not len(tokens):
        what = f"{tokens.dtype} of shape {tokens.shape}" if isinstance(tokens, np.ndarray) else "several arrays"
        raise ValueError(f"{path}: {what}, not one axis of {', '.join(NPY_TYPES)}; save the token ids as uint16")
    return tokens


def _size(path: Path) -> int:
    size = path.stat().st_size if path.is_file() else 0
    if not size:
        raise ValueError(f"{path}: shard is missing or empty; {AGAIN}")
    return size


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
