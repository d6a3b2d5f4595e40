"""What FantasyWorld's published code computes, as formulas on its weights: plain torch, with the names of its file.

``w`` holds its weights, ``b`` those of Wan2.1 under diffusers' names. Nothing here is of the modules under test.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def norm(w: Weights, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w.get(f"{name}.weight"), w.get(f"{name}.bias"), eps)


def rms(x: Tensor, gain: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * gain


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``[B, heads, N, d]`` -> ``[B, N, heads d]``."""
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


# --- VGGT's blocks ---


def places(f: int, h: int, w: int, extra: int = 5) -> Tensor:
    """Row and column of each token of the geometry stream: 0 for special tokens, from 1 for patches."""
    frame = [[0, 0]] * extra + [[y + 1, x + 1] for y in range(h) for x in range(w)]
    return torch.tensor(frame * f, dtype=torch.float64)


def turn_by_place(x: Tensor, at: Tensor) -> Tensor:
    out, quarter = x.clone(), x.shape[-1] // 4
    for axis in (0, 1):
        for i in range(quarter):
            angle = at[:, axis] * 100 ** (-i / quarter)
            cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
            first, second = axis * 2 * quarter + i, axis * 2 * quarter + quarter + i
            out[..., first] = x[..., first] * cos - x[..., second] * sin
            out[..., second] = x[..., second] * cos + x[..., first] * sin
    return out


def six(w: Weights, name: str, e0: Tensor) -> tuple[Tensor, ...]:
    return (w[f"{name}.modulation"] + e0).chunk(6, dim=1)


def block_attention(w: Weights, name: str, x: Tensor, heads: int, e: tuple | None = None, at: Tensor | None = None):
    normed = norm(w, f"{name}.norm1", x)
    if e is not None:
        normed = normed * (1 + e[1]) + e[0]
    q, k, v = (split(part, heads) for part in linear(w, f"{name}.attn.qkv", normed).chunk(3, -1))
    if f"{name}.attn.q_norm.weight" in w:
        q, k = norm(w, f"{name}.attn.q_norm", q), norm(w, f"{name}.attn.k_norm", k)
    if at is not None:
        q, k = turn_by_place(q, at), turn_by_place(k, at)
    return x + linear(w, f"{name}.attn.proj", attend(q, k, v)) * w[f"{name}.ls1.gamma"]


def block_mlp(w: Weights, name: str, x: Tensor, e: tuple | None = None) -> Tensor:
    inner = linear(w, f"{name}.mlp.fc2", F.gelu(linear(w, f"{name}.mlp.fc1", norm(w, f"{name}.norm2", x))))
    if e is None:
        return x + inner * w[f"{name}.ls2.gamma"]
    return x + (inner * (1 + e[4]) + e[3]) * w[f"{name}.ls2.gamma"] * e[5]


