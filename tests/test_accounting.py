import itertools
import random
import re
import subprocess
import sys
from typing import Any, get_args

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gptlib.accounting import count_parameters, flops_per_token
from gptlib.fields import ModelConfig
from gptlib.model import GPT

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


def test_known_size_of_the_speedrun_model() -> None:
    """modded-nanogpt track 3: 12 layers of 12 * 768^2 matrix values each, two tables of 50,304 x 768."""
    config = ModelConfig(num_layers=12, model_dim=768, num_heads=6, seq_len=1024, value_embeds=False)
    count = count_parameters(config, 50_257)
    assert (count.blocks, count.embedding, count.head) == (84_934_656, 38_633_472, 38_633_472)


def test_accounting_needs_no_torch() -> None:
    code = "import sys, gptlib.accounting, gptlib.schedules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
