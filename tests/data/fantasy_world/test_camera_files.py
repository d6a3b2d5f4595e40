"""Cameras from files: every format back and forth, on the clip's clock, and what is wrong in one sentence."""

import json

import numpy as np
import pytest

from stagecoach.data.building.jobs import RawError
from stagecoach.data.fantasy_world.camera_files import load_cameras, write_cameras, write_realestate10k
from stagecoach.data.fantasy_world.camera_paths import preset
from stagecoach.data.fantasy_world.camera_track import Cameras, world_to_camera
from stagecoach.data.fantasy_world.colmap import write_colmap
from stagecoach.data.fantasy_world.readers import read_timed_cameras

FRAMES, HEIGHT, WIDTH, RATE = 9, 48, 80, 16.0


@pytest.fixture
def cameras() -> Cameras:
    """An orbit that does not begin at the identity and zooms."""
    orbit = preset("orbit:degrees=50,elevation=20,depth=2", FRAMES, HEIGHT, WIDTH)
    world = np.eye(4)
    world[:3] = world_to_camera(preset("pan", 2, 8, 8).extrinsics[1:, :, :3], np.array([[3.0, -1, 2]]))
    intrinsics = orbit.intrinsics * np.linspace([1, 1, 1, 1], [1.4, 1.4, 1, 1], FRAMES)
    return Cameras(orbit.extrinsics @ world, intrinsics, HEIGHT, WIDTH)


def load(source, frames: int = FRAMES, rate: float = RATE, height: int = HEIGHT, width: int = WIDTH, **options):
    return load_cameras(source, frames, height, width, rate, **options)


def assert_same(found: Cameras, expected: Cameras, atol: float = 1e-9) -> None:
    np.testing.assert_allclose(found.extrinsics, expected.relative().extrinsics, atol=atol)
    np.testing.assert_allclose(found.intrinsics, expected.intrinsics, atol=atol * 100)
    assert (found.height, found.width) == (HEIGHT, WIDTH)


def rows(cameras: Cameras, times) -> str:
    size = np.tile([cameras.width, cameras.height], 2)
    lines = ["https://www.youtube.com/watch?v=x"]
    for time, outer, inner in zip(times, cameras.extrinsics, cameras.intrinsics / size, strict=True):
        lines.append(" ".join(map(str, [time, *inner, 0, 0, *outer.reshape(-1)])))
    return "\n".join(lines) + "\n"


def test_our_own_json_comes_back(cameras, tmp_path):
    write_cameras(tmp_path / "c.json", cameras, RATE)
    assert_same(load(tmp_path / "c.json"), cameras)
    content = json.loads((tmp_path / "c.json").read_text())
    assert (content["convention"], content["version"], content["fps"]) == ("w2c_opencv", 1, RATE)
    write_cameras(tmp_path / "d.json", cameras, None)
    assert_same(load(tmp_path / "d.json", rate=3.0), cameras)


@pytest.mark.parametrize("rate", [16.0, 30.0, 24000 / 1001])
def test_realestate10k_comes_back_at_any_rate(cameras, tmp_path, rate):
    write_realestate10k(tmp_path / "c.txt", cameras, rate)
    assert_same(load(tmp_path / "c.txt", rate=rate), cameras, 2e-5)  # times are whole microseconds
    times, _ = read_timed_cameras(tmp_path / "c.txt", "normalised")
    np.testing.assert_allclose(times, np.arange(FRAMES) * 1e6 / rate, atol=0.5)


def test_colmap_comes_back_and_a_missing_image_is_filled_in(cameras, tmp_path):
    write_colmap(tmp_path / "model", cameras)
    assert_same(load(tmp_path / "model"), cameras)
    assert_same(load(tmp_path / "model" / "images.txt"), cameras)
    straight = preset("truck:distance=0.8", FRAMES, HEIGHT, WIDTH)
    write_colmap(tmp_path / "gap", straight)
    lines = (tmp_path / "gap" / "images.txt").read_text().splitlines(keepends=True)
    images = [lines[i : i + 2] for i in range(2, len(lines), 2)]
    del images[4]
    (tmp_path / "gap" / "images.txt").write_text("".join(sum(images[::-1], lines[:2])))
    assert_same(load(tmp_path / "gap"), straight)


