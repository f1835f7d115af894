import itertools
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gptlib.accounting import count_parameters, flops_per_token, memory_estimate, parameters_by_part
from gptlib.config import load_config
from gptlib.fields import HardwareConfig, ModelConfig, MuonConfig, OptimConfig, RunConfig, TrainConfig
from gptlib.memory import SavedActivations
from gptlib.model import GPT, part_of

PRESETS = sorted(path.stem for path in (Path(__file__).parents[1] / "params" / "base").glob("*.yaml"))


def entries(config: RunConfig) -> int:
    """Of the tokenizer that a preset asks for."""
    return {"char": 66, "gpt2": 50_257}.get(config.data.tokenizer, config.data.vocab_size)


# --- parameters -------------------------------------------------------------------------------------------------

GRID = list(itertools.product([1, 2, 3], [(8, 2), (48, 3)], [1.0, 2.7, 4.0], [True, False], [True, False]))


@pytest.mark.parametrize("layers,width,ratio,tied,values", GRID)
def test_parameters_equal_those_of_the_model(
    layers: int, width: tuple[int, int], ratio: float, tied: bool, values: bool
) -> None:
    config = ModelConfig(
        num_layers=layers,
        model_dim=width[0],
        num_heads=width[1],
        mlp_ratio=ratio,
        tied_head=tied,
        value_embeds=values,
    )
    assert_counts_equal_the_model(config)


CHOICES: dict[str, list[Any]] = {
    "num_layers": [1, 2, 3, 5],
    "model_dim": [8, 32, 48],
    "num_heads": [2, 4],
    "num_kv_heads": [0, 1, 2],
    "mlp_ratio": [1.0, 2.7, 4.0],
    "mlp_hidden": [0, 0, 13],
    "seq_len": [2, 17],
    "vocab_multiple": [1, 64],
    "skip_attention": [(), (0,), (0, 1)],
    "value_layers": [(), (0,), (1, 0)],
    "value_tables": [0, 1, 2],
    "window_pattern": ["L", "SSL"],
    "short_window": [0.25, 1.0],
    "rope_theta": [100.0, 10_000.0],
    "rope_fraction": [0.5, 1.0],
    "dropout": [0.0, 0.1],
    "bigram_rows": [0, 7],
    "logit_softcap": [0.0, 15.0],
}


def choices(field: str) -> list[Any]:
    """Every value of a field: those above, and all of what is true or false or one of several words."""
    annotation = ModelConfig.model_fields[field].annotation
    return CHOICES.get(field) or ([False, True] if annotation is bool else list(get_args(annotation)))


def random_config(seed: int) -> ModelConfig:
    chance = random.Random(seed)
    values = {field: chance.choice(choices(field)) for field in ModelConfig.model_fields}
    if values["norm"] == "rms":
        values["norm_bias"] = False
    for field in ("skip_attention", "value_layers"):
        values[field] = tuple(layer for layer in values[field] if layer < values["num_layers"])
    return ModelConfig(**values)


@pytest.mark.parametrize("seed", range(80))
def test_parameters_equal_those_of_the_model_whatever_is_switched(seed: int) -> None:
    assert_counts_equal_the_model(random_config(seed))


def test_the_random_models_take_every_value_of_every_field() -> None:
    taken = [random_config(seed) for seed in range(80)]
    for field in ModelConfig.model_fields:
        assert {getattr(config, field) for config in taken} >= set(choices(field)) and len(choices(field)) > 1, field


def assert_counts_equal_the_model(config: ModelConfig) -> None:
    """Each place by the names of its parameters."""
    model, count = GPT(config, 300), count_parameters(config, 300)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    blocks = {name: size for name, size in sizes.items() if name.startswith("blocks.")}
    matrices = re.compile(r".*\.(q|k|v|o|up|down|w1|w2|w3)\.weight")
    assert count.total == model.get_num_params() == sum(sizes.values())
    assert count.head == sum(size for name, size in sizes.items() if name.startswith("head"))
    tables = ("embed.", "positions.", "value_tables.", "bigram_table.")
    assert count.embedding == sum(size for name, size in sizes.items() if name.startswith(tables))
    assert count.blocks == sum(blocks.values())
    assert count.matrices == sum(size for name, size in blocks.items() if matrices.fullmatch(name))
    assert count.non_embedding == model.get_num_params(non_embedding=True)
    assert count.non_embedding == count.total - count.head - count.embedding
    assert parameters_by_part(config, 300) == grouped(model)


