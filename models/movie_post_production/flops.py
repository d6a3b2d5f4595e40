"""What one picture costs, module by module, from the config's dimensions alone.

FLOP = 2 multiply-adds; norms, activations and rotations are not counted, as PyTorch's FlopCounterMode does not count
them. Bytes are for bf16 activations and count what autograd keeps, fp32 copies inside norms included; frozen linear
layers keep no input. Boxes are taken to be of one size; Assemble-Attn's attention grows with the sum of their squares.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from stagecoach.models.family import ModuleCost
from stagecoach.models.movie_post_production.config import PATCH, MoviePostConfig
from stagecoach.models.movie_post_production.lora import target_layers

BYTES = 2
REFERENCES = 18
"""Objects of a picture in DenseLayout, the guide's data set, on average."""
COVER = 2.0
"""How often a token is covered, on average."""
TIME_DIM = 256
MLP = 4
DOUBLE, SINGLE = "transformer_blocks", "single_transformer_blocks"
Kind = Literal["trained", "passed", "still"]


def cost_table(
    config: MoviePostConfig, stage: int, references: int = REFERENCES, cover: float = COVER
) -> list[ModuleCost]:
    """Rows of ``stage`` for one picture of ``config.image`` with ``references`` boxes that together cover it ``cover``
    times. Nothing before the first module that trains needs a gradient: in stage 1 no block before the first layout
    branch, in stage 3 none before the first that receives feedback."""
    backbone = config.backbone
    t, d = config.image.tokens, backbone.dim
    channels = PATCH * PATCH * backbone.latent_channels
    own: Kind = "trained" if stage < 3 else "still"
    rows = [_embedders(config), *_references(config, stage, references, own), *_base_blocks(config, stage)]
    for kind in (DOUBLE, SINGLE):
        rows += _layout(config, kind, stage, references, cover)
        if any(name.startswith(f"{kind}.") for name in target_layers(config)):
            rows.append(_lora(config, kind, stage, references))
    if stage > 1:
        rows.append(_modulation(config, stage, references))
    if stage > 2:
        rows.append(_feedback(config, references))
    rows.append(
        ModuleCost("out", linear(t, d, channels) + linear(1, d, 2 * d), 0, "passed", **_kept(1, t * d, t * d, 0))
    )
    return rows


def linear(rows: float, inputs: int, outputs: int) -> float:
    return 2.0 * rows * inputs * outputs


def attention(queries: float, keys: float, width: int) -> float:
    """q k^T and its product with v, over all heads together ``width`` wide."""
    return 4.0 * queries * keys * width


def _embedders(config: MoviePostConfig) -> ModuleCost:
    backbone, d = config.backbone, config.backbone.dim
    numbers = 2 if backbone.guidance else 1
    flop = linear(config.image.tokens, PATCH * PATCH * backbone.latent_channels, d)
    flop += linear(backbone.text_length, backbone.text_dim, d)
    flop += numbers * (linear(1, TIME_DIM, d) + linear(1, d, d)) + linear(1, backbone.pooled_dim, d) + linear(1, d, d)
    return ModuleCost("embedders", flop, 0, "still")


def _references(config: MoviePostConfig, stage: int, n: int, kind: Kind) -> Iterator[ModuleCost]:
    own, d = config.instance, config.backbone.dim
    yield ModuleCost(
        "alpha_predictor", linear(n, own.clip_dim + 4, own.alpha_hidden) + linear(n, own.alpha_hidden, 1), 0, kind
    )
    flop = linear(n, own.clip_dim, own.dino_dim) + linear(n, own.spatial_dim + own.dino_dim, d) + linear(n, d, d)
    yield ModuleCost("instance_encoder", flop, 0, kind)
    if own.text:
        yield ModuleCost("instance_text", linear(n, config.backbone.pooled_dim, d), 0, kind)
    yield ModuleCost("layout_head", linear(n, d, d), 0, kind)
    if stage > 1:
        yield ModuleCost("modulation_head", linear(n, d, 2 * d), 0, kind)


def _base_blocks(config: MoviePostConfig, stage: int) -> Iterator[ModuleCost]:
    """FLUX itself. A double and a single block both have 12 d^2 weights per token."""
    backbone, d, t = config.backbone, config.backbone.dim, config.image.tokens
    s = t + backbone.text_length
    flop, heads = linear(s, d, (4 + 2 * MLP) * d), attention(s, s, d)
    still = still_blocks(config, stage)
    # LN input, q and k before their norm (fp32) and after, v, attention's output, second LN's input, GELU's input.
    kept = s * d * (10 + MLP)
    # AdaLN per token keeps both factors of each product: vectors, scaled norms, gated outputs.
    moved = 12 * t * d if stage > 1 else 0
    for name, count, kind in ((f"{DOUBLE}.still", still, "still"), (DOUBLE, backbone.double_blocks - still, "passed")):
        if count:
            bytes_ = {} if kind == "still" else _kept(count, kept + moved, s * d, s * d)
            yield ModuleCost(name, count * (flop + linear(2, d, 6 * d)), count * heads, kind, **bytes_)
    count = backbone.single_blocks
    yield ModuleCost(
        SINGLE,
        count * (flop + linear(1, d, 3 * d)),
        count * heads,
        "passed",
        **_kept(count, s * d * (9 + MLP), s * d, s * d),
    )


