"""The objects of a picture as the guide's JSON describes them, with or without the picture: boxes, words, depth."""

from dataclasses import dataclass
from typing import Any

from stagecoach.data.building.jobs import RawError
from stagecoach.data.movie_post_production.boxes import Box, BoxConvention, read_box
from stagecoach.data.movie_post_production.schema import DEPTH_LABELS
from stagecoach.data.names import composed

ObjectId = int | str


@dataclass(frozen=True)
class DescribedObject:
    """``box``: x1 y1 x2 y2 in [0, 1]. ``depth``: index into ``DEPTH_LABELS``; ``depth_given`` is false where it was
    guessed from the box."""

    object_id: ObjectId
    category: str
    caption: str
    box: Box
    depth: int
    depth_given: bool

    @property
    def text(self) -> str:
        """Category and caption in one line."""
        return ", ".join(word.strip() for word in (self.category, self.caption) if word.strip())


def read_object(
    entry: Any,
    where: str,
    number: int | None = None,
    convention: BoxConvention | None = None,
    size: tuple[int, int] | None = None,
) -> DescribedObject:
    """The object of an entry; ``number`` is its id where it names none (None: it must). ``size``: width and height of
    the picture, for boxes in pixels. Raises ``RawError``."""
    if not isinstance(entry, dict):
        raise RawError(
            f"{where}: holds {type(entry).__name__}, expected an object with object_id, category_name, bbox and caption"
        )
    name: ObjectId | None = number
    if name is None or entry.get("object_id") is not None:
        name = read_id(entry, "object_id", where)
    box = read_box(entry.get("bbox"), where, convention, size)
    label = entry.get("depth_label")
    if label is not None and label not in DEPTH_LABELS:
        raise RawError(f"{where}: 'depth_label' is {label!r}, expected one of {list(DEPTH_LABELS)} or none")
    depth = guess_depth(box) if label is None else DEPTH_LABELS.index(label)
    words = [entry.get(name) or "" for name in ("category_name", "caption")]
    if not all(isinstance(word, str) for word in words) or not any(word.strip() for word in words):
        raise RawError(
            f"{where}: category_name and caption are {words!r:.80}, expected texts, of which one may be empty"
        )
    return DescribedObject(name, *words, box, depth, label is not None)


def guess_depth(box: Box) -> int:
    """The guide's own rule for a box without a label (movie_post_production §3.1): by area and height of the centre."""
    area, centre = (box[2] - box[0]) * (box[3] - box[1]), (box[1] + box[3]) / 2
    if area > 0.1 or centre > 0.7:
        return 0
    return 2 if area < 0.01 or centre < 0.3 else 1


def read_text(entry: dict, name: str, where: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value.strip():
        raise RawError(f"{where}: {name!r} is {value!r:.60}, expected a text; found keys {sorted(entry)}")
    return value


def read_number(entry: dict, name: str, where: str, more: str = "") -> int:
    value = entry.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise RawError(f"{where}: {name!r} is {value!r:.60}, expected a whole number from 0{more}")
    return value


def read_id(entry: dict, name: str, where: str) -> ObjectId:
    """A whole number, also where it stands as text, or a text that can be a part of a file's name."""
    value = entry.get(name)
    if not isinstance(value, str):
        return read_number(entry, name, where, " or a text")
    if not value.strip() or "/" in value or not value.isprintable():
        raise RawError(f"{where}: {name!r} is {value!r:.60}, expected a number from 0 or a printable text without /")
    return int(value) if value.isascii() and value.isdigit() and str(int(value)) == value else composed(value)


def read_size(entry: dict, path: object) -> tuple[int, int] | None:
    if entry.get("width") is None and entry.get("height") is None:
        return None
    width, height = read_number(entry, "width", str(path)), read_number(entry, "height", str(path))
    if not width or not height:
        raise RawError(f"{path}: a picture of {width} x {height} is given, expected a size above 0 or none")
    return width, height
