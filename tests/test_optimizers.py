import math
from typing import Any

import pytest
import torch

from gptlib.fields import ModelConfig, OptimConfig
from gptlib.model import GPT
from gptlib.muon import Muon
from gptlib.optimizers import build_optimizers, set_lr

SMALL: dict[str, Any] = {"num_layers": 2, "model_dim": 16, "num_heads": 2, "seq_len": 8}


def groups_by_name(model: GPT, optimizers: list[torch.optim.Optimizer]) -> dict[str, tuple[str, type]]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: (group["name"], type(optimizer))
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    }


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("value_embeds", [True, False])
def test_each_parameter_goes_where_it_belongs(matrices: str, tied: bool, value_embeds: bool) -> None:
    model = GPT(ModelConfig(**SMALL, tied_head=tied, value_embeds=value_embeds), 64)
    placed = groups_by_name(model, build_optimizers(model, OptimConfig(matrices=matrices)))
    assert placed.keys() == {name for name, _ in model.named_parameters()}
    adamw = torch.optim.AdamW
    for name, place in placed.items():
        if "attn.value_embed.table" in name:
            assert place == ("embed", adamw)
        elif "gate" in name:
            assert place == ("scalar", adamw)
        elif name.startswith("blocks"):
            assert place == ("matrix", Muon if matrices == "muon" else adamw)
        else:
            assert place == ("head" if tied or name == "head.weight" else "embed", adamw)


@pytest.mark.parametrize(("matrices", "matrix_lr"), [("muon", 0.5), ("adamw", 0.25)])
def test_rates_come_from_the_configuration(matrices: str, matrix_lr: float) -> None:
    rates = {"matrix_lr": 0.25, "embed_lr": 0.1, "head_lr": 0.2, "scalar_lr": 0.3, "weight_decay": 0.7, "eps": 1e-9}
    muon = {"lr": 0.5, "momentum": 0.8, "weight_decay": 0.6, "iterations": 3, "orthogonalize": "newton_schulz"}
    config = OptimConfig.model_validate({"matrices": matrices, "muon": muon, "adamw": rates})
    optimizers = build_optimizers(GPT(ModelConfig(**SMALL), 64), config)
    groups = {group["name"]: group for optimizer in optimizers for group in optimizer.param_groups}
    assert {name: group["base_lr"] for name, group in groups.items()} == {
        "matrix": matrix_lr,
        "embed": 0.1,
        "head": 0.2,
        "scalar": 0.3,
    }
    assert groups["embed"]["weight_decay"] == 0.7 and groups["embed"]["eps"] == 1e-9
    if matrices == "muon":
        del muon["lr"]
        assert muon.items() <= groups["matrix"].items() and groups["matrix"]["nesterov"] is True


def test_set_lr_scales_every_group_from_its_base() -> None:
    optimizers = build_optimizers(GPT(ModelConfig(**SMALL), 64), OptimConfig())
    for multiplier in (0.5, 0.0, 1.0):
        set_lr(optimizers, multiplier)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            assert group["lr"] == group["base_lr"] * multiplier


def test_an_unknown_parameter_is_named() -> None:
    model = GPT(ModelConfig(**SMALL), 64)
    model.blocks[1].add_module("gain", torch.nn.Linear(2, 2))
    with pytest.raises(AssertionError, match=r"blocks\.1\.gain\.weight"):
        build_optimizers(model, OptimConfig())


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_training_learns_more_than_the_current_token_can_tell(matrices: str) -> None:
    """Token 5 is followed once by 9 and once by 1: without context the loss cannot go below 2 ln 2 / 8."""
    model = GPT(ModelConfig.model_validate(SMALL), 64)
    model.init_weights(1)
    optimizers = build_optimizers(
        model, OptimConfig.model_validate({"matrices": matrices, "adamw": {"head_lr": 0.05, "embed_lr": 0.05}})
    )
    sequence = torch.tensor([5, 9, 2, 7, 5, 1, 8, 3, 5])
    losses = []
    for _ in range(60):
        loss = model(sequence[None, :-1], sequence[None, 1:])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(64)) and losses[-1] < math.log(2) / 4 / 2
