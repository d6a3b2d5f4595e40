"""The guide's raw layout: ``captions/<image id>.json`` next to ``images/<image id>.png`` (``readers`` reads the files).

Keys of a caption file: image_id, global_caption, objects (each with object_id, category_name, bbox, caption and, where
known, depth_label; none in a picture without objects), and optionally width, height, split and image_path, whose last
part names the picture. DenseLayout's ``prompt`` and ``annos`` are global_caption and objects with boxes in pixels. An
object may name a reference from another picture by ``ref_image_id`` and ``ref_object_id`` (without it the same
object_id): its CLIP and DINO vectors are then those of that object there, so that the network cannot copy the very
pixels it is asked for. Names are compared with composed letters (``data.names``).
"""

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.raw_files import check_split, read_json, safe_key
from stagecoach.data.files import sha256_file
from stagecoach.data.movie_post_production.boxes import Box, BoxConvention, BoxFormat, BoxSurvey, BoxUnits
from stagecoach.data.movie_post_production.objects import (
    DescribedObject,
    ObjectId,
    read_id,
    read_object,
    read_size,
    read_text,
)
from stagecoach.data.names import composed
from stagecoach.data.pictures import FORMATS, SUFFIXES, find_pictures, picture_size, warn_of_others

CAPTIONS, IMAGES = "captions", "images"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RawReference:
    """The object whose crop describes an object: of the picture itself, or of another one."""

    image_id: str
    object_id: ObjectId
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


@dataclass(frozen=True)
class Boxes:
    """How boxes are read: as a person says, else corners, in fractions of the picture, or in ``annos`` in pixels."""

    format: BoxFormat | None = None
    units: BoxUnits | None = None

    def of(self, entry: dict) -> BoxConvention:
        """In this caption file."""
        return BoxConvention(self.format or "xyxy", self.units or ("pixel" if "annos" in entry else "fraction"))


def read_captions(
    base: Path, boxes: Boxes | None = None
) -> tuple[list[RawPicture], list[tuple[str, RawError]], list[str]]:
    """Pictures of ``base`` by name of their caption file; (file, error) of those that cannot be used, first those that
    are bad themselves, then those that refer to one of them; and the names of all caption files, sorted. Pictures
    without captions and files of other kinds are named in warnings.

    Raises ``RawError`` where there is none, and where most boxes are none as ``boxes`` reads them.
    """
    folder, boxes = base / CAPTIONS, boxes or Boxes()
    found = [p for p in folder.glob("*.json") if p.name[0] != "."] if folder.is_dir() else []
    names: dict[str, Path] = {}
    bad: list[tuple[str, RawError]] = []
    for path in sorted(found):
        if (first := names.setdefault(composed(path.name), path)) is not path:
            bad.append((str(path), RawError(f"{path}: the same name as {first.name!r} in other letters, expected one")))
    if not names:
        raise RawError(
            f"{folder}: no caption file found, expected {folder.name}/<image id>.json next to {IMAGES}/<image id>.png"
        )
    images, survey = _Images(base / IMAGES), BoxSurvey(boxes.format is not None)
    read: dict[str, tuple[RawPicture, dict[ObjectId, tuple[str, ObjectId]]]] = {}
    for name, path in sorted(names.items()):
        try:
            read[name.removesuffix(".json")] = _read_picture(path, images, boxes, survey)
        except RawError as error:
            bad.append((str(path), error))
    survey.check(folder)
    known = {name: picture for name, (picture, _) in read.items()}
    pictures = []
    for picture, wanted in read.values():
        try:
            pictures.append(_with_references(picture, wanted, known))
        except RawError as error:
            bad.append((str(picture.captions), error))
    images.warn()
    return pictures, bad, sorted(names)


def find_images(folder: Path) -> dict[str, Path]:
    """Pictures by name without suffix; of several of one name the first of ``SUFFIXES``."""
    return _Images(folder).by_id


