import copy
import gc
from typing import Any
from weakref import ref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gptlib.accounting import memory_estimate
from gptlib.fields import ModelConfig, MuonConfig, OptimConfig, RunConfig
from gptlib.memory import SavedActivations, tensor_memory
from gptlib.model import GPT
from gptlib.optimizers import build_optimizers


def tiny_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def tiny_gpt(**switches: Any) -> GPT:
    model = GPT(ModelConfig(num_layers=2, model_dim=16, num_heads=2, seq_len=8, **switches), 40)
    model.init_weights(0)
    return model


# --- what autograd keeps ----------------------------------------------------------------------------------------


def test_the_input_and_what_relu_gives_are_kept_once_and_no_parameter() -> None:
    net, x = tiny_net(), torch.randn(5, 3)
    with SavedActivations(net) as saved:
        y = net(x)
    assert y.requires_grad and saved.bytes == 4 * (5 * 3 + 5 * 4)  # relu and the next linear keep the same values


def test_without_the_model_at_hand_parameters_count_too() -> None:
    net = tiny_net()
    with SavedActivations(nn.Identity()) as saved:
        y = net(torch.randn(5, 3))
    assert y.requires_grad and saved.bytes == 4 * (5 * 3 + 5 * 4 + 4 * 2)  # nobody asks for the gradient of the input


def test_a_buffer_is_no_activation() -> None:
    net = nn.Linear(3, 4)
    net.register_buffer("scale", torch.ones(5, 4))
    with SavedActivations(net) as saved:
        y = net(torch.randn(5, 3)) * net.scale
    assert y.requires_grad and saved.bytes == 4 * 5 * 3


def test_a_view_counts_the_whole_storage_and_two_views_count_once() -> None:
    weight, x = nn.Parameter(torch.ones(10)), torch.randn(10, 100)
    with SavedActivations(nn.Identity()) as saved:
        y = (x[:, 0] * weight).sum() + (x[:, 1] * weight).sum()
    assert y.requires_grad and saved.bytes == 4 * 10 * 100


def test_only_what_is_still_kept_counts() -> None:
    net = tiny_net()
    with SavedActivations(net) as saved:
        net(torch.randn(50, 3))  # the result is dropped, and all with it
        kept = net(torch.randn(5, 3))
    assert kept.requires_grad and saved.bytes == 4 * (5 * 3 + 5 * 4)
    with SavedActivations(net) as saved, torch.no_grad():
        net(torch.randn(5, 3))
    assert saved.bytes == 0


def test_nothing_is_kept_alive() -> None:
    """Without the garbage collector's help: a cycle would stay."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid())  # keeps its own output
    gc.disable()
    try:
        with SavedActivations(net) as saved:
            y = net(torch.randn(5, 3))
        storage = ref(y.untyped_storage())
        y.sum().backward()
        assert storage() is not None
        del y
        assert storage() is None and saved.bytes == 4 * (5 * 3 + 5 * 4)
    finally:
        gc.enable()


@pytest.mark.parametrize("switches", [{}, {"norm": "layer", "activation": "swiglu", "dropout": 0.1}], ids=str)
def test_gradients_are_the_same_to_the_bit(switches: dict[str, Any]) -> None:
    plain = tiny_gpt(projection_init="plain", **switches)
    watched, tokens = copy.deepcopy(plain), torch.randint(0, 40, (3, 8))
    torch.manual_seed(1)
    plain(tokens, tokens).backward()
    torch.manual_seed(1)
    with SavedActivations(watched) as saved:
        loss = watched(tokens, tokens)
    loss.backward()
    assert saved.bytes > 0
    for p, q in zip(plain.parameters(), watched.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None and torch.equal(p.grad, q.grad)


def test_hooks_are_gone_after_the_block_even_if_it_fails() -> None:
    net = tiny_net()
    with pytest.raises(ZeroDivisionError), SavedActivations(net) as saved:
        raise ZeroDivisionError
    net(torch.randn(5, 3)).sum().backward()
    assert saved.bytes == 0


# --- parameters, gradients, optimizer ---------------------------------------------------------------------------


def test_memory_before_and_after_a_backward_pass() -> None:
    net = tiny_net()
    adamw = torch.optim.AdamW(net.parameters())
    size = 4 * (3 * 4 + 4 + 4 * 2 + 2)
    assert tensor_memory(net, [adamw]) == {"parameters": size, "gradients": 0, "optimizer": 0}
    F.mse_loss(net(torch.randn(5, 3)), torch.randn(5, 2)).backward()
    adamw.step()
    steps = 4 * 4  # a counter for each parameter
    assert tensor_memory(net, [adamw]) == {"parameters": size, "gradients": size, "optimizer": 2 * size + steps}
    adamw.zero_grad(set_to_none=True)
    assert tensor_memory(net, [adamw])["gradients"] == 0


def test_tied_parameters_count_once() -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = nn.Parameter(first.weight.detach())  # another parameter, the same values
    assert tensor_memory(nn.Sequential(first, second), [])["parameters"] == 4 * 4 * 4


@pytest.mark.parametrize(
    "optim",
    [OptimConfig(), OptimConfig(muon=MuonConfig(normuon=True)), OptimConfig(matrices="adamw")],
    ids=["muon", "normuon", "adamw"],
)
def test_memory_after_a_training_step_is_the_sum_by_hand_and_the_estimate(optim: OptimConfig) -> None:
    model, tokens = tiny_gpt(bias=True, attention_gate=True), torch.randint(0, 40, (3, 8))
    optimizers = build_optimizers(model, optim)
    model(tokens, tokens).backward()
    for optimizer in optimizers:
        optimizer.step()
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    matrices = [p.numel() for name, p in model.blocks.named_parameters() if p.ndim == 2 and "gate" not in name]
    total, muon = sum(sizes.values()), sum(matrices) if optim.matrices == "muon" else 0
    lines = 2 * (4 * 16 + 2 * 64) * optim.muon.normuon  # two layers: four of 16 x 16, two of 64 x 16
    steps = len(sizes) - len(matrices) * (muon > 0)
    measured = tensor_memory(model, optimizers)
    state = 4 * (2 * (total - muon) + muon + lines)
    assert measured == {"parameters": 4 * total, "gradients": 4 * total, "optimizer": state + 4 * steps}
    estimate = memory_estimate(RunConfig(model=model.config, optim=optim), 40)
    assert (estimate.parameters, estimate.gradients, estimate.optimizer) == (4 * total, 4 * total, state)
