"""Corpora as text: what the documents are, and which of them are held out for validation."""

import hashlib
import json
import os
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptlib.config import ConfigError, project_root
from gptlib.data import stories, telling
from gptlib.data.shards import sha256_file
from gptlib.fields import DataConfig
from gptlib.streams import stream_seed

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"  # of 1,115,394 bytes
MANY_DOCUMENTS = 100  # from here on whole documents are held out, below it the end of each


@dataclass(frozen=True)
class Corpus:
    train: list[str]
    val: list[str]
    val_nll: np.ndarray | None  # (documents,) float64: exact -ln p of each validation document, nats; stories only
    source: dict[str, Any]  # JSON-plain description


def open_corpus(config: DataConfig, cache: Path | None = None) -> Corpus:
    """Read, download (into `cache`) or write the corpus. Raises ConfigError, one line, where it cannot be had."""
    if config.corpus == "stories":
        return _write_stories(config)
    documents = [text for path in _files(config, cache) for text in _documents(path) if text]
    if not documents:
        raise ConfigError(f"data.path={config.path}: there is no text in it; point data.path at a file with text")
    train, val = hold_out(documents, config.val_fraction)
    if not train or not val:
        raise ConfigError(
            f"data.path={config.path}: too little text for val_fraction={config.val_fraction:g}; "
            "add text or move data.val_fraction towards 0.5"
        )
    return Corpus(train, val, None, source_key(config))


def source_key(config: DataConfig) -> dict[str, Any]:
    """What decides the text and the hold-out, JSON-plain; fields that do not matter for this corpus are left out."""
    if config.corpus == "stories":
        source = "".join(sha256_file(Path(str(module.__file__))) for module in (stories, telling))
        fields = {"documents", "val_documents", "seed"}
        return {
            "corpus": "stories",
            **config.model_dump(include=fields),
            "source_sha256": hashlib.sha256(source.encode()).hexdigest(),
        }
    key: dict[str, Any] = {"corpus": config.corpus, "val_fraction": config.val_fraction}
    if config.corpus == "tinyshakespeare":
        return key | {"url": SHAKESPEARE_URL, "sha256": SHAKESPEARE_SHA256}
    root = local_path(config)
    names = [(path.relative_to(root).as_posix() if root.is_dir() else path.name, path) for path in _files(config)]
    return key | {"files": {name: _digest(path) for name, path in names}}


def hold_out(documents: list[str], fraction: float) -> tuple[list[str], list[str]]:
    """Split into (train, validation).

    With 100 documents or more, every round(1 / fraction)-th document is validation. With fewer, the last `fraction` of
    the characters of each document is, so that a single text is split as nanoGPT splits it: text[: int(n * 0.9)].
    """
    if len(documents) >= MANY_DOCUMENTS:
        every = max(2, round(1 / fraction))
        train = [text for i, text in enumerate(documents, start=1) if i % every]
        return train, documents[every - 1 :: every]
    cuts = [int(len(text) * (1 - fraction)) for text in documents]
    train = [text[:cut] for text, cut in zip(documents, cuts, strict=True)]
    val = [text[cut:] for text, cut in zip(documents, cuts, strict=True)]
    return [text for text in train if text], [text for text in val if text]


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


def _files(config: DataConfig, cache: Path | None = None) -> list[Path]:
    if config.corpus == "tinyshakespeare":
        return [_shakespeare(config, cache)]
    root = local_path(config)
    if root.is_file() and root.suffix in (".txt", ".jsonl"):
        return [root]
    if root.is_file():
        raise ConfigError(f"data.path={root}: neither .txt nor .jsonl; convert it or name a folder of such files")
    if not root.is_dir():
        raise ConfigError(f"data.path={root}: no such file or folder; check the path (taken from {Path.cwd()})")
    files = [path for path in root.rglob("*") if path.suffix in (".txt", ".jsonl") and path.is_file()]
    if not files:
        raise ConfigError(f"data.path={root}: no .txt or .jsonl file in this folder; put text there")
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def _digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None


def _documents(path: Path) -> Iterator[str]:
    """The whole of a .txt file, or the field "text" of every line of a .jsonl file. Raises ConfigError."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from None
    if path.suffix == ".txt":
        yield text
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _text_field(path, number, line)


def _text_field(path: Path, number: int, line: str) -> str:
    try:
        text = json.loads(line)["text"]
        text.encode()  # a lone surrogate, which JSON can spell, is no text
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ConfigError(f'{path} line {number}: expected a JSON object with valid text in its field "text"') from None
    return text


def _shakespeare(config: DataConfig, cache: Path | None) -> Path:
    assert config.path or cache is not None, "a download needs a place"
    path = local_path(config) if config.path or cache is None else cache / "tinyshakespeare.txt"
    if config.path and not path.is_file():
        raise ConfigError(f"data.path={path}: no such file; leave data.path empty to download {SHAKESPEARE_URL}")
    if not path.exists():
        _download(SHAKESPEARE_URL, path)
    if _digest(path) != SHAKESPEARE_SHA256:
        raise ConfigError(f"{path}: not the published tinyshakespeare (SHA-256 differs); delete it, or mend data.path")
    return path


def _download(url: str, path: Path) -> None:
    """Fetch `url` to `path`, whole or not at all. Raises ConfigError that says how to do without a network."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=30) as response:
            content = response.read()
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError as error:
        raise ConfigError(
            f"cannot download {url} ({error}); fetch it elsewhere and set data.path to the file"
        ) from None
