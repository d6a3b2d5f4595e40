"""A segment holds what the raw files say, frame by frame, through crops, other rates and cuts."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from stagecoach.data.building.jobs import RawError
from stagecoach.data.dance_with_music.layouts import read_layout
from stagecoach.data.dance_with_music.music import music_shape
from stagecoach.data.dance_with_music.poses import PoseReading
from stagecoach.data.dance_with_music.segment import (
    CONFIDENCE_STEPS,
    POSE_STEPS,
    SegmentExtent,
    SegmentOptions,
    check_segment,
    prepare_segment,
    segment_extents,
)
from stagecoach.data.dance_with_music.synthetic import render_dance
from stagecoach.data.encoding.audio import FRAME_RATE, edge_rows, read_audio
from stagecoach.data.pictures import CoverCrop
from stagecoach.data.synthetic import write_video
from tests.data.dance_with_music.conftest import FRAMES, SEED, SIZE


def first(raw, options, **changes):
    dance = replace(read_layout(raw, "videos")[0][0], **changes)
    return prepare_segment(SegmentExtent(dance, 0, 1), options())


def test_frames_poses_and_music_are_those_of_the_dance(raw, options, dance):
    segment = first(raw, options)
    arrays = segment.arrays
    assert segment.frames.shape == (FRAMES, SIZE, SIZE, 3)
    assert np.abs(segment.frames.astype(int) - dance.video).mean() < 4, "but for compression"
    np.testing.assert_allclose(arrays["pose_xy"] / POSE_STEPS, dance.points.clip(0, 1), atol=1e-5)
    assert (arrays["pose_conf"] == round(0.95 * CONFIDENCE_STEPS)).all()
    expected = edge_rows(read_audio(raw / "videos/dance_00000.mp4", 0.0), dance.song.bpm)[:FRAMES]
    np.testing.assert_array_equal(arrays["music"], expected.astype(np.float16))
    np.testing.assert_array_equal(arrays["beat"], expected[:, 34])
    np.testing.assert_array_equal(arrays["onset"], expected[:, 0].astype(np.float16))
    assert segment.meta["song"] == dance.song.name
    assert segment.meta["subject"] == dance.looks.name


def test_the_music_is_heard_where_the_dancer_stands_still():
    """Onsets of the sound lie on the beats that the motion stops at: sound and pictures are not shifted."""
    dance = render_dance(SEED, 0, 150, SIZE, SIZE)
    speed = np.linalg.norm(np.diff(dance.points[:, :18], axis=0), axis=-1).mean(1)
    for beat in dance.song.beat_times(4.8) * FRAME_RATE:
        around = speed[max(round(beat) - 4, 0) : round(beat) + 5]
        assert abs(around.argmin() + max(round(beat) - 4, 0) + 0.5 - beat) <= 1


def test_a_crop_moves_points_boxes_and_pictures_alike(raw, options, dance):
    """A wide picture is cut at its sides; points outside lose their confidence."""
    wide = render_dance(SEED, 0, 30, SIZE, 2 * SIZE)
    write_video(raw / "videos/dance_00000.mp4", wide.video, 30, dance.song.render(1))
    for number, xy in enumerate(wide.points):
        points = [[x, y, 1.0] for x, y in xy.tolist()]
        points[7][0] = 0.05  # a wrist far to the left, outside of the crop
        (raw / f"poses/dance_00000/frame_{number:03d}.json").write_text(json.dumps({"keypoints": points}))
    for number in range(30, FRAMES):
        (raw / f"poses/dance_00000/frame_{number:03d}.json").unlink()
    segment = first(raw, options)
    expected = (wide.points - [0.25, 0]) / [0.5, 1]
    found = segment.arrays["pose_xy"] / POSE_STEPS
    others = [k for k in range(134) if k != 7]
    np.testing.assert_allclose(found[:, others], expected[:, others].clip(0, 1), atol=2e-5)
    assert (segment.arrays["pose_conf"][:, 7] == 0).all()
    assert np.abs(segment.frames.astype(int) - wide.video[:, :, SIZE // 2 : 3 * SIZE // 2]).mean() < 4
    face = found[:, 24:92]
    box = segment.arrays["face_box"].astype(float)
    assert (box[:, :2] <= face.min(1) + 1e-3).all()
    assert (box[:, 2:] >= face.max(1) - 1e-3).all()


def test_another_rate_is_resampled_by_time(raw, options, dance):
    """24 per second: poses belong to source frames, rows of music to frames at 30 per second."""
    rendered = render_dance(SEED, 0, 48, SIZE, SIZE)
    write_video(raw / "videos/dance_00000.mp4", rendered.video, 24, dance.song.render(2))
    for number in range(48, FRAMES):
        (raw / f"poses/dance_00000/frame_{number:03d}.json").unlink()
    segment = first(raw, options)
    assert len(segment.frames) == 60
    assert segment.meta["source_fps"] == pytest.approx(24)
    nearest = [min(range(48), key=lambda k, n=n: (round(abs(k / 24 - n / 30), 9), k)) for n in range(60)]
    np.testing.assert_allclose(segment.arrays["pose_xy"] / POSE_STEPS, rendered.points[nearest].clip(0, 1), atol=1e-5)
    assert segment.arrays["music"].shape == (60, 35)


def test_long_dances_are_cut_into_neighbouring_segments(raw, options):
    dance = read_layout(raw, "videos")[0][0]
    extents = segment_extents(dance, options(frames=24, min_frames=12, references=2))
    assert [place.key for place in extents] == ["dance_00000-000", "dance_00000-001", "dance_00000-002"]
    whole = prepare_segment(SegmentExtent(dance, 0, 1), options())
    parts = [prepare_segment(p, options(frames=24, min_frames=12, references=2)) for p in extents]
    assert [len(part.frames) for part in parts] == [24, 24, 12]
    for name in ("pose_xy", "music", "beat", "face_box"):
        np.testing.assert_array_equal(np.concatenate([part.arrays[name] for part in parts]), whole.arrays[name])
    np.testing.assert_array_equal(np.concatenate([part.frames for part in parts]), whole.frames)
    assert [part.meta["start_frame"] for part in parts] == [0, 24, 48]
    assert len(segment_extents(dance, options(frames=40))) == 2, "the rest of 20 is half a segment"
    assert len(segment_extents(dance, options(frames=45))) == 1


def test_references_are_the_portrait_and_frames_spread_over_the_segment(raw, options, dance):
    segment = first(raw, options)
    frames = segment.arrays["ref_frame"]
    assert frames[0] == -1
    assert [0 <= f < 20 or 20 <= f < 40 or 40 <= f < 60 for f in frames[1:]] == [True] * 3
    assert [f // 20 for f in frames[1:]] == [0, 1, 2]
    np.testing.assert_array_equal(segment.references[0].picture, dance.portrait)
    for reference in segment.references[1:]:
        np.testing.assert_array_equal(reference.picture, segment.frames[reference.frame])
    assert all(reference.face.shape == (112, 112, 3) for reference in segment.references)
    again = first(raw, options)
    np.testing.assert_array_equal(again.arrays["ref_frame"], frames)


def test_references_avoid_frames_without_a_face(raw, options):
    for number in [*range(15), *range(17, FRAMES)]:
        path = raw / f"poses/dance_00000/frame_{number:03d}.json"
        pose = json.loads(path.read_text())
        for k in range(24, 92):
            pose["keypoints"][k][2] = 0.0
        path.write_text(json.dumps(pose))
    segment = first(raw, options, reference=None)
    assert segment.arrays["ref_frame"][1] in (15, 16)
    assert [r.face is not None for r in segment.references] == [False, True, False, False]
    assert segment.arrays["face_valid"].nonzero()[0].tolist() == [15, 16]


def test_masks_give_boxes_where_they_are(raw, options):
    """StableAnimator's: white inside of the face; wholly white or black where none was found."""
    folder = raw / "faces/dance_00000"
    folder.mkdir(parents=True)
    for number in range(FRAMES):
        mask = np.zeros((SIZE, SIZE), np.uint8) if number != 1 else np.full((SIZE, SIZE), 255, np.uint8)
        if number >= 2:
            mask[8:24, 16:40] = 255
        Image.fromarray(mask).save(folder / f"frame_{number}.png")
    arrays = first(raw, options).arrays
    assert arrays["face_valid"].tolist() == [0, 0, *([1] * (FRAMES - 2))]
    np.testing.assert_allclose(arrays["face_box"][5].astype(float), [0.25, 0.125, 0.625, 0.375], atol=1e-3)
    assert not arrays["face_box"][:2].any()
    (folder / f"frame_{FRAMES - 1}.png").unlink()
    with pytest.raises(RawError, match=f"{FRAMES - 1} face masks found, expected one for each frame"):
        first(raw, options)


