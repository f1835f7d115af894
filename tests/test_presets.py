"""Every preset: its size, and its forward pass against one written out in fp64, from its source where it has one.

The references take the weights by name and use nothing of the package. RMS norms have eps 1e-5, as ours do.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gptlib.accounting import count_parameters
from gptlib.config import load_config, project_root
from gptlib.fields import RunConfig
from gptlib.model import GPT
from gptlib.optimizers import build_optimizers
from gptlib.schedules import rates

Weights = dict[str, Tensor]
Forward = Callable[[Weights, Tensor], Tensor]
ROWS, LENGTH, VOCAB = 2, 16, 61
SHORT = {"seq_len": LENGTH}
GPT2_SIZE = {"num_layers": 3, "model_dim": 24, "num_heads": 3, **SHORT}
CS336_SIZE = {"num_layers": 3, "model_dim": 32, "num_heads": 4, "mlp_hidden": 56, **SHORT}
TRACK3_SIZE = {"num_layers": 3, "model_dim": 64, "num_heads": 2, "rope_theta": 1024 ** (8 / 7), **SHORT}
SPEEDRUN_SIZE = {"model_dim": 48, "num_heads": 3, "rope_theta": 1024 ** (4 / 3), **SHORT}


def make(preset: str, vocab_size: int = VOCAB, stir: bool = True, **size: Any) -> GPT:
    """The preset at another size; `stir` moves every weight off its start, so that zero-started parts take effect."""
    config = load_config(preset, {f"model.{key}": value for key, value in size.items()}).model
    model = GPT(config, vocab_size).eval()
    model.init_weights(1)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters() if stir else ()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_(noise, alpha=0.5 * parameter.shape[1] ** -0.5 if parameter.ndim > 1 else 0.2)
    return model


def batch(vocab_size: int = VOCAB, eot_at: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """Tokens and targets, each (2, 16) int64; the second row has documents that begin at `eot_at`."""
    tokens = torch.randint(0, vocab_size - 1, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(3))
    tokens[1, list(eot_at)] = vocab_size - 1
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


# --- the pieces, written out ------------------------------------------------------------------------------------


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def rms(x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w.get(
        f"{name}.bias", 0.0
    )


def split(x: Tensor, heads: int) -> Tensor:
    """(b, t, d) -> (b, h, t, k)."""
    return torch.stack(x.chunk(heads, dim=-1), dim=1)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, hidden: Tensor) -> Tensor:
    """(b, h, t, k) each -> (b, t, d); `hidden` is True where a query must not look."""
    scores = (scale * q @ k.mT).masked_fill(hidden, -math.inf)
    return torch.cat((scores.softmax(-1) @ v).unbind(1), dim=-1)


def future(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).triu(1)


# --- GPT-2, nanoGPT ---------------------------------------------------------------------------------------------


def gelu_exact(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def gelu_by_tanh(x: Tensor) -> Tensor:
    return x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2


def gpt2(gelu: Callable[[Tensor], Tensor]) -> Forward:
    def forward(w: Weights, tokens: Tensor) -> Tensor:
        x = w["embed.weight"][tokens] + w["positions.weight"][: tokens.shape[1]]
        for p in (f"blocks.{i}" for i in range(3)):
            n = layer_norm(w, f"{p}.attn_norm", x)
            q, k, v = (split(linear(w, f"{p}.attn.{name}", n), 3) for name in "qkv")
            y = attend(q, k, v, 8**-0.5, future(tokens.shape[1]))
            x = x + linear(w, f"{p}.attn.o", y)
            n = layer_norm(w, f"{p}.mlp_norm", x)
            x = x + linear(w, f"{p}.mlp.down", gelu(linear(w, f"{p}.mlp.up", n)))
        return layer_norm(w, "final_norm", x) @ w["embed.weight"].T

    return forward


# --- CS336 ------------------------------------------------------------------------------------------------------


def cs336(w: Weights, tokens: Tensor) -> Tensor:
    heads, half = 4, 4
    angles = torch.arange(tokens.shape[1])[:, None] * 10_000.0 ** (-torch.arange(half).double() / half)
    phases = torch.polar(torch.ones_like(angles), angles)

    def turn(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (half, 2)).contiguous())
        return torch.view_as_real(pairs * phases).flatten(-2)

    x = w["embed.weight"][tokens]
    for p in (f"blocks.{i}" for i in range(3)):
        n = rms(x) * w[f"{p}.attn_norm.weight"]
        q, k, v = (split(linear(w, f"{p}.attn.{name}", n), heads) for name in "qkv")
        y = attend(turn(q), turn(k), v, 8**-0.5, future(tokens.shape[1]))
        x = x + linear(w, f"{p}.attn.o", y)
        n = rms(x) * w[f"{p}.mlp_norm.weight"]
        gate = linear(w, f"{p}.mlp.w1", n)
        x = x + linear(w, f"{p}.mlp.w2", gate / (1 + (-gate).exp()) * linear(w, f"{p}.mlp.w3", n))
    return linear(w, "head", rms(x) * w["final_norm.weight"])


# --- modded-nanogpt ---------------------------------------------------------------------------------------------


def frequencies(count: int) -> Tensor:
    return (1 / 1024) ** torch.linspace(0, 1, count, dtype=torch.float64)


def turned_back(x: Tensor, turning: Tensor) -> Tensor:
    """Rotation in modded-nanogpt's direction; of the pairs (i, i + half) the first turn, the others stand still."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] * F.pad(turning, (0, half - len(turning)))
    cos, sin = angles.cos(), angles.sin()
    x1, x2 = x[..., :half], x[..., half:]
    return torch.cat((x1 * cos + x2 * sin, -x1 * sin + x2 * cos), dim=-1)


