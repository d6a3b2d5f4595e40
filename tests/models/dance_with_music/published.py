"""The published networks in plain torch: forward passes over state dicts, under the names of the published files.

Sources of the formulas: Stable Diffusion's UNet (arXiv 2112.10752), AnimateDiff (2307.04725), CHAMP (2403.14781),
Stable Video Diffusion (2311.15127), StableAnimator (2411.17697) and their code.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F


def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def conv(w, name, x, stride=1, padding=1):
    return F.conv2d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), stride, padding)


def group(w, name, x, groups, eps):
    """Statistics over (C / groups, all that follows) of each row of ``x``."""
    rows = x.reshape(len(x), groups, -1)
    mean, var = rows.mean(-1, keepdim=True), rows.var(-1, correction=0, keepdim=True)
    shape = (1, -1) + (1,) * (x.ndim - 2)
    normed = ((rows - mean) / (var + eps).sqrt()).reshape(x.shape)
    return normed * w[f"{name}.weight"].view(shape) + w[f"{name}.bias"].view(shape)


def layer(w, name, x):
    mean, var = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def silu(x):
    return x * x.sigmoid()


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def read(q, k, v, heads):
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def attention(w, name, x, context, heads):
    q, k, v = (linear(w, f"{name}.to_{part}", y) for part, y in (("q", x), ("k", context), ("v", context)))
    return linear(w, f"{name}.to_out.0", read(q, k, v, heads))


def feed_forward(w, name, x):
    value, gate = linear(w, f"{name}.net.0.proj", x).chunk(2, -1)
    return linear(w, f"{name}.net.2", value * gelu(gate))


def sinusoid(x, dim):
    """Cosines, then sines."""
    angles = x.float()[..., None] * torch.exp(-math.log(10000) * torch.arange(dim // 2) / (dim // 2))
    return torch.cat([angles.cos(), angles.sin()], -1)


def embed(w, name, x):
    x = x.to(w[f"{name}.linear_1.weight"].dtype)
    return linear(w, f"{name}.linear_2", silu(linear(w, f"{name}.linear_1", x)))


def to_tokens(x):
    return x.flatten(2).transpose(1, 2)


def to_picture(x, like):
    return x.transpose(1, 2).reshape(like.shape)


def resnet(w, name, x, temb, groups, eps):
    y = conv(w, f"{name}.conv1", silu(group(w, f"{name}.norm1", x, groups, eps)))
    y = y + linear(w, f"{name}.time_emb_proj", silu(temb))[:, :, None, None]
    y = conv(w, f"{name}.conv2", silu(group(w, f"{name}.norm2", y, groups, eps)))
    return y + (conv(w, f"{name}.conv_shortcut", x, padding=0) if f"{name}.conv_shortcut.weight" in w else x)


def there(w, name):
    return any(key.startswith(f"{name}.") for key in w)


def levels(w, x, resnet, behind):
    """The UNet's way: ``resnet(name, x)``, and what is ``behind(block, number, x)`` each."""
    skips, i = [x], 0
    while there(w, block := f"down_blocks.{i}"):
        for j in range(sum(there(w, f"{block}.resnets.{n}") for n in range(9))):
            x = behind(block, j, resnet(f"{block}.resnets.{j}", x))
            skips.append(x)
        if there(w, f"{block}.downsamplers"):
            x = conv(w, f"{block}.downsamplers.0.conv", x, stride=2)
            skips.append(x)
        i += 1
    x = resnet("mid_block.resnets.1", behind("mid_block", 0, resnet("mid_block.resnets.0", x)))
    i = 0
    while there(w, block := f"up_blocks.{i}"):
        for j in range(sum(there(w, f"{block}.resnets.{n}") for n in range(9))):
            x = behind(block, j, resnet(f"{block}.resnets.{j}", torch.cat([x, skips.pop()], 1)))
        if there(w, f"{block}.upsamplers"):
            x = conv(w, f"{block}.upsamplers.0.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        i += 1
    return x


def motion_module(w, name, x, frames, heads, groups):
    """AnimateDiff's, ``x`` ``[B T, C, h, w]``: every frame is normalised by itself; then pixels attend over time."""
    (_, c, height, width), root = x.shape, f"{name}.temporal_transformer"
    y = linear(w, f"{root}.proj_in", to_tokens(group(w, f"{root}.norm", x, groups, 1e-6)))
    y = y.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)  # [B h w, T, C]
    block = f"{root}.transformer_blocks.0"
    places = torch.arange(frames)[:, None] * torch.exp(torch.arange(0, c, 2) * (-math.log(10000.0) / c))
    places = torch.stack([places.sin(), places.cos()], -1).flatten(1)
    for k in range(2):
        z = layer(w, f"{block}.norms.{k}", y) + places
        y = y + attention(w, f"{block}.attention_blocks.{k}", z, z, heads)
    y = y + feed_forward(w, f"{block}.ff", layer(w, f"{block}.ff_norm", y))
    y = y.unflatten(0, (-1, height * width)).transpose(1, 2).flatten(0, 1)
    return x + to_picture(linear(w, f"{root}.proj_out", y), x)


