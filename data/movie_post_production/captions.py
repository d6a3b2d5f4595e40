"""The guide's raw layout: ``captions/<image id>.json`` next to ``images/<image id>.png`` (``readers`` reads the files).

Keys of a caption file: image_id, global_caption, objects (each with object_id, category_name, bbox, caption and, where
known, depth_label), and optionally width, height and split. An object may name a reference from another picture by
``ref_image_id`` and ``ref_object_id`` (without it the same object_id): its CLIP and DINO vectors are then those of that
object there, so that the network cannot copy the very pixels it is asked for.
"""

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.raw_files import check_split, read_json, safe_key
from stagecoach.data.files import sha256_file
from stagecoach.data.movie_post_production.schema import DEPTH_LABELS
from stagecoach.data.pictures import SUFFIXES

CAPTIONS, IMAGES = "captions", "images"
OUTSIDE = 0.05
"""How far a box may stick out of the picture, in fractions of its side; it is clipped. Farther, and its unit is
another."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class RawReference:
    """The object whose crop describes an object: of the picture itself, or of another one."""

    image_id: str
    object_id: int
    image: Path
    box: Box


@dataclass(frozen=True)
class RawObject:
    """``box``: x1 y1 x2 y2 in [0, 1]. ``depth``: index into ``DEPTH_LABELS``; ``depth_given`` is false where it was
    guessed from the box. ``reference``: filled in by ``read_captions``."""

    object_id: int
    category: str
    caption: str
    box: Box
    depth: int
    depth_given: bool
    reference: RawReference

    @property
    def text(self) -> str:
        """Category and caption in one line."""
        return ", ".join(word.strip() for word in (self.category, self.caption) if word.strip())


@dataclass(frozen=True)
class RawPicture:
    """One picture with its captions. ``key`` names the sample: unique, without dots. ``size`` is (width, height) as the
    caption file has it. ``sha256`` is the caption file's."""

    key: str
    image_id: str
    image: Path
    captions: Path
    caption: str
    objects: tuple[RawObject, ...]
    size: tuple[int, int] | None
    split: Literal["train", "val"] | None
    sha256: str


def read_captions(base: Path) -> tuple[list[RawPicture], list[tuple[str, RawError]], list[str]]:
    """Pictures of ``base`` by name of their caption file; (file, error) of those that cannot be used, first those that
    are bad themselves, then those that refer to one of them; and the names of all caption files, sorted.

    Raises ``RawError`` where there is none.
    """
    folder = base / CAPTIONS
    names = sorted(p.name for p in folder.glob("*.json")) if folder.is_dir() else []
    if not names:
        raise RawError(
            f"{folder}: no caption file found, expected {folder.name}/<image id>.json next to {IMAGES}/<image id>.png"
        )
    images = _images(base / IMAGES)
    read: dict[str, tuple[RawPicture, dict[int, tuple[str, int]]]] = {}
    bad: list[tuple[str, RawError]] = []
    for name in names:
        try:
            read[name.removesuffix(".json")] = _read_picture(folder / name, images)
        except RawError as error:
            bad.append((str(folder / name), error))
    known = {name: picture for name, (picture, _) in read.items()}
    pictures = []
    for picture, wanted in read.values():
        try:
            pictures.append(_with_references(picture, wanted, known))
        except RawError as error:
            bad.append((str(picture.captions), error))
    return pictures, bad, names


def guess_depth(box: Box) -> int:
    """The guide's own rule for a box without a label (movie_post_production §3.1): by area and height of the centre."""
    area, centre = (box[2] - box[0]) * (box[3] - box[1]), (box[1] + box[3]) / 2
    if area > 0.1 or centre > 0.7:
        return 0
    return 2 if area < 0.01 or centre < 0.3 else 1


def _images(folder: Path) -> dict[str, Path]:
    """Pictures by name without suffix; of several of one name the first of ``SUFFIXES``."""
    found = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES] if folder.is_dir() else []
    found.sort(key=lambda p: (SUFFIXES.index(p.suffix.lower()), p.name), reverse=True)
    return {path.stem: path for path in found}


