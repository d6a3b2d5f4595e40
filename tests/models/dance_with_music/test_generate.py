"""Requests answered with files: their lengths, sound, poses, beats, and what is refused before anything is loaded."""

import json
import re
import wave

import av
import numpy as np
import pytest
from PIL import Image

from stagecoach.data.dance_with_music.poses import PoseReading, read_poses
from stagecoach.data.dance_with_music.song import Song
from stagecoach.data.outputs.video import write_video
from stagecoach.data.synthetic import SOUND_RATE
from stagecoach.models import get_family
from stagecoach.models.dance_with_music.config import SIZES
from stagecoach.models.generation import GenerationOptions, Source
from stagecoach.models.weights import open_weights
from tests.models.weights.held import hold
from tests.tiny_annotators import draw_person, write_onnx_poses

SECONDS = 12.3
VIDEOS = ("video.mp4", "skeleton.mp4", "side_by_side.mp4")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    slow = SIZES["tiny-svd"].model_copy(update={"frames": SIZES["tiny-svd"].frames.model_copy(update={"stride": 2})})
    return {
        "tiny": hold(folder / "champ", "dance_with_music"),
        "tiny-svd": hold(folder / "svd", "dance_with_music", "tiny-svd", slow),
    }


@pytest.fixture(scope="module")
def source(dance):
    """Beside the raw data a song of 12.3 s."""
    raw = dance.shards.parent / "raw"
    sound = (Song.of(5, 0).render(SECONDS) * 32767).astype(np.int16)
    with wave.open(str(raw / "song.wav"), "wb") as file:
        file.setparams((1, 2, SOUND_RATE, 0, "NONE", ""))
        file.writeframes(sound.tobytes())
    return Source("line 3", raw)


ENTRY = {
    "id": "one",
    "song": "song.wav",
    "photo": "reference_images/dance_00000.png",
    "photo_pose": "reference_images/dance_00000.json",
    "seed": 3,
}


def make_generation(runs, dance, size="tiny", stage=3, **more):
    parts = {"vae": dance.encoders / "vae", "image_encoder": dance.encoders / "image_encoder"}
    parts |= {"arcface": dance.encoders / "arcface.onnx"} | more
    options = GenerationOptions(components=parts, steps=1, guidance=1.0)
    return get_family("dance_with_music").generation(
        open_weights(runs[size].run / f"stage{stage}" / "adapter"), options
    )


def answer(generation, folder, entry, source):
    request = generation.parse(entry, source)
    folder.mkdir()
    return generation.answer(request, folder), {path.name for path in folder.iterdir()}