def test_the_published_json_is_camera_to_world_with_the_middle_as_principal_point(cameras, tmp_path):
    square = np.concatenate([cameras.extrinsics, np.tile([[[0, 0, 0, 1]]], (FRAMES, 1, 1))], 1)
    content = {"focal_length": 70, "cameras_interp": np.linalg.inv(square).tolist(), "scale": 3, "cameras": []}
    (tmp_path / "camera_data.json").write_text(json.dumps(content))
    found = load(tmp_path / "camera_data.json", rate=5.0)
    np.testing.assert_allclose(found.extrinsics, cameras.relative().extrinsics, atol=1e-12)
    np.testing.assert_allclose(found.intrinsics, np.tile([70, 70, 40, 24], (FRAMES, 1)))
    del content["focal_length"]
    (tmp_path / "camera_data.json").write_text(json.dumps(content))
    assert load(tmp_path / "camera_data.json").intrinsics[0, 0] == 500


@pytest.mark.parametrize("kind", ["ours", "vggt", "one"])
def test_arrays_come_back(cameras, tmp_path, kind):
    fixed = Cameras(cameras.extrinsics, np.tile([60.0, 60, 40, 24], (FRAMES, 1)), HEIGHT, WIDTH)
    matrix = np.array([[60, 0, 40], [0, 60, 24], [0, 0, 1.0]])
    arrays = {
        "ours": {"extrinsics": fixed.extrinsics, "intrinsics": fixed.intrinsics, "height": HEIGHT, "width": WIDTH},
        "vggt": {"extrinsic": fixed.extrinsics[None], "intrinsic": np.tile(matrix, (1, FRAMES, 1, 1))},
        "one": {"extrinsics": fixed.extrinsics, "intrinsics": matrix},
    }[kind]
    np.savez(tmp_path / "c.npz", **arrays)
    assert_same(load(tmp_path / "c.npz"), fixed)


def test_keyframes_and_presets_go_through_the_same_door(tmp_path):
    keys = [{"frame": 0, "position": [0, 0, 0]}, {"frame": 8, "position": [0, 0, 0.5]}]
    (tmp_path / "k.json").write_text(json.dumps({"keyframes": keys, "interpolation": "linear"}))
    assert_same(load(tmp_path / "k.json"), load("push:distance=0.5"))


def test_uneven_times_are_met_by_the_cameras_in_between(tmp_path):
    """A steady motion, written at times that are anything but: the clip sees it steady."""
    numbers = np.array([0, 1, 2.5, 2.75, 7, 8])
    steady = preset("orbit:degrees=40,depth=1.5", 801, HEIGHT, WIDTH)
    pan, truck = (preset(name, 801, HEIGHT, WIDTH) for name in ("pan:degrees=40", "truck:distance=0.8"))
    for path, atol in ((pan, 1e-9), (truck, 1e-9), (steady, 0.06)):
        at = (numbers * 100).astype(int)
        picked = Cameras(path.extrinsics[at], path.intrinsics[at], HEIGHT, WIDTH)
        (tmp_path / "c.txt").write_text(rows(picked, 500_000 + (numbers * 62_500).astype(int)))
        expected = Cameras(path.extrinsics[::100], path.intrinsics[::100], HEIGHT, WIDTH)
        assert_same(load(tmp_path / "c.txt"), expected, atol)