def test_lengths_that_differ_by_little_are_cut_and_by_much_are_named(raw, options):
    video = raw / "videos/dance_00000.mp4"
    rows = raw / "rows.npy"
    table = np.random.default_rng(0).normal(size=(200, 4800)).astype(np.float32)

    def build(count):
        np.save(rows, table[:count])
        return prepare_segment(
            SegmentExtent(replace(read_layout(raw, "videos")[0][0], rows=rows), 0, 1), options(music="jukebox")
        )

    assert len(build(FRAMES - 15).frames) == FRAMES - 15
    assert len(build(FRAMES + 15).frames) == FRAMES
    with pytest.raises(RawError, match=r"rows\.npy: 44 rows of music found for the 60 frames .*expected as many"):
        build(FRAMES - 16)
    with pytest.raises(RawError, match=r"rows\.npy: 86 rows of music found for the 60 frames .*never stretched"):
        build(86)  # 43 per second, the rate of librosa's default
    for number in range(40, FRAMES):
        (raw / f"poses/dance_00000/frame_{number:03d}.json").unlink()
    with pytest.raises(RawError, match=r"dance_00000: 40 poses found for a video of 60 frames at 30\.00 per second"):
        build(FRAMES)
    assert video.exists()


def test_a_dance_that_is_too_short_is_named(raw, options):
    with pytest.raises(RawError, match=r"dance_00000\.mp4: 60 frames from frame 0 on found, expected at least 80"):
        prepare_segment(SegmentExtent(read_layout(raw, "videos")[0][0], 0, 1), options(min_frames=80))


