import dataclasses
import itertools
import math
import zlib
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gptlib.accounting import count_parameters
from gptlib.fields import ModelConfig, OptimConfig
from gptlib.model import GPT
from gptlib.optimizers import build_optimizers

VOCAB = 50  # padded to 64
EOT = VOCAB - 1
SMALL: dict[str, Any] = {"num_layers": 3, "model_dim": 32, "num_heads": 4, "seq_len": 16}
BASE = SMALL | {"norm_gain": True}  # gains show where norms are


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small are slower on several threads, and much slower where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- the switches -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Switch:
    """One setting of a field against the one that is off. Parameters are named by patterns."""

    field: str
    off: Any
    on: Any
    adds: str = ""  # parameters that exist only when it is on
    drops: str = ""  # ... only when it is off
    moves: str = ""  # parameters that start elsewhere, or have another shape
    needs: dict[str, Any] = dataclasses.field(default_factory=dict)  # without which it has nothing to act on
    start: bool = False  # decides where training starts, and nothing else

    def __str__(self) -> str:
        return f"{self.field}={self.on}"

    def model(self, on: bool, **kwargs: Any) -> GPT:
        return make(**(BASE | self.needs | {self.field: self.on if on else self.off}), **kwargs)


ROPE, VALUES, WINDOWS = {"position": "rope"}, {"value_embeds": True}, {"window_pattern": "S"}
BIGRAMS, CAPPED, LAYER = {"bigram_embeds": True}, {"logit_softcap": 2.0}, {"norm": "layer"}
NORMS = "blocks.*.attn_norm.weight blocks.*.mlp_norm.weight"
GATED, PLAIN = "blocks.*.mlp.w[123].weight", "blocks.*.mlp.up.weight blocks.*.mlp.down.weight"
OUTPUTS = "blocks.*.attn.o.weight blocks.*.mlp.down.weight head.weight"
DRAWN = "embed.weight blocks.*.attn.[qkv].weight blocks.*.mlp.up.weight"  # without what starts from 0
GATE = "blocks.{}.attn.value_gate.weight".format

SWITCHES = [
    Switch("num_layers", 3, 4, adds=f"blocks.3.* {GATE(1)}", drops=f"{GATE(0)} {GATE(2)}"),
    Switch("num_heads", 4, 8, moves=GATE("*")),
    Switch("num_kv_heads", 0, 2, moves=f"blocks.*.attn.[kv].weight value_tables.* {GATE('*')}"),
    Switch("mlp_ratio", 4.0, 2.5, moves=PLAIN),
    Switch("mlp_hidden", 0, 40, moves=PLAIN),
    Switch("norm", "rms", "layer"),
    Switch("norm_gain", False, True, adds=f"embed_norm.weight final_norm.weight {NORMS}"),
    Switch("norm_bias", False, True, f"embed_norm.bias final_norm.bias {NORMS.replace('weight', 'bias')}", needs=LAYER),
    Switch("norm_placement", "none", "pre", adds=f"final_norm.weight {NORMS}"),
    Switch("norm_placement", "none", "post", adds=NORMS),
    Switch("embed_norm", False, True, adds="embed_norm.weight"),
    Switch("qk_norm", False, True),
    Switch("qk_gain", False, True, adds="blocks.*.attn.qk_gain"),
    Switch("position", "none", "rope"),
    Switch("position", "none", "learned", adds="positions.weight"),
    Switch("rope_theta", 10_000.0, 100.0, needs=ROPE),
    Switch("rope_layout", "half", "interleaved", needs=ROPE),
    Switch("rope_fraction", 1.0, 0.5, needs=ROPE),
    Switch("parallel_block", False, True, adds="blocks.*.norm.weight", drops=NORMS),
    Switch("activation", "relu2", "swiglu", adds=GATED, drops=PLAIN),
    Switch("activation", "relu2", "geglu", adds=GATED, drops=PLAIN),
    *(Switch("activation", "relu2", name) for name in ("relu", "gelu", "gelu_tanh", "silu")),
    Switch("bias", False, True, adds="blocks.*.attn.[qkvo].bias blocks.*.mlp.*.bias"),
    Switch("dropout", 0.0, 0.2),
    Switch("window_pattern", "L", "S"),
    Switch("short_window", 1.0, 0.25, needs=WINDOWS),
    Switch("document_mask", False, True),
    Switch("attention_gate", False, True, adds="blocks.*.attn.head_gate.weight"),
    Switch("skip_attention", (), (1,), drops="blocks.1.attn.*.weight blocks.1.attn_norm.weight"),
    Switch("value_embeds", False, True, adds=f"value_tables.* {GATE('*')}"),
    Switch("value_layers", (), (0, 1), adds=GATE(1), drops=GATE(2), needs=VALUES),
    Switch("value_tables", 0, 1, drops="value_tables.1.weight", needs=VALUES),
    Switch("value_mix", "sum", "gate", adds=GATE("*"), needs=VALUES),
    Switch("value_mix", "sum", "lambdas", adds="blocks.*.attn.value_lambdas", needs=VALUES),
    Switch("unet_skips", False, True, adds="skip_weights"),
    Switch("residual_lambdas", False, True, adds="residual_lambdas"),
    Switch("x0_lambdas", False, True, adds="x0_lambdas"),
    Switch("backout", False, True, adds="backout_lambda"),
    Switch("smear", False, True, adds="smear_gate.weight smear_lambda"),
    Switch("bigram_embeds", False, True, adds="bigram_table.weight bigram_lambdas"),
    Switch("bigram_rows", 0, 17, moves="bigram_table.weight", needs=BIGRAMS),
    Switch("tied_head", False, True, drops="head.weight", moves="embed.weight"),  # which makes the logits then
    Switch("head_bias", False, True, adds="head.bias"),
    Switch("logit_softcap", 0.0, 2.0),
    Switch("softcap", "tanh", "rational", needs=CAPPED),
    Switch("init", "speedrun", "gpt2", moves=DRAWN, start=True),
    Switch("init", "speedrun", "xavier", moves=f"{DRAWN} value_tables.*", start=True),
    Switch("projection_init", "zero", "plain", moves=OUTPUTS, start=True),
    Switch("projection_init", "zero", "scaled", moves=OUTPUTS, start=True),
]
SIZES = {"model_dim", "seq_len", "vocab_multiple"}  # no switches: another value gives every table another shape

