import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlib import checkpoint
from gptlib.checkpoint import load_checkpoint, save_checkpoint, verify_checkpoint
from gptlib.fields import ModelConfig, OptimConfig
from gptlib.model import GPT
from gptlib.optimizers import build_optimizers

Trained = tuple[GPT, list[torch.optim.Optimizer]]
FILES = ["model.safetensors", "optim.pt", "state.json", "MANIFEST.json"]


def fresh(seed: int = 1, matrices: str = "muon", **changes: Any) -> Trained:
    model = GPT(ModelConfig(**{"num_layers": 2, "model_dim": 16, "num_heads": 2, "seq_len": 8, **changes}), 64)
    model.init_weights(seed)
    return model, build_optimizers(model, OptimConfig.model_validate({"matrices": matrices}))


def train(trained: Trained, first: int, last: int) -> None:
    model, optimizers = trained
    for step in range(first, last):
        tokens = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(step))
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def everything(trained: Trained) -> list[torch.Tensor]:
    """Weights and optimizer state, in the order of the model's parameters."""
    model, optimizers = trained
    states = [o.state[p] for p in model.parameters() for o in optimizers if p in o.state]
    return [*model.state_dict().values(), *(state[key] for state in states for key in sorted(state))]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    trained = fresh()
    train(trained, 0, 2)
    save_checkpoint(tmp_path / "ckpt", *trained, {"step": 2})
    return tmp_path / "ckpt"


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
@pytest.mark.parametrize("tied", [True, False])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path, matrices: str, tied: bool) -> None:
    straight, stopped = (fresh(1, matrices, tied_head=tied) for _ in range(2))
    train(straight, 0, 6)
    train(stopped, 0, 3)
    save_checkpoint(tmp_path / "ckpt", *stopped, {"step": 3, "rows": 6})
    resumed = fresh(2, matrices, tied_head=tied)
    state = load_checkpoint(tmp_path / "ckpt", *resumed)
    assert state == {"step": 3, "rows": 6}
    train(resumed, 3, 6)
    assert len(everything(straight)) == len(everything(resumed)) > 20
    assert all(torch.equal(a, b) for a, b in zip(everything(straight), everything(resumed), strict=True))


def test_loading_keeps_the_rates_of_the_new_run(saved: Path) -> None:
    model, optimizers = fresh()
    optimizers[0].param_groups[0]["lr"] = 0.123
    load_checkpoint(saved, model, optimizers)
    assert optimizers[0].param_groups[0]["lr"] == 0.123


def test_weights_alone_can_be_saved_and_loaded(tmp_path: Path, saved: Path) -> None:
    model, _ = fresh(3)
    save_checkpoint(tmp_path / "weights", model, (), {})
    other, optimizers = fresh(4)
    assert load_checkpoint(tmp_path / "weights", other) == {}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"optim\.pt: missing"):
        load_checkpoint(tmp_path / "weights", other, optimizers)
    assert load_checkpoint(saved, other) == {"step": 2}  # optimizer state may be left unread


def wrapped(model: GPT) -> torch.nn.Module:
    compiled = torch.compile(model)  # lazily: nothing is compiled until it is called
    assert isinstance(compiled, torch.nn.Module) and "_orig_mod.embed.weight" in compiled.state_dict()
    return compiled


def test_compiled_and_plain_models_share_checkpoints(tmp_path: Path) -> None:
    model, optimizers = fresh(3)
    train((model, optimizers), 0, 1)
    save_checkpoint(tmp_path / "ckpt", wrapped(model), optimizers, {})
    plain = fresh(4)
    load_checkpoint(tmp_path / "ckpt", *plain)
    assert all(torch.equal(a, b) for a, b in zip(everything((model, optimizers)), everything(plain), strict=True))
    load_checkpoint(tmp_path / "ckpt", wrapped(fresh(5)[0]))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["bit flip", "truncation", "deletion"])
def test_damage_is_found_and_the_file_named(saved: Path, name: str, damage: str) -> None:
    verify_checkpoint(saved)
    content = bytearray((saved / name).read_bytes())
    if damage == "bit flip":
        content[len(content) // 2] ^= 1
    (saved / name).write_bytes(content[:-3] if damage == "truncation" else content)
    if damage == "deletion":
        (saved / name).unlink()
    model, optimizers = fresh(9)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError) as error:
        load_checkpoint(saved, model, optimizers)
    assert "\n" not in str(error.value)
    assert name in str(error.value) or name == "MANIFEST.json"  # a flip there may hit the hash of another file
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_another_model_or_optimizer_is_refused_by_name(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.safetensors: blocks\.0\.attn\.k\.weight is \(16, 16\) here but"):
        load_checkpoint(saved, fresh(model_dim=32)[0])
    with pytest.raises(ValueError, match=r"head\.weight is \(64, 16\) here but absent"):
        load_checkpoint(saved, fresh(tied_head=True)[0])
    with pytest.raises(ValueError, match=r"optim\.pt: blocks\.0\.attn\.k\.weight is Muon here but AdamW"):
        load_checkpoint(saved, *fresh(matrices="adamw"))


def test_a_partial_folder_is_never_taken_for_a_checkpoint(
    tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_size_and_hash", killed)  # the last thing before the manifest
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "next", *fresh(), {})
    monkeypatch.undo()
    (partial,) = tmp_path.glob("next.tmp-*")
    for path in (partial, tmp_path / "next"):
        with pytest.raises(ValueError, match="not a complete checkpoint"):
            verify_checkpoint(path)
    verify_checkpoint(saved)


def test_replacing_keeps_one_whole_checkpoint_at_every_moment(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, renames = os.rename, []

    def rename(source: Path, target: Path) -> None:
        renames.append((source, target))
        if len(renames) == 2:
            raise KeyboardInterrupt  # the older folder has stepped aside, the new one is not in place
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(saved, *fresh(), {"step": 4})
    monkeypatch.undo()
    assert load_checkpoint(saved, fresh()[0]) == {"step": 2}
    save_checkpoint(saved, *fresh(), {"step": 5})
    assert load_checkpoint(saved, fresh()[0]) == {"step": 5}
    assert [p.name for p in saved.parent.iterdir()] == ["ckpt"]


def test_a_manifest_that_forgets_the_weights_is_refused(saved: Path) -> None:
    manifest = json.loads((saved / "MANIFEST.json").read_text())
    del manifest["model.safetensors"]
    (saved / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        verify_checkpoint(saved)


def test_optimizer_files_with_code_are_refused(saved: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (shutil.rmtree, (str(saved),))

    torch.save({"embed.weight": Attack()}, saved / "optim.pt")
    manifest = json.loads((saved / "MANIFEST.json").read_text())
    manifest["optim.pt"] = checkpoint._size_and_hash(saved / "optim.pt")
    (saved / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"optim\.pt: cannot be read"):
        load_checkpoint(saved, *fresh())
    assert saved.exists()


def test_a_failed_save_leaves_nothing_and_keeps_the_older_one(saved: Path) -> None:
    with pytest.raises(ValueError):
        save_checkpoint(saved, *fresh(), {"loss": float("nan")})  # not JSON
    assert load_checkpoint(saved, fresh()[0]) == {"step": 2}
    assert [p.name for p in saved.parent.iterdir()] == ["ckpt"]


def test_wrapper_names_are_dropped_and_look_alikes_kept() -> None:
    assert checkpoint._bare("module._orig_mod.blocks.0._orig_mod.submodule.weight") == "blocks.0.submodule.weight"
