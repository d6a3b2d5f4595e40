"""Units, marks and conventions of depth and cameras: right values where they are said, a refusal where they are not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from stagecoach.data.building.jobs import RawError
from stagecoach.data.fantasy_world.clip import ClipOptions, prepare_clip
from stagecoach.data.fantasy_world.depth import stored_depth
from stagecoach.data.fantasy_world.maps import read_maps
from stagecoach.data.fantasy_world.raw import read_metadata
from stagecoach.data.fantasy_world.synthetic import write_synthetic
from stagecoach.data.fantasy_world.warp import AXES, invert
from tests.data.fantasy_world.conftest import read_track

OPTIONS = ClipOptions(9, 64, 96)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A camera that moves forward."""
    raw = tmp_path_factory.mktemp("depth") / "raw"
    write_synthetic(raw, 1, 9, 64, 96, seed=0)
    return read_metadata(raw)[0][0]


@pytest.fixture(scope="module")
def right(clip):
    return prepare_clip(clip, OPTIONS)


@pytest.fixture
def with_depth(clip, tmp_path):
    """The clip with other maps, as a folder of .png where they are of 16 bits and ``pictures``, else as one .npy."""

    def make(maps: np.ndarray, pictures: bool = False):
        path = tmp_path / f"depth{len(list(tmp_path.iterdir()))}"
        if not pictures:
            np.save(path.with_suffix(".npy"), maps)
            return replace(clip, depth=path.with_suffix(".npy"))
        path.mkdir()
        for i, map_ in enumerate(maps):
            Image.fromarray(map_).save(path / f"frame_{i:04d}.png")
        return replace(clip, depth=path)

    return make


@pytest.fixture
def with_cameras(clip, tmp_path):
    """The clip with other matrices in its camera file."""

    def make(extrinsics: np.ndarray, intrinsics: np.ndarray | None = None):
        path, track = tmp_path / "cameras.txt", read_track(clip.cameras)
        intrinsics = track.intrinsics if intrinsics is None else intrinsics
        rows = ([i, *k, 0, 0, *e.flat] for i, (k, e) in enumerate(zip(intrinsics, extrinsics, strict=True)))
        path.write_text("\n".join(" ".join(map(str, row)) for row in rows))
        return replace(clip, cameras=path)

    return make


def depth_of(clip) -> np.ndarray:
    return np.array(read_maps(clip.depth, 9, "depth"))


def extrinsics_of(clip) -> np.ndarray:
    return read_track(clip.cameras).extrinsics


@pytest.mark.parametrize("pictures", [True, False])
def test_whole_numbers_are_millimetres_by_default(clip, right, with_depth, pictures):
    found = prepare_clip(with_depth((depth_of(clip) * 1000).astype(np.uint16), pictures), OPTIONS)
    assert found.scale == pytest.approx(right.scale, rel=1e-3)
    np.testing.assert_allclose(found.extrinsics, right.extrinsics, atol=1e-3)
    with pytest.raises(RawError, match=r"another unit than the cameras; make it 0\.001 times as large"):
        prepare_clip(with_depth((depth_of(clip) * 1000).astype(np.uint16)), replace(OPTIONS, depth_scale=1))


def test_fractions_are_in_the_cameras_unit_and_other_units_are_refused_or_said(clip, right, with_depth):
    centimetres = with_depth(depth_of(clip) * 100)
    with pytest.raises(RawError, match=r"make it 0\.01 times as large \(--depth-scale\)"):
        prepare_clip(centimetres, OPTIONS)
    found = prepare_clip(centimetres, replace(OPTIONS, depth_scale=0.01))
    assert found.scale == pytest.approx(right.scale, rel=1e-3)


@pytest.mark.parametrize("mark", [np.nan, np.inf, -1, 1e4, 1e10])
def test_a_sky_that_is_marked_by_a_number_is_no_depth(clip, with_depth, mark):
    depth = depth_of(clip)
    depth[:, :20] = 0
    expected = prepare_clip(with_depth(depth), OPTIONS)
    depth[:, :20] = mark
    found = prepare_clip(with_depth(depth), OPTIONS)
    assert found.scale == expected.scale
    assert found.valid == expected.valid < 0.7
    np.testing.assert_array_equal(found.depth, expected.depth)


def test_the_largest_number_of_16_bits_is_no_depth_unless_others_are_named(clip, with_depth):
    depth = np.round(depth_of(clip) * 1000)
    depth[:, :20] = 0
    expected = prepare_clip(with_depth(depth.astype(np.uint16)), OPTIONS)
    for mark, options in ((65535, OPTIONS), (60000, replace(OPTIONS, depth_invalid=(60000.0, 65535.0)))):
        depth[:, :20] = mark
        found = prepare_clip(with_depth(depth.astype(np.uint16), pictures=True), options)
        assert found.scale == expected.scale
        assert found.valid == expected.valid
    assert prepare_clip(with_depth(depth.astype(np.uint16)), replace(OPTIONS, max_warp_error=1)).valid == 1


