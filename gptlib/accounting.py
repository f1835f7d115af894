"""What a model costs, in closed form: parameters, training FLOPs, memory, without building it (and without torch)."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from gptlib.fields import GATE_DIMS, ModelConfig, RunConfig
from gptlib.schedules import joining_times

# --- parameters -------------------------------------------------------------------------------------------------


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
    parts = _parts(config, vocab_size)
    embedding = sum(parts[table] for table in ("token embedding", "value embeddings", "token pairs", "positions"))
    matrices = parts["attention"] + parts["feed-forward"]
    blocks = matrices + sum(_gates(config, layer) + _vectors(config, layer) for layer in range(config.num_layers))
    return ParameterCount(sum(parts.values()), embedding, parts["head"], blocks, matrices)


def parameters_by_part(config: ModelConfig, vocab_size: int) -> dict[str, int]:
    """Trainable values of each part that GPT(config, vocab_size) has; their sum is the total.

    "vectors" are norms, biases of the blocks, gains and the weights of streams and values. A tied head is no part of
    its own: its matrix is the token embedding, and only a bias is left.
    """
    return {part: size for part, size in _parts(config, vocab_size).items() if size}


def _parts(config: ModelConfig, vocab_size: int) -> dict[str, int]:
    vocab, width, layers = config.padded_vocab(vocab_size), config.model_dim, range(config.num_layers)
    return {
        "token embedding": vocab * width,
        "value embeddings": vocab * config.num_value_tables * _kv_width(config),
        "token pairs": config.bigram_table(vocab_size) * width * config.bigram_embeds,
        "positions": config.seq_len * width * (config.position == "learned"),
        "attention": sum(_size(_attention_matrices(config, layer)) for layer in layers),
        "feed-forward": config.num_layers * _size(_feed_forward_matrices(config)),
        "gates": sum(_gates(config, layer) for layer in layers) + _gate(config, config.smear),
        "vectors": sum(_vectors(config, layer) for layer in layers) + _stream_weights(config),
        "head": vocab * (width * (not config.tied_head) + config.head_bias),
    }


Shapes = list[tuple[int, int]]  # of matrices: outputs, inputs


def _matrices(config: ModelConfig, layer: int) -> Shapes:
    return _attention_matrices(config, layer) + _feed_forward_matrices(config)


def _attention_matrices(config: ModelConfig, layer: int) -> Shapes:
    width, kv_width = config.model_dim, _kv_width(config)
    return [] if layer in config.skip_attention else [(width, width)] * 2 + [(kv_width, width)] * 2


def _feed_forward_matrices(config: ModelConfig) -> Shapes:
    return [(config.mlp_dim, config.model_dim)] * (2 if config.gated else 1) + [(config.model_dim, config.mlp_dim)]


def _size(shapes: Shapes) -> int:
    return sum(rows * cols for rows, cols in shapes)


def _kv_width(config: ModelConfig) -> int:
    return config.kv_heads * config.head_dim


def _gates(config: ModelConfig, layer: int) -> int:
    value = config.value_mix == "gate" and config.value_table_of(layer) is not None
    heads = config.attention_gate and layer not in config.skip_attention
    return _gate(config, config.kv_heads * value + config.num_heads * heads)


def _gate(config: ModelConfig, outputs: int) -> int:
    return min(GATE_DIMS, config.model_dim) * outputs


def _vectors(config: ModelConfig, layer: int) -> int:
    """Norms, biases, gains and value weights of a layer."""
    attention = layer not in config.skip_attention
    biases = (2 if config.gated else 1) * config.mlp_dim + config.model_dim
    biases += 2 * (config.model_dim + _kv_width(config)) * attention
    lambdas = 2 if config.value_mix == "lambdas" and config.value_table_of(layer) is not None else 0
    gains = config.num_heads * config.qk_gain * attention
    return _norms(config, layer) * _norm(config) + biases * config.bias + lambdas + gains


def _stream_weights(config: ModelConfig) -> int:
    """Weights on the residual stream, and the norms at its two ends."""
    weights = config.num_layers * (config.residual_lambdas + config.x0_lambdas + config.bigram_embeds)
    weights += config.num_layers // 2 * config.unet_skips + config.backout + config.smear
    return weights + _norm(config) * (config.embed_norm + (config.norm_placement == "pre"))


def _sublayers(config: ModelConfig, layer: int) -> int:
    """How often a layer reads the stream: attention and feed-forward one after the other, or at once."""
    return 1 if config.parallel_block or layer in config.skip_attention else 2


def _norms(config: ModelConfig, layer: int) -> int:
    return 0 if config.norm_placement == "none" else _sublayers(config, layer)


def _norm(config: ModelConfig) -> int:
    return config.model_dim * (config.norm_gain + config.norm_bias)


# --- FLOPs ------------------------------------------------------------------------------------------------------


def flops_per_token(
    config: ModelConfig, vocab_size: int, convention: Literal["structural", "palm"] = "structural"
) -> int:
    """Training FLOPs (forward and backward) per token of a full row, a multiply-add being two.

    * structural: 6 for each value of a matrix that is multiplied, of blocks, gates and head; looking tables up is free.
    * palm: 6 for each parameter but learned positions, as if tables were multiplied too. So nanoGPT estimates its MFU,
      after PaLM (Chowdhery et al. 2022, arXiv 2204.02311, appendix B); never less than structural.

    Both add 12 * heads * head_dim * seq_len for every layer with attention: the full square of the attention matrix. A
    causal kernel needs half of it, a window of w tokens about w / seq_len. Element-wise work and the optimizer are not
    counted.

    Why 6: a matrix of N values costs a token 2 N in the forward pass, a multiplication and an addition each, and twice
    that in the backward pass, for the gradients of inputs and of weights (Kaplan et al. 2020, arXiv 2001.08361, table
    1). "2 x parameters x seq_len FLOPs per token", which one also reads, has a dimension too many: 2 N T is the forward
    pass of a whole row of T tokens, 2 N that of one token; training takes three times as much of either.
    """
    if convention == "structural":
        blocks = sum(_layer_flops(config, layer, config.seq_len) for layer in range(config.num_layers))
        return round(blocks + _ends_flops(config, vocab_size))
    parts = _parts(config, vocab_size)
    attention = sum(_attention_flops(config, layer, config.seq_len) for layer in range(config.num_layers))
    return round(6 * (sum(parts.values()) - parts["positions"]) + attention)


def run_flops(config: RunConfig, vocab_size: int) -> int:
    """Training FLOPs (structural) of a run as planned: a late layer counts from when it joins, short rows as they are.

    Stages of growth begin at the latest; layers dropped from single steps are counted.
    """
    model, length = config.model, config.model.seq_len * config.schedule.curriculum.mean_share()
    joined = joining_times(config.schedule.depth, model.num_layers)
    blocks = sum((1 - time) * _layer_flops(model, layer, length) for layer, time in enumerate(joined))
    return round(config.planned_tokens * (blocks + _ends_flops(model, vocab_size)))


def _layer_flops(config: ModelConfig, layer: int, length: float) -> float:
    return 6 * (_size(_matrices(config, layer)) + _gates(config, layer)) + _attention_flops(config, layer, length)


def _attention_flops(config: ModelConfig, layer: int, length: float) -> float:
    return 12 * config.model_dim * length * (layer not in config.skip_attention)


def _ends_flops(config: ModelConfig, vocab_size: int) -> int:
    return 6 * (config.padded_vocab(vocab_size) * config.model_dim + _gate(config, config.smear))


# --- memory -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Bytes of the tensors of one rank."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int  # what autograd keeps from the forward pass for the backward pass

    @property
    def total(self) -> int:
        """All at once, as at the end of a forward pass that accumulates on gradients."""
        return self.parameters + self.gradients + self.optimizer + self.activations


def memory_estimate(config: RunConfig, vocab_size: int, bf16: bool = False) -> Memory:
    """Bytes that training needs for parameters, gradients and optimizer (all fp32), and activations of one pass.

    AdamW keeps two values for each parameter, Muon one for each of its own, NorMuon one more for each line along the
    longer side of a matrix. Activations are those of the eager model, with rows and windows of full size, as many rows
    as a rank takes at once, and the kernels of a CPU: there dropout turns fused attention off, so that three squares
    (seq_len, seq_len) are kept for each head; where a GPU fuses it, there are none. Left out: what compilation saves,
    gradients of activations, workspace of kernels.

    `gptlib.memory` measures the same. In fp32 the presets agree to 1 %, random models to 7 %. `bf16` is autocast, whose
    copies of weights and inputs count as activations; it was checked on CPUs alone, to 2 % and 5 %.
    """
    model, count = config.model, count_parameters(config.model, vocab_size)
    state = 2 * count.total
    if config.optim.matrices == "muon":
        state -= count.matrices
        matrices = [shape for layer in range(model.num_layers) for shape in _matrices(model, layer)]
        state += sum(max(shape) for shape in matrices) * config.optim.muon.normuon
    rows = config.train.batch_rows // config.hardware.ranks
    rows = min(rows, config.hardware.micro_rows or rows)
    return Memory(4 * count.total, 4 * count.total, 4 * state, _activations(model, vocab_size, rows, bf16))


def _activations(config: ModelConfig, vocab_size: int, rows: int, bf16: bool) -> int:
    made = 2 if bf16 else 4  # bytes of a value that a matrix multiplication gives or takes
    layers = range(config.num_layers)
    per_token = sum(_kept_by_layer(config, layer, rows, made) for layer in layers)
    per_token += 4 * config.model_dim * _kept_streams(config) + _kept_by_ends(config, vocab_size, made)
    rotary = 8 * config.seq_len * config.head_dim * (config.position == "rope")  # cos and sin
    cast = sum(_size(_matrices(config, layer)) for layer in layers) + config.padded_vocab(vocab_size) * config.model_dim
    return round(rows * config.seq_len * per_token + rotary + 2 * cast * bf16)


def _kept_by_layer(config: ModelConfig, layer: int, rows: int, made: int) -> float:
    """Bytes per token; `made` as above."""
    attention, width = layer not in config.skip_attention, config.model_dim
    maps = 3 * attention + (2 if config.gated else 1)  # that read the stream
    # one input serves all maps of a sublayer, but autocast makes a copy for each
    kept: float = made * width * (_sublayers(config, layer) if made == 4 else maps)
    kept += _norms(config, layer) * _kept_by_norm(config, made)
    hidden = 4 if config.gated else 1 if config.activation == "relu" else 2  # relu's backward pass reads its output
    kept += made * config.mlp_dim * hidden
    kept += made * width * (1 + attention) * (config.dropout > 0)  # the factors of what is kept and dropped
    return kept + (_kept_by_attention(config, layer, rows, made) if attention else 0)


def _kept_by_attention(config: ModelConfig, layer: int, rows: int, made: int) -> float:
    width, kv_width, heads, kv_heads = config.model_dim, _kv_width(config), config.num_heads, config.kv_heads
    masked = config.document_mask or config.window(layer) < config.seq_len
    if config.dropout:  # not fused: q, k, v of all heads, the weights, what is dropped, their product, in fp32; output
        kept = 4.0 * (3 * width + 3 * heads * config.seq_len) + made * width
    else:  # q, k, v, output, logarithm of the sums; the kernel turns a mask into numbers, anew in every layer
        mask = config.seq_len * masked / (1 if config.document_mask else rows)
        kept = made * (2 * (width + kv_width) + mask) + 4 * heads
    if config.qk_norm:  # q and k before, and the factors
        kept += 4 * (width + kv_width) + made * (heads + kv_heads)
    kept += made * width * config.qk_gain  # q before
    kept += made * (width + heads) * config.attention_gate  # the output before, and the gates
    if config.value_table_of(layer) is not None:  # what is weighted, and gates twice: the sigmoid and its double
        kept += made * {"gate": kv_width + 2 * kv_heads, "lambdas": 2 * kv_width, "sum": 0}[config.value_mix]
    return kept


def _kept_by_norm(config: ModelConfig, made: int) -> int:
    if config.norm == "layer":  # the input, mean and spread
        return 4 * config.model_dim + 8
    return (4 + 4 * config.norm_gain) * config.model_dim + made  # also what the gain is applied to


def _kept_streams(config: ModelConfig) -> int:
    """Tensors (tokens, model_dim) that are kept besides the inputs of sublayers and norms: what weights multiply."""
    kept = config.bigram_embeds + 2 * config.smear  # pairs; the embedding before, and its predecessor's
    if config.residual_lambdas:  # every stream before its weight, among them the embedding and what is skipped
        return kept + config.num_layers
    skipped = config.num_layers // 2 * config.unet_skips + config.backout  # else the input of the next norm
    return kept + config.x0_lambdas + skipped * (config.x0_lambdas or config.bigram_embeds)


def _kept_by_ends(config: ModelConfig, vocab_size: int, made: int) -> int:
    """Embedding, head and loss, bytes per token."""
    width, softcap = config.model_dim, bool(config.logit_softcap)
    norms = config.embed_norm + (config.norm_placement == "pre")
    kept = norms * _kept_by_norm(config, made) + 4 * width * (config.dropout > 0) + made * width  # the head's input
    kept += 8 * (2 + config.bigram_embeds)  # numbers of tokens, targets and pairs
    # logarithms of the probabilities, and what the softcap needs: its sigmoid, or three factors
    return kept + 4 * config.padded_vocab(vocab_size) * (1 + softcap * (1 if config.softcap == "tanh" else 3))


# --- a whole run ------------------------------------------------------------------------------------------------


def planned_costs(config: RunConfig, vocab_size: int, step_seconds: float | None = None) -> dict[str, float]:
    """What one run costs, from closed forms: parameters, training FLOPs, tokens, steps, rows, tensor memory (MiB).

    `step_seconds`, from a timing trial, adds `trial_seconds`, the time of a run with the machine to itself.
    """
    count = count_parameters(config.model, vocab_size)
    values: dict[str, float] = {
        "total": count.total,
        "non_embedding": count.non_embedding,
        "flops_per_token": flops_per_token(config.model, vocab_size),
        "flops_per_token_palm": flops_per_token(config.model, vocab_size, "palm"),
        "total_flops": run_flops(config, vocab_size),
        "tokens": config.planned_tokens,
        "steps": config.train.steps,
        "batch_rows": config.train.batch_rows,
        "tensor_mib": memory_estimate(config, vocab_size).total / 2**20,
    }
    return values if step_seconds is None else values | {"trial_seconds": step_seconds * config.train.steps}


def describe_costs(config: RunConfig, vocab_size: int) -> str:
    """The lines that a run begins its log with."""
    costs, memory = planned_costs(config, vocab_size), memory_estimate(config, vocab_size)
    parts = ", ".join(f"{name} {n:,}" for name, n in parameters_by_part(config.model, vocab_size).items())
    mib = ", ".join(f"{name} {size / 2**20:,.1f}" for name, size in dataclasses.asdict(memory).items())
    return (
        f"{costs['total']:,} parameters, {costs['non_embedding']:,} of them non-embedding ({parts})\n"
        f"{costs['flops_per_token']:,} training FLOPs/token ({costs['flops_per_token_palm']:,} by PaLM's convention), "
        f"{costs['total_flops']:.4g} for {costs['tokens']:,} tokens in {costs['steps']:,} steps\n"
        f"tensor memory, estimated: {memory.total / 2**20:,.1f} MiB ({mib})"
    )