def test_a_bad_pose_is_found_by_the_check(raw):
    place = SegmentExtent(read_layout(raw, "videos")[0][0], 0, 1)
    check_segment(place)
    (raw / "poses/dance_00000/frame_000.json").write_text("{")
    with pytest.raises(RawError, match=r"frame_000\.json: no valid JSON"):
        check_segment(place)


def test_an_embedding_is_taken_where_the_portrait_has_no_pose(raw, options, tmp_path):
    dance = read_layout(raw, "videos")[0][0]
    vector = np.random.default_rng(0).normal(size=512).astype(np.float32)
    np.save(tmp_path / "e.npy", vector)
    reference = replace(dance.reference, pose=None, embedding=tmp_path / "e.npy")
    segment = first(raw, options, reference=reference)
    np.testing.assert_array_equal(segment.references[0].embedding, vector)
    assert segment.references[0].face is None
    np.save(tmp_path / "e.npy", vector * 0)
    with pytest.raises(RawError, match=r"e\.npy: an embedding of length 0"):
        first(raw, options, reference=reference)


def test_a_crop_is_the_middle_of_the_picture():
    crop = CoverCrop.of(100, 300, 64, 64)
    assert crop.box == (100.0, 0.0, 200.0, 100.0)
    np.testing.assert_allclose(
        crop.points(np.array([[1 / 3, 0], [0.5, 0.5], [2 / 3, 1]])), [[0, 0], [0.5, 0.5], [1, 1]], atol=1e-12
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 60}, "height 60 found, expected a multiple of 8 .*take 56"),
        ({"references": 30}, "30 references, at least 24 frames and segments of 300 found"),
        ({"min_frames": 400}, "expected rising numbers from 1"),
    ],
)
def test_options_that_cannot_be_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        SegmentOptions(**changes)


