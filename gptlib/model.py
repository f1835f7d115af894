"""GPT: one decoder-only transformer; each field of ModelConfig switches one thing in one place.

Axes: b batch, t time, d model, h heads, k head dim, v (padded) vocabulary. Layers count from 0 at the bottom.

    embed   token table (+ learned positions), smear, norm, dropout
    layers  per layer: U-net skip, residual / x0 / bigram weights, then Block (attention and feed-forward)
    head    backout, norm, linear, softcap
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlib import layers
from gptlib.fields import GATE_DIMS, ModelConfig
from gptlib.streams import stream_seed

# With QK-norm, the largest attention logit: modded-nanogpt scales by 0.12 at a head size of 128. A scale fixed at 0.12
# would leave small heads unable to attend sharply.
QK_NORM_PEAK = 0.12 * 128

RotaryTables = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Context:
    """What the layers of one forward pass share. `masks`: by window, (t, t) or (b, 1, t, t); None: causal alone."""

    tables: RotaryTables | None
    masks: dict[int, Tensor | None]


# --- parts ------------------------------------------------------------------------------------------------------


def _norm(config: ModelConfig) -> nn.Module:
    if config.norm == "rms":
        return layers.RMSNorm(config.model_dim, gain=config.norm_gain)
    return layers.LayerNorm(config.model_dim, gain=config.norm_gain, bias=config.norm_bias)


class Gate(nn.Linear):
    """sigmoid(w . x[:12]) for each output: 0.5 at the start, where w is 0."""

    def __init__(self, config: ModelConfig, outputs: int) -> None:
        super().__init__(min(GATE_DIMS, config.model_dim), outputs, bias=False)

    def forward(self, x_btd: Tensor) -> Tensor:
        return torch.sigmoid(super().forward(x_btd[..., : self.in_features]))


class Attention(nn.Module):
    """Causal multi-head self-attention.

    QK-norm and its gain: Henry et al. 2020, arXiv 2010.04245. Value embeddings: Zhou et al. 2024 (arXiv 2410.17897),
    gated as in nanochat (2 sigmoid, which starts at 1) or mixed by two learned weights as in modded-nanogpt. Gate on
    the heads' outputs: modded-nanogpt, August 2025. Windows: Beltagy et al. 2020, arXiv 2004.05150.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        width, kv_width = config.model_dim, config.kv_heads * config.head_dim
        self.q = nn.Linear(width, width, config.bias)
        self.k, self.v = nn.Linear(width, kv_width, config.bias), nn.Linear(width, kv_width, config.bias)
        self.o = nn.Linear(width, width, config.bias)
        mix = config.value_mix if config.value_table_of(layer) is not None else None
        self.value_gate = Gate(config, config.kv_heads) if mix == "gate" else None
        self.value_lambdas = nn.Parameter(torch.empty(2)) if mix == "lambdas" else None
        self.head_gate = Gate(config, config.num_heads) if config.attention_gate else None
        self.qk_gain = nn.Parameter(torch.empty(config.num_heads)) if config.qk_gain else None

    def forward(self, x_btd: Tensor, value_btd: Tensor | None, context: Context, window: int) -> Tensor:
        config = self.config
        q, k, v = (linear(x_btd).unflatten(-1, (-1, config.head_dim)) for linear in (self.q, self.k, self.v))  # b t h k
        if value_btd is not None:
            v = self._with_value(v, value_btd.view_as(v).type_as(v), x_btd)
        if config.qk_norm:
            q, k = layers.rms_norm(q), layers.rms_norm(k)
        if self.qk_gain is not None:
            q = q * self.qk_gain.type_as(q).unsqueeze(-1)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # b h t k
        if context.tables is not None:
            q, k = (layers.rotate(x, context.tables, config.rope_layout) for x in (q, k))
        mask, scale = context.masks[window], QK_NORM_PEAK / config.head_dim if config.qk_norm else None
        dropout = config.dropout if self.training else 0.0
        y_bthk = layers.attention(q, k, v, mask, mask is None, scale, dropout).transpose(1, 2)
        if self.head_gate is not None:
            y_bthk = y_bthk * self.head_gate(x_btd).unsqueeze(-1)
        return self.o(y_bthk.flatten(-2))

    def _with_value(self, v_bthk: Tensor, value_bthk: Tensor, x_btd: Tensor) -> Tensor:
        if self.value_gate is not None:
            return torch.addcmul(v_bthk, 2 * self.value_gate(x_btd).unsqueeze(-1), value_bthk)
        if self.value_lambdas is not None:
            own, added = self.value_lambdas.type_as(v_bthk)
            return own * v_bthk + added * value_bthk
        return v_bthk + value_bthk


