"""Which optimizer trains which parameter, and how fast."""

from collections.abc import Iterable

import torch
from torch import nn

from gptlib.config import OptimConfig
from gptlib.muon import Muon

# The module that owns a parameter decides its role. A tied head is `embed`, trained at the head's rate.
ROLES = {
    "embed": "embed",
    "table": "embed",
    "head": "head",
    "gate": "scalar",
    **dict.fromkeys(("q", "k", "v", "o", "up", "down"), "matrix"),
}


def build_optimizers(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """AdamW for embeddings, head and gates; Muon (first in the list) or AdamW for the matrices of the blocks.

    Every group has a "name" (matrix, embed, head, scalar) and its unscheduled rate "base_lr". Weight decay is decoupled
    and follows the schedule (it is multiplied by the current lr). A tied embedding belongs to the group "head".
    """
    groups = _parameters_by_role(model)
    adamw, rates = config.adamw, _base_lrs(config)
    optimizers: list[torch.optim.Optimizer] = []
    if config.matrices == "muon":
        settings = config.muon.model_dump(exclude={"lr"})
        optimizers.append(Muon([_group("matrix", groups.pop("matrix"), rates)], **settings))
    optimizers.append(
        torch.optim.AdamW(
            [_group(role, parameters, rates) for role, parameters in groups.items()],
            betas=adamw.betas,
            eps=adamw.eps,
            weight_decay=adamw.weight_decay,
            fused=True,
        )
    )
    _assert_each_once(model, optimizers)
    return optimizers


def set_lr(optimizers: Iterable[torch.optim.Optimizer], multiplier: float) -> None:
    """Set the rate of every group to base_lr * multiplier."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * multiplier


def _parameters_by_role(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    named = dict(model.named_parameters())
    tied = not any(_part(name) == "head" for name in named)
    groups: dict[str, list[nn.Parameter]] = {}
    unknown = [name for name in named if _part(name) not in ROLES]
    assert not unknown, f"parameters without an optimizer (add them to ROLES): {unknown}"
    for name, parameter in named.items():
        role = "head" if tied and _part(name) == "embed" else ROLES[_part(name)]
        groups.setdefault(role, []).append(parameter)
    return groups


def _part(name: str) -> str:
    return name.split(".")[-2]


def _base_lrs(config: OptimConfig) -> dict[str, float]:
    adamw = config.adamw
    return {"matrix": config.matrix_lr, "embed": adamw.embed_lr, "head": adamw.head_lr, "scalar": adamw.scalar_lr}


def _group(role: str, parameters: list[nn.Parameter], rates: dict[str, float]) -> dict[str, object]:
    return {"params": parameters, "name": role, "lr": rates[role], "base_lr": rates[role]}


def _assert_each_once(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    times: dict[int, int] = {}
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        for parameter in group["params"]:
            times[id(parameter)] = times.get(id(parameter), 0) + 1
    wrong = {name: times.get(id(p), 0) for name, p in model.named_parameters() if times.get(id(p), 0) != 1}
    assert not wrong, f"parameters that are not in exactly one optimizer group (name: count): {wrong}"
