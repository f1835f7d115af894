"""Files of tokens as a corpus: which are read as what, which are for validation, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gptlib.config import ConfigError
from gptlib.data import dataset as module
from gptlib.data.dataset import Dataset, open_dataset, prepare_dataset
from gptlib.data.loader import training_batches
from gptlib.data.shards import HEADER_INTS, MAGIC, write_npy, write_shard
from gptlib.data.tokenizers import Tokenizer
from gptlib.data.verify import verify
from gptlib.fields import DataConfig, ModelConfig, RunConfig, TrainConfig

LETTERS = [256, *range(97, 123)]  # a document: eot first
TRAIN, VAL = (np.array(LETTERS * count + [256], dtype=np.uint16) for count in (40, 10))


@pytest.fixture(autouse=True)
def _bytes_instead_of_gpt2(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no vocabulary has to be fetched."""
    monkeypatch.setattr(module, "build_tokenizer", lambda *_: Tokenizer({"kind": "byte"}))
    monkeypatch.setattr(module, "COUNTED_TOKENS", 100)


def config_of(path: Path, val_tokens: int = 0) -> DataConfig:
    return DataConfig(corpus="tokens", path=str(path), tokenizer="gpt2", rows="stream", val_tokens=val_tokens)


def prepared(path: Path, outputs: Path, said: list[str] | None = None) -> Dataset:
    return open_dataset(prepare_dataset(config_of(path), outputs, ([] if said is None else said).append))


def as_npy(path: Path, tokens: np.ndarray) -> None:
    write_npy(path.with_suffix(".npy"), [tokens], eot=-1)


def as_wide_npy(path: Path, tokens: np.ndarray) -> None:
    np.save(path.with_suffix(".npy"), tokens.astype(np.int64))


def as_headerless(path: Path, tokens: np.ndarray) -> None:
    tokens.tofile(path.with_suffix(".bin"))


def as_shard(path: Path, tokens: np.ndarray) -> None:
    write_shard(path.with_suffix(".bin"), tokens)


@pytest.mark.parametrize("write", [as_npy, as_wide_npy, as_headerless, as_shard])
@pytest.mark.parametrize(
    ("train", "val"), [("train", "val"), ("tinystories_train_tokens", "tinystories_valid_tokens"), ("a", "B_VAL")]
)
def test_every_kind_of_file_becomes_the_same_dataset(
    tmp_path: Path, write: Callable[[Path, np.ndarray], None], train: str, val: str
) -> None:
    write(tmp_path / train, TRAIN)
    write(tmp_path / val, VAL)
    said: list[str] = []
    dataset = prepared(tmp_path, tmp_path / "outputs", said)
    assert np.array_equal(dataset.tokens("train")[0], TRAIN) and np.array_equal(dataset.tokens("val")[0], VAL)
    assert dataset.manifest["splits"]["train"] == {
        "documents": 41, "tokens": 1081, "bytes": 1040, "max_token": 256, "shards": ["train_000000.bin"],
    }  # fmt: skip
    assert any("no shard header" in line for line in said) is (write is as_headerless)
    assert any("begin with '<|endoftext|>abcdefghijk'" in line for line in said)
    wrong = {finding.what for finding in verify(dataset.path) if finding.wrong}
    assert wrong == {"validation and training"}, "every document is the same"


def test_files_are_taken_in_order_and_long_ones_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_TOKENS", 500)
    (tmp_path / "more").mkdir()
    as_headerless(tmp_path / "more" / "train_1", TRAIN[:7])
    as_npy(tmp_path / "train_0", TRAIN)
    as_shard(tmp_path / "more" / "train_2", TRAIN)
    as_npy(tmp_path / "val", VAL)
    (tmp_path / "notes.txt").write_text("not read")
    np.save(tmp_path / "token_bytes.npy", np.ones(257, dtype=np.int64))  # as of a dataset made here
    dataset = prepared(tmp_path, tmp_path / "outputs")
    assert [len(shard) for shard in dataset.tokens("train")] == [7, 1081, 500, 500, 81]
    assert np.array_equal(np.concatenate(dataset.tokens("train")[2:]), TRAIN)


