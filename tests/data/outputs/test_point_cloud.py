"""Point clouds: a scene's true depth goes through a file and back into its pictures."""

import json
import struct

import numpy as np
import pytest
import torch
import trimesh

from stagecoach.data.fantasy_world.camera_paths import preset
from stagecoach.data.fantasy_world.cameras import project
from stagecoach.data.fantasy_world.scene import Box, Plane, Scene, Sphere, Texture
from stagecoach.data.files import DamagedError
from stagecoach.data.outputs.point_cloud import (
    CloudOptions,
    PointCloud,
    make_cloud,
    merged,
    read_ply,
    write_glb,
    write_ply,
)

FRAMES, HEIGHT, WIDTH = 3, 48, 80
ALL = CloudOptions(stride=1, drop=0, edge=0)


@pytest.fixture(scope="module")
def scene() -> Scene:
    texture = Texture(("red", "white"), "checkered", 4.0, 0.3)
    surfaces = (
        Plane((0, -1, 0), -0.6, texture),
        Plane((0, 0, -1), -4.0, texture, top=0.5),
        Sphere((0.3, 0.2, 2.0), 0.4, texture),
        Box((-0.7, 0.3, 2.4), (0.3, 0.3, 0.3), 0.5, texture),
    )
    return Scene(surfaces, (0.0, -0.8, -0.6), 20.0)


@pytest.fixture(scope="module")
def clip(scene):
    """A room seen from an orbit: frames, exact depth and cameras."""
    cameras = preset("orbit:degrees=25,depth=2,elevation=5", FRAMES, HEIGHT, WIDTH)
    pictures, depth = zip(
        *(scene.render(e, i, HEIGHT, WIDTH) for e, i in zip(cameras.extrinsics, cameras.intrinsics, strict=True)),
        strict=True,
    )
    return np.stack(pictures), np.stack(depth), cameras


def cloud_of(clip, options: CloudOptions = ALL, confidence=None, depth=None) -> PointCloud:
    pictures, true, cameras = clip
    depth = true if depth is None else depth
    return make_cloud(depth, pictures, cameras.intrinsics, cameras.extrinsics, confidence, options)


def test_true_depth_and_cameras_written_and_read_back_project_to_their_pixels(clip, tmp_path):
    pictures, depth, cameras = clip
    write_ply(tmp_path / "points.ply", cloud_of(clip))
    cloud = read_ply(tmp_path / "points.ply")
    start = 0
    for k in range(FRAMES):
        v, u = np.nonzero(depth[k])
        assert 0 < len(v) < HEIGHT * WIDTH  # there is sky
        part = slice(start, start + len(v))
        start += len(v)
        points = torch.from_numpy(cloud.points[part].astype(np.float64))
        camera = (torch.from_numpy(x[k]) for x in (cameras.intrinsics, cameras.extrinsics))
        pixels, z = project(points, *camera)
        assert np.abs(pixels.numpy() - np.stack([u, v], -1) - 0.5).max() < 0.5 / 100
        np.testing.assert_allclose(z, depth[k, v, u], rtol=1e-5)
        np.testing.assert_array_equal(cloud.colours[part], pictures[k, v, u])
    assert start == len(cloud.points)


def test_points_of_the_first_frame_lie_on_the_surfaces_that_the_last_sees(clip, scene):
    """No point floats before the surface that a ray of the last camera through it meets; most are that surface."""
    pictures, depth, cameras = clip
    cloud = make_cloud(depth[:1], pictures[:1], cameras.intrinsics[:1], cameras.extrinsics[:1], options=ALL)
    turn, eye = cameras.extrinsics[-1, :, :3], cameras.centres[-1].astype(np.float32)
    for mirror in (1, -1):
        points = cloud.points * np.float32([mirror, 1, 1])
        z = points @ turn[2] + cameras.extrinsics[-1, 2, 3]
        nearest = np.min([surface.hit(eye, (points - eye) / z[:, None]) for surface in scene.surfaces], 0)
        floating, met = (z < nearest * (1 - 1e-4)).mean(), (np.abs(z / nearest - 1) < 1e-4).mean()
        assert (floating == 0 and met > 0.8) if mirror == 1 else floating > 0.01


def test_a_ply_is_what_other_readers_expect(clip, tmp_path):
    cloud = cloud_of(clip)
    write_ply(tmp_path / "points.ply", cloud)
    size = (tmp_path / "points.ply").stat().st_size
    found = trimesh.load(tmp_path / "points.ply")
    np.testing.assert_array_equal(np.asarray(found.vertices, np.float32), cloud.points)
    np.testing.assert_array_equal(found.colors[:, :3], cloud.colours)
    assert size - len(cloud.points) * 15 < 300


