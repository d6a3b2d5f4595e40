"""What one sample costs, module by module, from the config's dimensions alone.

FLOP = 2 multiply-adds; norms, activations, rotations and interpolations are not counted, as PyTorch's FlopCounterMode
does not count them. Rows sum over the layers of one kind. Bytes are for bf16 activations and count what autograd
keeps, fp32 copies inside norms and residual sums included; attention is taken to keep q, k, v and its output.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from stagecoach.models.family import ModuleCost
from stagecoach.models.fantasy_world.camera import PLUCKER_CHANNELS
from stagecoach.models.fantasy_world.config import (
    PATCH,
    SPECIAL_TOKENS,
    VAE_SPACE,
    VAE_TIME,
    BackboneConfig,
    FantasyWorldConfig,
)
from stagecoach.models.fantasy_world.heads.dpt import OUTPUTS

BYTES = 2
POSE = 9
CLIP_TOKENS = 257
Kind = Literal["trained", "passed", "still"]


def cost_table(config: FantasyWorldConfig, stage: int) -> list[ModuleCost]:
    """Rows of ``stage`` for one sample of ``config.clip``. In stage 1 nothing before the latent bridge needs a
    gradient; in stage 2 gradients reach the first camera adapter, through every frozen block."""
    clip, backbone = config.clip, config.backbone
    n, d = clip.tokens, backbone.dim
    frozen: Kind = "passed" if stage > 1 else "still"
    rows = [_stem(config), _wan_blocks("pcb", backbone, config.split, n, frozen)]
    rows += _wan_geometry(config, stage) if config.geometry == "wan" else _aggregator_geometry(config, stage)
    if stage > 1:
        rows.append(_wan_blocks("irg.video_block", backbone, config.irg_layers, n, "passed"))
        rows.append(_interaction(config))
        channels = PATCH * PATCH * backbone.out_channels
        rows.append(ModuleCost("out", linear(n, d, channels), 0, "passed", activation_bytes=BYTES * 2 * n * d))
    return [*rows, *_dense_heads(config), _camera_head(config)]


def linear(rows: float, inputs: int, outputs: int) -> float:
    return 2.0 * rows * inputs * outputs


def attention(queries: float, keys: float, width: int) -> float:
    """q k^T and its product with v, over all heads together ``width`` wide."""
    return 4.0 * queries * keys * width


def conv(positions: float, kernel: int, inputs: int, outputs: int) -> float:
    """``positions`` of the output (of the input, for a transposed convolution), ``kernel`` taps."""
    return 2.0 * positions * kernel * inputs * outputs


def _stem(config: FantasyWorldConfig) -> ModuleCost:
    backbone, d = config.backbone, config.backbone.dim
    flop = linear(config.clip.tokens, PATCH * PATCH * backbone.in_channels, d)
    flop += linear(1, backbone.freq_dim, d) + linear(1, d, d) + linear(1, d, 6 * d)
    flop += linear(backbone.text_length, backbone.text_dim, d) + linear(backbone.text_length, d, d)
    if backbone.image_dim is not None:
        flop += linear(CLIP_TOKENS, backbone.image_dim, backbone.image_dim) + linear(CLIP_TOKENS, backbone.image_dim, d)
    return ModuleCost("stem", flop, 0, "still")


def _wan_blocks(
    name: str, backbone: BackboneConfig, layers: int, tokens: int, kind: Kind, adapted: int = 0
) -> ModuleCost:
    """``layers`` Wan blocks over ``tokens``; ``adapted`` of them go through a d x d adapter as well."""
    d, ffn, text = backbone.dim, backbone.ffn_dim, backbone.text_length
    context = text + (CLIP_TOKENS if backbone.image_dim is not None else 0)
    flop = linear(tokens, d, 4 * d) + linear(tokens, d, 2 * d) + linear(context, d, 2 * d) + 2 * linear(tokens, d, ffn)
    flop += linear(adapted, d, d)
    heads = attention(tokens, tokens, d) + attention(tokens, context, d)
    if kind == "still":
        return ModuleCost(name, layers * flop, layers * heads, kind)
    kept = tokens * (34 * d + 2 * ffn) + 7 * context * d
    if kind == "passed":  # no inputs of linear layers and gains
        kept = tokens * (18 * d + ffn) + 2 * context * d
    return ModuleCost(
        name,
        layers * flop,
        layers * heads,
        kind,
        activation_bytes=BYTES * layers * kept,
        boundary_bytes=BYTES * layers * tokens * d,
        attention_bytes=BYTES * layers * 2 * tokens * d,
    )


def _wan_geometry(config: FantasyWorldConfig, stage: int) -> Iterator[ModuleCost]:
    """The geometry branch on the backbone's width, and the camera adapters that read its pose encoder."""
    n, d, bridge = config.clip.tokens, config.backbone.dim, config.bridge
    width = bridge.width
    flop = 2 * linear(n, d, width)
    flop += bridge.layers * (4 * linear(n, width, width) + 2 * linear(n, width, bridge.ffn_dim))
    yield ModuleCost(
        "latent_bridge",
        flop,
        bridge.layers * attention(n, n, width),
        "trained",
        activation_bytes=BYTES * n * (d + bridge.layers * (17 * width + 2 * bridge.ffn_dim)),
        boundary_bytes=BYTES * n * d,
        attention_bytes=BYTES * bridge.layers * n * width,
    )
    hidden = config.pose_hidden
    flop = linear(n, PLUCKER_CHANNELS, hidden) + linear(n, hidden, d)
    kept = BYTES * n * (PLUCKER_CHANNELS + 2 * hidden + d)  # the output is kept once for all that read it
    yield ModuleCost("pose_encoder", flop, 0, "trained", activation_bytes=kept, boundary_bytes=kept)
    tokens = n + SPECIAL_TOKENS * config.clip.grid[0]
    yield _wan_blocks("irg.geo_block", config.backbone, config.irg_layers, tokens, "trained", adapted=n)
    if stage > 1:
        yield ModuleCost("camera_adapters", config.split * linear(n, d, d), 0, "trained")