# The first setting of each field at once, as far as they go together.
EVERYTHING = SMALL | {switch.field: switch.on for switch in reversed(SWITCHES)} | {"skip_attention": (2,)}
BARE = SMALL | {switch.field: switch.off for switch in SWITCHES}

every_switch = pytest.mark.parametrize("switch", SWITCHES, ids=str)


def covering_array() -> list[dict[str, Any]]:
    """Configurations in which any two settings of two fields meet, unless what one needs excludes the other.

    Greedy: begin with two that have not met, then give each field the setting that meets most others for the first
    time.
    """
    needs = {(s.field, s.off): {} for s in SWITCHES} | {(s.field, s.on): s.needs for s in SWITCHES}
    apart = dict.fromkeys(pair for pair in itertools.permutations(needs, 2) if pair[0][0] != pair[1][0])
    rows = []

    def place(row: dict[str, Any], setting: tuple[str, Any]) -> dict[str, Any] | None:
        wanted = {setting[0]: setting[1]} | needs[setting]
        fits = all(row.get(field, value) == value for field, value in wanted.items())
        return row | wanted if fits else None

    while apart:
        first, second = next(iter(apart))
        row = place(place({}, first), second)
        if row is None:
            del apart[first, second]
            continue
        for field in dict.fromkeys(s.field for s in SWITCHES):
            candidates = [place(row, setting) for setting in needs if setting[0] == field]
            row = max(filter(None, candidates), key=lambda c: sum(p in apart for p in met(c, c.keys() - row.keys())))
        for pair in met(row, row.keys()):
            apart.pop(pair, None)
        rows.append(row)
    return rows


def met(row: dict[str, Any], fields: Iterable[str]) -> list[tuple[tuple[str, Any], tuple[str, Any]]]:
    """The pairs of settings in a row, those of `fields` first."""
    return [((f, row[f]), setting) for f in fields for setting in row.items() if setting[0] != f]


COVERING = covering_array()


def make(seed: int = 1, stir: bool = True, **changes: Any) -> GPT:
    """A tiny model, not in training; `stir` moves every weight off its start: zero-started parts take effect."""
    model = GPT(ModelConfig(**{**SMALL, **changes}), VOCAB)
    model.init_weights(seed)
    if stir:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.15)
    return model.eval()


def batch(rows: int = 2, length: int = 16) -> tuple[Tensor, Tensor]:
    """Tokens and targets; the first row holds five documents, the second three."""
    tokens = torch.randint(0, EOT, (rows, length + 1), generator=torch.Generator().manual_seed(3))
    tokens[0, [0, 5, 6, 11]] = EOT
    tokens[1:, [4, 12]] = EOT
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


# --- against the model written out ------------------------------------------------------------------------------


def reference_logits(model: GPT, tokens: Tensor) -> Tensor:
    """The model written out in fp64, one row and one head at a time, from its weights and configuration alone."""
    weights = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    return torch.stack([reference_row(model, weights, row) for row in tokens.tolist()])