def test_reversed_lines_are_the_same_path_since_times_count(cameras, tmp_path):
    times = np.arange(FRAMES) * 62_500
    backwards = Cameras(cameras.extrinsics[::-1], cameras.intrinsics[::-1], HEIGHT, WIDTH)
    (tmp_path / "c.txt").write_text(rows(backwards, times[::-1]))
    assert_same(load(tmp_path / "c.txt"), cameras)
    (tmp_path / "d.txt").write_text(rows(backwards, times))
    assert_same(load(tmp_path / "d.txt"), backwards)


def test_the_clocks_rate_decides_and_not_the_number_of_lines(cameras, tmp_path):
    """Cameras 125 ms apart are every second frame of a clip at 16 per second."""
    (tmp_path / "c.txt").write_text(rows(cameras, np.arange(FRAMES) * 125_000))
    found = load(tmp_path / "c.txt")
    np.testing.assert_allclose(found.extrinsics[::2], cameras.relative().extrinsics[:5], atol=1e-9)
    assert_same(load(tmp_path / "c.txt", rate=8.0), cameras)
    fitted = load(tmp_path / "c.txt", frames=17, pace="fit")
    np.testing.assert_allclose(fitted.extrinsics[::2], cameras.relative().extrinsics, atol=1e-9)
    with pytest.raises(RawError, match=r"c.txt: 9 cameras from 0 to 1 s found, expected them to 2 s for 17 "):
        load(tmp_path / "c.txt", frames=17, rate=8.0)


@pytest.mark.parametrize("times", [range(FRAMES), np.arange(FRAMES) / RATE, np.arange(FRAMES) * 62_500])
def test_frame_numbers_seconds_and_microseconds_are_distinguished(cameras, tmp_path, times):
    (tmp_path / "c.txt").write_text(rows(cameras, list(times)))
    assert_same(load(tmp_path / "c.txt"), cameras)


def test_intrinsics_in_pixels_are_those_of_the_clip_where_the_file_is_said_to_have_them(cameras, tmp_path):
    pixels = Cameras(cameras.extrinsics, cameras.intrinsics, 1, 1)
    (tmp_path / "c.txt").write_text(rows(pixels, range(FRAMES)))
    assert_same(load(tmp_path / "c.txt", unit="pixel"), cameras)
    with pytest.raises(RawError, match=r"c.txt:2: focal length .* found, expected one divided by the image size"):
        load(tmp_path / "c.txt")


def test_a_file_of_wider_pictures_is_cropped_in_the_middle(tmp_path):
    wide = preset("still:fov=60", FRAMES, 90, 160)
    write_realestate10k(tmp_path / "c.txt", wide, RATE)
    write_cameras(tmp_path / "c.json", wide, RATE)
    for name in ("c.txt", "c.json"):
        found = load(tmp_path / name, height=45, width=60)
        np.testing.assert_allclose(found.intrinsics[0], [wide.intrinsics[0, 0] / 2] * 2 + [30, 22.5], rtol=1e-9)


def test_scaling_divides_positions_only(cameras):
    scaled = cameras.scaled(4.0)
    np.testing.assert_allclose(scaled.centres, cameras.centres / 4)
    np.testing.assert_array_equal(scaled.extrinsics[..., :3], cameras.extrinsics[..., :3])


