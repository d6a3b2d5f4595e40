"""Pictures: read from files, cropped to a size, made of numbers, put together to sheets."""

from __future__ import annotations

import logging
import mimetypes
import re
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.options import Argument
from stagecoach.data.local_files import is_file

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif")
FORMATS = "PNG, JPEG, WebP, TIFF, BMP or GIF"
ORIENTATION, SIDES_SWAPPED = 0x0112, 5
"""The EXIF tag, and its lowest value that swaps height and width."""
SIXTEEN_BITS = 65535
TWELVE_BITS = 4095
"""The largest number of cameras and scanners that store 12 bits in 16."""

Size = tuple[int, int]
"""Height and width in pixels."""
TOKEN_STRIDE = 16
"""Pixels per token of a transformer that takes 2 x 2 latents of a VAE of stride 8 as one."""
ASPECTS = (1.0, 4 / 3, 3 / 2, 16 / 9, 21 / 9)
"""Width to height of the sizes for an area; each also upright."""
MAX_ENLARGED = 2.0
"""A picture that would have to grow by more has no detail for the size that was asked for."""

INVALID = (96, 96, 96)
MOST_VALUES = 4_000_000
"""Of a clip's depth whose percentiles are taken."""
TITLE = 16
"""Height of a title in pixels."""

# Polynomial fit of Google's Turbo colour map (R. Du, A. Mikhailov, 2019; Apache-2.0): rows are red, green, blue,
# columns the powers 0 to 5.
_TURBO = np.array(
    [
        [0.13572138, 4.61539260, -42.66032258, 132.13108234, -152.94239396, 59.28637943],
        [0.09140261, 2.19418839, 4.84296658, -14.18503333, 4.27729857, 2.82956604],
        [0.10667330, 12.64194608, -60.58204836, 110.36276771, -89.90310912, 27.34824973],
    ]
)


_log = logging.getLogger(__name__)


def find_pictures(folder: Path, below: bool = False) -> tuple[list[Path], list[Path]]:
    """The pictures of a folder by their suffix, and its other files, each by name; of no folder none. ``below``: also
    of the folders in it. Hidden files, as a Mac leaves beside each (``._name``), are neither."""
    found = sorted(folder.rglob("*") if below else folder.iterdir()) if folder.is_dir() else []
    shown = [p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    pictures = [path for path in shown if path.suffix.lower() in SUFFIXES]
    return pictures, [path for path in shown if path.suffix.lower() not in SUFFIXES and not path.is_dir()]


def unread_pictures(others: Sequence[Path]) -> list[Path]:
    """Those of the other files of a folder that are pictures by their suffix, of formats that are not read."""
    return [path for path in others if (mimetypes.guess_type(path.name)[0] or "").startswith("image/")]


def warn_of_others(folder: Path, others: Sequence[Path], besides: Sequence[str] = ()) -> None:
    """Say which files of a folder of pictures are passed over, but those of the suffixes ``besides``."""
    passed = [path for path in others if path.suffix.lower() not in besides]
    if passed:
        kinds = Counter(path.suffix or "without a suffix" for path in passed)
        counted = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
        _log.warning("%s: passed over %s (first %s), no %s", folder, counted, passed[0].name, FORMATS)


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """Open a picture with Pillow. Raises ``RawError`` for what goes wrong inside the block."""
    if path.exists() and not is_file(path):  # the library would wait for the writer of a pipe
        raise RawError(f"{path}: no regular file, expected a picture; remove what lies there")
    try:
        # By a path Pillow maps uncompressed TIFFs into memory, which goes wrong where they are turned.
        with path.open("rb") as file, Image.open(file) as image:
            yield image
    except RawError:
        raise
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, struct.error, Image.DecompressionBombError) as error:
        raise RawError(f"{path}: not readable as a picture ({error}), expected {FORMATS}") from error


def picture_size(path: Path) -> Size:
    """Height and width of the upright picture, from its header."""
    with open_picture(path) as image:
        # Pillow gives a TIFF's size upright.
        turned = image.format != "TIFF" and image.getexif().get(ORIENTATION, 1) in range(SIDES_SWAPPED, 9)
        return image.size if turned else image.size[::-1]


def read_picture(path: Path, behind: str = "white") -> Image.Image:
    """Read a picture as 8-bit RGB (``to_rgb``). Of several in one file the first is read, which is logged.

    Raises:
        RawError: not readable, or grey values beyond 16 bits, whose range nothing tells.
    """
    with open_picture(path) as image:
        # The further pictures of a phone's JPEG (MPO) are made of the first: its depth, its gain map.
        if (count := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
            _log.warning("%s: %d pictures in one file, of which the first is read", path, count)
        image.load()
        return to_rgb(image, str(path), behind)


def to_rgb(image: Image.Image, where: str, behind: str = "white") -> Image.Image:
    """The picture as it is seen, 8-bit RGB: turned upright by its EXIF orientation, 16-bit grey scaled to 8 bits, what
    is transparent on the colour ``behind``. Raises ``RawError`` naming ``where`` for grey values beyond 16 bits."""
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        image = _eight_bits(image, where)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, behind), image)
    return image.convert("RGB")


