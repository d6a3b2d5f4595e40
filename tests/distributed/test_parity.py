"""Two ranks under each ZeRO stage compute what plain PyTorch computes on the whole batch."""

from __future__ import annotations

import pytest
import torch

from data.dataset import ShardSet
from data.order import Order
from data.stream import collate
from models.family import Progress
from models.layers.keyed import rng_keys
from tests.distributed import cases
from tests.pair import Pair
from tests.toy import SCHEMA, ToyConfig, ToyFamily, write_toy_shards
from trainer.freeze import freeze


@pytest.fixture(scope="module")
def pair():
    pair = Pair()
    yield pair
    pair.close()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shards")
    write_toy_shards(directory)
    return directory


def plain_losses(shards, steps=20, clip=1.0, dtype=torch.float32):
    """One process, one batch a step, torch's AdamW: what the paper's equations say."""
    family, config = ToyFamily(), ToyConfig()
    network = family.build(config, 1, "cpu", torch.float32)
    freeze(network, family.stages(config)[0])
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in trained if p.ndim >= 2], "weight_decay": 0.01},
         {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0}], lr=1e-2)
    data = ShardSet.open(shards / "train", SCHEMA)
    order = Order(data.shard_sizes, 0)
    found = []
    for step in range(steps):
        uids = range(step * 8, step * 8 + 8)
        batch = collate(SCHEMA, [data.read(order.locate(uid)[1]) for uid in uids])
        batch |= {"uid": torch.tensor(list(uids)), "rng_key": rng_keys(0, 1, uids)}
        loss = network(batch, Progress(step, steps, 1, 0))["losses"]["fit"].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_two_ranks_give_the_losses_of_plain_pytorch(pair, shards, tmp_path, zero):
    recipe = cases.toy_recipe(str(shards), str(tmp_path), zero=zero)
    pair.run(cases.train, recipe.model_dump(), [1])
    found = cases.losses(tmp_path, 1)
    assert len(found) == 20
    assert found == pytest.approx(plain_losses(shards), rel=1e-6, abs=1e-7)


def test_zero_stages_agree_in_bf16(pair, shards, tmp_path):
    found = {}
    for zero in (1, 2, 3):
        run = tmp_path / str(zero)
        recipe = cases.toy_recipe(str(shards), str(run), zero=zero, precision="bf16")
        pair.run(cases.train, recipe.model_dump(), [1])
        found[zero] = cases.losses(run, 1)
    # Stages 2 and 3 accumulate alike; stage 1 accumulates in fp32. One bf16 rounding is 2^-8.
    assert found[1] == pytest.approx(found[3], rel=2**-6)
    assert found[2] == pytest.approx(found[3], rel=2**-6)
    assert found[3] == pytest.approx(plain_losses(shards), rel=2**-4)


@pytest.mark.parametrize("change", [{"recompute": "block"}, {"recompute": "selective"}, {"leaf_modules": True},
                                    {"micro_batch": 4}, {"micro_batch": 1}, {"workers": 4}])
def test_what_may_not_change_the_numbers_does_not(pair, shards, tmp_path, change):
    recipe = cases.toy_recipe(str(shards), str(tmp_path), **change)
    pair.run(cases.train, recipe.model_dump(), [1])
    assert cases.losses(tmp_path, 1) == pytest.approx(plain_losses(shards), rel=1e-6, abs=1e-7)


def test_sharded_frozen_weights_give_the_same_losses(pair, shards, tmp_path):
    recipe = cases.toy_recipe(str(shards), str(tmp_path), frozen="shard")
    pair.run(cases.train, recipe.model_dump(), [1])
    assert cases.losses(tmp_path, 1) == pytest.approx(plain_losses(shards), rel=1e-6, abs=1e-7)