# in the order of the answer; what is not named is a vector
PARTS = {
    "token embedding": ["embed"],
    "value embeddings": ["value_tables"],
    "token pairs": ["bigram_table"],
    "positions": ["positions"],
    "attention": ["q", "k", "v", "o"],
    "feed-forward": ["up", "down", "w1", "w2", "w3"],
    "gates": ["value_gate", "head_gate", "smear_gate"],
    "vectors": [],
    "head": ["head", "head_bias"],
}


def grouped(model: GPT) -> dict[str, int]:
    sizes = dict.fromkeys(PARTS, 0)
    for name, p in model.named_parameters():
        named = [part for part, members in PARTS.items() if part_of(name) in members]
        bias = p.ndim == 1 and named != ["head"]
        sizes["vectors" if bias or not named else named[0]] += p.numel()
    return {part: size for part, size in sizes.items() if size}


def test_parts_come_in_one_order_and_only_where_they_are() -> None:
    seen = [list(parameters_by_part(random_config(seed), 300)) for seed in range(80)]
    assert all(parts == [part for part in PARTS if part in parts] for parts in seen)
    assert {part for parts in seen for part in parts} == set(PARTS)
    plain = ModelConfig(value_embeds=False, tied_head=True)
    assert list(parameters_by_part(plain, 300)) == ["token embedding", "attention", "feed-forward"]


# --- FLOPs ------------------------------------------------------------------------------------------------------

FLOPS: list[dict[str, Any]] = [
    {},
    {"tied_head": True},
    {"value_embeds": False, "num_layers": 2},
    {"num_kv_heads": 1},
    {"num_kv_heads": 2, "attention_gate": True},
    {"activation": "swiglu"},
    {"activation": "geglu", "mlp_hidden": 100},
    {"skip_attention": (1,)},
    {"skip_attention": (0, 2), "value_layers": (1,)},
    {"parallel_block": True},
    {"parallel_block": True, "skip_attention": (1,), "num_kv_heads": 2, "activation": "swiglu"},
    {"smear": True, "bigram_embeds": True, "unet_skips": True, "backout": True, "x0_lambdas": True},
    {"window_pattern": "S", "document_mask": True},
    {"norm": "layer", "norm_gain": True, "norm_bias": True, "bias": True, "position": "learned", "head_bias": True},
]


@pytest.mark.parametrize("change", FLOPS, ids=str)
def test_flops_equal_those_counted_by_torch(change: dict[str, Any]) -> None:
    config = ModelConfig.model_validate({"num_layers": 3, "model_dim": 64, "seq_len": 128, **change})
    model = GPT(config, 300)
    tokens = torch.randint(0, 300, (2, 128))
    # the written-out attention, because torch does not count the fused CPU kernel: the full square, as we do
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens, tokens).backward()
    assert flops_per_token(config, 300) * tokens.numel() == counter.get_total_flops()


def test_a_forward_pass_is_a_third_and_costs_two_for_each_value_and_token() -> None:
    """Not "2 x parameters x seq_len" per token: that is a whole row."""
    config = ModelConfig(num_layers=2, model_dim=64, seq_len=32, value_embeds=False)
    model, row = GPT(config, 300), torch.randint(0, 300, (1, 32))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(row)
    multiplied = sum(p.numel() for name, p in model.named_parameters() if name != "embed.weight")
    squares = 2 * 2 * 2 * 32 * 32 * 64  # layers, products (q k^T, weights v), FLOPs of a multiply-add
    assert counter.get_total_flops() == 2 * multiplied * 32 + squares == flops_per_token(config, 300) * 32 // 3


def test_palm_convention_is_nanogpts_estimate_for_gpt2() -> None:
    """nanoGPT's estimate_mfu: 6 N + 12 L H Q T, N without positions."""
    config = load_config("nanogpt_gpt2_124m").model
    n = 124_439_808 - 1024 * 768
    assert flops_per_token(config, 50_257, "palm") == 6 * n + 12 * 12 * 12 * 64 * 1024
    vectors = 12 * (4 + 5 + 4) * 768 + 2 * 768  # two norms, biases of q k v o down, and of up; the last norm
    assert flops_per_token(config, 50_257) == 6 * (n - vectors) + 12 * 12 * 12 * 64 * 1024


def test_palm_convention_counts_every_table_and_only_layers_with_attention() -> None:
    config = load_config("speedrun_2025").model
    blocks = 11 * 4 * 768**2 + 12 * 8 * 768**2
    weights = 12 + 12 + 6 + 6 * 2  # on streams, on the embedding, on skips, on values
    n = 5 * 50_304 * 768 + blocks + weights  # tables of tokens, head and three of values
    assert flops_per_token(config, 50_257, "palm") == 6 * n + 12 * 11 * 768 * 1024
    assert flops_per_token(config, 50_257) == 6 * (50_304 * 768 + blocks) + 12 * 11 * 768 * 1024


