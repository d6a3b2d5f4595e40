"""Each layout of the seed is found; what it lacks is said in one sentence."""

import json
import shutil
import unicodedata

import h5py
import numpy as np
import pytest
from PIL import Image

from stagecoach.data.building.jobs import RawError
from stagecoach.data.dance_with_music.layouts import read_layout
from stagecoach.data.dance_with_music.segment import SegmentExtent, prepare_segment
from tests.data.dance_with_music.conftest import FRAMES

AIST = "gKR_sBM_cAll_d28_mKR1_ch07"


def prepared(dances, options, **changes):
    return prepare_segment(SegmentExtent(dances[0], 0, 1), options(**changes))


def test_the_documented_layout_is_read_with_what_is_known_of_each_dance(raw):
    dances, bad = read_layout(raw, "videos")
    assert bad == []
    assert [d.name for d in dances] == [f"dance_{k:05d}" for k in range(5)]
    one = dances[0]
    assert (one.song, one.subject, one.genre, one.reading.assumed) == (
        "song_000",
        "dancer_000",
        "synthetic",
        "normalised",
    )
    assert one.audio == one.footage == raw / "videos/dance_00000.mp4"
    assert one.reference.pose == raw / "reference_images/dance_00000.json"
    assert {d.song for d in dances[:4]} == {"song_000", "song_001"}
    assert dances[4].song == "song_002"


def test_a_folder_per_clip_has_pixels_and_splits(raw, tmp_path, options, dance):
    base = tmp_path / "dataset"
    for split in ("train", "validation"):
        folder = base / split / f"video_{split}"
        folder.mkdir(parents=True)
        shutil.copy(raw / "videos/dance_00000.mp4", folder / "video.mp4")
        shutil.copy(raw / "reference_images/dance_00000.png", folder / "reference_image.png")
        np.save(folder / "face_embedding.npy", np.ones(512, np.float32))
        poses = [
            {
                "frame_id": k,
                "keypoints": [{"x": 512 * x, "y": 512 * y, "confidence": 1, "joint_type": "j"} for x, y in xy],
            }
            for k, xy in enumerate(dance.points.tolist())
        ]
        (folder / "pose_annotations.json").write_text(json.dumps({"fps": 24, "poses": poses}))
    (base / "metadata.json").write_text("{}")  # of a form that nothing documents
    dances, bad = read_layout(base, "clips")
    assert bad == []
    assert [(d.name, d.split) for d in dances] == [("video_train", "train"), ("video_validation", "val")]
    segment = prepared(dances, options)
    np.testing.assert_allclose(segment.arrays["pose_xy"] / 65535, dance.points.clip(0, 1), atol=1e-5)
    np.testing.assert_array_equal(segment.references[0].embedding, np.ones(512))
    assert segment.meta["source_fps"] == pytest.approx(30), "the video's, not what the JSON says"


def pictures(folder, raw, dance, poses="poses"):
    """A dance as a folder of pictures, with drawings for poses as published, and JSON next to them."""
    (folder / "images").mkdir(parents=True)
    (folder / poses).mkdir()
    for number, image in enumerate(dance.video):
        Image.fromarray(image).save(folder / f"images/frame_{number}.png")
        Image.fromarray(image).save(folder / poses / f"frame_{number}.png")
        shutil.copy(raw / f"poses/dance_00000/frame_{number:03d}.json", folder / poses / f"frame_{number}.json")


@pytest.mark.parametrize(
    ("layout", "place", "poses"),
    [("p00002", "", "poses"), ("stableanimator", "rec/00001", "poses"), ("champ", "part/video", "dwpose")],
)
def test_folders_of_pictures_need_poses_and_music_to_be_added(tmp_path, raw, options, dance, layout, place, poses):
    folder = tmp_path / "data" / place
    pictures(folder, raw, dance, poses)
    ((_, error),) = read_layout(tmp_path / "data", layout)[1]
    assert "neither sound nor rows of music found" in str(error)
    shutil.copy(raw / "videos/dance_00000.mp4", folder / "sound.m4a")
    dances, bad = read_layout(tmp_path / "data", layout, rate=30)
    assert bad == []
    segment = prepared(dances, options)
    np.testing.assert_array_equal(segment.frames, dance.video)
    np.testing.assert_allclose(segment.arrays["pose_xy"] / 65535, dance.points.clip(0, 1), atol=1e-5)
    for path in (folder / poses).glob("*.json"):
        path.unlink()
    ((_, error),) = read_layout(tmp_path / "data", layout)[1]
    assert "no .json or .npy found (drawings of skeletons are not enough), expected DWPose's 134 points" in str(error)


