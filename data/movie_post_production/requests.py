"""Requests for pictures: what is to be painted where, and what it should look like. No picture has to be there.

Two formats: the guide's (``global_caption`` and ``objects`` with boxes in 0..1) and InstanceAssemble's (``prompt``,
``width``, ``height`` and ``annos`` with boxes in pixels). In either an object may have a ``reference``,
``path[#x1,y1,x2,y2]``: a picture, from the file's folder, and the box in it in 0..1 (all of it by default); one without
is drawn from its words. In the guide's raw layout ``ref_image_id`` and ``ref_object_id`` name a reference too. Both may
have ``width``, ``height`` and ``seed``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.raw_files import read_json
from stagecoach.data.movie_post_production.boxes import OUTSIDE, Box, read_box
from stagecoach.data.movie_post_production.captions import CAPTIONS, IMAGES, find_images
from stagecoach.data.movie_post_production.crops import cut
from stagecoach.data.movie_post_production.objects import (
    DescribedObject,
    ObjectId,
    read_id,
    read_number,
    read_object,
    read_size,
    read_text,
)
from stagecoach.data.names import as_spelled, composed
from stagecoach.data.pictures import Size, read_picture, to_rgb

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Reference:
    """A picture, a file or loaded (RGB), and the box in it."""

    picture: Path | Image.Image
    box: Box = WHOLE

    def cut(self, size: Size | None = None) -> np.ndarray:
        """What is in the box, uint8 ``[h, w, 3]``, of ``size`` or as large as it is. Raises ``RawError``."""
        picture = read_picture(self.picture) if isinstance(self.picture, Path) else self.picture
        if size is None:
            x1, y1, x2, y2 = self.box
            size = max(round((y2 - y1) * picture.height), 1), max(round((x2 - x1) * picture.width), 1)
        return cut(picture, self.box, size)


@dataclass(frozen=True)
class RequestedObject(DescribedObject):
    """``reference``: what it should look like; None leaves that to the words."""

    reference: Reference | None = None


@dataclass(frozen=True)
class PictureRequest:
    """``size``: (width, height) in pixels, None for the network's. ``seed``: None where the request has none."""

    caption: str
    objects: tuple[RequestedObject, ...]
    size: tuple[int, int] | None = None
    seed: int | None = None


def read_request(path: str | Path) -> PictureRequest:
    """The request of a JSON file. Raises ``RawError``."""
    path = Path(path)
    return parse_request(read_json(path, "a request"), str(path), path.parent)


def parse_request(entry: Any, where: str, folder: Path) -> PictureRequest:
    """A request in either format; references are looked for from ``folder``. Raises ``RawError`` naming ``where``."""
    if not isinstance(entry, Mapping):
        raise RawError(f"{where}: holds {type(entry).__name__}, expected an object with a caption and objects")
    entry = dict(entry)
    published = "annos" in entry
    name = "annos" if published else "objects"
    caption, listed = read_text(entry, "prompt" if published else "global_caption", where), entry.get(name, [])
    if not isinstance(listed, list):
        raise RawError(f"{where}: {name!r} is {listed!r:.60}, expected a list of objects")
    size = read_size(entry, where)
    if published and size is None:
        raise RawError(f"{where}: no width and height found, expected those that the boxes of 'annos' are pixels of")
    objects = []
    for index, value in enumerate(listed):
        if size is not None and published:
            value = _in_fractions(value, size, f"{where}: object {index}")
        objects.append(parse_object(value, f"{where}: object {index}", folder, index))
    seed = None if entry.get("seed") is None else read_number(entry, "seed", where)
    return PictureRequest(caption, tuple(objects), size, seed)


def parse_object(entry: Any, where: str, folder: Path, number: int) -> RequestedObject:
    """An object, its box in 0..1; ``reference`` may also be a picture of Pillow's, or uint8 ``[h, w, 3]``. Raises
    ``RawError``."""
    if isinstance(entry, RequestedObject):
        return entry
    found = read_object(entry, where, number)
    given = entry.get("reference")
    if isinstance(given, Reference) or given is None:
        reference = given
    elif isinstance(given, str):
        reference = parse_reference(given, where, folder)
    elif isinstance(given, Image.Image | np.ndarray):
        picture = Image.fromarray(given) if isinstance(given, np.ndarray) else given
        reference = Reference(to_rgb(picture, f"{where}: reference"))
    else:
        raise RawError(f"{where}: 'reference' is {given!r:.80}, expected path[#x1,y1,x2,y2] or a picture")
    if reference is None and entry.get("ref_image_id") is not None:
        reference = _described_reference(entry, found.object_id, where, folder)
    return RequestedObject(**vars(found), reference=reference)


def parse_reference(text: str, where: str, folder: Path) -> Reference:
    """``path[#x1,y1,x2,y2]``. Raises ``RawError`` for a file that is not there and for what is no box."""
    name, mark, numbers = text.rpartition("#") if "#" in text and not (folder / text).is_file() else (text, "", "")
    path, box = folder / name, WHOLE
    if mark:
        try:
            corners: list[float] = [float(word) for word in numbers.split(",")]
        except ValueError as error:
            raise RawError(f"{where}: 'reference' is {text!r}, expected path#x1,y1,x2,y2 in 0..1") from error
        box = read_box(corners, f"{where}: reference {text!r}")
    if not path.is_file():
        raise RawError(f"{path}: missing, expected the picture that {where} refers to")
    return Reference(path, box)


def _described_reference(entry: dict, number: ObjectId, where: str, folder: Path) -> Reference:
    """Of another picture of the guide's raw layout, in whose ``captions`` the request lies."""
    image_id = composed(str(entry["ref_image_id"]))
    wanted = read_id({"ref_object_id": number, **entry}, "ref_object_id", where)
    image = find_images(folder.parent / IMAGES).get(image_id)
    captions = as_spelled(folder / f"{image_id}.json")
    if folder.name != CAPTIONS or image is None or not captions.is_file():
        raise RawError(
            f"{where}: refers to image {image_id!r}, expected {folder.parent / IMAGES / image_id}.png and "
            f"{captions}; give its path as 'reference'"
        )
    described = read_json(captions, "a caption file")
    others = described.get("objects") if isinstance(described, dict) else None
    if not isinstance(others, list) or not all(isinstance(other, dict) for other in others):
        raise RawError(f"{captions}: holds no list of objects, expected the captions of {image_id!r}")
    found = next((other for other in others if composed(str(other.get("object_id"))) == str(wanted)), None)
    if found is None:
        raise RawError(f"{where}: refers to object {wanted} of {captions}, which has none of that id")
    return Reference(image, read_box(found.get("bbox"), f"{captions}: object {wanted}"))


def _in_fractions(entry: Any, size: tuple[int, int], where: str) -> Any:
    """The entry with its box divided by (width, height)."""
    box = entry.get("bbox") if isinstance(entry, dict) else None
    if not isinstance(box, list) or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in box):
        return entry
    if len(box) != 4:
        return entry
    scaled = [value / side for value, side in zip(box, size * 2, strict=True)]
    if max(scaled) > 1 + OUTSIDE or min(scaled) < -OUTSIDE:
        raise RawError(f"{where}: 'bbox' is {box}, expected pixels x1 y1 x2 y2 of {size[0]} x {size[1]}")
    return entry | {"bbox": scaled}
