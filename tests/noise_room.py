"""A room of the ray caster whose walls are noise, which has what cameras are found by: corners of many sizes, none
twice."""

from dataclasses import dataclass

import numpy as np

from stagecoach.data.fantasy_world.scene import Box, Plane, Scene, Sphere
from stagecoach.data.fantasy_world.synthetic import camera_path


@dataclass(frozen=True)
class Noise:
    """Value noise of several octaves, a function of the point in the world."""

    seed: int

    def at(self, points: np.ndarray) -> np.ndarray:
        value = np.zeros((len(points), 3))
        for octave in range(4):
            scaled = points * 2.5 * 2**octave + 100
            cell, part = np.floor(scaled).astype(np.int64), scaled % 1
            part = part * part * (3 - 2 * part)
            for corner in np.ndindex(2, 2, 2):
                weight = np.where(corner, part, 1 - part).prod(1)
                value += weight[:, None] * self._hash(cell + corner, octave) / (octave + 1)
        return np.clip(0.5 + 0.45 * value, 0, 1).astype(np.float32)

    def _hash(self, cell: np.ndarray, octave: int) -> np.ndarray:
        mixed = cell @ np.array([73856093, 19349663, 83492791]) + 2654435761 * (self.seed * 7 + octave + 1)
        out = []
        for channel in range(3):
            x = (mixed + channel * 97531) & 0xFFFFFFFF
            x = ((x ^ (x >> 15)) * 2246822519) & 0xFFFFFFFF
            x = ((x ^ (x >> 13)) * 3266489917) & 0xFFFFFFFF
            out.append((x ^ (x >> 16)) / 2**31 - 1)
        return np.stack(out, 1)


def noise_room(
    frames: int, height: int, width: int, path: str = "orbit_left", seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Video uint8 [F, H, W, 3], z-depth [F, H, W], world-to-camera [F, 3, 4], fx fy cx cy in pixels [4]."""
    random = np.random.default_rng(seed)
    focal = 0.9 * width
    inner = np.array([focal, focal, width / 2, height / 2])
    outer = camera_path(path, frames, 4.0, random, 0.6)
    texture = Noise(seed)
    surfaces = (
        Plane((0, -1, 0), 0.0, texture),
        Plane((0, 0, -1), -7.0, texture),
        Plane((1, 0, 0), -4.0, texture),
        Plane((-1, 0, 0), -4.0, texture),
        Plane((0, 1, 0), -4.0, texture),
        Box((-0.8, -0.8, 4.0), (0.5, 0.8, 0.5), 0.4, texture),
        Sphere((0.9, -0.6, 3.6), 0.6, texture),
        Plane((0, 0, 1), -6.0, texture),
    )
    light = np.array([0.3, -1.0, -0.6])
    scene = Scene(surfaces, tuple(light / np.linalg.norm(light)), 60.0)
    pictures, depths = zip(*(scene.render(e, inner, height, width) for e in outer), strict=True)
    return np.stack(pictures), np.stack(depths), outer, inner
