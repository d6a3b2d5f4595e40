"""The schema that foreign tars are indexed by: a family's, from its sizes."""

import pytest

from stagecoach.data.builders import BUILDERS
from stagecoach.data.fantasy_world.schema import fantasy_world_schema
from stagecoach.data.maintenance.indexing import family_schema


def test_the_schema_of_a_family_from_its_sizes():
    assert family_schema("fantasy_world") == fantasy_world_schema()
    made = family_schema("fantasy_world", ["text_dim=32", "image_to_video=true"])
    assert made == fantasy_world_schema(text_dim=32, image_to_video=True)


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("depth=3", "no size of that name, expected some of latent_channels=16, text_dim=4096"),
        ("text_dim=many", "expected a whole number"),
        ("text_dim", "expected a whole number"),
        ("image_to_video=1", "expected image_to_video=true"),
    ],
)
def test_sizes_that_a_family_does_not_have(word, found):
    with pytest.raises(ValueError, match=f"--size {word}: .*{found}"):
        family_schema("fantasy_world", [word])


@pytest.mark.parametrize("family", sorted(BUILDERS))
def test_every_family_has_a_schema_to_index_by(family):
    assert family_schema(family).name == family