def _aggregator_geometry(config: FantasyWorldConfig, stage: int) -> Iterator[ModuleCost]:
    """The aggregator with what goes into it, and the camera control inside the video's cross-attention."""
    (f, h, w), n, d = config.clip.grid, config.clip.tokens, config.backbone.dim
    aggregator, g = config.aggregator, config.geometry_dim
    yield ModuleCost(
        "latent_bridge", linear(n, d, g), 0, "trained", activation_bytes=BYTES * n * d, boundary_bytes=BYTES * n * d
    )
    flop = linear(f, VAE_TIME * POSE, aggregator.pose_hidden) + linear(f, aggregator.pose_hidden, g)
    yield ModuleCost("special_tokens", flop, 0, "trained")
    flop = linear(1, config.backbone.freq_dim, g) + linear(1, g, g) + linear(1, g, 6 * g)
    yield ModuleCost("geometry_time", flop, 0, "trained")
    in_frame, layers = SPECIAL_TOKENS + h * w, config.irg_layers
    tokens = f * in_frame
    flop = 2 * linear(tokens, g, (4 + 2 * aggregator.mlp_ratio) * g)
    heads = f * attention(in_frame, in_frame, g) + attention(tokens, tokens, g)
    yield ModuleCost(
        "irg.geo_block",
        layers * flop,
        layers * heads,
        "trained",
        activation_bytes=BYTES * layers * tokens * g * 2 * (21 + 2 * aggregator.mlp_ratio),
        boundary_bytes=BYTES * layers * tokens * g,
        attention_bytes=BYTES * layers * 2 * tokens * g,
    )
    if stage > 1:
        yield from _camera_control(config)


