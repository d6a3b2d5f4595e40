"""Raw files: what each kind may look like, and the one sentence that a wrong one gets."""

import numpy as np
import OpenEXR
import pytest
from PIL import Image

from stagecoach.data.fantasy_world.maps import Maps, read_maps
from stagecoach.data.fantasy_world.raw import RawError, read_metadata
from stagecoach.data.fantasy_world.readers import read_frames
from tests.data.fantasy_world.conftest import read_track

IDENTITY = "1 0 0 0 0 1 0 0 0 0 1 0"


def camera_file(tmp_path, *lines: str):
    path = tmp_path / "camera.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_camera_columns_are_told_apart(tmp_path):
    path = camera_file(tmp_path, "0 0.5 0.9 0.51 0.49 0 0 1 0 0 4 0 1 0 5 0 0 1 6")
    track = read_track(path, "normalised")
    assert track.intrinsics.tolist() == [[0.5, 0.9, 0.51, 0.49]]
    assert track.extrinsics[0, :, 3].tolist() == [4, 5, 6]
    assert not track.distorted


def test_a_first_line_with_an_address_and_empty_lines_are_left_out(tmp_path):
    path = camera_file(
        tmp_path,
        "https://www.example.org/watch?v=1",
        f"0 .5 .9 .5 .5 0 0 {IDENTITY}",
        "",
        f"33 .5 .9 .5 .5 0.1 0 {IDENTITY}",
    )
    track = read_track(path, "normalised")
    assert len(track.extrinsics) == 2
    assert track.distorted


def test_a_wrong_number_of_columns_names_file_and_line(tmp_path):
    path = camera_file(tmp_path, f"0 .5 .9 .5 .5 0 0 {IDENTITY}", f"1 .5 .9 .5 .5 0 0 0 0 0 {IDENTITY}")
    with pytest.raises(RawError, match=r"camera\.txt:2: 22 columns found, expected 19"):
        read_track(path, "normalised")


@pytest.mark.parametrize(
    ("line", "unit", "message"),
    [
        (f"0 500 480 296 168 0 0 {IDENTITY}", "normalised", "focal length 500 found.*--intrinsics pixel"),
        (f"0 .5 .9 .5 .5 0 0 {IDENTITY}", "pixel", "focal length 0.9 found.*--intrinsics normalised"),
        (f"0 0 .9 .5 .5 0 0 {IDENTITY}", "normalised", "focal lengths 0 0.9 found, expected numbers above 0"),
        (f"0 .5 .9 .5 x 0 0 {IDENTITY}", "normalised", "could not convert.*expected 19 numbers"),
        (f"0 .5 .9 nan .5 0 0 {IDENTITY}", "normalised", "nan found, expected finite numbers"),
        ("0 .5 .9 .5 .5 0 0 2 0 0 0 0 1 0 0 0 0 1 0", "normalised", "off a rotation by 3.*expected a world-to-camera"),
    ],
)
def test_a_camera_line_that_makes_no_sense_says_what_was_expected(tmp_path, line, unit, message):
    with pytest.raises(RawError, match=message):
        read_track(camera_file(tmp_path, line), unit)


def test_pixel_intrinsics_are_read_where_they_are_announced(tmp_path):
    path = camera_file(tmp_path, f"0 500 480 296 168 0 0 {IDENTITY}")
    assert read_track(path, "pixel").intrinsics[0, 0] == 500


def test_a_short_video_names_file_found_and_expected(synthetic):
    clips, _ = read_metadata(synthetic)
    with pytest.raises(RawError, match=r"scene_00000\.mp4: 5 frames found, expected at least 9"):
        list(read_frames(clips[0].video, 9))


def test_a_video_that_is_none_is_named(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"not a video at all")
    with pytest.raises(RawError, match=r"clip\.mp4: not readable as a video"):
        list(read_frames(path, 5))


@pytest.mark.parametrize("form", ["folder", "npy", "npz", "png"])
def test_depth_may_come_in_four_forms(tmp_path, form):
    depth = np.random.default_rng(0).integers(1, 60000, (3, 4, 6)).astype(np.uint16)
    path = tmp_path / f"depth.{form}"
    if form == "npy":
        np.save(path, depth)
    elif form == "npz":
        np.savez(path, depth=depth, confidence=depth)
    else:
        path.mkdir()
        for i, frame in enumerate(depth):
            if form == "png":
                Image.fromarray(frame).save(path / f"frame_{i:04d}.png")
            else:
                np.save(path / f"frame_{i:04d}.npy", frame)
    Maps(path, "depth").check(range(3))
    np.testing.assert_array_equal(read_maps(path, 2, "depth"), depth[:2])
    with pytest.raises(RawError, match=r"depth of 3 frames.*expected at least 4"):
        read_maps(path, 4, "depth")


def test_a_gap_in_numbered_frames_is_not_closed(tmp_path):
    for i in (0, 1, 3):
        np.save(tmp_path / f"frame_{i:04d}.npy", np.ones((2, 2)))
    with pytest.raises(RawError, match="2 frames in a row found, expected at least 3"):
        Maps(tmp_path, "depth").check(range(3))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((2, 3, 4, 5)), r"shape \(2, 3, 4, 5\).*expected numbers \[T, H, W\]"),
        (np.array(["far"]), "expected descr, fortran_order and shape of plain numbers"),
    ],
)
def test_maps_of_another_rank_or_kind_are_refused(tmp_path, array, message):
    np.save(tmp_path / "depth.npy", array)
    with pytest.raises(RawError, match=message):
        read_maps(tmp_path / "depth.npy", 1, "depth")