def _read_picture(path: Path, images: dict[str, Path]) -> tuple[RawPicture, dict[int, tuple[str, int]]]:
    """The picture, and by object the (image id, object id) of references from other pictures."""
    entry = read_json(path, "a caption file")
    if not isinstance(entry, dict):
        raise RawError(
            f"{path}: holds {type(entry).__name__}, expected an object with image_id, global_caption and objects"
        )
    image_id = path.name.removesuffix(".json")
    if str(entry.get("image_id", image_id)) != image_id:
        raise RawError(f"{path}: image_id is {entry['image_id']!r}, expected the file's name {image_id!r}")
    caption = _text(entry, "global_caption", str(path))
    if image_id not in images:
        raise RawError(f"{path.parents[1] / IMAGES / image_id}.png: missing, expected the picture of {path}")
    listed = entry.get("objects")
    if not isinstance(listed, list) or not listed:
        raise RawError(f"{path}: 'objects' is {listed!r:.60}, expected a list of at least one object")
    objects, wanted = [], {}
    for index, value in enumerate(listed):
        found, reference = _read_object(value, f"{path}: object {index}", image_id, images[image_id])
        if any(found.object_id == other.object_id for other in objects):
            raise RawError(
                f"{path}: object {index} has the object_id {found.object_id} of another one, expected each once"
            )
        objects.append(found)
        if reference != (image_id, found.object_id):
            wanted[found.object_id] = reference
    picture = RawPicture(
        _key(image_id),
        image_id,
        images[image_id],
        path,
        caption,
        tuple(objects),
        _size(entry, path),
        check_split(entry, str(path)),
        sha256_file(path),
    )
    return picture, wanted


def _read_object(entry: Any, where: str, image_id: str, image: Path) -> tuple[RawObject, tuple[str, int]]:
    if not isinstance(entry, dict):
        raise RawError(
            f"{where}: holds {type(entry).__name__}, expected an object with object_id, category_name, bbox and caption"
        )
    number = _number(entry, "object_id", where)
    box = read_box(entry.get("bbox"), where)
    label = entry.get("depth_label")
    if label is not None and label not in DEPTH_LABELS:
        raise RawError(f"{where}: 'depth_label' is {label!r}, expected one of {list(DEPTH_LABELS)} or none")
    depth = guess_depth(box) if label is None else DEPTH_LABELS.index(label)
    reference = image_id, number
    if entry.get("ref_image_id") is not None:
        reference = str(entry["ref_image_id"]), _number({"ref_object_id": number, **entry}, "ref_object_id", where)
    words = [entry.get(name) or "" for name in ("category_name", "caption")]
    if not all(isinstance(word, str) for word in words) or not any(word.strip() for word in words):
        raise RawError(
            f"{where}: category_name and caption are {words!r:.80}, expected texts, of which one may be empty"
        )
    own = RawReference(image_id, number, image, box)
    return RawObject(number, *words, box, depth, label is not None, own), reference


def read_box(value: Any, where: str) -> Box:
    """A box in [0, 1]: what sticks out a little is clipped. Raises ``RawError`` for anything that is no box."""
    numbers = (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in value)
    )
    if not numbers:
        raise RawError(f"{where}: 'bbox' is {value!r:.80}, expected four finite numbers x1 y1 x2 y2")
    if min(value) < -OUTSIDE or max(value) > 1 + OUTSIDE:
        raise RawError(f"{where}: 'bbox' is {value}, expected numbers in 0..1; divide pixels by width and height")
    x1, y1, x2, y2 = (min(max(float(v), 0.0), 1.0) for v in value)
    if x1 >= x2 or y1 >= y2:
        raise RawError(
            f"{where}: 'bbox' is {value}, an empty box, expected x1 < x2 and y1 < y2 (corners, not width and height)"
        )
    return x1, y1, x2, y2


def _with_references(
    picture: RawPicture, wanted: dict[int, tuple[str, int]], pictures: dict[str, RawPicture]
) -> RawPicture:
    objects = []
    for item in picture.objects:
        if item.object_id in wanted:
            image_id, object_id = wanted[item.object_id]
            other = pictures.get(image_id)
            found = next((o for o in other.objects if o.object_id == object_id), None) if other else None
            if found is None:
                raise RawError(
                    f"{picture.captions}: object {item.object_id} refers to object {object_id} of image "
                    f"{image_id!r}, expected one that a usable caption file describes"
                )
            item = replace(item, reference=RawReference(image_id, object_id, other.image, found.box))
        objects.append(item)
    return replace(picture, objects=tuple(objects))


def _text(entry: dict, name: str, where: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value.strip():
        raise RawError(f"{where}: {name!r} is {value!r:.60}, expected a text; found keys {sorted(entry)}")
    return value


def _number(entry: dict, name: str, where: str) -> int:
    value = entry.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise RawError(f"{where}: {name!r} is {value!r:.60}, expected a whole number from 0")
    return value


def _size(entry: dict, path: Path) -> tuple[int, int] | None:
    if entry.get("width") is None and entry.get("height") is None:
        return None
    width, height = _number(entry, "width", str(path)), _number(entry, "height", str(path))
    if not width or not height:
        raise RawError(f"{path}: a picture of {width} x {height} is given, expected a size above 0 or none")
    return width, height


def _key(image_id: str) -> str:
    """The image id where it may stand in a tar, else made so, with a hash of it to stay unique."""
    key = safe_key(image_id)
    return key if key == image_id else f"{key}-{hashlib.sha256(image_id.encode()).hexdigest()[:8]}"
