"""Weights that others publish: every name of their modules, shapes included, is one of ours, at full size.

The lists are written out from the architectures: CHAMP's guidance encoder, AnimateDiff's motion modules (version 2) and
StableAnimator's PoseNet, face encoder and identity adapters.
"""

import math
from functools import partial

import pytest

from stagecoach.models.dance_with_music.base import expected_shapes
from stagecoach.models.dance_with_music.champ.unet import image_base
from stagecoach.models.dance_with_music.config import SIZES
from stagecoach.models.dance_with_music.svd.unet import svd_base
from stagecoach.models.dance_with_music.weight_names import (
    denoiser_name,
    guidance_name,
    identity_name,
    motion_name,
    own_name,
    reference_name,
)

CHAMP, SVD = SIZES["champ-sd15"], SIZES["svd-xt"]
SKELETON = CHAMP.model_copy(update={"guidance": CHAMP.guidance.model_copy(update={"types": ("skeleton",)})})


def linear(name, inputs, outputs, bias=True, kernel=()):
    return {f"{name}.weight": (outputs, inputs, *kernel)} | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def attention(name, width):
    out = linear(f"{name}.to_out.0", width, width)
    for part in ("to_q", "to_k", "to_v"):
        out |= linear(f"{name}.{part}", width, width, bias=False)
    return out


def feed_forward(name, width):
    return linear(f"{name}.net.0.proj", width, 8 * width) | linear(f"{name}.net.2", 4 * width, width)


def champ_transformer(name, width):
    block = f"{name}.transformer_blocks.0"
    return {
        **norm(f"{name}.norm", width),
        **linear(f"{name}.proj_in", width, width, kernel=(1, 1)),
        **attention(f"{block}.attn1", width),
        **norm(f"{block}.norm1", width),
        **norm(f"{block}.norm3", width),
        **feed_forward(f"{block}.ff", width),
        **linear(f"{name}.proj_out", width, width, kernel=(1, 1)),
    }


def champ_guidance(widths=(16, 32, 96, 256)):
    """``guidance_encoder_<type>.pth``: the transformers but ``attentions.5`` are never called."""
    out = linear("conv_in", 3, widths[0], kernel=(3, 3))
    for i in range(len(widths) - 1):
        a, b = widths[i], widths[i + 1]
        out |= linear(f"blocks.{2 * i}", a, a, kernel=(3, 3)) | linear(f"blocks.{2 * i + 1}", a, b, kernel=(3, 3))
        out |= champ_transformer(f"attentions.{2 * i}", a) | champ_transformer(f"attentions.{2 * i + 1}", b)
    return (
        out | champ_transformer("guidance_attention", widths[-1]) | linear("conv_out", widths[-1], 320, kernel=(3, 3))
    )


def animatediff(prefix=""):
    """``mm_sd_v15_v2.ckpt``: a module behind each of 2 resnets down and 3 up, and in the middle."""
    widths = CHAMP.unet.widths
    places = {f"down_blocks.{i}.motion_modules.{j}": width for i, width in enumerate(widths) for j in range(2)}
    places |= {f"up_blocks.{i}.motion_modules.{j}": width for i, width in enumerate(widths[::-1]) for j in range(3)}
    places["mid_block.motion_modules.0"] = widths[-1]
    out = {}
    for place, width in places.items():
        root = f"{prefix}{place}.temporal_transformer"
        block = f"{root}.transformer_blocks.0"
        out |= norm(f"{root}.norm", width) | linear(f"{root}.proj_in", width, width)
        for i in range(2):
            out |= attention(f"{block}.attention_blocks.{i}", width) | norm(f"{block}.norms.{i}", width)
            out[f"{block}.attention_blocks.{i}.pos_encoder.pe"] = (1, 32, width)
        out |= feed_forward(f"{block}.ff", width) | norm(f"{block}.ff_norm", width)
        out |= linear(f"{root}.proj_out", width, width)
    return out


def pose_net():
    """``pose_net.pth``: a SiLU behind each convolution."""
    convolutions = (
        (3, 3, 3),
        (3, 16, 4),
        (16, 16, 3),
        (16, 32, 4),
        (32, 32, 3),
        (32, 64, 4),
        (64, 64, 3),
        (64, 128, 3),
    )
    out = {}
    for i, (a, b, kernel) in enumerate(convolutions):
        out |= linear(f"conv_layers.{2 * i}", a, b, kernel=(kernel, kernel))
    return out | linear("final_proj", 128, 320, kernel=(1, 1)) | {"scale": (1,)}


def face_encoder(dim=1024):
    """``face_encoder.pth``."""
    out = linear("proj.0", 512, 1024) | linear("proj.2", 1024, 4 * dim) | norm("norm", dim)
    for i in range(4):
        attn, ff = (f"fusion_model.layers.{i}.{j}" for j in range(2))
        out |= norm(f"{attn}.norm1", dim) | norm(f"{attn}.norm2", dim) | norm(f"{ff}.0", dim)
        for name, a, b in (
            (f"{attn}.to_q", dim, dim),
            (f"{attn}.to_kv", dim, 2 * dim),
            (f"{attn}.to_out", dim, dim),
            (f"{ff}.1", dim, 4 * dim),
            (f"{ff}.3", 4 * dim, dim),
        ):
            out |= linear(name, a, b, bias=False)
    return (
        out
        | linear("fusion_model.proj_in", dim, dim)
        | linear("fusion_model.proj_out", dim, dim)
        | norm("fusion_model.norm_out", dim)
    )


