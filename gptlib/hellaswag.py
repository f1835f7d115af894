"""HellaSwag: which of four endings goes on from a context? (Zellers et al. 2019, arXiv 1905.07830.)

Two kinds of file are read and written, byte for byte. The published jsonl has text, which any tokenizer encodes; the
eval .bin of llm.c has the tokens of GPT-2:

    header   256 little-endian int32: magic 20240522, version 1, number of examples, bytes of the longest one, zeros
    example  uint16: 65535, its bytes, index, label, 4, then the context and each ending as a count and its tokens

Two scorings differ in what is an ending. "llm.c": context and " " + ending are encoded apart, with nothing before them
(llm.c and build-nanogpt). "prefix": the four whole texts are encoded with an eot before each, and the endings begin
where they first differ (nanochat's CORE). Both take the ending with the smallest sum (acc) or mean per token (acc_norm)
of -ln p. Figures of different scorings or tokenizers are not comparable; a blind guess is right in 1 of 4 items.

Axes: b rows (four of each item, in the order of its endings), t positions, i items.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gptlib.data.loader import NOT_SCORED, Batch
from gptlib.data.shards import sha256_file
from gptlib.data.tokenizers import GPT2_SIZE, Tokenizer
from gptlib.fields import EvalConfig
from gptlib.records import hellaswag_path, write_text

MAGIC, VERSION, START = 20240522, 1, 65_535
HEADER_BYTES = 1024
ENDINGS = 4
BUCKET = 64  # rows are padded to a multiple of this, so that a compiled model meets few shapes
LEVEL = 0.95  # of the intervals
REMEDY = "fetch or make it again"


@dataclass(frozen=True)
class Item:
    """A line of the published jsonl: the line itself, and what it asks; the right ending is number `label`."""

    line: str
    ctx: str
    endings: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Question:
    """An item in tokens: context (n,) uint16, then one array for each ending; none is empty."""

    context: np.ndarray
    endings: tuple[np.ndarray, ...]
    label: int


@dataclass(frozen=True)
class Questions:
    """A set of questions, and what a figure on them has to be named with."""

    questions: tuple[Question, ...]
    tokenizer: str  # "gpt2", "byte", "bpe-512": kind, and the size where the kind leaves it open
    scoring: str  # "llm.c" | "prefix"
    file: str = ""  # name of the file they are from
    hash: str = ""  # 16 hex of its SHA-256


def open_questions(config: EvalConfig, tokenizer: Tokenizer, seq_len: int) -> Questions:
    """The questions of `config.hellaswag`, a path as seen from the checkout or "tiny", for a model of that context.

    Raises ValueError, one line: the file is missing or not what it should be, another tokenizer than the .bin's, an
    ending that does not fit.
    """
    path = hellaswag_path(config)
    if path.suffix == ".bin" and tokenizer.kind != "gpt2":
        raise ValueError(
            f"eval.hellaswag={path.name} has the tokens of GPT-2, this model those of {tokenizer_name(tokenizer)}; "
            "give the .jsonl, or set data.tokenizer=gpt2"
        )
    if path.suffix == ".bin":
        found = read_eval_bin(path)
    else:
        found = encode_items(read_jsonl(path), tokenizer, config.hellaswag_scoring)
    for number, question in enumerate(found.questions):
        longest = max(map(len, question.endings))
        if longest >= seq_len:
            raise ValueError(
                f"{path.name} item {number}: an ending of {longest} tokens and one before it do not fit "
                f"model.seq_len={seq_len}; use a longer context or a tokenizer with longer tokens"
            )
    return replace(found, file=path.name, hash=sha256_file(path)[:16])


# --- text -------------------------------------------------------------------------------------------------------


def item_of(line: str) -> Item:
    """Raises ValueError, without the place, for a line that is not an item with its answer."""
    try:
        record = json.loads(line)
        ctx, endings, label = record["ctx"], record["endings"], record["label"]
    except (ValueError, KeyError, TypeError):
        raise ValueError("no JSON object with ctx, endings and label") from None
    texts = [ctx, *endings] if isinstance(endings, list) else []
    if len(texts) != 1 + ENDINGS or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"ctx and {ENDINGS} endings have to be texts, none empty")
    if type(label) is not int or not 0 <= label < ENDINGS:
        raise ValueError(f"label={label!r} is no number from 0 to {ENDINGS - 1}")
    return Item(line, ctx, tuple(endings), label)


def read_jsonl(path: Path) -> list[Item]:
    """The items of a published hellaswag_val.jsonl. Raises ValueError naming file and line."""
    try:
        lines = _bytes(path).decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; {REMEDY}") from None
    items = []
    for number, line in enumerate(lines, 1):
        try:
            items.append(item_of(line))
        except ValueError as error:
            raise ValueError(f"{path} line {number}: {error}; {REMEDY}") from None
    return items


def write_jsonl(path: Path, items: Sequence[Item]) -> None:
    """One line an item, as it was read."""
    write_text(path, "".join(f"{item.line}\n" for item in items))


def tokenizer_name(tokenizer: Tokenizer) -> str:
    return tokenizer.kind if tokenizer.kind in ("byte", "gpt2") else f"{tokenizer.kind}-{tokenizer.vocab_size}"


def encode_items(items: Sequence[Item], tokenizer: Tokenizer, scoring: str = "llm.c") -> Questions:
    """The items in tokens. Raises ValueError for a character that the tokenizer does not know."""
    assert scoring in ("llm.c", "prefix")
    whole = scoring == "prefix"
    texts = [text for item in items for text in (_whole_texts(item) if whole else _parts(item))]
    tokens, count = tokenizer.encode_batch(texts), ENDINGS if whole else 1 + ENDINGS
    questions = []
    for number, item in enumerate(items):
        own = tokens[number * count : (number + 1) * count]
        context, endings = _by_common_prefix(own, tokenizer.eot) if whole else (own[0], own[1:])
        questions.append(Question(context, tuple(endings), item.label))
    return Questions(tuple(questions), tokenizer_name(tokenizer), scoring)


def _parts(item: Item) -> list[str]:
    return [item.ctx, *(f" {ending}" for ending in item.endings)]


def _whole_texts(item: Item) -> list[str]:
    return [f"{item.ctx} {ending}" for ending in item.endings]


def _by_common_prefix(rows: list[np.ndarray], eot: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """The eot and the tokens that all rows begin with, then the rest of each, a token at least."""
    shortest = min(map(len, rows))
    differ = np.any([row[:shortest] != rows[0][:shortest] for row in rows], axis=0)
    start = min(int(np.argmax(differ)) if differ.any() else shortest, shortest - 1)
    context = np.concatenate([[eot], rows[0][:start]]).astype(np.uint16)
    return context, tuple(row[start:] for row in rows)


# --- llm.c's eval .bin ------------------------------------------------------------------------------------------


def read_eval_bin(path: Path) -> Questions:
    """The questions of an eval .bin of llm.c. Raises ValueError, one line that names the file and what is wrong."""
    data = _bytes(path)
    header = np.frombuffer(data[:HEADER_BYTES].ljust(HEADER_BYTES, b"\0"), dtype="<i4")
    if len(data) < HEADER_BYTES or header[0] != MAGIC or header[1] != VERSION:
        raise ValueError(f"{path}: no header of an eval .bin (magic {MAGIC}, version {VERSION}); {REMEDY}")
    if len(data) % 2:
        raise ValueError(f"{path}: truncated: {len(data)} bytes are no whole number of uint16; {REMEDY}")
    words, at, longest = np.frombuffer(data, dtype="<u2", offset=HEADER_BYTES), 0, 0
    questions: list[Question] = []
    try:
        while at < len(words):
            example = _example(words[at:], len(questions))
            questions.append(_question(example))
            at, longest = at + len(example), max(longest, 2 * len(example))
    except ValueError as error:
        raise ValueError(f"{path}: example {len(questions)} {error}; {REMEDY}") from None
    if (len(questions), longest) != (header[2], header[3]):
        raise ValueError(
            f"{path}: truncated or altered: {len(questions)} examples of up to {longest} bytes where the header says "
            f"{header[2]} of up to {header[3]}; {REMEDY}"
        )
    return Questions(tuple(questions), "gpt2", "llm.c")


def _example(words: np.ndarray, index: int) -> np.ndarray:
    """The words of the example that `words` begins with. Raises ValueError, without the place."""
    if words[0] != START:
        raise ValueError(f"begins with {words[0]} instead of {START}")
    size = int(words[1]) if len(words) > 1 else 0
    if 2 * len(words) < max(size, 10):
        raise ValueError(f"is truncated: {2 * len(words)} of {max(size, 10)} bytes")
    if size < 10 or size % 2:
        raise ValueError(f"says that it has {size} bytes")
    if words[2] != index:
        raise ValueError(f"says that it is number {words[2]}")
    return words[: size // 2]


def _question(example: np.ndarray) -> Question:
    label, endings = int(example[3]), int(example[4])
    if endings != ENDINGS or label >= ENDINGS:
        raise ValueError(f"has label {label} of {endings} endings, not one of {ENDINGS}")
    pieces, rest = list[np.ndarray](), example[5:]
    for _ in range(1 + ENDINGS):
        count = int(rest[0]) if len(rest) else 0
        pieces.append(rest[1 : 1 + count])
        if not count or len(pieces[-1]) < count:
            raise ValueError(f"is altered: its counts do not fill its {2 * len(example)} bytes")
        rest = rest[1 + count :]
    if len(rest):
        raise ValueError(f"is altered: its counts do not fill its {2 * len(example)} bytes")
    largest = max(int(piece.max()) for piece in pieces)
    if largest >= GPT2_SIZE:
        raise ValueError(f"has token {largest}, out of GPT-2's vocabulary of {GPT2_SIZE}")
    return Question(pieces[0], tuple(pieces[1:]), label)


def write_eval_bin(path: Path, questions: Questions) -> None:
    """Write `path` as llm.c's write_evalfile does, whole or not at all. Raises ValueError for what it cannot hold."""
    if (questions.tokenizer, questions.scoring) != ("gpt2", "llm.c"):
        raise ValueError(
            f"{path}: an eval .bin has the tokens of gpt2, split as llm.c does, not {questions.tokenizer} and "
            f"{questions.scoring}; encode the items so, or write a .jsonl"
        )
    examples = [_words(index, question) for index, question in enumerate(questions.questions)]
    longest = max((2 * len(words) for words in examples), default=0)
    if not 0 < longest <= START or len(examples) > START:
        raise ValueError(
            f"{path}: {len(examples)} examples of up to {longest} bytes; an eval .bin has 1 to {START} of up to {START}"
        )
    header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    header[:4] = MAGIC, VERSION, len(examples), longest
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(header.tobytes() + np.concatenate(examples).astype("<u2").tobytes())
    temporary.replace(path)


