"""Datasets: a folder of token shards with its tokenizer and a manifest, made once and checked whenever it is opened.

    outputs/data/<corpus>-<8 hex of what decides it>/
        train_000000.bin ... val_000000.bin ...   token shards: eot before every document and at the shard's end
                                                  (fineweb10B and tokens as they are: documents go on in the next)
        tokenizer.json  token_bytes.npy           the tokenizer, and how many bytes each id stands for
        val_nll.npy                               stories: exact -ln p of each validation document, nats
        manifest.json                             size and SHA-256 of every file, counts, source

The folder is written under another name and renamed as the last act: where it exists, it is whole.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from gptlib.config import ConfigError, fingerprint
from gptlib.data.corpora import Corpus, fetch_token_shards, open_corpus, source_key
from gptlib.data.shards import has_header, read_headerless, read_npy, read_shard, sha256_file, write_shard
from gptlib.data.texts import in_batches, spread_sample
from gptlib.data.tokenizers import Tokenizer, build_tokenizer, encode_stream, load_tokenizer, usable_threads
from gptlib.fields import DataConfig
from gptlib.records import RecordError, read_json, write_json

SCHEMA_VERSION = 1
SHARD_TOKENS = 100_000_000
SAMPLE_CHARACTERS = 100_000_000  # of training text that a BPE is trained on
COUNTED_TOKENS = 10_000_000  # of a file of tokens, at a time
SAMPLE_BLOCKS = 32  # that are read where not all tokens are
SPLITS = ("train", "val")
REMEDY = "delete the folder and run again"


def prepare_dataset(config: DataConfig, outputs: Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """The folder of the dataset that `config` describes, made if it is not there; one maker at a time.

    Raises ConfigError, one line, where the corpus or the tokenizer cannot be had or `outputs` cannot be written.
    """
    decided_by: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "source": source_key(config)}
    decided_by["tokenizer"] = [config.tokenizer, config.vocab_size if config.tokenizer == "bpe" else None]
    home = outputs / "data"
    folder = home / f"{config.corpus}-{fingerprint(decided_by)[:8]}"
    if (folder / "manifest.json").exists():
        return folder
    try:
        home.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(home / f".{folder.name}.lock"):
            if not (folder / "manifest.json").exists():
                _make(folder, config, say)
    except OSError as error:
        # NumPy gives no number where a file breaks off: "270002 requested and 153088 written"
        full = error.errno in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "nothing is left of it; make room or choose another `outputs`" if full else "choose another `outputs`"
        raise ConfigError(f"{folder}: cannot be written ({error.strerror or error}); {remedy}") from None
    return folder


def _make(folder: Path, config: DataConfig, say: Callable[[str], None]) -> None:
    if folder.exists():
        raise ConfigError(f"{folder}: has no manifest.json; {REMEDY}")
    for left in folder.parent.glob(f".{folder.name}.*/"):  # by a maker that was killed; the lock is ours
        shutil.rmtree(left, ignore_errors=True)
    say(f"preparing {folder.name}: reading the corpus {config.corpus}")
    write = _take_shards if config.corpus in ("fineweb10B", "tokens") else _write_corpus
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        manifest = write(temporary, config, folder.parent / "downloads", say)
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        temporary.chmod(0o755)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    say(f"{folder.name}: " + ", ".join(f"{manifest['splits'][s]['tokens']:,} {s} tokens" for s in SPLITS))


def _manifest(
    folder: Path, source: dict[str, Any], tokenizer: Tokenizer, splits: dict[str, Any], val_nll: np.ndarray | None
) -> dict[str, Any]:
    """Written at last; writes what the shards need beside them."""
    tokenizer.save(folder / "tokenizer.json")
    np.save(folder / "token_bytes.npy", tokenizer.token_bytes())
    if val_nll is not None:
        np.save(folder / "val_nll.npy", val_nll)
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in sorted(folder.iterdir())
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "hash": _content_hash(files, splits, tokenizer.hash, val_nll),
        "source": source,
        "tokenizer": {"kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "hash": tokenizer.hash},
        "splits": splits,
        "files": files,
    }


# --- from text --------------------------------------------------------------------------------------------------


def _write_corpus(folder: Path, config: DataConfig, cache: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything but the manifest, which is returned."""
    corpus = open_corpus(config, cache, say)
    say(f"building the {config.tokenizer} tokenizer")
    tokenizer = build_tokenizer(config, _tokenizer_texts(config, corpus))
    splits = {}
    for split, documents in (("train", corpus.train), ("val", corpus.val)):
        count = f"{len(documents):,}" if isinstance(documents, Sized) else "the"
        say(f"encoding {count} {split} documents")
        splits[split] = _write_split(folder, split, documents, tokenizer)
    return _manifest(folder, corpus.source, tokenizer, splits, corpus.val_nll)