def _eight_bits(image: Image.Image, where: str) -> Image.Image:
    """Grey of 16 bits or more -> L, or LA where one grey value stands for transparent."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F" or low < 0 or high > SIXTEEN_BITS:
        raise RawError(
            f"{where}: grey values of mode {image.mode} from {low:g} to {high:g} found, expected 8 or 16 bits; save it "
            "as a PNG of one of them"
        )
    if 0 < high <= TWELVE_BITS:
        _log.warning(
            "%s: 16-bit grey up to %d of %d is all but black; if it holds 12 bits or fewer, scale it to 16",
            where,
            high,
            SIXTEEN_BITS,
        )
    grey = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    if isinstance(clear := image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def shrink(image: np.ndarray, longest: int) -> np.ndarray:
    """uint8 [H, W, 3] made smaller, bicubic, until no side is longer than ``longest``."""
    height, width, _ = image.shape
    factor = min(longest / max(height, width), 1.0)
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class CoverCrop:
    """The largest centred crop of the wanted aspect ratio, in continuous source pixels (the source spans [0, w] x
    [0, h]), and the factor ``scale`` from source to target pixels."""

    left: float
    top: float
    scale: float
    source_height: int
    source_width: int
    height: int
    width: int

    @classmethod
    def of(cls, source_height: int, source_width: int, height: int, width: int) -> CoverCrop:
        scale = max(height / source_height, width / source_width)
        # Rounding may put the side that fits exactly a hair outside of the source.
        left, top = max(source_width - width / scale, 0) / 2, max(source_height - height / scale, 0) / 2
        return cls(left, top, scale, source_height, source_width, height, width)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom in the source."""
        right = min(self.left + self.width / self.scale, self.source_width)
        return self.left, self.top, right, min(self.top + self.height / self.scale, self.source_height)

    def image(self, image: np.ndarray) -> np.ndarray:
        """uint8 [h, w, 3] -> [H, W, 3], bicubic, smoothed where it shrinks."""
        size = self.width, self.height
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC, box=self.box))

    def points(self, xy: np.ndarray) -> np.ndarray:
        """[..., 2] divided by the source's width and height -> divided by the crop's."""
        left, top, right, bottom = self.box
        return (xy * [self.source_width, self.source_height] - [left, top]) / [right - left, bottom - top]


def parse_sizes(words: Sequence[str]) -> list[Size]:
    """Sizes of "HxW" (one size) or "R" (the nine shapes of about R x R pixels). Raises ``ValueError``."""
    sizes = []
    for word in words:
        match = re.fullmatch(r"(\d+)(?:x(\d+))?", word)
        if match is None:
            raise ValueError(f"size {word!r} found, expected HEIGHTxWIDTH or one number R for shapes of R x R pixels")
        sizes += [(int(match[1]), int(match[2]))] if match[2] else shapes_of_area(int(match[1]))
    for size in sizes:
        if any(side < TOKEN_STRIDE or side % TOKEN_STRIDE for side in size):
            nearest = "x".join(str(max(round(side / TOKEN_STRIDE), 1) * TOKEN_STRIDE) for side in size)
            raise ValueError(
                f"size {size[0]}x{size[1]} found, expected multiples of {TOKEN_STRIDE} (VAE stride 8, "
                f"patch 2); take {nearest}"
            )
    return list(dict.fromkeys(sizes))


Sizes = Annotated[
    tuple[Size, ...],
    Argument(
        "HEIGHTxWIDTH, of which each picture takes the nearest in shape, or one number R for the usual shapes of R x R "
        "pixels (default: 1024)",
        metavar="SIZE",
        parse=parse_sizes,
        default=["1024"],
    ),
]
Preview = Annotated[int, Argument("longest side of the stored picture, for previews; 0 stores none", metavar="PIXELS")]


def check_sides(height: int, width: int, stride: int, why: str) -> None:
    """Raises ``ValueError`` for a side that is no multiple of ``stride``."""
    for name, size in (("height", height), ("width", width)):
        if size < stride or size % stride:
            raise ValueError(
                f"{name} {size} found, expected a multiple of {stride} ({why}); take {max(size // stride, 1) * stride}"
            )


def shapes_of_area(side: int) -> list[Size]:
    """Sizes of about ``side * side`` pixels for each of ``ASPECTS``, in multiples of a token."""
    shapes = []
    for aspect in ASPECTS:
        long, short = (
            max(round(side * factor / TOKEN_STRIDE), 1) * TOKEN_STRIDE for factor in (aspect**0.5, aspect**-0.5)
        )
        shapes += [(short, long), (long, short)]
    return list(dict.fromkeys(shapes))


