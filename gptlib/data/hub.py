"""Downloads: files of a dataset on the Hugging Face Hub at a pinned revision, and single files by their address.

    <cache>/<owner>--<name>/<path in the repository>     where a file lies, whoever put it there

A file arrives beside its place, is compared with its SHA-256 (the one known here, else the Hub's own of that revision)
and is renamed as the last act: what lies in its place is whole. `huggingface_hub` goes on where a connection broke;
a process that ends keeps the files it has finished. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are obeyed.
"""

import contextlib
import errno
import http.client
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock

from gptlib.config import ConfigError
from gptlib.data.shards import sha256_file

ATTEMPTS = 3  # at a file; huggingface_hub takes up a broken connection up to five times in each
SHA256_DIGITS = 64
Say = Callable[[str], None]


@dataclass(frozen=True)
class HubFile:
    name: str  # path in the repository
    size: int = 0  # bytes; 0: not known here
    sha256: str = ""  # empty: not known here


@dataclass(frozen=True)
class Repository:
    name: str  # owner/name of a dataset
    revision: str  # commit, 40 hex digits

    def place(self, cache: Path) -> Path:
        return cache / self.name.replace("/", "--")


def local_files(files: Sequence[HubFile], folder: Path) -> list[Path]:
    """The paths of `files` in the user's `folder`. Raises ConfigError for one that is missing or not as published."""
    missing = [file for file in files if not (folder / file.name).is_file()]
    if missing:
        raise ConfigError(f"data.path={folder}: lacks {_names(missing)}; put it there, or leave data.path empty")
    for file in files:
        _check(folder / file.name, file)
    return [folder / file.name for file in files]


def fetch_files(repository: Repository, files: Sequence[HubFile], cache: Path, say: Say) -> list[Path]:
    """The paths of `files` in `cache`, those that are missing downloaded; says how many bytes before it begins.

    Raises ConfigError, one line: what could not be fetched, why, and where to put it by hand.
    """
    folder = repository.place(cache)
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".lock"):
        missing = [file for file in files if not (folder / file.name).is_file()]
        for file in files:
            if file not in missing:
                _check(folder / file.name, file)
        known = [_ask(repository, file, missing, folder) for file in missing]
        if known:
            _announce(repository, known, folder, say)
        for number, file in enumerate(known):
            _fetch(repository, file, known[number:], folder)
    return [folder / file.name for file in files]


def _ask(repository: Repository, file: HubFile, missing: Sequence[HubFile], folder: Path) -> HubFile:
    """`file` with the size and the SHA-256 that the Hub has for it, where we know none."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repository.name, file.name, repo_type="dataset", revision=repository.revision)
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            answer = get_hf_file_metadata(url)
        except Exception as error:  # of the library, of its HTTP client, of the system
            reason = _why(error)
        else:
            stated = answer.etag or ""
            sha256 = file.sha256 or (stated if len(stated) == SHA256_DIGITS else "")
            return HubFile(file.name, file.size or answer.size or 0, sha256)
    raise _cannot(repository, missing, folder, reason)


def _announce(repository: Repository, files: Sequence[HubFile], folder: Path, say: Say) -> None:
    """Raises ConfigError where the disk is too small."""
    size, free = sum(file.size for file in files), shutil.disk_usage(folder).free
    say(f"downloading {_names(files)} of {repository.name}: {size:,} bytes to {folder}")
    if size > free:
        raise ConfigError(f"{folder}: {size:,} bytes to download, {free:,} free; make room or choose another `outputs`")


def _fetch(repository: Repository, file: HubFile, missing: Sequence[HubFile], folder: Path) -> None:
    from huggingface_hub import hf_hub_download

    reason = ""
    incoming = folder / ".incoming"
    try:
        for _ in range(ATTEMPTS):
            shutil.rmtree(incoming, ignore_errors=True)  # of a process that was killed, or of the attempt before
            try:
                revision = repository.revision
                path = Path(
                    hf_hub_download(
                        repository.name, file.name, repo_type="dataset", revision=revision, local_dir=incoming
                    )
                )
                reason = _difference(path, file)
            except Exception as error:  # of the library, of its HTTP client, of the system
                reason = _why(error)
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
                    break
            if not reason:
                (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, folder / file.name)
                return
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    raise _cannot(repository, missing, folder, reason)


def _cannot(repository: Repository, missing: Sequence[HubFile], folder: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"cannot fetch {_names(missing)} of the dataset {repository.name} at {repository.revision[:8]} ({reason}); "
        f"run again, or fetch it elsewhere (hf download --repo-type dataset {repository.name} --revision "
        f"{repository.revision} {missing[0].name}) and put it into {folder}"
    )


def _names(files: Sequence[HubFile]) -> str:
    names = ", ".join(file.name for file in files[:3])
    return names if len(files) <= 3 else f"{names} and {len(files) - 3} more up to {files[-1].name}"


def _check(path: Path, file: HubFile) -> None:
    """Raises ConfigError where `path` is not the published file."""
    if difference := _difference(path, file):
        raise ConfigError(f"{path}: not the published file ({difference}); delete it and run again")


def _difference(path: Path, file: HubFile) -> str:
    """How the file at `path` differs from what is known of it; empty: not at all."""
    size = path.stat().st_size
    if file.size and size != file.size:
        return f"{size:,} bytes instead of {file.size:,}"
    return "its SHA-256 differs" if file.sha256 and sha256_file(path) != file.sha256 else ""


def _why(error: BaseException) -> str:
    """One short line; of a chain of errors the first, which says what happened."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


# --- by address -------------------------------------------------------------------------------------------------


def fetch_url(url: str, path: Path, sha256: str) -> None:
    """Fetch a small file to `path`, whole and as published or not at all. Raises ConfigError, one line."""
    reason = ""
    for _ in range(ATTEMPTS):
        temporary = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with urllib.request.urlopen(url, timeout=30) as response:
                content = response.read()
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            reason = "its SHA-256 differs" if sha256_file(Path(temporary)) != sha256 else ""
            if not reason:
                os.replace(temporary, path)
                return
        except (OSError, http.client.HTTPException) as error:
            reason = _why(error)
        finally:
            if temporary:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)
    raise ConfigError(
        f"cannot download {url} ({reason}); fetch it elsewhere and set data.path to the file, or put it at {path}"
    )
