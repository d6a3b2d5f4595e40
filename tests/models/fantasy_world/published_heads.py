"""``published_formulas``, continued: the heads, and the forward as a whole."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.fantasy_world import published_formulas as formula
from tests.models.fantasy_world.published_formulas import Weights, linear, norm

TAPS = ("vggt.depth_head", "vggt.point_head")


def code_of_place(channels: int, height: int, width: int, aspect: float) -> Tensor:
    """0.1 times sines and cosines of a grid that spans the image's diagonal, ``[C, h, w]``."""
    diagonal = (aspect**2 + 1) ** 0.5
    spans = [
        torch.linspace(-span * (n - 1) / n, span * (n - 1) / n, n, dtype=torch.float64)
        for span, n in ((aspect / diagonal, width), (1 / diagonal, height))
    ]
    v, u = torch.meshgrid(spans[1], spans[0], indexing="ij")
    omega = 100 ** -(torch.arange(channels // 4, dtype=torch.float64) / (channels // 4))
    parts = [torch.cat([(g[..., None] * omega).sin(), (g[..., None] * omega).cos()], -1) for g in (u, v)]
    return 0.1 * torch.cat(parts, -1).permute(2, 0, 1)


def streamed(w: Weights, name: str, x: Tensor) -> Tensor:
    """Wan's decoder: latent frames ``[B, C, f, h, w]`` come one by one; a convolution over time remembers the last two
    frames it was shown, zeros at first; the first latent frame passes the doublings unseen by them."""
    x = F.conv3d(x, w[f"{name}.conv2.weight"], w[f"{name}.conv2.bias"])
    memory: dict[str, Tensor] = {}
    answers = []

    def remember(layer: str, chunk: Tensor, padding: tuple) -> Tensor:
        before = memory.get(layer, torch.zeros_like(chunk[:, :, :1]).expand(-1, -1, 2, -1, -1))
        seen = torch.cat([before, chunk], 2)
        memory[layer] = seen[:, :, -2:]
        return F.conv3d(seen, w[f"{layer}.weight"], w[f"{layer}.bias"], padding=padding)

    for i in range(x.shape[2]):
        chunk = x[:, :, i : i + 1]
        for stage in (0, 2):
            layers = f"{name}.decoder.upsamples"
            if i:
                doubled = remember(f"{layers}.{stage}.time_conv", chunk, (0, 0, 0))
                early, late = doubled.chunk(2, 1)
                chunk = torch.stack([early, late], 3).flatten(2, 3)
            residual = f"{layers}.{stage + 1}.residual"
            unit = chunk / chunk.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)
            inner = F.silu(unit * chunk.shape[1] ** 0.5 * w[f"{residual}.0.gamma"])
            chunk = chunk + remember(f"{residual}.2", inner, (0, 1, 1))
        answers.append(chunk)
    return torch.cat(answers, 2)


def residual_unit(w: Weights, name: str, x: Tensor) -> Tensor:
    """The same ReLU module stands in front of both convolutions, and it works in place: what is added is its output."""
    relu, x = nn.ReLU(inplace=True), x.clone()
    out = F.conv2d(relu(x), w[f"{name}.conv1.weight"], w[f"{name}.conv1.bias"], padding=1)
    out = F.conv2d(relu(out), w[f"{name}.conv2.weight"], w[f"{name}.conv2.bias"], padding=1)
    return out + x


def enlarge(x: Tensor, size) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def dense_head(w: Weights, name: str, taps: list[Tensor], grid: tuple, height: int, width: int) -> Tensor:
    """Taps ``[B, f, 5 + h w, d]``, deepest first -> ``[B, F, channels, H, W]``, before the activations."""
    f, h, ww = grid
    scratch, streams, aspect = f"{name}.scratch", [], width / height
    for i, tap in enumerate(taps):
        x = norm(w, f"{name}.norm", tap[:, :, 5:]).transpose(2, 3).reshape(-1, tap.shape[-1], h, ww)
        x = F.conv2d(x, w[f"{name}.projects.{i}.weight"], w[f"{name}.projects.{i}.bias"])
        x = x + code_of_place(x.shape[1], *x.shape[2:], aspect).to(x)
        layer = f"{name}.resize_layers.{i}"
        if i < 2:
            x = F.conv_transpose2d(x, w[f"{layer}.weight"], w[f"{layer}.bias"], stride=4 if i == 0 else 2)
        elif i == 3:
            x = F.conv2d(x, w[f"{layer}.weight"], w[f"{layer}.bias"], stride=2, padding=1)
        x = streamed(w, f"{name}.temporal_upsamplers.{i}", x.unflatten(0, (-1, f)).transpose(1, 2))
        streams.append(F.conv2d(x.transpose(1, 2).flatten(0, 1), w[f"{scratch}.layer{i + 1}_rn.weight"], padding=1))
    out = None
    for i in (3, 2, 1, 0):
        fuse = f"{scratch}.refinenet{i + 1}"
        out = streams[3] if out is None else out + residual_unit(w, f"{fuse}.resConfUnit1", streams[i])
        out = residual_unit(w, f"{fuse}.resConfUnit2", out)
        out = enlarge(out, streams[i - 1].shape[2:] if i else [2 * n for n in out.shape[2:]])
        out = F.conv2d(out, w[f"{fuse}.out_conv.weight"], w[f"{fuse}.out_conv.bias"])
    out = F.conv2d(out, w[f"{scratch}.output_conv1.weight"], w[f"{scratch}.output_conv1.bias"], padding=1)
    out = enlarge(out, (height, width))
    out = out + code_of_place(out.shape[1], height, width, aspect).to(out)
    last = f"{scratch}.output_conv2"
    out = F.relu(F.conv2d(out, w[f"{last}.0.weight"], w[f"{last}.0.bias"], padding=1))
    out = F.conv2d(out, w[f"{last}.2.weight"], w[f"{last}.2.bias"])
    return out.unflatten(0, (len(taps[0]), -1))


def camera_head(w: Weights, tokens: Tensor, heads: int, layers: int, iterations: int = 4) -> list[Tensor]:
    """Camera tokens ``[B, f, d]`` -> poses ``[B, F, 9]`` by iteration."""
    name, width = "vggt.camera_head", tokens.shape[-1]
    expand = f"{name}.camera_time_upsample.expand_channels"
    later = F.conv1d(tokens[:, 1:].transpose(1, 2), w[f"{expand}.weight"], w[f"{expand}.bias"])
    later = later.reshape(len(tokens), width, -1).transpose(1, 2)
    tokens = torch.cat([norm(w, f"{name}.token_norm", tokens)[:, :1], later], 1)
    pose, answers = None, []
    for _ in range(iterations):
        seen = w[f"{name}.empty_pose_tokens"].expand(*tokens.shape[:2], -1) if pose is None else pose
        shift, scale, gate = linear(
            w, f"{name}.poseLN_modulation.1", F.silu(linear(w, f"{name}.embed_pose", seen))
        ).chunk(3, -1)
        x = gate * (norm({}, "", tokens, 1e-6) * (1 + scale) + shift) + tokens
        for i in range(layers):
            x = formula.block_mlp(w, f"{name}.trunk.{i}", formula.block_attention(w, f"{name}.trunk.{i}", x, heads))
        inner = F.gelu(linear(w, f"{name}.pose_branch.fc1", norm(w, f"{name}.trunk_norm", x)))
        change = linear(w, f"{name}.pose_branch.fc2", inner)
        pose = change if pose is None else pose + change
        answers.append(torch.cat([pose[..., :7], pose[..., 7:].relu()], -1))
    return answers


def forward(w: Weights, b: Weights, config, inputs: dict) -> dict[str, Tensor]:
    """The published joint forward with predictions, at the widths of ``config``; every frame is decoded."""
    backbone, control = config.backbone, config.aggregator
    latent = torch.cat([inputs["latents_noisy"], inputs["image_latent"]], 1)
    (f, h, ww), heads = config.clip.grid, backbone.heads
    embed = "condition_embedder"
    t = formula.sinusoid(inputs["timestep"], backbone.freq_dim).to(latent)
    t = linear(b, f"{embed}.time_embedder.linear_2", F.silu(linear(b, f"{embed}.time_embedder.linear_1", t)))
    t_mod = linear(b, f"{embed}.time_proj", F.silu(t)).unflatten(1, (6, -1))
    text = F.pad(inputs["text"], (0, 0, 0, backbone.text_length - inputs["text"].shape[1]))
    text = F.gelu(linear(b, f"{embed}.text_embedder.linear_1", text), approximate="tanh")
    text = linear(b, f"{embed}.text_embedder.linear_2", text)
    picture = norm(b, f"{embed}.image_embedder.norm1", inputs["image_states"])
    picture = F.gelu(linear(b, f"{embed}.image_embedder.ff.net.0.proj", picture))
    picture = norm(b, f"{embed}.image_embedder.norm2", linear(b, f"{embed}.image_embedder.ff.net.2", picture))
    context = torch.cat([picture, text], 1)
    x = F.conv3d(latent, b["patch_embedding.weight"], b["patch_embedding.bias"], stride=(1, 2, 2))
    x = x.flatten(2).transpose(1, 2)

    plucker = formula.rays(inputs["extrinsics"], inputs["intrinsics"], config.clip.height, config.clip.width)
    features = formula.camera_features(w, plucker) * inputs["camera_given"][:, None, None]
    table = formula.turns(backbone.head_dim, f, h, ww)
    cross = (
        formula.turns(config.interaction.head_dim, f, h, ww),
        formula.turns(config.interaction.head_dim, f, h, ww, 5),
    )

    def modulation(i):
        return (b[f"blocks.{i}.scale_shift_table"] + t_mod).chunk(6, 1)

    for i in range(config.split):
        e = modulation(i)
        x = formula.wan_attentions(b, w, i, f"pipe.dit.blocks.{i}", x, context, e, table, heads, features)
        x = formula.wan_feed_forward(b, i, x, e)

    grid = x.transpose(1, 2).unflatten(2, (f, h, ww))
    patches = F.conv3d(grid, w["vggt.projection_head.weight"], w["vggt.projection_head.bias"]).flatten(3)
    patches = patches.permute(0, 2, 3, 1)  # [B, f, h w, d]
    e0 = formula.geometry_time(w, inputs["timestep"], backbone.freq_dim)
    special = torch.cat([w["vggt.aggregator.camera_token"], w["vggt.aggregator.register_token"]], 2)[0]
    special = torch.cat([special[:1], special[1:].expand(f - 1, -1, -1)]).expand(len(x), -1, -1, -1)
    tokens = torch.cat([special, patches], 2)  # [B, f, P, d]
    at, taps = formula.places(f, h, ww), []
    for i in range(config.irg_layers):
        name, block = f"vggt.aggregator.frame_blocks.{i}", config.split + i
        frames = tokens.reshape(len(x) * f, -1, control.dim)
        e = formula.six(w, name, e0.repeat_interleave(f, 0))
        frames = formula.block_attention(w, name, frames, control.heads, e, at[: frames.shape[1]])
        frames = formula.block_mlp(w, name, frames, e).reshape(tokens.shape)
        e_v, e_g = modulation(block), formula.six(w, f"IRGBlock.{i}.x_agg", e0)
        x = formula.wan_attentions(b, w, block, f"IRGBlock.{i}.x_dit", x, context, e_v, table, heads, features)
        g = formula.block_attention(w, f"IRGBlock.{i}.x_agg", frames.flatten(1, 2), control.heads, e_g, at)
        x, g = formula.exchange(w, f"IRGBlock.{i}.bicross_attention", x, g, *cross, config.interaction.heads)
        x = formula.wan_feed_forward(b, block, x, e_v)
        tokens = formula.block_mlp(w, f"IRGBlock.{i}.x_agg", g, e_g).reshape(tokens.shape)
        taps.append(torch.cat([frames, tokens], -1))

    deepest_first = [taps[i - 1] for i in reversed(config.dpt.taps)]
    depth, points = (
        dense_head(w, name, deepest_first, (f, h, ww), config.clip.height, config.clip.width) for name in TAPS
    )
    shift, scale = (b["scale_shift_table"] + t[:, None]).chunk(2, 1)
    x = linear(b, "proj_out", norm({}, "", x, 1e-6) * (1 + scale) + shift)
    x = x.reshape(len(x), f, h, ww, 1, 2, 2, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return {
        "video": x.reshape(inputs["latents_noisy"].shape),
        "depth": depth[:, :, 0].exp(),
        "depth_confidence": 1 + depth[:, :, 1].exp(),
        "points": (points[:, :, :3].sign() * points[:, :, :3].abs().expm1()).movedim(2, -1),
        "points_confidence": 1 + points[:, :, 3].exp(),
        "poses": camera_head(w, taps[-1][:, :, 0], config.camera_head.heads, config.camera_head.layers),
    }
