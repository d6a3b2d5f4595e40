"""The encoders of a MoviePostProduction build, side by side."""

from pathlib import Path

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
from stagecoach.data.pictures import shrink

MAX_LATENT_ERROR = 0.4
"""How far precomputed latents may be off those of the picture, relative to their size (root mean square). Pixels in
0..1 instead of -1..1 halve the contrast, another scale is off by its factor; a draw from the posterior or another
filter for the resize is off by little. A missing shift (4 % of the size for FLUX) is not seen here."""


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
        expected = self._vae.encode([prepared[0].image])[0]
        error = float((latents[0] - expected).square().mean().sqrt() / expected.square().mean().sqrt())
        if not error < MAX_LATENT_ERROR:
            raise RawError(
                f"{names[0]}: its precomputed latent is off the one of the picture by {error:.2f} of its "
                f"size, expected below {MAX_LATENT_ERROR}; it was made from pixels in 0..1, by another VAE "
                f"or not as --latent-convention {self._convention} says: compute the latents"
            )
        return latents

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
