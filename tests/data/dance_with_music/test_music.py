"""Rows of music from sound or files; a file of another rate or content is named, never stretched."""

import h5py
import numpy as np
import pytest

from stagecoach.data.building.jobs import RawError
from stagecoach.data.dance_with_music.music import aist_bpm, read_music, read_rows
from stagecoach.data.dance_with_music.track import read_track
from stagecoach.data.encoding.audio import BEAT, ONSET


def rows(count: int, width: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, width)).astype(np.float32)


def test_rows_are_read_from_files_and_folders(tmp_path):
    table = rows(6, 4800)
    np.save(tmp_path / "a.npy", table)
    np.save(tmp_path / "t.npy", np.asfortranarray(table.astype(np.float64)))
    (tmp_path / "folder").mkdir()
    for number, row in enumerate(table):
        np.save(tmp_path / f"folder/frame_{number:03d}.npy", row)
    for path in ("a.npy", "t.npy", "folder"):
        np.testing.assert_array_equal(read_rows(tmp_path / path, 4800), table)


@pytest.mark.parametrize("leading", [(), (1,)])
def test_every_second_row_of_aists_60_per_second_is_taken(tmp_path, leading):
    table = rows(12, 4800)
    with h5py.File(tmp_path / "gKR.h5", "w") as file:
        file["music"] = table.reshape(*leading, *table.shape)
    np.testing.assert_array_equal(read_rows(tmp_path / "gKR.h5", 4800), table[::2])


def test_other_files_are_named(tmp_path):
    np.save(tmp_path / "narrow.npy", rows(5, 35))
    with pytest.raises(RawError, match=r"narrow\.npy: .*shape \(5, 35\).*expected 4800 numbers per row"):
        read_rows(tmp_path / "narrow.npy", 4800)
    np.save(tmp_path / "nan.npy", np.full((5, 35), np.nan))
    with pytest.raises(RawError, match=r"nan\.npy: nan in row 0, number 0, expected finite numbers"):
        read_rows(tmp_path / "nan.npy", 35)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "nan.npy").read_bytes()[:100])
    with pytest.raises(RawError, match=r"cut\.npy: not a .npy file of numbers .*, expected rows of music"):
        read_rows(tmp_path / "cut.npy", 35)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["sound"] = rows(2, 4800)
    with pytest.raises(RawError, match=r"other\.h5: no readable data set 'music'"):
        read_rows(tmp_path / "other.h5", 4800)
    with pytest.raises(RawError, match=r"a\.pt: found a \.pt file"):
        read_rows(tmp_path / "a.pt", 35)


def test_the_seeds_39_numbers_filled_up_with_zeros_are_not_jukebox(tmp_path):
    table = np.zeros((150, 4800), np.float32)
    table[:, :39] = rows(150, 39)
    np.save(tmp_path / "m.npy", table)
    with pytest.raises(RawError, match="only the first 39 of 4800 columns hold anything, expected a layer of Jukebox"):
        read_rows(tmp_path / "m.npy", 4800)


def test_beats_come_from_the_sound_where_there_is_some(tmp_path, synthetic):
    video = synthetic / "videos/dance_00000.mp4"
    heard = read_music("edge", video, 0.0, None, 100, "d")
    np.save(tmp_path / "j.npy", rows(len(heard.rows), 4800))
    jukebox = read_music("jukebox", video, 0.0, tmp_path / "j.npy", 100, "d")
    assert heard.beats_from == jukebox.beats_from == "audio"
    np.testing.assert_array_equal(jukebox.beat, heard.rows[:, BEAT])
    np.testing.assert_array_equal(jukebox.onset, heard.rows[:, ONSET])
    assert jukebox.rows.shape == (len(heard.rows), 4800)
    np.save(tmp_path / "e.npy", heard.rows)
    read = read_music("edge", None, None, tmp_path / "e.npy", None, "d")
    assert read.beats_from == "rows"
    np.testing.assert_array_equal(read.beat, heard.beat)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("jukebox", {}, "d: no rows of 4800 numbers found"),
        ("edge", {}, "d: neither sound nor rows of music found"),
        ("jukebox", {"rows": True}, "d: rows of music but no sound found, expected sound too"),
    ],
)
def test_missing_music_is_never_made_up(tmp_path, kind, given, message):
    np.save(tmp_path / "j.npy", rows(5, 4800))
    with pytest.raises(RawError, match=message):
        read_music(kind, None, None, tmp_path / "j.npy" if given else None, None, "d")


def test_aists_songs_tell_their_tempo():
    assert [aist_bpm(song) for song in ("KR1", "HO3", "BR0", "x")] == [90, 125, 80, None]


def test_a_part_of_a_song_takes_its_rows_and_pictures(tmp_path, synthetic):
    """Two seconds of sound; from second 0.5 on, every second frame."""
    maps, table = np.random.default_rng(0).normal(size=(61, 2, 4, 4)).astype(np.float32), rows(61, 12)
    np.save(tmp_path / "maps.npy", maps)
    np.save(tmp_path / "rows.npy", table)
    song = synthetic / "videos/dance_00000.mp4"
    track = read_track(song, 0.5, 1.0, 2, 12, tmp_path / "rows.npy", tmp_path / "maps.npy")
    np.testing.assert_array_equal(track.rows, table[15:45:2])
    np.testing.assert_array_equal(track.maps, maps[15:45:2])
    np.save(tmp_path / "maps.npy", maps[:30])
    with pytest.raises(RawError, match=r"maps\.npy: 15 rows from second 0\.5 on found, expected 29"):
        read_track(song, 0.5, 1.0, 2, 12, tmp_path / "rows.npy", tmp_path / "maps.npy")
