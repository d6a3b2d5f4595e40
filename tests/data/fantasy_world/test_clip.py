"""A clip's pictures, depth and cameras must stay in register through resize, crop, canonical frame and scale."""

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecoach.data.fantasy_world.cameras import project, unproject
from stagecoach.data.fantasy_world.clip import ClipCrop, ClipOptions, precheck, prepare_clip
from stagecoach.data.fantasy_world.maps import read_maps
from stagecoach.data.fantasy_world.raw import RawError, read_metadata
from tests.data.fantasy_world.conftest import FRAMES, HEIGHT, WIDTH, read_track


@settings(max_examples=40, deadline=None)
@given(
    st.integers(20, 90),
    st.integers(20, 90),
    st.sampled_from([16, 32, 48]),
    st.sampled_from([16, 32, 64]),
    st.floats(0.3, 0.7),
    st.floats(0.3, 0.7),
)
def test_a_point_falls_on_the_same_texture_before_and_after_the_crop(h, w, height, width, x, y):
    """The texture is a ramp, whose value at a place is the place: resampling leaves a ramp a ramp."""
    crop = ClipCrop.of(h, w, height, width)
    ramp = np.stack(np.meshgrid((np.arange(w) + 0.5) / w, (np.arange(h) + 0.5) / h), -1)
    image = np.concatenate([ramp, ramp[..., :1]], -1) * 255
    after = crop.image(image.round().astype(np.uint8))[..., :2] / 255
    intrinsics = np.array([1.1 * w, 1.3 * h, 0.5 * w, 0.5 * h])
    point = torch.tensor([[(x - 0.5) / 1.1, (y - 0.5) / 1.3, 1.0]], dtype=torch.double)
    pixel, _ = project(point, torch.from_numpy(crop.intrinsics(intrinsics)), torch.eye(3, 4, dtype=torch.double))
    u, v = pixel[0].tolist()
    if not (2 < u < width - 2 and 2 < v < height - 2):
        return
    column, row = int(u), int(v)
    expected = x + (column + 0.5 - u) / (crop.scale * w), y + (row + 0.5 - v) / (crop.scale * h)
    assert after[row, column] == pytest.approx(expected, abs=0.006)


def test_the_whole_crop_is_inside_the_source():
    crop = ClipCrop.of(100, 300, 32, 48)
    assert (crop.left, crop.top) == (75, 0)
    assert crop.scale == 0.32
    assert crop.width / crop.scale == 150


def test_a_pixel_index_goes_where_its_centre_goes():
    crop = ClipCrop.of(64, 80, 16, 16)
    u = 21
    centre = crop.intrinsics(np.array([1.0, 1.0, u + 0.5, 0.5]))[2] - 0.5
    assert centre == pytest.approx((u + 0.5) * crop.scale - 0.5 - crop.left * crop.scale)


@pytest.mark.parametrize("factor", [1, 2])
def test_depth_of_any_resolution_is_taken_at_pixel_centres(factor):
    crop = ClipCrop.of(40, 60, 16, 16)
    rows = np.arange(40 * factor)[None, :, None] + np.zeros((1, 1, 60 * factor))
    found = crop.maps(rows)[0, :, 0]
    np.testing.assert_array_equal(found, np.floor((np.arange(16) + 0.5) * 2.5 * factor))


def test_values_are_never_mixed_across_an_edge():
    crop = ClipCrop.of(33, 47, 16, 16)
    depth = np.random.default_rng(0).choice([1.0, 9.0], (2, 33, 47))
    assert set(np.unique(crop.maps(depth))) == {1.0, 9.0}


def test_a_clip_starts_at_the_identity_and_its_points_have_a_mean_norm_of_one(synthetic):
    clip = prepare_clip(read_metadata(synthetic)[0][2], ClipOptions(FRAMES, HEIGHT, WIDTH))
    assert clip.frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert (clip.depth.dtype, clip.extrinsics.dtype, clip.intrinsics.dtype) == ("float16", "float32", "float32")
    np.testing.assert_allclose(clip.extrinsics[0], np.eye(3, 4), atol=1e-6)
    depth = torch.from_numpy(clip.depth).double()
    points = unproject(depth, torch.from_numpy(clip.intrinsics).double(), torch.from_numpy(clip.extrinsics).double())
    assert float(points.norm(dim=-1)[depth > 0].mean()) == pytest.approx(1, abs=1e-3)


def test_world_frame_and_unit_leave_no_trace(raw):
    """The same scene in another world, with another unit, is the same sample."""
    raw_clip = read_metadata(raw)[0][1]
    options = ClipOptions(FRAMES, HEIGHT, WIDTH)
    before = prepare_clip(raw_clip, options)
    track = read_track(raw_clip.cameras)
    turn = np.array([[0, 0, 1, 3], [1, 0, 0, -2], [0, 1, 0, 1], [0, 0, 0, 1.0]])
    moved = track.extrinsics @ turn
    moved[..., 3] *= 7
    raw_clip.cameras.write_text(
        "\n".join(" ".join(map(str, [0, *k, 0, 0, *e.flat])) for k, e in zip(track.intrinsics, moved, strict=True))
    )
    after = prepare_clip(raw_clip, ClipOptions(FRAMES, HEIGHT, WIDTH, depth_scale=7))
    np.testing.assert_allclose(after.extrinsics, before.extrinsics, atol=1e-5)
    np.testing.assert_allclose(after.depth, before.depth, rtol=2e-3)
    assert after.scale == pytest.approx(7 * before.scale, rel=1e-5)