@pytest.mark.parametrize("times", [20, 90, 1000])
def test_a_far_sky_does_not_become_the_scale(clip, right, with_depth, times):
    depth = depth_of(clip)
    depth[:, : 64 // 6] = 0
    expected = prepare_clip(with_depth(depth), OPTIONS)
    assert expected.scale == pytest.approx(right.scale, rel=0.1)
    depth[:, : 64 // 6] = times * np.median(depth)
    found = prepare_clip(with_depth(depth), OPTIONS)
    assert found.scale == pytest.approx(expected.scale, rel=1e-6)
    assert (found.valid == expected.valid) == (times > 100)
    bounded = prepare_clip(with_depth(depth), replace(OPTIONS, depth_max=5 * float(np.median(depth))))
    assert (bounded.scale, bounded.valid) == (expected.scale, expected.valid)


def test_the_scale_of_a_part_of_the_points_is_smaller(clip, right):
    trimmed = prepare_clip(clip, replace(OPTIONS, scale_quantile=0.5))
    depth = np.where(right.depth > 0, right.depth, np.nan)
    assert 0.5 * right.scale < trimmed.scale < 0.95 * right.scale
    np.testing.assert_allclose(trimmed.depth * trimmed.scale, np.nan_to_num(depth) * right.scale, rtol=2e-3)


def test_disparity_is_taken_where_it_is_said_and_else_refused(clip, right, with_depth):
    depth = depth_of(clip)
    inverse = with_depth(np.divide(1, depth, where=depth > 0, out=np.zeros_like(depth)))
    with pytest.raises(RawError, match="the maps are disparity; give --depth-kind disparity"):
        prepare_clip(inverse, OPTIONS)
    found = prepare_clip(inverse, replace(OPTIONS, depth_kind="disparity"))
    assert found.scale == pytest.approx(right.scale, rel=1e-6)


@pytest.mark.parametrize("axes", ["opencv", *AXES])
def test_cameras_of_other_conventions_are_taken_where_they_are_said(clip, right, with_cameras, axes):
    turned = extrinsics_of(clip) if axes == "opencv" else AXES[axes].T @ extrinsics_of(clip)
    options = replace(OPTIONS, camera_convention="c2w", camera_axes=axes)
    found = prepare_clip(with_cameras(invert(turned)), options)
    np.testing.assert_allclose(found.extrinsics, right.extrinsics, atol=1e-5)


def test_cameras_of_other_conventions_are_refused_where_they_are_not(clip, with_cameras):
    with pytest.raises(RawError, match=r"depth and cameras do not agree.*--camera-convention c2w"):
        prepare_clip(with_cameras(invert(extrinsics_of(clip))), OPTIONS)
    with pytest.raises(RawError, match="the cameras run backwards in time"):
        prepare_clip(with_cameras(extrinsics_of(clip)[::-1]), OPTIONS)


def test_a_unit_of_cameras_that_leaves_no_digits_to_depth_is_refused(clip, with_cameras):
    with pytest.raises(RawError, match=r"depth has another unit.* 1e\+06 times"):
        prepare_clip(with_cameras(extrinsics_of(clip) * [1, 1, 1, 1e6]), OPTIONS)
    with pytest.raises(RawError, match=r"depth is about 1e-06 of the scene's scale"):
        stored_depth(torch.full((1, 4, 4), 1e-6), "depth")
    found = stored_depth(torch.tensor([[[1.0, 2.0, 1e-6, 1e9]]]), "depth")
    assert found.tolist() == [[[1, 2, 0, 0]]]


def test_intrinsics_of_a_picture_of_another_size_are_refused(clip, with_cameras):
    double = np.tile([200.0, 200, 96, 64], (9, 1))
    with pytest.raises(RawError, match="principal point 96 64 in a video of 96 x 64 found, expected it near the"):
        prepare_clip(with_cameras(extrinsics_of(clip), double), replace(OPTIONS, intrinsics="pixel"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth_scale": 0.0}, "depth scale 0.0 found, expected a number above 0"),
        ({"depth_max": -1.0}, "depth max -1.0 found"),
        ({"max_warp_error": 0.0}, "max warp error 0.0 found"),
        ({"scale_quantile": 1.5}, "scale quantile 1.5 found"),
    ],
)
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(OPTIONS, **change)
