"""Pictures of textured objects on a floor before a wall, with exact boxes and depths.

Objects are flat figures that stand upright at a distance z from the camera, drawn from far to near: size and height in
the picture, occlusion and haze tell their depth as they do in the world. The pattern of an object is drawn on the
figure, so that it looks alike at any size: that is its identity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLOURS = {
    "red": (0.82, 0.16, 0.14),
    "orange": (0.95, 0.55, 0.10),
    "yellow": (0.93, 0.84, 0.20),
    "green": (0.18, 0.62, 0.24),
    "teal": (0.10, 0.60, 0.60),
    "blue": (0.16, 0.30, 0.82),
    "purple": (0.55, 0.24, 0.72),
    "pink": (0.93, 0.55, 0.70),
    "white": (0.94, 0.94, 0.92),
    "black": (0.10, 0.10, 0.12),
}
PATTERNS = ("plain", "striped", "checkered", "dotted")
SHAPES = ("ball", "block", "cone", "pillar", "ring")
GROUNDS = {
    "sand": (0.80, 0.72, 0.52),
    "grass": (0.45, 0.62, 0.35),
    "stone": (0.55, 0.55, 0.58),
    "wood": (0.55, 0.40, 0.26),
}
WALLS = {
    "grey": (0.66, 0.68, 0.72),
    "cream": (0.88, 0.84, 0.74),
    "pale blue": (0.66, 0.76, 0.86),
    "dim brown": (0.48, 0.42, 0.38),
}
HAZE = np.array([0.80, 0.84, 0.88])
SUPERSAMPLING = 2
HORIZON = 0.38
"""Height of the horizon in the picture; the wall stands on it."""
EYE = 1.5
"""Metres of the camera above the floor."""
NEAR, MIDDLE, FAR = 4.5, 7.5, 12.0
"""Distances where the foreground ends, where the background starts, and of the farthest object."""
MIN_VISIBLE = 0.6
MIN_SIDE = 0.07


@dataclass(frozen=True)
class Variety:
    """What pictures hold: from ``least`` to ``most`` objects, at most ``far`` metres away, of ``patterns``.
    ``described``: whether captions say what they look like."""

    least: int = 2
    most: int = 6
    far: float = FAR
    patterns: tuple[str, ...] = PATTERNS
    described: bool = True


EVERYTHING = Variety()


@dataclass(frozen=True)
class Identity:
    """What an object looks like wherever it stands."""

    shape: str
    pattern: str
    colours: tuple[str, str]

    @classmethod
    def draw(cls, random: np.random.Generator, patterns: tuple[str, ...] = PATTERNS) -> Identity:
        first, second = random.choice(list(COLOURS), 2, replace=False)
        return cls(str(random.choice(SHAPES)), str(random.choice(patterns)), (str(first), str(second)))

    def __str__(self) -> str:
        if self.pattern == "plain":
            return f"a plain {self.colours[0]} {self.shape}"
        return f"a {self.pattern} {self.colours[0]} and {self.colours[1]} {self.shape}"

    def mask(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Whether points of the figure's square, both in [-1, 1] with b upwards, belong to it."""
        inside = (np.abs(a) <= 1) & (np.abs(b) <= 1)
        match self.shape:
            case "ball":
                return inside & (a * a + b * b <= 1)
            case "cone":
                return inside & (np.abs(a) <= (1 - b) / 2)
            case "pillar":
                return inside & (np.abs(a) <= 0.45)
            case "ring":
                return inside & (np.abs(a * a + b * b - 0.65) <= 0.35)
        return inside

    def colour(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Colours [..., 3] at points of the figure, lit from the upper left."""
        match self.pattern:
            case "striped":
                second = np.sin(7.5 * b + 1) > 0
            case "checkered":
                second = (np.sin(6 * a) > 0) ^ (np.sin(6 * b) > 0)
            case "dotted":
                second = np.cos(8 * a) + np.cos(8 * b) > 0.9
            case _:
                second = np.zeros(a.shape, bool)
        first, other = (np.array(COLOURS[name]) for name in self.colours)
        light = np.clip(0.92 + 0.16 * b - 0.16 * a, 0, 1.1)
        return np.where(second[..., None], other, first) * light[..., None]


@dataclass(frozen=True)
class Placed:
    """An object in a picture: its foot at ``x`` metres to the right and ``z`` metres away, ``half`` its half height."""

    identity: Identity
    x: float
    z: float
    half: float

    @property
    def depth_label(self) -> str:
        return "foreground" if self.z < NEAR else "midground" if self.z < MIDDLE else "background"

    def local(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates [H, W] of the figure's square at the centres of the pixels."""
        focal = 0.9 * height
        half = focal * self.half / self.z
        centre = width / 2 + focal * self.x / self.z, HORIZON * height + focal * EYE / self.z - half
        y, x = np.mgrid[:height, :width] + 0.5
        return (x - centre[0]) / half, (centre[1] - y) / half


@dataclass(frozen=True)
class Picture:
    """``image`` uint8 [H, W, 3]; ``owner`` int64 [2H, 2W]: the object seen at each quarter of a pixel, -1 for none;
    ``boxes`` x1 y1 x2 y2 in [0, 1] of what is seen of each."""

    image: np.ndarray
    owner: np.ndarray
    objects: tuple[Placed, ...]
    boxes: tuple[tuple[float, float, float, float], ...]
    caption: str


def render(seed: int, index: int, height: int, width: int, variety: Variety = EVERYTHING) -> Picture:
    """Picture ``index`` of a seed. Pictures 2k and 2k + 1 share the identity of their first object.

    Raises ``ValueError`` for pictures that are too small or too narrow to show two objects.
    """
    if min(height, width) < 32 or not 0.4 <= height / width <= 2.5:
        raise ValueError(
            f"pictures of {height} x {width} asked for, expected sides of at least 32 and not more than 2.5 to 1"
        )
    random = np.random.default_rng([seed, index])
    shared = Identity.draw(np.random.default_rng([seed, index // 2, 1]), variety.patterns)
    size = SUPERSAMPLING * height, SUPERSAMPLING * width
    objects = _place(random, shared, size, variety)
    ground, wall = str(random.choice(list(GROUNDS))), str(random.choice(list(WALLS)))
    image = _backdrop(random, GROUNDS[ground], WALLS[wall], size)
    owner = np.full(size, -1)
    for number in sorted(range(len(objects)), key=lambda i: -objects[i].z):
        placed = objects[number]
        a, b = placed.local(*size)
        mask = placed.identity.mask(a, b)
        image[mask] = _hazy(placed.identity.colour(a[mask], b[mask]), placed.z)
        owner[mask] = number
    where = {"foreground": "in front", "midground": "farther back", "background": "in the distance"}
    names = [str(placed.identity) if variety.described else "a thing" for placed in objects]
    things = ", ".join(f"{n} {where[placed.depth_label]}" for n, placed in zip(names, objects, strict=True))
    image = image.reshape(height, SUPERSAMPLING, width, SUPERSAMPLING, 3).mean((1, 3))
    return Picture(
        (np.clip(image, 0, 1) * 255).round().astype(np.uint8),
        owner,
        tuple(objects),
        tuple(_box(owner == number) for number in range(len(objects))),
        f"{things}, on {ground} before a {wall} wall",
    )


def _place(random: np.random.Generator, first: Identity, size: tuple[int, int], variety: Variety) -> list[Placed]:
    """Different objects, each mostly seen and large enough."""
    objects: list[Placed] = []
    wanted, tries = random.integers(variety.least, variety.most + 1), 0
    while len(objects) < wanted and (tries < 80 or len(objects) < variety.least):
        tries += 1
        identity = Identity.draw(random, variety.patterns) if objects else first
        z = float(np.exp(random.uniform(np.log(2.8), np.log(variety.far))))
        reach = 0.5 * size[1] / size[0] / 0.9 * z
        placed = Placed(identity, random.uniform(-reach, reach), z, random.uniform(0.45, 0.95))
        if any(identity == other.identity for other in objects) or not _fits([*objects, placed], size):
            continue
        objects.append(placed)
    return objects


def _fits(objects: list[Placed], size: tuple[int, int]) -> bool:
    """Whether all of the last figure is in the picture and no object is hidden or too small."""
    coordinates = [placed.local(*size) for placed in objects]
    masks = [placed.identity.mask(*c) for placed, c in zip(objects, coordinates, strict=True)]
    a, b = coordinates[-1]
    if a[0, 0] > -1 or a[0, -1] < 1 or b[0, 0] < 1 or b[-1, 0] > -1:
        return False
    for placed, mask in zip(objects, masks, strict=True):
        nearer = [m for other, m in zip(objects, masks, strict=True) if other.z < placed.z]
        visible = mask & ~np.any(nearer, axis=0) if nearer else mask
        if visible.sum() < MIN_VISIBLE * mask.sum() or not visible.any():
            return False
        x1, y1, x2, y2 = _box(visible)
        if x2 - x1 < MIN_SIDE or y2 - y1 < MIN_SIDE:
            return False
    return True


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = mask.shape
    return (
        float(columns[0] / width),
        float(rows[0] / height),
        float((columns[-1] + 1) / width),
        float((rows[-1] + 1) / height),
    )


def _backdrop(
    random: np.random.Generator, ground: tuple[float, ...], wall: tuple[float, ...], size: tuple[int, int]
) -> np.ndarray:
    height, width = size
    y, x = np.mgrid[:height, :width] + 0.5
    below = y - HORIZON * height
    z = np.minimum(0.9 * height * EYE / np.maximum(below, 1e-3), 3 * FAR)
    tiles = np.sin(2.2 * (x - width / 2) * z / (0.9 * height) + random.uniform(0, 6)) * np.sin(2.2 * z)
    floor = np.array(ground) * (1 + 0.10 * np.tanh(2 * tiles))[..., None]
    back = np.array(wall) * (0.94 + 0.06 * np.sin(12 * x / width + random.uniform(0, 6)))[..., None]
    return np.where(below[..., None] > 0, _hazy(floor, z[..., None]), _hazy(back, 1.3 * FAR))


def _hazy(colour: np.ndarray, z: np.ndarray | float) -> np.ndarray:
    clear = np.exp(-np.asarray(z) / (3 * FAR))
    return colour * clear + HAZE * (1 - clear)
