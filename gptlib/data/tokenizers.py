"""Tokenizers: bytes, characters, a trained BPE and GPT-2's, all with <|endoftext|> as their last id.

BPE is trained by Hugging Face `tokenizers` on GPT-2's split pattern and encoded by `tiktoken`, which gives the same ids
and is several times faster. The text "<|endoftext|>" in a document is ordinary text, never the special token.

Texts are worked on in pieces. A piece ends before a space or newline behind something that is none: there the split
pattern ends a word whatever follows, so that the pieces' tokens are those of the whole.
"""

import hashlib
import json
import os
import re
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tiktoken
import tokenizers
from tqdm import tqdm

from gptlib.config import ConfigError
from gptlib.fields import DataConfig

EOT = "<|endoftext|>"
SPLIT_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"  # GPT-2's
SAFE_CUT = re.compile(r"(?<=\S)[ \n]")
PIECE_CHARACTERS = 10_000  # of a text, at least: training is fastest on short ones
CHUNK_CHARACTERS = 250_000  # handed to a thread at a time
THREADS = 8
GPT2_SIZE = 50_257
GPT2_FILES = ("encoder.json", "vocab.bpe")
GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"

Piece = tuple[str, bool]  # some of a document's text, and whether the document ends with it


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
        """encode() of each text, in order, by as many threads as this machine is good for."""
        return list(encode_stream(self, texts, usable_threads()))

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of `ids`; bytes that are no UTF-8 (a character cut in two) become U+FFFD, eot its name."""
        if self.kind in ("bpe", "gpt2"):
            return self._encoding.decode([int(i) for i in ids])
        return b"".join(self._pieces[int(i)] for i in ids).decode("utf-8", errors="replace")

    def texts(self, tokens: np.ndarray, limit: int) -> list[str]:
        """The documents among the first `limit` tokens of a shard, the last one cut there; empty ones left out."""
        head = np.asarray(tokens[:limit])
        pieces = np.split(head, np.flatnonzero(head == self.eot))
        documents = [piece[1:] if len(piece) and piece[0] == self.eot else piece for piece in pieces]
        texts = [self.decode(document).rstrip("\ufffd") for document in documents]
        return [text for text in texts if text]

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


def build_tokenizer(config: DataConfig, texts: Iterable[str]) -> Tokenizer:
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


# --- encoding many documents ------------------------------------------------------------------------------------


def usable_threads() -> int:
    return min(THREADS, os.cpu_count() or 1)


def encode_stream(
    tokenizer: Tokenizer, documents: Iterable[str], workers: int = 0, progress: str = ""
) -> Iterator[np.ndarray]:
    """(n,) uint16 ids of each document, in order, without eot; as encode() of each gives them.

    Two `workers` or more are threads (tiktoken and NumPy release the GIL); 0 or 1: in the caller's own. Read ahead are
    two chunks of 250,000 characters for each, and no more. `progress`: heading of a progress bar on stderr, which
    counts characters and appears after two seconds; empty: none. Raises ValueError as encode() does.
    """
    chunks = _encoded_chunks(tokenizer, documents, workers)
    if progress:
        chunks = _with_progress(chunks, progress)
    parts: list[np.ndarray] = []
    for chunk, encoded in chunks:
        for (_, ends), ids in zip(chunk, encoded, strict=True):
            parts.append(ids)
            if ends:
                yield parts[0] if len(parts) == 1 else np.concatenate(parts)
                parts = []


EncodedChunk = tuple[list[Piece], list[np.ndarray]]


def _encoded_chunks(tokenizer: Tokenizer, documents: Iterable[str], workers: int) -> Iterator[EncodedChunk]:
    """Every chunk with the ids of its pieces, in order."""

    def encode(chunk: list[Piece]) -> EncodedChunk:
        return chunk, [tokenizer.encode(text) for text, _ in chunk]

    if workers < 2:
        yield from map(encode, _chunks(documents))
        return
    tokenizer.encode("")  # builds the tables that the threads share
    pool, waiting = ThreadPoolExecutor(workers), deque[Future[EncodedChunk]]()
    try:
        for chunk in _chunks(documents):
            waiting.append(pool.submit(encode, chunk))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _chunks(documents: Iterable[str]) -> Iterator[list[Piece]]:
    """Successive pieces of successive documents, about CHUNK_CHARACTERS together."""
    chunk: list[Piece] = []
    size = 0
    for text in documents:
        pieces = _pieces_of(text)
        for number, piece in enumerate(pieces, start=1):
            chunk.append((piece, number == len(pieces)))
            size += 1 + len(piece)
            if size >= CHUNK_CHARACTERS:
                yield chunk
                chunk, size = [], 0
    if chunk:
        yield chunk


def _pieces_of(text: str) -> list[str]:
    """`text` cut where its tokens are not cut, each piece PIECE_CHARACTERS or a little more; one for an empty text."""
    starts = [0]
    while cut := SAFE_CUT.search(text, starts[-1] + PIECE_CHARACTERS):
        starts.append(cut.start())
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


def _with_progress(chunks: Iterator[EncodedChunk], heading: str) -> Iterator[EncodedChunk]:
    with tqdm(desc=heading, unit="char", unit_scale=True, delay=2, mininterval=1) as bar:
        for chunk in chunks:
            yield chunk
            bar.update(sum(len(text) for text, _ in chunk[0]))


# --- comparing tokenizers ---------------------------------------------------------------------------------------


class Efficiency(NamedTuple):
    """What a tokenizer, built from one sample, makes of a fixed corpus."""

    name: str
    vocab_size: int
    tokens: int
    bytes: int  # of the corpus, UTF-8
    unigram_bits: float  # bits per byte of a model that knows how often each token occurs in the corpus, and no more
    build_seconds: float
    encode_seconds: float  # in one thread

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens

    @property
    def bits_per_nat(self) -> float:
        """Bits per byte that a loss of 1 nat/token is: what makes losses comparable over tokenizers."""
        return 1 / (np.log(2) * self.bytes_per_token)


def compare_tokenizers(
    configs: Mapping[str, DataConfig], sample: Sequence[str], corpus: Sequence[str]
) -> list[Efficiency]:
    """Each named tokenizer built from `sample` and measured on `corpus`; a char tokenizer knows the characters of both.

    Raises ValueError where a tokenizer does not give back the corpus, byte for byte, or `corpus` is empty.
    """
    if not any(corpus):
        raise ValueError("the corpus to compare tokenizers on is empty; name one with text")
    found = []
    for name, config in configs.items():
        start = time.perf_counter()
        tokenizer = build_tokenizer(config, [*sample, *corpus] if config.tokenizer == "char" else sample)
        tokenizer.encode("")
        built = time.perf_counter()
        encoded = list(encode_stream(tokenizer, corpus))
        seconds = time.perf_counter() - built
        if any(tokenizer.decode(ids) != text for ids, text in zip(encoded, corpus, strict=True)):
            raise ValueError(f"tokenizer {name} does not give back the text it has encoded")
        counts = np.bincount(np.concatenate(encoded), minlength=tokenizer.vocab_size)
        size, shares = sum(len(text.encode()) for text in corpus), counts[counts > 0] / counts.sum()
        bits = float(-(shares * np.log2(shares)).sum() * counts.sum() / size)
        tokens = int(counts.sum())
        found.append(Efficiency(name, tokenizer.vocab_size, tokens, size, bits, built - start, seconds))
    return found


def gpt2_at_hand() -> bool:
    """Whether GPT-2's files lie where tiktoken looks before it asks the network."""
    variables = ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")
    default = str(Path(tempfile.gettempdir()) / "data-gym-cache")
    cache = next((os.environ[name] for name in variables if name in os.environ), default)
    names = [hashlib.sha1((GPT2_URL + name).encode()).hexdigest() for name in GPT2_FILES]
    return bool(cache) and all((Path(cache) / name).is_file() for name in names)


# --- building ---------------------------------------------------------------------------------------------------


def _vocab_size(definition: dict[str, Any]) -> int:
    sizes: dict[str, Callable[[], int]] = {
        "byte": lambda: 257,
        "char": lambda: len(definition["characters"]) + 1,
        "bpe": lambda: len(definition["tokens"]) + 1,
        "gpt2": lambda: GPT2_SIZE,
    }
    return sizes[definition["kind"]]()


def _characters(texts: Iterable[str]) -> str:
    characters = "".join(sorted(set().union(*texts)))
    if len(characters) > 65_535:
        raise ConfigError("data.tokenizer=char: more than 65,535 different characters; use byte or bpe")
    return characters


def _train_bpe(texts: Iterable[str], size: int) -> list[str]:
    """Hex of the bytes of every token in order of rank: the 256 bytes, then the merges that training found."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    trained.train_from_iterator((piece for text in texts for piece in _pieces_of(text)), trainer)
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
