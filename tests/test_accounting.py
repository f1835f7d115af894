import itertools
import subprocess
import sys

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
    model, count = GPT(config, 300), count_parameters(config, 300)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert count.total == model.num_params() == sum(sizes.values())
    assert count.head == sizes.get("head.weight", 0)
    assert count.embedding == sum(n for name, n in sizes.items() if "embed.weight" in name or "table" in name)
    assert count.blocks == count.non_embedding == count.total - count.head - count.embedding


@pytest.mark.parametrize("change", [{}, {"tied_head": True}, {"value_embeds": False, "num_layers": 2}], ids=str)
def test_flops_equal_those_counted_by_torch(change: dict[str, object]) -> None:
    config = ModelConfig.model_validate({"num_layers": 3, "model_dim": 64, "seq_len": 128, **change})
    model = GPT(config, 300)
    tokens = torch.randint(0, 300, (2, 128))
    # the written-out attention, because torch does not count the fused CPU kernel: the full square, as we do
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens, tokens).backward()
    assert flops_per_token(config, 300) * tokens.numel() == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_known_size_of_the_speedrun_model() -> None:
    """modded-nanogpt track 3: 12 layers of 12 * 768^2 matrix values each, two tables of 50,304 x 768."""
    config = ModelConfig(num_layers=12, model_dim=768, num_heads=6, seq_len=1024, value_embeds=False)
    count = count_parameters(config, 50_257)
    assert (count.blocks, count.embedding, count.head) == (84_934_656, 38_633_472, 38_633_472)


def test_accounting_needs_no_torch() -> None:
    code = "import sys, gptlib.accounting, gptlib.schedules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
