"""A synthetic raw data set: rendered scenes along camera paths, with exact depth and cameras, in the raw layout.

Clip ``i`` of a seed is the same in a set of any size. Worlds are turned, shifted and scaled at random before
they are written, as reconstructions come out, so that the builder's canonical frame and scale have something to do.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stagecoach.data.fantasy_world.raw import METADATA
from stagecoach.data.fantasy_world.scene import COLOURS, PATTERNS, Box, Plane, Scene, Sphere, Texture
from stagecoach.data.synthetic import Steps, write_set, write_video

FRAME_RATE = 8
AMOUNT = 0.35, 1.0
"""How far a path goes, drawn from between these."""
PATHS = {
    "push_in": "the camera moves forward into the room",
    "pull_back": "the camera moves backward out of the room",
    "orbit_left": "the camera circles around the room to the left",
    "orbit_right": "the camera circles around the room to the right",
    "truck_left": "the camera slides to the left",
    "truck_right": "the camera slides to the right",
    "crane_up": "the camera rises",
    "crane_down": "the camera sinks",
    "pan_left": "the camera turns to the left",
    "pan_right": "the camera turns to the right",
}


@dataclass(frozen=True)
class Variety:
    """Clips along ``paths`` in turn. ``described``: whether prompts name the path. ``interiors``: how many, each seen
    along all paths before the next; None: each clip has its own."""

    paths: tuple[str, ...] = tuple(PATHS)
    described: bool = True
    interiors: int | None = None


EVERYTHING = Variety()


@dataclass(frozen=True)
class SyntheticClip:
    """``video`` uint8 [F, H, W, 3]; ``depth`` float32 [F, H, W], 0 is sky; ``extrinsics`` float64 [F, 3, 4];
    ``intrinsics`` float64 [4], divided by width and height; ``path`` one of ``PATHS``."""

    video: np.ndarray
    depth: np.ndarray
    extrinsics: np.ndarray
    intrinsics: np.ndarray
    prompt: str
    path: str


def write_synthetic(
    directory: str | Path,
    clips: int,
    frames: int,
    height: int,
    width: int,
    seed: int,
    steps: Steps = iter,
    variety: Variety = EVERYTHING,
) -> None:
    """Write a raw data set of ``clips`` clips (see ``data.synthetic.write_set``).

    Raises ``ValueError`` for a size that cannot be written and for a directory that holds something else.
    """
    if height < 2 or width < 2 or height % 2 or width % 2:
        raise ValueError(f"clips of {height} x {width} asked for, expected even numbers for 4:2:0 video")
    if clips < 1 or frames < 1:
        raise ValueError(f"{clips} clips of {frames} frames asked for, expected at least one of each")

    def write(base: Path, index: int) -> dict[str, str]:
        return _write_clip(base, f"scene_{index:05d}", render_clip(seed, index, frames, height, width, variety))

    described = {"clips": clips, "frames": frames, "height": height, "width": width, "seed": seed}
    write_set(directory, clips, write, described, ("videos", "depth", "camera_params"), METADATA, steps)


def render_clip(
    seed: int, index: int, frames: int, height: int, width: int, variety: Variety = EVERYTHING
) -> SyntheticClip:
    """Clip ``index`` of a seed: an interior with solids, seen along a path."""
    random = np.random.default_rng([seed, index])
    path, amount = variety.paths[index % len(variety.paths)], None
    if variety.interiors is not None:
        amount = random.uniform(*AMOUNT)
        random = np.random.default_rng([seed, index // len(variety.paths) % variety.interiors])
    vertical_fov = np.radians(random.uniform(42, 64))
    focal = height / 2 / np.tan(vertical_fov / 2)
    pixels = np.array([focal, focal, width / 2, height / 2])
    wall = random.uniform(6, 14)
    extrinsics = camera_path(path, frames, wall * random.uniform(0.4, 0.55), random, amount)
    scene, description = _room(random, extrinsics, wall)
    pictures, depths = zip(*(scene.render(e, pixels, height, width) for e in extrinsics), strict=True)
    world, unit = _similarity(random)
    moved = extrinsics @ world
    moved[..., 3] *= unit
    return SyntheticClip(
        np.stack(pictures),
        np.stack(depths) * np.float32(unit),
        moved,
        pixels / np.array([width, height, width, height]),
        f"{description}; {PATHS[path]}" if variety.described else description,
        path,
    )


def camera_path(
    path: str, frames: int, distance: float, random: np.random.Generator, amount: float | None = None
) -> np.ndarray:
    """World-to-camera [F, 3, 4] of a steady motion that starts at eye level and looks at a point ``distance`` ahead."""
    pitch, eye = np.radians(random.uniform(2, 14)), random.uniform(1.1, 1.9)
    drawn = random.uniform(*AMOUNT)
    amount = drawn if amount is None else amount
    kind, _, direction = path.partition("_")
    sign = -1.0 if direction in ("left", "down", "back") else 1.0
    out = np.empty((frames, 3, 4))
    for i, u in enumerate(np.linspace(0, 1, frames)):
        position, yaw, tilt = np.array([0, -eye, 0.0]), 0.0, pitch
        if kind in ("push", "pull"):
            position[2] += sign * u * amount * 0.45 * distance
        elif kind == "truck":
            position[0] += sign * u * amount * 0.35 * distance
        elif kind == "crane":
            position[1] -= u * amount * (1.3 if sign > 0 else -0.5 * eye)
            tilt += 0.12 * sign * u * amount
        elif kind == "pan":
            yaw = sign * u * amount * np.radians(26)
        else:
            angle = sign * u * amount * np.radians(34)
            position = np.array([np.sin(angle) * distance, -eye, distance - np.cos(angle) * distance])
            yaw = -angle
        rotation = _pitch(tilt) @ _yaw(yaw)
        out[i] = np.concatenate([rotation, -(rotation @ position)[:, None]], 1)
    return out


def _yaw(angle: float) -> np.ndarray:
    """World to camera for a camera that looks ``angle`` to the right."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])