GOOD = "{} 0.9 1.5 0.5 0.5 0 0 1 0 0 0 0 1 0 0 0 0 1 0\n"
FRAME = {"w2c": np.eye(3, 4).tolist(), "fx": 50, "fy": 50, "cx": 40, "cy": 24}
OWN = {"version": 1, "width": 80, "height": 48, "fps": 16, "convention": "w2c_opencv", "frames": [FRAME] * 9}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.format(0) + GOOD.format(5) + GOOD.format(0), "c.txt:3: the time 0 of line 1 again"),
        (GOOD.format(0) + "1 2 3\n", "c.txt:2: 3 columns found, expected 19"),
        (GOOD.format("x"), "c.txt:1: could not convert string to float"),
        ("", "c.txt: no camera found"),
        (GOOD.format(0) + GOOD.format(10**9), "taken as microseconds has cameras 1000 s apart, expected at most 10 s"),
    ],
)
def test_a_bad_text_file_is_named_with_its_line(tmp_path, text, said):
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(RawError, match=said):
        load(tmp_path / "c.txt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1], "list found, expected 'frames'"),
        ({"cams": 1}, r"keys \['cams'\] found, expected 'frames'"),
        (OWN | {"convention": "c2w"}, "convention: Input should be 'w2c_opencv', found 'c2w'"),
        (OWN | {"frames": [FRAME, FRAME | {"fx": "wide"}]}, "frames.1.fx: Input should be a valid number"),
        (OWN | {"frames": [FRAME, FRAME | {"w2c": [[1, 0], [0, 1]]}]}, r"frames 1 has shape \(2, 2\), expected 3 x 4"),
        (OWN | {"frames": [FRAME | {"fx": 0.9}]}, "intrinsics 0 are .*, expected fx fy cx cy in pixels"),
        (OWN | {"frames": []}, "frames holds no camera"),
        ({"cameras_interp": [np.diag([1, 1, 2, 1]).tolist()]}, "cameras_interp 0: the left 3 x 3 of the matrix is off"),
        ({"cameras_interp": [(np.eye(4) + np.eye(4, k=-3)).tolist()]}, r"ends with the row \[1.0, 0.0, 0.0, 1.0\]"),
        ({"keyframes": [{"frame": 0, "position": [0, 0]}]}, r"keyframes.0.position.2: Field required"),
        ({"keyframes": [{"frame": 0, "position": [0, 0, 0], "lookat": [0, 0, 1]}]}, "keyframes.0.lookat: Extra inputs"),
    ],
)
def test_a_bad_json_is_named_with_its_entry(tmp_path, content, said):
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(RawError, match=f"c.json: .*{said}"):
        load(tmp_path / "c.json")


def test_bad_arrays_and_bad_colmap_files_are_named(cameras, tmp_path):
    np.savez(tmp_path / "c.npz", poses=cameras.extrinsics)
    with pytest.raises(RawError, match=r"c.npz: arrays \['poses'\] found, expected numbers named extrinsics"):
        load(tmp_path / "c.npz")
    np.savez(tmp_path / "c.npz", extrinsics=cameras.extrinsics, intrinsics=cameras.intrinsics[:3])
    with pytest.raises(RawError, match=r"c.npz: intrinsics of shape \(3, 4\) found, expected \[9, 3, 3\]"):
        load(tmp_path / "c.npz")
    (tmp_path / "c.npz").write_bytes((tmp_path / "c.npz").read_bytes()[:-30])
    with pytest.raises(RawError, match=r"c.npz: not readable as arrays"):
        load(tmp_path / "c.npz")
    write_colmap(tmp_path / "m", cameras)
    good = (tmp_path / "m" / "cameras.txt").read_text()
    (tmp_path / "m" / "cameras.txt").write_text(good.replace("PINHOLE", "OPENCV", 1))
    with pytest.raises(RawError, match=r"cameras.txt:2: camera model OPENCV found, expected SIMPLE_PINHOLE or PINHOLE"):
        load(tmp_path / "m")
    (tmp_path / "m" / "cameras.txt").write_text(good)
    images = (tmp_path / "m" / "images.txt").read_text()
    (tmp_path / "m" / "images.txt").write_text(images.replace("\n\n", "\n"))  # without the lines of points
    with pytest.raises(RawError, match=r"images.txt:3: .* found, expected IMAGE_ID .* and a line of points after each"):
        load(tmp_path / "m")
    (tmp_path / "m" / "images.txt").write_text(images + "10 1 0 0\n")
    with pytest.raises(RawError, match=r"images.txt:21: '10 1 0 0' found, expected IMAGE_ID QW"):
        load(tmp_path / "m")
    with pytest.raises(RawError, match=r"x.csv: found no such file, expected cameras as .txt"):
        load(tmp_path / "x.csv")
