"""Corpora: which documents there are, which are held out, and what is refused with which words."""

import hashlib
import io
import itertools
import json
import sys
import tracemalloc
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from gptlib.config import ConfigError
from gptlib.data import corpora
from gptlib.data.corpora import Corpus, hold_out, open_corpus, source_key
from gptlib.data.stories import parse
from gptlib.data.texts import find_files, in_batches, read_texts, split_stream, spread_sample
from gptlib.fields import DataConfig

SHAKESPEARE = Path(__file__).parents[2].parent / "shared" / "data" / "tinyshakespeare.txt"


def text_corpus(path: Path, **fields: Any) -> DataConfig:
    return DataConfig(corpus="text", path=str(path), **fields)


def refusal(config: DataConfig, cache: Path | None = None) -> str:
    """The message, which must be one line."""
    with pytest.raises(ConfigError) as error:
        texts(open_corpus(config, cache))
    assert "\n" not in str(error.value)
    return str(error.value)


def texts(corpus: Corpus) -> tuple[list[str], list[str]]:
    return list(corpus.train), list(corpus.val)


# --- stories ----------------------------------------------------------------------------------------------------


def test_stories_carry_the_probability_of_each_validation_document() -> None:
    corpus = open_corpus(DataConfig(documents=50, val_documents=20))
    assert [len(part) for part in texts(corpus)] == [50, 20]
    assert corpus.val_nll == pytest.approx([parse(text)[0] for text in corpus.val])
    assert not set(corpus.train) & set(corpus.val)


def test_validation_does_not_depend_on_the_amount_of_training_text() -> None:
    small, large = (texts(open_corpus(DataConfig(documents=n, val_documents=20))) for n in (10, 50))
    assert small[1] == large[1] and small[0] == large[0][:10]
    assert texts(open_corpus(DataConfig(documents=10, val_documents=20, seed=1)))[1] != small[1]


