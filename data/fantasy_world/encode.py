"""The encoders of a FantasyWorld build, side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from stagecoach.data.encoding.encoders import (
    EncoderEntry,
    ImageEncoder,
    TextEncoder,
    VideoEncoder,
    bits,
    default_device,
)
from stagecoach.data.fantasy_world.clip import Clip
from stagecoach.data.fantasy_world.schema import latent_frames


class Encoders:
    """The encoders of a build, and what the manifest says of them."""

    def __init__(self, vae: Path, text_encoder: Path, tokenizer: Path, image_encoder: Path | None = None) -> None:
        device = default_device()
        self._video = VideoEncoder(vae, device)
        self._text = TextEncoder(text_encoder, tokenizer, device)
        self._image = ImageEncoder(image_encoder, device) if image_encoder else None
        self.entries: dict[str, EncoderEntry] = {
            "vae": self._video.entry,
            "text_encoder": self._text.entry,
            "tokenizer": self._text.tokenizer_entry,
        }
        if self._image is not None:
            self.entries["image_encoder"] = self._image.entry

    def encode(self, clips: list[Clip], prompts: list[str]) -> list[dict[str, np.ndarray]]:
        """The arrays of the samples, in the schema's file dtypes."""
        videos = [clip.frames for clip in clips]
        parts: dict[str, list[Tensor]] = {"latent": self._video.encode(videos), "text": self._text.encode(prompts)}
        if self._image is not None:
            parts["image_latent"] = self._video.image_latents(videos)
            parts["clip"] = self._image.encode([video[0] for video in videos])
        frames, height, width, _ = videos[0].shape
        found, expected = parts["latent"][0].shape[1:], (latent_frames(frames), height // 8, width // 8)
        if tuple(found) != expected:
            raise ValueError(
                f"the VAE {self.entries['vae']['path_name']} makes latents of {tuple(found)}, expected "
                f"{expected} of a clip of {frames} x {height} x {width}; give Wan2.1's"
            )
        return [
            {
                **{name: bits(values[i]) for name, values in parts.items()},
                "depth": clip.depth,
                "extrinsics": clip.extrinsics,
                "intrinsics": clip.intrinsics,
                "frame": clip.frames[0],
            }
            for i, clip in enumerate(clips)
        ]
