"""What a model costs, in closed form: parameters and training FLOPs, without building it (and without torch)."""

from dataclasses import dataclass

from gptlib.fields import GATE_DIMS, ModelConfig, RunConfig
from gptlib.schedules import joining_times


@dataclass(frozen=True)
class ParameterCount:
    """Trainable values by place."""

    total: int
    embedding: int  # tables of tokens, positions, values and token pairs
    head: int  # 0 where it is tied to the embedding
    blocks: int  # matrices, gates, norms and biases of the blocks, without their value tables
    matrices: int  # of the blocks: what Muon trains

    @property
    def non_embedding(self) -> int:
        """All but what grows with the vocabulary or the context (Kaplan et al. 2020, arXiv 2001.08361)."""
        return self.total - self.embedding - self.head


def count_parameters(config: ModelConfig, vocab_size: int) -> ParameterCount:
    """Parameters of GPT(config, vocab_size); `vocab_size` is the tokenizer's, padding is added here."""
    vocab, width, depth = config.padded_vocab(vocab_size), config.model_dim, config.num_layers
    embedding = vocab * (width + config.num_value_tables * config.kv_heads * config.head_dim)
    embedding += config.seq_len * width * (config.position == "learned")
    embedding += config.bigram_table(vocab_size) * width * config.bigram_embeds
    head = vocab * (width * (not config.tied_head) + config.head_bias)
    matrices = sum(_matrices(config, layer) for layer in range(depth))
    blocks = matrices + sum(_gates(config, layer) + _vectors(config, layer) for layer in range(depth))
    streams = depth * (config.residual_lambdas + config.x0_lambdas + config.bigram_embeds)
    streams += depth // 2 * config.unet_skips + config.backout + config.smear * (1 + _gate(config, 1))
    streams += _norm(config) * (config.embed_norm + (config.norm_placement == "pre"))
    return ParameterCount(embedding + head + blocks + streams, embedding, head, blocks, matrices)


def _matrices(config: ModelConfig, layer: int) -> int:
    width, kv_width = config.model_dim, config.kv_heads * config.head_dim
    attention = 2 * width * (width + kv_width) if layer not in config.skip_attention else 0
    return attention + (3 if config.gated else 2) * width * config.mlp_dim


def _gates(config: ModelConfig, layer: int) -> int:
    value = config.value_mix == "gate" and config.value_table_of(layer) is not None
    heads = config.attention_gate and layer not in config.skip_attention
    return _gate(config, config.kv_heads * value + config.num_heads * heads)


def _gate(config: ModelConfig, outputs: int) -> int:
    return min(GATE_DIMS, config.model_dim) * outputs


def _vectors(config: ModelConfig, layer: int) -> int:
    """Norms, biases, gains and value weights of a layer."""
    attention = layer not in config.skip_attention
    norms = 0 if config.norm_placement == "none" else 1 if config.parallel_block else 1 + attention
    biases = (2 if config.gated else 1) * config.mlp_dim + config.model_dim
    biases += 2 * (config.model_dim + config.kv_heads * config.head_dim) * attention
    lambdas = 2 if config.value_mix == "lambdas" and config.value_table_of(layer) is not None else 0
    gains = config.num_heads * config.qk_gain * attention
    return norms * _norm(config) + biases * config.bias + lambdas + gains


def _norm(config: ModelConfig) -> int:
    return config.model_dim * (config.norm_gain + config.norm_bias)


def flops_per_token(config: ModelConfig, vocab_size: int) -> int:
    """Training FLOPs (forward and backward) per token of a full row, a multiply-add being two.

    6 per matrix parameter (blocks, gates and head; looking up a table is free) plus 12 * heads * head_dim * seq_len for
    every layer with attention: the PaLM convention (arXiv 2204.02311, appendix B), which counts the full square of the
    attention matrix although a causal or windowed kernel may skip parts of it. Element-wise work and the optimizer are
    not counted.
    """
    blocks = sum(_layer_flops(config, layer, config.seq_len) for layer in range(config.num_layers))
    return round(blocks + _ends_flops(config, vocab_size))


def run_flops(config: RunConfig, vocab_size: int) -> int:
    """Training FLOPs of a run as planned: a layer that joins late counts from then on, short rows as short as they are.

    Stages of growth begin at the latest; layers dropped from single steps are counted.
    """
    model, length = config.model, config.model.seq_len * config.schedule.curriculum.mean_share()
    joined = joining_times(config.schedule.depth, model.num_layers)
    blocks = sum((1 - time) * _layer_flops(model, layer, length) for layer, time in enumerate(joined))
    return round(config.planned_tokens * (blocks + _ends_flops(model, vocab_size)))


def _layer_flops(config: ModelConfig, layer: int, length: float) -> float:
    attention = 12 * config.model_dim * length * (layer not in config.skip_attention)
    return 6 * (_matrices(config, layer) + _gates(config, layer)) + attention


def _ends_flops(config: ModelConfig, vocab_size: int) -> int:
    return 6 * (config.padded_vocab(vocab_size) * config.model_dim + _gate(config, config.smear))
