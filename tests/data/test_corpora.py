"""Corpora: which documents there are, which are held out, and what is refused with which words."""

import hashlib
import io
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from gptlib.config import ConfigError
from gptlib.data import corpora
from gptlib.data.corpora import hold_out, open_corpus, source_key
from gptlib.data.stories import parse
from gptlib.fields import DataConfig

SHAKESPEARE = Path(__file__).parents[2].parent / "shared" / "data" / "tinyshakespeare.txt"


def text_corpus(path: Path, **fields: Any) -> DataConfig:
    return DataConfig(corpus="text", path=str(path), **fields)


def refusal(config: DataConfig, cache: Path | None = None) -> str:
    """The message, which must be one line."""
    with pytest.raises(ConfigError) as error:
        open_corpus(config, cache)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- stories ----------------------------------------------------------------------------------------------------


def test_stories_carry_the_probability_of_each_validation_document() -> None:
    corpus = open_corpus(DataConfig(documents=50, val_documents=20))
    assert (len(corpus.train), len(corpus.val)) == (50, 20)
    assert corpus.val_nll == pytest.approx([parse(text)[0] for text in corpus.val])
    assert not set(corpus.train) & set(corpus.val)


def test_validation_does_not_depend_on_the_amount_of_training_text() -> None:
    small, large = (open_corpus(DataConfig(documents=n, val_documents=20)) for n in (10, 50))
    assert small.val == large.val and small.train == large.train[:10]
    assert open_corpus(DataConfig(documents=10, val_documents=20, seed=1)).val != small.val


def test_training_never_repeats_a_validation_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one seed for both streams, training would write the validation texts."""
    monkeypatch.setattr(corpora, "stream_seed", lambda *_: 1)
    corpus = open_corpus(DataConfig(documents=50, val_documents=20))
    assert not set(corpus.train) & set(corpus.val) and len(corpus.train) == 50


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
    assert corpus.val_nll is None


def test_hold_out_of_many_documents_takes_every_nth() -> None:
    documents = [str(i) for i in range(1, 106)]
    train, val = hold_out(documents, 0.1)
    assert val == [str(i) for i in range(10, 106, 10)]
    assert sorted(train + val, key=int) == documents
    assert hold_out(documents, 0.03)[1] == ["33", "66", "99"]
    assert len(hold_out(documents, 0.9)[0]) > 0


def test_hold_out_of_few_documents_cuts_the_end_of_each() -> None:
    documents = ["a" * 1000, "é" * 55]
    train, val = hold_out(documents, 0.1)
    assert (train, val) == (["a" * 900, "é" * 49], ["a" * 100, "é" * 6])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", ["no text in it"]),
        ("a.txt", b"x", ["too little text", "val_fraction"]),
        ("a.txt", b"abc\xffdef", ["a.txt", "byte 3", "UTF-8"]),
        ("a.txt", b"\xef\xbb\xbfabc\xe9", ["byte 6"]),
        ("a.csv", b"text", ["neither .txt nor .jsonl"]),
        ("a.jsonl", b'{"text": "x"}\n{"txt": "x"}\n', ["a.jsonl line 2", '"text"']),
        ("a.jsonl", b'{"text": 3}\n', ["line 1"]),
        ("a.jsonl", b'["text"]\n', ["line 1"]),
        ("a.jsonl", b'{"text": "x"\n', ["line 1"]),
        ("a.jsonl", b'{"text": "\\ud800"}\n', ["line 1"]),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    message = refusal(text_corpus(tmp_path / name))
    assert all(word in message for word in [name, *words])


def test_missing_paths_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(text_corpus(tmp_path / "absent.txt"))
    assert "no .txt or .jsonl" in refusal(text_corpus(tmp_path))


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
    assert here != source_key(text_corpus(tmp_path / "here", val_fraction=0.2))
    (tmp_path / "here" / "a.txt").write_text("other text")
    assert here != source_key(text_corpus(tmp_path / "here"))


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
    corpus = open_corpus(config, tmp_path / "downloads")
    assert (corpus.train[0] + corpus.val[0]).encode() == published
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["tinyshakespeare.txt"]
    monkeypatch.setattr(urllib.request, "urlopen", None)
    assert open_corpus(config, tmp_path / "downloads") == corpus


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
    assert open_corpus(config).train[0].startswith("First Citizen")
    assert "no such file" in refusal(DataConfig(corpus="tinyshakespeare", path=str(tmp_path / "absent.txt")))


def test_the_published_text_is_split_as_nanogpt_splits_it() -> None:
    if not SHAKESPEARE.exists():
        pytest.skip("tinyshakespeare.txt is not present")
    corpus = open_corpus(DataConfig(corpus="tinyshakespeare", path=str(SHAKESPEARE)))
    assert [len(text) for text in (*corpus.train, *corpus.val)] == [1_003_854, 111_540]
