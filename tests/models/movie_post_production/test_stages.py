"""The declarations of the stages and the recipes that set them."""

import pytest
import torch

from stagecoach import models
from stagecoach.models.movie_post_production.config import MoviePostConfig
from stagecoach.models.movie_post_production.stages import identity_weight, make_stages
from stagecoach.models.trainable import trainable_names, trained_before
from stagecoach.trainer.freeze import freeze_table
from stagecoach.trainer.recipe import load_recipe
from stagecoach.trainer.stage_plan import StagePlan


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(
        models.FAMILIES,
        "movie_post_production",
        "stagecoach.models.movie_post_production.family:MoviePostProductionFamily",
    )


def rows(network, spec) -> set[str]:
    return {row.pattern for row in freeze_table(network, spec) if row.lr_scale is not None}


def test_each_stage_trains_what_the_matrix_says(config, make_network):
    """D4 and D10: nothing of stage 1 trains in stage 3, LoRA trains in stages 1 and 2."""
    specs = make_stages(config)
    names = {spec.index: set(trainable_names(make_network(spec.index), spec)) for spec in specs}
    tops = {stage: {name.split(".")[0] for name in found} for stage, found in names.items()}
    layout = {
        "alpha_predictor",
        "null_references",
        "instance_encoder",
        "instance_text",
        "layout_head",
        "transformer_blocks",
        "single_transformer_blocks",
    }
    assert tops == {1: layout, 2: layout | {"modulation_head"}, 3: {"transformer_blocks"}}
    assert names[1] < names[2]
    assert {name.split(".")[2] for name in names[3]} == {"feedback"}
    for stage in (1, 2):
        assert any("lora_A" in name for name in names[stage])
        assert any("lora_B" in name for name in names[stage])
    assert names[2] - names[1] == {name for name in names[2] if "modulation" in name}


def test_stage_three_holds_all_that_was_trained_before_and_no_bridge_behind_the_last_block(config, make_network):
    """D12: LoRA is there in stage 3; R14(k): the last double block has no successor."""
    specs, network = make_stages(config), make_network(3)
    before = trained_before(network, specs, 3)
    assert before == set(trainable_names(make_network(2), specs[1]))
    assert any("lora_A" in name for name in before)
    bridges = {name.split(".")[1] for name in trainable_names(network, specs[2])}
    assert bridges == {"0", "1", "2"}


def test_the_same_adapters_start_at_the_same_values_in_every_stage(make_network):
    first, third = (dict(make_network(stage).named_parameters()) for stage in (1, 3))
    assert all(parameter.equal(third[name]) for name, parameter in first.items())


@pytest.mark.parametrize("profile", ["default", "reference"])
def test_steps_rates_and_batches_are_the_guides_in_both_profiles(profile):
    """D13: each stage counts from 0 to its own number of steps; D23: one recipe says it all."""
    recipe = load_recipe(family="movie_post_production", profile=profile)
    stages = recipe.stages
    assert [stages[i].steps for i in (1, 2, 3)] == [70000, 150000, 10000]
    assert [stages[i].learning_rate for i in (1, 2, 3)] == [1e-4, 5e-6, 1e-5]
    assert [stages[i].warmup_steps for i in (1, 2, 3)] == [1000, 2000, 500]
    assert {stage.schedule for stage in stages.values()} == {"cosine"}
    assert {stage.global_batch for stage in stages.values()} == {8}
    assert {stage.checkpoint_every for stage in stages.values()} == {1000 if profile == "default" else 100}
    plan = StagePlan.resolve(recipe, 2)
    config = plan.config
    assert config.lora.rank == 128
    weights = {term.name: term.weight.end or term.weight.start for term in plan.spec.losses}
    assert weights == {
        "flow_matching": 1,
        "in_box": 0,
        "dino_identity": 10,
        "alpha_prior": 0.01 if profile == "default" else 0,
    }
    assert "dino_identity" not in {term.name for term in StagePlan.resolve(recipe, 1).spec.losses}


def test_profiles_differ_where_the_page_says_that_the_seed_is_unsound():
    """D19."""
    sound, seed = (
        StagePlan.resolve(load_recipe(family="movie_post_production", profile=name), 2).config
        for name in ("default", "reference")
    )
    assert (sound.losses.flow_matching.guidance_scale, seed.losses.flow_matching.guidance_scale) == (1.0, 3.5)
    assert (sound.losses.flow_matching.t_sampling, seed.losses.flow_matching.t_sampling) == ("logit_normal", "uniform")
    assert (sound.lora.scope, seed.lora.scope) == ("layout_branch", "global")
    assert (sound.modulation.space, seed.modulation.space) == ("temb", "scalar12")
    assert (sound.feedback.kind, seed.feedback.kind) == ("low_rank", "full")
    assert seed.lora.targets == ("to_q", "to_k", "to_v")


@pytest.mark.parametrize("profile", ["tiny", "demo"])
def test_small_profiles_load(profile):
    recipe = load_recipe(family="movie_post_production", profile=profile)
    assert set(recipe.stages) == {1, 2, 3}
    assert StagePlan.resolve(recipe, 1).config.allow_random_init


def test_the_identity_weight_rises_and_may_start_whole(config, progress):
    weight = identity_weight(config)
    assert weight.at(progress(2, 0)) == 0
    assert weight.at(progress(2, 1)) == 10
    values = config.model_dump()
    values["losses"]["identity"]["warmup"] = 0
    assert identity_weight(MoviePostConfig.model_validate(values)).at(progress(2, 0)) == 10


@pytest.mark.parametrize("profile", ["default", "reference"])
def test_full_size_networks_train_what_is_declared(profile):
    """On the meta device; every pattern names a module, none is claimed twice."""
    recipe = load_recipe(family="movie_post_production", profile=profile)
    for stage in (1, 2, 3):
        plan = StagePlan.resolve(recipe, stage)
        network = plan.family.build(plan.config, stage, "meta", torch.bfloat16)
        assert trainable_names(network, plan.spec)
