"""FantasyWorld on two ranks: any ZeRO stage, leaves, recompute or sharded frozen weights give the same losses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stagecoach.data.building.build import build
from stagecoach.data.building.options import BuildOptions
from stagecoach.data.encoding.tiny_encoders import write_wan_encoders
from stagecoach.data.fantasy_world.clip import ClipOptions
from stagecoach.data.fantasy_world.job import EncoderPaths, FantasyWorldJob
from stagecoach.data.fantasy_world.raw import read_metadata
from stagecoach.data.fantasy_world.readers import read_frames
from stagecoach.data.fantasy_world.synthetic import write_synthetic
from stagecoach.data.format.schema import SchemaError
from stagecoach.trainer.recipe import Recipe
from stagecoach.trainer.setup import StageData
from stagecoach.trainer.stage_plan import StagePlan
from tests.distributed import cases
from tests.distributed.plain import plain_losses

FRAMES, HEIGHT, WIDTH = 5, 32, 48


def build_shards(folder: Path, encoders: Path, options: ClipOptions) -> str:
    paths = EncoderPaths(*(encoders / name for name in ("vae", "text_encoder", "tokenizer")))
    build(FantasyWorldJob(folder / "raw", options, paths), folder / "shards", BuildOptions(holdout=0.2))
    return str(folder / "shards")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fantasy_world")
    write_synthetic(folder / "raw", 10, FRAMES, HEIGHT, WIDTH, seed=1)
    clips, _ = read_metadata(folder / "raw")
    pictures = np.stack([frame for clip in clips for frame in read_frames(clip.video, FRAMES)])
    write_wan_encoders(folder / "encoders", pictures, [clip.prompt for clip in clips], seed=0)
    return build_shards(folder, folder / "encoders", ClipOptions(FRAMES, HEIGHT, WIDTH))


def recipe_for(shards: str, run: Path | str, **changes: Any) -> Recipe:
    clip = {"frames": FRAMES, "height": HEIGHT, "width": WIDTH}
    own = {"steps": 20, "learning_rate": 1e-4, "model": {"clip": clip, "frames_per_step": 3}}
    return cases.family_recipe("fantasy_world", shards, run, 2, **own | changes)


@pytest.fixture(scope="module")
def reference(shards):
    return plain_losses(recipe_for(shards, "unused"))


@pytest.fixture(scope="module")
def first_stage(pair, shards, tmp_path_factory):
    """A run whose stage 1 is done; its losses are compared below, its adapter starts stage 2."""
    run = tmp_path_factory.mktemp("run")
    pair.run(cases.train, recipe_for(shards, run).model_dump(), [1])
    return run


def test_stage_one_under_zero_3_gives_the_losses_of_plain_pytorch(first_stage, reference):
    found = cases.losses(first_stage, 1)
    assert len(found) == 20
    assert found == pytest.approx(reference, rel=2e-6)


@pytest.mark.parametrize("zero", [1, 2])
def test_stage_one_under_the_other_zero_stages_too(pair, shards, reference, tmp_path, zero):
    pair.run(cases.train, recipe_for(shards, tmp_path, zero=zero).model_dump(), [1])
    assert cases.losses(tmp_path, 1) == pytest.approx(reference, rel=2e-6)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"frozen": "shard"}, id="frozen-shard", marks=pytest.mark.slow),
        pytest.param({"activation_checkpointing": "selective", "leaf_modules": True}, id="selective-leaves"),
    ],
)
def test_stage_two_starts_from_stage_one_and_gives_the_losses_of_plain_pytorch(
    pair, shards, first_stage, tmp_path, change
):
    recipe = recipe_for(shards, tmp_path, steps=4, **change)
    init = first_stage / "stage1" / "adapter"
    adapter = pair.run(train_from, recipe.model_dump(), 2, init)[0]
    assert cases.losses(tmp_path, 2) == pytest.approx(plain_losses(recipe, 2, init), rel=2e-6)
    names = set(load_file(Path(adapter) / "model.safetensors"))
    assert set(load_file(init / "model.safetensors")) < names
    assert any(".cross_attention." in name for name in names)
    assert not any("video_block" in name or name.startswith(("stem", "out", "pcb")) for name in names)


@pytest.mark.slow
def test_zero_stages_agree_in_bf16_with_recompute(pair, shards, tmp_path):
    found = {}
    for zero in (1, 2, 3):
        run = tmp_path / str(zero)
        recipe = recipe_for(shards, run, precision="bf16", zero=zero, activation_checkpointing="full", steps=8)
        pair.run(cases.train, recipe.model_dump(), [1])
        found[zero] = cases.losses(run, 1)
    assert found[1] == pytest.approx(found[3], rel=2**-8)
    assert found[2] == pytest.approx(found[3], rel=2**-8)


def test_under_frozen_shard_at_most_one_block_of_frozen_weights_is_gathered(pair, shards, first_stage, tmp_path):
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
    recipe = recipe_for(shards, tmp_path, steps=1, frozen="shard", ds_config=str(tmp_path / "small.json"))
    whole, largest, most = pair.run(most_gathered, recipe.model_dump(), first_stage / "stage1" / "adapter")[0]
    assert most <= largest
    assert largest < whole / 4


def train_from(recipe: dict, stage: int, init: Path) -> str:
    return cases.train(recipe, [stage], init=init)[0]


def most_gathered(recipe: dict, init: Path) -> tuple[int, int, int]:
    setup = cases.prepared(recipe, 2, init=init)
    network = setup.engine.network
    blocks = [*network.pcb, *(layer.video_block for layer in network.irg), network.stem, network.out]
    return cases.most_gathered(setup, blocks)


@pytest.mark.slow
def test_a_bf16_run_changes_nearly_all_weights_because_masters_are_fp32(pair, shards, tmp_path):
    recipe = recipe_for(shards, tmp_path, precision="bf16", steps=4)
    stage = recipe.stages[1].model_copy(update={"learning_rate": 1e-5})
    recipe = recipe.model_copy(update={"stages": {1: stage}})
    adapter = pair.run(cases.train, recipe.model_dump(), [1])[0][0]
    from stagecoach.models import get_family
    from stagecoach.trainer.stage_plan import StagePlan

    family, config = get_family("fantasy_world"), StagePlan.resolve(recipe, 1).config
    network = family.build(config, 1, "cpu", torch.bfloat16)
    family.load_base(network, config, "cpu")
    first = dict(network.named_parameters())
    changed, total = 0, 0
    for name, tensor in load_file(Path(adapter) / "model.safetensors").items():
        # Master weights start as the bf16 values that the engine casts to.
        changed += (tensor != first[name].detach().bfloat16().float()).sum().item()
        total += tensor.numel()
    assert changed / total > 0.95


@pytest.mark.slow
def test_stage_one_trains_at_a_lower_resolution_on_shards_of_its_own(pair, shards, tmp_path):
    write_synthetic(tmp_path / "raw", 6, 9, 48, 64, seed=2)
    options = ClipOptions(9, 48, 64, max_warp_error=1)  # of so few pixels it says little
    large = build_shards(tmp_path, Path(shards).parent / "encoders", options)
    clip = {"clip": {"frames": 9, "height": 48, "width": 64}, "frames_per_step": 3}
    recipe = recipe_for(large, tmp_path / "run", steps=4, model=clip)
    with pytest.raises(SchemaError, match=r"'scene_\d+' is 5x32x48 \(F, H, W\), expected 9x48x64 as the recipe says"):
        StageData.open(StagePlan.resolve(recipe_for(shards, tmp_path, model=clip), 1))
    values = recipe.model_dump()
    values["stages"][1] |= {"data": shards, "model": {"clip": {"frames": FRAMES, "height": HEIGHT, "width": WIDTH}}}
    sizes = [StagePlan.resolve(Recipe.model_validate(values), stage).config.clip.frames for stage in (1, 2)]
    assert sizes == [FRAMES, 9]
    pair.run(cases.train, values, [1, 2])
    assert [len(cases.losses(tmp_path / "run", stage)) for stage in (1, 2)] == [4, 4]
    low = recipe_for(shards, tmp_path / "low", steps=4)
    pair.run(cases.train, low.model_dump(), [1])
    assert cases.losses(tmp_path / "run", 1) == cases.losses(tmp_path / "low", 1)
