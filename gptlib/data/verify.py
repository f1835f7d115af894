"""Checks of datasets and token files: what was looked at and what is wrong with it, in plain words.

Every check is made, whatever the others have found. Memory: a shard's document boundaries, 16 bytes for each
validation document, and 8 for each training document.
"""

import hashlib
import itertools
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptlib.data import stories
from gptlib.data.corpora import source_key
from gptlib.data.shards import read_headerless, read_npy, read_shard, sha256_file
from gptlib.data.tokenizers import Tokenizer, load_tokenizer
from gptlib.fields import DataConfig

SPLITS = ("train", "val")
OURS = ("manifest.json", "checked.json")
STRADDLING = ("fineweb10B", "tokens")  # taken as they are: cut inside documents
BLOCK = 2**24  # tokens counted at a time
NLL_TOLERANCE = 1e-6  # nats: the last bit of a logarithm differs by machine


@dataclass(frozen=True)
class Finding:
    """One check: `what` was looked at, what there is to say about it, and whether that is wrong."""

    what: str
    said: str
    wrong: bool = False

    def __str__(self) -> str:
        return f"{'WRONG' if self.wrong else 'OK   '} {self.what}: {self.said}"


def verify(path: Path, headerless: bool = False, vocab_size: int = 0) -> Iterator[Finding]:
    """The findings about a dataset's folder, one of its shards, or another .bin or .npy file of token ids.

    `headerless`: the .bin is nanoGPT's; `vocab_size`: of the ids of a single file, 0 where it is not known.
    Raises ValueError where there is no such file or folder.
    """
    if path.is_dir():
        yield from _verify_folder(path)
    elif not path.is_file():
        raise ValueError(f"{path}: no such file or folder; name a dataset's folder, a .bin or an .npy file")
    else:
        yield from _verify_file(path, headerless, vocab_size)


# --- single files -----------------------------------------------------------------------------------------------


def _verify_file(path: Path, headerless: bool, vocab_size: int) -> Iterator[Finding]:
    try:
        manifest = _Manifest(path.parent)
    except ValueError:
        yield _ids_of_file(path, vocab_size, headerless)
        return
    if path.name in manifest.files:
        yield _checksum(path, *manifest.files[path.name])
    if path.name in manifest.shards:
        yield _ids_of_file(path, manifest.vocab_size, headerless)
    elif path.name not in manifest.files:
        yield _ids_of_file(path, vocab_size, headerless)


def _ids_of_file(path: Path, vocab_size: int, headerless: bool) -> Finding:
    try:
        tokens = read_npy(path) if path.suffix == ".npy" else read_headerless(path) if headerless else read_shard(path)
    except ValueError as error:
        hint = "; for a file of nanoGPT's, which has none, add --headerless" if "no shard header" in str(error) else ""
        return Finding(path.name, _without_path(error, path) + hint, wrong=True)
    low, high = int(tokens.min()), int(tokens.max())
    said = f"{len(tokens):,} tokens as {tokens.dtype}, ids {low:,} to {high:,}"
    limit = vocab_size or 65_536
    if low < 0 or high >= limit:
        which = f"a vocabulary of {vocab_size:,}" if vocab_size else "uint16, which holds 0 to 65,535"
        return Finding(path.name, f"{said}: they do not fit {which}", wrong=True)
    return Finding(path.name, said)


