import math
import re
from typing import Any

import pytest
import torch

from gptlib.fields import ModelConfig, OptimConfig, RunConfig
from gptlib.model import GPT
from gptlib.muon import Muon
from gptlib.optimizers import build_optimizers, set_rates
from gptlib.schedules import Rates, rates

SMALL: dict[str, Any] = {"num_layers": 2, "model_dim": 16, "num_heads": 2, "seq_len": 8}
HEADS: dict[str, Any] = {"num_layers": 2, "model_dim": 48, "num_heads": 6, "num_kv_heads": 3, "seq_len": 8}  # of 8 rows


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
        if name.startswith("value_tables"):
            assert place == ("embed", adamw)
        elif "gate" in name:
            assert place == ("scalar", adamw)
        elif name.startswith("blocks"):
            assert place == ("matrix", Muon if matrices == "muon" else adamw)
        else:
            assert place == ("head" if tied or name == "head.weight" else "embed", adamw)


# Every kind of parameter, by the models that have it.
RICH: list[dict[str, Any]] = [
    {
        **{"norm": "layer", "norm_gain": True, "norm_bias": True, "bias": True, "position": "learned"},
        **{"attention_gate": True, "num_kv_heads": 1, "value_mix": "lambdas", "unet_skips": True, "smear": True},
        **{"residual_lambdas": True, "x0_lambdas": True, "backout": True, "bigram_embeds": True, "head_bias": True},
        **{"qk_gain": True},
    },
    {"activation": "swiglu", "tied_head": True, "head_bias": True, "parallel_block": True, "norm_gain": True},
    {"activation": "geglu", "bias": True, "value_mix": "gate", "norm_placement": "post", "norm_gain": True},
]
KINDS = {
    "matrix": r"blocks\.\d+\.(attn\.[qkvo]|mlp\.(up|down|w1|w2|w3))\.weight",
    "embed": r"(embed|bigram_table|value_tables\.\d+)\.weight",
    "head": r"head\.weight",
    "scalar": r".*(positions\.weight|norm\.weight|gate\.weight|bias|lambdas?|skip_weights|qk_gain)",
}


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_each_kind_of_parameter_has_its_role(matrices: str) -> None:
    kinds = set()
    for changes in RICH:
        model = GPT(ModelConfig(**SMALL, **changes), 64)
        placed = groups_by_name(model, build_optimizers(model, OptimConfig(matrices=matrices)))
        assert placed.keys() == {name for name, _ in model.named_parameters()}
        for name, (role, optimizer) in placed.items():
            (expected,) = (kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, name))
            tied = name == "embed.weight" and changes.get("tied_head")
            assert role == ("head" if tied else expected), name
            assert optimizer is (Muon if role == "matrix" and matrices == "muon" else torch.optim.AdamW), name
            kinds.add(re.sub(r"\.\d+\.", ".", name))
    assert (
        len(kinds) == 45
    )  # 9 matrices, 3 tables, a head, positions, 3 gates, 5 norms with 4 biases, 11 other biases, 8 weights


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
@pytest.mark.parametrize("decay_vectors", [True, False])
def test_vectors_are_decayed_only_if_asked(decay_vectors: bool, matrices: str) -> None:
    """Without a gradient nothing but the decay moves a parameter: by 1 - lr * decay."""
    adamw = {"weight_decay": 0.5, "decay_vectors": decay_vectors}
    config = OptimConfig.model_validate({"matrices": matrices, "muon": {"weight_decay": 0.25}, "adamw": adamw})
    for changes in RICH:
        model = GPT(ModelConfig(**SMALL, **changes), 64)
        optimizers = build_optimizers(model, config)
        roles = groups_by_name(model, optimizers)
        for parameter in model.parameters():
            torch.nn.init.ones_(parameter)
            parameter.grad = torch.zeros_like(parameter)
        for optimizer in optimizers:
            optimizer.step()
        rates = {"matrix": config.matrix_lr, "embed": 0.3, "head": 0.02, "scalar": 0.01}
        for name, parameter in model.named_parameters():
            role, optimizer = roles[name]
            decay = 0.25 if optimizer is Muon else 0.5 if decay_vectors or parameter.ndim > 1 else 0.0
            assert parameter.flatten()[0].item() == pytest.approx(1 - rates[role] * decay, abs=1e-6), name
            assert (parameter == parameter.flatten()[0]).all()


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
@pytest.mark.parametrize("decay_vectors", [True, False])
def test_lr_scale_multiplies_every_rate(matrices: str, decay_vectors: bool) -> None:
    def rates(scale: float) -> list[tuple[str, float]]:
        adamw = {"decay_vectors": decay_vectors}
        config = OptimConfig.model_validate({"matrices": matrices, "lr_scale": scale, "adamw": adamw})
        optimizers = build_optimizers(GPT(ModelConfig(**SMALL, **RICH[0]), 64), config)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        assert all(group["lr"] == group["base_lr"] for group in groups)
        matrix_lr = next(group["base_lr"] for group in groups if group["name"] == "matrix")
        assert config.matrix_lr == matrix_lr
        return [(group["name"], group["base_lr"]) for group in groups]

    once, thrice = rates(1.0), rates(3.0)
    assert dict(once) == {"matrix": 0.04 if matrices == "muon" else 0.006, "embed": 0.3, "head": 0.02, "scalar": 0.01}
    assert thrice == [(name, pytest.approx(3 * rate)) for name, rate in once]


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


