"""A small ray caster: textured indoor scenes with spheres and boxes, and their exact depth.

World axes are those of the cameras: x right, y down, z forward; the floor is y = 0 and up is -y. What a picture tells
about depth here is what it tells in the world: perspective, occlusion, texture that shrinks, shading, and haze.
"""

from dataclasses import dataclass

import numpy as np
import torch

from stagecoach.data.fantasy_world.cameras import pixel_rays

COLOURS = {
    "red": (0.82, 0.18, 0.15),
    "orange": (0.92, 0.52, 0.12),
    "yellow": (0.90, 0.80, 0.22),
    "green": (0.20, 0.60, 0.25),
    "teal": (0.12, 0.58, 0.58),
    "blue": (0.18, 0.32, 0.78),
    "purple": (0.52, 0.25, 0.68),
    "white": (0.90, 0.90, 0.86),
    "brown": (0.45, 0.30, 0.18),
    "grey": (0.45, 0.47, 0.50),
}
PATTERNS = ("checkered", "striped", "dotted")
HAZE = np.array([0.74, 0.80, 0.88], np.float32)
AMBIENT = 0.45
NEAR = 0.05


@dataclass(frozen=True)
class Texture:
    """A solid texture: a function of the point in the world, so that a surface looks alike from everywhere."""

    colours: tuple[str, str]
    pattern: str
    frequency: float
    phase: float

    def at(self, points: np.ndarray) -> np.ndarray:
        """Albedo [N, 3] at world points [N, 3]. Edges are soft, so that distant patterns do not flicker."""
        x, y, z = (points * self.frequency + self.phase).T
        if self.pattern == "checkered":
            value = np.sin(x) * np.sin(z + 0.5 * y) + np.sin(x) * np.sin(y)
        elif self.pattern == "striped":
            value = np.sin(x + 0.4 * y + 0.2 * z)
        else:
            value = np.cos(x) + np.cos(z) + np.cos(y) - 1
        mix = (0.5 + 0.5 * np.tanh(2 * value))[:, None].astype(np.float32)
        first, second = (np.array(COLOURS[name], np.float32) for name in self.colours)
        return first * (1 - mix) + second * mix


@dataclass(frozen=True)
class Plane:
    """Points with ``normal . x = offset``; a wall ends at ``top`` metres above the floor."""

    normal: tuple[float, float, float]
    offset: float
    texture: Texture
    top: float = np.inf

    def hit(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        normal = np.array(self.normal, np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (self.offset - normal @ origin) / (rays @ normal)
            seen = (t > NEAR) & (origin[1] + t * rays[:, 1] >= -self.top)
        return np.where(seen, t, np.inf)

    def normals(self, points: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.array(self.normal, np.float32), points.shape)


@dataclass(frozen=True)
class Sphere:
    centre: tuple[float, float, float]
    radius: float
    texture: Texture

    def hit(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        offset = origin - np.array(self.centre, np.float32)
        a, b = np.einsum("nc,nc->n", rays, rays), rays @ offset
        inside = b * b - a * (offset @ offset - self.radius**2)
        t = (-b - np.sqrt(np.maximum(inside, 0))) / a
        return np.where((inside > 0) & (t > NEAR), t, np.inf)

    def normals(self, points: np.ndarray) -> np.ndarray:
        return (points - np.array(self.centre, np.float32)) / self.radius


@dataclass(frozen=True)
class Box:
    """A box turned about the vertical by ``yaw``; ``half`` are its half sizes along its own axes."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    yaw: float
    texture: Texture

    @property
    def radius(self) -> float:
        return float(np.linalg.norm(self.half))

    def _axes(self) -> np.ndarray:
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]], np.float32)

    def hit(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """Slab method: the last entry over the three pairs of faces, if it is before the first exit."""
        axes = self._axes()
        start, along = axes @ (origin - np.array(self.centre, np.float32)), rays @ axes.T
        half = np.array(self.half, np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            near = (-np.sign(along) * half - start) / along
            far = (np.sign(along) * half - start) / along
        enter, leave = near.max(-1), far.min(-1)
        return np.where((enter < leave) & (enter > NEAR), enter, np.inf)

    def normals(self, points: np.ndarray) -> np.ndarray:
        axes = self._axes()
        local = (points - np.array(self.centre, np.float32)) @ axes.T / np.array(self.half, np.float32)
        face = np.abs(local).argmax(-1)
        rows = np.arange(len(points))
        return np.sign(local[rows, face])[:, None] * axes[face]


@dataclass(frozen=True)
class Scene:
    """Surfaces in front of the sky; ``light``: unit vector towards the sun; ``haze_length``: metres over which 1 / e is
    left."""

    surfaces: tuple[Plane | Sphere | Box, ...]
    light: tuple[float, float, float]
    haze_length: float

    def render(
        self, extrinsics: np.ndarray, intrinsics: np.ndarray, height: int, width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Picture uint8 [H, W, 3] and z-depth float32 [H, W] (0 is sky) of one camera: [3, 4], pixels [4]."""
        rays = pixel_rays(torch.from_numpy(intrinsics), height, width).float().numpy().reshape(-1, 3)
        origin = (-extrinsics[:, :3].T @ extrinsics[:, 3]).astype(np.float32)
        lengths = np.linalg.norm(rays, axis=-1)
        rays = rays @ extrinsics[:, :3].astype(np.float32)
        hits = np.stack([surface.hit(origin, rays) for surface in self.surfaces])
        nearest = hits.argmin(0)
        depth = hits[nearest, np.arange(len(rays))]
        colour = self._sky(rays / lengths[:, None])
        for index, surface in enumerate(self.surfaces):
            chosen = np.flatnonzero((nearest == index) & np.isfinite(depth))
            if len(chosen):
                colour[chosen] = self._shade(surface, origin, rays[chosen], depth[chosen], lengths[chosen])
        picture = (np.clip(colour, 0, 1) * 255 + 0.5).astype(np.uint8).reshape(height, width, 3)
        return picture, np.where(np.isfinite(depth), depth, 0).astype(np.float32).reshape(height, width)

    def _shade(
        self,
        surface: Plane | Sphere | Box,
        origin: np.ndarray,
        rays: np.ndarray,
        depth: np.ndarray,
        lengths: np.ndarray,
    ) -> np.ndarray:
        """Lambert's law with an ambient part, then haze by the distance: c e^(-d/L) + haze (1 - e^(-d/L))."""
        points = origin + depth[:, None] * rays
        facing = np.maximum(surface.normals(points) @ np.array(self.light, np.float32), 0)
        lit = surface.texture.at(points) * (AMBIENT + (1 - AMBIENT) * facing)[:, None]
        clear = np.exp(-depth * lengths / self.haze_length)[:, None]
        return lit * clear + HAZE * (1 - clear)

    @staticmethod
    def _sky(directions: np.ndarray) -> np.ndarray:
        up = np.clip(-directions[:, 1:2], 0, 1)
        return (HAZE * (1 - up) + np.array([0.35, 0.55, 0.90], np.float32) * up).astype(np.float32)
