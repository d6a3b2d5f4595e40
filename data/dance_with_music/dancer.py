"""A drawn dancer with exact points: a body whose poses are those of a song's beats, dressed by a number.

Lengths are fractions of the picture's height. The limbs stand still on each beat and move between them as a cosine
does, so that the beats of the motion (its slowest moments) are those of the music."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from stagecoach.data.dance_with_music.skeleton import FACE, FEET, KEYPOINTS, LEFT_HAND, RIGHT_HAND
from stagecoach.data.dance_with_music.song import MOVES, Song

ENLARGED = 2
"""Drawn larger and made smaller, for smooth edges."""
HEAD = 0.085
TORSO, SHOULDERS, HIPS = 0.23, 0.075, 0.045
UPPER_ARM, FOREARM, THIGH, SHIN = 0.115, 0.105, 0.165, 0.155
HAND, FOOT = 0.04, 0.05

# Angles of a key pose from straight down, outwards: upper arm, forearm, thigh, shin of each side; lean, tilt of the
# head, then how far the hips are shifted and how deep they are.
_LOW = np.array([0.2, 0.2, 0.2, 0.2, 0.05, -0.3, 0.05, -0.3, -0.25, -0.3, -0.08, 0.0])
_HIGH = np.array([2.6, 3.0, 2.6, 3.0, 0.7, 0.2, 0.7, 0.2, 0.25, 0.3, 0.08, 0.06])
KEY_POSES = np.random.default_rng(134).uniform(_LOW, _HIGH, (MOVES, 2, len(_LOW)))
"""[move, on the drum or on the snare, angle], the same for all songs."""


@dataclass(frozen=True)
class Looks:
    """What a dancer is known by."""

    name: str
    size: float
    skin: tuple[int, int, int]
    hair: tuple[int, int, int]
    shirt: tuple[int, int, int]
    trousers: tuple[int, int, int]
    eyes: tuple[int, int, int]
    long_hair: bool
    glasses: bool
    beard: bool
    mouth: float

    @classmethod
    def of(cls, seed: int, number: int) -> Looks:
        """Dancer ``number`` of a seed."""
        random = np.random.default_rng([seed, number, 2])
        skin = _hsv(random.uniform(0.05, 0.09), random.uniform(0.25, 0.6), random.uniform(0.45, 0.95))
        hair, shirt, trousers, eyes = (
            _hsv(random.random(), random.uniform(0.4, 0.9), value) for value in (0.45, 0.9, 0.55, 0.5)
        )
        return cls(
            f"dancer_{number:03d}",
            float(random.uniform(0.9, 1.05)),
            skin,
            hair,
            shirt,
            trousers,
            eyes,
            *(bool(b) for b in random.random(3) < 0.5),
            float(random.uniform(0.75, 1.25)),
        )


def pose_angles(song: Song, time: float) -> np.ndarray:
    """The angles at a time in seconds, float64 [12]."""
    beat = (time - song.first) / song.beat
    number = int(np.floor(beat))
    ease = (1 - np.cos(np.pi * (beat - number))) / 2
    one, two = (KEY_POSES[song.move(n), n % 2] for n in (number, number + 1))
    return (1 - ease) * one + ease * two


def dancer_points(angles: np.ndarray, looks: Looks, aspect: float) -> np.ndarray:
    """DWPose's 134 points, float64 [134, 2], divided by width and height, in a picture of width / height ``aspect``.
    The dancer's right side is the left one of the picture."""
    s = looks.size
    lean, tilt, shift, depth = angles[8:]
    hips = np.array([aspect / 2 + shift, 0.58 + depth])
    neck = hips + s * TORSO * np.array([np.sin(lean), -np.cos(lean)])
    head = neck + s * 1.15 * HEAD * np.array([np.sin(lean + tilt), -np.cos(lean + tilt)])
    across = np.array([np.cos(lean), np.sin(lean)])
    points = np.zeros((KEYPOINTS, 2))
    points[1] = neck
    for side, arm, leg, first in ((-1, angles[0:2], angles[4:6], 2), (1, angles[2:4], angles[6:8], 5)):
        shoulder, hip = neck + side * s * SHOULDERS * across, hips + side * s * HIPS * across
        elbow = shoulder + s * UPPER_ARM * _ray(side * arm[0])
        wrist = elbow + s * FOREARM * _ray(side * arm[1])
        knee = hip + s * THIGH * _ray(side * leg[0])
        ankle = knee + s * SHIN * _ray(side * leg[1])
        points[first : first + 3] = shoulder, elbow, wrist
        points[first + 6 : first + 9] = hip, knee, ankle
        toes = s * FOOT * np.array([[side, 0.35], [side * 0.8, 0.5], [-side * 0.25, 0.35]])
        points[FEET][slice(3) if side > 0 else slice(3, 6)] = ankle + toes
        points[LEFT_HAND if side > 0 else RIGHT_HAND] = _hand(wrist, side * arm[1], s * HAND)
    face = head + s * HEAD * _turn(_face_template(looks.mouth), lean + tilt)
    points[FACE] = face
    points[0] = face[30]
    points[14], points[15] = face[36:42].mean(0), face[42:48].mean(0)
    points[16], points[17] = face[0], face[16]
    return points / [aspect, 1]