def all_groups(optimizers: list[torch.optim.Optimizer]) -> list[dict[str, Any]]:
    return [group for optimizer in optimizers for group in optimizer.param_groups]


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_set_rates_scales_every_group_from_its_base(matrices: str) -> None:
    adamw = {"weight_decay": 0.5, "decay_vectors": False}
    muon = {"weight_decay": 0.25, "split_heads": 1}
    config = OptimConfig.model_validate({"matrices": matrices, "adamw": adamw, "muon": muon})
    optimizers = build_optimizers(GPT(ModelConfig(**SMALL, **RICH[0]), 64), config, head_dim=8)
    decays = {"matrix": 0.25 if matrices == "muon" else 0.5}
    peaks = {"matrix": config.matrix_lr, "embed": 0.3, "head": 0.02, "scalar": 0.01}
    for lr, decay, momentum in ((0.5, 0.25, 0.85), (0.0, 0.0, 0.9), (1.0, 1.0, 0.95), (0.5, 1.0, 0.9)):
        set_rates(optimizers, Rates(lr, decay, momentum))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                vectors = all(p.ndim < 2 for p in group["params"])
                assert group["lr"] == peaks[group["name"]] * lr
                assert group["weight_decay"] == (0.0 if vectors else decays.get(group["name"], 0.5) * decay)
                if isinstance(optimizer, Muon):
                    assert group["momentum"] == momentum
                else:
                    assert "momentum" not in group and group["betas"] == (0.8, 0.95)


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_what_a_step_takes_off_follows_both_schedules(matrices: str) -> None:
    """Without a gradient nothing but the decay moves a parameter: by lr * decay, each times its factor."""
    settings = {"matrices": matrices, "muon": {"weight_decay": 0.25}, "adamw": {"weight_decay": 0.5}}
    config = OptimConfig.model_validate(settings)
    model = GPT(ModelConfig(**SMALL), 64)
    optimizers = build_optimizers(model, config)
    roles = groups_by_name(model, optimizers)
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    left = dict.fromkeys(("matrix", "embed", "head", "scalar"), 1.0)
    rates = {"matrix": config.matrix_lr, "embed": 0.3, "head": 0.02, "scalar": 0.01}
    for lr, decay in ((1.0, 1.0), (0.5, 0.5), (0.1, 0.0), (0.25, 1.0)):
        set_rates(optimizers, Rates(lr, decay, 0.9))
        for optimizer in optimizers:
            optimizer.step()
        for role, rate in rates.items():
            left[role] *= 1 - lr * rate * decay * (0.25 if role == "matrix" and matrices == "muon" else 0.5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, left[roles[name][0]]))


def test_the_decay_of_the_speedrun_of_2026() -> None:
    """modded-nanogpt has weight decay 1.2 and rate 0.023 f, f being scheduled, and takes off 1.2 (0.023 f)^2 at a step.

    Ours is then 1.2 * 0.023, scheduled like the rate. A zero update agrees with every sign.
    """
    muon = {"lr": 0.023, "weight_decay": 1.2 * 0.023, "cautious": True, "normuon": True, "beta2": 0.9}
    muon |= {"split_heads": 2, "split_parts": ["q", "k"]}
    schedule = {"cooldown": 0.6, "final": 0.15, "weight_decay": "lr"}
    optim = OptimConfig.model_validate({"muon": muon})
    config = RunConfig.model_validate({"optim": optim, "schedule": schedule, "train": {"steps": 10}})
    model = GPT(ModelConfig(**HEADS), 64)
    optimizers = build_optimizers(model, optim, head_dim=8)
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    left = 1.0
    for step in range(10):
        set_rates(optimizers, rates(config, step / 10))
        optimizers[0].step()
        f = 1.0 if step < 4 else 1 - 0.85 * (step - 4) / 6
        left *= 1 - 1.2 * (0.023 * f) ** 2
    assert 1 - left == pytest.approx(4.5e-3, rel=0.1)
    for parameter in (p for group in optimizers[0].param_groups for p in group["params"]):
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, left), atol=1e-6, rtol=0)


