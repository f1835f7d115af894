"""Prepared datasets: what is in the folder, when it is made again, and what is noticed when it is opened."""

import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gptlib.config import ConfigError
from gptlib.data import corpora
from gptlib.data import dataset as module
from gptlib.data.corpora import open_corpus
from gptlib.data.dataset import Dataset, open_dataset, prepare_dataset, require_batch
from gptlib.data.shards import sha256_file, write_shard
from gptlib.data.tokenizers import Tokenizer
from gptlib.fields import DataConfig

TextConfig = Callable[..., DataConfig]


def documents(dataset: Dataset, split: str) -> list[str]:
    """The text between the eots, shard by shard."""
    found = []
    for tokens in dataset.tokens(split):
        assert tokens[0] == tokens[-1] == dataset.eot
        cuts = [i for i, token in enumerate(tokens.tolist()) if token == dataset.eot]
        found += [dataset.tokenizer.decode(tokens[a + 1 : b]) for a, b in itertools.pairwise(cuts)]
    return found


@pytest.fixture
def copy(stories_path: Path, tmp_path: Path) -> Path:
    shutil.copytree(stories_path, tmp_path / stories_path.name)
    return tmp_path / stories_path.name


def test_the_folder_holds_the_corpus(stories_path: Path) -> None:
    dataset = open_dataset(stories_path)
    corpus = open_corpus(DataConfig(documents=300, val_documents=60, vocab_size=320))
    assert documents(dataset, "train") == corpus.train
    assert documents(dataset, "val") == corpus.val
    assert dataset.val_nll is not None and corpus.val_nll is not None
    assert np.array_equal(dataset.val_nll, corpus.val_nll)
    assert (dataset.vocab_size, dataset.eot) == (320, 319)
    assert np.array_equal(dataset.token_bytes, dataset.tokenizer.token_bytes())
    for split, texts in (("train", corpus.train), ("val", corpus.val)):
        counts = dataset.manifest["splits"][split]
        whole = list(texts)
        assert counts["documents"] == len(whole) and counts["bytes"] == len("".join(whole).encode())
        assert counts["tokens"] == sum(map(len, dataset.tokens(split)))
        assert counts["bytes"] == sum(dataset.token_bytes[tokens].sum() for tokens in dataset.tokens(split))
    assert stories_path.parent.name == "data" and stories_path.name.startswith("stories-")


def test_documents_do_not_straddle_shards(lines_dataset: Dataset) -> None:
    shards = lines_dataset.tokens("train")
    assert len(shards) > 10
    assert all(400 < len(shard) <= 500 for shard in shards[:-1])
    corpus = open_corpus(DataConfig(corpus="text", path=str(lines_dataset.path.parents[2] / "lines.jsonl")))
    assert documents(lines_dataset, "train") == list(corpus.train)
    assert documents(lines_dataset, "val") == list(corpus.val)


def test_a_document_longer_than_a_shard_has_one_of_its_own() -> None:
    lengths = [3, 30, 4, 5, 9]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHARD_TOKENS", 12)
        shards = list(module._fill_shards([np.full(n, n, dtype=np.uint16) for n in lengths], 0))
    assert [sorted({int(t) for t in shard} - {0}) for shard in shards] == [[3], [30], [4, 5], [9]]


