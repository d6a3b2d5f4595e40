"""The encoders of a MoviePostProduction build, side by side."""

import math
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from stagecoach.data.building.jobs import EncodedSample, RawError
from stagecoach.data.encoding.encoders import EncoderEntry, bits, default_device, encoder_entries
from stagecoach.data.encoding.image_encoders import ClipEncoder, CropEncoder, DinoEncoder
from stagecoach.data.encoding.latent_encoders import LatentEncoder
from stagecoach.data.encoding.text_encoders import PooledTextEncoder, T5TextEncoder
from stagecoach.data.files import sha256_json
from stagecoach.data.movie_post_production import readers
from stagecoach.data.movie_post_production.options import BuildOptions, LatentConvention
from stagecoach.data.movie_post_production.prepare import Prepared
from stagecoach.data.movie_post_production.schema import LATENT_STRIDE
from stagecoach.data.pictures import resized, shrink

MAX_LATENT_ERROR = 0.4
"""How far precomputed latents may be off those of the picture, relative to their size (root mean square). Pixels in
0..1 instead of -1..1 halve the contrast, another scale is off by its factor; a draw from the posterior or another
filter for the resize is off by little. A missing shift (4 % of the size for FLUX) is not seen here."""

REDUCED, ALIKE = 4, 1.8
"""Of each picture with a precomputed latent the VAE sees one made smaller by the first, whose latent is about as large
(root mean square); beyond a factor of the second the picture itself is encoded and compared. A scale of FLUX that is
left out or applied twice makes 2.8."""


