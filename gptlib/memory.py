"""What tensors occupy, measured: what autograd keeps for the backward pass, and parameters, gradients, optimizer state.

All sizes are bytes of storages, each counted once at its full size, however many tensors view it and however little of
it they show: no part of a storage can be freed. `accounting.memory_estimate` predicts the same without a model.
"""

import contextlib
from collections.abc import Iterable
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from gptlib.data.loader import Batch
from gptlib.device import Place

Storages = WeakSet[torch.UntypedStorage]  # weak: to measure a tensor must not keep it alive


class SavedActivations(saved_tensors_hooks):
    """Around a forward pass: `bytes` is what autograd keeps for the backward pass at the end of the block.

        with SavedActivations(model) as saved:
            loss = model(tokens_bt, targets_bt)
        print(saved.bytes)

    Parameters and buffers of `model` are left out, they are there anyway; the inputs count where they are kept. End the
    block before the backward pass, which frees what was kept, and hold the loss until then. Numbers and lifetimes stay
    as they are. Of nested blocks only the innermost one sees anything (a rule of torch's hooks).
    """

    def __init__(self, model: nn.Module) -> None:
        seen: Storages = WeakSet()

        def pack(tensor: Tensor) -> Tensor:
            seen.add(tensor.untyped_storage())
            return tensor.detach()  # an output that is kept with its graph would be a cycle, freed late

        super().__init__(pack, lambda tensor: tensor)
        self.bytes = 0
        self._seen, self._own = seen, _storages([*model.parameters(), *model.buffers()])

    def __enter__(self) -> "SavedActivations":  # type: ignore[override]
        super().__enter__()
        return self

    def __exit__(self, *args: object) -> None:
        super().__exit__(*args)
        self.bytes = sum(storage.nbytes() for storage in self._seen if storage not in self._own)


def tensor_memory(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, int]:
    """Bytes of `parameters`, `gradients` and `optimizer` state as they are now.

    Gradients exist between a backward pass and zero_grad, optimizer state from the first step on.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    states = [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()]
    return {
        "parameters": _bytes(model.parameters()),
        "gradients": _bytes(gradients),
        "optimizer": _bytes(value for value in states if isinstance(value, Tensor)),
    }


def memory_report(
    model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], batch: Batch, rows: int, place: Place
) -> dict[str, float]:
    """MiB of tensors and process after training: what the eager model keeps of `rows` rows of `batch` is measured anew.

    Gradients, gone by then, are as large as the parameters. `tensor_mib` is the sum of the four; beside it stand what
    the device and the process had at most (Place.peak_memory).
    """
    peaks = place.peak_memory()  # before anything is added to it
    sizes = tensor_memory(model, optimizers)
    sizes["gradients"] = sizes["parameters"]
    with contextlib.suppress(torch.OutOfMemoryError):  # of a compiled model, which needs less: nothing is known then
        inputs_bt, targets_bt = (place.tensor(side[:rows]) for side in (batch.inputs, batch.targets))
        with SavedActivations(model) as saved, place.autocast():
            loss = model(inputs_bt, targets_bt)
        del loss
        sizes["activations"] = saved.bytes
    if "activations" not in sizes:
        return {f"{name}_mib": size / 2**20 for name, size in sizes.items()} | peaks
    return {f"{name}_mib": size / 2**20 for name, size in {**sizes, "tensor": sum(sizes.values())}.items()} | peaks


def _storages(tensors: Iterable[Tensor]) -> Storages:
    return WeakSet(tensor.untyped_storage() for tensor in tensors)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(storage.nbytes() for storage in _storages(tensors))
