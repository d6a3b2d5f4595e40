"""Two ranks under each ZeRO stage compute what plain PyTorch computes on the whole batch."""

import pytest

from stagecoach.models import FAMILIES
from tests.distributed import cases
from tests.distributed.plain import plain_losses


@pytest.fixture(scope="module")
def plain(shards):
    FAMILIES["toy"] = "tests.toy:ToyFamily"
    return plain_losses(cases.toy_recipe(str(shards), "unused"))


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_two_ranks_give_the_losses_of_plain_pytorch(pair, shards, plain, tmp_path, zero):
    recipe = cases.toy_recipe(str(shards), str(tmp_path), zero=zero)
    pair.run(cases.train, recipe.model_dump(), [1])
    found = cases.losses(tmp_path, 1)
    assert len(found) == 20
    assert found == pytest.approx(plain, rel=1e-6)


def test_zero_stages_agree_in_bf16(pair, shards, plain, tmp_path):
    found = {}
    for zero in (1, 2, 3):
        run = tmp_path / str(zero)
        recipe = cases.toy_recipe(str(shards), str(run), zero=zero, precision="bf16")
        pair.run(cases.train, recipe.model_dump(), [1])
        found[zero] = cases.losses(run, 1)
    # All accumulate and reduce in fp32 (ds_configs), so the stages agree far below a bf16 rounding of 2^-8; plain
    # PyTorch's fp32 losses are as near as twenty steps with bf16 weights can be.
    assert found[1] == pytest.approx(found[3], rel=1e-5)
    assert found[2] == pytest.approx(found[3], rel=1e-5)
    assert found[3] == pytest.approx(plain, rel=2**-5)


@pytest.mark.parametrize(
    "change",
    [
        {"activation_checkpointing": "full"},
        {"activation_checkpointing": "selective"},
        {"leaf_modules": True},
        {"micro_batch": 4},
        {"micro_batch": 1},
        {"stream": {"workers": 4}},
    ],
)
def test_what_may_not_change_the_numbers_does_not(pair, shards, plain, tmp_path, change):
    recipe = cases.toy_recipe(str(shards), str(tmp_path), **change)
    pair.run(cases.train, recipe.model_dump(), [1])
    assert cases.losses(tmp_path, 1) == pytest.approx(plain, rel=1e-6)


def test_sharded_frozen_weights_give_the_same_losses(pair, shards, plain, tmp_path):
    recipe = cases.toy_recipe(str(shards), str(tmp_path), frozen="shard")
    pair.run(cases.train, recipe.model_dump(), [1])
    assert cases.losses(tmp_path, 1) == pytest.approx(plain, rel=1e-6)
