"""Cameras in the files that reconstructions and data sets write are the same cameras."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from stagecoach.data.building.jobs import RawError
from stagecoach.data.fantasy_world.camera_track import Cameras
from stagecoach.data.fantasy_world.cameras import encode_pose
from stagecoach.data.fantasy_world.clip import prepare_clip
from stagecoach.data.fantasy_world.colmap import write_colmap
from stagecoach.data.fantasy_world.options import ClipOptions
from stagecoach.data.fantasy_world.raw import read_metadata
from stagecoach.data.fantasy_world.recorded import read_recorded
from stagecoach.data.fantasy_world.synthetic import write_synthetic
from stagecoach.data.fantasy_world.warp import AXES, invert
from tests.data.fantasy_world.conftest import read_track

OPTIONS = ClipOptions(5, 32, 48)
SIZE = 32.0, 48.0


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    raw = tmp_path_factory.mktemp("cameras") / "raw"
    write_synthetic(raw, 1, 5, 32, 48, seed=0)
    return read_metadata(raw)[0][0]


@pytest.fixture(scope="module")
def right(clip):
    return prepare_clip(clip, OPTIONS)


@pytest.fixture(scope="module")
def track(clip):
    """Matrices world to camera [5, 3, 4], and intrinsics in pixels [5, 4]."""
    found = read_track(clip.cameras)
    return found.extrinsics, found.intrinsics * np.tile(SIZE[::-1], 2)


def square(matrices: np.ndarray) -> np.ndarray:
    return np.concatenate([matrices, np.tile([[[0.0, 0, 0, 1]]], (len(matrices), 1, 1))], 1)


def inner(intrinsics: np.ndarray) -> np.ndarray:
    fx, fy, cx, cy = intrinsics.T
    zero, one = np.zeros_like(fx), np.ones_like(fx)
    return np.stack([fx, zero, cx, zero, fy, cy, zero, zero, one], -1).reshape(-1, 3, 3)


def lines(*columns: np.ndarray, between: str = " ") -> str:
    return "\n".join(between.join(map(str, np.concatenate(row))) for row in zip(*columns, strict=True)) + "\n"


def write(path, name, outer, pixels) -> dict:
    """One of the layouts; returns what ``read_recorded`` and the options need besides."""
    number, normal = np.arange(5.0)[:, None], pixels / np.tile(SIZE[::-1], 2)
    flat, flat_square, none = outer.reshape(5, 12), square(outer).reshape(5, 16), np.zeros((5, 2))
    given, focal = {"given": tuple(normal[0])}, pixels * 2
    match name:
        case "3x4":
            path.with_suffix(".txt").write_text(lines(flat))
            return given
        case "4x4 with commas":
            path.with_suffix(".csv").write_text(lines(flat_square, between=", "))
            return given
        case "numbered 4x4":
            path.with_suffix(".txt").write_text(lines(number, flat_square))
            return given
        case "without distortion, marked, with comments":
            path.with_suffix(".txt").write_text("# cameras\n" + lines(number, normal, flat), encoding="utf-8-sig")
        case "names of columns, UTF-16":
            text = "idx,fx,fy,cx,cy,k1,k2,w2c\n" + lines(number, normal, none, flat, between=",")
            path.with_suffix(".csv").write_text(text, encoding="utf-16")
        case "pixels of a double picture, VGGT's arrays":
            extrinsic = outer[None].astype(np.float32)
            np.savez(path.with_suffix(".npz"), extrinsic=extrinsic, intrinsic=inner(focal)[None])
        case "VGGT's encoding":
            pose = encode_pose(torch.from_numpy(outer), torch.from_numpy(pixels), *map(int, SIZE))
            np.savez(path.with_suffix(".npz"), pose_enc=pose.numpy()[None])
        case "CUT3R's files":
            path.mkdir()
            for k in range(5):
                np.savez(path / f"{k:06d}.npz", pose=square(invert(outer))[k], intrinsics=inner(pixels)[k])
        case "ScanNet's files":
            path.mkdir()
            for k in range(5):
                np.savetxt(path / f"{k}.txt", square(invert(outer))[k])
            matrix = path.with_name("intrinsic_color.txt")
            np.savetxt(matrix, np.block([[inner(pixels)[0], np.zeros((3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]]))
            return {"given": matrix, "camera_convention": "c2w"}
        case "one .npy, NeRF's axes":
            np.save(path.with_suffix(".npy"), invert(AXES["opengl"].T @ outer))
            return {**given, "camera_convention": "c2w", "camera_axes": "opengl"}
        case "COLMAP":
            path.mkdir()
            write_colmap(path, Cameras(outer, pixels, *SIZE))
        case "FantasyWorld's JSON":
            content = {"focal_length": pixels[0, 0], "cameras_interp": square(invert(outer)).tolist()}
            path.with_suffix(".json").write_text(json.dumps(content))
    return {}


@pytest.mark.parametrize(
    "name",
    [
        "3x4",
        "4x4 with commas",
        "numbered 4x4",
        "without distortion, marked, with comments",
        "names of columns, UTF-16",
        "pixels of a double picture, VGGT's arrays",
        "VGGT's encoding",
        "CUT3R's files",
        "ScanNet's files",
        "one .npy, NeRF's axes",
        "COLMAP",
        "FantasyWorld's JSON",
    ],
)
def test_each_layout_gives_the_same_cameras(clip, right, track, tmp_path, name):
    given = write(tmp_path / "cameras", name, *track)
    path = next(path for path in tmp_path.iterdir() if path.stem == "cameras")
    intrinsics = given.pop("given", None)
    found = prepare_clip(replace(clip, cameras=path, intrinsics=intrinsics), replace(OPTIONS, **given))
    np.testing.assert_allclose(found.extrinsics, right.extrinsics, atol=1e-5)
    same = [0, 2, 3] if name == "FantasyWorld's JSON" else [0, 1, 2, 3]  # which has one focal length
    np.testing.assert_allclose(found.intrinsics[:, same], right.intrinsics[:, same], rtol=1e-4)


def test_binary_files_of_colmap_are_read_where_pycolmap_is(track, tmp_path):
    pycolmap = pytest.importorskip("pycolmap")
    text, binary = tmp_path / "text", tmp_path / "binary"
    text.mkdir()
    binary.mkdir()
    write_colmap(text, Cameras(*track, *SIZE))
    pycolmap.Reconstruction(str(text)).write_binary(str(binary))
    expected, found = (read_recorded(folder, OPTIONS) for folder in (text, binary))
    np.testing.assert_allclose(found.extrinsics, expected.extrinsics, atol=1e-9)
    np.testing.assert_allclose(found.intrinsics, expected.intrinsics)
    assert found.size == expected.size


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"c\.txt: 0 cameras found, expected a line for each"),
        (
            "1 0 0 0 0 1 0 0 0 0 1 0\n",
            r"c\.txt: no intrinsics found, expected them there or as 'intrinsics' of the entry",
        ),
        ("0 1 0 0 0 0 1 0 0 0 0 1 0\n0 1 0 0 0 0 1 0 0 0 0 1 0\n3 1 0 0 0 0 1 0 0 0 0 1 0", "the time 0 twice"),
        ("1 0 0 0 0 1 0 0 0 0 1\n", r"c\.txt:1: 11 columns found, expected 19 .*or fewer of those before the matrix"),
    ],
)
def test_text_that_is_no_track_says_why(tmp_path, content, message):
    (tmp_path / "c.txt").write_text(content)
    with pytest.raises(RawError, match=message):
        read_recorded(tmp_path / "c.txt", OPTIONS)


def test_arrays_of_other_names_and_pictures_of_another_shape_are_refused(clip, track, tmp_path):
    np.savez(tmp_path / "c.npz", positions=track[0], angles=track[0])
    with pytest.raises(RawError, match=r"arrays \['angles', 'positions'\] found, expected matrices named extrinsics"):
        read_recorded(tmp_path / "c.npz", OPTIONS)
    np.savez(tmp_path / "d.npz", extrinsics=track[0], intrinsics=track[1], height=100, width=300)
    with pytest.raises(RawError, match="cameras of pictures of 100 x 300 found, expected the shape of the video"):
        prepare_clip(replace(clip, cameras=tmp_path / "d.npz"), OPTIONS)