def test_training_never_repeats_a_validation_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one seed for both streams, training would write the validation texts."""
    monkeypatch.setattr(corpora, "stream_seed", lambda *_: 1)
    corpus = open_corpus(DataConfig(documents=50, val_documents=20))
    assert not set(corpus.train) & set(corpus.val) and len(texts(corpus)[0]) == 50


# --- files ------------------------------------------------------------------------------------------------------


def test_a_folder_gives_its_files_by_relative_name(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.txt").write_text("B" * 10)
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfA\r\nA" + b"A" * 6)
    (tmp_path / "c.jsonl").write_text('{"text": "C12345678C"}\n\n{"text": "D\\n2345678D", "id": 3}\n')
    (tmp_path / "notes.md").write_text("not read")
    (tmp_path / "empty.txt").write_text("")
    corpus = open_corpus(text_corpus(tmp_path))
    assert [a + b for a, b in zip(corpus.train, corpus.val, strict=True)] == [
        "A\r\nAAAAAAA", "B" * 10, "C12345678C", "D\n2345678D",
    ]  # fmt: skip
    assert [len(text) for text in corpus.val] == [1, 1, 1, 1]
    assert corpus.val_nll is None and texts(corpus) == texts(corpus)


def test_a_glob_takes_some_of_the_files(tmp_path: Path) -> None:
    for name in ("a/x1.txt", "a/x2.txt", "b/x1.txt", "b/y.md", "b/c/x1.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert list(find_files(tmp_path / "*" / "x1.*")) == ["a/x1.txt", "b/x1.txt"]
    assert list(find_files(tmp_path / "**" / "x1.txt")) == ["a/x1.txt", "b/c/x1.txt", "b/x1.txt"]
    assert list(find_files(tmp_path / "b" / "[xy]*")) == ["x1.txt"]
    assert "no .txt, .jsonl or .parquet" in refusal(text_corpus(tmp_path / "b" / "y*"))
    config = text_corpus(tmp_path / "*" / "x1.txt")
    assert [a + b for a, b in zip(*texts(open_corpus(config)), strict=True)] == ["a/x1.txt", "b/x1.txt"]
    assert list(source_key(config)["files"]) == ["a/x1.txt", "b/x1.txt"]


def test_a_delimiter_splits_a_file_into_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("<|endoftext|>one\n<|endoftext|>\n two \n\n<|endoftext|>\r\n<|endoftext|>\nthree < |end")
    assert list(read_texts([path], delimiter="<|endoftext|>")) == ["one", " two ", "three < |end"]
    assert len(list(read_texts([path]))) == 1
    config = text_corpus(path, delimiter="<|endoftext|>", val_fraction=0.5)
    assert texts(open_corpus(config)) == (["o", " t", "three "], ["ne", "wo ", "< |end"])
    assert source_key(config) != source_key(text_corpus(path, val_fraction=0.5))


@pytest.mark.parametrize("delimiter", ["|", "||", "<>", "aba"])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_pieces_are_split_as_the_whole(delimiter: str, size: int) -> None:
    text = "||a|b|||c<<>>d<>|aabababa<|" * 3
    chunks = [text[i : i + size] for i in range(0, len(text), size)]
    assert list(split_stream(chunks, delimiter)) == text.split(delimiter)


def test_the_first_documents_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"story": f"number {i}"}) + "\n" for i in range(400)))
    config = text_corpus(path, field="story", max_documents=150)
    train, val = texts(open_corpus(config))
    assert (len(train), len(val), val[-1]) == (135, 15, "number 149")


def test_text_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    path.write_text(("a short story about a cat, told " * 30 + "\n<|endoftext|>\n") * 20_000)
    tracemalloc.start()
    try:
        corpus = open_corpus(text_corpus(path, delimiter="<|endoftext|>"))
        count = sum(1 for _ in itertools.chain(corpus.train, corpus.val))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 20_000 and path.stat().st_size > 19e6 and peak < 8e6


def test_a_sample_is_spread_over_the_text() -> None:
    documents = [f"{i:04d}" for i in range(1000)]
    assert spread_sample(documents, 4000) == documents
    assert spread_sample(documents, 3999) == documents[::2]
    assert spread_sample(documents, 400) == documents[::16]
    assert spread_sample(["abcdef", "gh"], 4) == ["abcd"]
    assert [len(batch) for batch in in_batches(documents, 1600)] == [400, 400, 200]


# --- encodings --------------------------------------------------------------------------------------------------

WORDS = "Zoë ate 3 crêpes: 很好 😀\nand left. " * 3


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_with_a_mark_are_found(tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptlib.data.texts.CHUNK_BYTES", 7)
    path, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    path.write_bytes(WORDS.encode(encoding))
    lines.write_bytes('{"text": "Zoë"}\r\n{"text": "😀"}'.encode(encoding))
    assert list(read_texts([path, lines])) == [WORDS, "Zoë", "😀"]


def test_other_encodings_are_named_by_the_user(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for encoding in ("latin-1", "utf-16-le", "shift_jis"):
        path.write_bytes("café".encode(encoding) if encoding == "latin-1" else "cafe".encode(encoding))
        assert list(read_texts([path], encoding=encoding)) == ["café" if encoding == "latin-1" else "cafe"]
    path.write_bytes(b"abc \x83")
    assert "not SHIFT_JIS at byte 4" in refusal(text_corpus(path, encoding="shift_jis"))
    with pytest.raises(ValueError, match="is not known"):
        text_corpus(path, encoding="latin-99")
    with pytest.raises(ValueError, match="is not known"):
        text_corpus(path, encoding="base64")


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize(
    ("content", "at"),
    [
        (b"abc\xffdef", 3),
        ("né".encode() + b"\xe9 x", 3),
        (b"\xef\xbb\xbfabc\xe9", 6),  # cut in the middle of a character
        ("😀".encode()[:3], 0),
        ("ab".encode("utf-16") + b"\x00", 6),
    ],
)
def test_broken_text_is_refused_with_its_offset(
    tmp_path: Path, content: bytes, at: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptlib.data.texts.CHUNK_BYTES", chunk)
    (tmp_path / "a.txt").write_bytes(content)
    message = refusal(text_corpus(tmp_path / "a.txt"))
    assert f"at byte {at}" in message and "data.encoding" in message and str(tmp_path / "a.txt") in message


def test_utf16_without_a_mark_is_not_taken_for_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("plain".encode("utf-16-le"))
    message = refusal(text_corpus(tmp_path / "a.txt"))
    assert "zero near byte 1" in message and "utf-16-le" in message
    assert list(read_texts([tmp_path / "a.txt"], encoding="utf-16-le")) == ["plain"]


# --- parquet ----------------------------------------------------------------------------------------------------


def test_parquet_gives_a_column(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [f"row {i}" for i in range(250)]
    table = pyarrow.table({"id": range(250), "body": rows, "n": [1.5] * 250})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    assert list(read_texts([tmp_path / "a.parquet"], field="body")) == rows
    train, val = texts(open_corpus(text_corpus(tmp_path, field="body")))
    assert (len(train), len(val)) == (225, 25)
    message = refusal(text_corpus(tmp_path / "a.parquet"))
    assert 'no field "text" (it has: id, body, n)' in message and "data.field" in message
    assert 'row 1: field "n" is not valid text' in refusal(text_corpus(tmp_path / "a.parquet", field="n"))
    content = (tmp_path / "a.parquet").read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"PAR1 nothing PAR1"):
        (tmp_path / "a.parquet").write_bytes(damaged)
        assert f"{tmp_path / 'a.parquet'}: no readable .parquet file" in refusal(text_corpus(tmp_path, field="body"))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert 'pip install "gptlib[parquet]"' in refusal(text_corpus(tmp_path))


def test_hold_out_of_many_documents_takes_every_nth() -> None:
    documents = [str(i) for i in range(1, 106)]
    train, val = map(list, hold_out(documents, 0.1))
    assert val == [str(i) for i in range(10, 106, 10)]
    assert sorted(train + val, key=int) == documents
    assert list(hold_out(documents, 0.03)[1]) == ["33", "66", "99"]
    assert len(list(hold_out(documents, 0.9)[0])) > 0
    assert list(hold_out(documents[:100], 0.1)[1]) == [str(i) for i in range(10, 101, 10)]
    assert len(list(hold_out(documents[:99], 0.1)[1])) == 99


def test_hold_out_of_few_documents_cuts_the_end_of_each() -> None:
    documents = ["a" * 1000, "é" * 55]
    train, val = map(list, hold_out(documents, 0.1))
    assert (train, val) == (["a" * 900, "é" * 49], ["a" * 100, "é" * 6])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", ["no text in it"]),
        ("a.txt", b"x", ["too little text", "val_fraction"]),
        ("a.csv", b"text", ["not .txt, .jsonl or .parquet"]),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"id": 1, "txt": "x"}\n',
            ["a.jsonl line 2", 'no field "text" (it has: id, txt)', "data.field"],
        ),
        ("a.jsonl", b'{"text": 3}\n', ["line 1", "not valid text"]),
        ("a.jsonl", b'["text"]\n', ["line 1", "no JSON object"]),
        ("a.jsonl", b'{"text": "x"\n', ["line 1: not JSON"]),
        ("a.jsonl", b'{"text": "\\ud800"}\n', ["line 1"]),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    message = refusal(text_corpus(tmp_path / name))
    assert all(word in message for word in [name, *words])


def test_missing_paths_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(text_corpus(tmp_path / "absent.txt"))
    assert "no .txt, .jsonl or .parquet" in refusal(text_corpus(tmp_path))


# --- keys -------------------------------------------------------------------------------------------------------


def test_the_key_of_stories_changes_with_what_decides_them_only() -> None:
    key = source_key(DataConfig())
    assert key == json.loads(json.dumps(key))
    assert source_key(DataConfig(rows="stream", val_fraction=0.3, tokenizer="byte")) == key
    for change in ({"seed": 1}, {"documents": 3}, {"val_documents": 3}):
        assert source_key(DataConfig(**change)) != key


def test_the_key_of_text_follows_its_content_not_its_place(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("some text")
    here = source_key(text_corpus(tmp_path / "here"))
    assert here == source_key(text_corpus(tmp_path / "there"))
    assert here["files"] == {"a.txt": hashlib.sha256(b"some text").hexdigest()}
    for change in (
        {"val_fraction": 0.2},
        {"field": "t"},
        {"delimiter": "|"},
        {"encoding": "ascii"},
        {"max_documents": 3},
    ):
        assert here != source_key(text_corpus(tmp_path / "here", **change))
    (tmp_path / "here" / "a.txt").write_text("other text")
    assert here != source_key(text_corpus(tmp_path / "here"))


def test_the_key_of_a_published_corpus_names_its_revision_and_what_is_taken() -> None:
    stories, edu = (DataConfig(corpus=name, shards=2) for name in ("tinystories", "fineweb_edu"))
    assert source_key(stories)["revision"] == corpora.TINYSTORIES.revision and len(corpora.TINYSTORIES.revision) == 40
    assert list(source_key(edu)["files"]) == [f"sample/10BT/{i:03d}_00000.parquet" for i in range(2)]
    tokens = DataConfig(corpus="fineweb10B", tokenizer="gpt2")
    changes: list[tuple[DataConfig, dict[str, Any]]] = [
        *((stories, change) for change in ({"version": "v1"}, {"max_documents": 3})),
        *((edu, change) for change in ({"shards": 3}, {"max_documents": 3}, {"corpus": "fineweb"})),
        (edu, {"val_fraction": 0.2}),
        *((tokens, change) for change in ({"shards": 3}, {"val_tokens": 3})),
    ]
    for config, change in changes:
        assert source_key(config) != source_key(config.model_copy(update=change))
    for change in ({"val_fraction": 0.2}, {"field": "t"}, {"val_tokens": 3}, {"documents": 3}):
        assert source_key(stories) == source_key(stories.model_copy(update=change))


def test_the_key_of_a_users_copy_follows_its_content(tmp_path: Path) -> None:
    place = tmp_path / "sample" / "10BT" / "000_00000.parquet"
    config = DataConfig(corpus="fineweb", path=str(tmp_path))
    with pytest.raises(ConfigError, match="000_00000.parquet: cannot be read"):
        source_key(config)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"something")
    assert source_key(config)["files"] == {"sample/10BT/000_00000.parquet": hashlib.sha256(b"something").hexdigest()}


def test_token_shards_are_those_of_gpt2() -> None:
    with pytest.raises(ValueError, match="data.tokenizer=gpt2"):
        DataConfig(corpus="fineweb10B")


# --- tinyshakespeare --------------------------------------------------------------------------------------------


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Stands in for the text, so that no network is needed."""
    content = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 20
    monkeypatch.setattr(corpora, "SHAKESPEARE_SHA256", hashlib.sha256(content).hexdigest())
    return content


