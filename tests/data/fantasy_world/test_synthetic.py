"""The synthetic scenes must be what they claim: pictures, depth and cameras of one and the same world."""

import json

import numpy as np
import pytest
import torch

from stagecoach.data.fantasy_world.cameras import project, unproject
from stagecoach.data.fantasy_world.clip import ClipOptions, prepare_clip
from stagecoach.data.fantasy_world.raw import read_metadata
from stagecoach.data.fantasy_world.readers import read_frames
from stagecoach.data.fantasy_world.synthetic import PATHS, Variety, render_clip, write_synthetic

FRAMES, HEIGHT, WIDTH = 5, 48, 64


def world(clip):
    pixels = torch.from_numpy(clip.intrinsics) * torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    depth, extrinsics = torch.from_numpy(clip.depth).double(), torch.from_numpy(clip.extrinsics)
    return depth, pixels, extrinsics


@pytest.mark.parametrize("index", range(len(PATHS)))
def test_points_of_a_frame_lie_on_the_surfaces_of_another(index):
    """Where the other frame sees something nearer the point is hidden, but it never sees through a surface."""
    clip = render_clip(5, index, FRAMES, HEIGHT, WIDTH)
    depth, pixels, extrinsics = world(clip)
    valid = (depth[0] > 0).flatten()
    points = unproject(depth[0], pixels, extrinsics[0]).flatten(0, 1)[valid]
    colours = torch.from_numpy(clip.video[0]).flatten(0, 1)[valid].double()
    places, z = project(points, pixels, extrinsics[-1])
    column, row = places.floor().long().unbind(-1)
    inside = (z > 0) & (column >= 1) & (column < WIDTH - 1) & (row >= 1) & (row < HEIGHT - 1)
    column, row, z, colours = column[inside], row[inside], z[inside], colours[inside]
    assert len(z) > 0.15 * HEIGHT * WIDTH
    # Depth is a plane or smoother between pixels; the range over a 3 x 3 neighbourhood holds a visible point's depth.
    around = torch.stack([depth[-1][row + i, column + j] for i in (-1, 0, 1) for j in (-1, 0, 1)])
    around = torch.where(around > 0, around, torch.inf)
    visible = (z >= around.amin(0) * 0.999) & (z <= around.amax(0) * 1.001)
    assert visible.double().mean() > 0.75
    through = z < around.amin(0) * 0.98
    assert through.double().mean() < 0.005
    pictures = torch.from_numpy(clip.video[-1]).double()
    nearby = torch.stack([pictures[row + i, column + j] for i in (-1, 0, 1) for j in (-1, 0, 1)])
    error = (nearby - colours).abs().mean(-1).amin(0)[visible]
    shuffled = (nearby - colours.roll(len(z) // 2, 0)).abs().mean(-1).amin(0)[visible]
    assert error.mean() < 10  # of 255; haze and the 8-bit steps differ between the frames
    assert error.mean() < 0.25 * shuffled.mean()


def test_a_clip_depends_on_seed_and_number_alone():
    one, again, other = (render_clip(seed, 2, 5, 16, 16) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.video, again.video)
    np.testing.assert_array_equal(one.extrinsics, again.extrinsics)
    assert one.prompt != other.prompt


def test_paths_move_as_their_prompts_say():
    """In the frame of camera 0: x right, y down, z forward."""
    expected = {
        "push_in": (2, 1),
        "pull_back": (2, -1),
        "truck_left": (0, -1),
        "truck_right": (0, 1),
        "orbit_left": (0, -1),
        "orbit_right": (0, 1),
        "crane_up": (1, -1),
        "crane_down": (1, 1),
    }
    for index, path in enumerate(PATHS):
        clip = render_clip(7, index, 5, 16, 16)
        first, last = clip.extrinsics[0], clip.extrinsics[-1]
        rotation = last[:, :3] @ first[:, :3].T
        centre = -rotation.T @ (last[:, 3] - rotation @ first[:, 3])
        assert PATHS[path] in clip.prompt
        if path.startswith("pan"):
            np.testing.assert_allclose(centre, 0, atol=1e-6)
            assert np.sign(rotation[2, 0]) == (-1 if path == "pan_left" else 1)
        else:
            axis, sign = expected[path]
            assert sign * centre[axis] == max(abs(centre))


def test_depth_differs_between_scenes_and_is_not_flat(tmp_path):
    """So that neither one number nor one map for all scenes does well, after each is divided by its own scale."""
    write_synthetic(tmp_path / "raw", 8, FRAMES, HEIGHT, WIDTH, seed=1)
    options = ClipOptions(FRAMES, HEIGHT, WIDTH)
    depth = np.stack([prepare_clip(c, options).depth[0] for c in read_metadata(tmp_path / "raw")[0]]).astype(np.float64)
    valid = depth > 0
    assert np.abs(depth[valid] - depth[valid].mean()).mean() > 0.2
    mean_map = depth.sum(0) / np.maximum(valid.sum(0), 1)
    assert np.abs(depth - mean_map)[valid].mean() > 0.1


def test_the_raw_layout_holds_what_was_rendered(synthetic):
    clips, bad = read_metadata(synthetic)
    assert not bad
    assert [clip.key for clip in clips] == [f"scene_{i:05d}" for i in range(4)]
    rendered = render_clip(3, 1, 5, 32, 48)
    video = np.stack(list(read_frames(clips[1].video, 5)))
    assert np.abs(video.astype(int) - rendered.video).mean() < 4
    assert json.loads((synthetic / "metadata.json").read_text())[1]["prompt"] == rendered.prompt
    assert not list(synthetic.parent.glob(".tmp-*"))


def test_a_folder_of_something_else_is_never_replaced(raw, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/metadata.json").write_text("[]")
    with pytest.raises(ValueError, match=r"mine: holds something else than synthetic\.json"):
        write_synthetic(tmp_path / "mine", 1, 1, 16, 16, seed=0)
    write_synthetic(raw, 1, 1, 16, 16, seed=0)
    assert len(read_metadata(raw)[0]) == 1


def test_rooms_are_seen_again_from_the_same_place_and_prompts_do_not_tell_the_path():
    variety = Variety(paths=("pan_left", "pan_right"), described=False, interiors=2)
    clips = [render_clip(3, index, 3, 32, 48, variety) for index in range(6)]
    for one, other in ((0, 1), (0, 4), (2, 3)):
        assert clips[one].prompt == clips[other].prompt
        np.testing.assert_array_equal(clips[one].video[0], clips[other].video[0])
        assert (clips[one].video[-1] != clips[other].video[-1]).any()
    assert clips[0].prompt != clips[2].prompt
    assert "camera" not in clips[0].prompt