def test_a_second_call_reuses_the_folder(stories_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_corpus", None)
    config = DataConfig(documents=300, val_documents=60, vocab_size=320, rows="stream")
    assert prepare_dataset(config, stories_path.parents[1]) == stories_path


def test_folder_and_hash_depend_on_content_alone(text_config: TextConfig, tmp_path: Path) -> None:
    config = text_config("To be, or not to be. " * 50, tokenizer="char")
    said: list[str] = []
    first = open_dataset(prepare_dataset(config, tmp_path / "first", said.append))
    second = open_dataset(prepare_dataset(config, tmp_path / "second"))
    assert first.hash == second.hash and len(first.hash) == 16 and first.path.name == second.path.name
    assert said and all("\n" not in line for line in said)
    bytewise = open_dataset(prepare_dataset(text_config("To be, or not to be. " * 50, tokenizer="byte"), tmp_path))
    other = open_dataset(prepare_dataset(text_config("Two bees, or not two bees. " * 50, tokenizer="byte"), tmp_path))
    assert (
        len({first.hash, bytewise.hash, other.hash}) == len({first.path.name, bytewise.path.name, other.path.name}) == 3
    )
    assert first.val_nll is None


def test_the_hash_ignores_the_last_bits_of_the_probabilities(stories_path: Path) -> None:
    dataset = open_dataset(stories_path)
    assert dataset.val_nll is not None
    again = [
        module._content_hash(dataset.manifest["files"], dataset.manifest["splits"], dataset.tokenizer.hash, nll)
        for nll in (dataset.val_nll, np.nextafter(dataset.val_nll, np.inf), dataset.val_nll + 0.001)
    ]
    assert again[0] == again[1] == dataset.hash != again[2]


def test_characters_of_the_validation_part_belong_to_the_alphabet(text_config: TextConfig, tmp_path: Path) -> None:
    dataset = open_dataset(prepare_dataset(text_config("a" * 95 + "bcdez", tokenizer="char"), tmp_path))
    assert documents(dataset, "val") == ["aaaaabcdez"]


def test_a_bpe_is_trained_on_a_sample_of_the_training_text(
    text_config: TextConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = text_config("|".join(["early early"] * 50 + ["later later"] * 50), delimiter="|", vocab_size=300)
    monkeypatch.setattr(module, "SAMPLE_CHARACTERS", 600)
    pieces = open_dataset(prepare_dataset(config, tmp_path)).tokenizer._pieces
    assert b" early" in pieces and b" later" in pieces


def test_bad_text_in_the_middle_leaves_no_dataset(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"document {i}"}) for i in range(500)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, '{"title": "no text"}', *lines]))
    config = DataConfig(corpus="text", path=str(tmp_path / "a.jsonl"), tokenizer="byte")
    with pytest.raises(ConfigError, match="a.jsonl line 501: no field"):
        prepare_dataset(config, tmp_path)
    assert not [path for path in (tmp_path / "data").iterdir() if path.is_dir()]


# --- published tokens -------------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """A copy of fineweb10B by the user's hand, of one training shard, in bytes instead of GPT-2's tokens."""
    monkeypatch.setattr(corpora, "FINEWEB10B_SHA256", {})
    monkeypatch.setattr(module, "build_tokenizer", lambda *_: Tokenizer({"kind": "byte"}))
    monkeypatch.setattr(module, "COUNTED_TOKENS", 100)
    tokens = np.tile(np.append(np.arange(97, 123), 256).astype(np.uint16), 40)
    for name in ("fineweb_val_000000.bin", "fineweb_train_000001.bin"):
        write_shard(tmp_path / name, tokens)
    return DataConfig(corpus="fineweb10B", tokenizer="gpt2", path=str(tmp_path))


def test_published_shards_become_a_dataset(published: DataConfig, tmp_path: Path) -> None:
    said: list[str] = []
    dataset = open_dataset(prepare_dataset(published, tmp_path / "outputs", said.append))
    assert dataset.manifest["splits"]["train"] == {
        "documents": 40, "tokens": 1080, "bytes": 1040, "max_token": 256, "shards": ["train_000000.bin"],
    }  # fmt: skip
    assert [dataset.tokenizer.decode(text) for text in dataset.documents("val")[:2]] == [
        "abcdefghijklmnopqrstuvwxyz"
    ] * 2
    assert any("1 of 103 training shards" in line for line in said)
    with pytest.raises(ConfigError, match="data.val_tokens=1080: .* predicts only 1,079"):
        prepare_dataset(published.model_copy(update={"val_tokens": 1080}), tmp_path / "outputs")


def test_shards_are_copied_where_they_cannot_be_linked(
    published: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    path = prepare_dataset(published, tmp_path / "outputs")
    assert (path / "train_000000.bin").stat().st_nlink == 1
    assert len(open_dataset(path).tokens("train")[0]) == 1080


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def half_a_shard(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 1024 + 1080])


