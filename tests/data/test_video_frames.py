"""Frames come upright, with their times, and none that the decoder calls damaged."""

import random
import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from stagecoach.data.building.jobs import RawError
from stagecoach.data.fantasy_world.readers import read_frames
from stagecoach.data.synthetic import write_video
from stagecoach.data.video_frames import declared_frames, frame_times, read_frames_at, read_video

NOISE = np.random.default_rng(0).integers(0, 40, (64, 96, 3))
PICTURES = np.stack([(NOISE + 6 * k).astype(np.uint8) for k in range(30)])
FLIPS = 80


def encode(path, pictures=PICTURES, times=None, **options) -> None:
    """A video whose frame k is shown at ``times[k]`` milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "1", "threads": "1", **options})
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for k, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[k], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def turn(path, a, b, c, d) -> None:
    """Give the track of an MP4 a display matrix: a stored point (x, y) is shown at (a x + c y, b x + d y)."""
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarter_turns", range(4))
def test_frames_are_as_a_player_shows_them(tmp_path, quarter_turns, mirrored):
    """Expected: each corner's colour where the matrix puts the corner."""
    corners = {(-1, -1): 20, (1, -1): 90, (-1, 1): 160, (1, 1): 230}
    stored = np.zeros((32, 64, 3), np.uint8)
    for (x, y), grey in corners.items():
        stored[16 * (y > 0) : 16 * (y > 0) + 16, 32 * (x > 0) : 32 * (x > 0) + 32] = grey
    encode(tmp_path / "v.mp4", np.stack([stored] * 3))
    a, b = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns]
    c, d = -b, a
    if mirrored:
        a, b = -a, -b
    turn(tmp_path / "v.mp4", a, b, c, d)
    _, shown = next(read_video(tmp_path / "v.mp4"))
    assert shown.shape == ((64, 32, 3) if quarter_turns % 2 else (32, 64, 3))
    h, w = shown.shape[:2]
    for (x, y), grey in corners.items():
        column, row = (a * x + c * y > 0), (b * x + d * y > 0)
        assert abs(int(shown[h // 4 + row * (h // 2), w // 4 + column * (w // 2), 0]) - grey) < 6


def test_times_are_those_at_which_frames_are_shown_at_a_variable_rate_and_behind_a_seek(tmp_path):
    times = np.cumsum([0, *([20, 100, 33] * 10)])[:30]
    encode(tmp_path / "v.mkv", times=times, g="6", bf="2")
    found = frame_times(tmp_path / "v.mkv")
    np.testing.assert_allclose(found.times, times / 1000, atol=1e-3)
    assert found.last == pytest.approx(0.033, abs=1e-3)
    for start in (None, found.times[13], found.times[18]):
        read = [(time, picture.mean()) for time, picture in read_video(tmp_path / "v.mkv", start)]
        np.testing.assert_array_equal([time for time, _ in read], found.times[found.times >= (start or 0)])
        np.testing.assert_allclose(np.diff([grey for _, grey in read]), 6, atol=1.5)
    chosen = [7, 7, 12, 25]
    for picture, k in zip(read_frames_at(tmp_path / "v.mkv", found.times[chosen]), chosen, strict=True):
        assert picture.mean() == pytest.approx(PICTURES[k].mean(), abs=1.5)


def test_no_frame_that_the_decoder_flags_is_given_for_one_flipped_bit(tmp_path):
    """What is flagged or found by the decoder is refused; what is left wrong is damage that no decoder can see."""
    encode(tmp_path / "v.mp4", g="5", bf="0")
    whole = [picture for _, picture in read_video(tmp_path / "v.mp4")]
    data = (tmp_path / "v.mp4").read_bytes()
    with av.open(str(tmp_path / "v.mp4")) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    draw, refused, wrong = random.Random(0), 0, 0
    path = tmp_path / "d.mp4"
    for _ in range(FLIPS):
        damaged = bytearray(data)
        damaged[draw.randrange(places[0], places[11])] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            frames = list(read_frames(path, 9))
        except RawError:
            refused += 1
            continue
        differs = any(np.abs(x.astype(int) - y).mean() >= 2 for x, y in zip(frames, whole, strict=False))
        wrong += differs
        with av.open(str(path)) as container:
            flagged = [frame.is_corrupt for frame, _ in zip(container.decode(video=0), range(9), strict=False)]
        assert not any(flagged)
    assert refused > FLIPS // 4
    assert wrong < FLIPS // 6


def test_cut_and_soundless_and_pictureless_files_say_so(tmp_path):
    for name in ("v.mp4", "v.mkv"):
        write_video(tmp_path / name, PICTURES, 30)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(RawError, match=r"v\.mp4: not readable as a video .*cut"):
        frame_times(tmp_path / "v.mp4")
    for read in (frame_times, lambda path: list(read_video(path))):
        with pytest.raises(RawError, match=r"v\.mkv: .*cut"):
            read(tmp_path / "v.mkv")
    # An MP4 whose table stands first, as for the web, can be opened when it is cut.
    with av.open(str(tmp_path / "w.mp4"), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=30, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for picture in PICTURES:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    assert declared_frames(tmp_path / "w.mp4") == 30
    whole = (tmp_path / "w.mp4").read_bytes()
    with av.open(str(tmp_path / "w.mp4")) as container:
        ends = [packet.pos for packet in container.demux(video=0) if packet.size]
    for end in (ends[20], ends[20] + 11):
        (tmp_path / "w.mp4").write_bytes(whole[:end])
        for read in (frame_times, lambda path: list(read_video(path))):
            with pytest.raises(RawError, match=r"w\.mp4: .*cut"):
                read(tmp_path / "w.mp4")
        assert len(list(read_frames(tmp_path / "w.mp4", 9))) == 9
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for read in (frame_times, declared_frames, lambda path: list(read_frames(path, 9))):
        with pytest.raises(RawError, match=r"a\.mp4: only sound found, no video, expected .*; give the file with the"):
            read(tmp_path / "a.mp4")