def decoded(path):
    """Frames uint8, and the sound as fp32 mono with its rate."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        sound = np.concatenate([frame.to_ndarray().mean(0) for frame in container.decode(audio=0)])
        return np.stack(frames), sound, container.streams.audio[0].rate


@pytest.mark.parametrize(("size", "rate"), [("tiny", 30), ("tiny-svd", 15)])
def test_a_song_of_12_3_seconds_becomes_369_frames_with_its_sound_within_a_frame(
    runs, dance, source, tmp_path, size, rate
):
    generation = make_generation(runs, dance, size)
    generation.load()
    facts, files = answer(generation, tmp_path / "a", ENTRY | {"context_length": 24}, source)
    count = {30: 369, 15: 184}[rate]
    assert files == {*VIDEOS, "pose.json", "beats.json", "contact.png"}
    assert (facts["frames"], facts["fps"], facts["pose"], facts["face"]) == (count, rate, "predicted", True)
    original = Song.of(5, 0).render(SECONDS)
    for name in VIDEOS:
        frames, sound, sampled = decoded(tmp_path / "a" / name)
        assert frames.shape == (count, 64, 192 if name == "side_by_side.mp4" else 64, 3)
        assert abs(len(sound) / sampled - count / rate) < 1 / rate
        # The sound is the song's, at its place: the lag of the best match is below a frame.
        steps = np.arange(0, SECONDS - 0.3, 1 / 4000)
        ours, theirs = (
            np.interp(steps, np.arange(len(x)) / r, np.abs(x)) for x, r in ((sound, sampled), (original, SOUND_RATE))
        )
        lags = np.arange(-400, 401)
        match = [np.dot(np.roll(ours - ours.mean(), -lag), theirs - theirs.mean()) for lag in lags]
        assert abs(lags[int(np.argmax(match))] / 4000) < 1 / rate
    xy, conf = read_poses(tmp_path / "a" / "pose.json", np.arange(count), PoseReading(posture="any"))
    assert xy.shape == (count, 134, 2)
    assert 0 < conf.min() <= conf.max() <= 1
    beats = json.loads((tmp_path / "a" / "beats.json").read_text())
    true = Song.of(5, 0).beat_times(SECONDS)
    assert beats["fps"] == rate
    assert beats["tempo"] == pytest.approx(Song.of(5, 0).bpm, rel=0.1)
    distance = np.abs(np.array(beats["beats"])[:, None] - true[None]).min(1)
    assert np.median(distance) < 2 / rate
    assert facts["beats"] == len(beats["beats"])


def test_answers_are_those_of_seed_and_id_and_a_part_of_the_song_may_be_danced_by_given_poses(
    runs, dance, source, tmp_path
):
    generation = make_generation(runs, dance)
    generation.load()
    short = ENTRY | {"duration": 1.0, "start": 2.0}
    facts, _ = answer(generation, tmp_path / "a", short, source)
    assert facts["frames"] == 30
    answer(generation, tmp_path / "b", short, source)
    answer(generation, tmp_path / "c", short | {"seed": 4}, source)
    films = [(tmp_path / name / "video.mp4").read_bytes() for name in "abc"]
    assert films[0] == films[1] != films[2]
    sound = decoded(tmp_path / "a" / "video.mp4")[1]
    assert len(sound) / 48000 == pytest.approx(1.0, abs=1 / 30)

    given = short | {"pose": "poses/dance_00001", "photo_pose": None}
    facts, _ = answer(generation, tmp_path / "d", given, source)
    assert facts["pose"] == "given"
    assert not facts["face"]
    chosen = np.arange(30)
    xy, conf = read_poses(source.folder / "poses" / "dance_00001", chosen)
    again, sure = read_poses(tmp_path / "d" / "pose.json", chosen, PoseReading(posture="any"))
    np.testing.assert_allclose(again[conf > 0], xy[conf > 0], atol=1e-5)
    np.testing.assert_allclose(sure, conf, atol=1e-5)
    facts, _ = answer(generation, tmp_path / "e", given | {"pose": str(tmp_path / "a" / "pose.json")}, source)
    assert facts["pose"] == "given"
    with pytest.raises(ValueError, match=r"poses of 2.00 s found for 12.30 s of .*song.wav, expected as many"):
        answer(generation, tmp_path / "f", ENTRY | {"pose": "poses/dance_00001"}, source)


def test_poses_of_a_driving_video_and_of_the_photo_are_estimated(runs, dance, source, tmp_path):
    """A video of 24 frames per second in which two spots move to the right, by closed-form networks."""
    detector, pose = write_onnx_poses(tmp_path)
    spots = [((50 + k, 40), (70 + k, 100)) for k in range(24)]
    film = np.stack([draw_person(160, 160, (30, 20, 120, 140), *both) for both in spots])
    write_video(tmp_path / "drive.mp4", film, 24)
    Image.fromarray(film[0]).save(tmp_path / "photo.png")
    parts = {"pose_estimator": pose, "person_detector": detector}
    generation = make_generation(runs, dance, **parts)
    generation.load()
    entry = ENTRY | {"duration": 1.0, "pose_video": str(tmp_path / "drive.mp4"), "photo": str(tmp_path / "photo.png")}
    facts, files = answer(generation, tmp_path / "a", entry | {"photo_pose": None}, source)
    assert (facts["frames"], facts["pose"], facts["face"]) == (30, "estimated", True)
    assert set(VIDEOS) < files
    xy, conf = read_poses(tmp_path / "a" / "pose.json", np.arange(30), PoseReading(posture="any"))
    nearest = np.array([0, 1, 2, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 10, 11, 12, 13, 14, 14, 15, 16, 17, 18, 18, 19, 20])
    for k, frame in enumerate(nearest):
        assert np.abs(xy[k, 18] * 160 - spots[frame][1]).max() < 2.5  # COCO's foot 17, an odd one: the blue spot
    assert conf[:, 18].min() > 0.5
    with pytest.raises(ValueError, match="both pose and pose_video are given, expected one of them"):
        generation.parse(entry | {"pose": "poses/dance_00001"}, source)
    Image.fromarray(np.zeros_like(film[0])).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match=r"photo.png: nobody was found in the photo, .* give photo_pose instead"):
        answer(generation, tmp_path / "b", entry | {"photo_pose": None}, source)
    with pytest.raises(ValueError, match="no pose_estimator is given"):
        make_generation(runs, dance).parse(entry, source)
    with pytest.raises(ValueError, match="no person_detector is given"):
        make_generation(runs, dance, pose_estimator=pose)


def test_weights_of_the_first_stage_make_the_skeleton_and_lead_those_of_others(runs, dance, source, tmp_path):
    short = ENTRY | {"duration": 1.0}
    first = make_generation(runs, dance, stage=1)
    first.load()
    facts, files = answer(first, tmp_path / "a", short, source)
    assert files == {"skeleton.mp4", "pose.json", "beats.json"}
    assert (facts["frames"], first.shown) == (30, ("skeleton.mp4",))
    led = make_generation(runs, dance, music_to_pose=runs["tiny"].run / "stage1" / "adapter")
    led.load()
    answer(led, tmp_path / "b", short, source)
    assert (tmp_path / "a" / "pose.json").read_bytes() == (tmp_path / "b" / "pose.json").read_bytes()
    assert (tmp_path / "a" / "skeleton.mp4").read_bytes() == (tmp_path / "b" / "skeleton.mp4").read_bytes()
    assert led.identity()["components"].keys() >= {"music_to_pose", "vae"}


def test_what_is_wrong_with_a_request_is_said_before_anything_is_loaded(runs, dance, source):
    generation = make_generation(runs, dance)
    for change, reason in (
        ({"song": None}, "line 3: song: Input should be a valid string"),
        ({"song": "gone.mp3"}, "gone.mp3 is not there, expected a file"),
        ({"song": "reference_images/dance_00000.png"}, "line 3: "),
        ({"photo": []}, "line 3: photo"),
        ({"pose": "videos"}, "line 3: "),
        ({"height": 100}, "line 3: height 100 found, expected a multiple of 64"),
        ({"context_length": 4, "context_overlap": 5}, "line 3: windows of 4 frames that share 5"),
        ({"start": -1}, "line 3: start: Input should be greater than or equal to 0"),
        ({"photos": "x"}, "line 3: photos: Extra inputs are not permitted"),
    ):
        with pytest.raises(ValueError, match=re.escape(reason)):
            generation.parse(ENTRY | change, source)
    assert not hasattr(generation, "pipeline")
    with pytest.raises(ValueError, match="no image_encoder is given"):
        get_family("dance_with_music").generation(open_weights(runs["tiny"].adapter), GenerationOptions())
