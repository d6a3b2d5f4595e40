"""Cameras, pictures and maps of a clip are those of one time, in whatever order, clock or spacing files have them."""

from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from stagecoach.data.building.jobs import RawError, RawItem
from stagecoach.data.building.partition import assign_splits
from stagecoach.data.fantasy_world.clip import ClipOptions, clips_of, precheck, prepare_clip, timeline
from stagecoach.data.fantasy_world.footage import Footage
from stagecoach.data.fantasy_world.maps import Maps
from stagecoach.data.fantasy_world.raw import RawClip, read_metadata
from stagecoach.data.fantasy_world.synthetic import write_synthetic
from tests.data.fantasy_world.conftest import read_track

OPTIONS = ClipOptions(5, 32, 48)
LEVEL = 6
"""Grey levels from one frame to the next."""


def write_frames(path, times):
    """A video whose frame k is of grey level 6 k and shown at ``times[k]`` milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for k, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), LEVEL * k, np.uint8), format="rgb24")
            frame.pts, frame.time_base = int(time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture
def clip(tmp_path):
    """A video of ``times`` with a camera for each of ``numbers``, whose x is its number; ``maps``: names of maps."""

    def make(times, numbers, names=None):
        write_frames(tmp_path / "v.mp4", times)
        rows = [f"{n} .5 .9 .5 .5 0 0 1 0 0 {n} 0 1 0 0 0 0 1 0" for n in numbers]
        (tmp_path / "c.txt").write_text("\n".join(rows))
        folder = tmp_path / "depth"
        folder.mkdir()
        for n in range(len(times)) if names is None else names:
            np.save(folder / f"{n}.npy", np.full((4, 6), n + 1.0))
        return RawClip("v", tmp_path / "v.mp4", "", tmp_path / "c.txt", folder, None, None, None)

    return make


def chosen(clip, options=OPTIONS):
    """Cameras, frames as their pictures say, and numbers of the maps of a clip."""
    found = timeline(clip, options)
    pictures = [round(float(picture.mean()) / LEVEL) for picture in found.footage.read(found.frames.tolist())]
    maps = Maps(clip.depth, "depth")
    depth = maps.read(found.maps(maps).tolist())[:, 0, 0] - 1
    return found.recorded.extrinsics[found.cameras, 0, 3].tolist(), pictures, depth.tolist()


STEADY = np.arange(40) * 1000 // 30
UNEVEN = np.cumsum([0, *([20, 140, 30, 60] * 8)])


def test_cameras_in_microseconds_200_ms_apart_take_the_frames_of_their_times(clip):
    made = clip(STEADY, np.arange(6) * 200_000)
    assert chosen(made) == ([0, 200_000, 400_000, 600_000, 800_000], [0, 6, 12, 18, 24], [0, 6, 12, 18, 24])


def test_times_of_a_longer_video_count_from_the_first(clip):
    made = clip(STEADY[:10], 90_000_000 + np.arange(10) * 33_367)
    assert chosen(made)[1] == [0, 1, 2, 3, 4]


def test_rows_in_another_order_are_read_by_their_times(clip):
    made = clip(STEADY, np.arange(6)[::-1] * 100_000)
    assert chosen(made) == ([0, 100_000, 200_000, 300_000, 400_000], [0, 3, 6, 9, 12], [0, 3, 6, 9, 12])


def test_whole_numbers_are_frames_strided_or_from_1_on(clip):
    made = clip(STEADY, np.arange(0, 20, 3))
    assert chosen(made)[1] == [0, 3, 6, 9, 12]
    made.cameras.write_text(made.cameras.read_text().replace("0 .5", "1 .5", 1))
    rows = [f"{n} .5 .9 .5 .5 0 0 1 0 0 {n} 0 1 0 0 0 0 1 0" for n in range(1, 41)]
    made.cameras.write_text("\n".join(rows))
    assert chosen(made)[1:] == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])


def test_a_variable_frame_rate_is_read_by_presentation_times(clip):
    made = clip(UNEVEN, np.arange(5) * 250 / 1000)
    assert chosen(made)[1] == [0, 4, 8, 12, 16]
    rows = "\n".join(f"{n} .5 .9 .5 .5 0 0 1 0 0 {n} 0 1 0 0 0 0 1 0" for n in range(len(UNEVEN)))
    made.cameras.write_text(rows)
    assert chosen(made)[1] == [0, 1, 2, 3, 4]
    found = chosen(made, replace(OPTIONS, fps=4))
    assert found == ([0, 4, 8, 12, 16], [0, 4, 8, 12, 16], [0, 4, 8, 12, 16])


def test_cameras_of_no_frame_and_a_wrong_clock_are_refused(clip):
    made = clip(STEADY, np.arange(6) * 1000)
    with pytest.raises(RawError, match=r"c\.txt: two cameras for the picture at 0\.000 s of v\.mp4.*--stride or --fps"):
        timeline(made, OPTIONS)
    assert chosen(made, replace(OPTIONS, frames=1, camera_clock="milliseconds"))[1] == [0]
    with pytest.raises(RawError, match=r"a camera at 4\.000 s found, where v\.mp4 has its nearest picture at 1\.300 s"):
        timeline(made, replace(OPTIONS, camera_clock="milliseconds"))


def test_start_stride_and_rate_choose_cameras_and_their_frames(clip):
    made = clip(STEADY, range(40))
    assert chosen(made, replace(OPTIONS, start=2, stride=3))[1] == [2, 5, 8, 11, 14]
    assert chosen(made, replace(OPTIONS, start=1, fps=10))[1] == [1, 4, 7, 10, 13]
    assert chosen(replace(made, start=7), OPTIONS)[1] == [7, 8, 9, 10, 11]
    with pytest.raises(RawError, match="40 cameras found, expected at least 41, one per frame of the clip, every 10th"):
        timeline(made, replace(OPTIONS, stride=10))
    with pytest.raises(RawError, match=r"about 0\.033.* s apart found, too few for --fps 60; give at most 30"):
        timeline(made, replace(OPTIONS, fps=60))
    with pytest.raises(ValueError, match="fps 10 with stride 2 found"):
        replace(OPTIONS, fps=10, stride=2)


def test_maps_of_each_camera_or_of_each_frame_or_by_name(clip):
    made = clip(STEADY, np.arange(6) * 200_000, names=range(6))
    assert chosen(made)[2] == [0, 1, 2, 3, 4]
    (made.depth / "6.npy").write_bytes((made.depth / "5.npy").read_bytes())
    with pytest.raises(RawError, match=r"depth of 7 frames found, expected one for each of the 40 frames of v\.mp4"):
        precheck(made, OPTIONS)
    for n in range(7):
        (made.depth / f"{n}.npy").unlink()
    for n in np.arange(6) * 200_000:
        np.save(made.depth / f"frame_{n}.npy", np.full((4, 6), n + 1.0))
    assert chosen(made)[2] == [0, 200_000, 400_000, 600_000, 800_000]


def test_a_video_gives_several_clips_that_stay_in_one_split(clip):
    made = clip(STEADY, range(40))
    options = replace(OPTIONS, start=1, stride=2, clips_per_video=0)
    several = clips_of(made, options)
    assert [(one.key, one.start) for one in several] == [(f"v-{n:04d}", 1 + 10 * n) for n in range(3)] + [
        ("v-0003", 31)
    ]
    assert chosen(several[-1], options)[1] == [31, 33, 35, 37, 39]
    assert len(clips_of(made, replace(options, clips_per_video=2))) == 2
    items = [RawItem(f"{video}-{n}", None, None, video) for video in "abcdefghij" for n in range(3)]
    splits = assign_splits(items, 0.3)
    assert {"train", "val"} == set(splits.values())
    assert all(len({splits[f"{video}-{n}"] for n in range(3)}) == 1 for video in "abcdefghij")
    few = assign_splits([RawItem(f"{video}-{n}", None, None, video) for video in "ab" for n in range(3)], 0.01)
    assert sorted(few.values()) == ["train"] * 3 + ["val"] * 3


def test_a_bad_clip_within_a_video_is_one_of_its_clips_and_ends_none_of_the_others(clip):
    """A camera 0.6 of a frame late, in the second of eight clips, has the picture of the next."""
    times = np.round(np.arange(40) * 1e6 / 30)
    times[7] += 0.6e6 / 30
    made = clip(STEADY, times.astype(int))
    several = clips_of(made, replace(OPTIONS, clips_per_video=0))
    assert [one.start for one in several] == list(range(0, 40, 5))
    for number, one in enumerate(several):
        if number == 1:
            with pytest.raises(RawError, match=r"c\.txt: two cameras for the picture at"):
                timeline(one, OPTIONS)
        else:
            timeline(one, OPTIONS)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    raw = tmp_path_factory.mktemp("rendered") / "raw"
    write_synthetic(raw, 1, 9, 32, 48, seed=0)
    return read_metadata(raw)[0][0]


def test_a_folder_of_pictures_named_by_time_stamps_is_a_video(rendered, tmp_path):
    """As RealEstate10K's frames are written: names and the first column are microseconds."""
    expected, stamps = prepare_clip(rendered, ClipOptions(9, 32, 48)), 5_000_000 + np.cumsum([0, *[33_366, 33_367] * 4])
    pictures, depth, track = tmp_path / "pictures", tmp_path / "depth", read_track(rendered.cameras)
    pictures.mkdir()
    depth.mkdir()
    maps = Maps(rendered.depth, "depth").read(range(9))
    for stamp, picture, map_ in zip(stamps, Footage(rendered.video).read(range(9)), maps, strict=True):
        Image.fromarray(picture).save(pictures / f"{stamp}.png")
        np.savez(depth / f"{stamp}.npz", depth=map_[..., None])
    Image.new("RGB", (48, 32)).save(pictures / "4000000.png")
    rows = [
        " ".join(map(str, [stamp, *k, 0, 0, *e.flat]))
        for stamp, k, e in zip(stamps, track.intrinsics, track.extrinsics, strict=True)
    ]
    (tmp_path / "c.txt").write_text("\n".join(["https://www.example.org/v", *rows[::-1]]))
    found = prepare_clip(
        replace(rendered, video=pictures, depth=depth, cameras=tmp_path / "c.txt"), ClipOptions(9, 32, 48)
    )
    np.testing.assert_array_equal(found.frames, expected.frames)
    np.testing.assert_array_equal(found.depth, expected.depth)
    np.testing.assert_allclose(found.extrinsics, expected.extrinsics, atol=1e-6)


