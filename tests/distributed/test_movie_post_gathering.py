"""MoviePostProduction with the frozen backbone sharded: what a rank holds of it at any time."""

import json

import pytest

from tests.distributed import cases
from tests.distributed.test_movie_post_production import recipe_for
from tests.tiny_movie import make_tiny_movie


@pytest.mark.slow
def test_under_frozen_shard_at_most_one_block_of_frozen_weights_is_gathered(pair, tmp_path):
    """Blocks are called child by child; none of them may gather a whole block's worth more than it runs."""
    movie = make_tiny_movie(tmp_path / "movie", 12)
    # The values of zero3.json are larger than the whole tiny network; these are in its proportion.
    config = {
        "zero_optimization": {
            "stage": 3,
            "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": 0,
            "stage3_param_persistence_threshold": 0,
            "memory_efficient_linear": False,
        }
    }
    (tmp_path / "small.json").write_text(json.dumps(config))
    recipe = recipe_for(movie, tmp_path / "run", steps=1, frozen="shard", ds_config=str(tmp_path / "small.json"))
    whole, largest, most = pair.run(most_gathered, recipe.model_dump())[0]
    assert 0 < most <= largest
    assert largest < whole / 4


def most_gathered(recipe: dict) -> tuple[int, int, int]:
    """Of stage 3, whose adapters are at their initial values."""
    setup = cases.prepared(recipe, 3, rehearsal=True)
    return cases.most_gathered(setup, setup.engine.network.recompute_units())
