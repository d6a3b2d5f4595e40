"""Drawn dancers: exact points, motion on the beat, songs and looks that differ."""

import numpy as np
import pytest

from stagecoach.data.dance_with_music.dancer import KEY_POSES, Looks, draw_dancer, pose_angles
from stagecoach.data.dance_with_music.layouts import read_layout
from stagecoach.data.dance_with_music.song import MOVES, Song
from stagecoach.data.dance_with_music.synthetic import render_dance, write_synthetic
from stagecoach.data.encoding.audio import edge_rows, read_audio
from stagecoach.data.encoding.face_encoder import FaceEncoder
from stagecoach.data.synthetic import write_video
from tests.data.dance_with_music.conftest import FRAMES, SEED, SIZE


def test_a_dance_depends_on_seed_and_index_alone(dance, synthetic):
    again = render_dance(SEED, 0, FRAMES, SIZE, SIZE)
    np.testing.assert_array_equal(again.video, dance.video)
    np.testing.assert_array_equal(again.sound, dance.sound)
    other = render_dance(SEED, 4, FRAMES, SIZE, SIZE)
    assert (other.song.name, other.looks.name) == ("song_002", "dancer_002")
    assert len(read_layout(synthetic, "videos")[0]) == 5


def test_four_dances_share_two_songs_and_two_dancers():
    pairs = [(d.song.name, d.looks.name) for d in (render_dance(0, k, 2, 32, 32) for k in range(8))]
    assert len(set(pairs)) == 8
    for group in (pairs[:4], pairs[4:]):
        assert [len({pair[k] for pair in group}) for k in (0, 1)] == [2, 2]
    assert not {p for pair in pairs[:4] for p in pair} & {p for pair in pairs[4:] for p in pair}


@pytest.mark.parametrize("number", range(4))
def test_the_beats_of_a_song_are_heard(tmp_path, number):
    """Through the mp4's codec, as frames of the beats that the song was made with, within one."""
    song = Song.of(SEED, number)
    write_video(tmp_path / "v.mp4", np.zeros((180, 16, 16, 3), np.uint8), 30, song.render(6))
    found = edge_rows(read_audio(tmp_path / "v.mp4", 0.0), song.bpm)[:180, 34].nonzero()[0]
    expected = np.round(song.beat_times(6) * 30)
    assert len(found) >= len(expected) - 3
    assert max(np.abs(expected - beat).min() for beat in found) <= 1


def test_poses_on_beats_are_those_of_the_songs_moves():
    song = Song.of(SEED, 1)
    for number, time in enumerate(song.beat_times(20)):
        move = song.bars[number // 4 % len(song.bars)]
        np.testing.assert_allclose(pose_angles(song, time + 1e-9), KEY_POSES[move, number % 2], atol=1e-6)


def test_chords_tell_the_moves_apart():
    """Chroma in the middle of a bar has the same strongest note for the same move, and another for another."""
    notes = {}
    for number in range(6):
        song = Song.of(SEED, number)
        rows = edge_rows(_at_features_rate(song.render(12)), song.bpm)
        for bar in range(int((12 - song.first) / (4 * song.beat))):
            row = round((song.first + (4 * bar + 2) * song.beat) * 30)
            notes.setdefault(song.bars[bar % 8], []).append(int(rows[row, 21:33].argmax()))
    usual = {move: max(set(found), key=found.count) for move, found in notes.items()}
    assert len(usual) == MOVES
    assert len(set(usual.values())) == MOVES
    hits = [note == usual[move] for move, found in notes.items() for note in found]
    assert np.mean(hits) > 0.9


def _at_features_rate(sound: np.ndarray) -> np.ndarray:
    import librosa

    return librosa.resample(sound, orig_sr=44100, target_sr=15360)


def test_points_lie_where_the_body_is_drawn():
    dance = render_dance(SEED, 1, 20, 256, 256)
    limbs = {"shirt": [3, 6], "trousers": [9, 12]}  # elbows lie under the forearms' skin, so a place above them
    for xy, image in zip(dance.points, dance.video, strict=True):
        for name, joints in limbs.items():
            for joint in joints:
                place = ((0.6 * xy[joint - 1] + 0.4 * xy[joint]) * 256).astype(int)
                assert np.abs(image[place[1], place[0]].astype(int) - getattr(dance.looks, name)).max() < 12
        for eye in (xy[24 + 36 : 24 + 42], xy[24 + 42 : 24 + 48]):
            place = (eye.mean(0) * 256).astype(int)
            assert np.abs(image[place[1], place[0]].astype(int) - dance.looks.eyes).max() < 40


def test_looks_differ_in_the_same_pose(dance):
    background = np.zeros((SIZE, SIZE, 3), np.uint8)
    pictures = [draw_dancer(dance.points[0], Looks.of(SEED, k), background).astype(int) for k in range(4)]
    for k in range(4):
        for other in pictures[k + 1 :]:
            assert np.abs(pictures[k] - other).mean() > 1


def test_the_tiny_face_encoder_tells_dancers_apart(encoders, synthetic, options):
    from stagecoach.data.dance_with_music.segment import SegmentExtent, prepare_segment

    encoder = FaceEncoder(encoders / "arcface.onnx")
    vectors = {}
    for dance in read_layout(synthetic, "videos")[0]:
        faces = [r.face for r in prepare_segment(SegmentExtent(dance, 0, 1), options()).references]
        made = encoder.encode(faces)
        vectors.setdefault(dance.subject, []).extend(made / np.linalg.norm(made, axis=1, keepdims=True))
    names = sorted(vectors)
    alike = [np.mean(np.stack(vectors[n]) @ np.stack(vectors[n]).T) for n in names]
    unlike = [np.mean(np.stack(vectors[a]) @ np.stack(vectors[b]).T) for a in names for b in names if a < b]
    assert min(alike) > max(unlike) + 0.4


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((1, 60, 63, 64), "63 x 64 asked for"),
        ((1, 60, 16, 64), "16 x 64 asked for, .*a face is seen"),
        ((0, 60, 64, 64), "0 dances of 60 frames"),
        ((1, 1, 64, 64), "1 dances of 1 frames"),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, size, message):
    with pytest.raises(ValueError, match=message):
        write_synthetic(tmp_path / "raw", *size, seed=0)
    assert not (tmp_path / "raw").exists()


def test_other_folders_are_not_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("keep")
    with pytest.raises(ValueError, match=r"holds something else than synthetic\.json"):
        write_synthetic(tmp_path, 1, 2, 32, 32, seed=0)
