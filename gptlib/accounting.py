"""What a model costs, in closed form: parameters and training FLOPs, without building it (and without torch)."""

from dataclasses import dataclass

from gptlib.config import ModelConfig


@dataclass(frozen=True)
class ParameterCount:
    """Trainable values by place. `embedding`: token and value tables; `head`: 0 where it is tied to the embedding."""

    total: int
    embedding: int
    head: int
    blocks: int  # matrices and gates of the blocks, without their value tables

    @property
    def non_embedding(self) -> int:
        """All but what grows with the vocabulary (Kaplan et al. 2020, arXiv 2001.08361): the same tied or untied."""
        return self.blocks


def count_parameters(config: ModelConfig, vocab_size: int) -> ParameterCount:
    """Parameters of GPT(config, vocab_size); `vocab_size` is the tokenizer's, padding is added here."""
    width, table = config.model_dim, config.padded_vocab(vocab_size) * config.model_dim
    value_layers = (config.num_layers + 1) // 2 if config.value_embeds else 0
    gates = value_layers * config.num_heads * min(12, width)
    blocks = config.num_layers * (4 * width * width + 2 * width * config.mlp_dim) + gates
    embedding, head = table * (1 + value_layers), 0 if config.tied_head else table
    return ParameterCount(embedding + head + blocks, embedding, head, blocks)


def flops_per_token(config: ModelConfig, vocab_size: int) -> int:
    """Training FLOPs (forward and backward) per token of a full row, a multiply-add being two.

    6 per matrix parameter (blocks and head; looking up a table is free) plus 12 * layers * heads * head_dim * seq_len
    for attention: the PaLM convention (arXiv 2204.02311, appendix B), which counts the full square of the attention
    matrix although a causal kernel may skip its upper half. Element-wise work and the optimizer are not counted.
    """
    matrices = count_parameters(config, vocab_size).blocks + config.padded_vocab(vocab_size) * config.model_dim
    return 6 * matrices + 12 * config.num_layers * config.model_dim * config.seq_len
