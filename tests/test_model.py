import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from gptlib.fields import ModelConfig
from gptlib.model import GPT, has_value_embed

VOCAB = 50  # padded to 64
SMALL: dict[str, Any] = {"num_layers": 3, "model_dim": 32, "num_heads": 4, "seq_len": 16}
SWITCHES: list[dict[str, Any]] = [
    {"activation": "relu"},
    {"activation": "gelu"},
    {"activation": "silu"},
    {"position": "none"},
    {"rope_theta": 100.0},
    {"qk_norm": False},
    {"value_embeds": False},
    {"zero_init": False},
    {"tied_head": True},
    {"logit_softcap": 0.0},
    {"mlp_ratio": 2.5},
    {"num_heads": 2},
    {"num_layers": 1},
]


def make(seed: int = 1, stir: bool = True, **changes: Any) -> GPT:
    """A tiny model; `stir` moves every weight off its start, so that zero-started parts take effect."""
    model = GPT(ModelConfig(**{**SMALL, **changes}), VOCAB)
    model.init_weights(seed)
    if stir:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
                parameter.add_(noise, alpha=0.2)
    return model


def batch(rows: int = 2, length: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, VOCAB, (rows, length + 1), generator=torch.Generator().manual_seed(3))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def reference_logits(model: GPT, tokens: torch.Tensor) -> torch.Tensor:
    """The default recipe written out in fp64, one head and one position at a time, from the weights alone."""
    w = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    heads, size, layers = 4, 8, 3

    def norm(x: torch.Tensor) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()

    def turn(x: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(len(x))[:, None] * 10_000.0 ** (-torch.arange(4).double() / 4)
        a, b = x[:, :4], x[:, 4:]
        return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1)

    rows = []
    for row in tokens:
        x = norm(w["embed.weight"][row])
        for i in range(layers):
            y, p, outputs = norm(x), f"blocks.{i}.attn", []
            for h in range(heads):
                part = slice(h * size, (h + 1) * size)
                q, k, v = (y @ w[f"{p}.{m}.weight"][part].T for m in "qkv")
                if i in (0, 2):
                    gate = 2 / (1 + (-(y[:, :12] @ w[f"{p}.value_embed.gate.weight"][h])).exp())
                    v = v + gate[:, None] * w[f"{p}.value_embed.table.weight"][row][:, part]
                q, k = turn(norm(q)), turn(norm(k))
                steps = [
                    (0.12 * 128 / q.shape[-1] * q[t] @ k[: t + 1].T).softmax(-1) @ v[: t + 1] for t in range(len(row))
                ]
                outputs.append(torch.stack(steps))
            x = x + torch.cat(outputs, -1) @ w[f"{p}.o.weight"].T
            x = x + (norm(x) @ w[f"blocks.{i}.mlp.up.weight"].T).relu().pow(2) @ w[f"blocks.{i}.mlp.down.weight"].T
        rows.append(15 * torch.tanh(norm(x) @ w["head.weight"].T / 15))
    return torch.stack(rows)


def test_default_recipe_equals_a_written_out_reference() -> None:
    model, (tokens, targets) = make(), batch()
    expected = reference_logits(model, tokens)
    torch.testing.assert_close(model(tokens).double(), expected, atol=1e-3, rtol=1e-3)
    loss = F.cross_entropy(expected.flatten(0, 1), targets.flatten())
    assert model(tokens, targets).item() == pytest.approx(loss.item(), abs=1e-4)


@pytest.mark.parametrize("change", SWITCHES, ids=str)
def test_every_switch_runs_and_changes_the_function(change: dict[str, Any]) -> None:
    tokens, targets = batch()
    stir = "zero_init" not in change  # the one switch that only decides where training starts
    model, baseline = make(stir=stir, **change), make(stir=stir)
    loss = model(tokens, targets)
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert abs(loss.item() - baseline(tokens, targets).item()) > 1e-6


@pytest.mark.parametrize("change", [{}, {"position": "none"}, {"qk_norm": False}, {"tied_head": True}], ids=str)
def test_no_position_sees_the_future(change: dict[str, Any]) -> None:
    model, (tokens, _) = make(**change), batch(rows=1)
    seen: list[torch.Tensor] = []
    model.embed.register_forward_hook(lambda _module, _inputs, output: seen.append(output.requires_grad_()))
    logits = model(tokens)
    for position in (0, 5, 15):
        (gradient,) = torch.autograd.grad(logits[0, position].sum(), seen[0], retain_graph=True)
        reach = gradient[0].abs().sum(-1) > 0
        assert reach[: position + 1].all() and not reach[position + 1 :].any()
    changed = tokens.clone()
    changed[0, 9:] = (changed[0, 9:] + 1) % VOCAB  # also by way of the value embeddings
    torch.testing.assert_close(model(changed)[0, :9], logits[0, :9])


