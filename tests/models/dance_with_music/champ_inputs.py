"""Arguments of champ's networks with random content, and networks with weights in place."""

import torch
from diffusers import UNet2DConditionModel, UNetMotionModel
from torch import nn

from stagecoach.models.dance_with_music.base import fill_base
from stagecoach.models.dance_with_music.champ.reference import ReferenceNet
from stagecoach.models.dance_with_music.champ.unet import DenoisingUnet, image_base, motion_arguments, motion_base
from stagecoach.models.dance_with_music.config import SIZES, DanceConfig
from stagecoach.models.dance_with_music.network import DanceNetwork, build_network
from stagecoach.models.dance_with_music.weight_names import IDENTITY

TINY = SIZES["tiny"]
CROSS, WIDTH = TINY.unet.cross_dim, TINY.unet.widths[0]


def copies(network: nn.Module) -> dict[str, str]:
    """Name of each weight of an identity adapter -> that of the projection that it starts from."""
    return {name: name.replace("processor.id_to_", "to_") for name in network.state_dict() if IDENTITY.fullmatch(name)}


def diffusers_unet(motion: bool = False, config: DanceConfig = TINY) -> nn.Module:
    """diffusers' own, at random; gains and biases too, so that none can be mixed up unseen."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        unet = UNetMotionModel(**motion_arguments(config)) if motion else UNet2DConditionModel(**config.unet.unet2d())
        for parameter in unet.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return unet.requires_grad_(False)


def make_denoiser(unet: nn.Module, dtype: torch.dtype = torch.float32, config: DanceConfig = TINY) -> DenoisingUnet:
    """With the weights of ``unet``, adapters at their initial values."""
    base = motion_base(config) if isinstance(unet, UNetMotionModel) else image_base(config)
    denoiser = DenoisingUnet(config, base, "cpu", dtype)
    state = {name: value.clone() for name, value in unet.state_dict().items() if not name.endswith(".pe")}
    state |= {name: state[source].clone() for name, source in copies(denoiser).items()}
    denoiser.load_state_dict(state, assign=True)
    return denoiser.to(dtype)


def make_reference(unet: UNet2DConditionModel, dtype: torch.dtype = torch.float32) -> ReferenceNet:
    reference = ReferenceNet(image_base(TINY), dtype)
    known = reference.state_dict()
    reference.load_state_dict(
        {name: value.clone() for name, value in unet.state_dict().items() if name in known}, assign=True
    )
    return reference.to(dtype)


def make_network(stage: int = 2, config: DanceConfig = TINY) -> DanceNetwork:
    """With its first weights in place: the base at random, fresh motion modules."""
    network = build_network(config, stage)
    fill_base(network, config, "cpu")
    return network


def open_zeros(network: nn.Module, size: float = 0.1) -> nn.Module:
    """Move every parameter that is all zeros away from there, so that no path is shut."""
    g = torch.Generator().manual_seed(9)
    for parameter in network.parameters():
        if not parameter.is_meta and not parameter.any():
            parameter.data = size * torch.randn(parameter.shape, generator=g)
    return network


def make_conditions(frames: int = 3, side: tuple[int, int] = (8, 8), b: int = 2, count: int = 1, seed: int = 0) -> dict:
    g = torch.Generator().manual_seed(seed)

    def everyone() -> torch.Tensor:
        return torch.ones(b, dtype=torch.bool)

    return {
        "references": torch.randn(b, count, 4, *side, generator=g),
        "reference_given": everyone(),
        "embedding": torch.randn(b, count, CROSS, generator=g),
        "embedding_given": everyone(),
        "face": torch.randn(b, 512, generator=g),
        "face_given": everyone(),
        "guidance": {"pose": torch.rand(b, frames, 134, *side, generator=g)},
        "guidance_given": everyone(),
        "condition_scale": 1.0,
        "identity_scale": 1.0,
    }


def make_noisy(frames: int = 3, side: tuple[int, int] = (8, 8), b: int = 2, seed: int = 1) -> tuple:
    """``x`` and ``level``."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(b, frames, 4, *side, generator=g), 999 * torch.rand(b, generator=g)