def _pitch(angle: float) -> np.ndarray:
    """World to camera for a camera that looks ``angle`` downwards."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _room(random: np.random.Generator, extrinsics: np.ndarray, wall: float) -> tuple[Scene, str]:
    eyes = -np.einsum("fji,fj->fi", extrinsics[..., :3], extrinsics[..., 3])
    top = random.uniform(2.5, 5) if random.random() < 0.5 else np.inf
    floor, back = (_texture(random, frequency) for frequency in (2.0, 1.3))
    surfaces: list[Plane | Sphere | Box] = [Plane((0, -1, 0), 0.0, floor), Plane((0, 0, -1), -wall, back, top)]
    reach = float(np.abs(eyes[:, 0]).max())
    for side in (-1, 1):
        if random.random() < 0.6:
            texture = Texture(back.colours[::-1], back.pattern, back.frequency, back.phase)
            surfaces.append(Plane((-side, 0, 0), -(reach + random.uniform(1.5, 4)), texture, top))
    solids = _solids(random, eyes, wall)
    light = np.array([random.uniform(-0.7, 0.7), -1.0, random.uniform(-0.9, -0.2)])
    things = [
        f"a {s.texture.pattern} {s.texture.colours[0]} {'ball' if isinstance(s, Sphere) else 'block'}" for s in solids
    ]
    where = "in a bright room" if np.isinf(top) else "in a yard under the sky"
    description = (
        f"{', '.join(things)} {where} with a {floor.pattern} {floor.colours[0]} floor and a {back.pattern} "
        f"{back.colours[0]} wall"
    )
    scene = Scene((*surfaces, *solids), tuple(light / np.linalg.norm(light)), wall * random.uniform(1.4, 1.7))
    return scene, description


def _solids(random: np.random.Generator, eyes: np.ndarray, wall: float) -> list[Sphere | Box]:
    """Two to five solids on the floor, none in the camera's way and none inside another."""
    wanted, solids = random.integers(2, 6), []
    for _ in range(60):
        if len(solids) == wanted:
            break
        z = random.uniform(2.0, 0.9 * wall)
        x, size = random.uniform(-0.5, 0.5) * z, random.uniform(0.25, 0.5) + 0.06 * z
        texture = _texture(random, 5.0)
        if random.random() < 0.5:
            solid: Sphere | Box = Sphere((x, -size, z), size, texture)
        else:
            half = (size * random.uniform(0.6, 1), size * random.uniform(0.7, 1.6), size * random.uniform(0.6, 1))
            solid = Box((x, -half[1], z), half, random.uniform(0, np.pi), texture)
        gap = np.linalg.norm(eyes[:, [0, 2]] - [x, z], axis=-1).min() - solid.radius
        others = [np.hypot(s.centre[0] - x, s.centre[2] - z) - s.radius - solid.radius for s in solids]
        if gap > 0.8 and all(distance > -0.2 for distance in others):
            solids.append(solid)
    return solids


def _texture(random: np.random.Generator, frequency: float) -> Texture:
    names = list(COLOURS)
    first, second = random.choice(len(names), 2, replace=False)
    return Texture(
        (names[first], names[second]),
        PATTERNS[random.integers(len(PATTERNS))],
        frequency * random.uniform(0.7, 1.4),
        random.uniform(0, 6.28),
    )


def _similarity(random: np.random.Generator) -> tuple[np.ndarray, float]:
    """A rigid motion of the world as 4 x 4, and the length of a metre in the new world's unit."""
    quaternion = random.normal(size=4)
    x, y, z, w = quaternion / np.linalg.norm(quaternion)
    motion = np.eye(4)
    motion[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    motion[:3, 3] = random.uniform(-5, 5, size=3)
    return motion, float(np.exp(random.uniform(-1, 1)))


def _write_clip(base: Path, name: str, clip: SyntheticClip) -> dict[str, str]:
    entry = {
        "video": f"videos/{name}.mp4",
        "prompt": clip.prompt,
        "depth": f"depth/{name}",
        "camera_params": f"camera_params/{name}.txt",
    }
    write_video(base / entry["video"], clip.video, FRAME_RATE)
    (base / entry["depth"]).mkdir()
    for i, depth in enumerate(clip.depth):
        np.save(base / entry["depth"] / f"frame_{i:04d}.npy", depth)
    rows = [
        " ".join([str(i), *(f"{v:.9f}" for v in clip.intrinsics), "0", "0", *(f"{v:.9f}" for v in e.flat)])
        for i, e in enumerate(clip.extrinsics)
    ]
    (base / entry["camera_params"]).write_text("\n".join(rows) + "\n")
    return entry
