"""Text files as documents: .txt, .jsonl and .parquet, read piece by piece, so that no file need fit in memory.

.txt       one document, or what stands between delimiters, without the line ends around it
.jsonl     the field `field` of every line
.parquet   the column `field` of every row
"""

import codecs
import glob
import importlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gptlib.config import ConfigError

SUFFIXES = (".txt", ".jsonl", ".parquet")
CHUNK_BYTES = 1 << 20  # read at a time
BATCH_ROWS = 1024  # of a .parquet file at a time
BOMS = (  # the longer ones first: that of UTF-32 begins like that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Documents:
    """Documents that can be iterated again and again without being held in memory: `start` begins anew."""

    def __init__(self, start: Callable[[], Iterator[str]]) -> None:
        self._start = start

    def __iter__(self) -> Iterator[str]:
        return self._start()


def spread_sample(documents: Iterable[str], characters: int) -> list[str]:
    """Every 2^k-th document, k the smallest with which they have at most `characters`; of a long one its beginning."""
    kept: list[str] = []
    size, stride = 0, 1
    for number, text in enumerate(documents):
        if number % stride == 0:
            kept.append(text[:characters])
            size += len(kept[-1])
        while size > characters:
            kept, stride = kept[::2], 2 * stride
            size = sum(map(len, kept))
    return kept


def in_batches(documents: Iterable[str], characters: int) -> Iterator[list[str]]:
    """Consecutive documents, at least `characters` together but for the last."""
    batch: list[str] = []
    size = 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


# --- files ------------------------------------------------------------------------------------------------------


def find_files(path: Path, suffixes: tuple[str, ...] = SUFFIXES) -> dict[str, Path]:
    """{name: file} for a file, a folder or a glob, sorted by name; names are relative to the folder. ConfigError."""
    kinds = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
    if path.is_file():
        if path.suffix not in suffixes:
            raise ConfigError(f"data.path={path}: not {kinds}; convert it or name a folder of such files")
        return {path.name: path}
    found: Iterable[Path]
    if path.is_dir():
        root, found = path, path.rglob("*")
    elif glob.has_magic(str(path)):
        fixed = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
        root, found = Path(*path.parts[:fixed]), map(Path, glob.iglob(str(path), recursive=True))
    else:
        raise ConfigError(f"data.path={path}: no such file or folder; check the path (taken from {Path.cwd()})")
    files = {file.relative_to(root).as_posix(): file for file in found if file.suffix in suffixes and file.is_file()}
    if not files:
        raise ConfigError(f"data.path={path}: no {kinds} file in it; put one there")
    return dict(sorted(files.items()))


def read_texts(paths: Iterable[Path], field: str = "text", delimiter: str = "", encoding: str = "") -> Documents:
    """The documents of `paths` in order, empty ones left out.

    field: of .jsonl and .parquet; delimiter: between the documents of a .txt, none: each is one document, which is
    then held in memory as a whole; encoding: empty for UTF-8, or UTF-16 and UTF-32 with a byte-order mark.
    Iterating raises ConfigError, one line that names the file and the byte, line or row.
    """
    files = tuple(paths)

    def start() -> Iterator[str]:
        for path in files:
            yield from filter(None, _documents(path, field, delimiter, encoding))

    return Documents(start)


def _documents(path: Path, field: str, delimiter: str, encoding: str) -> Iterator[str]:
    if path.suffix == ".parquet":
        yield from _rows(path, field)
    elif path.suffix == ".jsonl":
        for number, line in enumerate(split_stream(_decoded(path, encoding), "\n"), start=1):
            if line.strip():
                yield _field_of(path, number, line, field)
    elif delimiter:
        for document in split_stream(_decoded(path, encoding), delimiter):
            yield document.strip("\r\n")
    else:
        yield "".join(_decoded(path, encoding))


def split_stream(chunks: Iterable[str], delimiter: str) -> Iterator[str]:
    """The parts of "".join(chunks).split(delimiter), without joining it."""
    pending: list[str] = []  # of a part that is not over yet ...
    edge = ""  # ... and its last characters, which may be the beginning of a delimiter
    for chunk in chunks:
        *whole, rest = (edge + chunk).split(delimiter)
        for part in whole:
            yield "".join([*pending, part])
            pending = []
        cut = max(0, len(rest) - len(delimiter) + 1)
        pending.append(rest[:cut])
        edge = rest[cut:]
    yield "".join([*pending, edge])


def _decoded(path: Path, encoding: str) -> Iterator[str]:
    """The text of a file in pieces. Raises ConfigError with the offset of what is no text."""
    read = 0
    try:
        with path.open("rb") as file:
            found = encoding or _encoding_by_mark(file.read(4))
            file.seek(0)
            decoder = codecs.getincrementaldecoder(found)()
            for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
                read += len(chunk)
                yield _no_zeros(path, decoder.decode(chunk), found, read - len(chunk))
            yield decoder.decode(b"", final=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    except UnicodeError as error:
        # a decoder keeps the bytes of a character that is not over: `object` begins with them
        at = read - len(error.object) + error.start if isinstance(error, UnicodeDecodeError) else 0
        raise ConfigError(
            f"{path}: not {found.upper()} at byte {at}; name its encoding in data.encoding, or convert it to UTF-8"
        ) from None


def _encoding_by_mark(start: bytes) -> str:
    return next((name for mark, name in BOMS if start.startswith(mark)), "utf-8")


def _no_zeros(path: Path, text: str, encoding: str, before: int) -> str:
    """Zeros are valid UTF-8, but mean that the file is binary, or UTF-16 without a mark."""
    place = text.find("\0")
    if place < 0:
        return text
    at = before + len(text[:place].encode(encoding.removesuffix("-sig"), errors="replace"))
    raise ConfigError(
        f"{path}: a zero near byte {at}, so no text in {encoding.upper()}; name its encoding in data.encoding "
        "(utf-16-le, utf-16-be), or leave the file out"
    )


def _field_of(path: Path, number: int, line: str, field: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise ConfigError(f"{path} line {number}: not JSON; mend or delete the line") from None
    return _text_of(f"{path} line {number}", record, field)


def _text_of(where: str, record: Any, field: str) -> str:
    """The text in `field`. Raises ConfigError that names the fields that there are."""
    if not isinstance(record, dict) or field not in record:
        there = ", ".join(map(str, list(record)[:8])) if isinstance(record, dict) else "no JSON object"
        raise ConfigError(f'{where}: no field "{field}" (it has: {there or "none"}); name the field in data.field')
    text = record[field]
    try:
        text.encode()  # a lone surrogate, which JSON can spell, is no text
    except (AttributeError, UnicodeEncodeError):
        raise ConfigError(
            f'{where}: field "{field}" is not valid text; name another in data.field, or mend it'
        ) from None
    return str(text)


def _rows(path: Path, field: str) -> Iterator[str]:
    """One column of a .parquet file, batch by batch."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")  # an extra: 50 MB that only this format needs
    except ImportError:
        raise ConfigError(f'{path}: .parquet needs pyarrow; pip install "gptlib[parquet]"') from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            if field not in file.schema_arrow.names:
                _text_of(str(path), dict.fromkeys(file.schema_arrow.names), field)
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=[field]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    yield _text_of(f"{path} row {number}", {field: text}, field)
    except (OSError, ValueError) as error:  # what pyarrow raises is one of these
        if isinstance(error, ConfigError):
            raise
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{path}: no readable .parquet file after row {number} ({why}); fetch or make it again"
        ) from None
