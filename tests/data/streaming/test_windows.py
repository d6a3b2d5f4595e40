"""Windows of clips: where they start, and what of a sample they cut."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecoach.data.format.schema import Field, SampleSchema, SchemaError
from stagecoach.data.streaming.dataset import Sample
from stagecoach.data.streaming.windows import Window, cut, window_start

SCHEMA = SampleSchema(
    "dance",
    1,
    (
        Field("latents", "f16", ("F", 4, "h")),
        Field("pose", "f32", (2, "F")),
        Field("reference", "f16", ("R", 4)),
        Field("beat", "u8", ("F",), optional=True),
    ),
    window="F",
)


def sample(frames: int) -> Sample:
    count = np.arange(frames)
    return Sample(
        "k",
        "s.tar",
        {
            "latents": np.broadcast_to(count[:, None, None], (frames, 4, 3)).astype(np.float16),
            "pose": np.stack([count, count]).astype(np.float32),
            "reference": np.ones((2, 4), np.float16),
        },
        {"song": "a"},
    )


@given(
    length=st.integers(1, 200),
    frames=st.integers(1, 30),
    stride=st.integers(1, 4),
    seed=st.integers(0, 9),
    uid=st.integers(0, 10**12),
)
def test_a_window_lies_inside_the_clip_and_follows_from_seed_and_position(length, frames, stride, seed, uid):
    window = Window(frames, stride)
    if window.span > length:
        with pytest.raises(SchemaError, match=f"a clip of {length} frames, expected at least {window.span}"):
            window_start(window, length, seed, uid)
        return
    start = window_start(window, length, seed, uid)
    assert 0 <= start <= length - window.span
    assert start == window_start(window, length, seed, uid)


def test_all_starts_are_equally_likely():
    counts = Counter(window_start(Window(3), 10, 0, uid) for uid in range(8000))
    assert sorted(counts) == list(range(8))
    assert all(abs(count - 1000) < 150 for count in counts.values()), "five standard deviations"


@given(frames=st.integers(1, 6), stride=st.integers(1, 3), uid=st.integers(0, 99))
def test_fields_with_the_dimension_are_cut_together_and_others_are_whole(frames, stride, uid):
    whole = sample(20)
    part, start = cut(SCHEMA, whole, Window(frames, stride), 0, uid)
    expected = [start + stride * i for i in range(frames)]
    assert part.arrays["latents"][:, 0, 0].tolist() == expected
    assert part.arrays["pose"][1].tolist() == expected
    assert part.arrays["reference"].shape == (2, 4)
    assert (part.key, part.meta) == ("k", {"song": "a"})
    assert whole.arrays["latents"].shape == (20, 4, 3), "the sample itself is not touched"


def test_a_clip_that_is_too_short_is_named():
    with pytest.raises(SchemaError, match=r"s\.tar: sample 'k': a clip of 5 frames, expected at least 7"):
        cut(SCHEMA, sample(5), Window(4, 2), 0, 0)


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0)])
def test_a_window_of_nothing_is_refused(numbers):
    with pytest.raises(ValueError, match="at least 1 of each"):
        Window(*numbers)