def wrong_header(path: Path) -> None:
    path.write_bytes(bytes(1024) + path.read_bytes()[1024:])


def unknown_token(path: Path) -> None:
    write_shard(path, np.append(np.full(700, 97), [257, 300]).astype(np.uint16))


@pytest.mark.parametrize("name", ["fineweb_train_000001.bin", "fineweb_val_000000.bin"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (halve, "no shard header"),
        (half_a_shard, "truncated or altered: 2104 bytes where 1080 tokens need 3184"),
        (wrong_header, "no shard header"),
        (unknown_token, "token 257 at position 700, but the vocabulary of byte ends at 256"),
        (Path.unlink, "cannot be read"),
    ],
)
def test_bad_shards_are_named_and_leave_no_dataset(
    published: DataConfig, tmp_path: Path, name: str, damage: Callable[[Path], None], words: str
) -> None:
    damage(tmp_path / name)
    with pytest.raises(ConfigError) as error:
        prepare_dataset(published, tmp_path / "outputs")
    assert f"{tmp_path / name}: " in str(error.value) and words in str(error.value) and "\n" not in str(error.value)
    assert not list((tmp_path / "outputs").rglob("*.bin"))


def test_the_speedruns_validation_tokens(published: DataConfig, tmp_path: Path) -> None:
    config = published.model_copy(update={"val_tokens": 512})
    assert len(open_dataset(prepare_dataset(config, tmp_path / "outputs")).tokens("val")[0]) == 513


def test_tokens_beyond_the_vocabulary_are_noticed_when_opened(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"]["train"]["max_token"] = 320
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="tokens up to 320, but the vocabulary of bpe ends at 319"):
        open_dataset(copy)


def test_fewer_rows_than_a_batch(stories_path: Path) -> None:
    dataset = open_dataset(stories_path)
    require_batch(dataset, 8, 8, 256)
    with pytest.raises(ValueError, match="7 training rows of model.seq_len=256, fewer than the 8 of one batch"):
        require_batch(dataset, 7, 8, 256)


# --- damage -----------------------------------------------------------------------------------------------------


def flip_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


FILES = ["train_000000.bin", "val_000000.bin", "tokenizer.json", "token_bytes.npy", "val_nll.npy"]


@pytest.mark.parametrize("opened_before", [False, True])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip_last_byte, truncate, Path.unlink])
def test_damage_is_noticed_and_named(
    copy: Path, name: str, damage: Callable[[Path], None], opened_before: bool
) -> None:
    if opened_before:
        open_dataset(copy)
    damage(copy / name)
    with pytest.raises(ValueError, match=name) as error:
        open_dataset(copy)
    assert "delete the folder and run again" in str(error.value)


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"files": {}}'])
def test_a_damaged_manifest_is_named(copy: Path, content: str | None) -> None:
    (copy / "manifest.json").unlink()
    if content is not None:
        (copy / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        open_dataset(copy)


def test_another_tokenizer_is_noticed_even_with_a_matching_checksum(copy: Path) -> None:
    Tokenizer({"kind": "byte"}).save(copy / "tokenizer.json")
    manifest = json.loads((copy / "manifest.json").read_text())
    file = copy / "tokenizer.json"
    manifest["files"]["tokenizer.json"] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"tokenizer\.json: not the tokenizer"):
        open_dataset(copy)


def test_checksums_are_computed_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "checked.json").unlink(missing_ok=True)
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(module, "sha256_file", counted)
    open_dataset(copy)
    assert sorted(read) == sorted(FILES)
    open_dataset(copy)
    assert len(read) == len(FILES)


# --- makers -----------------------------------------------------------------------------------------------------

MAKER = """
import sys
from pathlib import Path
from gptlib.fields import DataConfig
from gptlib.data.dataset import open_dataset, prepare_dataset
path = prepare_dataset(DataConfig(documents=2000, val_documents=50), Path(sys.argv[1]), lambda line: print(line))
print(open_dataset(path).hash)
"""


