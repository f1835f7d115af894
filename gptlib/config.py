"""Run configurations: every number that decides what is trained, in one frozen, validated tree.

A configuration is a YAML file that may name a `base:` file; dotted overrides (`optim.muon.lr=3e-4`) change single
keys. Nothing else feeds a run: no environment variables, no second precedence. Every problem is reported at once,
each as one line that says where, what and the nearest remedy.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gptlib.yaml12 import ConfigError, parse_scalar, read_yaml, suggestion

__all__ = ["ConfigError", "RunConfig", "load_config"]

Overrides = Mapping[str, Any] | Iterable[str]
Model = TypeVar("Model", bound=BaseModel)
MAX_BASE_DEPTH = 8


class Section(BaseModel):
    """Frozen and strict: unknown keys, nan and inf are refused; numbers written as strings are parsed by type."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class DataConfig(Section):
    corpus: Literal["stories", "text", "tinyshakespeare"] = "stories"
    path: str = ""  # text: a file or folder; tinyshakespeare: a local copy (downloaded when empty)
    documents: int = Field(20_000, ge=1)  # stories: how many to write for training
    val_documents: int = Field(400, ge=1)  # stories: how many to write for validation
    val_fraction: float = Field(0.1, gt=0, lt=1)  # text: share of the text held out for validation
    tokenizer: Literal["byte", "char", "bpe", "gpt2"] = "bpe"
    vocab_size: int = Field(512, ge=258, le=65_536)  # bpe: size to train, special token included
    rows: Literal["documents", "stream"] = "documents"  # rows begin at a document, or cut the token stream evenly
    seed: int = Field(0, ge=0)  # stories: seed of the writer; never the seed of a run

    @model_validator(mode="after")
    def _text_needs_a_path(self) -> "DataConfig":
        if self.corpus == "text" and not self.path:
            raise ValueError("corpus 'text' needs data.path: a .txt or .jsonl file, or a folder of them")
        return self


