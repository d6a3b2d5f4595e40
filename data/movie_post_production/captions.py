"""The guide's raw layout: ``captions/<image id>.json`` next to ``images/<image id>.png`` (``readers`` reads the files).

Keys of a caption file: image_id, global_caption, objects (each with object_id, category_name, bbox, caption and, where
known, depth_label), and optionally width, height and split. An object may name a reference from another picture by
``ref_image_id`` and ``ref_object_id`` (without it the same object_id): its CLIP and DINO vectors are then those of that
object there, so that the network cannot copy the very pixels it is asked for.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.raw_files import check_split, read_json, safe_key
from stagecoach.data.files import sha256_file
from stagecoach.data.movie_post_production.objects import (
    Box,
    DescribedObject,
    read_number,
    read_object,
    read_size,
    read_text,
)
from stagecoach.data.pictures import SUFFIXES, find_pictures

CAPTIONS, IMAGES = "captions", "images"


@dataclass(frozen=True)
class RawReference:
    """The object whose crop describes an object: of the picture itself, or of another one."""

    image_id: str
    object_id: int
    image: Path
    box: Box


@dataclass(frozen=True)
class RawObject(DescribedObject):
    """``reference``: filled in by ``read_captions``."""

    reference: RawReference


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
    images = find_images(base / IMAGES)
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


def find_images(folder: Path) -> dict[str, Path]:
    """Pictures by name without suffix; of several of one name the first of ``SUFFIXES``."""
    found, _ = find_pictures(folder)
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
    caption = read_text(entry, "global_caption", str(path))
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
        read_size(entry, path),
        check_split(entry, str(path)),
        sha256_file(path),
    )
    return picture, wanted


def _read_object(entry: Any, where: str, image_id: str, image: Path) -> tuple[RawObject, tuple[str, int]]:
    found = read_object(entry, where)
    reference = image_id, found.object_id
    if entry.get("ref_image_id") is not None:
        named = {"ref_object_id": found.object_id, **entry}
        reference = str(entry["ref_image_id"]), read_number(named, "ref_object_id", where)
    own = RawReference(image_id, found.object_id, image, found.box)
    return RawObject(**vars(found), reference=own), reference


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


def _key(image_id: str) -> str:
    """The image id where it may stand in a tar, else made so, with a hash of it to stay unique."""
    key = safe_key(image_id)
    return key if key == image_id else f"{key}-{hashlib.sha256(image_id.encode()).hexdigest()[:8]}"
