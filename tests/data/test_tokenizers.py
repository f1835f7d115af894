"""Tokenizers against Hugging Face's own encoder and against plain Python."""

import itertools
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tiktoken.registry
import tokenizers
import tqdm

from gptlib.config import ConfigError
from gptlib.data import tokenizers as module
from gptlib.data.stories import write_stories
from gptlib.data.tokenizers import (
    Tokenizer,
    build_tokenizer,
    compare_tokenizers,
    encode_stream,
    gpt2_at_hand,
    load_tokenizer,
)
from gptlib.fields import DataConfig

TEXTS = [
    "",
    " ",
    "One sunny day, Anna's brother said: \"It's 12 o'clock, we'll go; I'd've...\"",
    "  two  spaces,\ttabs\t\t, a line\n\n\nand an end  ",
    "trailing newline\n",
    "trailing spaces   \n  ",
    "naïve café, Ærøskøbing, Ωμέγα, Москва, 東京都, עברית, हिन्दी, e\u0301",
    "emoji 🙂🙃 👩‍👩‍👧 🇩🇰 and \u200b zero width, nbsp\u00a0here",
    "def f(x):\n    return {'a': [x ** 2 for _ in range(10)]}  # 0x1F\r\n",
    "<|endoftext|> in the middle <|endoftext|>",
    "١٢٣ ½ ² x² \x00\x01\x7f",
    "don't DON'T 's 'S n't",
]


@pytest.fixture(scope="module")
def story_texts() -> list[str]:
    return [story.text for story in write_stories(11, 400)]


@pytest.fixture(scope="module")
def bpe(story_texts: list[str]) -> Tokenizer:
    return build_tokenizer(DataConfig(vocab_size=400), [*story_texts, *TEXTS])


@pytest.fixture(scope="module")
def char(story_texts: list[str]) -> Tokenizer:
    return build_tokenizer(DataConfig(tokenizer="char"), [*story_texts, *TEXTS])


