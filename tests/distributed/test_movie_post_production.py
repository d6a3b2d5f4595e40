"""MoviePostProduction on two ranks: ZeRO stages, recompute and frozen shards give the losses of plain PyTorch, stages
hand on, and a rank without boxes keeps pace."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stagecoach.trainer.recipe import Recipe
from tests.distributed import cases
from tests.distributed.plain import plain_losses
from tests.distributed.test_resume import stop_at
from tests.tiny_movie import FAMILY, make_tiny_movie


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    return make_tiny_movie(tmp_path_factory.mktemp("movie"), 12)


def recipe_for(movie, run: Path | str, **changes: Any) -> Recipe:
    return cases.cpu_recipe(FAMILY, movie.shards, run, 3, **{"model": movie.model} | changes)


@pytest.fixture(scope="module")
def stages(pair, movie, tmp_path_factory):
    """A run of all three stages; its losses are compared below, its adapters start other runs."""
    run = tmp_path_factory.mktemp("run")
    pair.run(cases.train, recipe_for(movie, run).model_dump(), [1, 2, 3])
    return run


@pytest.mark.slow
def test_all_stages_under_zero_3_give_the_losses_of_plain_pytorch(stages, movie):
    """R14(m): four micro-batches over two ranks against one batch on one; D14: gradients of all ranks count; D13: each
    stage starts at step 0 and takes all of its steps."""
    recipe = recipe_for(movie, "unused")
    for index in (1, 2, 3):
        init = stages / f"stage{index - 1}" / "adapter" if index > 1 else None
        found = cases.losses(stages, index)
        assert len(found) == 6
        assert found == pytest.approx(plain_losses(recipe, index, init), rel=1e-5)


@pytest.mark.slow
def test_the_guides_names_are_logged(stages):
    everywhere = [
        "loss/total",
        "loss/reconstruction",
        "metrics/alpha_mean",
        "metrics/alpha_fg_ratio",
        "metrics/learning_rate",
        "metrics/grad_norm",
        "metrics/timestep_mean",
    ]
    for index in (1, 2, 3):
        for name in everywhere if index == 1 else [*everywhere, "loss/dino_identity"]:
            assert cases.losses(stages, index, name), f"{name} in stage {index}"
    assert cases.losses(stages, 1, "loss/total") == cases.losses(stages, 1)
    # Alpha is below 0.5 after so few steps, so that no reference is in the foreground; tests/learning has some.
    for name in ("dino_similarity_mean", "feedback_magnitude"):
        assert cases.losses(stages, 3, f"metrics/{name}") == cases.losses(stages, 3, name)


@pytest.mark.slow
def test_an_adapter_holds_all_that_was_trained_and_stage_three_changes_its_bridges_only(stages):
    """D12, and the third stage's promise: everything from before is there to the last bit."""
    first, second, third = (load_file(stages / f"stage{i}" / "adapter" / "model.safetensors") for i in (1, 2, 3))
    assert set(first) < set(second) < set(third)
    assert all(".feedback." in name for name in set(third) - set(second))
    assert all(torch.equal(third[name], second[name]) for name in second)
    assert any("lora_A" in name for name in third)
    assert not any("base_layer" in name or name.startswith(("x_embedder", "proj_out")) for name in third)
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    assert any("lora_B" in name for name in moved)
    assert any(name.startswith("alpha_predictor") for name in moved)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"zero": 1}, id="zero1"),
        pytest.param({"zero": 2}, id="zero2"),
        pytest.param({"activation_checkpointing": "full"}, id="full"),
        pytest.param({"activation_checkpointing": "selective"}, id="selective"),
        pytest.param({"frozen": "shard"}, id="frozen-shard"),
    ],
)
def test_other_engines_give_the_same_losses(pair, stages, movie, tmp_path, change):
    recipe = recipe_for(movie, tmp_path, steps=3, **change)
    pair.run(train_from, recipe.model_dump(), 2, stages / "stage1" / "adapter")
    assert cases.losses(tmp_path, 2) == pytest.approx(plain_losses(recipe, 2, stages / "stage1" / "adapter"), rel=1e-5)


@pytest.mark.slow
def test_a_stopped_and_resumed_stage_equals_the_uninterrupted_one_to_the_last_digit(pair, stages, movie, tmp_path):
    """R14(l), D21: noise, references that are drawn and withheld, optimizer and position go on where they were."""
    recipe = recipe_for(movie, tmp_path)
    init = stages / "stage1" / "adapter"
    messages = pair.run(stop_from, recipe.model_dump(), 2, 3, init)
    assert all("step 3" in message for message in messages)
    pair.run(train_from, recipe.model_dump(), 2, init)
    assert cases.losses(tmp_path, 2) == cases.losses(stages, 2)
    one, other = (load_file(run / "stage2" / "adapter" / "model.safetensors") for run in (tmp_path, stages))
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)


def test_a_rank_without_boxes_keeps_pace(pair, movie, tmp_path):
    """R14(n): rank 1 sees no reference at all, rank 0 all of them, under ZeRO-3; neither waits for ever."""
    recipe = recipe_for(movie, tmp_path, steps=3)
    norms = pair.run(train_one_sided, recipe.model_dump())
    assert norms[0] == norms[1]
    assert all(norm > 0 for norm in norms[0])


def train_from(recipe: dict, stage: int, init: Path) -> str:
    return cases.train(recipe, [stage], init=init)[0]


def stop_from(recipe: dict, stage: int, step: int, init: Path) -> str:
    return stop_at(recipe, stage, step, init=init)


def train_one_sided(recipe: dict) -> list[float]:
    """Gradient norms of three steps of stage 2 in which the second rank's boxes are taken away."""
    from stagecoach.models.family import Progress
    from stagecoach.trainer.feed import device_batches
    from stagecoach.trainer.objective import weighted_total

    setup = cases.prepared(recipe, 2, rehearsal=True)
    engine, plan = setup.engine.deepspeed, setup.plan
    engine.module.train()
    norms = []
    for _, micro, batch in device_batches(setup.stream(0, 3), setup.world.device, 0, 2):
        if setup.world.rank == 1:
            batch["boxes"] = torch.zeros_like(batch["boxes"])
        progress = Progress(1, 3, 2, 0, helpers=setup.engine.helpers)
        output = engine(batch, progress)
        engine.backward(weighted_total(output["losses"], plan.spec, {}, progress).mean())
        engine.step()
        if micro + 1 == plan.batching.accumulation:
            norms.append(float(engine.get_global_grad_norm()))
    engine.destroy()
    return norms