def _camera_control(config: FantasyWorldConfig) -> Iterator[ModuleCost]:
    control, n, d = config.camera_control, config.clip.tokens, config.backbone.dim
    (_, h, w), folded = config.clip.latent, PLUCKER_CHANNELS * VAE_SPACE**2
    full, half = config.clip.frames * h * w, (config.clip.frames // 2 + 1) * h * w
    flop = 2 * linear(full, folded, folded) + linear(half, folded, 2 * folded)
    flop += conv(n, PATCH**2, 2 * folded, d) + linear(n, d, d // 2) + linear(n, d // 2, control.features)
    kept = full * 5 * folded + half * 7 * folded + n * (5 * d // 2 + 2 * control.features)
    yield ModuleCost(
        "pose_encoder", flop, 0, "trained", activation_bytes=BYTES * kept, boundary_bytes=BYTES * full * folded
    )
    flop = linear(n, control.features, control.features + control.rank)
    flop += linear(n, control.hidden, d + control.features) + linear(n, control.rank, d)
    kept = n * (d + 2 * control.hidden + control.features + control.rank)
    yield ModuleCost(
        "camera_adapters", control.layers * flop, 0, "trained", activation_bytes=BYTES * control.layers * kept
    )


def _aggregator_geometry(config: FantasyWorldConfig, stage: int) -> Iterator[ModuleCost]:
    """VGGT's alternating blocks, and the camera control inside the video's cross-attention."""
    n, f, d, wide = config.clip.tokens, config.clip.grid[0], config.backbone.dim, config.geometry_dim
    own, layers = config.aggregator, config.irg_layers
    tokens = n + SPECIAL_TOKENS * f
    yield ModuleCost(
        "latent_bridge", linear(n, d, wide), 0, "trained", activation_bytes=BYTES * n * d, boundary_bytes=BYTES * n * d
    )
    hidden = own.pose_hidden
    yield ModuleCost("special_tokens", linear(f, VAE_TIME * POSE, hidden) + linear(f, hidden, wide), 0, "trained")
    flop = linear(1, config.backbone.freq_dim, wide) + linear(1, wide, 7 * wide)
    yield ModuleCost("geometry_time", flop, 0, "trained")
    flop = 2 * linear(tokens, wide, (4 + 2 * own.mlp_ratio) * wide)
    heads = attention(tokens, tokens / f, wide) + attention(tokens, tokens, wide)
    kept = 2 * tokens * (18 + 2 * own.mlp_ratio) * wide
    yield ModuleCost(
        "irg.geo_block",
        layers * flop,
        layers * heads,
        "trained",
        activation_bytes=BYTES * layers * kept,
        boundary_bytes=BYTES * layers * tokens * wide,
        attention_bytes=BYTES * layers * 2 * tokens * wide,
    )
    if stage > 1:
        yield from _camera_control(config)


def _camera_control(config: FantasyWorldConfig) -> Iterator[ModuleCost]:
    control, n, d = config.camera_control, config.clip.tokens, config.backbone.dim
    f, h, w = config.clip.latent
    frames, folded = config.clip.frames, PLUCKER_CHANNELS * VAE_SPACE**2
    middle = (frames + 1) // 2
    flop = 2 * linear(frames * h * w, folded, folded) + linear(middle * h * w, folded, 2 * folded)
    flop += conv(n, PATCH * PATCH, 2 * folded, d) + linear(n, d, d // 2) + linear(n, d // 2, control.features)
    kept = h * w * folded * (5 * frames + 5 * middle + 2 * f) + n * (d + 3 * (d // 2) + control.features)
    yield ModuleCost(
        "pose_encoder",
        flop,
        0,
        "trained",
        activation_bytes=BYTES * kept,
        boundary_bytes=BYTES * (h * w * folded * frames + n * control.features),
    )
    flop = linear(n, control.features, control.features) + linear(n, d, control.hidden)
    flop += linear(n, control.hidden, control.features) + linear(n, control.features, control.rank)
    flop += linear(n, control.rank, d)
    kept = control.layers * n * (d + control.features + 2 * control.hidden + control.rank)
    yield ModuleCost("camera_adapters", control.layers * flop, 0, "trained", activation_bytes=BYTES * kept)


def _interaction(config: FantasyWorldConfig) -> ModuleCost:
    """Both directions: match and value of each stream in, one projection per stream out."""
    n, width, layers = config.clip.tokens, config.interaction.width, config.irg_layers
    m = n + SPECIAL_TOKENS * config.clip.grid[0]
    dims = n * config.backbone.dim + m * config.geometry_dim
    return ModuleCost(
        "irg.cross_attention",
        layers * linear(dims, width, 3),
        layers * 2 * attention(n, m, width),
        "trained",
        activation_bytes=BYTES * layers * (4 * dims + 3 * (n + m) * width),
        attention_bytes=BYTES * layers * (n + m) * width,
    )


def _dense_heads(config: FantasyWorldConfig) -> Iterator[ModuleCost]:
    """One row per trunk: projections and temporal upsampling over the whole clip, then ``frames_per_step`` frames."""
    dpt = config.dpt
    for names in [tuple(OUTPUTS)] if dpt.shared_trunk else [(name,) for name in OUTPUTS]:
        time_flop, time_kept, time_boundary = _dense_time(config)
        space_flop, space_kept, space_boundary = _dense_space(config, names)
        yield ModuleCost(
            "dpt." + "_and_".join(names),
            time_flop + space_flop,
            0,
            "trained",
            head=True,
            activation_bytes=time_kept + space_kept,
            boundary_bytes=time_boundary + space_boundary,
        )


def _dense_time(config: FantasyWorldConfig) -> tuple[float, float, float]:
    """FLOP, bytes kept and bytes kept under recompute of the part before frames are picked."""
    (f, h, w), tap = config.clip.grid, config.tap_dim
    flop = kept = boundary = 0.0
    for i, c in enumerate(config.dpt.channels):
        flop += linear(f * h * w, tap, c)
        boundary += f * h * w * (2 * tap + (c if i == 3 else 0))
        size = h * w
        if i == 3:
            size = _half(h) * _half(w)
            flop += conv(f * size, 9, c, c)
        flop += conv(f * size, 1, c, c)
        boundary += f * size * c
        frames = f
        for _ in range(2):
            doubled = 2 * frames - 1
            flop += conv(frames * size, 3, c, 2 * c) + conv(doubled * size, 27, c, c)
            kept += size * c * ((frames + 2) + 5 * doubled + (doubled + 2))
            frames = doubled
    return flop, BYTES * (kept + boundary), BYTES * boundary


def _dense_space(config: FantasyWorldConfig, names: tuple[str, ...]) -> tuple[float, float, float]:
    """The same of the part that works frame by frame."""
    dpt, (_, h, w), frames = config.dpt, config.clip.grid, config.frames_per_step
    wide = dpt.features
    sizes = [16 * h * w, 4 * h * w, h * w, _half(h) * _half(w)]
    flop = kept = boundary = 0.0
    for i, (c, size) in enumerate(zip(dpt.channels, sizes, strict=True)):
        boundary += c * (size if i > 1 else h * w)
        if i < 2:
            flop += conv(h * w, size // (h * w), c, c)
            kept += c * size
        convolutions = 2 if i == 3 else 4
        flop += conv(size, 9, c, wide) + convolutions * conv(size, 9, wide, wide) + conv(size, 1, wide, wide)
        kept += size * wide * (convolutions + 1)
    flop += conv(4 * sizes[0], 9, wide, dpt.hidden)
    kept += 4 * sizes[0] * wide
    pixels = config.clip.height * config.clip.width
    kept += pixels * dpt.hidden
    for name in names:
        flop += conv(pixels, 9, dpt.hidden, dpt.last) + conv(pixels, 1, dpt.last, OUTPUTS[name])
        kept += pixels * 3 * dpt.last
        boundary += pixels * 4 * OUTPUTS[name]  # fp32, and again behind the exponential
    return frames * flop, BYTES * frames * (kept + boundary), BYTES * frames * boundary


def _camera_head(config: FantasyWorldConfig) -> ModuleCost:
    head, f = config.camera_head, config.clip.grid[0]
    frames, width = config.clip.frames, head.width
    flop = linear(f, config.tap_dim, width) if config.tap_dim != width else 0.0
    flop += linear(f - 1, width, VAE_TIME * width)
    block = linear(frames, width, (4 + 2 * head.mlp_ratio) * width)
    step = linear(frames, POSE, width) + linear(frames, width, 3 * width) + head.layers * block
    step += linear(frames, width, head.hidden) + linear(frames, head.hidden, POSE)
    heads = head.iterations * head.layers * attention(frames, frames, width)
    kept = head.iterations * frames * width * (18 + head.layers * (16 + 2 * head.mlp_ratio))
    return ModuleCost(
        "camera_head",
        flop + head.iterations * step,
        heads,
        "trained",
        head=True,
        activation_bytes=BYTES * kept,
        boundary_bytes=BYTES * kept,
    )


def _half(size: int) -> int:
    return (size + 1) // 2
