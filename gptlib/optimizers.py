"""Which optimizer trains which parameter, and how fast."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from gptlib.fields import MuonConfig, OptimConfig
from gptlib.model import part_of
from gptlib.muon import Muon
from gptlib.schedules import Rates

# By the part a matrix belongs to; whatever has one dimension is `scalar`. A tied head is `embed`, trained at the head's
# rate. Positions have a gradient at every step, where a token's row has one now and then: they go with the scalars.
ROLES = {
    **dict.fromkeys(("embed", "value_tables", "bigram_table"), "embed"),
    "head": "head",
    **dict.fromkeys(("positions", "value_gate", "head_gate", "smear_gate"), "scalar"),
    **dict.fromkeys(("q", "k", "v", "o", "up", "down", "w1", "w2", "w3"), "matrix"),
}


def build_optimizers(
    model: nn.Module, config: OptimConfig, head_dim: int = 0, rank: int = 0, world: int = 1
) -> list[torch.optim.Optimizer]:
    """AdamW for embeddings, head, gates and vectors; Muon (first in the list) or AdamW for the matrices of the blocks.

    Every group has a "name" (matrix, embed, head, scalar) and its unscheduled "base_lr" and "base_weight_decay". Weight
    decay is decoupled and multiplied by the current rate. A tied embedding belongs to the group "head". `head_dim` is
    needed where Muon splits heads, `rank` of `world` where it shares its work with other processes.
    """
    groups, adamw = _parameters_by_role(model), config.adamw
    optimizers: list[torch.optim.Optimizer] = []
    if config.matrices == "muon":
        settings = config.muon.model_dump(exclude={"lr", "split_heads", "split_parts"})
        members = _by_blocks(model, groups.pop("matrix"), config.muon, head_dim)
        split_up = [_group("matrix", matrices, config) | {"block_rows": rows} for rows, matrices in members.items()]
        optimizers.append(Muon(split_up, rank=rank, world=world, **settings))
    split = [(role, kind) for role, members in groups.items() for kind in _by_decay(members, adamw.decay_vectors)]
    optimizers.append(
        torch.optim.AdamW(
            [_group(role, members, config) | decay for role, (members, decay) in split],
            betas=adamw.betas,
            eps=adamw.eps,
            weight_decay=adamw.weight_decay,
            fused=True,
        )
    )
    _assert_each_once(model, optimizers)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["base_weight_decay"] = group["weight_decay"]
    return optimizers


def set_rates(optimizers: Iterable[torch.optim.Optimizer], rates: Rates) -> None:
    """Bring every group to its base_lr and base_weight_decay times the scheduled factors, Muon to the momentum."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * rates.lr
            group["weight_decay"] = group["base_weight_decay"] * rates.weight_decay
            if isinstance(optimizer, Muon):
                group["momentum"] = rates.momentum


def _parameters_by_role(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    named = dict(model.named_parameters())
    tied = "head.weight" not in named
    groups: dict[str, list[nn.Parameter]] = {}
    unknown = [name for name, p in named.items() if p.ndim > 1 and part_of(name) not in ROLES]
    assert not unknown, f"parameters without an optimizer (add them to ROLES): {unknown}"
    for name, parameter in named.items():
        role = "scalar" if parameter.ndim < 2 else ROLES[part_of(name)]
        groups.setdefault("head" if tied and name == "embed.weight" else role, []).append(parameter)
    return groups


def _by_blocks(
    model: nn.Module, members: list[nn.Parameter], config: MuonConfig, head_dim: int
) -> dict[int, list[nn.Parameter]]:
    """{rows of a block: matrices}: those of `split_parts` in blocks of `split_heads` heads, the others whole (0)."""
    assert head_dim or not config.split_heads, "to split heads their size must be known"
    parts = {id(p): part_of(name) for name, p in model.named_parameters()}
    rows = config.split_heads * head_dim
    blocks: dict[int, list[nn.Parameter]] = {}
    for p in members:  # keys and values may have fewer heads than one block
        split = rows if parts[id(p)] in config.split_parts and len(p) % max(1, rows) == 0 else 0
        blocks.setdefault(split, []).append(p)
    return blocks


def _by_decay(members: list[nn.Parameter], decay_vectors: bool) -> list[tuple[list[nn.Parameter], dict[str, Any]]]:
    """The members that are decayed as configured, and those that are not decayed at all."""
    if decay_vectors:
        return [(members, {})]
    split = [p for p in members if p.ndim > 1], [p for p in members if p.ndim < 2]
    return [(group, rule) for group, rule in zip(split, ({}, {"weight_decay": 0.0}), strict=True) if group]


def _group(role: str, parameters: list[nn.Parameter], config: OptimConfig) -> dict[str, Any]:
    adamw = config.adamw
    rates = {"embed": adamw.embed_lr, "head": adamw.head_lr, "scalar": adamw.scalar_lr}
    rate = config.matrix_lr if role == "matrix" else config.lr_scale * rates[role]
    return {"params": parameters, "name": role, "lr": rate, "base_lr": rate}


def _assert_each_once(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    times: dict[int, int] = {}
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        for parameter in group["params"]:
            times[id(parameter)] = times.get(id(parameter), 0) + 1
    wrong = {name: times.get(id(p), 0) for name, p in model.named_parameters() if times.get(id(p), 0) != 1}
    assert not wrong, f"parameters that are not in exactly one optimizer group (name: count): {wrong}"
