"""Coloured point clouds of depth maps with their cameras, as PLY and GLB.

Points are in the world of the cameras (``data.fantasy_world.cameras``: x right, y down, z forward, for relative cameras
seen from frame 0). PLY keeps these axes; GLB has glTF's (y up, z backward).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from stagecoach.data.building.options import Argument
from stagecoach.data.fantasy_world.cameras import unproject
from stagecoach.data.files import DamagedError, atomic_file, import_extra

VERTEX = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])
HEADER = (
    "ply\nformat binary_little_endian 1.0\ncomment x right, y down, z forward\nelement vertex {}\n"
    "property float x\nproperty float y\nproperty float z\n"
    "property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n"
)
TO_GLTF = np.array([1, -1, -1], np.float32)


@dataclass(frozen=True)
class PointCloud:
    """``points`` float32 [N, 3] and their ``colours`` uint8 [N, 3]."""

    points: np.ndarray
    colours: np.ndarray


@dataclass(frozen=True)
class CloudOptions:
    """Which pixels become points. Raises ``ValueError`` for numbers out of range."""

    stride: Annotated[int, Argument("every n-th pixel of a row and every n-th row")] = 4
    drop: Annotated[float, Argument("part of the points that is left out, those of the lowest confidence")] = 0.3
    edge: Annotated[
        float, Argument("leave out pixels whose depth differs by more than this part from a neighbour's; 0 keeps all")
    ] = 0.03
    voxel: Annotated[float, Argument("merge the points in each cube of this side, in units of the scene")] = 0.0

    def __post_init__(self) -> None:
        if self.stride < 1 or not 0 <= self.drop < 1 or not self.edge >= 0 or not self.voxel >= 0:
            raise ValueError(
                f"{self} found, expected a stride from 1, a part to drop in [0, 1), and edge and voxel from 0"
            )


def make_cloud(
    depth: np.ndarray,
    frames: np.ndarray,
    intrinsics: np.ndarray,
    extrinsics: np.ndarray,
    confidence: np.ndarray | None = None,
    options: CloudOptions = CloudOptions(),
) -> PointCloud:
    """Unproject depth [F, H, W] (0 or not finite: invalid) with the colours of ``frames`` uint8 [F, H, W, 3] and the
    cameras [F, 4], [F, 3, 4]. ``options.drop`` needs ``confidence`` [F, H, W] and is a quantile over the whole clip."""
    if not (depth.shape == frames.shape[:3] and len(depth) == len(intrinsics) == len(extrinsics)):
        raise ValueError(
            f"depth {depth.shape}, frames {frames.shape}, intrinsics {intrinsics.shape} and extrinsics "
            f"{extrinsics.shape} found, expected [F, H, W], [F, H, W, 3], [F, 4] and [F, 3, 4] of one clip"
        )
    chosen = (slice(None, None, options.stride),) * 2
    valid = np.stack([_kept(frame, options.edge)[chosen] for frame in depth])
    if confidence is not None and options.drop and valid.any():
        seen = confidence[(slice(None), *chosen)]
        valid &= seen >= np.quantile(seen[valid], options.drop)
    points, colours = [], []
    for k, keep in enumerate(valid):  # frame by frame: the points of a clip in double precision would be gigabytes
        numbers = (torch.from_numpy(np.array(x[k], np.float64)) for x in (depth, intrinsics, extrinsics))
        world = unproject(*numbers)
        points.append(world.numpy()[chosen][keep].astype(np.float32))
        colours.append(frames[k][chosen][keep])
    cloud = PointCloud(np.concatenate(points), np.concatenate(colours))
    return merged(cloud, options.voxel) if options.voxel else cloud


def _kept(depth: np.ndarray, edge: float) -> np.ndarray:
    """Pixels [H, W] with a depth, of which none of the four neighbours with a depth differs by more than ``edge``."""
    valid = np.isfinite(depth) & (depth > 0)
    if not edge:
        return valid
    kept = valid.copy()
    depth = np.where(valid, depth, 0).astype(np.float32)
    for axis in (0, 1):
        first, second = (np.take(depth, range(k, depth.shape[axis] - 1 + k), axis) for k in (0, 1))
        jump = (np.abs(first - second) > edge * np.minimum(first, second)) & (first > 0) & (second > 0)
        before, after = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
        kept[before] &= ~jump
        kept[after] &= ~jump
    return kept


def merged(cloud: PointCloud, voxel: float) -> PointCloud:
    """One point for each cube of side ``voxel``: the mean of its points and colours, in the order of the cubes."""
    cells = np.floor(cloud.points.astype(np.float64) / voxel).astype(np.int64)
    _, which, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    which = which.reshape(-1)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(which, column) / counts for column in values.astype(np.float64).T], -1)

    if not len(counts):
        return cloud
    return PointCloud(mean(cloud.points).astype(np.float32), mean(cloud.colours).round().astype(np.uint8))


def write_ply(path: str | Path, cloud: PointCloud) -> None:
    """Write binary little-endian PLY: xyz float, rgb uchar, 15 bytes a point."""
    vertices = np.empty(len(cloud.points), VERTEX)
    vertices["xyz"], vertices["rgb"] = cloud.points, cloud.colours
    with atomic_file(path) as file:
        file.write(HEADER.format(len(vertices)).encode())
        file.write(vertices.tobytes())


def read_ply(path: str | Path) -> PointCloud:
    """Read what ``write_ply`` writes. Raises ``DamagedError`` for a file with other properties or of another length."""
    content = Path(path).read_bytes()
    head, end, body = content.partition(b"end_header\n")
    count = next((line.split()[-1] for line in head.split(b"\n") if line.startswith(b"element vertex ")), b"")
    if not count.isdigit() or head + end != HEADER.format(int(count)).encode():
        raise DamagedError(f"{path}: another header found, expected a PLY of points with colours as written here")
    if len(body) != int(count) * VERTEX.itemsize:
        raise DamagedError(
            f"{path}: {len(body):,} bytes behind the header found, expected {int(count) * VERTEX.itemsize:,} for "
            f"{int(count):,} points"
        )
    vertices = np.frombuffer(body, VERTEX)
    return PointCloud(vertices["xyz"].copy(), vertices["rgb"].copy())


def write_glb(path: str | Path, cloud: PointCloud) -> None:
    """Write binary glTF, points turned to its axes. Raises ``ValueError`` for a cloud of no point, which glTF does not
    have."""
    if not len(cloud.points):
        raise ValueError(f"{path}: no point to write, expected some; drop less, or look at the depth")
    trimesh = import_extra("trimesh", "point clouds as GLB", "sample")
    with atomic_file(path) as file:
        file.write(trimesh.PointCloud(cloud.points * TO_GLTF, cloud.colours).export(file_type="glb"))