def test_a_glb_has_gltfs_axes_and_the_colours(clip, tmp_path):
    cloud = cloud_of(clip, CloudOptions(stride=2, drop=0, edge=0))
    write_glb(tmp_path / "points.glb", cloud)
    content = (tmp_path / "points.glb").read_bytes()
    magic, version, length, size, kind = struct.unpack("<4sII I4s", content[:20])
    assert (magic, version, length, kind) == (b"glTF", 2, len(content), b"JSON")
    gltf, binary = json.loads(content[20 : 20 + size]), content[28 + size :]
    (primitive,) = gltf["meshes"][0]["primitives"]
    assert primitive["mode"] == 0
    arrays = {}
    for name, dtype, width in (("POSITION", "<f4", 3), ("COLOR_0", "u1", 4)):
        accessor = gltf["accessors"][primitive["attributes"][name]]
        start = gltf["bufferViews"][accessor["bufferView"]]["byteOffset"]
        arrays[name] = np.frombuffer(binary, dtype, accessor["count"] * width, start).reshape(-1, width)
    assert all("matrix" not in node for node in gltf["nodes"])
    np.testing.assert_array_equal(arrays["POSITION"] * np.float32([1, -1, -1]), cloud.points)
    np.testing.assert_array_equal(arrays["COLOR_0"][:, :3], cloud.colours)
    with pytest.raises(ValueError, match=r"none.glb: no point to write"):
        write_glb(tmp_path / "none.glb", PointCloud(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8)))


def test_the_least_confident_points_of_the_clip_are_left_out(clip):
    _, depth, _ = clip
    confidence = np.random.default_rng(0).random(depth.shape) + np.arange(FRAMES)[:, None, None]
    valid = depth > 0
    cloud = cloud_of(clip, CloudOptions(1, 0.3, 0), confidence)
    kept = valid & (confidence >= np.quantile(confidence[valid], 0.3))
    assert len(cloud.points) == kept.sum() == pytest.approx(0.7 * valid.sum(), abs=1)
    assert kept[0].sum() < 0.2 * valid[0].sum()  # over the clip, not frame by frame


def test_edges_of_depth_are_left_out(clip):
    pictures, _, cameras = clip
    step = np.full((1, HEIGHT, WIDTH), 2.0)
    step[:, :, 40:] = 2.08
    step[:, 10, 10] = 0
    one = (pictures[:1], step, type(cameras)(cameras.extrinsics[:1], cameras.intrinsics[:1], HEIGHT, WIDTH))
    every = HEIGHT * WIDTH - 1  # next to what is invalid there is no edge
    assert len(cloud_of(one, CloudOptions(1, 0, 0.03)).points) == every - 2 * HEIGHT
    assert len(cloud_of(one, CloudOptions(1, 0, 0.05)).points) == every
    assert len(cloud_of(one, CloudOptions(1, 0, 0)).points) == every
    sparse = cloud_of(one, CloudOptions(4, 0, 0.03))  # the neighbours are those of the full map
    assert len(sparse.points) == (HEIGHT // 4) * (WIDTH // 4 - 1)


def test_points_of_a_cube_become_their_mean():
    points = np.array([[0.1, 0.1, 0.1], [0.3, 0.1, 0.1], [-0.1, 0.1, 0.1], [2.2, 0, 0]], np.float32)
    colours = np.array([[0, 10, 20], [100, 20, 20], [7, 7, 7], [1, 2, 3]], np.uint8)
    found = merged(PointCloud(points, colours), 0.5)
    np.testing.assert_allclose(found.points, [[-0.1, 0.1, 0.1], [0.2, 0.1, 0.1], [2.2, 0, 0]], atol=1e-6)
    np.testing.assert_array_equal(found.colours, [[7, 7, 7], [50, 15, 20], [1, 2, 3]])


def test_a_voxel_cloud_is_smaller_and_near_the_full_one(clip):
    full, small = cloud_of(clip), cloud_of(clip, CloudOptions(1, 0, 0, voxel=0.1))
    assert len(small.points) < 0.5 * len(full.points)
    cells = {tuple(c) for c in np.floor(full.points.astype(np.float64) / 0.1).astype(int).tolist()}
    assert len(small.points) == len(cells)


def test_what_is_wrong_is_named(clip, tmp_path):
    pictures, depth, cameras = clip
    with pytest.raises(ValueError, match="expected a stride from 1, a part to drop in"):
        CloudOptions(drop=1)
    with pytest.raises(ValueError, match=r"frames \(2, 48, 80, 3\).*of one clip"):
        make_cloud(depth, pictures[:2], cameras.intrinsics, cameras.extrinsics)
    write_ply(tmp_path / "p.ply", cloud_of(clip, CloudOptions()))
    content = (tmp_path / "p.ply").read_bytes()
    (tmp_path / "p.ply").write_bytes(content[:-7])
    with pytest.raises(DamagedError, match=r"p.ply: .* bytes behind the header found, expected"):
        read_ply(tmp_path / "p.ply")
    (tmp_path / "p.ply").write_bytes(content.replace(b"float y", b"float w"))
    with pytest.raises(DamagedError, match=r"p.ply: another header found"):
        read_ply(tmp_path / "p.ply")
    write_ply(tmp_path / "none.ply", cloud_of(clip, depth=np.zeros_like(depth)))
    assert read_ply(tmp_path / "none.ply").points.shape == (0, 3)
