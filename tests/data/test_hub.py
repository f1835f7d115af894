"""Downloads against a stand-in of the Hub, here, which drops connections, truncates and serves wrong bytes."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants

from gptlib.config import ConfigError
from gptlib.data import corpora
from gptlib.data import dataset as dataset_module
from gptlib.data.corpora import open_corpus
from gptlib.data.dataset import open_dataset, prepare_dataset
from gptlib.data.hub import HubFile, Repository, fetch_files, fetch_url, local_files
from gptlib.data.shards import write_shard
from gptlib.data.tokenizers import Tokenizer
from gptlib.fields import DataConfig

REPOSITORY = Repository("somebody/texts", "0123456789abcdef0123456789abcdef01234567")
CONTENT = {"a.txt": bytes(range(256)) * 40, "data/b.bin": b"b" * 5000}
FILES = [HubFile(name) for name in CONTENT]


class StandIn(ThreadingHTTPServer):
    """The part of the Hub's protocol that a download needs. `faults`: what the next requests for contents meet."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}  # by path
        self.faults: list[str] = []
        self.asked: list[tuple[str, str, str]] = []  # method, path, range
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def publish(self, repository: Repository, files: dict[str, bytes]) -> None:
        for name, content in files.items():
            self.files[f"/datasets/{repository.name}/resolve/{repository.revision}/{name}"] = content

    def contents(self) -> list[tuple[str, str]]:
        """(file, range) of every request for contents."""
        return [
            (path.rpartition("/")[2], bytes_)
            for method, path, bytes_ in self.asked
            if method == "GET" and path in self.files
        ]


class Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.server.asked.append((self.command, self.path, self.headers.get("Range", "")))
        content = self.server.files.get(self.path)
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        fault = self.server.faults.pop(0) if self.command == "GET" and self.server.faults else ""
        body = content
        if wanted := self.headers.get("Range"):
            body = content[int(wanted.removeprefix("bytes=").partition("-")[0]) :]
        if fault == "truncate":
            body = body[: len(body) // 2]
        if fault == "wrong":
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.send_response(206 if wanted else 200)
        if wanted:
            first = len(content) - len(body)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", REPOSITORY.revision)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if fault == "drop" else body)
            self.close_connection = fault == "drop"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """What huggingface_hub takes for the Hub, as it would with HF_ENDPOINT; nothing waits between retries."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    stand_in = StandIn()
    monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", stand_in.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for module in ("file_download", "utils._http"):
        monkeypatch.setattr(f"huggingface_hub.{module}.time", SimpleNamespace(sleep=lambda _: None))
    thread = threading.Thread(target=stand_in.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    huggingface_hub.close_session()  # one of before may have looked at other proxies
    stand_in.publish(REPOSITORY, CONTENT)
    yield stand_in
    stand_in.shutdown()
    stand_in.server_close()
    thread.join()
    huggingface_hub.close_session()


def fetched(cache: Path, files: list[HubFile] = FILES, say: Callable[[str], None] = lambda _: None) -> list[bytes]:
    return [path.read_bytes() for path in fetch_files(REPOSITORY, files, cache, say)]


def refusal(action: Callable[[], Any]) -> str:
    """The message, which must be one line."""
    with pytest.raises(ConfigError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


def lying(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --- the Hub ----------------------------------------------------------------------------------------------------


def test_files_arrive_once_and_their_bytes_are_said_before(server: StandIn, tmp_path: Path) -> None:
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        assert not server.contents()

    assert fetched(tmp_path, FILES, say) == list(CONTENT.values())
    (line,) = said
    assert "15,240 bytes" in line and "a.txt, data/b.bin" in line and REPOSITORY.name in line
    assert lying(tmp_path) == ["somebody--texts/.lock", "somebody--texts/a.txt", "somebody--texts/data/b.bin"]
    server.asked.clear()
    assert fetched(tmp_path) == list(CONTENT.values())
    assert not server.asked and len(said) == 1


def test_a_broken_connection_is_taken_up_where_it_broke(server: StandIn, tmp_path: Path) -> None:
    server.faults = ["drop"] * 3
    assert fetched(tmp_path, FILES[:1]) == [CONTENT["a.txt"]]
    starts = [int(bytes_.removeprefix("bytes=").rstrip("-") or 0) for _, bytes_ in server.contents()]
    assert starts[0] == 0 and starts == sorted(set(starts)) and len(starts) == 4


@pytest.mark.parametrize("fault", ["truncate", "wrong"])
def test_a_passing_fault_is_overcome(server: StandIn, tmp_path: Path, fault: str) -> None:
    server.faults = [fault]
    assert fetched(tmp_path) == list(CONTENT.values())
    assert len(server.contents()) == 3


@pytest.mark.parametrize(("fault", "why"), [("drop", ""), ("truncate", "size"), ("wrong", "SHA-256 differs")])
def test_a_lasting_fault_is_one_line_and_leaves_nothing(server: StandIn, tmp_path: Path, fault: str, why: str) -> None:
    server.faults = [""] + [fault] * 1000
    message = refusal(lambda: fetched(tmp_path))
    place = tmp_path / "somebody--texts"
    for words in ("cannot fetch data/b.bin", REPOSITORY.name, REPOSITORY.revision, str(place), why):
        assert words in message
    assert "a.txt" not in message
    assert lying(place) == [".lock", "a.txt"]
    server.faults, before = [], len(server.contents())
    assert fetched(tmp_path) == list(CONTENT.values())
    assert [name for name, _ in server.contents()[before:]] == ["b.bin"]


def test_what_is_not_there_and_what_cannot_be_reached(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = refusal(lambda: fetched(tmp_path, [HubFile("absent.txt"), *FILES]))
    assert "absent.txt, a.txt, data/b.bin" in missing and "404" in missing
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = refusal(lambda: fetched(tmp_path))
    assert "hf download --repo-type dataset somebody/texts" in offline and "put it into" in offline
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server.shutdown()
    server.server_close()
    huggingface_hub.close_session()
    assert "Connection refused" in refusal(lambda: fetched(tmp_path))
    assert lying(tmp_path) == ["somebody--texts/.lock"]


def test_a_file_put_there_by_hand_needs_no_network(tmp_path: Path) -> None:
    place = REPOSITORY.place(tmp_path)
    (place / "data").mkdir(parents=True)
    files = [HubFile(name, len(text), hashlib.sha256(text).hexdigest()) for name, text in CONTENT.items()]
    for name, text in CONTENT.items():
        (place / name).write_bytes(text)
    assert fetched(tmp_path, files) == list(CONTENT.values())
    assert [path.read_bytes() for path in local_files(files, place)] == list(CONTENT.values())
    (place / "a.txt").write_bytes(CONTENT["a.txt"][:-1])
    for read in (lambda: fetched(tmp_path, files), lambda: local_files(files, place)):
        assert f"{place / 'a.txt'}: not the published file (10,239 bytes instead of 10,240)" in refusal(read)
    (place / "a.txt").write_bytes(CONTENT["a.txt"][::-1])
    assert "SHA-256 differs" in refusal(lambda: fetched(tmp_path, files))
    (place / "a.txt").unlink()
    assert "lacks a.txt" in refusal(lambda: local_files(files, place))


def test_a_disk_that_is_too_small_is_said_before(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    message = refusal(lambda: fetched(tmp_path))
    assert "15,240 bytes to download, 10,000 free" in message
    assert not server.contents()


def test_a_disk_that_fills_up_ends_the_download(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def full(*_: object, local_dir: Path, **__: object) -> str:
        tries.append(local_dir)
        local_dir.mkdir()
        (local_dir / "a.txt").write_bytes(CONTENT["a.txt"][:1000])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    assert "No space left on device" in refusal(lambda: fetched(tmp_path))
    assert len(tries) == 1 and lying(tmp_path) == ["somebody--texts/.lock"]


# --- by address -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["drop", "truncate", "wrong"])
def test_tinyshakespeare_survives_what_passes_and_refuses_what_lasts(
    server: StandIn, tmp_path: Path, fault: str
) -> None:
    content = b"First Citizen: hear me speak.\n" * 100
    server.files["/input.txt"] = content
    url, path, sha256 = server.url + "/input.txt", tmp_path / "cache" / "t.txt", hashlib.sha256(content).hexdigest()
    server.faults = [fault] * 3
    message = refusal(lambda: fetch_url(url, path, sha256))
    assert url in message and str(path) in message and "data.path" in message
    assert not list(path.parent.iterdir())
    server.faults = [fault] * 2
    fetch_url(url, path, sha256)
    assert path.read_bytes() == content and len(list(path.parent.iterdir())) == 1


# --- corpora of the Hub -----------------------------------------------------------------------------------------


def test_tinystories_has_its_own_validation_file(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stories = [f"Once there was a cat.\nIt had {i} mice." for i in range(300)]
    train, val = ("\n<|endoftext|>\n".join(part) + "\n<|endoftext|>\n" for part in (stories[:200], stories[200:]))
    monkeypatch.setattr(corpora, "TINYSTORIES", REPOSITORY)
    monkeypatch.setitem(corpora.TINYSTORIES_FILES, "v2", (HubFile("train.txt"), HubFile("valid.txt")))
    server.publish(REPOSITORY, {"train.txt": train.encode(), "valid.txt": val.encode()})
    corpus = open_corpus(DataConfig(corpus="tinystories"), tmp_path)
    assert list(corpus.train) == stories[:200] == list(corpus.train)
    assert list(corpus.val) == stories[200:]
    config = DataConfig(corpus="tinystories", max_documents=20, vocab_size=300)
    dataset = open_dataset(prepare_dataset(config, tmp_path))
    assert [dataset.manifest["splits"][split]["documents"] for split in ("train", "val")] == [20, 100]
    assert dataset.manifest["source"]["revision"] == REPOSITORY.revision


@pytest.fixture
def shards(server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Published shards of 2,000 tokens, in bytes instead of GPT-2's, whose files tests cannot have."""
    monkeypatch.setattr(corpora, "FINEWEB10B", REPOSITORY)
    monkeypatch.setattr(corpora, "FINEWEB10B_SHA256", {})
    monkeypatch.setattr(dataset_module, "build_tokenizer", lambda *_: Tokenizer({"kind": "byte"}))
    draw = np.random.default_rng(1)
    names = ["fineweb_val_000000.bin", "fineweb_train_000001.bin", "fineweb_train_000002.bin"]
    tokens = {name: draw.integers(0, 257, 2000).astype(np.uint16) for name in names}
    for name in names:
        write_shard(tmp_path / name, tokens[name])
        server.publish(REPOSITORY, {name: (tmp_path / name).read_bytes()})
        (tmp_path / name).unlink()
    return tokens


def test_fineweb10b_takes_the_shards_as_they_are(
    server: StandIn, tmp_path: Path, shards: dict[str, np.ndarray]
) -> None:
    said: list[tuple[str, int]] = []
    config = DataConfig(corpus="fineweb10B", tokenizer="gpt2", shards=2, val_tokens=1023)
    path = prepare_dataset(config, tmp_path, lambda line: said.append((line, len(server.contents()))))
    dataset = open_dataset(path)
    val, *train = shards.values()
    assert all(np.array_equal(a, b) for a, b in zip(dataset.tokens("train"), train, strict=True))
    assert np.array_equal(dataset.tokens("val")[0], val[:1024])
    counts = dataset.manifest["splits"]["train"]
    both = np.concatenate(train)
    assert (counts["tokens"], counts["documents"], counts["max_token"]) == (4000, (both == 256).sum(), both.max())
    assert counts["bytes"] == dataset.token_bytes[both].sum() == (both != 256).sum()
    before = [line for line, asked in said if not asked]
    assert any("200,000,000 tokens" in line for line in before) and any("15,072 bytes" in line for line in before)
    shared = [(tmp_path / "data" / "downloads" / "somebody--texts" / name).stat().st_nlink for name in shards]
    assert shared == [1, 2, 2]


def test_fineweb10b_cut_off_leaves_no_dataset(server: StandIn, tmp_path: Path, shards: dict[str, np.ndarray]) -> None:
    server.faults = [""] + ["drop"] * 1000
    config = DataConfig(corpus="fineweb10B", tokenizer="gpt2", shards=2)
    assert "fineweb_train_000001.bin, fineweb_train_000002.bin" in refusal(lambda: prepare_dataset(config, tmp_path))
    assert [path.name for path in (tmp_path / "data").iterdir() if path.is_dir()] == ["downloads"]
    server.faults = []
    assert len(open_dataset(prepare_dataset(config, tmp_path)).tokens("train")) == 2


def test_more_shards_than_there_are(tmp_path: Path) -> None:
    message = refusal(lambda: open_corpus(DataConfig(corpus="fineweb_edu", shards=15), tmp_path))
    assert "data.shards=15: fineweb_edu has 14" in message


ELSEWHERE = """
import sys
from pathlib import Path
from gptlib.data.hub import HubFile, Repository, fetch_files
assert "huggingface_hub" not in sys.modules
(path,) = fetch_files(Repository(*sys.argv[1:3]), [HubFile("a.txt")], Path(sys.argv[3]), print)
print(path.stat().st_size)
"""


def test_hf_endpoint_is_obeyed(server: StandIn, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ELSEWHERE, REPOSITORY.name, REPOSITORY.revision, str(tmp_path)]
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert said.stdout.splitlines()[-1:] == [str(len(CONTENT["a.txt"]))], said.stderr
