"""What of DanceWithMusic may be an ONNX file by itself: MusicToPose and guidance encoders for clips of any length, the
denoiser and the reference net of backbone ``champ``, the VAE's decoder."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stagecoach.data.dance_with_music.schema import KEYPOINTS, LATENT_CHANNELS
from stagecoach.models.common.onnx_export import Component, OnnxPart, OnnxRequest
from stagecoach.models.common.onnx_vae import picture_decoder
from stagecoach.models.dance_with_music.config import DanceConfig
from stagecoach.models.dance_with_music.guidance.types import GuidanceInput, guidance_type
from stagecoach.models.weights import load_network

FRAMES = (8, 13)
"""Of the clips that are traced and compared, where the length is free."""
HALVES = 2
"""Samples of the denoiser, whose traced attention to the face fixes their number."""


def onnx_components(config: DanceConfig, stage: int) -> dict[str, Component]:
    """By name, of the phase that ``stage`` is."""
    phase, found = config.phase(stage), {}
    if phase != "guidance":
        found["music_to_pose"] = music_to_pose
    if phase != "m2p":
        found |= {f"guidance_{name}": partial(guidance_encoder, name=name) for name in config.guidance.types}
        if config.backbone == "champ":
            found |= {"denoiser": denoiser, "reference_net": reference_net}
    return found | {"vae_decoder": picture_decoder}


def music_to_pose(request: OnnxRequest) -> OnnxPart:
    """Inputs ``music`` ``[B, T, Dm]``, ``ref`` ``[B, Dr]`` and ``pose0`` ``[B, 134, 3]``, outputs under the names
    and in the order of ``MusicToPose.forward``, all fp32, B and T free."""
    return music_to_pose_part(_trained(request, "m2p"))


def music_to_pose_part(model: Any) -> OnnxPart:
    """Of a ``MusicToPose``."""

    def inputs(which: int) -> dict[str, Tensor]:
        b, t, generator = 1 + which, FRAMES[which], _generator()
        return {
            "music": torch.randn(b, t, model.config.music_dim, generator=generator),
            "ref": torch.randn(b, model.reference.in_features, generator=generator),
            "pose0": torch.rand(b, KEYPOINTS, 3, generator=generator),
        }

    maps = ["logits"] if model.config.head == "full2d" else ["logits_x", "logits_y"]
    free = {name: {0: "B", 1: "T"} for name in ("music", *maps, "conf")}
    free |= {name: {0: "B"} for name in ("ref", "pose0", "face")}
    return OnnxPart(_Values(model), inputs, (*maps, "conf", "face"), free)


def guidance_encoder(request: OnnxRequest, name: str) -> OnnxPart:
    """Input ``condition`` ``[N, ...]`` at the config's size of pictures, the frames of a clip of any length; output
    ``guidance`` ``[N, C, h, w]``, fp32."""
    return guidance_part(_trained(request, f"guidance.encoders.{name}"), name, request.weights.config)


def guidance_part(encoder: nn.Module, name: str, config: DanceConfig) -> OnnxPart:
    """Of the encoder of type ``name``."""

    def inputs(which: int) -> dict[str, Tensor]:
        t, generator = FRAMES[which], _generator()
        given = GuidanceInput(
            torch.rand(1, t, KEYPOINTS, 2, generator=generator),
            torch.rand(1, t, KEYPOINTS, generator=generator),
            None,
            torch.randn(1, t, config.m2p.music_dim, generator=generator),
            config.picture.height,
            config.picture.width,
            torch.randn(1, t, config.guidance.map_channels or 1, *config.picture.latent, generator=generator),
        )
        return {"condition": guidance_type(name).render(given, config)[0]}

    return OnnxPart(encoder, inputs, ("guidance",), {"condition": {0: "N"}, "guidance": {0: "N"}})


def denoiser(request: OnnxRequest) -> OnnxPart:
    """Inputs, fp32 but for ``given``: ``x`` ``[B, T, 4, h, w]``, ``level`` ``[B]``, ``embedding`` ``[B, D]``, ``face``
    ``[B, K, D]`` (tokens, zeros for none), ``guidance`` ``[B, T, C, h, w]`` (scaled, zeros for none), ``given`` bool
    ``[B]`` (false for the half of guidance without reference and embedding), ``bank.<layer>`` ``[B, R L, C]`` as the
    reference net gives them. Output ``v`` ``[B, T, 4, h, w]``. All sizes are fixed; B is 2, both halves of guidance."""
    network, config = _loaded(request), request.weights.config
    h, w = config.picture.latent
    frames = request.frames or config.sampling.context_length
    if frames > config.motion.max_frames:
        raise ValueError(f"--frames {frames}, expected at most motion.max_frames, {config.motion.max_frames}")
    references, tokens, width = config.reference.count, config.face.tokens, config.unet.cross_dim

    def inputs(which: int) -> dict[str, Tensor]:
        b, draw = HALVES, partial(torch.randn, generator=_generator(which))
        embedding = draw(b, width)
        bank = network.reference_unet(
            draw(b, references, LATENT_CHANNELS, h, w), embedding.unsqueeze(1).expand(-1, references, -1)
        )
        return {
            "x": draw(b, frames, LATENT_CHANNELS, h, w),
            "level": torch.linspace(900, 100, b),
            "embedding": embedding,
            "face": draw(b, tokens, width),
            "guidance": draw(b, frames, config.unet.widths[0], h, w),
            "given": torch.arange(b) == which,
            **{f"bank.{name}": value for name, value in bank.items()},
        }

    with torch.no_grad():
        names = list(inputs(0))
    module = _Denoiser(network.denoising_unet, [name.removeprefix("bank.") for name in names if "bank." in name])
    return OnnxPart(module, torch.no_grad()(inputs), ("v",), {})


def reference_net(request: OnnxRequest) -> OnnxPart:
    """Inputs ``references`` ``[B, R, 4, h, w]``, scaled latents, and ``embedding`` ``[B, R, D]``; outputs
    ``bank.<layer>`` ``[B, R L, C]``, fp32, B free."""
    network, config = _loaded(request), request.weights.config
    (h, w), count = config.picture.latent, config.reference.count

    def inputs(which: int) -> dict[str, Tensor]:
        draw = partial(torch.randn, generator=_generator())
        b = 1 + which
        return {"references": draw(b, count, LATENT_CHANNELS, h, w), "embedding": draw(b, count, config.unet.cross_dim)}

    module = _Values(network.reference_unet)
    with torch.no_grad():
        outputs = tuple(f"bank.{name}" for name in network.reference_unet(*inputs(0).values()))
    return OnnxPart(module, inputs, outputs, {n: {0: "B"} for n in ("references", "embedding", *outputs)})


class _Values(nn.Module):
    """The outputs without their names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model(*inputs).values())


