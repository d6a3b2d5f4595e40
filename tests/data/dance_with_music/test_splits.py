"""No song and no subject is on both sides."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecoach.data.building.jobs import RawError
from stagecoach.data.dance_with_music.raw import RawDance
from stagecoach.data.dance_with_music.splits import assign_splits


def dance(name: str, song=None, subject=None, split=None) -> RawDance:
    return RawDance(name, Path(name), Path("p"), "normalised", song=song, subject=subject, split=split)


def _connected(dances: list[RawDance]) -> bool:
    """Whether all are reached from the first one, going over songs and subjects."""
    reached, waiting = {dances[0].key}, [dances[0]]
    while waiting:
        one = waiting.pop()
        near = [d for d in dances if d.key not in reached and (d.song == one.song or d.subject == one.subject)]
        reached |= {d.key for d in near}
        waiting += near
    return len(reached) == len(dances)


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=2, max_size=40), st.sampled_from([0.1, 0.3])
)
def test_songs_and_subjects_stay_on_one_side(pairs, holdout):
    dances = [dance(f"d{k}", f"s{song}", f"p{subject}") for k, (song, subject) in enumerate(pairs)]
    if _connected(dances):
        with pytest.raises(RawError, match="connected"):
            assign_splits(dances, "song-and-subject", holdout)
        return
    splits = assign_splits(dances, "song-and-subject", holdout)
    if None in splits.values():
        assert len({d.song for d in dances}) == len({d.subject for d in dances}) == len(dances)
        return
    for what in ("song", "subject"):
        sides = {split: {getattr(d, what) for d in dances if splits[d.key] == split} for split in ("train", "val")}
        assert not sides["train"] & sides["val"]
        assert sides["train"]
        assert sides["val"]


def test_the_held_out_part_is_about_what_was_asked_for():
    dances = [dance(f"d{k}", f"s{k // 4}", f"p{k // 2}") for k in range(400)]
    held = list(assign_splits(dances, "song-and-subject", 0.1).values()).count("val")
    assert 36 <= held <= 40
    assert set(assign_splits(dances, "song", 0.0).values()) == {"train"}


def test_the_order_of_the_dances_does_not_matter():
    dances = [dance(f"d{k}", f"s{k // 3}", f"p{k // 3}") for k in range(60)]
    assert assign_splits(dances, "song", 0.2) == assign_splits(dances[::-1], "song", 0.2)


def test_what_the_metadata_says_holds_for_all_that_is_connected():
    dances = [dance("a", "s0", "p0", "val"), dance("b", "s0", "p1"), dance("c", "s1", "p1"), dance("d", "s2", "p2")]
    assert assign_splits(dances, "song-and-subject", 0.1) == {"a": "val", "b": "val", "c": "val", "d": "train"}
    assert assign_splits(dances, "subject", 0.1) == {"a": "val", "b": "train", "c": "train", "d": "train"}
    assert assign_splits(dances, "clip", 0.1) == {"a": "val", "b": None, "c": None, "d": None}


def test_a_group_that_is_torn_apart_is_named():
    dances = [dance("a", "s0", "p0", "val"), dance("b", "s0", "p1", "train")]
    with pytest.raises(RawError, match="a is in val and b in train, but they share a song and subject"):
        assign_splits(dances, "song-and-subject", 0.1)
    assert assign_splits(dances, "subject", 0.1) == {"a": "val", "b": "train"}


def test_nothing_can_be_held_out_where_all_is_connected():
    dances = [dance("a", "s0", "p0"), dance("b", "s0", "p1"), dance("c", "s1", "p1")]
    with pytest.raises(RawError, match="all 3 dances are connected by shared songs and subjects"):
        assign_splits(dances, "song-and-subject", 0.1)
    assert set(assign_splits(dances, "song-and-subject", 0.0).values()) == {"train"}


def test_dances_that_share_nothing_are_left_to_the_builder():
    assert assign_splits([dance("a"), dance("b", split="val")], "song-and-subject", 0.1) == {"a": None, "b": "val"}