def _without_path(error: ValueError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


# --- datasets ---------------------------------------------------------------------------------------------------


class _Manifest:
    """What a dataset says about itself. Raises ValueError where there is nothing to read."""

    def __init__(self, folder: Path) -> None:
        try:
            entries = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            self.files = {str(name): (int(f["bytes"]), str(f["sha256"])) for name, f in entries["files"].items()}
            self.splits = {split: _Split(entries["splits"][split]) for split in SPLITS}
            self.source: dict[str, Any] = {"corpus": entries["source"]["corpus"], **entries["source"]}
            self.tokenizer, self.vocab_size = str(entries["tokenizer"]["hash"]), int(entries["tokenizer"]["vocab_size"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ValueError("missing or unreadable, so that nothing here can be checked; make it again") from None
        self.shards = {name for split in self.splits.values() for name in split.shards}


def _verify_folder(folder: Path) -> Iterator[Finding]:
    try:
        manifest = _Manifest(folder)
    except ValueError as error:
        yield Finding("manifest.json", str(error), wrong=True)
        return
    corpus, splits = manifest.source["corpus"], manifest.splits
    yield Finding("manifest.json", f"{corpus}, {len(manifest.files)} files")
    yield from _files(folder, manifest)
    try:
        tokenizer = load_tokenizer(folder / "tokenizer.json")
    except ValueError as error:
        yield Finding("tokenizer.json", _without_path(error, folder / "tokenizer.json"), wrong=True)
        return
    yield from _tokenizer(folder, tokenizer, manifest.tokenizer)
    for name, split in splits.items():
        yield from split.verify(folder, name, tokenizer, straddling=corpus in STRADDLING)
    yield from _duplicates(splits, tokenizer)
    if "val_nll.npy" in manifest.files:
        yield _probabilities(folder, splits["val"], tokenizer, manifest.source)


def _files(folder: Path, manifest: _Manifest) -> Iterator[Finding]:
    for name, (size, sha256) in manifest.files.items():
        yield _checksum(folder / name, size, sha256)
    for name in sorted(manifest.shards - set(manifest.files)):
        yield Finding(name, "is a shard that the manifest has no checksum of", wrong=True)
    present = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    for name in sorted(present - set(manifest.files) - set(OURS)):
        yield Finding(name, "is not in the manifest, and nothing reads it; move it elsewhere", wrong=True)


def _checksum(path: Path, size: int, sha256: str) -> Finding:
    if not path.is_file():
        return Finding(path.name, "is in the manifest but not in the folder", wrong=True)
    if path.stat().st_size != size:
        return Finding(path.name, f"has {path.stat().st_size:,} bytes where the manifest has {size:,}", wrong=True)
    if sha256_file(path) != sha256:
        return Finding(path.name, "was altered: its SHA-256 is not that of the manifest", wrong=True)
    return Finding(path.name, f"{size:,} bytes, SHA-256 {sha256[:16]}…")


def _tokenizer(folder: Path, tokenizer: Tokenizer, expected: str) -> Iterator[Finding]:
    if tokenizer.hash != expected:
        yield Finding("tokenizer.json", "is not the tokenizer that the shards were written with", wrong=True)
    try:
        same = np.array_equal(np.load(folder / "token_bytes.npy", allow_pickle=False), tokenizer.token_bytes())
    except (OSError, ValueError):
        same = False
    if not same:
        yield Finding("token_bytes.npy", "are not the bytes of this tokenizer's tokens", wrong=True)


class _Split:
    """The shards of a split, and what the manifest says about them."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self.shards = [str(name) for name in entry["shards"]]
        self.expected = {name: int(entry[name]) for name in ("tokens", "documents", "bytes")}
        self.tokens: list[np.ndarray] = []  # of the shards that can be read

    def verify(self, folder: Path, split: str, tokenizer: Tokenizer, straddling: bool) -> Iterator[Finding]:
        totals, sizes = np.zeros(65_536, dtype=np.int64), tokenizer.token_bytes()
        for name in self.shards:
            try:
                tokens = read_shard(folder / name)
            except ValueError as error:
                yield Finding(name, _without_path(error, folder / name), wrong=True)
                continue
            self.tokens.append(tokens)
            counts = _counts(tokens)
            totals += counts
            yield from _ids(name, tokens, counts, tokenizer)
            if not straddling:
                yield from _ends(name, tokens, tokenizer.eot)
        found = {"tokens": int(totals.sum()), "bytes": int(totals[: len(sizes)] @ sizes)}
        if not straddling:  # every shard has an eot more than it has documents
            found["documents"] = int(totals[tokenizer.eot]) - len(self.tokens)
        wrong = [
            f"{count:,} {name} where the manifest has {self.expected[name]:,}"
            for name, count in found.items()
            if count != self.expected[name]
        ]
        said = "; ".join(wrong) or ", ".join(f"{count:,} {name}" for name, count in found.items())
        yield Finding(split, f"{len(self.tokens)} of {len(self.shards)} shards can be read: {said}", bool(wrong))

    def documents(self, eot: int) -> Iterator[np.ndarray]:
        """The tokens of every document between two eots of a shard; empty ones are left out."""
        for tokens in self.tokens:
            for a, b in itertools.pairwise(np.flatnonzero(tokens == eot).tolist()):
                if b > a + 1:
                    yield np.asarray(tokens[a + 1 : b])


def _counts(tokens: np.ndarray) -> np.ndarray:
    """(65536,) how often each id occurs."""
    blocks = (tokens[i : i + BLOCK] for i in range(0, len(tokens), BLOCK))
    return np.sum([np.bincount(block, minlength=65_536) for block in blocks], axis=0)


def _ids(name: str, tokens: np.ndarray, counts: np.ndarray, tokenizer: Tokenizer) -> Iterator[Finding]:
    outside, size = int(counts[tokenizer.vocab_size :].sum()), tokenizer.vocab_size
    if outside:
        first = int(np.flatnonzero(tokens >= size)[0])
        said = f"id {tokens[first]} at token {first:,} is outside the vocabulary of {size:,}"
        yield Finding(name, f"{said}; {outside:,} of {len(tokens):,} tokens are", wrong=True)
    else:
        highest = int(np.flatnonzero(counts)[-1])
        yield Finding(name, f"header and {len(tokens):,} tokens, ids up to {highest:,} of {size:,}")


def _ends(name: str, tokens: np.ndarray, eot: int) -> Iterator[Finding]:
    for place, token in (("begins", int(tokens[0])), ("ends", int(tokens[-1]))):
        if token != eot:
            yield Finding(name, f"{place} with id {token} and not with the end-of-text token, {eot}", wrong=True)


# --- documents --------------------------------------------------------------------------------------------------


def _duplicates(splits: dict[str, _Split], tokenizer: Tokenizer) -> Iterator[Finding]:
    """Whether a validation document stands in the training text, token for token; how often training repeats itself."""
    held_out = {_digest(document) for document in splits["val"].documents(tokenizer.eot)}
    found: set[bytes] = set()
    trained = array("Q")
    example = ""
    for document in splits["train"].documents(tokenizer.eot):
        digest = _digest(document)
        trained.append(int.from_bytes(digest[:8]))
        if digest in held_out and digest not in found:
            found.add(digest)
            example = example or tokenizer.decode(document[:20])
    again = len(trained) - len(np.unique(np.array(trained)))
    yield Finding("within training", f"{again:,} of {len(trained):,} documents repeat an earlier one")
    name = "validation and training"
    if not found:
        yield Finding(name, f"none of the {len(held_out):,} validation documents is a training document")
        return
    said = (
        f"{len(found):,} of {len(held_out):,} validation documents are training documents too, one begins {example!r}"
    )
    yield Finding(name, f"{said}: losses on them are too low; take one of each pair out of the corpus", wrong=True)


def _digest(document: np.ndarray) -> bytes:
    return hashlib.blake2b(document.tobytes(), digest_size=16).digest()


def _probabilities(folder: Path, val: _Split, tokenizer: Tokenizer, source: dict[str, Any]) -> Finding:
    """The stored -ln p: one for each document, and those of the stories as this version's generator has them."""
    name = "val_nll.npy"
    try:
        nll = np.load(folder / name, allow_pickle=False)
    except (OSError, ValueError):
        return Finding(name, "is not a readable .npy file", wrong=True)
    documents = list(val.documents(tokenizer.eot))
    if nll.shape != (len(documents),) or not np.all(np.isfinite(nll)) or np.any(nll <= 0):
        return Finding(name, f"is not one positive -ln p for each of the {len(documents):,} documents", wrong=True)
    if source.get("source_sha256") != source_key(DataConfig()).get("source_sha256"):
        return Finding(name, f"{len(nll):,} values; the stories are another version's, so they were not computed again")
    for number, (document, stored) in enumerate(zip(documents, nll.tolist(), strict=True)):
        try:
            exact, _ = stories.parse(tokenizer.decode(document))
        except ValueError as error:
            return Finding(name, f"validation document {number} is no story: {error}", wrong=True)
        if abs(exact - stored) > NLL_TOLERANCE:
            return Finding(name, f"document {number} has -ln p {exact:.6f}, not {stored:.6f} nats", wrong=True)
    return Finding(name, f"{len(nll):,} values, each the exact -ln p of its story")
