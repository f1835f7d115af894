"""GPT: one decoder-only transformer; each field of ModelConfig switches one thing in one place.

Axes: b batch, t time, d model, h heads, k head dim, f hidden units of the feed-forward, v (padded) vocabulary.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlib.config import ModelConfig
from gptlib.layers import ACTIVATIONS, attention, rms_norm, rotary_tables, rotate, softcap
from gptlib.streams import stream_seed

# With QK-norm, the largest attention logit: modded-nanogpt scales by 0.12 at a head size of 128. A scale fixed at 0.12
# would leave small heads unable to attend sharply.
QK_NORM_PEAK = 0.12 * 128
VALUE_GATE_DIMS = 12  # leading residual dims that the value gate reads, from nanochat

RotaryTables = tuple[Tensor, Tensor] | None


def has_value_embed(config: ModelConfig, layer: int) -> bool:
    """Every second layer has a value embedding, counted so that the last layer has one (nanochat)."""
    return config.value_embeds and (config.num_layers - 1 - layer) % 2 == 0


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class ValueEmbed(nn.Module):
    """A token table added to the attention values, each head gated by 2 sigmoid(w . x[:12]), which starts at 1.

    Zhou et al. 2024 (value residual, arXiv 2410.17897); this form from nanochat.
    """

    def __init__(self, config: ModelConfig, vocab: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab, config.model_dim)
        self.gate = _linear(min(VALUE_GATE_DIMS, config.model_dim), config.num_heads)

    def forward(self, v_bthk: Tensor, x_btd: Tensor, tokens_bt: Tensor) -> Tensor:
        gate_bth = 2 * torch.sigmoid(self.gate(x_btd[..., : self.gate.in_features]))
        return torch.addcmul(v_bthk, gate_bth.unsqueeze(-1), self.table(tokens_bt).view_as(v_bthk))


class Attention(nn.Module):
    """Causal multi-head self-attention with QK-norm (Henry et al. 2020, arXiv 2010.04245), RoPE, value embeddings."""

    def __init__(self, config: ModelConfig, layer: int, vocab: int) -> None:
        super().__init__()
        width = config.model_dim
        self.head_dim, self.qk_norm = config.head_dim, config.qk_norm
        self.q, self.k, self.v, self.o = (_linear(width, width) for _ in range(4))
        self.value_embed = ValueEmbed(config, vocab) if has_value_embed(config, layer) else None

    def forward(self, x_btd: Tensor, tokens_bt: Tensor, tables: RotaryTables) -> Tensor:
        q, k, v = (linear(x_btd).unflatten(-1, (-1, self.head_dim)) for linear in (self.q, self.k, self.v))  # b t h k
        if self.value_embed is not None:
            v = self.value_embed(v, x_btd, tokens_bt)
        if self.qk_norm:
            q, k = rms_norm(q), rms_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # b h t k
        if tables is not None:
            q, k = rotate(q, tables), rotate(k, tables)
        y_bhtk = attention(q, k, v, causal=True, scale=QK_NORM_PEAK / self.head_dim if self.qk_norm else None)
        return self.o(y_bhtk.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """Feed-forward: up, activation, down."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up, self.down = _linear(config.model_dim, config.mlp_dim), _linear(config.mlp_dim, config.model_dim)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x_btd: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x_btd)))


