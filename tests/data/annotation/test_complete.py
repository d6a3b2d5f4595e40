"""Raw clips with cameras alone or depth alone get the other one in their unit, by COLMAP on rendered frames."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from stagecoach.data.annotation.cameras import ColmapCameras, triangulated
from stagecoach.data.annotation.depth import DepthEstimator
from stagecoach.data.annotation.run import AnnotateOptions, annotate
from stagecoach.data.building.jobs import RawError
from stagecoach.data.fantasy_world.annotate import AnnotateClips, AnnotateFantasyWorld
from stagecoach.data.fantasy_world.clip import prepare_clip
from stagecoach.data.fantasy_world.maps import Maps
from stagecoach.data.fantasy_world.options import ClipOptions
from stagecoach.data.fantasy_world.raw import read_metadata
from stagecoach.data.fantasy_world.recorded import Recorded
from stagecoach.data.fantasy_world.timeline import Timeline
from stagecoach.data.outputs.video import open_video
from tests.data.annotation.test_cameras_and_depth import rotations_off
from tests.noise_room import noise_room

UNIT = 2.5
"""Of the given cameras: so many are a metre."""


@pytest.fixture(scope="module")
def room():
    return noise_room(9, 240, 320)


class TrueDisparity(DepthEstimator):
    metric = False

    def __init__(self, depth):
        self._depth = depth

    def estimate(self, frames):
        return (3 / self._depth + 5).astype(np.float32)


def write(raw, room, entry):
    raw.mkdir()
    with open_video(raw / "room.mp4", 8, crf=8) as writer:
        for frame in room[0]:
            writer.add(frame)
    (raw / "metadata.json").write_text(json.dumps([{"video": "room.mp4", "prompt": "a room", **entry}]))
    return raw


def camera_lines(outer, inner, numbers):
    rows = [[n, *(inner / [320, 240, 320, 240]), 0, 0, *one.flat] for n, one in zip(numbers, outer, strict=True)]
    return "\n".join(" ".join(f"{v:.9g}" for v in row) for row in rows)


def test_given_cameras_get_depth_in_their_unit(room, tmp_path):
    """Named by the cameras' numbers, which begin with 1."""
    _, depth, outer, inner = room
    raw = write(tmp_path / "raw", room, {"camera_params": "cameras.txt"})
    (raw / "cameras.txt").write_text(camera_lines(outer * np.array([1, 1, 1, UNIT]), inner, range(1, 10)))
    job = AnnotateFantasyWorld(raw, raw, AnnotateClips())
    job.use(TrueDisparity(depth), ColmapCameras())
    assert annotate(job, AnnotateOptions()).annotated == 1
    files = sorted((raw / "depth/entry-000000/entry-000000").iterdir())
    assert [file.name for file in files] == [f"frame_{k:04d}.npy" for k in range(1, 10)]
    found = np.stack([np.load(file) for file in files])
    assert np.median(found / depth) == pytest.approx(UNIT, rel=0.02)
    assert np.median(np.abs(found / depth / UNIT - 1)) < 0.03
    noted = json.loads((raw / "annotations.json").read_text())["items"]["entry-000000"]["numbers"]
    assert noted["depth_error"] < 0.03
    assert noted["warp_error"] < 0.02
    (clip,), bad = read_metadata(raw)
    assert not bad
    built = prepare_clip(clip, ClipOptions(frames=9, height=240, width=320))
    assert np.median(built.depth.astype(float) * built.scale / depth) == pytest.approx(UNIT, rel=0.02)

    (raw / "cameras.txt").write_text(camera_lines(outer[::-1], inner, range(1, 10)))
    with pytest.raises(RawError, match=r"points that fit the given cameras found in a frame|off the cameras' points"):
        annotate(job, AnnotateOptions())


def test_given_depth_gets_cameras_in_its_unit(room, tmp_path):
    """Half the video's size, in millimetres, with a sky of which nothing is known."""
    _, depth, outer, inner = room
    small = (depth[:, ::2, ::2] * 1000).round().astype(np.uint16)
    small[:, :20] = 65535
    raw = write(tmp_path / "raw", room, {"depth": "depth.npy"})
    np.save(raw / "depth.npy", small)
    job = AnnotateFantasyWorld(raw, raw, AnnotateClips(focal=0.9))
    assert set(job.models()) == {"cameras", "cuts"}
    assert annotate(job, AnnotateOptions()).annotated == 1
    table = np.loadtxt(raw / "camera_params/entry-000000/entry-000000.txt")
    assert table[:, 0].tolist() == list(range(9))
    np.testing.assert_allclose(table[:, 1:5], np.tile(inner / [320, 240, 320, 240], (9, 1)), atol=1e-6)
    found = table[:, 7:].reshape(-1, 3, 4)
    assert rotations_off(found, outer).max() < 0.5
    places = [-np.einsum("tji,tj->ti", e[:, :, :3], e[:, :, 3]) for e in (found, outer)]
    length = [np.linalg.norm(place[-1] - place[0]) for place in places]
    assert length[0] == pytest.approx(length[1], rel=0.03)
    (clip,), bad = read_metadata(raw)
    assert not bad
    assert prepare_clip(clip, ClipOptions(frames=9, height=240, width=320)).warp.error < 0.01

    np.save(raw / "depth.npy", small[:5])
    with pytest.raises(RawError, match=r"depth of 5 frames found, expected one for each of the 9 frames of room.mp4"):
        annotate(job, AnnotateOptions())


def test_seconds_of_cameras_are_no_numbers_of_depth_files(tmp_path):
    for number in range(9):
        np.save(tmp_path / f"frame_{number:04d}.npy", np.ones((2, 3)))
    every = np.arange(9)
    recorded = Recorded(np.zeros((9, 3, 4)), np.ones((9, 4)), None, every / 8, "auto")
    chosen = Timeline(every, every, recorded, SimpleNamespace(files=None, count=9))
    assert chosen.maps(Maps(tmp_path, "depth")).tolist() == every.tolist()


def test_points_are_triangulated_where_both_rays_meet(room):
    _, depth, outer, inner = room
    row, column = np.mgrid[8:232:16, 8:312:16].reshape(2, -1)
    xy, z = np.stack([column, row], 1) + 0.5, depth[0][row, column]
    local = np.concatenate([(xy - inner[2:]) / inner[:2], np.ones((len(xy), 1))], 1) * z[:, None]
    world = (local - outer[0, :, 3]) @ outer[0, :, :3]
    other = world @ outer[8, :, :3].T + outer[8, :, 3]
    seen = other[:, :2] / other[:, 2:] * inner[:2] + inner[2:]
    first, last = np.zeros(len(xy), int), np.full(len(xy), 8)
    every = np.tile(inner, (9, 1))
    found = triangulated(xy, seen, outer, every, first, last)
    np.testing.assert_allclose(found[0], z, rtol=1e-6)
    np.testing.assert_allclose(found[1], other[:, 2], rtol=1e-6)
    assert not triangulated(xy, seen + np.array([0, 30]), outer, every, first, last)[0].any()
    assert not triangulated(xy, xy, outer[[0] * 9], every, first, last)[0].any()
