"""Initial weights, part by part: published, our own of an earlier run, copies, or random numbers."""

from collections.abc import Container, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stagecoach.models.common.materialise import (
    OnLoaded,
    Parts,
    RandomWeights,
    Rename,
    SafetensorsFolder,
    Shapes,
    WeightFile,
    WeightSource,
    check_config,
    load_base,
    needs,
    put,
)
from stagecoach.models.dance_with_music.champ.reference import ReferenceNet
from stagecoach.models.dance_with_music.champ.unet import image_base, motion_base
from stagecoach.models.dance_with_music.config import DanceConfig
from stagecoach.models.dance_with_music.guidance.types import GuidanceBank
from stagecoach.models.dance_with_music.identity.face_tokens import FaceTokens
from stagecoach.models.dance_with_music.music_to_pose.model import MusicToPose
from stagecoach.models.dance_with_music.network import DanceNetwork
from stagecoach.models.dance_with_music.svd.unet import svd_base
from stagecoach.models.dance_with_music.weight_names import (
    IDENTITY,
    MOTION,
    denoiser_name,
    guidance_name,
    identity_name,
    motion_name,
    own_name,
    reference_name,
)

OWN = ("m2p", "face_tokens", "guidance")
"""Parts of our own, which a file may be given for."""


class RandomMotion(RandomWeights):
    """Motion modules that change nothing: their last layer is zero. diffusers' own is not."""

    def read(self, name: str) -> Tensor:
        return torch.zeros(self.expected[name]) if ".proj_out." in name else super().read(name)


def fill_base(
    network: DanceNetwork, config: DanceConfig, device: torch.device | str, on_loaded: OnLoaded | None = None
) -> str:
    """Put the weights of all parts in place; see ``Family.load_base``. The sha256 stands for all files that
    ``config.weights`` names but the helpers', and is the same in every stage."""
    sources = open_base(config)
    for part, source in sources.parts.items():
        module = part.replace("guidance.", "guidance.encoders.")
        if module.split(".")[0] in OWN and hasattr(network, module.split(".")[0]):
            for name in source.expected:
                put(network.get_submodule(module), name, source.read(name), device)
    return load_base(network, sources, partial(stored_name, sources.parts), device, on_loaded, split=_holds_layers)


def open_base(config: DanceConfig) -> Parts:
    """Where the weights of every part are read from, checked for all stages at once, so that the first one finds what
    the last would miss: ``denoising_unet``, ``reference_unet``, ``motion`` (champ); where files are given
    ``identity_adapter``, ``m2p``, ``face_tokens`` and ``guidance.<type>``. Names inside are those of the module that a
    part fills."""
    paths, shapes, svd = config.weights, expected_shapes(config), config.backbone == "svd"
    settings = config.unet.spatio_temporal() if svd else config.unet.unet2d()

    def opened(part: str, rename: Rename, settings: Mapping[str, Any], random: type = RandomWeights) -> WeightSource:
        path = getattr(paths, part)
        if path is None:
            needs(f"weights.{part}", "a local folder in diffusers layout or a published file", config.allow_random_init)
            return random(shapes[part])
        if Path(path).is_dir():
            check_config(path, settings)
            return SafetensorsFolder(path, shapes[part], rename)
        return WeightFile(path, shapes[part], rename)

    sources = {"denoising_unet": opened("denoising_unet", denoiser_name, settings)}
    if not svd:
        own = None if paths.reference_unet is None else opened("reference_unet", reference_name, settings)
        sources["reference_unet"] = own or sources["denoising_unet"]
        sources["motion"] = opened("motion", motion_name, _motion_settings(config), RandomMotion)
    if (identity := _identity_file(config)) is not None:
        sources["identity_adapter"] = WeightFile(identity, shapes["identity_adapter"], identity_name)
    for module, path in (("m2p", paths.m2p), ("face_tokens", paths.face_tokens)):
        if path is not None:
            sources[module] = WeightFile(path, shapes[module], partial(own_name, module=module))
    for kind, path in paths.guidance.items():
        ours = shapes.get(f"guidance.{kind}")
        if ours is None:
            raise ValueError(
                f"weights.guidance names {kind!r}, expected among guidance.types, {', '.join(config.guidance.types)}"
            )
        sources[f"guidance.{kind}"] = WeightFile(path, ours, partial(guidance_name, kind=kind, ours=set(ours)))
    return Parts(sources)


def expected_shapes(config: DanceConfig) -> dict[str, Shapes]:
    """Names and shapes of each part's weights, as its module has them."""
    width = config.unet.cross_dim
    with torch.device("meta"):
        own = {"m2p": MusicToPose(config.m2p, width), "face_tokens": FaceTokens(config.face, width)}
        encoders = GuidanceBank(config).encoders
    own |= {f"guidance.{kind}": encoder for kind, encoder in encoders.items()}
    if config.backbone == "svd":
        own["denoising_unet"] = svd_base(config.unet)
    else:
        own["denoising_unet"] = image_base(config)
        own["reference_unet"] = ReferenceNet(image_base(config), torch.float32)
        own["motion"] = motion_base(config)
    found = {part: {name: tuple(p.shape) for name, p in module.named_parameters()} for part, module in own.items()}
    if "motion" in found:
        found["motion"] = {name: shape for name, shape in found["motion"].items() if MOTION in name}
    found["identity_adapter"] = {
        name.replace("attn2.to_", "attn2.processor.id_to_"): shape
        for name, shape in found["denoising_unet"].items()
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) and "temporal_" not in name
    }
    return found


def stored_name(parts: Container[str], name: str) -> str:
    """Where the network's tensor ``name`` stands among ``parts``."""
    part, _, inner = name.partition(".")
    if MOTION in name:
        part = "motion"
    elif IDENTITY.fullmatch(name):
        if "identity_adapter" in parts:
            part = "identity_adapter"
        else:  # a copy of that layer's own projection
            inner = inner.replace("processor.id_to_", "to_")
    return f"{part}/{inner}"


def _holds_layers(module: nn.Module) -> bool:
    """A UNet or one of its blocks; its layers are loaded one by one."""
    return hasattr(module, "down_blocks") or hasattr(module, "resnets")


def _motion_settings(config: DanceConfig) -> dict[str, Any]:
    """Of a ``MotionAdapter``'s ``config.json``."""
    return {
        "block_out_channels": config.unet.widths,
        "motion_num_attention_heads": config.motion.heads,
        "use_motion_mid_block": config.motion.mid,
    }


def _identity_file(config: DanceConfig) -> str | None:
    """Of its own, or the denoiser's file where that holds adapters too, as StableAnimator's does."""
    own, denoiser = config.weights.identity_adapter, config.weights.denoising_unet
    if own is not None or denoiser is None or Path(denoiser).is_dir():
        return own
    held = WeightFile(denoiser, {}, lambda name: None).shapes()
    return denoiser if any(map(identity_name, held)) else None
