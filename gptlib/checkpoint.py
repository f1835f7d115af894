"""Exact save and resume: a folder that is either complete and verified, or not taken for a checkpoint.

model.safetensors   weights by parameter name, without wrapper prefixes
optim.pt            optimizer state by parameter name (only where optimizers were given)
state.json          whatever the caller needs to continue: step, rows consumed, ...
MANIFEST.json       size and SHA-256 of each file, written last
"""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

WEIGHTS, OPTIM, STATE, MANIFEST = "model.safetensors", "optim.pt", "state.json", "MANIFEST.json"
WRAPPERS = {"_orig_mod", "module"}  # torch.compile, DistributedDataParallel


def save_checkpoint(
    path: Path, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], state: dict[str, Any]
) -> None:
    """Write the checkpoint folder `path`; an older one there is replaced, and stays whole until the new one is.

    `state` is JSON-plain. Written and synced as `path`.tmp-<pid>, then renamed; removed where writing fails.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write_files(temporary, model, optimizers, state)
    except Exception:  # a full disk should not stay full
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _move_into_place(temporary, path)


def _write_files(
    folder: Path, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], state: dict[str, Any]
) -> None:
    weights = {_bare(name): tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    optim = _optimizer_states(model, optimizers)
    if optim:
        torch.save(optim, folder / OPTIM)
    _write_json(folder / STATE, state)
    files = sorted(folder.iterdir())
    for file in files:
        _sync(file)
    _write_json(folder / MANIFEST, {file.name: _size_and_hash(file) for file in files})
    _sync(folder / MANIFEST)
    _sync(folder)


def verify_checkpoint(path: Path) -> None:
    """Check every file's size and SHA-256. Raises ValueError naming the first file that is missing or differs."""
    _verified(path)


def load_checkpoint(path: Path, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer] = ()) -> dict[str, Any]:
    """Verify `path`, then put it into `model` and `optimizers`; returns the saved `state`.

    Raises ValueError (one line, naming the file) when a file is missing, altered or of another model or optimizer.
    Learning rates and other settings are not restored: they come from the configuration.
    """
    folder, optimizers = _verified(path), list(optimizers)
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS}: not a safetensors file ({error})") from None
    names = {_bare(name): name for name in model.state_dict()}
    expected = {_bare(name): tensor.shape for name, tensor in model.state_dict().items()}
    _require_same(folder / WEIGHTS, {name: tensor.shape for name, tensor in weights.items()}, expected)
    if optimizers:
        _restore_optimizers(folder / OPTIM, model, optimizers)
    model.load_state_dict({names[name]: tensor for name, tensor in weights.items()})
    return json.loads((folder / STATE).read_text(encoding="utf-8"))


# --- optimizer state by parameter name --------------------------------------------------------------------------


def _named_positions(
    model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]
) -> Iterator[tuple[str, torch.optim.Optimizer, nn.Parameter]]:
    """(name, optimizer, parameter), in the order in which torch numbers each optimizer's parameters."""
    names = {id(parameter): _bare(name) for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                yield names[id(parameter)], optimizer, parameter


def _optimizer_states(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, dict[str, Any]]:
    return {
        name: {"optimizer": type(optimizer).__name__, "state": dict(optimizer.state.get(parameter, {}))}
        for name, optimizer, parameter in _named_positions(model, optimizers)
    }


def _restore_optimizers(file: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    if not file.exists():
        raise ValueError(f"{file}: missing; this checkpoint was saved without optimizers and cannot be continued")
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file}: cannot be read ({str(error).splitlines()[0]})") from None
    positions = list(_named_positions(model, optimizers))
    _require_same(
        file,
        {name: entry["optimizer"] for name, entry in saved.items()},
        {name: type(optimizer).__name__ for name, optimizer, _ in positions},
    )
    for optimizer in optimizers:
        states = [saved[name]["state"] for name, owner, _ in positions if owner is optimizer]
        # torch's own loader moves each tensor to its parameter's device and keeps step counters as they are
        numbered = {number: state for number, state in enumerate(states) if state}
        optimizer.load_state_dict({"state": numbered, "param_groups": optimizer.state_dict()["param_groups"]})


def _require_same(file: Path, saved: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in sorted(saved.keys() | expected.keys()):
        found, wanted = saved.get(name), expected.get(name)
        if found != wanted:
            raise ValueError(
                f"{file}: {name} is {_plain(found)} here but {_plain(wanted)} in this run; "
                "load it with the configuration it was saved with"
            )


def _plain(value: Any) -> str:
    return "absent" if value is None else str(tuple(value) if isinstance(value, torch.Size) else value)


# --- files ------------------------------------------------------------------------------------------------------


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _moved_aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.old")


def _move_into_place(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`. A folder cannot be renamed over a full one: the older one steps aside meanwhile."""
    aside = _moved_aside(path)
    if path.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)
    os.rename(temporary, path)
    _sync(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _verified(path: Path) -> Path:
    """The folder that holds checkpoint `path` (the older one, if the writer died between its two renames)."""
    folder = path if path.exists() or not _moved_aside(path).exists() else _moved_aside(path)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        recorded = {name: (entry["size"], entry["sha256"]) for name, entry in manifest.items()}
    except FileNotFoundError:
        raise ValueError(f"{folder / MANIFEST}: missing; {folder} is not a complete checkpoint") from None
    except (ValueError, AttributeError, KeyError, TypeError):
        raise ValueError(f"{folder / MANIFEST}: damaged; delete {folder} and use another checkpoint") from None
    for name in sorted({WEIGHTS, STATE} | recorded.keys()):
        file = folder / name
        if not file.is_file() or name not in recorded:
            raise ValueError(f"{file}: missing; delete {folder} and use another checkpoint")
        found = _size_and_hash(file)
        if (found["size"], found["sha256"]) != recorded[name]:
            raise ValueError(f"{file}: damaged (size or SHA-256 differs); delete {folder} and use another checkpoint")
    return folder


def _size_and_hash(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"size": file.stat().st_size, "sha256": digest}


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=1, allow_nan=False), encoding="utf-8")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