def test_pictures_of_two_sizes_and_two_of_one_number_are_refused(rendered, tmp_path):
    for n in range(9):
        Image.new("RGB", (48, 32) if n else (96, 64)).save(tmp_path / f"{n}.png")
    with pytest.raises(RawError, match="a picture of 32 x 48 found, expected 64 x 96 as the first"):
        prepare_clip(replace(rendered, video=tmp_path), ClipOptions(9, 32, 48))
    Image.new("RGB", (48, 32)).save(tmp_path / "003.jpg")
    with pytest.raises(RawError, match=r"003\.jpg and 3\.png have one number, expected one picture for each frame"):
        precheck(replace(rendered, video=tmp_path), ClipOptions(9, 32, 48))


def test_sound_without_pictures_and_a_cut_video_say_so(rendered, tmp_path):
    sound, cut = tmp_path / "sound.mp4", tmp_path / "cut.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux([*stream.encode(frame), *stream.encode()])
    with pytest.raises(RawError, match=r"sound\.mp4: only sound found, no video"):
        precheck(replace(rendered, video=sound), ClipOptions(9, 32, 48))
    cut.write_bytes(rendered.video.read_bytes()[:-200])
    with pytest.raises(RawError, match=r"cut\.mp4: .*cut"):
        prepare_clip(replace(rendered, video=cut), ClipOptions(9, 32, 48))