def identity(config):
    """Of ``unet.pth``: two layers in the spatial cross-attention of each of the 16 transformers."""
    unet = config.unet
    places = {f"down_blocks.{i}.attentions.{j}": unet.widths[i] for i in range(3) for j in range(2)}
    places |= {f"up_blocks.{i}.attentions.{j}": unet.widths[3 - i] for i in range(1, 4) for j in range(3)}
    places["mid_block.attentions.0"] = unet.widths[-1]
    out = {}
    for place, width in places.items():
        for part in "kv":
            layer = f"{place}.transformer_blocks.0.attn2.processor.id_to_{part}"
            out |= linear(layer, unet.cross_dim, width, bias=False)
    return out


def unet(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def without_tail(shapes):
    return {name: shape for name, shape in shapes.items() if not name.startswith(("conv_norm_out", "conv_out"))}


def total(shapes):
    return sum(map(math.prod, shapes.values()))


SD = unet(image_base(CHAMP))
SKELETON_NAMES = set(expected_shapes(SKELETON)["guidance.skeleton"])
CASES = {
    "CHAMP denoising_unet.pth": (CHAMP, "denoising_unet", SD, denoiser_name),
    "CHAMP reference_unet.pth": (CHAMP, "reference_unet", without_tail(SD), reference_name),
    "Stable Diffusion unet/": (CHAMP, "reference_unet", SD, reference_name),
    "CHAMP motion_module.pth": (CHAMP, "motion", animatediff(), motion_name),
    "AnimateDiff mm_sd_v15_v2.ckpt": (CHAMP, "motion", animatediff("module."), motion_name),
    "CHAMP guidance_encoder_dwpose.pth": (
        SKELETON,
        "guidance.skeleton",
        champ_guidance(),
        partial(guidance_name, kind="skeleton", ours=SKELETON_NAMES),
    ),
    "StableAnimator unet.pth": (SVD, "denoising_unet", unet(svd_base(SVD.unet)) | identity(SVD), denoiser_name),
    "StableAnimator unet.pth, identity": (
        SVD,
        "identity_adapter",
        unet(svd_base(SVD.unet)) | identity(SVD),
        identity_name,
    ),
    "StableAnimator pose_net.pth": (
        SVD,
        "guidance.pose_net",
        pose_net(),
        partial(guidance_name, kind="pose_net", ours=set()),
    ),
    "StableAnimator face_encoder.pth": (SVD, "face_tokens", face_encoder(), partial(own_name, module="face_tokens")),
}


@pytest.mark.parametrize("case", CASES)
def test_every_published_name_and_shape_is_one_of_ours(case):
    config, part, published, rename = CASES[case]
    renamed = [(rename(name), shape) for name, shape in published.items()]
    found = [(name, shape) for name, shape in renamed if name is not None]
    assert len(dict(found)) == len(found)
    assert dict(found) == expected_shapes(config)[part]


def test_the_written_lists_have_the_published_counts():
    tables = {name: shape for name, shape in animatediff().items() if not name.endswith(".pe")}
    assert (total(tables), total(champ_guidance()), total(pose_net()), total(face_encoder())) == (
        453_209_280,
        3_833_136,
        205_557,
        57_183_232,
    )
    assert (total(identity(SVD)), total(identity(CHAMP))) == (25_559_040, 19_169_280)
    assert (total(SD), total(unet(svd_base(SVD.unet)))) == (859_520_964, 1_524_623_082)


def test_what_is_left_out_is_dead_or_computed():
    """CHAMP's transformers that its forward never calls: 1,562,400 parameters; positions; the unused output."""
    left = {
        name: shape
        for name, shape in champ_guidance().items()
        if guidance_name(name, kind="skeleton", ours=SKELETON_NAMES) is None
    }
    assert total(left) == 1_562_400
    assert all(motion_name(name) is not None for name in animatediff() if not name.endswith("pos_encoder.pe"))


@pytest.mark.parametrize(
    ("rename", "name"),
    [
        (denoiser_name, "conv_in.weight"),
        (reference_name, "conv_in.weight"),
        (identity_name, "mid_block.attentions.0.transformer_blocks.0.attn2.processor.id_to_k.weight"),
        (motion_name, "mid_block.motion_modules.0.norm.weight"),
        (partial(own_name, module="m2p"), "confidence.bias"),
        (partial(guidance_name, kind="pose", ours=set()), "conv_in.weight"),
    ],
)
def test_what_training_saved_has_the_modules_name_in_front(rename, name):
    module = {reference_name: "reference_unet"}.get(rename, "denoising_unet")
    if isinstance(rename, partial):
        module = "m2p" if rename.func is own_name else "guidance.encoders.pose"
    assert rename(f"{module}.{name}") == rename(name) == name
