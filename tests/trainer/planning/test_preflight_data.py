"""What verify says of FantasyWorld's shards: how their depth and cameras agree, and whether they fit the recipe."""

import re

import pytest

from stagecoach.data.fantasy_world.synthetic import Variety
from stagecoach.trainer.planning.preflight import preflight
from stagecoach.trainer.recipe import load_recipe
from tests.tiny_world import make_tiny_world

SIZES = {"small": (32, 48), "large": (48, 80)}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    made = {name: make_tiny_world(folder / name, 6, Variety(), 0.3, size=size) for name, size in SIZES.items()}
    return {name: world.shards for name, world in made.items()}


def checks(shards, size, run, stages=(1, 2), **overrides):
    height, width = SIZES[size]
    given = {"model.clip": f"{{frames: 9, height: {height}, width: {width}}}", **overrides}
    recipe = load_recipe(
        family="fantasy_world",
        profile="tiny",
        data=str(shards[size]),
        run=run,
        overrides=[f"{key}={value}" for key, value in given.items()],
    )
    return {c.name: c for c in preflight(recipe, stages=list(stages))}


def test_how_depth_and_cameras_of_the_clips_agree_is_shown(shards, tmp_path):
    """The cameras of nine frames hardly move, of which the warp says that it says nothing."""
    found = checks(shards, "large", tmp_path)["train shards"]
    assert found.ok
    count = int(re.search(r"(\d+) samples", found.message)[1])
    assert f"warp error: says nothing (nearly still) {count}; valid depth: " in found.message
    assert "scene scale: " in found.message


def test_shards_of_another_clip_size_than_the_recipes_are_refused(shards, tmp_path):
    found = checks({"large": shards["small"]}, "large", tmp_path)["train shards"]
    assert not found.ok
    assert "32" in found.message
    assert "48" in found.message


def test_data_of_a_stage_is_held_against_that_stage(shards, tmp_path):
    """Stage 1 at a lower resolution on shards of its own; without its size in the recipe they are refused."""
    own = {"stages.1.data": shards["small"]}
    sizes = {"stages.1.model.clip": "{height: 32, width: 48}"}
    right = checks(shards, "large", tmp_path, **own, **sizes)
    assert right["train shards of stage 1"].ok
    assert right["train shards of stage 2"].ok
    wrong = checks(shards, "large", tmp_path, **own)
    assert not wrong["train shards of stage 1"].ok
    assert wrong["train shards of stage 2"].ok