def _tokenizer_texts(config: DataConfig, corpus: Corpus) -> list[str]:
    """What the tokenizer is built from: for char every character once, for bpe a sample of the training text."""
    if config.tokenizer == "char":
        everything = itertools.chain(corpus.train, corpus.val)
        return ["".join(sorted(set().union(*batch))) for batch in in_batches(everything, SAMPLE_CHARACTERS)]
    return spread_sample(corpus.train, SAMPLE_CHARACTERS) if config.tokenizer == "bpe" else []


class _Counted:
    """Documents on their way, counted."""

    def __init__(self, documents: Iterable[str]) -> None:
        self._documents = documents
        self.documents = self.bytes = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._documents:
            self.documents += 1
            self.bytes += len(text.encode())
            yield text


def _write_split(folder: Path, split: str, documents: Iterable[str], tokenizer: Tokenizer) -> dict[str, Any]:
    shards: list[str] = []
    tokens = 0
    counted = _Counted(documents)
    for shard in _fill_shards(encode_stream(tokenizer, counted, usable_threads(), f"encoding {split}"), tokenizer.eot):
        shards.append(f"{split}_{len(shards):06d}.bin")
        tokens += len(shard)
        write_shard(folder / shards[-1], shard)
    # eot is the last id and in every shard
    return {
        "documents": counted.documents,
        "tokens": tokens,
        "bytes": counted.bytes,
        "max_token": tokenizer.eot,
        "shards": shards,
    }


def _fill_shards(documents: Iterable[np.ndarray], eot: int) -> Iterator[np.ndarray]:
    """Shards of whole documents, about SHARD_TOKENS each; a document longer than that gets a shard of its own."""
    separator = np.array([eot], dtype=np.uint16)
    parts: list[np.ndarray] = []
    filled = 0
    for tokens in documents:
        if parts and filled + len(tokens) + 2 > SHARD_TOKENS:
            yield np.concatenate([*parts, separator])
            parts, filled = [], 0
        parts += [separator, tokens]
        filled += 1 + len(tokens)
    yield np.concatenate([*parts, separator])


# --- from tokens ------------------------------------------------------------------------------------------------