def hugging_face(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The same merges in Hugging Face's encoder: each token's own encoding by the lower ranks gives its pair."""
    symbol = {byte: name for name, byte in module._byte_of_symbol().items()}
    assert set(symbol.values()) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [bytes.fromhex(token) for token in tokenizer.definition["tokens"]]
    rank = {token: i for i, token in enumerate(tokens)}
    merges = []
    for token in tokens[256:]:
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            best = min(range(len(parts) - 1), key=lambda i: rank.get(parts[i] + parts[i + 1], len(tokens)))
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        first, second = ("".join(symbol[byte] for byte in part) for part in parts)
        merges.append((first, second))
    vocab = {"".join(symbol[byte] for byte in token): i for token, i in rank.items()}
    reference = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    reference.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return reference


def test_bpe_gives_the_ids_of_hugging_face(bpe: Tokenizer, story_texts: list[str]) -> None:
    reference = hugging_face(bpe)
    draw = random.Random(1)
    noise = ["".join(draw.choices("ab é\n\t 1'.🙂sthe", k=80)) for _ in range(300)]
    for text in [*TEXTS, *story_texts, *noise]:
        assert bpe.encode(text).tolist() == reference.encode(text).ids, text


def test_bpe_is_what_hugging_face_trains(bpe: Tokenizer, story_texts: list[str]) -> None:
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator([*story_texts, *TEXTS], vocab_size=399, min_frequency=2, show_progress=False)
    for text in [*TEXTS, *story_texts]:
        assert bpe.encode(text).tolist() == trained.encode(text).ids


def test_bpe_training_is_deterministic_over_threads_and_processes(bpe: Tokenizer, story_texts: list[str]) -> None:
    program = (
        "import json, sys; from gptlib.fields import DataConfig; from gptlib.data.tokenizers import build_tokenizer;"
        "print(build_tokenizer(DataConfig(vocab_size=400), json.load(sys.stdin)).hash)"
    )
    for threads in ("1", "4"):
        environment = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        texts = json.dumps([*story_texts, *TEXTS])
        done = subprocess.run(
            [sys.executable, "-c", program], input=texts, capture_output=True, text=True, env=environment, check=True
        )
        assert done.stdout.strip() == bpe.hash


def test_sizes_and_the_special_token(bpe: Tokenizer, char: Tokenizer) -> None:
    byte = build_tokenizer(DataConfig(tokenizer="byte"), [])
    assert (byte.vocab_size, byte.eot) == (257, 256)
    assert (bpe.vocab_size, bpe.eot) == (400, 399)
    assert char.eot == char.vocab_size - 1
    for tokenizer in (byte, bpe, char):
        assert tokenizer.encode("").dtype == np.uint16
        assert tokenizer.decode([tokenizer.eot]) == "<|endoftext|>"


@pytest.mark.parametrize("kind", ["byte", "bpe", "char"])
def test_encoding_is_lossless_and_never_special(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    tokenizer = Tokenizer({"kind": "byte"}) if kind == "byte" else request.getfixturevalue(kind)
    sizes = tokenizer.token_bytes()
    assert len(sizes) == tokenizer.vocab_size and sizes[tokenizer.eot] == 0
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eot not in ids
        assert sizes[ids].sum() == len(text.encode())
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert (loaded.hash, loaded.kind, loaded.vocab_size) == (tokenizer.hash, kind, tokenizer.vocab_size)
    assert all(
        np.array_equal(a, b) for a, b in zip(loaded.encode_batch(TEXTS), tokenizer.encode_batch(TEXTS), strict=True)
    )


def test_bytes_and_characters_are_numbered_plainly() -> None:
    assert Tokenizer({"kind": "byte"}).encode("aé").tolist() == list("aé".encode())
    char = build_tokenizer(DataConfig(tokenizer="char"), ["hello", "🙂 he"])
    assert char.encode("oh 🙂").tolist() == [sorted(set("hello🙂 he")).index(c) for c in "oh 🙂"]


def test_an_unknown_character_is_named() -> None:
    char = build_tokenizer(DataConfig(tokenizer="char"), ["abc"])
    for text in ("abz", "a\x00", "a🙂"):
        with pytest.raises(ValueError, match="is not among the 3"):
            char.encode(text)
    with pytest.raises(ValueError, match="character 'z'"):
        char.encode("abz")


def test_a_half_character_is_shown_as_a_replacement() -> None:
    assert Tokenizer({"kind": "byte"}).decode("é".encode()[:1]) == "\ufffd"


def test_a_short_text_gives_a_small_bpe() -> None:
    small = build_tokenizer(DataConfig(vocab_size=5_000), ["abab abab"])
    assert 257 < small.vocab_size < 270
    assert small.decode(small.encode("abab cd")) == "abab cd"


def test_code_and_prose_of_this_repository_give_the_ids_of_hugging_face(bpe: Tokenizer) -> None:
    root = Path(__file__).parents[2]
    files = [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("gptlib/**/*.py"), *root.glob("tests/data/*.py")]
    texts = [path.read_text(encoding="utf-8") for path in files]
    assert sum(map(len, texts)) > 200_000
    reference = hugging_face(bpe)
    for path, text, ids in zip(files, texts, bpe.encode_batch(texts), strict=True):
        assert ids.tolist() == reference.encode(text).ids, path


# --- many documents ---------------------------------------------------------------------------------------------


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_CHARACTERS", 7)
    monkeypatch.setattr(module, "CHUNK_CHARACTERS", 100)


def mixed(story_texts: list[str]) -> list[str]:
    """Documents of many lengths, among them empty ones, in a row too, and one that has no space to cut at."""
    draw = random.Random(3)
    noise = ["".join(draw.choices(" \n\t\x1c\u3000é.x1'🙂\u00a0", k=draw.randrange(90))) for _ in range(300)]
    return ["", "", *TEXTS, *noise, "x" * 500, "", *story_texts[:60], "\n".join(story_texts[:9]), "", ""]


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_a_stream_is_encoded_as_one_by_one(
    kind: str, workers: int, request: pytest.FixtureRequest, story_texts: list[str], small_pieces: None
) -> None:
    documents = mixed(story_texts)
    known = [*documents, "\x1c\u3000"]
    tokenizer = request.getfixturevalue("bpe") if kind == "bpe" else build_tokenizer(DataConfig(tokenizer=kind), known)
    found = list(encode_stream(tokenizer, iter(documents), workers))
    assert all(ids.dtype == np.uint16 and ids.ndim == 1 for ids in found)
    assert [ids.tolist() for ids in found] == [tokenizer.encode(text).tolist() for text in documents]
    assert list(encode_stream(tokenizer, [], workers)) == []


def test_a_batch_is_a_stream(bpe: Tokenizer, story_texts: list[str], small_pieces: None) -> None:
    together = bpe.encode_batch(story_texts)
    assert all(np.array_equal(ids, bpe.encode(text)) for ids, text in zip(together, story_texts, strict=True))


def test_pieces_are_cut_where_a_word_ends(story_texts: list[str], small_pieces: None) -> None:
    for text in mixed(story_texts):
        pieces = module._pieces_of(text)
        assert "".join(pieces) == text and len(pieces) >= 1
        assert all(piece[0] in " \n" and not before[-1].isspace() for before, piece in itertools.pairwise(pieces))
        assert all(len(piece) >= 7 for piece in pieces[:-1])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_reads_only_a_little_ahead(bpe: Tokenizer, workers: int, small_pieces: None) -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "a story of 25 characters."

    before = threading.active_count()
    stream = encode_stream(bpe, endless(), workers)
    for taken in range(1, 200):
        next(stream)
        assert read - taken <= 4 * (2 * workers + 2), "chunks of four documents, two for each worker"
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_encoded_reaches_the_caller(workers: int, small_pieces: None) -> None:
    char = build_tokenizer(DataConfig(tokenizer="char"), ["abc"])
    with pytest.raises(ValueError, match="character 'z'"):
        list(encode_stream(char, ["abc"] * 100 + ["z"] + ["abc"] * 100, workers))


def test_a_progress_bar_counts_characters(
    bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small_pieces: None
) -> None:
    silent = list(encode_stream(bpe, TEXTS, progress="encoding"))
    assert capsys.readouterr().err == "", "nothing within two seconds"
    made: list[module.tqdm] = []
    monkeypatch.setattr(
        module,
        "tqdm",
        lambda delay, **more: made.append(tqdm.tqdm(**more)) or made[0],  # type: ignore[func-returns-value]
    )
    shown = list(encode_stream(bpe, TEXTS, progress="encoding"))
    assert made[0].n == sum(map(len, TEXTS)) and "encoding" in capsys.readouterr().err
    assert [ids.tolist() for ids in shown] == [ids.tolist() for ids in silent]


def test_training_in_pieces_finds_the_same_merges(bpe: Tokenizer, story_texts: list[str], small_pieces: None) -> None:
    assert build_tokenizer(DataConfig(vocab_size=400), iter([*story_texts, *TEXTS])).hash == bpe.hash


def test_documents_of_a_shard_are_texts_again(bpe: Tokenizer, story_texts: list[str]) -> None:
    texts = [story_texts[0], "", story_texts[1], "🙂🙃"]
    tokens = np.concatenate([np.append(np.uint16(bpe.eot), bpe.encode(text)) for text in texts])
    whole = np.append(tokens, np.uint16(bpe.eot))
    assert bpe.texts(whole, len(whole)) == [text for text in texts if text]
    assert bpe.texts(tokens, 4) == [bpe.decode(tokens[1:4])]
    byte = Tokenizer({"kind": "byte"})
    assert byte.texts(byte.encode("a🙂"), 3) == ["a"], "a character that the limit cuts is left out"


# --- comparing --------------------------------------------------------------------------------------------------


def test_tokenizers_are_compared_on_the_same_text(story_texts: list[str]) -> None:
    sample, corpus = story_texts[:200], [*story_texts[200:300], "é", ""]
    configs = {
        "byte": DataConfig(tokenizer="byte"),
        "char": DataConfig(tokenizer="char"),
        "bpe 300": DataConfig(vocab_size=300),
        "bpe 600": DataConfig(vocab_size=600),
    }
    found = {efficiency.name: efficiency for efficiency in compare_tokenizers(configs, sample, corpus)}
    size = sum(len(text.encode()) for text in corpus)
    assert list(found) == list(configs) and {e.bytes for e in found.values()} == {size}
    assert [e.vocab_size for e in found.values()] == [257, len(set("".join([*sample, *corpus]))) + 1, 300, 600]
    assert found["byte"].tokens == size == found["char"].tokens + 1
    assert found["byte"].bytes_per_token == 1 and found["byte"].bits_per_nat == pytest.approx(1.442695)
    small, large = found["bpe 300"], found["bpe 600"]
    assert small.tokens == sum(len(build_tokenizer(configs["bpe 300"], sample).encode(text)) for text in corpus)
    assert small.tokens > large.tokens and small.bits_per_nat > large.bits_per_nat
    shares = [n / size for n in np.bincount(list("".join(corpus).encode())) if n]
    assert found["byte"].unigram_bits == pytest.approx(-sum(p * np.log2(p) for p in shares))
    assert large.unigram_bits < small.unigram_bits < found["byte"].unigram_bits
    assert all(e.build_seconds >= 0 and e.encode_seconds > 0 for e in found.values())


def test_there_must_be_something_to_compare_on() -> None:
    with pytest.raises(ValueError, match="corpus to compare tokenizers on is empty"):
        compare_tokenizers({"byte": DataConfig(tokenizer="byte")}, ["a"], [""])


def test_a_large_document_is_encoded_in_one_go(bpe: Tokenizer, story_texts: list[str]) -> None:
    text = " ".join(story_texts * 18)
    assert len(text) > 2_000_000
    assert bpe.token_bytes()[bpe.encode(text)].sum() == len(text)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"kind": "morse"}', '{"kind": "bpe"}'])
def test_an_unreadable_tokenizer_file_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path / "tokenizer.json")


# --- GPT-2 ------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpt2(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tokenizer]:
    cache = Path(__file__).parents[2].parent / "shared" / "data" / "tiktoken"
    if not cache.is_dir():
        pytest.skip("GPT-2's tokenizer files are not present")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    yield build_tokenizer(DataConfig(tokenizer="gpt2"), [])


def test_gpt2_at_hand(gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert gpt2_at_hand()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert not gpt2_at_hand()


def test_gpt2_is_looked_for_where_tiktoken_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """tiktoken is caught asking for the very files that were looked for."""
    asked: list[str] = []

    def fetched(url: str, **_: object) -> None:
        asked.append(url)
        raise ConnectionError

    monkeypatch.setattr("requests.get", fetched)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert not gpt2_at_hand()
    with pytest.raises(ConfigError):
        build_tokenizer(DataConfig(tokenizer="gpt2"), [])
    assert asked and all(url in [module.GPT2_URL + name for name in module.GPT2_FILES] for url in asked)


def test_gpt2(gpt2: Tokenizer) -> None:
    assert (gpt2.vocab_size, gpt2.eot) == (50_257, 50_256)
    assert gpt2.encode("Hello world").tolist() == [15496, 995]  # the example of OpenAI's encoder
    for text in TEXTS:
        ids = gpt2.encode(text)
        assert gpt2.decode(ids) == text and gpt2.eot not in ids
        assert gpt2.token_bytes()[ids].sum() == len(text.encode())


def test_our_spelling_of_the_split_pattern_splits_as_gpt2s(gpt2: Tokenizer) -> None:
    theirs = tiktoken.get_encoding("gpt2")
    ours = tiktoken.Encoding(
        "ours", pat_str=module.SPLIT_PATTERN, mergeable_ranks=theirs._mergeable_ranks, special_tokens={}
    )
    for text in TEXTS:
        assert ours.encode_ordinary(text) == theirs.encode_ordinary(text)


def test_gpt2_without_files_and_network_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("requests.get", no_network)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=r"TIKTOKEN_CACHE_DIR") as error:
        build_tokenizer(DataConfig(tokenizer="gpt2"), [])
    assert "\n" not in str(error.value)