def test_a_map_cut_short_is_named(tmp_path):
    path = tmp_path / "depth.npy"
    np.save(path, np.ones((4, 8, 8)))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RawError, match=r"depth\.npy: not readable as depth.*cut short"):
        read_maps(path, 2, "depth")


def test_objects_in_a_map_are_not_unpickled(tmp_path):
    np.save(tmp_path / "depth.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(RawError, match="not readable as depth"):
        read_maps(tmp_path / "depth.npy", 1, "depth")


def test_an_8_bit_picture_is_no_depth(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "frame_0000.png")
    with pytest.raises(RawError, match="mode L found, expected 16-bit"):
        read_maps(tmp_path, 1, "depth")


def test_keys_are_safe_for_tars_and_do_not_depend_on_the_order(raw, edit_metadata):
    def change(entries):
        (raw / "other").mkdir()
        (raw / entries[1]["video"]).rename(raw / "other/scene_00000.mp4")
        entries[1]["video"] = "other/scene_00000.mp4"
        (raw / entries[2]["video"]).rename(raw / "videos/a b.c.mp4")
        entries[2]["video"] = "videos/a b.c.mp4"

    edit_metadata(raw, change)
    keys = [clip.key for clip in read_metadata(raw)[0]]
    assert keys[2:] == ["a_b_c", "scene_00003"]
    assert all(key.startswith("scene_00000-") for key in keys[:2])
    assert len(set(keys)) == 4
    edit_metadata(raw, list.reverse)
    assert [clip.key for clip in read_metadata(raw)[0]] == keys[::-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e[0].pop("prompt"), r"entry 0: 'prompt' is None, expected a text; found keys \['camera_params'"),
        (lambda e: e[0].pop("depth"), "entry 0: neither 'depth' nor 'points' is given"),
        (lambda e: e[0].update(depth="depth/none"), "depth/none: missing, expected the depth of entry 0"),
        (lambda e: e[0].update(split="test"), "'split' is 'test', expected 'train', 'val' or none"),
        (lambda e: e.insert(0, "scene"), "entry 0: holds str, expected an object"),
        (lambda e: e.insert(0, e[0]), "entry 1: .* is listed twice"),
    ],
)
def test_a_bad_entry_is_reported_and_the_others_stay(raw, edit_metadata, change, message):
    edit_metadata(raw, change)
    clips, bad = read_metadata(raw)
    assert len(clips) >= 3
    assert len(bad) == 1
    with pytest.raises(RawError, match=message):
        raise bad[0][1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not readable"),
        ("{", "no valid JSON"),
        ('{"samples": []}', "holds dict, expected a list"),
        ("[]", "a list of 0"),
    ],
)
def test_metadata_that_is_no_list_is_refused(raw, content, message):
    (raw / "metadata.json").unlink()
    if content is not None:
        (raw / "metadata.json").write_text(content)
    with pytest.raises(RawError, match=f"metadata.json: .*{message}"):
        read_metadata(raw)


@pytest.mark.parametrize("form", ["exr", "tiff", "npz", "[T,H,W,1]", "[H,W,1]"])
def test_depth_comes_in_the_files_of_renderers_and_estimators(tmp_path, form):
    depth, path = np.random.default_rng(0).uniform(0.5, 9, (3, 4, 6)).astype(np.float32), tmp_path / "depth"
    if form == "[T,H,W,1]":
        path = path.with_suffix(".npy")
        np.save(path, depth[..., None])
    else:
        path.mkdir()
        for i, frame in enumerate(depth):
            file = path / f"{i:04d}.{form}"
            if form == "exr":
                OpenEXR.File({"type": OpenEXR.scanlineimage}, {"Z": frame, "A": np.ones_like(frame)}).write(str(file))
            elif form == "tiff":
                Image.fromarray(frame).save(file)
            elif form == "npz":
                np.savez(file, depth=frame)
            else:
                np.save(file.with_suffix(".npy"), frame[..., None])
    np.testing.assert_array_equal(read_maps(path, 3, "depth"), depth)


def test_points_come_as_exr_and_other_channels_are_named(tmp_path):
    points = np.random.default_rng(0).normal(size=(4, 6, 3)).astype(np.float32)
    channels = {name: np.ascontiguousarray(points[..., k]) for k, name in enumerate("XYZ")}
    OpenEXR.File({"type": OpenEXR.scanlineimage}, channels).write(str(tmp_path / "p_0.exr"))
    np.testing.assert_array_equal(read_maps(tmp_path, 1, "points"), points[None])
    OpenEXR.File({"type": OpenEXR.scanlineimage}, {"a": channels["X"], "b": channels["Y"]}).write(
        str(tmp_path / "p_0.exr")
    )
    with pytest.raises(RawError, match=r"channels \['a', 'b'\] found, expected depth as Z or one"):
        read_maps(tmp_path, 1, "depth")
    (tmp_path / "p_0.exr").write_bytes(b"no EXR")
    with pytest.raises(RawError, match=r"p_0\.exr: not readable as EXR"):
        read_maps(tmp_path, 1, "depth")


def test_two_maps_of_one_number_are_refused(tmp_path):
    np.save(tmp_path / "frame_0000.npy", np.ones((4, 6)))
    Image.fromarray(np.ones((4, 6), np.uint16)).save(tmp_path / "frame_0000.png")
    with pytest.raises(RawError, match=r"frame_0000\.npy and frame_0000\.png have one number.*keep one"):
        read_maps(tmp_path, 1, "depth")