def choose_size(height: int, width: int, sizes: Sequence[Size], where: str) -> Size:
    """The size that keeps most of a picture; among equals the largest that does not enlarge it, else the smallest.

    Raises ``RawError`` naming ``where`` for a picture that is too small for all that keep as much.
    """
    kept = {size: _kept(height, width, size) for size in sizes}
    best = [size for size in sizes if kept[size] > max(kept.values()) - 1e-6]
    best.sort(key=lambda size: size[0] * size[1])
    fitting = [size for size in best if _enlarged(height, width, size) <= 1]
    size = fitting[-1] if fitting else best[0]
    if _enlarged(height, width, size) > MAX_ENLARGED:
        raise RawError(
            f"{where}: {height} x {width} pixels found, expected at least 1/{MAX_ENLARGED:g} of {size[0]} x "
            f"{size[1]}, the size for its shape; give smaller --sizes or larger pictures"
        )
    return size


def _enlarged(height: int, width: int, size: Size) -> float:
    return max(size[0] / height, size[1] / width)


def _kept(height: int, width: int, size: Size) -> float:
    """Part of the picture's area inside the crop."""
    ratio = (size[1] / size[0]) / (width / height)
    return min(ratio, 1 / ratio)


def turbo(x: np.ndarray) -> np.ndarray:
    """Colours uint8 [..., 3] of numbers in [0, 1] (clipped): dark blue, green, yellow, dark red."""
    powers = np.clip(np.nan_to_num(x), 0, 1)[..., None] ** np.arange(6)
    return (np.clip(powers @ _TURBO.T, 0, 1) * 255).round().astype(np.uint8)


def depth_limits(depth: np.ndarray) -> tuple[float, float] | None:
    """The 2nd and the 98th percentile of 1 / depth over all valid values (above 0, finite) of a clip, float; None where
    there is none. Of a long clip about ``MOST_VALUES`` values count, evenly spread over it (by an odd step, which no
    usual width is a multiple of)."""
    values = depth.reshape(-1)[:: max(depth.size // MOST_VALUES, 1) | 1].astype(np.float32)
    values = values[(values > 0) & np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.percentile(1 / values, (2, 98))
    return float(low), float(high)


def depth_colours(depth: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    """Depth [..., H, W] (0 is invalid, grey) -> uint8 [..., H, W, 3]: near is red; by 1 / depth, one range for all:
    ``limits``, or else that of this depth (``depth_limits``)."""
    depth = depth.astype(np.float32)
    valid = (depth > 0) & np.isfinite(depth)
    low, high = limits or depth_limits(depth) or (0.0, 1.0)
    colours = turbo((1 / np.where(valid, depth, 1) - low) / max(high - low, 1e-6))
    colours[~valid] = INVALID
    return colours


def sheet(pictures: list[np.ndarray], columns: int) -> np.ndarray:
    """Pictures uint8 [h, w, 3], each in the upper left of its cell, on white."""
    height, width = (max(p.shape[i] for p in pictures) for i in (0, 1))
    rows = -(-len(pictures) // columns)
    out = np.full((rows, height, columns, width, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        out[row, : picture.shape[0], column, : picture.shape[1]] = picture
    return out.reshape(rows * height, columns * width, 3)


def titled(picture: np.ndarray, title: str) -> np.ndarray:
    """The picture under a line of text."""
    image = Image.new("RGB", (picture.shape[1], picture.shape[0] + TITLE), "white")
    image.paste(Image.fromarray(picture), (0, TITLE))
    ImageDraw.Draw(image).text((4, 2), title, fill="black")
    return np.asarray(image)


def resized(
    picture: np.ndarray, width: int | None = None, height: int | None = None, nearest: bool = False
) -> np.ndarray:
    """The picture at ``width`` x ``height``; where one is None, at its own aspect ratio. Bicubic, or ``nearest``."""
    if width is None:
        if height is None:
            raise ValueError("a picture is resized to no width and no height, expected at least one of them")
        width = max(round(picture.shape[1] * height / picture.shape[0]), 1)
    elif height is None:
        height = max(round(picture.shape[0] * width / picture.shape[1]), 1)
    kind = Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(picture).resize((width, height), kind))


def column(pictures: Sequence[np.ndarray], right: bool = False) -> np.ndarray:
    """Pictures below each other, the narrower filled up with white on the right (``right``: aligned there instead)."""
    width = max(picture.shape[1] for picture in pictures)
    missing = [(width - picture.shape[1]) * np.array([right, not right]) for picture in pictures]
    return np.concatenate(
        [np.pad(p, ((0, 0), tuple(m), (0, 0)), constant_values=255) for p, m in zip(pictures, missing, strict=True)]
    )