class Encoders:
    """The encoders of a build and what the manifest says of them. What is precomputed has no encoder; the VAE is there
    in any case, since it tells whether precomputed latents are those of their pictures."""

    def __init__(self, options: BuildOptions) -> None:
        device = default_device()
        flux = options.flux
        self._convention = options.latent_convention
        self._preview = options.preview
        self._vae = LatentEncoder(flux / "vae", device)
        self._t5 = self._pooled = self._clip = self._dino = None
        if "text" not in options.precomputed:
            self._t5 = T5TextEncoder(flux / "text_encoder_2", flux / "tokenizer_2", device, options.text_length)
            self._pooled = PooledTextEncoder(flux / "text_encoder", flux / "tokenizer", device)
        if "clip" not in options.precomputed:
            self._clip = ClipEncoder(options.clip, device)
        if "dino" not in options.precomputed:
            self._dino = DinoEncoder(options.dino, device)

    def encode(self, names: list[str], prepared: list[Prepared]) -> list[EncodedSample]:
        """``names`` of the pictures for messages."""
        latents = self._latents(names, prepared)
        t5, pooled, object_text = self._texts(prepared)
        clip = _vectors(self._clip, [p.clip for p in prepared], [p.clip_crops for p in prepared])
        dino = _vectors(self._dino, [p.dino for p in prepared], [p.dino_crops for p in prepared])
        out = []
        for i, item in enumerate(prepared):
            arrays = {
                "latent": bits(latents[i]),
                "t5": bits(t5[i]),
                "pooled": bits(pooled[i]),
                "boxes": item.boxes,
                "depth": item.depth,
                "clip": clip[i].astype(np.float16),
                "dino": dino[i].astype(np.float16),
            }
            if object_text:
                arrays["object_text"] = bits(object_text[i])
            if self._preview:
                arrays["image"] = shrink(item.image, self._preview)
            out.append(EncodedSample(arrays, item.meta, (latents[i].numpy(), item.dropped)))
        return out

    def _latents(self, names: list[str], prepared: list[Prepared]) -> list[Tensor]:
        if prepared[0].latent is None:
            order = sorted(range(len(prepared)), key=lambda i: prepared[i].image.shape)
            found = dict(zip(order, self._vae.encode([prepared[i].image for i in order]), strict=True))
            return [found[i] for i in range(len(prepared))]
        latents = [convert_latent(p.latent, self._convention, self._vae.shift, self._vae.scale) for p in prepared]
        small = self._vae.encode([_reduced(item.image) for item in prepared])
        for name, item, latent, seen in zip(names, prepared, latents, small, strict=True):
            # The first of each batch, and any that is suspiciously large or small for its picture.
            if item is prepared[0] or not 1 / ALIKE < _size(latent) / _size(seen) < ALIKE:
                expected = self._vae.encode([item.image])[0]
                if not _error(latent, expected) < MAX_LATENT_ERROR:
                    raise RawError(f"{name}: {self._cause(item.latent, expected)}")
        return latents

    def _cause(self, given: Tensor, expected: Tensor) -> str:
        """What is wrong with a precomputed latent, in words."""
        shift, scale = self._vae.shift, self._vae.scale
        factor = float((given * expected).sum() / given.square().sum().clamp_min(1e-9))
        fits = {c: _error(convert_latent(given, c, shift, scale), expected) for c in get_args(LatentConvention)}
        best = min(fits, key=fits.__getitem__)
        twice = _error(given / scale + shift, expected)
        if fits[best] < MAX_LATENT_ERROR:
            likely = f"it is one by --latent-convention {best}, off by {fits[best]:.2f}: give that"
        elif twice < MAX_LATENT_ERROR:
            likely = f"the VAE's shift and scale {scale:g} were applied twice: apply them once"
        elif _error(factor * given, expected) < MAX_LATENT_ERROR:
            likely = f"times {factor:.3g} it would be: write it as --latent-convention says, or compute the latents"
        else:
            likely = "it was made of another picture, from pixels in 0..1 or by another VAE: compute the latents"
        off = _error(convert_latent(given, self._convention, shift, scale), expected)
        return (
            f"its precomputed latent, of standard deviation {float(given.std()):.2f}, is by --latent-convention "
            f"{self._convention} off the one of the picture by {off:.2f} of its size, expected below "
            f"{MAX_LATENT_ERROR}; {likely}"
        )

    def _texts(self, prepared: list[Prepared]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        if self._t5 is None:
            return [p.text[0] for p in prepared], [p.text[1] for p in prepared], []
        captions = [p.caption for p in prepared]
        pooled = self._pooled.encode(captions)
        objects = _stacked(self._pooled.encode([text for p in prepared for text in p.texts]), len(pooled[0]))
        return self._t5.encode(captions), pooled, list(objects.split([len(p.texts) for p in prepared]))


def describe_encoders(base: Path, options: BuildOptions) -> dict[str, EncoderEntry]:
    """What the manifest says of the encoders, without loading them; of what was precomputed it says where it was read
    and the sha256 of the names and sizes of the files. Raises ``EncoderError``."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, T5EncoderModel

    entries: dict[str, EncoderEntry] = {}
    folders = {
        "latents": {"vae": readers.LATENTS},
        "clip": {"image_encoder": readers.CLIP_VECTORS},
        "text": {"text_encoder": readers.TEXTS, "text_encoder_2": readers.TEXTS},
        "dino": {"dino": readers.DINO_VECTORS},
    }
    for kind in options.precomputed:
        entries |= {role: _precomputed(base, folder) for role, folder in folders[kind].items()}
    wanted = {
        "vae": (AutoencoderKL, options.flux / "vae"),
        "image_encoder": (ClipEncoder.KIND, options.clip),
        "dino": (DinoEncoder.KIND, options.dino),
        "text_encoder": (CLIPTextModel, options.flux / "text_encoder"),
        "text_encoder_2": (T5EncoderModel, options.flux / "text_encoder_2"),
    }
    tokenizers = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"}
    entries |= encoder_entries(
        {role: model for role, model in wanted.items() if role not in entries},
        {role: (options.flux / role, model) for role, model in tokenizers.items() if model not in entries},
    )
    return dict(sorted(entries.items()))


def _precomputed(base: Path, folder: str) -> EncoderEntry:
    files = {p.name: p.stat().st_size for p in (base / folder).iterdir()} if (base / folder).is_dir() else {}
    return EncoderEntry(name="precomputed", path_name=folder, sha256=sha256_json(files), dtype="of the files")


def convert_latent(latent: Tensor, convention: LatentConvention, shift: float, scale: float) -> Tensor:
    """To (z - shift) scale, which FLUX takes, from that, from z ("raw") or from z scale ("scaled")."""
    match convention:
        case "raw":
            return (latent - shift) * scale
        case "scaled":
            return latent - shift * scale
    return latent


def _error(latent: Tensor, expected: Tensor) -> float:
    """Relative to the size of ``expected`` (root mean square); infinite for another shape or no numbers."""
    if latent.shape != expected.shape:
        return math.inf
    return _size(latent - expected) / _size(expected)


def _size(latent: Tensor) -> float:
    """Root mean square."""
    return max(float(latent.square().mean().sqrt()), 1e-9)


def _reduced(image: np.ndarray) -> np.ndarray:
    height, width = (max(round(side / REDUCED / LATENT_STRIDE), 2) * LATENT_STRIDE for side in image.shape[:2])
    return resized(image, width, height)


def _vectors(
    encoder: CropEncoder | None, given: list[np.ndarray | None], crops: list[list[np.ndarray]]
) -> list[np.ndarray]:
    """fp32 [N, D] of each picture, read or encoded."""
    if encoder is None:
        return given
    found = _stacked(encoder.encode([crop for group in crops for crop in group]), encoder.dim)
    return [part.numpy() for part in found.split([len(group) for group in crops])]


def _stacked(vectors: list[Tensor], dim: int) -> Tensor:
    """[N, dim], also of no vector: pictures need not have objects."""
    return torch.stack(vectors) if vectors else torch.zeros(0, dim)