def test_validation_may_be_the_beginning_of_its_file(tmp_path: Path) -> None:
    for name in ("train", "val_0", "val_1"):
        as_shard(tmp_path / name, VAL)
    whole, part = (prepare_dataset(config_of(tmp_path / "*.bin", tokens), tmp_path / "outputs") for tokens in (0, 64))
    assert whole != part
    assert [len(shard) for shard in open_dataset(whole).tokens("val")] == [271, 271]
    assert [len(shard) for shard in open_dataset(part).tokens("val")] == [65]
    with pytest.raises(ConfigError, match=r"data.val_tokens=271: .*val_0.bin predicts only 270; give at most that"):
        prepare_dataset(config_of(tmp_path / "*.bin", 271), tmp_path / "outputs")


def half_a_shard(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def another_version(path: Path) -> None:
    path.write_bytes(np.array([MAGIC, 2, 1081] + [0] * (HEADER_INTS - 3), "<i4").tobytes() + TRAIN.tobytes())


def another_magic(path: Path) -> None:
    path.write_bytes(np.array([20240522, 1] + [0] * (HEADER_INTS - 2), "<i4").tobytes() + TRAIN.tobytes())


def half_a_token(path: Path) -> None:
    path.write_bytes(TRAIN.tobytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def unknown(path: Path) -> None:
    as_shard(path, np.append(np.full(700, 97), [257, 300]).astype(np.uint16))


def negative(path: Path) -> None:
    path.unlink()
    np.save(path.with_suffix(".npy"), np.append(np.full(700, 97), -1))


def too_wide(path: Path) -> None:
    path.unlink()
    np.save(path.with_suffix(".npy"), np.append(np.full(700, 97), 2**16 + 97))


def half_an_npy(path: Path) -> None:
    path.unlink()
    as_npy(path, TRAIN)
    path.with_suffix(".npy").write_bytes(path.with_suffix(".npy").read_bytes()[:-2])


@pytest.mark.parametrize("name", ["train", "valid"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (half_a_shard, "truncated or altered"),
        (another_version, "no shard header (magic 20240520, version 1)"),
        (another_magic, "at position 0, but the vocabulary of byte ends at 256; fetch the file again, or make"),
        (half_a_token, "no whole number of uint16 tokens"),
        (empty, "missing or empty"),
        (unknown, "token 257 at position 700"),
        (negative, "token -1 at position 700"),
        (too_wide, "token 65633 at position 700"),
        (half_an_npy, "not a readable .npy file"),
    ],
)
def test_bad_files_are_named_and_leave_no_dataset(
    tmp_path: Path, name: str, damage: Callable[[Path], None], words: str
) -> None:
    for split in ("train", "valid"):
        as_shard(tmp_path / split, TRAIN)
    damage(tmp_path / f"{name}.bin")
    with pytest.raises(ConfigError) as error:
        prepared(tmp_path, tmp_path / "outputs")
    assert f"{tmp_path / name}." in str(error.value) and words in str(error.value) and "\n" not in str(error.value)
    assert not [path for path in (tmp_path / "outputs" / "data").iterdir() if path.is_dir()]


def test_both_splits_need_a_file(tmp_path: Path) -> None:
    as_npy(tmp_path / "train", TRAIN)
    for path, counts in (
        (tmp_path, "1 files for training and 0 for validation"),
        (tmp_path / "*.npy", "1 files for training and 0 for validation"),
        (tmp_path / "train.npy", "1 files for training and 0 for validation"),
        (tmp_path / "absent", "no such file or folder"),
        (tmp_path / "*.bin", "no .npy or .bin file in it"),
    ):
        with pytest.raises(ConfigError, match=r"^data\.path=[^\n]*$") as error:
            prepared(path, tmp_path / "outputs")
        assert counts in str(error.value)


def test_less_than_a_batch_is_refused_by_the_loader(tmp_path: Path) -> None:
    as_npy(tmp_path / "train", TRAIN[:65])
    as_npy(tmp_path / "val", VAL)
    dataset = prepared(tmp_path, tmp_path / "outputs")
    config = RunConfig(data=config_of(tmp_path), model=ModelConfig(seq_len=16), train=TrainConfig(batch_rows=5))
    with pytest.raises(ValueError, match="4 training rows of model.seq_len=16, fewer than the 5 of one batch"):
        next(training_batches(dataset, config, seed=1))


def test_the_tokens_are_those_of_gpt2_and_have_a_place() -> None:
    with pytest.raises(ValueError, match="needs data.path: a folder or a glob of .npy and .bin files"):
        DataConfig(corpus="tokens", tokenizer="gpt2")
    with pytest.raises(ValueError, match="corpus 'tokens' has the tokens of GPT-2; set data.tokenizer=gpt2"):
        DataConfig(corpus="tokens", path="x")