def sinusoid(timestep: Tensor, dim: int) -> Tensor:
    angle = torch.outer(timestep.double(), 10000 ** (-torch.arange(dim // 2).double() / (dim // 2)))
    return torch.cat([angle.cos(), angle.sin()], 1)


def geometry_time(w: Weights, timestep: Tensor, dim: int) -> Tensor:
    x = sinusoid(timestep, dim).to(w["vggt.time_embedding.0.weight"].dtype)
    x = linear(w, "vggt.time_embedding.2", F.silu(linear(w, "vggt.time_embedding.0", x)))
    return linear(w, "vggt.time_projection.1", F.silu(x)).unflatten(1, (6, -1))


# --- Wan2.1 and the exchange ---


def turns(dim: int, f: int, h: int, w: int, extra: int = 0) -> Tensor:
    """Wan's 3-D rotation as complex numbers ``[T, dim / 2]``; ones for ``extra`` tokens before each frame."""
    sizes, parts = (dim - 2 * (dim // 3), dim // 3, dim // 3), []
    for axis, (size, count) in enumerate(zip(sizes, (f, h, w), strict=True)):
        angle = torch.outer(torch.arange(count).double(), 10000 ** (-torch.arange(0, size, 2).double() / size))
        shape = [1, 1, 1, -1]
        shape[axis] = count
        parts.append(torch.polar(torch.ones_like(angle), angle).view(shape).expand(f, h, w, -1))
    table = torch.cat(parts, -1).flatten(1, 2)
    return torch.cat([table.new_ones(f, extra, dim // 2), table], 1).flatten(0, 1)


def turn(x: Tensor, table: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)


def wan_attentions(b: Weights, w: Weights, i: int, place: str, x, context, e, table, heads, features):
    """Both attentions of block ``i``; ``place`` is its name in the published file, ``features`` the cameras'."""
    name = f"blocks.{i}"
    normed = norm({}, "", x, 1e-6) * (1 + e[1]) + e[0]
    q, k = (rms(linear(b, f"{name}.attn1.to_{p}", normed), b[f"{name}.attn1.norm_{p}.weight"]) for p in ("q", "k"))
    q, k, v = (split(part, heads) for part in (q, k, linear(b, f"{name}.attn1.to_v", normed)))
    x = x + e[2] * linear(b, f"{name}.attn1.to_out.0", attend(turn(q, table), turn(k, table), v))
    cross = f"{name}.attn2"
    picture, text = context[:, :257], context[:, 257:]
    query = split(
        rms(linear(b, f"{cross}.to_q", norm(b, f"{name}.norm2", x, 1e-6)), b[f"{cross}.norm_q.weight"]), heads
    )
    mixed = 0
    for states, key, value, gain in (
        (text, "to_k", "to_v", "norm_k"),
        (picture, "add_k_proj", "add_v_proj", "norm_added_k"),
    ):
        k = split(rms(linear(b, f"{cross}.{key}", states), b[f"{cross}.{gain}.weight"]), heads)
        mixed = mixed + attend(query, k, split(linear(b, f"{cross}.{value}", states), heads))
    if f"{place}.cross_attn.processor.v_proj.group2.0.weight" in w:
        mixed = mixed + camera_shift(w, f"{place}.cross_attn.processor", mixed, features)
    return x + linear(b, f"{cross}.to_out.0", mixed)


def wan_feed_forward(b: Weights, i: int, x: Tensor, e: tuple) -> Tensor:
    normed = norm({}, "", x, 1e-6) * (1 + e[4]) + e[3]
    inner = F.gelu(linear(b, f"blocks.{i}.ffn.net.0.proj", normed), approximate="tanh")
    return x + e[5] * linear(b, f"blocks.{i}.ffn.net.2", inner)


def exchange(w: Weights, name: str, x_v: Tensor, x_g: Tensor, turns_v: Tensor, turns_g: Tensor, heads: int):
    cross = f"{name}.cross_attn"
    n_v, n_g = norm({}, "", x_v, 1e-6), norm({}, "", x_g, 1e-6)
    q = turn(split(linear(w, f"{cross}.m1_proj", n_v), heads), turns_v)
    k = turn(split(linear(w, f"{cross}.m2_proj", n_g), heads), turns_g)
    values_v, values_g = (split(linear(w, f"{cross}.values_{m}_proj", n), heads) for m, n in (("m1", n_v), ("m2", n_g)))
    to_v = linear(w, f"{cross}.out_m1_proj", attend(q, k, values_g))
    to_g = linear(w, f"{cross}.out_m2_proj", attend(k, q, values_v))
    return x_v + w[f"{name}.gamma_m1"] * to_v, x_g + w[f"{name}.gamma_m2"] * to_g


# --- Cameras ---


def rays(extrinsics: Tensor, intrinsics: Tensor, height: int, width: int) -> Tensor:
    """``[B, F, H, W, 6]``. The fields of view give focal lengths in pixels and the image's middle; these are taken for
    fractions of the image and multiplied by its size."""
    fx, fy = intrinsics[..., 0] * width, intrinsics[..., 1] * height
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    x = (u.to(fx) - width / 2 * width) / fx[..., None, None]
    y = (v.to(fx) - height / 2 * height) / fy[..., None, None]
    camera = torch.stack([x, y, torch.ones_like(x)], -1)
    camera = camera / camera.norm(dim=-1, keepdim=True)
    bottom = torch.tensor([0.0, 0, 0, 1]).to(extrinsics).expand(*extrinsics.shape[:2], 1, 4)
    pose = torch.linalg.inv(torch.cat([extrinsics, bottom], 2))
    d = torch.einsum("bfij,bfhwj->bfhwi", pose[..., :3, :3], camera)
    o = pose[..., None, None, :3, 3].expand_as(d)
    return torch.cat([torch.linalg.cross(o, d), d], -1)


def camera_features(w: Weights, plucker: Tensor) -> Tensor:
    name, batch = "camera_condition.pose_encoder", len(plucker)

    def conv(x, layer):
        return F.conv2d(x, w[f"{name}.{layer}.weight"], w[f"{name}.{layer}.bias"])

    def group(x, layer):
        return F.group_norm(x, 2, w[f"{name}.{layer}.weight"], w[f"{name}.{layer}.bias"])

    def compress(x):
        x = x.unflatten(0, (batch, -1))
        return torch.cat([x[:, :1], (x[:, 1::2] + x[:, 2::2]) / 2], 1).flatten(0, 1)

    x = F.pixel_unshuffle(plucker.flatten(0, 1).permute(0, 3, 1, 2), 8)
    first, second = "controlnet_encode_first", "controlnet_encode_second"
    x = group(conv(group(conv(x, f"{first}.0"), f"{first}.1"), f"{first}.2"), f"{first}.3")
    x = compress(F.relu(x))
    x = compress(F.relu(group(conv(x, f"{second}.0"), f"{second}.1")))
    x = x.unflatten(0, (batch, -1)).transpose(1, 2)
    patch = f"{name}.patch_embedding"
    x = F.conv3d(x, w[f"{patch}.weight"], w[f"{patch}.bias"], stride=(1, 2, 2)).flatten(2).transpose(1, 2)
    x = F.gelu(norm(w, f"{name}.fc.1", linear(w, f"{name}.fc.0", x)))
    return norm(w, f"{name}.fc.4", linear(w, f"{name}.fc.3", x))


def camera_shift(w: Weights, name: str, mixed: Tensor, features: Tensor) -> Tensor:
    """None for samples whose features are all zeros: their camera is withheld."""
    video = linear(w, f"{name}.k_proj.group2.2", F.relu(linear(w, f"{name}.k_proj.group2.0", mixed)))
    both = linear(w, f"{name}.k_proj.group1", features) + video
    shift = linear(w, f"{name}.v_proj.group2.2", F.relu(linear(w, f"{name}.v_proj.group2.0", both)))
    given = [bool(sample.any()) for sample in features]
    return torch.stack([one if shown else torch.zeros_like(one) for one, shown in zip(shift, given, strict=True)])