def test_without_positions_one_layer_sees_a_bag_of_tokens() -> None:
    tokens, _ = batch(rows=1)
    shuffled = torch.cat((tokens[:, :-1].flip(-1), tokens[:, -1:]), dim=-1)
    bag, ordered = make(num_layers=1, position="none"), make(num_layers=1)
    torch.testing.assert_close(bag(tokens)[0, -1], bag(shuffled)[0, -1], atol=1e-4, rtol=1e-4)
    assert (ordered(tokens)[0, -1] - ordered(shuffled)[0, -1]).abs().max() > 1e-2


def test_minus_one_targets_are_not_scored() -> None:
    model, (tokens, targets) = make(), batch()
    each = model(tokens, targets, reduction="none")
    assert each.shape == targets.shape and each.dtype == torch.float32
    masked = targets.clone()
    masked[0, 3:] = -1
    torch.testing.assert_close(model(tokens, masked, reduction="none"), each * (masked != -1))
    torch.testing.assert_close(model(tokens, masked), each[masked != -1].mean())


@pytest.mark.parametrize("softcap", [0.0, 15.0])
def test_first_loss_is_that_of_a_uniform_guess(softcap: float) -> None:
    loss = make(stir=False, logit_softcap=softcap)(*batch())
    assert loss.item() == pytest.approx(math.log(64), abs=1e-6)


def test_tied_head_starts_near_a_uniform_guess() -> None:
    assert make(stir=False, tied_head=True)(*batch()).item() == pytest.approx(math.log(64), abs=0.1)


def test_softcap_bounds_the_logits() -> None:
    model, (tokens, _) = make(logit_softcap=2.0), batch()
    assert model(tokens).abs().max() < 2.0 < make(logit_softcap=0.0)(tokens).abs().max()


def test_every_parameter_gets_a_gradient_after_a_few_steps() -> None:
    model, (tokens, targets) = make(stir=False), batch(rows=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(4):  # the zero-started head, output projections and gates open one after the other
        optimizer.zero_grad()
        model(tokens, targets).backward()
        optimizer.step()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize("change", [{"value_embeds": False}, {"tied_head": True}, {"num_layers": 5}], ids=str)
def test_common_parameters_start_equal_whatever_is_switched(change: dict[str, Any]) -> None:
    ours, theirs = (dict(m.named_parameters()) for m in (make(stir=False), make(stir=False, **change)))
    common = ours.keys() & theirs.keys() - ({"embed.weight"} if "tied_head" in change else set())
    assert len(common) >= 18 and ours.keys() != theirs.keys()
    for name in common:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0)


def test_start_depends_on_the_seed_and_on_nothing_else() -> None:
    torch.manual_seed(0)
    first = make(seed=7, stir=False).state_dict()
    torch.manual_seed(99)
    again, other = make(seed=7, stir=False).state_dict(), make(seed=8, stir=False).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embed.weight"], other["embed.weight"])
    assert not torch.equal(first["blocks.0.attn.q.weight"], first["blocks.1.attn.q.weight"])


@pytest.mark.parametrize("zero_init", [True, False])
def test_start_has_the_documented_spread(zero_init: bool) -> None:
    model = make(stir=False, model_dim=128, zero_init=zero_init)
    hidden = math.sqrt(0.33 / 128)
    output = 0.0 if zero_init else 1.0
    expected = {
        "embed.weight": 1.0,
        "head.weight": output * hidden,
        "blocks.0.attn.q.weight": hidden,
        "blocks.0.attn.o.weight": output * hidden,
        "blocks.0.mlp.up.weight": hidden,
        "blocks.0.mlp.down.weight": output * hidden / 2,  # four times the inputs
        "blocks.0.attn.value_embed.table.weight": 128**-0.5,
        "blocks.0.attn.value_embed.gate.weight": 0.0,
    }
    parameters = dict(model.named_parameters())
    for name, std in expected.items():
        assert parameters[name].std().item() == pytest.approx(std, rel=0.05), name


def test_value_embeddings_sit_in_every_second_layer_up_to_the_last() -> None:
    for layers in range(1, 7):
        found = [has_value_embed(ModelConfig(num_layers=layers), i) for i in range(layers)]
        assert found[-1] and all(a != b for a, b in itertools.pairwise(found))
    assert not any(has_value_embed(ModelConfig(value_embeds=False), i) for i in range(4))


def test_narrow_models_have_narrow_value_gates() -> None:
    model = make(model_dim=8, num_heads=2)
    assert dict(model.named_parameters())["blocks.2.attn.value_embed.gate.weight"].shape == (2, 8)
    assert torch.isfinite(model(*batch()))


def test_bf16_autocast_gives_an_fp32_loss_close_to_fp32() -> None:
    model, (tokens, targets) = make(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(tokens, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(model(tokens, targets).item(), rel=0.02)