def draw_dancer(xy: np.ndarray, looks: Looks, background: np.ndarray) -> np.ndarray:
    """The dancer with those points in a copy of uint8 [H, W, 3]."""
    height, width = background.shape[:2]
    picture = Image.fromarray(background).resize((width * ENLARGED, height * ENLARGED), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    points = xy * [width * ENLARGED, height * ENLARGED]
    unit = height * ENLARGED * looks.size

    def limb(colour: tuple[int, int, int], thick: float, *numbers: int) -> None:
        line = [tuple(points[n]) for n in numbers]
        draw.line(line, fill=colour, width=max(round(thick * unit), 1), joint="curve")
        for x, y in line:
            radius = thick * unit / 2
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    for hip, knee, ankle, toe in ((8, 9, 10, FEET.start + 3), (11, 12, 13, FEET.start)):
        limb(looks.trousers, 0.06, hip, knee, ankle)
        limb(looks.hair, 0.03, ankle, toe)
    draw.polygon([tuple(points[n]) for n in (2, 5, 11, 8)], fill=looks.shirt)
    limb(looks.shirt, 0.055, 2, 5)
    limb(looks.trousers, 0.06, 8, 11)
    for shoulder, elbow, wrist, hand in ((2, 3, 4, RIGHT_HAND), (5, 6, 7, LEFT_HAND)):
        limb(looks.shirt, 0.045, shoulder, elbow)
        limb(looks.skin, 0.035, elbow, wrist)
        limb(looks.skin, 0.03, wrist, hand.start + 9)
    limb(looks.skin, 0.045, 1, 0)
    _draw_head(draw, points[FACE], looks, unit)
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX))


def _draw_head(draw: ImageDraw.ImageDraw, face: np.ndarray, looks: Looks, unit: float) -> None:
    centre = (face[0] + face[16]) / 2
    down = face[8] - centre
    across = (face[16] - face[0]) / 2
    radius = HEAD * unit

    def spot(middle: np.ndarray, size: float, colour: tuple[int, int, int]) -> None:
        r = size * radius
        draw.ellipse((middle[0] - r, middle[1] - r, middle[0] + r, middle[1] + r), fill=colour)

    if looks.long_hair:
        for side in (-1, 1):
            for step in (0.0, 0.45, 0.9):
                spot(centre + side * across + step * down, 0.35, looks.hair)
    spot(centre - 0.25 * down, 1.12, looks.hair)
    draw.polygon(
        [tuple(p) for p in (*face[:17], *(centre + side * across - 0.55 * down for side in (0.75, -0.75)))],
        fill=looks.skin,
    )
    if looks.beard:
        draw.polygon([tuple(p) for p in (*face[3:14], face[54], face[57], face[48])], fill=looks.hair)
    for first in (17, 22):
        draw.line([tuple(p) for p in face[first : first + 5]], fill=looks.hair, width=max(round(0.12 * radius), 1))
    for group in (face[36:42], face[42:48]):
        spot(group.mean(0), 0.2, (250, 250, 250))
        spot(group.mean(0), 0.13, looks.eyes)
        if looks.glasses:
            x, y = group.mean(0)
            r = 0.3 * radius
            draw.ellipse((x - r, y - r, x + r, y + r), outline=(20, 20, 20), width=max(round(0.07 * radius), 1))
    draw.line([tuple(face[27]), tuple(face[30])], fill=_darker(looks.skin), width=max(round(0.1 * radius), 1))
    draw.polygon([tuple(p) for p in face[48:60]], fill=(190, 40, 60))


def _face_template(mouth: float) -> np.ndarray:
    """iBUG's 68 points of a face seen from the front, about its middle; 1 is the radius of the head."""
    jaw = [(0.85 * np.sin(a), 0.95 * np.cos(a)) for a in np.linspace(-np.pi / 2, np.pi / 2, 17)]
    brows = [
        (side * x, -0.42 - 0.1 * np.sin(k * np.pi / 4))
        for side, xs in ((-1, (0.6, 0.5, 0.38, 0.26, 0.15)), (1, (0.15, 0.26, 0.38, 0.5, 0.6)))
        for k, x in enumerate(xs)
    ]
    nose = [*((0, y) for y in (-0.2, -0.07, 0.06, 0.2)), *((x, 0.28) for x in (-0.14, -0.07, 0, 0.07, 0.14))]
    eye = [(-0.15, 0), (-0.07, -0.08), (0.07, -0.08), (0.15, 0), (0.07, 0.08), (-0.07, 0.08)]
    eyes = [(side * 0.37 + x, -0.2 + y) for side in (-1, 1) for x, y in eye]
    upper = [(-0.3, 0), (-0.2, -0.07), (-0.08, -0.1), (0, -0.08), (0.08, -0.1), (0.2, -0.07), (0.3, 0)]
    outer = [*upper, (0.2, 0.09), (0.08, 0.13), (0, 0.14), (-0.08, 0.13), (-0.2, 0.09)]
    inner = [(-0.22, 0), (-0.08, -0.03), (0, -0.02), (0.08, -0.03), (0.22, 0), (0.08, 0.05), (0, 0.06), (-0.08, 0.05)]
    lips = [(x * mouth, 0.55 + y) for x, y in (*outer, *inner)]
    return np.array([*jaw, *brows, *nose, *eyes, *lips])


def _hand(wrist: np.ndarray, angle: float, size: float) -> np.ndarray:
    fingers = [
        wrist + size * reach * _ray(angle + spread)
        for spread in np.linspace(-0.5, 0.5, 5)
        for reach in (0.35, 0.6, 0.8, 1.0)
    ]
    return np.array([wrist, *fingers])


def _ray(angle: float) -> np.ndarray:
    """Down at 0, to the right of the picture at a right angle."""
    return np.array([np.sin(angle), np.cos(angle)])


def _turn(points: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s], [-s, c]])


def _hsv(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))


def _darker(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    return tuple(round(0.7 * part) for part in colour)
