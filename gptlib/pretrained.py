"""Published weights in our model: OpenAI's GPT-2 from the safetensors file that Hugging Face serves.

There a linear map is stored as (inputs, outputs), the transpose of ours, and q, k and v lie side by side in one.
"""

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gptlib.config import load_config
from gptlib.fields import ModelConfig
from gptlib.model import GPT

PRESET = "nanogpt_gpt2_124m"
HEAD_DIM = 64  # of every published size
PREFIX = "transformer."  # before every name but the head's, in files saved from a model with a head
LAYER = re.compile(r"h\.(\d+)\.")
MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # constants of the causal mask, not weights
NORMS = {"ln_1": "attn_norm", "ln_2": "mlp_norm"}
LINEARS = {"attn.c_proj": "attn.o", "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}


def load_gpt2(path: str | Path) -> GPT:
    """The GPT-2 in the file `path`, in fp32 on the CPU and in evaluation mode; any size whose heads have 64 dims.

    `path` is a model.safetensors as of https://huggingface.co/openai-community/gpt2 (Radford et al. 2019). The model is
    the preset nanogpt_gpt2_124m with depth, width, heads, context and vocabulary of the file; its tokenizer is `gpt2`.
    Raises ValueError, one line that names the file and the tensor, where one is missing, unknown or of another shape.
    """
    path = Path(path)
    tensors = _read(path)
    config, vocab_size = _sizes(path, tensors)
    shapes = _expected_shapes(config, vocab_size)
    for name in [*shapes, *tensors]:
        if name not in tensors:
            raise _odd(path, name, "is missing")
        if name not in shapes:
            raise _odd(path, name, "is no part of a GPT-2")
        if tuple(tensors[name].shape) != shapes[name]:
            raise _odd(path, name, f"has shape {tuple(tensors[name].shape)}, not {shapes[name]}")
    with torch.device("meta"):  # no memory of its own: the tensors from the file become its parameters
        model = GPT(config, vocab_size)
    model.load_state_dict(_renamed(tensors, config), assign=True)
    return model.eval()


def _odd(path: Path, name: str, what: str) -> ValueError:
    return ValueError(f"{path}: tensor {name} {what}; give the model.safetensors of a GPT-2")


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors by GPT-2's own names, in fp32, without masks and without a head that repeats the embedding."""
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error}); download it again") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(f"{path}: cannot be read ({reason}); give the model.safetensors of a GPT-2") from None
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    head = tensors.pop("lm_head.weight", None)
    if head is not None and "wte.weight" in tensors and not torch.equal(head, tensors["wte.weight"]):
        raise _odd(path, "lm_head.weight", "is not wte.weight, but GPT-2 has one table for both")
    return {name: tensor.float() for name, tensor in tensors.items() if not MASKS.fullmatch(name)}


def _sizes(path: Path, tensors: dict[str, Tensor]) -> tuple[ModelConfig, int]:
    """The configuration and the entries of the vocabulary, by the shapes of the two tables and the layers' numbers."""
    for name in ("wte.weight", "wpe.weight"):
        if name not in tensors:
            raise _odd(path, name, "is missing")
        if tensors[name].ndim != 2:
            raise _odd(path, name, f"has shape {tuple(tensors[name].shape)}, which is no table")
    vocab_size, width = tensors["wte.weight"].shape
    if width % HEAD_DIM:
        raise _odd(path, "wte.weight", f"has width {width}, no multiple of the head size {HEAD_DIM}")
    numbers = {found[1] for found in map(LAYER.match, tensors) if found}
    sizes = {
        "model.num_layers": max(1, len(numbers)),
        "model.model_dim": width,
        "model.num_heads": width // HEAD_DIM,
        "model.seq_len": len(tensors["wpe.weight"]),
    }
    return load_config(PRESET, sizes).model, vocab_size


def _expected_shapes(config: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    width, hidden = config.model_dim, config.mlp_dim
    maps = {"attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width)}
    maps |= {"mlp.c_fc": (width, hidden), "mlp.c_proj": (hidden, width)}
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (vocab_size, width), "wpe.weight": (config.seq_len, width)}
    for layer in (f"h.{i}" for i in range(config.num_layers)):
        for norm in NORMS:
            shapes |= {f"{layer}.{norm}.weight": (width,), f"{layer}.{norm}.bias": (width,)}
        for name, (inputs, outputs) in maps.items():
            shapes |= {f"{layer}.{name}.weight": (inputs, outputs), f"{layer}.{name}.bias": (outputs,)}
    return shapes | {"ln_f.weight": (width,), "ln_f.bias": (width,)}


def _renamed(tensors: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The same tensors by our names, linear maps as (outputs, inputs)."""
    ours = {"embed.weight": tensors["wte.weight"], "positions.weight": tensors["wpe.weight"]}
    for kind in ("weight", "bias"):
        ours[f"final_norm.{kind}"] = tensors[f"ln_f.{kind}"]
        for theirs, block in ((f"h.{i}", f"blocks.{i}") for i in range(config.num_layers)):
            for norm, name in NORMS.items():
                ours[f"{block}.{name}.{kind}"] = tensors[f"{theirs}.{norm}.{kind}"]
            for linear, name in LINEARS.items():
                ours[f"{block}.{name}.{kind}"] = _as_outputs_inputs(tensors[f"{theirs}.{linear}.{kind}"])
            qkv = tensors[f"{theirs}.attn.c_attn.{kind}"].chunk(3, dim=-1)
            for name, part in zip("qkv", qkv, strict=True):
                ours[f"{block}.attn.{name}.{kind}"] = _as_outputs_inputs(part)
    return ours


def _as_outputs_inputs(tensor: Tensor) -> Tensor:
    """A matrix transposed, a bias as it is; in memory of its own."""
    return tensor.T.contiguous() if tensor.ndim == 2 else tensor.clone()