def mirrored(w: Weights, heads: int) -> Weights:
    """q and k with the second half of each head's rows negated: what turns the other way round to the same effect."""
    changed = dict(w)
    for name in w:
        if ".attn.q." in name or ".attn.k." in name:
            rows = w[name].unflatten(0, (heads, 2, -1))
            changed[name] = torch.stack((rows[:, 0], -rows[:, 1]), dim=1).reshape(w[name].shape)
    return changed


def squared_relu(w: Weights, name: str, x: Tensor) -> Tensor:
    return linear(w, f"{name}.down", linear(w, f"{name}.up", x).clamp(min=0) ** 2)


def track3(w: Weights, tokens: Tensor, mirror: bool = True) -> Tensor:
    w = mirrored(w, heads=2) if mirror else w
    x = rms(w["embed.weight"][tokens]) * w["embed_norm.weight"]
    for p in (f"blocks.{i}" for i in range(3)):
        n = rms(x) * w[f"{p}.attn_norm.weight"]
        q, k, v = (split(linear(w, f"{p}.attn.{name}", n), 2) for name in "qkv")
        q, k = (turned_back(rms(part), frequencies(8)) for part in (q, k))
        y = attend(q, k, v, 0.12 * 128 / 32, future(tokens.shape[1]))
        x = x + linear(w, f"{p}.attn.o", y)
        x = x + squared_relu(w, f"{p}.mlp", rms(x) * w[f"{p}.mlp_norm.weight"])
    z = linear(w, "head", rms(x) * w["final_norm.weight"])
    return 15 * z / (z**2 + 15**2).sqrt()