def spatial(w, name, x, context, heads, groups, bank, taken):
    """SD's transformer; ``bank`` of the reference as further keys and values, ``taken`` is filled as CHAMP's writer."""
    y = to_tokens(conv(w, f"{name}.proj_in", group(w, f"{name}.norm", x, groups, 1e-6), padding=0))
    block = f"{name}.transformer_blocks.0"
    z = layer(w, f"{block}.norm1", y)
    taken[name] = z
    source = torch.cat([z, bank[name].repeat_interleave(len(z) // len(bank[name]), 0)], 1) if bank else z
    y = y + attention(w, f"{block}.attn1", z, source, heads)
    y = y + attention(w, f"{block}.attn2", layer(w, f"{block}.norm2", y), context, heads)
    y = y + feed_forward(w, f"{block}.ff", layer(w, f"{block}.norm3", y))
    return x + conv(w, f"{name}.proj_out", to_picture(y, x), padding=0)


def champ(w, x, level, clip, heads, groups, guidance=None, bank=None):
    """CHAMP's denoising or reference UNet: ``x`` ``[B, T, 4, h, w]``, ``level`` ``[B]``, ``clip`` ``[B, 1, D]``.
    Returns v and, by transformer, the tokens that enter its self-attention."""
    frames, taken = x.shape[1], {}
    temb = embed(w, "time_embedding", sinusoid(level, w["conv_in.weight"].shape[0])).repeat_interleave(frames, 0)
    context = clip.repeat_interleave(frames, 0)

    def behind(block, j, y):
        if there(w, name := f"{block}.attentions.{j}"):
            y = spatial(w, name, y, context, heads, groups, bank, taken)
        if there(w, name := f"{block}.motion_modules.{j}"):
            y = motion_module(w, name, y, frames, heads, groups)
        return y

    y = conv(w, "conv_in", x.flatten(0, 1))
    y = y if guidance is None else y + guidance.flatten(0, 1)
    y = levels(w, y, lambda name, y: resnet(w, name, y, temb, groups, 1e-5), behind)
    y = conv(w, "conv_out", silu(group(w, "conv_norm_out", y, groups, 1e-5)))
    return y.unflatten(0, (-1, frames)), taken


def guidance_encoder(w, x, heads):
    """CHAMP's: ``[N, 3, H, W]`` in 0..1; of its transformers only the last is called."""
    x = silu(conv(w, "conv_in", x))
    for i in range(6):
        x = silu(conv(w, f"blocks.{i}", x, stride=1 + i % 2))
    name = "attentions.5"
    y = to_tokens(conv(w, f"{name}.proj_in", group(w, f"{name}.norm", x, 32, 1e-6), padding=0))
    block = f"{name}.transformer_blocks.0"
    z = layer(w, f"{block}.norm1", y)
    y = y + attention(w, f"{block}.attn1", z, z, heads)
    y = y + feed_forward(w, f"{block}.ff", layer(w, f"{block}.norm3", y))
    return conv(w, "conv_out", x + conv(w, f"{name}.proj_out", to_picture(y, x), padding=0))


def pose_net(w, x):
    """StableAnimator's: ``[N, 3, H, W]`` in -1..1."""
    for i in range(8):
        x = silu(conv(w, f"conv_layers.{2 * i}", x, stride=2 if i in (1, 3, 5) else 1))
    return conv(w, "final_proj", x, padding=0) * w["scale"]


def face_encoder(w, face, clip, heads, tokens=4):
    """StableAnimator's: ArcFace's vector ``[B, 512]`` and CLIP's embedding ``[B, 1, D]`` -> ``[B, 4, D]``."""
    y = linear(w, "proj.2", gelu(linear(w, "proj.0", face))).unflatten(-1, (tokens, -1))
    y, x = layer(w, "norm", y), linear(w, "fusion_model.proj_in", clip)
    i = 0
    while there(w, name := f"fusion_model.layers.{i}"):
        z = layer(w, f"{name}.0.norm2", y)
        k, v = linear(w, f"{name}.0.to_kv", torch.cat([layer(w, f"{name}.0.norm1", x), z], 1)).chunk(2, -1)
        y = y + linear(w, f"{name}.0.to_out", read(linear(w, f"{name}.0.to_q", z), k, v, heads))
        y = y + linear(w, f"{name}.1.3", gelu(linear(w, f"{name}.1.1", layer(w, f"{name}.1.0", y))))
        i += 1
    return layer(w, "fusion_model.norm_out", linear(w, "fusion_model.proj_out", y))


def identity_attention(w, name, x, context, tokens, heads):
    """StableAnimator's cross-attention: what is read of the face, moved to mean and deviation of what is read of the
    picture, over tokens and channels of each frame."""
    q = linear(w, f"{name}.to_q", x)
    z = read(q, linear(w, f"{name}.to_k", context), linear(w, f"{name}.to_v", context), heads)
    k, v = (linear(w, f"{name}.processor.id_to_{part}", tokens) for part in "kv")
    face, dims = read(q, k, v, heads), {"dim": (1, 2), "keepdim": True}
    face = (face - face.mean(**dims)) * (z.std(**dims) / (face.std(**dims) + 1e-5)) + z.mean(**dims)
    return linear(w, f"{name}.to_out.0", z + face)


def video_resnet(w, name, x, temb, frames, eps):
    """SVD's: a resnet in space, then one over time, whose norms see the whole clip, and a learned mean of both."""
    x = resnet(w, f"{name}.spatial_res_block", x, temb, 32, eps)
    root = f"{name}.temporal_res_block"
    clip = x.unflatten(0, (-1, frames)).transpose(1, 2)
    y = clip
    for k in (1, 2):
        y = silu(group(w, f"{root}.norm{k}", y, 32, eps))
        y = F.conv3d(y, w[f"{root}.conv{k}.weight"], w[f"{root}.conv{k}.bias"], padding=(1, 0, 0))
        if k == 1:
            added = linear(w, f"{root}.time_emb_proj", silu(temb)).unflatten(0, (-1, frames))
            y = y + added.transpose(1, 2)[..., None, None]
    alpha = w[f"{name}.time_mixer.mix_factor"].sigmoid()
    return (alpha * clip + (1 - alpha) * (clip + y)).transpose(1, 2).flatten(0, 1)


def video_transformer(w, name, x, clip, tokens, heads, frames):
    """SVD's with StableAnimator's face: ``clip`` ``[B, 1, D]`` and face ``tokens`` ``[B, 4, D]``, which attention over
    time does not see."""
    c, pixels = x.shape[1], x.shape[2] * x.shape[3]
    y = linear(w, f"{name}.proj_in", to_tokens(group(w, f"{name}.norm", x, 32, 1e-6)))
    block, over = f"{name}.transformer_blocks.0", partial(torch.repeat_interleave, repeats=frames, dim=0)
    z = layer(w, f"{block}.norm1", y)
    y = y + attention(w, f"{block}.attn1", z, z, heads)
    z = layer(w, f"{block}.norm2", y)
    y = y + identity_attention(w, f"{block}.attn2", z, over(clip), over(tokens), heads)
    y = y + feed_forward(w, f"{block}.ff", layer(w, f"{block}.norm3", y))
    places = embed(w, f"{name}.time_pos_embed", sinusoid(torch.arange(frames), c)).repeat(len(clip), 1)
    t = (y + places[:, None]).unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)  # [B h w, T, C]
    block = f"{name}.temporal_transformer_blocks.0"
    t = t + feed_forward(w, f"{block}.ff_in", layer(w, f"{block}.norm_in", t))
    z = layer(w, f"{block}.norm1", t)
    t = t + attention(w, f"{block}.attn1", z, z, heads)
    z = layer(w, f"{block}.norm2", t)
    t = t + attention(w, f"{block}.attn2", z, clip.repeat_interleave(pixels, 0), heads)
    t = t + feed_forward(w, f"{block}.ff", layer(w, f"{block}.norm3", t))
    t = t.unflatten(0, (-1, pixels)).transpose(1, 2).flatten(0, 1)
    alpha = w[f"{name}.time_mixer.mix_factor"].sigmoid()
    return x + to_picture(linear(w, f"{name}.proj_out", alpha * y + (1 - alpha) * t), x)


def stable_animator(w, x, level, reference, clip, tokens, guidance, heads):
    """``x`` ``[B, T, 4, h, w]`` divided by sqrt(sigma^2 + 1), ``level`` 0.25 ln sigma, ``reference`` ``[B, 4, h, w]``
    unscaled, ``clip`` ``[B, 1, D]``, ``tokens`` ``[B, 4, D]``, ``guidance`` ``[B, T, C, h, w]``; ``heads`` by level."""
    (b, frames), width = x.shape[:2], w["conv_in.weight"].shape[0]
    ids = sinusoid(torch.tensor([6.0, 127.0, 0.02]), 256).reshape(1, -1)
    temb = embed(w, "time_embedding", sinusoid(level, width)) + embed(w, "add_embedding", ids)
    temb = temb.repeat_interleave(frames, 0)

    def level_of(name):
        kind, number, *_ = name.split(".")
        return -1 if kind == "mid_block" else int(number) if kind == "down_blocks" else -1 - int(number)

    def eps(name):
        """1e-6 in up blocks and in down blocks with attention, 1e-5 elsewhere (StableAnimator's code)."""
        block = ".".join(name.split(".")[:2])
        return 1e-6 if block.startswith("up") or there(w, f"{block}.attentions") else 1e-5

    def behind(block, j, y):
        name = f"{block}.attentions.{j}"
        return video_transformer(w, name, y, clip, tokens, heads[level_of(name)], frames) if there(w, name) else y

    y = torch.cat([x, reference[:, None].expand(-1, frames, -1, -1, -1)], 2).flatten(0, 1)
    y = conv(w, "conv_in", y) + guidance.flatten(0, 1)
    y = levels(w, y, lambda name, y: video_resnet(w, name, y, temb, frames, eps(name)), behind)
    return conv(w, "conv_out", silu(group(w, "conv_norm_out", y, 32, 1e-5))).unflatten(0, (b, frames))
