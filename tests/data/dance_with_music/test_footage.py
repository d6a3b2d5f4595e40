"""Frames at 30 per second are those nearest in time, at any rate of the source."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stagecoach.data.building.jobs import RawError
from stagecoach.data.dance_with_music.footage import nearest_frames, numbered_files, open_footage
from stagecoach.data.synthetic import write_video

GREYS = np.arange(20, 220, 4, dtype=np.uint8)


def grey_video(path, rate: int, frames: int = len(GREYS), first: int = 0) -> None:
    """Frame k is grey of ``GREYS[k]``; ``first`` is its time stamp in frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "0", "threads": "1", "g": "12"})
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        stream.time_base = Fraction(1, rate)
        for k in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), GREYS[k], np.uint8), format="rgb24")
            frame.pts = first + k
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@given(rate=st.sampled_from([12.0, 23.976, 24.0, 25.0, 29.97, 30.0, 50.0, 59.94, 60.0]), count=st.integers(1, 200))
def test_each_frame_is_the_nearest_in_time(rate, count):
    times = np.arange(count) / rate
    chosen = nearest_frames(times + 3.7, 1 / rate)
    wanted = np.arange(len(chosen)) / 30
    assert len(chosen) == max(int(np.ceil(count / rate * 30 - 1e-3)), 1)
    error = np.abs(times[chosen] - wanted)
    assert (error <= np.abs(times[None] - wanted[:, None]).min(1) + 1e-4).all()
    assert (np.diff(chosen) >= 0).all()


def test_common_rates_take_what_one_expects():
    assert nearest_frames(np.arange(10) / 30, 1 / 30).tolist() == list(range(10))
    assert nearest_frames(np.arange(20) / 60, 1 / 60).tolist() == list(range(0, 20, 2))
    assert nearest_frames(np.arange(8) / 24, 1 / 24).tolist() == [0, 1, 2, 2, 3, 4, 5, 6, 6, 7]


@pytest.mark.parametrize(("rate", "first"), [(30, 0), (24, 0), (60, 7)])
def test_pictures_read_are_those_chosen(tmp_path, rate, first):
    """Also in the middle, behind a seek, and where the first time stamp is not 0."""
    grey_video(tmp_path / "v.mkv", rate, first=first)
    footage = open_footage(tmp_path / "v.mkv", 30)
    assert footage.rate == pytest.approx(rate, rel=0.02)
    assert footage.start == pytest.approx(first / rate, abs=1e-3)
    for part in (footage.chosen, footage.chosen[20:26]):
        found = [image.mean() for image in footage.read(part)]
        np.testing.assert_allclose(found, GREYS[part], atol=1.5)


def test_a_folder_of_pictures_has_the_rate_it_is_given(tmp_path):
    for k in range(12):
        Image.fromarray(np.full((8, 8, 3), GREYS[k], np.uint8)).save(tmp_path / f"frame_{k}.png")
    footage = open_footage(tmp_path, 60)
    assert footage.chosen.tolist() == [0, 2, 4, 6, 8, 10]
    assert [image[0, 0, 0] for image in footage.read(footage.chosen)] == GREYS[:12:2].tolist()


def test_numbers_decide_the_order_and_gaps_are_named(tmp_path):
    for name in ("frame_9.png", "frame_10.png", "frame_11.png"):
        (tmp_path / name).touch()
    assert sorted(numbered_files(tmp_path, (".png",))) == [9, 10, 11]
    (tmp_path / "frame_13.png").touch()
    with pytest.raises(RawError, match="4 numbered files found but none of number 12"):
        numbered_files(tmp_path, (".png",))
    (tmp_path / "other_13.png").touch()
    with pytest.raises(RawError, match="have the same number"):
        numbered_files(tmp_path, (".png",))
    with pytest.raises(RawError, match="no files frame_<number>"):
        numbered_files(tmp_path / "none", (".png",))


def test_damaged_videos_are_named(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(RawError, match=r"a\.mp4: not readable as a video"):
        open_footage(tmp_path / "a.mp4", 30)
    random = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3)).astype(np.uint8)
    write_video(tmp_path / "b.mkv", random, 30)
    data = (tmp_path / "b.mkv").read_bytes()
    footage = open_footage(tmp_path / "b.mkv", 30)
    (tmp_path / "b.mkv").write_bytes(data[: len(data) // 2])
    with pytest.raises(RawError, match=r"b\.mkv: .*(cut|damaged|ends after)"):
        list(footage.read(footage.chosen))


def turn(path) -> None:
    """Give an mp4 of 64 rows the display matrix of a phone that was held upright (ISO 14496-12, tkhd)."""
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 4 + 40
    matrix = (0, 1 << 16, 0, -(1 << 16), 0, 0, 64 << 16, 0, 1 << 30)
    data[at : at + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)


def test_a_phones_video_is_read_as_it_is_shown(tmp_path):
    """Stored lying, its left half white; shown turned clockwise, the upper half is white."""
    lying = np.zeros((9, 64, 96, 3), np.uint8)
    lying[:, :, :48] = 255
    write_video(tmp_path / "v.mp4", lying, 30)
    turn(tmp_path / "v.mp4")
    footage = open_footage(tmp_path / "v.mp4", 30)
    assert footage.size == (96, 64)
    for image in footage.read(footage.chosen):
        assert image.shape == (96, 64, 3)
        assert image[:44].mean() > 240
        assert image[52:].mean() < 15


def test_a_variable_rate_is_taken_by_its_times(tmp_path):
    """Half a second at 60 per second, then at 20: each frame at 30 per second is the one shown nearest to its time."""
    times = [*(k / 60 for k in range(30)), *(0.5 + k / 20 for k in range(8))]
    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=60, options={"crf": "0", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt, stream.time_base = 32, 32, "yuv420p", Fraction(1, 60)
        for k, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), GREYS[k], np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(time * 60), Fraction(1, 60)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    footage = open_footage(tmp_path / "v.mkv", 30)
    wanted = [int(np.abs(np.array(times) - k / 30).argmin()) for k in range(len(footage.chosen))]
    assert footage.chosen.tolist() == wanted
    found = [image.mean() for image in footage.read(footage.chosen)]
    np.testing.assert_allclose(found, GREYS[wanted], atol=1.5)