class _Denoiser(nn.Module):
    def __init__(self, unet: nn.Module, layers: list[str]) -> None:
        super().__init__()
        self.unet, self.layers = unet, layers

    def forward(
        self, x: Tensor, level: Tensor, embedding: Tensor, face: Tensor, guidance: Tensor, given: Tensor, *bank: Tensor
    ) -> Tensor:
        conditions = {
            "embedding": embedding.unsqueeze(1),
            "embedding_given": given,
            "reference_given": given,
            "identity_scale": 1.0,
        }
        return self.unet(x, level, conditions, guidance, face, dict(zip(self.layers, bank, strict=True)))


def _loaded(request: OnnxRequest) -> Any:
    return load_network(request.weights, request.base)


def _trained(request: OnnxRequest, name: str) -> Any:
    """A module that training has made, for which no base is read. Raises ``ValueError`` where the weights lack it."""
    weights = request.weights
    network = weights.family.build(weights.config, weights.stage, "cpu", torch.float32)
    module = network.get_submodule(name)
    found = weights.tensors({inner for inner in weights.files if inner.startswith(f"{name}.")})
    state = {inner.removeprefix(f"{name}."): value for inner, value in found.items()}
    if missing := sorted(set(module.state_dict()) - set(state)):
        raise ValueError(
            f"{weights.source}: holds no {name} ({len(missing)} tensors are missing), expected an adapter of a stage "
            "that has trained it"
        )
    module.load_state_dict(state)
    return module.requires_grad_(False).eval()


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
