"""Every number of a run: its name, its default, its range, and what it decides.

The tree is frozen and validated; `gptlib/config.py` reads, overrides and compares it. All times in a schedule are
fractions of the run, all sizes that depend on others may be left at 0 to follow them.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

GATE_DIMS = 12  # leading dims of the stream that a gate reads, as in modded-nanogpt and nanochat


class Section(BaseModel):
    """Frozen and strict: unknown keys, nan and inf are refused; numbers written as strings are parsed by type."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class DataConfig(Section):
    # what they are: gptlib/data/corpora.py
    corpus: Literal[
        "stories", "text", "tokens", "tinyshakespeare", "tinystories", "fineweb10B", "fineweb", "fineweb_edu"
    ] = "stories"
    # text, tokens: a file, a folder or a glob; others: a local copy of what is downloaded when this is empty
    path: str = ""
    documents: int = Field(20_000, ge=1)  # stories: how many to write for training
    val_documents: int = Field(400, ge=1)  # stories: how many to write for validation
    # text, tinystories (for training), fineweb, fineweb_edu: the first so many documents alone; 0: all
    max_documents: int = Field(0, ge=0)
    # text, tinyshakespeare, fineweb, fineweb_edu: share of the text held out for validation
    val_fraction: float = Field(0.1, gt=0, lt=1)
    field: str = Field("text", min_length=1)  # text: what holds the text in .jsonl and .parquet files
    delimiter: str = ""  # text: stands between the documents of a .txt file; empty: each file is one document
    encoding: str = ""  # text: of .txt and .jsonl; empty: UTF-8, or UTF-16 with a byte-order mark
    version: Literal["v1", "v2"] = "v2"  # tinystories: v2 is by GPT-4 alone
    # files for training: fineweb10B has 103 of 100 million tokens, fineweb 15 and fineweb_edu 14 of about 2 GB
    shards: int = Field(1, ge=1, le=103)
    # fineweb10B, tokens: predicted validation tokens, from the start of the (first) file for it; 0: all. The speedrun
    # scores 10,485,760
    val_tokens: int = Field(0, ge=0)
    tokenizer: Literal["byte", "char", "bpe", "gpt2"] = "bpe"
    vocab_size: int = Field(512, ge=258, le=65_536)  # bpe: size to train, special token included
    # rows begin at a document, or cut the token stream evenly; ordered: unshuffled in training; random: begin anywhere
    rows: Literal["documents", "stream", "ordered", "random"] = "documents"
    max_document: int = Field(0, ge=0)  # training: tokens of a document that are kept, its eot aside; 0: all
    seed: int = Field(0, ge=0)  # stories: seed of the writer; never the seed of a run

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, encoding: str) -> str:
        try:
            "".encode(encoding or "utf-8")
        except LookupError:
            raise ValueError(f"encoding={encoding!r} is not known; e.g. utf-8, utf-16-le, latin-1, cp1252") from None
        return encoding

    @model_validator(mode="after")
    def _corpus_has_what_it_needs(self) -> "DataConfig":
        if self.corpus == "text" and not self.path:
            raise ValueError(
                "corpus 'text' needs data.path: a .txt, .jsonl or .parquet file, a folder of them or a glob"
            )
        if self.corpus == "tokens" and not self.path:
            raise ValueError("corpus 'tokens' needs data.path: a folder or a glob of .npy and .bin files of token ids")
        if self.corpus in ("fineweb10B", "tokens") and self.tokenizer != "gpt2":
            raise ValueError(f"corpus '{self.corpus}' has the tokens of GPT-2; set data.tokenizer=gpt2")
        return self