def test_of_two_makers_at_once_one_makes_and_both_get_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAKER, str(tmp_path)]
    makers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [maker.communicate(timeout=60)[0].splitlines() for maker in makers]
    assert [maker.returncode for maker in makers] == [0, 0]
    assert said[0][-1] == said[1][-1]
    assert sorted(len(lines) > 1 for lines in said) == [False, True]
    assert len([path for path in (tmp_path / "data").iterdir() if path.is_dir()]) == 1


def test_an_interrupted_maker_leaves_nothing_behind(
    text_config: TextConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = text_config("some text " * 50, tokenizer="byte")
    with monkeypatch.context() as patch:
        patch.setattr(module, "sha256_file", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare_dataset(config, tmp_path)
    assert not [path for path in (tmp_path / "data").iterdir() if path.is_dir()]
    assert open_dataset(prepare_dataset(config, tmp_path)).vocab_size == 257


def test_a_folder_without_a_manifest_is_not_overwritten(text_config: TextConfig, tmp_path: Path) -> None:
    config = text_config("some text " * 50, tokenizer="byte")
    path = prepare_dataset(config, tmp_path)
    (path / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="delete the folder and run again"):
        prepare_dataset(config, tmp_path)


def test_outputs_that_cannot_be_written_are_named(text_config: TextConfig, tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be written"):
        prepare_dataset(text_config("some text " * 50, tokenizer="byte"), tmp_path / "outputs")


# --- full disks -------------------------------------------------------------------------------------------------


NUMPYS = OSError("270002 requested and 153088 written")  # when a disk is full
SYSTEMS = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("call", "error"), [("write_shard", NUMPYS), ("write_shard", SYSTEMS), ("sha256_file", SYSTEMS)]
)
def test_a_full_disk_is_one_line_and_leaves_nothing(
    text_config: TextConfig, tmp_path: Path, call: str, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise error

    config = text_config("some text " * 50, tokenizer="byte")
    with monkeypatch.context() as patch:
        patch.setattr(module, call, full)
        with pytest.raises(ConfigError, match=f"{error.strerror or error}.*nothing is left of it; make room") as raised:
            prepare_dataset(config, tmp_path)
    assert "\n" not in str(raised.value)
    assert not [path for path in (tmp_path / "data").iterdir() if path.is_dir()]
    assert open_dataset(prepare_dataset(config, tmp_path)).vocab_size == 257


LIMITED = """
import resource, sys
from pathlib import Path
from gptlib.config import ConfigError
from gptlib.data.dataset import prepare_dataset
from gptlib.fields import DataConfig
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    prepare_dataset(DataConfig(corpus="text", path=sys.argv[1], tokenizer="byte"), Path(sys.argv[2]))
except ConfigError as error:
    print(error)
"""


def test_a_shard_that_breaks_off_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    """No file may have more than 20,000 bytes, so the system itself ends the writing of the shard."""
    (tmp_path / "a.txt").write_text("some text " * 5000)
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "a.txt"), str(tmp_path / "outputs")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert said.stdout.count("\n") == 1 and "cannot be written" in said.stdout, said.stderr
    assert [path.suffix for path in (tmp_path / "outputs" / "data").iterdir()] == [".lock"]


KILLED = """
import os, signal, sys
from pathlib import Path
from gptlib.data import dataset
from gptlib.fields import DataConfig
write = dataset.write_shard
def written_and_killed(*args):
    write(*args)
    os.kill(os.getpid(), signal.SIGKILL)
dataset.write_shard = written_and_killed
dataset.prepare_dataset(DataConfig(corpus="text", path=sys.argv[1], tokenizer="byte"), Path(sys.argv[2]))
"""


def test_what_a_killed_maker_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text " * 100)
    home = tmp_path / "outputs" / "data"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "a.txt"), str(home.parent)]
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
    (left,) = (path for path in home.iterdir() if path.is_dir())
    assert left.name.startswith(".") and not (left / "manifest.json").exists()
    path = prepare_dataset(DataConfig(corpus="text", path=str(tmp_path / "a.txt"), tokenizer="byte"), home.parent)
    assert [path for path in home.iterdir() if path.is_dir()] == [path]
