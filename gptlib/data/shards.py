"""Token shards: flat files of uint16 ids, in the format of llm.c and modded-nanogpt.

A header of 256 little-endian int32 (magic 20240520, version 1, number of tokens, zeros), then the tokens.
"""

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np

MAGIC, VERSION = 20240520, 1
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
MAX_TOKENS = 2**31 - 1  # the count is an int32


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """Write `tokens` (n,) uint16 to `path`, whole or not at all."""
    assert tokens.dtype == np.uint16 and tokens.ndim == 1 and 0 < len(tokens) <= MAX_TOKENS
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(header.tobytes())
            tokens.astype("<u2", copy=False).tofile(file)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_shard(path: Path, headerless: bool = False) -> np.ndarray:
    """Memory-map the (n,) uint16 tokens of a shard; `headerless` reads nanoGPT's .bin, which is nothing but tokens.

    An .npy file must hold one axis of uint16. Raises ValueError naming the file when it is not what it should be.
    """
    size = path.stat().st_size if path.is_file() else 0
    if not size:
        raise ValueError(f"{path}: shard is missing or empty; make or fetch it again")
    if path.suffix == ".npy":
        return _read_npy(path)
    if headerless:
        if size % 2:
            raise ValueError(f"{path}: {size} bytes are no whole number of uint16 tokens; make or fetch it again")
        return np.memmap(path, dtype="<u2", mode="r")
    header = np.fromfile(path, dtype="<i4", count=HEADER_INTS)
    if len(header) < HEADER_INTS or header[0] != MAGIC or header[1] != VERSION:
        raise ValueError(f"{path}: no shard header (magic {MAGIC}, version {VERSION}); make or fetch it again")
    count = int(header[2])
    if count < 1 or size != HEADER_BYTES + 2 * count:
        raise ValueError(
            f"{path}: truncated or altered: {size} bytes where {count} tokens need {HEADER_BYTES + 2 * count}; "
            "make or fetch it again"
        )
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES)


def _read_npy(path: Path) -> np.ndarray:
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a readable .npy file ({error}); make or fetch it again") from None
    if tokens.dtype != np.uint16 or tokens.ndim != 1 or not len(tokens):
        raise ValueError(f"{path}: {tokens.dtype} of shape {tokens.shape}, not one axis of uint16; save it as that")
    return tokens


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
