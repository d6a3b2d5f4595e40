"""A run that is stopped or killed goes on as if nothing had happened; a damaged checkpoint is named and passed over."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from stagecoach.trainer.distributed import start
from stagecoach.trainer.interrupt import Interrupted
from stagecoach.trainer.recipe import DS_CONFIGS, Recipe
from stagecoach.trainer.run import run_stages
from tests.distributed import cases
from tests.pair import Pair


def stop_at(recipe: dict, stage: int, step: int, **options) -> str:
    """Train until the last rank gets SIGTERM at ``step``; the message of the interruption."""
    from stagecoach.trainer import stage as module

    world = start()
    original = module.StageLoop._after_step

    def with_signal(self):
        original(self)
        if self.step == step and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    module.StageLoop._after_step = with_signal
    try:
        run_stages(Recipe.model_validate(recipe), [stage], **options)
    except Interrupted as interruption:
        return str(interruption)
    finally:
        module.StageLoop._after_step = original
    return "not interrupted"


@pytest.mark.parametrize("zero", [1, 2, 3, "3 with a second copy in the node"])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one_to_the_last_digit(pair, shards, tmp_path, zero):
    options = {"zero": zero, "precision": "bf16", "ema": {"decay": 0.9}, "schedule": "cosine", "warmup_steps": 3}
    if zero not in (1, 2, 3):
        config = json.loads((DS_CONFIGS / "zero3_hpz.json").read_text())
        config["zero_optimization"]["zero_hpz_partition_size"] = 2
        (tmp_path / "hpz.json").write_text(json.dumps(config))
        # The average takes the place of the weights in validation, and must leave no copy behind.
        options |= {"zero": 3, "ds_config": str(tmp_path / "hpz.json"), "validate_every": 5}
    whole = cases.toy_recipe(shards, str(tmp_path / "whole"), **options)
    pair.run(cases.train, whole.model_dump(), [1])
    broken = cases.toy_recipe(shards, str(tmp_path / "broken"), **options)
    messages = pair.run(stop_at, broken.model_dump(), 1, 7)
    assert all("step 7" in message for message in messages)
    pair.run(cases.train, broken.model_dump(), [1])
    assert cases.losses(tmp_path / "broken", 1) == cases.losses(tmp_path / "whole", 1)
    for file in ("adapter/model.safetensors", "checkpoints/checkpoint_20/ema.safetensors"):
        one, other = (load_file(tmp_path / run / "stage1" / file) for run in ("whole", "broken"))
        assert one.keys() == other.keys()
        assert all(one[name].equal(other[name]) for name in one)


def same_in_the_end(one: Path, other: Path, steps: int) -> None:
    """Losses, weights and averages are those of the other run within rounding."""
    assert cases.losses(one, 1) == pytest.approx(cases.losses(other, 1), rel=1e-5)
    for file in ("model.safetensors", "ema.safetensors"):
        found, expected = (load_file(run / f"stage1/checkpoints/checkpoint_{steps}" / file) for run in (one, other))
        assert found.keys() == expected.keys()
        for name in found:
            assert found[name].allclose(expected[name], rtol=1e-4, atol=1e-6), (file, name)


def test_another_zero_stage_goes_on_from_a_checkpoint(pair, shards, tmp_path):
    options = {"ema": {"decay": 0.9}, "schedule": "cosine", "steps": 10}
    whole = cases.toy_recipe(shards, str(tmp_path / "whole"), zero=2, **options)
    pair.run(cases.train, whole.model_dump(), [1])
    for stop, zero in ((2, 3), (4, 1), (6, 3), (8, 2)):
        recipe = cases.toy_recipe(shards, str(tmp_path / "broken"), zero=zero, **options)
        assert f"step {stop}" in pair.run(stop_at, recipe.model_dump(), 1, stop)[0]
    recipe = cases.toy_recipe(shards, str(tmp_path / "broken"), zero=3, **options)
    pair.run(cases.train, recipe.model_dump(), [1])
    same_in_the_end(tmp_path / "broken", tmp_path / "whole", 10)
    log = "".join((tmp_path / run / "train.log").read_text() for run in ("whole", "broken"))
    assert all(f"written by 2 ranks, ZeRO-{zero}" in log for zero in (1, 2, 3))


def test_after_a_change_of_world_size_the_optimizers_settings_and_rates_are_those_of_recipe_and_family(
    pair, shards, tmp_path
):
    quiet = {"validation_samples": 0, "preview_samples": 0}
    alone = Pair(size=1)
    try:
        for zero in (1, 3):
            recipe = cases.toy_recipe(shards, str(tmp_path / f"{zero}"), zero=zero, steps=2, **quiet)
            alone.run(cases.train, recipe.model_dump(), [1, 2])
    finally:
        alone.close()
    for zero, other in ((1, 2), (3, 3), (3, 1)):
        changed = cases.toy_recipe(shards, str(tmp_path / f"{zero}"), zero=other, **cases.CHANGED, **quiet)
        for groups in pair.run(cases.settings_in_force, changed.model_dump(), 2, *cases.OTHER_RATES):
            cases.check_settings(groups)


@pytest.mark.slow
def test_other_numbers_of_ranks_stages_of_zero_and_micro_batches_go_on_with_the_same_samples(pair, shards, tmp_path):
    options = {"ema": {"decay": 0.9}, "schedule": "cosine", "steps": 10, "global_batch": 12}
    whole = cases.toy_recipe(shards, str(tmp_path / "whole"), **options)
    pair.run(cases.train, whole.model_dump(), [1])
    parts = ((2, 3, 2, 3), (1, 1, 4, 5), (3, 2, 2, 8), (4, 3, 1, 10))  # ranks, ZeRO stage, micro-batch, last step
    for ranks, zero, micro, stop in parts:
        recipe = cases.toy_recipe(shards, str(tmp_path / "broken"), zero=zero, **options | {"micro_batch": micro})
        some = pair if ranks == 2 else Pair(size=ranks)
        try:
            some.run(stop_at, recipe.model_dump(), 1, stop)
        finally:
            if some is not pair:
                some.close()
    same_in_the_end(tmp_path / "broken", tmp_path / "whole", 10)


def test_a_damaged_checkpoint_is_named_and_the_next_older_one_used(pair, shards, tmp_path):
    recipe = cases.toy_recipe(shards, str(tmp_path), checkpoint_every=5)
    pair.run(cases.train, recipe.model_dump(), [1])
    before = cases.losses(tmp_path, 1)
    checkpoints = tmp_path / "stage1" / "checkpoints"
    assert sorted(p.name for p in checkpoints.glob("checkpoint_*")) == [
        "checkpoint_10",
        "checkpoint_15",
        "checkpoint_20",
    ]
    shutil.rmtree(tmp_path / "stage1" / "adapter")  # else the stage is finished
    damage(checkpoints / "checkpoint_20" / "model.safetensors")
    (checkpoints / "checkpoint_15" / "training_state.json").unlink()
    pair.run(cases.train, recipe.model_dump(), [1])
    log = (tmp_path / "train.log").read_text()
    assert "checkpoint_20/model.safetensors" in log
    assert "checkpoint_15/training_state.json" in log
    assert "resumed" in log
    assert "at step 10" in log
    assert cases.losses(tmp_path, 1) == before


def test_a_run_with_only_damaged_checkpoints_stops_and_says_so(pair, shards, tmp_path):
    recipe = cases.toy_recipe(shards, str(tmp_path), checkpoint_every=20)
    pair.run(cases.train, recipe.model_dump(), [1])
    shutil.rmtree(tmp_path / "stage1" / "adapter")
    damage(tmp_path / "stage1" / "checkpoints" / "checkpoint_20" / "model.safetensors")
    with pytest.raises(AssertionError, match="none of 1 checkpoints is intact"):
        pair.run(cases.train, recipe.model_dump(), [1])


def test_a_checkpoint_of_other_training_is_refused(pair, shards, tmp_path):
    pair.run(cases.train, cases.toy_recipe(shards, str(tmp_path), seed=0).model_dump(), [1])
    with pytest.raises(AssertionError, match="was trained with seed 0, this run has 1"):
        pair.run(cases.train, cases.toy_recipe(shards, str(tmp_path), seed=1).model_dump(), [1])


def test_stage_two_starts_from_the_adapter_of_stage_one_and_refuses_a_damaged_one(pair, shards, tmp_path):
    recipe = cases.toy_recipe(shards, str(tmp_path))
    first, second = pair.run(cases.train, recipe.model_dump(), [1, 2])[0]
    cards = [json.loads((Path(p) / "adapter.json").read_text()) for p in (first, second)]
    assert cards[1]["predecessor"] == cards[0]["sha256"]
    one, two = (load_file(Path(p) / "model.safetensors") for p in (first, second))
    assert set(one) < set(two)
    assert any("second" in name for name in set(two) - set(one))
    damage(Path(first) / "model.safetensors")
    with pytest.raises(AssertionError, match=r"stage1/adapter/model.safetensors: content differs"):
        pair.run(cases.train, recipe.model_dump() | {"run": str(tmp_path)}, [2])


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


def die_at(recipe: dict, stage: int, step: int) -> None:
    """Train until this process kills itself, as a lost node or a full memory would, at ``step``."""
    from stagecoach.trainer import stage as module

    original = module.StageLoop._after_step

    def with_death(self):
        original(self)
        if self.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    module.StageLoop._after_step = with_death
    run_stages(Recipe.model_validate(recipe), [stage])


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_checkpoint_with_the_same_losses(pair, shards, tmp_path):
    options = {"checkpoint_every": 5, "precision": "bf16"}
    whole = cases.toy_recipe(shards, str(tmp_path / "whole"), **options)
    pair.run(cases.train, whole.model_dump(), [1])
    broken = cases.toy_recipe(shards, str(tmp_path / "broken"), **options)
    victims = Pair()
    with pytest.raises((RuntimeError, TimeoutError, ConnectionError)):
        victims.run(die_at, broken.model_dump(), 1, 13)
    victims.close()
    assert len(cases.losses(tmp_path / "broken", 1)) < 20
    pair.run(cases.train, broken.model_dump(), [1])
    assert cases.losses(tmp_path / "broken", 1) == cases.losses(tmp_path / "whole", 1)


def test_the_average_is_what_is_handed_on_where_the_recipe_says_so(pair, shards, tmp_path):
    recipe = cases.toy_recipe(shards, str(tmp_path), ema={"decay": 0.9}, export_weights="ema", steps=6)
    pair.run(cases.train, recipe.model_dump(), [1])
    adapter = load_file(tmp_path / "stage1" / "adapter" / "model.safetensors")
    average = load_file(tmp_path / "stage1" / "checkpoints" / "checkpoint_6" / "ema.safetensors")
    weights = load_file(tmp_path / "stage1" / "checkpoints" / "checkpoint_6" / "model.safetensors")
    assert all(adapter[name].equal(average[name]) for name in average)
    assert not all(adapter[name].equal(weights[name]) for name in weights)


def test_a_dry_run_takes_one_step_of_each_stage_and_writes_nothing(pair, shards, tmp_path):
    recipe = cases.toy_recipe(shards, str(tmp_path / "run"))
    assert pair.run(cases.train_dry, recipe.model_dump(), [1, 2]) == [[], []]
    assert not (tmp_path / "run").exists()
