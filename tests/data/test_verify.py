"""Whatever is wrong with a dataset or a token file is found, named and said in plain words."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptlib.data.dataset import Dataset, open_dataset, prepare_dataset
from gptlib.data.shards import read_shard, sha256_file, write_npy, write_shard
from gptlib.data.verify import Finding, verify
from gptlib.fields import DataConfig

TextConfig = Callable[..., DataConfig]


@pytest.fixture
def copy(stories_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stories_path, tmp_path / stories_path.name))


def wrong(path: Path, **options: Any) -> dict[str, str]:
    """What is said about each file or split that something is wrong with."""
    found: dict[str, str] = {}
    for finding in verify(path, **options):
        assert isinstance(finding, Finding) and "\n" not in str(finding) and str(path) not in str(finding)
        if finding.wrong:
            found[finding.what] = found.get(finding.what, "") + finding.said
    return found


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def sign(folder: Path) -> None:
    """Give the manifest the checksums of the files as they are now."""

    def change(manifest: dict[str, Any]) -> None:
        for name, file in manifest["files"].items():
            file |= {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}

    change_manifest(folder, change)


def edit(path: Path, change: Callable[[np.ndarray], Any]) -> None:
    """Change the tokens of a shard and sign it, so that only what they say can give it away."""
    tokens = np.array(read_shard(path))
    changed = change(tokens)
    write_shard(path, tokens if changed is None else changed)
    sign(path.parent)


# --- datasets ---------------------------------------------------------------------------------------------------


def test_a_whole_dataset_is_fine(stories_path: Path) -> None:
    findings = list(verify(stories_path))
    assert not any(finding.wrong for finding in findings)
    said = {finding.what: str(finding) for finding in findings}
    manifest = json.loads((stories_path / "manifest.json").read_text())
    assert {"manifest.json", *manifest["files"], "train", "val"} <= set(said)
    assert all(line.startswith("OK ") for line in said.values())
    assert f"{manifest['splits']['val']['tokens']:,} tokens" in said["val"] and "60 documents" in said["val"]
    assert "none of the 60" in said["validation and training"]
    assert "60 values, each the exact -ln p" in said["val_nll.npy"]
    assert any(manifest["files"]["val_000000.bin"]["sha256"][:16] in str(finding) for finding in findings)


def test_many_shards_are_fine(lines_dataset: Dataset) -> None:
    assert wrong(lines_dataset.path) == {}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], Any], dict[str, str]]] = {
    "a flipped bit": (lambda f: flip(f / "train_000000.bin"), {"train_000000.bin": "altered: its SHA-256"}),
    "a missing shard": (
        lambda f: (f / "val_000000.bin").unlink(),
        {"val_000000.bin": "not in the folder", "val": "0 of 1 shards"},
    ),
    "a truncated shard": (
        lambda f: (f / "train_000000.bin").write_bytes((f / "train_000000.bin").read_bytes()[:-2]),
        {"train_000000.bin": "truncated or altered", "train": "0 of 1 shards"},
    ),
    "no header": (
        lambda f: ((f / "train_000000.bin").write_bytes(b"\0" * 4096), sign(f)),
        {"train_000000.bin": "no shard header"},
    ),
    "an unreadable tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("{"),
        {"tokenizer.json": "not a tokenizer"},
    ),
    "a foreign file": (lambda f: (f / "train_000001.bin").write_bytes(b"x"), {"train_000001.bin": "nothing reads it"}),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), {"manifest.json": "missing or unreadable"}),
    "half a manifest": (lambda f: (f / "manifest.json").write_text('{"files": []}'), {"manifest.json": "missing or"}),
    "an altered count": (
        lambda f: change_manifest(f, lambda m: m["splits"]["val"].update(documents=61, bytes=5)),
        {"val": "60 documents where the manifest has 61"},
    ),
    "an unsigned shard": (
        lambda f: change_manifest(f, lambda m: m["files"].pop("val_000000.bin")),
        {"val_000000.bin": "no checksum"},
    ),
    "another tokenizer": (
        lambda f: change_manifest(f, lambda m: m["tokenizer"].update(hash="0")),
        {"tokenizer.json": "not the tokenizer that the shards were written with"},
    ),
    "other bytes": (
        lambda f: (np.save(f / "token_bytes.npy", np.zeros(320, np.int64)), sign(f)),
        {"token_bytes.npy": "not the bytes"},
    ),
    "an id outside": (
        lambda f: edit(f / "train_000000.bin", lambda tokens: tokens.__setitem__(slice(7, 9), 50_000)),
        {"train_000000.bin": "id 50000 at token 7 is outside the vocabulary of 320; 2 of"},
    ),
    "a start in a document": (
        lambda f: edit(f / "train_000000.bin", lambda tokens: tokens[1:]),
        {"train_000000.bin": "and not with the end-of-text token, 319", "train": "299 documents"},
    ),
    "an end in a document": (
        lambda f: edit(f / "val_000000.bin", lambda tokens: tokens[:-1]),
        {"val_000000.bin": "ends with id", "val_nll.npy": "not one positive -ln p for each of the 59"},
    ),
    "unreadable probabilities": (
        lambda f: (f / "val_nll.npy").write_bytes(b"\x93NUM"),
        {"val_nll.npy": "not a readable .npy"},
    ),
    "infinite probabilities": (
        lambda f: (np.save(f / "val_nll.npy", np.full(60, np.inf)), sign(f)),
        {"val_nll.npy": "not one positive -ln p"},
    ),
    "rounded probabilities": (
        lambda f: (np.save(f / "val_nll.npy", np.load(f / "val_nll.npy").round(3)), sign(f)),
        {"val_nll.npy": "document 0 has -ln p"},
    ),
    "no story": (
        lambda f: edit(f / "val_000000.bin", lambda tokens: tokens.__setitem__(3, tokens[2])),
        {"val_nll.npy": "validation document 0 is no story"},
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(copy: Path, name: str) -> None:
    damage, expected = DAMAGE[name]
    damage(copy)
    found = wrong(copy)
    for what, said in expected.items():
        assert said in found.get(what, ""), found


def test_all_that_is_wrong_is_said_at_once(copy: Path) -> None:
    flip(copy / "val_nll.npy")
    (copy / "token_bytes.npy").unlink()
    (copy / "note.txt").write_text("x")
    assert {"val_nll.npy", "token_bytes.npy", "note.txt"} <= set(wrong(copy))


def test_a_story_of_the_validation_part_in_training_is_found(copy: Path) -> None:
    dataset = open_dataset(copy)
    stolen = np.concatenate([[dataset.eot], dataset.documents("val")[17]]).astype(np.uint16)
    edit(copy / "train_000000.bin", lambda tokens: np.concatenate([tokens[:-1], stolen, stolen, tokens[-1:]]))
    said = wrong(copy)["validation and training"]
    assert "1 of 60 validation documents are training documents too" in said
    assert repr(dataset.tokenizer.decode(dataset.documents("val")[17][:20])) in said


def test_what_training_repeats_is_counted_and_not_wrong(copy: Path) -> None:
    first = open_dataset(copy).documents("train")[0]
    again = [*first, open_dataset(copy).eot]
    edit(copy / "train_000000.bin", lambda tokens: np.concatenate([tokens, again, again]).astype(np.uint16))
    assert set(wrong(copy)) == {"train"}, "its counts, as the manifest has them"
    assert "OK    within training: 2 of 302 documents repeat an earlier one" in map(str, verify(copy))


def test_stories_of_another_version_are_not_computed_again(copy: Path) -> None:
    np.save(copy / "val_nll.npy", np.load(copy / "val_nll.npy") + 1)
    sign(copy)
    change_manifest(copy, lambda m: m["source"].update(source_sha256="of another version"))
    assert wrong(copy) == {}
    assert any("another version's" in finding.said for finding in verify(copy))


def test_texts_have_no_probabilities_and_single_texts_no_duplicates(text_config: TextConfig, tmp_path: Path) -> None:
    folder = prepare_dataset(text_config("To be, or not to be. " * 50, tokenizer="char"), tmp_path)
    assert wrong(folder) == {} and "val_nll.npy" not in {finding.what for finding in verify(folder)}


def test_published_shards_may_begin_inside_a_document(copy: Path) -> None:
    edit(copy / "train_000000.bin", lambda tokens: tokens[5:])
    change_manifest(copy, lambda m: m["source"].update(corpus="fineweb10B"))
    assert set(wrong(copy)) == {"train"}, "counts still differ"


# --- single files -----------------------------------------------------------------------------------------------

IDS = np.array([5, 0, 383, 7], dtype=np.uint16)


def test_single_files_are_read_as_what_they_are(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", IDS)
    write_npy(tmp_path / "b.npy", [IDS], eot=0)
    IDS.tofile(tmp_path / "c.bin")
    for name, options in (("a.bin", {}), ("b.npy", {}), ("c.bin", {"headerless": True})):
        (finding,) = verify(tmp_path / name, vocab_size=384, **options)  # type: ignore[arg-type]
        assert str(finding) == f"OK    {name}: 4 tokens as uint16, ids 0 to 383"
        assert "do not fit a vocabulary of 383" in wrong(tmp_path / name, vocab_size=383, **options)[name]
    assert "add --headerless" in wrong(tmp_path / "c.bin")["c.bin"]


def test_ids_that_are_none_are_found(tmp_path: Path) -> None:
    for name, ids, said in (
        ("low.npy", np.array([-1, 2], np.int32), "ids -1 to 2: they do not fit uint16"),
        ("high.npy", np.array([1, 70_000], np.int64), "ids 1 to 70,000: they do not fit uint16"),
        ("floats.npy", np.array([1.5]), "float64 of shape (1,)"),
        ("wide.npy", np.ones((2, 2), np.uint16), "uint16 of shape (2, 2)"),
    ):
        np.save(tmp_path / name, ids)
        assert said in wrong(tmp_path / name)[name]


def test_a_shard_of_a_dataset_is_checked_against_its_manifest(copy: Path) -> None:
    assert wrong(copy / "val_000000.bin") == wrong(copy / "val_nll.npy") == {}
    assert len(list(verify(copy / "val_000000.bin"))) == 2
    edit(copy / "val_000000.bin", lambda tokens: tokens.__setitem__(3, 320))
    assert "do not fit a vocabulary of 320" in wrong(copy / "val_000000.bin")["val_000000.bin"]
    flip(copy / "val_000000.bin")
    assert "altered: its SHA-256" in wrong(copy / "val_000000.bin")["val_000000.bin"]


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder; name"):
        list(verify(tmp_path / "absent"))