class Block(nn.Module):
    """Pre-norm residual block: x += attn(norm(x)); x += mlp(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int, vocab: int) -> None:
        super().__init__()
        self.attn = Attention(config, layer, vocab)
        self.mlp = MLP(config)

    def forward(self, x_btd: Tensor, tokens_bt: Tensor, tables: RotaryTables) -> Tensor:
        x_btd = x_btd + self.attn(rms_norm(x_btd), tokens_bt, tables)
        return x_btd + self.mlp(rms_norm(x_btd))


class GPT(nn.Module):
    """Tokens in, logits or loss out. Call `init_weights(seed)` before training: until then weights are torch's own.

    Logits cover the padded vocabulary (`config.padded_vocab(vocab_size)`); mask ids >= `vocab_size` when sampling.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        vocab = config.padded_vocab(vocab_size)
        self.config, self.vocab_size = config, vocab_size
        self.embed = nn.Embedding(vocab, config.model_dim)
        self.blocks = nn.ModuleList(Block(config, layer, vocab) for layer in range(config.num_layers))
        self.head = None if config.tied_head else _linear(config.model_dim, vocab)

    def forward(
        self, tokens_bt: Tensor, targets_bt: Tensor | None = None, reduction: Literal["mean", "none"] = "mean"
    ) -> Tensor:
        """Logits (b, t, v) in fp32 without targets; else the fp32 cross entropy in nats over targets != -1.

        `reduction` "mean" gives a scalar, "none" gives (b, t) with 0 where the target is -1.
        """
        logits_btv = self._logits(self._features(tokens_bt))
        if targets_bt is None:
            return logits_btv
        loss = F.cross_entropy(logits_btv.flatten(0, 1), targets_bt.flatten(), ignore_index=-1, reduction=reduction)
        return loss.view_as(targets_bt) if reduction == "none" else loss

    def _features(self, tokens_bt: Tensor) -> Tensor:
        x_btd = rms_norm(self.embed(tokens_bt))
        tables = self._rotary_tables(tokens_bt)
        for block in self.blocks:
            x_btd = block(x_btd, tokens_bt, tables)
        return rms_norm(x_btd)

    def _rotary_tables(self, tokens_bt: Tensor) -> RotaryTables:
        if self.config.position == "none":
            return None
        positions_t = torch.arange(tokens_bt.shape[1], device=tokens_bt.device)
        return rotary_tables(positions_t, self.config.head_dim, self.config.rope_theta)

    def _logits(self, x_btd: Tensor) -> Tensor:
        weight_vd = self.embed.weight if self.head is None else self.head.weight
        logits_btv = F.linear(x_btd, weight_vd).float()
        return softcap(logits_btv, self.config.logit_softcap) if self.config.logit_softcap else logits_btv

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fill every parameter from its own stream stream_seed(seed, "init", name).

        Drawn on the CPU, so that every device starts from the same numbers, and by name, so that switching a part
        on or off leaves all other parameters as they were.
        """
        for name, parameter in self.named_parameters():
            generator = torch.Generator().manual_seed(stream_seed(seed, "init", name))
            std = self._init_std(name.split(".")[-2], fan_in=parameter.shape[-1])
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

    def _init_std(self, part: str, fan_in: int) -> float:
        """Standard deviation of the normal distribution that each part starts from.

        | part            | std                   | source                                                     |
        |-----------------|-----------------------|------------------------------------------------------------|
        | embed           | 1                     | modded-nanogpt track 3, nanochat (normalised right after)  |
        | embed, tied     | 0.02                  | GPT-2: it makes the logits too, which have to start small  |
        | head, o, down   | 0 (zero_init)         | modded-nanogpt: each block starts as the identity          |
        | q, k, v, up     | sqrt(0.33 / fan_in)   | track 3; also head, o, down when zero_init is off          |
        | table (values)  | sqrt(1 / model_dim)   | nanochat                                                   |
        | gate (values)   | 0                     | nanochat: 2 sigmoid(0) = 1                                 |
        """
        hidden = (0.33 / fan_in) ** 0.5
        output = 0.0 if self.config.zero_init else hidden
        return {
            "embed": 0.02 if self.config.tied_head else 1.0,
            "head": output,
            "q": hidden,
            "k": hidden,
            "v": hidden,
            "o": output,
            "up": hidden,
            "down": output,
            "table": fan_in**-0.5,
            "gate": 0.0,
        }[part]

    def num_params(self) -> int:
        """Number of trainable values; a tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())