def _take_shards(folder: Path, config: DataConfig, cache: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Tokens as they are, with GPT-2's tokenizer; everything but the manifest, which is returned."""
    tokenizer = build_tokenizer(config, [])
    train, val = fetch_token_shards(config, cache, say)
    if config.val_tokens:
        val = val[:1]
    say(f"counting the tokens of {len(train)} training and {len(val)} validation files")
    splits = {}
    for split, sources, limit in (("train", train, 0), ("val", val, config.val_tokens)):
        shards: list[str] = []
        counts = np.zeros(2**16, dtype=np.int64)
        for source in sources:
            whole = config.corpus == "fineweb10B" or has_header(source)
            if not whole and source.suffix == ".bin":
                say(f"{source.name}: no shard header, so it is read as nanoGPT's files are, as nothing but tokens")
            tokens = _read_tokens(source, whole, limit)
            counts += _count_ids(tokens, source, tokenizer)
            say(f"{source.name}: {len(tokens):,} tokens, which begin with {tokenizer.decode(tokens[:12])!r}")
            step = len(tokens) if whole else SHARD_TOKENS
            for start in range(0, len(tokens), step):
                shards.append(f"{split}_{len(shards):06d}.bin")
                if whole and not limit:
                    _link(source, folder / shards[-1])
                else:
                    write_shard(folder / shards[-1], np.asarray(tokens[start : start + step], dtype=np.uint16))
        splits[split] = {
            "documents": int(counts[tokenizer.eot]),
            "tokens": int(counts.sum()),
            "bytes": int(counts[: tokenizer.vocab_size] @ tokenizer.token_bytes()),
            "max_token": int(np.flatnonzero(counts)[-1]),
            "shards": shards,
        }
    return _manifest(folder, source_key(config), tokenizer, splits, None)


def _read_tokens(path: Path, whole: bool, limit: int) -> np.ndarray:
    """Those of a `whole` shard or another file, memory-mapped; with a `limit`, the first that predict as many."""
    try:
        tokens = read_shard(path) if whole else read_npy(path) if path.suffix == ".npy" else read_headerless(path)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if limit and len(tokens) <= limit:
        raise ConfigError(f"data.val_tokens={limit}: {path} predicts only {len(tokens) - 1:,}; give at most that")
    return tokens[: limit + 1] if limit else tokens


def _link(source: Path, target: Path) -> None:
    """One file under two names, or a copy where that cannot be."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _count_ids(tokens: np.ndarray, source: Path, tokenizer: Tokenizer) -> np.ndarray:
    """(65536,) how often each id occurs. Raises ConfigError for one that the vocabulary has not."""
    counts = np.zeros(2**16, dtype=np.int64)
    for start in range(0, len(tokens), COUNTED_TOKENS):
        piece = tokens[start : start + COUNTED_TOKENS]
        unknown = (piece < 0) | (piece >= tokenizer.vocab_size)
        if unknown.any():
            at = start + int(np.argmax(unknown))
            raise ConfigError(
                f"{source}: token {tokens[at]} at position {at}, but the vocabulary of {tokenizer.kind} ends at "
                f"{tokenizer.vocab_size - 1}; fetch the file again, or make it with that tokenizer"
            )
        counts += np.bincount(piece, minlength=len(counts))
    return counts


# --- identity ---------------------------------------------------------------------------------------------------


def _content_hash(files: dict[str, Any], splits: dict[str, Any], tokenizer: str, val_nll: np.ndarray | None) -> str:
    """Over tokens, tokenizer and -ln p alone; -ln p to 1e-6, since the last bit of a logarithm differs by machine."""
    rounded = None if val_nll is None else np.rint(val_nll * 1e6).astype("<i8").tobytes()
    return fingerprint(
        {
            "shards": {split: [files[name]["sha256"] for name in splits[split]["shards"]] for split in SPLITS},
            "tokenizer": tokenizer,
            "val_nll": rounded and hashlib.sha256(rounded).hexdigest(),
        }
    )


# --- opening ----------------------------------------------------------------------------------------------------


class Dataset:
    """A prepared dataset.

    path, manifest; hash: 16 hex over its content, the same on every machine; tokenizer, vocab_size, eot;
    token_bytes (vocab_size,) int64; val_nll (validation documents,) float64 nats, or None where it is not known.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], tokenizer: Tokenizer) -> None:
        self.path = path
        self.manifest = manifest
        self.hash: str = manifest["hash"]
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        self.eot = tokenizer.eot
        self.token_bytes: np.ndarray = np.load(path / "token_bytes.npy", allow_pickle=False)
        has_nll = "val_nll.npy" in manifest["files"]
        self.val_nll: np.ndarray | None = np.load(path / "val_nll.npy", allow_pickle=False) if has_nll else None
        self._shards = {split: [read_shard(path / n) for n in manifest["splits"][split]["shards"]] for split in SPLITS}

    def tokens(self, split: str, limit: int | None = None) -> list[np.ndarray]:
        """One memory-mapped (n,) uint16 array per shard of `split`, "train" or "val".

        Where they have more than `limit` tokens: evenly spread blocks, `limit` tokens in all at most.
        """
        shards = self._shards[split]
        ends = np.cumsum([len(shard) for shard in shards])
        if limit is None or ends[-1] <= limit:
            return shards
        size, total = -(-limit // SAMPLE_BLOCKS), int(ends[-1])
        starts = np.linspace(0, total - size, limit // size).astype(int)
        found = [(int(np.searchsorted(ends, start, side="right")), int(start)) for start in starts]
        return [shards[i][start - ends[i] :][:size] for i, start in found]

    def documents(self, split: str, limit: int | None = None) -> list[np.ndarray]:
        """The tokens of every document that is whole in the shards or blocks of tokens(), without the eot before it."""
        pieces: list[np.ndarray] = []
        for tokens in self.tokens(split, limit):
            starts = np.flatnonzero(tokens == self.eot)
            pieces += [tokens[a + 1 : b] for a, b in itertools.pairwise(starts)]
        return pieces

    def floor(self) -> float | None:
        """Entropy of the validation documents as it was realised, nats per token with the eot that ends each; or None.

        No model has a lower loss on them but by luck.
        """
        if self.val_nll is None:
            return None
        return float(self.val_nll.sum() / (self.manifest["splits"]["val"]["tokens"] - len(self._shards["val"])))


def require_batch(dataset: Dataset, rows: int, needed: int, length: int) -> None:
    """Raises ValueError where a batch of `needed` rows of `length` tokens would hold a row twice."""
    if rows < needed:
        raise ValueError(
            f"{dataset.path}: {rows} training rows of model.seq_len={length}, fewer than the {needed} of one batch; "
            "add text, or lower train.batch_rows or model.seq_len"
        )


def open_dataset(path: Path) -> Dataset:
    """Open a prepared folder. Raises ValueError naming the file that is missing, truncated or altered, and a remedy."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        files, expected = manifest["files"], manifest["tokenizer"]["hash"]
        names = [*manifest["splits"]["train"]["shards"], *manifest["splits"]["val"]["shards"]]
        version = manifest["schema_version"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{path / 'manifest.json'}: missing or unreadable; {REMEDY}") from None
    if version != SCHEMA_VERSION or not {*names, "tokenizer.json", "token_bytes.npy"} <= set(files):
        raise ValueError(f"{path / 'manifest.json'}: of another version, or incomplete; {REMEDY}")
    _verify(path, files)
    tokenizer = load_tokenizer(path / "tokenizer.json")
    if tokenizer.hash != expected:
        raise ValueError(f"{path / 'tokenizer.json'}: not the tokenizer that the shards were written with; {REMEDY}")
    highest = max(split.get("max_token", 0) for split in manifest["splits"].values())
    if highest >= tokenizer.vocab_size:
        raise ValueError(
            f"{path / 'manifest.json'}: tokens up to {highest}, but the vocabulary of {tokenizer.kind} ends at "
            f"{tokenizer.vocab_size - 1}; {REMEDY}"
        )
    return Dataset(path, manifest, tokenizer)


def _verify(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Check size and SHA-256 of every file; one that was not touched since the last check is not read again."""
    checked: dict[str, Any] = {}
    with contextlib.suppress(RecordError):
        checked = read_json(folder / "checked.json")
    found = {}
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path}: missing; {REMEDY}")
        status = path.stat()
        if status.st_size != expected["bytes"]:
            raise ValueError(f"{path}: truncated or altered: {status.st_size} of {expected['bytes']} bytes; {REMEDY}")
        found[name] = [status.st_mtime_ns, expected["sha256"]]
        if checked.get(name) != found[name] and sha256_file(path) != expected["sha256"]:
            raise ValueError(f"{path}: altered: its SHA-256 is not that of the manifest; {REMEDY}")
    if found != checked:
        with contextlib.suppress(RecordError):  # a folder that is read-only is checked again each time
            write_json(folder / "checked.json", found)