def test_aists_rows_and_names_are_understood(tmp_path, raw, options, dance):
    """60 pictures and 60 rows of music per second; genre, dancer, song and tempo from the name."""
    folder = tmp_path / "data/rec" / AIST
    pictures(folder, raw, dance)
    (tmp_path / "data/aist_hdf5/rec").mkdir(parents=True)
    table = np.random.default_rng(0).normal(size=(1, FRAMES, 4800)).astype(np.float32)
    with h5py.File(tmp_path / f"data/aist_hdf5/rec/{AIST}.h5", "w") as file:
        file["music"] = table
    dances, _ = read_layout(tmp_path / "data", "stableanimator")
    one = dances[0]
    assert (one.song, one.subject, one.genre, one.bpm, one.rate) == ("KR1", "28", "KR", 90, 60.0)
    with pytest.raises(RawError, match="rows of music but no sound found"):
        prepared(dances, options, music="jukebox")
    (tmp_path / "data/audio").mkdir()
    shutil.copy(raw / "videos/dance_00000.mp4", tmp_path / f"data/audio/{AIST}.mp4")
    segment = prepared(read_layout(tmp_path / "data", "stableanimator")[0], options, music="jukebox")
    assert len(segment.frames) == FRAMES // 2
    np.testing.assert_array_equal(segment.arrays["music"], table[0, ::2].astype(np.float16))
    np.testing.assert_array_equal(segment.frames, dance.video[::2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{}]", "an entry without 'id' found"),
        ("3", "holds neither a list"),
        ("{", "no valid JSON"),
        ('[{"id": "a"}, {"id": "a"}]', "'a' is listed twice"),
    ],
)
def test_a_file_of_what_is_known_that_is_malformed_is_named(raw, content, message):
    (raw / "dances.json").write_text(content)
    with pytest.raises(RawError, match=rf"dances\.json: {message}"):
        read_layout(raw, "videos")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"song": 3}, "'song' is 3, expected a text"),
        ({"bpm": 5}, "'bpm' is 5, expected beats per minute"),
        ({"split": "test"}, "'split' is 'test'"),
        ({"audio": "none.wav"}, r"none\.wav: missing, expected the sound"),
    ],
)
def test_bad_entries_are_named(raw, entry, message):
    (raw / "dances.json").write_text(json.dumps([{"id": "dance_00000", **entry}]))
    dances, ((name, error),) = read_layout(raw, "videos")
    assert name == "dance_00000"
    assert len(dances) == 4
    with pytest.raises(RawError, match=message):
        raise error


def test_missing_files_are_named(raw, tmp_path):
    shutil.rmtree(raw / "poses/dance_00001")
    (raw / "dances.json").write_text(json.dumps({"nobody": {}}))
    dances, bad = read_layout(raw, "videos")
    assert len(dances) == 4
    assert [str(error).partition(", expected")[0] for _, error in bad] == [
        f"{raw / 'poses/dance_00001'}: missing",
        f"{raw / 'dances.json'}: entry 'nobody' names no dance of layout 'videos' below {raw}",
    ]
    with pytest.raises(RawError, match=r"no dance of layout 'videos' found, expected videos/<name>\.mp4"):
        read_layout(tmp_path / "nowhere", "videos")
    with pytest.raises(ValueError, match="layout 'x' found, expected one of"):
        read_layout(raw, "x")


def test_names_of_a_mac_and_of_any_script_find_their_files(raw, tmp_path):
    """A folder written by a Mac spells é as two letters."""
    base = tmp_path / "data"
    for folder in ("videos", "poses", "reference_images"):
        (base / folder).mkdir(parents=True)
    spelled = {name: unicodedata.normalize("NFD", name) for name in ("café", "춤")}
    for name, other in spelled.items():
        shutil.copy(raw / "videos/dance_00000.mp4", base / f"videos/{name}.mp4")
        shutil.copytree(raw / "poses/dance_00000", base / "poses" / other)
        shutil.copy(raw / "reference_images/dance_00000.png", base / f"reference_images/{other}.PNG")
    (base / "dances.json").write_bytes(json.dumps([{"id": spelled["춤"], "song": "s"}]).encode("utf-16"))
    dances, bad = read_layout(base, "videos")
    assert bad == []
    assert {d.name for d in dances} == set(spelled)
    assert all(d.reference for d in dances)
    assert [d.song for d in dances if d.name == "춤"] == ["s"]
    assert len({d.key for d in dances}) == 2


def test_what_is_passed_over_is_said(raw, caplog):
    (raw / "reference_images/dance_00001.heic").touch()
    (raw / "reference_images/nobody.png").touch()
    (raw / "videos/dance_00009.rm").touch()
    with caplog.at_level("WARNING"):
        read_layout(raw, "videos")
    assert "reference_images: 2 files or folders passed over (first dance_00001.heic), no reference of a dance" in (
        caplog.text
    )
    assert "videos: 1 files or folders passed over (first dance_00009.rm), no video of a dance" in caplog.text


def test_names_of_any_script_stay_keys_that_differ(raw):
    names = {"dance_00000": "舞蹈一", "dance_00001": "舞蹈二"}
    for path in [path for path in raw.glob("*/*") if path.stem in names]:
        path.rename(path.with_name(names[path.stem] + path.suffix))
    (raw / "dances.json").unlink()
    dances, bad = read_layout(raw, "videos")
    assert bad == []
    assert {d.key for d in dances if not d.key.startswith("dance_")} == {"舞蹈一", "舞蹈二"}
    assert len({d.key for d in dances}) == 5
