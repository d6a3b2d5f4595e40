"""``build_shards.py annotate`` and ``build`` on plain videos and songs: two workers, killed and continued."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stagecoach.data.annotation.cameras import CameraEstimate, CameraEstimator
from stagecoach.data.annotation.depth import DepthEstimator
from stagecoach.data.annotation.paths import key_of
from stagecoach.data.annotation.run import AnnotateOptions, annotate
from stagecoach.data.building.jobs import RawError
from stagecoach.data.fantasy_world.annotate import AnnotateClips, AnnotateFantasyWorld
from stagecoach.data.fantasy_world.clip import prepare_clip
from stagecoach.data.fantasy_world.options import ClipOptions
from stagecoach.data.fantasy_world.raw import read_metadata
from stagecoach.data.files import sha256_file
from stagecoach.data.format.shards import read_manifest
from stagecoach.data.synthetic import write_video
from tests.data.building.toy_job import hashes
from tests.noise_room import noise_room
from tests.tiny_annotators import draw_person, write_depth, write_onnx_poses

TWO = key_of("两幕")
SCRIPT = Path(__file__).parents[3] / "launch/build_shards.py"


def start(*words: object) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), *map(str, words), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def run(*words: object) -> dict:
    process = start(*words)
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out)


def killed_and_continued(output: Path, words: list) -> dict:
    """The command with two workers, killed with all of them when the first item is finished or half of one is there."""
    process = start(*words, "--workers", 2)
    while process.poll() is None and not any(output.glob("[!.]*/**/*.*")):
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (output / "annotations.json").exists()
    return run(*words, "--workers", 2)


@pytest.fixture(scope="module")
def rooms():
    return [noise_room(9, 112, 160, seed=seed) for seed in (0, 1)]


@pytest.fixture
def films(rooms, tmp_path):
    """Two shots in one film, one in another, prompts beside them."""
    raw = tmp_path / "films"
    raw.mkdir()
    write_video(raw / "两幕.mp4", np.concatenate([rooms[0][0], rooms[1][0]]), 8)
    write_video(raw / "one.mp4", rooms[1][0], 8)
    for name in ("两幕", "one"):
        (raw / f"{name}.txt").write_text(f"a room of {name}\n", encoding="utf-8")
    return raw


class TrueDepth(DepthEstimator):
    """An oracle: depth of the room whose first frame is nearest."""

    metric = True

    def __init__(self, rooms):
        self._rooms = rooms

    def room(self, frames):
        return min(self._rooms, key=lambda room: np.abs(room[0][0].astype(int) - frames[0]).mean())

    def estimate(self, frames):
        return self.room(frames)[1].astype(np.float32)


class TrueCameras(CameraEstimator):
    """An oracle: cameras of that room at 2.5 times their size, and exact points."""

    def __init__(self, rooms):
        self._depth = TrueDepth(rooms)

    def estimate(self, frames, where):
        _, depth, outer, inner = self._depth.room(frames)
        larger = outer * np.array([1, 1, 1, 2.5])
        row, column = np.mgrid[4:108:8, 4:156:8].reshape(2, -1)
        points = [np.stack([column + 0.5, row + 0.5, 2.5 * one[row, column]], 1) for one in depth]
        return CameraEstimate(larger, np.tile(inner, (len(frames), 1)), points)

    def triangulate(self, frames, extrinsics, intrinsics, where):
        raise AssertionError(f"{where}: no cameras were given")


def test_films_become_clips_of_one_shot_with_the_true_depth_and_cameras(films, rooms, tmp_path):
    """Through oracles, so that every number that the builder reads is known."""
    output = tmp_path / "raw"
    job = AnnotateFantasyWorld(films, output, AnnotateClips(frames=9))
    job.use(TrueDepth(rooms), TrueCameras(rooms))
    report = annotate(job, AnnotateOptions())
    assert (report.items, report.annotated, report.missing, report.skipped) == (2, 2, 0, 0)
    noted = json.loads((output / "annotations.json").read_text())["items"]
    assert noted[TWO]["numbers"]["cuts"] == [9]
    assert [clip["first_frame"] for clip in noted[TWO]["numbers"]["clips"]] == [0, 9]

    clips, bad = read_metadata(output)
    assert not bad
    assert [clip.key for clip in clips] == ["one-000", f"{TWO}-000", f"{TWO}-001"]
    assert [clip.prompt for clip in clips] == ["a room of one", "a room of 两幕", "a room of 两幕"]
    for raw, (video, depth, outer, _) in zip(clips, [rooms[1], *rooms], strict=True):
        clip = prepare_clip(raw, ClipOptions(frames=9, height=112, width=160))
        np.testing.assert_allclose(clip.depth.astype(float) * clip.scale, depth, rtol=2e-3)
        first = np.linalg.inv(np.vstack([outer[0], [0, 0, 0, 1]]))
        relative = outer @ first
        np.testing.assert_allclose(clip.extrinsics[..., :3], relative[..., :3], atol=1e-6)
        np.testing.assert_allclose(clip.extrinsics[..., 3] * clip.scale, relative[..., 3], atol=1e-5)
        assert clip.warp.error < 0.01
        off = np.abs(clip.frames[:, None].astype(np.int16) - video[None]).mean((2, 3, 4))
        assert off.argmin(1).tolist() == list(range(9))

    before = hashes(output)
    assert annotate(job, AnnotateOptions()).annotated == 0
    assert hashes(output) == before
    other = AnnotateFantasyWorld(films, output, AnnotateClips(frames=5))
    other.use(TrueDepth(rooms), TrueCameras(rooms))
    with pytest.raises(ValueError, match=r"one was annotated with other models or settings, .* give --redo"):
        annotate(other, AnnotateOptions())


def test_what_is_given_stays_and_what_cannot_be_found_is_left_out_by_name(films, rooms, tmp_path):
    depth = films / "depth.npy"
    np.save(depth, rooms[1][1])
    (films / "cameras.txt").write_text("as the user has them\n")
    whole = {"video": "one.mp4", "depth": "depth.npy", "camera_params": "cameras.txt", "note": 7}
    half = {"video": "两幕.mp4", "points": "depth.npy", "prompt": "a room"}
    given = json.dumps([whole, half])
    (films / "metadata.json").write_text(given)
    job = AnnotateFantasyWorld(films, films, AnnotateClips(frames=9))
    with pytest.raises(RawError, match=r"两幕.mp4: points without cameras given, expected the cameras"):
        annotate(job, AnnotateOptions())
    assert (films / "metadata.json").read_text() == given
    report = annotate(job, AnnotateOptions(skip_bad=True))
    assert (report.items, report.skipped) == (2, 1)
    assert json.loads((films / "metadata.json").read_text()) == [{**whole, "prompt": "a room of one"}]
    assert (films / "cameras.txt").read_text() == "as the user has them\n"
    assert "without cameras" in json.loads((films / "annotations.json").read_text())["items"]["entry-000001"]["skipped"]
    before = hashes(films)
    assert annotate(job, AnnotateOptions(skip_bad=True)).annotated == 0
    assert hashes(films) == before


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_folder_of_films_becomes_shards_on_two_workers_killed_and_continued(films, rooms, tmp_path):
    """The tiny network knows no depth, so the limits that would refuse it are off."""
    write_depth(tmp_path / "depth")
    models = ["--depth", tmp_path / "depth", "--max-warp-error", 1]
    words = ["annotate", "--input", films, *models, "--max-depth-error", 100, "--frames", 9, "--focal", 0.9]
    whole = run(*words, "--output", tmp_path / "raw", "--preview", tmp_path / "seen")
    assert (whole["items"], whole["annotated"]) == (2, 2)
    assert sorted(path.name for path in (tmp_path / "seen").iterdir()) == sorted(["one.png", f"{TWO}.png"])
    again = killed_and_continued(tmp_path / "again", [*words, "--output", tmp_path / "again"])
    assert again["items"] == 2
    assert hashes(tmp_path / "again") == hashes(tmp_path / "raw")

    from stagecoach.data.encoding.tiny_encoders import write_wan_encoders

    write_wan_encoders(tmp_path / "encoders", rooms[0][0], ["a room of one", "a room of 两幕"], 0)
    parts = [f"--{part}={tmp_path}/encoders/{part.replace('-', '_')}" for part in ("vae", "text-encoder", "tokenizer")]
    size = ["--frames", 9, "--height", 64, "--width", 96, "--max-warp-error", 1]
    built = run("build", "--input", tmp_path / "again", "--output", tmp_path / "shards", *parts, *size, "--workers", 2)
    assert sum(built["samples"].values()) == 3
    encoders = read_manifest(tmp_path / "shards/train").encoders
    noted = json.loads((tmp_path / "again/annotations.json").read_text())["models"]
    assert encoders["annotate_depth"] == noted["depth"]
    assert noted["depth"]["sha256"] == sha256_file(tmp_path / "depth/model.safetensors")
    assert noted["depth"]["name"] == "DepthAnythingForDepthEstimation"
    assert set(noted) == {"depth", "cameras", "cuts"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_folder_of_dances_and_one_of_songs_become_shards_on_two_workers_killed_and_continued(tmp_path):
    from stagecoach.data.dance_with_music.song import Song
    from stagecoach.data.encoding.tiny_encoders import write_sd_encoders

    (tmp_path / "films").mkdir()
    (tmp_path / "songs").mkdir()
    for number in range(3):
        moves = np.round(8 * np.sin(np.arange(36) / 6 + number)).astype(int)
        frames = [draw_person(96, 80, (20 + m, 10, 60 + m, 86), (40 + m, 28), (44 + m, 66)) for m in moves]
        write_video(tmp_path / "films" / f"dance{number}.mp4", np.stack(frames), 30)
        sound = tmp_path / "songs" / f"dance{number}.wav"
        write_sound(sound, Song.of(0, number).render(1.2))
    detector, pose = write_onnx_poses(tmp_path / "networks")
    words = ["annotate", "--family", "dance_with_music", "--input", tmp_path / "films", "--songs", tmp_path / "songs"]
    words += ["--pose", pose, "--detector", detector]
    whole = run(*words, "--output", tmp_path / "raw", "--preview", tmp_path / "seen")
    assert (whole["items"], whole["annotated"]) == (3, 3)
    assert len(list((tmp_path / "seen").iterdir())) == 3
    killed_and_continued(tmp_path / "again", [*words, "--output", tmp_path / "again"])
    assert hashes(tmp_path / "again") == hashes(tmp_path / "raw")

    faces = np.stack([np.asarray(Image.fromarray(frame).resize((112, 112))) for frame in frames[:4]])
    write_sd_encoders(tmp_path / "encoders", np.stack(frames), faces, 0)
    encoders = tmp_path / "encoders"
    parts = ["--vae", encoders / "vae", "--image-encoder", encoders / "image_encoder"]
    parts += ["--arcface", encoders / "arcface.onnx", "--height", 64, "--width", 64, "--segment", 36, "--workers", 2]
    raw = ["--family", "dance_with_music", "--input", tmp_path / "again"]
    built = run("build", *raw, "--output", tmp_path / "shards", *parts)
    assert sum(built["samples"].values()) == 3
    noted = read_manifest(tmp_path / "shards/train").encoders
    assert noted["annotate_pose"]["sha256"] == sha256_file(pose)
    assert noted["annotate_person_detector"]["sha256"] == sha256_file(detector)


def write_sound(path: Path, samples: np.ndarray) -> None:
    import wave

    from stagecoach.data.synthetic import SOUND_RATE

    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SOUND_RATE)
        file.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