class ModelConfig(Section):
    num_layers: int = Field(4, ge=1)
    model_dim: int = Field(128, ge=8)
    num_heads: int = Field(4, ge=1)
    mlp_ratio: float = Field(4.0, gt=0)  # hidden width of the feed-forward / model_dim
    seq_len: int = Field(256, ge=2)  # context, tokens
    activation: Literal["relu2", "relu", "gelu", "silu"] = "relu2"
    position: Literal["rope", "none"] = "rope"
    rope_theta: float = Field(10_000.0, gt=0)
    qk_norm: bool = True
    value_embeds: bool = True  # a token table added to the attention values in every second layer
    zero_init: bool = True  # output projections of attention and feed-forward start at zero
    tied_head: bool = False
    logit_softcap: float = Field(15.0, ge=0)  # c * tanh(z / c); 0 turns it off
    vocab_multiple: int = Field(64, ge=1)  # the vocabulary is padded up to a multiple of this

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "ModelConfig":
        if self.model_dim % self.num_heads:
            raise ValueError(f"model.model_dim={self.model_dim} is not a multiple of num_heads={self.num_heads}")
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(f"model.position=rope needs an even head size, not {self.head_dim}")
        return self

    @property
    def head_dim(self) -> int:
        return self.model_dim // self.num_heads

    @property
    def mlp_dim(self) -> int:
        return round(self.mlp_ratio * self.model_dim)

    def padded_vocab(self, vocab_size: int) -> int:
        """Rows of the embedding tables for a tokenizer of `vocab_size` entries."""
        return -(-vocab_size // self.vocab_multiple) * self.vocab_multiple


class MuonConfig(Section):
    lr: float = Field(0.04, gt=0)
    momentum: float = Field(0.95, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(0.0, ge=0)
    orthogonalize: Literal["polar_express", "newton_schulz"] = "polar_express"
    iterations: int = Field(5, ge=1, le=20)

    @model_validator(mode="after")
    def _polar_express_has_five_coefficients(self) -> "MuonConfig":
        if self.orthogonalize == "polar_express" and self.iterations > 5:
            raise ValueError("optim.muon.iterations is at most 5 for polar_express (it has five coefficient triples)")
        return self


class AdamWConfig(Section):
    matrix_lr: float = Field(0.006, gt=0)  # block matrices, only where optim.matrices is adamw
    embed_lr: float = Field(0.3, gt=0)  # token and value embeddings
    head_lr: float = Field(0.02, gt=0)
    scalar_lr: float = Field(0.01, gt=0)  # gates and other vectors
    betas: tuple[float, float] = (0.8, 0.95)
    eps: float = Field(1e-10, gt=0)
    weight_decay: float = Field(0.0, ge=0)

    @field_validator("betas")
    @classmethod
    def _betas_in_range(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must lie in [0, 1), not {betas}")
        return betas


class OptimConfig(Section):
    matrices: Literal["muon", "adamw"] = "muon"  # which optimizer trains the matrices of the blocks
    muon: MuonConfig = MuonConfig()
    adamw: AdamWConfig = AdamWConfig()
    grad_clip: float = Field(0.0, ge=0)  # global gradient norm; 0 turns it off

    @property
    def matrix_lr(self) -> float:
        """Peak learning rate of the block matrices, whichever optimizer trains them."""
        return self.muon.lr if self.matrices == "muon" else self.adamw.matrix_lr


class ScheduleConfig(Section):
    """Learning-rate multiplier; every length is a fraction of the run, so a shorter run keeps its shape."""

    kind: Literal["linear", "cosine"] = "linear"  # constant then linear cooldown, or cosine from the warmup on
    warmup: float = Field(0.0, ge=0, le=1)
    cooldown: float = Field(0.6, ge=0, le=1)  # linear only
    final: float = Field(0.0, ge=0, le=1)  # multiplier at the end


class TrainConfig(Section):
    steps: int = Field(100, ge=1)
    batch_rows: int = Field(8, ge=1)  # rows of seq_len tokens per optimizer step, over all devices


class EvalConfig(Section):
    every: int = Field(20, ge=0)  # steps between cheap evaluations for the curve; 0: only at the end
    rows: int = Field(32, ge=1)  # validation rows of a cheap evaluation; the last one always takes all
    sample_tokens: int = Field(0, ge=0)  # length of the sample written by the finished model


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
        return self

    @property
    def tokens_per_step(self) -> int:
        return self.train.batch_rows * self.model.seq_len


# --- validation -------------------------------------------------------------------------------------------------


def dotted_keys(model: type[BaseModel], prefix: str = "", leaves_only: bool = False) -> list[str]:
    """Every dotted key a configuration model accepts."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        nested = isinstance(kind, type) and issubclass(kind, BaseModel)
        if not (nested and leaves_only):
            keys.append(f"{prefix}{name}")
        if nested and isinstance(kind, type):
            keys += dotted_keys(kind, f"{prefix}{name}.", leaves_only)
    return keys


def validate(model: type[Model], values: Mapping[str, Any], where: Mapping[str, str] | str) -> Model:
    """Build `model` from nested `values`; `where` says which file and line each dotted key came from.

    Raises ConfigError with one line per problem, all problems at once.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(model, e, where) for e in error.errors())) from None


def _describe(model: type[BaseModel], error: Any, where: Mapping[str, str] | str) -> str:
    key = ".".join(str(part) for part in error["loc"])
    place = where if isinstance(where, str) else where.get(key) or next(iter(where.values()), "")
    place = f"{place}: " if place else ""
    if error["type"] == "extra_forbidden":
        return f"{place}unknown key {key!r}{suggestion(key, dotted_keys(model))}"
    if error["type"] == "missing":
        return f"{place}key {key!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{place}{message}" if error["type"] == "value_error" else f"{place}{key}={error['input']!r}: {message}"


# --- building a RunConfig ---------------------------------------------------------------------------------------


def project_root() -> Path:
    """The checkout that holds params/ and notebooks/: around this package, else above the working directory."""
    here = Path(__file__).resolve().parent.parent
    for folder in (here, Path.cwd(), *Path.cwd().parents):
        if (folder / "params" / "base").is_dir():
            return folder
    raise ConfigError(f"no params/base found beside {here} or above {Path.cwd()}; run inside a checkout of the project")


def params_file(kind: Literal["base", "ablations", "studies"], name: str | Path) -> Path:
    """`smoke` -> params/base/smoke.yaml; anything with a suffix or a slash is taken as a path."""
    path = Path(name)
    if path.suffix or len(path.parts) > 1:
        return path if path.is_absolute() or path.exists() else project_root() / path
    return project_root() / "params" / kind / f"{name}.yaml"


def load_config(base: str | Path, overrides: Overrides = ()) -> RunConfig:
    """Read `base` (a name in params/base, or a path), apply dotted overrides, validate. Raises ConfigError."""
    values, where = _read_with_bases(params_file("base", base), ())
    values.pop("description", None)
    for key, value in parse_overrides(overrides).items():
        _set_dotted(values, key, value)
        where[key] = "override"
    return validate(RunConfig, values, where)


def with_changes(config: RunConfig, changes: Overrides) -> RunConfig:
    """A copy of `config` with dotted keys changed, validated again. Raises ConfigError."""
    values = config.model_dump(mode="json")
    parsed = parse_overrides(changes)
    for key, value in parsed.items():
        _set_dotted(values, key, value)
    return validate(RunConfig, values, {key: "change" for key in parsed} or "change")


def parse_overrides(overrides: Overrides) -> dict[str, Any]:
    """{'optim.muon.lr': 0.02} or ['optim.muon.lr=0.02'] -> checked {dotted key: value}. Raises ConfigError."""
    if isinstance(overrides, str):
        overrides = [overrides]
    if not isinstance(overrides, Mapping):
        pairs = {}
        for item in overrides:
            key, equals, value = str(item).partition("=")
            if not equals:
                raise ConfigError(f"override {item!r}: write it as section.key=value")
            pairs[key.strip()] = parse_scalar(value)
        overrides = pairs
    known = dotted_keys(RunConfig, leaves_only=True)
    unknown = [key for key in overrides if key not in known]
    if unknown:
        raise ConfigError("\n".join(f"override: unknown key {key!r}{suggestion(key, known)}" for key in unknown))
    return dict(overrides)


def _read_with_bases(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    path = path.resolve()
    if path in seen or len(seen) >= MAX_BASE_DEPTH:
        raise ConfigError(f"{path}: `base:` goes in a circle or deeper than {MAX_BASE_DEPTH} files")
    values, lines = read_yaml(path)
    where = {key: f"{_short(path)} line {line}" for key, line in lines.items()}
    base = values.pop("base", None)
    if base is None:
        return values, where
    beside = path.parent / f"{base}.yaml"
    inherited, inherited_where = _read_with_bases(
        beside if beside.exists() else params_file("base", base), (*seen, path)
    )
    return _merge(inherited, values), inherited_where | where


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(project_root()))
    except ValueError:
        return str(path)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _set_dotted(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[leaf] = value


# --- comparing --------------------------------------------------------------------------------------------------


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as {dotted key: value}; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def diff(baseline: RunConfig, variant: RunConfig) -> dict[str, tuple[Any, Any]]:
    """{dotted key: (baseline value, variant value)} wherever the two differ."""
    old, new = (flatten(c.model_dump(mode="json")) for c in (baseline, variant))
    return {key: (old[key], new[key]) for key in old if old[key] != new[key]}


def require_only(baseline: RunConfig, variant: RunConfig, declared: Iterable[str]) -> None:
    """The difference gate: the variant differs in exactly the declared keys. Raises ConfigError otherwise."""
    found, allowed = diff(baseline, variant), set(declared)
    undeclared = [f"{k}: {a!r} -> {b!r}" for k, (a, b) in found.items() if k not in allowed]
    if undeclared:
        raise ConfigError("the variant differs outside its declared change: " + "; ".join(undeclared))
    idle = sorted(allowed - set(found))
    if idle:
        raise ConfigError(f"the declared change has no effect: the baseline has this {', '.join(idle)} already")


def fingerprint(values: Any) -> str:
    """16 hex digits over canonical JSON: equal inputs, equal fingerprint, on every platform."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