def reference_row(model: GPT, w: dict[str, Tensor], row: list[int]) -> Tensor:
    c, depth, length, size = model.config, model.config.num_layers, len(row), model.config.head_dim
    document = list(itertools.accumulate(int(token == EOT) for token in row))
    linked = [t > 0 and not (c.document_mask and row[t] == EOT) for t in range(length)]

    def rms(x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()

    def norm(x: Tensor, name: str) -> Tensor:
        if c.norm == "layer":
            x = x - x.mean(-1, keepdim=True)
        return rms(x) * w.get(f"{name}.weight", 1.0) + w.get(f"{name}.bias", 0.0)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def gate(x: Tensor, name: str) -> Tensor:
        return 1 / (1 + (-linear(x[:, :12], name)).exp())

    def activate(z: Tensor) -> Tensor:
        if c.activation in ("silu", "swiglu"):
            return z / (1 + (-z).exp())
        if c.activation in ("gelu", "geglu"):
            return z * (1 + torch.erf(z / 2**0.5)) / 2
        if c.activation == "gelu_tanh":
            return z * (1 + torch.tanh((2 / math.pi) ** 0.5 * (z + 0.044715 * z**3))) / 2
        return z.clamp(min=0) ** (2 if c.activation == "relu2" else 1)

    def feed(x: Tensor, i: int) -> Tensor:
        if c.activation in ("swiglu", "geglu"):
            hidden = activate(linear(x, f"blocks.{i}.mlp.w1")) * linear(x, f"blocks.{i}.mlp.w3")
            return linear(hidden, f"blocks.{i}.mlp.w2")
        return linear(activate(linear(x, f"blocks.{i}.mlp.up")), f"blocks.{i}.mlp.down")

    def turn(x: Tensor) -> Tensor:
        pairs, turned = size // 2, x.clone()
        turning = round(c.rope_fraction * pairs)
        for i in range(turning):
            a, b = (i, i + pairs) if c.rope_layout == "half" else (2 * i, 2 * i + 1)
            angle = torch.arange(length).double() * c.rope_theta ** (-i / turning)
            turned[:, a] = x[:, a] * angle.cos() - x[:, b] * angle.sin()
            turned[:, b] = x[:, b] * angle.cos() + x[:, a] * angle.sin()
        return turned

    def sees(t: int, s: int, window: int) -> bool:
        return s <= t < s + window and not (c.document_mask and document[s] != document[t])

    def attend(x: Tensor, i: int) -> Tensor:
        name, group = f"blocks.{i}.attn", c.num_heads // (c.num_kv_heads or c.num_heads)
        short = i < depth - 1 and c.window_pattern[i % len(c.window_pattern)] == "S"
        window = max(1, round(model.window_share * c.seq_len * (c.short_window if short else 1)))
        mask = torch.tensor([[sees(t, s, window) for s in range(length)] for t in range(length)])
        asked = c.value_layers or range((depth - 1) % 2, depth, 2)
        valued = [layer for layer in asked if layer not in c.skip_attention] if c.value_embeds else []
        outputs = []
        for h in range(c.num_heads):
            own, shared = (slice(n * size, (n + 1) * size) for n in (h, h // group))
            q, k, v = linear(x, f"{name}.q")[:, own], linear(x, f"{name}.k")[:, shared], linear(x, f"{name}.v")
            v = v[:, shared]
            if i in valued:
                table = w[f"value_tables.{valued.index(i) % (c.value_tables or len(valued))}.weight"]
                value = table[row][:, shared]
                if c.value_mix == "gate":
                    value = 2 * gate(x, f"{name}.value_gate")[:, h // group, None] * value
                elif c.value_mix == "lambdas":
                    v, value = w[f"{name}.value_lambdas"][0] * v, w[f"{name}.value_lambdas"][1] * value
                v = v + value
            q, k = (rms(q), rms(k)) if c.qk_norm else (q, k)
            q = q * w[f"{name}.qk_gain"][h] if c.qk_gain else q
            q, k = (turn(q), turn(k)) if c.position == "rope" else (q, k)
            scores = q @ k.T * (0.12 * 128 / size if c.qk_norm else size**-0.5)
            y = scores.masked_fill(~mask, -math.inf).softmax(-1) @ v
            outputs.append(y * gate(x, f"{name}.head_gate")[:, h, None] if c.attention_gate else y)
        return linear(torch.cat(outputs, -1), f"{name}.o")

    def residual(x: Tensor, sublayer: Any, name: str) -> Tensor:
        if c.norm_placement == "post":
            return norm(x + sublayer(x), name)
        return x + sublayer(norm(x, name) if c.norm_placement == "pre" else x)

    def block(x: Tensor, i: int) -> Tensor:
        def both(y: Tensor) -> Tensor:
            return ((attend(y, i) if i not in c.skip_attention else 0) + feed(y, i)) / 2**0.5

        if c.parallel_block:
            return residual(x, both, f"blocks.{i}.norm")
        if i not in c.skip_attention:
            x = residual(x, lambda y: attend(y, i), f"blocks.{i}.attn_norm")
        return residual(x, lambda y: feed(y, i), f"blocks.{i}.mlp_norm")

    x = w["embed.weight"][row]
    if c.position == "learned":
        x = x + w["positions.weight"][:length]
    if c.smear:
        before = torch.stack([x[t - 1] * linked[t] for t in range(length)])
        x = x + w["smear_lambda"] * gate(x, "smear_gate") * before
    if c.embed_norm:
        x = norm(x, "embed_norm")
    x0, kept = x, {}
    for i in model.layers_on:
        mirror = depth - 1 - i
        if c.unet_skips and mirror < i and mirror in kept:
            x = x + w["skip_weights"][i - math.ceil(depth / 2)] * kept[mirror]
        if c.residual_lambdas:
            x = w["residual_lambdas"][i] * x
        if c.x0_lambdas:
            x = x + w["x0_lambdas"][i] * x0
        if c.bigram_embeds:
            last = (c.bigram_rows or 5 * 64) - 1
            pairs = [(36_313 * row[t] ^ 27_191 * row[t - 1]) % last if linked[t] else last for t in range(length)]
            x = x + w["bigram_lambdas"][i] * w["bigram_table.weight"][pairs]
        x = kept[i] = block(x, i)
    if c.backout and (middle := max(1, 2 * depth // 3) - 1) in kept:
        x = x - w["backout_lambda"] * kept[middle]
    if c.norm_placement == "pre":
        x = norm(x, "final_norm")
    z = x @ w["embed.weight" if c.tied_head else "head.weight"].T + w.get("head.bias", w.get("head_bias", 0.0))
    cap = c.logit_softcap
    if not cap:
        return z
    return cap * torch.tanh(z / cap) if c.softcap == "tanh" else cap * z / (z**2 + cap**2).sqrt()


def assert_equals_reference(model: GPT, tokens: Tensor) -> None:
    expected = reference_logits(model, tokens)
    torch.testing.assert_close(model(tokens).double(), expected, atol=1e-3 * expected.abs().max().item(), rtol=0)


def test_default_recipe_equals_a_written_out_reference() -> None:
    model, (tokens, targets) = make(), batch()
    expected = reference_logits(model, tokens)
    torch.testing.assert_close(model(tokens).double(), expected, atol=1e-3, rtol=1e-3)
    loss = F.cross_entropy(expected.flatten(0, 1), targets.flatten())
    assert model(tokens, targets).item() == pytest.approx(loss.item(), abs=1e-4)


@every_switch
def test_every_switch_equals_the_written_out_reference(switch: Switch) -> None:
    assert_equals_reference(switch.model(on=True), batch()[0])


@pytest.mark.parametrize(
    "changes", [BARE, EVERYTHING, EVERYTHING | {"position": "learned"}], ids=["nothing", "everything", "learned"]
)
@pytest.mark.parametrize("length", [1, 2, 9])
def test_short_rows_equal_the_written_out_reference(changes: dict[str, Any], length: int) -> None:
    assert_equals_reference(make(**changes), batch()[0][:, :length])


# --- on and off -------------------------------------------------------------------------------------------------


def test_the_table_has_every_field() -> None:
    assert {switch.field for switch in SWITCHES} | SIZES == set(ModelConfig.model_fields)
    assert not {switch.field for switch in SWITCHES} & SIZES


@pytest.mark.parametrize("switch", [switch for switch in SWITCHES if not switch.start], ids=str)
def test_on_changes_what_is_computed(switch: Switch) -> None:
    """Those that change the start alone are seen in the next test, by the parameters that they move."""
    (tokens, targets), on, off = batch(), switch.model(on=True), switch.model(on=False)
    on.train(switch.field == "dropout")
    loss = on(tokens, targets)
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in on.parameters() if p.grad is not None)
    with torch.no_grad():
        with_it, without = on(tokens), off(tokens)
    assert (with_it - without).abs().max() > 0.01 * with_it.abs().max()  # ten times what the reference allows


@every_switch
def test_off_leaves_no_parameter_and_the_same_start(switch: Switch) -> None:
    on, off = (dict(switch.model(on, stir=False).named_parameters()) for on in (True, False))
    common = on.keys() & off.keys()
    moved = {name for name in common if not torch.equal(on[name], off[name])}
    for names, patterns in ((on.keys() - off.keys(), switch.adds), (off.keys() - on.keys(), switch.drops)):
        assert_named(names, patterns)
    assert_named(moved, switch.moves)
    assert len(common) > len(moved)


def assert_named(names: set[str], patterns: str) -> None:
    """Each name matches one of the patterns, and each pattern a name."""
    assert {name for name in names if not any(fnmatch(name, pattern) for pattern in patterns.split())} == set()
    assert {pattern for pattern in patterns.split() if not any(fnmatch(name, pattern) for name in names)} == set()


def test_with_everything_off_only_the_matrices_are_left() -> None:
    matrices = ["attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.down"]
    expected = [f"blocks.{layer}.{matrix}.weight" for layer in range(3) for matrix in matrices]
    assert {name for name, _ in make(**BARE).named_parameters()} == {"embed.weight", "head.weight", *expected}


def test_a_tied_head_has_its_own_bias() -> None:
    with_it, without = make(tied_head=True, head_bias=True), make(tied_head=True)
    assert with_it.state_dict().keys() - without.state_dict().keys() == {"head_bias"}
    assert_equals_reference(with_it, batch()[0])


# --- what a position sees ---------------------------------------------------------------------------------------


def allowed(config: ModelConfig, row: Tensor, window: int = 16) -> Tensor:
    """[t, s]: whether t may depend on s."""
    document = (row == EOT).cumsum(0)
    same = (document[:, None] == document) | (not config.document_mask)
    distance = torch.arange(len(row))[:, None] - torch.arange(len(row))
    return (distance >= 0) & (distance < window) & same


def reached(model: GPT, row: Tensor) -> Tensor:
    """[t, s]: whether the logits at t have a gradient by the embedding at s."""
    seen: list[Tensor] = []
    hook = model.embed.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    t = torch.arange(len(row))
    (gradient,) = torch.autograd.grad(model(row.expand(len(row), -1))[t, t].sum(), seen[0])
    hook.remove()
    return gradient.abs().sum(-1) > 0


@torch.no_grad()
def depends(model: GPT, row: Tensor) -> Tensor:
    """[t, s]: whether another token at s changes the logits at t, by whatever way; an end of text stays one."""
    rows = row.repeat(len(row), 1)
    changed = rows.clone()
    changed.diagonal().copy_(torch.where(row == EOT, row, (row + 1) % EOT))
    return (model(rows) != model(changed)).any(-1).T


def assert_sees_what_it_may(model: GPT, row: Tensor, window: int = 16) -> None:
    may = allowed(model.config, row, window)
    assert torch.equal(reached(model, row), may)
    found = depends(model, row)
    assert not (found & ~may).any() and found.diagonal()[row != EOT].all()


@every_switch
def test_no_position_sees_the_future(switch: Switch) -> None:
    assert_sees_what_it_may(switch.model(on=True), batch()[0][0])


@pytest.mark.parametrize("window", range(1, 17))
def test_a_window_is_as_long_as_it_says(window: int) -> None:
    """One layer alone: what is added by its predecessor's token (smear, bigrams) would reach one position further."""
    row = batch()[0][1]
    for changes in ({}, {"document_mask": True}):
        model = make(window_pattern="SL", short_window=window / 16, **changes)
        model.layers_on = (0,)
        assert_sees_what_it_may(model, row, window)


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.7, 1.0])
def test_window_share_shrinks_every_window(share: float) -> None:
    row, window = batch()[0][1], {0.01: 1, 0.25: 4, 0.5: 8, 0.7: 11, 1.0: 16}[share]
    short = {0.01: 1, 0.25: 2, 0.5: 4, 0.7: 6, 1.0: 8}[share]
    for layer, expected in ((0, short), (1, window), (2, window)):  # the last is long whatever the pattern says
        model = make(window_pattern="SLS", short_window=0.5)
        model.layers_on, model.window_share = (layer,), share
        assert_sees_what_it_may(model, row, expected)


MIXED = [{}, {"position": "learned"}, {"window_pattern": "S"}, {"smear": True, "bigram_embeds": True}, EVERYTHING]


@pytest.mark.parametrize("changes", MIXED, ids=["default", "learned", "windows", "predecessors", "everything"])
def test_no_document_depends_on_an_earlier_one(changes: dict[str, Any]) -> None:
    model, row = make(**(changes | {"document_mask": True})), batch()[0][0]
    assert_sees_what_it_may(model, row)
    earlier = row.clone()
    earlier[:11] = torch.tensor([7, EOT, EOT, 1, 2, 3, EOT, 5, 6, 8, 4])  # other tokens, and documents cut elsewhere
    assert torch.equal(model(earlier[None])[0, 11:], model(row[None])[0, 11:])
    assert not torch.equal(model(earlier[None])[0, 10], model(row[None])[0, 10])


@pytest.mark.parametrize("changes", [{}, MIXED[3], EVERYTHING], ids=["default", "predecessors", "everything"])
def test_a_document_is_understood_as_if_it_stood_alone(changes: dict[str, Any]) -> None:
    row, masked = batch()[0][0], make(**(changes | {"document_mask": True}))
    torch.testing.assert_close(masked(row[None])[0, 6:11], masked(row[None, 6:11])[0], atol=1e-3, rtol=1e-3)
    seeing = make(**(changes | {"document_mask": False}))
    assert (seeing(row[None])[0, 6:11] - seeing(row[None, 6:11])[0]).abs().max() > 0.05


def test_without_positions_one_layer_sees_a_bag_of_tokens() -> None:
    tokens, _ = batch(rows=1)
    shuffled = torch.cat((tokens[:, :-1].flip(-1), tokens[:, -1:]), dim=-1)
    bag, ordered = make(num_layers=1, position="none"), make(num_layers=1)
    torch.testing.assert_close(bag(tokens)[0, -1], bag(shuffled)[0, -1], atol=1e-4, rtol=1e-4)
    assert (ordered(tokens)[0, -1] - ordered(shuffled)[0, -1]).abs().max() > 1e-2


# --- together ---------------------------------------------------------------------------------------------------


def test_any_two_settings_meet_in_the_covering_array() -> None:
    together = {pair for row in COVERING for pair in met(row, row.keys())}
    settings = {(s.field, value): {} if value == s.off else s.needs for s in SWITCHES for value in (s.off, s.on)}
    for (a, needs_a), (b, needs_b) in itertools.combinations(settings.items(), 2):
        one, other = {a[0]: a[1]} | needs_a, {b[0]: b[1]} | needs_b
        fit = all(one[field] == other[field] for field in one.keys() & other.keys())
        assert ((a, b) in together) == fit, (a, b)
    assert len(COVERING) <= 48


@pytest.mark.parametrize("changes", COVERING, ids=map(str, range(len(COVERING))))
def test_any_two_switches_work_together(changes: dict[str, Any]) -> None:
    model, (tokens, targets) = make(**changes), batch()
    assert_equals_reference(model, tokens)
    assert_sees_what_it_may(model, tokens[0])
    loss = model.train()(tokens, targets)
    loss.backward()
    assert torch.isfinite(loss)
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []
    assert sum(p.numel() for p in model.parameters()) == count_parameters(model.config, VOCAB).total
    groups = [group for optimizer in build_optimizers(model, OptimConfig()) for group in optimizer.param_groups]
    placed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(placed) == sorted(map(id, model.parameters()))


# --- changed while it trains ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers_on", [(0,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
@pytest.mark.parametrize("changes", [BASE, EVERYTHING | {"num_layers": 3}], ids=["default", "everything"])
def test_with_layers_off_it_equals_the_written_out_reference(
    changes: dict[str, Any], layers_on: tuple[int, ...]
) -> None:
    model, (tokens, _) = make(**changes), batch()
    model.layers_on = layers_on
    assert_equals_reference(model, tokens)


@pytest.mark.parametrize("off", [0, 1, 2])
def test_a_layer_that_is_off_is_the_identity_and_gets_no_gradient(off: int) -> None:
    (tokens, targets), own = batch(), {"value_layers": (0, 1, 2)}
    model, shallow = make(**own), make(num_layers=2, value_layers=(0, 1))
    model.layers_on = tuple(layer for layer in range(3) if layer != off)
    weights = model.state_dict()
    for new, old in enumerate(model.layers_on):
        parts = [name for name in weights if name.startswith((f"blocks.{old}.", f"value_tables.{old}."))]
        weights |= {name.replace(f".{old}.", f".{new}.", 1): model.state_dict()[name] for name in parts}
    shallow.load_state_dict({name: weights[name] for name in shallow.state_dict()})
    assert torch.equal(model(tokens), shallow(tokens))
    model(tokens, targets).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith((f"blocks.{off}.", f"value_tables.{off}.")), name


@pytest.mark.parametrize(
    ("changes", "backend"), [(SMALL, "aot_eager"), (EVERYTHING, "eager")], ids=["default", "everything"]
)
def test_compiled_equals_eager_also_after_a_change(changes: dict[str, Any], backend: str) -> None:
    """One graph, traced again where layers or windows change. These backends need no C++ compiler."""
    torch._dynamo.reset()
    model, (tokens, targets) = make(**changes), batch()
    compiled, last = torch.compile(model, backend=backend, fullgraph=True), model.config.num_layers - 1
    found = []
    for layers_on, share in ((model.layers_on, 1.0), ((0, last), 0.5)):
        model.layers_on, model.window_share = layers_on, share
        results = []
        for function in (model, compiled):
            model.zero_grad()
            loss = function(tokens, targets)
            loss.backward()
            gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            results.append(gradients | {"loss": loss.detach()})
        torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-3)
        found.append(results[1]["loss"].item())
    assert abs(found[0] - found[1]) > 1e-3
    torch._dynamo.reset()


# --- dropout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [SMALL, EVERYTHING], ids=["default", "everything"])
def test_dropout_acts_in_training_alone_and_follows_the_seed(changes: dict[str, Any]) -> None:
    (tokens, _), model, without = batch(), make(**(changes | {"dropout": 0.3})), make(**(changes | {"dropout": 0.0}))
    assert torch.equal(model(tokens), without(tokens))
    assert torch.equal(without.train()(tokens), without.eval()(tokens))
    model.train()
    outcomes = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outcomes.append(model(tokens))
    assert torch.equal(outcomes[0], outcomes[1])
    assert not torch.equal(outcomes[0], outcomes[2]) and not torch.equal(outcomes[0], without(tokens))


def test_dropout_acts_on_embeddings_attention_weights_and_what_sublayers_add() -> None:
    """One block, whose residual stream is seen from outside: what is added is 0 or twice what the sublayer gives."""
    (tokens, _), seen = batch(), {}

    def keep(name: str) -> Any:
        return lambda _module, inputs, output: seen.update({name: (inputs[0], output)})

    model = make(num_layers=1, dropout=0.5).train()
    for name in ("embed_norm", "blocks.0", "blocks.0.attn", "blocks.0.attn_norm", "blocks.0.mlp", "blocks.0.mlp_norm"):
        model.get_submodule(name).register_forward_hook(keep(name))
    model(tokens)
    start, middle, end = seen["blocks.0"][0], seen["blocks.0.mlp_norm"][0], seen["blocks.0"][1]
    for added, whole in (
        (start, seen["embed_norm"][1]),
        (middle - start, seen["blocks.0.attn"][1]),
        (end - middle, seen["blocks.0.mlp"][1]),
    ):
        dropped = added.abs() < 1e-6
        assert 0.4 < dropped.float().mean() < 0.6
        torch.testing.assert_close(added[~dropped], 2 * whole[~dropped], atol=1e-5, rtol=1e-4)
    trained = seen["blocks.0.attn"][1]
    model.blocks[0].attn.register_forward_pre_hook(lambda _module, inputs: (seen["blocks.0.attn"][0], *inputs[1:]))
    model.eval()(tokens)
    assert (seen["blocks.0.attn"][1] - trained).abs().max() > 0.1  # same input, other attention weights


# --- loss, start and shapes -------------------------------------------------------------------------------------


def test_minus_one_targets_are_not_scored() -> None:
    model, (tokens, targets) = make(), batch()
    each = model(tokens, targets, reduction="none")
    assert each.shape == targets.shape and each.dtype == torch.float32
    masked = targets.clone()
    masked[0, 3:] = -1
    torch.testing.assert_close(model(tokens, masked, reduction="none"), each * (masked != -1))
    torch.testing.assert_close(model(tokens, masked), each[masked != -1].mean())


@pytest.mark.parametrize("softcap", ["tanh", "rational"])
@pytest.mark.parametrize("cap", [0.0, 15.0])
def test_first_loss_is_that_of_a_uniform_guess(cap: float, softcap: str) -> None:
    loss = make(stir=False, logit_softcap=cap, softcap=softcap)(*batch())
    assert loss.item() == pytest.approx(math.log(64), abs=1e-6)


@pytest.mark.parametrize("changes", [{}, {"init": "gpt2"}, {"init": "xavier"}, {"embed_norm": False}], ids=str)
def test_tied_head_starts_near_a_uniform_guess(changes: dict[str, Any]) -> None:
    assert make(stir=False, tied_head=True, **changes)(*batch()).item() == pytest.approx(math.log(64), abs=0.1)


@pytest.mark.parametrize("softcap", ["tanh", "rational"])
def test_softcap_bounds_the_logits(softcap: str) -> None:
    (tokens, _), changes = batch(), {"softcap": softcap}
    assert make(logit_softcap=1.0, **changes)(tokens).abs().max() < 1.0 < make(logit_softcap=0.0)(tokens).abs().max()


@pytest.mark.parametrize("changes", [SMALL, EVERYTHING | {"dropout": 0.0}], ids=["default", "everything"])
def test_every_parameter_gets_a_gradient_after_a_few_steps(changes: dict[str, Any]) -> None:
    model, (tokens, targets) = make(stir=False, **changes), batch(rows=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(5):  # the zero-started head, output projections and gates open one after the other
        optimizer.zero_grad()
        model(tokens, targets).backward()
        optimizer.step()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_start_depends_on_the_seed_and_on_nothing_else() -> None:
    torch.manual_seed(0)
    first = make(seed=7, stir=False).state_dict()
    torch.manual_seed(99)
    again, other = make(seed=7, stir=False).state_dict(), make(seed=8, stir=False).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embed.weight"], other["embed.weight"])
    assert not torch.equal(first["blocks.0.attn.q.weight"], first["blocks.1.attn.q.weight"])


@pytest.mark.parametrize("projection_init", ["zero", "scaled", "plain"])
@pytest.mark.parametrize("init", ["speedrun", "gpt2", "xavier"])
@pytest.mark.parametrize("activation", ["relu2", "swiglu"])
def test_start_has_the_documented_spread(init: str, projection_init: str, activation: str) -> None:
    """Width 128, hidden width 512, vocabulary 64, three layers."""
    into, square, out, head = {
        "speedrun": [(0.33 / cols) ** 0.5 for cols in (128, 128, 512, 128)],
        "gpt2": [0.02] * 4,
        "xavier": [(2 / both) ** 0.5 for both in (640, 256, 640, 192)],
    }[init]
    depth = {"zero": 0.0, "scaled": 1 / math.sqrt(2 * 3), "plain": 1.0}[projection_init]
    up, down = (("up",), "down") if activation == "relu2" else (("w1", "w3"), "w2")
    expected = {
        "embed.weight": 0.02 if init == "gpt2" else 1.0,
        "positions.weight": 0.02,
        "head.weight": 0.0 if projection_init == "zero" else head,
        **{f"blocks.{i}.attn.{name}.weight": square for name in "qkv" for i in range(3)},
        **{f"blocks.{i}.mlp.{name}.weight": into for name in up for i in range(3)},
        **{f"blocks.{i}.attn.o.weight": depth * square for i in range(3)},
        **{f"blocks.{i}.mlp.{down}.weight": depth * out for i in range(3)},
        "value_tables.0.weight": 128**-0.5,
        "value_tables.1.weight": 128**-0.5,
    }
    changes = {"init": init, "projection_init": projection_init, "activation": activation, "position": "learned"}
    parameters = dict(make(stir=False, model_dim=128, **changes).named_parameters())
    assert parameters.keys() - expected.keys() == {"blocks.0.attn.value_gate.weight", "blocks.2.attn.value_gate.weight"}
    for name, std in expected.items():
        assert parameters[name].mean().item() == pytest.approx(0, abs=0.05 * std + 1e-9), name
        assert parameters[name].std().item() == pytest.approx(std, rel=0.05), name
        furthest = 3.0 if init == "xavier" else 6.0
        assert parameters[name].abs().max() <= furthest * std * 1.0001, name


def test_what_is_not_drawn_starts_from_its_constant() -> None:
    """Each constant with the part that it belongs to; the weights of the streams as the fields document them."""
    constants = {
        "skip_weights": 1.0,
        "residual_lambdas": 1.0,
        "qk_gain": 1.0,
        "x0_lambdas": 0.0,
        "backout_lambda": 0.5,
        "bigram_lambdas": 0.05,
        "bigram_table.weight": 0.0,
        "smear_lambda": 0.0,
        "value_lambdas": 0.5,
        "gate.weight": 0.0,
        "norm.weight": 1.0,
        "bias": 0.0,
    }
    found = set()
    for mix in ("gate", "lambdas"):
        everything = EVERYTHING | {"value_mix": mix, "projection_init": "plain"}
        for name, parameter in make(stir=False, **everything).named_parameters():
            for part in (part for part in constants if name.endswith(part)):
                assert (parameter == constants[part]).all(), name
                found.add(part)
    assert found == constants.keys()


def test_tied_tables_start_small() -> None:
    for init in ("speedrun", "gpt2", "xavier"):
        assert make(stir=False, tied_head=True, init=init).embed.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_value_embeddings_sit_in_every_second_layer_up_to_the_last() -> None:
    for layers in range(1, 7):
        found = [ModelConfig(num_layers=layers).value_table_of(i) is not None for i in range(layers)]
        assert found[-1] and all(a != b for a, b in itertools.pairwise(found))
    assert all(ModelConfig(value_embeds=False).value_table_of(i) is None for i in range(4))


def test_value_tables_are_shared_in_turn_by_the_layers_that_have_one() -> None:
    def tables(**changes: Any) -> list[int | None]:
        config = ModelConfig(num_layers=6, **changes)
        return [config.value_table_of(layer) for layer in range(6)]

    assert tables() == [None, 0, None, 1, None, 2]
    assert tables(value_tables=2) == [None, 0, None, 1, None, 0]
    assert tables(value_tables=5) == [None, 0, None, 1, None, 2]
    assert tables(value_layers=(5, 0, 1)) == [0, 1, None, None, None, 2]
    assert tables(value_layers=(0, 1, 4, 5), value_tables=3, skip_attention=(1,)) == [0, None, None, None, 1, 2]


def test_narrow_models_have_narrow_gates() -> None:
    model = make(model_dim=8, num_heads=2, num_kv_heads=1, attention_gate=True, smear=True)
    parameters = dict(model.named_parameters())
    assert parameters["blocks.2.attn.value_gate.weight"].shape == (1, 8)
    assert parameters["blocks.2.attn.head_gate.weight"].shape == (2, 8)
    assert parameters["smear_gate.weight"].shape == (1, 8)
    assert torch.isfinite(model(*batch()))


def test_a_table_of_pairs_has_a_row_for_no_pair_and_one_for_pairs() -> None:
    smallest = make(bigram_embeds=True, bigram_rows=2)
    assert_equals_reference(smallest, batch()[0])
    with pytest.raises(ValueError, match="bigram_rows"):
        ModelConfig(bigram_embeds=True, bigram_rows=1)


def test_a_single_layer_has_no_idle_parameter() -> None:
    switches = {"unet_skips": True, "residual_lambdas": True, "x0_lambdas": True, "backout": True}
    model = make(num_layers=1, **switches)
    model(*batch()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.numel()] == []
    assert_equals_reference(model, batch()[0])


def test_parameters_are_counted_with_and_without_tables_and_head() -> None:
    for changes in ({"head_bias": True}, {"head_bias": True, "tied_head": True}):
        model = make(**(EVERYTHING | {"position": "learned", "tied_head": False} | changes))
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        tables = ("embed.", "positions.", "value_tables.", "bigram_table.", "head.", "head_bias")
        assert model.get_num_params() == sum(sizes.values())
        inner = sum(size for name, size in sizes.items() if not name.startswith(tables))
        assert model.get_num_params(non_embedding=True) == inner


@pytest.mark.parametrize("changes", [SMALL, EVERYTHING], ids=["default", "everything"])
def test_bf16_autocast_gives_an_fp32_loss_close_to_fp32(changes: dict[str, Any]) -> None:
    model, (tokens, targets) = make(**changes), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(tokens, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(model(tokens, targets).item(), rel=0.02)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
