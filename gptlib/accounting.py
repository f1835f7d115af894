"""What a model costs, in closed form: parameters and training FLOPs, without building it (and without torch)."""

from dataclasses import dataclass

from gptlib.fields import ModelConfig

GATE_INPUTS = 12  # residual dims that a gate reads, as in gptlib/model.py


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
    value = config.value_mix == "gate" and config.value_table(layer) is not None
    heads = config.attention_gate and layer not in config.skip_attention
    return _gate(config, config.kv_heads * value + config.num_heads * heads)


def _gate(config: ModelConfig, outputs: int) -> int:
    return min(GATE_INPUTS, config.model_dim) * outputs


def _vectors(config: ModelConfig, layer: int) -> int:
    """Norms, biases, gains and value weights of a layer."""
    attention = layer not in config.skip_attention
    norms = 0 if config.norm_placement == "none" else 1 if config.parallel_block else 1 + attention
    biases = (2 if config.gated else 1) * config.mlp_dim + config.model_dim
    biases += 2 * (config.model_dim + config.kv_heads * config.head_dim) * attention
    lambdas = 2 if config.value_mix == "lambdas" and config.value_table(layer) is not None else 0
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
    gates = sum(_gates(config, layer) for layer in range(config.num_layers)) + _gate(config, config.smear)
    matrices = count_parameters(config, vocab_size).matrices + gates
    matrices += config.padded_vocab(vocab_size) * config.model_dim
    attention_layers = config.num_layers - len(config.skip_attention)
    return 6 * matrices + 12 * attention_layers * config.model_dim * config.seq_len