def _words(index: int, question: Question) -> np.ndarray:
    """(n,) int64: an example as the file has it."""
    pieces = [np.append(len(piece), piece.astype(np.int64)) for piece in (question.context, *question.endings)]
    size = 2 * (5 + sum(map(len, pieces)))
    return np.concatenate([[START, size, index, question.label, ENDINGS], *pieces])


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check eval.hellaswag") from None
    if not data:
        raise ValueError(f"{path}: empty; {REMEDY}")
    return data


# --- scoring ----------------------------------------------------------------------------------------------------


def answer_batches(
    questions: Sequence[Question], seq_len: int, tokens: int
) -> Iterator[tuple[Batch, Sequence[Question]]]:
    """Rows of every question, those of like length together: about `tokens` inputs a batch, but one question at least.

    A row has the last `seq_len` tokens of context and ending, so a long context loses its beginning; only the ending is
    scored. It is padded on the right, where a causal model does not look.
    """
    by_length: dict[int, list[Question]] = {}
    for question in questions:
        inputs = min(seq_len, len(question.context) + max(map(len, question.endings))) - 1  # the last is no input
        by_length.setdefault(min(seq_len, -(-inputs // BUCKET) * BUCKET), []).append(question)
    for length, alike in sorted(by_length.items()):
        count = max(1, tokens // (ENDINGS * length))
        for first in range(0, len(alike), count):
            part = alike[first : first + count]
            yield _rows(part, length, seq_len), part


def _rows(questions: Sequence[Question], length: int, seq_len: int) -> Batch:
    inputs_bt = np.zeros((ENDINGS * len(questions), length), dtype=np.int64)
    targets_bt = np.full_like(inputs_bt, NOT_SCORED)
    rows = [(question.context, ending) for question in questions for ending in question.endings]
    for b, (context, ending) in enumerate(rows):
        row = np.concatenate([context, ending])[-seq_len:]
        last = len(row) - 1
        inputs_bt[b, :last] = row[:-1]
        targets_bt[b, last - len(ending) : last] = ending
    return Batch(inputs_bt, targets_bt, None)


def count_hits(nll_bt: np.ndarray, targets_bt: np.ndarray, questions: Sequence[Question]) -> np.ndarray:
    """(2,) int64: how many are right by the sum and by the mean of -ln p (nats); of equal endings, the first counts."""
    scored_bt = targets_bt >= 0
    sums_i4 = np.where(scored_bt, nll_bt, 0.0).sum(axis=1, dtype=np.float64).reshape(-1, ENDINGS)
    means_i4 = sums_i4 / scored_bt.sum(axis=1).reshape(-1, ENDINGS)
    labels_i = np.array([question.label for question in questions])
    return np.array([(scores_i4.argmin(axis=1) == labels_i).sum() for scores_i4 in (sums_i4, means_i4)])


def figures(questions: Questions, hits: Sequence[int], seq_len: int) -> dict[str, Any]:
    """What result.json says of it: accuracies with Wilson's intervals (1927), and what they have to be named with.

    The intervals are over the items, for this one model. `cut_rows`: rows whose context had to lose its beginning.
    """
    from statsmodels.stats.proportion import proportion_confint

    count = len(questions.questions)
    intervals = [proportion_confint(int(right), count, 1 - LEVEL, method="wilson") for right in hits]
    lengths = [len(q.context) + len(ending) for q in questions.questions for ending in q.endings]
    return {
        "scoring": questions.scoring,
        "tokenizer": questions.tokenizer,
        "file": questions.file,
        "hash": questions.hash,
        "items": count,
        "cut_rows": sum(length > seq_len for length in lengths),
        "acc": int(hits[0]) / count,
        "acc_norm": int(hits[1]) / count,
        "acc_ci": [float(edge) for edge in intervals[0]],
        "acc_norm_ci": [float(edge) for edge in intervals[1]],
    }
