"""One raw picture becomes the picture of one size, its boxes, and the crops that describe its objects."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from stagecoach.data.building.jobs import RawError
from stagecoach.data.movie_post_production import readers
from stagecoach.data.movie_post_production.captions import RawObject, RawPicture
from stagecoach.data.movie_post_production.crops import FrameCrop, cut
from stagecoach.data.movie_post_production.objects import ObjectId
from stagecoach.data.movie_post_production.options import BuildOptions, Dims
from stagecoach.data.movie_post_production.schema import DEPTH_LABELS, LATENT_STRIDE
from stagecoach.data.names import as_spelled
from stagecoach.data.pictures import Size, choose_size, read_picture

VECTORS = {"clip": readers.CLIP_VECTORS, "dino": readers.DINO_VECTORS}
"""Folders of the crops' precomputed vectors."""


@dataclass(frozen=True)
class Prepared:
    """``image`` uint8 [H, W, 3]; ``boxes`` float32 [N, 4]; ``depth`` uint8 [N]; ``texts`` of the objects. ``latent``,
    ``text``, ``clip``, ``dino``: what was precomputed, None where it is to be encoded; then ``clip_crops`` and
    ``dino_crops`` hold the pictures of the objects, uint8 [size, size, 3] each."""

    image: np.ndarray
    boxes: np.ndarray
    depth: np.ndarray
    caption: str
    texts: list[str]
    meta: dict[str, Any]
    dropped: int
    latent: Tensor | None
    text: tuple[Tensor, Tensor] | None
    clip: np.ndarray | None
    dino: np.ndarray | None
    clip_crops: list[np.ndarray]
    dino_crops: list[np.ndarray]


def check_picture(base: Path, raw: RawPicture, options: BuildOptions) -> None:
    """Look at what is cheap to look at, so that a bad file is found before hours of encoding. Raises ``RawError``."""
    height, width = readers.read_size(raw)
    if "latents" in options.precomputed:
        readers.expect(readers.latent_path(base, raw.image_id), f"the latent of {raw.image}")
        crop = FrameCrop.squash((height, width))
    else:
        crop = FrameCrop.of(height, width, choose_size(height, width, options.sizes, str(raw.image)))
    kept, _ = _choose_objects(raw, crop, options.max_objects)
    if "text" in options.precomputed:
        readers.expect(readers.text_path(base, raw.image_id), f"the text states of {raw.captions}")
    for name, folder in VECTORS.items():
        for item in kept if name in options.precomputed else ():
            what = f"the {name} vector of object {item.object_id} of {raw.captions}"
            readers.expect(_vector_path(base, folder, item), what)


def prepare_picture(base: Path, raw: RawPicture, options: BuildOptions, dims: Dims) -> Prepared:
    """Read one picture and all that belongs to it. Raises ``RawError``."""
    readers.read_size(raw)
    picture = read_picture(raw.image)
    latent = None
    if "latents" in options.precomputed:
        latent = readers.read_latent(readers.latent_path(base, raw.image_id), dims.latent)
        crop = FrameCrop.squash((latent.shape[1] * LATENT_STRIDE, latent.shape[2] * LATENT_STRIDE))
    else:
        size = picture.height, picture.width
        crop = FrameCrop.of(*size, choose_size(*size, options.sizes, str(raw.image)))
    objects, dropped = _choose_objects(raw, crop, options.max_objects)
    boxes = np.array([crop.box(item.box) for item in objects], np.float32).reshape(-1, 4)
    text = None
    if "text" in options.precomputed:
        text = readers.read_text(
            readers.text_path(base, raw.image_id), raw.caption, options.text_length, dims.text, dims.pooled
        )
    vectors = {
        name: np.array(
            [readers.read_vector(_vector_path(base, VECTORS[name], item), dim) for item in objects], np.float32
        ).reshape(-1, dim)
        for name, dim in (("clip", dims.clip), ("dino", dims.dino))
        if name in options.precomputed
    }
    sources = _References(raw, picture, crop)
    crops = {
        name: [] if size is None else [sources.cut(item, (size, size)) for item in objects]
        for name, size in (("clip", dims.clip_size), ("dino", dims.dino_size))
    }
    return Prepared(
        crop.image(picture),
        boxes,
        np.array([item.depth for item in objects], np.uint8),
        raw.caption,
        [item.text for item in objects],
        _meta(raw, crop, objects, dropped),
        len(dropped),
        latent,
        text,
        vectors.get("clip"),
        vectors.get("dino"),
        crops["clip"],
        crops["dino"],
    )