@pytest.mark.parametrize("decay_vectors", [True, False])
def test_the_unscheduled_decay_of_a_group_is_kept(decay_vectors: bool) -> None:
    adamw = {"weight_decay": 0.5, "decay_vectors": decay_vectors}
    config = OptimConfig.model_validate({"muon": {"weight_decay": 0.25}, "adamw": adamw})
    for group in all_groups(build_optimizers(GPT(ModelConfig(**SMALL, **RICH[0]), 64), config)):
        vectors = group["params"][0].ndim < 2
        expected = 0.25 if group["name"] == "matrix" else 0.0 if vectors and not decay_vectors else 0.5
        assert group["base_weight_decay"] == group["weight_decay"] == expected
        assert len({p.ndim < 2 for p in group["params"]}) == 1 or decay_vectors


# --- heads as matrices of their own -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("muon", "expected"),
    [
        ({}, {"q": 0, "k": 0, "v": 0}),
        ({"split_heads": 1}, {"q": 8, "k": 8, "v": 8}),
        ({"split_heads": 1, "split_parts": ["q", "k"]}, {"q": 8, "k": 8, "v": 0}),
        ({"split_heads": 1, "split_parts": []}, {"q": 0, "k": 0, "v": 0}),
        ({"split_heads": 2}, {"q": 16, "k": 0, "v": 0}),  # three heads of keys are no whole number of pairs
        ({"split_heads": 3, "split_parts": ["k", "v"]}, {"q": 0, "k": 24, "v": 24}),
        ({"split_heads": 6}, {"q": 48, "k": 0, "v": 0}),  # more heads than there are of keys
        ({"split_heads": 4}, {"q": 0, "k": 0, "v": 0}),
    ],
)
def test_heads_are_split_where_they_are_whole_blocks(muon: dict[str, Any], expected: dict[str, int]) -> None:
    model = GPT(ModelConfig(**HEADS), 64)
    optimizers = build_optimizers(model, OptimConfig.model_validate({"muon": muon}), head_dim=8)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: group["block_rows"] for group in optimizers[0].param_groups for p in group["params"]}
    assert len(found) == 2 * 6 and sum(len(g["params"]) for g in optimizers[0].param_groups) == 2 * 6
    for name, rows in found.items():
        assert rows == expected.get(name.split(".")[-2], 0), f"{name}: only q, k and v are ever split"
    assert all(group["name"] == "matrix" and group["base_lr"] == 0.04 for group in optimizers[0].param_groups)


def test_each_head_gets_an_orthogonal_update_of_its_own() -> None:
    model = GPT(ModelConfig(**HEADS), 64)
    muon = {"split_heads": 1, "split_parts": ["q", "k"], "orthogonalize": "convergent", "iterations": 20}
    optimizer = build_optimizers(model, OptimConfig.model_validate({"muon": muon | {"lr": 1.0}}), head_dim=8)[0]
    for number, parameter in enumerate(model.parameters()):
        generator = torch.Generator().manual_seed(number)
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    for name, p in model.named_parameters():
        part = name.split(".")[-2]
        if name.startswith("blocks") and "gate" not in name:
            rows = 8 if part in ("q", "k") else len(p)
            for update, gradient in zip((before[name] - p.detach()).split(rows), p.grad.split(rows), strict=True):
                u, _, vt = torch.linalg.svd(gradient.double(), full_matrices=False)
                expected = max(1, rows / p.shape[1]) ** 0.5 * u @ vt
                torch.testing.assert_close(update.double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
@pytest.mark.parametrize("changes", RICH)
def test_every_parameter_is_in_one_group_where_heads_are_split(changes: dict[str, Any], matrices: str) -> None:
    model = GPT(ModelConfig(**SMALL, **changes), 64)
    config = OptimConfig.model_validate({"matrices": matrices, "muon": {"split_heads": 1}})
    members = [id(p) for group in all_groups(build_optimizers(model, config, head_dim=8)) for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in model.parameters())


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