def test_pixel_intrinsics_give_what_normalised_ones_give(raw):
    raw_clip = read_metadata(raw)[0][0]
    before = prepare_clip(raw_clip, ClipOptions(FRAMES, 16, 48))
    track = read_track(raw_clip.cameras)
    pixels = track.intrinsics * [WIDTH, HEIGHT, WIDTH, HEIGHT]
    raw_clip.cameras.write_text(
        "\n".join(" ".join(map(str, [0, *k, 0, 0, *e.flat])) for k, e in zip(pixels, track.extrinsics, strict=True))
    )
    after = prepare_clip(raw_clip, ClipOptions(FRAMES, 16, 48, intrinsics="pixel"))
    np.testing.assert_allclose(after.intrinsics, before.intrinsics, rtol=1e-6)


def test_points_serve_where_depth_is_absent(raw, edit_metadata):
    clips, _ = read_metadata(raw)
    options = ClipOptions(FRAMES, HEIGHT, WIDTH)
    expected = prepare_clip(clips[0], options)
    track = read_track(clips[0].cameras)
    depth = torch.from_numpy(read_maps(clips[0].depth, FRAMES, "depth")).double()
    pixels = torch.from_numpy(track.intrinsics) * torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    points = unproject(depth, pixels, torch.from_numpy(track.extrinsics))
    points[depth == 0] = torch.nan
    np.save(raw / "points.npy", points.numpy())

    def change(entries):
        del entries[0]["depth"]
        entries[0]["points"] = "points.npy"

    edit_metadata(raw, change)
    found = prepare_clip(read_metadata(raw)[0][0], options)
    valid = expected.depth > 0
    np.testing.assert_allclose(found.depth[valid], expected.depth[valid], rtol=2e-3)


def test_mask_and_senseless_depth_are_invalid(raw, edit_metadata):
    entry = read_metadata(raw)[0][0]
    depth = read_maps(entry.depth, FRAMES, "depth").copy()
    depth[:, :4] = 2
    depth[:, 0], depth[:, 1], depth[:, 2] = np.nan, -1, np.inf
    np.save(raw / "depth.npy", depth)
    mask = np.ones(depth.shape, bool)
    mask[:, 3] = False
    np.savez(raw / "mask.npz", mask=mask)
    edit_metadata(raw, lambda entries: entries[0].update(depth="depth.npy", mask="mask.npz"))
    clip = prepare_clip(read_metadata(raw)[0][0], ClipOptions(FRAMES, HEIGHT, WIDTH))
    assert not clip.depth[:, :4].any()
    assert np.isfinite(clip.depth).all()
    np.testing.assert_array_equal(clip.depth[:, 4:] > 0, depth[:, 4:] > 0)


def test_a_clip_without_valid_depth_is_refused(raw, edit_metadata):
    np.save(raw / "depth.npy", np.zeros((FRAMES, HEIGHT, WIDTH)))
    edit_metadata(raw, lambda entries: entries[0].update(depth="depth.npy"))
    with pytest.raises(RawError, match=r"depth\.npy: no valid depth found"):
        prepare_clip(read_metadata(raw)[0][0], ClipOptions(FRAMES, HEIGHT, WIDTH))


def test_depth_of_another_aspect_ratio_is_refused(raw, edit_metadata):
    np.save(raw / "depth.npy", np.ones((FRAMES, HEIGHT, HEIGHT)))
    edit_metadata(raw, lambda entries: entries[0].update(depth="depth.npy"))
    with pytest.raises(RawError, match="maps of 32 x 32 found, expected the aspect ratio of the video"):
        prepare_clip(read_metadata(raw)[0][0], ClipOptions(FRAMES, HEIGHT, WIDTH))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((8, 32, 48), "8 frames.*take 5 or 9"),
        ((5, 33, 48), "height 33 found, expected a multiple of 16.*take 32"),
        ((5, 32, 8), "width 8 found.*take 16"),
    ],
)
def test_sizes_that_the_backbone_cannot_take_name_the_nearest(size, message):
    with pytest.raises(ValueError, match=message):
        ClipOptions(*size)


def test_precheck_finds_a_short_video_in_its_header(raw, synthetic):
    clip = read_metadata(raw)[0][0]
    precheck(clip, ClipOptions(FRAMES, HEIGHT, WIDTH))
    clip.video.unlink()
    with av.open(str(clip.video), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode()])
    with pytest.raises(RawError, match="1 frames found, expected at least 5"):
        precheck(clip, ClipOptions(FRAMES, HEIGHT, WIDTH))
