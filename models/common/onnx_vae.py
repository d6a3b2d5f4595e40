"""Decoders of the VAEs of all families as ONNX components, from a local folder in the Hugging Face layout."""

from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from stagecoach.data.encoding.encoders import load_model, read_config
from stagecoach.data.encoding.latent_encoders import vae_kind, wan_statistics
from stagecoach.models.common.decoder import Decoder
from stagecoach.models.common.onnx_export import Component, OnnxPart, OnnxRequest

CPU = torch.device("cpu")
SIDES = ((8, 8), (12, 8))
"""(h, w) of the latents that are traced and compared; both are free."""


def picture_decoder(request: OnnxRequest) -> OnnxPart:
    """Input ``latents`` ``[B, C, h, w]`` as the denoiser has them; output ``pixels`` ``[B, 3, 8h, 8w]``, about
    -1..1."""
    folder = _folder(request)
    module = Decoder(load_model(vae_kind(folder), folder, CPU, torch.float32))
    channels = int(read_config(folder)["latent_channels"])

    def inputs(which: int) -> dict[str, Tensor]:
        return {"latents": _noise(1 + which, channels, *SIDES[which])}

    free = {0: "B", 2: "h", 3: "w"}
    return OnnxPart(module, inputs, ("pixels",), {"latents": free, "pixels": {0: "B", 2: "H", 3: "W"}})


def video_decoder(latent_frames: int) -> Component:
    """Of Wan's VAE: input ``latents`` ``[B, 16, f, h, w]`` as the denoiser has them, output ``pixels``
    ``[B, 3, 4 f - 3, 8h, 8w]`` in -1..1. The decoder goes from latent frame to latent frame, so f is fixed."""

    def make(request: OnnxRequest) -> OnnxPart:
        frames = latent_frames
        if request.frames is not None:
            if request.frames % 4 != 1:
                raise ValueError(f"--frames {request.frames}, expected 4 (f - 1) + 1 frames of a video, as 81")
            frames = (request.frames + 3) // 4
        vae = load_model(AutoencoderKLWan, _folder(request), CPU, torch.float32)

        def inputs(which: int) -> dict[str, Tensor]:
            return {"latents": _noise(1 + which, int(vae.config.z_dim), frames, *SIDES[which])}

        free = {0: "B", 3: "h", 4: "w"}
        return OnnxPart(_WanDecoder(vae), inputs, ("pixels",), {"latents": free, "pixels": {0: "B", 3: "H", 4: "W"}})

    return make


class _WanDecoder(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        mean, std = wan_statistics(vae)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        for module in vae.modules():
            if isinstance(module, nn.Upsample) and module.mode == "nearest-exact":
                module.mode = "nearest"  # the same at whole factors, and known to ONNX

    def forward(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents * self.std + self.mean, return_dict=False)[0]


def _folder(request: OnnxRequest):
    if request.vae is None:
        raise ValueError("--vae is not given, expected the local folder of the VAE whose decoder is written")
    return request.vae


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
