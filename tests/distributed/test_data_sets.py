"""Several data sets in one run of two ranks."""

import json
from pathlib import Path

import pytest
import webdataset as wds

from stagecoach.data.files import seal_directory
from stagecoach.data.maintenance.indexing import index_folder
from stagecoach.data.streaming.dataset import ShardSet
from stagecoach.data.streaming.plan import TURNS_ORDER
from tests.distributed import cases
from tests.toy import SCHEMA, write_toy_shards


@pytest.mark.parametrize("order", [{"weights": (0.75, 0.25)}, {"drop_last": True}, {"active_shards": 2}])
def test_mixed_sets_give_the_same_losses_however_their_batches_are_spread(pair, tmp_path, order):
    sources = []
    for number, samples in enumerate((20, 12)):
        write_toy_shards(tmp_path / f"set{number}", samples=samples, seed=number)
        weight = order["weights"][number] if "weights" in order else None
        sources.append({"path": str(tmp_path / f"set{number}"), "weight": weight})
    stream = {key: value for key, value in order.items() if key != "weights"}
    found = {}
    for micro_batch in (1, 4):
        recipe = cases.toy_recipe(
            sources,
            str(tmp_path / f"run{micro_batch}"),
            micro_batch=micro_batch,
            steps=6,
            checkpoint_every=3,
            stream=stream,
        )
        pair.run(cases.train, recipe.model_dump(), [1])
        found[micro_batch] = cases.losses(recipe.run, 1)
    assert found[1] == pytest.approx(found[4], rel=1e-6)


def test_a_run_goes_on_only_over_the_same_data_in_the_same_order(pair, tmp_path):
    write_toy_shards(tmp_path / "shards", samples=24)
    recipe = cases.toy_recipe(str(tmp_path / "shards"), str(tmp_path / "run"), steps=4, checkpoint_every=2)
    pair.run(cases.train, recipe.model_dump(), [1])
    state = json.loads((Path(recipe.run) / "stage1/checkpoints/checkpoint_4/training_state.json").read_text())
    longer = recipe.stages[1].model_copy(update={"steps": 8})
    other = recipe.model_copy(
        update={"stages": {1: longer}, "stream": recipe.stream.model_copy(update={"active_shards": 1})}
    )
    with pytest.raises(AssertionError, match=f"shards.*{state['shards']}|{state['shards']}.*shards"):
        pair.run(cases.train, other.model_dump(), [1])


def test_a_run_over_mixed_sets_does_not_go_on_from_a_checkpoint_of_another_order(pair, tmp_path):
    sources = []
    for number, weight in enumerate((0.75, 0.25)):
        write_toy_shards(tmp_path / f"set{number}", samples=12, seed=number)
        sources.append({"path": str(tmp_path / f"set{number}"), "weight": weight})
    recipe = cases.toy_recipe(sources, str(tmp_path / "run"), steps=2, checkpoint_every=2)
    pair.run(cases.train, recipe.model_dump(), [1])
    checkpoint = Path(recipe.run) / "stage1/checkpoints/checkpoint_2"
    state = json.loads((checkpoint / "training_state.json").read_text())
    assert state.pop("order") == TURNS_ORDER  # versions before did not write it
    (checkpoint / "training_state.json").write_text(json.dumps(state))
    seal_directory(checkpoint)
    longer = recipe.model_copy(update={"stages": {1: recipe.stages[1].model_copy(update={"steps": 4})}})
    with pytest.raises(AssertionError, match=r"came in order 1 of buckets and weighted sets"):
        pair.run(cases.train, longer.model_dump(), [1])


def test_tars_of_webdatasets_own_writer_train_as_ours_do(pair, tmp_path):
    write_toy_shards(tmp_path / "ours", samples=24)
    for split in ("train", "val"):
        shards = ShardSet.open(tmp_path / "ours" / split, SCHEMA)
        (tmp_path / "theirs" / split).mkdir(parents=True)
        pattern = str(tmp_path / "theirs" / split / "t-%03d.tar")
        with wds.ShardWriter(pattern, maxcount=shards.shard_sizes[0], verbose=0) as writer:
            for index in range(len(shards)):
                sample = shards.read(index)
                writer.write({"__key__": sample.key, **{f"{name}.npy": array for name, array in sample.arrays.items()}})
    index_folder(tmp_path / "theirs", SCHEMA)
    found = {}
    for name in ("ours", "theirs"):
        recipe = cases.toy_recipe(str(tmp_path / name), str(tmp_path / f"run_{name}"), steps=6)
        pair.run(cases.train, recipe.model_dump(), [1])
        found[name] = cases.losses(recipe.run, 1)
    assert found["theirs"] == found["ours"]