class _Images:
    """The pictures of a folder. ``by_id``: by name without suffix, of several the first of ``SUFFIXES``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        found, self._others = find_pictures(folder)
        found.sort(key=lambda p: (SUFFIXES.index(p.suffix.lower()), p.name), reverse=True)
        self.by_id = {composed(path.stem): path for path in found}
        self._by_name = {composed(path.name): path for path in found}
        self._asked: set[Path] = set()

    def of(self, image_id: str, entry: dict, captions: Path) -> Path:
        """The picture of a caption file: the one that its image_path names, else that of its id. Raises
        ``RawError``."""
        named = composed(Path(str(entry.get("image_path") or "")).name)
        image = self._by_name.get(named) or self.by_id.get(image_id)
        unread = next((path for path in self._others if composed(path.stem) == image_id), None)
        if image is None and unread is not None:
            raise RawError(f"{unread}: a format that is not read, expected {FORMATS}")
        if image is None:
            raise RawError(f"{self._folder / image_id}.png: missing, expected the picture of {captions}")
        self._asked.add(image)
        return image

    def warn(self) -> None:
        """Name what no caption file asked for."""
        warn_of_others(self._folder, self._others)
        unasked = sorted(set(self._by_name.values()) - self._asked)
        if unasked:
            number, first = len(unasked), unasked[0].name
            _log.warning("%s: passed over %d pictures without a caption file (first %s)", self._folder, number, first)


def _read_picture(
    path: Path, images: _Images, boxes: Boxes, survey: BoxSurvey
) -> tuple[RawPicture, dict[ObjectId, tuple[str, ObjectId]]]:
    """The picture, and by object the (image id, object id) of references from other pictures."""
    entry = read_json(path, "a caption file")
    if not isinstance(entry, dict):
        raise RawError(
            f"{path}: holds {type(entry).__name__}, expected an object with image_id, global_caption and objects"
        )
    image_id = composed(path.name).removesuffix(".json")
    if composed(str(entry.get("image_id", image_id))) != image_id:
        raise RawError(f"{path}: image_id is {entry['image_id']!r}, expected the file's name {image_id!r}")
    published = "annos" in entry and "objects" not in entry
    image, size, listed = images.of(image_id, entry, path), read_size(entry, path), _listed(entry, path, published)
    convention = boxes.of(entry)
    if size is None and convention.units == "pixel" and listed:
        size = picture_size(image)[::-1]
    for value in listed:
        survey.add(value.get("bbox") if isinstance(value, dict) else None, convention, size)
    caption = read_text(entry, "prompt" if published else "global_caption", str(path))
    objects: list[RawObject] = []
    wanted = {}
    for index, value in enumerate(listed):
        where = f"{path}: object {index}"
        found = read_object(value, where, index if published else None, convention, size)
        if any(found.object_id == other.object_id for other in objects):
            raise RawError(f"{where} has the object_id {found.object_id} of another one, expected each once")
        reference = _reference(value, where, image_id, found.object_id)
        objects.append(RawObject(**vars(found), reference=RawReference(image_id, found.object_id, image, found.box)))
        if reference != (image_id, found.object_id):
            wanted[found.object_id] = reference
    split = check_split(entry, str(path))
    picture = RawPicture(_key(image_id), image_id, image, path, caption, tuple(objects), size, split, sha256_file(path))
    return picture, wanted


def _listed(entry: dict, path: Path, published: bool) -> list[Any]:
    """The entries of the objects; DenseLayout nests them in lists."""
    name = "annos" if published else "objects"
    listed = entry.get(name)
    if not isinstance(listed, list):
        raise RawError(f"{path}: {name!r} is {listed!r:.60}, expected a list of objects, [] in a picture without any")
    if published and listed and all(isinstance(value, list) for value in listed):
        return [value for inner in listed for value in inner]
    return listed


def _reference(entry: dict, where: str, image_id: str, object_id: ObjectId) -> tuple[str, ObjectId]:
    """(image id, object id) of the object whose crop describes this one."""
    if entry.get("ref_image_id") is None:
        return image_id, object_id
    return composed(str(entry["ref_image_id"])), read_id({"ref_object_id": object_id, **entry}, "ref_object_id", where)


def _with_references(
    picture: RawPicture, wanted: dict[ObjectId, tuple[str, ObjectId]], pictures: dict[str, RawPicture]
) -> RawPicture:
    objects = []
    for item in picture.objects:
        if item.object_id in wanted:
            image_id, object_id = wanted[item.object_id]
            other = pictures.get(image_id)
            found = next((o for o in other.objects if o.object_id == object_id), None) if other else None
            if found is None:
                raise RawError(
                    f"{picture.captions}: object {item.object_id!r} refers to object {object_id!r} of image "
                    f"{image_id!r}, expected one that a usable caption file describes"
                )
            item = replace(item, reference=RawReference(image_id, object_id, other.image, found.box))
        objects.append(item)
    return replace(picture, objects=tuple(objects))


def _key(image_id: str) -> str:
    """The image id where it may stand in a tar, else made so, with a hash of it to stay unique."""
    key = safe_key(image_id)
    return key if key == image_id else f"{key}-{hashlib.sha256(image_id.encode()).hexdigest()[:8]}"