def test_tinyshakespeare_is_downloaded_once(published: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(published))
    config = DataConfig(corpus="tinyshakespeare")
    found = texts(open_corpus(config, tmp_path / "downloads"))
    assert (found[0][0] + found[1][0]).encode() == published
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["tinyshakespeare.txt"]
    monkeypatch.setattr(urllib.request, "urlopen", None)
    assert texts(open_corpus(config, tmp_path / "downloads")) == found


def test_no_network_says_what_to_fetch_and_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    message = refusal(DataConfig(corpus="tinyshakespeare"), tmp_path)
    assert corpora.SHAKESPEARE_URL in message and "data.path" in message
    assert not list(tmp_path.iterdir())


def test_a_wrong_copy_is_refused(published: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(published[:-1])
    config = DataConfig(corpus="tinyshakespeare", path=str(path))
    assert "SHA-256" in refusal(config)
    path.write_bytes(published)
    assert texts(open_corpus(config))[0][0].startswith("First Citizen")
    assert "no such file" in refusal(DataConfig(corpus="tinyshakespeare", path=str(tmp_path / "absent.txt")))


def test_the_published_text_is_split_as_nanogpt_splits_it() -> None:
    if not SHAKESPEARE.exists():
        pytest.skip("tinyshakespeare.txt is not present")
    corpus = open_corpus(DataConfig(corpus="tinyshakespeare", path=str(SHAKESPEARE)))
    assert [len(text) for text in (*corpus.train, *corpus.val)] == [1_003_854, 111_540]
