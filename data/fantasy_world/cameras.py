"""Cameras: pinhole intrinsics, world-to-camera extrinsics, and the 9 numbers that stand for both.

Conventions, the same everywhere in this project:
- Camera axes are x right, y down, z forward. ``extrinsics`` [..., 3, 4] is (R | t) with x_camera = R x_world + t.
- ``intrinsics`` [..., 4] is fx fy cx cy in pixels of an image that spans [0, W] x [0, H]: the centre of pixel (0, 0)
  is (0.5, 0.5), and the middle of the image is (W / 2, H / 2), as in files whose intrinsics are divided by the size.
- Depth is z-depth, not the distance along the ray.
"""

import torch
from torch import Tensor

POSE_SIZE = 9
"""Translation (3), quaternion x y z w (4), vertical and horizontal field of view (2)."""


def canonicalise(extrinsics: Tensor) -> Tensor:
    """E_i E_0^-1: the cameras [..., F, 3, 4] seen from a world that is camera 0 (FantasyWorld, data section)."""
    rotation, translation = extrinsics[..., :3], extrinsics[..., 3]
    relative = rotation @ rotation[..., :1, :, :].transpose(-1, -2)
    shifted = translation - (relative @ translation[..., :1, :, None])[..., 0]
    return torch.cat([relative, shifted[..., None]], -1)


def centres(extrinsics: Tensor) -> Tensor:
    """Positions -R^T t of the cameras in the world: [..., 3, 4] -> [..., 3]. Sums, not matmuls, which a GPU may do in
    TF32."""
    return -(extrinsics[..., :3] * extrinsics[..., 3:]).sum(-2)


def pixel_rays(intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Ray directions in the camera's frame through the pixel centres, with z = 1: [..., 4] -> [..., H, W, 3]."""
    options = {"device": intrinsics.device, "dtype": intrinsics.dtype}
    v, u = torch.meshgrid(torch.arange(height, **options) + 0.5, torch.arange(width, **options) + 0.5, indexing="ij")
    fx, fy, cx, cy = intrinsics[..., None, None, :].unbind(-1)
    x, y = (u - cx) / fx, (v - cy) / fy
    return torch.stack([x, y, torch.ones_like(x)], -1)


def unproject(depth: Tensor, intrinsics: Tensor, extrinsics: Tensor) -> Tensor:
    """World points of a depth map: [..., H, W], [..., 4], [..., 3, 4] -> [..., H, W, 3]. Where depth is 0 (invalid) the
    point is the camera's centre."""
    points = (pixel_rays(intrinsics, *depth.shape[-2:]) * depth[..., None]).flatten(-3, -2)
    return ((points - extrinsics[..., None, :, 3]) @ extrinsics[..., :3]).unflatten(-2, depth.shape[-2:])


def project(points: Tensor, intrinsics: Tensor, extrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel positions and z-depth of world points: [..., N, 3], [..., 4], [..., 3, 4] -> [..., N, 2], [..., N]."""
    seen = points @ extrinsics[..., :3].transpose(-1, -2) + extrinsics[..., None, :, 3]
    z = seen[..., 2]
    return seen[..., :2] / z[..., None] * intrinsics[..., None, :2] + intrinsics[..., None, 2:], z


def encode_pose(extrinsics: Tensor, intrinsics: Tensor, height: int, width: int) -> Tensor:
    """absT_quaR_FoV (VGGT, section 3.2): [..., 3, 4], [..., 4] -> [..., 9].

    Translation, quaternion (x y z w, w >= 0), FoV_h = 2 atan(H / 2 / fy), FoV_w = 2 atan(W / 2 / fx) in radians.
    The principal point is not encoded.
    """
    size = extrinsics.new_tensor([height, width])
    fov = 2 * torch.atan(size / 2 / intrinsics[..., [1, 0]])
    return torch.cat([extrinsics[..., 3], quaternion_from_rotation(extrinsics[..., :3]), fov], -1)


def decode_pose(pose: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The inverse: [..., 9] -> extrinsics [..., 3, 4], intrinsics [..., 4] with the principal point in the middle."""
    translation, quaternion, fov = pose.split([3, 4, 2], -1)
    size = pose.new_tensor([height, width])
    focal = size / 2 / torch.tan(fov / 2)
    middle = (size / 2).expand_as(fov)
    extrinsics = torch.cat([rotation_from_quaternion(quaternion), translation[..., None]], -1)
    return extrinsics, torch.cat([focal.flip(-1), middle.flip(-1)], -1)


def rotation_from_quaternion(quaternion: Tensor) -> Tensor:
    """[..., 4] (x y z w, of any length but 0) -> [..., 3, 3]."""
    x, y, z, w = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    return torch.stack(
        [
            1 - 2 * (y * y + z * z),
            2 * (x * y - z * w),
            2 * (x * z + y * w),
            2 * (x * y + z * w),
            1 - 2 * (x * x + z * z),
            2 * (y * z - x * w),
            2 * (x * z - y * w),
            2 * (y * z + x * w),
            1 - 2 * (x * x + y * y),
        ],
        -1,
    ).unflatten(-1, (3, 3))


def quaternion_from_rotation(rotation: Tensor) -> Tensor:
    """[..., 3, 3] -> unit [..., 4] (x y z w) with w >= 0.

    Four expressions give the quaternion up to a factor; the one whose factor is largest is taken (Shepperd 1978), so
    that no small number is divided by.
    """
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in rotation.unbind(-2))
    candidates = torch.stack(
        [
            torch.stack([1 + a - e - i, b + d, c + g, h - f], -1),
            torch.stack([b + d, 1 - a + e - i, f + h, c - g], -1),
            torch.stack([c + g, f + h, 1 - a - e + i, d - b], -1),
            torch.stack([h - f, c - g, d - b, 1 + a + e + i], -1),
        ],
        -2,
    )
    best = torch.diagonal(candidates, dim1=-2, dim2=-1).argmax(-1)
    chosen = torch.take_along_dim(candidates, best[..., None, None], -2)[..., 0, :]
    quaternion = torch.nn.functional.normalize(chosen, dim=-1)
    return torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)