class Block(nn.Module):
    """One layer: residual attention and feed-forward, with norms before them, after the sums, or none.

    Post-norm: Vaswani et al. 2017, arXiv 1706.03762; pre-norm: Xiong et al. 2020, arXiv 2002.04745. Parallel: one norm
    n and x + (attn(n) + mlp(n)) / sqrt(2) (Chowdhery et al. 2022, PaLM, arXiv 2204.02311).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.attn = None if layer in config.skip_attention else Attention(config, layer)
        feed_forward = layers.GatedMLP if config.gated else layers.MLP
        self.mlp = feed_forward(config.model_dim, config.mlp_dim, layers.ACTIVATIONS[config.activation], config.bias)
        normed, both = config.norm_placement != "none", not config.parallel_block
        self.attn_norm = _norm(config) if normed and both and self.attn is not None else None
        self.mlp_norm = _norm(config) if normed and both else None
        self.norm = _norm(config) if normed and not both else None

    def forward(self, x_btd: Tensor, value_btd: Tensor | None, context: Context, window: int) -> Tensor:
        def attend(n_btd: Tensor) -> Tensor:
            assert self.attn is not None
            return self._drop(self.attn(n_btd, value_btd, context, window))

        def feed(n_btd: Tensor) -> Tensor:
            return self._drop(self.mlp(n_btd))

        if self.config.parallel_block:
            both = feed if self.attn is None else lambda n_btd: attend(n_btd) + feed(n_btd)
            return self._residual(x_btd, lambda n_btd: both(n_btd) * 0.5**0.5, self.norm)
        if self.attn is not None:
            x_btd = self._residual(x_btd, attend, self.attn_norm)
        return self._residual(x_btd, feed, self.mlp_norm)

    def _residual(self, x_btd: Tensor, sublayer: layers.Sublayer, norm: nn.Module | None) -> Tensor:
        if norm is None:
            return x_btd + sublayer(x_btd)
        if self.config.norm_placement == "post":
            return norm(x_btd + sublayer(x_btd))
        return x_btd + sublayer(norm(x_btd))

    def _drop(self, x_btd: Tensor) -> Tensor:
        return F.dropout(x_btd, self.config.dropout, self.training)


# --- the model --------------------------------------------------------------------------------------------------


class GPT(nn.Module):
    """Tokens in, logits or loss out. Call `init_weights(seed)` before training: until then some weights are undefined.

    Logits cover the padded vocabulary (`config.padded_vocab(vocab_size)`); mask ids >= `vocab_size` when sampling. The
    last id, `vocab_size - 1`, begins a document. A schedule may set `layers_on` (which layers are computed, the others
    are the identity) and `window_share` (of the size of every attention window).
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size, self.eot = config, vocab_size, vocab_size - 1
        vocab, width, depth = config.padded_vocab(vocab_size), config.model_dim, config.num_layers
        self.layers_on, self.window_share = tuple(range(depth)), 1.0
        self.embed = nn.Embedding(vocab, width)
        self.positions = nn.Embedding(config.seq_len, width) if config.position == "learned" else None
        self.embed_norm = _norm(config) if config.embed_norm else None
        self.smear_gate = Gate(config, 1) if config.smear else None
        self.smear_lambda = nn.Parameter(torch.empty(1)) if config.smear else None
        self.bigram_table = nn.Embedding(config.bigram_table(vocab_size), width) if config.bigram_embeds else None
        kv_width = config.kv_heads * config.head_dim
        self.value_tables = nn.ModuleList(nn.Embedding(vocab, kv_width) for _ in range(config.num_value_tables))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(depth))
        self.skip_weights = nn.Parameter(torch.empty(depth // 2)) if config.unet_skips and depth > 1 else None
        self.residual_lambdas = nn.Parameter(torch.empty(depth)) if config.residual_lambdas else None
        self.x0_lambdas = nn.Parameter(torch.empty(depth)) if config.x0_lambdas else None
        self.bigram_lambdas = nn.Parameter(torch.empty(depth)) if config.bigram_embeds else None
        self.backout_lambda = nn.Parameter(torch.empty(1)) if config.backout else None
        self.final_norm = _norm(config) if config.norm_placement == "pre" else None
        self.head = None if config.tied_head else nn.Linear(width, vocab, config.head_bias)
        self.head_bias = nn.Parameter(torch.empty(vocab)) if config.tied_head and config.head_bias else None

    def forward(
        self, tokens_bt: Tensor, targets_bt: Tensor | None = None, reduction: Literal["mean", "none"] = "mean"
    ) -> Tensor:
        """Logits (b, t, v) in fp32 without targets; else the fp32 cross entropy in nats over targets != -1.

        `reduction` "mean" gives a scalar (0 where no target is scored), "none" gives (b, t) with 0 where it is not.
        """
        logits_btv = self._logits(self._features(tokens_bt))
        if targets_bt is None:
            return logits_btv
        how = "none" if reduction == "none" else "sum"
        loss = F.cross_entropy(logits_btv.flatten(0, 1), targets_bt.flatten(), ignore_index=-1, reduction=how)
        return loss.view_as(targets_bt) if reduction == "none" else loss / (targets_bt >= 0).sum().clamp(min=1)

    def _features(self, tokens_bt: Tensor) -> Tensor:
        x_btd = x0_btd = self._embedding(tokens_bt)
        bigram_btd = self._bigram(tokens_bt)
        context, depth = self._context(tokens_bt), self.config.num_layers
        kept: dict[int, Tensor] = {}  # by layer: what has left it, for U-net skips and backout
        for layer in self.layers_on:
            x_btd = self._enter(layer, x_btd, kept.get(depth - 1 - layer), x0_btd, bigram_btd)
            table = self.config.value_table_of(layer)
            value_btd = None if table is None else self.value_tables[table](tokens_bt)
            x_btd = self.blocks[layer](x_btd, value_btd, context, self._window(layer))
            if self.skip_weights is not None or self.backout_lambda is not None:
                kept[layer] = x_btd
        if self.backout_lambda is not None and (middle := self._backout_layer()) in kept:
            x_btd = x_btd - self.backout_lambda * kept[middle]
        return x_btd if self.final_norm is None else self.final_norm(x_btd)

    # ---- embed

    def _embedding(self, tokens_bt: Tensor) -> Tensor:
        x_btd = self.embed(tokens_bt)
        if self.positions is not None:
            x_btd = x_btd + self.positions.weight[: tokens_bt.shape[1]]
        if self.smear_gate is not None and self.smear_lambda is not None:
            # modded-nanogpt, September 2025
            before_btd = F.pad(x_btd[:, :-1], (0, 0, 1, 0)) * self._has_predecessor(tokens_bt).unsqueeze(-1)
            x_btd = x_btd + self.smear_lambda * self.smear_gate(x_btd) * before_btd
        if self.embed_norm is not None:
            x_btd = self.embed_norm(x_btd)
        return F.dropout(x_btd, self.config.dropout, self.training)

    def _bigram(self, tokens_bt: Tensor) -> Tensor | None:
        """Embedding of each pair of tokens, hashed as in modded-nanogpt (2026); the last row is for no predecessor."""
        if self.bigram_table is None:
            return None
        last = self.bigram_table.num_embeddings - 1
        before_bt = tokens_bt.roll(1, dims=1)
        rows_bt = torch.bitwise_xor(36_313 * tokens_bt, 27_191 * before_bt) % last
        return self.bigram_table(torch.where(self._has_predecessor(tokens_bt), rows_bt, last))

    def _has_predecessor(self, tokens_bt: Tensor) -> Tensor:
        """(b, t) bool: whether the token before may be seen."""
        has_bt = torch.ones_like(tokens_bt, dtype=torch.bool)
        has_bt[:, 0] = False
        return has_bt & (tokens_bt != self.eot) if self.config.document_mask else has_bt

    # ---- layers

    def _enter(
        self, layer: int, x_btd: Tensor, skip_btd: Tensor | None, x0_btd: Tensor, bigram_btd: Tensor | None
    ) -> Tensor:
        """What enters a block: the stream, a U-net skip to the upper half, and the weighted embeddings."""
        upper = layer - (self.config.num_layers + 1) // 2
        if self.skip_weights is not None and upper >= 0 and skip_btd is not None:
            x_btd = x_btd + self.skip_weights[upper] * skip_btd
        if self.residual_lambdas is not None:
            x_btd = self.residual_lambdas[layer] * x_btd
        if self.x0_lambdas is not None:
            x_btd = x_btd + self.x0_lambdas[layer] * x0_btd
        if self.bigram_lambdas is not None and bigram_btd is not None:
            x_btd = x_btd + self.bigram_lambdas[layer] * bigram_btd
        return x_btd

    def _backout_layer(self) -> int:
        return max(1, 2 * self.config.num_layers // 3) - 1

    def _window(self, layer: int) -> int:
        return self.config.window(layer, self.window_share)

    def _context(self, tokens_bt: Tensor) -> Context:
        config, length, device = self.config, tokens_bt.shape[1], tokens_bt.device
        tables = None
        if config.position == "rope":
            positions_t = torch.arange(length, device=device)
            shape = config.head_dim, config.rope_theta, config.rope_layout, config.rope_fraction
            tables = layers.rotary_tables(positions_t, *shape)
        masks: dict[int, Tensor | None] = {}
        for window in {self._window(layer) for layer in self.layers_on}:
            whole = window >= length and not config.document_mask
            masks[window] = None if whole else layers.causal_mask(length, length, device, window)
        if config.document_mask:
            document_bt = (tokens_bt == self.eot).cumsum(dim=1)
            same_b1tt = (document_bt.unsqueeze(2) == document_bt.unsqueeze(1)).unsqueeze(1)
            masks = {window: same_b1tt & mask for window, mask in masks.items() if mask is not None}
        return Context(tables, masks)

    # ---- head

    def _logits(self, x_btd: Tensor) -> Tensor:
        if self.head is not None:
            logits_btv = self.head(x_btd).float()
        else:
            logits_btv = F.linear(x_btd, self.embed.weight, self.head_bias).float()
        if not self.config.logit_softcap:
            return logits_btv
        cap = layers.softcap if self.config.softcap == "tanh" else layers.rational_softcap
        return cap(logits_btv, self.config.logit_softcap)

    # ---- start

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fill every parameter from its own stream stream_seed(seed, "init", name).

        Drawn on the CPU, so that every device starts from the same numbers, and by name, so that switching a part
        on or off leaves all other parameters as they were. xavier draws within three standard deviations (CS336).
        """
        for name, parameter in self.named_parameters():
            constant = self._init_constant(name)
            if constant is not None:
                parameter.fill_(constant)
                continue
            generator = torch.Generator().manual_seed(stream_seed(seed, "init", name))
            std = self._init_std(part_of(name), *parameter.shape)
            bound = 3.0 if self.config.init == "xavier" else math.inf
            parameter.copy_(_normal(parameter.shape, bound, generator) * std)

    @staticmethod
    def _init_constant(name: str) -> float | None:
        """The value that gains, biases, weights of streams and gates start from; None for what is drawn."""
        part = part_of(name)
        if name.endswith("bias") or part.endswith("gate"):
            return 0.0
        ones = part.endswith("norm") or part in ("skip_weights", "residual_lambdas", "qk_gain")
        weights = {"value_lambdas": 0.5, "backout_lambda": 0.5, "bigram_lambdas": 0.05, "bigram_table": 0.0}
        weights |= {"x0_lambdas": 0.0, "smear_lambda": 0.0}
        return 1.0 if ones else weights.get(part)

    def _init_std(self, part: str, rows: int, cols: int) -> float:
        """Standard deviation of the normal distribution that a matrix (rows = outputs, cols = inputs) starts from.

        | part                 | speedrun               | gpt2 | xavier                 |
        |----------------------|------------------------|------|------------------------|
        | embed                | 1 (0.02 where tied)    | 0.02 | 1 (0.02 where tied)    |
        | positions            | 0.02                   | 0.02 | 0.02                   |
        | value tables         | sqrt(1 / cols)         | same | same                   |
        | q k v up w1 w3, head | sqrt(0.33 / cols)      | 0.02 | sqrt(2 / (rows+cols))  |
        | o down w2            | as q; projection_init scaled: over sqrt(2 layers)      |
        | o down w2, head      | projection_init zero: 0                                |

        Sources: modded-nanogpt track 3, with nanochat's value tables (speedrun); Radford et al. 2019 and nanoGPT
        (gpt2); Stanford CS336, after Glorot and Bengio 2010 (xavier). A tied embedding makes the logits too, which have
        to start small.
        """
        scheme, output = self.config.init, part in ("o", "down", "w2")
        if part == "embed":
            return 0.02 if scheme == "gpt2" or self.config.tied_head else 1.0
        if part == "positions":
            return 0.02
        if part == "value_tables":
            return cols**-0.5
        if self.config.projection_init == "zero" and (output or part == "head"):
            return 0.0
        std = {"speedrun": (0.33 / cols) ** 0.5, "gpt2": 0.02, "xavier": (2 / (rows + cols)) ** 0.5}[scheme]
        scaled = output and self.config.projection_init == "scaled"
        return std / (2 * self.config.num_layers) ** 0.5 if scaled else std

    def get_num_params(self, non_embedding: bool = False) -> int:
        """Number of trainable values, a tied head counted once; `non_embedding`: without token, position, value and
        pair tables and without the head (Kaplan et al. 2020, arXiv 2001.08361)."""
        tables = ("embed", "positions", "value_tables", "bigram_table", "head", "head_bias")
        return sum(p.numel() for n, p in self.named_parameters() if not (non_embedding and part_of(n) in tables))


def _normal(shape: torch.Size, bound: float, generator: torch.Generator) -> Tensor:
    """Standard normal values, cut off at `bound`."""
    values = torch.empty(shape)
    if math.isinf(bound):
        return values.normal_(generator=generator)
    return nn.init.trunc_normal_(values, a=-bound, b=bound, generator=generator)


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to: "blocks.0.attn.q.weight" -> "q", "skip_weights" -> itself."""
    return next(word for word in reversed(name.split(".")) if not word.isdigit() and word not in ("weight", "bias"))
