"""Sizes and what is refused in a recipe's section."""

import pytest
from pydantic import ValidationError

from stagecoach.models.fantasy_world.config import SIZES, SPECIAL_TOKENS, ClipConfig, FantasyWorldConfig


def change(size="tiny", **values):
    return FantasyWorldConfig.model_validate({**SIZES[size].model_dump(), **values})


def test_the_papers_clip_has_its_numbers_of_tokens():
    clip = ClipConfig(frames=81, height=336, width=592)
    assert clip.latent == (21, 42, 74)
    assert clip.grid == (21, 21, 37)
    assert clip.tokens == 16317
    assert clip.tokens + SPECIAL_TOKENS * clip.grid[0] == 16422


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"clip": {"frames": 10, "height": 64, "width": 96}},
            r"clip.frames is 10, expected 4\(f - 1\) \+ 1, such as 9",
        ),
        ({"clip": {"frames": 9, "height": 60, "width": 96}}, "clip.height is 60, expected a multiple of 16"),
        ({"split": 6}, "split is 6, expected 1 to 5"),
        ({"frames_per_step": 10}, "frames_per_step is 10, expected at most the 9 frames"),
        ({"splitt": 2}, "splitt"),
        ({"split": 3}, r"dpt.taps is \(1, 2, 3, 4\), expected four ascending 1-based layers that end at the last"),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_expected(values, message):
    with pytest.raises(ValidationError, match=message):
        change(**values)


def test_image_to_video_needs_the_text_length_that_diffusers_takes_for_granted():
    backbone = {**SIZES["tiny"].backbone.model_dump(), "image_dim": 32}
    with pytest.raises(ValidationError, match=r"backbone.text_length is 64, expected 512"):
        change(backbone=backbone)
