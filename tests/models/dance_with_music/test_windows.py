"""Windows over long dances: they cover all frames, move from step to step, and are mixed by triangles."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecoach.models.dance_with_music.windows import Windows, bit_reversed, fades, triangle


def places(windows, frames, step=0):
    return [part.tolist() for part in windows.at(frames, step)]


@settings(max_examples=120, deadline=None)
@given(
    frames=st.integers(1, 200),
    length=st.integers(2, 40),
    anchored=st.booleans(),
    step=st.integers(0, 60),
    data=st.data(),
)
def test_windows_cover_each_frame_at_every_step_and_are_of_one_length(frames, length, anchored, step, data):
    overlap = data.draw(st.integers(0, length - 1))
    found = places(Windows(length, overlap, anchored), frames, step)
    assert sorted({k for part in found for k in part}) == list(range(frames))
    assert all(len(part) == min(length, frames) for part in found)
    assert all(part[0] == 0 for part in found) or not anchored
    shared = overlap - anchored  # of the runs behind frame 0
    for before, after in itertools.pairwise(found):
        assert before[-1] + 1 - after[int(anchored)] >= shared
        assert after[int(anchored) :] == list(range(after[int(anchored)], after[-1] + 1))


@pytest.mark.parametrize("frames", [16, 17, 28, 29, 60, 369])
def test_before_they_move_anchored_windows_are_the_published_tiles(frames):
    """StableAnimator: runs of 15 that start at 1, 13, 25, ..., frame 0 before each, the last one at the end."""
    tiles, first = [], 1
    while first + 14 < frames:
        tiles.append([0, *range(first, first + 15)])
        first += 12
    if not tiles or tiles[-1][-1] < frames - 1:
        tiles.append([0, *range(frames - 15, frames)])
    assert places(Windows(16, 4, anchored=True), frames) == tiles


def test_windows_move_so_that_no_frame_is_at_an_edge_in_all_steps():
    assert [bit_reversed(k) for k in range(6)] == [0, 0.5, 0.25, 0.75, 0.125, 0.625]
    windows = Windows(8, 4)
    assert places(windows, 20, 0) == [list(range(s, s + 8)) for s in (0, 4, 8, 12)]
    assert places(windows, 20, 1) == [list(range(s, s + 8)) for s in (0, 2, 6, 10, 12)]
    edges = [{part[side] for part in places(windows, 20, k) for side in (0, -1)} for k in range(4)]
    assert set.intersection(*edges) == {0, 7, 12, 19}, "those of the windows at both ends"
    still = Windows(8, 4, shifted=False)
    assert places(still, 20, 1) == places(still, 20, 0)


def test_the_weights_are_those_of_the_published_tiles():
    expected = [0.0625, 0.1875, 0.3125, 0.4375, 0.5625, 0.6875, 0.8125, 0.9375]
    assert triangle(16).tolist() == expected + expected[::-1]
    assert torch.allclose(triangle(3), torch.tensor([1 / 3, 1.0, 1 / 3]))


@settings(max_examples=60, deadline=None)
@given(frames=st.integers(1, 100), length=st.integers(2, 30), data=st.data())
def test_a_constant_stays_itself_through_fades_and_a_ramp_stays_between_its_values(frames, length, data):
    windows = Windows(length, data.draw(st.integers(0, length - 1)), shifted=False)
    found, seen = torch.zeros(frames), 0
    for part, weight in fades(frames, windows):
        assert part.start <= seen
        assert (weight > 0).all()
        assert (weight[max(seen - part.start, 0) :] == 1).all()
        found[part] = found[part].lerp(torch.full((len(weight),), 3.0), weight)
        seen = part.stop
    assert seen == frames
    assert torch.allclose(found, torch.full((frames,), 3.0))


def test_windows_that_do_not_advance_are_refused():
    with pytest.raises(ValueError, match="windows of 4 frames that share 4 asked for, expected at least 1"):
        Windows(4, 4)
    with pytest.raises(ValueError, match=r"windows of 1 frames .* expected at least 2"):
        Windows(1, 0, anchored=True)
