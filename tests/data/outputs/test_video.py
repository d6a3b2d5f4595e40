"""Videos: as many frames as were given, sound as long as they are, true colours, nothing half-written."""

import json
import wave
from fractions import Fraction

import av
import numpy as np
import pytest

from stagecoach.data.building.jobs import RawError
from stagecoach.data.encoding.audio import SAMPLE_RATE, read_audio
from stagecoach.data.fantasy_world.readers import read_frames
from stagecoach.data.outputs.video import SOUND_RATE, Sound, open_video, write_video

HEIGHT, WIDTH, RATE = 32, 48, 16


def frames(count: int, height: int = HEIGHT, width: int = WIDTH):
    """A grey that rises by 7 in each frame."""
    return (np.full((height, width, 3), 20 + 7 * k % 200, np.uint8) for k in range(count))


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    """4 s at 44.1 kHz, mono: silence but for a tone from 1 s to 1.5 s."""
    path = tmp_path_factory.mktemp("song") / "song.wav"
    time = np.arange(4 * 44100) / 44100
    tone = np.where((time >= 1) & (time < 1.5), np.sin(2 * np.pi * 440 * time), 0)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 44100, 0, "NONE", ""))
        file.writeframes((tone * 20000).astype("<i2").tobytes())
    return path


def sound_of(path) -> np.ndarray:
    """Samples at 48 kHz, mixed down, as a player plays them."""
    with av.open(str(path)) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
        blocks = [frame.to_ndarray() for frame in container.decode(audio=0)]
    return np.concatenate(blocks, 1).mean(0)


def test_33_frames_back_are_33_with_sound_as_long(tmp_path, song):
    assert write_video(tmp_path / "v.mp4", frames(33), RATE, Sound(song)) == 33
    found = list(read_frames(tmp_path / "v.mp4"))
    assert len(found) == 33
    for frame, expected in zip(found, frames(33), strict=True):
        assert np.abs(frame.astype(int) - expected).max() <= 2
    seconds = len(sound_of(tmp_path / "v.mp4")) / SOUND_RATE
    assert abs(seconds - 33 / RATE) < 1 / RATE
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]
    with av.open(str(tmp_path / "v.mp4")) as container:
        video = container.streams.video[0]
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        assert (video.codec_context.name, video.pix_fmt, video.average_rate) == ("h264", "yuv420p", RATE)
        assert float(container.duration / av.time_base) == pytest.approx(33 / RATE, abs=0.03)
    content = (tmp_path / "v.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # a browser plays before it has all


def test_the_same_content_is_the_same_file(tmp_path, song):
    for name in ("a", "b"):
        write_video(tmp_path / name, frames(9), RATE, Sound(song))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("start", [0.0, 0.5, 1.25])
def test_sound_begins_where_it_is_asked_to(tmp_path, song, start):
    write_video(tmp_path / "v.mp4", frames(30), 10, Sound(song, start))
    loud = np.flatnonzero(np.abs(read_audio(tmp_path / "v.mp4", 0.0)) > 0.05) / SAMPLE_RATE
    assert loud[0] == pytest.approx(max(1 - start, 0), abs=0.03)
    assert loud[-1] == pytest.approx(1.5 - start, abs=0.03)


def test_a_song_that_ends_before_leaves_silence_and_says_so(tmp_path, song, caplog):
    write_video(tmp_path / "v.mp4", frames(30), 10, Sound(song, 2.0))
    assert "v.mp4: the sound ends 1.00 s before the video" in caplog.text
    assert len(sound_of(tmp_path / "v.mp4")) / SOUND_RATE == pytest.approx(3, abs=0.1)


def test_369_frames_of_12_3_seconds_at_30(tmp_path, song):
    """The rate is a fraction too: 30000 / 1001 of film stays in time with its sound."""
    for rate in (30, Fraction(30000, 1001)):
        write_video(tmp_path / "v.mp4", frames(369, 16, 16), rate, Sound(song))
        with av.open(str(tmp_path / "v.mp4")) as container:
            assert container.streams.video[0].average_rate == rate
            assert container.streams.video[0].frames == 369
        assert abs(len(sound_of(tmp_path / "v.mp4")) / SOUND_RATE - 369 / rate) < 1 / 30


def test_saturated_colours_come_back_and_are_flagged_as_bt709(tmp_path):
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [40, 90, 160]], np.uint8)
    picture = np.repeat(np.repeat(colours[None], 64, 0), 32, 1)
    write_video(tmp_path / "v.mp4", [picture] * 3, RATE)
    with av.open(str(tmp_path / "v.mp4")) as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc) == (1, 1, 1, 1)
    assert np.abs(frame.to_ndarray(format="rgb24")[32, 16::32].astype(int) - colours).max() <= 3


def test_odd_sides_are_filled_up_and_said(tmp_path, caplog):
    write_video(tmp_path / "v.mp4", frames(3, 31, 47), RATE)
    assert next(read_frames(tmp_path / "v.mp4")).shape == (32, 48, 3)
    assert "v.mp4: frames of odd height or width become 32 x 48" in caplog.text
    assert caplog.text.count("frames of odd") == 1


def test_without_libx264_the_video_is_mpeg4_and_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    write_video(tmp_path / "v.mp4", frames(9), RATE)
    assert "has no libx264, so the video is MPEG-4 Part 2" in caplog.text
    with av.open(str(tmp_path / "v.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    found = list(read_frames(tmp_path / "v.mp4"))
    assert len(found) == 9
    for frame, expected in zip(found, frames(9), strict=True):
        assert np.abs(frame.astype(int) - expected).max() <= 4


def test_what_breaks_off_leaves_nothing(tmp_path, song):
    def broken():
        yield from frames(5)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        write_video(tmp_path / "v.mp4", broken(), RATE, Sound(song))
    with pytest.raises(ValueError, match=r"v.mp4: no frame to write"):
        write_video(tmp_path / "v.mp4", [], RATE)
    with pytest.raises(ValueError, match=r"v.mp4: frame 1 of 16 x 48 found, expected 32 x 48 as frame 0"):
        write_video(tmp_path / "v.mp4", [*frames(1), *frames(1, 16)], RATE)
    with pytest.raises(ValueError, match=r"frame 0 of shape \(32, 48, 3\) and dtype float64 found, expected uint8"):
        write_video(tmp_path / "v.mp4", [np.zeros((32, 48, 3))], RATE)
    (tmp_path / "note.json").write_text(json.dumps(1))
    with pytest.raises(RawError, match=r"note.json: not readable as audio or video"):
        write_video(tmp_path / "v.mp4", frames(3), RATE, Sound(tmp_path / "note.json"))
    write_video(tmp_path / "mute.mp4", frames(3), RATE)
    with pytest.raises(RawError, match=r"mute.mp4: no audio stream found, expected the sound of the video"):
        write_video(tmp_path / "v.mp4", frames(3), RATE, Sound(tmp_path / "mute.mp4"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mute.mp4", "note.json"]


def test_frames_are_written_as_they_come(tmp_path):
    """A long clip is never held: each frame may be forgotten when the next is asked for."""
    buffer = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    with open_video(tmp_path / "v.mp4", RATE) as video:
        for k in range(20):
            buffer[:] = 10 * k
            video.add(buffer)
    found = [int(frame[16, 16, 0]) for frame in read_frames(tmp_path / "v.mp4")]
    np.testing.assert_allclose(found, np.arange(20) * 10, atol=2)
