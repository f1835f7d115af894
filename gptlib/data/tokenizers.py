"""Tokenizers: bytes, characters, a trained BPE and GPT-2's, all with <|endoftext|> as their last id.

BPE is trained by Hugging Face `tokenizers` on GPT-2's split pattern and encoded by `tiktoken`, which gives the same ids
and is several times faster. The text "<|endoftext|>" in a document is ordinary text, never the special token.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
import tokenizers

from gptlib.config import ConfigError
from gptlib.fields import DataConfig

EOT = "<|endoftext|>"
SPLIT_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"  # GPT-2's
PARALLEL_CHARACTERS = 1_000_000  # below this, starting threads costs more than it saves
PART_DOCUMENTS = 64  # handed to a thread at a time
THREADS = 8
GPT2_SIZE = 50_257


class Tokenizer:
    """Text <-> ids in [0, vocab_size); the ids fit uint16 and `eot` is the last of them.

    `definition` is JSON-plain and decides every id: {"kind": "byte" | "gpt2"}, {"kind": "char", "characters": str} or
    {"kind": "bpe", "tokens": hex strings in order of rank}.
    """

    def __init__(self, definition: dict[str, Any]) -> None:
        self.definition = definition
        self.kind: str = definition["kind"]
        self.vocab_size = _vocab_size(definition)
        self.eot = self.vocab_size - 1
        self.hash = hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:16]
        assert self.vocab_size <= 65_536

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        if self.kind == "gpt2":
            return _gpt2_encoding()
        ranks = {bytes.fromhex(token): rank for rank, token in enumerate(self.definition["tokens"])}
        return tiktoken.Encoding("bpe", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={EOT: self.eot})

    @cached_property
    def _codepoints(self) -> np.ndarray:
        return np.frombuffer(self.definition["characters"].encode("utf-32-le"), dtype="<u4")

    def encode(self, text: str) -> np.ndarray:
        """(n,) uint16. Raises ValueError for a character that a char tokenizer does not know."""
        if self.kind == "byte":
            return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint16)
        if self.kind == "char":
            return self._encode_characters(text)
        return self._encoding.encode_to_numpy(text, disallowed_special=()).astype(np.uint16)

    def _encode_characters(self, text: str) -> np.ndarray:
        points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        ids = np.searchsorted(self._codepoints, points).clip(max=len(self._codepoints) - 1)
        unknown = points[self._codepoints[ids] != points]
        if len(unknown):
            raise ValueError(
                f"character {chr(unknown[0])!r} is not among the {self.vocab_size - 1} that this char tokenizer was "
                "built from; leave it out, or use tokenizer byte or bpe"
            )
        return ids.astype(np.uint16)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """encode() of each text, in order; large inputs are spread over threads (tiktoken releases the GIL)."""
        threads = min(THREADS, os.cpu_count() or 1, len(texts))
        if self.kind in ("byte", "char") or threads < 2 or sum(map(len, texts)) < PARALLEL_CHARACTERS:
            return [self.encode(text) for text in texts]
        self.encode("")  # builds the encoding that the threads share
        parts = [texts[i : i + PART_DOCUMENTS] for i in range(0, len(texts), PART_DOCUMENTS)]
        with ThreadPoolExecutor(threads) as pool:
            encoded = pool.map(lambda part: [self.encode(text) for text in part], parts)
            return [ids for part in encoded for ids in part]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of `ids`; bytes that are no UTF-8 (a character cut in two) become U+FFFD, eot its name."""
        if self.kind in ("bpe", "gpt2"):
            return self._encoding.decode([int(i) for i in ids])
        return b"".join(self._pieces[int(i)] for i in ids).decode("utf-8", errors="replace")

    @cached_property
    def _pieces(self) -> list[bytes]:
        """The bytes of every id; eot's are its name."""
        if self.kind == "byte":
            return [bytes([i]) for i in range(256)] + [EOT.encode()]
        if self.kind == "char":
            return [character.encode() for character in self.definition["characters"]] + [EOT.encode()]
        return [self._encoding.decode_single_token_bytes(i) for i in range(self.vocab_size)]

    def token_bytes(self) -> np.ndarray:
        """(vocab_size,) int64: UTF-8 bytes that each id stands for, 0 for eot; for bits per byte."""
        return np.array([len(piece) for piece in self._pieces[:-1]] + [0], dtype=np.int64)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.definition), encoding="utf-8")


def build_tokenizer(config: DataConfig, texts: Sequence[str]) -> Tokenizer:
    """The tokenizer that `config` asks for; char and bpe are built from `texts`. Raises ConfigError.

    A BPE that finds fewer merges than data.vocab_size asks for is smaller than that.
    """
    if config.tokenizer == "char":
        return Tokenizer({"kind": "char", "characters": _characters(texts)})
    if config.tokenizer == "bpe":
        return Tokenizer({"kind": "bpe", "tokens": _train_bpe(texts, config.vocab_size - 1)})
    if config.tokenizer == "gpt2":
        _gpt2_encoding()  # fail here rather than in the middle of the work
    return Tokenizer({"kind": config.tokenizer})


def load_tokenizer(path: Path) -> Tokenizer:
    """Read what Tokenizer.save wrote. Raises ValueError naming the file."""
    try:
        return Tokenizer(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: missing or not a tokenizer of this project; make the dataset again") from None


def _vocab_size(definition: dict[str, Any]) -> int:
    sizes: dict[str, Callable[[], int]] = {
        "byte": lambda: 257,
        "char": lambda: len(definition["characters"]) + 1,
        "bpe": lambda: len(definition["tokens"]) + 1,
        "gpt2": lambda: GPT2_SIZE,
    }
    return sizes[definition["kind"]]()


def _characters(texts: Sequence[str]) -> str:
    characters = "".join(sorted(set().union(*texts)))
    if len(characters) > 65_535:
        raise ConfigError("data.tokenizer=char: more than 65,535 different characters; use byte or bpe")
    return characters


def _train_bpe(texts: Sequence[str], size: int) -> list[str]:
    """Hex of the bytes of every token in order of rank: the 256 bytes, then the merges that training found."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    trained.train_from_iterator(texts, trainer, length=len(texts))
    byte_of = _byte_of_symbol()
    ranked = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    return [bytes(byte_of[symbol] for symbol in token).hex() for token, _ in ranked]


def _byte_of_symbol() -> dict[str, int]:
    """GPT-2's reversible map: printable Latin-1 bytes stand for themselves, the others for U+0100 and up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _gpt2_encoding() -> tiktoken.Encoding:
    try:
        return tiktoken.get_encoding("gpt2")
    except OSError as error:
        raise ConfigError(
            f"data.tokenizer=gpt2: its files could not be fetched ({type(error).__name__}); connect once, or set the "
            "environment variable TIKTOKEN_CACHE_DIR to a folder that holds them"
        ) from None