def test_a_copy_elsewhere_gives_the_same_segment(raw, options, tmp_path):
    moved = shutil.copytree(raw, tmp_path / "moved")
    one, other = first(raw, options), first(moved, options)
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(array, other.arrays[name])


def test_poses_of_another_rate_are_taken_at_the_times_of_the_pictures(raw, options, dance):
    """15 poses per second of a video of 30: between two poses the points are in their middle."""
    poses = raw / "poses/dance_00000"
    every = [poses / f"frame_{k:03d}.json" for k in range(FRAMES)]
    for k, file in enumerate(every):
        if k % 2:
            file.unlink()
    for k in range(0, FRAMES, 2):
        every[k].rename(poses / f"pose_{k // 2:03d}.json")
    with pytest.raises(RawError, match=r"30 poses found for a video of 60 frames at 30\.00 per second.*--pose-rate 15"):
        first(raw, options)
    found = read_layout(raw, "videos", PoseReading(rate=15.0))[0][0]
    xy = prepare_segment(SegmentExtent(found, 0, 1), options()).arrays["pose_xy"] / POSE_STEPS
    expected = dance.points.copy()
    expected[1:-1:2] = (dance.points[:-2:2] + dance.points[2::2]) / 2
    expected[-1] = dance.points[-2]
    np.testing.assert_allclose(xy, expected.clip(0, 1), atol=2e-5)
    with pytest.raises(RawError, match=r"expected 24 per second of .*they would be --pose-rate 15"):
        first(raw, options, reading=PoseReading(rate=24.0))
    clip = {"fps": 15, "poses": [json.loads((poses / f"pose_{k:03d}.json").read_text()) for k in range(FRAMES // 2)]}
    for k, frame in enumerate(clip["poses"]):
        frame["frame_id"] = k
    (raw / "clip.json").write_text(json.dumps(clip))
    said = first(raw, options, poses=raw / "clip.json").arrays["pose_xy"] / POSE_STEPS
    np.testing.assert_allclose(said, xy, atol=1e-6)


def test_a_dance_ends_with_its_song_which_is_said(raw, options, tmp_path, caplog):
    dance = read_layout(raw, "videos")[0][0]
    silent = np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8)
    write_video(
        tmp_path / "song.mp4", silent[:40], FRAME_RATE, np.random.default_rng(0).normal(size=58800).astype(np.float32)
    )
    short = replace(dance, audio=tmp_path / "song.mp4")
    with caplog.at_level("WARNING"):
        (extent,) = segment_extents(short, options())
    assert "song lasts 1.3" in caplog.text
    assert "s of the 2.00 s of" in caplog.text
    assert "the dance is cut to it" in caplog.text
    frames = len(prepare_segment(extent, options()).frames)
    assert 40 <= frames <= 43
    assert len(segment_extents(short, options(frames=24))) == 2, "segments end with the song too"
    refuse = options(short_song="refuse")
    for reading in (segment_extents, lambda d, o: prepare_segment(SegmentExtent(d, 0, 1), o)):
        with pytest.raises(RawError, match=r"song\.mp4: .*expected as long a song; --short-song cut ends the dance"):
            reading(short, refuse)


def test_music_files_of_any_width_and_rate_and_pictures_of_music(raw, options):
    """The guide's (feature_dim,) and (feature_dim, height, width); of pictures the rows are those of the sound."""
    rng = np.random.default_rng(0)
    folder = raw / "music_features/dance_00000"
    folder.mkdir(parents=True)
    rows, maps = rng.normal(size=(FRAMES, 12)), rng.normal(size=(FRAMES, 3, 8, 6))
    heard = first(raw, options).arrays
    for table in (rows, maps):
        for k, row in enumerate(table):
            np.save(folder / f"frame_{k:03d}.npy", row)
        shape = music_shape(folder)
        assert shape == table.shape[1:]
        place = SegmentExtent(read_layout(raw, "videos")[0][0], 0, 1)
        arrays = prepare_segment(place, options(music="files"), shape).arrays
        np.testing.assert_array_equal(arrays["beat"], heard["beat"])
        if table is rows:
            np.testing.assert_array_equal(arrays["music"], rows.astype(np.float16))
            with pytest.raises(RawError, match=r"frame_000\.npy: .*shape \(1, 12\).* expected 7 numbers per row"):
                prepare_segment(place, options(music="files"), (7,))
        else:
            np.testing.assert_array_equal(arrays["music_map"], maps.astype(np.float16))
            np.testing.assert_array_equal(arrays["music"], heard["music"])
    shutil.rmtree(folder)
    table = np.arange(86, dtype=np.float32)[:, None] * np.ones(5)  # librosa's 43.07 rows per second
    np.save(folder.with_suffix(".npy"), table)
    with pytest.raises(RawError, match=r"86 rows of music found for the 60 frames.*give --music-rate"):
        prepare_segment(SegmentExtent(read_layout(raw, "videos")[0][0], 0, 1), options(music="files"), (5,))
    arrays = prepare_segment(
        SegmentExtent(read_layout(raw, "videos")[0][0], 0, 1), options(music="files", music_rate=43.07), (5,)
    ).arrays
    assert np.abs(arrays["music"][:, 0] - np.arange(FRAMES) * 43.07 / 30).max() <= 0.51, "the row nearest in time"


def test_a_photo_is_seen_upright_with_its_pose_and_what_is_clear_is_white(raw, options):
    """EXIF 6 is shown turned clockwise; WebP is read like the others."""
    names = raw / "reference_images/dance_00000.png", raw / "reference_images/dance_00000.webp"
    upright = np.asarray(Image.open(names[0]).convert("RGB"))
    plain = first(raw, options).references[0]
    clear = np.dstack([upright, np.full(upright.shape[:2], 255, np.uint8)])
    clear[:8, :8, 3] = 0
    picture = Image.fromarray(np.rot90(clear))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(names[1], lossless=True, exact=True, exif=exif)
    ((_, error),) = read_layout(raw, "videos")[1]
    assert "dance_00000.png and dance_00000.webp are both there for 'dance_00000', expected one of them" in str(error)
    names[0].unlink()
    turned = first(raw, options).references[0]
    assert (turned.whole[:8, :8] == 255).all()
    seen = upright.copy()
    seen[:8, :8] = 255
    np.testing.assert_array_equal(turned.whole, seen)
    assert turned.face.shape == plain.face.shape
    assert np.abs(turned.face.astype(int) - plain.face).mean() < 1


def test_a_song_that_starts_elsewhere_than_the_video_is_named_with_its_offset(tmp_path, options, raw):
    """The video is cut out of the song from second 1.7 on; its own sound tells."""
    long = render_dance(SEED, 0, 240, SIZE, SIZE)
    first_frame = 51
    shown = slice(first_frame, first_frame + 180)
    write_video(tmp_path / "song.mp4", long.video[:2], FRAME_RATE, long.sound)
    write_video(raw / "videos/dance_00000.mp4", long.video[shown], FRAME_RATE, long.sound[round(1.7 * 44100) :])
    np.save(tmp_path / "poses.npy", np.concatenate([long.points[shown], np.ones((180, 134, 1))], -1))
    dance = replace(read_layout(raw, "videos")[0][0], audio=tmp_path / "song.mp4", poses=tmp_path / "poses.npy")
    with pytest.raises(
        RawError, match=r"song\.mp4: the sound of dance_00000\.mp4 is found \+1\.70 s .*'offset': 1\.70"
    ):
        prepare_segment(SegmentExtent(dance, 0, 1), options())
    taken = prepare_segment(SegmentExtent(replace(dance, offset=1.7), 0, 1), options()).arrays
    own = prepare_segment(SegmentExtent(replace(dance, audio=dance.footage), 0, 1), options()).arrays
    assert np.corrcoef(taken["onset"].astype(float), own["onset"].astype(float))[0, 1] > 0.9
    (raw / "dances.json").write_text(json.dumps({"dance_00000": {"offset": 1.7}}))
    assert read_layout(raw, "videos")[0][0].offset == 1.7
