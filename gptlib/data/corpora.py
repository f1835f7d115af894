"""Corpora as text: what the documents are, and which of them are held out for validation.

    stories         written here (stories.py)
    text            the user's own .txt, .jsonl and .parquet files
    tokens          the user's own .npy and .bin files of GPT-2's tokens; those named val or valid are for validation
    tinyshakespeare one text of 1.1 MB
    tinystories     roneneldan/TinyStories, two versions, each with its own validation file
    fineweb         HuggingFaceFW/fineweb, the sample of 10 billion tokens, in 15 files of about 2 GB
    fineweb_edu     HuggingFaceFW/fineweb-edu, the same kind of sample, in 14 files
    fineweb10B      kjj0/fineweb10B-gpt2: GPT-2's tokens of that sample of FineWeb, shards of 100 million, no text

Revisions, sizes and SHA-256 are those that several public projects pin as well; a wrong one ends in an error, not in
other data. Downloads lie in outputs/data/downloads, see hub.py.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptlib.config import ConfigError, project_root
from gptlib.data import stories, telling, words
from gptlib.data.hub import HubFile, Repository, fetch_files, fetch_url, local_files
from gptlib.data.shards import sha256_file
from gptlib.data.texts import Documents, find_files, read_texts
from gptlib.fields import DataConfig
from gptlib.streams import stream_seed

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"  # of 1,115,394 bytes
TINYSTORIES = Repository("roneneldan/TinyStories", "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64")
TINYSTORIES_FILES = {  # version: training, validation
    "v1": (
        HubFile(
            "TinyStories-train.txt", 1_924_281_556, "c5cf5e22ff13614e830afbe61a99fbcbe8bcb7dd72252b989fa1117a368d401f"
        ),
        HubFile(
            "TinyStories-valid.txt", 19_447_282, "94e431816c4cce81ff71e4408ff8d3bda9a42e8d2663986697c3954288cb38b4"
        ),
    ),
    "v2": (
        HubFile(
            "TinyStoriesV2-GPT4-train.txt",
            2_227_753_162,
            "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",
        ),
        HubFile(
            "TinyStoriesV2-GPT4-valid.txt",
            22_502_601,
            "6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d",
        ),
    ),
}
TINYSTORIES_DELIMITER = "<|endoftext|>"
PARQUET = {  # corpus: repository, number of files in its sample of 10 billion tokens
    "fineweb": (Repository("HuggingFaceFW/fineweb", "9bb295ddab0e05d785b879661af7260fed5140fc"), 15),
    "fineweb_edu": (Repository("HuggingFaceFW/fineweb-edu", "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9"), 14),
}
FINEWEB10B = Repository("kjj0/fineweb10B-gpt2", "889765ea1f903759787add96995d81171b632d0c")
FINEWEB10B_SHARDS = 103
FINEWEB10B_TOKENS = 100_000_000  # of a shard; the last one has fewer
FINEWEB10B_SHA256 = {
    "fineweb_val_000000.bin": "5b95c8e0966f0861685b307b23dc5ae42b228ef74b28cb499784ae021f201640",
    "fineweb_train_000001.bin": "771fa4a99b9fe0946ffb6e848b4ba5c6a9b0fe87860ebf03bc2c1c7e45f8178e",
}
TOKEN_SUFFIXES = (".npy", ".bin")
NO_TOKENS = ("token_bytes.npy", "val_nll.npy")  # lie beside the shards of a dataset made here
MANY_DOCUMENTS = 100  # from here on whole documents are held out, below it the end of each
Say = Callable[[str], None]


@dataclass(frozen=True)
class Corpus:
    """Text corpora are read anew whenever `train` or `val` is iterated, which raises ConfigError for bad input."""

    train: Iterable[str]  # can be iterated again and again
    val: Iterable[str]
    val_nll: np.ndarray | None  # (documents,) float64: exact -ln p of each validation document, nats; stories only
    source: dict[str, Any]  # JSON-plain description


def open_corpus(config: DataConfig, cache: Path | None = None, say: Say = lambda _: None) -> Corpus:
    """Find, download (into `cache`) or write the corpus. Raises ConfigError, one line, where it cannot be had."""
    assert config.corpus not in ("fineweb10B", "tokens"), "tokens, no text: fetch_token_shards"
    if config.corpus == "stories":
        return _write_stories(config)
    train, val = _split(config, _files(config, cache, say))
    if not any(True for _ in itertools.chain(train, val)):
        raise ConfigError(f"{_place(config)}: there is no text in it; point data.path at a file with text")
    if not any(True for _ in train) or not any(True for _ in val):
        raise ConfigError(
            f"{_place(config)}: too little text for val_fraction={config.val_fraction:g}; "
            "add text or move data.val_fraction towards 0.5"
        )
    return Corpus(train, val, None, source_key(config))


def fetch_token_shards(config: DataConfig, cache: Path, say: Say = lambda _: None) -> tuple[list[Path], list[Path]]:
    """Files of tokens for training and for validation; those of fineweb10B are downloaded if need be, and announced."""
    if config.corpus == "tokens":
        return _split_tokens(config)
    say(
        f"fineweb10B: {config.shards} of {FINEWEB10B_SHARDS} training shards, about "
        f"{config.shards * FINEWEB10B_TOKENS:,} tokens, and {FINEWEB10B_TOKENS:,} tokens for validation"
    )
    val, *train = _files(config, cache, say)
    return train, [val]


def source_key(config: DataConfig) -> dict[str, Any]:
    """What decides the text and the hold-out, JSON-plain; fields that do not matter for this corpus are left out."""
    if config.corpus == "stories":
        source = "".join(sha256_file(Path(str(module.__file__))) for module in (stories, telling, words))
        fields = {"documents", "val_documents", "seed"}
        return {
            "corpus": "stories",
            **config.model_dump(include=fields),
            "source_sha256": hashlib.sha256(source.encode()).hexdigest(),
        }
    key: dict[str, Any] = {"corpus": config.corpus}
    if config.corpus == "tinyshakespeare":
        return key | {"val_fraction": config.val_fraction, "url": SHAKESPEARE_URL, "sha256": SHAKESPEARE_SHA256}
    if config.corpus == "text":
        fields = {"val_fraction", "field", "delimiter", "encoding", "max_documents"}
        files = {name: _digest(path) for name, path in find_files(local_path(config)).items()}
        return key | config.model_dump(include=fields) | {"files": files}
    if config.corpus == "tokens":
        digests = {name: _digest(path) for name, path in _token_files(config).items()}
        return key | {"val_tokens": config.val_tokens, "files": digests}
    repository, hub_files = published(config)
    fields = {"max_documents"} if config.corpus == "tinystories" else {"max_documents", "val_fraction"}
    key |= config.model_dump(include={"val_tokens"} if config.corpus == "fineweb10B" else fields)
    digests = {file.name: file.sha256 for file in hub_files}
    if config.path:  # of the user's own copy, where no SHA-256 of it is known here
        digests = {name: known or _digest(local_path(config) / name) for name, known in digests.items()}
    return key | {"repository": repository.name, "revision": repository.revision, "files": digests}


def published(config: DataConfig) -> tuple[Repository, list[HubFile]]:
    """Where the files of a corpus on the Hub are, and which: those of fineweb10B with its validation shard first."""
    if config.corpus == "tinystories":
        return TINYSTORIES, list(TINYSTORIES_FILES[config.version])
    if config.corpus == "fineweb10B":
        _at_most(config, FINEWEB10B_SHARDS)
        names = ["fineweb_val_000000.bin", *(f"fineweb_train_{i:06d}.bin" for i in range(1, config.shards + 1))]
        return FINEWEB10B, [HubFile(name, sha256=FINEWEB10B_SHA256.get(name, "")) for name in names]
    repository, count = PARQUET[config.corpus]
    _at_most(config, count)
    return repository, [HubFile(f"sample/10BT/{i:03d}_00000.parquet") for i in range(config.shards)]


def _at_most(config: DataConfig, count: int) -> None:
    if config.shards > count:
        raise ConfigError(f"data.shards={config.shards}: {config.corpus} has {count}; give at most that")


# --- which documents --------------------------------------------------------------------------------------------


def _split(config: DataConfig, files: list[Path]) -> tuple[Iterable[str], Iterable[str]]:
    """Training and validation documents of a text corpus."""
    if config.corpus == "tinystories":
        train, val = (read_texts([path], delimiter=TINYSTORIES_DELIMITER) for path in files)
        return _first(train, config.max_documents), val
    if config.corpus == "text":
        documents = read_texts(files, config.field, config.delimiter, config.encoding)
    else:
        documents = read_texts(files)
    return hold_out(_first(documents, config.max_documents), config.val_fraction)


def _first(documents: Iterable[str], count: int) -> Iterable[str]:
    """The first `count`; 0: all."""
    return Documents(lambda: itertools.islice(iter(documents), count)) if count else documents


def hold_out(documents: Iterable[str], fraction: float) -> tuple[Iterable[str], Iterable[str]]:
    """Split into (train, validation); each reads `documents` anew whenever it is iterated.

    With 100 documents or more, every round(1 / fraction)-th document is validation. With fewer, the last `fraction` of
    the characters of each document is, so that a single text is split as nanoGPT splits it: text[: int(n * 0.9)].
    """
    every = max(2, round(1 / fraction))

    def whole(held_out: bool) -> Iterator[str]:
        return (text for i, text in enumerate(documents, start=1) if (i % every == 0) is held_out)

    def cut(held_out: bool) -> Iterator[str]:
        for text in documents:
            at = int(len(text) * (1 - fraction))
            if part := text[at:] if held_out else text[:at]:
                yield part

    many = sum(1 for _ in itertools.islice(iter(documents), MANY_DOCUMENTS)) == MANY_DOCUMENTS
    choose = whole if many else cut
    return Documents(lambda: choose(False)), Documents(lambda: choose(True))


def _write_stories(config: DataConfig) -> Corpus:
    val = stories.write_stories(stream_seed(config.seed, "stories", "val"), config.val_documents)
    held_out = {story.text for story in val}
    train = stories.write_stories(stream_seed(config.seed, "stories", "train"), config.documents, exclude=held_out)
    val_nll = np.array([story.nll for story in val])
    return Corpus([story.text for story in train], [story.text for story in val], val_nll, source_key(config))


# --- files ------------------------------------------------------------------------------------------------------


def local_path(config: DataConfig) -> Path:
    """data.path as seen from the checkout, so that notebooks and shells in any folder mean the same."""
    path = Path(config.path).expanduser()
    return path if path.is_absolute() else project_root() / path


def _place(config: DataConfig) -> str:
    return f"data.path={config.path}" if config.path else f"data.corpus={config.corpus}"


def _files(config: DataConfig, cache: Path | None, say: Say) -> list[Path]:
    """The files of the corpus, downloaded where data.path does not name a copy."""
    if config.corpus == "text":
        return list(find_files(local_path(config)).values())
    if config.corpus == "tinyshakespeare":
        return [_shakespeare(config, cache)]
    repository, files = published(config)
    if config.path:
        return local_files(files, local_path(config))
    assert cache is not None, "a download needs a place"
    return fetch_files(repository, files, cache, say)


def _token_files(config: DataConfig) -> dict[str, Path]:
    found = find_files(local_path(config), TOKEN_SUFFIXES)
    return {name: path for name, path in found.items() if path.name not in NO_TOKENS}


def _split_tokens(config: DataConfig) -> tuple[list[Path], list[Path]]:
    """The files for training and those for validation, whose names have "val" in them. Raises ConfigError."""
    files = _token_files(config).values()
    train, val = ([path for path in files if ("val" in path.name.lower()) is held_out] for held_out in (False, True))
    if not train or not val:
        raise ConfigError(
            f"{_place(config)}: {len(train)} files for training and {len(val)} for validation, which are those with "
            '"val" or "valid" in their names; name or add files so that there are both'
        )
    return train, val


def _digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check data.path and its permissions") from None


def _shakespeare(config: DataConfig, cache: Path | None) -> Path:
    assert config.path or cache is not None, "a download needs a place"
    path = local_path(config) if config.path or cache is None else cache / "tinyshakespeare.txt"
    if config.path and not path.is_file():
        raise ConfigError(f"data.path={path}: no such file; leave data.path empty to download {SHAKESPEARE_URL}")
    if not path.exists():
        fetch_url(SHAKESPEARE_URL, path, SHAKESPEARE_SHA256)
    if _digest(path) != SHAKESPEARE_SHA256:
        raise ConfigError(f"{path}: not the published tinyshakespeare (SHA-256 differs); delete it, or mend data.path")
    return path