class ModelConfig(Section):
    """The model. Every field is one switch; a switch that is off leaves no parameter and no computation behind."""

    # size
    num_layers: int = Field(4, ge=1)
    model_dim: int = Field(128, ge=8)
    num_heads: int = Field(4, ge=1)
    num_kv_heads: int = Field(0, ge=0)  # grouped-query attention: heads of keys and values; 0: as many as num_heads
    mlp_ratio: float = Field(4.0, gt=0)  # hidden width of the feed-forward / model_dim
    mlp_hidden: int = Field(0, ge=0)  # that width outright; 0: by mlp_ratio
    seq_len: int = Field(256, ge=2)  # context, tokens
    vocab_multiple: int = Field(64, ge=1)  # the vocabulary is padded up to a multiple of this
    # norms
    norm: Literal["rms", "layer"] = "rms"
    norm_gain: bool = False
    norm_bias: bool = False  # norm=layer only
    norm_placement: Literal["pre", "post", "none"] = "pre"  # of the blocks; pre has one before the head as well
    embed_norm: bool = True  # normalise the embedding before the first block
    qk_norm: bool = True
    qk_gain: bool = False  # each head has a learned factor from 1 on its attention logits
    # position
    position: Literal["rope", "learned", "none"] = "rope"
    rope_theta: float = Field(10_000.0, gt=0)
    rope_layout: Literal["half", "interleaved"] = "half"  # which dims make a pair: (i, i + half) or (2i, 2i + 1)
    rope_fraction: float = Field(1.0, gt=0, le=1)  # share of the pairs that turn; the others know no position
    # block
    parallel_block: bool = False  # x + (attn(n) + mlp(n)) / sqrt(2) with one norm n
    activation: Literal["relu2", "relu", "gelu", "gelu_tanh", "silu", "swiglu", "geglu"] = "relu2"
    bias: bool = False  # of the linear maps in the blocks
    dropout: float = Field(0.0, ge=0, lt=1)  # of embeddings, attention weights and what each sublayer adds
    # attention
    window_pattern: str = Field("L", pattern="^[SL]+$")  # over the layers: S short window, L seq_len; the last is L
    short_window: float = Field(0.25, gt=0, le=1)  # of seq_len: how far an S layer sees, its own position included
    document_mask: bool = False  # no position sees another document
    attention_gate: bool = False  # each head scaled by sigmoid(w . x[:12])
    skip_attention: tuple[int, ...] = ()  # layers without attention, counted from 0
    # value embeddings: token tables added to the attention values
    value_embeds: bool = True
    value_layers: tuple[int, ...] = ()  # layers that have one; empty: every second one, the last included
    value_tables: int = Field(0, ge=0)  # tables, shared in turn by these layers; 0: one for each
    value_mix: Literal["gate", "lambdas", "sum"] = "gate"  # a gate per head, two weights from 0.5, a plain sum
    # residual stream
    unet_skips: bool = False  # what leaves layer i enters layer num_layers - 1 - i, by a learned weight from 1
    residual_lambdas: bool = False  # a learned weight from 1 on the stream that enters each layer
    x0_lambdas: bool = False  # the embedding enters each layer again, by a learned weight from 0
    backout: bool = False  # the stream at two thirds of the depth is taken off at the end, by a weight from 0.5
    # embeddings
    smear: bool = False  # a token sees its predecessor's embedding, by a learned gate
    bigram_embeds: bool = False  # a hashed table of token pairs enters each layer, by a learned weight from 0.05
    bigram_rows: int = Field(0, ge=0)  # of that table; 0: five for each entry of the vocabulary
    # head
    tied_head: bool = False
    head_bias: bool = False
    logit_softcap: float = Field(15.0, ge=0)  # c; 0 turns it off
    softcap: Literal["tanh", "rational"] = "tanh"  # c tanh(z / c), or c z / sqrt(z^2 + c^2)
    # start
    init: Literal["speedrun", "gpt2", "xavier"] = "speedrun"  # spread of the first weights: table in gptlib/model.py
    projection_init: Literal["zero", "scaled", "plain"] = (
        "zero"  # what leaves attention and feed-forward; zero: the head too
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> "ModelConfig":
        if self.model_dim % self.num_heads:
            raise ValueError(f"model.model_dim={self.model_dim} is not a multiple of num_heads={self.num_heads}")
        if self.num_heads % self.kv_heads:
            raise ValueError(f"model.num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}")
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(f"model.position=rope needs an even head size, not {self.head_dim}")
        if self.bigram_rows == 1:
            raise ValueError("model.bigram_rows=1: one row is for no predecessor, pairs need another; give 2 or more")
        if self.norm_bias and self.norm == "rms":
            raise ValueError("model.norm_bias=true needs norm=layer: an RMS norm has no bias")
        for name in ("skip_attention", "value_layers"):
            layers = getattr(self, name)
            if len(set(layers)) != len(layers) or any(not 0 <= layer < self.num_layers for layer in layers):
                raise ValueError(
                    f"model.{name}={list(layers)}: give layers from 0 to {self.num_layers - 1}, each once; "
                    "another depth needs another list"
                )
        return self

    @property
    def head_dim(self) -> int:
        return self.model_dim // self.num_heads

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def mlp_dim(self) -> int:
        return self.mlp_hidden or round(self.mlp_ratio * self.model_dim)

    @property
    def gated(self) -> bool:
        """Whether the feed-forward has a third matrix, whose activation gates the others."""
        return self.activation in ("swiglu", "geglu")

    def padded_vocab(self, vocab_size: int) -> int:
        """Rows of the embedding tables for a tokenizer of `vocab_size` entries."""
        return -(-vocab_size // self.vocab_multiple) * self.vocab_multiple

    def bigram_table(self, vocab_size: int) -> int:
        """Rows of the table of token pairs."""
        return self.bigram_rows or 5 * self.padded_vocab(vocab_size)

    def value_table_of(self, layer: int) -> int | None:
        """Number of the table that is added to the attention values of `layer`, if any."""
        layers = self.value_embed_layers
        return layers.index(layer) % (self.value_tables or len(layers)) if layer in layers else None

    @property
    def value_embed_layers(self) -> list[int]:
        """The layers with a value embedding: those asked for (else every second) that have attention."""
        if not self.value_embeds:
            return []
        last = self.num_layers - 1
        asked = sorted(self.value_layers) or [layer for layer in range(self.num_layers) if (last - layer) % 2 == 0]
        return [layer for layer in asked if layer not in self.skip_attention]

    @property
    def num_value_tables(self) -> int:
        return min(self.value_tables or len(self.value_embed_layers), len(self.value_embed_layers))

    def window(self, layer: int, share: float = 1.0) -> int:
        """Positions that one of `layer` sees, its own included, when windows have `share` of their size."""
        letter = "L" if layer == self.num_layers - 1 else self.window_pattern[layer % len(self.window_pattern)]
        return max(1, round(share * self.seq_len * (self.short_window if letter == "S" else 1.0)))


class MuonConfig(Section):
    lr: float = Field(0.04, gt=0)
    momentum: float = Field(0.95, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(0.0, ge=0)
    cautious: bool = False  # decay a weight only where the update pulls it towards zero as well
    orthogonalize: Literal["polar_express", "newton_schulz", "convergent"] = "polar_express"
    iterations: int = Field(5, ge=1, le=20)
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of the orthogonalisation; auto: bf16 on CUDA, fp32 elsewhere
    split_heads: int = Field(0, ge=0)  # heads of split_parts that are orthogonalised together; 0: all of them
    split_parts: tuple[Literal["q", "k", "v"], ...] = ("q", "k", "v")
    normuon: bool = False  # NorMuon: rows (or columns) of the update are brought to one size
    beta2: float = Field(0.95, ge=0, lt=1)  # normuon only: memory of the size of a row

    @model_validator(mode="after")
    def _polar_express_has_five_coefficients(self) -> "MuonConfig":
        if self.orthogonalize == "polar_express" and self.iterations > 5:
            raise ValueError("optim.muon.iterations is at most 5 for polar_express (it has five coefficient triples)")
        return self


class AdamWConfig(Section):
    matrix_lr: float = Field(0.006, gt=0)  # block matrices, only where optim.matrices is adamw
    embed_lr: float = Field(0.3, gt=0)  # token and value embeddings
    head_lr: float = Field(0.02, gt=0)
    scalar_lr: float = Field(0.01, gt=0)  # gates, learned positions, gains and other vectors
    betas: tuple[float, float] = (0.8, 0.95)
    eps: float = Field(1e-10, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    decay_vectors: bool = True  # whether it decays gains, biases and other one-dimensional parameters too

    @field_validator("betas")
    @classmethod
    def _betas_in_range(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must lie in [0, 1), not {betas}")
        return betas


class OptimConfig(Section):
    matrices: Literal["muon", "adamw"] = "muon"  # which optimizer trains the matrices of the blocks
    lr_scale: float = Field(1.0, gt=0)  # factor on every learning rate below
    muon: MuonConfig = MuonConfig()
    adamw: AdamWConfig = AdamWConfig()
    grad_clip: float = Field(0.0, ge=0)  # global gradient norm; 0 turns it off

    @property
    def matrix_lr(self) -> float:
        """Peak learning rate of the block matrices, whichever optimizer trains them."""
        return self.lr_scale * (self.muon.lr if self.matrices == "muon" else self.adamw.matrix_lr)


class DepthConfig(Section):
    """DepthWarm: the upper layers join one by one while the model trains."""

    start: float = Field(1.0, gt=0, le=1)  # share of the layers that is active from the start, at the bottom; 1: all
    full: float = Field(0.3, gt=0, lt=1)  # progress at which the last one joins
    drop: float = Field(0.2, ge=0, lt=1)  # chance that a layer that has just joined is left out of a step; 0 at `full`


class WindowConfig(Section):
    """Attention windows that grow while the model trains."""

    start: float = Field(1.0, gt=0, le=1)  # share of its final size that every window has at the start; 1: all
    full: float = Field(0.5, gt=0, le=1)  # progress at which windows have their final size


class GrowthConfig(Section):
    """Something that grows in stages: the next one begins when the training loss has stopped to fall."""

    stages: tuple[float, ...] = (1.0,)  # shares of the final size, rising to 1; one stage: always the final size
    latest: tuple[float, ...] = ()  # progress at which each later stage begins at the latest
    improvement: float = Field(0.01, ge=0, lt=1)  # plateau: the mean loss of a window fell by less than this share ...
    window: float = Field(0.05, gt=0, le=0.5)  # ... of the window before it; share of the run. improvement=0: never

    @model_validator(mode="after")
    def _stages_rise(self) -> "GrowthConfig":
        stages, latest = list(self.stages), list(self.latest)
        if not stages or stages != sorted(set(stages)) or stages[0] <= 0 or stages[-1] != 1:
            raise ValueError(f"stages={stages}: give shares above 0 that rise to 1, e.g. [0.25, 0.5, 1]")
        if len(latest) != len(stages) - 1 or latest != sorted(set(latest)) or not all(0 < at < 1 for at in latest):
            raise ValueError(f"latest={latest}: give {len(stages) - 1} rising fractions of the run, one a later stage")
        return self

    def mean_share(self) -> float:
        """Average share over a run whose stages all begin at the latest."""
        edges = [0.0, *self.latest, 1.0]
        return sum(share * (b - a) for share, a, b in zip(self.stages, edges, edges[1:], strict=False))


class MomentumConfig(Section):
    """Muon's momentum on its way from `start` to optim.muon.momentum, and at the end to `final`."""

    warmup: float = Field(0.0, ge=0, le=1)  # progress at which it has arrived; 0: it is there from the start
    start: float = Field(0.85, ge=0, lt=1)
    cooldown: float = Field(0.0, ge=0, le=1)  # share of the run, at its end, over which it goes to `final`
    final: float = Field(0.85, ge=0, lt=1)


class ScheduleConfig(Section):
    """What changes during a run; every time is a fraction of the run, so a shorter run keeps its shape."""

    # constant with a cooldown (1 - t, 1 - sqrt(t), (1 - t)^power at its share t), or cosine from the warmup on
    kind: Literal["linear", "sqrt", "power", "cosine"] = "linear"
    warmup: float = Field(0.0, ge=0, le=1)
    warmup_from: Literal["zero", "first_step"] = "zero"  # the first update has rate 0, or a whole step of the way
    cooldown: float = Field(0.6, ge=0, le=1)  # all but cosine
    power: float = Field(2.0, gt=0)  # kind=power only
    final: float = Field(0.0, ge=0, le=1)  # multiplier at the end
    # factor on weight decay, which is multiplied by the rate anyway: 1, the rate's own, or a straight line to 0
    weight_decay: Literal["constant", "lr", "linear"] = "constant"
    momentum: MomentumConfig = MomentumConfig()
    depth: DepthConfig = DepthConfig()
    windows: WindowConfig = WindowConfig()
    curriculum: GrowthConfig = GrowthConfig()  # of the sequence length; tokens per step stay equal
    batch: GrowthConfig = GrowthConfig()  # of the rows per step

    @model_validator(mode="after")
    def _the_full_length_gets_its_time(self) -> "ScheduleConfig":
        if self.curriculum.latest and self.curriculum.latest[-1] > 0.6:
            raise ValueError("schedule.curriculum.latest: the full length needs 40 % of the run, so start it by 0.6")
        return self


class TrainConfig(Section):
    steps: int = Field(100, ge=1)
    batch_rows: int = Field(8, ge=1)  # rows of seq_len tokens per optimizer step, over all devices
    # added to the seed of every run: the same configuration with other draws, to compare it with itself (A/A)
    seed_offset: int = Field(0, ge=0)


class EvalConfig(Section):
    every: int = Field(20, ge=0)  # steps between cheap evaluations for the curve; 0: only at the end
    rows: int = Field(32, ge=1)  # validation rows of a cheap evaluation; the last one always takes all
    sample_tokens: int = Field(0, ge=0)  # length of the sample written by the finished model
    hellaswag: str = ""  # asked of the finished model: a .jsonl, llm.c's eval .bin, "tiny" (24 hand-made); empty: off
    hellaswag_scoring: Literal["llm.c", "prefix"] = "llm.c"  # what is an ending: see gptlib/hellaswag.py

    @model_validator(mode="after")
    def _hellaswag_can_be_read(self) -> "EvalConfig":
        if self.hellaswag not in ("", "tiny") and not self.hellaswag.endswith((".jsonl", ".bin")):
            raise ValueError(f"eval.hellaswag={self.hellaswag}: give a .jsonl, an eval .bin, tiny, or nothing")
        if self.hellaswag.endswith(".bin") and self.hellaswag_scoring == "prefix":
            raise ValueError("eval.hellaswag_scoring=prefix encodes whole texts, a .bin has tokens; give the .jsonl")
        return self


class HardwareConfig(Section):
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    ranks: int = Field(1, ge=1)  # processes of one run
    threads: int = Field(1, ge=1)  # CPU threads per process
    micro_rows: int = Field(0, ge=0)  # rows per forward pass and rank; 0: as many as the batch has
    compile: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 autocast on CUDA, fp32 elsewhere


class RunConfig(Section):
    """One training run, except its seed (which belongs to the run, not to what is compared)."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    hardware: HardwareConfig = HardwareConfig()

    @model_validator(mode="after")
    def _ranks_divide_the_batch(self) -> "RunConfig":
        if self.train.batch_rows % self.hardware.ranks:
            raise ValueError(
                f"train.batch_rows={self.train.batch_rows} is not a multiple of hardware.ranks={self.hardware.ranks}"
            )
        if round(self.schedule.batch.stages[0] * self.train.batch_rows) < self.hardware.ranks:
            raise ValueError(
                f"schedule.batch.stages begins with {self.schedule.batch.stages[0]:g} of train.batch_rows="
                f"{self.train.batch_rows}: too few rows for hardware.ranks={self.hardware.ranks}; begin with more"
            )
        schedule = self.schedule
        if self.hardware.compile and (schedule.windows.start < 1 or (schedule.depth.start < 1 and schedule.depth.drop)):
            raise ValueError(
                "hardware.compile=true with growing windows or dropped layers compiles anew at nearly every step; "
                "set hardware.compile=false (in both arms, among the overrides), or schedule.depth.drop=0"
            )
        return self

    @property
    def tokens_per_step(self) -> int:
        """Of a full batch: less while the batch grows."""
        return self.train.batch_rows * self.model.seq_len

    @property
    def planned_tokens(self) -> int:
        """Training tokens of the run; where the batch grows, if every stage of it begins at the latest."""
        return round(self.tokens_per_step * self.train.steps * self.schedule.batch.mean_share())