def precomputed_files(base: Path, raw: RawPicture, options: BuildOptions) -> list[Path]:
    """What ``options`` says is precomputed of a picture, there or not."""
    given = {
        "latents": [readers.latent_path(base, raw.image_id)],
        "text": [readers.text_path(base, raw.image_id)],
        **{name: [_vector_path(base, folder, item) for item in raw.objects] for name, folder in VECTORS.items()},
    }
    return [path for name in options.precomputed for path in given[name]]


def _vector_path(base: Path, folder: str, item: RawObject) -> Path:
    return as_spelled(base / folder / f"{item.reference.image_id}_obj{item.reference.object_id}.npy")


def _choose_objects(raw: RawPicture, crop: FrameCrop, most: int) -> tuple[list[RawObject], list[dict[str, Any]]]:
    """Objects in the crop, in the order of the file, at most the ``most`` largest; and the others, with the reason."""
    dropped: dict[ObjectId, str] = {}
    areas: dict[ObjectId, float] = {}
    for item in raw.objects:
        box = crop.box(item.box)
        if box is None:
            dropped[item.object_id] = "cropped"
        elif (box[2] - box[0]) * crop.size[1] < 1 or (box[3] - box[1]) * crop.size[0] < 1:
            dropped[item.object_id] = "below a pixel"
        else:
            areas[item.object_id] = (box[2] - box[0]) * (box[3] - box[1])
    if raw.objects and not areas:
        raise RawError(
            f"{raw.captions}: none of its {len(raw.objects)} objects is in the crop to {crop.size[0]} x "
            f"{crop.size[1]}, expected one; give --sizes with one of the picture's shape"
        )
    dropped |= dict.fromkeys(sorted(areas, key=areas.__getitem__, reverse=True)[most:], "beyond the largest")
    return (
        [item for item in raw.objects if item.object_id not in dropped],
        [
            {"object_id": item.object_id, "reason": dropped[item.object_id]}
            for item in raw.objects
            if item.object_id in dropped
        ],
    )


class _References:
    """The crops that describe objects. Of the picture itself, what is left of the object in the crop is shown; other
    pictures are read once."""

    def __init__(self, raw: RawPicture, picture: Image.Image, crop: FrameCrop) -> None:
        self._raw, self._crop = raw, crop
        self._pictures = {raw.image: picture}

    def cut(self, item: RawObject, size: Size) -> np.ndarray:
        reference = item.reference
        box = reference.box
        if reference.image_id == self._raw.image_id:
            inside = self._crop.box(box)
            box = self._crop.uncropped(inside) if inside else box
        if reference.image not in self._pictures:
            self._pictures[reference.image] = read_picture(reference.image)
        return cut(self._pictures[reference.image], box, size)


def _meta(raw: RawPicture, crop: FrameCrop, objects: list[RawObject], dropped: list[dict[str, Any]]) -> dict[str, Any]:
    """Captions as they were, and what was done to the picture. ``crop``: x1 y1 x2 y2 of what was kept of it."""
    described = []
    for item in objects:
        entry = {
            "object_id": item.object_id,
            "category": item.category,
            "caption": item.caption,
            "depth": DEPTH_LABELS[item.depth],
            "depth_given": item.depth_given,
        }
        if item.reference.image_id != raw.image_id:
            entry |= {"ref_image_id": item.reference.image_id, "ref_object_id": item.reference.object_id}
        elif item.reference.object_id != item.object_id:
            entry |= {"ref_object_id": item.reference.object_id}
        described.append(entry)
    return {
        "image_id": raw.image_id,
        "caption": raw.caption,
        "crop": list(crop.frame),
        "objects": described,
        "dropped": dropped,
    }
