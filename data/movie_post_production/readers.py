"""Readers of a raw picture's files: its size, the guide's precomputed latents, text states and crop vectors.

Each raises ``RawError`` with one sentence that names the file, what was found and what was expected; nothing that is
missing is replaced.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.raw_files import read_npy
from stagecoach.data.movie_post_production.captions import RawPicture
from stagecoach.data.names import as_spelled, composed
from stagecoach.data.pictures import picture_size

CLIP_VECTORS, DINO_VECTORS = "embedding/clip_cropped_boxes", "embedding/dino_cropped_boxes"
LATENTS, TEXTS = "latents/vae_full_images", "latents/text_embeddings"
T5_KEYS, POOLED_KEYS = ("t5_text_embeddings", "text_embeddings"), ("clip_pooled_embeddings", "pooled_embeddings")
"""Names of the text states: the guide's, and its earlier ones."""
ASPECT_TOLERANCE = 0.02
UNIT_TOLERANCE = 0.01


def read_size(raw: RawPicture) -> tuple[int, int]:
    """Height and width from the header of the image, of the shape that its caption file says."""
    height, width = picture_size(raw.image)
    if raw.size and abs(raw.size[0] / raw.size[1] / (width / height) - 1) > ASPECT_TOLERANCE:
        raise RawError(
            f"{raw.image}: {width} x {height} pixels found, expected the shape of the {raw.size[0]} x "
            f"{raw.size[1]} in {raw.captions}; its boxes are for another picture"
        )
    return height, width


def read_vector(path: Path, dim: int) -> np.ndarray:
    """A unit vector, fp32 [dim]."""
    vector = read_finite(path, "a vector").astype(np.float32)
    if vector.shape != (dim,):
        raise RawError(
            f"{path}: shape {vector.shape} found, expected ({dim},); give its width by --clip-dim or "
            f"--dino-dim, or compute the vectors"
        )
    norm = float(np.linalg.norm(vector))
    if not abs(norm - 1) < UNIT_TOLERANCE:
        raise RawError(f"{path}: a vector of length {norm:.4g} found, expected a finite one of length 1")
    return vector


def latent_path(base: Path, image_id: str) -> Path:
    """The precomputed latent of a picture, ``.pt`` or ``.npy``."""
    return _either(base / LATENTS / f"{image_id}.pt")


def read_latent(path: Path, channels: int) -> Tensor:
    """fp32 [C, h, w] of a ``.pt`` or ``.npy`` with or without a leading dimension of 1."""
    latent = (
        read_pt(path, "a latent") if path.suffix == ".pt" else torch.from_numpy(read_finite(path, "a latent").copy())
    )
    if not isinstance(latent, Tensor):
        raise RawError(f"{path}: holds {type(latent).__name__}, expected one tensor")
    shape, latent = tuple(latent.shape), latent.float()
    if latent.ndim == 4 and len(latent) == 1:
        latent = latent[0]
    if latent.ndim != 3 or len(latent) != channels or any(side < 2 or side % 2 for side in latent.shape[1:]):
        raise RawError(f"{path}: shape {shape} found, expected [1, {channels}, h, w] with even h and w")
    return _finite(latent, path, "latent")


def text_path(base: Path, image_id: str) -> Path:
    """The precomputed text states of a picture."""
    return as_spelled(base / TEXTS / f"{image_id}.pt")


def read_text(path: Path, caption: str, length: int, text_dim: int, pooled_dim: int) -> tuple[Tensor, Tensor]:
    """T5 states fp32 [L, text_dim] and the pooled CLIP state fp32 [pooled_dim]."""
    entry = read_pt(path, "text states")
    if not isinstance(entry, dict):
        raise RawError(f"{path}: holds {type(entry).__name__}, expected t5_text_embeddings and clip_pooled_embeddings")
    if isinstance(entry.get("global_caption"), str) and composed(entry["global_caption"]) != composed(caption):
        raise RawError(
            f"{path}: made for the caption {entry['global_caption'][:60]!r}, expected {caption[:60]!r}; encode it again"
        )
    out = []
    for names, shape in ((T5_KEYS, (length, text_dim)), (POOLED_KEYS, (pooled_dim,))):
        name = next((name for name in names if name in entry), names[0])
        value = entry.get(name)
        if not isinstance(value, Tensor):
            raise RawError(f"{path}: {name!r} is {type(value).__name__}, expected a tensor; found keys {sorted(entry)}")
        if tuple(value.shape) not in (shape, (1, *shape)):
            raise RawError(
                f"{path}: {name!r} has shape {list(value.shape)}, expected {[1, *shape]}; FLUX takes all "
                f"tokens, so they can neither be cut nor filled up (--text-length says how many)"
            )
        out.append(_finite(value.float().reshape(shape), path, name))
    return out[0], out[1]


def read_finite(path: Path, what: str) -> np.ndarray:
    """An array of finite numbers from .npy."""
    array = read_npy(path, what)
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise RawError(f"{path}: {array.dtype} with numbers that are not finite or not real found, expected {what}")
    return array


def read_pt(path: Path, what: str) -> object:
    """What ``torch.save`` wrote; tensors and plain containers only, since other pickles can run code."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RawError(f"{path}: not readable ({error.strerror}), expected {what}") from error
    except Exception as error:  # the unpickler raises anything that a damaged file makes it run into
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RawError(
            f"{path}: not readable by torch.load with weights_only ({reason:.120}), expected {what}; write "
            f"plain tensors"
        ) from error


def expect(path: Path, what: str) -> None:
    """Raises ``RawError`` where there is no such file."""
    if not path.is_file():
        raise RawError(f"{path}: missing, expected {what}; make it, or compute it by leaving it out of --precomputed")


def _either(path: Path) -> Path:
    """The ``.pt`` or, where only that is there, the ``.npy`` of the same name."""
    path, other = as_spelled(path), as_spelled(path.with_name(f"{path.name.removesuffix('.pt')}.npy"))
    return other if not path.exists() and other.exists() else path


def _finite(tensor: Tensor, path: Path, what: str) -> Tensor:
    if not tensor.isfinite().all():
        raise RawError(f"{path}: {what!r} has numbers that are not finite, expected none; encode it again")
    return tensor
