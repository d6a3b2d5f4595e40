"""What must stop a run does, on all ranks alike; what must not, does not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.distributed import cases
from tests.pair import Pair
from tests.toy import write_toy_shards


def test_a_tensor_without_gradient_stops_the_run_with_its_name(pair, shards, tmp_path):
    recipe = cases.toy_recipe(shards, str(tmp_path), model={"unused_layer": True}, gradient_check_steps=3)
    with pytest.raises(AssertionError, match=r"no gradient reached layers\.1\.first\.norm\.weight.* in 3 steps"):
        pair.run(cases.train, recipe.model_dump(), [1])


def test_a_write_into_frozen_weights_is_found_at_the_end_of_the_stage(pair, shards, tmp_path):
    recipe = cases.toy_recipe(shards, str(tmp_path), model={"write_frozen": True}, steps=4)
    with pytest.raises(AssertionError, match=r"1 frozen tensors changed .* first layers\.0\.frozen\.bias"):
        pair.run(cases.train, recipe.model_dump(), [1])
    assert not (tmp_path / "stage1" / "adapter").exists()


@pytest.mark.parametrize(("zero", "precision"), [(1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (3, "bf16")])
def test_one_bad_sample_skips_its_step_on_all_ranks_and_training_goes_on(pair, tmp_path, zero, precision):
    write_toy_shards(tmp_path / "shards", samples=40, broken=(11,))
    recipe = cases.toy_recipe(str(tmp_path / "shards"), str(tmp_path / "run"), zero=zero, precision=precision, steps=5)
    adapter = pair.run(cases.train, recipe.model_dump(), [1])[0][0]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "skipped_steps" in line]
    # 40 samples are 5 steps of 8: each sample is seen once, so exactly one step is bad.
    assert steps[-1]["skipped_steps"] == 1
    assert sum(line["loss"] is None for line in steps) == 1
    assert all(np.isfinite(tensor.numpy()).all() for tensor in load_file(f"{adapter}/model.safetensors").values())


def test_too_many_bad_steps_in_a_row_stop_the_run_and_name_the_last_checkpoint(pair, tmp_path):
    write_toy_shards(tmp_path / "shards", samples=8, broken=tuple(range(8)))
    recipe = cases.toy_recipe(str(tmp_path / "shards"), str(tmp_path / "run"), max_skipped=3, checkpoint_every=2)
    with pytest.raises(AssertionError, match=r"3 steps in a row up to step 3 .* last checkpoint is .*checkpoint_2"):
        pair.run(cases.train, recipe.model_dump(), [1])


def test_a_global_batch_that_the_ranks_do_not_divide_is_refused_with_the_nearest(pair, shards, tmp_path):
    recipe = cases.toy_recipe(shards, str(tmp_path), global_batch=7)
    with pytest.raises(AssertionError, match=r"6.*8"):
        pair.run(cases.train, recipe.model_dump(), [1])


def test_a_failure_on_the_first_rank_alone_reaches_all_ranks(pair, tmp_path):
    recipe = cases.toy_recipe(str(tmp_path / "none"), str(tmp_path))
    with pytest.raises(AssertionError, match="rank 0:") as caught:
        pair.run(cases.train, recipe.model_dump(), [1])
    assert "rank 1:" in str(caught.value)


@pytest.mark.parametrize("gone", [False, True])
def test_what_an_earlier_stage_trained_is_handed_on_in_fp32_and_from_the_network_where_its_adapter_is_gone(
    pair, shards, tmp_path, gone
):
    recipe = cases.toy_recipe(shards, str(tmp_path), model={"keep_first": True}, precision="bf16", steps=3).model_dump()
    first = pair.run(cases.train, recipe, [1])[0][0]
    trained = load_file(f"{first}/model.safetensors")
    second = pair.run(cases.train_after_a_loss if gone else cases.train, recipe, [2])[0][0]
    found = load_file(f"{second}/model.safetensors")
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in trained.values())
    for name, tensor in trained.items():
        assert torch.equal(found[name], tensor.bfloat16().float() if gone else tensor), name
    assert set(found) > set(trained)
    said = "is taken from the network instead" in (tmp_path / "train.log").read_text()
    assert said == gone


def shared_buffers() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("deepspeed_allreduce_buffer_*")}


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="shared memory has no folder here")
def test_no_shared_memory_is_left_under_a_name_even_while_the_ranks_live():
    before = shared_buffers()
    ranks = Pair()
    try:
        assert ranks.run(cases.joined) == [2, 2]
        assert not shared_buffers() - before
    finally:
        ranks.close()
