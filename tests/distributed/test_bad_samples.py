"""A damaged sample in a run of two ranks: replaced, named, counted, remembered, and too many of them stop the run."""

import json
from pathlib import Path

import pytest

from stagecoach.data.format.shards import index_path, read_manifest
from tests.distributed import cases
from tests.toy import write_toy_shards


def damage(shards: Path, number: int) -> str:
    """Flip a bit in the numbers of the ``number``-th training sample; returns its key."""
    for entry in read_manifest(shards / "train").shards:
        path = shards / "train" / entry["name"]
        samples = json.loads(index_path(path).read_bytes())["samples"]
        if number < len(samples):
            offset, size, _ = samples[number]["members"]["x.npy"]
            data = bytearray(path.read_bytes())
            data[offset + size - 1] ^= 1
            path.write_bytes(data)
            return samples[number]["key"]
        number -= len(samples)
    raise IndexError(number)


def test_a_damaged_sample_is_replaced_and_named_once_and_the_losses_are_those_of_any_world(pair, tmp_path):
    write_toy_shards(tmp_path / "shards", samples=40)
    key = damage(tmp_path / "shards", 11)
    found = {}
    for micro_batch in (1, 4):
        run = tmp_path / f"run{micro_batch}"
        recipe = cases.toy_recipe(
            str(tmp_path / "shards"),
            str(run),
            micro_batch=micro_batch,
            steps=12,
            checkpoint_every=6,
            stream={"bad_samples": 0.03},
        )
        pair.run(cases.train, recipe.model_dump(), [1])
        found[micro_batch] = cases.losses(recipe.run, 1)
        log = (Path(recipe.run) / "train.log").read_text()
        # 12 steps of 8 are more than two epochs of 40, so the sample came up at least twice.
        assert log.count(f"sample '{key}' of") == 1
        assert "crc32 of 'x.npy' differs" in log
        assert cases.losses(recipe.run, 1, "bad_samples")[-1] == 1
    assert found[1] == pytest.approx(found[4], rel=1e-6)
    state = json.loads((tmp_path / "run1/stage1/checkpoints/checkpoint_12/training_state.json").read_text())
    assert state["bad"] == [11]


def test_more_damage_than_allowed_stops_all_ranks_and_names_the_last(pair, tmp_path):
    write_toy_shards(tmp_path / "shards", samples=40)
    keys = {damage(tmp_path / "shards", number) for number in (3, 17, 29)}
    recipe = cases.toy_recipe(str(tmp_path / "shards"), str(tmp_path / "run"), steps=12, stream={"bad_samples": 0.05})
    stopped = r"3 of 40 samples are damaged, expected at most a part of 0\.05"
    with pytest.raises(AssertionError, match=stopped) as caught:
        pair.run(cases.train, recipe.model_dump(), [1])
    assert "rank 0:" in str(caught.value)
    assert "rank 1:" in str(caught.value)
    assert any(f"the last '{key}' of" in str(caught.value) for key in keys)


def test_the_count_survives_a_resume(pair, tmp_path):
    write_toy_shards(tmp_path / "shards", samples=40)
    damage(tmp_path / "shards", 3)
    recipe = cases.toy_recipe(
        str(tmp_path / "shards"), str(tmp_path / "run"), steps=6, checkpoint_every=6, stream={"bad_samples": 0.03}
    )
    pair.run(cases.train, recipe.model_dump(), [1])
    damage(tmp_path / "shards", 20)
    longer = recipe.model_copy(update={"stages": {1: recipe.stages[1].model_copy(update={"steps": 12})}})
    with pytest.raises(AssertionError, match="2 of 40 samples are damaged"):
        pair.run(cases.train, longer.model_dump(), [1])
