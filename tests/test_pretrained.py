"""GPT-2's published weights: a file in their layout, and the forward pass of GPT-2 on it written out."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gptlib.pretrained import load_gpt2

WIDTH, LAYERS, HEADS, CONTEXT, VOCAB = 128, 2, 2, 12, 37
Tensors = dict[str, Tensor]


def published() -> Tensors:
    """Random weights by the names and shapes of the published files, masks included."""
    shapes = {"wte.weight": (VOCAB, WIDTH), "wpe.weight": (CONTEXT, WIDTH)}
    maps = {"attn.c_attn": (WIDTH, 3 * WIDTH), "attn.c_proj": (WIDTH, WIDTH)}
    maps |= {"mlp.c_fc": (WIDTH, 4 * WIDTH), "mlp.c_proj": (4 * WIDTH, WIDTH)}
    for layer in (f"h.{i}" for i in range(LAYERS)):
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{layer}.{norm}.weight": (WIDTH,), f"{layer}.{norm}.bias": (WIDTH,)}
        for name, shape in maps.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[1:]}
    shapes |= {"ln_f.weight": (WIDTH,), "ln_f.bias": (WIDTH,)}
    chance = torch.Generator().manual_seed(1)
    tensors = {name: 0.1 * torch.randn(shape, generator=chance) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        if "ln_" in name and name.endswith("weight"):
            tensor += 1
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, CONTEXT, CONTEXT).tril() for i in range(LAYERS)}
    return tensors | masks | {"h.0.attn.masked_bias": torch.tensor(-1e4)}


def written_out(w: Tensors, tokens: Tensor) -> Tensor:
    """GPT-2's logits in fp64: x @ W + b everywhere, q, k and v from one map, heads of 64."""
    w = {name: tensor.double() for name, tensor in w.items()}

    def conv1d(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    length = tokens.shape[1]
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    x = w["wte.weight"][tokens] + w["wpe.weight"][:length]
    for layer in (f"h.{i}" for i in range(LAYERS)):
        qkv = conv1d(f"{layer}.attn.c_attn", norm(f"{layer}.ln_1", x))
        heads = []
        for h in range(HEADS):
            q, k, v = (qkv[..., i * WIDTH + 64 * h : i * WIDTH + 64 * (h + 1)] for i in range(3))
            heads.append((q @ k.mT / 8).masked_fill(hidden, -math.inf).softmax(-1) @ v)
        x = x + conv1d(f"{layer}.attn.c_proj", torch.cat(heads, -1))
        up = conv1d(f"{layer}.mlp.c_fc", norm(f"{layer}.ln_2", x))
        gelu = 0.5 * up * (1 + torch.tanh((2 / math.pi) ** 0.5 * (up + 0.044715 * up**3)))
        x = x + conv1d(f"{layer}.mlp.c_proj", gelu)
    return norm("ln_f", x) @ w["wte.weight"].T


def saved(tensors: Tensors, folder: Path) -> Path:
    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


def with_prefix(tensors: Tensors) -> Tensors:
    return {f"transformer.{name}": t for name, t in tensors.items()} | {"lm_head.weight": tensors["wte.weight"].clone()}


@pytest.mark.parametrize("layout", [dict, with_prefix])
def test_logits_equal_those_of_gpt2_written_out(layout: Callable[[Tensors], Tensors], tmp_path: Path) -> None:
    tensors = published()
    model = load_gpt2(saved(layout(tensors), tmp_path))
    tokens = torch.randint(0, VOCAB, (2, CONTEXT), generator=torch.Generator().manual_seed(2))
    expected = written_out(tensors, tokens)
    assert not model.training and model.vocab_size == VOCAB and expected.std() > 0.3
    torch.testing.assert_close(model(tokens).double(), expected, atol=1e-5, rtol=1e-5)


def test_every_weight_of_the_file_is_used_and_can_be_trained_on(tmp_path: Path) -> None:
    tensors = published()
    model = load_gpt2(saved(tensors, tmp_path))
    assert model.get_num_params() == sum(
        t.numel() for name, t in tensors.items() if not name.endswith((".attn.bias", ".masked_bias"))
    )
    tokens = torch.arange(CONTEXT).unsqueeze(0)
    model(tokens, tokens).backward()
    assert all(p.grad is not None and p.dtype == torch.float32 for p in model.parameters())


def test_half_precision_files_are_read_as_fp32(tmp_path: Path) -> None:
    model = load_gpt2(saved({name: tensor.half() for name, tensor in published().items()}, tmp_path))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def replaced(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("wte.weight"), "tensor wte.weight is missing"),
        (without("h.1.mlp.c_fc.bias"), "tensor h.1.mlp.c_fc.bias is missing"),
        (lambda t: {n: x for n, x in t.items() if not n.startswith("h.0.")}, "tensor h.0.ln_1.weight is missing"),
        (lambda t: {n: x for n, x in t.items() if not n.startswith("h.")}, "tensor h.0.ln_1.weight is missing"),
        (replaced("wpe.weight", 5), r"tensor wpe.weight has shape \(5,\), which is no table"),
        (replaced("wte.weight", 37, 100), "tensor wte.weight has width 100, no multiple of the head size 64"),
        (replaced("h.0.mlp.c_fc.weight", 512, 128), r"h.0.mlp.c_fc.weight has shape \(512, 128\), not \(128, 512\)"),
        (replaced("h.0.attn.rotary.weight", 3), "tensor h.0.attn.rotary.weight is no part of a GPT-2"),
        (replaced("lm_head.weight", VOCAB, WIDTH), "tensor lm_head.weight is not wte.weight"),
    ],
)
def test_what_is_odd_is_named_in_one_line(change: Callable[[Tensors], Tensors], message: str, tmp_path: Path) -> None:
    path = saved(change(published()), tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        load_gpt2(path)
    line = str(error.value)
    assert line.startswith(f"{path}: ") and "\n" not in line and "; give the model.safetensors of a GPT-2" in line


def test_what_is_no_safetensors_file_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "page.safetensors").write_bytes(b"<html>not found</html>" * 10)
    (tmp_path / "empty.safetensors").touch()
    for name in ("page.safetensors", "empty.safetensors"):
        with pytest.raises(ValueError, match=f"{name}: not a safetensors file .*; download it again") as error:
            load_gpt2(tmp_path / name)
        assert "\n" not in str(error.value)
    for path in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(ValueError, match=f"{path.name}: cannot be read .*; give the model.safetensors") as error:
            load_gpt2(str(path))
        assert "\n" not in str(error.value)