def still_blocks(config: MoviePostConfig, stage: int) -> int:
    """Double blocks whose base part needs no gradient."""
    if stage == 1 and config.lora.scope == "layout_branch":
        return config.layout.double_blocks[0] + 1
    return 1 if stage == 3 else 0


def _kept(count: int, activation: float, boundary: float, heads: float) -> dict[str, float]:
    return {
        "activation_bytes": BYTES * count * activation,
        "boundary_bytes": BYTES * count * boundary,
        "attention_bytes": BYTES * count * heads,
    }


def _layout(config: MoviePostConfig, kind: str, stage: int, n: int, cover: float) -> Iterator[ModuleCost]:
    """The layout branches of one kind of block through the frozen layers, and W_b behind them."""
    layout, d, t = config.layout, config.backbone.dim, config.image.tokens
    held = cover * t / n + 1  # tokens of a segment
    segment = n * held * d
    # LN input, q and k before their norm (fp32), LoRA's input; of segments q, k, v and the output.
    kept = 6 * t * d + 4 * segment
    if kind == SINGLE:
        count, flop, kept = len(layout.single_blocks), linear(t + n, d, (4 + 2 * MLP) * d), kept + MLP * t * d
    else:
        count, flop = len(layout.double_blocks), linear(t, d, 4 * d) + linear(n, d, (4 + 2 * MLP) * d)
        if layout.second_ff:
            flop, kept = flop + linear(t, d, 2 * MLP * d), kept + t * d * (1 + MLP)
    yield ModuleCost(
        f"{kind}.layout_branch",
        count * flop,
        count * n * attention(held, held, d),
        "passed",
        **_kept(count, kept, 0, segment),
    )
    yield ModuleCost(
        f"{kind}.layout_out",
        count * linear(t, d, d),
        0,
        "trained" if stage < 3 else "passed",
        **_kept(count, 2 * t * d, 0, 0),
    )


def _lora(config: MoviePostConfig, block: str, stage: int, n: int) -> ModuleCost:
    d, rank, t, text = config.backbone.dim, config.lora.rank, config.image.tokens, config.backbone.text_length
    everywhere = config.lora.scope == "global"
    shapes = {
        "norm1.linear": (1, 6),
        "norm1_context.linear": (1, 6),
        "norm.linear": (1, 3),
        "ff.net.2": (MLP, 1),
        "ff_context.net.2": (MLP, 1),
        "proj_mlp": (1, MLP),
        "proj_out": (1 + MLP, 1),
    }
    flop = kept = 0.0
    for name in target_layers(config):
        kind, i, target = name.split(".", 2)
        if kind != block:
            continue
        target = target.removeprefix("attn.")
        single = kind.startswith("single")
        adds = target.startswith(("add_", "to_add", "ff_context"))
        branched = int(i) in (config.layout.single_blocks if single else config.layout.double_blocks)
        rows = 0
        if everywhere:
            rows += t + text if single else text if adds else t
        if branched:
            rows += t + n if single else n if adds else t
        if target.endswith("linear"):
            rows = 1 + int(branched) if everywhere else 1
        elif target == "ff.net.2" and not config.layout.second_ff:
            rows = t
        inputs, outputs = (factor * d for factor in shapes.get(target, (1, 1)))
        flop += linear(rows, inputs, rank) + linear(rows, rank, outputs)
        kept += rows * rank
    return ModuleCost(
        f"{block}.lora",
        flop,
        0,
        "trained" if stage < 3 else "passed",
        activation_bytes=BYTES * kept if stage < 3 else 0.0,
    )


def _modulation(config: MoviePostConfig, stage: int, n: int) -> ModuleCost:
    """Projections and rows of references, and their spreading over the tokens."""
    d, t, blocks, own = config.backbone.dim, config.image.tokens, config.backbone.double_blocks, config.modulation
    flop = linear(n, d, d) if own.rank is None else 2 * linear(n, d, own.rank)
    if own.space == "temb":
        flop += linear(n + 1, d, 6 * d) + linear(t, n, 6 * d)
    else:
        flop += linear(n, d, 12) + linear(t, n, 6) + linear(1, n, 12)
    return ModuleCost(f"{DOUBLE}.modulation", blocks * flop, 0, "trained" if stage < 3 else "passed")


def _feedback(config: MoviePostConfig, n: int) -> ModuleCost:
    d, t, bridges, own = config.backbone.dim, config.image.tokens, config.backbone.double_blocks - 1, config.feedback
    flop = linear(n, t, d) + (linear(n, d, d) if own.kind == "full" else 2 * linear(n, d, own.rank))
    return ModuleCost(f"{DOUBLE}.feedback", bridges * flop, 0, "trained")