def speedrun(
    tables: list[int | None],
    without_attention: int,
    windows: str,
    turning: Tensor,
    documents: bool,
    mirror: bool = True,
) -> Forward:
    """The script of 2025; `tables` and `windows` (L all, S half a row) by layer, `documents`: they are kept apart."""
    depth, heads = len(tables), 3

    def forward(w: Weights, tokens: Tensor) -> Tensor:
        w = mirrored(w, heads) if mirror else w
        length, size = tokens.shape[1], w["embed.weight"].shape[1] // heads
        age = torch.arange(length)[:, None] - torch.arange(length)
        document = (tokens == (VOCAB - 1 if documents else -1)).cumsum(1)
        foreign = (document[:, :, None] != document[:, None, :])[:, None]
        x = x0 = rms(w["embed.weight"][tokens])
        stack: list[Tensor] = []
        for i, p in enumerate(f"blocks.{i}" for i in range(depth)):
            if i >= depth // 2:
                x = x + w["skip_weights"][i - depth // 2] * stack.pop()
            x = w["residual_lambdas"][i] * x + w["x0_lambdas"][i] * x0
            if i != without_attention:
                q, k, v = (split(linear(w, f"{p}.attn.{name}", rms(x)), heads) for name in "qkv")
                q, k = (turned_back(rms(part), turning) for part in (q, k))
                if (table := tables[i]) is not None:
                    own, embedded = w[f"{p}.attn.value_lambdas"]
                    v = own * v + embedded * split(w[f"value_tables.{table}.weight"][tokens], heads)
                far = age >= (length // 2 if windows[i] == "S" else length)
                x = x + linear(w, f"{p}.attn.o", attend(q, k, v, 0.12 * 128 / size, (age < 0) | far | foreign))
            x = x + squared_relu(w, f"{p}.mlp", rms(x))
            if i < depth // 2:
                stack.append(x)
        return 30 / (1 + (-linear(w, "head", rms(x)) / 7.5).exp()) - 15

    return forward


# --- this repository's recipe -----------------------------------------------------------------------------------


def recipe(depth: int, heads: int, predecessors: bool = False) -> Forward:
    """The default model; `predecessors`: each token sees the one before it by a smear and by a table of pairs."""

    def turned(x: Tensor) -> Tensor:
        """Pairs (i, i + half) as complex numbers, turned by position * 10,000^(-i / half)."""
        half = x.shape[-1] // 2
        angles = torch.arange(x.shape[-2])[:, None] * 10_000.0 ** (-torch.arange(half).double() / half)
        turned_pairs = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((turned_pairs.real, turned_pairs.imag), dim=-1)

    def gate(w: Weights, name: str, x: Tensor) -> Tensor:
        return 1 / (1 + (-linear(w, name, x[..., :12])).exp())

    def pairs(table: Tensor, tokens: Tensor) -> Tensor:
        rows = torch.full_like(tokens, len(table) - 1)  # the first token of a row has no predecessor
        rows[:, 1:] = (36_313 * tokens[:, 1:] ^ 27_191 * tokens[:, :-1]) % (len(table) - 1)
        return table[rows]

    def forward(w: Weights, tokens: Tensor) -> Tensor:
        e = w["embed.weight"][tokens]
        if predecessors:
            before = torch.cat((torch.zeros_like(e[:, :1]), e[:, :-1]), dim=1)
            e = e + w["smear_lambda"] * gate(w, "smear_gate", e) * before
        x, tables = rms(e), 0
        for i, p in enumerate(f"blocks.{i}" for i in range(depth)):
            if predecessors:
                x = x + w["bigram_lambdas"][i] * pairs(w["bigram_table.weight"], tokens)
            n = rms(x)
            q, k, v = (split(linear(w, f"{p}.attn.{name}", n), heads) for name in "qkv")
            if i % 2 != depth % 2:  # the last layer, the last but two ...
                value = split(w[f"value_tables.{tables}.weight"][tokens], heads)
                v = v + 2 * gate(w, f"{p}.attn.value_gate", n).mT.unsqueeze(-1) * value
                tables += 1
            y = attend(turned(rms(q)), turned(rms(k)), v, 0.12 * 128 / q.shape[-1], future(tokens.shape[1]))
            x = x + linear(w, f"{p}.attn.o", y)
            x = x + squared_relu(w, f"{p}.mlp", rms(x))
        return 15 * torch.tanh(linear(w, "head", rms(x)) / 15)

    return forward


# --- the comparison ---------------------------------------------------------------------------------------------

FULL_TABLES = [0, 1, 2, *[None] * 6, 0, 1, 2]
LONG_AND_SHORT = "LSSSLSSLSSSL"
FORWARDS: dict[str, tuple[dict[str, Any], Forward]] = {
    "nanogpt_gpt2_124m": (GPT2_SIZE, gpt2(gelu_by_tanh)),
    "nanogpt_shakespeare_char": (GPT2_SIZE, gpt2(gelu_exact)),
    "cs336_tinystories_17m": (CS336_SIZE, cs336),
    "hyperparameters_tinystories": (CS336_SIZE, cs336),
    "capacity_gpt2_vocab": (CS336_SIZE, cs336),
    "speedrun_track3": (TRACK3_SIZE, track3),
    "speedrun_2025": (SPEEDRUN_SIZE, speedrun(FULL_TABLES, 7, LONG_AND_SHORT, frequencies(4), documents=True)),
    "speedrun_cpu": (
        SPEEDRUN_SIZE,
        speedrun([0, 1, None, None, 0, 1], 3, "LLLLLL", frequencies(4), documents=False),
    ),
    "smoke": (SHORT, recipe(2, 2)),
    "quickstart": (SHORT, recipe(4, 3)),
    "ladder_small": (SHORT, recipe(3, 2)),
    "ladder_large": (SHORT, recipe(6, 4)),
    "novels": (SHORT, recipe(4, 3)),
    "novels_small": (SHORT, recipe(4, 3)),
    "shakespeare_char": (SHORT, recipe(2, 2, predecessors=True)),
}


def assert_close(found: Tensor, expected: Tensor, what: str, bound: float = 1e-5) -> None:
    """Within `bound` of the largest value."""
    scale = expected.abs().max()
    assert scale > 0, f"{what} is zero"
    error = (found.double() - expected).abs().max() / scale
    assert error < bound, f"{what} is off by {error:.1e} of its largest value, {bound:.1e} are allowed"


def cancellation(losses: Tensor, parameter: Tensor, gradient: Tensor) -> float:
    """How many times larger than the gradient of sum(losses) the terms are that it is the sum of, one for each loss."""
    terms = [torch.autograd.grad(loss, parameter, retain_graph=True)[0] for loss in losses.flatten()]
    return (torch.stack(terms).abs().sum(0).max() / gradient.abs().max()).item()


@pytest.mark.parametrize("preset", FORWARDS)
def test_logits_loss_and_every_gradient_equal_those_of_the_forward_written_out(preset: str) -> None:
    """Of weights on whole streams the gradients may cancel: they are within 2e-6 of what they are the sum of."""
    size, forward = FORWARDS[preset]
    model, (tokens, targets) = make(preset, **size), batch(eot_at=(4, 11))
    weights = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    logits = forward(weights, tokens)
    losses = (logits.logsumexp(-1) - logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)) / targets.numel()
    gradients = torch.autograd.grad(losses.sum(), list(weights.values()), retain_graph=True)
    assert_close(model(tokens), logits, "logits")
    ours = model(tokens, targets)
    assert_close(ours, losses.sum(), "loss")
    ours.backward()
    for (name, parameter), expected in zip(model.named_parameters(), gradients, strict=True):
        if preset == "nanogpt_gpt2_124m" and name.endswith("attn.k.bias"):
            assert parameter.grad.abs().max() < 1e-8  # it moves all scores of a query alike: softmax does not see it
        elif expected.numel() <= 12:
            bound = 2e-6 * cancellation(losses, weights[name], expected)
            assert_close(parameter.grad, expected, f"gradient of {name}", bound)
        else:
            assert_close(parameter.grad, expected, f"gradient of {name}")


def test_the_direction_of_rotation_is_a_sign_of_half_of_q_and_k_and_not_nothing() -> None:
    tokens, _ = batch(eot_at=(4, 11))
    reversed_2025 = speedrun(FULL_TABLES, 7, LONG_AND_SHORT, frequencies(4), documents=True, mirror=False)
    for preset, other in (
        ("speedrun_track3", lambda w, t: track3(w, t, mirror=False)),
        ("speedrun_2025", reversed_2025),
    ):
        size, same = FORWARDS[preset]
        model = make(preset, **size)
        weights = {name: p.detach().double() for name, p in model.named_parameters()}
        assert_close(model(tokens), same(weights, tokens), "logits")
        assert (model(tokens) - other(weights, tokens)).abs().max() > 1e-3


@pytest.mark.parametrize(("preset", "size"), [("speedrun_track3", 128), ("speedrun_2025", 128), ("speedrun_cpu", 32)])
def test_a_quarter_of_the_head_turns_as_fast_as_in_modded_nanogpt(preset: str, size: int) -> None:
    model = load_config(preset).model
    turning = round(model.rope_fraction * model.head_dim / 2)
    ours = model.rope_theta ** (-torch.arange(turning).double() / turning)
    assert (model.head_dim, turning) == (size, size // 4)
    torch.testing.assert_close(ours, frequencies(turning), rtol=1e-12, atol=0)


# --- sizes ------------------------------------------------------------------------------------------------------

# preset: all parameters, those without the tables of tokens, values, pairs and positions and the head
NANOGPT_BLOCKS = 4 * (12 * 128**2 + 2 * 128) + 128
CS336_BLOCKS = 4 * (4 * 512**2 + 3 * 512 * 1344) + 9 * 512
WIDER_CS336_BLOCKS = 6 * (4 * 512**2 + 3 * 512 * 2048) + 13 * 512
SPEEDRUN_BLOCKS = 11 * 4 * 768**2 + 12 * 8 * 768**2 + 6 + 12 + 12 + 12
SPEEDRUN_CPU_BLOCKS = 5 * 4 * 96**2 + 6 * 8 * 96**2 + 4 * 2 + 3 + 6 + 6
SMOKE_BLOCKS = 2 * 12 * 32**2 + 2 * 12
QUICKSTART_BLOCKS = 4 * 12 * 96**2 + 2 * 3 * 12
LADDER_SMALL_BLOCKS = 3 * 12 * 64**2 + 2 * 2 * 12
LADDER_LARGE_BLOCKS = 6 * 12 * 144**2 + 3 * 4 * 12
SHAKESPEARE_BLOCKS = 2 * 12 * 64**2 + 2 * 12 + 12 + 1 + 2
SIZES = {
    "nanogpt_gpt2_124m": (124_439_808, 124_439_808 - (50_257 + 1024) * 768),
    "nanogpt_shakespeare_char": (66 * 128 + 64 * 128 + NANOGPT_BLOCKS, NANOGPT_BLOCKS),
    "cs336_tinystories_17m": (2 * 10_000 * 512 + CS336_BLOCKS, CS336_BLOCKS),
    "hyperparameters_tinystories": (2 * 10_000 * 512 + WIDER_CS336_BLOCKS, WIDER_CS336_BLOCKS),
    "capacity_gpt2_vocab": (2 * 50_257 * 512 + 25_165_824 + 13 * 512, 25_165_824 + 13 * 512),
    "speedrun_track3": (162_354_816, 162_354_816 - 2 * 50_304 * 768 - 50_304),
    "speedrun_2025": (5 * 50_304 * 768 + SPEEDRUN_BLOCKS, SPEEDRUN_BLOCKS),
    "speedrun_cpu": ((2 + 2) * 1024 * 96 + SPEEDRUN_CPU_BLOCKS, SPEEDRUN_CPU_BLOCKS),
    "smoke": ((2 + 1) * 384 * 32 + SMOKE_BLOCKS, SMOKE_BLOCKS),
    "quickstart": ((2 + 2) * 1024 * 96 + QUICKSTART_BLOCKS, QUICKSTART_BLOCKS),
    "ladder_small": ((2 + 2) * 1024 * 64 + LADDER_SMALL_BLOCKS, LADDER_SMALL_BLOCKS),
    "ladder_large": ((2 + 3) * 1024 * 144 + LADDER_LARGE_BLOCKS, LADDER_LARGE_BLOCKS),
    "novels": ((2 + 2) * 4096 * 96 + QUICKSTART_BLOCKS, QUICKSTART_BLOCKS),
    "novels_small": ((2 + 2) * 2048 * 96 + QUICKSTART_BLOCKS, QUICKSTART_BLOCKS),
    "shakespeare_char": ((2 + 1 + 5) * 66 * 64 + SHAKESPEARE_BLOCKS, SHAKESPEARE_BLOCKS),
}
MATRICES = {"nanogpt_gpt2_124m": 84_934_656, "speedrun_track3": 84_934_656, "speedrun_2025": 140 * 768**2}


def entries(config: RunConfig) -> int:
    """Of the tokenizer that a preset asks for. Shakespeare has 65 characters, and one entry begins a document."""
    return {"bpe": config.data.vocab_size, "char": 66, "gpt2": 50_257}[config.data.tokenizer]


@pytest.mark.parametrize("preset", SIZES)
def test_full_size_is_the_published_one_or_counted_by_hand(preset: str) -> None:
    total, non_embedding = SIZES[preset]
    config = load_config(preset)
    with torch.device("meta"):
        model = GPT(config.model, entries(config))
    count = count_parameters(config.model, entries(config))
    assert model.get_num_params() == count.total == total
    assert model.get_num_params(non_embedding=True) == count.non_embedding == non_embedding
    assert count.matrices == MATRICES.get(preset, count.matrices)


@pytest.mark.parametrize("table", [FORWARDS, SIZES], ids=["forwards", "sizes"])
def test_every_preset_is_compared_and_counted(table: dict[str, Any]) -> None:
    assert set(table) == {path.stem for path in (project_root() / "params" / "base").glob("*.yaml")}


@pytest.mark.parametrize(
    ("preset", "tokens"),
    [
        ("nanogpt_gpt2_124m", 600_000 * 491_520),
        ("nanogpt_shakespeare_char", 1_536_000),
        ("cs336_tinystories_17m", 327_680_000),
        ("speedrun_track3", 3250 * 524_288),
        ("speedrun_2025", 1750 * 393_216),
    ],
)
def test_the_run_has_the_published_number_of_tokens(preset: str, tokens: int) -> None:
    assert load_config(preset).planned_tokens == tokens


# --- start and optimizer ----------------------------------------------------------------------------------------


def test_track3_starts_at_the_loss_of_a_uniform_guess_over_the_padded_vocabulary() -> None:
    model = make("speedrun_track3", vocab_size=50_257, stir=False, **TRACK3_SIZE)
    loss = model(*batch(vocab_size=50_257))
    assert loss.item() == pytest.approx(math.log(50_304), abs=1e-5) and math.log(50_304) == pytest.approx(
        10.826, abs=1e-3
    )


def test_nanogpt_decays_matrices_and_tables_and_nothing_else() -> None:
    for preset, rate in (("nanogpt_gpt2_124m", 6e-4), ("nanogpt_shakespeare_char", 1e-3)):
        model = make(preset, **GPT2_SIZE)
        groups = [group for o in build_optimizers(model, load_config(preset).optim) for group in o.param_groups]
        decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
        assert decayed == {id(p) for p in model.parameters() if p.ndim == 2}
        assert all(group["base_lr"] == rate for group in groups)
        assert {group["weight_decay"] for group in groups} == {0.0, 0.1}


def test_cs336_decays_everything_at_one_rate() -> None:
    model = make("cs336_tinystories_17m", **CS336_SIZE)
    groups = [g for o in build_optimizers(model, load_config("cs336_tinystories_17m").optim) for g in o.param_groups]
    assert {(group["base_lr"], group["weight_decay"]) for group in groups} == {(3e-4, 0.1)}


# --- rates over the run -----------------------------------------------------------------------------------------


def nanogpt_lr(it: int, warmup_iters: int, lr_decay_iters: int, learning_rate: float, min_lr: float) -> float:
    """get_lr of karpathy/nanoGPT, train.py."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    decay_ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * decay_ratio)) * (learning_rate - min_lr)


def cs336_lr(it: int, warmup_iters: int, cosine_cycle_iters: int, learning_rate: float, min_lr: float) -> float:
    """The cosine schedule with warmup of the handout."""
    if it < warmup_iters:
        return it / warmup_iters * learning_rate
    angle = (it - warmup_iters) / (cosine_cycle_iters - warmup_iters) * math.pi
    return min_lr + 0.5 * (1 + math.cos(angle)) * (learning_rate - min_lr)


@pytest.mark.parametrize(
    ("preset", "formula", "numbers"),
    [
        ("nanogpt_gpt2_124m", nanogpt_lr, (2000, 600_000, 6e-4, 6e-5)),
        ("nanogpt_shakespeare_char", nanogpt_lr, (100, 2000, 1e-3, 1e-4)),
        ("cs336_tinystories_17m", cs336_lr, (800, 40_000, 3e-4, 3e-5)),
    ],
)
def test_the_rate_of_every_step_is_that_of_the_source(
    preset: str, formula: Callable[..., float], numbers: tuple[float, ...]
) -> None:
    config, (warmup, steps) = load_config(preset), map(int, numbers[:2])
    assert config.train.steps == steps
    for it in {*range(10), *range(warmup - 2, warmup + 3), *range(0, steps, steps // 997), steps - 1}:
        found = rates(config, it / steps)
        assert config.optim.matrix_lr * found.lr == pytest.approx(formula(it, *numbers), rel=1e-9), it
        assert found.weight_decay == 1


@pytest.mark.parametrize(
    ("preset", "steps", "constant", "final", "warmup"),
    [("speedrun_track3", 3250, 0.3, 0.0, 0), ("speedrun_2025", 1750, 0.55, 0.1, 300)],
)
def test_rate_and_momentum_of_every_step_are_those_of_modded_nanogpt(
    preset: str, steps: int, constant: float, final: float, warmup: int
) -> None:
    config = load_config(preset)
    assert config.train.steps == steps
    for step in range(steps):
        found, x = rates(config, step / steps), step / steps
        w = 1.0 if x < constant else (1 - x) / (1 - constant)
        assert found.lr == pytest.approx(w * 1.0 + (1 - w) * final), step
        frac = min(step / warmup, 1) if warmup else 1
        assert found.momentum == pytest.approx((1 - frac) * 0.85 + frac * 0.95), step
        assert found.weight_decay == 1


def test_what_a_step_of_the_speedruns_takes_off_a_matrix() -> None:
    """lr * wd at the peak: 0.025 * 0.05 on track 3, nothing in 2025."""
    for preset, expected in (("speedrun_track3", 0.00125), ("speedrun_2025", 0.0)):
        optim = load_config(preset).optim
        assert optim.matrix_lr * optim.muon.weight_decay == pytest.approx(expected)
        assert not optim.muon.cautious and not optim.muon.normuon and not optim.muon.split_heads