@pytest.mark.parametrize("seed", range(20))
def test_palm_is_never_less_than_structural(seed: int) -> None:
    config = random_config(seed)
    assert flops_per_token(config, 300, "palm") >= flops_per_token(config, 300, "structural")


def test_known_size_of_the_speedrun_model() -> None:
    """modded-nanogpt track 3: 12 layers of 12 * 768^2 matrix values each, two tables of 50,304 x 768."""
    config = ModelConfig(num_layers=12, model_dim=768, num_heads=6, seq_len=1024, value_embeds=False)
    count = count_parameters(config, 50_257)
    assert (count.blocks, count.embedding, count.head) == (84_934_656, 38_633_472, 38_633_472)


# --- memory -----------------------------------------------------------------------------------------------------


def run_of(model: ModelConfig, rows: int, **others: Any) -> RunConfig:
    return RunConfig(model=model, train=TrainConfig(batch_rows=rows), **others)


def saved_bytes(config: ModelConfig, vocab: int, rows: int, bf16: bool = False) -> int:
    model = GPT(config, vocab)
    inputs, targets = (torch.zeros(rows, config.seq_len, dtype=torch.long) for _ in range(2))
    with SavedActivations(model) as saved, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(inputs, targets)
    assert loss.requires_grad
    return saved.bytes


@pytest.mark.parametrize("seed", range(80))
def test_activations_of_random_models_are_estimated(seed: int) -> None:
    config, rows = random_config(seed), 1 + seed % 3
    for bf16 in (False, True):
        estimate = memory_estimate(run_of(config, rows), 300, bf16).activations
        assert estimate == pytest.approx(saved_bytes(config, 300, rows, bf16), rel=0.1)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("preset", PRESETS)
def test_activations_of_every_preset_are_estimated(preset: str, bf16: bool) -> None:
    """At full size: fake tensors have shapes and storages, but no memory behind them."""
    config = load_config(preset)
    rows = min(config.train.batch_rows, config.hardware.micro_rows or config.train.batch_rows)
    with FakeTensorMode():
        measured = saved_bytes(config.model, entries(config), rows, bf16)
    assert memory_estimate(config, entries(config), bf16).activations == pytest.approx(measured, rel=0.03)


def test_fake_tensors_are_kept_as_real_ones_are() -> None:
    config = load_config("smoke").model
    with FakeTensorMode():
        fake = saved_bytes(config, 384, 2)
    assert fake == saved_bytes(config, 384, 2)


def test_activations_are_those_of_one_pass_on_one_rank() -> None:
    model = ModelConfig(num_layers=1, seq_len=32)
    one = memory_estimate(run_of(model, 2), 300)
    for rows, hardware in [
        (8, HardwareConfig(ranks=4)),
        (8, HardwareConfig(micro_rows=2)),
        (8, HardwareConfig(ranks=2, micro_rows=2)),
        (2, HardwareConfig(micro_rows=64)),
    ]:
        assert memory_estimate(run_of(model, rows, hardware=hardware), 300) == one
    assert memory_estimate(run_of(model, 4), 300).activations > 1.9 * one.activations


def test_memory_of_parameters_gradients_and_optimizers() -> None:
    """Two matrices of 32 x 8 and four of 8 x 8 in a layer, and two tables of 320 x 8."""
    model = ModelConfig(num_layers=1, model_dim=8, num_heads=2, seq_len=16, value_embeds=False)
    matrices, tables = 2 * 32 * 8 + 4 * 8 * 8, 2 * 320 * 8
    kinds = [
        (OptimConfig(matrices="adamw"), 2 * (matrices + tables)),
        (OptimConfig(), matrices + 2 * tables),
        (OptimConfig(muon=MuonConfig(normuon=True)), matrices + 2 * 32 + 4 * 8 + 2 * tables),
    ]
    for optim, state in kinds:
        memory = memory_estimate(run_of(model, 1, optim=optim), 300)
        assert (memory.parameters, memory.gradients) == (4 * (matrices + tables), 4 * (matrices + tables))
        assert memory.optimizer == 4 * state
        assert memory.total == memory.parameters + memory.gradients + memory.optimizer + memory.activations


def test_accounting_needs_no_torch() -> None:
    code = "import sys, gptlib.accounting, gptlib.schedules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
