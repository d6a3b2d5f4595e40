"""Rows of music belong to frames by construction, and are those of EDGE's published features."""

import os
import subprocess
import sys
from pathlib import Path

import av
import librosa
import numpy as np
import pytest

from stagecoach.data.building.jobs import RawError
from stagecoach.data.encoding.audio import (
    BEAT,
    CHROMAS,
    EDGE_DIM,
    FRAME_RATE,
    HOP,
    MFCCS,
    ONSET,
    SAMPLE_RATE,
    edge_rows,
    has_audio,
    read_audio,
)


def clicks(bpm: float, seconds: float, first: float = 0.3, rate: int = SAMPLE_RATE) -> tuple[np.ndarray, np.ndarray]:
    """A click track and the seconds of its clicks, the first of them at ``first``."""
    times = np.arange(first, seconds - 0.1, 60 / bpm)
    samples = np.zeros(round(seconds * rate), np.float32)
    noise = np.random.default_rng(0).normal(size=rate // 40) * np.exp(-np.linspace(0, 6, rate // 40))
    for time in times:
        start = round(time * rate)
        samples[start : start + len(noise)] += 0.3 * noise.astype(np.float32)
    return samples, times


def write_sound(path: Path, samples: np.ndarray, rate: int, codec: str, silent_lead: int = 0) -> Path:
    """Mono sound; the first time stamp is ``silent_lead`` samples late."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=stream.format.name, layout="mono", rate=rate)
        for block in resampler.resample(frame):
            block.pts = silent_lead
            container.mux(stream.encode(block))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def music() -> np.ndarray:
    rate, time = SAMPLE_RATE, np.arange(SAMPLE_RATE * 6) / SAMPLE_RATE
    tones = sum(np.sin(2 * np.pi * f * time) / k for k, f in enumerate((220, 277.2, 329.6), 2))
    return (0.3 * tones + clicks(110, 6, rate=rate)[0]).astype(np.float32)


def test_the_rows_are_those_of_edge(music):
    """Its definition, call by call: column order, sample rate 30 * 512, hop 512, tightness 100."""
    rows = edge_rows(music, bpm=110)
    envelope = librosa.onset.onset_strength(y=music, sr=15360)
    np.testing.assert_allclose(rows[:, 0], envelope, rtol=1e-6)
    np.testing.assert_allclose(rows[:, 1:21], librosa.feature.mfcc(y=music, sr=15360, n_mfcc=20).T, rtol=1e-6)
    chroma = librosa.feature.chroma_cens(y=music, sr=15360, hop_length=512, n_chroma=12)
    np.testing.assert_allclose(rows[:, 21:33], chroma.T, rtol=1e-6)
    peaks = librosa.onset.onset_detect(onset_envelope=envelope.flatten(), sr=15360, hop_length=512)
    np.testing.assert_array_equal(rows[:, 33].nonzero()[0], peaks)
    beats = librosa.beat.beat_track(onset_envelope=envelope, sr=15360, hop_length=512, start_bpm=110, tightness=100)[1]
    np.testing.assert_array_equal(rows[:, 34].nonzero()[0], beats)
    assert rows.shape == (len(music) // HOP + 1, 35)
    assert (EDGE_DIM, 1 + MFCCS + CHROMAS + 2, ONSET, BEAT) == (35, 35, 0, 34)


@pytest.mark.parametrize("bpm", [90.0, 120.0, 150.0])
def test_beats_of_a_click_track_lie_on_its_clicks(bpm):
    samples, times = clicks(bpm, 8)
    beats = edge_rows(samples)[:, BEAT].nonzero()[0]
    expected = np.round(times * FRAME_RATE)
    assert len(beats) >= len(times) - 3, "the tracker may leave weak ones at the ends"
    assert max(np.abs(expected - beat).min() for beat in beats) <= 1
    assert np.diff(beats).mean() == pytest.approx(60 / bpm * FRAME_RATE, abs=0.5)


@pytest.mark.parametrize("shift", [1, 7])
def test_music_that_starts_later_has_rows_that_start_later(music, shift):
    """By just so many rows, away from the ends, where windows reach into silence."""
    later = np.concatenate([np.zeros(shift * HOP, np.float32), music])
    rows, moved = edge_rows(music, 110), edge_rows(later, 110)
    middle = slice(30, len(rows) - 30)
    np.testing.assert_allclose(moved[shift:][middle, : 1 + MFCCS], rows[middle, : 1 + MFCCS], rtol=1e-3, atol=1e-2)
    np.testing.assert_array_equal(moved[shift:][middle, BEAT], rows[middle, BEAT])


def test_silence_has_rows_without_beats():
    rows = edge_rows(np.zeros(SAMPLE_RATE * 2, np.float32))
    assert rows.shape == (2 * FRAME_RATE + 1, EDGE_DIM)
    assert not rows[:, [ONSET, BEAT - 1, BEAT]].any()
    assert np.isfinite(rows).all()


@pytest.mark.parametrize(
    ("name", "codec", "rate"), [("a.wav", "pcm_s16le", 44100), ("a.mp4", "aac", 48000), ("a.mp3", "libmp3lame", 44100)]
)
def test_sound_files_keep_their_clicks_in_place(tmp_path, name, codec, rate):
    """To within 3 ms, with any codec's samples in front of the first sample."""
    samples, times = clicks(120, 3, rate=rate)
    read = read_audio(write_sound(tmp_path / name, samples, rate, codec))
    assert read.dtype == np.float32
    assert len(read) == pytest.approx(3 * SAMPLE_RATE, abs=1200)
    for time in times:
        around = read[round((time - 0.1) * SAMPLE_RATE) : round((time + 0.1) * SAMPLE_RATE)]
        loud = np.abs(around) > 0.3 * np.abs(around).max()
        assert loud.argmax() / SAMPLE_RATE - 0.1 == pytest.approx(0, abs=0.003)


def test_samples_are_counted_from_the_wanted_time(tmp_path):
    samples, _ = clicks(120, 2, rate=48000)
    path = write_sound(tmp_path / "late.mkv", samples, 48000, "pcm_s16le", silent_lead=24000)
    whole = read_audio(path)
    late, cut = read_audio(path, start=0.0), read_audio(path, start=0.75)
    assert not late[: SAMPLE_RATE // 2 - 20].any()
    np.testing.assert_array_equal(late[SAMPLE_RATE // 2 :], whole)
    np.testing.assert_array_equal(cut, whole[SAMPLE_RATE // 4 :])


def test_files_without_music_are_named(tmp_path):
    (tmp_path / "no.wav").write_bytes(b"no sound")
    with pytest.raises(RawError, match=r"no\.wav: its audio is not decodable"):
        read_audio(tmp_path / "no.wav")
    with pytest.raises(RawError, match=r"no\.wav: not readable as audio or video"):
        has_audio(tmp_path / "no.wav")
    with av.open(str(tmp_path / "mute.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    assert not has_audio(tmp_path / "mute.mp4")
    with pytest.raises(RawError, match=r"mute\.mp4: no audio stream found"):
        read_audio(tmp_path / "mute.mp4")


def test_audio_with_a_hole_is_refused(tmp_path):
    with av.open(str(tmp_path / "hole.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        for pts in (0, 16000):
            frame = av.AudioFrame.from_ndarray(np.ones((1, 8000), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16000, pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(RawError, match=r"hole\.mkv: its audio jumps from 0\.500 s to 1\.000 s"):
        read_audio(tmp_path / "hole.mkv")


FIRST_USE = """
import numpy as np
from stagecoach.data.encoding.audio import edge_rows
edge_rows(np.random.default_rng(0).standard_normal(30 * 512).astype(np.float32))
"""


@pytest.mark.slow
def test_processes_that_analyse_their_first_sound_at_once_do_not_crash(tmp_path):
    """With a cache that is still empty; numba's files in it would be read half written."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    children = [subprocess.Popen([sys.executable, "-c", FIRST_USE], env=environment) for _ in range(2)]
    assert [child.wait(200) for child in children] == [0, 0]
